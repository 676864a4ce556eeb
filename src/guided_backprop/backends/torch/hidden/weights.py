"""What a linear operation leaves as it was, by its weights and its windows: zeros, and multiples of one value."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import torch

from guided_backprop.arrays import NumpyArray

# What one value lies on a diagonal of, or at a few places of, is 0 elsewhere.
_GAPS: Final = frozenset({"block_diag", "diag_embed", "to_dense", "tril", "triu"})
# So many axes weights have at least.
_MATRIX: Final = 2
# By so much multiples may be off in single precision; in a narrower one, by so many units in the last place.
_ALIKE: Final = 1e-5
_LEFT: Final = 4


def has_zeros(tensor: torch.Tensor) -> bool:
    """Tell whether some of the numbers are 0; what is packed is unpacked, and what is sparse has zeros."""
    known = tensor.to_dense() if tensor.is_mkldnn else tensor
    # To count is three times as fast as to ask whether all are.
    return known.layout is not torch.strided or int(torch.count_nonzero(known)) < known.numel()


def has_multiples(weights: torch.Tensor) -> bool:
    """Tell whether some rows of weights, along an axis of what they are given or give, are multiples of others."""
    if weights.ndim < _MATRIX or weights.layout is not torch.strided or not weights.is_floating_point():
        return False
    rounding = max(_ALIKE, _LEFT * torch.finfo(weights.dtype).eps)
    every = weights.detach() if weights.dtype is torch.float64 else weights.detach().float()
    axes = {0, 1, weights.ndim - 1}
    return any(_are_some_multiples(every.movedim(axis, 0).flatten(1), rounding) for axis in axes)


def _are_some_multiples(rows: torch.Tensor, rounding: float) -> bool:
    sizes = rows.norm(dim=1)
    rows, sizes = rows[sizes > 0], sizes[sizes > 0]
    # In the order of one number that is made of each, turned in sign, multiples are neighbours.
    weights = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).sqrt()
    made = (rows @ weights) / (sizes * weights.norm())
    order = made.abs().argsort()
    pairs = (made.abs()[order].diff() <= rounding / len(weights) ** 0.5).nonzero()[:, 0]
    first, second = (rows[one] / (sizes[one] * made[one].sign())[:, None] for one in (order[pairs], order[pairs + 1]))
    off, size = ((first - second).abs(), first.abs())
    return len(pairs) > 0 and bool((off.amax(1) <= rounding * size.amax(1)).any())


def has_gaps(name: str, args: Sequence[Any]) -> bool:
    """Tell whether an operation leaves zeros between or around values: where nothing of what it is given is looked at.

    Not at a border of a convolution: ordinary ones are padded, and what a pool chooses there is no activation.
    """
    if name == "im2col":
        x, kernel, dilation, padding, stride = args
        seen = _seen_of(x.shape[-2:], kernel, stride, padding, dilation)
        return any(
            ((places < 0) | (places >= size)).any(1).all() for places, size in zip(seen, x.shape[-2:], strict=True)
        )
    if name == "col2im":
        _, size, kernel, dilation, padding, stride = args
        return _are_left_out(_seen_of(size, kernel, stride, padding, dilation), size)
    if name != "convolution":
        return name in _GAPS
    # TorchScript says more of it.
    x, weight, _, stride, padding, dilation, is_transposed, more, *_ = args
    sizes, kernel = x.shape[2:], weight.shape[2:]
    if not is_transposed:
        return False
    totals = [
        (size - 1) * step - 2 * edge + spread * (window - 1) + rest + 1
        for size, window, step, edge, spread, rest in _axes(sizes, kernel, stride, padding, dilation, more)
    ]
    return _are_left_out(_seen_from(sizes, kernel, stride, padding, dilation), totals)


def _axes(sizes: Sequence[int], *told: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Return what is told of each axis; what one number tells is so of all."""
    return zip_longest(sizes, *(one if len(one) == len(sizes) else [*one] * len(sizes) for one in told))


def _seen_of(sizes: Sequence[int], *told: Sequence[int]) -> list[NumpyArray]:
    """Return the same of all windows on values of these sizes."""
    counts = [
        (size + 2 * edge - spread * (window - 1) - 1) // step + 1
        for size, window, step, edge, spread in _axes(sizes, *told)
    ]
    return _seen_from(counts, *told)


def _seen_from(counts: Sequence[int], *told: Sequence[int]) -> list[NumpyArray]:
    """Return for each axis the places that each window lies at, as rows."""
    return [
        np.arange(count)[:, None] * step - edge + np.arange(window) * spread
        for count, window, step, edge, spread in _axes(counts, *told)
    ]


def _are_left_out(seen: Sequence[NumpyArray], sizes: Sequence[int]) -> bool:
    return any(not np.isin(np.arange(size), places).all() for places, size in zip(seen, sizes, strict=True))
