"""The sign of what operations give, by how they make it: one vocabulary for the frameworks.

Values of one sign tell no ReLU from the identity. Where they have it however the images are, there is nothing that a
gate could close, so there is no ReLU but the explicit ones.
"""

from collections.abc import Callable, Hashable, Sequence
from enum import Flag, auto
from functools import reduce
from operator import and_, or_
from typing import Final, TypeVar

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.operations import Kind, Operation

Ref = TypeVar("Ref")


class Sign(Flag):
    """What all numbers of a value are, whatever the images are."""

    UNKNOWN = 0
    NOT_NEGATIVE = auto()
    NOT_POSITIVE = auto()
    ZERO = NOT_NEGATIVE | NOT_POSITIVE


#: Never negative by arithmetic, and by no activation: a ReLU of these is none.
MAGNITUDES: Final = frozenset({"abs", "huber_loss", "hypot", "norm", "squared_difference", "var"})
_NOT_NEGATIVE: Final = MAGNITUDES | frozenset(
    """
    argmax argmin cosh erfc exp hardsigmoid nonzero one_hot relu relu6 rsqrt sigmoid softmax softplus sparse_plus sqrt
    squareplus
    """.split()
)
_NOT_POSITIVE: Final = frozenset({"log_sigmoid", "log_softmax"})
# What has a sign if all that it is made of has it: sums, means, and some of several values.
_KEEPS: Final = frozenset(
    """
    add avg_pool cumsum gather identity_n max max_pool mean min resize scatter scatter_add sort sum where
    """.split()
)
# Curves of one value through 0 that rise there, and roundings: what they give has its sign.
_CURVES: Final = frozenset(
    """
    asinh atan ceil celu elu erf expm1 floor gelu hardswish log1p mish rint round selu sign silu sinh softsign
    stop_gradient tanh trunc
    """.split()
)

# What a value less the largest, or the smallest, of its own numbers is.
_LESS_ITS_OWN: Final = {"max": Sign.NOT_POSITIVE, "min": Sign.NOT_NEGATIVE}


def sign_of_numbers(low: float, high: float) -> Sign:
    """Return the sign of numbers from ``low`` to ``high``."""
    rising = Sign.NOT_NEGATIVE if low >= 0 else Sign.UNKNOWN
    return rising | Sign.NOT_POSITIVE if high <= 0 else rising


def sign_of_array(array: NumpyArray) -> Sign:
    """Return the sign of an array that is known; NaN, which stands for no number at all, has any."""
    # The short kinds of floating-point numbers are "void" to NumPy.
    if array.dtype.kind not in "biufV":
        return Sign.UNKNOWN
    numbers = array.astype(np.float64)
    rising = Sign.UNKNOWN if (numbers < 0).any() else Sign.NOT_NEGATIVE
    return rising if (numbers > 0).any() else rising | Sign.NOT_POSITIVE


def sign_of(
    operation: Operation, signs: Sequence[Sign], exponent: float | None = None, *, is_square: bool = False
) -> Sign:
    """Return the sign of what an operation gives.

    Args:
        operation: its row in the table.
        signs: those of the numbers that it is made of, in the order of the operation; of no mask and of no place.
        exponent: of a power, where that is known.
        is_square: whether it is the product of a value and a positive multiple of the same.
    """
    kind, word = operation
    if is_square or word in _NOT_NEGATIVE or (word == "pow" and exponent is not None and exponent % 2 == 0):
        return Sign.NOT_NEGATIVE
    if word in _NOT_POSITIVE:
        return Sign.NOT_POSITIVE
    if not signs:
        return Sign.UNKNOWN
    if word == "pow" and exponent is not None and exponent % 2 == 1:
        return signs[0] if exponent > 0 else _product(signs[:1])
    if word in _MADE:
        return _MADE[word](signs)
    if word in _CURVES:
        return signs[0]
    if kind is Kind.CHOOSES and word in _KEEPS:
        # It may give out places besides, which are not negative.
        return _if_not_negative(signs)
    return reduce(and_, signs) if kind is Kind.MOVES or word in _KEEPS else Sign.UNKNOWN


