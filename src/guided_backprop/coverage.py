"""What was met on the path from score to image, and what was done with it."""

from collections.abc import Iterable
from typing import NamedTuple, Self


class Nonlinearity(NamedTuple):
    """One kind of non-linearity met on the path from score to image.

    Attributes:
        name: the operation, for example ``"relu"``, ``"relu6"``, ``"gelu"``.
        count: how often it was met in one forward pass.
        treatment: the rule's name (``"guided"``, ``"deconv"``) where the rule acted, ``"undone"`` for the
            final softmax or sigmoid whose logit was explained, else ``"plain"``.

    Example:
        >>> from guided_backprop import Nonlinearity
        >>> Nonlinearity("relu6", 33, "guided").treatment
        'guided'
    """

    name: str
    count: int  # type: ignore[assignment]  # a tuple's own count() is not missed here
    treatment: str


class Coverage(tuple[Nonlinearity, ...]):
    """Every non-linearity on the path; prints as ``relu x16 guided, sigmoid x1 plain``.

    Example:
        >>> from guided_backprop import Coverage, Nonlinearity
        >>> batches = [Coverage([Nonlinearity("relu", 16, "guided")])] * 2
        >>> print(Coverage.merge(batches))
        relu x16 guided
    """

    __slots__ = ()

    @classmethod
    def merge(cls, coverages: "Iterable[Coverage]") -> Self:
        """Join the coverage of batches: they run one model, so counts are per forward pass, not summed."""
        several = list(coverages)
        if several and all(coverage is several[0] for coverage in several):
            return cls(several[0])
        counts: dict[tuple[str, str], int] = {}
        for coverage in several:
            for name, count, treatment in coverage:
                counts[name, treatment] = max(count, counts.get((name, treatment), 0))
        return cls([Nonlinearity(name, count, treatment) for (name, treatment), count in counts.items()])

    def __str__(self) -> str:
        return ", ".join(f"{name} x{count} {treatment}" for name, count, treatment in self) or "none"

    def __repr__(self) -> str:
        return f"Coverage({self})"
