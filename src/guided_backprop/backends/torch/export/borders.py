"""Borders of what is near them, reflected or repeated, and their derivatives: slices along each axis, put together."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch

from guided_backprop.backends.torch.export.any_size import cut

aten = torch.ops.aten
Sizes = Sequence[int]


def _axes(x: torch.Tensor, pads: Sizes) -> Iterator[tuple[int, int, int]]:
    """Yield each axis, and how much is put in front of and behind it; said are they from the last axis on."""
    for place in range(0, len(pads), 2):
        yield x.ndim - 1 - place // 2, pads[place], pads[place + 1]


def _bordered(kind: str, x: torch.Tensor, pads: Sizes) -> Any:
    if min(pads) < 0:
        return NotImplemented
    for axis, before, after in _axes(x, pads):
        size = x.shape[axis]
        if kind == "reflection":
            front, behind = cut(x, axis, 1, before).flip(axis), cut(x, axis, size - after - 1, after).flip(axis)
        else:
            front, behind = _times(cut(x, axis, 0, 1), axis, before), _times(cut(x, axis, size - 1, 1), axis, after)
        x = torch.cat([*([front] if before else []), x, *([behind] if after else [])], axis)
    return x


def _times(x: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    return x.expand([count if other == axis else size for other, size in enumerate(x.shape)])


def _bordered_back(kind: str, g: torch.Tensor, x: torch.Tensor, pads: Sizes) -> Any:
    if min(pads) < 0:
        return NotImplemented
    for axis, before, after in reversed([*_axes(g, pads)]):
        size = x.shape[axis]
        front, whole, behind = cut(g, axis, 0, before), cut(g, axis, before, size), cut(g, axis, before + size, after)
        if kind == "reflection":
            parts = [(front.flip(axis), before, 1), (behind.flip(axis), after, size - 1 - after)]
        else:
            parts = [(part.sum(axis, keepdim=True), many, place)
                     for part, many, place in ((front, before, 0), (behind, after, size - 1))]  # fmt: skip
        for part, many, place in parts:
            if many:
                rest = size - place - part.shape[axis]
                whole = whole + aten.constant_pad_nd.default(part, [*[0, 0] * (g.ndim - 1 - axis), place, rest])
        g = whole
    return g


def _rows() -> Iterator[tuple[Any, Callable[..., Any]]]:
    for kind in ("reflection", "replication"):
        for axes in (1, 2, 3):
            name = f"{kind}_pad{axes}d"
            yield getattr(aten, name).default, partial(_bordered, kind)
            yield getattr(aten, f"{name}_backward").default, partial(_bordered_back, kind)


#: The rows of borders.
BORDERS: Final[dict[Any, Callable[..., Any]]] = dict(_rows())
