"""A private copy of a model whose layers can be re-initialised, and got back; the model itself is never touched.

What a layer gets is what a fresh one would have. Everything that is drawn is drawn from a normal distribution that is
truncated at two standard deviations:

    kernels, embeddings         mean 0, standard deviation sqrt(2 / fan-in) (He et al. 2015, arXiv:1502.01852)
    biases and shifts           mean 0, standard deviation 0.1
    scales of a normalisation   mean 1, standard deviation 0.1
    running mean, variance      0 and 1
    slopes of a PReLU           0.25

The standard deviation of kernels is the one that keeps values alive through many ReLUs, also where a normalisation
that is as good as none follows; with a smaller one, maps would be zero, and all of them alike.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Inputs, Model, NumpyArray

_SHIFT = 0.1
# The standard deviation that is left of a normal distribution's after truncation at two of them.
_LEFT = 0.87962566103423978
_SCALES = {"gamma", "scale"}
_SHIFTS = {"b", "beta", "bias", "offset"}


class Weight(NamedTuple):
    """One array of a model.

    Attributes:
        layer: the name of its layer.
        name: its own name in the layer, which says what it is for.
        value: the array, as the user's model has it.
    """

    layer: str
    name: str
    value: NumpyArray

    @property
    def words(self) -> set[str]:
        """The words that the name is made of."""
        return set(re.split(r"[^a-z]+", self.name.lower()))

    @property
    def is_kernel(self) -> bool:
        """Tell a matrix or kernel from what a normalisation or a bias is made of."""
        vectors = {*_SCALES, *_SHIFTS, "alpha", "mean", "var", "variance"}
        return self.value.ndim > 1 and not self.words & vectors

    def fresh(self, generator: np.random.Generator) -> NumpyArray:
        """Return what a fresh layer would have in its place."""
        shape, words = self.value.shape, self.words
        if self.is_kernel:
            weight = _truncated(generator, shape) * np.sqrt(2 / self._fan_in())
        elif words & {"var", "variance"}:
            weight = np.ones(shape)
        elif "mean" in words:
            weight = np.zeros(shape)
        elif "alpha" in words:
            weight = np.full(shape, 0.25)
        else:
            # A vector that is called weight is a normalisation's.
            centre = 1.0 if words & {*_SCALES, "weight"} else 0.0
            weight = centre + _SHIFT * _truncated(generator, shape)
        return np.asarray(weight, self.value.dtype)

    def _fan_in(self) -> int:
        """Return how many inputs one output adds up: "weight" has its outputs first, a "kernel" has them last."""
        shape = self.value.shape
        if "depthwise" in self.words:
            return prod(shape[:-2])
        return prod(shape[1:]) if "weight" in self.words else prod(shape[:-1])


class PrivateCopy(ABC):
    """A copy of a model, and what its layers are made of.

    Attributes:
        model: the copy, as a method takes it.
        layers: the names of its layers from output to input; what has no kernel of its own, as a normalisation, is
            part of the layer in front of it, whose name comes first.
    """

    model: Model
    layers: list[tuple[str, ...]]

    def __init__(self, weights: Sequence[Weight], seed: int) -> None:
        """Take the weights, from input to output in the order that the model uses them in."""
        self._weights = list(weights)
        self._seed = seed
        self._fresh: set[int] = set()
        self.layers = _together(self._weights)

    def randomise(self, layers: Collection[str]) -> None:
        """Re-initialise these layers, always to the same values; all others become the user's own again."""
        wanted = {index for index, weight in enumerate(self._weights) if weight.layer in layers}
        changed = {}
        for index in wanted ^ self._fresh:
            weight = self._weights[index]
            is_fresh = index in wanted
            changed[index] = weight.fresh(np.random.default_rng([self._seed, index])) if is_fresh else weight.value
        self._assign(changed)
        self._fresh = wanted

    @abstractmethod
    def _assign(self, values: dict[int, NumpyArray]) -> None:
        """Give the copy these values, by the position of their weight."""

    def given(self, inputs: Inputs) -> Inputs:
        """Return the images as the copy takes them."""
        return inputs


def _together(weights: Sequence[Weight]) -> list[tuple[str, ...]]:
    """Return the layers from output to input, with those that have no kernel beside the one in front of them."""
    kernels = {weight.layer for weight in weights if weight.is_kernel}
    groups: list[list[str]] = []
    for layer in dict.fromkeys(weight.layer for weight in weights):
        has_room = bool(groups) and (layer not in kernels or not kernels.intersection(groups[-1]))
        if has_room:
            groups[-1].insert(0 if layer in kernels else len(groups[-1]), layer)
        else:
            groups.append([layer])
    return [tuple(layers) for layers in reversed(groups)]


def _truncated(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return draws of mean 0 and standard deviation 1 from a normal distribution without its tails."""
    draws = generator.standard_normal(shape)
    while (is_far := np.abs(draws) > 2).any():
        draws[is_far] = generator.standard_normal(np.count_nonzero(is_far))
    return draws / _LEFT
