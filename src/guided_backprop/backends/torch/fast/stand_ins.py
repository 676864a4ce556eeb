"""What a model is given in the place of a value that is nowhere yet, or nowhere at all, while it runs folded."""

from typing import NamedTuple, TypeVar
from weakref import ref

import torch

from guided_backprop.backends.torch.fast.calls import Norm, Padding, tensors_of
from guided_backprop.backends.torch.fast.once import Unlike


class Normalised(NamedTuple):
    """The result of a convolution with a batch-norm in its weights, until that batch-norm is called."""

    result: torch.Tensor
    norm: Norm


Meaning = TypeVar("Meaning", Normalised, Padding)


class StandIns:
    """Tensors that nobody may read but the one function that each waits for; after its call they are spent.

    Attributes:
        waiting: those whose function was not called yet and what they mean, by their id.
        spent: the others that somebody still holds.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[torch.Tensor, Normalised | Padding]] = {}
        self.spent: dict[int, ref[torch.Tensor]] = {}
        # Of another shape than what they stand in for: images without their padding. An id of one that is neither
        # waiting nor spent says nothing, for it may be another tensor's by now.
        self._misshapen: set[int] = set()

    def put(self, tensor: torch.Tensor, meaning: Normalised | Padding) -> torch.Tensor:
        """Return what stands in for what is meant: a view of these values."""
        stand_in = tensor.view_as(tensor)
        self.waiting[id(stand_in)] = stand_in, meaning
        if isinstance(meaning, Padding):
            self._misshapen.add(id(stand_in))
        else:
            self._misshapen.discard(id(stand_in))
        return stand_in

    def take(self, tensor: torch.Tensor, kind: type[Meaning]) -> Meaning | None:
        """Return what a tensor means to the function that asks; None if it does not wait for one of this kind."""
        stand_in, meaning = self.waiting.get(id(tensor), (None, None))
        if stand_in is None or not isinstance(meaning, kind):
            return None
        key, spent = id(tensor), self.spent
        del self.waiting[key]
        # As a WeakValueDictionary, which takes ten times as long to tell whether it is empty.
        spent[key] = ref(stand_in, lambda _: spent.pop(key, None))
        return meaning

    def bar(self, nested: object) -> None:
        """Raise Unlike if any of these tensors stands in for another."""
        if (self.waiting or self.spent) and any(self._has(tensor) for tensor in tensors_of(nested)):
            raise Unlike

    def bar_misshapen(self, nested: object) -> None:
        """Raise Unlike if any of these tensors stands in for one of another shape."""
        if self._misshapen and any(
            id(tensor) in self._misshapen and self._has(tensor) for tensor in tensors_of(nested)
        ):
            raise Unlike

    def _has(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self.waiting or id(tensor) in self.spent
