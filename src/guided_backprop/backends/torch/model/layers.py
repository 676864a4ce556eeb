"""The layers of a torch model, itself watched at some of them without a hook, and where a graph begins inside of it."""

from collections.abc import Callable, Sequence

import torch

from guided_backprop.arrays import Inputs, Model, Outputs, Tensor
from guided_backprop.backends.runs import Passage
from guided_backprop.backends.torch.model.images import leaf_of
from guided_backprop.backends.twins import Twins, watch


def layers_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return all modules inside ``model`` by name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if name}


def run_watched(model: torch.nn.Module, inputs: Inputs, passage: Passage) -> Outputs:
    """Run a twin of ``model`` that is watched at some layers; parameters and buffers are the model's own."""
    twins, layers = Twins(is_module), layers_of(model)
    twin = twins.of(model)
    for name in passage.layers:
        watch(twins.of(layers[str(name)]), passage.at(name))
    return passage.run(lambda: inputs.call(twin))


class Beginning:
    """Where a graph begins inside of a model: what a layer returned becomes a leaf.

    Args:
        check: raises if a layer's output is not one that a gradient can be taken at.
        followers: are told the leaf before anything is made of it.
        other: what the graph begins with in its place; None for what the layer returned.
    """

    def __init__(
        self,
        check: Callable[[Tensor], None],
        followers: Sequence[Callable[[torch.Tensor], None]],
        other: torch.Tensor | None = None,
    ) -> None:
        self._check, self._followers, self._other = check, followers, other
        self.leaves: list[torch.Tensor] = []

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Return a copy for the model to go on with, which may work in place."""
        self._check(value)
        # The model may have run the layer without gradients, as a frozen backbone.
        with torch.enable_grad():
            self.leaves.append(leaf_of(value if self._other is None else self._other))
            for follow in self._followers:
                follow(self.leaves[-1])
            return self.leaves[-1].clone()


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


def is_module(value: object) -> bool:
    """Tell whether something is a layer or a model."""
    return isinstance(value, torch.nn.Module)
