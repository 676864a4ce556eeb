"""Keeps less for the backward pass: what only gradients of weights need is dropped, of a ReLU one bit a value stays.

PyTorch's convolution, batch-norm and pooling keep their whole input although the gradient towards that input needs
only its shape; freezing the parameters does not change that. Here each node of the autograd graph is looked at as
soon as the forward pass has made it. The nodes stay what they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.operations import operation
from guided_backprop.backends.torch.graph.relus import relu_of, saved
from guided_backprop.backends.torch.layouts import Layout, of_layout
from guided_backprop.backends.torch.leaving import Gradients, leaving, shortcut_of
from guided_backprop.rules import ReluRule


class _Part(NamedTuple):
    """What a node saved, how to keep it, and the operand whose gradient alone reads its values."""

    name: str
    keep: Callable[[torch.Tensor], Any]
    give: Callable[[Any], torch.Tensor]
    operand: int | None = None


_INPUT = _Part("self", Layout.of, of_layout)
# Of the place of a maximum 32 bits are enough.
_PLACE = _Part("result1", lambda tensor: tensor.to(torch.int32), lambda tensor: tensor.long())
_PARTS = {
    "adaptive_avg_pool2d": [_INPUT],
    "adaptive_avg_pool3d": [_INPUT],
    "addmm": [_Part("mat1", Layout.of, of_layout, 2)],
    "avg_pool2d": [_INPUT],
    "avg_pool3d": [_INPUT],
    "convolution": [_Part("input", Layout.of, of_layout, 1)],
    "max_pool": [_INPUT, _PLACE],
    "mm": [_Part("self", Layout.of, of_layout, 1)],
    "native_batch_norm": [_Part("input", Layout.of, of_layout, 1)],
}
# Of these the framework keeps the input, or the result if they worked in place.
_RELUS = {"hardtanh", "relu", "threshold"}


class Lean(TorchFunctionMode):
    """Watches one forward pass.

    Args:
        firsts: the nodes that the images come from.
        keeps_relus: leave ReLUs alone: a rule reads their values.

    Attributes:
        gates: of each ReLU that was taken over, what lets the gradient through.
    """

    def __init__(self, firsts: list[Node], *, keeps_relus: bool) -> None:
        super().__init__()
        self.gates: dict[Node, Gate] = {}
        self._keeps_relus = keeps_relus
        self._depends = dict.fromkeys(firsts, True)

    def follow(self, images: torch.Tensor) -> None:
        """Say what the graph begins with where that is inside of the model."""
        self._depends[get_gradient_edge(images).node] = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, then look at the nodes that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                self._visit(tensor.grad_fn)
        return result

    def _visit(self, last: Node) -> None:
        stack = [last]
        while stack:
            node = stack[-1]
            unknown = [parent for parent in nodes.parents(node) if parent not in self._depends]
            if node in self._depends or not unknown:
                stack.pop()
            stack.extend(unknown)
            if not unknown and node not in self._depends:
                self._depends[node] = any(self._depends[parent] for parent in nodes.parents(node))
                if self._depends[node]:
                    self._take(node)

    def _take(self, node: Node) -> None:
        name = operation(node)
        if name in _RELUS and not self._keeps_relus and relu_of(node, set()) is not None:
            gate = Gate(node)
            if gate.is_kept:
                self.gates[node] = gate
        elif name != "native_batch_norm" or not nodes.uses_batch(node):
            for part in _PARTS.get(name, ()):
                edge = None if part.operand is None else node.next_functions[part.operand][0]
                if edge is None or not self._depends[edge]:
                    _keep(node, part.name, part.keep, part.give)


def forget_images(path: nodes.Path, firsts: list[Node]) -> None:
    """Let the copy of the images go that the first convolution saved: only its weight's gradient would read it."""
    for first in firsts:
        for node in path.children.get(first, ()):
            if operation(node) == "convolution":
                (images, _), (weight, _) = node.next_functions[:2]
                if images is first and weight not in path.members:
                    _keep(node, "input", Layout.of, of_layout)


class Gate:
    """What a ReLU lets through, one bit for each value.

    The node itself is left with a saved value that lets everything pass.
    """

    def __init__(self, node: Node) -> None:
        low, high = _bounds(node)
        self._bits: Any = None

        def keep(tensor: torch.Tensor) -> Any:
            self._bits = _packed(tensor > low if high is None else (tensor > low) & (tensor < high))
            inside = low + 1 if high in (None, float("inf")) else (low + high) / 2
            return torch.full((), inside, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

        kept = [_keep(node, name, keep, lambda tensor: tensor) for name in ("self", "result")]
        self.is_kept = any(kept)

    def close(self, rule: ReluRule, inputs: Gradients, gradients: Gradients) -> Gradients | None:
        """Let less of what the node passed on leave it: in place where the rule is a named one."""
        (passed,), (g,) = inputs, gradients
        if passed is None or g is None:
            return None
        short = shortcut_of(rule)
        if short is None or short.is_derived:
            # The node let everything pass: this is its own tensor, and not yet the derivative.
            self._derive(passed)
        if short is None:
            return (leaving(rule, g, passed),)
        short.of(passed, is_own=True)
        return None

    def _derive(self, passed: torch.Tensor) -> None:
        # Of the ways to close gates that leave no NaN of an infinity this is the fastest, by four times.
        is_open = _unpacked(self._bits).to(passed.dtype)
        torch.ops.aten.threshold_backward.grad_input(passed, is_open, 0, grad_input=passed)


def _bounds(node: Node) -> tuple[float, float | None]:
    """Return between which values a ReLU is open."""
    match operation(node):
        case "hardtanh":
            return float(saved(node, "min_val")), float(saved(node, "max_val"))
        case "threshold":
            return float(saved(node, "threshold")), None
    return 0.0, None


def _keep(node: Node, name: str, keep: Callable[[torch.Tensor], Any], give: Callable[[Any], torch.Tensor]) -> bool:
    """Keep something else of what a node saved; tell whether it did."""
    saved = getattr(node, f"_raw_saved_{name}", None)
    if saved is None:
        return False
    try:
        saved.register_hooks(keep, give)
    except RuntimeError:
        # Nothing is saved there, or a checkpoint takes care of it already.
        return False
    return True


def _packed(mask: torch.Tensor) -> tuple[Any, torch.Size, list[int]]:
    """Return a mask as bits, in the order that its values have in memory."""
    strides = mask.stride()
    order = sorted(range(mask.ndim), key=lambda axis: -strides[axis])
    ordered = mask.permute(order).contiguous()
    bits = np.packbits(ordered.numpy()) if mask.device.type == "cpu" else _bits_of(ordered)
    return bits, ordered.shape, order


def _unpacked(packed: tuple[Any, torch.Size, list[int]]) -> torch.Tensor:
    bits, shape, order = packed
    if isinstance(bits, np.ndarray):
        flat = torch.from_numpy(np.unpackbits(bits, count=shape.numel()))
    else:
        flat = _mask_of(bits, shape.numel())
    back = [order.index(axis) for axis in range(len(order))]
    return flat.view(shape).permute(back)


def _bits_of(mask: torch.Tensor) -> torch.Tensor:
    """Do as ``np.packbits``, on any device."""
    flat = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (flat << torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)).sum(dim=1, dtype=torch.uint8)


def _mask_of(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Do as ``np.unpackbits``, on any device."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> places) & 1).flatten()[:count]
