"""A label that is a function of the model's output: the score itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from guided_backprop.arrays import Labels, NumpyArray, Tensor
from guided_backprop.labels.label import Label, Weighting
from guided_backprop.labels.mask import Mask, refuse_mask


@final
@dataclass(frozen=True, eq=False)
class Function(Label):
    """A callable from the output, a tensor of the framework, to ``(N,)``; its own derivative is taken as it is."""

    function: Callable[[Tensor], Tensor]
    count: int

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it can be called, and is no array.

        Raises:
            LabelError: there is a mask.
        """
        if not callable(labels) or hasattr(labels, "__array__"):
            return None
        refuse_mask(mask, "these labels")
        return cls(labels, count)

    @property
    def score(self) -> Callable[[Tensor], Tensor]:
        return self.function

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        return [np.ones(outputs.shape)]

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return np.full(self.count, getattr(self.function, "__name__", type(self.function).__name__))
