"""What holds for one size of images in the usual words, in words that hold for any.

A size that varies is a torch.SymInt while a graph is recorded. What has no such words is refused by name.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from guided_backprop.errors import ModelError

aten = torch.ops.aten
Sizes = Sequence[int]


def varies(sizes: Sequence[Any]) -> bool:
    """Tell whether one of some sizes is free."""
    return not all(isinstance(size, int) for size in sizes)


def of_one_size(what: str) -> ModelError:
    """Return the error for what has no words for any size."""
    return ModelError(
        f'a model of images of any size must have no part that holds for one; received {what} for sizes="dynamic". '
        'Leave it out, for sizes="fixed".'
    )


def spread(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> torch.Tensor:
    """Return the derivative of a convolution of x: as far as the strides can reach, and cut to what there is."""
    most = [step - 1 for step in stride]
    whole: torch.Tensor = aten.convolution(g, weight, None, stride, padding, dilation, True, most, groups)
    for axis, rest in enumerate(most, start=2):
        if rest:
            whole = cut(whole, axis, 0, x.shape[axis])
    return whole


def cut(x: torch.Tensor, axis: int, begin: int, count: Any, step: int = 1) -> torch.Tensor:
    """Return some values along an axis: not as a view, of which torch would ask whether it is all of the memory.

    Where no size is free there is nothing to ask, and a slice is the usual word.
    """
    end = begin + (count - 1) * step + 1
    if not varies([count, x.shape[axis]]):
        part: torch.Tensor = aten.slice.Tensor(x, axis, begin, end, step)
        return part
    return x.index_select(axis, torch.arange(begin, end, step, device=x.device))


def slice_back(g: torch.Tensor, sizes: Sizes, axis: int, start: Any, step: int) -> torch.Tensor:
    """Return the derivative of a slice: zeros around what arrives, and between."""
    axes, axis = len(sizes), axis % len(sizes)
    size, count = sizes[axis], g.shape[axis]
    begin = start + size if start < 0 else start
    if step > 1:
        apart = aten.constant_pad_nd.default(g.unsqueeze(axis + 1), _around(axis + 1, axes + 1, 0, step - 1))
        # Behind the last one there may be less than a step.
        spaced = apart.reshape([*sizes[:axis], count * step, *sizes[axis + 1 :]])
        return cut(aten.constant_pad_nd.default(spaced, _around(axis, axes, begin, 0)), axis, 0, size)
    padded: torch.Tensor = aten.constant_pad_nd.default(g, _around(axis, axes, begin, size - begin - count))
    return padded


def _around(axis: int, axes: int, before: Any, after: Any) -> list[Any]:
    """Return what is put in front of and behind an axis, as ``pad`` wants it: the last axis first."""
    return [0, 0] * (axes - 1 - axis) + [before, after]


def avg_pool_back(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor, x: torch.Tensor, window: Sizes, stride: Sizes, padding: Sizes, counts: bool
) -> torch.Tensor:
    """Return the derivative of an average over windows: each window is a convolution by one number."""
    ones, channels = [1] * len(window), int(x.shape[1])
    if counts or not any(padding):
        weight = g.new_full([channels, 1, *window], 1 / math.prod(window))
    else:
        inside = torch.ones_like(x[:1, :1])
        window_of = g.new_full([1, 1, *window], 1)
        g = g / aten.convolution(inside, window_of, None, stride, padding, ones, False, [0] * len(window), 1)
        weight = g.new_full([channels, 1, *window], 1)
    return spread(g, x, weight, stride, padding, ones, channels)


def linear(before: Any, after: Any, like: torch.Tensor, *, factor: float | None = None, corners: bool = False) -> Any:
    """Return the matrix ``(before, after)`` that interpolates between the nearest two.

    Args:
        before: the size.
        after: the size that it becomes.
        like: whose numbers are worked with.
        factor: by what the size was multiplied, if that was said.
        corners: whether the first and the last places stay where they are; else the borders do.
    """
    here = torch.arange(after, dtype=like.dtype, device=like.device)
    there = torch.arange(before, dtype=like.dtype, device=like.device)
    if corners:
        place = here * ((before - 1) / (after - 1))
    else:
        ratio = before / after if factor is None else 1 / factor
        place = ((here + 0.5) * ratio - 0.5).clamp(min=0)
        place = torch.minimum(place, there[-1:])
    return (1 - (place - there[:, None]).abs()).clamp(min=0)


def nearest(before: Any, after: Any, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix ``(before, after)`` that takes the value at ``place * before // after``, in whole numbers."""
    place = torch.arange(after, device=like.device) * before
    first = (torch.arange(before, device=like.device) * after)[:, None]
    matrix: torch.Tensor = ((first <= place) & (place < first + after)).to(like.dtype)
    return matrix


def repeated(x: torch.Tensor, axis: int, times: int) -> torch.Tensor:
    """Return each value so many times, one after the other."""
    sizes = list(x.shape)
    beside = x.unsqueeze(axis + 1).expand([*sizes[: axis + 1], times, *sizes[axis + 1 :]])
    return beside.reshape([*sizes[:axis], sizes[axis] * times, *sizes[axis + 1 :]])


def summed(g: torch.Tensor, axis: int, times: int) -> torch.Tensor:
    """Return the sums of each so many values one after the other."""
    sizes = list(g.shape)
    return g.reshape([*sizes[:axis], sizes[axis] // times, times, *sizes[axis + 1 :]]).sum(axis + 1)
