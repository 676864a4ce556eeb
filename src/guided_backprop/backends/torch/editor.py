"""Puts a rule on the nodes of one autograd graph, and keeps the record of what was done."""

from collections import Counter
from typing import Any

import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.base import Vouch, per_image
from guided_backprop.backends.report import coverage_of
from guided_backprop.backends.torch import nodes
from guided_backprop.backends.torch.audit import BackwardWatch, ForwardWatch
from guided_backprop.backends.torch.refusals import training_error
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule


class Editor:
    """Puts a rule on the nodes of one graph, and keeps the record of what was done."""

    def __init__(self, path: list[Node], rule: ReluRule, vouch: Vouch, head: Node | None, has_prelu: bool) -> None:
        self._rule = rule
        self._counts: Counter[tuple[str, str]] = Counter()
        self.watch: BackwardWatch | None = None
        on_path = set(path)
        written = nodes.written_out(path, on_path) | (nodes.prelus(path) if has_prelu else {})
        parts = {part for _, inside in written.values() for part in inside}
        for node in path:
            if node in written:
                self._activation(node, written[node][0])
            if node in written or node in parts:
                continue
            if nodes.is_random(node):
                raise training_error(nodes.operation(node))
            if nodes.mixes_images(node):
                raise ModelError(
                    "model must treat every image alone; received batch-norm without running statistics, which mixes "
                    "the images of a batch. Pass batch_size=1."
                )
            relu = nodes.relu_of(node, on_path)
            if relu is None and vouch.get(nodes.opaque_name(node) or "") == "relu":
                relu = nodes.Relu(node, nodes.opaque_name(node) or "")
            if relu is not None:
                self._counts[relu.name, rule.name] += 1
                _hook(relu, rule)
            elif node is head:
                self._counts[nodes.operation(node), "undone"] += 1
            elif nodes.operation(node) in nodes.NONLINEARITIES:
                self._activation(node, nodes.operation(node))
            elif nodes.is_in_place_on_view(node):
                self.watch = self.watch or BackwardWatch(rule, self._note)
                node.register_prehook(self.watch.enter)
                node.register_hook(self.watch.leave)
        if self.watch is None:
            self.coverage()

    def _note(self, name: str, treatment: str) -> None:
        self._counts[name, treatment] += 1

    def _activation(self, node: Node, name: str) -> None:
        """Note an activation that is no ReLU, and clamp what arrives at it if the rule says so."""
        self._note(name, self._rule.treatment(name))
        if self._rule.guides(name):
            node.register_prehook(_clamp)

    def coverage(self) -> Coverage:
        """Return what was done; raise if the rule found nothing to act on."""
        return coverage_of(self._counts, self._rule)


def _clamp(gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    # Out of place: branches of the network share this gradient.
    return tuple(None if g is None else g.clamp(min=0) for g in gradients)


def _hook(relu: nodes.Relu, rule: ReluRule) -> None:
    """Edit the backward pass at one ReLU: clamp what arrives, then let its own derivative do the rest."""
    operand, x, cap = relu.operand, relu.x, relu.cap

    def bypass(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        if inputs[operand] is None or gradients[0] is None:
            return inputs
        passed = gradients[0].sum_to_size(inputs[operand].shape).to(inputs[operand].dtype)
        return (*inputs[:operand], passed, *inputs[operand + 1 :])

    def close_ties(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        g = inputs[operand]
        if g is None or x is None:
            return inputs
        is_open = x > 0 if cap is None else (x > 0) & (x < cap)
        return (*inputs[:operand], torch.where(is_open, g, 0), *inputs[operand + 1 :])

    if rule.backward_gate:
        relu.node.register_prehook(_clamp)
    if not rule.forward_gate:
        relu.node.register_hook(bypass)
    elif x is not None:
        relu.node.register_hook(close_ties)


def skip_head(head: Node, logits: torch.Tensor, scores: list[Any]) -> None:
    """Let the gradient pass the final softmax or sigmoid unchanged, and note the score of its logits."""

    def skip(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        scores.append(per_image(as_numpy(gradients[0]), as_numpy(logits)))
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])

    head.register_hook(skip)


def logits_of(head: Node, watch: ForwardWatch | None) -> torch.Tensor:
    if nodes.operation(head) == "log_sigmoid":
        return head._saved_self.detach()  # type: ignore[attr-defined, no-any-return]
    logits = None if watch is None else watch.logits_of(head._saved_result)  # type: ignore[attr-defined]
    if logits is None:
        raise OpaqueRegionError(
            f"the logits in front of the final {nodes.operation(head)} must be visible; "
            "received a model that hides them. Pass undo_head=False, or the model without its last layer."
        )
    return logits
