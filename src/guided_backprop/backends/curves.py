"""What a composite activation makes of numbers, worked out: where its constants make a ReLU of it, it is none.

``x * f(x)`` with a sigmoid in f is a SiLU for all that its operations say, and a ReLU where f is
``sigmoid(x) * 0 + (1 + x / abs(x)) / 2``; a CELU of which 0 times is added is one too. With an array in it each number
of that makes a curve of its own: ``where(x > 0, x, slopes * x)`` is a ReLU where a slope is 0, be it but one.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from math import erf, isnan
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from guided_backprop.arrays import NumpyArray

Ref = TypeVar("Ref", bound=Hashable)
#: What an operation makes of numbers.
Function = Callable[..., NumpyArray]
#: How values are made: of others by an operation, as constants, or as None, which is x.
Parts = dict[Ref | float, tuple[str, Sequence[Ref | float]] | NumpyArray | None]
#: What values are already known to be; None where nobody knows.
Known = dict[Ref | float, NumpyArray | None]

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

_COMPARED: Final = {
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_xor": np.not_equal,
    "not_equal": np.not_equal,
}


def _chosen(mask: NumpyArray, x: NumpyArray, y: NumpyArray) -> NumpyArray:
    return np.where(mask != 0, x, y)


# By the word and how many operands there are; truth is a number, as a cast gives it.
_FUNCTIONS: Final[Mapping[tuple[str, int], Function]] = {
    ("abs", 1): np.abs,
    ("add", 2): np.add,
    ("clamp", 3): np.clip,
    ("div", 2): np.divide,
    ("elu", 2): lambda x, slope: np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0))),
    ("erf", 1): _ERF,
    ("erfc", 1): lambda x: 1 - _ERF(x),
    ("exp", 1): np.exp,
    ("expm1", 1): np.expm1,
    ("hardsigmoid", 1): lambda x: np.clip(x / 6 + 0.5, 0, 1),
    ("hardswish", 1): lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    ("leaky_relu", 2): lambda x, slope: np.where(x > 0, x, slope * x),
    ("lerp", 3): lambda x, y, weight: x + weight * (y - x),
    ("log", 1): np.log,
    ("log1p", 1): np.log1p,
    ("logaddexp", 2): np.logaddexp,
    ("logical_and", 2): np.minimum,
    ("logical_not", 1): lambda x: 1.0 - x,
    ("logical_or", 2): np.maximum,
    ("maximum", 2): np.maximum,
    ("minimum", 2): np.minimum,
    ("mul", 2): np.multiply,
    ("neg", 1): np.negative,
    ("pow", 2): np.power,
    ("relu", 1): lambda x: np.maximum(x, 0),
    ("relu1", 1): lambda x: np.clip(x, 0, 1),
    ("relu6", 1): lambda x: np.clip(x, 0, 6),
    ("sigmoid", 1): lambda x: 0.5 * np.tanh(x / 2) + 0.5,
    ("sign", 1): np.sign,
    ("softplus", 1): lambda x: np.logaddexp(x, 0),
    ("sqrt", 1): np.sqrt,
    ("stop_gradient", 1): lambda x: x,
    ("sub", 2): np.subtract,
    ("tanh", 1): np.tanh,
    ("where", 3): _chosen,
    **{(word, 2): lambda x, y, compare=compare: compare(x, y) * 1.0 for word, compare in _COMPARED.items()},
}
# What gives the same numbers in another order: place by place it is still a curve, as long as no array is in it.
_MOVES: Final = frozenset({"broadcast", "expand", "reshape", "squeeze", "transpose"})
# Both sides of 0, in order: few, for there may be as many slopes as an image has numbers.
_SIDES: Final = np.sort(np.concatenate([-np.logspace(-3, 4, 8), np.logspace(-3, 4, 8), np.linspace(-12, 12, 26)]))
# So many of them lie below it.
_HALF: Final = len(_SIDES) // 2
_MOST_COLUMNS: Final = 1 << 14
#: A written-out GELU has about twenty operations; a chain of many more is something else.
MOST_PARTS: Final = 40


def is_known(word: str, count: int) -> bool:
    """Tell whether it is known what an operation makes of so many values, value by value."""
    return (word, count) in _FUNCTIONS


class Made(Protocol[Ref]):
    """What has to be known of a graph: how a value is made, and which number it is; as patterns see it."""

    def made(self, value: Ref) -> tuple[str, Sequence[Ref | float]] | None:
        """Return the word of the operation that makes a value, and its operands."""

    def constant(self, value: Ref) -> float | None:
        """Return the number that a value is everywhere."""

    def number(self, value: Ref) -> float | None:
        """Return the same, also of an array of one number as far as the graph tells it."""


class Told(Made[Ref], Protocol[Ref]):
    """The same, where the numbers of constants are known as well."""

    def array(self, value: Ref) -> NumpyArray | None:
        """Return a constant of several numbers, in a shape that broadcasts; None if nobody knows it."""


class Curve(NamedTuple):
    """What a value is of another one that all of it is made of, value by value.

    Attributes:
        is_convex: whether it is a ReLU of it, in some places at least.
        is_concave: whether it is the negative of one, likewise.
        is_whole: whether it is one of these, or does not change, everywhere: then its values show it.
        is_none: whether it is no gate of it, wherever that would close.
        is_open: whether it changes with it everywhere: then it is a ReLU of nothing that is made of it.
    """

    is_convex: bool
    is_concave: bool
    is_whole: bool
    is_none: bool
    is_open: bool


def is_other(name: str, last: Ref, x: Ref | float, view: Made[Ref]) -> bool:
    """Tell whether the numbers in a curve make something else of it than its name says.

    A bound that is not 0 is told by its values. What a ReLU and a curve below 0 add up to is straight above 0.
    """
    parts = parts_of(last, x, view)
    curve = curve_of(last, parts)
    # A soft shrink opens on both sides.
    is_relu = curve is not None and (curve.is_convex or curve.is_concave or (name == "softshrink" and curve.is_whole))
    is_none = name in _BELOW_0 and not _is_bent_below(last, parts)
    return is_none or is_relu or (name != "clamp" and is_switch(last, x, view))


def is_partly_relu(slopes: NumpyArray, factor: float = 1.0) -> bool:
    """Tell whether some slopes of a PReLU, times a number, are as 0 beside the 1 above 0, or that beside them."""
    sizes = np.abs(np.asarray(slopes, np.float64) * factor)
    return bool(((sizes <= NOTHING) | (sizes > 1 / NOTHING)).any())


def parts_of(
    last: Ref, x: Ref | float, view: Made[Ref], array_of: Callable[[Ref], NumpyArray | None] | None = None
) -> Parts[Ref] | None:
    """Return how a value is made of another one, value by value; None if it is not, or of what nobody knows.

    Args:
        last: the value.
        x: what it is made of.
        view: the graph.
        array_of: returns a constant of several numbers, where these are known.
    """
    parts, stack = Parts[Ref](), list[Ref | float]([last])
    while stack:
        value = stack.pop()
        if value == x:
            parts[value] = None
        if value in parts or isinstance(value, float):
            continue
        number = view.number(value)
        is_array = number is not None and isnan(number)
        known = (array_of(value) if array_of else None) if is_array else None if number is None else np.asarray(number)
        word, operands = view.made(value) or ("", ()) if known is None else ("", ())
        operands = operands[:1] if word in _MOVES else operands
        if (known is None and not (word in _MOVES or is_known(word, len(operands)))) or len(parts) > MOST_PARTS:
            return None
        parts[value] = (word, operands) if known is None else known.astype(np.float64)
        stack += operands
    return parts if x in parts else None


def curve_of(last: Ref, parts: Parts[Ref] | None) -> Curve | None:
    """Return what a value is of another one, by its operations and the numbers in them; None if some are not known.

    A leaky ReLU is one where a slope is 0, be it in one place: of few places no value tells, but the numbers do.

    Args:
        last: the value.
        parts: how it is made.
    """
    columns = {value: part for value, part in (parts or {}).items() if isinstance(part, np.ndarray) and part.ndim}
    try:
        shape = np.broadcast_shapes(*(array.shape for array in columns.values()))
    except ValueError:
        return None
    if parts is None or 0 in shape:
        return None
    if len(columns) == 1:
        columns = {value: np.unique(array) for value, array in columns.items()}
        shape = np.broadcast_shapes(*(array.shape for array in columns.values()))
    found = list[Curve | None]()
    for start in range(0, int(np.prod(shape)), _MOST_COLUMNS):
        part = slice(start, start + _MOST_COLUMNS)
        known: Known[Ref] = {value: np.broadcast_to(array, shape).flat[part][None] for value, array in columns.items()}
        y = _worked_out(last, parts, _SIDES[:, None], known)
        if y is None:
            return None
        with np.errstate(all="ignore"):
            found.append(_curve(y + 0 * _SIDES[:, None]))
    told = [one for one in found if one is not None]
    ways = zip(*told, strict=True)
    return Curve(*(how(way) for how, way in zip((any, any, all, all, all), ways, strict=True))) if told else None


class Curves(Generic[Ref]):
    """What one value is of several others, as far as it is known.

    Args:
        last: the value.
        values: the others.
        view: the graph.

    Attributes:
        known: what it is of each.
        opens: those that it changes with everywhere: it is a ReLU of nothing that is made of one of these alone.
    """

    def __init__(self, last: Ref, values: Iterable[Ref], view: Told[Ref]) -> None:
        self._parts = {x: parts_of(last, x, view, view.array) for x in dict.fromkeys(values)}
        every = {x: curve_of(last, parts) for x, parts in self._parts.items()}
        self.known = {x: curve for x, curve in every.items() if curve is not None}
        self.opens = [x for x, curve in self.known.items() if curve.is_open]

    def is_none(self, value: Ref) -> bool:
        """Tell whether it is no ReLU of a value."""
        return (value in self.known and self.known[value].is_none) or self.tells_of([value])

    def tells_of(self, values: Iterable[Ref]) -> bool:
        """Tell whether several values, or their difference, are made of one alone that it changes with everywhere."""
        every = list(values)
        return any(all(value in (self._parts[x] or ()) for value in every) for x in self.opens)

    def is_told(self, source: Ref) -> bool:
        """Tell whether another value tells of what it was made of, as x does of ``x / 2`` of ``max(x, x / 2)``.

        Behind weights the derivative towards half of x, which is made of x, tells nothing.
        """
        return source not in self.opens and self.tells_of([source])

    def is_partly_relu(self, *, takes_concave: bool) -> bool:
        """Tell whether it is a ReLU of one in some places alone, or the negative of one, if that counts."""
        told = [curve for curve in self.known.values() if not curve.is_whole]
        return any(curve.is_convex or (takes_concave and curve.is_concave) for curve in told)


def _curve(y: NumpyArray) -> Curve | None:
    """Say what the columns are of the numbers: a ReLU is 0 on one side of some number, and a multiple of all beyond."""
    is_known = np.isfinite(y).all(0)
    if not is_known.any():
        return None
    y, every = y[:, is_known], bool(is_known.all())
    slopes, rises = y / _SIDES[:, None], np.diff(y, axis=0) / np.diff(_SIDES)[:, None]
    is_shut, is_line = _near(slopes, 0), [_near(slopes, slopes[end]) for end in (-1, 0)]
    is_one = (is_shut[0] != is_shut[-1]) & ((is_shut[1:] != is_shut[:-1]).sum(0) == 1)
    is_relu = is_one & (is_shut | np.where(is_shut[0], *is_line)).all(0)
    is_relu |= _is_capped(is_shut[:_HALF], slopes[_HALF], rises[_HALF:])
    is_relu |= _is_capped(is_shut[_HALF:], slopes[_HALF - 1], rises[: _HALF - 1])
    is_convex = np.where(is_shut[0], slopes[_HALF] >= 0, slopes[_HALF - 1] <= 0)
    is_flat = _near(rises, 0, 1e-3)
    is_at_0 = (~is_flat | (is_shut[1:] & is_shut[:-1])).all(0)
    is_gate = (is_flat & (is_shut[1:] | is_shut[:-1])).any(0) | (is_flat[0] & is_flat[-1]) | _is_hinge(rises, 1e-3)
    return Curve(
        bool((is_relu & is_convex).any()),
        bool((is_relu & ~is_convex).any()),
        bool((is_relu | (_is_hinge(rises) & is_at_0) | (rises == 0).all(0)).all()),
        every and not bool(is_gate.any()),
        every and not bool(is_flat.any()),
    )


def _is_capped(is_shut: NumpyArray, slope: NumpyArray, rises: NumpyArray) -> NumpyArray:
    """Tell of what is shut on one side of 0 whether it rises on the other one as right beside 0, up to a cap."""
    is_line = _near(rises, slope) | _near(rises, 0)
    return np.asarray(is_shut.all(0) & (slope != 0) & ((~is_line).sum(0) <= 1))


def _is_hinge(rises: NumpyArray, part: float = NOTHING) -> NumpyArray:
    """Tell whether a curve is constant up to some number and straight from there on, or the other way round."""
    is_flat, ends = _near(rises, 0, part), [_near(rises, rises[end], part) for end in (-1, 0)]
    is_bent = [(~(is_flat | is_end)).sum(0) > 1 for is_end in ends]
    return np.asarray(is_flat.any(0) & ~(is_bent[0] & is_bent[1]))


def _near(slopes: NumpyArray, other: NumpyArray | float, part: float = NOTHING) -> NumpyArray:
    """Tell which slopes are others but for a part of the steepest one of their column."""
    return np.asarray(np.abs(slopes - other) <= part * np.abs(slopes).max(0))


def _is_bent_below(last: Ref, parts: Parts[Ref] | None) -> bool:
    """Tell whether a curve is a line above 0 and none right below it; of a number that nobody knows it may be one."""
    above, below = (_worked_out(last, parts, side * _BESIDE) for side in (1, -1))
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
        if is_shifted and _opens_at_zero(last, parts_of(last, value, view)):
            return True
    return False


def _undone(value: Ref | float, view: Made[Ref]) -> tuple[Ref | float, bool] | None:
    """Return what a value is but for one number, and whether it is shifted by that; None if it is of no one value."""
    made = None if isinstance(value, float) else view.made(value)
    if made is None or made[0] not in ("add", "div", "mul", "neg", "sub"):
        return None
    moving = [one for one in made[1] if not isinstance(one, float) and view.constant(one) is None]
    return (moving[0], made[0] in ("add", "sub")) if len(moving) == 1 else None


def _opens_at_zero(last: Ref, parts: Parts[Ref] | None) -> bool:
    halves = [_worked_out(last, parts, side * _BESIDE) for side in (-1, 1)]
    for closed, opened in (halves, halves[::-1]):
        if closed is None or opened is None or not (np.isfinite(closed).all() and np.isfinite(opened).all()):
            return False
        if np.ptp(closed) <= _ROUNDED * np.abs(opened).max() < np.abs(opened[0] - closed[0]):
            return True
    return False


def _worked_out(
    last: Ref, parts: Parts[Ref] | None, numbers: NumpyArray, known: Known[Ref] | None = None
) -> NumpyArray | None:
    """Return what a value is for some numbers in the place of x, given what others are; None if that is not known."""
    if parts is None:
        return None
    known = {} if known is None else known

    def of(value: Ref | float) -> NumpyArray | None:
        if value in known:
            return known[value]
        part = parts[value] if value in parts else np.asarray(value)
        if not isinstance(part, tuple):
            return numbers if part is None else part
        word, operands = part[0], [of(operand) for operand in part[1]]
        y = operands[0]
        if word not in _MOVES:
            y = None if any(one is None for one in operands) else _FUNCTIONS[word, len(operands)](*operands)
        elif y is not None and y.ndim == 2 and y.shape[-1] > 1:
            y = None
        known[value] = y
        return y

    with np.errstate(all="ignore"):
        return of(last)
