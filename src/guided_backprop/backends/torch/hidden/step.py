"""One operation of a watched forward pass: whether it may give a ReLU, of what, and what is known of its result."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.signs import Sign, sign_of_difference
from guided_backprop.backends.spelling import RANKS
from guided_backprop.backends.torch.graph.operations import OPERATIONS
from guided_backprop.backends.torch.hidden.notes import (
    MOST_SOURCES,
    Extreme,
    Note,
    Operand,
    Value,
    is_one_number,
    merged,
    puts_constants,
)
from guided_backprop.backends.torch.hidden.signs import sign_of_result

# The magnitude of a value, or its root: of x and this a ReLU can be made.
_MAGNITUDES: Final = OPERATIONS.called("abs", "hypot", "norm", "pow", "sqrt", "rsqrt", "atan2")
# They are what their row says, whatever they are given.
_KNOWN: Final = OPERATIONS.of(Kind.SMOOTH, Kind.HEAD, Kind.NORM, Kind.RELU, Kind.RANDOM, Kind.HIDDEN)
# Curves of one value, of which it is known that they are no gates.
_CURVES: Final = OPERATIONS.called("abs", "hardshrink", "huber_loss", "modulo", "norm", "renorm", "softshrink")
# They give some of the values that they are given.
_CHOICES: Final = frozenset({"max", "max_pool", "min", "sort"})
_DETACHES: Final = OPERATIONS.called("stop_gradient")
# They choose among values that come to one place.
_REDUCES: Final = frozenset({"index_reduce", "scatter_reduce"})
_GATHERS: Final = OPERATIONS.called("gather")
# Value by value: with a constant they bend nothing.
_POINTWISE: Final = OPERATIONS.called("add", "sub", "rsub", "mul", "div", "neg", "lerp", "addcmul")
_SHIFTS: Final = frozenset({"add", "sub"})
_PACKED: Final = frozenset({"convolution_pointwise", "convolution_transpose_pointwise", "linear_pointwise"})
# What a softmax is lessened by; and what leaves that as it is.
_EXTREMES: Final = frozenset({"amax", "amin", "max", "min"})
_COPIES: Final = _DETACHES | {"clone"}
# They compare values with each other, and not with a constant.
_RANKS: Final = OPERATIONS.called(*RANKS)


class Step:
    """One operation, with what it was given.

    Attributes:
        is_relu: whether it is a ReLU by what it is called with.
    """

    def __init__(
        self, name: str, args: tuple[Any, ...], named: Mapping[str, Any], operands: list[Operand], *, is_relu: bool
    ) -> None:
        self.name, self._args, self._named, self._operands, self.is_relu = name, args, named, operands, is_relu
        self._kind, self._word = OPERATIONS[name]
        self.dependent = [operand for operand in operands if operand.note is not None]
        self._tainted = [operand for operand in self.dependent if operand.is_tainted]
        self._active = [operand for operand in self.dependent if operand.is_active]
        # What is written over is not read: it may be memory that nothing was written to before.
        self._read = operands[1:] if name == "copy" and len(operands) > 1 else operands
        is_passing = self._kind is not Kind.COMPARES and name not in _DETACHES
        # Packed layers run in a function of their own, which gives their results a gradient.
        has_gradient = torch.is_grad_enabled() or name in _PACKED
        passes = is_passing and bool(self._active) and has_gradient
        self._is_choice = self._kind is Kind.CHOOSES or name in _REDUCES
        self._is_start = self._is_choice or self._kind is Kind.CLIP or name in _MAGNITUDES or not passes
        self._passes = passes
        self.is_by_rank = self._ranks()
        #: The gates that what was given falls by.
        self.falling = frozenset[int]().union(*(operand.note.falling for operand in self.dependent if operand.note))

    @property
    def _is_mixing(self) -> bool:
        """Whether each of its results is made of several values."""
        return self._kind is Kind.LINEAR and self.name not in _POINTWISE

    @property
    def _is_of_a_bound(self) -> bool:
        """Whether it moves or multiplies what a bound made."""
        is_one = len(self.dependent) == 1 and (self._kind is Kind.MOVES or self.name in _POINTWISE)
        return is_one and any(operand.note.is_bound for operand in self.dependent if operand.note)

    @property
    def is_of_two(self) -> bool:
        """Whether it is the larger or smaller of two values that depend on the images wherever they are."""
        has_constants = any(operand.note.has_constants for operand in self.dependent if operand.note)
        return self._kind is Kind.CLIP and len(self._active) > 1 and not has_constants

    @property
    def adds_up(self) -> bool:
        """Whether its result is made of several values that depend on the images, and none of them as it was."""
        return len(self.dependent) > 1 and self._kind is not Kind.MOVES

    def _ranks(self) -> bool:
        """Tell whether what chooses here compared values of the images with each other, and with no constant."""
        masks = [operand for operand in self.dependent if operand.is_mask]
        if self._kind is Kind.COMPARES or (self._is_start and self._active):
            return self._compares_values() and all(operand.note.is_by_rank for operand in masks if operand.note)
        if self._kind in (Kind.RELU, Kind.CLIP) or (self._kind is Kind.SMOOTH and masks):
            return False
        return all(
            operand.note.is_by_rank and operand.note.is_tainted for operand in masks or self._tainted if operand.note
        )

    def _compares_values(self) -> bool:
        """Tell whether it chooses itself, among values of other places none of which was put there."""
        notes = [operand.note for operand in self.dependent if operand.note]
        sizes = {operand.tensor.numel() for operand in self.dependent}
        if self.name not in _RANKS and not (self._kind is Kind.COMPARES and len(sizes) > 1):
            return False
        # Of two values at one place, as x and -x, the larger one tells the sign of x.
        is_stacked = any(part.tensor.numel() < max(sizes) for note in notes for part in note.parts)
        is_put = any(is_one_number(operand.tensor) for operand in self.dependent)
        return not (is_stacked or is_put or any(note.has_constants for note in notes))

    def nominates(self, result: torch.Tensor) -> bool | None:
        """Return None if the result cannot be a ReLU, else whether a choice or taint is met right here."""
        if not self._passes or self.is_relu or self.name in _KNOWN - _MAGNITUDES:
            return None
        if self.name in ("copy", "clone"):
            # It is what it is a copy of.
            return None
        masks = any(operand.is_mask for operand in self.dependent)
        if self._word in _CHOICES and not self._chooses_a_part(result):
            # One of values that depend on the images, none of which was put there: that zeroes none of them.
            return False if self._tainted else None
        if self.name in _CURVES:
            return False if self._tainted else None
        if self._is_choice or self._kind is Kind.UNKNOWN:
            return True
        if self._kind is Kind.CLIP:
            return self._bounds()
        if len(self.dependent) > 1:
            return masks if self._tainted else None
        if not self._tainted or self.name in _MAGNITUDES:
            return None
        return self._follows(result)

    def _chooses_a_part(self, result: torch.Tensor) -> bool:
        """Tell whether a choice is among constants and values as many as it gives, which were put together."""
        notes = [operand.note for operand in self.dependent if operand.note]
        is_part = any(part.tensor.numel() == result.numel() for note in notes for part in note.parts)
        return is_part and any(note.has_constants for note in notes)

    def _bounds(self) -> bool | None:
        """Say it of a bound: by numbers that are not 0 it is what it is; by 0 it falls where a ReLU rises."""
        if len(self.dependent) > 1:
            return any(operand.is_mask for operand in self.dependent)
        tensors = [operand.tensor for operand in self._operands if operand.note is None]
        has_zero = any(bool((tensor == 0).any()) for tensor in tensors)
        return True if has_zero or 0 in [arg for arg in self._args if isinstance(arg, (int, float))] else None

    def _follows(self, result: torch.Tensor) -> bool | None:
        """Say it of what is made of one tainted value and constants: sums, and what leaves values out."""
        (operand,) = self.dependent
        note = operand.note
        if note is None:
            return None
        if note.falling or (note.is_bound and self._word in _SHIFTS):
            # A bound that is not 0 is a ReLU once it is shifted there.
            return False
        if note.is_clipped:
            return None
        return False if self._is_mixing or result.numel() != operand.tensor.numel() else None

    def candidates(self, result: torch.Tensor) -> Iterator[Value]:
        """Yield what the result may be a ReLU of: as many values, that are as they were."""
        seen = set()
        for value in self._all_candidates():
            key = (value.tensor.data_ptr(), value.version, value.tensor.shape)
            is_fit = value.tensor.numel() == result.numel() and value.tensor.is_floating_point()
            if is_fit and value.is_as_it_was and key not in seen:
                seen.add(key)
                yield value

    def _all_candidates(self) -> Iterator[Value]:
        for operand in (read for read in self._read if read.note is not None):
            # To leave values out of something, or to put them in order, zeroes none of them; nor does a known curve.
            is_none = self.name in _GATHERS or self.name in _CURVES or self._word == "sort"
            if operand.value is not None and not is_none:
                yield operand.value
            yield from () if operand.note is None else operand.note.parts
        for operand in self._tainted:
            yield from () if operand.note is None else operand.note.sources

    def _new_sources(self, values: list[Value]) -> list[Value]:
        """Return what the taint comes from, if it begins here."""
        if self._kind is Kind.CLIP and len(self.dependent) == 1 and self._bounds() is None:
            return [replace(value, is_bounded=True) for value in values]
        return values if self._is_start else []

    def note(self, falling: frozenset[int] | None, result: torch.Tensor) -> Note:
        """Return what is known of the result; ``falling`` is None if it is a ReLU."""
        sign = Sign.NOT_NEGATIVE if result.dtype == torch.bool else self._sign()
        if falling is None or (self.is_relu and not self._tainted):
            # What the rule acts on ends the taint, but not what came before it.
            return Note(sign=sign if self.is_relu else Sign.UNKNOWN)
        own = [operand.value for operand in self._read if operand.value is not None]
        parts = [part for operand in self._read if operand.note for part in operand.note.parts]
        return Note(
            is_tainted=self._is_start or bool(self._tainted),
            is_clipped=self._is_clipped(has_parts=bool(parts)),
            is_bound=self._kind is Kind.CLIP or self._is_of_a_bound,
            is_by_rank=self.is_by_rank,
            has_constants=not self._is_mixing and puts_constants(self.name, self._args, self._operands, result),
            sign=sign,
            parts=self._parts(own, parts, result),
            sources=merged(self.dependent, *self._new_sources(own + parts)),
            falling=falling,
            extreme=self._extreme(result),
        )

    def _is_clipped(self, *, has_parts: bool) -> bool:
        """Tell whether all that chose up to here were bounds."""
        # The largest of values that depend on the images, none of which was put there, is one of them.
        is_bound = self._kind is Kind.CLIP or (self._word == "max_pool" and not has_parts)
        were_bounds = all(operand.note.is_clipped and not operand.is_mask for operand in self._tainted if operand.note)
        return were_bounds and (is_bound or not self._is_start)

    def _parts(self, own: list[Value], before: list[Value], result: torch.Tensor) -> tuple[Value, ...]:
        """Return what the result was put together of, before anything added several values up."""
        is_spread = bool(own) and result.numel() > max(value.tensor.numel() for value in own)
        if self._kind is Kind.MOVES or self.name in _GATHERS or is_spread:
            return tuple(own + before)[:MOST_SOURCES]
        return () if self._is_mixing else tuple(before)

    def _sign(self) -> Sign:
        if self.is_relu and self.name != "threshold":
            return Sign.NOT_NEGATIVE
        tensors, signs = [operand.tensor for operand in self._operands], [operand.sign for operand in self._operands]
        sign = sign_of_result(self.name, self._args, self._named, tensors, signs)
        # What is subtracted several times is no longer what was chosen.
        is_difference = self._word == "sub" and len(tensors) == 2 == len(self._args) and not self._named
        return sign | sign_of_difference(self._operands, self._extreme_of) if is_difference else sign

    def _extreme(self, result: torch.Tensor) -> Extreme | None:
        """Return what the result is the largest or smallest of, along axes that stay."""
        operand = self._operands[0]
        if operand.note is None or result.dtype != operand.tensor.dtype:
            return None
        if self.name in _COPIES:
            return operand.note.extreme
        stays = result.ndim in (0, operand.tensor.ndim) and operand.tensor.layout is torch.strided
        if self.name not in _EXTREMES or len(self._operands) > 1 or not stays:
            return None
        return Extreme(self._word, operand.tensor.detach(), operand.tensor._version)

    def _extreme_of(self, operand: Operand) -> tuple[str, Operand | None] | None:
        """Return which of what was given another one is the largest or smallest of."""
        extreme = None if operand.note is None else operand.note.extreme
        if extreme is None:
            return None
        return extreme.word, next((other for other in self._operands if extreme.is_of(other.tensor)), None)
