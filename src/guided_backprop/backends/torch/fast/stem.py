"""The first convolution of many networks, a large strided one of three channels, with a faster way back.

Its gradient towards the image is a transposed convolution, which with few channels is slow: on the way back it takes
several times as long as forward. With stride s each of the s x s phases of the image's pixels is an ordinary
convolution of what arrives, so all of them together are one, followed by a shuffle of pixels.
"""

from typing import Protocol

import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast.calls import Convolution
from guided_backprop.backends.torch.fast.once import Context, are_constant, once
from guided_backprop.backends.torch.leaving import Gradients
from guided_backprop.backends.torch.own import OwnFunction

# With more channels, or a smaller kernel, the transposed convolution is as fast.
_MOST_CHANNELS = 4
_LEAST_KERNEL = 4


def pays(call: Convolution) -> bool:
    """Tell whether a convolution is one that is faster this way."""
    weight, stride = call.weight, call.stride
    return (
        call.function is torch.conv2d
        and weight.ndim == 4
        and are_constant(weight, call.bias)
        and weight.shape[1] <= _MOST_CHANNELS
        and min(weight.shape[2:]) >= _LEAST_KERNEL
        and stride[0] == stride[1] > 1
        and call.groups == 1
        and call.dilation == (1, 1)
    )


class _OfStem(Context, Protocol):
    """What a strided convolution keeps: how it goes over its images, and their size."""

    stride: int
    padding: tuple[int, ...]
    size: torch.Size


class StridedConvolution(OwnFunction):
    """A convolution that is differentiated by its images alone."""

    @staticmethod
    def forward(
        ctx: _OfStem,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> torch.Tensor:
        """Convolve with stride and padding, and keep the weight alone."""
        stride, padding = geometry
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.size = stride[0], padding, images.shape[2:]
        return functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @once
    def backward(ctx: _OfStem, g: torch.Tensor) -> Gradients:
        """Return the gradient towards the images."""
        (weight,) = ctx.saved_tensors
        stride, (height, width) = ctx.stride, ctx.size
        phases, taps = _phases(weight, stride)
        padded = functional.conv2d(g, phases, None, 1, (taps[0] - 1, taps[1] - 1))
        padded = functional.pixel_shuffle(padded, stride)
        # What the window never reached at the lower and right edge has no gradient.
        top, left = ctx.padding
        missing = [max(0, top + height - padded.shape[2]), max(0, left + width - padded.shape[3])]
        padded = functional.pad(padded, (0, missing[1], 0, missing[0]))
        return padded[:, :, top : top + height, left : left + width], None, None, None


def _phases(weight: torch.Tensor, stride: int) -> tuple[torch.Tensor, list[int]]:
    """Return a kernel with an output channel for each phase of each image channel, and its size."""
    outputs, inputs = weight.shape[:2]
    taps = [-(-size // stride) for size in weight.shape[2:]]
    whole = functional.pad(weight, (0, taps[1] * stride - weight.shape[3], 0, taps[0] * stride - weight.shape[2]))
    split = whole.contiguous().view(outputs, inputs, taps[0], stride, taps[1], stride)
    phases = split.permute(1, 3, 5, 0, 2, 4).reshape(inputs * stride * stride, outputs, *taps).flip(2, 3)
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return phases.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format), taps
