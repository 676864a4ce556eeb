"""What a watched forward pass notes of values, as nomination.py says; here are the values, and where notes are kept."""

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef

from guided_backprop.arrays import as_numpy
from guided_backprop.backends import notes
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.torch.graph.composites import Shifts
from guided_backprop.backends.torch.hidden.memory import Place, is_of_numbers, memory_of, place_of, version_of
from guided_backprop.backends.torch.hidden.signs import sign_of_squares, sign_of_tensor
from guided_backprop.backends.torch.hidden.weights import has_zeros
from guided_backprop.backends.torch.own import RUNNING


@dataclass(frozen=True, eq=False, slots=True)
class Made:
    """How a value is made, value by value.

    Attributes:
        shape: its shape.
        word: the operation; empty where it is not known, as of a layer.
        operands: what that was given.
        tensor: the numbers of a constant.
        has_arrays: whether there are some in what it is made of: a value in another shape is not made so.
    """

    shape: tuple[int, ...]
    word: str = ""
    operands: "tuple[Made | float, ...]" = ()
    tensor: torch.Tensor | None = None
    has_arrays: bool = False


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the forward pass, as it was when something was made of it.

    Attributes:
        tensor: the values, that nothing else changes or that are known to have changed since.
        edge: where a gradient with respect to it ends; None if there is none.
        sign: the sign that all of it has by how it was made.
        version: how often it had been changed in place.
        is_bounded: whether what was made of it first is a bound that is not 0: that closes it at another value than 0.
        is_at_zero: whether it is closed at 0, if at all: elsewhere it is what a known curve makes of it.
        is_beside: whether a ReLU of it, or of its opposite, that the rule guides is added to it: its derivative counts.
        choice: how something was chosen from it, where constants may be among its numbers.
        less: another value that is taken away from it, behind weights.
        ranks: how values were compared by what chose between it and what may be a ReLU of it.
        falling: the gates that it falls by, which lie in front of it.
        made: how it is made.
    """

    tensor: torch.Tensor
    edge: GradientEdge | None
    sign: Sign
    version: int
    is_bounded: bool = False
    is_at_zero: bool = False
    is_beside: bool = False
    choice: notes.Choice = notes.Choice.NONE
    less: "Value | None" = None
    ranks: notes.Ranks = notes.Ranks.NONE
    falling: frozenset[int] = frozenset()
    made: Made | None = None

    @property
    def key(self) -> Hashable:
        """What the value is known by, the same each time that something is made of it, in whatever shape."""
        edge, base = self.whole.edge, self.tensor._base
        if base is not None and base.grad_fn is not None and base._version == 0 and base.numel() > self.tensor.numel():
            # A part is a view of its own each time that it is written.
            return base.grad_fn, place_of(self.tensor)
        return self if edge is None else (edge.node, edge.output_nr)

    @property
    def is_of_one_side(self) -> bool:
        """Whether no value lies below 0, or none above it, on these images; of others nothing is known."""
        x = as_numpy(self.tensor)
        return not (self.sign or self.ranks is notes.Ranks.ALL or ((x > 0).any() and (x < 0).any()))

    @property
    def is_as_it_was(self) -> bool:
        """Whether the values are still those that something was made of."""
        return version_of(self.tensor) == self.version

    @property
    def whole(self) -> "Value":
        """What it is a view of, if that is as many values: gradients may come to these by other ways."""
        base = self.tensor._base
        # What was changed in place has had other edges.
        is_whole = base is not None and base.numel() == self.tensor.numel() and base._version == 0
        if base is None or not is_whole or base.grad_fn is None or not base.is_floating_point():
            return self
        return replace(self, tensor=base, edge=get_gradient_edge(base))

    def is_apart(self, other: "Value", size: int) -> bool:
        """Tell whether the difference from another one has so many numbers."""
        shapes = self.tensor.shape, other.tensor.shape
        if not all(one.tensor.layout is torch.strided for one in (self, other)):
            return False
        if shapes[0].numel() == shapes[1].numel():
            return size == shapes[0].numel()
        try:
            # As NumPy's: PyTorch's own imports half of its compiler first.
            return size == prod(np.broadcast_shapes(*shapes))
        except ValueError:
            return False

    def without(self, other: "Value") -> "Value":
        """Return the difference from another one, of as many numbers or repeated."""
        is_alike = self.tensor.numel() == other.tensor.numel()
        tensor = self.tensor - (other.tensor.reshape(self.tensor.shape) if is_alike else other.tensor)
        parts = [one.made for one in (self, other) if one.made is not None]
        made = Made(tuple(tensor.shape), "sub", tuple(parts))
        return Value(tensor, self.edge, Sign.UNKNOWN, tensor._version, made=made)


class Extreme(NamedTuple):
    """That a value is the largest or smallest of another one, along axes that stay.

    Attributes:
        word: "max" or "min".
        of: the other one.
        version: how often that had been changed in place.
        place: where it lies itself: a view of it may have its numbers in other places.
    """

    word: str
    of: torch.Tensor
    version: int
    place: Place

    def is_in_place(self, tensor: torch.Tensor) -> bool:
        """Tell whether a view of it has each number where it was, though repeated perhaps."""
        offset, shape, strides = self.place
        more = tensor.ndim - len(shape)
        if more < 0 or tensor.storage_offset() != offset:
            return False
        before = [*[(1, 0)] * more, *zip(shape, strides, strict=True)]
        return all(
            size == 1 == count or stride == (was if size == count else 0 if count == 1 else None)
            for size, stride, (count, was) in zip(tensor.shape, tensor.stride(), before, strict=True)
        )

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Tell whether it was chosen from these very numbers."""
        is_strided = tensor.layout is torch.strided and version_of(tensor) == self.version
        is_one = is_strided and tensor.untyped_storage()._cdata == self.of.untyped_storage()._cdata
        return bool(is_one) and place_of(tensor) == place_of(self.of)


