"""What values are evidence, and the images that are looked at where those that were given are none."""

from collections.abc import Iterator, Sequence
from math import lgamma, log
from typing import Final

import numpy as np

from guided_backprop.arrays import NumpyArray

#: So many sets of other images come before the one that is far larger.
NEAR: Final = 2
#: So many further ones there are, where a handful of rows tell nothing.
FURTHER: Final = 8
# By how much the last ones of the other images are larger.
_FAR: Final = 64.0
# So small a part of the largest derivative is what rounding left of a sum of opposite ones.
_ROUNDING: Final = 1e-5
# So small a part of the numbers of a sum are 0 by themselves.
_BY_CHANCE: Final = 1e-4
# With a smaller chance one of many columns is closed by other values on one side of 0, and open on the other.
_LIKELY: Final = 1e-2
# Of so few numbers the signs may be those of a mask: of more it has a chance of 2**-12.
_FEW: Final = 12


def other_images(images: NumpyArray) -> Iterator[NumpyArray]:
    """Yield images on which values that had one sign are likely to have the other.

    They are turned in sign, all and by turns, and nowhere 0: what is made of the 0 around a digit is no constant. The
    last ones are far larger besides, which is more than a bias makes up for. They are judged alone, and for what the
    others did not tell: beside them small values look like none.
    """
    shown = images[images != 0]
    images = np.where(images == 0, np.abs(shown).mean() if shown.size else 1, images).astype(images.dtype)
    yield -images
    # No two neighbours along any axis alike, and no period that a stride of the model could have.
    steps = np.arange(images.size, dtype=np.float64).reshape(images.shape)
    turned = images * np.where(np.sin(steps * steps) > 0, 1.0, -1.0)
    yield turned.astype(images.dtype)
    yield (-_FAR * turned).astype(images.dtype)


def further_images(images: NumpyArray) -> Iterator[NumpyArray]:
    """Yield more images of the same kind: of other signs and sizes each time, as of rows that have nothing in common.

    What compares values of a row with each other, or with their sum, closes those below 0 on a handful of rows by
    chance, and on so many more no longer.
    """
    images = next(other_images(images))
    steps = np.arange(1, images.size + 1, dtype=np.float64).reshape(images.shape)
    for turn in range(1, FURTHER + 1):
        # As numbers that are drawn, and the same for all calls.
        drawn = np.mod(np.sin(12.9898 * steps + 78.233 * turn) * 43758.5453, 1.0)
        yield (images * np.where(drawn > 0.5, 1.0, -1.0) * (0.5 + np.mod(7 * drawn, 1.0))).astype(images.dtype)


def is_thin(x: NumpyArray) -> bool:
    """Tell whether there are so few numbers that their signs may be those of a mask by chance."""
    return int(np.count_nonzero(x)) < _FEW


def is_passing(derivative: NumpyArray, x: NumpyArray | None = None) -> NumpyArray:
    """Tell where a gradient comes through, by the derivative of a sum, towards x if that is given."""
    return np.asarray(np.abs(derivative) > _ROUNDING * _largest(derivative, x))


def _largest(derivative: NumpyArray, x: NumpyArray | None) -> float:
    """Return the size of the largest derivative.

    Where x is 0, and a number next to 0 divides, it is no measure for the others.
    """
    size = np.abs(derivative)
    told = size if x is None else size[(x != 0).reshape(size.shape)]
    return float((told if told.any() else size).max(initial=0.0))


def is_apart(x: NumpyArray, derivative: NumpyArray) -> bool:
    """Tell whether all values that a gradient comes to lie on one side of all others."""
    is_open = is_passing(derivative, x).reshape(1, -1)
    return edges_between(x.reshape(1, -1), ~is_open, is_open) is not None


def edges_between(x: NumpyArray, is_closed: NumpyArray, is_open: NumpyArray) -> NumpyArray | None:
    """Return for each row where what is closed ends, if all of it lies on one side of all that is open; else None.

    The side is the same for all rows.
    """
    for side in (x, -x):
        edges = np.where(is_closed, side, -np.inf).max(1)
        if (edges <= np.where(is_open, side, np.inf).min(1)).all():
            return np.asarray(edges)
    return None


