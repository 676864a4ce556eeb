"""The judgement of choices: whether one among numbers, some of which are constants, is a ReLU of the others."""

from collections.abc import Sequence
from itertools import permutations
from math import comb
from typing import Final

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.evidence import is_passing, joined
from guided_backprop.backends.notes import Choice, Ranks
from guided_backprop.backends.spelling import Judgement, Verdict, judge

# A constant is the same on so many sets of images, one beside the other.
_LEAST_LOOKS: Final = 2
# So many numbers of a channel or a position are on one side of a constant: a chance of 2**-16.
_LEAST_OPEN: Final = 16
# So large a part of what is open is the same multiple of a difference.
_OFTEN: Final = 0.125
# Images that make a difference so many times larger are the ones that are far larger.
_FAR: Final = 8.0
# By so many units in the last place of the largest number a sum may miss 0.
_LEFT: Final = 32
# What share of a model's own derivative rounding leaves of a sum of opposite ones.
_ROUNDING: Final = 1e-5
# Of one set of images and the sets: the orders of more axes are too many.
_MOST_AXES: Final = 5
# So many results, on images that are turned in sign, are on both sides of what could close them.
_MANY_RESULTS: Final = 64
# So many values of x closed and so many open, each on its side: a chance of 2**-24. Fewer are enough where no value of
# either side is an exception, and there are so many ways to choose those that are open.
_LEAST_SIDE: Final = 12
_LEAST_WAYS: Final = 8000
# Of so many rows the largest halves do not all end at 0.
LEAST_ROWS: Final = 4
#: And of so many none of which is another one turned in sign: then a rank looks like no threshold either.
MANY_ROWS: Final = 8


def judge_choice(
    looks: Sequence[tuple[NumpyArray, NumpyArray]],
    choice: Choice,
    *,
    is_of_one_sign: bool = False,
    rounding: float = 1e-3,
) -> Judgement:
    """Tell whether a choice among numbers, some of which are constants, is a ReLU of what it would be without these.

    ``max(u, c)`` is one, though no value of the model is u, as where half of the weights of a maxout layer are 0. What
    is the same whatever the images are is a constant; then a result is c for some images, and always on one side of it.

    Args:
        looks: what was chosen, and all numbers that it was chosen from, for each run on other images.
        choice: how. Of a pool, the constants around what it looks at count where all that it gives sees some.
        is_of_one_sign: whether the numbers never change their sign, however the images are. Then 0 closes nothing.
        rounding: how far a multiple of a difference may be off, as a share of the largest value.
    """
    if choice is Choice.APART:
        return _judge_difference(looks, rounding)
    is_around = choice is Choice.AROUND
    if is_around and is_of_one_sign:
        # As behind a ReLU: nothing is closed by the 0 around it.
        return Judgement(Verdict.NONE)
    pairs = [(y, x) for y, x in looks if (y.shape, x.shape) == (looks[0][0].shape, looks[0][1].shape)]
    if len(pairs) < _LEAST_LOOKS:
        return Judgement(Verdict.UNSETTLED)
    y, x = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    if y.size == 0 or any(np.array_equal(np.sort(y, None), np.sort(side * x, None)) for side in (1, -1)):
        # To put in order closes nothing, nor does what is turned in sign before and after.
        return Judgement(Verdict.NONE)
    is_still = (x == x[:1]).all(0)
    # What is rounded may be the same number here and there by chance.
    still = np.setdiff1d(x[0][is_still], x[:, ~is_still])
    still = still[np.isfinite(still)]
    constants = np.setdiff1d(still, [0.0]) if is_of_one_sign else np.union1d(still, [0.0])
    is_closed = np.isin(y, constants)
    is_told = ~is_closed | ~_is_dead(y, np.isin(x, constants))
    is_closing = np.asarray((is_closed & is_told).any(0) & ~is_closed.all(0))
    if not is_closing.any():
        return Judgement(_verdict_of_none_closed(y, still, constants, is_around=is_around))
    closed = np.take_along_axis(y, is_closed.argmax(0)[None], 0)
    if is_around and (y < closed[0][is_closing].max()).any():
        return Judgement(Verdict.NONE)
    verdict = _side_of_all(np.where(is_closing, np.sign(y - closed), 0.0))
    # What is never anything but a constant lies around what is chosen, and is none of it.
    is_at_border = is_around and 2 * is_closing.any(0).sum() < (~is_closed.all((0, 1))).sum()
    is_few = y.size < _MANY_RESULTS * _LEAST_OPEN
    bounds, moving = closed[0][is_closing], x[:, ~is_still]
    is_shut = {Verdict.PARTIAL: moving < bounds.max(), Verdict.CONCAVE: moving > bounds.min()}
    if verdict in is_shut and not is_shut[verdict].any():
        # What lies on one side of a constant is as it would be without, however often it is that constant itself.
        return Judgement(Verdict.UNSETTLED, closed)
    if verdict is Verdict.NONE or is_at_border:
        return Judgement(Verdict.UNSETTLED if is_few else Verdict.NONE)
    return Judgement(verdict)


