"""What a watched forward pass notes of values: whether they are tainted, by what, and whether they have one sign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.torch.graph.operations import OPERATIONS

#: A value may be a ReLU of what it was made of some steps ago: of so many of these, the last ones, values are kept.
MOST_SOURCES: Final = 16

# Where a view lies in its storage.
_Place = tuple[int, tuple[int, ...], tuple[int, ...]]

#: Words of what is never negative, whatever it is given.
_NEVER_NEGATIVE: Final = frozenset(
    """
    abs exp hardsigmoid norm relu relu6 rsqrt sigmoid softmax softplus sqrt
    """.split()
)
# They give 0 and 1.
_COMPARISONS: Final = frozenset("eq ge gt isfinite isinf isnan le lt ne".split())
_NEVER_POSITIVE: Final = frozenset({"log_softmax", "log_sigmoid"})
# What has the sign of all its operands: sums, means, pools, choices.
_KEEPS_SIGN: Final = frozenset("add avg_pool max max_pool maximum mean min minimum scatter sort sum where".split())
# Curves through 0 that rise there: they keep the sign of one value. A leaky ReLU may fall below 0.
_CURVES: Final = frozenset(
    """
    asinh atan celu elu erf expm1 gelu hardswish log1p mish selu silu sinh softsign tanh
    """.split()
)
# Never negative where nothing is that they are made of.
_PRODUCTS: Final = frozenset({"cumprod", "matmul", "pow", "prod"})
# They keep the sign of what is not negative.
_LEAKY: Final = frozenset({"leaky_relu", "prelu", "rrelu"})
# One operand of this sign is enough.
_BOUNDS: Final = {"maximum": 1, "minimum": -1}
_UNLIKE_THEIR_WORD: Final = frozenset(
    {"copysign", "linalg_cross", "linalg_matrix_exp", "nll_loss", "nll_loss2d", "addcdiv", "ldexp"}
)


@dataclass(frozen=True)
class Value:
    """A value of the forward pass, as it was when something was made of it.

    Attributes:
        tensor: the values, that nothing else changes or that are known to have changed since.
        edge: where a gradient with respect to it ends.
        sign: 1 if it is never negative, -1 if it is never positive, by how it was made; else 0.
        version: how often it had been changed in place.
        is_bounded: whether what was made of it first is a bound that is not 0: that closes it at another value than 0.
    """

    tensor: torch.Tensor
    edge: GradientEdge
    sign: int
    version: int
    is_bounded: bool = False

    @property
    def is_as_it_was(self) -> bool:
        """Whether the values are still those that something was made of."""
        return self.tensor._version == self.version


@dataclass(frozen=True)
class Note:
    """What is known of a value that depends on the images.

    Attributes:
        is_tainted: whether something was chosen by size, or passed on without a gradient, among what it was made of.
        is_clipped: whether all of that was bounds: a value by itself is then no other than what the bound made it.
        is_bound: whether it is what a bound made, or a multiple of that.
        is_by_rank: whether all of that compared values with each other, and none with a constant.
        has_constants: whether numbers that do not depend on the images were put among its values.
        sign: as of :class:`Value`.
        parts: what it was put together of, before anything added several values up.
        sources: what the taint came from.
        falling: what may become a ReLU and is none yet, by its number, that it was made of: ``min(x, 0)``.
    """

    is_tainted: bool = False
    is_clipped: bool = True
    is_bound: bool = False
    is_by_rank: bool = True
    has_constants: bool = False
    sign: int = 0
    parts: tuple[Value, ...] = ()
    sources: tuple[Value, ...] = ()
    falling: frozenset[int] = frozenset()


class Notes:
    """Notes on tensors, kept by storage: a view shares them. Weak, so that no memory is held for it."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[StorageWeakRef, Note, dict[_Place, Note]]] = {}
        self._unwritten: dict[int, StorageWeakRef] = {}
        # Sparse tensors have no storage of their own; they are kept, so that no other gets their number.
        self._sparse: dict[int, tuple[torch.Tensor, Note]] = {}

    def put(self, tensor: torch.Tensor, note: Note, *, is_alone: bool = False) -> None:
        """Note something of a tensor, and of all that shares its memory unless it stands ``is_alone``."""
        if tensor.layout is not torch.strided:
            self._sparse[id(tensor)] = (tensor, note)
            return
        reference = StorageWeakRef(tensor.untyped_storage())
        known = self._notes.get(reference.cdata)
        if is_alone and known is not None:
            known[2][_place(tensor)] = note
            return
        # While the weak reference lives, its address is not used again.
        self._notes[reference.cdata] = (reference, note, {})

    def put_unwritten(self, tensor: torch.Tensor) -> None:
        """Note that something was given memory that nothing was written to."""
        reference = StorageWeakRef(tensor.untyped_storage())
        self._unwritten[reference.cdata] = reference

    def put_written(self, tensor: torch.Tensor) -> None:
        """Note that all of a tensor was written."""
        if tensor.layout is torch.strided and not tensor._is_view():
            self._unwritten.pop(tensor.untyped_storage()._cdata, None)

    def is_unwritten(self, tensor: torch.Tensor) -> bool:
        """Tell whether a view is of such memory.

        What was written there since was looked at where it came from, and the rest may be anything.
        """
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._unwritten

    def of(self, tensor: torch.Tensor) -> Note | None:
        """Return what is known of a tensor; None if it does not depend on the images."""
        if tensor.layout is not torch.strided:
            return self._sparse[id(tensor)][1] if id(tensor) in self._sparse else None
        known = self._notes.get(tensor.untyped_storage()._cdata)
        if known is None:
            return None
        return known[2].get(_place(tensor), known[1]) if known[2] else known[1]


