"""Composite activations in PyTorch's autograd graph: the graph as patterns see it, and what they find there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.axes import Axes
from guided_backprop.backends.guards import Guards
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.patterns import Slopes, composites
from guided_backprop.backends.torch.graph.axes import axes_of
from guided_backprop.backends.torch.graph.nodes import Path, word_of
from guided_backprop.backends.torch.graph.operations import OPERATIONS, operation, row
from guided_backprop.backends.torch.graph.relus import relu_of, saved

# Copies and casts, which patterns do not see.
_UNSEEN: Final = OPERATIONS.called("cast", "copy")
_SUMS: Final = frozenset({"add", "sub"})
_UNKNOWN: Final = float("nan")
# Operations that may be an explicit ReLU; and those that the table calls by the word of another.
_EXPLICIT: Final = frozenset({"clamp", "leaky_relu", "maximum", "relu"})
_OWN_WORDS: Final = {"copysign": "copysign", "mse_loss": "squared_difference", "var": "var", "var_mean": "var_mean"}

#: The numbers that were added or subtracted, which the graph does not keep, by the node's place in time.
Shifts = Mapping[int, float]


class Operand(NamedTuple):
    """An operand that does not depend on the images: which one of which node."""

    node: Node
    place: int


@dataclass(frozen=True)
class Output:
    """A further result of a node that has several: which one. For the first the node stands."""

    node: Node
    place: int


Ref = Node | Operand | Output
Made = tuple[str, Sequence[Ref | float]]


class Composite(NamedTuple):
    """A composite activation.

    Attributes:
        name: how the coverage lists it.
        parts: the nodes that it is made of.
        slopes: those below 0 of a PReLU that is written out; None of all else.
    """

    name: str
    parts: frozenset[Node]
    slopes: "Slopes[Ref] | None" = None


class Graph:
    """An autograd graph as patterns see it: a value is the node that made it; a ReLU is one operation, however written.

    Args:
        path: the nodes between score and images.

    Attributes:
        shifts: the numbers that were added, as far as they are known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shifts: Shifts = {}
        self._made: dict[Node, Made] = {}
        self._numbers: dict[Operand, float] = {}

    def made(self, value: Ref) -> Made | None:
        """Return the word of the operation that makes a value, and its operands."""
        if isinstance(value, Operand):
            return None
        node = value.node if isinstance(value, Output) else value
        return self._made[node] if node in self._made else self._made.setdefault(node, self._how(node))

    def _how(self, value: Node) -> Made:
        relu = relu_of(value, self.path.members)
        if relu is not None:
            return relu.name, [self._operands(value)[relu.operand]]
        word = word_of(value, self.path.members) or row(value).word
        operands = self._operands(value)
        if word in _SUMS:
            # With a multiple of the second operand it is another operation.
            word = word if saved(value, "alpha") == 1 else "lerp"
            operands += [Operand(value, 1)] if len(operands) == 1 else []
        return _OWN_WORDS.get(operation(value), word), operands + _attributes(value, word)

    def axes(self, value: Ref) -> Axes | None:
        """Return where the axes of what a value is made of go."""
        return axes_of(value) if isinstance(value, Node) else None

    def constant(self, value: Ref) -> float | None:
        """Return the number that an operand is; NaN if it is an array, or a number that nothing tells."""
        if not isinstance(value, Operand):
            return None
        if row(value.node).word in _SUMS:
            return self.shifts.get(value.node._sequence_nr(), _UNKNOWN)
        # Each pattern asks, and to look at an array takes time.
        return self._numbers[value] if value in self._numbers else self._numbers.setdefault(value, self._number(*value))

    def number(self, value: Ref) -> float | None:
        """Return the same: of an array the graph tells no more."""
        return self.constant(value)

    def _number(self, node: Node, place: int) -> float:
        name = ("self", "other")[place] if place < 2 else ""
        # What a checkpoint keeps runs once more if one looks. A weight is no number, but slopes of 0 make a ReLU.
        is_kept = getattr(getattr(node, f"_raw_saved_{name}", None), "unpack_hook", None) is None
        number = saved(node, name) if is_kept else None
        if not isinstance(number, torch.Tensor) or number.is_complex():
            return _UNKNOWN
        is_number = number.numel() == 1 and node.next_functions[place][0] is None
        return float(number) if is_number else _UNKNOWN if number.any() else 0.0

    def users(self, value: Ref) -> Sequence[Ref]:
        """Return the values that are made of a value directly."""
        if not isinstance(value, Node):
            return [value.node] if isinstance(value, Operand) else []
        every = (self.users(child) if operation(child) in _UNSEEN else [child] for child in self.path.children[value])
        return [user for users in every for user in users]

    def is_shifted(self, value: Ref | float) -> bool:
        """Tell whether a value is a sum with a number that is not known."""
        made = None if isinstance(value, float) else self.made(value)
        if made is None or made[0] not in _SUMS:
            return False
        return any(not isinstance(one, float) and self.constant(one) is not None for one in made[1])

    def _operands(self, node: Node) -> list[Ref | float]:
        members = self.path.members
        operands: list[Ref | float] = []
        for place, (source, output) in enumerate(node.next_functions):
            if source is None or source not in members:
                operands.append(Operand(node, place))
                continue
            while operation(source) in _UNSEEN:
                behind, number = next((one for one in source.next_functions if one[0] is not None), (None, 0))
                if behind is None or behind not in members:
                    break
                source, output = behind, number  # noqa: PLW2901
            operands.append(Output(source, output) if output else source)
        return operands


def composites_of(graph: Graph, shifts: Shifts) -> dict[Node, Composite]:
    """Return the composite activations of a graph, by the node that each ends in, given the numbers that were added."""
    activations, path, graph.shifts = {}, graph.path, shifts
    # Those of an optimised model are functions of our own.
    relus = [node for node in path.concerns if row(node).word in _EXPLICIT or row(node).kind is Kind.HIDDEN]
    for last, match in (composites(graph, path.ends) | Guards(graph).among(relus)).items():
        parts = frozenset(part for part in match.parts if isinstance(part, Node))
        if isinstance(last, Node):
            activations[last] = Composite(match.name, parts, match.slopes)
    return activations


def inside_of(activations: Mapping[Node, Composite]) -> frozenset[Node]:
    """Return the nodes that composite activations are made of."""
    return frozenset[Node]().union(*(activation.parts for activation in activations.values()))


def _attributes(node: Node, word: str) -> list[float]:
    """Return the numbers that belong to an operation and are no operands in the graph: an exponent, a bound."""
    if word == "pow" and operation(node) not in _OWN_WORDS and not hasattr(node, "_raw_saved_exponent"):
        exponent = saved(node, "exponent")
        return [_UNKNOWN if isinstance(exponent, complex) else float(exponent)]
    bound = saved(node, {"maximum": "min", "minimum": "max"}.get(word, ""))
    return [float(bound)] if isinstance(bound, (int, float)) else []
