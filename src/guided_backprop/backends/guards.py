"""Guards: what keeps rounding out of a root by a maximum with 0, and is no ReLU; one list for all frameworks.

``max(E[x^2] - E[x]^2, 0)`` is never below 0 but for rounding: where it is closed there is nothing to close, and nobody
meant an activation. So an explicit ReLU of what cannot be negative by its arithmetic keeps its own derivative, however
it is written, and as a mask it hides none. A ReLU of a ReLU's result, or of a softmax, is still one: that is an
activation behind an activation.

What is below 0 for some images is closed there, and a root behind it is no reason not to: ``sqrt(relu(a^2 - b^2))`` is
a ReLU. But where all goes to a root, the moments of one value may have weights that the graph does not tell, as of a
mask or of the number of values, or be those of a distance from constants: then these are taken for the right ones.

A graph is seen as the patterns see it, through a :class:`~guided_backprop.backends.patterns.View` that tells of axes.
"""

from collections.abc import Hashable, Sequence
from itertools import islice
from math import inf, isnan
from typing import Generic, TypeVar

from guided_backprop.backends.moments import Moments, Summing, Term, is_distance, is_variance
from guided_backprop.backends.patterns import MOVES, Match
from guided_backprop.backends.signs import MAGNITUDES, Sign

Ref = TypeVar("Ref", bound=Hashable)

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
#: What may be a variance or a distance.
SUMS = frozenset({"add", "sub"})
#: What stands in front of most ReLUs, and is no guard's.
_LAYERS = frozenset({"batch_norm", "conv", "matmul"})
_ROOTS = frozenset({"rsqrt", "sqrt"})
#: Value by value: a root behind them is taken of what went in.
_POINTWISE = MOVES | frozenset("add cast copy div mul neg sub".split())
_DEEPEST = 24
# No guard is the sum of as many.
_MOST_TERMS = 8


class Guards(Generic[Ref]):
    """Looks at one graph.

    Args:
        view: the graph.
    """

    def __init__(self, view: Summing[Ref]) -> None:
        self._view = view
        self._moments = Moments(view)
        self._made, self._constant = self._moments.made, self._moments.constant
        self._known: dict[object, bool] = {}

    def among(self, values: Sequence[Ref]) -> dict[Ref, Match[Ref]]:
        """Return the guards among some values, by the value that each ends in."""
        matches = {}
        for value in values:
            made = self._view.made(value)
            if made is None or not made[0].startswith(_RELU) or len(made[1]) != 1:
                continue
            x = made[1][0]
            if not isinstance(x, float) and self._is_guard(x, value):
                matches[value] = Match(NAME, value, {"x": x}, frozenset({value}))
        return matches

    def sign(self, value: Ref) -> Sign:
        """Return the sign that a value has by sums of squares, variances and distances, but for rounding."""
        terms = self._terms(value)
        falling = Sign.NOT_POSITIVE if self._is_above(_opposite(terms)) else Sign.UNKNOWN
        return Sign.NOT_NEGATIVE | falling if self._is_above(terms) else falling

    def _is_guard(self, x: Ref, y: Ref) -> bool:
        """Tell whether ``y = max(x, 0)`` changes nothing but what rounding made of x, or is 0 but for that."""
        made = self._made(x)
        if made is None or made[0] in _LAYERS:
            return False
        terms = self._terms(x)
        if self._is_above(terms) or self._is_above(_opposite(terms)):
            return True
        return self._is_difference(terms, is_lenient=True) and self._leads_to_root(y)

    def _terms(self, value: object) -> list[Term]:
        """Return what a value is the sum of; nothing of more than any guard is."""
        terms = list(islice(self._moments.terms(value), _MOST_TERMS))
        return terms if len(terms) < _MOST_TERMS else []

    def _is_above(self, terms: Sequence[Term]) -> bool:
        """Tell whether the sum of some terms is never below 0 but for rounding."""
        if terms and all(0 < term.factor < inf and self._is_never_negative(term.value) for term in terms):
            return True
        return self._is_difference(terms)

    def _is_difference(self, terms: Sequence[Term], *, is_lenient: bool = False) -> bool:
        """Tell whether some terms are a variance or a distance, and constants besides.

        Args:
            terms: the terms.
            is_lenient: whether they are if weights that the graph does not tell are the right ones.
        """
        if len({term.factor > 0 for term in terms}) < 2:
            return False
        values = [(term.factor, self._constant(term.value)) for term in terms]
        least = sum(factor * one for factor, one in values if one is not None)
        varying = [term for term, (_, one) in zip(terms, values, strict=True) if one is None]
        plus = [term for term in varying if term.factor > 0]
        minus = [term for term in varying if not term.factor > 0]
        is_any = len(minus) == 1 and len(plus) in (1, 2)
        # Where axes go is worked out for what may be one alone.
        are_products = is_any and all(self._moments.factors(term.value) for term in varying)
        return are_products and self._is_of_moments(plus, minus[0], least, is_lenient=is_lenient)

    def _is_of_moments(self, plus: Sequence[Term], minus: Term, least: float, *, is_lenient: bool) -> bool:
        product = self._moments.moment(minus)
        squares = [square for square in map(self._moments.moment, plus) if square is not None]
        if product is None or len(squares) < len(plus) or (not least >= 0 and not (is_lenient and isnan(least))):
            return False
        if len(squares) == 1 and is_variance(squares[0], product, is_lenient=is_lenient):
            return True
        # Of constants the graph does not tell the squares.
        has_constants = any(self._constant(part.base) is not None for part in product.parts)
        has_both = len(squares) == 2 or (is_lenient and isnan(least) and has_constants)
        return has_both and is_distance(squares, product)

    def _is_never_negative(self, value: object, depth: int = _DEEPEST) -> bool:
        """Tell whether a value cannot be below 0, by its arithmetic alone."""
        if value not in self._known:
            self._known[value] = self._is_made_so(value, depth)
        return self._known[value]

    def _is_made_so(self, value: object, depth: int) -> bool:
        constant = self._constant(value)
        if constant is not None:
            return constant >= 0
        made = self._made(value)
        if made is None or depth == 0:
            return False
        word, operands = made
        if word in MAGNITUDES or self._is_even(operands, word):
            return True
        if word in SUMS and self._is_difference(self._terms(value)):
            return True
        if word == "where":
            is_fixed = self._constant(operands[0]) is not None
            # What stands for no value at all, as a variance of nothing is NaN.
            operands = [operand for operand in operands[1:] if not (is_fixed and isnan(self._constant(operand) or 0.0))]
        elif word in _KEEPS_FIRST:
            operands = operands[:1]
        elif word not in _KEEPS_ALL:
            return False
        return bool(operands) and all(self._is_never_negative(operand, depth - 1) for operand in operands)

    def _is_even(self, operands: Sequence[object], word: str) -> bool:
        """Tell whether something is multiplied by itself, or raised to an even power."""
        if word == "mul":
            return len(operands) == 2 and operands[0] == operands[1]
        exponent = self._constant(operands[1]) if word == "pow" and len(operands) == 2 else None
        return bool(exponent) and exponent is not None and exponent > 0 and exponent % 2 == 0

    def _leads_to_root(self, value: object, depth: int = _DEEPEST) -> bool:
        """Tell whether all that a value is used for is a root."""
        users = self._view.users(value)  # type: ignore[arg-type]
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


def _opposite(terms: Sequence[Term]) -> list[Term]:
    return [term._replace(factor=-term.factor) for term in terms]
