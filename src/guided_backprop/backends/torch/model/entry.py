"""A torch model with a layer in front of one of its layers, so that what that one is given is a layer's output too."""

import copy

import torch

from guided_backprop.arrays import Layer, Model, Outputs, Tensor
from guided_backprop.backends.torch.model.network import TorchNetwork


def in_front_of(model: Model, layer: Layer) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a copy of ``model`` with a layer in front of ``layer``, and that one: it returns what ``layer`` is given.

    Where a layer is given several values, that is a tuple. Parameters and buffers are the model's own; the model is
    untouched.

    Raises:
        ModelError: the model has no layers by name.
        OptionError: the model has no such layer.
    """
    network = TorchNetwork(model)
    original = network.layers()[str(network.layer_name(layer))]
    entry = _Entry()
    return _with(model, original, _Entered(entry, original)), entry


def _with(module: torch.nn.Module, layer: torch.nn.Module, entered: "_Entered") -> torch.nn.Module:
    """Return a module with another one in a layer's place, wherever it has it: copied shallowly if it has it."""
    if module is layer:
        return entered
    if not any(inner is layer for inner in module.modules()):
        return module
    other, children = copy.copy(module), module._modules.items()
    other._modules = {name: None if child is None else _with(child, layer, entered) for name, child in children}
    return other


class _Entry(torch.nn.Module):
    """Returns what it is given."""

    def forward(self, *inputs: Tensor) -> Outputs:
        """Return the one input, or a tuple of several."""
        return inputs[0] if len(inputs) == 1 else inputs


class _Entered(torch.nn.Module):
    """Stands in for a layer, with all that others may read of it: runs it on what another one, in front, returns."""

    def __init__(self, entry: _Entry, layer: torch.nn.Module) -> None:
        super().__init__()
        self.training = layer.training
        # No attributes: their names may be the layer's own.
        self._modules["its input"] = entry
        self._modules["itself"] = layer

    def forward(self, *inputs: Tensor, **options: Tensor) -> Outputs:
        """Run both."""
        entry, layer = self._modules.values()
        assert entry is not None
        assert layer is not None
        given = entry(*inputs)
        return layer(*((given,) if len(inputs) == 1 else given), **options)

    def __getattr__(self, name: str) -> Tensor:
        if name == "_modules":
            raise AttributeError(name)
        return getattr(self._modules["itself"], name)
