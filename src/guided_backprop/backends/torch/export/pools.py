"""Pools and resizing as operations that every engine has, and their derivatives.

What is linear along each axis alone is a matrix along each, and its derivative is the matrix the other way round.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes

from guided_backprop.backends.torch.export.any_size import (
    avg_pool_back,
    linear,
    of_one_size,
    repeated,
    summed,
    varies,
)

aten = torch.ops.aten
Sizes = Sequence[int]
# How many axes pictures have, and by what their sizes can be multiplied without rounding.
PICTURES: Final = 4
_EXACT: Final = (1, 2, 4, 8, 16, 32)
#: From the number of an axis, and an array, to what a linear operation on that axis makes of the array's axis 2.
Along = Callable[[int, torch.Tensor], torch.Tensor]


def gated(g: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    """Return a gradient where a gate is open, and 0 elsewhere: as a product, which engines do faster than a choice.

    What is no finite number stays none: then the graph says so, as it would of the map.
    """
    return g * is_open.to(g.dtype)


def are_times(factors: Sequence[Any], before: Sizes, after: Sizes) -> bool:
    """Tell whether sizes are multiplied by powers of two: then no rounding decides which value is the nearest."""
    if varies([*before, *after]):
        return False
    triples = zip(factors, before, after, strict=True)
    return all(factor in _EXACT and factor * size == whole for factor, size, whole in triples)


def interleaved(planes: torch.Tensor, axes: int) -> torch.Tensor:
    """Return the values of planes between each other: of ``(..., s, s, h, w)``, for two axes, ``(..., s h, s w)``.

    One axis after the other, which ONNX Runtime does four times as fast as all at once, and OpenVINO as fast.
    """
    for behind in range(axes):
        # The innermost axis of planes that is left comes behind its axis of positions.
        place = planes.ndim - axes - 1
        order = [one for one in range(planes.ndim) if one != place]
        order.insert(len(order) - behind, place)
        moved = aten.clone.default(planes.permute(order), memory_format=torch.contiguous_format)
        *before, count, size = moved.shape[: moved.ndim - behind]
        planes = aten.view.default(moved, [*before, count * size, *moved.shape[moved.ndim - behind :]])
    return planes


def both(before: Sizes, after: Sizes) -> list[int]:
    """Return how much is put in front of and behind each axis, as ``pad`` wants it: the last axis first."""
    pairs = list(zip(before, after, strict=True))
    return [size for pair in reversed(pairs) for size in pair]


def full(sizes: Sizes | int, axes: int) -> list[int]:
    """Return one size for each axis."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * axes if len(sizes) == 1 else sizes


def _matrices(what: str, sizes: Sizes, along: Along, like: torch.Tensor) -> list[torch.Tensor]:
    """Return for each axis the matrix ``(before, after)`` of what is done along it: constants of the graph.

    Args:
        what: what it is, in words.
        sizes: how long each axis is.
        along: does it along axis 2 of ``(N, 1, size, 1)``, given the axis that is meant.
        like: whose numbers are worked with.
    """
    if varies(sizes):
        raise of_one_size(what)
    with _disable_current_modes():
        eyes = [torch.eye(size, dtype=torch.float64)[:, None, :, None] for size in sizes]
        return [along(axis, eye)[:, 0, :, 0].to(like.device, like.dtype) for axis, eye in enumerate(eyes)]


def _applied(x: torch.Tensor, matrices: Sequence[torch.Tensor], *, is_back: bool) -> torch.Tensor:
    for axis, matrix in enumerate(matrices, start=x.ndim - len(matrices)):
        along = matrix.T if is_back else matrix
        x = x @ along if axis == x.ndim - 1 else (x.transpose(axis, -1) @ along).transpose(axis, -1)
    return x


def adjoint(g: torch.Tensor, axis: int, places: Sequence[int], size: int) -> torch.Tensor:
    """Add up what arrives along an axis at the places, of so many, that it was taken from."""
    with _disable_current_modes():
        matrix = torch.nn.functional.one_hot(torch.tensor(places), size).to(g.device, g.dtype)
    along = matrix
    moved = g if axis == g.ndim - 1 else g.transpose(axis, -1)
    found = moved @ along
    return found if axis == g.ndim - 1 else found.transpose(axis, -1)


