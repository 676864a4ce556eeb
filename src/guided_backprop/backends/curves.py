"""What a composite activation makes of numbers, worked out: where its constants make a ReLU of it, it is none.

``x * f(x)`` with a sigmoid in f is a SiLU for all that its operations say, and a ReLU where f is
``sigmoid(x) * 0 + (1 + x / abs(x)) / 2``; a CELU of which 0 times is added is one too.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import erf, isnan
from typing import Final, Protocol, TypeVar

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
