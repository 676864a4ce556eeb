"""The judgement of a bound that is not 0: it is a ReLU where what is made of it is 0 there again."""

from collections.abc import Iterator
from functools import partial
from math import comb, log
from typing import Any, Final

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.evidence import edges_between, is_passing, surprise
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.rows import by_rows
from guided_backprop.backends.spelling import EVIDENCE, Judgement, Verdict, closes_elsewhere, judge, judge_parts

# There is no doubt that a bound closes at a threshold, so that fewer values tell where.
_EVIDENCE: Final = 4.0
# So many ways there are to choose those that are closed.
_LEAST_WAYS: Final = 64
# By so many units in the last place of the threshold rounding may miss 0.
_LEFT: Final = 32
# And where a length is bounded that a small number keeps from being 0.
_LEFT_OF_LENGTHS: Final = 1e-8
# Behind weights more is left, of sums.
_LEFT_OF_SUMS: Final = 512
# So many values are closed, and so many open; and lie on lines that two others tell.
_LEAST: Final = 4
# So large a part of what is 0 but for rounding is 0 where nothing was rounded.
_NEARLY_ALL: Final = 0.99
# Slopes are one that are no further apart, as a share of the largest.
_ONE: Final = 1e-2
# So many numbers of a row tell of most that they are no constant.
_FIRST: Final = 256


def judge_bounded(
    y: NumpyArray, x: NumpyArray, rounding: float = 1e-3, *, ranks: Ranks = Ranks.NONE, **known: Any
) -> Judgement:
    """Tell whether what was made of a bound that is not 0 is a ReLU of x, as ``log(max(exp(x), 1))`` is.

    What is closed at another value than 0 is what a bound says it is, and so is what is bent where it is open.

    Args:
        y: the result.
        x: what came before the bound, or before a curve that came before it.
        rounding: how far a multiple may be off, as a share of the largest value.
        ranks: as for :func:`judge`.
        known: as for :func:`judge`.
    """
    if y.size != x.size:
        how = partial(judge_bounded, rounding=rounding, ranks=ranks, **known)
        return judge_parts(y, x, how, is_by_size=ranks is Ranks.NONE)
    judgement = judge(y, x, rounding, ranks=ranks, evidence=_EVIDENCE, **known)
    left = max(_LEFT_OF_LENGTHS, _LEFT * float(np.finfo(y.dtype).eps)) if y.dtype.kind == "f" else 0.0
    if not judgement.is_gate or judgement.slope is None or judgement.closed is None:
        # That one of two values is 0 says nobody but these numbers: the answer is the stricter one.
        undone = _judged_undone(y, x, rounding, left, ranks=ranks, **{**known, "is_of_two": False})
        if undone.verdict is Verdict.NONE and judgement.verdict is Verdict.UNSETTLED:
            return judgement
        return undone
    turned = np.where(np.nan_to_num(judgement.slope) < 0, -1, 1) * x.reshape(y.shape)
    edge = np.abs(turned[(y == judgement.closed) & np.isfinite(turned)].max(initial=-np.inf))
    is_rounded = np.isfinite(edge) and not closes_elsewhere(_rounded(judgement.closed, left * edge))
    return judgement if is_rounded or not closes_elsewhere(judgement.closed) else Judgement(Verdict.NONE)


def _rounded(array: NumpyArray, left: float) -> NumpyArray:
    return np.where(np.abs(array) <= left, 0.0, array)


def _judged_undone(y: NumpyArray, x: NumpyArray, rounding: float, left: float, **known: Any) -> Judgement:
    """Say of what rounding left something of, or whose bound is not one number, whether it is closed at 0."""
    told = Judgement(Verdict.NONE)
    for near, of, is_one in _undone(y, x, left):
        slope = judge(near, of, max(rounding, _step(near, of)), evidence=_EVIDENCE, **known).slope
        if slope is not None and (is_one or _are_straight(near, slope)):
            return Judgement(Verdict.PARTIAL)
        if is_one and comb(near.size, int((near == 0).sum())) < _LEAST_WAYS:
            # So few may lie so by chance: more may tell.
            return Judgement(Verdict.UNSETTLED, np.zeros((1,) * y.ndim))
        if not is_one and (slope is not None or _are_few(near)):
            told = Judgement(Verdict.UNSETTLED)
    return told if not known.get("is_of_one_sign") else Judgement(Verdict.NONE)


