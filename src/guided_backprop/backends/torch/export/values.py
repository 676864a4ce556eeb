"""Functions of single values, and products of three, in operations that engines have."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

aten = torch.ops.aten


def _erfc(x: torch.Tensor) -> torch.Tensor:
    return 1 - torch.erf(x)


def _exp2(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x * math.log(2))


def _ldexp(x: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    return x * _exp2(power.to(x.dtype))


def _trunc(x: torch.Tensor) -> torch.Tensor:
    return torch.sign(x) * torch.floor(x.abs())


def _frac(x: torch.Tensor) -> torch.Tensor:
    return x - _trunc(x)


def _fmod(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return x - y * _trunc(x / y)


def _remainder(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return x - y * torch.floor(x / y)


def _hypot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(x * x + y * y)


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The angle of a quarter, turned by half of a circle where x is negative."""
    # Of the values' own precision, which numbers alone would not be.
    turned = torch.where(y < 0, -1.0, 1.0).to(x.dtype) * math.pi
    upright = torch.sign(y) * (math.pi / 2)
    angle = torch.atan(y / torch.where(x == 0, 1.0, x))
    return torch.where(x == 0, upright, torch.where(x < 0, angle + turned, angle))


def _of_three(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    expand_x: Sequence[int],
    expand_y: Sequence[int],
    expand_z: Sequence[int],
    axes: Sequence[int],
    unroll: int = 1,
) -> torch.Tensor:
    """The sum of products of three tensors, as a bilinear layer is one."""
    product = _spread(x, expand_x) * _spread(y, expand_y) * _spread(z, expand_z)
    return product.sum(list(axes)) if axes else product


def _spread(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


#: The rows of these.
VALUES: Final[dict[Any, Callable[..., Any]]] = {
    aten.erfc.default: _erfc,
    aten.exp2.default: _exp2,
    aten.ldexp.Tensor: _ldexp,
    aten.trunc.default: _trunc,
    aten.frac.default: _frac,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar: _remainder,
    aten.hypot.default: _hypot,
    aten.atan2.default: _atan2,
    aten._trilinear.default: _of_three,
}
