"""What is looked at besides the images, and what several looks show together."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.evidence import further_images, other_images
from guided_backprop.backends.rows import groupings


def is_straight(y: NumpyArray, x: NumpyArray, rounding: float) -> bool:
    """Tell whether y lies on a straight line over x: one for all, or one for each channel or position.

    Where there are several of each value, that they are multiples was told before.
    """
    if y.size > x.size:
        return True
    y, x = y.astype(np.float64), x.astype(np.float64).reshape(y.shape)
    with np.errstate(all="ignore"):
        return any(_are_lines(y, x, axes, rounding) for axes in groupings(y))


def _are_lines(y: NumpyArray, x: NumpyArray, axes: tuple[int, ...], rounding: float) -> bool:
    off_x, off_y = (array - array.mean(axes, keepdims=True) for array in (x, y))
    spread = np.square(off_x).sum(axes, keepdims=True)
    slope = np.divide((off_x * off_y).sum(axes, keepdims=True), spread, out=np.zeros_like(spread), where=spread > 0)
    return not (np.abs(off_y - slope * off_x) > rounding * np.abs(y).max()).any()


def together(looks: list[NumpyArray]) -> NumpyArray:
    """Return the values of several runs as one array, the first axis being that of images or of turns of a loop."""
    if len(looks) == 1:
        return looks[0] if looks[0].ndim else looks[0][None]
    if len({look.shape for look in looks}) == 1:
        return np.concatenate(looks) if looks[0].ndim else np.stack(looks)
    if len({look.shape[1:] for look in looks}) == 1 and looks[0].ndim:
        return np.concatenate(looks)
    return np.concatenate([look.ravel() for look in looks])


def other_inputs(
    arrays: Sequence[tf.Tensor], first: int, made_by: Callable[[NumpyArray], Iterator[NumpyArray]] = other_images
) -> Iterator[list[tf.Tensor]]:
    """Yield other images, the numbers among the inputs being others, from the ``first`` input on."""
    every = [
        list(made_by(array.numpy())) if array.dtype.is_floating and position >= first else None
        for position, array in enumerate(arrays)
    ]
    for turn in range(max(len(others) for others in every if others is not None)):
        yield [
            given if others is None else tf.constant(others[turn], given.dtype)
            for given, others in zip(arrays, every, strict=True)
        ]


def further_inputs(arrays: Sequence[tf.Tensor], first: int) -> Iterator[list[tf.Tensor]]:
    """Yield more of them, for what a handful of rows cannot tell."""
    return other_inputs(arrays, first, further_images)


def turned(x: NumpyArray) -> NumpyArray:
    """Return the numbers with the signs of about half of them turned, and of other sizes."""
    return next(further_images(x))