def _verdict_of_none_closed(y: NumpyArray, still: NumpyArray, constants: NumpyArray, *, is_around: bool) -> Verdict:
    """Return what results say none of which is a constant: of many, some would have been.

    What is far from all of them is there to be chosen never.
    """
    finite = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
    near = constants[np.abs(constants - finite.mean()) <= 2 * np.ptp(finite)]
    if y[0].size >= _MANY_RESULTS or not np.isin(still, near).any():
        return Verdict.NONE
    return Verdict.UNSETTLED if is_around else Verdict.PARTIAL


def difference(x: NumpyArray, less: NumpyArray | None = None) -> NumpyArray | None:
    """Return x, less another value if there is one: of as many numbers, or repeated; None if it cannot be."""
    if less is None:
        return x
    try:
        with np.errstate(all="ignore"):
            return np.asarray(x - (less.reshape(x.shape) if less.size == x.size else less))
    except ValueError:
        return None


def judge_behind(values: Sequence[NumpyArray], derivatives: Sequence[NumpyArray], rounding: float = 1e-3) -> Verdict:
    """Tell whether a sum is made of a ReLU of the difference of two values, behind whatever weights.

    ``conv(maximum(a, b)) - conv(b)`` is ``conv(relu(a - b))``: its derivatives towards a and b are opposite, and 0
    where one of these is the larger. No weights that were learned are opposite everywhere.

    Args:
        values: a and b.
        derivatives: of a sum of the results, each times a number of its own, towards each.
        rounding: how far a derivative may be off, as a share of the largest one.
    """
    apart = difference(*values)
    whole = [one for one in derivatives if apart is not None and one.size == apart.size]
    if not all(one.size for one in derivatives) or apart is None or not whole:
        return Verdict.NONE
    if not all(np.isfinite(one).all() for one in derivatives):
        return Verdict.NONE
    least = min(derivatives, key=np.size)
    sums = [_summed_to(one, least) for one in derivatives]
    largest = max(np.abs(one).max(initial=0.0) for one in derivatives)
    if (np.abs(sums[0] + sums[1]) > rounding * max(largest, np.abs(sums[0]).max(initial=0.0))).any():
        return Verdict.NONE
    is_shut = np.abs(whole[0]).reshape(apart.shape) <= rounding * largest
    shut = [is_shut[side < 0].all() for side in (apart, -apart)]
    if all(shut) or not ((apart < 0).any() and (apart > 0).any()):
        return Verdict.UNSETTLED
    return Verdict.PARTIAL if any(shut) else Verdict.NONE


def judge_weighed(
    x: NumpyArray,
    derivative: NumpyArray,
    ranks: Ranks = Ranks.NONE,
    *,
    is_of_one_sign: bool = False,
    least_rows: int = LEAST_ROWS,
) -> Verdict:
    """Tell whether a sum is made of a ReLU of x, behind whatever weights.

    ``x @ (mask * weights)`` is ``relu(x) @ weights`` where the mask is that of x: its derivative towards x is 0 on one
    side of a threshold and not on the other. Weights close values of both signs.

    Args:
        x: what it may be a ReLU of.
        derivative: of a sum of the results, each times a number of its own, towards x.
        ranks: how what chose between both compared values. With each other: the largest may be open, and no others.
        is_of_one_sign: whether x never changes its sign, however the images are.
        least_rows: of so many rows the largest do not all end at 0. Of many even where nothing but values was compared:
            ``x + max(x) > max(x)`` is a threshold.
    """
    is_rank = ranks is Ranks.ALL and least_rows < MANY_ROWS
    if is_of_one_sign or is_rank or x.size == 0 or not np.isfinite(derivative).all():
        return Verdict.NONE
    derivative = derivative.reshape(x.shape)
    if x.ndim > 1 and derivative.any():
        # Other rows may be no part of the sum, as where rows are multiplied one by one.
        is_part = derivative.reshape(len(x), -1).any(1)
        x, derivative = x[is_part], derivative[is_part]
        if ranks is not Ranks.NONE:
            # Nor may other columns, for which what is positive would be closed.
            are_parts = derivative.reshape(-1, x.shape[-1]).any(0)
            x, derivative = x[..., are_parts], derivative[..., are_parts]
    is_open = is_passing(derivative, x)
    is_told = bool((x > 0).any() and (x < 0).any())
    if not is_open.any() or not is_told:
        return Verdict.NONE if is_told else Verdict.UNSETTLED
    for side in (x, -x):
        if not is_open[side < 0].any():
            return _verdict_at_zero(side, is_open, ranks, least_rows)
    return Verdict.PARTIAL if ranks is Ranks.NONE and _is_split(x, is_open) else Verdict.NONE


