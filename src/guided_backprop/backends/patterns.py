"""Composite activations, written out as several operations: one list of patterns for the graphs of all frameworks.

What one framework has an operation for, another writes out: PReLU with two ReLUs, hard-sigmoid with a ReLU6, softmax
with exponentials. A composite activation is one activation and keeps its own derivative, however it is written; an
explicit ``relu6(x + 3)`` is a ReLU. So the patterns are looked for before the ReLUs, in every graph alike, through a
:class:`View`.

A pattern is data: nested tuples ``(word, operand, ...)`` of the vocabulary in operations.py, variables (:data:`X`),
constants, and the few other elements of forms.py. To know another composite activation is to write one row of
:data:`PATTERNS`.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import isclose, isnan
from typing import Generic, Protocol, TypeVar

from guided_backprop.backends.curves import MOST_PARTS, is_other
from guided_backprop.backends.forms import Clipped, Constant, Curve, Form, Moved, Number, Times, Variable

Ref = TypeVar("Ref", bound=Hashable)
#: What stands for each variable of a pattern, and the values inside of it.
Bound = tuple[Mapping[str, Ref | float], frozenset[Ref | float]]


class View(Protocol[Ref]):
    """A graph as patterns see it: values, and how each is made. Copies and casts are not seen."""

    def made(self, value: Ref) -> tuple[str, Sequence[Ref | float]] | None:
        """Return the word of the operation that makes a value, and its operands; None for an input of the graph.

        A number that is an attribute of the operation is an operand like others: a square is ``("pow", (x, 2.0))``.
        """

    def constant(self, value: Ref) -> float | None:
        """Return the number that a value is everywhere; None if it depends on the images.

        NaN if it is a constant of several numbers, or one that the graph does not tell.
        """

    def number(self, value: Ref) -> float | None:
        """Return the same, also of an array of one number as far as the graph tells it: no slopes of a PReLU."""

    def users(self, value: Ref) -> Sequence[Ref]:
        """Return the values that are made of a value directly, once for each time that they use it."""


@dataclass(frozen=True)
class Pattern:
    """A composite activation: how the coverage lists it, and what it looks like."""

    name: str
    form: Form


@dataclass(frozen=True)
class Slopes(Generic[Ref]):
    """Slopes of a PReLU: an array of weights, times a number."""

    array: Ref
    factor: float


@dataclass(frozen=True)
class Match(Generic[Ref]):
    """A composite activation in a graph.

    Attributes:
        name: how the coverage lists it.
        last: the value that it ends in.
        bound: what stands for its variables.
        parts: the values inside of it, ``last`` among them.
    """

    name: str
    last: Ref
    bound: Mapping[str, Ref | float]
    parts: frozenset[Ref | float]

    @property
    def slopes(self) -> "Slopes[Ref] | None":
        """The slopes below 0 of a PReLU that is written out: what is 0 in them is a ReLU; None of all else."""
        array, factor = self.bound.get(_SLOPES.name), self.bound.get(_FACTOR, 1.0)
        return None if array is None or isinstance(array, float) else Slopes(array, float(factor))  # type: ignore[arg-type]


X = Variable("x")
# What goes into a softmax; a shift by its largest value is no part of the pattern, for it changes nothing.
SHIFTED = Variable("shifted")
POWERS = ("exp", SHIFTED)

MOVES = frozenset({"broadcast", "expand", "reshape", "squeeze", "stop_gradient", "transpose"})
_COMMUTE = frozenset({"add", "mul", "maximum", "minimum"})
_POINTWISE = frozenset(
    """
    abs add div erf erfc exp expm1 hardsigmoid log log1p logaddexp mul neg pow sigmoid softplus sqrt sub tanh
    """.split()
)
# What is a ReLU if it does not belong to a composite activation: used elsewhere as well, it is one of its own.
_RELUS = frozenset({"clamp", "maximum", "minimum"})
# What those are called that the graph knows as such: "relu6", "threshold(0.5)".
_CLIPPED = ("relu", "threshold")
_ROUNDING = 1e-5

# What JAX's logsumexp is before it adds the shift again.
LARGEST = Variable("largest")
_LOG_OF_POWERS = Moved(("log", Moved(("abs", Moved(("sum", ("exp", ("sub", X, Moved(LARGEST)))))))))

# By this a match calls what the slopes are multiplied by besides.
_FACTOR = "factor"
# Any number but 0, and an array. Then what is below 0 of x, as people write it for a leaky ReLU, and twice that.
_KNOWN, _SLOPES = Constant(is_known=True), Constant(is_known=False, name="slopes")
_BELOW, _LEFT = ("minimum", X, Number(0.0)), ("sub", X, ("relu", X))
_TWICE = ("sub", X, ("abs", X))
_DOUBLED: tuple[Form, ...] = (_TWICE, ("mul", _KNOWN, _TWICE))
# What bends below 0, and is bounded there before or behind: all numbers in it are told (curves.py).
_POWERS, _POWERS_OF_BOUND = (Curve(X, frozenset({"exp|expm1", *bound})) for bound in ((), ("minimum",)))
_RELU6_OF_SHIFTED = ("relu6", ("add", X, Number(3.0)))
# By its formula, and as Keras' own until its third version, and ONNX's.
_HARDSIGMOIDS = tuple(("relu1", ("add", Times(X, slope), Number(0.5))) for slope in (1 / 6, 0.2))


def _told(form: Form) -> Form:
    return Times(form, is_told=True)


def _gated(*operations: str) -> Form:
    """Return x times a function of x that is made with these operations."""
    return ("mul", Times(X), Times(Curve(X, frozenset(operations))))


def _chosen(comparison: str, bound: Form, form: Form, other: Form) -> Form:
    return ("where", (comparison, X, bound), form, other)


_SHRUNK = _chosen("less", _KNOWN, ("add", X, _KNOWN), Number(0.0))
_BENT = _chosen("less", Number(1.0), Times(("pow", ("add", X, Number(1.0)), Number(2.0)), 0.25), X)
_LINE = _chosen("greater_equal", Number(1.0), Number(1.0), Times(("add", X, Number(1.0)), 0.5))
#: Where two patterns fit one value, the one with more parts is meant; a pattern inside of another is a part of it. So
#: the order of the rows says nothing.
PATTERNS: tuple[Pattern, ...] = (
    Pattern("silu", _gated("sigmoid")),
    *(Pattern("gelu", _gated(*holding)) for holding in (["erf|erfc"], ["tanh", "pow"])),
    *(Pattern("mish", _gated("tanh", *holding)) for holding in (["logaddexp|softplus"], ["exp", "log|log1p"])),
    Pattern("hardswish", _gated("hardsigmoid")),
    *(Pattern("hardswish", ("mul", Times(X), Times(gate))) for gate in (_RELU6_OF_SHIFTED, *_HARDSIGMOIDS)),
    Pattern("hardsigmoid", Times(_RELU6_OF_SHIFTED, 1 / 6)),
    *(Pattern("hardsigmoid", form) for form in _HARDSIGMOIDS),
    # Not with a slope that may be 0, for then it is a ReLU.
    *(Pattern("leaky_relu", ("maximum", X, (word, X, _KNOWN))) for word in ("mul", "div")),
    *(
        Pattern(name, (word, Clipped(X), ("mul", slope, below)))
        for name, slope in (("leaky_relu", _KNOWN), ("prelu", _SLOPES))
        for word in ("add", "sub")
        for below in (_BELOW, ("relu", ("neg", X)))
    ),
    # Keras' own, with a threshold.
    Pattern("leaky_relu", ("sub", Clipped(X), ("mul", _KNOWN, ("relu", ("add", ("neg", X), _KNOWN))))),
    *(Pattern("leaky_relu", ("add", Clipped(X), ("mul", _KNOWN, rest))) for rest in (_LEFT, *_DOUBLED)),
    Pattern("prelu", ("add", Clipped(X), ("mul", _SLOPES, _LEFT))),
    # All that it is multiplied by is a slope of it: one array, and numbers that the graph tells.
    Pattern("prelu", ("add", Clipped(X), _told(("mul", _SLOPES, _told(_TWICE))))),
    Pattern("elu", ("add", Times(("relu", X)), Times(("minimum", _POWERS, Number(0.0))))),
    *(Pattern("celu", ("add", Times(above), _POWERS_OF_BOUND)) for above in (("maximum", X, Number(0.0)), ("relu", X))),
    *(Pattern("elu", _chosen(word, Number(0.0), X, Times(_POWERS_OF_BOUND))) for word in ("greater", "greater_equal")),
    # Keras' own, in TensorFlow.
    Pattern("softshrink", _chosen("greater", _KNOWN, ("sub", X, _KNOWN), _SHRUNK)),
    Pattern("sparse_plus", _chosen("less_equal", Number(-1.0), Number(0.0), _BENT)),
    Pattern("sparse_sigmoid", _chosen("less_equal", Number(-1.0), Number(0.0), _LINE)),
    Pattern("softsign", ("div", X, ("add", ("abs", X), Number(1.0)))),
    Pattern("log_sigmoid", ("neg", ("softplus", ("neg", X)))),
    Pattern("softmax", ("div", POWERS, Moved(("sum", POWERS)))),
    Pattern("log_softmax", ("sub", SHIFTED, Moved(("log", Moved(("sum", POWERS)))))),
    Pattern("log_softmax", ("sub", X, Moved(("add", _LOG_OF_POWERS, Moved(LARGEST))))),
    Pattern("logsumexp", ("log", Moved(("sum", POWERS)))),
    Pattern("logsumexp", ("log", Moved(("abs", Moved(("sum", POWERS)))))),
    # Bounds that are not 0, for from 0 on it is a ReLU.
    *(Pattern("clamp", (to, (of, X, _KNOWN), _KNOWN)) for to, of in (("minimum", "maximum"), ("maximum", "minimum"))),
    *(Pattern("norm", ("sqrt", Moved(("sum", square)))) for square in (("pow", X, Number(2.0)), ("mul", X, X))),
)


def _words(form: Form) -> frozenset[str] | None:
    """Return the operations, as words, one of which makes a value that is what a form says; None if any may."""
    match form:
        case Clipped():
            return None
        case Times(inner) | Moved(inner):
            words = _words(inner)
            return None if words is None else words | ({"div", "mul", "neg"} if isinstance(form, Times) else MOVES)
        case (str(word), *_):
            return frozenset({word})
    return None


def _needs(pattern: Pattern) -> list[frozenset[str]]:
    """Return what must be among the operations that make a value's operands: by this most values fit no pattern."""
    operands = pattern.form[1:] if isinstance(pattern.form, tuple) else ()
    return [words for operand in operands if (words := _words(operand)) is not None]  # type: ignore[arg-type]


