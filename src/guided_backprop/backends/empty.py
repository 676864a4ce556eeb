"""Where a convolution leaves zeros, whatever it is given: where its windows see none of the values."""

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

import numpy as np


class Window(NamedTuple):
    """What is looked at along one axis.

    Attributes:
        size: how many values there are.
        results: how many are made of them.
        length: how many places are looked at for each.
        step: how far the places of a result are from those of the next one.
        low: how many places there are in front of the first value.
        spread: how far the places of one result are apart.
        between: how far the values are apart.
    """

    size: int
    results: int
    length: int
    step: int = 1
    low: int = 0
    spread: int = 1
    between: int = 1

    @classmethod
    def transposed(cls, size: int, results: int, length: int, *, step: int, low: int, spread: int) -> Self:
        """Return what a transposed convolution looks at, whose step, padding and spread are those of the other one."""
        return cls(size, results, length, low=spread * (length - 1) - low, spread=spread, between=step)


class Empty(NamedTuple):
    """Where zeros are left: between what is made of values, and around it."""

    has_gaps: bool = False
    has_border: bool = False


#: No zeros are left anywhere.
NOTHING: Final = Empty()


def emptied(windows: Iterable[Window]) -> Empty:
    """Return where windows see none of the values; where all of them see none, nothing is made of these."""
    empty = NOTHING
    for one in windows:
        places = np.arange(one.results)[:, None] * one.step - one.low + np.arange(one.length) * one.spread
        is_value = (places >= 0) & (places <= (one.size - 1) * one.between) & (places % one.between == 0)
        seen = np.flatnonzero(is_value.any(1))
        if seen.size:
            within = seen[-1] - seen[0] + 1
            empty = Empty(empty.has_gaps or seen.size < within, empty.has_border or bool(within < one.results))
    return empty
