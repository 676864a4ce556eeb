"""From a photo to what a network is shown of it, and where on the photo it looked.

A value of its own, so that a map can be put back at its place on the whole photo.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.arrays import Tensor

Resampling = Literal["nearest", "bilinear", "bicubic", "lanczos"]
#: From one RGB photo to one array or tensor as the network wants it, without batch axis.
Preprocess = Callable[[Image.Image], Tensor]


@final
@dataclass(frozen=True)
class View:
    """Where on a photo a network looked.

    Attributes:
        photo: the photo's width and height.
        box: left, top, right and bottom of what the network saw, in pixels of the photo: ``(0, 0)`` is the upper left
            corner of the upper left pixel. It reaches beyond the photo where the photo was padded.
        size: width and height of the network's input, which is this box, resized.

    A map of any size ``(h, w)`` of this input belongs into the box: its pixel ``(row, column)`` is centred at
    ``left + (column + 0.5) * (right - left) / w``, ``top + (row + 0.5) * (bottom - top) / h``.

    Example:
        >>> from guided_backprop.models import View
        >>> View((400, 100), (150, 0, 250, 100), (224, 224)).share
        0.25
    """

    photo: tuple[int, int]
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def share(self) -> float:
        """The share of the photo's area that the network saw, in [0, 1]."""
        (width, height), (left, top, right, bottom) = self.photo, self.box
        seen = [max(min(right, width) - max(left, 0), 0), max(min(bottom, height) - max(top, 0), 0)]
        return seen[0] * seen[1] / (width * height)

    @property
    def warning(self) -> str:
        """A sentence where the network saw less than half of the photo; else nothing."""
        if self.share >= 0.5:
            return ""
        return f"the network saw {self.share:.0%} of the photo: the rest of it is not explained"


class Preprocessing(ABC):
    """What is done to a photo before a network sees it: called on the photo; ``str`` says it in one line.

    Example:
        >>> from guided_backprop.models import Preprocessing, ResizeCrop
        >>> preprocess: Preprocessing = ResizeCrop((8, 8))
        >>> preprocess.view(16, 16).share
        1.0
    """

    @abstractmethod
    def __call__(self, photo: Image.Image) -> Tensor:
        """Return what the network is shown of an RGB photo: one array or tensor, without batch axis."""

    @abstractmethod
    def view(self, width: int, height: int) -> View | None:
        """Return where on a photo of this size the network looks; None if that is not one upright box."""


@final
@dataclass(frozen=True)
class ResizeCrop(Preprocessing):
    """Resize, keep the centre, scale the pixels: what nearly every classifier was trained with.

    Attributes:
        size: height and width of the network's input.
        crop: the share of the resized photo that is kept, along the side that is cut least: the photo is resized until
            it covers ``size / crop``, and of that the centre is taken. None to stretch the whole photo to ``size``.
        resampling: how it is resized.
        scale: what pixels of 0 to 255 are multiplied by.
        mean: subtracted after that: one number, or one for each of red, green and blue.
        std: by what that is divided, in the same way.
        channels_last: whether the network wants ``(height, width, 3)``, and not ``(3, height, width)``.
        grey: whether the network wants one channel, of the photo in grey.
        further: done with ``(height, width, 3)`` of float32 at last, before it is laid out; None for nothing.
        said: what to say of ``further``.

    Example:
        >>> from PIL import Image
        >>> from guided_backprop.models import ResizeCrop
        >>> preprocess = ResizeCrop((224, 224), crop=0.875, mean=(0.5,), std=(0.25,))
        >>> preprocess(Image.new("RGB", (640, 480))).shape
        (3, 224, 224)
        >>> preprocess.view(512, 256).box
        (144.0, 16.0, 368.0, 240.0)
        >>> print(preprocess)
        224 x 224, bicubic, crop .875, pixels / 255, mean .5, std .25
    """

    size: tuple[int, int]
    crop: float | None = 1.0
    resampling: Resampling = "bicubic"
    scale: float = 1 / 255
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    channels_last: bool = False
    grey: bool = False
    further: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    said: str = ""

    def __call__(self, photo: Image.Image) -> NDArray[np.float32]:
        """Return the photo's part as float32."""
        width, height = self._resized(*photo.size)
        left, top = self._corner(width, height)
        resized = photo.resize((width, height), Image.Resampling[self.resampling.upper()])
        seen = resized.crop((left, top, left + self.size[1], top + self.size[0]))
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        shown = np.asarray(seen.convert("L"))[..., np.newaxis] if self.grey else np.asarray(seen)
        pixels: NDArray[np.float32] = (shown.astype(np.float32) * np.float32(self.scale) - mean) / std
        if self.further is not None:
            pixels = np.asarray(self.further(pixels), np.float32)
        return pixels if self.channels_last else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def view(self, width: int, height: int) -> View:
        """Return where on a photo of this size the network looks."""
        resized = self._resized(width, height)
        left, top = self._corner(*resized)
        across, down = width / resized[0], height / resized[1]
        box = (left * across, top * down, (left + self.size[1]) * across, (top + self.size[0]) * down)
        return View((width, height), box, (self.size[1], self.size[0]))

    def __str__(self) -> str:
        cut = "the whole photo stretched" if self.crop is None else f"crop {_short(self.crop)}"
        parts = [self.resampling, cut, "grey" * self.grey, in_words(self.scale, self.mean, self.std), self.said]
        return ", ".join([f"{self.size[1]} x {self.size[0]}", *filter(None, parts)])

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = self.size
        if self.crop is None:
            return columns, rows
        # The sides are cut off, not rounded, as torchvision and timm do it.
        least = floor(columns / self.crop), floor(rows / self.crop)
        scale = max(least[0] / width, least[1] / height)
        return max(least[0], int(width * scale)), max(least[1], int(height * scale))

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = self.size
        return round((width - columns) / 2), round((height - rows) / 2)


def in_words(scale: float, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return what ``(pixels * scale - mean) / std`` does to pixels of 0 to 255; nothing for what does nothing.

    Example:
        >>> from guided_backprop.models.preprocessing import in_words
        >>> in_words(1 / 255, (0.5, 0.5, 0.5), (1.0,)), in_words(1.0, (0.0,), (1.0,))
        ('pixels / 255, mean .5', '')
    """
    scaled = f"pixels / {_short(1 / scale)}" if scale < 1 else f"pixels * {_short(scale)}" if scale > 1 else ""
    means = f"mean {_numbers(mean)}" if any(mean) else ""
    deviations = f"std {_numbers(std)}" if any(number != 1 for number in std) else ""
    return ", ".join(filter(None, [scaled, means, deviations]))


def _short(number: float) -> str:
    return f"{number:.4g}".replace("0.", ".", 1) if 0 < abs(number) < 1 else f"{number:.4g}"


def _numbers(numbers: Sequence[float]) -> str:
    return " ".join(map(_short, numbers if len(set(numbers)) > 1 else numbers[:1]))
