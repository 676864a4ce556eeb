"""Labels that are numbers: class ids, or weights of the model's output; which of these, the output's shape tells."""

from dataclasses import dataclass, field
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Labels, NumpyArray, as_numpy
from guided_backprop.errors import LabelError
from guided_backprop.labels.classes import ClassIds, of_two_classes
from guided_backprop.labels.label import Label, Weighting, shape_text
from guided_backprop.labels.mask import Mask, refuse_mask


@final
@dataclass(frozen=True, eq=False)
class Numbers(Label):
    """Class ids or weights, one row per image."""

    given: NumpyArray
    mask: Mask | None
    # What they are beside outputs of a shape: asked several times in a call.
    _known: "dict[tuple[int, ...], ClassIds | Weights]" = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it is an array, or nested lists, of numbers.

        Raises:
            LabelError: there is not one per image.
        """
        try:
            array = as_numpy(labels)
        except (TypeError, ValueError):
            return None
        if array.dtype.kind not in "iuf":
            return None
        if array.ndim == 0:
            array = np.full(count, array)
        if len(array) != count:
            raise LabelError(
                f"labels must be one per image; received {len(array)} labels for {count} images. "
                "Pass one label per image, or one integer for all."
            )
        return cls(array, mask)

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        return self._resolved(outputs).weigh(outputs, start, channel_axis)

    def ids_ahead(self, start: int, count: int) -> NDArray[np.int64] | None:
        is_ids = self.given.ndim == 1 and self.given.dtype.kind in "iu" and self.mask is None
        return self.given[start : start + count].astype(np.int64) if is_ids else None

    def check(self, outputs: NumpyArray, channel_axis: int = 1) -> None:
        self._resolved(outputs).check(outputs, channel_axis)

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return self._resolved(outputs).explained(outputs, channel_axis)

    def is_many(self, outputs: NumpyArray) -> bool:
        return self._resolved(outputs).is_many(outputs)

    def _resolved(self, outputs: NumpyArray) -> "ClassIds | Weights":
        """Return what the numbers are beside these outputs."""
        known = self._known.get(outputs.shape)
        if known is None:
            if _is_weights(self.given, outputs):
                refuse_mask(self.mask, "weights")
                known = Weights(self.given)
            else:
                known = ClassIds(self.given, self.mask)
            self._known[outputs.shape] = known
        return known


@final
@dataclass(frozen=True, eq=False)
class Weights(Label):
    """Weights of the output's shape: a one-hot row, a contrast, or any other."""

    given: NumpyArray

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        self._check()
        return [self.given[start : start + len(outputs)].astype(np.float64)]

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return self.given.astype(np.float64)

    def _check(self) -> None:
        if not np.isfinite(self.given).all():
            raise LabelError("labels that are weights must be finite; received NaN or infinity. Remove them.")
        empty = np.flatnonzero(~self.given.reshape(len(self.given), -1).any(axis=1))
        if empty.size:
            raise LabelError(
                f"labels that are weights must not all be zero; received labels[{empty[0]}]=0. "
                f"{of_two_classes(self.given, self.given) or 'Give at least one output a weight.'}"
            )


def _is_weights(numbers: NumpyArray, outputs: NumpyArray) -> bool:
    """Tell weights from class ids; raise if the numbers are neither, or could be both."""
    is_integer = numbers.dtype.kind in "iu"
    if numbers.ndim == 1 and (outputs.ndim > 1 or is_integer):
        return False
    if numbers.shape[1:] != outputs.shape[1:]:
        if numbers.ndim == 2 and is_integer and numbers.shape[1]:
            return False
        raise LabelError(
            f"labels must be class ids (N,) or (N, K), or weights of the output's shape {shape_text(outputs)}; "
            f"received labels of shape {shape_text(numbers)}. Pass one integer per image."
        )
    if is_integer and numbers.ndim == 2 and (np.abs(numbers) > 1).any():
        raise LabelError(
            "integer labels of the output's shape could be class ids or weights; "
            f"received labels of shape {shape_text(numbers)} with values beyond -1, 0 and 1. "
            f'Pass weights as floating-point numbers, or labels="all" for all classes.'
        )
    return True