def _are_few(y: NumpyArray) -> bool:
    """Tell whether the values of channels may lie by chance as a gate in each of them would have them."""
    if y.shape[1] * log(2) >= EVIDENCE:
        # Each of them has some that are closed and some that are open.
        return False
    is_closed = (y == 0).T
    return surprise(is_closed, np.ones_like(is_closed)) < EVIDENCE


def _undone(y: NumpyArray, x: NumpyArray, left: float) -> Iterator[tuple[NumpyArray, NumpyArray, bool]]:
    """Yield the values and x, those being 0 that rounding left of a bound, by one unit here and none there.

    And whether the bound is one number. Of one that is another for each channel or position they are those of which
    some are closed and others open, ``(values, channels)``.
    """
    if y.size == 0 or y.size != x.size or not (np.isfinite(y).all() and np.isfinite(x).all()):
        return
    y, x = y.astype(np.float64), x.astype(np.float64).reshape(y.shape)
    is_shut, is_exact = np.abs(y) <= left * np.abs(x).max(), y == 0
    if is_exact.sum() >= _NEARLY_ALL * is_shut.sum():
        # Rounding leaves something more often: what is so near 0 beside them is so by chance.
        is_shut = is_exact
    near = np.where(is_shut, 0.0, y)
    for (rows, of), _ in by_rows(near, x) if is_shut.any() else ():
        edges = edges_between(of, rows == 0, rows != 0)
        is_one = len(rows) == 1
        if edges is None or (np.abs(y[is_shut]) > left * np.abs(edges[np.isfinite(edges)]).max()).any():
            continue
        are_told = (rows == 0).any(1) & (rows != 0).any(1)
        if is_one:
            yield near, x, True
        elif is_shut.sum() > 1:
            yield rows[are_told].T, of[are_told].T, False


def _are_straight(y: NumpyArray, slopes: NumpyArray) -> bool:
    """Tell whether channels are straight where they are open: through two points there is always a line."""
    opened = (y != 0).sum(0)
    told = np.broadcast_to(slopes, y.shape)[0, opened > 1]
    is_one = told.size >= _LEAST and np.ptp(told) <= _ONE * np.abs(told).max()
    return bool(is_one or np.maximum(opened - 2, 0).sum() >= _LEAST)


def _step(y: NumpyArray, x: NumpyArray) -> float:
    """Return how far apart values are, as a share of the largest, that are rounded to one number here and there."""
    is_open = y != 0
    levels = np.unique(y[is_open])
    if not 1 < levels.size < np.unique(x.reshape(y.shape)[is_open]).size:
        return 0.0
    return float(np.diff(levels).min() / np.abs(levels).max())


def constants_beside(y: NumpyArray, x: NumpyArray) -> NumpyArray | None:
    """Return what a sum of x and of what is 0 on one side of a threshold is on the other side, if it is a constant.

    As ``x + relu(1 - x)`` is 1 there, or another number for each channel or position, be it in some of these alone.

    Args:
        y: the sum, of any shape; axis 0 runs over images.
        x: what is added up there, likewise.

    Returns:
        The constants, 0 where they are no more than rounding may leave; None if there are none.
    """
    x = x.reshape(y.shape)
    is_open = y == x
    if not is_open.any() or is_open.all() or not (np.isfinite(y).all() and np.isfinite(x).all()):
        return None
    left = _LEFT * float(np.finfo(y.dtype).eps) * np.abs(x).max()
    for (rows, of, is_shut), _ in by_rows(y, x, ~is_open):
        if (_spread(rows[:, :_FIRST], is_shut[:, :_FIRST]) > left).all():
            continue
        may_tell = _spread(of, is_shut) > _LEFT * left
        told = may_tell & (_spread(rows, is_shut) <= left)
        if 2 * told.sum() < may_tell.sum():
            # Two of the numbers of one row among thousands are one by chance.
            told &= (is_shut.sum(1) >= _LEAST) & ~is_shut.all(1)
        if told.any() and edges_between(of[told], is_shut[told], ~is_shut[told]) is not None:
            return _rounded(np.where(is_shut, rows, -np.inf).max(1)[told], left)
    return None


