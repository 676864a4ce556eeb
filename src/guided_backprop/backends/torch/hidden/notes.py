"""What a watched forward pass notes of values: whether they are tainted, by what, and whether they have one sign."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.torch.graph.operations import OPERATIONS
from guided_backprop.backends.torch.hidden.signs import sign_of_tensor

#: A value may be a ReLU of what it was made of some steps ago: of so many of these, the last ones, values are kept.
MOST_SOURCES: Final = 16

# Where a view lies in its storage.
_Place = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Value:
    """A value of the forward pass, as it was when something was made of it.

    Attributes:
        tensor: the values, that nothing else changes or that are known to have changed since.
        edge: where a gradient with respect to it ends.
        sign: the sign that all of it has by how it was made.
        version: how often it had been changed in place.
        is_bounded: whether what was made of it first is a bound that is not 0: that closes it at another value than 0.
    """

    tensor: torch.Tensor
    edge: GradientEdge
    sign: Sign
    version: int
    is_bounded: bool = False

    @property
    def is_as_it_was(self) -> bool:
        """Whether the values are still those that something was made of."""
        return self.tensor._version == self.version


class Extreme(NamedTuple):
    """That a value is the largest or smallest of another one, along axes that stay.

    Attributes:
        word: "max" or "min".
        of: the other one.
        version: how often that had been changed in place.
    """

    word: str
    of: torch.Tensor
    version: int

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Tell whether it was chosen from these very numbers."""
        is_strided = tensor.layout is torch.strided and tensor._version == self.version
        is_one = is_strided and tensor.untyped_storage()._cdata == self.of.untyped_storage()._cdata
        return bool(is_one) and _place(tensor) == _place(self.of)


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
        extreme: of what it is the largest or smallest, if it is.
    """

    is_tainted: bool = False
    is_clipped: bool = True
    is_bound: bool = False
    is_by_rank: bool = True
    has_constants: bool = False
    sign: Sign = Sign.UNKNOWN
    parts: tuple[Value, ...] = ()
    sources: tuple[Value, ...] = ()
    falling: frozenset[int] = frozenset()
    extreme: Extreme | None = None


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
    def sign(self) -> Sign:
        """Return the sign that all its values have by how they were made."""
        return sign_of_tensor(self.tensor) if self.note is None else self.note.sign


def puts_constants(name: str, args: Sequence[Any], operands: Sequence[Operand], result: torch.Tensor) -> bool:
    """Tell whether among the values of a result some do not depend on the images, in places of their own."""
    if any(operand.note.has_constants for operand in operands if operand.note is not None):
        return True
    kind, word = OPERATIONS[name]
    floating = [operand for operand in operands if operand.tensor.is_floating_point()]
    if kind is Kind.MOVES:
        return name == "constant_pad_nd" or _are_put_together(floating)
    if word == "mul":
        # A mask of booleans as well.
        return _leaves_out(args, operands)
    return kind is Kind.MASKS and word != "gather" and _fills(args, floating, result)


def _are_put_together(operands: Sequence[Operand]) -> bool:
    """Tell whether several values are put beside each other, and one of them is a constant or one number."""
    return len(operands) > 1 and any(operand.note is None or is_one_number(operand.tensor) for operand in operands)


def _leaves_out(factors: Sequence[Any], operands: Sequence[Operand]) -> bool:
    """Tell whether a factor is 0, or 0 in places."""
    is_by_zero = any(isinstance(factor, (int, float)) and factor == 0 for factor in factors)
    return is_by_zero or any(not bool(operand.tensor.all()) for operand in operands if operand.note is None)


def _fills(args: Sequence[Any], operands: Sequence[Operand], result: torch.Tensor) -> bool:
    """Tell whether a constant stands in the place of some values now."""
    # What is filled in comes last; other integers say along which axis.
    is_number = type(args[-1]) in (int, float)
    has_constant = any(operand.note is None for operand in operands) or is_number
    return has_constant and not any(operand.is_active and _is_same(operand.tensor, result) for operand in operands)


def is_one_number(tensor: torch.Tensor) -> bool:
    """Tell whether several values are all the same, as zeros are that depend on something."""
    is_known = tensor.numel() > 1 and tensor.layout is torch.strided
    return is_known and bool((tensor == tensor.flatten()[0]).all())


def _is_same(tensor: torch.Tensor, others: torch.Tensor) -> bool:
    """Tell whether two tensors have the same values."""
    is_known = tensor.layout is torch.strided and others.layout is torch.strided
    return is_known and tensor.shape == others.shape and torch.equal(tensor, others)


def merged(operands: Sequence[Operand], *extra: Value) -> tuple[Value, ...]:
    """Return the sources of what is made of operands, the last ones first, each once."""
    sources: dict[int, Value] = {}
    for value in [*extra, *(source for operand in operands if operand.note for source in operand.note.sources)]:
        sources.setdefault(id(value), value)
    return tuple(sources.values())[:MOST_SOURCES]
