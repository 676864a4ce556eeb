"""What a composite activation makes of numbers, worked out: where its constants make a ReLU of it, it is none.

``x * f(x)`` with a sigmoid in f is a SiLU for all that its operations say, and a ReLU where f is
``sigmoid(x) * 0 + (1 + x / abs(x)) / 2``; a CELU of which 0 times is added is one too. With an array in it each number
of that makes a curve of its own: ``where(x > 0, x, slopes * x)`` is a ReLU where a slope is 0, be it but one.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import erf, isnan
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.spelling import Verdict, judge

Ref = TypeVar("Ref", bound=Hashable)
#: What an operation makes of numbers.
Function = Callable[..., NumpyArray]

# Beyond these all composite activations are straight; no number is 0.
_NUMBERS: Final = np.linspace(-12.0, 12.0, 2400)
# Beside 0, and far from it: a bend that is not at 0 lies between some of these.
_BESIDE: Final = np.logspace(-3, 4, 800)
# What is constant is so but for rounding.
_ROUNDED: Final = 1e-12
# A line is one but for so large a part of its largest number.
_STRAIGHT: Final = 1e-9
# What a curve has left of its largest number is nothing.
NOTHING: Final = 1e-6
_BELOW_0: Final = frozenset({"celu", "elu"})
_ERF: Final = np.vectorize(erf, otypes=[float])

_FUNCTIONS: Final[Mapping[str, Function]] = {
    "abs": np.abs,
    "add": np.add,
    "div": np.divide,
    "erf": _ERF,
    "erfc": lambda x: 1 - _ERF(x),
    "exp": np.exp,
    "expm1": np.expm1,
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "log": np.log,
    "log1p": np.log1p,
    "logaddexp": np.logaddexp,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "pow": np.power,
    "relu": lambda x: np.maximum(x, 0),
    "relu1": lambda x: np.clip(x, 0, 1),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": lambda x: 0.5 * np.tanh(x / 2) + 0.5,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sqrt": np.sqrt,
    "sub": np.subtract,
    "tanh": np.tanh,
}


def _chosen(mask: NumpyArray, x: NumpyArray, y: NumpyArray) -> NumpyArray:
    return np.where(mask != 0, x, y)


# What compares and chooses, with numbers for truth as a cast gives them.
_MASKS: Final[Mapping[str, Function]] = {
    "equal": lambda x, y: np.equal(x, y) * 1.0,
    "greater": lambda x, y: np.greater(x, y) * 1.0,
    "greater_equal": lambda x, y: np.greater_equal(x, y) * 1.0,
    "less": lambda x, y: np.less(x, y) * 1.0,
    "less_equal": lambda x, y: np.less_equal(x, y) * 1.0,
    "logical_and": np.minimum,
    "logical_not": lambda x: 1.0 - x,
    "logical_or": np.maximum,
    "not_equal": lambda x, y: np.not_equal(x, y) * 1.0,
    "sign": np.sign,
    "where": _chosen,
}
# These leave the numbers of an array as they are, or some of them.
_KEPT: Final = frozenset({"broadcast", "expand", "reshape", "slice", "squeeze", "transpose"})
# Both sides of 0, in order: few, for there may be as many slopes as an image has numbers.
_SIDES: Final = np.concatenate([-np.logspace(4, -3, 8), np.logspace(-3, 4, 8)])[:, None]
_MOST_COLUMNS: Final = 1 << 15
_MOST_PARTS: Final = 40


class Made(Protocol[Ref]):
    """What has to be known of a graph: how a value is made, and which number it is; as patterns see it."""

    def made(self, value: Ref) -> tuple[str, Sequence[Ref | float]] | None:
        """Return the word of the operation that makes a value, and its operands."""

    def constant(self, value: Ref) -> float | None:
        """Return the number that a value is everywhere."""

    def number(self, value: Ref) -> float | None:
        """Return the same, also of an array of one number as far as the graph tells it."""


def is_other(name: str, last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    """Tell whether the numbers in a curve make something else of it than its name says.

    A bound that is not 0 is told by its values. What a ReLU and a curve below 0 add up to is straight above 0.
    """
    is_none = name in _BELOW_0 and not _is_bent_below(last, x, view)
    return is_none or is_relu(last, x, view) or (name != "clamp" and is_switch(last, x, view))


def is_partly_relu(slopes: NumpyArray, factor: float = 1.0) -> bool:
    """Tell whether some slopes of a PReLU, times a number, are as 0 beside the 1 above 0, or that beside them."""
    sizes = np.abs(np.asarray(slopes, np.float64) * factor)
    return bool(((sizes <= NOTHING) | (sizes > 1 / NOTHING)).any())


def relu_in_places(last: Ref, x: Ref, view: Made[Ref], array_of: Callable[[Ref], NumpyArray | None]) -> Verdict:
    """Tell whether some number of an array in a curve of x makes a ReLU of it, or the negative of one.

    Args:
        last: what the curve gives.
        x: what it is a curve of, value by value.
        view: the graph.
        array_of: returns a constant of several numbers; None if nobody knows them.
    """
    curve, verdict = _InPlaces(x, view, array_of), Verdict.NONE
    # A first look says how many numbers there are; with none, or where something else is read, nothing is looked for.
    if curve.worked_out(last, slice(1)) is None or len(curve.sizes) != 1:
        return verdict
    for start in range(0, max(curve.sizes), _MOST_COLUMNS):
        y = curve.worked_out(last, slice(start, start + _MOST_COLUMNS))
        found = Verdict.NONE if y is None else _relu_in_columns(y)
        if found is Verdict.CONVEX:
            return found
        verdict = found if verdict is Verdict.NONE else verdict
    return verdict


def _relu_in_columns(y: NumpyArray) -> Verdict:
    """Say whether a column is 0 up to a threshold, or from one on, and a multiple of the numbers on its other side."""
    y = np.broadcast_to(y, (len(_SIDES), y.shape[-1] if y.ndim else 1))
    y = y[:, np.isfinite(y).all(0)]
    if not y.size:
        return Verdict.NONE
    slopes = y / _SIDES
    steepest = np.abs(slopes).max(0)
    is_shut = np.abs(slopes) <= NOTHING * steepest
    verdict = Verdict.NONE
    for end, sign in ((0, 1), (-1, -1)):
        is_one_side = is_shut[end] & ~is_shut[-1 - end] & ((is_shut[1:] != is_shut[:-1]).sum(0) == 1)
        open_slope = slopes[-1 - end]
        is_line = (is_shut | (np.abs(slopes - open_slope) <= NOTHING * steepest)).all(0)
        is_relu = is_one_side & is_line
        if (is_relu & (sign * open_slope > 0)).any():
            return Verdict.CONVEX
        verdict = Verdict.CONCAVE if is_relu.any() else verdict
    return verdict


class _InPlaces(Generic[Ref]):
    """A curve of x for some numbers, row by row, and for all numbers of its arrays, column by column."""

    def __init__(self, x: Ref, view: Made[Ref], array_of: Callable[[Ref], NumpyArray | None]) -> None:
        self._x, self._view, self._array_of = x, view, array_of
        self._known: dict[Ref | float, NumpyArray | None] = {}
        self.sizes = set[int]()

    def worked_out(self, last: Ref, columns: slice) -> NumpyArray | None:
        """Return what the curve is for some of the columns; None if that is not known."""
        self._known = {}
        with np.errstate(all="ignore"):
            return self._value(last, columns)

    def _value(self, value: Ref | float, columns: slice) -> NumpyArray | None:
        if value == self._x:
            return _SIDES
        if value not in self._known:
            self._known[value] = None
            if len(self._known) <= _MOST_PARTS:
                self._known[value] = self._made(value, columns)
        return self._known[value]

    def _made(self, value: Ref | float, columns: slice) -> NumpyArray | None:
        constant = value if isinstance(value, float) else self._view.constant(value)
        if isinstance(value, float) or (constant is not None and not isnan(constant)):
            return np.asarray(constant)
        array = None if constant is None else self._array_of(value)
        if array is not None:
            self.sizes.add(array.size)
            return array.astype(np.float64).reshape(1, -1)[:, columns]
        word, operands = self._view.made(value) or ("", ())
        if constant is not None and word in _KEPT:
            return self._value(operands[0], columns)
        function = _FUNCTIONS.get(word) or _MASKS.get(word)
        given = list[NumpyArray]()
        for operand in operands if function is not None else ():
            numbers = self._value(operand, columns)
            if numbers is None:
                return None
            given.append(numbers)
        return None if function is None else function(*given)


def is_relu(last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    """Tell whether a curve of x is a ReLU of it, or the negative of one, by the numbers that are in it.

    Where one of them, or an operation, is not known nobody knows: then it is what its operations say.
    """
    with np.errstate(all="ignore"):
        y = _worked_out(last, x, view, {}, _NUMBERS)
    if y is None or not np.isfinite(y).all():
        return False
    y = np.where(np.abs(y) <= NOTHING * np.abs(y).max(), 0.0, y)
    return judge(y, _NUMBERS).verdict in (Verdict.CONVEX, Verdict.CONCAVE)


def _is_bent_below(last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    """Tell whether a curve is a line above 0 and none right below it; of a number that nobody knows it may be one."""
    with np.errstate(all="ignore"):
        above, below = (_worked_out(last, x, view, {}, side * _BESIDE) for side in (1, -1))
    if above is None or below is None or not np.isfinite(above).all():
        return False
    line = np.interp(_BESIDE, _BESIDE[[0, -1]], above[[0, -1]])
    return bool(below[0] != below[1]) and not (np.abs(above - line) > _STRAIGHT * np.abs(above).max()).any()


def is_switch(last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    """Tell whether the numbers that x is shifted by put a bend of its curve at 0, as of ``hardsigmoid(z / 10 - 3)``.

    Of z it is one number on one side of 0, and another one right beside that: then values judge what it is.
    """
    value, is_shifted = x, False
    while (step := _undone(value, view)) is not None:
        value, is_shift = step
        is_shifted |= is_shift
        with np.errstate(all="ignore"):
            if is_shifted and _opens_at_zero(last, value, view):
                return True
    return False


def _undone(value: Ref | float, view: Made[Ref]) -> tuple[Ref | float, bool] | None:
    """Return what a value is but for one number, and whether it is shifted by that; None if it is of no one value."""
    made = None if isinstance(value, float) else view.made(value)
    if made is None or made[0] not in ("add", "div", "mul", "neg", "sub"):
        return None
    moving = [one for one in made[1] if not isinstance(one, float) and view.constant(one) is None]
    return (moving[0], made[0] in ("add", "sub")) if len(moving) == 1 else None


def _opens_at_zero(last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    halves = [_worked_out(last, x, view, {}, side * _BESIDE) for side in (-1, 1)]
    for closed, opened in (halves, halves[::-1]):
        if closed is None or opened is None or not (np.isfinite(closed).all() and np.isfinite(opened).all()):
            return False
        if np.ptp(closed) <= _ROUNDED * np.abs(opened).max() < np.abs(opened[0] - closed[0]):
            return True
    return False


def _worked_out(
    value: Ref | float,
    x: Ref | float,
    view: Made[Ref],
    known: dict[Ref | float, NumpyArray | None],
    numbers: NumpyArray,
) -> NumpyArray | None:
    """Return what a value is for some numbers in the place of x; None if that is not known."""
    if value == x:
        return numbers
    if value not in known:
        known[value] = None
        constant = value if isinstance(value, float) else view.number(value)
        made = None if isinstance(value, float) or constant is not None else view.made(value)
        if constant is not None and not isnan(constant):
            known[value] = np.full_like(numbers, constant)
        elif made is not None and made[0] in _FUNCTIONS:
            operands = [_worked_out(operand, x, view, known, numbers) for operand in made[1]]
            if all(operand is not None for operand in operands):
                known[value] = _FUNCTIONS[made[0]](*operands)
    return known[value]
