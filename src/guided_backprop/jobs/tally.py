"""What is added up of many maps, some at a time: no more is held than some numbers for each class.

A map is put down as where its magnitudes lie: their shares of their sum, in 32 x 32 cells at most. Maps are alike as
far as these are (the cosine of the angle between them), however strong they are.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations

Array = NDArray[np.float64]

# Cells along each side, where the map has as many pixels.
_CELLS = 32
# Cells whose neighbours tell a map from others: 64 comparisons.
_ROWS, _COLUMNS = 8, 9
# By so much of all one of two neighbours is the larger: where both are 0, rounding doesn't decide.
_MARGIN = 1e-5


class Example(NamedTuple):
    """A map that stands for others.

    Attributes:
        name: of the photo.
        likeness: with the mean of its class, from 0 to 1.
        score: that was explained.
        part: the number of the shard, or of the explanations, among those that are read.
        row: in it.
    """

    name: str
    likeness: float
    score: float
    part: int
    row: int


class Laid(NamedTuple):
    """Where the magnitudes of some maps lie.

    Attributes:
        labels: the class of each.
        magnitude: the mean magnitude of a pixel.
        cells: shares of the magnitudes, ``(N, rows, columns)``; 0 of a map that is all 0.
        centre: the centre of mass, ``(N, 2)``: down and across, from 0 to 1.
        key: equal for maps that are the same but for rounding.
    """

    labels: NDArray[np.int64]
    magnitude: Array
    cells: Array
    centre: Array
    key: NDArray[np.uint64]

    @property
    def tells(self) -> NDArray[np.bool_]:
        """Which maps are not all 0."""
        return np.asarray(self.cells.any(axis=(1, 2)))

    def of(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Laid":
        """Return some of them."""
        return Laid(self.labels[rows], self.magnitude[rows], self.cells[rows], self.centre[rows], self.key[rows])

    @property
    def directions(self) -> Array:
        """The shares as rows of length 1."""
        rows = self.cells.reshape(len(self.cells), self.cells.shape[1] * self.cells.shape[2])
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0))


def magnitudes(explanations: Explanations) -> Array:
    """Return the magnitudes of maps of pictures, summed over the channels: ``(N, H, W)``.

    Raises:
        OptionError: they are none, or of no classes.
    """
    if not explanations.is_of_classes:
        raise OptionError(
            f"a summary needs maps of class ids; received labels of shape {explanations.labels.shape} and type "
            f"{explanations.labels.dtype}. Explain classes."
        )
    maps = np.abs(as_numpy(explanations.attribution).astype(np.float64))
    if explanations.reducer is None and explanations.channel_axis is not None:
        maps = maps.sum(axis=explanations.channel_axis)
    if maps.ndim != 3:
        raise OptionError(
            f"a summary needs maps of pictures; received shape {explanations.shape}. Use the attribution."
        )
    return np.asarray(maps)


def laid(labels: NDArray[np.int64], maps: Array) -> Laid:
    """Return where magnitudes ``(N, H, W)`` lie."""
    total = maps.sum(axis=(1, 2), keepdims=True)
    shares = np.divide(maps, total, out=np.zeros(maps.shape), where=total > 0)
    down, across = ((np.arange(size) + 0.5) / size for size in maps.shape[1:])
    centre = np.stack([shares.sum(axis=2) @ down, shares.sum(axis=1) @ across], axis=1)
    few = _in_cells(shares, _ROWS, _COLUMNS)
    bits = np.packbits((few[:, :, 1:] > few[:, :, :-1] + _MARGIN).reshape(len(maps), -1), axis=1)
    key = np.zeros((len(maps), 8), np.uint8)
    key[:, : bits.shape[1]] = bits
    return Laid(labels, maps.mean(axis=(1, 2)), _in_cells(shares, _CELLS, _CELLS), centre, key.view(np.uint64)[:, 0])


def _in_cells(maps: Array, rows: int, columns: int) -> Array:
    """Return maps in so many cells, or as many as they have pixels: the sum of each."""
    for axis, count in ((1, rows), (2, columns)):
        size = maps.shape[axis]
        starts = np.arange(min(count, size)) * size // min(count, size)
        maps = np.add.reduceat(maps, starts, axis=axis)
    return maps


@dataclass
class Tally:
    """What is added up of the maps of one class, or of all.

    Attributes:
        count: how many there are.
        told: how many of them are not all 0.
        magnitude: the sum of their mean magnitudes.
        centre: the sum of their centres.
        direction: the sum of their directions.
        cells: the sum of their shares.
        inside: the sum of the shares inside of what was marked.
        marked: how many had something marked.
        area: the sum of how much of the map that was.
    """

    count: int = 0
    told: int = 0
    magnitude: float = 0.0
    centre: Array = field(default_factory=lambda: np.zeros(2))
    direction: Array = field(default_factory=lambda: np.zeros(1))
    cells: Array = field(default_factory=lambda: np.zeros((1, 1)))
    inside: float = 0.0
    marked: int = 0
    area: float = 0.0

    def add(self, maps: Laid, inside: Array, area: Array) -> None:
        """Add some maps; ``inside`` and ``area`` are NaN where nothing is marked."""
        tells = maps.tells
        self.count += len(tells)
        self.told += int(tells.sum())
        self.magnitude += float(maps.magnitude.sum())
        self.centre = self.centre + maps.centre[tells].sum(axis=0)
        self.direction = self.direction + maps.directions.sum(axis=0)
        self.cells = self.cells + maps.cells.sum(axis=0)
        is_marked = tells & ~np.isnan(inside)
        self.marked += int(is_marked.sum())
        self.inside += float(inside[is_marked].sum())
        self.area += float(area[is_marked].sum())

    @property
    def likeness(self) -> float | None:
        """The mean likeness of all pairs; None of fewer than two."""
        if self.told < 2:
            return None
        # The square of the sum is the sum of all products, each map's with itself among them.
        return float((self.direction @ self.direction - self.told) / (self.told * (self.told - 1)))

    def likenesses(self, maps: Laid) -> Array:
        """Return how alike maps are to the mean of these."""
        length = np.linalg.norm(self.direction)
        return np.asarray(maps.directions @ (self.direction / length)) if length else np.zeros(len(maps.cells))


def mask_of(marked: NumpyArray | tuple[float, float, float, float] | None, shape: tuple[int, int]) -> Array | None:
    """Return what is marked of a map as shares of its pixels ``(H, W)``; None where nothing is.

    Raises:
        OptionError: it is neither a mask of that shape nor a box.
    """
    if marked is None:
        return None
    array = np.asarray(marked)
    if array.shape == shape and array.dtype == bool:
        return array.astype(np.float64)
    if array.shape == (4,) and array.dtype.kind in "iuf" and (array[:2] < array[2:]).all():
        left, top, right, bottom = array.astype(np.float64)
        down, across = (
            np.clip(np.minimum(np.arange(size) + 1, last) - np.maximum(np.arange(size), first), 0, 1)
            for size, first, last in zip(shape, (top, left), (bottom, right), strict=True)
        )
        return np.asarray(np.outer(down, across))
    raise OptionError(
        f"inside must be a mask of booleans of the maps' shape {shape}, or a box (left, top, right, bottom) in their "
        f"pixels; received {marked!r:.80}. Pass one of these, or a function from a photo's name to one."
    )
