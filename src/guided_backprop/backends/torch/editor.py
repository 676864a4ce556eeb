"""Puts a rule on the nodes of one autograd graph, and keeps the record of what was done."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.base import Vouch, per_image
from guided_backprop.backends.refusals import coverage_of
from guided_backprop.backends.torch import nodes
from guided_backprop.backends.torch.audit import BackwardWatch, ForwardWatch
from guided_backprop.backends.torch.lean import Gate
from guided_backprop.backends.torch.leaving import Gradients, clamped, leaving
from guided_backprop.backends.torch.own import own_function, prepare
from guided_backprop.backends.torch.refusals import training_error
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import Guided, Plain, ReluRule


class Head(NamedTuple):
    """The final softmax or sigmoid, and what goes into it."""

    node: Node
    logits: torch.Tensor

    @classmethod
    def of(cls, node: Node, watch: ForwardWatch | None) -> "Head":
        """Return the head that a node is, with the logits that the watched forward pass showed."""
        if nodes.operation(node) == "log_sigmoid":
            return cls(node, node._saved_self.detach())  # type: ignore[attr-defined]
        logits = None if watch is None else watch.logits_of(node._saved_result)  # type: ignore[attr-defined]
        if logits is None:
            raise OpaqueRegionError(
                f"the logits in front of the final {nodes.operation(node)} must be visible; "
                "received a model that hides them. Pass undo_head=False, or the model without its last layer."
            )
        return cls(node, logits)


class Editor:
    """Puts a rule on the nodes of one graph, keeps the record of what was done, and takes the rule off again.

    Args:
        path: the nodes between score and images.
        rule: what a ReLU lets through.
        vouch: what is known of parts that hide what they compute.
        head: the final softmax or sigmoid that is undone, if any.
        gates: of the ReLUs that keep one bit a value, what lets the gradient through.
        has_prelu: some ReLUs may be parts of a PReLU.

    Attributes:
        head: as given.
        scores: with a head, the score of its logits, for each backward pass so far.
        watch: to be entered during backward passes; None if the graph shows everything.
    """

    def __init__(
        self,
        path: nodes.Path,
        rule: ReluRule,
        vouch: Vouch,
        head: "Head | None",
        gates: Mapping[Node, Gate],
        *,
        has_prelu: bool,
    ) -> None:
        self.scores: list[NDArray[np.float64]] = []
        self.watch: BackwardWatch | None = None
        self.head = head
        self._rule, self._vouch, self._gates = rule, vouch, gates
        self._counts: Counter[tuple[str, str]] = Counter()
        self._handles: list[RemovableHandle] = []
        written = nodes.written_out(path) | (nodes.prelus(path) if has_prelu else {})
        parts = {part for _, inside in written.values() for part in inside}
        for node, (name, _) in written.items():
            self._activation(node, name)
        for node in path.concerns:
            if node not in written and node not in parts:
                self._treat(node, path)
        if self.watch is None:
            self.coverage()

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *error: object) -> None:
        """Take the rule off the graph."""
        for handle in self._handles:
            handle.remove()

    def _treat(self, node: Node, path: nodes.Path) -> None:
        """Put the rule on one node, or note that it keeps its derivative."""
        name, opaque = nodes.operation(node), nodes.opaque_name(node)
        if name in nodes.RANDOM:
            _refuse_training(node)
        if name in nodes.BATCH_NORMS:
            return
        own = own_function(node)
        if own is not None:
            prepare(node, self._rule, path.children[node])
        relu = nodes.relu_of(node, path.members)
        if relu is None and opaque is not None and self._vouch.get(opaque) == "relu":
            relu = nodes.Relu(node, opaque)
        if relu is not None:
            self._counts[relu.name, self._rule.name] += 1
            if node in self._gates:
                self._after(node, partial(self._gates[node].close, self._rule))
            elif own is None:
                self._edit(relu, is_hidden=opaque is not None)
        elif self.head is not None and node is self.head.node:
            self._counts[name, "undone"] += 1
            self._after(node, partial(self._skip_head, self.head.logits))
        elif name in nodes.NONLINEARITIES:
            self._activation(node, name)
        elif nodes.is_in_place_on_view(node):
            self.watch = self.watch or BackwardWatch(self._rule, self._note)
            self._before(node, self.watch.enter)
            self._after(node, self.watch.leave)

    def _before(self, node: Node, hook: Callable[..., Any]) -> None:
        self._handles.append(node.register_prehook(hook))

    def _after(self, node: Node, hook: Callable[..., Any]) -> None:
        self._handles.append(node.register_hook(hook))

    def _note(self, name: str, treatment: str) -> None:
        self._counts[name, treatment] += 1

    def _activation(self, node: Node, name: str) -> None:
        """Note an activation that is no ReLU, and clamp what arrives at it if the rule says so."""
        self._note(name, self._rule.treatment(name))
        if self._rule.guides(name):
            self._before(node, clamped)

    def _edit(self, relu: nodes.Relu, *, is_hidden: bool) -> None:
        """Put the rule on one ReLU: on what its own derivative made of what arrived.

        Of a custom function it is not known what that derivative does: it may be one of several values at once. There
        the guided rule is put in front of it.
        """
        if is_hidden and self._rule.reads_values:
            raise OpaqueRegionError(
                f"the {self._rule.name} rule reads the values of every ReLU; received {relu.name}, a custom function "
                "that hides them. Write it as torch.relu."
            )
        if is_hidden and isinstance(self._rule, Guided):
            self._before(relu.node, clamped)
        elif type(self._rule) is not Plain or relu.x is not None:
            self._after(relu.node, partial(_leave, self._rule, relu))

    def _skip_head(self, logits: torch.Tensor, inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let the gradient pass the final softmax or sigmoid unchanged, and note the score of its logits."""
        self.scores.append(per_image(as_numpy(gradients[0]), as_numpy(logits)))
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])

    def coverage(self) -> Coverage:
        """Return what was done; raise if the rule found nothing to act on."""
        return coverage_of(self._counts, self._rule)


def _refuse_training(node: Node) -> None:
    if nodes.is_random(node):
        raise training_error(nodes.operation(node))
    if nodes.mixes_images(node):
        raise ModelError(
            "model must treat every image alone; received batch-norm without running statistics, which mixes "
            "the images of a batch. Pass batch_size=1."
        )


def _leave(rule: ReluRule, relu: nodes.Relu, inputs: Gradients, gradients: Gradients) -> Gradients:
    """Let go on what leaves a ReLU under a rule."""
    operand, (g,) = relu.operand, gradients
    derived = inputs[operand]
    if g is None or derived is None:
        return inputs
    form = derived
    if relu.x is not None:
        # At a tie the framework lets the gradient pass, or half of it.
        is_open = relu.x > 0 if relu.cap is None else (relu.x > 0) & (relu.x < relu.cap)
        derived = torch.where(is_open, g, 0)
    x, y = relu.values() if rule.reads_values else (None, None)
    x, y = (None if each is None else each.expand_as(g) for each in (x, y))
    left = leaving(rule, g, derived, x, y).sum_to_size(form.shape).to(form.dtype)
    return (*inputs[:operand], left, *inputs[operand + 1 :])
