"""Values by rows, each of which has a gate of its own: where it is closed, how steep it is where it is open."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.evidence import edges_between, surprise, surprise_above, surprise_at_zero, ways
from guided_backprop.backends.notes import Ranks

# So many times there may be a result of each number.
_MOST_PARTS: Final = 64
# So many values of a channel tell of most that it is no gate.
_FIRST: Final = 256
# Numbers are one if they differ by no more than that share of their size.
_ONE: Final = 1e-6


def groupings(y: NumpyArray) -> Iterator[tuple[int, ...]]:
    """Yield the axes along which constant, threshold and multiple are one: all, all but one, and the images alone."""
    yield tuple(range(y.ndim))
    if y.ndim > 1:
        for axis in sorted({1, y.ndim - 1}):
            yield tuple(other for other in range(y.ndim) if other != axis)
    if y.ndim > 2:
        yield (0,)


def by_rows(*arrays: NumpyArray) -> Iterator[tuple[list[NumpyArray], tuple[int, ...]]]:
    """Yield y, x and others by rows that have a gate of their own, and the shape of one number for each row."""
    y = arrays[0]
    for axes in groupings(y):
        kept = [axis for axis in range(y.ndim) if axis not in axes]
        shape = tuple(y.shape[axis] if axis in kept else 1 for axis in range(y.ndim))
        yield [np.transpose(array, (*kept, *axes)).reshape(int(np.prod(shape)), -1) for array in arrays], shape


def are_apart(x: NumpyArray, is_closed: NumpyArray, is_open: NumpyArray, *, by_row: bool) -> bool:
    """Tell whether all that is closed lies on one side of all that is open: of everything, or of each row."""
    for rows, _ in by_rows(x, is_closed, is_open):
        if edges_between(*rows) is not None:
            return True
        if not by_row:
            break
    return False


def sides_of(y: NumpyArray, x: NumpyArray) -> Iterator[float | NumpyArray]:
    """Yield what x may be turned by so that rows are closed where it is small: all alike, or each by its own.

    ``where((x > 0) == flags, x, 0)`` is closed below 0 in some channels, and above it in others.
    """
    yield 1.0
    yield -1.0
    ends = [np.take_along_axis(y, end(x, 1)[:, None], 1) for end in (np.argmin, np.argmax)]
    # One value that is alone tells by being 0.
    low, high = ((y == end).sum(1) + (end[:, 0] == 0) for end in ends)
    sides = np.where(high > low, -1.0, 1.0)[:, None]
    if np.ptp(sides):
        yield sides


def has_parts(size: int, of_x: int) -> bool:
    """Tell whether so many values may be several of each of x."""
    return 1 < of_x < size <= _MOST_PARTS * of_x and size % of_x == 0


def parts_of(y: NumpyArray, x: NumpyArray) -> Iterator[NumpyArray]:
    """Yield what there is of x, once for each time that y has it: along an axis of their own, wherever that is."""
    if not has_parts(y.size, x.size):
        return
    count = y.size // x.size
    for place in range(x.ndim + 1):
        yield from np.moveaxis(y.reshape(*x.shape[:place], count, *x.shape[place:]), place, 0)


@dataclass(frozen=True)
class Gate:
    """Values by rows, each of which is closed below a threshold of its own.

    Attributes:
        y: what may be the gate's result, ``(rows, values)``.
        x: of what, open where it is large.
        constants: for each row what y is where it is closed, ``(rows, 1)``; NaN if it is closed nowhere.
        is_full: whether all is open above the thresholds.
        is_in_all_rows: whether no row is open where others are closed.
        evidence: minus the logarithm of the chance that values which do not depend on x lie like that.
    """

    y: NumpyArray
    x: NumpyArray
    constants: NumpyArray
    is_full: bool
    is_in_all_rows: bool
    evidence: float

    @classmethod
    def of(cls, y: NumpyArray, x: NumpyArray, opened: NumpyArray | None, *, ranks: Ranks) -> "Gate | None":
        """Return how the rows are gates of x, if they are; of one row, what is ``opened`` by some images."""
        x = np.where(np.isnan(x), -np.inf, x)
        constants = np.take_along_axis(y, x.argmin(axis=1)[:, None], axis=1)
        is_closed = y == constants
        top, bottom = (how(np.where(is_closed, x, -far), 1) for how, far in ((np.max, np.inf), (np.min, -np.inf)))
        low = np.where(is_closed, np.inf, x).min(axis=1)
        # One value that is kept as it is closes nothing, nor does 0.
        has_closed = (top > bottom) | ((constants[:, 0] == 0) & (top != 0))
        has_both = has_closed & np.isfinite(low)
        if not has_both.any():
            return None
        others = y[~has_closed]
        if (np.isin(others, constants[has_both]) & (np.abs(others) != np.abs(x[~has_closed]))).any():
            return None
        constants = np.where(has_closed[:, None], constants, np.nan)
        # Two that are one number, one of them open, were told apart by something else.
        is_full = bool((low > top)[has_both].all())
        if is_full:
            # What is open below the threshold that all others may have in common is closed nowhere.
            tops, is_one = top[has_both], top[has_both].max() <= low[has_both].min()
            is_in_all_rows = not (x[~has_closed] < max(0.0, tops.max() if is_one else tops.min())).any()
            # What is 0 itself is 0 whether anything closes it or not.
            is_told = ((y != 0) | (x != 0))[has_both]
            return cls(y, x, constants, True, is_in_all_rows, surprise(is_closed[has_both], is_told))
        is_second = constants[0, 0] == 0 and low[0] > 0 and bool((x < 0).any())
        if opened is None or ranks is Ranks.ALL or not is_second:
            return None
        # What is closed for all images may be so by its place.
        is_told = (np.broadcast_to(opened, (y.size // opened.size, *opened.shape)).reshape(y.shape)) & (x != 0)
        return cls(y, x, constants, False, True, surprise_at_zero(x[is_told], ~is_closed[is_told]))

    @property
    def is_partial(self) -> bool:
        """Whether it closes several values below a threshold, whatever it does above."""
        return self.is_full and self.has_closed_several and not self.is_in_steps

    @property
    def is_at_zero(self) -> bool:
        """Whether nothing below 0 is open, and all above it but for a second mask: few values show a ReLU then."""
        is_closed = self.y == self.constants
        is_wrong = (~is_closed & (self.x < 0)) | (is_closed & (self.x > 0) & self.is_full)
        return len(self.y) == 1 and not is_wrong.any()

    def is_window(self, evidence: float) -> bool:
        """Tell whether a second mask is one of x too: all that it closes lies above all that is open, not by chance.

        As of half of a hat, of which a spline is made.
        """
        is_closed = self.y == self.constants
        closed, opened = self.x[is_closed & (self.x > 0)], self.x[~is_closed]
        is_above = not self.is_full and closed.min(initial=np.inf) > opened.max(initial=-np.inf)
        return is_above and surprise_above(closed.size, opened.size) >= evidence

    @property
    def has_closed_several(self) -> bool:
        """Whether different values were closed, so that it is none of a value that was that before."""
        is_closed = self.y == self.constants
        return len(np.unique(self.x[is_closed])) > 1

    @property
    def has_closed_one(self) -> bool:
        """Whether several values were closed, and all of them were one number, or as one beside their size.

        As what a mask put a large number below the others.
        """
        x = self.x[self.y == self.constants]
        return x.size > 1 and bool((x == x[0]).all() or np.ptp(x) <= _ONE * np.abs(x).max())

    @property
    def is_in_steps(self) -> bool:
        """Whether what is open goes in steps too, as of rounding, and what is closed is no wider than one of them."""
        is_open = self.y != self.constants
        steps, which = np.unique(self.y[is_open], return_inverse=True)
        x, closed = self.x[is_open], self.x[self.y == self.constants]
        low, high = np.full(len(steps), np.inf), np.full(len(steps), -np.inf)
        np.minimum.at(low, which, x)
        np.maximum.at(high, which, x)
        return bool(2 * len(steps) < len(np.unique(x)) and closed.max() - closed.min() <= 2 * (high - low).max())

    def slopes(self, rounding: float) -> NumpyArray | None:
        """Return how steep each row is where it is open, NaN if it is nowhere; None if one is not straight.

        None as well if nothing is closed: a value closes nothing where the straight line would be just there.
        """
        is_open = (self.y != self.constants) & np.isfinite(self.x)
        if not np.isfinite(self.y[is_open]).all():
            return None
        rows = is_open.any(axis=1)
        y, x, is_open, constants = self.y[rows], self.x[rows], is_open[rows], self.constants[rows]
        first = np.where(is_open, x, np.inf).argmin(axis=1)[:, None]
        last = np.where(is_open, x, -np.inf).argmax(axis=1)[:, None]
        (x1, x2), (y1, y2) = ([np.take_along_axis(array, at, 1) for at in (first, last)] for array in (x, y))
        scale = np.abs(np.where(is_open, y, 0)).max(axis=1, keepdims=True)
        for slope, shift in _lines(x1, x2, y1, y2):
            line = slope * x + shift
            off = np.abs(np.where(is_open, y - line, 0)) > rounding * scale
            is_closing = (y == constants) & (np.abs(constants - line) > rounding * np.maximum(scale, np.abs(constants)))
            if not off.any() and is_closing.any() and (slope != 0).all():
                slopes = np.full((len(rows), 1), np.nan)
                slopes[rows] = slope
                return slopes
        return None


def gates_alone(y: NumpyArray, x: NumpyArray, evidence: float) -> Iterator[Gate]:
    """Yield the channels each of which is a gate by itself, on either side; each choice asks for more evidence."""
    for axis in sorted({1, y.ndim - 1}) if y.ndim > 1 else ():
        needed = evidence + log(2 * y.shape[axis])
        for one, of in zip(np.moveaxis(y, axis, 0), np.moveaxis(x, axis, 0), strict=True):
            for side in (1.0, -1.0):
                constant = one.flat[of.argmin() if side > 0 else of.argmax()]
                if _is_mixed(one.flat[:_FIRST] == constant, side * of.flat[:_FIRST]):
                    continue
                is_closed = one == constant
                if _evidence(is_closed) < needed or _evidence(_chosen(is_closed)) < needed:
                    continue
                gate = Gate.of(one.reshape(1, -1), side * of.reshape(1, -1), None, ranks=Ranks.NONE)
                if gate is not None and gate.is_full and gate.evidence >= needed:
                    yield gate


def _evidence(is_closed: NumpyArray) -> float:
    return ways(is_closed.size, int(np.count_nonzero(is_closed)))


def _chosen(is_closed: NumpyArray) -> NumpyArray:
    """Return what was chosen by itself: what is closed along a whole axis was chosen once, as by a mask of padding."""
    for axis in range(is_closed.ndim):
        first = is_closed.take([0], axis)
        is_closed = first if (is_closed == first).all() else is_closed
    return is_closed


def _is_mixed(is_closed: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether some values show already that what is closed does not lie below what is open."""
    return bool(x[is_closed].max(initial=-np.inf) > x[~is_closed].min(initial=np.inf))


def _lines(x1: NumpyArray, x2: NumpyArray, y1: NumpyArray, y2: NumpyArray) -> Iterator[tuple[NumpyArray, NumpyArray]]:
    """Yield the straight lines through two points of each row: through 0, and through both."""
    far = np.where(np.abs(x2) >= np.abs(x1), x2, x1)
    slope = np.where(np.abs(x2) >= np.abs(x1), y2, y1) / np.where(far == 0, 1.0, far)
    yield slope, np.zeros_like(slope)
    rise = (y2 - y1) / np.where(x2 == x1, 1.0, x2 - x1)
    yield np.where(x2 == x1, slope, rise), np.where(x2 == x1, 0.0, y1 - rise * x1)