@dataclass(frozen=True)
class Note(notes.Note[Value]):
    """What is known of a value that depends on the images.

    Attributes:
        falling: what may become a ReLU and is none yet, by its number, that it was made of: ``min(x, 0)``.
        extreme: of what it is the largest or smallest, if it is.
        is_lost: whether something that it was made of lost its gradient, and was no mask.
        made: how it is made.
    """

    falling: frozenset[int] = frozenset()
    extreme: Extreme | None = None
    is_lost: bool = False
    made: Made | None = None

    def joined(self, other: notes.Note[Value]) -> "Note":
        """Return what is known of a value that is one in a part, and the other elsewhere."""
        falling = other.falling if isinstance(other, Note) else frozenset[int]()
        known = replace(super().joined(other), is_stacked=True)
        is_lost = self.is_lost or (isinstance(other, Note) and other.is_lost)
        return Note(**{**vars(known), "falling": self.falling | falling, "extreme": None, "is_lost": is_lost})


class Notes:
    """Notes on tensors, kept by storage: a view shares them. Weak, so that no memory is held for it."""

    def __init__(self) -> None:
        self._notes: dict[tuple[int, bool], tuple[StorageWeakRef, Note, dict[Place, Note]]] = {}
        self._unwritten: dict[int, StorageWeakRef] = {}
        # The memory of what an operation that was seen gave.
        self._seen: dict[int, StorageWeakRef] = {}
        # The memory that a node gave its results in, by its place in time.
        self._given: dict[int, set[int]] = {}
        self._active: dict[int, tuple[StorageWeakRef, dict[int, weakref.ref[torch.Tensor]]]] = {}
        # Sparse tensors have no storage of their own; they are kept, so that no other gets their number.
        self._sparse: dict[int, tuple[torch.Tensor, Note]] = {}

    def put(self, tensor: torch.Tensor, note: Note, *, is_alone: bool = False) -> None:
        """Note something of a tensor, and of all that shares its memory unless it stands ``is_alone``."""
        if tensor.layout is not torch.strided:
            self._sparse[id(tensor)] = (tensor, note)
            return
        reference = StorageWeakRef(tensor.untyped_storage())
        known = self._notes.get(memory_of(tensor))
        if is_alone and known is not None:
            known[2][place_of(tensor)] = note
            return
        if known is not None and tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes():
            # A part was written, and the rest is what it was.
            note = note.joined(known[1])
        # While the weak reference lives, its address is not used again.
        self._notes[memory_of(tensor)] = (reference, note, {})

    def signed(self, tensor: torch.Tensor, shifts: Shifts) -> Note | None:
        """Return what is known of a tensor, and its sign as a variance or a distance: its node tells it."""
        note = self.of(tensor)
        if note is None or note.sign or not tensor.requires_grad or tensor.grad_fn is None:
            return note
        sign = sign_of_squares(tensor.grad_fn, shifts)
        if not sign:
            return note
        known = self._notes.get(memory_of(tensor)) if tensor.layout is torch.strided else None
        signed = replace(note, sign=sign)
        if known is not None and known[1] is note and not tensor._is_view():
            # All of it, and what shares its memory.
            self._notes[memory_of(tensor)] = (known[0], signed, known[2])
        return signed

    def put_seen(self, tensor: torch.Tensor) -> None:
        """Note that it was seen what made something."""
        if tensor.layout is torch.strided:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._seen[reference.cdata] = reference

    def is_unseen(self, tensor: torch.Tensor) -> bool:
        """Tell whether nobody saw what made a value."""
        is_strided = tensor.layout is torch.strided
        return is_strided and self.of(tensor) is None and tensor.untyped_storage()._cdata not in self._seen

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

    def was_active(self, tensor: torch.Tensor) -> bool:
        """Tell whether a value with a gradient lay in the memory of a tensor at some time of this run."""
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._active

    def put_active(self, tensor: torch.Tensor, number: int | None = None) -> None:
        """Note that a value with a gradient lies in this memory, wherever else it is known from.

        Args:
            tensor: the value.
            number: the place in time of the node that gave it, where that is known.
        """
        if tensor.layout is torch.strided:
            reference = StorageWeakRef(tensor.untyped_storage())
            _, tensors = self._active.setdefault(reference.cdata, (reference, {}))
            tensors[id(tensor)] = weakref.ref(tensor)
            if number is not None:
                self._given.setdefault(number, set()).add(reference.cdata)

    def is_elsewhere(self, tensor: torch.Tensor, node: Node) -> bool:
        """Tell whether a value does not lie where its node gave it, as what is set to other data does.

        What a backward pass unpacks does, though the tensor is another one. Of a view of what was changed in place
        nothing is known but that there is such a value: its node is made when it is asked for, by no operation.
        """
        places = self._given.get(node._sequence_nr())
        is_changed = tensor._is_view() and tensor._version > 0
        if places is None or is_changed or tensor.layout is not torch.strided:
            return not self.is_active(tensor)
        return tensor.untyped_storage()._cdata not in places

    def is_active(self, tensor: torch.Tensor) -> bool:
        """Tell whether a value with a gradient lies in the memory of a tensor, which may itself have none.

        What a buffer kept of an earlier run and lost its gradient since is none.
        """
        if tensor.layout is not torch.strided:
            return False
        _, tensors = self._active.get(tensor.untyped_storage()._cdata, (None, {}))
        return any(one is not None and one.requires_grad for one in (there() for there in tensors.values()))

    def operand(self, tensor: torch.Tensor, note: Note | None, *, is_kept: bool) -> "Operand":
        """Return a tensor as an operation was given it; ``is_kept`` if that changes it."""
        # What runs in functions of this library's is given its gradient afterwards.
        source = None if note is None or is_inside_own() else self.source_of(tensor)
        return Operand(tensor, note, is_kept=is_kept, is_lost=self.was_active(tensor), source=source)

    def source_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the value with a gradient whose numbers these are, as what is detached has them; None without any."""
        is_left = tensor.layout is torch.strided and not tensor.requires_grad and tensor.is_floating_point()
        _, tensors = self._active.get(tensor.untyped_storage()._cdata, (None, {})) if is_left else (None, {})
        alive = [one for one in (there() for there in tensors.values()) if one is not None and one.grad_fn is not None]
        same = (one for one in alive if place_of(one) == place_of(tensor))
        return next(same, next((one for one in alive if _is_reshaped(one, tensor)), None))

    def of(self, tensor: torch.Tensor) -> Note | None:
        """Return what is known of a tensor; None if it does not depend on the images."""
        if tensor.layout is not torch.strided:
            return self._sparse[id(tensor)][1] if id(tensor) in self._sparse else None
        storage, is_number = memory_of(tensor)
        known = self._notes.get((storage, is_number)) or self._notes.get((storage, not is_number))
        if known is None:
            return None
        return known[2].get(place_of(tensor), known[1]) if known[2] else known[1]


def is_inside_own() -> bool:
    """Tell whether a function of this library's runs: it is one operation, whose result it gives a gradient."""
    return getattr(RUNNING, "is_own", False)


