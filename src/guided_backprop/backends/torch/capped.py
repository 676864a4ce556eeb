"""A ReLU with a cap, such as ReLU6, that keeps its result for the backward pass.

PyTorch keeps the input, and copies it first where the ReLU works in place. The result tells as well where the gate is
open, and has to be there anyway for what comes next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional


class CappedRelu(torch.autograd.Function):
    """Whatever is between 0 and the cap."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cap: float, is_in_place: bool) -> torch.Tensor:
        """Clip, and keep the result."""
        y = functional.hardtanh_(x, 0.0, cap) if is_in_place else functional.hardtanh(x, 0.0, cap)
        if is_in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.cap = cap
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient where neither end was reached."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(g, y, 0.0, ctx.cap), None, None


class Call(NamedTuple):
    """A call of a ReLU with a cap."""

    x: torch.Tensor
    cap: float
    is_in_place: bool

    @classmethod
    def of(cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call | None":
        """Return the call, if it is one whose result can be kept instead."""
        if func is functional.relu6:
            given = {"inplace": False} | dict(zip(("input", "inplace"), args, strict=False)) | kwargs
            given |= {"min_val": 0.0, "max_val": 6.0}
        elif func is functional.hardtanh:
            names = ("input", "min_val", "max_val", "inplace")
            given = {"min_val": -1.0, "max_val": 1.0, "inplace": False} | dict(zip(names, args, strict=False)) | kwargs
        else:
            return None
        x = given["input"]
        is_fit = type(x) is torch.Tensor and x.is_floating_point() and not x.is_leaf and not x._is_view()
        if given["min_val"] != 0 or given["max_val"] <= 0 or not is_fit:
            return None
        return cls(x, float(given["max_val"]), bool(given["inplace"]))

    def run(self) -> torch.Tensor:
        """Return the result."""
        result: torch.Tensor = CappedRelu.apply(*self)
        return result


class Unchanged:
    """Results that must stay as they are until the backward pass."""

    def __init__(self) -> None:
        self._seen: list[tuple[torch.Tensor, int]] = []

    def add(self, result: torch.Tensor) -> None:
        """Remember a result as it is."""
        self._seen.append((result, result._version))

    def __bool__(self) -> bool:
        return all(result._version == version for result, version in self._seen)
