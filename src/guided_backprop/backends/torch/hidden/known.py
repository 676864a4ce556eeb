"""What earlier looks at a model showed: which results are taken for ReLUs, on the given images and on others."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.spelling import Judgement, Verdict

#: Which value of which operation.
Result = tuple[int, int]
#: The same, and which of those that it may be a ReLU of.
Place = tuple[int, int, int]


class Taken(NamedTuple):
    """A result that is taken for a ReLU: its sign, and of which of those that it may be one of, by their order."""

    sign: Sign
    of: tuple[int, ...] = ()


@dataclass(frozen=True)
class Known:
    """What other images showed, for another look at the given ones; or what these showed, for a look at others.

    Attributes:
        refuted: the places that looked like ReLUs, and are none.
        raised: those that did not look like ReLUs and are, and their signs.
        taken: on other images, the results that are taken for ReLUs on the given ones: if these were told once more,
            other places would be looked at. None on the given images.
    """

    refuted: Set[Place] = frozenset()
    raised: Mapping[Place, Sign] = field(default_factory=dict)
    taken: Mapping[Result, Taken] | None = None

    def joined(self, refuted: Set[Place], raised: Mapping[Place, Sign]) -> "Known | None":
        """Return what is known with what was found besides; None if that is nothing new."""
        if refuted <= self.refuted and raised.keys() <= self.raised.keys():
            return None
        return Known(self.refuted | refuted, {**self.raised, **raised})

    def told(self, result: Result, rising: Mapping[Place, Sign]) -> Taken | None:
        """Return what is taken for a ReLU, ``rising`` being the places that look like one; None of others."""
        if self.taken is not None:
            return self.taken.get(result)
        every = {**rising, **{place: sign for place, sign in self.raised.items() if place[:2] == result}}
        return Taken(next(iter(every.values())), tuple(place[2] for place in every)) if every else None


def sign_of(judgement: Judgement, y: NumpyArray) -> Sign:
    """Return the sign of what is a ReLU by its values: what rises from 0 everywhere is never below it."""
    is_from_0 = judgement.verdict is Verdict.CONVEX and bool(np.all(judgement.closed == 0) and (y >= 0).all())
    return Sign.NOT_NEGATIVE if is_from_0 else Sign.UNKNOWN


def shared(falling: Iterable[frozenset[int]]) -> frozenset[int]:
    """Return the gates that all values lie behind that something is a ReLU of: it stands for none of these."""
    every = list(falling)
    return every[0].intersection(*every) if every else frozenset()


def joined(looks: Sequence[tuple[NumpyArray, NumpyArray]]) -> tuple[NumpyArray, NumpyArray]:
    """Return a result and x, on the images of some runs one behind the other."""
    (y, x), *others = looks
    if not others or y.ndim == 0:
        return y, x
    if y.size != x.size and len(y) != len(x):
        # It has several of each, one behind the other.
        looks = [(y.reshape(-1, *x.shape).swapaxes(0, 1), x) for y, x in looks]
    if y.size != x.size:
        return np.concatenate([y for y, _ in looks]), np.concatenate([x for _, x in looks])
    return np.concatenate([y for y, _ in looks]), np.concatenate([x.reshape(y.shape) for y, x in looks])