def _spread(rows: NumpyArray, which: NumpyArray) -> NumpyArray:
    """Return how far apart some numbers of each row are."""
    return np.asarray(np.where(which, rows, -np.inf).max(1) - np.where(which, rows, np.inf).min(1))


def judge_at_zero(y: NumpyArray, x: NumpyArray, rounding: float = 1e-3, **known: Any) -> Judgement:
    """Tell whether a known curve of x with a number added is a ReLU of x, as ``softshrink(x + 100, 100)`` is.

    A bend that lies elsewhere is the curve's own, as a hard sigmoid's is at -3.

    Args:
        y: the result.
        x: what the number was added to.
        rounding: how far a multiple may be off, as a share of the largest value.
        known: as for :func:`judge`.
    """
    judgement = judge(y, x, rounding, **known)
    if not judgement.is_gate:
        return judgement
    x = x.reshape(y.shape)
    for side in (x, -x):
        is_closed = y == y.flat[side.argmin()]
        if (side[is_closed] <= 0).all() and (side[~is_closed] >= 0).all():
            return judgement
    return Judgement(Verdict.NONE)


def judge_bound_behind(x: NumpyArray, derivative: NumpyArray, sums: NumpyArray) -> Verdict:
    """Tell whether sums are made of a bound that is taken away again behind weights, and so of a ReLU of x.

    ``max(x, t) @ w - t * w.sum(0)`` is ``relu(x - t) @ w``: each sum is what its derivatives make of x - t, for one t
    between what is closed and what is open. With any other bias it is not, and for each row by another number. Of a t
    that may be 0 other curves are as well, as a mean of powers whose floor is there for its root.

    Args:
        x: what came before the bound, ``(rows, ...)``.
        derivative: of each sum towards its row, likewise.
        sums: of the results of a row, each times a number of its own, ``(rows,)``.
    """
    eps = float(np.finfo(sums.dtype).eps) if sums.dtype.kind == "f" else 0.0
    x, derivative, sums = (np.asarray(array, np.float64).reshape(len(sums), -1) for array in (x, derivative, sums))
    if x.shape != derivative.shape or not (np.isfinite(derivative).all() and np.isfinite(x).all()):
        return Verdict.NONE
    # What is left out on the way, as by a slice, tells nothing; of one image it may be what is closed.
    is_told = is_passing(derivative).any(0) | bool((x == x[0]).all())
    x, derivative = x[:, is_told], derivative[:, is_told]
    is_open = is_passing(derivative)
    if min(is_open.sum(), (~is_open).sum()) < _LEAST:
        return Verdict.NONE
    slopes = derivative.sum(1)
    rows = np.abs(slopes) > 1e-3 * np.abs(derivative).sum(1)
    if rows.sum() < 2:
        return Verdict.NONE
    edges = ((derivative * x).sum(1) - sums[:, 0])[rows] / slopes[rows]
    left = (
        _LEFT_OF_SUMS * eps * ((np.abs(derivative * x).sum(1) + np.abs(sums[:, 0]))[rows] / np.abs(slopes[rows])).max()
    )
    for low, high in ((x[~is_open].max(), x[is_open].min()), (x[is_open].max(), x[~is_open].min())):
        if (
            low <= high
            and not low <= 0 <= high
            and np.ptp(edges) <= left
            and low - left <= edges.min()
            and edges.max() <= high + left
        ):
            return Verdict.PARTIAL
    return Verdict.NONE
