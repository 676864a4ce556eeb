"""The nodes of PyTorch's autograd graph that lie between score and images, and what has to be asked of them."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.again import looks_unbatched
from guided_backprop.backends.operations import LISTED, Kind
from guided_backprop.backends.patterns import ROOTS
from guided_backprop.backends.torch.graph.operations import OPERATIONS, operation, row, row_of
from guided_backprop.backends.torch.graph.relus import is_constant, relu_of, saved
from guided_backprop.backends.torch.own import own_function

# Parts of torch that are Python functions of their own, and that are known.
_PLAIN_MODULES: Final = {"torch.nn.modules._functions", "torch.nn.parallel._functions"}
_IN_PLACE_ON_VIEW: Final = "torch::autograd::CopySlices"
# What only copies, casts or reshapes values: a head is looked for behind it.
_RESHAPES: Final = OPERATIONS.called("broadcast", "cast", "copy", "reshape", "transpose")
#: A reshape that makes no copy has the first name where it is watched, and the second one elsewhere.
SAME: Final = {"ViewBackward0": "ReshapeAliasBackward0"}


@dataclass(frozen=True, slots=True)
class Path:
    """The nodes between score and images.

    Attributes:
        nodes: all of them, those of the images first.
        members: the same as a set.
        concerns: those that may be anything but plain arithmetic: most need no second look.
        doubts: those of them whose name alone does not say that they are ReLUs, or batch-norm.
        ends: those that a composite activation may end in.
        children: for each node, those that gradients come to it from, once for each time that they use its result.
    """

    nodes: list[Node]
    members: set[Node]
    concerns: list[Node]
    doubts: list[Node]
    ends: list[Node]
    children: dict[Node, list[Node]]

    @classmethod
    def between(cls, last: Node | None, firsts: Sequence[Node | None], *, with_firsts: bool = True) -> "Path":
        """Return the nodes between the node of the score and the nodes of the images.

        Nodes that lead to parameters only are left out: they may be the user's own, and no gradient that is
        asked for passes them. Empty if the score does not depend on the images.
        """
        children = _children(last)
        reached = {first: None for first in firsts if first is not None and first in children}
        stack = list(reached)
        while stack:
            for child in children[stack.pop()]:
                if child not in reached:
                    reached[child] = None
                    stack.append(child)
        members = set(reached) if with_firsts else set(reached) - set(firsts)
        nodes = [node for node in reached if node in members]
        asked = [(node, _questions(node.name())) for node in nodes]
        concerns, doubts, ends = ([node for node, answers in asked if answers[question]] for question in range(3))
        return cls(nodes, members, concerns, doubts, ends, children)

    @property
    def signature(self) -> int:
        """A number for what the nodes are: the same for each batch that takes the same way through the model."""
        return hash(tuple((SAME.get(name := node.name(), name), len(self.children[node])) for node in self.nodes))


def _children(last: Node | None) -> dict[Node, list[Node]]:
    """Return all nodes that lead to the last one, each with those that gradients come to it from."""
    children: dict[Node, list[Node]] = {} if last is None else {last: []}
    stack = list(children)
    while stack:
        node = stack.pop()
        # Written out, for this is met by every node of every graph.
        for parent, _ in node.next_functions:
            if parent in children:
                children[parent].append(node)
            elif parent is not None:
                children[parent] = [node]
                stack.append(parent)
    return children


@cache
def _questions(name: str) -> tuple[bool, bool, bool]:
    """Return whether nodes of this name are concerns, doubts, and ends of a composite activation."""
    kind, word = row_of(name)
    # A division by a number is none, which the name does not say.
    is_concern = kind in LISTED or kind is Kind.RANDOM or word in ("div", "batch_norm") or name == _IN_PLACE_ON_VIEW
    return is_concern, is_concern and word not in ("relu", "batch_norm"), word in ROOTS


def parents(node: Node) -> Iterator[Node]:
    """Iterate over the nodes that a node passes gradients on to."""
    return (parent for parent, _ in node.next_functions if parent is not None)


def word_of(node: Node, on_path: Container[Node]) -> str | None:
    """Return how the coverage calls what a node is the derivative of; None if it is no non-linearity."""
    name = operation(node)
    if name in _WORDS:
        return _WORDS[name](node, on_path)
    kind, word = row(node)
    return word if kind in LISTED and kind is not Kind.HIDDEN else None


def _of_division(node: Node, on_path: Container[Node]) -> str | None:
    """A division by a constant is none."""
    is_by_number = len(node.next_functions) == 1 or is_constant(node, 1, on_path)
    return None if is_by_number else "div"


def _of_power(node: Node, on_path: Container[Node]) -> str:
    """A power of a constant is an exponential."""
    is_of_number = len(node.next_functions) == 1 and hasattr(node, "_raw_saved_exponent")
    is_of_constant = len(node.next_functions) == 2 and is_constant(node, 0, on_path)
    return "exp" if is_of_number or is_of_constant else "pow"


def _of_clamp(node: Node, on_path: Container[Node]) -> str:
    if saved(node, "max") is None:
        return "maximum"
    return "minimum" if saved(node, "min") is None else "clamp"


def _of_batch_norm(node: Node, on_path: Container[Node]) -> str | None:
    """With the statistics of one image it is instance norm, as torch computes it."""
    return "instance_norm" if uses_batch(node) else None


_WORDS: Final[dict[str, Callable[[Node, Container[Node]], str | None]]] = {
    "div": _of_division,
    "pow": _of_power,
    "clamp": _of_clamp,
    **dict.fromkeys(OPERATIONS.called("batch_norm"), _of_batch_norm),
}


def is_cap_of_relu(node: Node, path: Path) -> bool:
    """Tell whether a node is a minimum with a constant, beside a ReLU: they are one ReLU with a cap, and no more."""
    before = [parent for parent in parents(node) if parent in path.members]
    if word_of(node, path.members) != "minimum" or len(before) != 1:
        return False
    pairs = [(before[0], node), *((node, user) for user in path.children[node])]
    return any(
        path.children[first] == [second] and relu_of(first if second is node else second, path.members) is not None
        for first, second in pairs
    )


def head_behind(node: Node | None) -> Node | None:
    """Return the node of the final softmax or sigmoid, looked for behind operations that only reshape values."""
    while node is not None and operation(node) in _RESHAPES:
        node = next(parents(node), None)
    return node if node is not None and row(node).kind is Kind.HEAD else None


def is_in_place_on_view(node: Node) -> bool:
    """Tell whether ``node`` hides the derivative of an operation that changed a view in place."""
    return node.name() == _IN_PLACE_ON_VIEW


def is_random(node: Node) -> bool:
    """Tell whether ``node`` belongs to training: dropout, a random slope, batch-norm that learns."""
    word = row(node).word
    if word == "rrelu":
        return bool(saved(node, "training"))
    return word == "dropout" or (uses_batch(node) and saved(node, "running_mean") is not None)


def uses_batch(node: Node) -> bool:
    """Tell whether ``node`` is batch-norm with the statistics of this batch."""
    return row(node).word == "batch_norm" and bool(saved(node, "training"))


def mixes_images(node: Node) -> bool:
    """Tell whether ``node`` mixes the images of a batch.

    Instance norm is batch-norm of one long image with the statistics of that image: nothing is mixed.
    """
    return uses_batch(node) and bool(saved(node, "input").shape[0] > 1)


def opaque_name(node: Node) -> str | None:
    """Return the name of a custom function or region that hides what it computes, or None."""
    kind, word = row(node)
    if kind is not Kind.HIDDEN:
        # The ReLUs of a recurrent network are inside one kernel. Mode 0 is the ReLU network, 1 tanh, 2 LSTM, 3 GRU.
        return operation(node) if word == "rnn" and saved(node, "mode") == 0 else None
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        function = getattr(type(node), "_forward_cls", None)
        if own_function(node) is not None or getattr(function, "__module__", None) in _PLAIN_MODULES:
            return None
        return node.name().removesuffix("Backward")
    return word


def may_take_for_one_image(path: Path, shape: Sequence[int]) -> bool:
    """Tell whether images of a shape may be one image to a convolution."""
    convolutions = (node for node in path.nodes if operation(node) == "convolution")
    # What a checkpoint saved is made again when it is asked for.
    of_one = (node for node in convolutions if tuple(node._input_metadata[0].shape[: -len(shape)]) == (1,))
    return any(looks_unbatched(shape, saved(node, "input").shape) for node in of_one)


def runs_graphs(node: Node) -> bool:
    """Tell whether a node may differentiate a graph of its own, as a checkpoint of the user's own does.

    A compiled region has no graph inside, and is fast because nobody watches it.
    """
    is_function = isinstance(node, torch.autograd.function.BackwardCFunction)
    return is_function and opaque_name(node) not in (None, "CompiledFunction")
