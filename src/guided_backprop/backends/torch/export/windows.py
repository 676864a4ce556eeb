"""Windows that are taken out of pictures, and put back; and pools to a number of positions by their largest values."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from guided_backprop.backends.torch.export.any_size import cut, of_one_size, varies
from guided_backprop.backends.torch.export.pools import adjoint, both, gated, interleaved_planes, strided

aten = torch.ops.aten
Sizes = Sequence[int]


def _unfolded(x: torch.Tensor, window: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> torch.Tensor:
    """Return each place of the windows as a slice, one below the other: ``(N, C * places, windows)``."""
    counts = _counts(x.shape[-2:], window, dilation, padding, stride)
    padded = aten.constant_pad_nd.default(x, both(padding, padding))
    parts = [strided(padded, offset, stride, counts) for offset in _offsets(window, dilation)]
    stacked = torch.stack(parts, x.ndim - 2)
    return stacked.reshape([*x.shape[:-3], x.shape[-3] * len(parts), counts[0] * counts[1]])


def _folded(  # noqa: PLR0917 - as torch has them
    columns: torch.Tensor, sizes: Sizes, window: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes
) -> torch.Tensor:
    """Add up what windows hold at their places: the derivative of taking them out.

    Values ``stride`` apart are of one plane, as for pools.
    """
    counts, places = _counts(sizes, window, dilation, padding, stride), math.prod(window)
    leading = [*columns.shape[:-2], columns.shape[-2] // places]
    parts = columns.reshape([*leading, places, *counts])
    reach = [(size - 1) * spread for size, spread in zip(window, dilation, strict=True)]
    # So many steps of the stride that the padded picture fits in.
    steps = [
        max(-(-(2 * pad + size) // step), count + -(-far // step))
        for pad, size, step, count, far in zip(padding, sizes, stride, counts, reach, strict=True)
    ]
    planes: dict[tuple[int, ...], torch.Tensor] = {}
    for place, offset in enumerate(_offsets(window, dilation)):
        shift = [begin // step for begin, step in zip(offset, stride, strict=True)]
        rest = [most - count - before for most, count, before in zip(steps, counts, shift, strict=True)]
        part = aten.constant_pad_nd.default(parts.select(len(leading), place), both(shift, rest))
        plane = tuple(begin % step for begin, step in zip(offset, stride, strict=True))
        planes[plane] = planes[plane] + part if plane in planes else part
    whole = interleaved_planes(planes, stride, steps, leading)
    for axis, (pad, size) in enumerate(zip(padding, sizes, strict=True), start=whole.ndim - 2):
        whole = cut(whole, axis, pad, size)
    return whole


def _offsets(window: Sizes, dilation: Sizes) -> list[list[int]]:
    """Return where each place of a window begins."""
    places = itertools.product(*map(range, window))
    return [[one * spread for one, spread in zip(place, dilation, strict=True)] for place in places]


def _counts(sizes: Sizes, window: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> list[int]:
    """Return how many windows there are along each axis."""
    if varies(sizes):
        raise of_one_size("windows that are taken out of pictures")
    return [
        (size + 2 * pad - (reach - 1) * spread - 1) // step + 1
        for size, reach, spread, pad, step in zip(sizes, window, dilation, padding, stride, strict=True)
    ]


def _along(x: torch.Tensor, axis: int, size: int, step: int) -> torch.Tensor:
    """``x.unfold``: windows along one axis, each along a last one."""
    if varies([x.shape[axis]]):
        raise of_one_size("windows that are taken along an axis")
    count, axis = (x.shape[axis] - size) // step + 1, axis % x.ndim
    windows: torch.Tensor = torch.stack([cut(x, axis, begin, count, step) for begin in range(size)], -1)
    return windows


def _along_back(g: torch.Tensor, sizes: Sizes, axis: int, size: int, step: int) -> torch.Tensor:
    axis, whole = axis % len(sizes), g.new_zeros(list(sizes))
    for begin in range(size):
        end = begin + (g.shape[axis] - 1) * step + 1
        whole = whole + aten.slice_backward.default(g.select(-1, begin), list(sizes), axis, begin, end, step)
    return whole


# Pools to a number of positions.


def _windows(size: Any, count: int) -> list[list[int]] | None:
    """Return what each of so many windows along an axis takes, all as long: short ones take their last place again.

    None for one window, which takes all.
    """
    if count == 1:
        return None
    if varies([size, count]):
        raise of_one_size(f"a pool to {count} positions")
    bounds = [(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]
    most = max(end - begin for begin, end in bounds)
    return [[min(begin + step, end - 1) for step in range(most)] for begin, end in bounds]


def _gathered(x: torch.Tensor, counts: Sizes) -> torch.Tensor:
    """Return the windows, ``(..., *counts, places)``."""
    axes = len(counts)
    leading = x.shape[: x.ndim - axes]
    shape: list[Any] = [*leading]
    for axis, count in enumerate(counts, start=x.ndim - axes):
        size = x.shape[axis]
        windows = _windows(size, count)
        flat = [] if windows is None else [place for window in windows for place in window]
        if windows is not None and flat != list(range(len(flat))):
            x = x.index_select(axis, torch.tensor(flat, device=x.device))
        shape += [count, size if windows is None else len(windows[0])]
    first = len(leading)
    order = [*range(first), *range(first, len(shape), 2), *range(first + 1, len(shape), 2)]
    return x.reshape(shape).permute(order).flatten(first + axes)


def _adaptive_max_pool(x: torch.Tensor, counts: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest values; where they are is asked for by the way back alone, which finds that itself."""
    y = _gathered(x, counts).amax(-1)
    return y, torch.full_like(y, -1, dtype=torch.int64)


def _adaptive_max_pool_backward(axes: int, g: torch.Tensor, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    counts = g.shape[-axes:]
    windows = _gathered(x, counts)
    first = torch.arange(windows.shape[-1], device=x.device) == windows.argmax(-1, keepdim=True)
    parts = gated(g.unsqueeze(-1), first)
    sizes = [
        x.shape[axis - axes] if count == 1 else len((_windows(x.shape[axis - axes], count) or [[]])[0])
        for axis, count in enumerate(counts)
    ]
    leading = g.ndim - axes
    order = [*range(leading), *[leading + axis + far for axis in range(axes) for far in (0, axes)]]
    whole = parts.reshape([*g.shape, *sizes]).permute(order)
    whole = whole.reshape([*g.shape[:-axes], *[count * size for count, size in zip(counts, sizes, strict=True)]])
    for axis, count in enumerate(counts, start=leading):
        places = _windows(x.shape[axis], count)
        if places is not None:
            whole = adjoint(whole, axis, [place for window in places for place in window], x.shape[axis])
    return whole


#: The rows of windows.
WINDOWS: Final[dict[Any, Callable[..., Any]]] = {
    aten.im2col.default: _unfolded,
    aten.col2im.default: _folded,
    aten.unfold.default: _along,
    aten.unfold_copy.default: _along,
    aten.unfold_backward.default: _along_back,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.adaptive_max_pool3d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: partial(_adaptive_max_pool_backward, 2),
    aten.adaptive_max_pool3d_backward.default: partial(_adaptive_max_pool_backward, 3),
}
