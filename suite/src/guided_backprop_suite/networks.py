"""Networks as data: layers with float64 weights, images, labels, and the maps that a NumPy oracle gives for them.

A layer is a dictionary: its ``kind``, numbers and arrays, and the layers inside of it. Images are ``(N, C, H, W)`` or
``(N, features)``; a framework's builder makes a model of the layers, and turns images round where it needs to.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layer = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """One network, and what is right for it.

    Attributes:
        name: its name in the file.
        layers: from images to outputs.
        images: ``(N, C, H, W)`` or ``(N, features)``.
        labels: ``(N,)`` class ids.
        outputs: ``(N, 5)``.
        guided: the map of Guided Backpropagation, like the images.
        plain: the gradient, likewise.
    """

    name: str
    layers: list[Layer]
    images: Array
    labels: NDArray[np.int64]
    outputs: Array
    guided: Array
    plain: Array


@cache
def networks() -> dict[str, Network]:
    """Return all networks by name."""
    with np.load(Path(__file__).with_name("networks.npz"), allow_pickle=False) as file:
        arrays = dict(file)
    names = dict.fromkeys(key.partition("/")[0] for key in arrays)
    return {name: _network(name, arrays) for name in names}


def _network(name: str, arrays: dict[str, Any]) -> Network:
    def filled(value: Any) -> Any:
        if isinstance(value, dict) and "array" in value:
            return arrays[f"{name}/{value['array']}"]
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    parts = ("images", "labels", "outputs", "guided", "plain")
    layers = filled(json.loads(str(arrays[f"{name}/layers"])))
    return Network(name, layers, *(arrays[f"{name}/{part}"] for part in parts))
