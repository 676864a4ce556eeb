"""What sees the operations of a run as PyTorch dispatches them."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Sees each operation of this thread; what is done with it a subclass says."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled while a model is explained, so it need not be turned off here.

        To turn it off, PyTorch imports its compiler, which takes longer than most explanations.
        """
        return False


class Clock:
    """Which node was made for an operation: it is dispatched right after that.

    Attributes:
        number: the place in time of its node; of the last one before it if it has none.
        made: the same; None if it has none, as a comparison has.
    """

    def __init__(self) -> None:
        self.number = _last_number()
        self.made: int | None = None
        self._last = self.number
        self._copied: int | None = None

    def begin(self, func: Any) -> None:
        """Note which node was made for an operation that is dispatched now."""
        last = _last_number()
        self.number, self.made = last, last if last > self._last else None
        if func._schema.is_mutable and self._copied is not None and self.made is None:
            self.number = self.made = self._copied
        # What changes in place a value that its derivative needs has a node already when PyTorch copies that value.
        is_copy = func.overloadpacket.__name__ == "clone" and last - self._last > 1
        self._copied = self._last + 1 if is_copy else None

    def end(self) -> None:
        """Note that the operation is done, and whatever was dispatched by it."""
        self._last = _last_number()


def _last_number() -> int:
    """Return the place in time of the last node."""
    return int(torch._C._autograd._get_sequence_nr()) - 1
