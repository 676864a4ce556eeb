"""Whether a network has learned anything: the map of a random one is noise, and looks like one that isn't.

Only what is certain counts: every layer of it that normalises is as it was made, its factors one, its shifts and means
zero; or, in a network that has no such layers, every bias is zero, which many libraries begin with. The first step of
training moves these. A network with neither may be random and not show it.
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
# The name of what is kept, its values, and whether a layer that normalises keeps it.
Kept = tuple[str, Array, bool]


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
    why = builder or "every layer that normalises, or every bias, is as it was made"
    raise ModelError(
        f"model must have learned something: the map of random weights is noise; received model={spec!r}, and {why}. "
        "Load weights, or pass random_weights=True (--random-weights) to see that noise."
    )


def is_as_made(network: Model) -> bool:
    """Tell whether all layers of a network that normalise, or all its biases if it has none, are as they were made.

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
    norms = [_begins(name, array) for name, array, is_norm in kept if is_norm]
    biases = (_begins(name, array) for name, array, is_norm in kept if not is_norm)
    # One bias alone may be zero, as where a network was put together by hand.
    return all(norms) if norms else len(kept) > 1 and all(biases)


def _begins(name: str, array: Array) -> bool:
    different = np.unique(as_numpy(array))
    return len(different) == 1 and float(different[0]) in _BEGINNINGS[name]


def _of_torch(network: Model) -> Iterator[Kept]:
    """Yield what the layers of a torch module keep; those of an exported one are known by their names."""
    state: dict[str, Any] = network.state_dict()
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    norms |= {name for name, module in network.named_modules() if type(module).__name__ in _TORCH_NORMS}
    for name, array in state.items():
        layer, _, kept = name.rpartition(".")
        if (layer in norms and kept in _BEGINNINGS) or kept == "bias":
            yield kept, array, layer in norms


def _of_keras(network: Model) -> Iterator[Kept]:
    """Yield what the layers of a Keras or saved TensorFlow model keep."""
    variables: Iterable[Any] = getattr(network, "variables", ())
    for variable in variables if isinstance(variables, list | tuple) else ():
        kept = str(getattr(variable, "path", variable.name)).rpartition("/")[2].partition(":")[0]
        if kept in _KERAS_NORMS or kept == "bias":
            yield kept, variable, kept != "bias"
