"""How long a call takes of methods that stand for one another."""

import time
from collections.abc import Mapping
from typing import Final

from guided_backprop.arrays import Images
from guided_backprop.methods.trial import Exportable

# How often each method is timed, and for how many seconds at most if that is often enough.
_RUNS: Final = 7
_FEWEST: Final = 2
_LONG: Final = 5.0


def timed(methods: Mapping[str, Exportable], images: Images) -> dict[str, float]:
    """Return how many seconds a call of each method takes, one after the other in turn.

    Args:
        methods: the methods, by name.
        images: what they explain.
    """
    runs: dict[str, list[float]] = {name: [] for name in methods}
    started = time.perf_counter()
    for turn in range(_RUNS + 1):
        if turn > _FEWEST and time.perf_counter() - started > _LONG:
            break
        for name, method in methods.items():
            begin = time.perf_counter()
            method.explain(images, progress=False)
            # The first run is for what is made once.
            if turn:
                runs[name].append(time.perf_counter() - begin)
    # The fastest run is the one that nothing else disturbed.
    return {name: min(seconds) for name, seconds in runs.items()}
