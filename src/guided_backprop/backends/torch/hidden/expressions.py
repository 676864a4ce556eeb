"""How values of a watched forward pass are made of each other, value by value, as curves.py asks of any graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final

import torch

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.curves import Curve, Curves, curve_of, is_known, parts_of
from guided_backprop.backends.notes import Choice
from guided_backprop.backends.torch.graph.operations import OPERATIONS
from guided_backprop.backends.torch.hidden.notes import Made, Note, Operand, Value

_COPIES: Final = OPERATIONS.called("cast", "copy", "stop_gradient")
# What is dispatched under another name than others know it by.
_WORDS: Final = {
    "bitwise_and": "logical_and",
    "bitwise_not": "logical_not",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "clamp_max": "minimum",
    "clamp_min": "maximum",
    "eq": "equal",
    "ge": "greater_equal",
    "gt": "greater",
    "hardtanh": "clamp",
    "le": "less_equal",
    "lt": "less",
    "masked_fill": "where",
    "ne": "not_equal",
    "prelu": "leaky_relu",
    "reciprocal": "div",
    "rsub": "sub",
}


class Expressions:
    """What is known of the values of one run.

    Attributes:
        read: the constants whose numbers were asked for.
        plain: of what is no ReLU by the numbers in it, by its node's place in time, how the values are made that it is
            none of.
    """

    def __init__(self) -> None:
        self.read: list[torch.Tensor] = []
        self.plain: dict[int, list[Made]] = {}
        self._curves: dict[Made, Curves[Made]] = {}

    def made(self, value: Made) -> tuple[str, Sequence[Made | float]] | None:
        """Return the word of the operation that makes a value, and its operands; None of a constant, and of others."""
        return (value.word, value.operands) if value.word else None

    def constant(self, value: Made) -> float | None:
        """Return the number that a value is; NaN if it is an array, None if it depends on the images."""
        if value.tensor is None:
            return None
        is_one = value.tensor.numel() == 1 and not value.tensor.is_complex()
        self.read += [value.tensor] if is_one else []
        return float(value.tensor.item()) if is_one else float("nan")

    number = constant

    def array(self, value: Made) -> NumpyArray | None:
        """Return the numbers of a constant."""
        if value.tensor is None or value.tensor.is_complex() or value.tensor.layout is not torch.strided:
            return None
        self.read.append(value.tensor)
        return as_numpy(value.tensor)

    def curves(self, made: Made, number: int, values: Sequence[Value]) -> Curves[Made]:
        """Return what a result is of the values that it may be a ReLU of.

        Args:
            made: how it is made.
            number: its node's place in time.
            values: the values.
        """
        asked = [x.made for x in values if x.choice is Choice.NONE and not (x.sign or x.is_beside)]
        curves = Curves(made, [x for x in asked if x is not None and made.word], self)
        self._curves[made] = curves
        plain = [x for x, curve in curves.known.items() if curve.is_open or curve.is_none]
        beside = (x.made for x in values if x.is_beside and x.choice is Choice.NONE and x.made is not None)
        self.plain[number] = [*plain, *(x for x in beside if (curve := self._curve(made, x)) and curve.is_open)]
        return curves

    def _curve(self, made: Made, x: Made) -> Curve | None:
        return curve_of(made, parts_of(made, x, self, self.array)) if made.word else None

    def is_made(self, made: Made, x: Value) -> bool:
        """Tell whether a sum with a ReLU that is written there is a ReLU of a value, by the operations that make it."""
        if not x.is_beside or x.choice is not Choice.NONE or x.sign or x.made is None:
            return False
        curve = self._curve(made, x.made)
        return curve is not None and curve.is_whole and (curve.is_convex or curve.is_concave)

    def noted(self, note: Note, made: Made) -> Note:
        """Return a note of how a value is made, without what others tell of."""
        curves = self._curves.get(made)
        is_told = None if curves is None else lambda source: source.made is not None and curves.is_told(source.made)
        return replace(note if is_told is None else note.without(is_told), made=made)


def is_none(curves: Curves[Made], value: Value) -> bool:
    """Tell whether what is of others as curves say is no ReLU of a value, or of what it is less another one."""
    every = [one.made for one in (value, value.less) if one is not None]
    known = [one for one in every if one is not None]
    if len(known) < len(every):
        return False
    return curves.is_none(known[0]) if value.choice is Choice.NONE else curves.tells_of(known)


def made_by(
    name: str, args: Sequence[Any], named: Mapping[str, Any], operands: Sequence[Operand], result: torch.Tensor
) -> Made:
    """Return how an operation makes a result; with no word if nobody knows it value by value."""
    unknown, given = Made(tuple(result.shape)), list(_operands(args, iter(operands)))
    if name in _COPIES:
        is_rounded = operands[0].is_number and not result.is_floating_point()
        return given[0] if isinstance(given[0], Made) and len(operands) == 1 and not is_rounded else unknown
    is_plain = all(isinstance(value, int) and value == 1 for value in named.values())
    told, word = _ordered(name, [one for one in given if one is not None]), _WORDS.get(name, name)
    if None in given or not is_plain or not is_known(word, len(told)):
        return unknown
    made = [one for one in told if isinstance(one, Made)]
    has_arrays = any(one.has_arrays or (one.tensor is not None and one.tensor.numel() > 1) for one in made)
    return Made(tuple(result.shape), word, tuple(told), has_arrays=has_arrays)


def _ordered(name: str, given: list[Made | float]) -> list[Made | float]:
    """Return what an operation is given in the order in which others are given it."""
    if name == "rsub":
        return given[::-1]
    if name == "masked_fill":
        return [*given[1:], given[0]]
    return {"reciprocal": [1.0, *given], "clamp": [*given, inf][:3]}.get(name, given)


def _operands(args: Sequence[Any], left: Iterator[Operand]) -> Iterator[Made | float | None]:
    """Yield how each of what an operation is given is made; None of what is no value."""
    for place, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            operand = next(left)
            if operand.note is None:
                yield Made(tuple(arg.shape), tensor=operand.tensor)
            else:
                made = operand.note.made
                # A view has its numbers elsewhere than what it is a view of.
                is_there = made is not None and (not made.has_arrays or made.shape == tuple(arg.shape))
                yield made if is_there else Made(tuple(arg.shape))
        elif isinstance(arg, (bool, int, float)):
            yield float(arg)
        else:
            # A bound that there is not.
            yield (-inf, inf)[place - 1] if arg is None and place in (1, 2) else None
