"""How long a call takes of methods that stand for one another."""

import time
from collections.abc import Mapping
from typing import Final

from guided_backprop.arrays import Images
from guided_backprop.methods.trial import Exportable

# How often a method has its turn, and more often for so many seconds; one time less where it took so long.
_FEWEST: Final = 3
_MOST: Final = 8
_LONG: Final = 0.6
_VERY_LONG: Final = 10.0
# With how many calls, and after how many seconds a turn is long enough.
_CALLS: Final = 5
_ENOUGH: Final = 0.3
# Threads that wait for more to do keep a processor busy: OpenMP's, as PyTorch has them, for 8 to 17 ms after a call.
_PAUSE: Final = 0.03


def timed(methods: Mapping[str, Exportable], images: Images) -> dict[str, float]:
    """Return how many seconds a call of each method takes, among its own and while no other one's threads are awake.

    Args:
        methods: the methods, by name.
        images: what they explain.
    """
    calls: dict[str, list[float]] = {name: [] for name in methods}
    begin = time.perf_counter()
    for turn in range(_MOST):
        took = time.perf_counter() - begin
        if (turn >= _FEWEST and took > _LONG) or (turn >= _FEWEST - 1 and took > _VERY_LONG):
            break
        for name, method in methods.items():
            time.sleep(_PAUSE)
            calls[name] += _turn(method, images)
    # The fastest call is the one that nothing else disturbed.
    return {name: min(seconds) for name, seconds in calls.items()}


def _turn(method: Exportable, images: Images) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < _CALLS and sum(seconds) < _ENOUGH:
        begin = time.perf_counter()
        method.explain(images, progress=False)
        seconds.append(time.perf_counter() - begin)
    # The first call wakes what sleeps, and is for what is made once.
    return seconds[1:] or seconds
