"""A torch module, or a function of tensors, as the backend asks it."""

from collections.abc import Callable, Mapping, Sequence

import torch

from guided_backprop.arrays import Inputs, Layer, Model, Tensor
from guided_backprop.backends.mistakes import Shape, first_layer
from guided_backprop.backends.network import Network, counts_of, names_of
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.runs import Passage, Run
from guided_backprop.backends.torch.model.eager import unfused
from guided_backprop.backends.torch.model.layers import layers_of, run_watched
from guided_backprop.backends.torch.model.mode import training_module
from guided_backprop.backends.torch.model.randomize import TorchCopy
from guided_backprop.errors import ModelError


class TorchNetwork(Network):
    """A ``torch.nn.Module`` or any callable on tensors."""

    is_channels_last = False

    def __init__(self, model: Model, begin: Run | None = None, end: Run | None = None) -> None:
        super().__init__(model, begin, end)
        self._forward = unfused(model)

    @property
    def name(self) -> str:
        return type(self.model).__name__ if isinstance(self.model, torch.nn.Module) else super().name

    def check(self) -> None:
        training = training_module(self.model) if isinstance(self.model, torch.nn.Module) else None
        if training is not None:
            raise ModelError(
                "model must be in eval mode, or its map is random; "
                f"received training=True on {training}, which asks for it. Call model.eval()."
            )

    def input_counts(self) -> range:
        return counts_of(self.model.forward) if isinstance(self.model, torch.nn.Module) else super().input_counts()

    def input_names(self) -> Sequence[str]:
        return names_of(self.model.forward) if isinstance(self.model, torch.nn.Module) else super().input_names()

    def first_layer(self) -> tuple[str, Shape, int] | None:
        if not isinstance(self.model, torch.nn.Module):
            return None
        return first_layer(dict(self.model.named_modules()), is_channels_last=False)

    def run(self, inputs: Inputs) -> Tensor:
        return inputs.call(self._forward)

    def run_watched(self, inputs: Inputs, passage: Passage) -> Tensor:
        return run_watched(self.model, inputs, passage)

    def layers(self) -> Mapping[str, Layer]:
        is_open = isinstance(self.model, torch.nn.Module) and not isinstance(self.model, torch.jit.ScriptModule)
        return layers_of(self.model) if is_open else super().layers()

    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        return TorchCopy(self.model, run, seed)
