"""ReLUs and batch-norms of an optimised model, which work in place where what arrives is their own.

PyTorch's own ReLU writes what it lets through to new memory, and new memory costs more than the arithmetic. With a cap
it keeps its input besides, copied first where it works in place; the result tells as well where the gate is open, and
has to be there anyway for what comes next. PyTorch's batch-norm keeps its input for the gradient of its weights;
towards the images it only scales.
"""

from typing import Protocol

import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast.calls import Norm
from guided_backprop.backends.torch.fast.once import Context, once
from guided_backprop.backends.torch.leaving import Gradients, leaving, shortcut_of
from guided_backprop.backends.torch.own import OwnFunction, OwnRelu
from guided_backprop.rules import PLAIN, ReluRule


class _OfRelu(Context, Protocol):
    """What a ReLU keeps: its cap, and what it is told of the backward pass to come."""

    cap: float | None
    rule: ReluRule
    is_own: bool


class _OfNorm(Context, Protocol):
    """What a batch-norm keeps: its factors, and whether nothing else holds what will arrive."""

    scale: torch.Tensor
    is_own: bool


class GatedRelu(OwnRelu):
    """Whatever is between 0 and the cap, if there is one."""

    is_maker = is_in_place = True

    @staticmethod
    def forward(ctx: _OfRelu, x: torch.Tensor, cap: float | None, is_in_place: bool) -> torch.Tensor:
        """Clip, and keep the result."""
        if cap is None:
            y = torch.relu_(x) if is_in_place else torch.relu(x)
        else:
            y = functional.hardtanh_(x, 0.0, cap) if is_in_place else functional.hardtanh(x, 0.0, cap)
        if is_in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.cap, ctx.rule, ctx.is_own = cap, PLAIN, False
        return y

    @staticmethod
    @once
    def backward(ctx: _OfRelu, g: torch.Tensor) -> Gradients:
        """Return what the rule lets through."""
        (y,) = ctx.saved_tensors
        return _left(ctx.rule, g, y, ctx.cap, is_own=ctx.is_own), None, None


def _left(rule: ReluRule, g: torch.Tensor, y: torch.Tensor, cap: float | None, *, is_own: bool) -> torch.Tensor:
    """Return what the rule lets through, in memory that nothing else holds."""
    short = shortcut_of(rule)
    if short is None:
        left = leaving(rule, g, _closed(g, y, cap, is_in_place=False), None, y)
    elif short.is_derived:
        left = short.of(_closed(g, y, cap, is_in_place=is_own), is_own=True)
    else:
        left = short.of(g, is_own=is_own)
    # What lets all pass may have given back what others hold.
    is_shared = not is_own and left.untyped_storage().data_ptr() == g.untyped_storage().data_ptr()
    return left.clone() if is_shared else left


def _closed(g: torch.Tensor, y: torch.Tensor, cap: float | None, *, is_in_place: bool) -> torch.Tensor:
    """Return the gradient where neither end was reached."""
    aten = torch.ops.aten
    into = {"grad_input": g} if is_in_place else {}
    if cap is None:
        closed = aten.threshold_backward.grad_input if is_in_place else aten.threshold_backward.default
        return closed(g, y, 0, **into)  # type: ignore[no-any-return]
    closed = aten.hardtanh_backward.grad_input if is_in_place else aten.hardtanh_backward.default
    return closed(g, y, 0.0, cap, **into)  # type: ignore[no-any-return]


class ScalingNorm(OwnFunction):
    """Batch-norm that is one factor and one summand for each channel, differentiated by its images alone."""

    is_maker = is_in_place = True

    @staticmethod
    def forward(ctx: _OfNorm, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Normalise, and keep the factors."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        ctx.scale, ctx.is_own = norm.scale(x.dtype).to(x.dtype).view(shape), False
        return norm.run(x)

    @staticmethod
    @once
    def backward(ctx: _OfNorm, g: torch.Tensor) -> Gradients:
        """Return what arrives, scaled."""
        return g.mul_(ctx.scale) if ctx.is_own else g * ctx.scale, None


class Unchanged:
    """Results that must stay as they are until the backward pass, and whose gradient nobody else looks at."""

    def __init__(self) -> None:
        self._seen: list[tuple[torch.Tensor, int | None]] = []

    def add(self, result: torch.Tensor, *, may_change: bool = False) -> None:
        """Remember a result as it is; or only that nobody looks at its gradient."""
        self._seen.append((result, None if may_change else result._version))

    def __bool__(self) -> bool:
        return all(
            version in (None, result._version) and not result._backward_hooks and not result.retains_grad
            for result, version in self._seen
        )
