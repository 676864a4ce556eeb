"""Where a linear operation leaves zeros, by its weights and its windows."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import torch

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.empty import Empty, Window, emptied

# What one value lies on a diagonal of, or at a few places of, is 0 elsewhere.
_GAPS: Final = frozenset({"block_diag", "diag_embed", "to_dense", "tril", "triu"})


def has_zeros(tensor: torch.Tensor) -> bool:
    """Tell whether some of the numbers are 0; what is packed is unpacked, and what is sparse has zeros."""
    known = tensor.to_dense() if tensor.is_mkldnn else tensor
    # To count is three times as fast as to ask whether all are.
    return known.layout is not torch.strided or int(torch.count_nonzero(known)) < known.numel()


def emptied_by(name: str, args: Sequence[Any]) -> Empty:
    """Return where an operation leaves zeros, between or around values: nothing that it is given is looked at there."""
    if name == "im2col":
        x, kernel, dilation, padding, stride = args
        seen = _seen_of(x.shape[-2:], kernel, stride, padding, dilation)
        is_cut = ((places < 0) | (places >= size) for places, size in zip(seen, x.shape[-2:], strict=True))
        return Empty(has_gaps=any(each.any(1).all() for each in is_cut))
    if name == "col2im":
        _, size, kernel, dilation, padding, stride = args
        return Empty(has_gaps=_are_left_out(_seen_of(size, kernel, stride, padding, dilation), size))
    return emptied(_windows(args)) if name == "convolution" else Empty(has_gaps=name in _GAPS)


def _windows(args: Sequence[Any]) -> Iterable[Window]:
    """Yield what a convolution looks at along each axis."""
    # TorchScript says more of it.
    x, weight, _, stride, padding, dilation, is_transposed, more, *_ = args
    for size, length, step, low, spread, rest in _axes(x.shape[2:], weight.shape[2:], stride, padding, dilation, more):
        reach = spread * (length - 1) + 1
        if is_transposed:
            count = (size - 1) * step - 2 * low + reach + rest
            yield Window.transposed(size, count, length, step=step, low=low, spread=spread)
        else:
            yield Window(size, (size + 2 * low - reach) // step + 1, length, step, low, spread)


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
