"""The small contract every framework fulfils: run a model, edit its backward pass, give back the result.

A backend knows nothing of methods, of labels or of files. It is handed a batch, a function that says
how the outputs weigh in the score, and a rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.coverage import Coverage
from guided_backprop.rules import ReluRule

Weigh = Callable[[NDArray[Any]], NDArray[np.float64]]
Vouch = Mapping[str, Literal["relu", "plain"]]


@dataclass(frozen=True)
class Attributed:
    """What a backend gives back for one batch.

    Attributes:
        attribution: gradient of the scores under the rule; shape, dtype, device and kind of the images.
        scores: ``(N,)`` float64, the scalar per image that was differentiated.
        outputs: the model's own output as a NumPy array, ``(N, ...)``.
        coverage: the non-linearities on the path from score to image.
        head: the final softmax or sigmoid that was undone, or ``None``.
    """

    attribution: Any
    scores: NDArray[np.float64]
    outputs: NDArray[Any]
    coverage: Coverage
    head: str | None


class Backend(ABC):
    """One model in one framework."""

    #: The model's name, for people.
    name: str

    @abstractmethod
    def check_images(self, images: Any) -> None:
        """Raise ImageError unless ``images`` is a batch of finite floating-point values ``(N, ...)``."""

    @abstractmethod
    def channel_axis(self, images: Any) -> int | None:
        """Return where channels are in ``images``, or None if they have no channels."""

    @abstractmethod
    def attribute(self, images: Any, weigh: Weigh, rule: ReluRule) -> Attributed:
        """Explain one batch.

        Args:
            images: a batch that ``check_images`` accepted.
            weigh: from the model's outputs to their weights in the score, both ``(N, ...)``.
            rule: what a ReLU lets through.

        Raises:
            ModelError: the model cannot be explained, or hides its ReLUs, or has none.
            ScoreError: the score does not depend on the images, or is not finite.
        """

    @abstractmethod
    def reduce(self, attribution: Any, reducer: str, axis: int) -> Any:
        """Reduce ``axis`` by "mean", "sum", "max", "min" or "absmax", which is the largest magnitude."""

    @abstractmethod
    def concatenate(self, batches: Sequence[Any]) -> Any:
        """Join batches along the first axis."""

    @abstractmethod
    def empty_like(self, images: Any) -> Any:
        """Return an uninitialised attribution for ``images``; used for a batch of no images."""


def per_image(weights: Any, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weighted sum of each row; what has no weight does not count, not even if it is infinite."""
    weights, values = np.asarray(weights, np.float64), np.asarray(values, np.float64)
    product = np.multiply(weights, values, out=np.zeros(weights.shape), where=weights != 0)
    summed: np.ndarray[Any, np.dtype[np.float64]] = product.reshape(len(product), -1).sum(axis=1)
    return summed
