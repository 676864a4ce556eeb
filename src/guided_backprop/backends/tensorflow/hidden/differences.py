"""How a value changes where another one is halved, number by number: what derivatives say nothing of.

What was counted, put in order or made of single bits has no derivative, and values all the same. Half of a number lies
on its own side of 0, so a ReLU of it stays shut there, or changes.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import tensorflow as tf

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.tensorflow.hidden.original import Import, Original

# So many numbers are halved, one by one.
_SAMPLE: Final = 32
# So small a part of the largest number is next to 0.
_NEAR: Final = 1 / 32
# So small a part of the largest change is what rounding made.
_ROUNDING: Final = 1e-4


class Differences:
    """Changes in one graph."""

    def __init__(self, original: Original) -> None:
        self._original = original

    def towards(
        self, y: str, x: str, like: Sequence[tf.Tensor]
    ) -> Callable[[Sequence[tf.Tensor]], tuple[NumpyArray, NumpyArray]]:
        """Return what gives, for images like some, places of numbers of x, and the slopes of sums of y there."""

        def both(bring: Import, *inputs: tf.Tensor) -> list[tf.Tensor]:
            return bring(inputs, [x, y])

        def changed(bring: Import, value: tf.Tensor, *inputs: tf.Tensor) -> tf.Tensor:
            return bring(inputs, [y], instead={x: value})[0]

        original = self._original.sized(like)
        as_it_is = original.built(both)
        value = as_it_is.outputs[0]  # type: ignore[attr-defined]
        again = original.built(changed, beside=[tf.TensorSpec(value.shape, value.dtype)])

        def slopes(arrays: Sequence[tf.Tensor]) -> tuple[NumpyArray, NumpyArray]:
            value, result = (tensor.numpy() for tensor in as_it_is(*arrays))
            places = _sampled(value)
            changes = np.zeros((len(places), result.size))
            for change, place in zip(changes, places, strict=True):
                change[:] = (again(tf.constant(_halved(value, place)), *arrays).numpy() - result).ravel()
            changes[np.abs(changes) <= _ROUNDING * np.abs(changes).max(initial=0.0)] = 0.0
            seeds = np.random.default_rng(0).uniform(1.0, 2.0, changes.shape[1])
            return places, -2 * (changes @ seeds) / value.flat[places]

        return slopes


def _sampled(values: NumpyArray) -> NumpyArray:
    """Return the places of some numbers, spread over all that are not next to 0: half of these is counted as little."""
    size = np.abs(values)
    places = np.flatnonzero(size > _NEAR * size.max(initial=0.0))
    taken: NumpyArray = places[np.linspace(0, len(places) - 1, min(_SAMPLE, len(places))).astype(int)]
    return taken


def _halved(values: NumpyArray, place: int) -> NumpyArray:
    changed = np.array(values)
    changed.flat[place] /= 2
    return changed
