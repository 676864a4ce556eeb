"""Makes networks.npz: each network's layers, images and labels, and its maps by the oracle of tests/reference.py.

Run: PYTHONPATH=tests:suite/src python suite/make_networks.py

What lives here: the layers that the oracle does not have, the networks, and the file.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import reference
from reference import Array, Backward, Layer, Rule

FILE = Path(__file__).parent / "src/guided_backprop_suite/networks.npz"
RNG = np.random.default_rng(0)
CLASSES = 5

# Layers that the oracle does not have.


@dataclass(frozen=True, eq=False)
class Product:
    """The product of two branches; of the first, its sign alone if ``is_mask``."""

    branches: tuple[Layer, Layer]
    is_mask: bool

    def forward(self, x: Array) -> tuple[Array, Backward]:
        (first, to_first), (second, to_second) = (branch.forward(x) for branch in self.branches)
        gate = np.where(first > 0, 1.0, 0.0) if self.is_mask else first

        def backward(g: Array, rule: Rule) -> Array:
            towards = to_second(g * gate, rule)
            return towards if self.is_mask else towards + to_first(g * second, rule)

        return gate * second, backward


@dataclass(frozen=True, eq=False)
class Standardise:
    """Less the mean of each image, divided by the root of its variance."""

    epsilon: float = 1e-5

    def forward(self, x: Array) -> tuple[Array, Backward]:
        axes = tuple(range(1, x.ndim))
        deviation = np.sqrt(x.var(axis=axes, keepdims=True) + self.epsilon)
        y = (x - x.mean(axis=axes, keepdims=True)) / deviation

        def backward(g: Array, rule: Rule) -> Array:
            along = (g * y).mean(axis=axes, keepdims=True)
            return np.asarray((g - g.mean(axis=axes, keepdims=True) - y * along) / deviation)

        return y, backward


@dataclass(frozen=True, eq=False)
class Root:
    """The square root, a little away from 0."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        y = np.sqrt(x + 0.1)
        return y, lambda g, rule: g / (2 * y)


@dataclass(frozen=True, eq=False)
class Tokens:
    """(n, c, h, w) -> (n, h * w * c): position by position, its channels."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        n, c, h, w = x.shape
        y = x.reshape(n, c, -1).transpose(0, 2, 1).reshape(n, -1)
        return y, lambda g, rule: g.reshape(n, h * w, c).transpose(0, 2, 1).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Unguided:
    """A planted fault: a ReLU that keeps its plain gradient whatever the rule."""

    relu: reference.ReLU

    def forward(self, x: Array) -> tuple[Array, Backward]:
        y, backward = self.relu.forward(x)
        return y, lambda g, rule: backward(g, "saliency")


@dataclass(frozen=True, eq=False)
class Seen:
    """A ReLU that notes what it reads."""

    relu: reference.ReLU
    values: list[Array]

    def forward(self, x: Array) -> tuple[Array, Backward]:
        self.values.append(x)
        return self.relu.forward(x)


# From a description to the oracle's layers. A description is data: {"kind": ..., its numbers and arrays}.

Described = list[dict[str, Any]]
Watch = Callable[[int, reference.ReLU], Layer]


def to_reference(layers: Described, watch: Watch = lambda number, relu: relu) -> Layer:
    """Return the oracle's network; ``watch`` may put something in the place of a ReLU, given its number."""
    numbers = itertools.count()

    def relu(layer: dict[str, Any]) -> Layer:
        return watch(next(numbers), reference.ReLU(layer.get("cap")))

    def pair(layer: dict[str, Any], name: str, default: int) -> tuple[int, int]:
        rows, columns = layer.get(name, (default, default))
        return rows, columns

    def conv(layer: dict[str, Any]) -> Layer:
        places = pair(layer, "stride", 1), pair(layer, "padding", 0), pair(layer, "dilation", 1)
        return reference.Conv2d(layer["weight"], layer["bias"], *places, layer.get("groups", 1))

    def norm(layer: dict[str, Any]) -> Layer:
        return reference.BatchNorm2d(*(layer[name] for name in ("weight", "bias", "mean", "variance")))

    def product(layer: dict[str, Any]) -> Layer:
        first, second = map(sequential, layer["branches"])
        return Product((first, second), layer["kind"] == "mask")

    kinds: dict[str, Callable[[dict[str, Any]], Layer]] = {
        "relu": relu,
        "conv": conv,
        "norm": norm,
        "product": product,
        "mask": product,
        "linear": lambda layer: reference.Linear(layer["weight"], layer["bias"]),
        "residual": lambda layer: reference.Residual(sequential(layer["layers"])),
        "max_pool": lambda layer: reference.MaxPool2d(*[pair(layer, "kernel", 2)] * 2),
        "mean": lambda layer: reference.GlobalAveragePool(),
        "flatten": lambda layer: reference.Flatten(),
        "standardise": lambda layer: Standardise(),
        "root": lambda layer: Root(),
        "tokens": lambda layer: Tokens(),
    }

    def sequential(described: Described) -> Layer:
        return reference.Sequential(tuple(kinds[layer["kind"]](layer) for layer in described))

    return sequential(layers)


# The networks.


def conv(inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3), *, bias: bool = True, **places: Any) -> Any:
    made = reference.random_conv(RNG, inputs, outputs, kernel, groups=places.get("groups", 1))
    return {"kind": "conv", "weight": made.weight, "bias": made.bias * bias, **places}


def linear(inputs: int, outputs: int = CLASSES) -> Any:
    made = reference.random_linear(RNG, inputs, outputs)
    return {"kind": "linear", "weight": made.weight, "bias": made.bias}


