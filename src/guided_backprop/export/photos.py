"""Photos instead of images: their pixels scaled inside the graph, and the map of these pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import ImageError, OptionError

# By how much of a step of 0 to 255 an image may differ from that of a photo: what is stored in between is rounded.
_OFF = 0.05


class Recipe(Protocol):
    """What is done with a photo of the model's size: see :class:`guided_backprop.models.ResizeCrop`."""

    @property
    def scale(self) -> float:
        """What pixels of 0 to 255 are multiplied by."""

    @property
    def mean(self) -> Sequence[float]:
        """What is taken off then."""

    @property
    def std(self) -> Sequence[float]:
        """What they are divided by then."""

    @property
    def channels_last(self) -> bool:
        """Whether images are ``(N, H, W, 3)``."""

    @property
    def grey(self) -> bool:
        """Whether they have no colours."""

    @property
    def further(self) -> object:
        """What else is done, or None."""


@dataclass(frozen=True)
class Photos:
    """How the pixels of photos, ``(N, H, W, 3)`` of 0 to 255, become images: ``(pixels * scale - mean) / std``.

    Attributes:
        scale: as above.
        mean: one number, or three.
        std: one number, or three.
        channels_last: whether images are ``(N, H, W, 3)`` as well.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.export.photos import Photos
        >>> photos = Photos(1 / 255, (0.5,), (0.5,), channels_last=False)
        >>> pixels = np.full((1, 2, 2, 3), 255, np.uint8)
        >>> photos.images(pixels, np.float32).max(), (photos.pixels(photos.images(pixels, np.float32)) == pixels).all()
        (np.float32(1.0), np.True_)
    """

    scale: float
    mean: Sequence[float]
    std: Sequence[float]
    channels_last: bool

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return what a recipe does after it resized and cut.

        Raises:
            OptionError: a graph can't do that exactly.
        """
        if recipe.grey or recipe.further is not None:
            raise OptionError(
                "photos must be a recipe that scales colours and does nothing else; received "
                f"photos={str(recipe)!r:.100}. Leave it out, and give the graph images."
            )
        return cls(float(recipe.scale), tuple(recipe.mean), tuple(recipe.std), bool(recipe.channels_last))

    @property
    def slopes(self) -> NumpyArray:
        """By how much the channels of an image grow with those of a photo."""
        return np.broadcast_to(self.scale / np.asarray(self.std, np.float64), 3)

    def shape(self, image: Sequence[Any]) -> tuple[Any, ...]:
        """Return the shape of the photo of an image, ``(H, W, 3)``, of that of the image."""
        return (*image,) if self.channels_last else (*image[1:], image[0])

    def images(self, pixels: NumpyArray, dtype: type[np.floating]) -> NumpyArray:
        """Return photos as images."""
        mean, std = np.asarray(self.mean, dtype), np.asarray(self.std, dtype)
        images = (pixels.astype(dtype) * dtype(self.scale) - mean) / std
        return images if self.channels_last else np.ascontiguousarray(np.moveaxis(images, -1, 1))

    def pixels(self, images: NumpyArray) -> NumpyArray:
        """Return the photos that images were.

        Raises:
            ImageError: they were none.
        """
        last = images if self.channels_last or images.ndim != 4 else np.moveaxis(images, 1, -1)
        if last.ndim != 4 or last.shape[-1] != 3:
            raise ImageError(
                "images must be of three channels for a graph that takes photos; received images of shape "
                f"{images.shape}. Leave photos out."
            )
        pixels = (last * np.asarray(self.std, np.float64) + np.asarray(self.mean, np.float64)) / self.scale
        rounded = pixels.round().clip(0, 255)
        if np.abs(rounded - pixels).max(initial=0) > _OFF:
            raise ImageError(
                "images must be photos as the recipe scales them, of whole pixels of 0 to 255; received some that are "
                f"off by {np.abs(rounded - pixels).max():.2g}. Preprocess photos by the same recipe."
            )
        return rounded.astype(np.uint8)

    def of_pixels(self, attribution: NumpyArray) -> NumpyArray:
        """Return maps of images as maps of photos, ``(N, H, W, 3)``: score per step of a pixel."""
        last = attribution if self.channels_last else np.moveaxis(attribution, 1, -1)
        return np.asarray(last * self.slopes)
