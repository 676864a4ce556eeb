"""What is known of a value, as far as a ReLU can hide behind it: taint, sign, what it was made of."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import combinations, product
from typing import Final, Generic, NamedTuple, Self, TypeVar

from guided_backprop.backends.signs import Sign

Ref = TypeVar("Ref", bound=Hashable)

#: A value may be a ReLU of what it was made of some steps ago: so many of these are known, the last ones.
MOST_SOURCES: Final = 16
#: So many are known of what it is a multiple of.
MOST_ROOTS: Final = 4
#: And behind so many layers of weights its derivatives are looked at: each of these costs a backward pass.
MOST_WEIGHTS: Final = 2


class Ranks(Enum):
    """Whether what chose among values compared them with each other, as a top-k does, or with constants."""

    #: Nothing compared values with each other: what is closed is closed by a threshold.
    NONE = auto()
    #: Something may have: the largest may be open, wherever 0 is.
    SOME = auto()
    #: All that chose did: the largest are open, and need not be positive.
    ALL = auto()


class Choice(Enum):
    """How a result was chosen from among numbers, some of which may be constants."""

    #: It was not: it may be a ReLU of the value itself.
    NONE = auto()
    #: It is some of the numbers: then it may be a ReLU of what the choice would give without its constants.
    AMONG = auto()
    #: So it is, but the constants were put around what a pool looks at: those at the border are no activation.
    AROUND = auto()
    #: From two values by which is larger: then it may be a ReLU of their difference, which nothing computes.
    APART = auto()
    #: So it was, and weights came behind; or a mask, a sign or a part of one value met weights: its derivatives tell.
    BEHIND = auto()
    #: It is made of what a loop, a branch or a checkpoint holds, outside of that, or the other way round: no derivative
    #: is known from one to the other, and values alone tell.
    ELSEWHERE = auto()


class Candidate(NamedTuple, Generic[Ref]):
    """What a result may be a ReLU of.

    Attributes:
        ref: the value, as the framework knows it.
        size: how many numbers it has; None if that is not known, as of a difference in which one value is repeated.
        is_bounded: whether what was made of it first is a bound that is not 0: that closes it at another value than 0.
        is_at_zero: whether it is closed at 0, if at all: elsewhere it is what a known curve makes of it.
        choice: how the result was chosen from it, if it was, and constants may be among its numbers.
        less: another value that is to be taken away from it first, if there is one.
        ranked: the operations that compared values with each other, or added them up, before it was made.
        weights: how often several values were added up since something was made of it.
        is_stopped: whether a gradient was stopped behind it, so that no derivative of the model's own tells of it.
        is_beside: whether a ReLU of it, or of its opposite, that the rule guides is added to it: its derivative counts.
        is_off: whether a number was added to it, or several, on the way to a multiple of it.
    """

    ref: Ref
    size: int | None = None
    is_bounded: bool = False
    is_at_zero: bool = False
    choice: Choice = Choice.NONE
    less: Ref | None = None
    ranked: frozenset[Hashable] = frozenset()
    weights: int = 0
    is_stopped: bool = False
    is_beside: bool = False
    is_off: bool = False

    @property
    def key(self) -> Hashable:
        """What the value is known by, the same each time that something is made of it."""
        return getattr(self.ref, "key", self.ref)

    @property
    def values(self) -> list[Ref]:
        """The value, and the one that is taken away from it."""
        return [self.ref] if self.less is None else [self.ref, self.less]


@dataclass(frozen=True)
class Note(Generic[Ref]):
    """What is known of a value that depends on the images.

    Attributes:
        is_tainted: whether something was chosen by size, or passed on without a gradient, among what it was made of.
        is_by_rank: whether all of that compared values with each other, and none with a constant.
        is_stopped: whether a gradient was stopped on the way.
        is_step: whether it may be a step of what it was made of, as a mask is, though a gradient of zeros passes it.
        has_relus: whether the rule guided something on the way, in loops and branches as well.
        ranked: the operations that may have compared values of the images with each other; of pools those of choices.
        summed: those that added some up: what is chosen by that compares values with each other.
        maxima: those that gave the largest of a window, or the larger of two: behind weights it opens by the others.
        is_pooled: whether all of that was the largest of values, none of which was put there: that zeroes none of them.
        is_bound: whether it is what a bound made, or a multiple of that.
        is_bent: whether it is what a curve or a product made of that, value by value.
        is_falling: whether it may become a ReLU and is none yet, as ``min(x, 0)``.
        is_summary: whether each number tells of many values, as the largest of a row.
        is_stacked: whether values of several places were put together, or put at more places.
        has_constants: whether numbers that do not depend on the images were put among its values.
        has_gaps: whether there may be such numbers among them, put there or left by weights that are 0; none around.
        has_border: whether there may be such numbers around its values.
        sign: the sign that all of it has, however the images are.
        parts: what it was put together of, before anything added several values up.
        sources: what the taint came from.
        ordered: what was put in order, all of it, with constants that may be among it.
        differences: of values that something compared or chose from, each less another; those behind weights as well.
        curves: what it is a curve of, value by value.
        opened_by: what it is a ReLU of that the rule guides, if it is one itself.
        relus: what the rule guided on the way, as long as few layers of weights came behind.
        lines: what it is a sum of, by whatever weights, as long as few layers of them came behind: the next ones.
        origins: what all of it is made of by whatever weights, each number of it: the last ones.
        roots: what it is a multiple or a shift of by numbers, in whatever order and shape.
    """

    is_tainted: bool = False
    is_by_rank: bool = True
    is_stopped: bool = False
    is_step: bool = False
    has_relus: bool = False
    ranked: frozenset[Hashable] = frozenset()
    summed: frozenset[Hashable] = frozenset()
    maxima: frozenset[Hashable] = frozenset()
    is_pooled: bool = True
    is_bound: bool = False
    is_bent: bool = False
    is_falling: bool = False
    is_summary: bool = False
    is_stacked: bool = False
    has_constants: bool = False
    has_gaps: bool = False
    has_border: bool = False
    sign: Sign = Sign.UNKNOWN
    parts: tuple[Candidate[Ref], ...] = ()
    sources: tuple[Candidate[Ref], ...] = ()
    ordered: tuple[Candidate[Ref], ...] = ()
    differences: tuple[Candidate[Ref], ...] = ()
    curves: tuple[Candidate[Ref], ...] = ()
    opened_by: tuple[Candidate[Ref], ...] = ()
    relus: tuple[Candidate[Ref], ...] = ()
    lines: tuple[Candidate[Ref], ...] = ()
    origins: tuple[Candidate[Ref], ...] = ()
    roots: tuple[Candidate[Ref], ...] = ()

    def inside(self, ref: Ref | None, size: int | None = None) -> "Note[Ref]":
        """Return what is known of the same value where it comes into a loop or a branch, as ``ref``."""
        sources = () if ref is None or not self.is_tainted else (Candidate(ref, size),)
        none: tuple[Candidate[Ref], ...] = ()
        left = replace(self, parts=none, ordered=none, differences=none, curves=none, relus=none, roots=none)
        left = replace(left, ranked=frozenset(), summed=frozenset(), maxima=frozenset())
        return replace(left, lines=none, origins=none, sources=sources, opened_by=none)

    def without(self, is_told: Callable[[Ref], bool]) -> Self:
        """Return the same without what the taint came from, but for what is told of by another value."""
        sources = tuple(one for one in self.sources if not is_told(one.ref))
        return self if len(sources) == len(self.sources) else replace(self, sources=sources)

    def given(self, values: Iterable[Candidate[Ref]]) -> Self:
        """Return the same of what an operation was given as well: what is made of it later may be a ReLU of that."""
        return replace(self, sources=first_of([*values, *self.sources]))

    @property
    def alike(self) -> tuple[Candidate[Ref], ...]:
        """What it is a multiple or a shift of, value by value: also by an array, as far as it is known."""
        return (*self.roots, *[one for one in self.lines if not one.weights][:MOST_ROOTS])

    @property
    def told(self) -> frozenset[Hashable]:
        """The operations that tell of many values: what is chosen by these is chosen by what came before it."""
        return self.ranked | self.summed | self.maxima

    def joined(self, other: "Note[Ref]") -> "Note[Ref]":
        """Return what is known of a value that is one or the other: all of it is made of what both are made of."""
        return Note(
            is_tainted=self.is_tainted or other.is_tainted,
            is_by_rank=self.is_by_rank and other.is_by_rank,
            is_stopped=self.is_stopped or other.is_stopped,
            is_step=self.is_step or other.is_step,
            has_relus=self.has_relus or other.has_relus,
            ranked=self.ranked | other.ranked,
            summed=self.summed | other.summed,
            maxima=self.maxima | other.maxima,
            is_pooled=self.is_pooled and other.is_pooled,
            is_bound=self.is_bound or other.is_bound,
            is_bent=self.is_bent or other.is_bent,
            is_falling=self.is_falling or other.is_falling,
            is_summary=self.is_summary and other.is_summary,
            is_stacked=self.is_stacked or other.is_stacked,
            has_constants=self.has_constants or other.has_constants,
            has_gaps=self.has_gaps or other.has_gaps,
            has_border=self.has_border or other.has_border,
            sign=self.sign & other.sign,
            parts=first_of([*self.parts, *other.parts]),
            sources=first_of([*self.sources, *other.sources]),
            ordered=first_of([*self.ordered, *other.ordered]),
            differences=first_of([*self.differences, *other.differences]),
            curves=first_of([*self.curves, *other.curves]),
            relus=first_of([*self.relus, *other.relus]),
            lines=first_of([*self.lines, *other.lines]),
            origins=common([self.origins, other.origins]),
            roots=first_of([*self.roots, *other.roots]),
        )


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Operand(Generic[Ref]):
    """What an operation is given.

    Attributes:
        note: what is known of it; None if it does not depend on the images.
        ref: it as what a result may be a ReLU of; None if no gradient comes to it.
        is_active: whether it carries a gradient to the images.
        is_number: whether it is of real numbers, and no mask and no place.
        size: how many numbers it has; None if that is not known.
        is_one_number: tells whether it is known that all its numbers are the same, though it depends on something.
        has_zeros: tells of a constant whether there may be zeros in it.
        is_sparse: tells of weights whether there are zeros in them, as far as anybody knows.
        value: the same as ``ref``, also if no gradient comes to it; None if it is no number.
        is_known: whether it is one number, as far as its size does not tell that.
    """

    note: Note[Ref] | None = None
    ref: Ref | None = None
    is_active: bool = False
    is_number: bool = True
    size: int | None = None
    is_one_number: Callable[[], bool] = _never
    has_zeros: Callable[[], bool] = _never
    is_sparse: Callable[[], bool] = _never
    value: Ref | None = None
    is_known: bool = False

    @property
    def is_tainted(self) -> bool:
        """Whether there is taint in it: it has no gradient, or is made of such."""
        return self.note is not None and (self.note.is_tainted or not self.is_active)


def first_of(candidates: Iterable[Candidate[Ref]]) -> tuple[Candidate[Ref], ...]:
    """Return so many candidates, the first ones, each once: bounded only where it is so on all ways.

    Each is as near as on the shortest of them, off where it is so on all, and stopped where it is so on any.
    """
    kept: dict[tuple[Ref, Ref | None, Choice], Candidate[Ref]] = {}
    for candidate in candidates:
        key = candidate.ref, candidate.less, candidate.choice
        known = kept.get(key, candidate)
        nearest = min(known.weights, candidate.weights)
        is_stopped = known.is_stopped or candidate.is_stopped
        nearer = known if candidate.is_bounded else candidate
        is_off = known.is_off and candidate.is_off
        kept[key] = nearer._replace(weights=nearest, is_stopped=is_stopped, is_off=is_off)
    return tuple(kept.values())[:MOST_SOURCES]


def common(families: Sequence[Sequence[Candidate[Ref]]]) -> tuple[Candidate[Ref], ...]:
    """Return the candidates that all families have."""
    keys = [{one.key for one in family} for family in families]
    return first_of(one for one in (families or [[]])[0] if all(one.key in known for known in keys))


def differences_of(families: Sequence[Sequence[Candidate[Ref]]]) -> Iterator[Candidate[Ref]]:
    """Yield each of some values less another.

    Args:
        families: operands, each with what it was put together of. Of one family are compared what has as many numbers:
            a whole is not apart from its own part.
    """
    pairs = [pair for family in families for pair in combinations(family, 2) if _is_of_one_size(*pair)]
    pairs += [pair for one, other in combinations(families, 2) for pair in product(one, other)]
    for one, other in pairs:
        if one.ref != other.ref:
            yield Candidate(
                one.ref, one.size if _is_of_one_size(one, other) else None, choice=Choice.APART, less=other.ref
            )


def _is_of_one_size(one: Candidate[Ref], other: Candidate[Ref]) -> bool:
    return one.size == other.size or None in (one.size, other.size)