def _place(tensor: torch.Tensor) -> _Place:
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


class Operand:
    """A tensor that an operation was given, before the operation.

    Attributes:
        note: what is known of it; None if it does not depend on the images.
        is_active: whether it depends on them and carries a gradient.
        is_mask: whether it depends on them and carries none.
        is_tainted: whether there is taint in it.
        tensor: its values.
        value: it as what a result may be a ReLU of; None if no node passes a gradient on to it.
    """

    def __init__(self, tensor: torch.Tensor, note: Note | None, *, is_kept: bool) -> None:
        self.note = note
        self.is_active = note is not None and tensor.requires_grad
        self.is_mask = note is not None and not tensor.requires_grad
        self.is_tainted = self.is_mask or (note is not None and note.is_tainted)
        # What an operation in place is given is gone afterwards.
        self.tensor = kept = tensor.clone() if is_kept else tensor
        # A leaf is cloned before anything is made of it, and has no node to be asked about.
        has_edge = self.is_active and tensor.grad_fn is not None
        self.value = Value(kept.detach(), get_gradient_edge(tensor), self.sign, kept._version) if has_edge else None

    @property
    def sign(self) -> int:
        """Return the sign that all its values have by how they were made; 0 if it is not known."""
        return 0 if self.note is None else self.note.sign


def sign_of(name: str, args: Sequence[Any], named: Mapping[str, Any], operands: Sequence[Operand]) -> Literal[-1, 0, 1]:
    """Return the sign of all values of a result by how it was made: never negative 1, never positive -1, else 0."""
    kind, word = OPERATIONS[name]
    numbers = [number for number in args if isinstance(number, (int, float))]
    if name in _UNLIKE_THEIR_WORD or any(isinstance(each, (int, float)) and each < 0 for each in named.values()):
        # Such as what is added times -1.
        return 0
    if name in _COMPARISONS:
        return 1
    if word in _NEVER_NEGATIVE or (word == "pow" and _is_even(args)):
        return 1 if name != "threshold" or min(numbers) >= 0 else 0
    if word in _NEVER_POSITIVE:
        return -1
    chosen = _values_among(word, operands)
    signs = [each.sign if each.note is not None else _sign_of_constant(each.tensor) for each in chosen]
    if name == "mul" and len(operands) == 2 and operands[0].tensor is operands[1].tensor:
        return 1
    if name in ("mul", "div", "neg"):
        return _sign(prod([*signs, *map(_sign, numbers)], start=-1 if name == "neg" else 1))
    if word in _CURVES or (word == "clamp" and _is_around_zero(args)):
        return _sign(signs[0])
    # To add 0, or to put it in the place of something, leaves the sign.
    signs += [_sign(number) for number in numbers if number and word in ("add", "where", *_PRODUCTS, *_BOUNDS)]
    return _common(kind, word, signs)


