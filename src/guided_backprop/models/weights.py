"""Whether a network has learned anything: the map of a random one is noise, and looks like one that isn't.

Only what is certain counts: every layer of it that normalises is as it was made, its factors one, its shifts and means
zero. The first step of training moves these. A network without such layers may be random and not show it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from guided_backprop.arrays import Array, Model, as_numpy
from guided_backprop.errors import ModelError

# What normalising layers call what they keep, and what it begins with. A block's last factor may begin with zero.
_BEGINNINGS = {
    "running_mean": {0.0},
    "running_var": {1.0},
    "moving_mean": {0.0},
    "moving_variance": {1.0},
    "gamma": {0.0, 1.0},
    "beta": {0.0},
    "weight": {0.0, 1.0},
    "bias": {0.0},
}
_TORCH_NORMS = ("LayerNorm", "GroupNorm", "LayerNorm2d", "GroupNorm1")
_KERAS_NORMS = ("gamma", "beta", "moving_mean", "moving_variance")


def require_learned(network: Model, spec: str, builder: str | None = None) -> None:
    """Refuse a network of random weights.

    Args:
        network: the network.
        spec: what the user named.
        builder: how a function that makes networks was called, if that says that it gives random weights.

    Raises:
        ModelError: it is certain that the network has learned nothing.
    """
    if builder is None and not is_as_made(network):
        return
    why = builder or "every layer that normalises is as it was made"
    raise ModelError(
        f"model must have learned something: the map of random weights is noise; received model={spec!r}, and {why}. "
        "Load weights, or pass random_weights=True (--random-weights) to see that noise."
    )


def is_as_made(network: Model) -> bool:
    """Tell whether a network has layers that normalise, and all of them are as they were made.

    Example:
        >>> import torch
        >>> from guided_backprop.models.weights import is_as_made
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> is_as_made(network)
        True
        >>> _ = network(torch.rand(2, 3, 8, 8))
        >>> is_as_made(network)
        False
    """
    kept = list(_of_torch(network) if hasattr(network, "named_modules") else _of_keras(network))
    return bool(kept) and all(_begins(name, array) for name, array in kept)


def _begins(name: str, array: Array) -> bool:
    different = np.unique(as_numpy(array))
    return len(different) == 1 and float(different[0]) in _BEGINNINGS[name]


def _of_torch(network: Model) -> Iterator[tuple[str, Array]]:
    """Yield what the normalising layers of a torch module keep; those of an exported one are known by their names."""
    state: dict[str, Any] = network.state_dict()
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    norms |= {name for name, module in network.named_modules() if type(module).__name__ in _TORCH_NORMS}
    for name, array in state.items():
        layer, _, kept = name.rpartition(".")
        if layer in norms and kept in _BEGINNINGS:
            yield kept, array


def _of_keras(network: Model) -> Iterator[tuple[str, Array]]:
    """Yield what the normalising layers of a Keras or saved TensorFlow model keep."""
    variables: Iterable[Any] = getattr(network, "variables", ())
    for variable in variables if isinstance(variables, list | tuple) else ():
        kept = str(getattr(variable, "path", variable.name)).rpartition("/")[2].partition(":")[0]
        if kept in _KERAS_NORMS:
            yield kept, variable
