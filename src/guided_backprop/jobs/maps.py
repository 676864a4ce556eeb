"""How a map is stored: as it is, in half precision, or its root in eight bits.

Eight bits of the map itself would lose the signs of nearly half of it, and the order of the rest: a map has few large
values. Of its square root they keep both (docs/jobs.md).
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import OptionError

#: How maps are stored.
MapType = Literal["float32", "float16", "sqrt8"]
_LEVELS = 127


def check(name: str) -> None:
    """Refuse what is no way to store a map.

    Raises:
        OptionError: it is none.
    """
    if name not in get_args(MapType):
        raise OptionError(
            f"dtype must be one of {', '.join(get_args(MapType))}; received dtype={name!r}. Pass one of these."
        )


def stored(attribution: NumpyArray, name: MapType) -> tuple[NumpyArray, NDArray[np.float32]]:
    """Return maps ``(N, ...)`` as they are stored, and for each what its numbers are multiples of."""
    maps = attribution.astype(np.float32)
    largest = np.abs(maps).reshape(len(maps), -1).max(axis=1, initial=0)
    if name == "float32":
        return maps, np.ones(len(maps), np.float32)
    # Half precision ends at 6e-8 below and 65504 above, and a map has any size: it is stored as shares of its largest.
    scales = np.where(largest > 0, largest, 1).astype(np.float32)
    shares = maps / scales.reshape(-1, *[1] * (maps.ndim - 1))
    if name == "float16":
        return shares.astype(np.float16), scales
    return np.rint(np.sign(shares) * np.sqrt(np.abs(shares)) * _LEVELS).astype(np.int8), scales


def restored(maps: NumpyArray, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return maps ``(N, ...)`` from how they are stored."""
    scales = scales.reshape(-1, *[1] * (maps.ndim - 1))
    if maps.dtype != np.int8:
        return maps.astype(np.float32) * scales
    roots = maps.astype(np.float32) / np.float32(_LEVELS)
    shares: NDArray[np.float32] = np.abs(roots) * roots * scales
    return shares
