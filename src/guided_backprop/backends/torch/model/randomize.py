"""A private copy of a torch module whose layers can be re-initialised."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from guided_backprop.arrays import Model, NumpyArray, as_numpy
from guided_backprop.backends.randomize import PrivateCopy, Weight
from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.own import Arguments, Function, Named
from guided_backprop.errors import ModelError


class TorchCopy(PrivateCopy):
    """A deep copy of a module. Its layers are the modules that have parameters or statistics of their own.

    Args:
        model: the user's module.
        run: runs a model forward on some of the images.
        seed: chooses what layers are re-initialised to.

    Raises:
        ModelError: the model is no module, or can't be copied.
    """

    def __init__(self, model: Model, run: Callable[[Model], object], seed: int) -> None:
        if not isinstance(model, torch.nn.Module):
            raise ModelError(
                "the weights of a model can be re-initialised if it is a torch.nn.Module; received "
                f"model={getattr(model, '__qualname__', type(model).__name__)}, which hides them. Pass the module."
            )
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:
            raise ModelError(
                f"model must be one that copy.deepcopy can copy; received {type(model).__name__} and "
                f"{type(error).__name__}: {error} Detach the tensors that it holds."
            ) from error
        own = dict(_tensors(model))
        tensors = {name: tensor for name, tensor in _tensors(self.model) if name in own}
        watch = _Uses(tensors)
        with watch:
            run(self.model)
        names = sorted(watch.last, key=watch.last.__getitem__)
        self._tensors = [tensors[name] for name in names]
        super().__init__([_weight(self.model, name, own[name]) for name in names], seed)

    def _assign(self, values: dict[int, NumpyArray]) -> None:
        with torch.no_grad():
            for index, value in values.items():
                tensor = self._tensors[index]
                tensor.copy_(torch.from_numpy(np.array(value)).to(tensor.dtype))


class _Uses(Dispatched):
    """Notes in which operation each tensor was used last, whatever module or function it was used by."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            self._names.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        self._clock = 0
        self.last: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        self._clock += 1
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                for name in self._names.get(leaf.untyped_storage().data_ptr(), ()):
                    self.last[name] = self._clock
        return func(*args, **(kwargs or {}))


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return parameters and statistics of floating-point numbers by name; one that has several names once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor.detach()) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]


def _weight(model: torch.nn.Module, name: str, value: torch.Tensor) -> Weight:
    layer, _, own = name.rpartition(".")
    is_slope = isinstance(dict(model.named_modules()).get(layer), torch.nn.PReLU)
    return Weight(layer or type(model).__name__, "alpha" if is_slope else own, as_numpy(value))