def _is_split(x: NumpyArray, is_open: NumpyArray) -> bool:
    """Tell whether enough of both lies on either side of a number.

    What is one number wherever it is closed was closed before, as what is filled in where nothing is chosen.
    """
    if min(is_open.sum(), (~is_open).sum()) < _LEAST_SIDE or np.ptp(x[~is_open]) == 0:
        return False
    return any(side[~is_open].max() <= side[is_open].min() for side in (x, -x))


def judge_stopped(
    looks: Sequence[tuple[NumpyArray, NumpyArray, NumpyArray]],
    ranks: Ranks = Ranks.NONE,
    *,
    is_of_one_sign: bool = False,
    least_rows: int = LEAST_ROWS,
) -> Verdict:
    """Tell whether a sum is a ReLU of x by its values and not by its gradient, as something stopped that.

    ``x @ w + stop_gradient((relu(x) - x) @ w)`` is ``relu(x) @ w``: as if nothing was stopped its derivative is 0 on
    one side of a threshold, where the gradient of the model passes. What a model detaches of itself, as a mean, closes
    nothing that is open in its gradient.

    Args:
        looks: for each run on other images x, and of a sum of the results, each times a number of its own, the
            derivative towards x: the model's own, and as if nothing was stopped. No ReLU is shut for either.
        ranks: as for :func:`judge_weighed`.
        is_of_one_sign: whether x never changes its sign, however the images are.
        least_rows: as for :func:`judge_weighed`.
    """
    if not any(own.any() for _, own, _ in looks):
        return Verdict.NONE
    # As of a number that is rounded, and whose gradient is handed on as it is: opposite ones leave rounding alone.
    left = [_ROUNDING * np.abs(own).max(initial=0.0) for _, own, _ in looks]
    totals = [np.where(np.abs(look[2]) <= least, 0.0, look[2]) for look, least in zip(looks, left, strict=True)]
    is_lost = any((is_passing(look[1]) & (total == 0)).any() for look, total in zip(looks, totals, strict=True))
    seen = joined([(look[0], total) for look, total in zip(looks, totals, strict=True)])
    verdict = judge_weighed(*seen, ranks, is_of_one_sign=is_of_one_sign, least_rows=least_rows)
    return Verdict.NONE if verdict is Verdict.PARTIAL and not is_lost else verdict


def needs_more_images(count: int, shape: Sequence[int], ranks: Ranks) -> bool:
    """Tell whether further images may say more, after so many looks at values of this shape.

    They do of what compared values, as long as there are few rows, and of all else as long as there are few values.
    """
    rows, size = shape[0] if shape else 1, int(np.prod(shape))
    return count * size < 4 * _LEAST_SIDE or (ranks is not Ranks.NONE and count * rows < 2 * MANY_ROWS)


def _verdict_at_zero(x: NumpyArray, is_open: NumpyArray, ranks: Ranks, least_rows: int) -> Verdict:
    """Return what it says that nothing below 0 is open."""
    is_full = not (~is_open & (x > 0)).any()
    if ranks is not Ranks.NONE and least_rows >= MANY_ROWS and not is_full:
        # No row more opens what these close.
        return Verdict.NONE
    is_by_rank = x.ndim < 2 or len(x) < least_rows or _are_as_many(is_open) or not is_full
    if ranks is not Ranks.NONE and is_by_rank:
        # The largest half of a row is what is above 0 as often as not; and of few negative ones none is among them.
        return Verdict.UNSETTLED
    closed, opened = int((x < 0).sum()), int(is_open.sum())
    is_sure = min(closed, opened) >= _LEAST_SIDE or (is_full and comb(closed + opened, opened) >= _LEAST_WAYS)
    return Verdict.PARTIAL if is_sure else Verdict.UNSETTLED


def _are_as_many(is_open: NumpyArray) -> bool:
    """Tell whether as many are open along some axis everywhere: the largest of each row are, what is above 0 is not."""
    counts = [is_open.sum(axis) for axis in range(is_open.ndim)]
    return any((count == count.flat[0]).all() for count in counts if count.size > 1)


def _summed_to(array: NumpyArray, least: NumpyArray) -> NumpyArray:
    """Return an array added up over the places for which a smaller one is repeated."""
    if array.size == least.size:
        return array.reshape(least.shape)
    shape = (1,) * (array.ndim - least.ndim) + least.shape[max(0, least.ndim - array.ndim) :]
    axes = tuple(axis for axis, size in enumerate(shape) if size != array.shape[axis])
    return np.asarray(array.sum(axes)).reshape(least.shape)


