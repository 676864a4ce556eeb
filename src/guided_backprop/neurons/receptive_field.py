"""Where on the image a position of a layer looks, and how much of the image is enough to compute it.

The receptive field is read off the support of a gradient: with every ReLU open, what arrives at the image is not 0
just where the position looks, on images of noise, whose maxima lie anywhere. A convolutional layer looks at the
image through one window, moved by one stride; where it does not, the whole image is its receptive field.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Images, Inputs, NumpyArray, as_numpy
from guided_backprop.backends.base import Backend
from guided_backprop.rules import OPEN

# Everything passes: what is left of the gradient is which pixels lead to the position at all.
# In one image of noise a maximum may hide the window's edge from all channels; hardly in that many.
_PROBES = 4


@dataclass(frozen=True)
class Axis:
    """How a layer's positions look at one axis of the image.

    Attributes:
        length: the image's size.
        size: the window's size; ``length`` if all of it is looked at.
        start: where position 0's window begins, which may be outside of the image.
        stride: how far it is to the next position's; 0 if all look at the whole image.
    """

    length: int
    size: int
    start: int = 0
    stride: int = 0

    def window(self, position: int) -> tuple[int, int]:
        """Return where a position looks, moved into the image at its edge: begin and end, ``size`` apart."""
        begin = min(max(self.start + self.stride * position, 0), self.length - self.size)
        return begin, begin + self.size

    def crop(self, position: int) -> tuple[int, int, int]:
        """Return begin and end of a part of the image that is enough, and where the position is in that part.

        It begins at a multiple of the stride and is shorter than the image by another, so that strides, and
        padding that depends on the image's size, fall as they do on the whole image.
        """
        if not self.stride:
            return 0, self.length, position
        least = self.size + self.start % self.stride
        end = least + (self.length - least) % self.stride
        if end >= self.length:
            return 0, self.length, position
        first = (self.start + self.stride * position) // self.stride * self.stride
        begin = min(max(first, 0), self.length - end)
        return begin, begin + end, position - begin // self.stride


def receptive_field(backend: Backend, images: Images, outputs: NumpyArray, seed: int = 0) -> list[Axis]:
    """Return how the positions of a backend's output look at each axis of its images.

    Args:
        backend: the model up to a layer.
        images: some of its images, ``(N, ...)``; only their shape, kind, mean and spread matter.
        outputs: what the layer returns for images of this shape, ``(N, ...)``.
        seed: chooses the noise.
    """
    pixels = as_numpy(images)
    channel = backend.channel_axis(images)
    lengths = [size for axis, size in enumerate(pixels.shape) if axis not in (0, channel)]
    whole = [Axis(length, length) for length in lengths]
    out_channel = backend.channel_axis(outputs)
    sizes = [size for axis, size in enumerate(outputs.shape) if axis not in (0, out_channel)]
    if channel is None or out_channel is None or len(sizes) != len(lengths):
        return whole
    middle = [(size - 1) // 2 for size in sizes]
    following = [min(place + 1, size - 1) for place, size in zip(middle, sizes, strict=True)]

    def weigh(outputs: NumpyArray) -> list[NDArray[np.float64]]:
        weights = np.zeros(np.moveaxis(outputs, out_channel, 1).shape)
        for row, position in enumerate((middle, following)):
            weights[(row, slice(None), *position)] = 1
        return [np.moveaxis(weights, 1, out_channel)]

    rng = np.random.default_rng(seed)
    mean, spread = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64)) or 1.0
    support = np.zeros((2, *lengths), bool)
    for _ in range(_PROBES):
        noise = backend.from_numpy(rng.normal(mean, spread, (2, *pixels.shape[1:])), images)
        (gradient,) = backend.attribute(Inputs.of(noise), weigh, [OPEN])[0].attribution[0].arrays
        support |= (np.moveaxis(as_numpy(gradient), channel, 1) != 0).any(axis=1)
    edges = map(_edges, support)
    return [
        _axis(length, position, here, there) if size > 1 else Axis(length, length)
        for length, size, position, here, there in zip(lengths, sizes, middle, *edges, strict=True)
    ]


def _edges(support: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and the last place of the support along each axis."""
    if not support.any():
        return [(0, size - 1) for size in support.shape]
    return [(int(places.min()), int(places.max())) for places in np.nonzero(support)]


def _axis(length: int, position: int, here: tuple[int, int], there: tuple[int, int]) -> Axis:
    """Return how an axis is looked at, given the windows of a position and of the next."""
    stride = there[0] - here[0]
    # A window that ends where the image does may be longer than what can be seen of it.
    is_cut = here[0] == 0 or there[1] == length - 1
    if is_cut or stride <= 0 or there[1] - here[1] != stride:
        return Axis(length, length)
    return Axis(length, here[1] - here[0] + 1, here[0] - stride * position, stride)