def _avg_pool(axes: int, x: torch.Tensor, *options: Any) -> Any:
    """Engines differ in what counts where windows reach over the edge."""
    window, stride, padding, ceil_mode, counts, divisor = _options(axes, *options)
    if not ceil_mode and divisor is None:
        return NotImplemented
    return _applied(
        x, _pooling(x.shape[-axes:], window, stride, padding, (ceil_mode, counts, divisor), x), is_back=False
    )


def _avg_pool_backward(axes: int, g: torch.Tensor, x: torch.Tensor, *options: Any) -> torch.Tensor:
    window, stride, padding, *rest = _options(axes, *options)
    ceil_mode, counts, divisor = rest
    if varies(x.shape[-axes:]) and not ceil_mode and divisor is None:
        return avg_pool_back(g, x, window, stride, padding, bool(counts))
    return _applied(g, _pooling(x.shape[-axes:], window, stride, padding, rest, g), is_back=True)


def _options(  # noqa: PLR0917 - as torch has them
    axes: int,
    window: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[Sizes, Sizes, Sizes, bool, bool, int | None]:
    window, stride, padding = (full(sizes, axes) for sizes in (window, stride or window, padding))
    return window, stride, padding, ceil_mode, count_include_pad, divisor


def _pooling(  # noqa: PLR0917 - as torch has them
    sizes: Sizes, window: Sizes, stride: Sizes, padding: Sizes, rest: Sequence[Any], like: torch.Tensor
) -> list[torch.Tensor]:
    ceil_mode, counts, divisor = rest
    # What is divided by is said once, and is one along the other axes.
    divisors = [divisor, *[None if divisor is None else 1] * (len(sizes) - 1)]

    def along(axis: int, eye: torch.Tensor) -> torch.Tensor:
        size, step, pad = [window[axis], 1], [stride[axis], 1], [padding[axis], 0]
        return F.avg_pool2d(eye, size, step, pad, ceil_mode, counts, divisors[axis])

    return _matrices(
        "an average over windows that reach over the edge, or with a divisor of its own,", sizes, along, like
    )


def _adaptive_avg_pool(axes: int, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    if all(size == 1 for size in sizes):
        return x.mean(list(range(-axes, 0)), keepdim=True)
    return _applied(x, _adaptive(x.shape[-axes:], sizes, x), is_back=False)


def _adaptive_avg_pool_backward(axes: int, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    sizes = g.shape[-axes:]
    if all(size == 1 for size in sizes):
        return (g / math.prod(x.shape[-axes:])).expand(x.shape)
    return _applied(g, _adaptive(x.shape[-axes:], sizes, g), is_back=True)


def _adaptive(before: Sizes, after: Sizes, like: torch.Tensor) -> list[torch.Tensor]:
    what = f"an adaptive average to {'x'.join(map(str, after))}"
    if varies(after):
        raise of_one_size(what)
    return _matrices(what, before, lambda axis, eye: F.adaptive_avg_pool2d(eye, (after[axis], 1)), like)


#: By which operation on pictures the kinds of resizing are done along one axis.
_RESIZERS: Final = {
    "nearest": aten.upsample_nearest2d.default,
    "nearest_exact": aten._upsample_nearest_exact2d.default,
    "linear": aten.upsample_bilinear2d.default,
    "bicubic": aten.upsample_bicubic2d.default,
    "linear without aliasing": aten._upsample_bilinear2d_aa.default,
    "bicubic without aliasing": aten._upsample_bicubic2d_aa.default,
}


def _resized(kind: str, x: torch.Tensor, after: Sizes, *options: Any) -> torch.Tensor:
    if varies(x.shape[2:]) and kind == "nearest":
        for axis, times in enumerate(_whole(options, x.ndim - 2), start=2):
            x = repeated(x, axis, times)
        return x
    return _applied(x, _resizing(kind, x.shape[2:], after, x, *options), is_back=False)


def resized_to_nearest(x: torch.Tensor, after: Sizes, *factors: float | None) -> Any:
    """Engines have a word for pictures whose values are taken so many times each, as that is said here."""
    if len(factors) == PICTURES - 2 and None not in factors and are_times(factors, x.shape[2:], after):
        return NotImplemented
    return _resized("nearest", x, after, *factors)


def _resized_back(kind: str, g: torch.Tensor, after: Sizes, before: Sizes, *options: Any) -> torch.Tensor:
    if varies(before[2:]) and kind == "nearest":
        for axis, times in enumerate(_whole(options, g.ndim - 2), start=2):
            g = summed(g, axis, times)
        return g
    return _applied(g, _resizing(kind, before[2:], after, g, *options), is_back=True)


def _whole(factors: Sequence[float | None], axes: int) -> list[int]:
    """Return by what sizes are multiplied, where each value is surely taken so many times.

    With other factors PyTorch's rounding decides which value is the nearest.
    """
    if len(factors) != axes or not all(factor in _EXACT for factor in factors):
        raise of_one_size(f"a resizing to the nearest by {factors}, which is no power of two,")
    return [int(factor) for factor in factors if factor is not None]


def _resizing(kind: str, before: Sizes, after: Sizes, like: torch.Tensor, *options: Any) -> list[torch.Tensor]:
    """Options are whether corners are aligned, where that can be said, and the factors."""
    corners = () if "nearest" in kind else options[:1]
    factors = options[len(corners) :]
    if varies([*before, *after]) and kind == "linear":
        pairs = zip(before, after, [*factors] or [None] * len(before), strict=True)
        return [linear(one, other, like, factor=factor, corners=bool(corners[0])) for one, other, factor in pairs]
    if varies(after):
        raise of_one_size(f"a resizing that is {kind}")

    def along(axis: int, eye: torch.Tensor) -> torch.Tensor:
        factor = factors[axis] if axis < len(factors) else None
        if kind.endswith("aliasing"):
            # PyTorch resizes pictures one pixel wide wrongly then: along rows it does not.
            return along_rows(eye.transpose(2, 3), after[axis], factor).transpose(2, 3)
        resized: torch.Tensor = _RESIZERS[kind](eye, [after[axis], 1], *corners, factor, None)
        return resized

    def along_rows(eye: torch.Tensor, count: int, factor: float | None) -> torch.Tensor:
        resized: torch.Tensor = _RESIZERS[kind](eye, [1, count], *corners, None, factor)
        return resized

    return _matrices(f"a resizing that is {kind}", before, along, like)


def _of_resizing() -> Iterator[tuple[Any, Callable[..., Any]]]:
    kinds = {"linear1d": "linear", "bilinear2d": "linear", "trilinear3d": "linear", "bicubic2d": "bicubic"}
    kinds |= {"_bilinear2d_aa": "linear without aliasing", "_bicubic2d_aa": "bicubic without aliasing"}
    for axes in (1, 2, 3):
        kinds |= {f"nearest{axes}d": "nearest", f"_nearest_exact{axes}d": "nearest_exact"}
    for name, kind in kinds.items():
        prefix = "_upsample" if name.startswith("_") else "upsample_"
        yield getattr(aten, prefix + name).default, partial(_resized, kind)
        yield getattr(aten, f"{prefix}{name}_backward").default, partial(_resized_back, kind)


@cache
def resizing() -> Mapping[Any, Callable[..., Any]]:
    """Return the rows of what resizes: of its derivatives torch can't tell the size of without values."""
    return dict(_of_resizing())


#: The rows of pools.
POOLS: Final[dict[Any, Callable[..., Any]]] = {
    aten.avg_pool2d.default: partial(_avg_pool, 2),
    aten.avg_pool3d.default: partial(_avg_pool, 3),
    aten.avg_pool2d_backward.default: partial(_avg_pool_backward, 2),
    aten.avg_pool3d_backward.default: partial(_avg_pool_backward, 3),
    aten._adaptive_avg_pool2d.default: partial(_adaptive_avg_pool, 2),
    aten._adaptive_avg_pool3d.default: partial(_adaptive_avg_pool, 3),
    aten._adaptive_avg_pool2d_backward.default: partial(_adaptive_avg_pool_backward, 2),
    aten._adaptive_avg_pool3d_backward.default: partial(_adaptive_avg_pool_backward, 3),
}
