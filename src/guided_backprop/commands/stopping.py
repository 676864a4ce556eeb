"""SIGTERM and SIGINT as a wish to stop, which a run grants when its batch is done; the second one is obeyed at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Catches the signals, in a ``with`` statement of the main thread.

    Outside of :meth:`patient`, where there is nothing to finish, a signal ends the process at once.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._is_patient = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Wait, while something runs that asks :meth:`is_asked`."""
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False

    def is_asked(self) -> bool:
        """Tell whether to stop."""
        return self._asked is not None

    @property
    def status(self) -> int:
        """The exit status of a process that was asked to stop: 130, or 143."""
        return 128 + (self._asked or 0)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        is_first, self._asked = self._asked is None, signal.Signals(number)
        waits = self._is_patient and is_first
        done = "finishing the batch; once more to stop at once" if waits else "stopped; what was finished is there"
        # Not by print(), which this may have interrupted.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{self._asked.name}: {done}.\n".encode())
        if not waits:
            raise SystemExit(self.status)
