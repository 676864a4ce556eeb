"""Second moments: products of two values, summed along some axes; what a variance or a distance is the difference of.

``E[x^2] - E[x]^2`` and ``|a|^2 + |b|^2 - 2 a b`` are never negative, but only where the same numbers are summed on all
sides. So each axis of what is multiplied is followed: to an axis of the result, or to a sum, which is the same sum for
both of the two or another one for each. A graph that does not tell where an axis goes tells of no moment.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count
from math import inf, isfinite, isnan, prod
from typing import Final, NamedTuple, Protocol, TypeVar

from guided_backprop.backends.axes import Axes
from guided_backprop.backends.patterns import MOVES, View

Ref = TypeVar("Ref", bound=Hashable)

#: What stands for one axis: an axis of the result, from the last one on (-1, -2...); from 0 on a sum, each by a number
#: of its own; None where there is one number along it. Behind those of windows follow which windows, and their sum.
Label = tuple[Hashable, ...]

_MEANS: Final = frozenset({"avg_pool", "mean"})
_LINEAR: Final = MOVES | _MEANS | {"sum"}
_PRODUCTS: Final = frozenset({"einsum", "matmul"})
# Between the axes of a value.
_END: Final = ";"
_ROUNDING: Final = 1e-5
_DEEPEST: Final = 24


class Summing(View[Ref], Protocol[Ref]):
    """A graph that tells where axes go."""

    def axes(self, value: Ref) -> Axes | None:
        """Return where the axes of what a value is made of go; None if the graph does not tell."""


class Term(NamedTuple):
    """What is added: how often, what, and by which operands of which values one comes to it.

    A factor that the graph does not tell is endless; its sign is that of all else, for it may be a number of values.
    """

    factor: float
    value: object
    way: tuple[tuple[object, int], ...] = ()


class Part(NamedTuple):
    """One of the two that are multiplied: a value, and what becomes of its axes."""

    base: object
    labels: Sequence[Hashable]


class Moment(NamedTuple):
    """A multiple of a sum of products of two values; ``counts`` says how many numbers each sum is of."""

    factor: float
    parts: tuple[Part, Part]
    counts: Mapping[Hashable, float]

    @property
    def pairs(self) -> list[tuple[Hashable, Hashable]] | None:
        """What becomes of each axis in both parts, if they are of one value."""
        (first, labels), (second, others) = self.parts
        return list(zip(labels, others, strict=True)) if first == second and len(labels) == len(others) else None


class Moments:
    """What the values of a graph are sums of.

    Args:
        view: the graph.
    """

    def __init__(self, view: Summing[Ref]) -> None:
        self._view: Summing[object] = view  # type: ignore[assignment]

    def terms(self, value: object, factor: float = 1.0, way: tuple[tuple[object, int], ...] = ()) -> Iterator[Term]:
        """Yield what a multiple of a value is the sum of; the last parts of a long one as they are."""
        word, operands = self.made(value) or ("", [])
        step = self._step(value)
        if word in ("add", "sub") and len(operands) == 2 and len(way) < _DEEPEST:
            for place, (operand, sign) in enumerate(zip(operands, (1, -1 if word == "sub" else 1), strict=True)):
                yield from self.terms(operand, sign * factor, (*way, (value, place)))
        elif step is not None and len(way) < _DEEPEST:
            place, scale = step
            yield from self.terms(operands[place], factor * scale, (*way, (value, place)))
        else:
            yield Term(factor, value, way)

    def factors(self, value: object) -> list[object]:
        """Return the two that a value is the product of, summed or not; nothing if it is none."""
        squared = self.squared(value)
        if squared is not None:
            return [squared, squared]
        word, operands = self.made(value) or ("", [])
        if word not in _PRODUCTS | {"mul"} or len(operands) != 2:
            return []
        return list(operands)

    def moment(self, term: Term) -> Moment | None:
        """Return a term as a moment, if it is one."""
        labels, numbers, counts = _Places(), count(), dict[Hashable, float]()
        following = _Following(self._view, numbers, counts)
        factor, parts = term.factor, []
        for value, place in term.way:
            labels, factor = following.inside(value, place, labels, factor, is_mean=self._is_mean(value))
        shared: dict[int, Hashable] = {}
        for place, part in enumerate(self.factors(term.value)):
            is_square = self.squared(term.value) is not None
            inner, _ = following.inside(term.value, 0 if is_square else place, labels, 1.0, shared=shared)
            # What is put into a shape that the graph does not tell of is a value of its own.
            while (step := self._step(part)) is not None and self._view.axes(part) is not None:
                inner, factor = following.inside(part, step[0], inner, factor * step[1], is_mean=self._is_mean(part))
                part = (self.made(part) or ("", []))[1][step[0]]  # noqa: PLW2901
            parts.append(Part(part, inner.flat))
        is_known = len(parts) == 2 and following.is_told
        return Moment(factor, (parts[0], parts[1]), counts) if is_known else None

    def squared(self, value: object) -> object:
        """Return what a value is the square of; None if it is none."""
        match self.made(value):
            case ("pow", [x, exponent]) if self.constant(exponent) == 2 and self.constant(x) is None:
                return x
        return None

    def _is_mean(self, value: object) -> bool:
        return (self.made(value) or ("", []))[0] in _MEANS

    def _step(self, value: object) -> tuple[int, float] | None:
        """Return which operand a value is a multiple of, moved or summed or not, and by how much."""
        word, operands = self.made(value) or ("", [])
        constants = [self.constant(operand) for operand in operands]
        match word, constants:
            case "neg", [None]:
                return 0, -1.0
            case ("mul", [None, float(factor)]) | ("mul", [float(factor), None]):
                return constants.index(None), inf if isnan(factor) else factor
            case "div", [None, float(divisor)]:
                return 0, inf if isnan(divisor) or divisor == 0 else 1 / divisor
            case "where", [float(), *chosen] if sorted(map(str, chosen)) == ["0.0", "None"]:
                # A mask that is no value of the images.
                return 1 + chosen.index(None), inf
        return (0, 1.0) if word in _LINEAR and constants[:1] == [None] else None

    def made(self, value: object) -> tuple[str, Sequence[object]] | None:
        """Return how the graph makes a value."""
        return None if value is None or isinstance(value, float) else self._view.made(value)

    def constant(self, value: object) -> float | None:
        """Return the number that a value is; NaN if the graph does not tell, None if it depends on the images."""
        return value if isinstance(value, float) else self._view.constant(value)


class _Places(dict[int, Label]):
    """What stands for the axes of a value, by their places from the last one on; of the result that is these places."""

    def __missing__(self, place: int) -> Label:
        return (place,)

    @property
    def flat(self) -> list[Hashable]:
        """All in their order."""
        return [each for place in sorted(self) for each in (*self[place], _END)]


class _Following:
    """Follows axes from results to what these are made of; ``is_told`` says whether the graph told of all."""

    def __init__(self, view: Summing[object], numbers: Iterator[int], counts: dict[Hashable, float]) -> None:
        self._view, self._numbers, self._counts = view, numbers, counts
        self.is_told = True

    def inside(
        self,
        value: object,
        operand: int,
        labels: _Places,
        factor: float,
        *,
        is_mean: bool = False,
        shared: dict[int, Hashable] | None = None,
    ) -> tuple[_Places, float]:
        """Return what stands for the axes of an operand, and the factor if a mean is a sum, as far as it is one.

        Args:
            value: what is made of the operand.
            operand: which operand it is.
            labels: what stands for the axes of the value.
            factor: what it is multiplied by.
            is_mean: whether the sums of this value are means.
            shared: the sums of this value that were met by another operand.
        """
        axes = self._view.axes(value)
        if axes is None or operand >= len(axes.operands):
            self.is_told = False
            return labels, factor
        shared, sums = {} if shared is None else shared, axes.operands[operand]
        windows = [0] if axes.windows is not None else []
        for axis in {*windows, *(axis for axis in sums if axis is not None and axis >= 0)} - shared.keys():
            shared[axis], size = next(self._numbers), axes.counts[axis]
            # A mean of who knows how many is one of a whole.
            self._counts[shared[axis]] = 1.0 if is_mean and isnan(size) else size
            factor = factor / size if is_mean and not isnan(size) else factor
        inner = _Places()
        for number, place in enumerate(sums):
            label: Label = (None,) if place is None else (shared[place],) if place >= 0 else labels[place]
            is_window = bool(windows) and place is not None
            inner[number - len(sums)] = (*label, axes.windows, shared[0]) if is_window else label
        return inner, factor


def is_variance(square: Moment, squared: Moment, *, is_lenient: bool = False) -> bool:
    """Tell whether a sum of squares is no less than the square of a sum of the same numbers, by their number.

    Args:
        square: the sum of squares, of whatever multiple.
        squared: what is taken from it.
        is_lenient: whether weights that the graph does not tell may be the right ones.
    """
    letters = _letters(square.pairs, squared.pairs)
    if letters is None or square.parts[0].base != squared.parts[0].base:
        return False
    number = 1.0
    for (first, second), (third, fourth) in letters.items():
        counts = [square.counts[first], squared.counts[third], squared.counts[fourth]]
        if (first != second and third == fourth) or not _are_alike(counts):
            return False
        number *= counts[0] if first == second and third != fourth else 1.0
    most = -squared.factor * number
    return square.factor >= most * (1 - _ROUNDING) if isfinite(square.factor + most) else is_lenient


def is_distance(squares: Sequence[Moment], product: Moment) -> bool:
    """Tell whether two sums of squares are no less than twice the sum of the products of the same numbers.

    Of what is none of the images the graph does not tell the squares: then there is one of them.
    """
    factors = [square.factor for square in squares]
    # Not as powers: those of large numbers are an error in Python, and no infinity.
    room, half = prod(factors * 2 if len(factors) == 1 else factors), product.factor / 2
    is_room = isfinite(room) and half * half <= room * (1 + _ROUNDING)
    return is_room and any(
        all(_is_square_of(square, product, place) for square, place in zip(squares, places, strict=False))
        for places in ((0, 1), (1, 0))
    )


def _is_square_of(square: Moment, product: Moment, place: int) -> bool:
    """Tell whether one is the sum of squares of a part of a product, along the axes along which that is summed."""
    part, other = product.parts[place], product.parts[1 - place]
    letters = _letters(square.pairs, [(label, label) for label in part.labels])
    if letters is None or square.parts[0].base != part.base:
        return False
    return all(
        (first == second) == (label in other.labels)
        and _are_alike([square.counts[first], square.counts[second], product.counts[label]])
        for (first, second), (label, _) in letters.items()
    )


def _are_alike(counts: Sequence[float]) -> bool:
    return len(set(map(str, counts))) == 1


def _letters(
    ones: Sequence[tuple[Hashable, Hashable]] | None, others: Sequence[tuple[Hashable, Hashable]] | None
) -> dict[tuple[Hashable, Hashable], tuple[Hashable, Hashable]] | None:
    """Return which sums of one moment are which of another one; None if axes go to different places."""
    if ones is None or others is None or len(ones) != len(others):
        return None
    letters: dict[tuple[Hashable, Hashable], tuple[Hashable, Hashable]] = {}
    for one, other in zip(ones, others, strict=True):
        are_sums = [isinstance(label, int) and label >= 0 for label in (*one, *other)]
        if not any(are_sums):
            if len({*one, *other}) > 1:
                return None
        elif not all(are_sums) or letters.setdefault(one, other) != other:
            return None
    return letters if len(set(letters.values())) == len(letters) else None
