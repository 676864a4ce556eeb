"""Guards: what keeps rounding out of a root by a maximum with 0, and is no ReLU; one list for all frameworks.

``max(E[x^2] - E[x]^2, 0)`` is never below 0 but for rounding: where it is closed there is nothing to close, and nobody
meant an activation. So an explicit ReLU of what cannot be negative by its arithmetic keeps its own derivative, however
it is written. A ReLU of a ReLU's result, or of a softmax, is still one: that is an activation behind an activation.

A graph is seen as the patterns see it, through a :class:`~guided_backprop.backends.patterns.View`.
"""

from collections.abc import Iterator, Sequence
from math import isclose, isnan
from typing import NamedTuple, Protocol, TypeGuard, TypeVar

from guided_backprop.backends.patterns import MOVES, Match, View
from guided_backprop.backends.signs import MAGNITUDES

Ref = TypeVar("Ref")
Other = TypeVar("Other")

#: How the coverage lists a guard.
NAME = "maximum"

#: What may be a guard: a ReLU, by its own name in a view.
_RELU = "relu"
#: Not below 0 if what they are made of is not, in all of their operands.
_KEEPS_ALL = frozenset("add concatenate div minimum mul stack".split())
#: The same of the first alone: what follows says which, where and how.
_KEEPS_FIRST = MOVES | frozenset(
    """
    avg_pool cast copy cumsum flip gather log1p max max_pool mean min pow prod slice sort split sqrt sum unfold
    """.split()
)
_MEANS = frozenset({"avg_pool", "mean"})
_PRODUCTS = frozenset({"einsum", "matmul"})
#: What stands in front of most ReLUs, and is no guard's.
_LAYERS = frozenset({"batch_norm", "conv", "matmul"})
_ROOTS = frozenset({"rsqrt", "sqrt"})
#: Value by value: a root behind them is taken of what went in.
_POINTWISE = MOVES | frozenset("add cast copy div mul neg sub".split())
_ROUNDING = 1e-5
_DEEPEST = 24


class Sums(View[Ref], Protocol[Ref]):
    """A graph that may tell of a sum how many it sums."""

    def summed(self, value: Ref) -> int | None:
        """Return how many values each number of a sum is the sum of; None where the graph does not tell."""


class _Term(NamedTuple):
    """What is added, and how often: NaN if it is a constant that the graph does not tell."""

    factor: float
    value: object


def guards(view: Sums[Ref], values: Sequence[Ref]) -> dict[Ref, Match[Ref]]:
    """Return the guards in a graph, by the value that each ends in.

    Args:
        view: the graph.
        values: the values that one may be.
    """
    matches = {}
    for value in values:
        made = view.made(value)
        if made is None or not made[0].startswith(_RELU) or len(made[1]) != 1:
            continue
        x = made[1][0]
        if not isinstance(x, float) and _Guard(view).is_guard(x, value):
            matches[value] = Match(NAME, value, {"x": x}, frozenset({value}))
    return matches


