"""One operation of a watched forward pass, shown as nomination.py asks, and what is noted of its result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from operator import eq
from typing import Any, Final

import torch

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends import nomination, notes
from guided_backprop.backends.bounds import constants_beside
from guided_backprop.backends.notes import Candidate, Choice, Ranks
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.signs import Sign, sign_of_difference, sign_of_range
from guided_backprop.backends.torch.graph.operations import OPERATIONS
from guided_backprop.backends.torch.hidden.memory import place_of, version_of
from guided_backprop.backends.torch.hidden.notes import Extreme, Made, Note, Operand, Value, is_inside_own
from guided_backprop.backends.torch.hidden.signs import exponent_of, is_floor, sign_of_result
from guided_backprop.backends.torch.hidden.suspect import fits
from guided_backprop.backends.torch.hidden.weights import emptied_by

_DETACHES: Final = OPERATIONS.called("stop_gradient")
# They choose among values that come to one place.
_REDUCES: Final = frozenset({"index_reduce", "scatter_reduce"})
# So does this one, if it is told to; else it adds up, as by a matrix of ones.
_COMPARED: Final = frozenset({"max", "min", "prod"})
_LARGEST_OF_BAGS: Final = 2
_GUARD: Final = Operation(Kind.MOVES, "copy")
_ADDS: Final = Operation(Kind.LINEAR, "matmul")
# Where they look depends on this one of what they are given, and no result is linear in that.
_PLACED_BY: Final = {
    **dict.fromkeys("cudnn_grid_sampler grid_sampler2d grid_sampler2dcpu_fallback grid_sampler3d".split(), 1),
    **dict.fromkeys("ps_roi_align ps_roi_pool psroialign psroipool roi_align roi_pool roialign roipool".split(), 1),
    "deform_conv2d": 2,
}
# They are straight in pieces; and these bound a logarithm, or a length.
_IN_PIECES: Final = frozenset({"hardshrink", "hardsigmoid", "softshrink"})
_BOUNDED: Final = frozenset({"binary_cross_entropy", "renorm"})
# Of complex numbers they jump where their branches meet; all others that do choose by their word.
_CUT: Final = frozenset({"asinh", "atan", "atanh"})
_OF_ROWS: Final = frozenset({"fused_rms_norm", "native_group_norm", "native_layer_norm"})
# They take what is smaller than a tolerance for nothing.
_BY_TOLERANCE: Final = frozenset({"linalg_lstsq", "linalg_pinv"})
# Where they end is a number, which may be one of the images; of one place nothing ends.
_ENDS: Final = frozenset({"slice", "split"})
_OF_ONE_PLACE: Final = frozenset({"select", "unbind"})
# Of so few values of a row, made the same length, the signs are told.
_FEW: Final = 3
_BOUNDS: Final = frozenset({"clamp", "clamp_max", "clamp_min"})
# Where the place of 0 stands among what they are given, and the lowest of the levels, which the highest follows.
_LEVELS: Final = {
    "fake_quantize_learnable_per_channel_affine": (2, 4),
    "fake_quantize_learnable_per_tensor_affine": (2, 3),
    "fake_quantize_per_channel_affine_cachemask": (2, 4),
    "fake_quantize_per_tensor_affine_cachemask": (2, 3),
    "fake_quantize_per_tensor_affine_cachemask_tensor_qparams": (2, 4),
    "fused_moving_avg_obs_fq_helper": (6, 8),
}
# Beside so large a part of a row's norm the others show.
_MOST: Final = 0.99
# By so many units in the last place rounding may turn a row; and of so large a part of all rows it is not by chance.
_TURNED: Final = 64
_NO_CHANCE: Final = 0.25
# What a softmax is lessened by; and what leaves that as it is.
_EXTREMES: Final = frozenset({"amax", "amin", "max", "min"})
_COPIES: Final = _DETACHES | {"clone"}


class Step(nomination.Step[Value]):
    """One operation, with what it was given.

    Attributes:
        falling: the gates that what was given falls by.
        is_ended: whether it leaves out what lies behind a place that an image may tell.
        result: the result that is looked at.
        made: how it is made.
    """

    made: Made
    result: torch.Tensor

    SEES_SUMS = True

    def __init__(
        self,
        name: str,
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        operands: list[Operand],
        *,
        place: int,
        is_relu: bool,
        read: Operand | None = None,
    ) -> None:
        """Show an operation; ``read`` is a number of the images that the model may know, as where a row ends."""
        self.name, self._args, self._named, self._tensors = name, args, named, operands
        row, shown = _shown(name, args, named, operands)
        ends = [read] if read is not None and row.word in _ENDS and name not in _OF_ONE_PLACE else []
        row, self.is_ended = (Operation(Kind.MASKS, "gather"), True) if ends else (row, False)
        is_passing = row.kind is not Kind.COMPARES and name not in _DETACHES
        # What is optimised runs in functions of this library's, which give their results a gradient.
        has_gradient = torch.is_grad_enabled() or is_inside_own()
        placed = operands[_PLACED_BY[name] :][:1] if name in _PLACED_BY else []
        self.falling = frozenset[int]().union(*(operand.note.falling for operand in operands if operand.note))
        super().__init__(
            row,
            [*shown, *ends],
            passes=is_passing and has_gradient and any(operand.is_active for operand in operands),
            is_relu=is_relu,
            is_choice=name in _REDUCES
            or any(one.is_active for one in placed)
            or _tells_signs(name, row.kind, args)
            or (name in _CUT and operands[0].tensor.is_complex()),
            has_pieces=name in _IN_PIECES,
            has_bound=name in _BOUNDED,
            has_pole=_has_pole(name, row.word, operands),
            has_rows=name == "linalg_vector_norm" and _has_rows(*args),
            empty=emptied_by(name, args),
            is_idle=name in _BOUNDS and _is_idle(operands, _bounds_of(name, args, named)),
            exponent=exponent_of(name, args),
            is_shifted=bool(self._shift(row.word)),
            # What is written over is not read: it may be memory that nothing was written to before.
            place=place,
            overwritten=int(name == "copy" and len(operands) > 1),
        )

    def lost(self, known: Ranks | None) -> Ranks | None:
        """Return how values were compared by what lost its gradient and meets one here, beside what is known before."""
        ranked = [bool(one.note and one.note.ranked) for one in self._tensors if one.is_lost] if self.passes else []
        return known if not ranked else Ranks.SOME if any(ranked) or known is Ranks.SOME else Ranks.NONE

    @property
    def is_lost(self) -> bool:
        """Whether a gradient is lost here, by no comparison, or was before."""
        is_stop = not self.passes and self.row.kind is not Kind.COMPARES and any(one.is_active for one in self._tensors)
        return is_stop or any(one.is_lost for one in self._tensors)

    @property
    def _was_stopped(self) -> bool:
        return self.is_lost or super()._was_stopped

    def constants_of(self, x: Candidate[Value]) -> NumpyArray | None:
        value, result = x.ref.tensor, self.result
        is_told = x.ref.is_as_it_was and value.numel() == result.numel() and result.is_floating_point()
        return constants_beside(as_numpy(result), as_numpy(value)) if is_told else None

    def values(self, result: torch.Tensor, *, is_direct: bool) -> Iterator[Value]:
        """Yield what the result may be a ReLU of: as many values, that are as they were.

        What is met right here it may have several of each of.
        """
        seen = set()
        for candidate in self.candidates(result.numel()):
            values = candidate.values
            key = (
                candidate.choice,
                candidate.is_beside,
                *((one.tensor.data_ptr(), one.version, one.tensor.shape) for one in values),
            )
            if key in seen or not fits(candidate, result, is_direct=is_direct):
                continue
            seen.add(key)
            value = candidate.ref
            if candidate.choice is Choice.BEHIND:
                value = replace(value.whole, less=None if candidate.less is None else candidate.less.whole)
            elif candidate.less is not None:
                value = value.without(candidate.less)
            elif candidate.is_beside and value.tensor.is_contiguous():
                # What is added to it may be made of another view.
                value = value.whole
            ranks = self.ranks(candidate, result.numel())
            yield replace(
                value,
                choice=candidate.choice,
                ranks=ranks,
                is_bounded=candidate.is_bounded,
                is_at_zero=candidate.is_at_zero,
                is_beside=candidate.is_beside,
            )

    def noted(self, result: torch.Tensor, falling: frozenset[int] | Note) -> Note:
        """Return what is known of the result; ``falling`` is that itself if it is a ReLU by its values."""
        sign = Sign.NOT_NEGATIVE if result.dtype == torch.bool else self._sign()
        if isinstance(falling, Note):
            return replace(falling, is_lost=self.is_lost)
        note = self.note(result.numel(), sign=sign, is_falling=bool(falling))
        if self.is_relu and not self.is_tainted:
            return Note(**vars(note), is_lost=self.is_lost)
        if note.has_constants and self.row.kind is Kind.MASKS and self._fills_nothing(result):
            note = replace(note, has_constants=False, has_gaps=False)
        return Note(**vars(note), falling=falling, extreme=self._extreme(result), is_lost=self.is_lost)

    def _fills_nothing(self, result: torch.Tensor) -> bool:
        """Tell whether every value stands where it stood, and none of them was a constant's place before."""
        had = any(operand.note.has_constants for operand in self._tensors if operand.note)
        return not had and any(operand.is_active and _is_same(operand.tensor, result) for operand in self._tensors)

    def _sign(self) -> Sign:
        if self.is_relu and self.name != "threshold":
            return Sign.NOT_NEGATIVE
        tensors, signs = [operand.tensor for operand in self._tensors], [operand.sign for operand in self._tensors]
        sign = sign_of_result(self.name, self._args, self._named, tensors, signs)
        return sign | self._shift(self.row.word) | self._range()

    def _range(self) -> Sign:
        """Return the sign of the largest of some numbers less the smallest of these; unknown if it is anything else."""
        if self.name != "sub" or len(self._tensors) != 2 or len(self._args) > 2 or self._named:
            return Sign.UNKNOWN
        first, second = map(_extreme_at, self._tensors)
        if first is None or second is None:
            return Sign.UNKNOWN
        is_one = first.version == second.version and first.is_of(second.of)
        return sign_of_range((first.word, is_one), (second.word, True))

    def _shift(self, word: str) -> Sign:
        """Return the sign of a value less one of its own numbers, in its place; unknown if it is anything else."""
        # What is subtracted several times is no longer what was chosen.
        is_difference = word == "sub" and len(self._tensors) == 2 == len(self._args) and not self._named
        return sign_of_difference(self._tensors, self._extreme_of) if is_difference else Sign.UNKNOWN

    def _extreme(self, result: torch.Tensor) -> Extreme | None:
        """Return what the result is the largest or smallest of, along axes that stay."""
        operand = self._tensors[0]
        if operand.note is None or result.dtype != operand.tensor.dtype:
            return None
        if self.name in _COPIES:
            extreme = _extreme_at(operand)
            return extreme and extreme._replace(place=place_of(result))
        stays = result.ndim in (0, operand.tensor.ndim) and operand.tensor.layout is torch.strided
        if self.name not in _EXTREMES or len(self._tensors) > 1 or not stays:
            return None
        return Extreme(self.row.word, operand.tensor.detach(), version_of(operand.tensor), place_of(result))

    def _extreme_of(self, operand: Operand) -> tuple[str, Operand | None] | None:
        """Return which of what was given another one is the largest or smallest of."""
        extreme = _extreme_at(operand)
        if extreme is None:
            return None
        return extreme.word, next((other for other in self._tensors if extreme.is_of(other.tensor)), None)


