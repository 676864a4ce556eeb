"""ReLUs and batch-norms of an optimised model, which work in place where what arrives is their own.

PyTorch's own ReLU writes what it lets through to new memory, and new memory costs more than the arithmetic. With a cap
it keeps its input besides, copied first where it works in place; the result tells as well where the gate is open, and
has to be there anyway for what comes next. PyTorch's batch-norm keeps its input for the gradient of its weights;
towards the images it only scales.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast.kernels import Norm
from guided_backprop.backends.torch.fast.once import once
from guided_backprop.backends.torch.leaving import leaving, shortcut_of
from guided_backprop.backends.torch.own import OwnFunction, OwnRelu
from guided_backprop.rules import PLAIN, ReluRule

_UNCAPPED = {functional.relu, torch.relu, torch.Tensor.relu}
_IN_PLACE = {torch.relu_, torch.Tensor.relu_}
#: Every function that :meth:`Call.of` may take.
RELUS = _UNCAPPED | _IN_PLACE | {functional.relu6, functional.hardtanh}


class GatedRelu(OwnRelu):
    """Whatever is between 0 and the cap, if there is one."""

    is_maker = is_in_place = True

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cap: float | None, is_in_place: bool) -> torch.Tensor:
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
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
    aten: Any = torch.ops.aten
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
    def forward(ctx: Any, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Normalise, and keep the factors."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        ctx.scale, ctx.is_own = norm.scale(x.dtype).to(x.dtype).view(shape), False
        return norm.run(x)

    @staticmethod
    @once
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return what arrives, scaled."""
        return g.mul_(ctx.scale) if ctx.is_own else g * ctx.scale, None


def is_plain(x: Any) -> bool:
    """Tell whether a tensor is one that a function of ours can take."""
    return type(x) is torch.Tensor and x.is_floating_point() and not x.is_leaf and not x._is_view()


class Call(NamedTuple):
    """A call of a ReLU."""

    x: torch.Tensor
    cap: float | None
    is_in_place: bool

    @classmethod
    def of(cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call | None":
        """Return the call, if it is one that can be gated."""
        given: dict[str, Any] = {"min_val": 0.0, "max_val": None, "inplace": func in _IN_PLACE}
        if func in _UNCAPPED or func in _IN_PLACE:
            names: tuple[str, ...] = ("input", "inplace")
        elif func is functional.relu6:
            names, given["max_val"] = ("input", "inplace"), 6.0
        elif func is functional.hardtanh:
            names = ("input", "min_val", "max_val", "inplace")
            given |= {"min_val": -1.0, "max_val": 1.0}
        else:
            return None
        given |= dict(zip(names, args, strict=False)) | kwargs
        x, cap = given["input"], given["max_val"]
        # In a narrow dtype the result of a cap may be less than the cap, and look open.
        is_sharp = cap is None or (cap > 0 and x.dtype in (torch.float32, torch.float64))
        if given["min_val"] != 0 or not is_sharp or not is_plain(x):
            return None
        return cls(x, None if cap is None else float(cap), bool(given["inplace"]))

    def run(self) -> torch.Tensor:
        """Return the result."""
        result: torch.Tensor = GatedRelu.apply(*self)
        return result


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