_BY_ROOT: dict[str, list[tuple[Pattern, list[frozenset[str]]]]] = {}
for _pattern in PATTERNS:
    for _root in _words(_pattern.form) or ():
        _BY_ROOT.setdefault(_root, []).append((_pattern, _needs(_pattern)))

#: The operations that a composite activation may end in, as words: no others need to be looked at.
ROOTS = frozenset(_BY_ROOT)


def _candidates(value: Ref, view: View[Ref]) -> list[Pattern]:
    """Return the patterns that a value may fit, by the operations next to it."""
    made = view.made(value)
    if made is None or made[0] not in _BY_ROOT:
        return []
    words = {inner[0] for operand in made[1] if (inner := _made(operand, view)) is not None}
    return [pattern for pattern, needs in _BY_ROOT[made[0]] if not any(words.isdisjoint(need) for need in needs)]


def composites(view: View[Ref], values: Sequence[Ref]) -> dict[Ref, Match[Ref]]:
    """Return the composite activations in a graph, by the value that each ends in.

    Args:
        view: the graph.
        values: the values that one may end in.
    """
    matches = []
    for value in values:
        fits = (match_of(pattern, value, view) for pattern in _candidates(value, view))
        fitting = [match for match in fits if match is not None]
        if fitting:
            matches.append(max(fitting, key=lambda match: len(match.parts)))
    inside = {part for match in matches for part in match.parts if part != match.last}
    return {match.last: match for match in matches if match.last not in inside}


