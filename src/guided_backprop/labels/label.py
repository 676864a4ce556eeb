"""What every form of labels answers: how much each of the model's outputs weighs in the score."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Labels, NumpyArray, Tensor

#: How much each of the model's outputs weighs in the score: of the outputs' shape.
Weighting = NDArray[np.float64]


class Label(ABC):
    """What is explained in a batch of images.

    Outputs are ``(N,)``, ``(N, C)`` or ``(N, C, ...)``, with channels (classes) on axis 1 or where ``channel_axis``
    says; what comes after the channel are positions.
    """

    @property
    def score(self) -> Callable[[Tensor], Tensor] | None:
        """From the model's output, in its own framework, to ``(N,)``: the score where no weights say it, else None."""
        return None

    @abstractmethod
    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        """Return the weights of each label, of the shape of ``outputs``, for the images from ``start`` on.

        All labels are checked against the outputs' shape at once, so a bad one is found in the first batch.

        Raises:
            LabelError: the labels do not suit the outputs.
        """

    def ids_ahead(self, start: int, count: int) -> NDArray[np.int64] | None:
        """Return the class of each image from ``start`` on, -1 for the highest; None if outputs are needed for that."""
        return None

    def check(self, outputs: NumpyArray, channel_axis: int = 1) -> None:  # noqa: B027 - most need outputs first
        """Raise LabelError unless the outputs have the classes that :meth:`ids_ahead` names."""

    @abstractmethod
    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        """Return what was explained, given the outputs for all images, as a result's ``labels`` say it.

        Integers are class ids ``(N,)`` or ``(N, K)``, or entries ``(N, D)``; floating-point numbers are weights;
        a callable is there by its name.
        """

    def scores(self, outputs: NumpyArray) -> NDArray[np.float64] | None:
        """Return the score of each image where it is not the weighted sum of outputs, else None."""
        return None

    def fixed(self, given: Labels, explained: NumpyArray) -> Labels:
        """Return labels that ask another model for the same: another one has another top class, and other maxima.

        Args:
            given: what the user asked for.
            explained: what was explained of it.
        """
        return given

    def is_many(self, outputs: NumpyArray) -> bool:
        """Tell whether each image has a row of labels."""
        return False


@dataclass(frozen=True)
class Weigher:
    """From the outputs of some images to how much each weighs, for each label that is asked for.

    Attributes:
        label: what is asked for.
        start: which image is the first.
        count: how many images.
        axis_of: which axis of outputs is that of channels.
    """

    label: Label
    start: int
    count: int
    axis_of: Callable[[NumpyArray], int]

    def __call__(self, outputs: NumpyArray) -> list[Weighting]:
        """Return the weights, of the shape of ``outputs``."""
        return self.label.weigh(outputs, self.start, self.axis_of(outputs))

    def check(self, outputs: NumpyArray) -> None:
        """Raise LabelError unless the outputs have the classes that are known without them."""
        self.label.check(outputs, self.axis_of(outputs))

    @property
    def ids(self) -> NDArray[np.int64] | None:
        """The class of each image, -1 for the highest, where that is known without the outputs."""
        return self.label.ids_ahead(self.start, self.count)


def moved(array: NumpyArray, source: int, target: int) -> NumpyArray:
    """Return an array with one of its axes elsewhere."""
    return array if source == target else np.moveaxis(array, source, target)


def weight_at(shape: tuple[int, ...], *index: NumpyArray) -> Weighting:
    """Return weight 1 at the entries of an index, and 0 elsewhere."""
    weights = np.zeros(shape)
    weights[index] = 1.0
    return weights


def shape_text(array: NumpyArray) -> str:
    """Return the shape of an array of one row per image: ``(N, 10)``."""
    sizes = array.shape[1:]
    return f"(N, {', '.join(map(str, sizes))})" if sizes else "(N,)"
