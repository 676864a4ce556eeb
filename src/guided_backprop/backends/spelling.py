"""Whether values show a ReLU that is spelled as arithmetic; the same judgement on every backend that has values."""

import numpy as np

from guided_backprop.arrays import NumpyArray

_SAMPLE = 4096


def is_relu_like(y: NumpyArray, x: NumpyArray, rounding: float) -> bool:
    """Tell whether ``y`` is a multiple of x where x is above a threshold, or below one, and a constant beyond.

    Some of y may be closed on the open side, as by a second mask; the multiple may differ by channel. Where
    nothing was closed, y counts if x has one sign: no value tells it from a ReLU. Where nothing was open no
    gradient passes, and it does not count.

    Args:
        y: what an operation gave out.
        x: what it may be the ReLU of, of the same size.
        rounding: how far, relatively, multiples of one number may be apart.
    """
    if y.size != x.size or y.size == 0:
        return False
    y, x = y.astype(np.float64), x.astype(np.float64).reshape(y.shape)
    step = max(1, x.size // _SAMPLE)
    # A sample can only acquit.
    if step > 1 and _is_gated(y.ravel()[::step], x.ravel()[::step]) is False:
        return False
    return bool(_is_gated(y.ravel(), x.ravel())) and _is_multiple(y, x, rounding)


def _is_gated(y: NumpyArray, x: NumpyArray) -> bool | None:
    """Tell whether ``y`` is open on one side of x only; None if it is open nowhere."""
    if not y.any():
        return None
    if ((y != 0) == (x != 0)).all() and ((x >= 0).all() or (x <= 0).all()):
        return True
    for side in (x, -x):
        constant = y[side.argmin()]
        is_closed = y == constant
        closed, opened = side[is_closed], side[~is_closed]
        # One value that is kept as it is closes nothing.
        if closed.size == 0 or opened.size == 0 or (closed.min() == closed.max() and constant != 0):
            continue
        if opened.min() >= closed.max() or (constant == 0 and opened.min() > 0 and (side < 0).any()):
            return True
    return False


def _is_multiple(y: NumpyArray, x: NumpyArray, rounding: float) -> bool:
    """Tell whether ``y / x`` is one number wherever y was not closed, or one number per channel."""
    if x.ndim == 0:
        return True
    is_open = (y != 0) & (x != 0) & (y != y.flat[x.argmin()]) & (y != y.flat[x.argmax()])
    ratio = np.divide(y, x, out=np.full(x.shape, np.nan), where=is_open)
    every = ratio.reshape(1, -1)
    by_channel = [
        np.moveaxis(ratio, axis, 0).reshape(x.shape[axis], -1) for axis in {1, x.ndim - 1} if 0 < axis < x.ndim
    ]
    for rows in (every, *by_channel):
        low = np.where(np.isnan(rows), np.inf, rows).min(axis=1)
        high = np.where(np.isnan(rows), -np.inf, rows).max(axis=1)
        is_known = high >= low
        if (high[is_known] - low[is_known] <= rounding * np.abs(high[is_known])).all():
            return True
    return False
