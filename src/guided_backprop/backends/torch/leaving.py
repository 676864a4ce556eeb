"""What leaves a ReLU on the way back: the rule's formula, and faster forms of the rules that are named in rules.py."""

from typing import Any, Final, NamedTuple, cast

import torch

from guided_backprop.rules import ArrayFunctions, Deconv, Guided, Open, Plain, ReluRule


class _Functions:
    """PyTorch's functions as NumPy has them; those that are the same are PyTorch's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def max(self, values: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.amax(values, () if axis is None else axis, keepdim=keepdims)

    def min(self, values: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.amin(values, () if axis is None else axis, keepdim=keepdims)

    def maximum(self, one: torch.Tensor, other: torch.Tensor | float) -> torch.Tensor:
        return torch.maximum(one, torch.as_tensor(other, dtype=one.dtype, device=one.device))

    def minimum(self, one: torch.Tensor, other: torch.Tensor | float) -> torch.Tensor:
        return torch.minimum(one, torch.as_tensor(other, dtype=one.dtype, device=one.device))

    def sort(self, values: torch.Tensor, axis: int = -1) -> torch.Tensor:
        return torch.sort(values, dim=axis).values


_FUNCTIONS = cast("ArrayFunctions", _Functions())

#: What arrives at, or leaves, a node: for each of its operands or results a gradient, or none.
Gradients = tuple[torch.Tensor | None, ...]


class Shortcut(NamedTuple):
    """What a named rule does, in place, where the derivative of the activation is 0 or 1.

    There what the derivative made of g has the sign of g or is 0, so to clamp it closes what the rule closes.

    Attributes:
        is_derived: whether it begins with what the derivative made of g; else with g.
        clamps: whether only what is positive goes on.
    """

    is_derived: bool
    clamps: bool

    def of(self, gradient: torch.Tensor, *, is_own: bool) -> torch.Tensor:
        """Return what leaves, given what the rule begins with: in place if nothing else holds that."""
        if not self.clamps:
            return gradient
        return gradient.clamp_(min=0) if is_own else gradient.clamp(min=0)


_SHORTCUTS: Final = {
    Plain: Shortcut(is_derived=True, clamps=False),
    Deconv: Shortcut(is_derived=False, clamps=True),
    Guided: Shortcut(is_derived=True, clamps=True),
    Open: Shortcut(is_derived=False, clamps=False),
}


def shortcut_of(rule: ReluRule) -> Shortcut | None:
    """Return the faster form of a rule; None for a rule of anybody else's, also one derived from a named one."""
    return _SHORTCUTS.get(type(rule))


def leaving(
    rule: ReluRule,
    g: torch.Tensor,
    derived: torch.Tensor,
    x: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what leaves a ReLU; what the derivative made of g is the node's own, and may be written over."""
    short = shortcut_of(rule)
    if short is not None:
        return short.of(derived, is_own=True) if short.is_derived else short.of(g, is_own=False)
    left: torch.Tensor = rule.leaving(g, derived, x, y, _FUNCTIONS)
    return left


def clamped(gradients: Gradients) -> Gradients:
    """Let what is positive arrive at a node: before its own derivative, which is linear, that is the guided rule."""
    # Out of place: branches of the network share this gradient.
    return tuple(None if g is None else g.clamp(min=0) for g in gradients)
