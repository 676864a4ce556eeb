"""The random numbers of NumPy and Python that all share: their generators' states, which are read and never set."""

import ctypes
import random

import numpy as np

# NumPy's own generator unless it was replaced: its 624 words, and how many of them were used.
_TWISTER_BYTES = 625 * 4
#: What vouches for whatever draws.
ANY_DRAW = "random"


def shared_states() -> list[object]:
    """Return the states of the generators that all share, to be compared."""
    shared: np.random.BitGenerator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return [state_of(shared), random.getstate()]


def state_of(generator: np.random.BitGenerator) -> object:
    """Return the state of one of NumPy's generators."""
    if type(generator) is np.random.MT19937:
        # What its attribute says takes fifty times as long to be put together.
        return ctypes.string_at(generator.ctypes.state_address, _TWISTER_BYTES)
    return repr(generator.state)
