"""Nomination: which results may be a ReLU though no operation there is one, and of what; once, for all frameworks.

By the argument of spelling.py a ReLU is hidden only where an operation *chooses* among values by their size, or where
*taint*, what depends on the images without a gradient, meets a value that carries one. So each framework shows each of
its operations, in the order in which values flow, as a :class:`Step`: what the table says of it, what it is given, and
whether a gradient passes. Taint starts where something is chosen or a gradient stops, spreads through everything, into
loops and branches and out of them, and ends at what the rule guides. All that is known of a value is its :class:`Note`.

What a framework shows may be unknown to it: the number of values, or a constant. Then the answer is the stricter one.
"""

from collections.abc import Iterator
from typing import Final

from guided_backprop.backends import guards
from guided_backprop.backends.notes import MOST_WEIGHTS, Candidate, Choice, Ref
from guided_backprop.backends.noting import Noting
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.step import (
    BY_FACTORS,
    CHOICES,
    CHOOSING,
    CURVES,
    PARTS,
    POINTWISE,
    RANKS,
    REARRANGES,
    SHIFTS,
    notes_of,
)

# The inverses of roots and logarithms, which a mask may keep from what they are not defined for.
_INVERSES: Final = frozenset({"exp", "expm1", "pow"})

# What is known of an activation of several operations is known of this one; of all others, of a curve. A guard changes
# nothing but what rounding made.
_ACTIVATIONS: Final = {
    "clamp": Operation(Kind.CLIP, "clamp"),
    "norm": Operation(Kind.CHOOSES, "norm"),
    "prelu": Operation(Kind.RELU, "prelu"),
    guards.NAME: Operation(Kind.MOVES, "copy"),
}


#: It has slopes, and may be a ReLU where they are 0.
PRELU: Final = "prelu"


def activation(name: str) -> Operation:
    """Return what a composite activation is, as a whole."""
    return _ACTIVATIONS.get(name, Operation(Kind.SMOOTH, name))


