"""An explanation that a model's own framework runs, as one program with the weights in it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage
from guided_backprop.export.extra import package


class CannotRun(Exception):  # noqa: N818 - no error: the method is run as it is, and says why
    """What a program can't compute; its text says why."""


class Program(ABC):
    """A function (images, ids, weights) -> (outputs, attribution, scores, is_finite), for fixed weights.

    Attributes:
        name: what runs it, with its version.
        inputs: what its inputs are called: the images, "labels" and "weights".
        outputs: what its results are called.
        coverage: what was done with each non-linearity.
        compiles_each_count: whether it takes long for a number of images that has not been before.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    coverage: Coverage
    compiles_each_count: bool

    @abstractmethod
    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Return all results by name; threads may call this at once.

        Raises:
            CannotRun: so many images are explained otherwise.
            ModelError: the model changed, or does not take them.
        """

    @abstractmethod
    def outputs_of(self, inputs: Mapping[str, NumpyArray]) -> NumpyArray:
        """Return the model's outputs alone, which takes a forward pass."""

    @abstractmethod
    def are_the_same(self) -> bool:
        """Tell whether the model is what it was when this was made: its weights, bit by bit."""


def digests(arrays: Iterable[Any]) -> list[int]:
    """Return a number for each array: another one if any of its bits is. Memory is read as fast as it can be.

    Raises:
        MissingExtraError: ``[export]`` is not installed.
    """
    digest: Any = package("xxhash").xxh3_64_intdigest
    # Not NumPy's own view as bytes of an array of other axes, which wants them to lie in order.
    flat = (np.ascontiguousarray(array).reshape(-1) for array in arrays)
    return [digest(array.view(np.uint8).data) if array.size else 0 for array in flat]
