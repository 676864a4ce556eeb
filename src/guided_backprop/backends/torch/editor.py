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
from guided_backprop.backends.torch.fast import gated
from guided_backprop.backends.torch.lean import Gate
from guided_backprop.backends.torch.refusals import training_error
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule


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
        if gated.is_of(node, gated.ScalingNorm):
            node.is_own = gated.is_made_for_one(path.children[node])  # type: ignore[attr-defined]
        relu = nodes.relu_of(node, path.members)
        if relu is None and opaque is not None and self._vouch.get(opaque) == "relu":
            relu = nodes.Relu(node, opaque)
        if relu is not None:
            self._counts[relu.name, self._rule.name] += 1
            if node in self._gates:
                self._after(node, partial(self._gates[node].close, self._rule))
            elif gated.is_of(node, gated.GatedRelu):
                gated.put_under(self._rule, node, path.children[node])
            else:
                self._edit(relu, is_own=opaque is None)
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
            self._before(node, _clamp)

    def _edit(self, relu: nodes.Relu, *, is_own: bool) -> None:
        """Edit the backward pass at one ReLU: clamp what arrives, and let its own derivative do the rest.

        That derivative is 0 or 1. So what leaves can be clamped as well, and where it is the node's own tensor
        (``is_own``, not that of a custom function) in place, which costs no memory.
        """
        node, rule = relu.node, self._rule
        if is_own and rule.forward_gate and relu.x is None:
            if rule.backward_gate:
                self._after(node, _clamp_own)
            return
        if rule.backward_gate:
            self._before(node, _clamp)
        if not rule.forward_gate:
            self._after(node, partial(_bypass, relu))
        elif relu.x is not None:
            self._after(node, partial(_close_ties, relu))

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


def _bypass(relu: nodes.Relu, inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let all pass that arrives."""
    operand = relu.operand
    if inputs[operand] is None or gradients[0] is None:
        return inputs
    passed = gradients[0].sum_to_size(inputs[operand].shape).to(inputs[operand].dtype)
    return (*inputs[:operand], passed, *inputs[operand + 1 :])


def _close_ties(relu: nodes.Relu, inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let nothing pass at a tie, where the framework does."""
    operand, x = relu.operand, relu.x
    g = inputs[operand]
    if g is None or x is None:
        return inputs
    is_open = x > 0 if relu.cap is None else (x > 0) & (x < relu.cap)
    return (*inputs[:operand], torch.where(is_open, g, 0), *inputs[operand + 1 :])


def _clamp_own(inputs: tuple[torch.Tensor | None, ...], gradients: tuple[Any, ...]) -> None:
    if inputs[0] is not None:
        inputs[0].clamp_(min=0)


def _clamp(gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    # Out of place: branches of the network share this gradient.
    return tuple(None if g is None else g.clamp(min=0) for g in gradients)