class _Guard:
    """Looks at one graph.

    Args:
        view: the graph.
    """

    def __init__(self, view: Sums[Other]) -> None:
        self._view: Sums[object] = view  # type: ignore[assignment]

    def is_guard(self, x: object, y: object) -> bool:
        """Tell whether ``y = max(x, 0)`` changes nothing but what rounding made of x."""
        made = self._made(x)
        if made is None or made[0] in _LAYERS:
            return False
        if self.is_never_negative(x):
            return True
        terms = list(self._terms(x, 1.0))
        return (
            self._is_variance(terms)
            or self._is_distance(terms)
            or (self._is_difference_of_squares(terms) and self._leads_to_root(y))
        )

    def is_never_negative(self, value: object, *, is_lenient: bool = False, depth: int = _DEEPEST) -> bool:
        """Tell whether a value cannot be below 0, by its arithmetic alone.

        Args:
            value: the value.
            is_lenient: whether a constant that the graph does not tell counts as a positive one: a number of values.
            depth: how far to go back.
        """
        constant = self._constant(value)
        if constant is not None:
            return constant >= 0 or (is_lenient and isnan(constant))
        made = self._made(value)
        if made is None or depth == 0:
            return False
        word, operands = made
        if word in MAGNITUDES or self._squared(value) is not None:
            return True
        if word == "where":
            is_fixed = self._constant(operands[0]) is not None
            # What stands for no value at all, as a variance of nothing is NaN.
            operands = [operand for operand in operands[1:] if not (is_fixed and isnan(self._constant(operand) or 0.0))]
        elif word in _KEEPS_FIRST:
            operands = operands[:1]
        elif word not in _KEEPS_ALL:
            return False
        return bool(operands) and all(
            self.is_never_negative(operand, is_lenient=is_lenient, depth=depth - 1) for operand in operands
        )

    def _is_variance(self, terms: Sequence[_Term]) -> bool:
        """``E[x^2] - E[x]^2``, in either order, and of whatever positive multiple."""
        if len(terms) != 2:
            return False
        for (plus, square), (minus, squared) in (terms, terms[::-1]):
            if plus > 0 and isclose(plus, -minus, rel_tol=_ROUNDING):
                inside, behind = self._averaged(square), self._squared(self._unmoved(squared))
                x, mean = self._squared(inside), self._averaged(behind)
                if x is not None and mean is not None and self._unmoved(mean) == self._unmoved(x):
                    return True
        return False

    def _is_distance(self, terms: Sequence[_Term]) -> bool:
        """``|a|^2 + |b|^2 - 2 a b``, summed over some axes."""
        if len(terms) != 3:
            return False
        products = [term for term in terms if term.factor < 0]
        squares = [term for term in terms if term.factor > 0]
        if len(products) != 1 or len(squares) != 2:
            return False
        factors = self._factors(products[0].value)
        of = [self._squared(self._unsummed(term.value)) for term in squares]
        is_of_both = bool(factors) and {self._unmoved(factor) for factor in factors} == {
            self._unmoved(base) for base in of
        }
        first, second = (term.factor for term in squares)
        return is_of_both and first == second and isclose(products[0].factor, -2 * first, rel_tol=_ROUNDING)

    def _is_difference_of_squares(self, terms: Sequence[_Term]) -> bool:
        """Sums of squares less others, or less products: what a root is taken of where it is a variance or a length.

        Of a mask, or of constants, the graph does not tell how many values there are.
        """
        positive = [term.value for term in terms if not term.factor < 0]
        negative = [term.value for term in terms if term.factor < 0]
        return (
            any(self._constant(value) is None for value in positive)
            and bool(negative)
            and all(self.is_never_negative(value, is_lenient=True) for value in positive)
            and all(self.is_never_negative(value, is_lenient=True) or self._factors(value) for value in negative)
        )

    def _leads_to_root(self, value: object, depth: int = _DEEPEST) -> bool:
        """Tell whether all that a value is used for is a root."""
        users = self._view.users(value)
        return depth > 0 and bool(users) and all(self._is_on_way_to_root(user, depth) for user in users)

    def _is_on_way_to_root(self, value: object, depth: int) -> bool:
        made = self._made(value)
        if made is None:
            return False
        word, operands = made
        if word in _ROOTS or (word == "pow" and operands[-1] in (0.5, -0.5)):
            return True
        depending = sum(self._constant(operand) is None for operand in operands)
        return word in _POINTWISE and depending == 1 and self._leads_to_root(value, depth - 1)

    def _terms(self, value: object, factor: float, depth: int = _DEEPEST) -> Iterator[_Term]:
        """Yield what a value is the sum of."""
        made = self._made(value) if depth else None
        match made:
            case ("neg", [x]):
                yield from self._terms(x, -factor, depth - 1)
            case ("add", [x, y]):
                yield from self._terms(x, factor, depth - 1)
                yield from self._terms(y, factor, depth - 1)
            case ("sub", [x, y]):
                yield from self._terms(x, factor, depth - 1)
                yield from self._terms(y, -factor, depth - 1)
            case (word, [x, *_]) if word in MOVES:
                yield from self._terms(x, factor, depth - 1)
            case _ if self._is_multiple(scaled := self._scaled(value), value):
                yield from self._terms(scaled[0], factor * scaled[1], depth - 1)
            case _:
                yield _Term(factor, value)

    def _is_multiple(self, scaled: tuple[object, float] | None, value: object) -> TypeGuard[tuple[object, float]]:
        """Tell whether a value is to be taken as a multiple of another: a sum over their number is a mean."""
        return scaled is not None and not isnan(scaled[1]) and self._averaged(value) is None

    def _averaged(self, value: object) -> object:
        """Return what a value is the mean of; None if it is no mean."""
        factor = 1.0
        while (made := self._made(value)) is not None:
            word, operands = made
            if word in _MEANS and isclose(factor, 1.0, rel_tol=_ROUNDING):
                return operands[0]
            count = self._view.summed(value) if word == "sum" else None
            if count is not None:
                return operands[0] if isclose(factor * count, 1.0, rel_tol=_ROUNDING) else None
            scaled = self._scaled(value)
            if scaled is not None:
                factor *= scaled[1]
            elif word not in MOVES:
                break
            value = operands[0] if scaled is None else scaled[0]
        return None

    def _squared(self, value: object) -> object:
        """Return what a value is the square of, or an even power; None if it is none."""
        match self._made(value):
            case ("pow", [x, float(exponent)]) if exponent > 0 and exponent % 2 == 0:
                return x
            case ("pow", [x, exponent]) if (known := self._constant(exponent)) and known > 0 and known % 2 == 0:
                return x
            case ("mul", [x, y]) if x == y:
                return x
        return None

    def _factors(self, value: object) -> list[object]:
        """Return the two that a value is the product of, summed over some axes; both of the images, or nothing."""
        made = self._made(self._unsummed(value))
        if made is None or made[0] not in _PRODUCTS | {"mul"}:
            return []
        operands = [operand for operand in made[1] if not isinstance(operand, float)][:2]
        return operands if all(self._constant(operand) is None for operand in operands) else []

    def _unmoved(self, value: object) -> object:
        while (made := self._made(value)) is not None and made[0] in MOVES:
            value = made[1][0]
        return value

    def _unsummed(self, value: object) -> object:
        while (made := self._made(value)) is not None and made[0] in MOVES | {"sum"}:
            value = made[1][0]
        return value

    def _scaled(self, value: object) -> tuple[object, float] | None:
        """Return what a value is a constant multiple of, and that constant; NaN if it is not known."""
        match self._made(value):
            case ("mul" | "div" as word, [x, y]):
                for left, right in ((x, y), (y, x))[: 2 if word == "mul" else 1]:
                    factor = self._constant(right)
                    if factor is not None and self._constant(left) is None:
                        return left, factor if word == "mul" else 1 / factor if factor else float("nan")
        return None

    def _made(self, value: object) -> tuple[str, Sequence[object]] | None:
        return None if value is None or isinstance(value, float) else self._view.made(value)

    def _constant(self, value: object) -> float | None:
        return value if isinstance(value, float) else self._view.constant(value)