def columns(values: NumpyArray, axis: int) -> NumpyArray:
    """Return values in columns, one for each place along an axis."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def in_columns(arrays: Sequence[NumpyArray], axis: int) -> list[NumpyArray]:
    """Return x, where it is closed and where open, by columns along an axis.

    Those that close nothing are left out, which are none whatever the others are, where rows tell them apart.
    """
    laid = [columns(one, axis) for one in arrays]
    which = laid[1].any(0)
    is_told = which.size * 0.5 ** len(laid[0]) <= _LIKELY
    return [one[:, which] for one in laid] if is_told else laid


def are_closed(x: NumpyArray, is_closed: NumpyArray, is_open: NumpyArray) -> bool:
    """Tell whether more is closed than by chance, on one side of 0 and in all rows, and all open on the other side."""
    signs = np.sign(x[is_closed & (x != 0)])
    if signs.size <= _BY_CHANCE * x.size or (signs != signs[0]).any():
        return False
    is_side, others = np.sign(x) == signs[0], is_open[np.sign(x) == -signs[0]]
    is_always = (is_closed | ~is_side)[:, is_closed.any(0)].all()
    return bool(others.any() and others.all() and is_always)


def is_evidence(others: NumpyArray, first: NumpyArray) -> bool:
    """Tell whether values on other images are such as the first ones were, and did not run over."""
    return bool(np.isfinite(others).all() or not np.isfinite(first).all())


def joined(looks: Sequence[tuple[NumpyArray, NumpyArray]]) -> tuple[NumpyArray, NumpyArray]:
    """Return the values of several looks as one, and the derivatives towards them, as shares of the largest of each.

    Looks of another shape than the last one are left out, as of another number of turns of a loop.
    """
    alike = [look for look in looks if look[0].shape == looks[-1][0].shape and look[0].ndim and look[1].any()]
    with np.errstate(all="ignore"):
        shares = [(x, derivative.reshape(x.shape) / _largest(derivative, x)) for x, derivative in alike]
    if len(shares) < 2 or not all(np.isfinite(derivative).all() for _, derivative in shares):
        return looks[-1]
    # What has no rows of its own is one row on each.
    join = np.stack if looks[-1][0].ndim == 1 else np.concatenate
    x, derivatives = (join(arrays) for arrays in zip(*shares, strict=True))
    return x, derivatives


def is_multiple(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether ``y`` is x times one number, as ``x + |x|`` is where nothing is negative."""
    x = x.reshape(y.shape)
    with np.errstate(all="ignore"):
        ratios = y[x != 0] / x[x != 0]
        return ratios.size > 0 and bool(np.ptp(ratios) <= 1e-3 * np.abs(ratios).max())


def surprise(is_closed: NumpyArray, is_told: NumpyArray) -> float:
    """Return minus the logarithm of the chance that all that is closed lies below all that is open, by row.

    Of the values that tell something.
    """
    sizes, closed = is_told.sum(axis=1), (is_closed & is_told).sum(axis=1)
    return float(sum(ways(n, k) for n, k in zip(sizes, closed, strict=True)))


def surprise_above(closed: int, opened: int) -> float:
    """Return minus the logarithm of the chance that all that a mask of its own closes lies above all that is open."""
    return ways(closed + opened, closed)


def surprise_at_zero(x: NumpyArray, is_open: NumpyArray) -> float:
    """Return minus the logarithm of the chance that nothing below 0 is among what is open, by a mask of its own."""
    opened = int(is_open.sum())
    return ways(x.size, opened) - ways(int((x > 0).sum()), opened)


def surprise_of_signs(x: NumpyArray) -> float:
    """Return minus the logarithm of the chance that as many of these numbers are above 0 as are, but for those at 0."""
    size, above = int(np.count_nonzero(x)), int(np.count_nonzero(x > 0))
    return size * log(2) - ways(size, above)


def ways(size: int, chosen: int) -> float:
    """Return the logarithm of the number of ways to choose so many."""
    return lgamma(size + 1) - lgamma(chosen + 1) - lgamma(size - chosen + 1)
