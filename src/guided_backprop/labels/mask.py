"""The positions of a class that count, as in a segmented region."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Array, NumpyArray, as_numpy
from guided_backprop.errors import LabelError


@final
@dataclass(frozen=True, eq=False)
class Mask:
    """Positions ``(...)`` of all images or ``(N, ...)``, each with what it counts."""

    values: NDArray[np.float64]
    count: int

    @classmethod
    def parse(cls, mask: Array, count: int) -> Self:
        """Return the mask that the user gave for ``count`` images.

        Raises:
            LabelError: it is not finite numbers or booleans.
        """
        array = as_numpy(mask)
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise LabelError(f"mask must be finite numbers; received mask of dtype {array.dtype}. Pass booleans.")
        return cls(array.astype(np.float64), count)

    def within(self, channels: NumpyArray, start: int) -> NumpyArray:
        """Return the channels ``(N, C, ...)`` of the images from ``start`` on, with nothing outside of the mask.

        Raises:
            LabelError: the mask has another shape than the positions, or is empty for an image.
        """
        positions, shape = channels.shape[2:], self.values.shape
        if not positions or shape not in (positions, (self.count, *positions)):
            raise LabelError(
                f"mask must have the shape of the output's positions, {positions} or {(self.count, *positions)}; "
                f"received mask of shape {shape}. Resize it to the model's output."
            )
        rows = self.values[None] if shape == positions else self.values
        empty = np.flatnonzero(~rows.reshape(len(rows), -1).any(axis=1))
        if empty.size:
            raise LabelError(f"mask must not be empty; received mask[{empty[0]}]=0. Mark at least one position.")
        rows = rows if len(rows) == 1 else rows[start : start + len(channels)]
        return channels * rows[:, None]


def refuse_mask(mask: Mask | None, labels: str) -> None:
    """Raise LabelError if there is a mask, which labels of this kind do not take."""
    if mask is not None:
        raise LabelError(f"mask chooses positions of a class; received mask and {labels}. Pass class ids as labels.")
