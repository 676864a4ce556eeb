"""What has to be known to read a map, told by the map itself: a grid that a stride leaves, a map of weights alone."""

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.record import Record

# Periods that strides leave, smallest first; and how many cells a quarter of the map needs along each axis, for what is
# in a photo by chance to even out.
_PERIODS, _CELLS = (2, 4, 8, 16, 32), 8
# How much of a map's magnitude goes with the position in the grid, as the squared spread of the positions' means over
# their mean: from 14 % up the grid is what the eye sees first.
_SEEN = 0.02
# Why a map of DeconvNet is one colour.
WHY_FLAT = "one flat colour: DeconvNet's way back through ReLUs alone, without max-pooling, does not see the photo"
# Of a map of one colour, the mean is at least this share of the root of its mean square, in its strongest channel.
_FLAT = 0.9
# Blocks over which a grid evens out, and how much of the rim is left out: padding shows there.
_BLOCK, _RIM = 8, 0.125


def remarks(record: Record, smooth: float = 0.0) -> list[str]:
    """Return sentences on maps of pictures that say what is no property of the photo; mostly there are none.

    Args:
        record: explanations of one input, one label per image.
        smooth: the Gaussian over what is shown, in pixels: one of half a grid's period leaves nothing of it.
    """
    pixels = record.pictures()
    if pixels is None:
        return []
    images, maps = pixels
    if record.method == "DeconvNet" and _is_flat(maps) and all(row.treatment != "plain" for row in record.coverage):
        return [WHY_FLAT]
    period = grid_period(images, maps)
    if period <= 2 * smooth:
        return []
    return [f"the grid of {period} pixels is left by the network's stride; it is not in the photo"]


def grid_period(images: NumpyArray, maps: NumpyArray) -> int:
    """Return the period, in pixels, of a grid that is in the maps and not in the images; 0 if there is none.

    Where a stride's windows overlap unevenly, every second (fourth...) pixel gets more of the gradient than its
    neighbours, at the same positions all over the map. Photos have no such positions; where one does (a
    checkerboard, blocks of a JPEG), nothing is said.

    Args:
        images: ``(N, H, W, C)``.
        maps: ``(N, H, W, C)``, of any number of channels.
    """
    in_maps = [_grid(np.abs(_from_one(maps)).max(axis=-1), period) for period in _PERIODS]
    grey = _from_one(images).mean(axis=-1)
    edges = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1])) + np.abs(np.diff(grey, axis=2, prepend=grey[:, :, :1]))
    for period, strength in zip(_PERIODS, in_maps, strict=True):
        # A stride of 2 shows in the means of every fourth pixel too: the smallest that tells most of it.
        if strength >= _SEEN and strength >= 0.75 * max(in_maps):
            return 0 if _grid(edges, period) > strength / 4 else period
    return 0


def _from_one(array: NumpyArray) -> NDArray[np.float64]:
    """Return an array over its largest magnitude: differences and squares of large values may be no numbers."""
    return array.astype(np.float64) / (float(np.abs(array.astype(np.float64)).max(initial=0)) or 1)


def _grid(magnitude: NDArray[np.float64], period: int) -> float:
    """Return how far the means of a grid's positions lie apart: the squared spread over the squared mean.

    What a photo has at some positions by chance is another in each quarter of it: what the quarters agree on counts.
    """
    height, width = (size // (2 * period) * period for size in magnitude.shape[1:])
    if min(height, width) < _CELLS * period or not magnitude.any():
        return 0.0
    quarters = [magnitude[:, top : top + height, left : left + width] for top in (0, height) for left in (0, width)]
    means = np.stack([_means(quarter, period) for quarter in quarters])
    means = means - means.mean(axis=1, keepdims=True)
    agreed = (means.sum(axis=0) ** 2 - (means**2).sum(axis=0)).mean() / 12
    return float(agreed / magnitude.mean() ** 2)


def _means(magnitude: NDArray[np.float64], period: int) -> NDArray[np.float64]:
    """Return the mean of each position in a grid, over all of its cells."""
    count, height, width = magnitude.shape
    cells = magnitude.reshape(count, height // period, period, width // period, period)
    return np.asarray(cells.mean(axis=(0, 1, 3)).reshape(-1))


def _is_flat(maps: NumpyArray) -> bool:
    """Tell whether all maps are of one colour, apart from a grid and the rim."""
    height, width = (size // _BLOCK for size in maps.shape[1:3])
    if not height or not width:
        return False
    cut = _from_one(maps)[:, : height * _BLOCK, : width * _BLOCK]
    cells = cut.reshape(len(maps), height, _BLOCK, width, _BLOCK, -1).mean(axis=(2, 4))
    top, left = round(_RIM * height), round(_RIM * width)
    inner = cells[:, top : height - top, left : width - left]
    # By the strongest channel: the others may be close to 0, and are not seen.
    squares = (inner**2).mean(axis=(1, 2))
    strongest = squares.argmax(axis=-1)[:, np.newaxis]
    means, roots = inner.mean(axis=(1, 2)), np.sqrt(squares)
    mean, root = (np.take_along_axis(each, strongest, axis=-1) for each in (means, roots))
    return bool((np.abs(mean) >= _FLAT * root).all() and root.all())
