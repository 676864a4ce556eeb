"""The label "max": every channel where it is strongest."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np

from guided_backprop.arrays import Labels, NumpyArray
from guided_backprop.errors import LabelError
from guided_backprop.labels.label import Label, Weighting, moved, shape_text
from guided_backprop.labels.mask import Mask, refuse_mask


@final
@dataclass(frozen=True, eq=False)
class Strongest(Label):
    """Weight 1 where each channel is strongest, as for a layer's neurons."""

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it is "max".

        Raises:
            LabelError: there is a mask.
        """
        if not isinstance(labels, str) or labels != "max":
            return None
        refuse_mask(mask, "these labels")
        return cls()

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        return [self.explained(outputs, channel_axis)]

    def fixed(self, given: Labels, explained: NumpyArray) -> Labels:
        return explained

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        channels = moved(outputs, channel_axis, 1)
        if channels.ndim < 3:
            raise LabelError(
                f'labels="max" needs an output with positions; received one of shape {shape_text(channels)}. '
                "Pass output_layer, or class ids."
            )
        flat = channels.reshape(*channels.shape[:2], -1)
        is_strongest = np.arange(flat.shape[2]) == flat.argmax(axis=2, keepdims=True)
        return moved(is_strongest.reshape(channels.shape).astype(np.float64), 1, channel_axis)
