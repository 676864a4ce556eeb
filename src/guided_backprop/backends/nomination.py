"""Nomination: which results may be a ReLU though no operation there is one, and of what; once, for all frameworks.

By the argument of spelling.py a ReLU is hidden only where an operation *chooses* among values by their size, or where
*taint*, what depends on the images without a gradient, meets a value that carries one. So each framework shows each of
its operations, in the order in which values flow, as a :class:`Step`: what the table says of it, what it is given, and
whether a gradient passes. Taint starts where something is chosen or a gradient stops, spreads through everything, into
loops and branches and out of them, and ends at what the rule guides. All that is known of a value is its :class:`Note`.

What a framework shows may be unknown to it: the number of values, or a constant. Then the answer is the stricter one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic

from guided_backprop.backends import guards
from guided_backprop.backends.notes import Candidate, Choice, Note, Operand, Ref, differences_of, first_of
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.signs import Sign

_CHOOSING: Final = frozenset({Kind.CHOOSES, Kind.CLIP, Kind.UNKNOWN})
# Curves that tell a size or a sign: roots and logarithms of squares, angles, singular values; and what is made of
# straight pieces: a leaky ReLU less its leak is a ReLU.
_BENT: Final = frozenset(
    """
    abs acos acosh asin atan2 cbrt celu cholesky det eig elu hypot leaky_relu log log1p lu norm
    pow prelu qr rrelu rsqrt selu softshrink sparse_plus sparse_sigmoid sqrt svd xlogy
    """.split()
)
# What a value or a row of them is turned to by these is known, and is no gate of it.
_CURVES: Final = frozenset({Kind.SMOOTH, Kind.HEAD, Kind.NORM, Kind.RELU})
_KNOWN: Final = frozenset("abs hardshrink huber_loss modulo norm renorm softshrink".split())
# They give some of the values that they are given.
_CHOICES: Final = frozenset({"max", "max_pool", "min", "sort"})
# They compare values with each other alone, unless there is a constant among them.
_RANKS: Final = frozenset("argmax argmin argsort max max_pool min sort unique".split())
# Each of these tells of many values at once.
_SUMMARIES: Final = _RANKS | {"mean", "norm", "sum"}
# They compare nothing themselves.
_AS_BEFORE: Final = frozenset("isfinite isinf isnan stop_gradient".split())
# They put values of several places together, or at more places.
_PUTS: Final = frozenset({"broadcast", "concatenate", "pad", "scatter", "stack"})
_MIXING: Final = frozenset("avg_pool conv cumsum einsum fft matmul mean sum".split())
# Value by value: with a constant they bend nothing.
_POINTWISE: Final = frozenset("add addcmul batch_norm complex conj div imag lerp mul neg real rsub sub".split())
_SHIFTS: Final = frozenset({"add", "batch_norm", "rsub", "sub"})
_REARRANGES: Final = frozenset("cast copy flip identity identity_n mark reshape squeeze transpose".split())


# What is known of an activation of several operations is known of this one; of all others, of a curve. A guard changes
# nothing but what rounding made.
_ACTIVATIONS: Final = {
    "clamp": Operation(Kind.CLIP, "clamp"),
    "norm": Operation(Kind.CHOOSES, "norm"),
    guards.NAME: Operation(Kind.MOVES, "copy"),
}


def activation(name: str) -> Operation:
    """Return what a composite activation is, as a whole."""
    return _ACTIVATIONS.get(name, Operation(Kind.SMOOTH, name))


@dataclass
class Step(Generic[Ref]):
    """One operation, with what it is given.

    Attributes:
        row: what the table says of it.
        operands: what it is given, constants among them.
        passes: whether a gradient passes it, to one of these.
        is_relu: whether it is a ReLU by itself, which the rule guides.
        is_choice: whether it chooses by size though its row does not say so.
        held: what is known of what comes out of the loop, the branches or the function that it holds.
        exponent: of a power, where that is known.
        overwritten: how many of the first operands are not read: they may be memory that nothing was written to.
        is_by_rank: whether all that chose among what it gives compared values of the images with each other.
    """

    row: Operation
    operands: Sequence[Operand[Ref]]
    passes: bool
    is_relu: bool = False
    is_choice: bool = False
    held: Sequence[Note[Ref]] = ()
    exponent: float | None = None
    overwritten: int = 0
    is_by_rank: bool = field(init=False)

    def __post_init__(self) -> None:
        self.dependent = [operand for operand in self.operands if operand.note is not None]
        self._notes = _notes_of(self.dependent)
        self._read = [operand for operand in self.operands[self.overwritten :] if operand.note is not None]
        self._masks = [operand for operand in self.dependent if not operand.is_active]
        self._tainted = [operand for operand in self.dependent if operand.is_tainted]
        self.starts = self.chooses or not self.passes
        self.is_tainted = bool(self._tainted)
        self.is_by_rank = self._ranks()

    @property
    def chooses(self) -> bool:
        """Whether it chooses among values by their size, or tells it."""
        # A whole power tells no size.
        is_whole = self.exponent is not None and self.exponent >= 0 and self.exponent == int(self.exponent)
        is_bent = self.row.word in _BENT and not (self.row.word == "pow" and is_whole)
        return self._holds_taint or self.row.kind in _CHOOSING or is_bent

    @property
    def is_of_two(self) -> bool:
        """Whether it is the larger or smaller of two values that depend on the images wherever they are."""
        actives = sum(operand.is_active for operand in self.dependent)
        return self.row.kind is Kind.CLIP and actives > 1 and not any(note.has_constants for note in self._notes)

    @property
    def adds_up(self) -> bool:
        """Whether its result is made of several values that depend on the images, and none of them as it was."""
        return len(self.dependent) > 1 and self.row.kind is not Kind.MOVES

    @property
    def _is_mixing(self) -> bool:
        """Whether each of its results is made of several values."""
        return self.row.word in _MIXING or (self.row.kind is Kind.LINEAR and self.row.word not in _POINTWISE)

    def _leaves_out(self, size: int | None) -> bool:
        """Tell whether a linear operation may give some values as they came, and nothing in other places.

        As ``x[..., None] @ [[1, 0]]`` does. Weights are looked at where what was put together is more than it was
        before; what adds up several values without any weights leaves zeros where there were no others.
        """
        if not self._multiplies:
            return False
        weights = self._weights
        if self.row.word in _POINTWISE:
            return any(operand.has_zeros() for operand in weights)
        if len(self.dependent) == 1 and not weights:
            return any(note.has_constants for note in self._notes)
        is_more = any(size is None or part.size is None or size > part.size for part in self._all_parts)
        return is_more and any(operand.is_sparse() for operand in weights)

    @property
    def _multiplies(self) -> bool:
        return self.row.kind is Kind.LINEAR and self.row.word not in _SHIFTS - {"batch_norm"}

    @property
    def _weights(self) -> list[Operand[Ref]]:
        """What a linear operation multiplies by, among the constants that it is given."""
        constants = [operand for operand in self.operands if operand.note is None]
        if self.row.word in _POINTWISE:
            # By a mask of booleans as well; a batch-norm begins with its factors.
            return constants[:1] if self.row.word == "batch_norm" else constants
        # A bias has no more numbers than the weights; an axis is no number.
        most = max((operand.size or 0 for operand in constants), default=0)
        return [operand for operand in constants if operand.is_number and (operand.size or 0) == most]

    @property
    def _all_parts(self) -> list[Candidate[Ref]]:
        """What it is given, and what that was put together of."""
        return [*self._all_read(), *(part for note in _notes_of(self._read) for part in note.parts)]

    @property
    def _is_curve(self) -> bool:
        """Whether it is known what it makes of the value that it is given, or of several."""
        is_one = len(self.dependent) == 1
        is_known = (self.row.kind in _CURVES and is_one) or (self.row.word in _KNOWN and (is_one or not self._masks))
        return is_known and not (self.is_choice or self._is_partly_relu)

    @property
    def _is_partly_relu(self) -> bool:
        """Whether it is a leaky ReLU, and its slope may be 0 in places."""
        return self.row.kind is Kind.RELU and any(one.has_zeros() for one in self.operands if one.note is None)

    @property
    def _holds_taint(self) -> bool:
        """Whether it chooses though its row does not say so, or what it holds does."""
        return self.is_choice or any(note.is_tainted for note in self.held)

    def _ranks(self) -> bool:
        """Tell whether what chooses here compared values of the images with each other, and with no constant."""
        masks = _notes_of(self._masks)
        is_of_places = self.row.kind is Kind.COMPARES and not any(operand.is_number for operand in self.dependent)
        if self.row.word in _AS_BEFORE or is_of_places:
            # It tells of what was compared before: of masks, of places, of what a gradient was taken from.
            return self._was_by_rank()
        if self.held:
            return all(note.is_by_rank for note in [*self.held, *masks])
        if self.row.kind is Kind.COMPARES or (self.starts and len(masks) < len(self.dependent)):
            return self._compares_values() and all(note.is_by_rank for note in masks)
        if self.row.kind in (Kind.RELU, Kind.CLIP) or (self.row.kind is Kind.SMOOTH and masks):
            return False
        return all(note.is_by_rank and note.is_tainted for note in masks or _notes_of(self._tainted))

    def _was_by_rank(self) -> bool:
        """Tell whether values were compared with each other before; that one of a row is no number says it of a row."""
        is_of_many = self.row.word.startswith("is") and any(note.is_summary for note in self._notes)
        before = _notes_of(self._tainted)
        return is_of_many or (bool(before) and all(note.is_tainted and note.is_by_rank for note in before))

    def _compares_values(self) -> bool:
        """Tell whether it chooses itself, among values of other places none of which was put there."""
        is_of_many = any(note.is_summary for note in self._notes) or len({one.size for one in self.dependent}) > 1
        is_comparison = self.row.kind is Kind.COMPARES and 1 < len(self.dependent) == len(self.operands)
        if self.row.word not in _RANKS and not (is_comparison and is_of_many):
            return False
        # Of two values at one place, as x and -x, the larger one tells the sign of x.
        if any(note.is_stacked or note.has_constants for note in self._notes):
            return False
        return not any(operand.is_one_number() for operand in self.dependent)

    def nominates(self, size: int | None = None) -> bool | None:
        """Return None if a result cannot be a ReLU, else whether a choice or taint is met right here.

        Args:
            size: how many numbers the result has.
        """
        is_elsewhere = self.row.kind in (Kind.HIDDEN, Kind.RANDOM) and not self.chooses
        if not self.passes or self.is_relu or is_elsewhere or self._is_moved:
            return None
        if self.row.kind is Kind.CLIP:
            return self._bounds()
        is_none = self._is_curve or (self.row.word in _CHOICES and not self._is_among_constants)
        if is_none:
            # A smooth curve closes nothing that was open before.
            return False if self._tainted and self.row.kind not in _CURVES else None
        if self._holds_taint or self.row.kind in _CHOOSING or self._is_partly_relu:
            return True
        if not self._tainted:
            return None
        return bool(self._masks) if len(self.dependent) > 1 else self._follows(size)

    @property
    def _is_moved(self) -> bool:
        """Whether it gives one value as it came, in another order or shape."""
        return self.row.word in _REARRANGES and len(self._read) == 1

    @property
    def _is_among_constants(self) -> bool:
        """Whether there may be constants among what is chosen from: else the choice zeroes none of the values."""
        return any(note.has_gaps or note.has_border for note in self._notes)

    def _bounds(self) -> bool | None:
        """Say it of a bound: by numbers that are not 0 it is what it is; by 0 it falls where a ReLU rises."""
        if len(self.dependent) > 1:
            return bool(self._masks)
        has_zeros = any(operand.has_zeros() for operand in self.operands if operand.note is None)
        return True if has_zeros or self.row.word == "fake_quant" else None

    def _follows(self, size: int | None) -> bool | None:
        """Say it of what is made of one tainted value and constants: sums, and what leaves values out."""
        (operand,), (note,) = self.dependent, self._notes
        if note.is_falling or (note.is_bound and self.row.word in _SHIFTS):
            # A bound that is not 0 is a ReLU once it is shifted there.
            return False
        if note.is_pooled:
            return None
        is_alike = self.row.word in _POINTWISE if None in (size, operand.size) else operand.size == size
        # What is a multiple of another one is a gate only if that was one.
        return False if self._is_mixing or not is_alike else None

    def candidates(self) -> Iterator[Candidate[Ref]]:
        """Yield what a result may be a ReLU of, some of it several times."""
        # To leave values out of something, or to put them in order, zeroes none of them; nor does a known curve.
        is_none = self.row.word in ("gather", "sort") or self._is_curve
        for operand in self._read:
            if operand.ref is not None and not is_none:
                yield Candidate(operand.ref, operand.size)
            yield from () if operand.note is None else operand.note.parts
        yield from (source for note in _notes_of(self._tainted) for source in note.sources)
        yield from self._chosen_from()
        if self.row.kind is Kind.LINEAR and self.row.word not in ("div", "mul"):
            yield from self._differences()

    def _chosen_from(self) -> Iterator[Candidate[Ref]]:
        """Yield what a result is some of the numbers of, chosen by their size, where constants may be among them."""
        is_by_place = self.row.word == "gather" and bool(self._masks)
        is_of_many = self.row.kind is Kind.CLIP and sum(operand.is_active for operand in self.dependent) > 1
        if self._is_among_constants and (self.row.word in _CHOICES or self.is_choice or is_by_place or is_of_many):
            has_gaps = self.row.word != "max_pool" or any(note.has_gaps for note in self._notes)
            yield from self._all_read(Choice.AMONG if has_gaps else Choice.AROUND)
        # What was put in order is all there, until some of it is left out.
        yield from (candidate for note in self._notes for candidate in note.ordered)

    def _all_read(self, choice: Choice = Choice.NONE) -> Iterator[Candidate[Ref]]:
        yield from (Candidate(one.ref, one.size, choice=choice) for one in self._read if one.ref is not None)

    def note(self, size: int | None = None, *, sign: Sign = Sign.UNKNOWN, is_falling: bool = False) -> Note[Ref]:
        """Return what is known of a result, if it is not guided.

        Args:
            size: how many numbers it has.
            sign: that of all of them.
            is_falling: whether it may become a ReLU itself, by its values or as far as these are not known.
        """
        if self.is_relu and not self._tainted:
            # What the rule acts on ends the taint, but not what came before it; what was put there stays a constant.
            return Note(sign=sign, has_gaps=any(note.has_gaps and note.has_constants for note in self._notes))
        sources = [source for note in self._notes for source in note.sources]
        is_spread, leaves_out = self._spreads(size), self._leaves_out(size)
        is_mixed = self._is_mixing and not leaves_out
        return Note(
            is_tainted=self.starts or bool(self._tainted),
            is_by_rank=self.is_by_rank,
            is_pooled=self._is_pooled,
            is_bound=self.row.kind is Kind.CLIP or self._is_of_a_bound,
            is_falling=is_falling or any(note.is_falling for note in self._notes),
            is_summary=self._is_summary,
            is_stacked=not is_mixed and (is_spread or any(note.is_stacked for note in self._notes)),
            has_constants=leaves_out or (not is_mixed and self._has_constants),
            has_gaps=self._has_gaps(),
            has_border=self._has_border(),
            sign=sign,
            parts=self._parts(is_spread=is_spread or (leaves_out and self._is_mixing)),
            sources=first_of([*self._new_sources(self._all_parts), *sources]),
            ordered=first_of(self._ordered()),
            differences=self._differences(is_mixed=is_mixed),
        )

    def _has_border(self) -> bool:
        return (self.row.word == "pad" and self._puts) or self._keeps(note.has_border for note in self._notes)

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
        is_choice = self.row.kind in (Kind.CLIP, Kind.COMPARES) or self.row.word in _RANKS
        before = (difference for note in self._notes for difference in note.differences)
        known = [*(differences_of(self._all_parts) if is_choice else ()), *before]
        return () if is_mixed or self.row.kind in _CURVES else first_of(known)

    @property
    def _is_summary(self) -> bool:
        """Whether each number that it gives tells of many values."""
        is_moved = self.row.kind is Kind.MOVES and self.row.word not in _PUTS - {"broadcast"}
        return self.row.word in _SUMMARIES or (is_moved and any(note.is_summary for note in self._notes))

    def _new_sources(self, candidates: Sequence[Candidate[Ref]]) -> Sequence[Candidate[Ref]]:
        """Return what the taint comes from, if it begins here."""
        if self.row.kind is Kind.CLIP and len(self.dependent) == 1 and self._bounds() is None:
            return [candidate._replace(is_bounded=True) for candidate in candidates]
        return candidates if self.starts else ()

    @property
    def _is_of_a_bound(self) -> bool:
        """Whether it moves, multiplies or adds up what a bound made."""
        is_one = len(self.dependent) == 1 and self.row.kind in (Kind.MOVES, Kind.LINEAR)
        return is_one and any(note.is_bound for note in self._notes)

    @property
    def _is_pooled(self) -> bool:
        """Whether all that chose up to here gave the largest of values none of which was put there."""
        is_pool = self.row.word == "max_pool" and not any(note.parts for note in _notes_of(self._read))
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
        return () if self._is_mixing else tuple(part for note in _notes_of(self._read) for part in note.parts)

    @property
    def _has_constants(self) -> bool:
        return self._puts or any(note.has_constants for note in self._notes)

    @cached_property
    def _puts(self) -> bool:
        """Whether it puts numbers that do not depend on the images among its values, in places of their own."""
        numbers = [operand for operand in self.operands if operand.is_number]
        constants = [operand for operand in numbers if operand.note is None]
        if self.row.kind is Kind.MOVES:
            # What several values are put beside.
            return len(numbers) > 1 and (bool(constants) or any(operand.is_one_number() for operand in numbers))
        # Where nothing is scattered to there are zeros.
        is_filled = bool(constants) or self.row.word.startswith("scatter")
        return self.row.kind is Kind.MASKS and self.row.word != "gather" and is_filled


def _notes_of(operands: Iterable[Operand[Ref]]) -> list[Note[Ref]]:
    return [operand.note for operand in operands if operand.note is not None]