def _common(kind: Kind, word: str, signs: Sequence[int]) -> Literal[-1, 0, 1]:
    """Return the sign of what is put together of values of these signs."""
    if word in _LEAKY:
        return _sign(max(signs[0], 0))
    if word in _BOUNDS and _BOUNDS[word] in signs:
        return _sign(_BOUNDS[word])
    is_kept = kind is Kind.MOVES or word in _KEEPS_SIGN or (kind is Kind.MASKS and word == "gather")
    if len(set(signs)) != 1 or not (is_kept or (word in _PRODUCTS and signs[0] == 1)):
        return 0
    return _sign(signs[0])


def _values_among(word: str, operands: Sequence[Operand]) -> list[Operand]:
    """Return the operands whose values a result has, without masks and places."""
    if word == "where":
        return [operand for operand in operands if operand.tensor.dtype != torch.bool]
    return [operands[0], *operands[2:]] if word == "scatter" else list(operands)


def puts_constants(name: str, args: Sequence[Any], operands: Sequence[Operand], result: torch.Tensor) -> bool:
    """Tell whether among the values of a result some do not depend on the images, in places of their own."""
    kind, word = OPERATIONS[name]
    if any(operand.note.has_constants for operand in operands if operand.note is not None):
        return True
    floating = [operand for operand in operands if operand.tensor.is_floating_point()]
    constant = [operand.tensor for operand in floating if operand.note is None]
    if kind is Kind.MOVES:
        is_put = len(floating) > 1 and any(is_one_number(operand.tensor) for operand in floating)
        return name == "constant_pad_nd" or is_put or (len(floating) > 1 and bool(constant))
    if word == "mul":
        is_by_zero = any(isinstance(arg, (int, float)) and arg == 0 for arg in args)
        return is_by_zero or any(not bool(tensor.all()) for tensor in constant)
    if kind is not Kind.MASKS or word == "gather":
        return False
    has_constant = bool(constant) or any(isinstance(arg, float) for arg in args)
    is_filled = not any(operand.is_active and _is_same(operand.tensor, result) for operand in floating)
    return has_constant and is_filled


def is_one_number(values: torch.Tensor) -> bool:
    """Tell whether several values are all the same, as zeros are that depend on something."""
    is_known = values.numel() > 1 and values.layout is torch.strided
    return is_known and bool((values == values.flatten()[0]).all())


def _is_same(values: torch.Tensor, others: torch.Tensor) -> bool:
    """Tell whether two tensors have the same values."""
    is_known = values.layout is torch.strided and others.layout is torch.strided
    return is_known and values.shape == others.shape and torch.equal(values, others)


def _sign(number: float) -> Literal[-1, 0, 1]:
    return 1 if number > 0 else -1 if number < 0 else 0


def _is_around_zero(args: Sequence[Any]) -> bool:
    low, high = (number if isinstance(number, (int, float)) else 0 for number in (*args[1:3], 0, 0)[:2])
    return low <= 0 <= high


def _is_even(args: Sequence[Any]) -> bool:
    return len(args) > 1 and isinstance(args[1], (int, float)) and args[1] % 2 == 0


def _sign_of_constant(tensor: torch.Tensor) -> int:
    """Return the sign of a constant; one that is 0 in places has that of the others."""
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return 1
    if tensor.is_complex() or tensor.layout is not torch.strided:
        return 0
    low, high = tensor.aminmax()
    return 1 if low >= 0 else -1 if high <= 0 else 0


def merged(operands: Sequence[Operand], *extra: Value) -> tuple[Value, ...]:
    """Return the sources of what is made of operands, the last ones first, each once."""
    sources: dict[int, Value] = {}
    for value in [*extra, *(source for operand in operands if operand.note for source in operand.note.sources)]:
        sources.setdefault(id(value), value)
    return tuple(sources.values())[:MOST_SOURCES]
