"""A torch model up to one of its layers, without a hook on it: the modules on the way there are copied shallowly."""

import copy
from collections.abc import Callable

import torch

from guided_backprop.arrays import Layer, Model, Outputs, Tensor
from guided_backprop.errors import ModelError


def layers_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return all modules inside ``model`` by name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if name}


def run_until(model: torch.nn.Module, name: str) -> Callable[..., Outputs]:
    """Return a function that runs ``model`` until the layer called ``name`` has run, and returns its output.

    Parameters and buffers are the model's own; the model is untouched. Of a layer that runs several times
    the first output is returned.
    """
    root = _replaced(model, name, _Last)

    def until(*inputs: Tensor, **named: Tensor) -> Outputs:
        try:
            root(*inputs, **named)
        except _Reached as reached:
            return reached.output
        raise ModelError(
            f"layer must be run by the model; received layer={name!r}, which was not. "
            "Name a layer that is on the way to the model's output."
        )

    return until


def run_with(model: torch.nn.Module, name: str) -> Callable[..., tuple[Outputs, torch.Tensor]]:
    """Return a function that runs ``model`` and returns its output and that of the layer called ``name``.

    What the layer returned is where the graph begins: a leaf, and the model goes on with a copy of it.
    """

    def forward(*inputs: Tensor, **named: Tensor) -> tuple[Outputs, torch.Tensor]:
        leaves: list[torch.Tensor] = []
        output = _replaced(model, name, lambda layer: _Start(layer, leaves))(*inputs, **named)
        if len(leaves) != 1:
            raise ModelError(
                f"the layer must be run once by the model; received layer={name!r}, which was run {len(leaves)} times. "
                "Name a layer that is on the way to the model's output, once."
            )
        return output, leaves[0]

    return forward


def with_arguments(model: Model, arguments: tuple[object, ...]) -> torch.nn.Module:
    """Return a module that runs ``model`` with these arguments after its inputs, and is in the model's mode."""
    return _WithArguments(model, arguments)


class _WithArguments(torch.nn.Module):
    """Runs a model with further arguments. It holds a module as a child, so that its mode and layers are seen."""

    def __init__(self, model: Model, arguments: tuple[object, ...]) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments
        # Its own mode says nothing: not eval(), which would be handed on to the model.
        self.training = False

    def forward(self, *inputs: Tensor) -> Outputs:
        """Run the model."""
        return self.model(*inputs, *self.arguments)


def _replaced(model: torch.nn.Module, name: str, stand_in: Callable[[Layer], torch.nn.Module]) -> torch.nn.Module:
    """Return a copy of ``model``, shallow along the way to one layer, with another module in that layer's place."""
    *path, last = name.split(".")
    root = module = copy.copy(model)
    for part in path:
        child = copy.copy(module._modules[part])
        module._modules = {**module._modules, part: child}
        module = child  # type: ignore[assignment]
    module._modules = {**module._modules, last: stand_in(module._modules[last])}
    return root


class _Reached(BaseException):
    """Leaves the forward pass: not an Exception, so that no handler of the model's own takes it for an error."""

    def __init__(self, output: Outputs) -> None:
        super().__init__()
        self.output = output


class _InPlaceOf(torch.nn.Module):
    """Stands in for a layer, with all that others may read of it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training

    def __getattr__(self, name: str) -> Tensor:
        return super().__getattr__(name) if name in ("layer", "_modules") else getattr(self.layer, name)


class _Last(_InPlaceOf):
    """Runs the layer, and nothing after it."""

    def forward(self, *inputs: Tensor, **options: Tensor) -> None:
        """Run the layer."""
        raise _Reached(self.layer(*inputs, **options))


class _Start(_InPlaceOf):
    """Runs the layer, and lets the graph begin with what it returns."""

    def __init__(self, layer: Layer, values: list[torch.Tensor]) -> None:
        super().__init__(layer)
        self.values = values

    def forward(self, *inputs: Tensor, **options: Tensor) -> torch.Tensor:
        """Run the layer."""
        output = self.layer(*inputs, **options)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            received = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(
                f"the layer must return one real tensor; received {received} from {type(self.layer).__name__}. "
                "Name a layer that does."
            )
        self.values.append(output.detach().requires_grad_())
        return self.values[-1].clone()