def _judge_difference(looks: Sequence[tuple[NumpyArray, NumpyArray]], rounding: float) -> Judgement:
    """Tell whether results are ReLUs of a difference that nothing computes, as ``maximum(a, b) - b`` is of a - b.

    Images that are far larger are looked at where others tell nothing: there a smooth curve looks like one.
    """
    pairs = [(y, x) for y, x in looks if (y.shape, x.shape) == (looks[0][0].shape, looks[0][1].shape)]
    if not pairs or pairs[0][0].size != pairs[0][1].size or pairs[0][0].ndim == 0:
        return Judgement(Verdict.NONE)
    size = np.abs(pairs[0][1]).max()
    near = [pair for pair in pairs if not np.abs(pair[1]).max() > _FAR * size]
    verdict = _verdict_of_all(near, rounding)
    return Judgement(_verdict_of_all(pairs, rounding) if verdict is Verdict.UNSETTLED else verdict)


def _verdict_of_all(pairs: Sequence[tuple[NumpyArray, NumpyArray]], rounding: float) -> Verdict:
    """Return what all values say, in whichever order of axes they were put in before they were added.

    Of several differences a result may be each in some places: ``maximum(a, b, c) - c`` is closed nowhere above 0. What
    else is closed by a comparison, as values that it routes, is no multiple of the difference and no ReLU of it.
    """
    y, x = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    verdict, shape = Verdict.NONE, y.shape[1:]
    for axes in permutations(range(x.ndim - 1)) if 1 < x.ndim <= _MOST_AXES else [tuple(range(x.ndim - 1))]:
        moved = np.transpose(x, (0, *(axis + 1 for axis in axes)))
        if moved.shape != y.shape and axes != tuple(range(x.ndim - 1)):
            continue
        flat, other = (array.reshape(-1, *shape[1:]) for array in (_snapped(y), moved))
        judgement = judge(flat, other, rounding)
        if judgement.is_gate and _is_often_multiple(flat, other, rounding):
            return Verdict.PARTIAL
        verdict = Verdict.UNSETTLED if judgement.verdict is Verdict.UNSETTLED else verdict
    return verdict


def _snapped(y: NumpyArray) -> NumpyArray:
    """Return the numbers, those being 0 that may be what rounding left of a sum of opposite ones."""
    eps = np.finfo(y.dtype).eps if y.dtype.kind == "f" else 0.0
    return np.where(np.abs(y) <= _LEFT * eps * np.abs(y[np.isfinite(y)]).max(initial=0.0), 0, y)


def _is_often_multiple(y: NumpyArray, x: NumpyArray, rounding: float) -> bool:
    """Tell whether one multiple of x is many of the results, or one for each channel.

    Of a position there are as many results as images: these may be a multiple by chance.
    """
    is_open = (y != 0) & (x != 0) & np.isfinite(y) & np.isfinite(x)
    ratios = np.divide(y, x, out=np.full(y.shape, np.nan), where=is_open, dtype=np.float64)
    if _is_often_one(ratios, rounding):
        return True
    for axis in {1, y.ndim - 1} if y.ndim > 1 else ():
        channels = [row for row in np.moveaxis(ratios, axis, 0) if np.isfinite(row).sum() >= _LEAST_OPEN]
        if channels and all(_is_often_one(row, rounding) for row in channels):
            return True
    return False


def _is_often_one(ratios: NumpyArray, rounding: float) -> bool:
    ratios = np.sort(ratios[np.isfinite(ratios)])
    steps = max(2, int(_OFTEN * ratios.size))
    return ratios.size > steps and bool((ratios[steps:] - ratios[:-steps] <= rounding * np.abs(ratios[steps:])).any())


def _is_dead(y: NumpyArray, is_constant: NumpyArray) -> NumpyArray:
    """Tell for which images all numbers are constants, as where all ReLUs in front are closed: these tell nothing."""
    if y.ndim < 2 or y.shape[:2] != is_constant.shape[:2]:
        return np.zeros(y.shape, bool)
    dead = is_constant.reshape(*y.shape[:2], -1).all(-1)
    return np.broadcast_to(dead.reshape(*y.shape[:2], *[1] * (y.ndim - 2)), y.shape)


def _side_of_all(sides: NumpyArray) -> Verdict:
    """Return on which side of their constants values are, all of them or those of a channel or a position."""
    channels = {axis for axis in (2, sides.ndim - 1) if 1 < axis < sides.ndim}
    for kept in [(), *((axis,) for axis in sorted(channels)), tuple(range(2, sides.ndim))]:
        axes = tuple(axis for axis in range(sides.ndim) if axis not in kept)
        least = _LEAST_OPEN if kept else 1
        for side, verdict in ((1, Verdict.PARTIAL), (-1, Verdict.CONCAVE)):
            ahead, behind = ((sides == which).sum(axes) for which in (side, -side))
            if ((ahead >= least) & (behind == 0)).any():
                return verdict
    return Verdict.NONE
