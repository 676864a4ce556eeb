"""The gate that values and a derivative show: where it is closed, and what multiple of x it is elsewhere."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.jax.graph.program import Block, Gate, Value
from guided_backprop.backends.operations import Kind

# How far values, and derivatives of 0, may be off.
ROUNDING, _NEARLY = 1e-3, 1e-5


@dataclass(frozen=True)
class Seen:
    """Values of y and x, the derivative of one by the other, and what y is where it is closed."""

    y: NumpyArray
    x: NumpyArray
    slopes: NumpyArray
    closed: NumpyArray


def gate_of(y: Value, x: Value, block: Block, seen: Seen) -> Gate | None:
    """Return the gate, if the derivative is that of one: the slope where it is open, and 0 where it is closed.

    At a tie every derivative is right, and the gate is closed.
    """
    constant = _one_number(seen.closed)
    if constant is None and seen.closed.shape[0] != 1:
        return None
    closed = seen.closed if constant is None else np.asarray(constant)
    is_closed = snapped(seen.y, y) == closed
    slack = _slack(seen, closed, is_closed, y)
    is_tie = is_closed & ((seen.x == 0) | (seen.x == _threshold(seen, is_closed)))
    opened = seen.slopes[~is_closed]
    if not opened.any():
        return None
    steepest = np.abs(opened).max()
    if (np.abs(seen.slopes[is_closed & ~is_tie]) > _NEARLY * steepest).any() or not _is_straight(seen, ~is_closed):
        return None
    slope = float(np.median(opened))
    is_one = bool((np.abs(opened - slope) <= _NEARLY * steepest).all())
    if not (is_one and is_gateway(x, y, block)):
        return Gate(closed, slack)
    side = np.sign(slope) * seen.x
    is_at_zero = bool(side[is_closed].min() < 0) and not (side[~is_closed] <= 0).any()
    is_full = not (side[is_closed & ~is_tie] > side[~is_closed].min()).any()
    return Gate(closed, slack, x, slope, is_at_zero=is_at_zero, is_full=is_full)


def _slack(seen: Seen, closed: NumpyArray, is_closed: NumpyArray, y: Value) -> float:
    """Return how far rounding may leave a closed value from its constant: compiled otherwise, it is rounded otherwise.

    What a mask closes is left at nothing at all.
    """
    left = float(np.abs(seen.y - closed)[is_closed].max(initial=0.0))
    is_sum = y.step is not None and y.step.kind is Kind.LINEAR and y.step.word != "mul"
    steepest = float(np.abs(seen.slopes).max(initial=0.0))
    size = max(np.abs(seen.y[np.isfinite(seen.y)]).max(initial=0.0), steepest * np.abs(seen.x).max(initial=0.0))
    return max(4 * left, 2 * float(jnp.finfo(y.aval.dtype).eps) * float(size) if is_sum else 0.0)  # type: ignore[no-untyped-call]


def _step(array: NumpyArray, value: Value) -> float:
    """Return what values are known to: compiled, a sum of two opposite numbers is not always 0."""
    finite = np.abs(array[np.isfinite(array)])
    eps = float(jnp.finfo(value.aval.dtype).eps)  # type: ignore[no-untyped-call]
    return 32 * eps * float(finite.max(initial=0.0))


def snapped(array: NumpyArray, value: Value) -> NumpyArray:
    """Return values without what rounding may have left of them."""
    step = _step(array, value)
    snapped: NumpyArray = array if step == 0 else np.round(array / step) * step + 0.0
    return snapped


def as_told(x: NumpyArray, y: NumpyArray, slopes: NumpyArray, value: Value) -> NumpyArray:
    """Return values of x as far as those of y tell them apart: beside far larger ones a sum rounds small ones off.

    What differs by no more closes nothing.
    """
    step = _step(y, value) / float(np.abs(slopes).max())
    told: NumpyArray = x if step == 0 else np.round(x / step) * step
    return told


def _threshold(seen: Seen, is_closed: NumpyArray) -> float:
    """Return the value of x that closed and open meet at."""
    closed, opened = seen.x[is_closed], seen.x[~is_closed]
    return float(closed.max() if opened.size and closed.max() <= opened.min() else closed.min())


def _is_straight(seen: Seen, is_open: NumpyArray) -> bool:
    """Tell whether, by channel or by position, the derivative is that of a straight line through the values.

    Where all values are one multiple of x it is that, of a single image too, which shows one value of each.
    """
    is_shown = is_open & (seen.x != 0)
    ratios = seen.y[is_shown] / seen.x[is_shown]
    bound = 10 * ROUNDING * np.abs(seen.slopes).max()
    if ratios.size > 1 and np.ptp(ratios) < bound and (np.abs(seen.slopes[is_shown] - ratios) > bound).any():
        return False
    kept = [axis for axis in range(seen.y.ndim) if axis and (axis in (1, seen.y.ndim - 1) or seen.closed.size > 1)]
    summed = [axis for axis in range(seen.y.ndim) if axis not in kept]
    shape = [seen.y.shape[axis] for axis in kept]
    rows = [
        np.transpose(array, [*kept, *summed]).reshape(int(np.prod(shape)), -1)
        for array in (seen.y, seen.x, seen.slopes, is_open)
    ]
    for *row, opened in zip(*rows, strict=True):
        y, x, slopes = (array[opened] for array in row)
        if y.size < 2:
            continue
        first, last = x.argmin(), x.argmax()
        rise = x[last] - x[first]
        steep = slopes if rise == 0 else (y[last] - y[first]) / rise
        if (np.abs(slopes - steep) > 10 * ROUNDING * np.abs(slopes).max()).any():
            return False
    return True


def is_gateway(x: Value, y: Value, block: Block) -> bool:
    """Tell whether all gradients from y to the images come through x."""
    stack, seen = [y], {x}
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.step is None or value in block.inputs:
            return False
        stack.extend(operand for operand in value.step.inputs if operand.carries)
    return True


def _one_number(closed: NumpyArray) -> float | None:
    known = closed[~np.isnan(closed)]
    return float(known[0]) if known.size and (known == known[0]).all() else None
