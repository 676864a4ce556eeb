"""Where a linear operation leaves zeros, by its weights and its windows."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import torch

from guided_backprop.arrays import NumpyArray

# What one value lies on a diagonal of, or at a few places of, is 0 elsewhere.
_GAPS: Final = frozenset({"block_diag", "diag_embed", "to_dense", "tril", "triu"})


def has_zeros(tensor: torch.Tensor) -> bool:
    """Tell whether some of the numbers are 0; what is packed is unpacked, and what is sparse has zeros."""
    known = tensor.to_dense() if tensor.is_mkldnn else tensor
    # To count is three times as fast as to ask whether all are.
    return known.layout is not torch.strided or int(torch.count_nonzero(known)) < known.numel()


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