def _is_reshaped(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two views of one memory are of the same numbers, in their order."""
    is_whole = one.is_contiguous() and other.is_contiguous() and one.dtype == other.dtype
    return is_whole and (one.storage_offset(), one.numel()) == (other.storage_offset(), other.numel())


@dataclass(frozen=True, eq=False, init=False)
class Operand(notes.Operand[Value]):
    """A tensor that an operation was given, before the operation.

    Attributes:
        tensor: its values.
        ref: it as what a result may be a ReLU of, or what it was detached from; None if no node passes a gradient on
            to either.
        is_lost: whether it is of numbers that lost their gradient, or is made of such.
    """

    note: Note | None
    tensor: torch.Tensor = field(init=False)
    is_lost: bool = field(init=False)

    def __init__(
        self,
        tensor: torch.Tensor,
        note: Note | None,
        *,
        is_kept: bool,
        is_lost: bool = False,
        source: torch.Tensor | None = None,
    ) -> None:
        is_active = note is not None and tensor.requires_grad
        # What an operation in place is given is gone afterwards.
        kept = tensor.clone() if is_kept else tensor
        # A leaf is cloned before anything is made of it, and has no node to be asked about.
        has_edge = is_active and tensor.grad_fn is not None
        sign = Sign.UNKNOWN if note is None else note.sign
        # Not detached: below autograd that would count changes of its own.
        edge = get_gradient_edge(tensor) if has_edge else None
        value = None
        if note is not None and tensor.is_floating_point():
            value = Value(kept, edge, sign, version_of(kept), falling=note.falling, made=note.made)
        ref = value if has_edge else None
        if source is not None and note is not None:
            ref = Value(source, get_gradient_edge(source), sign, source._version)
        super().__init__(
            note,
            ref,
            is_active,
            tensor.is_floating_point(),
            tensor.numel(),
            is_one_number=partial(_is_one_number, kept),
            has_zeros=partial(has_zeros, kept),
            is_sparse=partial(has_zeros, kept),
            value=value,
        )
        object.__setattr__(self, "tensor", kept)
        is_left = not (tensor.requires_grad or note is None) and is_of_numbers(tensor)
        object.__setattr__(self, "is_lost", is_left and (is_lost or (note is not None and note.is_lost)))

    @property
    def sign(self) -> Sign:
        """The sign that all its values have by how they were made."""
        return sign_of_tensor(self.tensor) if self.note is None else self.note.sign


def _is_one_number(tensor: torch.Tensor) -> bool:
    """Tell whether several values are all the same, as zeros are that depend on something."""
    is_known = tensor.numel() > 1 and tensor.layout is torch.strided
    return is_known and bool((tensor == tensor.flatten()[0]).all())
