"""What a watched forward pass notes of values: whether they are tainted, by what, and whether they have one sign."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.torch.graph.operations import OPERATIONS

# A value may be a ReLU of what it was made of some steps ago: of so many of these, the last ones, values are kept.
_MOST_SOURCES: Final = 16

# Where a view lies in its storage.
_Place = tuple[int, tuple[int, ...], tuple[int, ...]]

#: Words of what is never negative, whatever it is given.
_NEVER_NEGATIVE: Final = frozenset(
    """
    abs exp hardsigmoid norm relu relu6 rsqrt sigmoid softmax softplus sqrt
    """.split()
)
_NEVER_POSITIVE: Final = frozenset({"log_softmax", "log_sigmoid"})
# What has the sign of all its operands: sums, means, pools; and products, if all are of the one sign.
_KEEPS_SIGN: Final = frozenset(
    {"add", "sum", "mean", "avg_pool", "max_pool", "max", "min", "maximum", "minimum", "sort"}
)
# Curves through 0 that rise there: they keep the sign of one value.
_CURVES: Final = frozenset(
    """
    asinh atan celu elu erf expm1 gelu hardswish leaky_relu log1p mish prelu selu silu sinh softsign tanh
    """.split()
)
_PRODUCTS: Final = frozenset({"mul", "div", "matmul", "cumprod", "prod"})


@dataclass(frozen=True)
class Value:
    """A value of the forward pass, as it was when something was made of it.

    Attributes:
        tensor: the values, that nothing else changes or that are known to have changed since.
        edge: where a gradient with respect to it ends; None if it carries none.
        sign: 1 if it is never negative, -1 if it is never positive, by how it was made; else 0.
        version: how often it had been changed in place.
    """

    tensor: torch.Tensor
    edge: GradientEdge | None
    sign: int
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor, sign: int) -> "Value":
        """Return a tensor as it is now."""
        edge = get_gradient_edge(tensor) if tensor.requires_grad else None
        return cls(tensor.detach(), edge, sign, tensor._version)

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
        is_by_rank: whether all of that compared values with each other, and none with a constant.
        sign: as of :class:`Value`.
        parts: what it was put together of, without any arithmetic.
        sources: what the taint came from.
        falling: what may become a ReLU and is none yet, by its number, that it was made of: ``min(x, 0)``.
    """

    is_tainted: bool = False
    is_clipped: bool = True
    is_by_rank: bool = True
    sign: int = 0
    parts: tuple[Value, ...] = ()
    sources: tuple[Value, ...] = ()
    falling: frozenset[int] = frozenset()


class Notes:
    """Notes on tensors, kept by storage: a view shares them. Weak, so that no memory is held for it."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[StorageWeakRef, Note, dict[_Place, Note]]] = {}
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
    """A tensor that an operation was given, before the operation."""

    def __init__(self, tensor: torch.Tensor, note: Note | None, *, is_kept: bool) -> None:
        self.note = note
        self.is_active = note is not None and tensor.requires_grad
        #: Depends on the images, and carries no gradient.
        self.is_mask = note is not None and not tensor.requires_grad
        self.is_tainted = self.is_mask or (note is not None and note.is_tainted)
        self._value = Value.of(tensor, self.sign) if self.is_active else None
        # What an operation in place is given is gone afterwards.
        self.tensor = tensor.clone() if is_kept else tensor
        if is_kept and self._value is not None:
            self._value = Value(self.tensor.detach(), self._value.edge, self.sign, self.tensor._version)

    @property
    def sign(self) -> int:
        """Return the sign that all its values have by how they were made; 0 if it is not known."""
        return 0 if self.note is None else self.note.sign

    @property
    def value(self) -> Value | None:
        """Return it as what a result may be a ReLU of; None if it carries no gradient."""
        return self._value


def sign_of(name: str, args: Sequence[Any], operands: Sequence[Operand]) -> int:
    """Return the sign of all values of a result by how it was made: never negative 1, never positive -1, else 0."""
    kind, word = OPERATIONS[name]
    if word in _NEVER_NEGATIVE or (word == "pow" and _is_even(args)):
        return 1
    if word in _NEVER_POSITIVE:
        return -1
    signs = {operand.sign if operand.note is not None else _sign_of_constant(operand.tensor) for operand in operands}
    signs |= {(number > 0) - (number < 0) for number in args if isinstance(number, (int, float)) and word in _PRODUCTS}
    if word == "add":
        signs |= {(number > 0) - (number < 0) for number in args if isinstance(number, (int, float)) and number}
    if word == "mul" and len(operands) == 2 and operands[0].tensor is operands[1].tensor:
        return 1
    if word == "neg":
        return -operands[0].sign
    if word in _CURVES or (word == "clamp" and _is_around_zero(args)):
        return operands[0].sign
    if len(signs) != 1:
        return 0
    (sign,) = signs
    if word in _PRODUCTS:
        return 1 if sign == 1 else 0
    return sign if kind is Kind.MOVES or word in _KEEPS_SIGN or (kind is Kind.MASKS and word == "gather") else 0


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
    return tuple(sources.values())[:_MOST_SOURCES]