def norm(channels: int) -> Any:
    made = reference.random_batch_norm(RNG, channels)
    return {"kind": "norm", "weight": made.weight, "bias": made.bias, "mean": made.mean, "variance": made.variance}


def kind(name: str, **data: Any) -> Any:
    return {"kind": name, **data}


def images(*shape: int) -> Array:
    return RNG.normal(size=shape) / 2


SAME = {"padding": (1, 1)}
RELU, MEAN = kind("relu"), kind("mean")


def networks() -> dict[str, tuple[Array, Described]]:
    """Return images and layers of each network."""
    stem, last = conv(3, 4, **SAME), [RELU, conv(4, 6, stride=(2, 2)), RELU, MEAN, linear(6)]
    branch = [conv(4, 4, **SAME), RELU, conv(4, 4, **SAME)]
    residual, shared = (kind("residual", layers=layers) for layers in (branch, [RELU, *branch]))
    capped = kind("relu", cap=6.0)
    loud = [conv(3, 4, **SAME), capped, conv(4, 4, **SAME), capped, MEAN, linear(4)]
    for layer in (loud[0], loud[2]):
        layer["weight"] = layer["weight"] * 4
    dark = np.maximum(images(2, 3, 9, 9), 0)
    dark[:, :, 2:7, 3:] = 0
    branches = [[conv(4, 4, **SAME), RELU], [conv(4, 4, **SAME)]]
    # What a gate or a root is behind sees gradients of both signs.
    mixed = conv(4, 4, **SAME)
    bare = [[conv(4, 4, **SAME)], [conv(4, 4, **SAME)]]
    one_channel = [conv(1, 3, (3, 2), stride=(1, 2), padding=(1, 0)), RELU, kind("max_pool", kernel=(2, 1))]
    depthwise = conv(4, 4, groups=4, dilation=(2, 2), padding=(2, 2))
    return {
        "residual": (images(2, 3, 9, 9), [stem, RELU, residual, *last]),
        "shared": (images(2, 3, 9, 9), [stem, shared, *last]),
        "rows": (images(3, 6), [linear(6, 8), RELU, linear(8, 8), RELU, linear(8)]),
        "odd": (images(1, 1, 12, 9), [*one_channel, conv(3, 4), RELU, kind("flatten"), linear(32)]),
        "grouped": (images(2, 3, 9, 9), [stem, RELU, depthwise, RELU, conv(4, 6, groups=2), RELU, MEAN, linear(6)]),
        "ties": (dark, [conv(3, 4, bias=False, **SAME), RELU, conv(4, 4, bias=False, **SAME), RELU, MEAN, linear(4)]),
        "caps": (images(2, 3, 9, 9), loud),
        "tokens": (images(1, 3, 5, 4), [stem, RELU, conv(4, 2, **SAME), norm(2), kind("tokens"), linear(40)]),
        "gate": (images(2, 3, 9, 9), [stem, RELU, kind("product", branches=branches), mixed, *last]),
        "mask": (images(2, 3, 9, 9), [stem, RELU, kind("mask", branches=bare), mixed, *last]),
        "guard": (images(2, 3, 9, 9), [stem, RELU, conv(4, 4, **SAME), kind("standardise"), mixed, *last]),
        "root": (images(2, 3, 9, 9), [stem, RELU, conv(4, 4, **SAME), RELU, kind("root"), mixed, *last]),
    }


# The file.


def explained(layers: Described, x: Array, labels: Any, rule: Rule, watch: Watch = lambda number, relu: relu) -> Array:
    return reference.attribution(to_reference(layers, watch), x, np.eye(CLASSES)[labels], rule)


def faults(name: str, layers: Described, x: Array, labels: Any) -> list[str]:
    """Return which ReLUs could be missed unnoticed, and which read what conventions differ for."""
    values: list[Array] = []
    to_reference(layers, lambda number, relu: Seen(relu, values)).forward(x)
    guided = explained(layers, x, labels, "guided")
    found = []
    for number, read in enumerate(values):

        def skip(other: int, relu: reference.ReLU, missed: int = number) -> Layer:
            return Unguided(relu) if other == missed else relu

        change = np.abs(explained(layers, x, labels, "guided", skip) - guided).max() / np.abs(guided).max()
        found += [f"{name}: missing ReLU {number} changes next to nothing"] if change < 0.01 else []
        if name not in ("ties", "caps") and (np.abs(read).min() < 1e-6 or read.max() > 6):
            found.append(f"{name}: ReLU {number} reads a tie, or what is above 6")
    return found


def labels_of(x: Array) -> Any:
    return np.arange(len(x)) * 2 % CLASSES


def stored(name: str, x: Array, layers: Described) -> dict[str, Array]:
    """Return what the file has of one network; arrays of its layers are numbered."""
    weights: list[Array] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            weights.append(value)
            return {"array": len(weights) - 1}
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    description, labels = json.dumps(plain(layers)), labels_of(x)
    outputs, _ = to_reference(layers).forward(x)
    arrays = {"layers": np.array(description), "images": x, "labels": labels, "outputs": outputs}
    arrays |= {"guided": explained(layers, x, labels, "guided"), "plain": explained(layers, x, labels, "saliency")}
    arrays |= {str(number): array for number, array in enumerate(weights)}
    return {f"{name}/{key}": array for key, array in arrays.items()}


if __name__ == "__main__":
    made = networks()
    parts = [stored(name, x, layers) for name, (x, layers) in made.items()]
    if wrong := [fault for name, (x, layers) in made.items() for fault in faults(name, layers, x, labels_of(x))]:
        raise SystemExit("\n".join(wrong))
    np.savez_compressed(FILE, **{key: array for part in parts for key, array in part.items()})
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")
