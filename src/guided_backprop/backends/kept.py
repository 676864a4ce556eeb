"""What was made last, kept; and what all methods on one model share, for as long as the model lives."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from types import MethodType
from typing import Any

from guided_backprop.arrays import Model
from guided_backprop.backends.reads import read_by

_MOST = 16


class Kept:
    """What was made last, such as compiled functions; several threads may use it at once.

    Args:
        most: how much is kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._made: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return what is kept under ``key``, or build it."""
        with self._lock:
            if key not in self._made:
                self._made[key] = build()
                while len(self._made) > self._most:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]

    def peek(self, key: Hashable) -> Any:
        """Return what is kept under ``key``, or None."""
        with self._lock:
            return self._made.get(key)

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep ``value`` in place of what was kept under ``key``."""
        with self._lock:
            self._made.pop(key, None)
        self.get(key, lambda: value)


#: What the methods on each model share, by the model's id.
_OF_MODELS: dict[int, Kept] = {}
_LOCK = Lock()


def shared_of(model: Model) -> Kept:
    """Return what the methods on a model share; it dies with the model, or with what a bound method is bound to.

    What is kept there must not lead to the model: it would hold it for ever. Of a model that can't be referred to
    weakly, each method keeps its own.
    """
    owner = model.__self__ if isinstance(model, MethodType) else model
    with _LOCK:
        known = _OF_MODELS.get(id(owner))
        if known is None:
            known = Kept()
            try:
                # In front of the entry: without it nothing would remove that, and another model could take the id.
                weakref.finalize(owner, _OF_MODELS.pop, id(owner), None).atexit = False
            except TypeError:
                return known
            _OF_MODELS[id(owner)] = known
        return known


def traced_of(model: Model) -> Kept | None:
    """Return what was traced of a model, which the methods on it share for as long as it traces alike.

    None if that can't be told. It is to be asked for before a trace is made: what changed meanwhile is seen later. What
    is kept there must not lead to the model.
    """
    reads = read_by(model)
    if reads is None:
        return None
    shared = shared_of(model)
    before, traced = shared.peek("traced") or (None, None)
    if before != reads or traced is None:
        traced = Kept()
        shared.keep("traced", (reads, traced))
    return traced