def match_of(pattern: Pattern, last: Ref, view: View[Ref]) -> Match[Ref] | None:
    """Return how a value is what a pattern says, or None; its numbers may say otherwise."""
    for bound, parts in _fits(pattern.form, last, view, ({}, frozenset())):
        if _stands_alone(last, parts, view) and not ("x" in bound and is_other(pattern.name, last, bound["x"], view)):
            return Match(pattern.name, last, bound, parts)
    return None


def _stands_alone(last: Ref, parts: frozenset[Ref | float], view: View[Ref]) -> bool:
    """Tell whether no ReLU inside of a match is used outside of it."""
    for part in parts:
        made = _made(part, view)
        is_relu = part != last and made is not None and (made[0] in _RELUS or made[0].startswith(_CLIPPED))
        if is_relu and not isinstance(part, float) and not parts.issuperset(view.users(part)):
            return False
    return True


def _fits(form: Form, value: Ref | float, view: View[Ref], bound: Bound[Ref]) -> Iterator[Bound[Ref]]:
    """Yield each way in which a value is what a form says."""
    match form:
        case Variable(name):
            yield from _fits_variable(name, value, view, bound)
        case Number() | Constant():
            if _is_constant(form, _constant(value, view)):
                name = form.name if isinstance(form, Constant) else ""
                yield ({**bound[0], name: value}, bound[1]) if name else bound
        case Times(inner):
            yield from _fits_times(form, inner, value, view, bound)
        case Moved(inner):
            yield from _fits_moved(inner, value, view, bound)
        case Clipped(inner):
            yield from _fits_clipped(inner, value, view, bound)
        case Curve(variable, holding):
            yield from _fits_curve(variable, holding, value, view, bound)
        case (str(word), *operands):
            yield from _fits_operation(word, operands, value, view, bound)


def _fits_variable(name: str, value: Ref | float, view: View[Ref], bound: Bound[Ref]) -> Iterator[Bound[Ref]]:
    variables, parts = bound
    if name in variables:
        if variables[name] == value:
            yield bound
    elif _constant(value, view) is None:
        yield {**variables, name: value}, parts


