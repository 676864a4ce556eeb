"""A model that is run again: whether it gives the same, and what other images tell of what it takes for one image."""

import pickle
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import ModelError

#: What vouches for whatever draws.
ANY_DRAW = "random"
#: Gives a model's outputs for images that a function changed.
Change = Callable[[Callable[[NumpyArray], NumpyArray]], NumpyArray]

# A coin that is tossed once in a run falls on the same side in all of them, and in the one that is explained, with a
# chance of 1/8.
_RUNS = 3
# Rounding in another order, as of a GPU's sums, makes so many units in the last place of the largest number.
_UNITS = 100
# Compiled in another way it makes no more of it than this.
_COMPILED = 1e-2
# So many times as far as its largest value another image is from one.
_FAR = 10


def shared_states() -> bytes:
    """Return the states of the generators of NumPy and Python that all share, which are read and never set."""
    return pickle.dumps((np.random.get_state(legacy=False), random.getstate()))


def is_same(one: NumpyArray, other: NumpyArray, slack: float | None = None) -> bool:
    """Tell whether two outputs are the same but for rounding, or for so large a part of the largest number."""
    if one.shape != other.shape:
        return False
    slack = _UNITS * float(np.finfo(one.dtype).eps) if slack is None else slack
    size = float(np.abs(one[np.isfinite(one)]).max(initial=0))
    return bool(np.allclose(one, other, rtol=slack, atol=slack * size, equal_nan=True))


def refuse_other_outputs(explained: NumpyArray | None, run: Callable[[], NumpyArray], names: Collection[str]) -> None:
    """Raise if a model gives other outputs in other runs.

    Args:
        explained: its outputs in the run that is explained, which may have been compiled; None if it was not run.
        run: gives its outputs for the same images.
        names: what its code reads that may be another in each run.

    Raises:
        ModelError: it does.
    """
    try:
        first = run()
        others = [run() for _ in range(1, _RUNS)]
    except Exception:
        # What it fails for is told where it is explained.
        return
    is_explained = explained is None or is_same(explained, first, _COMPILED)
    if not (is_explained and all(is_same(first, other) for other in others)):
        raise ModelError(
            "model must give one output for one image, or its map is random; received other outputs in another run, "
            f"of a model that reads {', '.join(sorted(names))}. Take the random part out, or seed it in each call, or "
            f'pass vouch={{"{ANY_DRAW}": "plain"}} to explain one draw.'
        )


def looks_unbatched(shape: Sequence[int], taken: Sequence[int]) -> bool:
    """Tell whether images of a shape may be one image to a convolution that takes an array of another shape.

    Its batch is one then, where the images have no axis for that, and some of their axes are among its own.
    """
    if len(taken) != len(shape) + 1 or taken[0] != 1 or not shape[0]:
        return False
    # A signal that is made of all of them has neither.
    return taken[1] % shape[0] == 0 or bool(set(shape) & set(taken[1:]) - {1})


def are_parts_of_one(outputs: NumpyArray, run: Change, *, takes_batch: bool) -> bool:
    """Tell whether images are parts of one, where a convolution looks like it.

    Then what is given for one of them depends on another one. One alone may be two, each of them treated alike, or
    one that the model takes a batch of as well.

    Args:
        outputs: what is given for them.
        run: gives the outputs for images that a function changed.
        takes_batch: whether the model takes them with an axis in front as well.
    """
    with suppress(Exception):
        if len(outputs) > 1:
            others = (run(partial(_with_other_first, sign)) for sign in (1, -1))
            return not all(is_same(outputs[1:], other[1:]) for other in others)
        return takes_batch and not is_same(outputs.repeat(2, 0), run(lambda array: array.repeat(2, 0)))
    return takes_batch


def takes_batch_axis(outputs: NumpyArray, run: Change) -> bool:
    """Tell whether a model gives the same for its images with one more axis in front of them, and that axis."""
    with suppress(Exception):
        return is_same(outputs[None], run(lambda array: array[None]))
    return False


def _with_other_first(sign: int, array: NumpyArray) -> NumpyArray:
    if array.dtype.kind != "f":
        return array
    # A norm leaves nothing of a multiple, and what is closed by one sign is open by the other.
    other, first = array.copy(), array[0]
    ramp = np.linspace(1, 2, first.size, dtype=array.dtype).reshape(first.shape)
    other[0] = first + sign * _FAR * ramp * (1 + np.abs(first).max(initial=0))
    return other
