"""A map at its place on the whole photo: what the network did not see of it lies around the map, dimmed."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.show.colours import Colours, Picture, as_bytes, dimmed
from guided_backprop.show.panels import Panel
from guided_backprop.show.shares import Pixels, resized

# A photo is drawn no larger than this, unless the map has more pixels than that.
_LONGEST = 1024
# The line around what the network saw, and its width for each pixel of the longer side.
_LINE, _LINE_WIDTH = (70, 70, 70), 1 / 500


@final
@dataclass(frozen=True, eq=False)
class Place:
    """A photo, and the part of it that a network saw.

    Attributes:
        photo: ``(H, W, 3)`` uint8, in the size in which it is drawn.
        box: left, top, right and bottom of what the network saw, in pixels of ``photo``; it may reach beyond it.
        warning: a sentence where the network saw less than half of the photo; else nothing.
    """

    photo: Picture
    box: tuple[int, int, int, int]
    warning: str = ""

    @classmethod
    def of(
        cls,
        photo: Image.Image,
        box: tuple[float, float, float, float],
        map_size: tuple[int, int],
        warning: str = "",
    ) -> Self:
        """Return a photo in the size in which it is drawn.

        Each pixel of a map is at least a pixel of it; where the photo has more of them, up to 1024 a side.

        Args:
            photo: as people see it.
            box: left, top, right and bottom of what the network saw, in pixels of the photo.
            map_size: width and height of the map.
            warning: what to say beside each picture of it.
        """
        left, top, right, bottom = box
        least = max(map_size[0] / (right - left), map_size[1] / (bottom - top))
        scale = max(least, min(1.0, _LONGEST / max(photo.size)))
        return cls(*_scaled(photo.convert("RGB"), box, scale), warning)

    def within(self, pixels: int) -> Self:
        """Return the same place on a photo of no more than about so many pixels; it is never enlarged."""
        height, width = self.photo.shape[:2]
        if height * width <= pixels:
            return self
        scale = (pixels / (height * width)) ** 0.5
        return type(self)(*_scaled(Image.fromarray(self.photo), self.box, scale), self.warning)

    @property
    def is_whole(self) -> bool:
        """Tell whether the network saw all of the photo."""
        left, top, right, bottom = self.box
        return left <= 0 and top <= 0 and right >= self.photo.shape[1] and bottom >= self.photo.shape[0]

    def picture(
        self,
        panel: Panel,
        attribution: Pixels,
        percentile: float = 99.0,
        *,
        smooth: float = 0.0,
        colours: Colours | None = None,
    ) -> Picture:
        """Return a panel of a map ``(h, w, C)`` on the whole photo, ``(H, W, 3)``."""
        return self.painted(panel, panel.shares(attribution, percentile, smooth), colours)

    def painted(self, panel: Panel, drawn: NDArray[np.float64], colours: Colours | None = None) -> Picture:
        """Return shares of a map as a panel on the whole photo; of the image's own panel the photo as it is."""
        if not drawn.ndim:
            return panel.painted(self.photo, drawn, colours)
        left, top, right, bottom = self.box
        height, width = self.photo.shape[:2]
        whole = resized(drawn, bottom - top, right - left)
        # What lies beyond the photo was padded, and is not shown.
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        seen = whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        picture = as_bytes(dimmed(self.photo))
        picture[rows, columns] = panel.painted(self.photo[rows, columns], seen, colours)
        _draw_frame(picture, rows, columns)
        return picture


def _scaled(
    photo: Image.Image, box: tuple[float, float, float, float], scale: float
) -> tuple[Picture, tuple[int, int, int, int]]:
    """Return a photo, and a box on it, in another size: of one pixel at least, wherever the sides are rounded to."""
    size = max(round(photo.width * scale), 1), max(round(photo.height * scale), 1)
    across, down = size[0] / photo.width, size[1] / photo.height
    left, top, right, bottom = box
    x, y = round(left * across), round(top * down)
    place = x, y, max(round(right * across), x + 1), max(round(bottom * down), y + 1)
    return np.asarray(photo.resize(size, Image.Resampling.LANCZOS)), place


def picture_at(
    place: Place | None,
    panel: Panel,
    image: Pixels,
    attribution: Pixels,
    percentile: float = 99.0,
    *,
    smooth: float = 0.0,
) -> Picture:
    """Return a panel of a map on the whole photo; without a place on the image, as the network saw it."""
    if place is None:
        return panel.picture(image, attribution, percentile, smooth=smooth)
    return place.picture(panel, attribution, percentile, smooth=smooth)


def _draw_frame(picture: Picture, rows: slice, columns: slice) -> None:
    """Draw a line around a part of a picture, outside of it, along the sides where there is more of the picture."""
    height, width = picture.shape[:2]
    line = max(round(max(height, width) * _LINE_WIDTH), 1)
    top, bottom = max(rows.start - line, 0), rows.stop + line
    left, right = max(columns.start - line, 0), columns.stop + line
    for strip in (
        (slice(top, rows.start), slice(left, right)),
        (slice(rows.stop, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, columns.start)),
        (slice(top, bottom), slice(columns.stop, right)),
    ):
        picture[strip] = _LINE
