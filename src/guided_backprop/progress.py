"""How far a long call is: one line on a terminal or in a notebook, which vanishes when the call is done."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

# A call that is done by then needs no line; and a line that changes faster cannot be read.
_PATIENCE, _PAUSE = 2.0, 0.1
# Whether somebody shows already how far it is: a call inside of another one has nothing to add.
_IS_SAID: ContextVar[bool] = ContextVar("guided_backprop_progress", default=False)


class Progress:
    """Counts what is done of a known number of things, and says it while somebody watches.

    Args:
        total: how many there are.
        what: their name, in the plural.
        shown: True to show the line from the first thing on, wherever standard error goes; False to show nothing; None
            to show it on a terminal or in a notebook, once two seconds have passed, unless a call around shows its own.

    Example:
        >>> from guided_backprop.progress import Progress
        >>> with Progress(3, "images", shown=None) as progress:
        ...     for image in "abc":
        ...         progress.advance()
    """

    def __init__(self, total: int, what: str = "images", *, shown: bool | None = None) -> None:
        self._total, self._what, self._done = total, what, 0
        # None where it is asked when there is something to say: most calls are done before.
        self._is_shown = False if shown is None and _IS_SAID.get() else shown
        self._begun = time.monotonic()
        self._next = self._begun + (_PATIENCE if shown is None else 0.0)
        self._width = 0
        self._before: Token[bool] | None = None
        self._handle: DisplayHandle | None = None

    def __enter__(self) -> Self:
        self._before = _IS_SAID.set(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            _IS_SAID.reset(self._before)
        if self._width:
            self._write("")

    def advance(self, count: int = 1) -> None:
        """Say that so many more are done."""
        self._done += count
        now = time.monotonic()
        # The last one is not said: the line would vanish at once.
        if now >= self._next and self._done < self._total and self._is_seen():
            self._next = now + _PAUSE
            left = (now - self._begun) / max(self._done, 1) * (self._total - self._done)
            self._write(f"{self._done} of {self._total} {self._what}, {duration(left)} left")

    def _is_seen(self) -> bool:
        return is_watched() if self._is_shown is None else self._is_shown

    def _write(self, text: str) -> None:
        if is_notebook():
            self._display(text)
        else:
            # Over what stood there before, with blanks to its end.
            sys.stderr.write(f"\r{text:{self._width}}" + ("" if text else "\r"))
            sys.stderr.flush()
        self._width = len(text)

    def _display(self, text: str) -> None:
        # An output of its own, which is changed: what is written to standard error stays, and looks like an error.
        from IPython.display import DisplayHandle  # noqa: PLC0415

        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display({"text/plain": text}, raw=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)


@contextmanager
def said_elsewhere() -> Iterator[None]:
    """Let calls show nothing of their own accord, for it is said by other means how far they are."""
    before = _IS_SAID.set(True)
    try:
        yield
    finally:
        _IS_SAID.reset(before)


def is_watched() -> bool:
    """Tell whether somebody sees what is written: on a terminal, or in a notebook."""
    # Without a console, standard error is None.
    return is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def is_notebook() -> bool:
    """Tell whether this is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def duration(seconds: float) -> str:
    """Return a time for people: seconds, minutes, or hours."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
