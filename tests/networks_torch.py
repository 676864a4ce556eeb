"""From the reference network to the equal torch network: float64, evaluation mode, one module per layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import reference
from networks import LABELS, attribution, mixed

Activation = Callable[[torch.Tensor], torch.Tensor]
Build = Callable[[Any], nn.Module]


def to_torch(layer: reference.Layer) -> nn.Module:
    """Return the equal torch module; a layer that is used twice becomes one module that is used twice."""
    built: dict[int, nn.Module] = {}

    def build(part: reference.Layer) -> nn.Module:
        if id(part) not in built:
            built[id(part)] = BUILDERS[type(part)](part, build)
        return built[id(part)]

    return build(layer).double().eval()


class Net(nn.Module):
    """The mixed network; one activation for all of its three ReLUs, or one for each."""

    def __init__(self, *activate: Activation, cap: float | None = None) -> None:
        super().__init__()
        layers = mixed(reference.ReLU(cap)).layers
        self.stem, self.branch = to_torch(layers[0]), to_torch(layers[1].branch.layers[1])
        self.middle = nn.Sequential(*map(to_torch, layers[3:6]))
        self.head = nn.Sequential(*map(to_torch, layers[7:]))
        self.first, self.second, self.third = activate if len(activate) == 3 else activate * 3
        self.eval()

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """The pre-activation block. The clone keeps an activation in place off the skip path."""
        return x + self.branch(self.first(x.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (N, 5)."""
        x = self.second(self.residual(self.stem(x)))
        return self.head(self.third(self.middle(x)))


def relu_net() -> Net:
    """Return the network with one nn.ReLU module used three times."""
    return Net(nn.ReLU())


def oracle(rule: reference.Rule = "guided", cap: float | None = None, labels: list[int] = LABELS) -> reference.Array:
    """Return the right map of the mixed network."""
    return attribution(mixed(reference.ReLU(cap)), rule, labels)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the branch to its own input."""
        y: torch.Tensor = x + self.branch(x)
        return y


def _relu(layer: reference.ReLU, build: Build) -> nn.Module:
    if layer.cap is None:
        return nn.ReLU()
    return nn.ReLU6() if layer.cap == 6 else nn.Hardtanh(0.0, layer.cap)


def _conv(layer: reference.Conv2d, build: Build) -> nn.Module:
    outputs, inputs, *kernel = layer.weight.shape
    geometry = (tuple(kernel), layer.stride, layer.padding, layer.dilation, layer.groups)
    return _filled(nn.Conv2d(inputs * layer.groups, outputs, *geometry), weight=layer.weight, bias=layer.bias)


def _linear(layer: reference.Linear, build: Build) -> nn.Module:
    outputs, inputs = layer.weight.shape
    return _filled(nn.Linear(inputs, outputs), weight=layer.weight, bias=layer.bias)


def _batch_norm(layer: reference.BatchNorm2d, build: Build) -> nn.Module:
    return _filled(
        nn.BatchNorm2d(len(layer.weight), eps=layer.epsilon),
        weight=layer.weight,
        bias=layer.bias,
        running_mean=layer.mean,
        running_var=layer.variance,
    )


def _filled(module: nn.Module, **values: np.ndarray) -> nn.Module:
    module.double()
    module.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    return module


BUILDERS: dict[type, Callable[[Any, Build], nn.Module]] = {
    reference.ReLU: _relu,
    reference.Conv2d: _conv,
    reference.Linear: _linear,
    reference.BatchNorm2d: _batch_norm,
    reference.MaxPool2d: lambda layer, build: nn.MaxPool2d(layer.kernel, layer.stride, layer.padding),
    reference.AvgPool2d: lambda layer, build: nn.AvgPool2d(layer.kernel, layer.stride, layer.padding),
    reference.GlobalAveragePool: lambda layer, build: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    reference.Flatten: lambda layer, build: nn.Flatten(),
    reference.Residual: lambda layer, build: Residual(build(layer.branch)),
    reference.Sequential: lambda layer, build: nn.Sequential(*map(build, layer.layers)),
}
