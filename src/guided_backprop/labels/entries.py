"""Labels that are single entries of the output: ``(channel, row, column)``, or a channel at its strongest position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Labels, NumpyArray
from guided_backprop.errors import LabelError
from guided_backprop.labels.label import Label, Weighting, moved, weight_at
from guided_backprop.labels.mask import Mask, refuse_mask

#: An index into the output, channel first; with "max" in place of the position, where the channel is strongest.
Entry = tuple[int | str, ...]


@final
@dataclass(frozen=True, eq=False)
class Entries(Label):
    """One entry of the output for each image."""

    rows: Sequence[Entry]

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it is a tuple, for all images, or a list with tuples.

        Raises:
            LabelError: a tuple is no entry, there is not one per image, or there is a mask.
        """
        if isinstance(labels, tuple):
            rows: list[Entry] = [labels] * count
        elif isinstance(labels, list) and any(isinstance(row, tuple) for row in labels):
            rows = labels
        else:
            return None
        for row in rows:
            if not _is_entry(row):
                raise LabelError(
                    'labels that are tuples must be (channel, row, column), or (channel, "max"); '
                    f"received {row!r:.80}. Pass a list of integers if these are class ids."
                )
        if len(rows) != count:
            raise LabelError(
                f"labels must be one per image; received {len(rows)} tuples for {count} images. Pass one tuple for all."
            )
        refuse_mask(mask, "these labels")
        return cls(rows)

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        channels = moved(outputs, channel_axis, 1)
        entries = self._entries(channels, start)
        weights = weight_at(channels.shape, np.arange(len(entries)), *entries.T)
        return [moved(weights, 1, channel_axis)]

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return self._entries(moved(outputs, channel_axis, 1), 0)

    def fixed(self, given: Labels, explained: NumpyArray) -> Labels:
        return [tuple(map(int, entry)) for entry in explained]

    def _entries(self, channels: NumpyArray, start: int) -> NDArray[np.int64]:
        """Return the entry ``(N, D)`` that each image from ``start`` on is asked for; all are checked."""
        if channels.ndim == 1:
            raise LabelError(
                f"labels must suit the model's output of shape (N,); received labels={self.rows!r:.80}. Pass None."
            )
        sizes = channels.shape[1:]
        for index, row in enumerate(self.rows):
            if not _is_inside(row, sizes):
                raise LabelError(
                    f"labels that are tuples must index the model's output, {sizes} with channels first; "
                    f"received labels[{index}]={row!r}. Pass a list of integers if these are class ids."
                )
        entries = np.zeros((len(channels), len(sizes)), np.int64)
        for index, (channel, *position) in enumerate(self.rows[start : start + len(channels)]):
            if position == ["max"]:
                strongest = channels[index, int(channel)].argmax()
                entries[index] = (channel, *np.unravel_index(strongest, sizes[1:]))
            else:
                entries[index] = (channel, *position)
        return entries


def _is_entry(row: object) -> bool:
    if not isinstance(row, tuple) or not row:
        return False
    is_strongest = len(row) == 2 and isinstance(row[1], str) and row[1] == "max"
    return all(isinstance(number, (int, np.integer)) for number in (row[:1] if is_strongest else row))


def _is_inside(row: Entry, sizes: tuple[int, ...]) -> bool:
    """Tell whether an entry is one of an output ``(N, *sizes)``; a channel's strongest position needs positions."""
    is_strongest = row[-1] == "max"
    index = [int(number) for number in (row[:1] if is_strongest else row)]
    has_length = len(sizes) > 1 if is_strongest else len(row) == len(sizes)
    return has_length and all(0 <= number < size for number, size in zip(index, sizes, strict=False))
