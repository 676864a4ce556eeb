"""How values lie in memory: all that is kept of some of them, and what PyTorch's batch-norm misreads."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.torch.leaving import Gradients

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Layout(NamedTuple):
    """All that is kept of a tensor whose values nobody reads."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """Return the layout of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def of_layout(layout: Layout) -> torch.Tensor:
    """Return a tensor of this layout, of any values."""
    return torch.empty_strided(*layout[:2], dtype=layout.dtype, device=layout.device)


def reader_of(node: Node) -> Callable[[Gradients], Gradients | None] | None:
    """Return a pre-hook that makes a batch-norm's derivative read each value at its own place; None if it does anyway.

    With no axis of one value the strides leave nothing open, and CUDA's kernel reads by the strides. This is met by
    every batch-norm of every call.
    """
    shape, device = node._input_metadata[0].shape, node._input_metadata[0].device
    if device.type == "cuda" or 1 not in shape or len(shape) not in _CHANNELS_LAST:
        return None
    hook = getattr(getattr(node, "_raw_saved_input", None), "unpack_hook", None)
    # To look at what a checkpoint keeps it would run once more.
    x = getattr(node, "_saved_input", None) if hook in (None, of_layout) else None
    return partial(_read_right, x is None or lies_channels_last(x))


def _read_right(is_last: bool, gradients: Gradients) -> Gradients | None:
    g = gradients[0]
    if g is None or (not is_last and g.is_contiguous()):
        return None
    right = unambiguous(g, is_last=is_last)
    return None if right is g else (right, *gradients[1:])


def lies_channels_last(x: torch.Tensor) -> bool:
    """Tell whether values lie without gaps, channels last and not channels first."""
    memory_format = _CHANNELS_LAST.get(x.ndim)
    return memory_format is not None and x.is_contiguous(memory_format=memory_format) and not x.is_contiguous()


def unambiguous(g: torch.Tensor, *, is_last: bool) -> torch.Tensor:
    """Return a gradient so that PyTorch's batch-norm reads each value at its own place.

    On a CPU it takes gradient and input to lie alike if both lie without gaps, channels first or last, and their
    strides say nothing against it; but strides along an axis of one value say nothing at all. So one image that was
    read as tokens, or any image of one row, is read in the wrong order (PyTorch 2.13). With strides that say
    "channels last" along every axis nothing is left open, whatever the input's are.

    Args:
        g: what arrives.
        is_last: whether the batch-norm's input lay channels last, or may have.
    """
    memory_format = _CHANNELS_LAST.get(g.ndim)
    if memory_format is None or 1 not in g.shape:
        return g
    if lies_channels_last(g):
        strides = torch.empty(g.shape, device="meta", memory_format=memory_format).stride()
        return g if strides == g.stride() else g.as_strided(g.shape, strides)
    is_first_alone = g.is_contiguous() and not g.is_contiguous(memory_format=memory_format)
    return g.clone(memory_format=memory_format) if is_last and is_first_alone else g
