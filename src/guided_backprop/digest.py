"""A digest of a network's weights, by which it is known again."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from guided_backprop.arrays import Array, Model, as_numpy


def digest(network: Model) -> str | None:
    """Return a digest of all weights of a network of any framework; None where it has none that can be read.

    Example:
        >>> import torch
        >>> from guided_backprop.digest import digest
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = digest(layer)
        >>> _ = layer.bias.data.add_(1)
        >>> before == digest(layer)
        False
    """
    return digest_of(_weights(network))


def digest_of(weights: Iterable[tuple[str, Array]]) -> str | None:
    """Return a digest of arrays and their names; None of none."""
    arrays, known = list(weights), sha256()
    if not arrays:
        return None
    for name, weight in arrays:
        array = np.ascontiguousarray(as_numpy(weight))
        known.update(f"{name} {array.dtype} {array.shape} ".encode())
        known.update(array.view(np.uint8).data if array.size else b"")
    return known.hexdigest()


def _weights(network: Model) -> Iterable[tuple[str, Array]]:
    if hasattr(network, "state_dict"):
        state: Mapping[str, Any] = network.state_dict()
        return [(name, weight) for name, weight in state.items() if hasattr(weight, "shape")]
    variables = getattr(network, "variables", ())
    return (
        [(str(number), variable) for number, variable in enumerate(variables)]
        if isinstance(variables, list | tuple)
        else []
    )
