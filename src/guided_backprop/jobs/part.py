"""The part of a job that one process does: of n processes the k-th takes every n-th shard."""

import re
from dataclasses import dataclass
from math import gcd
from typing import Self, final

from guided_backprop.errors import OptionError

_SHARD = re.compile(r"shard-(\d{5,})\.parquet")


@final
@dataclass(frozen=True)
class Part:
    """One of several parts of a job, by the numbers of its shards.

    Attributes:
        number: which, from 1.
        count: of how many.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise OptionError(
                f"part must be k of n, with k from 1 to n; received part={self.number}/{self.count}. "
                "Pass for example 3/16."
            )

    @classmethod
    def of(cls, text: "str | tuple[int, int] | Part | None") -> Self:
        """Return a part from ``"3/16"`` or ``(3, 16)``; None is the whole.

        Raises:
            OptionError: it is no part.
        """
        if isinstance(text, Part):
            return cls(text.number, text.count)
        numbers = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text) if isinstance(text, str) else None
        if numbers is not None:
            return cls(int(numbers[1]), int(numbers[2]))
        if isinstance(text, tuple) and len(text) == 2:
            return cls(*text)
        if text is None:
            return cls()
        raise OptionError(f"part must read k/n; received part={text!r}. Pass for example 3/16.")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, shard: int) -> bool:
        """Tell whether a shard, counted from 0, is of this part."""
        return shard % self.count == self.number - 1

    def has_file(self, name: str) -> bool:
        """Tell whether a file is a shard of this part."""
        shard = shard_number(name)
        return shard is not None and self.has(shard)

    def meets(self, number: int, count: int) -> bool:
        """Tell whether another part has a shard of this one."""
        return (self.number - number) % gcd(self.count, count) == 0


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05}.parquet"


def shard_number(name: str) -> int | None:
    """Return the number of the shard that a file is, or None."""
    shard = _SHARD.fullmatch(name)
    return int(shard[1]) if shard else None
