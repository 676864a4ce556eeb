"""A torch model with a layer in front of one of its layers, so that what that one is given is a layer's output too."""

import torch

from guided_backprop.arrays import Layer, Model, Outputs, Tensor
from guided_backprop.backends.torch.model.layers import is_module
from guided_backprop.backends.torch.model.network import TorchNetwork
from guided_backprop.backends.twins import Twins, entered


def in_front_of(model: Model, layer: Layer) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a twin of ``model`` with a layer in front of ``layer``, and that one: it returns what ``layer`` is given.

    Where a layer is given several values, that is a tuple. Parameters and buffers are the model's own; the model is
    untouched.

    Raises:
        ModelError: the model has no layers by name.
        OptionError: the model has no such layer.
    """
    network = TorchNetwork(model)
    twins, entry = Twins(is_module), _Entry()
    entered(twins.of(network.layers()[str(network.layer_name(layer))]), entry)
    return _WithEntry(twins.of(model), entry), entry


class _Entry(torch.nn.Module):
    """Returns what it is given."""

    def forward(self, *inputs: Tensor) -> Outputs:
        """Return the one input, or a tuple of several."""
        return inputs[0] if len(inputs) == 1 else inputs


class _WithEntry(torch.nn.Module):
    """Runs a model. It holds the entry as a child as well, so that it is one of the layers."""

    def __init__(self, model: torch.nn.Module, entry: _Entry) -> None:
        super().__init__()
        self.model, self.entry = model, entry
        # Its own mode says nothing.
        self.training = entry.training = False

    def forward(self, *inputs: Tensor) -> Outputs:
        """Run the model."""
        return self.model(*inputs)