def _shown(
    name: str, args: Sequence[Any], named: Mapping[str, Any], operands: list[Operand]
) -> tuple[Operation, list[notes.Operand[Value]]]:
    """Return what an operation is, and what it is given, with the numbers among that."""
    if name in _LEVELS and not _ends_at_zero(name, args):
        # It bounds by numbers that are not 0, and rounds what lies between.
        return OPERATIONS["clamp"], [one for one in operands if one.note is not None]
    row = _GUARD if _is_untainted_guard(name, args, operands) else _row(name, args, named)
    return row, [*operands, *_numbers(row.kind, row.word, args, named)]


def _extreme_at(operand: Operand) -> Extreme | None:
    """Return of what an operand is the largest or smallest, each number in its place."""
    extreme = None if operand.note is None else operand.note.extreme
    return extreme if extreme is not None and extreme.is_in_place(operand.tensor) else None


def _row(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Operation:
    """Return what an operation is, by its name and by the arguments that make another one of it."""
    if name == "segment_reduce" and not _COMPARED & set(map(str, args[1:2])):
        return _ADDS
    if name == "embedding_bag":
        # Others add up, each number times a weight of its own perhaps.
        return OPERATIONS["amax"] if args[4] == _LARGEST_OF_BAGS else _ADDS
    # A quotient that is rounded is a step.
    return OPERATIONS["floor_divide" if named.get("rounding_mode") is not None else name]


def _numbers(kind: Kind, word: str, args: Sequence[Any], named: Mapping[str, Any]) -> list[notes.Operand[Value]]:
    """Return the numbers that stand among values: factors, bounds, and what is filled in, which comes last.

    A maximum of segments may begin with one.
    """
    if kind is Kind.CLIP or word == "mul":
        numbers = args
    elif kind is Kind.MASKS or word == "pad":
        # Other integers say along which axis.
        numbers = args[-1:]
    else:
        numbers = [named.get("initial")]
    are_zero = [partial(eq, number, 0) for number in numbers if type(number) in (int, float)]
    return [notes.Operand(has_zeros=is_zero, is_sparse=is_zero, is_known=True) for is_zero in are_zero]


def _ends_at_zero(name: str, args: Sequence[Any]) -> bool:
    """Tell whether the lowest or the highest of the levels that values are brought to may be 0, in any channel."""
    place, first = _LEVELS[name]
    ends = args[first : first + 2]
    # A place of 0 that is learned may lie outside of them, and between two levels: it is moved to one of these.
    zeros = torch.as_tensor(args[place]).clamp(*ends)
    return any(bool(((zeros - end).abs() < 1).any()) for end in ends)


def _has_pole(name: str, word: str, operands: Sequence[Operand]) -> bool:
    """Tell whether an operation divides by what may have either sign; what a number divides is all that is given."""
    divides = word == "div" and (name == "reciprocal" or len(operands) > 1)
    return divides and operands[-1].note is not None and operands[-1].sign is Sign.UNKNOWN


def is_guard(name: str, args: Sequence[Any], note: Note | None) -> bool:
    """Tell whether an operation keeps the norm of rows, or another measure of them, from being 0, and changes no other.

    Of a number between 0 and the floor it would leave nothing, as a ReLU does of one below 0.
    """
    if note is None or not is_floor(name, args):
        return False
    x, floor = args[:2]
    is_measure = note.is_summary and note.sign is Sign.NOT_NEGATIVE
    return is_measure and x.layout is torch.strided and not bool(((x > 0) & (x < floor)).any())


def _is_untainted_guard(name: str, args: Sequence[Any], operands: Sequence[Operand]) -> bool:
    note = operands[0].note if operands else None
    return note is not None and not note.is_tainted and is_guard(name, args, note)


def _bounds_of(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what an operation bounds by from below and from above, None if by nothing."""
    if name in ("clamp_min", "clamp_max"):
        bounds = (args[1], None)
        return bounds if name == "clamp_min" else bounds[::-1]
    low, high, *_ = [*args[1:], None, None]
    return named.get("min", low), named.get("max", high)


def _is_idle(operands: Sequence[Operand], bounds: tuple[Any, Any]) -> bool:
    """Tell whether all numbers of a value lie within bounds, which are numbers."""
    x = operands[0].tensor
    if len(operands) > 1 or x.numel() == 0 or x.layout is not torch.strided:
        return False
    (least, most), (low, high) = x.aminmax(), bounds
    return bool((low is None or low < least) and (high is None or most < high))


def _has_rows(x: torch.Tensor, order: float = 2, axes: Sequence[int] | None = None, *_: Any) -> bool:
    """Tell whether a norm is the root of the squares of rows of many numbers, which are no multiples of one row.

    Of these it is the magnitude of what they are multiples by; and where one number is nearly all of a row, of that.
    """
    if order != 2 or axes is None or not x.is_floating_point() or x.numel() == 0:
        return False
    along = sorted({axis % x.ndim for axis in axes})
    others = [axis for axis in range(x.ndim) if axis not in along and x.shape[axis] > 1]
    norm = torch.linalg.vector_norm(x, 2, along, keepdim=True)
    is_one = not along or not others or bool((x.abs().amax(along, keepdim=True) > _MOST * norm).any())
    return not is_one and not any(_are_multiples(x, norm, along, axis) for axis in others)


def _are_multiples(x: torch.Tensor, norm: torch.Tensor, along: list[int], axis: int) -> bool:
    """Tell whether many rows are multiples of their neighbours; rows that lie by themselves are none by chance."""
    first, second = (torch.arange(place, x.shape[axis] - 1 + place, device=x.device) for place in (0, 1))
    products = (x.index_select(axis, first) * x.index_select(axis, second)).sum(along, keepdim=True).abs()
    sizes = norm.index_select(axis, first) * norm.index_select(axis, second)
    is_multiple = (products >= (1 - _TURNED * torch.finfo(x.dtype).eps) * sizes)[sizes > 0]
    return bool(is_multiple.any()) and float(is_multiple.double().mean()) > _NO_CHANCE


def _tells_signs(name: str, kind: Kind, args: Sequence[Any]) -> bool:
    """Tell whether an operation brings so few values to one length that it tells their signs, or leaves small ones out.

    Of two values the normalised ones are 1 and -1, in the order of their size.
    """
    if name in _BY_TOLERANCE:
        return True
    x = args[0] if args and (kind is Kind.NORM or name == "native_batch_norm") else None
    if not isinstance(x, torch.Tensor):
        return False
    rows = 0
    if name == "native_group_norm":
        rows = len(x) * args[6]
    elif name == "native_batch_norm":
        rows = x.shape[1] if args[5] else 0
    elif isinstance(args[1], (list, tuple)):
        rows = x.numel() // max(1, prod(args[1]))
    elif isinstance(args[1], torch.Tensor):
        # Each row has a length of its own, as a weight norm gives it.
        rows = args[1].numel()
    return 0 < x.numel() <= _FEW * rows or _are_of_one(name, x, args)


def _are_of_one(name: str, x: torch.Tensor, args: Sequence[Any]) -> bool:
    """Tell whether rows that are brought to one length are multiples of one row: then it tells of each the sign."""
    if name not in _OF_ROWS or not x.is_floating_point():
        return False
    groups = args[6] if name == "native_group_norm" else 0
    rows = x.detach().reshape(len(x) * groups, -1) if groups else x.detach().flatten(-len(args[1]))
    rows = rows.reshape(-1, rows.shape[-1]).double()
    rows = rows if name == "fused_rms_norm" else rows - rows.mean(1, keepdim=True)
    return len(rows) > 1 and _are_multiples(rows, rows.norm(dim=1, keepdim=True), [1], 0)


def _is_same(tensor: torch.Tensor, others: torch.Tensor) -> bool:
    """Tell whether two tensors have the same values."""
    is_known = tensor.layout is torch.strided and others.layout is torch.strided
    return is_known and tensor.shape == others.shape and torch.equal(tensor, others)
