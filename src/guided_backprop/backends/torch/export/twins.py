"""What is known of a real run, carried over to the same nodes of the run that is recorded.

What has to be judged by values is judged in a run on real images. Its marks (which nodes are ReLUs or composite
activations, which one is the head) go to the same nodes of a run on tensors without values.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.autograd.graph import Node

from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.editor import Editor, Head, leave
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.composites import Composite
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.graph.relus import Relu, saved
from guided_backprop.backends.torch.hidden.found import Spelled
from guided_backprop.backends.torch.leaving import Gradients, leaving
from guided_backprop.backends.torch.own import Arguments, Function, Named
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import Deconv, Guided, Plain, ReluRule


@dataclass(frozen=True)
class Marks:
    """What a run on real images told of a model's graph."""

    path: nodes.Path
    relus: Mapping[Node, Relu]
    activations: Mapping[Node, Composite]
    spelled: Sequence[Spelled]
    head: Node | None


class Results(Dispatched):
    """Keeps what each operation was given first, and gave, by its node's place in time.

    An operation is dispatched right after its node was made; those that it is made of itself come later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_number: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        number = torch._C._autograd._get_sequence_nr() - 1
        with enable_python_dispatcher():
            result = func(*args, **(kwargs or {}))
        # What is asked of a tensor's form, as its device, is no operation.
        if isinstance(result, torch.Tensor | tuple | list):
            self._by_number.setdefault(number, (args[0] if args else None, result))
        return result

    def given(self, node: Node) -> torch.Tensor:
        """Return what the operation of a node was given first."""
        return cast("torch.Tensor", self._by_number[node._sequence_nr()][0])

    def result(self, node: Node, output: int) -> torch.Tensor:
        """Return one of the results of the operation of a node."""
        result = self._by_number[node._sequence_nr()][1]
        return cast("torch.Tensor", result[output] if isinstance(result, tuple | list) else result)


class TwinEditor(Editor):
    """Puts a rule on the nodes of a graph that is recorded, by what their twins of a real run are known to be.

    Args:
        marks: what the real run told.
        path: the nodes of the run that is recorded.
        results: what its operations gave.
        rule: what a ReLU lets through.
        vouch: what is known of parts that hide what they compute.

    Attributes:
        logits: what goes into the head that is undone, or None.
    """

    def __init__(
        self, marks: Marks, path: nodes.Path, results: Results, rule: ReluRule, vouch: Mapping[str, Any]
    ) -> None:
        twins = _twins(marks.path, path)
        self._real = {there: here for here, there in twins.items()}
        self._relus = marks.relus
        self._results = results
        head = None if marks.head is None else twins[marks.head]
        self.logits = None if head is None else results.given(head)
        activations = {
            twins[last]: Composite(activation.name, frozenset(twins[part] for part in activation.parts))
            for last, activation in marks.activations.items()
        }
        spelled = [_moved(relu, twins) for relu in marks.spelled]
        shown = None if head is None or self.logits is None else Head(head, self.logits)
        super().__init__(path, rule, vouch, shown, {}, activations=activations, spelled=spelled)

    def _treat(self, node: Node, path: nodes.Path) -> None:
        # What a batch-norm's derivative reads where is no question of a graph without memory.
        if row(node).word != "batch_norm" or nodes.uses_batch(self._real[node]):
            super()._treat(node, path)

    def _refuse_cap(self, node: Node, path: nodes.Path) -> None:
        """Nothing: the real run was not refused."""

    def as_relu(self, node: Node, on_path: Container[Node]) -> Relu | None:
        relu = self._relus.get(self._real[node])
        if relu is None:
            return None
        x = None if relu.x is None else saved(node, ("self", "other")[relu.operand]).detach()
        cap = saved(node, "max") if isinstance(relu.cap, torch.Tensor) else relu.cap
        return Relu(node, relu.name, relu.operand, x, cap)

    def _edit(self, relu: Relu, *, is_hidden: bool) -> None:
        """Put the rule on one ReLU, out of place: on what its own derivative made of what arrived."""
        if is_hidden:
            super()._edit(relu, is_hidden=True)
        else:
            self._after(relu.node, partial(leave, self._rule, relu, left=_left))

    def _close(self, spelled: Sequence[Spelled]) -> None:
        for relu in spelled:
            self._note("relu", self._rule.name)
            self._before(relu.node, partial(_close, self._rule, relu, self._results.result(relu.node, relu.output)))

    def _skip_head(self, logits: torch.Tensor, inputs: Arguments, gradients: Arguments) -> Arguments:
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])


def _close(rule: ReluRule, relu: Spelled, y: torch.Tensor, gradients: Gradients) -> Gradients:
    g = gradients[relu.output]
    if g is None:
        return gradients
    closed = float(relu.y[~relu.is_open].flat[0])
    left = _left(rule, g, torch.where(y.detach() != closed, g, 0.0), None, y)
    return (*gradients[: relu.output], left, *gradients[relu.output + 1 :])


def _left(
    rule: ReluRule, g: torch.Tensor, derived: torch.Tensor, x: torch.Tensor | None, y: torch.Tensor | None
) -> torch.Tensor:
    """Return what leaves a ReLU; nothing is written over, for a graph has no memory."""
    match rule:
        case Plain():
            return derived
        case Guided():
            return derived.clamp(min=0)
        case Deconv():
            return g.clamp(min=0)
        case _:
            return leaving(rule, g, derived, x, y)


def _twins(path: nodes.Path, other: nodes.Path) -> dict[Node, Node]:
    """Return which node of another run of the model each node is.

    Raises:
        ModelError: they are not the same graph.
    """
    twins = dict(zip(path.nodes, other.nodes, strict=False))
    is_same = len(path.nodes) == len(other.nodes) and all(
        row(node) == row(twin)
        and [twins.get(child) for child in path.children[node] if child in path.members]
        == [child for child in other.children[twin] if child in other.members]
        for node, twin in twins.items()
    )
    if not is_same:
        raise ModelError(
            "model must take the same way whatever the images' values and number; received one that takes another way "
            "while it is traced. Export the part of it that does not choose."
        )
    return twins


def _moved(relu: Spelled, twins: Mapping[Node, Node]) -> Spelled:
    """Return a spelled ReLU of the other run."""
    closed = np.unique(relu.y[~relu.is_open])
    if len(closed) != 1:
        raise OpaqueRegionError(
            "a ReLU that is spelled as arithmetic must be closed at one value to be exported; received "
            f"{relu.name}, closed at {len(closed)}. Write it as torch.relu."
        )
    return Spelled(twins[relu.node], relu.output, relu.name, relu.y, relu.is_open)
