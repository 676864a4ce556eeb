"""A torch model up to one of its layers, without a hook on it: the modules on the way there are copied shallowly."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from guided_backprop.errors import ModelError


def layers_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return all modules inside ``model`` by name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if name}


def run_until(model: torch.nn.Module, name: str) -> Callable[..., Any]:
    """Return a function that runs ``model`` until the layer called ``name`` has run, and returns its output.

    Parameters and buffers are the model's own; the model is untouched. Of a layer that runs several times
    the first output is returned.
    """
    *path, last = name.split(".")
    root = module = copy.copy(model)
    for part in path:
        child = copy.copy(module._modules[part])
        module._modules = {**module._modules, part: child}
        module = child  # type: ignore[assignment]
    module._modules = {**module._modules, last: _Last(module._modules[last])}

    def until(*inputs: Any, **named: Any) -> Any:
        try:
            root(*inputs, **named)
        except _Reached as reached:
            return reached.output
        raise ModelError(
            f"output_layer must be run by the model; received output_layer={name!r}, which was not. "
            "Name a layer that is on the way to the model's output."
        )

    return until


class _Reached(BaseException):
    """Leaves the forward pass: not an Exception, so that no handler of the model's own takes it for an error."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class _Last(torch.nn.Module):
    """Stands in for the layer: runs it, and nothing after it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("layer", "_modules") else getattr(self.layer, name)

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Run the layer."""
        raise _Reached(self.layer(*inputs, **options))
