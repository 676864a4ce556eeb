"""Windows that are taken out of pictures, and put back; and pools by their largest values.

Where several values share a maximum the first one wins, as PyTorch has it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from guided_backprop.backends.torch.export.any_size import cut, of_one_size, varies
from guided_backprop.backends.torch.export.pools import PICTURES, adjoint, are_times, both, full, gated

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


def interleaved_planes(
    planes: Mapping[tuple[int, ...], torch.Tensor], stride: Sizes, steps: Sizes, leading: Sizes
) -> torch.Tensor:
    """Return what has at each place of the strides the value of that plane; leading are the sizes in front.

    Planes of the last axis are put behind each other along the channels, others along the axis behind their own: that
    is their order where channels lie last, as OpenVINO has them, so that it moves nothing more.
    """
    channels, nothing = len(leading) - 1, torch.zeros_like(next(iter(planes.values())))
    parts = [planes.get(plane, nothing) for plane in itertools.product(*map(range, stride))]
    if len(parts) == 1:
        return parts[0]
    for axis, many in reversed([*enumerate(stride, start=channels + 1)]):
        along = axis + 1 if axis < channels + len(stride) else channels
        parts = [torch.cat(parts[first : first + many], along) for first in range(0, len(parts), many)]
    sizes = [count * step for count, step in zip(steps, stride, strict=True)]
    return parts[0].movedim(channels, -1).reshape([*leading[:-1], *sizes, leading[-1]]).movedim(-1, channels)


def strided(padded: torch.Tensor, offset: Sizes, stride: Sizes, counts: Sizes) -> torch.Tensor:
    """Return so many values along each of the last axes, from a place on, a stride apart."""
    for axis, (begin, step, count) in enumerate(
        zip(offset, stride, counts, strict=True), start=padded.ndim - len(stride)
    ):
        padded = cut(padded, axis, begin, count, step)
    return padded


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


# Pools by their largest values.


def _max_pool_backward(  # noqa: PLR0917 - as torch has them
    axes: int,
    g: torch.Tensor,
    x: torch.Tensor,
    window: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Give each gradient to the first of the window's values that is its maximum.

    That is the first one in the first row that has it: so windows side by side are done at once, and others one axis
    after the other.
    """
    window, padding, dilation = (full(sizes, axes) for sizes in (window, padding, dilation))
    stride = full(stride, axes) if stride else window
    pool = (aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)[axes - 2]
    y = pool(x, window, stride, padding, dilation, ceil_mode)[0]
    counts, sizes, leading = y.shape[-axes:], x.shape[-axes:], x.shape[:-axes]
    is_picture = x.ndim == PICTURES
    if is_picture and window == stride and are_times(window, counts, sizes) and set(dilation) == {1}:
        return _to_first(g, x, y, window)
    # The input, and its largest values along the last axes alone.
    largest = [x]
    for axis in range(axes - 1, 0, -1):
        along = [[rest] * axis + [here[axis]] + [rest] * (axes - 1 - axis)
                 for here, rest in ((window, 1), (stride, 1), (padding, 0), (dilation, 1))]  # fmt: skip
        largest.append(pool(largest[-1], *along, ceil_mode)[0])
    hows = [*zip(window, stride, padding, dilation, strict=True)]
    steps = [count + _spare(how) for count, how in zip(counts, hows, strict=True)]
    whole = interleaved_planes(dict(_to_first_by_axes(g, y, largest[::-1], hows)), stride, steps, leading)
    for axis, (many, step, size) in enumerate(zip(steps, stride, sizes, strict=True), start=len(leading)):
        if varies([size]) or many * step != size:
            whole = cut(whole, axis, 0, size)
    return whole


def _spare(how: Sizes) -> int:
    """Return how many steps an axis takes beside one for each window, so that all of it fits in, and each window."""
    window, stride, padding, dilation = how
    far = (window - 1) * dilation
    return max((far - padding) // stride, -(-(far - 2 * padding) // stride), 0)


def _to_first_by_axes(
    g: torch.Tensor, y: torch.Tensor, largest: Sequence[torch.Tensor], hows: Sequence[Sizes]
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Give each gradient to the first maximum of its window along one axis, then along those behind it.

    Values ``stride`` apart belong to different windows, so an axis is seen as ``stride`` planes: the places of a window
    are shifts of these. What no other place took is the last one's.

    Args:
        g: what arrives at the windows.
        y: the largest value of each.
        largest: for each axis the input's largest values along those behind it; for the last one the input.
        hows: window, stride, padding and dilation along each axis.

    Yields:
        Which planes, and what they get.
    """
    if not hows:
        yield (), g
        return
    axis, (window, stride, padding, dilation) = g.ndim - len(hows), hows[0]
    count, spare = y.shape[axis], _spare(hows[0])
    missing = (count + spare) * stride - largest[0].shape[axis]
    padded = [_moved(one, axis, 0, missing, -torch.inf) for one in largest]
    planes = [padded]
    if stride > 1:
        planes = [[cut(one, axis, plane, count + spare, stride) for one in padded] for plane in range(stride)]
    found: dict[int, torch.Tensor] = {}
    for place in range(window):
        shift, plane = divmod(place * dilation - padding, stride)
        if not varies([count]) and shift + count <= 0:
            # In front of all that there is.
            continue
        part = g
        if place < window - 1:
            part = gated(g, _moved(planes[plane][0], axis, -shift, shift - spare, -torch.inf) == y)
            g = g - part
        part = _moved(part, axis, shift, spare - shift)
        found[plane] = found[plane] + part if plane in found else part
    for plane, part in found.items():
        y, *behind = planes[plane]
        for others, one in _to_first_by_axes(part, y, behind, hows[1:]):
            yield (plane, *others), one


def _moved(x: torch.Tensor, axis: int, before: int, behind: Any, value: float = 0) -> torch.Tensor:
    """Return what has so many values more in front of and behind it along an axis, less where that is negative."""
    ends = [before, behind]
    if not varies(ends) and ends == [0, 0]:
        return x
    if varies([x.shape[axis]]) and not varies(ends) and min(ends) < 0:
        # What is cut off may be more than there is before it is padded: OpenVINO would end the process then.
        x = _moved(x, axis, max(before, 0), max(behind, 0), value)
        return cut(x, axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(behind, 0))
    moved: torch.Tensor = aten.constant_pad_nd.default(x, [*[0, 0] * (x.ndim - 1 - axis), *ends], value)
    return moved


def _to_first(g: torch.Tensor, x: torch.Tensor, y: torch.Tensor, window: Sizes) -> torch.Tensor:
    """Give each gradient to the first maximum of its window, where windows lie side by side and cover all.

    All is as large as x, and each step one that engines do by value or by window: no places are gathered. Of the places
    that have the maximum the first one has the highest number, so that it is the only one that a pool of these finds.
    """
    sizes, factors = list(x.shape[-2:]), [float(size) for size in window]
    count = math.prod(window)
    order = torch.arange(count, 0, -1, dtype=x.dtype, device=x.device).reshape(window)
    order = order.repeat(*[size // step for size, step in zip(sizes, window, strict=True)])
    spread = partial(aten.upsample_nearest2d.default, output_size=sizes, scales_h=factors[0], scales_w=factors[1])
    numbers = gated(order, x == spread(y))
    highest = aten.max_pool2d_with_indices.default(numbers, window, window)[0]
    return gated(spread(g), numbers == spread(highest))


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
    aten.max_pool2d_with_indices_backward.default: partial(_max_pool_backward, 2),
    aten.max_pool3d_with_indices_backward.default: partial(_max_pool_backward, 3),
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
