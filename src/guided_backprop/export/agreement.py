"""Whether a graph explains as the library does: on which images that is tried, and by how much they may differ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from guided_backprop.arrays import Inputs, NumpyArray, as_numpy

#: By how much of its norm a map may differ: of a file that computes in single precision, and of the graph in double.
SINGLE, DOUBLE = 1e-3, 1e-9
#: In single precision a ReLU, or a maximum, that is nearly at a tie may turn, and a map differ by more than that: by as
#: much as the library's own map of images of which each pixel is rounded otherwise, by this share of it. A file that
#: computes something else differs by more than the most that is excused so.
ROUNDING, MOST = 1e-6, 0.1

# A number of images beyond which nothing is done otherwise, as far as is known: PyTorch chooses kernels up to 16.
_MANY: Final = 17
#: Of copies so many images at least. In double precision that many are enough: it says what the graph computes, whose
#: conditions say from which number of images on that may be something else.
FEW: Final = 3


def counts(given: int, turns: Sequence[int], copies: int = 1) -> list[int]:
    """Return for how many images a graph is tried: one, those that were given, many, and both sides of each turn.

    Args:
        given: how many were given.
        turns: from how many on something else may be done.
        copies: of how many copies of each image the maps are put together.
    """
    return sorted({1, given, max(FEW, -(-_MANY // copies), given), *turns, *(turn - 1 for turn in turns)})


def images_of(inputs: Inputs, count: int, axis: int = -1) -> Inputs:
    """Return so many images as NumPy arrays: those that were given, and then these again, each time moved on a step.

    Args:
        inputs: those that were given.
        count: how many.
        axis: along which they move; a photo stays one along its width alone.
    """
    rows = np.arange(count) % inputs.count
    rounds = np.arange(count) // inputs.count

    def taken(array: object) -> NumpyArray:
        numbers = as_numpy(array)
        if numbers.dtype.kind != "f":
            return numbers[rows]
        pairs = zip(rows, rounds, strict=True)
        return np.stack(
            [np.roll(numbers[row], int(step), axis=axis if numbers.ndim > 1 else None) for row, step in pairs]
        )

    return inputs.map(taken)


def of_other_sizes(inputs: Inputs, axes: Sequence[Sequence[int]], least: Sequence[Sequence[int]]) -> Iterator[Inputs]:
    """Yield images of other sizes than those that were given: the least, odd ones, and one of another shape.

    Args:
        inputs: the images; what is smaller is a part of them, what is larger goes on with them from the beginning.
        axes: for each input its axes of positions.
        least: the least size along each of these.
    """
    for count, grown in ((None, _least), (None, _odd), (1, _longer)):
        arrays = [as_numpy(array)[:count] for array in inputs.arrays]
        for place, along in enumerate(axes):
            for order, (axis, smallest) in enumerate(zip(along, least[place], strict=True)):
                before = arrays[place].shape[axis]
                rows = np.arange(max(smallest, grown(before, order))) % before
                arrays[place] = np.take(arrays[place], rows, axis)
        yield inputs.like(arrays)


def _least(size: int, order: int) -> int:
    return 0


def _odd(size: int, order: int) -> int:
    return (size + 1 + 2 * order) | 1


def _longer(size: int, order: int) -> int:
    return size + (size // 3 if order else 2)


def difference(one: Iterable[NumpyArray], other: Iterable[NumpyArray]) -> float:
    """Return by how much of its norm each array differs at most; infinity where one is no number.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.export.agreement import difference
        >>> difference([np.array([3.0, 4.0])], [np.array([3.0, 5.0])]) < 0.2
        True
    """
    largest = 0.0
    for left, right in zip(one, other, strict=True):
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)  # noqa: PLW2901
        if left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
            return np.inf
        norm = float(np.linalg.norm(right))
        distance = float(np.linalg.norm(left - right))
        largest = max(largest, distance / norm if norm else distance)
    return largest


def correlation(one: Iterable[NumpyArray], other: Iterable[NumpyArray]) -> float:
    """Return how the values of an image's maps correlate at least; 0 where one is no number.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.export.agreement import correlation
        >>> round(correlation([np.array([[1.0, 2.0, 3.0]])], [np.array([[2.0, 4.0, 7.0]])]), 3)
        0.993
    """
    least = 1.0
    for maps in zip(one, other, strict=True):
        left, right = (np.asarray(array, np.float64).reshape(len(array), -1) for array in maps)
        left, right = left - left.mean(1, keepdims=True), right - right.mean(1, keepdims=True)
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        # Maps that are the same everywhere have none: then both have to be.
        are_even = np.isclose(left, right).all(1) & (norms == 0)
        shares = np.where(are_even, 1.0, (left * right).sum(1) / np.where(norms == 0, 1.0, norms))
        least = min(least, float(np.nan_to_num(shares, nan=0.0).min(initial=1.0)))
    return least


def by_name(names: Sequence[str], arrays: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
    """Return arrays by name, floating-point numbers in single precision, as files take them."""
    return {
        name: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        for name, array in zip(names, arrays, strict=True)
    }