def sign_of_difference(operands: Sequence[Ref], extreme_of: Callable[[Ref], tuple[str, Ref | None] | None]) -> Sign:
    """Return what is known of a difference where one is chosen among the other's numbers, as in a softmax.

    Args:
        operands: a value, and what it is lessened by.
        extreme_of: says of a value that at each place it is the largest ("max") or the smallest ("min") of some numbers
            of another one, that of this place among them, and of which one; None if it is not.
    """
    first, second = operands
    for value, other, turn in ((first, second, Sign), (second, first, turned)):
        word, of = extreme_of(other) or ("", None)
        if word in _LESS_ITS_OWN and of == value:
            return turn(_LESS_ITS_OWN[word])
    return Sign.UNKNOWN


def sign_of_range(first: tuple[str, Hashable] | None, second: tuple[str, Hashable] | None) -> Sign:
    """Return what is known of the largest of some numbers less the smallest of these, or the other way round.

    Args:
        first: whether it is the largest ("max") or the smallest ("min"), and of what; None if it is neither.
        second: the same of what is taken away.
    """
    if first is None or second is None or first[1] != second[1] or {first[0], second[0]} != {*_LESS_ITS_OWN}:
        return Sign.UNKNOWN
    return turned(_LESS_ITS_OWN[first[0]])


def turned(sign: Sign) -> Sign:
    """Return the sign of the negative."""
    return sign if sign in (Sign.UNKNOWN, Sign.ZERO) else sign ^ Sign.ZERO


def _product(signs: Sequence[Sign]) -> Sign:
    """Return the sign of a product of two, summed or not; of more than two, where something may be added to it."""
    if len(signs) > 2:
        return _if_not_negative(signs)
    first, second = signs if len(signs) == 2 else (*signs, Sign.NOT_NEGATIVE)
    if not (first and second):
        return Sign.UNKNOWN
    # A factor of 0 leaves 0, but of what is endless.
    if Sign.ZERO in (first, second):
        return Sign.ZERO
    return Sign.NOT_NEGATIVE if first == second else Sign.NOT_POSITIVE


def _quotient(signs: Sequence[Sign]) -> Sign:
    return Sign.UNKNOWN if signs[-1] is Sign.ZERO else _product(signs)


def _if_not_negative(signs: Sequence[Sign]) -> Sign:
    return reduce(and_, signs) & Sign.NOT_NEGATIVE


def _first_if_not_negative(signs: Sequence[Sign]) -> Sign:
    return signs[0] & Sign.NOT_NEGATIVE


def _maximum(signs: Sequence[Sign]) -> Sign:
    return (reduce(or_, signs) & Sign.NOT_NEGATIVE) | (reduce(and_, signs) & Sign.NOT_POSITIVE)


def _minimum(signs: Sequence[Sign]) -> Sign:
    return turned(_maximum([turned(sign) for sign in signs]))


def _clamp(signs: Sequence[Sign]) -> Sign:
    """Return the sign of x between its bounds, as far as they are given: x, the lower and the upper one."""
    return _minimum([_maximum(signs[:2]), *signs[2:3]])


#: The sign of a value, from those of what it is made of.
_MADE: Final[dict[str, Callable[[Sequence[Sign]], Sign]]] = {
    "addcmul": lambda signs: signs[0] & _product(signs[1:]),
    "clamp": _clamp,
    "conv": _product,
    "cumprod": _if_not_negative,
    "div": _quotient,
    "einsum": _product,
    # A slope of its own may turn what is below 0.
    "leaky_relu": _first_if_not_negative,
    "matmul": _product,
    "maximum": _maximum,
    "minimum": _minimum,
    "modulo": _if_not_negative,
    "mul": _product,
    "neg": lambda signs: turned(signs[0]),
    "pow": _first_if_not_negative,
    "prelu": _first_if_not_negative,
    "prod": _if_not_negative,
    "rrelu": _first_if_not_negative,
    "rsub": lambda signs: turned(signs[0]) & signs[1],
    "sub": lambda signs: reduce(and_, [signs[0], *map(turned, signs[1:])]),
}
