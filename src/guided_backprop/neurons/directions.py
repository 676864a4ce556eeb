"""What a gallery has rows of: channels of a layer, or directions, which are sums of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import OptionError


class Rows(NamedTuple):
    """What a gallery has rows of.

    Attributes:
        numbers: ``(K,)`` which channels; of directions which in their order.
        names: what they are called.
        directions: ``(K, channels)``; None for channels by themselves.
    """

    numbers: NDArray[np.int64]
    names: tuple[str, ...]
    directions: NDArray[np.float64] | None = None

    def planes(self, by_channel: NumpyArray) -> NumpyArray:
        """Return the values of each, ``(N, K, ...)``, of a layer's output ``(N, channels, ...)``."""
        count = by_channel.shape[1]
        if self.directions is None:
            if not ((self.numbers >= 0) & (self.numbers < count)).all():
                raise OptionError(
                    f"channels must be in [0, {count}); received channels={self.numbers.tolist()}. Count from 0."
                )
            return by_channel[:, self.numbers]
        if self.directions.shape[1] != count:
            raise OptionError(
                f"directions must have an entry for each of the layer's {count} channels; received vectors of "
                f"{self.directions.shape[1]}. Take them from this layer's output."
            )
        return np.moveaxis(np.tensordot(by_channel.astype(np.float64), self.directions, axes=(1, 1)), -1, 1)


def rows_of(channels: int | Sequence[int] | Mapping[str, ArrayLike]) -> Rows:
    """Return the rows of a gallery, from numbers of channels or a dictionary of directions.

    Raises:
        OptionError: these are no numbers, or no vectors of one length.

    Example:
        >>> from guided_backprop.neurons.directions import rows_of
        >>> rows_of([3, 1]).names, rows_of({"round": [1.0, -1.0]}).directions.tolist()
        (('channel 3', 'channel 1'), [[1.0, -1.0]])
    """
    if isinstance(channels, Mapping):
        vectors = [as_numpy(vector).astype(np.float64) for vector in channels.values()]
        if len({vector.shape for vector in vectors}) != 1 or vectors[0].ndim != 1 or not np.isfinite(vectors).all():
            raise OptionError(
                "directions must be one or several vectors of finite numbers, of one length; received shapes "
                f"{[vector.shape for vector in vectors]}. Pass a vector of the layer's channels for each name."
            )
        return Rows(np.arange(len(vectors)), tuple(map(str, channels)), np.array(vectors))
    numbers = np.atleast_1d(np.asarray(channels))
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not numbers.size:
        raise OptionError(f"channels must be one or several integers; received channels={channels!r}. Pass [0, 1].")
    return Rows(numbers.astype(np.int64), tuple(f"channel {number}" for number in numbers))
