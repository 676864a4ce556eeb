"""How values lie in memory: all that is kept of some of them, and what PyTorch's batch-norm misreads."""

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
    def of(cls, values: torch.Tensor) -> Self:
        """Return the layout of a tensor."""
        return cls(values.shape, values.stride(), values.dtype, values.device)


def of_layout(layout: Layout) -> torch.Tensor:
    """Return a tensor of this layout, of any values."""
    return torch.empty_strided(*layout[:2], dtype=layout.dtype, device=layout.device)


def may_be_misread(node: Node) -> bool:
    """Tell whether a batch-norm's derivative may read what arrives at another place than where it is."""
    x = _input_of(node)
    # With no axis of one value the strides leave nothing open. This is met by every batch-norm of every call.
    return x is None or (1 in x.shape and x.ndim in _CHANNELS_LAST)


def read_right(node: Node, gradients: Gradients) -> Gradients | None:
    """Hand a batch-norm's derivative what arrives so that it reads each value at its own place: a pre-hook of the node.

    Nothing changes where that is so already, which is nearly always.
    """
    g = gradients[0]
    if g is None:
        return None
    right = unambiguous(g, _input_of(node))
    return None if right is g else (right, *gradients[1:])


def _input_of(node: Node) -> torch.Tensor | None:
    """Return what a batch-norm keeps of its input; None where to look at that would run a checkpoint once more."""
    hook = getattr(getattr(node, "_raw_saved_input", None), "unpack_hook", None)
    return getattr(node, "_saved_input", None) if hook in (None, of_layout) else None


def unambiguous(g: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    """Return a gradient so that PyTorch's batch-norm, whose input was x, reads each value at its own place.

    On a CPU it takes gradient and input to lie alike if both lie without gaps, channels first or last, and their
    strides say nothing against it; but strides along an axis of one value say nothing at all. So one image that was
    read as tokens, or any image of one row, is read in the wrong order (PyTorch 2.13). With strides that say
    "channels last" along every axis nothing is left open, whatever the input's are.

    Args:
        g: what arrives.
        x: the batch-norm's input; None if it is not known.
    """
    memory_format = _CHANNELS_LAST.get(g.ndim)
    if memory_format is None or 1 not in g.shape:
        return g
    is_first, is_last = g.is_contiguous(), g.is_contiguous(memory_format=memory_format)
    if is_last and not is_first:
        strides = torch.empty(g.shape, device="meta", memory_format=memory_format).stride()
        return g if strides == g.stride() else g.as_strided(g.shape, strides)
    may_lie_otherwise = x is None or (x.is_contiguous(memory_format=memory_format) and not x.is_contiguous())
    return g.clone(memory_format=memory_format) if is_first and not is_last and may_lie_otherwise else g