class Step(Noting[Ref]):
    """One operation, whose results may be ReLUs of what it is given or of what that was made of."""

    def nominates(self, size: int | None = None) -> bool | None:
        """Return None if a result cannot be a ReLU, else whether a choice or taint is met right here.

        Args:
            size: how many numbers the result has.
        """
        is_elsewhere = self.row.kind in (Kind.HIDDEN, Kind.RANDOM) and not self.chooses
        if not self.passes or self.is_relu or self.is_shifted or is_elsewhere or self._is_moved(size):
            return None
        if self.row.kind is Kind.CLIP:
            return self._bounds()
        if self._shifted_before:
            return True
        is_none = self._is_curve or (self.row.word in CHOICES and not self._is_among_constants)
        if is_none:
            # A smooth curve closes nothing that was open before; but it may straighten what another one bent.
            is_straight = self._is_straightening or self._is_undoing
            return False if self._tainted and (self.row.kind not in CURVES or is_straight) else None
        if self._holds_taint or self.row.kind in CHOOSING or self._is_partly_relu:
            return True
        is_met = self._meets(size)
        return False if is_met is None and self.beside(size) else is_met

    def _meets(self, size: int | None) -> bool | None:
        """Say it of what is tainted: whether a mask is met here, or something is made of it alone."""
        if not self._tainted:
            return None
        return bool(self._masks) if len(self.dependent) > 1 else self._follows(size)

    def _is_moved(self, size: int | None) -> bool:
        """Tell whether it gives one value as it came, in another order or shape, and repeats nothing."""
        is_alike = self.row.word == "broadcast" and size is not None and all(one.size == size for one in self._read)
        return (self.row.word in REARRANGES or is_alike) and len(self._read) == 1

    @property
    def _is_affine(self) -> bool:
        """Whether it multiplies and shifts one value, number by number, by constants: then it is no gate of that one.

        Where some of these are 0 it may look like one of few numbers.
        """
        is_one = len(self.dependent) == len(self._read) == 1 and not self._masks
        return is_one and self.row.word in POINTWISE - PARTS

    def _follows(self, size: int | None) -> bool | None:
        """Say it of what is made of one tainted value and constants: sums, and what leaves values out."""
        (operand,), (note,) = self.dependent, self._notes
        is_shift = (note.is_bound or note.is_bent) and self.row.word in SHIFTS
        if note.is_falling or is_shift or self.row.word in PARTS:
            # A bound that is not 0 is a ReLU once it is shifted there; half of a complex number is one of its numbers.
            return False
        if note.is_pooled:
            return None
        is_alike = self.row.word in POINTWISE if None in (size, operand.size) else operand.size == size
        # What is a multiple of another one is a gate only if that was one.
        return False if self._is_mixing or not is_alike else None

    def candidates(self, size: int | None = None) -> Iterator[Candidate[Ref]]:
        """Yield what a result may be a ReLU of, some of it several times.

        A product with a ReLU that is guided is closed by that, whatever else is in it, as ``relu(x) / norm(x)``; but
        where a gradient was stopped its derivative may be another than its values say.

        Args:
            size: how many numbers the result has.
        """
        factors = {"mul": self.operands, "div": self.operands[self.overwritten :][:1]}.get(self.row.word, [])
        factors = [] if self._was_stopped else factors
        known = {one.key for note in notes_of(factors) for one in note.opened_by}
        every = self._every_candidate(size)
        yield from (one for one in every if one.choice is not Choice.NONE or one.key not in known)

    @property
    def masked(self) -> set[Ref]:
        """What meets a mask here, and what that was put together of.

        Nothing where it chooses itself, or puts the mask beside it.
        """
        is_met = self._masks and self.row.kind not in CHOOSING and self.row.word not in ("concatenate", "stack")
        return {one.ref for one in self._all_parts} if is_met else set()

    @property
    def is_sum_alone(self) -> bool:
        """Whether it can be a ReLU only as a sum with one that is written: nothing is chosen or tainted."""
        return not (self.starts or self._tainted or self._shifted_before)

    def _every_candidate(self, size: int | None) -> Iterator[Candidate[Ref]]:
        if self._is_undoing and not self._is_straightening:
            yield from (source for note in notes_of(self._tainted) for source in note.sources if source.is_bounded)
            return
        if self.is_sum_alone:
            yield from self.beside(size)
            return
        every = (source for note in notes_of(self._tainted) for source in note.sources)
        near = [*self._given_to_it(), *self._shifted_before, *(one for one in every if one.choice is not Choice.BEHIND)]
        # What a bound alone was moved or shifted to is closed by that: what lies in front of it was judged there.
        is_bound = self._is_of_a_bound or self._is_bounded_sum
        yield from (one._replace(is_bounded=True) for one in near) if is_bound else near
        yield from self._chosen_from()
        yield from self.multiplied if self.row.word in RANKS else ()
        if self.row.kind is Kind.LINEAR and self.row.word not in BY_FACTORS:
            yield from self._taken_away()
        yield from self._weighed(size)
        yield from self.beside(size)

    def _given_to_it(self) -> Iterator[Candidate[Ref]]:
        """Yield what it is given, and what that was put together of."""
        # To leave values out of something, or to put them in order, zeroes none of them; nor does a known curve.
        is_none = (self.row.word in ("gather", "sort") and not self.is_choice) or self._is_curve
        for operand in self._read:
            if operand.ref is not None and not (is_none or self._is_affine):
                yield Candidate(operand.ref, operand.size, ranked=operand.note.told if operand.note else frozenset())
            # Around what a pool looks at, constants close at the border alone: that is judged as a choice.
            yield from () if operand.note is None or self._is_around else operand.note.parts
            # What nobody looks into may undo there what a curve made before, as a product with a logarithm does.
            yield from operand.note.curves if operand.note is not None and self._is_unseen else ()

    @property
    def _is_unseen(self) -> bool:
        """Whether it holds a mask or a choice of its own, or nobody knows what it does."""
        return self._holds_taint or self.row.kind is Kind.UNKNOWN

    @property
    def _is_straightening(self) -> bool:
        """Whether it may make a ReLU of what may become one."""
        return (self.row.word in _INVERSES or not self._is_curve) and any(note.is_falling for note in self._notes)

    @property
    def _is_undoing(self) -> bool:
        """Whether it may undo what a curve made of a bound, and nothing else is to be judged here."""
        is_bound, is_bent = any(one.is_bound for one in self._notes), any(one.is_bent for one in self._notes)
        is_shift = self.row.word in SHIFTS and len(self.dependent) == 1 and not is_bound
        return (self._is_curve and (is_bound or is_bent)) or (is_shift and is_bent)

    def _weighed(self, size: int | None) -> Iterator[Candidate[Ref]]:
        """Yield what a result may be a ReLU of behind weights: the taint came from it, and values were added up since.

        As of ``x @ (mask * weights)``, of ``x @ weights + |x| @ weights``, and of what is left of x and then summed.
        """
        is_placed = self.row.word.startswith("scatter") or self.row.kind in (Kind.CHOOSES, Kind.UNKNOWN)
        is_read = self.row.kind is Kind.LINEAR or is_placed or self.row.word in ("gather", "slice")
        if not is_read or self._is_curve:
            return
        for one in [*(source for note in notes_of(self._tainted) for source in note.sources), *self._met()]:
            is_elsewhere = is_placed and (None in (size, one.size) or one.size != size)
            is_behind = self._is_mixing or is_elsewhere or one.weights > 0
            if is_behind and one.weights <= MOST_WEIGHTS:
                yield one._replace(choice=Choice.BEHIND, less=None)

    def _taken_away(self) -> Iterator[Candidate[Ref]]:
        """Yield the differences of which a sum may be a ReLU: behind weights, where several values come together."""
        actives = sum(operand.is_active for operand in self.dependent)
        is_join = actives > 1 or (self._is_mixing and any(note.is_stacked for note in self._notes))
        for one in self._differences():
            if one.choice is Choice.APART:
                yield one
            if is_join and (one.choice is Choice.BEHIND or self._is_mixing):
                yield one._replace(choice=Choice.BEHIND)

    @property
    def _is_around(self) -> bool:
        """Whether it is a pool, and the constants among what it chooses from are around that alone."""
        return self.row.word == "max_pool" and not any(note.has_gaps for note in self._notes)

    def _chosen_from(self) -> Iterator[Candidate[Ref]]:
        """Yield what a result is some of the numbers of, chosen by their size, where constants may be among them."""
        is_by_place = self.row.word == "gather" and bool(self._masks)
        is_of_many = self.row.kind is Kind.CLIP and sum(operand.is_active for operand in self.dependent) > 1
        if self._is_among_constants and (self.row.word in CHOICES or self.is_choice or is_by_place or is_of_many):
            yield from self._all_read(Choice.AROUND if self._is_around else Choice.AMONG)
        # What was put in order is all there, until some of it is left out.
        yield from (candidate for note in self._notes for candidate in note.ordered)
