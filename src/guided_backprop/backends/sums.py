"""A ReLU of x that is made of x and of ReLUs that are written: ``x + relu(-x)``; found by how it is made.

Where a program is known as a whole it says itself which values can be one: those that are linear in x and in written
ReLUs of it, be they moved, or behind weights. In front of such a ReLU x may be turned, multiplied, shifted and moved,
also by weights that make a multiple of each number; in any other ``x + relu(conv(x))`` nothing is a ReLU of x. What is
linear in all of these is run on its own, for x on either side of 0 and far from it: where it is still there on one
side, though the other side closes it, and x alone would not, it is a ReLU of x. As it is linear one x of each side
tells it for all, but for chance.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lgamma, log
from typing import Final, Generic

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.notes import MOST_WEIGHTS, Ref
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.spelling import Judgement, Verdict
from guided_backprop.backends.step import PARTS, POINTWISE

# Linear in all that they are given together.
_ADDS: Final = frozenset({"add", "sub"})
# Linear in the first alone.
_FIRST: Final = frozenset({"batch_norm", "div"})
# Where they put or leave something an index or a mask says, which is no number of the images.
_PLACES: Final = frozenset({"gather", "scatter", "scatter_add", "where"})
_NO_MOVES: Final = frozenset({"next_after", "stop_gradient"})
#: x for which a sum is asked: so many times one that is on one side of 0, and far enough that no bias matters.
FAR: Final = (-2.0, -1.0, 1.0, 2.0)
# What x makes no more of than so large a part of the most tells nothing: it may be what rounding left.
_LEAST: Final = 0.01
# So large a part of what is told is closed: single values may be so by chance, but for this one in so many models.
_OFTEN: Final = 0.1
_CHANCE: Final = 1e-4
# By so many units in the last place a sum of opposite numbers may miss 0.
_LEFT: Final = 256
# So far apart, as a share, are products that are the same but for rounding.
_ONE: Final = 1e-3
# So many are left of the same numbers with the opposite sign, where no chance comes near.
_EXACT: Final = 2


def is_linear(row: Operation, places: Sequence[int]) -> bool:
    """Tell whether an operation is linear in its operands at these places, those that depend on the images."""
    if row.kind is Kind.MOVES or row.word in _PLACES:
        return row.word not in _NO_MOVES
    if row.kind is not Kind.LINEAR or row.word in PARTS:
        return False
    return row.word in _ADDS or (len(places) == 1 and (places[0] == 0 or row.word not in _FIRST))


def is_alike(row: Operation) -> bool:
    """Tell whether it is so value by value, be these moved: nothing but what is given is added up."""
    return row.kind is not Kind.LINEAR or row.word in POINTWISE


@dataclass(frozen=True)
class Join(Generic[Ref]):
    """Sums of a value and of written ReLUs of it.

    Attributes:
        x: what one of these is a ReLU of.
        roots: what that is a multiple of, moved and shifted; or a sum of several, as of a difference.
        relus: all ReLUs of these.
        sums: what both are added up in, and whether nothing else that depends on the images is.
        ends: those of them of which something else is made than such a sum, value by value.
        region: all that is linear in the roots and the ReLUs.
        layers: how many layers of weights may lie between the roots and x: these have to make multiples of each number.
    """

    x: Ref
    roots: Sequence[Ref]
    relus: Sequence[Ref]
    sums: Mapping[Ref, bool]
    ends: Collection[Ref]
    region: Collection[Ref]
    layers: int = 0


class Sums(ABC, Generic[Ref]):
    """What is linear in one part of a program.

    Attributes:
        relus: the written ReLUs, each with what it is a ReLU of.
        found: sums that are known to be ReLUs: they are among these.
    """

    relus: Mapping[Ref, Ref]
    found: Collection[Ref]

    def __init__(self) -> None:
        # They are asked for again and again.
        self._terms: dict[Ref, Sequence[Ref]] = {}

    def terms(self, value: Ref) -> Sequence[Ref]:
        """Return what a value is linear in, all that depends on the images; nothing if it is anything else."""
        if value not in self._terms:
            self._terms[value] = self.terms_of(value)
        return self._terms[value]

    @abstractmethod
    def terms_of(self, value: Ref) -> Sequence[Ref]:
        """Say it of one value; it is asked once."""

    @abstractmethod
    def is_alike(self, value: Ref) -> bool:
        """Tell whether that is so value by value."""

    @abstractmethod
    def users(self, value: Ref) -> Sequence[Ref]:
        """Return what is made of a value directly."""

    @abstractmethod
    def is_result(self, value: Ref) -> bool:
        """Tell whether a value is given out: what is made of it then is not known."""

    def joins(self) -> Iterator[Join[Ref]]:
        """Yield all sums of a value and of ReLUs of it, by each of these."""
        known = {(relu, layers): self._roots(x, layers) for relu, x in self.relus.items() for layers in (0, 1)}
        for (relu, layers), roots in known.items():
            if layers and roots.keys() == known[relu, 0].keys():
                continue
            x = self.relus[relu]
            behind, behind_relu = self._behind(roots), self._behind([relu])
            both = dict.fromkeys(value for value, weights in behind if (value, weights) in behind_relu)
            if not both:
                continue
            region = {value for value, _ in behind}
            relus = [
                one for one, of in self.relus.items() if of in region and known[one, layers].keys() <= roots.keys()
            ]
            region.update(value for value, _ in self._behind(relus))
            made = self._made(roots)
            others = {one: self._others(one, region, {*roots, *relus}) for one in both}
            # What else is made of x is no constant beside it.
            sums = {one: not also for one, also in others.items() if not also & made}
            yield Join(x, list(roots), relus, sums, {one for one in sums if self._is_end(one, both)}, region, layers)

    def _is_end(self, value: Ref, sums: Collection[Ref]) -> bool:
        """Tell whether something else is made of a value than one of some sums, value by value."""
        users = [user for user in self.users(value) if user not in self.found]
        are_sums = all(value in self.terms(user) and user in sums and self.is_alike(user) for user in users)
        return self.is_result(value) or not are_sums

    def _roots(self, value: Ref, layers: int) -> dict[Ref, None]:
        """Return what a value is made of by multiples, shifts, sums of two and moves, and by so many layers of weights.

        Weights may give a multiple of each number.
        """
        roots, seen, stack = dict[Ref, None](), {value}, [(value, layers)]
        while stack:
            current, left = stack.pop()
            left -= not self.is_alike(current)
            terms = self.terms(current) if left >= 0 else ()
            if not terms:
                roots[current] = None
            stack += [(one, left) for one in terms if one not in seen]
            seen.update(terms)
        return roots

    def _behind(self, values: Iterable[Ref]) -> dict[tuple[Ref, int], None]:
        """Return what is linear in some values, and behind how many layers of weights.

        What meets behind another number of layers is not looked at: it takes weights that do nothing to be a ReLU.
        """
        behind = dict.fromkeys((value, 0) for value in values)
        stack = [*behind]
        while stack:
            current, weights = stack.pop()
            for user in self.users(current):
                state = user, weights + (not self.is_alike(user))
                if state not in behind and state[1] <= MOST_WEIGHTS and current in self.terms(user):
                    behind[state] = None
                    stack.append(state)
        return behind

    def _made(self, values: Iterable[Ref]) -> set[Ref]:
        """Return some values, and all that is made of them."""
        made, stack = {*values}, [*values]
        while stack:
            new = [user for user in self.users(stack.pop()) if user not in made]
            made.update(new)
            stack += new
        return made

    def _others(self, value: Ref, region: set[Ref], leaves: set[Ref]) -> set[Ref]:
        """Return what else is added up in a value."""
        others, seen, stack = set[Ref](), {value}, [value]
        while stack:
            current = stack.pop()
            if current not in region:
                others.add(current)
            elif current not in leaves:
                stack += [one for one in self.terms(current) if one not in seen]
                seen.update(self.terms(current))
        return others


def toward(x: NumpyArray, raised: NumpyArray) -> NumpyArray | None:
    """Return how far x has to go so that no shift matters, as a number; None if it does not rise wherever it changes.

    Args:
        x: what the ReLU is of, where all that it is made of is 0.
        raised: the same, where that is what should raise it.
    """
    rise = raised.astype(np.float64) - x
    if not (np.isfinite(rise).all() and rise.any() and (rise >= 0).all()):
        return None
    shifts = np.abs(x[rise > 0]) / rise[rise > 0]
    return np.asarray(max(1.0, 4.0 * shifts.max()))


def are_multiples(once: NumpyArray, one: NumpyArray, squared: NumpyArray) -> bool:
    """Tell whether each number of x is a multiple of one number that it is made of.

    Args:
        once: x without its shift, of some positive numbers.
        one: the same, where each of these is 1.
        squared: the same, of their squares: sums of several have other ones.
    """
    expected = one * squared
    return bool((np.abs(once**2 - expected) <= _ONE * np.abs(expected)).all())


def judge_sum(
    y: NumpyArray, line: NumpyArray, x: NumpyArray, eps: float, *, is_alone: bool, is_shifted: bool
) -> Judgement:
    """Tell whether a sum of x and of ReLUs of it is a ReLU of x, by what it is for x far on either side.

    Args:
        y: the sum, at the four places of ``FAR``.
        line: the same without any ReLU, at the last two of them.
        x: what the ReLUs are of, at all.
        eps: the unit in the last place.
        is_alone: whether nothing else is added up, so that it may be guided.
        is_shifted: whether x is not 0 where all is 0 that it is made of: then a bound may be left, which is no ReLU.
    """
    none = Judgement(Verdict.NONE)
    y, line, x = (array.astype(np.float64).reshape(len(array), -1) for array in (y, line, x))
    if not (np.isfinite(y).all() and np.isfinite(line).all()):
        return none
    size = np.abs(line[1] - line[0])
    is_told = size > min(_LEAST, _LEFT * eps) * size.max(initial=0.0)
    change = np.abs(np.stack([y[0] - y[1], y[3] - y[2]]))
    shut = change <= _LEFT * eps * size
    is_closed = (shut[0] != shut[1]) & is_told
    is_often = is_told.any() and is_closed.sum() >= _OFTEN * is_told.sum()
    if not is_often:
        is_closed &= (change <= _EXACT * eps * size).any(0)
    if not (is_often or _is_no_chance(is_closed[is_told], size[is_told], np.abs(y).max(0)[is_told], eps)):
        return none
    left = np.where(shut[0], y[1], y[2])[is_closed]
    if is_shifted and (np.abs(left) > _LEFT * eps * np.abs(line).max()).any():
        return none
    if is_alone and y.shape == x.shape and is_closed[is_told].all():
        return _guided(y, x, _LEFT * eps, is_below=bool(shut[0][is_told].all()))
    return Judgement(Verdict.PARTIAL)


def _is_no_chance(is_closed: NumpyArray, size: NumpyArray, y: NumpyArray, eps: float) -> bool:
    """Tell whether chance does not bring so many numbers to 0: each ends anywhere in its size, and is rounded."""
    count = int(is_closed.sum())
    # The larger a number is beside what x makes of it, the rougher is what it may end at.
    mean = float(np.sum(2 * eps * (_EXACT + y / size)))
    return count > mean and count * log(mean) - lgamma(count + 1) < log(_CHANCE)


def _guided(y: NumpyArray, x: NumpyArray, rounding: float, *, is_below: bool) -> Judgement:
    """Return how a sum is closed on one side of x, and on the other one multiple of it; else that it is in part."""
    closed, opened, at = (y[1], y[2], x[2]) if is_below else (y[2], y[1], x[1])
    constant = float(closed[0])
    slope = float(np.median((opened - constant)[at != 0] / at[at != 0]))
    scale = np.abs(slope * at).max() + abs(constant)
    is_line = not (np.abs(opened - constant - slope * at) > rounding * scale).any()
    if not is_line or (np.abs(closed - constant) > rounding * scale).any() or not at.all():
        return Judgement(Verdict.PARTIAL)
    verdict = Verdict.CONVEX if (slope > 0) == is_below else Verdict.CONCAVE
    return Judgement(verdict, np.asarray(constant), np.asarray(slope))
