"""One operation with what it is given, and what it does with that, as its row in the table tells."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic

from guided_backprop.backends.empty import NOTHING, Empty
from guided_backprop.backends.notes import Candidate, Choice, Note, Operand, Ranks, Ref
from guided_backprop.backends.operations import Kind, Operation

CHOOSING: Final = frozenset({Kind.CHOOSES, Kind.CLIP, Kind.UNKNOWN})
# Curves that tell a size or a sign: roots and logarithms of squares, angles, singular values, what has poles; and what
# is made of straight pieces: a leaky ReLU less its leak is a ReLU.
_BENT: Final = frozenset(
    """
    abs acos acosh asin atan2 cbrt celu cholesky det eig elu hypot leaky_relu log log1p lu norm
    pow prelu qr rrelu rsqrt selu softshrink sparse_sigmoid sqrt svd tan xlogy
    """.split()
)
# What a value or a row of them is turned to by these is known, and is no gate of it.
CURVES: Final = frozenset({Kind.SMOOTH, Kind.HEAD, Kind.NORM, Kind.RELU})
_KNOWN: Final = frozenset("abs hardshrink huber_loss modulo norm renorm softshrink".split())
#: They multiply the values of a row, or of a matrix, with each other.
PRODUCTS: Final = frozenset("cumprod det eig inv prod svd".split())
# They give some of the values that they are given.
CHOICES: Final = frozenset({"max", "max_pool", "min", "sort"})
# They compare values with each other alone, unless there is a constant among them.
RANKS: Final = frozenset("argmax argmin argsort max max_pool min sort unique".split())
# Each of these tells of many values at once.
SUMMARIES: Final = RANKS | {"mean", "norm", "sum"}
_ORDERS: Final = frozenset({"argsort", "sort", "unique"})
# They compare nothing themselves.
_AS_BEFORE: Final = frozenset("isfinite isinf isnan stop_gradient".split())
_MIXING: Final = frozenset("avg_pool conv cumsum einsum fft matmul mean sum".split())
# Value by value: with a constant they bend nothing.
POINTWISE: Final = frozenset("add addcmul batch_norm complex conj div imag lerp mul neg real rsub sub".split())
# A root of a negative number has no real part.
PARTS: Final = frozenset({"imag", "real"})
REARRANGES: Final = frozenset("cast copy flip identity identity_n mark reshape squeeze transpose".split())
BY_FACTORS: Final = frozenset({"div", "mul"})
SHIFTS: Final = frozenset({"add", "batch_norm", "rsub", "sub"})


@dataclass
class Given(Generic[Ref]):
    """One operation, with what it is given.

    Attributes:
        row: what the table says of it.
        operands: what it is given, constants among them.
        passes: whether a gradient passes it, to one of these.
        is_relu: whether it is a ReLU by itself, which the rule guides.
        is_choice: whether it chooses by size though its row does not say so.
        held: what is known of what comes out of the loop, the branches or the function that it holds.
        has_pieces: whether it is a known curve that is straight in pieces, whose bends lie where its arguments say.
        has_bound: whether a bound that is not 0 is part of it, though its row does not say so.
        exponent: of a power, where that is known.
        is_shifted: whether it is a value less the largest, or the smallest, of its own numbers.
        place: which operation it is, the same one each time that it is looked at.
        overwritten: how many of the first operands are not read: they may be memory that nothing was written to.
        has_pole: whether it divides by what may have either sign: then on the two sides of 0 it tells the sign.
        has_rows: whether it is a root of sums of squares of rows, of which no number is all that its row is.
        is_idle: whether it is a bound that closes nothing.
        is_rounded: whether it gives what it was given without a derivative, or a number beside it, as an integer.
        empty: where it leaves zeros: between what it is given, as on both sides of a diagonal, or around it.
        is_by_rank: whether all that chose among what it gives compared values of the images with each other.
    """

    row: Operation
    operands: Sequence[Operand[Ref]]
    passes: bool
    is_relu: bool = False
    is_choice: bool = False
    held: Sequence[Note[Ref]] = ()
    has_pieces: bool = False
    has_bound: bool = False
    exponent: float | None = None
    is_shifted: bool = False
    overwritten: int = 0
    place: Hashable = None
    has_pole: bool = False
    has_rows: bool = False
    is_idle: bool = False
    is_rounded: bool = False
    empty: Empty = NOTHING
    is_by_rank: bool = field(init=False)

    def __post_init__(self) -> None:
        self.dependent = [operand for operand in self.operands if operand.note is not None]
        self._notes = notes_of(self.dependent)
        self._read = [operand for operand in self.operands[self.overwritten :] if operand.note is not None]
        self._masks = [operand for operand in self.dependent if not operand.is_active]
        self._tainted = [operand for operand in self.dependent if operand.is_tainted]
        self.starts = self.chooses or not self.passes
        self.is_tainted = bool(self._tainted)
        self.is_by_rank = self._ranks()

    def ranks(self, candidate: Candidate[Ref], size: int | None = None) -> Ranks:
        """Return how values were compared by what chose between a candidate and so many numbers that it gives."""
        if self.is_by_rank and (self.starts or self.is_tainted):
            return Ranks.ALL
        return Ranks.SOME if self.ranked(size) - candidate.ranked else Ranks.NONE

    def ranked(self, size: int | None = None) -> frozenset[Hashable]:
        """Return the operations, up to this one, that may have compared values of the images with each other.

        Of two values at one place the larger tells a sign, and no rank; and what is added up tells none before
        something is chosen by it.
        """
        is_own = self.row.word in RANKS - {"max_pool"} and self._is_of_values and not self._chooses_of_two(size)
        is_own |= (self.row.kind is Kind.COMPARES and self._compares_many) or self._pools_chosen
        before = [note.ranked for note in [*self._notes, *self.held]]
        by_sums = [note.summed for note in self._notes] if self.starts else []
        return frozenset({self.place} if is_own else ()).union(*before, *by_sums)

    def ranks_behind(self, candidate: Candidate[Ref]) -> Ranks:
        """Return it of a candidate behind weights: where another value was larger it is shut there, be it positive."""
        known = self.ranks(candidate)
        return Ranks.SOME if known is Ranks.NONE and self.maxima() - candidate.ranked else known

    def maxima(self) -> frozenset[Hashable]:
        """Return the operations, up to this one, that gave the largest of a window, or the larger of two values."""
        actives = sum(operand.is_active for operand in self.dependent)
        is_own = self.row.word == "max_pool" or (self.row.kind is Kind.CLIP and actives > 1)
        before = [note.maxima for note in [*self._notes, *self.held]]
        return frozenset({self.place} if is_own else ()).union(*before)

    def summed(self, size: int | None = None) -> frozenset[Hashable]:
        """Return the operations, up to this one, that added values of the images up along rows."""
        is_own = self.row.word in SUMMARIES - RANKS and self._is_of_values and not self._chooses_of_two(size)
        return frozenset({self.place} if is_own else ()).union(*(note.summed for note in [*self._notes, *self.held]))

    @property
    def _pools_chosen(self) -> bool:
        """Whether it is a pool of what was chosen before, as of a maxout: of more values the largest are left.

        A pool alone is told by what it is; of values that were put side by side it may choose among two at one place.
        """
        return self.row.word == "max_pool" and self.is_tainted and not any(note.is_stacked for note in self._notes)

    @property
    def _is_of_values(self) -> bool:
        """Whether it is given numbers: places, which are counted or put in order, tell of none."""
        return any(one.is_number for one in self.dependent)

    def _chooses_of_two(self, size: int | None) -> bool:
        """Tell whether it chooses one of two values at each place, or puts values in order with as many constants."""
        sizes = [one.size for one in self.dependent if one.size is not None]
        if self.row.word not in _ORDERS:
            return size is not None and any(one <= 2 * size for one in sizes)
        parts = [part.size for note in self._notes if note.has_constants for part in note.parts]
        return bool(parts and sizes) and all(part is not None and 2 * part <= min(sizes) for part in parts)

    @property
    def chooses(self) -> bool:
        """Whether it chooses among values by their size, or tells it."""
        if self.has_rows and not any(note.is_stacked for note in self._notes):
            # Beside other numbers of a row it tells the sign of none, unless all were put together of one value.
            return False
        # A whole power tells no size.
        is_whole = self.exponent is not None and self.exponent >= 0 and self.exponent == int(self.exponent)
        is_bent = self.row.word in _BENT and not (self.row.word == "pow" and is_whole)
        return self._holds_taint or self.row.kind in CHOOSING or is_bent or self.has_pole

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
        return self.row.word in _MIXING or (self.row.kind is Kind.LINEAR and self.row.word not in POINTWISE)

    def _leaves_out(self, size: int | None) -> bool:
        """Tell whether a linear operation may give some values as they came, and nothing in other places.

        As ``x[..., None] @ [[1, 0]]`` does. Weights are looked at where what was put together is more than it was
        before; what adds up several values without any weights leaves zeros where there were no others.
        """
        if self.empty.has_gaps or not self._multiplies:
            return self.empty.has_gaps
        weights = self._weights
        if self.row.word in POINTWISE:
            return any(operand.has_zeros() for operand in weights)
        if len(self.dependent) == 1 and not weights:
            return any(note.has_constants for note in self._notes)
        is_more = any(size is None or part.size is None or size > part.size for part in self._all_parts)
        return is_more and any(operand.is_sparse() for operand in weights)

    @property
    def _multiplies(self) -> bool:
        return self.row.kind is Kind.LINEAR and self.row.word not in SHIFTS - {"batch_norm"}

    @property
    def _weights(self) -> list[Operand[Ref]]:
        """What a linear operation multiplies by, among the constants that it is given."""
        constants = [operand for operand in self.operands if operand.note is None]
        if self.row.word in POINTWISE:
            # By a mask of booleans as well; a batch-norm begins with its factors.
            return constants[:1] if self.row.word == "batch_norm" else constants
        # A bias has no more numbers than the weights; an axis is no number.
        most = max((operand.size or 0 for operand in constants), default=0)
        return [operand for operand in constants if operand.is_number and (operand.size or 0) == most]

    @property
    def _all_parts(self) -> list[Candidate[Ref]]:
        """What it is given, and what that was put together of."""
        return [*self._all_read(), *(part for note in notes_of(self._read) for part in note.parts)]

    @property
    def _is_curve(self) -> bool:
        """Whether it is known what it makes of the value that it is given, or of several."""
        # Of a row of several values, some of which may be masks, a product is what it is of all of these.
        is_row = self.row.word in PRODUCTS and any(note.is_stacked and note.is_tainted for note in self._notes)
        is_one = len(self.dependent) == 1 and not is_row
        is_known = (self.row.kind in CURVES and is_one) or (self.row.word in _KNOWN and (is_one or not self._masks))
        return is_known and not (self.is_choice or self._is_partly_relu)

    @property
    def _shifted_before(self) -> list[Candidate[Ref]]:
        """What a number was added to in front of a known curve, whose bends are not where that has them for this."""
        roots = [one for note in self._notes for one in note.roots] if self.has_pieces else []
        return [one._replace(is_at_zero=True) for one in roots if one.is_off]

    @property
    def _is_bounding(self) -> bool:
        """Whether it bounds one value by a number that is not 0."""
        is_clip = self.row.kind is Kind.CLIP and len(self.dependent) == 1 and self._bounds() is None
        return is_clip or self.has_bound

    @property
    def _is_among_constants(self) -> bool:
        """Whether there may be constants among what is chosen from: else the choice zeroes none of the values."""
        is_beside = self.row.word in CHOICES and any(one.note is None and one.is_number for one in self.operands)
        return is_beside or any(note.has_gaps or note.has_border for note in self._notes)

    def _bounds(self) -> bool | None:
        """Say it of a bound: by numbers that are not 0 it is what it is; by 0 it falls where a ReLU rises."""
        if len(self.dependent) > 1:
            return bool(self._masks)
        has_zeros = any(operand.has_zeros() for operand in self.operands if operand.note is None)
        return True if has_zeros or self.row.word == "fake_quant" else None

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
        masks = notes_of(self._masks)
        is_of_places = self.row.kind is Kind.COMPARES and not any(operand.is_number for operand in self.dependent)
        if self.row.word in _AS_BEFORE or is_of_places:
            # It tells of what was compared before: of masks, of places, of what a gradient was taken from.
            return self._was_by_rank()
        if self.held:
            return all(note.is_by_rank for note in [*self.held, *masks])
        if self.row.kind is Kind.COMPARES or (self.starts and len(masks) < len(self.dependent)):
            # What is chosen is chosen as it was: the largest of |x| is a magnitude still.
            before = masks if self.row.kind is Kind.COMPARES else self._notes
            return self._compares_values() and all(note.is_by_rank for note in before)
        is_bound = self.row.kind in (Kind.RELU, Kind.CLIP) or self.has_pieces
        if is_bound or (self.row.kind is Kind.SMOOTH and masks):
            return False
        return all(note.is_by_rank and note.is_tainted for note in masks or notes_of(self._tainted))

    def _was_by_rank(self) -> bool:
        """Tell whether values were compared with each other before; that one of a row is no number says it of a row."""
        is_of_many = self.row.word.startswith("is") and any(note.is_summary for note in self._notes)
        before = notes_of(self._tainted)
        return is_of_many or (bool(before) and all(note.is_tainted and note.is_by_rank for note in before))

    def _compares_values(self) -> bool:
        """Tell whether it chooses itself, among values of other places none of which was put there."""
        is_comparison = self.row.kind is Kind.COMPARES and 1 < len(self.dependent) == len(self.operands)
        if self.row.word not in RANKS and not (is_comparison and self._compares_many):
            return False
        # Of two values at one place, as x and -x, the larger one tells the sign of x.
        if any(note.is_stacked or note.has_constants for note in self._notes):
            return False
        return not any(operand.is_one_number() for operand in self.dependent)

    @property
    def _compares_many(self) -> bool:
        """Whether some of what it is given tells of more values than other parts of it, as the largest of a row."""
        is_summary = any(note.is_summary for note in self._notes)
        return len(self.dependent) > 1 and (is_summary or len({one.size for one in self.dependent}) > 1)

    def _all_read(self, choice: Choice = Choice.NONE) -> Iterator[Candidate[Ref]]:
        for one in self._read:
            if one.ref is not None and one.note is not None:
                yield Candidate(one.ref, one.size, choice=choice, ranked=one.note.told)

    @cached_property
    def _puts(self) -> bool:
        """Whether it puts numbers that do not depend on the images among its values, in places of their own."""
        if self.empty.has_gaps:
            return True
        numbers = [operand for operand in self.operands if operand.is_number]
        constants = [operand for operand in numbers if operand.note is None]
        if self.row.kind is Kind.MOVES:
            # What several values are put beside.
            return len(numbers) > 1 and (bool(constants) or any(operand.is_one_number() for operand in numbers))
        # Where nothing is scattered to there are zeros.
        is_filled = bool(constants) or self.row.word.startswith("scatter")
        return self.row.kind is Kind.MASKS and self.row.word != "gather" and is_filled


def notes_of(operands: Iterable[Operand[Ref]]) -> list[Note[Ref]]:
    return [operand.note for operand in operands if operand.note is not None]
