"""Preprocessing that is somebody else's function: its pixels are its own, and where it looks is measured.

What it does to a photo isn't asked, since each library and each of its versions records that otherwise: it is shown
photos on which each pixel says where it is. If what comes out is one upright box of the photo, resized, it shows: the
places grow evenly along the rows and along the columns. Where anything else happens (a mirror, a turn, chance, a
curve), they do not, and there is no box.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.arrays import NumpyArray, Tensor, as_numpy
from guided_backprop.models.preprocessing import Preprocess, Preprocessing, View

Plane = NDArray[np.float64]
# How often, along the short side, and how finely the ramps repeat what their 8 bits round away.
_PERIODS, _MOVES = 8, 16
# How often a photo is shown to a function that may act by chance.
_TRIES = 8
# By how much of the range one pixel may still be off.
_ROUGH = 3 / 255
# By how many pixels of the input, or of the photo where these are larger, the average of a column may be off.
_OFF = 0.75


@final
@dataclass(frozen=True)
class Measured(Preprocessing):
    """A function from one RGB photo to one array, as torchvision's transforms, or the user's own.

    Attributes:
        function: the function.
        said: what it does, for people.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.models import Measured
        >>> preprocess = Measured(lambda photo: np.asarray(photo.resize((8, 8)), np.float32).transpose(2, 0, 1))
        >>> round(preprocess.view(640, 480).share)
        1
    """

    function: Preprocess
    said: str = ""
    _views: dict[tuple[int, int], View | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, photo: Image.Image) -> Tensor:
        """Return what the function returns."""
        return self.function(photo)

    def view(self, width: int, height: int) -> View | None:
        """Return where on photos of this size the function looks; None if that can't be told."""
        size = width, height
        if size not in self._views:
            self._views[size] = _measured(self.function, width, height) if self._is_steady else None
        return self._views[size]

    @cached_property
    def _is_steady(self) -> bool:
        """Whether a photo always becomes the same: a mirror that chance holds shows in some of the tries only."""
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
        try:
            first, *others = [as_numpy(self.function(Image.fromarray(noise))) for _ in range(_TRIES)]
        # It is anybody's function, and it has worked on a photo: what it says to this one is no news.
        except Exception:
            return False
        return all(np.array_equal(first, other) for other in others)

    def cut(self) -> str:
        """Return how much of a photo the function keeps, in the words of :class:`ResizeCrop`; nothing if unknown."""
        width, height = 600, 400
        view = self.view(width, height)
        if view is None:
            return ""
        left, top, right, bottom = view.box
        shares = (right - left) / width, (bottom - top) / height
        if np.allclose(shares, 1, atol=0.005):
            return "the whole photo stretched"
        # To a hundredth: what is measured isn't exact to more.
        return f"crop {max(shares):.2f}".replace(" 0.", " .") if max(shares) < 1.005 else "the photo padded"

    def __str__(self) -> str:
        return self.said or "its own preprocessing"


def _measured(function: Preprocess, width: int, height: int) -> View | None:
    across, down = _ramp(width, height), _ramp(height, width).T
    probes = [np.zeros_like(across), np.full_like(across, 255), across, down, across // 2 + down // 2]
    try:
        planes = [_plane(function(Image.fromarray(np.ascontiguousarray(probe)).convert("RGB"))) for probe in probes]
    # As above.
    except Exception:
        return None
    seen = _seen([plane for plane in planes if plane is not None])
    if seen is None:
        return None
    left_right, top_bottom = _ends(seen.across, seen.columns, width), _ends(seen.down.T, seen.rows, height)
    if left_right is None or top_bottom is None:
        return None
    (left, right), (top, bottom) = [
        (start, start + step * length)
        for (start, step), length in zip((left_right, top_bottom), reversed(seen.shape), strict=True)
    ]
    return View((width, height), (left, top, right, bottom), (seen.shape[1], seen.shape[0]))


def _ramp(width: int, height: int) -> NDArray[np.uint8]:
    """Return ``(height, width)`` that grows evenly from left to right.

    255 steps are coarse for a photo of thousands of pixels: from row to row the steps are moved, so that the average of
    some rows is exact.
    """
    places = (np.arange(width) + 0.5) / width * 254
    moved = (np.arange(_MOVES) + 0.5) / _MOVES
    different = np.floor(places + moved[:, np.newaxis]).astype(np.uint8)
    period = min(width, height) / _PERIODS
    return different[(np.arange(height) / period % 1 * _MOVES).astype(np.intp)]


def _plane(given: Tensor) -> Plane | None:
    """Return ``(height, width)`` of one picture of one or three channels, in either layout; None if it is none."""
    array: NumpyArray = as_numpy(given)
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.mean(axis=0, dtype=np.float64)
    elif array.ndim == 3 and array.shape[2] in (1, 3):
        array = array.mean(axis=2, dtype=np.float64)
    return array.astype(np.float64) if array.ndim == 2 else None


class _Seen(NamedTuple):
    """What an input of this shape shows: which rows and columns are photo, and which places of it, in [0, 1]."""

    shape: tuple[int, int]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    across: Plane
    down: Plane


def _seen(planes: list[Plane]) -> _Seen | None:
    if len(planes) < 5 or len({plane.shape for plane in planes}) > 1:
        return None
    black, white, *ramps = planes
    contrast = white - black
    largest = np.abs(contrast).max()
    # Where the photo was padded black and white are one.
    is_photo = np.abs(contrast) > 1e-3 * largest
    rows, columns = np.flatnonzero(is_photo.any(axis=1)), np.flatnonzero(is_photo.any(axis=0))
    inside = np.ix_(rows, columns)
    if not is_photo.any() or not is_photo[inside].all() or np.ptp(contrast[inside]) > 1e-2 * largest:
        return None
    across, down, both = [(plane - black)[inside] / contrast[inside] for plane in ramps]
    # What is no line from black to white does something else to the sum.
    if np.abs(both - (across + down) / 2).max() > 2 * _ROUGH:
        return None
    rows_of, columns_of = black.shape
    return _Seen((rows_of, columns_of), rows, columns, across * 255 / 254, down * 255 / 254)


def _ends(places: Plane, columns: NDArray[np.intp], width: int) -> tuple[float, float] | None:
    """Return where on the photo the input's first column begins, and how many pixels of the photo each is wide."""
    at = places.mean(axis=0) * width
    # At a photo's border what is between two pixels is made up.
    is_inner = (at > 0.75) & (at < width - 0.75)
    if is_inner.sum() < 2:
        return None
    step, start = np.polyfit(columns[is_inner] + 0.5, at[is_inner], 1)
    off = np.abs(at - (start + step * (columns + 0.5)))[is_inner].max()
    is_upright = np.abs(places - places.mean(axis=0)).max() < 2 * _ROUGH
    is_even = off < _OFF * max(step, 1)
    return (float(start), float(step)) if step > 0 and is_even and is_upright else None
