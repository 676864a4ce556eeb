"""What is known of a result, by what is known of what it was made of: how taint spreads, and where it ends."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

from guided_backprop.backends import notes
from guided_backprop.backends.beside import Beside
from guided_backprop.backends.notes import (
    MOST_WEIGHTS,
    Candidate,
    Choice,
    Note,
    Ref,
    common,
    differences_of,
    first_of,
)
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.step import BY_FACTORS, CURVES, RANKS, REARRANGES, SHIFTS, SUMMARIES, notes_of

# With numbers they make multiples and shifts of one value.
_LINES: Final = frozenset({"add", "div", "mul", "neg", "rsub", "sub"})
# What a framework may hand zeros back to; of what has no row nobody knows.
_STEPS: Final = frozenset({Kind.COMPARES, Kind.UNKNOWN})
# They put values of several places together, or at more places.
_PUTS: Final = frozenset({"broadcast", "complex", "concatenate", "pad", "scatter", "stack"})


class Noting(Beside[Ref]):
    """One operation, of whose results something is noted."""

    def note(self, size: int | None = None, *, sign: Sign = Sign.UNKNOWN, is_falling: bool = False) -> Note[Ref]:
        """Return what is known of a result, if it is not guided.

        Args:
            size: how many numbers it has.
            sign: that of all of them.
            is_falling: whether it may become a ReLU itself, by its values or as far as these are not known.
        """
        if self.is_relu and not self._tainted:
            # What the rule acts on ends the taint, but not what came before it; what was put there stays a constant.
            has_gaps = any(note.has_gaps and note.has_constants for note in self._notes)
            opened_by = tuple(self._all_read())
            return Note(sign=sign, has_gaps=has_gaps, has_relus=True, opened_by=opened_by, relus=self.relus())
        beside = self.beside(size) if is_falling or self._is_bounded_sum else []
        is_spread, leaves_out = self._spreads(size), self._leaves_out(size)
        is_mixed = self._is_mixing and not leaves_out
        return Note(
            is_tainted=self.starts or bool([*self._tainted, *beside]),
            is_by_rank=self.is_by_rank and not beside,
            is_stopped=self._was_stopped,
            is_step=self._is_step,
            has_relus=any(note.has_relus for note in [*self._notes, *self.held]),
            ranked=self.ranked(size),
            summed=self.summed(size),
            maxima=self.maxima(),
            is_pooled=self._is_pooled and not beside,
            is_bound=self._is_bound,
            is_bent=self._is_bent,
            is_falling=is_falling or any(note.is_falling for note in self._notes),
            is_summary=self._is_summary,
            is_stacked=not is_mixed and (is_spread or any(note.is_stacked for note in self._notes)),
            has_constants=leaves_out or self._has_constants(is_mixed=is_mixed),
            has_gaps=self._has_gaps(),
            has_border=self._has_border(),
            sign=sign,
            parts=self._parts(is_spread=is_spread or (leaves_out and self._is_mixing)),
            sources=first_of([*self._begun(size), *self._followed(), *map(self._further, self._met()), *beside]),
            ordered=first_of(self._ordered()),
            differences=self._differences(is_mixed=is_mixed),
            curves=first_of(self._curves(size)),
            relus=self.relus(),
            lines=self._lines(),
            origins=self._origins(),
            roots=self._roots(),
        )

    @property
    def _is_step(self) -> bool:
        return self.row.kind in _STEPS or any(note.is_step for note in [*self._notes, *self.held])

    @property
    def _is_stop(self) -> bool:
        return self.row.word == "stop_gradient" or self.is_rounded

    @property
    def _was_stopped(self) -> bool:
        return self._is_stop or any(note.is_stopped for note in [*self._notes, *self.held])

    def relus(self) -> tuple[Candidate[Ref], ...]:
        """Return what the rule guides here, and did before: the largest of a row opens by the others."""
        if self.row.word in RANKS:
            return ()
        further = self._beside_others if self.SEES_SUMS else self._further
        before = [further(one) for note in self._notes for one in note.relus]
        is_own = self.is_relu or any(note.has_relus for note in self.held)
        alike = (one for note in notes_of(self._read) for one in note.alike)
        own = [*(self._all_parts if self.held else self._all_read()), *alike] if is_own else []
        return first_of(one for one in [*own, *before] if one.weights <= MOST_WEIGHTS)

    def opened(self, values: Iterable[tuple[Candidate[Ref], Note[Ref] | None]]) -> tuple[Candidate[Ref], ...]:
        """Return the same of what is a ReLU of some values by its own: these, and what each is a multiple of."""
        own = (one for x, note in values for one in (x, *(note.alike if note is not None else ())))
        return first_of([*own, *self.relus()])

    def _lines(self) -> tuple[Candidate[Ref], ...]:
        """Return what a result is a sum of, by numbers that no image tells: no ReLU lies between."""
        if not self._is_line:
            return ()
        every = [*self._all_read(), *(one for note in notes_of(self._read) for one in note.lines)]
        further = (self._beside_others(one)._replace(is_off=one.is_off or self._is_shift) for one in every)
        return first_of(one for one in further if one.weights <= MOST_WEIGHTS)

    @property
    def _is_shift(self) -> bool:
        # No batch-norm makes the opposite of x, to be added to that.
        return self.row.word in SHIFTS - {"batch_norm"} and len(self.dependent) == 1

    @property
    def _is_line(self) -> bool:
        """Whether it works by numbers that no image tells, and chooses nothing."""
        is_product = self.row.word in BY_FACTORS and len(self.dependent) > 1
        is_by_number = self._is_chosen or self.row.kind in (Kind.LINEAR, Kind.MOVES) or self.row.word == "gather"
        return is_by_number and not is_product

    @property
    def _is_chosen(self) -> bool:
        """Whether constants choose from among values; one that is shown without what chooses does by something else."""
        return self.row.kind is Kind.MASKS and not self._masks and len(self.operands) > len(self.dependent)

    def _origins(self) -> tuple[Candidate[Ref], ...]:
        """Return what all of a result is made of by such numbers."""
        return self._common if self._is_line else ()

    @cached_property
    def _common(self) -> tuple[Candidate[Ref], ...]:
        """What all that it is given is, or is made of by such numbers: of several values what they have in common."""
        before = [note.origins for note in notes_of(one for one in self._read if one.ref is not None)]
        return common([[one, *origins] for one, origins in zip(self._all_read(), before, strict=True)])

    @property
    def multiplied(self) -> list[Candidate[Ref]]:
        """What it may choose among multiples of, each number of it: its sign tells the largest of these.

        What a pool chooses at a border alone lies beside constants, and tells of these.
        """
        given = {one.key for one in self._all_read()}
        is_around = self.row.word == "max_pool" and any(note.has_border and not note.has_gaps for note in self._notes)
        return [one for one in self._common if one.key not in given] if self.chooses and not is_around else []

    def _roots(self) -> tuple[Candidate[Ref], ...]:
        """Return what a result is a multiple or a shift of by numbers, or is as it came but in another order."""
        others = [one for one in self.operands if one.note is None and one.is_number]
        is_line = self.row.word in _LINES and all(one.size == 1 or one.is_known for one in others)
        is_one = len(self.dependent) == 1 and (is_line or self.row.word in REARRANGES)
        every = [*self._all_read(), *self._roots_before()] if is_one else []
        return first_of(one._replace(is_off=one.is_off or self._is_shift) for one in every)[: notes.MOST_ROOTS]

    def _roots_before(self) -> list[Candidate[Ref]]:
        return [one for note in notes_of(self._read) for one in note.roots]

    def _roots_behind(self) -> list[Candidate[Ref]]:
        """Return the same as what may be told of by derivatives: none passes what the rule guides."""
        is_guided = self.is_relu and self.passes
        return [] if is_guided else [one._replace(choice=Choice.BEHIND) for one in self._roots_before()]

    def _stopped_relus(self) -> list[Candidate[Ref]]:
        """Return what a stop hides: a ReLU that is guided elsewhere, if at all, and is none here."""
        return [one._replace(choice=Choice.BEHIND) for note in self._notes for one in note.relus]

    def _met(self) -> list[Candidate[Ref]]:
        """Return what meets a mask here, and what that was made of: whatever was compared, it may be the mask of this.

        The derivative towards 2 * x, which was compared, is 0 everywhere where x alone meets the mask. The derivative
        of a ReLU, as ``threshold_backward`` gives it, is a mask as well, through which a gradient of zeros comes back.
        """
        has_mask = bool(self._masks) or (len(self.dependent) > 1 and any(note.is_step for note in self._notes))
        if not (has_mask and self.passes) or self.row.kind is not Kind.LINEAR:
            # What a mask chooses from are branches: one that is not taken here is closed by no ReLU.
            return []
        return [one._replace(choice=Choice.BEHIND) for one in [*self._all_read(), *self._roots_before()]]

    def _has_border(self) -> bool:
        is_padded = self.row.word == "pad" and self._puts
        return is_padded or self.empty.has_border or self._keeps(note.has_border for note in self._notes)

    def _has_gaps(self) -> bool:
        if self.row.word != "pad" and self._puts:
            return True
        # All weights of a number may be 0.
        is_sparse = self._multiplies and any(operand.is_sparse() for operand in self._weights)
        return is_sparse or self._keeps(note.has_gaps for note in self._notes)

    def _keeps(self, has_them: Iterable[bool]) -> bool:
        """Tell whether constants that may be among the operands may be among the results: sums of them alone are."""
        return any(has_them) and not (self._is_mixing and self._weights)

    def _ordered(self) -> Iterator[Candidate[Ref]]:
        """Yield what is put in order here, with constants, or was before and is all there."""
        if self.row.word == "sort" and self._is_among_constants:
            yield from self._all_read(Choice.AMONG)
        if self.row.kind is Kind.MOVES:
            yield from (candidate for note in self._notes for candidate in note.ordered)

    def _differences(self, *, is_mixed: bool = False) -> tuple[Candidate[Ref], ...]:
        """Return the differences that it chooses by, and those that were chosen by before."""
        if self.row.kind in CURVES:
            return ()
        is_choice = self.row.kind in (Kind.CLIP, Kind.COMPARES) or self.row.word in RANKS
        before = (difference for note in self._notes for difference in note.differences)
        known = [*(differences_of(self._families) if is_choice else ()), *before]
        return first_of(one._replace(choice=Choice.BEHIND) if is_mixed else one for one in known)

    @property
    def _families(self) -> list[list[Candidate[Ref]]]:
        """What it is given, each with what that was put together of; what carries a gradient comes first."""
        values = [(one, one.note) for one in self._read if one.value is not None]
        values.sort(key=lambda pair: pair[0].ref is None)
        return [
            [Candidate(one.value, one.size), *(note.parts if note is not None else ())]
            for one, note in values
            if one.value is not None
        ]

    @property
    def _is_summary(self) -> bool:
        """Whether each number that it gives tells of many values."""
        is_moved = self.row.kind is Kind.MOVES and self.row.word not in _PUTS - {"broadcast"}
        return self.row.word in SUMMARIES or (is_moved and any(note.is_summary for note in self._notes))

    def _followed(self) -> list[Candidate[Ref]]:
        """Return what the taint of the operands came from; a stop hides ReLUs besides, and all that it came from."""
        sources = [self._further(source) for note in self._notes for source in note.sources]
        if not self._is_stop:
            return sources
        return [one._replace(is_stopped=True) for one in [*self._stopped_relus(), *sources]]

    def _begun(self, size: int | None) -> Sequence[Candidate[Ref]]:
        """Return what the taint that begins here comes from; a loop may have stopped gradients inside."""
        new = self._new_sources(self._all_parts, size)
        is_stopped = self.is_rounded or any(note.is_stopped for note in self.held)
        return [one._replace(is_stopped=True) for one in new] if is_stopped else new

    def _new_sources(self, candidates: Sequence[Candidate[Ref]], size: int | None) -> Sequence[Candidate[Ref]]:
        """Return what the taint comes from, if it begins here."""
        if self.has_pole and self.passes:
            # It closes nothing itself, and a bound behind it is one of what came before it.
            return ()
        # What a curve or a factor made of x before it another one may undo behind it.
        curves = [one for note in notes_of(self._read) for one in note.curves]
        if self._is_bounding:
            # What closes nothing tells of no weights that take it away again.
            weights = MOST_WEIGHTS + 1 if self.is_idle else 0
            return [one._replace(is_bounded=True, weights=max(weights, one.weights)) for one in [*candidates, *curves]]
        if self.row.word in RANKS:
            # What is the largest of its neighbours opens by these, and not by its sign; but the largest of several
            # multiples of one number opens by the sign of that.
            neighbours = [one._replace(weights=MOST_WEIGHTS + 1) for one in candidates]
            multiples = [one._replace(choice=Choice.BEHIND) for one in self.multiplied]
            return [*neighbours, *multiples] if self.starts else ()
        if not self.starts:
            return ()
        is_relu = self.row.kind in (Kind.CLIP, Kind.RELU) and len(self.dependent) == 1
        # What is added beside x may be made of a multiple of x.
        roots = self._roots_behind()
        if is_relu or self.row.kind is Kind.COMPARES:
            return [*candidates, *roots]
        # A norm of a row adds up its magnitudes.
        is_sum = self.row.word == "norm" and all(one.size is None or one.size != size for one in self._read)
        behind = [*curves, *candidates] if is_sum else curves
        weighed = [one._replace(choice=Choice.BEHIND, weights=int(is_sum)) for one in [*behind, *self.multiplied]]
        return [*candidates, *weighed, *roots]

    @property
    def _is_bound(self) -> bool:
        return self.row.kind is Kind.CLIP or self.has_bound or self._is_of_a_bound or self._is_bounded_sum

    @property
    def _is_of_a_bound(self) -> bool:
        """Whether it moves, multiplies or adds up what a bound made, beside other values or not, or holds one."""
        is_one = len(self.dependent) == 1 and self.row.kind is Kind.LINEAR
        is_kept = is_one or self.row.kind is Kind.MOVES or self._is_chosen
        return any(note.is_bound for note in [*self.held, *(self._notes if is_kept else [])])

    @property
    def _is_bent(self) -> bool:
        """Whether each number is made of one that a bound made, by more than a multiple."""
        is_known = self.row.kind in CURVES | {Kind.MOVES, Kind.LINEAR, Kind.CHOOSES} and not self._is_mixing
        return is_known and any(note.is_bound or note.is_bent for note in self._notes)

    def _curves(self, size: int | None) -> Iterator[Candidate[Ref]]:
        """Yield what a result is a curve of, value by value, or a product of with a number of its own."""
        is_alike = all(size in (None, one.size) for one in self._read)
        if not is_alike or self._is_mixing or not (len(self.dependent) == 1 or self.row.word == "mul"):
            return
        factors = [one for one in self.operands if one.size != 1 and (one.note is not None or one.is_number)]
        is_product = self.row.word in BY_FACTORS and (len(factors) > 1 or self.operands[0].note is None)
        if (
            self.row.kind in (Kind.SMOOTH, Kind.RELU)
            or is_product
            or self.row.word in ("abs", "log_sigmoid", "sigmoid")
        ):
            yield from self._all_read()
        if self.row.kind in CURVES | {Kind.MOVES, Kind.LINEAR} or self.row.word == "abs":
            yield from (one for note in notes_of(self._read) for one in note.curves)

    @property
    def _is_pooled(self) -> bool:
        """Whether all that chose up to here gave the largest of values none of which was put there."""
        is_pool = self.row.word == "max_pool" and not any(note.parts for note in notes_of(self._read))
        were_pools = not self._masks and all(note.is_pooled for note in self._notes)
        return were_pools and (is_pool or not self.starts)

    def _spreads(self, size: int | None) -> bool:
        """Tell whether it puts values together, or at more places."""
        is_more = size is not None and all(one.size is not None and size > one.size for one in self.dependent)
        return is_more or (self.row.word in _PUTS and (size is None or self.row.word != "broadcast"))

    def _parts(self, *, is_spread: bool) -> tuple[Candidate[Ref], ...]:
        """Return what a result was put together of, before anything added several values up."""
        if self.row.kind is Kind.MOVES or self.row.word == "gather" or is_spread:
            return first_of(self._all_parts)
        if self.row.kind in CURVES and not any(note.is_stacked or note.has_constants for note in self._notes):
            # What is moved alone is as what comes without: a curve of it is no ReLU of it.
            return ()
        # Each once: where a value meets what was made of it, over and over, there would be twice as many each time.
        return () if self._is_mixing else first_of(part for note in notes_of(self._read) for part in note.parts)

    def _has_constants(self, *, is_mixed: bool) -> bool:
        is_kept = not is_mixed and (self._puts or any(note.has_constants for note in self._notes))
        return is_kept or self.empty.has_border