def _fits_operation(
    word: str, forms: Sequence[object], value: Ref | float, view: View[Ref], bound: Bound[Ref]
) -> Iterator[Bound[Ref]]:
    made = _made(value, view)
    if made is None or made[0] != word or len(made[1]) != len(forms):
        return
    orders = permutations(made[1]) if word in _COMMUTE else [made[1]]
    for operands in orders:
        ways = [_with(bound, value)]
        for form, operand in zip(forms, operands, strict=True):
            ways = [fitted for way in ways for fitted in _fits(form, operand, view, way)]  # type: ignore[arg-type]
        yield from ways


def _fits_times(
    form: Times, inner: Form, value: Ref | float, view: View[Ref], bound: Bound[Ref]
) -> Iterator[Bound[Ref]]:
    """Undo products with constants one by one, until what is left is what is looked for."""
    factor, passed = 1.0, bound
    while True:
        if form.value is None or isclose(factor, form.value, rel_tol=_ROUNDING):
            if not form.is_told:
                yield from _fits(inner, value, view, passed)
            elif not isnan(factor):
                yield from _fits(inner, value, view, _multiplied(passed, factor))
        scaled = _scaled(value, view)
        if scaled is None:
            return
        passed = _with(passed, value)
        value, factor = scaled[0], factor * scaled[1]


def _multiplied(bound: Bound[Ref], factor: float) -> Bound[Ref]:
    variables, parts = bound
    return {**variables, _FACTOR: float(variables.get(_FACTOR, 1.0)) * factor}, parts  # type: ignore[arg-type]


def _fits_moved(inner: Form, value: Ref | float, view: View[Ref], bound: Bound[Ref]) -> Iterator[Bound[Ref]]:
    while True:
        yield from _fits(inner, value, view, bound)
        made = _made(value, view)
        if made is None or made[0] not in MOVES:
            return
        bound, value = _with(bound, value), made[1][0]


def _fits_clipped(inner: Form, value: Ref | float, view: View[Ref], bound: Bound[Ref]) -> Iterator[Bound[Ref]]:
    while (made := _made(value, view)) is not None and made[0].startswith(_CLIPPED):
        bound, value = _with(bound, value), made[1][0]
        yield from _fits(inner, value, view, bound)


def _fits_curve(
    variable: Variable, holding: frozenset[str], value: Ref | float, view: View[Ref], bound: Bound[Ref]
) -> Iterator[Bound[Ref]]:
    """Go back from a value to the variable, by operations value by value alone."""
    variables, parts = bound
    if variable.name not in variables:
        return
    words, known = set[str](), _POINTWISE.union(*(wanted.split("|") for wanted in holding))
    inside: set[Ref | float] = set()
    stack: list[Ref | float] = [value]
    is_reached = False
    while stack:
        ref = stack.pop()
        if ref == variables[variable.name]:
            is_reached = True
        elif ref not in inside and _constant(ref, view) is None:
            made = _made(ref, view)
            if made is None or made[0] not in known or len(inside) == MOST_PARTS:
                return
            inside.add(ref)
            words.add(made[0])
            stack.extend(made[1])
    if is_reached and all(words.intersection(wanted.split("|")) for wanted in holding):
        yield variables, parts | inside


def _scaled(value: Ref | float, view: View[Ref]) -> tuple[Ref | float, float] | None:
    """Return what a value is a constant multiple of, and that constant; NaN if it is not known."""
    match _made(value, view):
        case ("neg", [x]):
            return x, -1.0
        case ("mul", [x, y]):
            for left, right in ((x, y), (y, x)):
                factor = _constant(right, view)
                if factor is not None and _constant(left, view) is None:
                    return left, factor
        case ("div", [x, y]):
            divisor = _constant(y, view)
            if divisor is not None and _constant(x, view) is None:
                return x, 1 / divisor if divisor else float("nan")
    return None


def _made(value: Ref | float, view: View[Ref]) -> tuple[str, Sequence[Ref | float]] | None:
    return None if isinstance(value, float) else view.made(value)


def _constant(value: Ref | float, view: View[Ref]) -> float | None:
    return value if isinstance(value, float) else view.constant(value)


def _is_constant(form: Number | Constant, constant: float | None) -> bool:
    if constant is None:
        return False
    if isinstance(form, Number):
        return isclose(constant, form.value, rel_tol=_ROUNDING, abs_tol=1e-12)
    is_known = not isnan(constant) and constant != 0
    return form.is_known is None or (is_known if form.is_known else isnan(constant))


def _with(bound: Bound[Ref], part: Ref | float) -> Bound[Ref]:
    variables, parts = bound
    return variables, parts | {part}
