"""Labels that are classes, summed over their positions: by their ids, or those with the highest scores."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Labels, NumpyArray
from guided_backprop.errors import LabelError
from guided_backprop.labels.label import Label, Weighting, moved, shape_text, weight_at
from guided_backprop.labels.mask import Mask, refuse_mask

_FEW: Final = 64


class ClassLabel(Label):
    """One class of each image, or several; of its positions those within a mask, if there is one."""

    mask: Mask | None

    @abstractmethod
    def ids(self, channels: NumpyArray, start: int) -> NDArray[np.int64]:
        """Return the ids ``(N,)`` or ``(N, K)`` for outputs ``(N,)`` or ``(N, C, ...)`` of the images from ``start``.

        Raises:
            LabelError: the outputs have no such classes.
        """

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        channels = moved(outputs, channel_axis, 1)
        columns = self.ids(channels, start).reshape(len(outputs), -1).T
        if outputs.ndim == 1:
            refuse_mask(self.mask, "an output without positions")
            return [np.ones(outputs.shape) for _ in columns]
        rows = np.arange(len(outputs))
        weights = [self._within_mask(weight_at(channels.shape, rows, ids), start) for ids in columns]
        return [moved(weighting, 1, channel_axis) for weighting in weights]

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return self.ids(moved(outputs, channel_axis, 1), 0)

    def _within_mask(self, channels: NumpyArray, start: int) -> NumpyArray:
        return channels if self.mask is None else self.mask.within(channels, start)


@final
@dataclass(frozen=True, eq=False)
class ClassIds(ClassLabel):
    """Class ids ``(N,)``, or ``(N, K)`` for K of each image."""

    given: NumpyArray
    mask: Mask | None
    # Among how many classes all of them are: asked several times in a call.
    _among: set[int] = field(default_factory=set, init=False, repr=False)

    def check(self, outputs: NumpyArray, channel_axis: int = 1) -> None:
        channels = moved(outputs, channel_axis, 1)
        if _classes(channels) not in self._among:
            _check_ids(self.given, channels)
            self._among.add(_classes(channels))

    def ids(self, channels: NumpyArray, start: int) -> NDArray[np.int64]:
        self.check(channels)
        return self.given[start : start + len(channels)].astype(np.int64)

    def is_many(self, outputs: NumpyArray) -> bool:
        return self.given.ndim == 2


@final
@dataclass(frozen=True, eq=False)
class TopClasses(ClassLabel):
    """None, the class with the highest sum over positions; or ``"top5"``, the five highest in this order."""

    number: int
    is_single: bool
    mask: Mask | None

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it is None, or "top" with a number."""
        if labels is None:
            return cls(1, True, mask)
        number = labels.removeprefix("top") if isinstance(labels, str) else ""
        is_number = number.isdecimal() and number != labels and int(number) > 0
        return cls(int(number), False, mask) if is_number else None

    def ids(self, channels: NumpyArray, start: int) -> NDArray[np.int64]:
        classes = _classes(channels)
        if self.number > classes:
            raise LabelError(
                f'labels="top{self.number}" needs {self.number} classes; received an output of shape '
                f'{shape_text(channels)}. Pass "top{classes}".'
            )
        if channels.ndim == 1:
            return np.zeros((len(channels),) if self.is_single else (len(channels), 1), np.int64)
        summed = self._within_mask(channels, start).reshape(*channels.shape[:2], -1).sum(axis=2)
        if self.is_single:
            return np.asarray(summed.argmax(axis=1), np.int64)
        return np.asarray(np.argsort(-summed, axis=1, kind="stable")[:, : self.number], np.int64)

    def ids_ahead(self, start: int, count: int) -> NDArray[np.int64] | None:
        return np.full(count, -1) if self.is_single and self.mask is None else None

    def fixed(self, given: Labels, explained: NumpyArray) -> Labels:
        return explained

    def is_many(self, outputs: NumpyArray) -> bool:
        return not self.is_single


@final
@dataclass(frozen=True, eq=False)
class AllClasses(ClassLabel):
    """Every class of each image, in their order."""

    mask: Mask | None

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None) -> Self | None:
        """Return the label if it is "all"."""
        return cls(mask) if isinstance(labels, str) and labels == "all" else None

    def ids(self, channels: NumpyArray, start: int) -> NDArray[np.int64]:
        return np.tile(np.arange(_classes(channels)), (len(channels), 1))

    def is_many(self, outputs: NumpyArray) -> bool:
        return True


def _classes(channels: NumpyArray) -> int:
    """Return how many classes outputs ``(N,)`` or ``(N, C, ...)`` have."""
    return 1 if channels.ndim == 1 else channels.shape[1]


def _check_ids(ids: NumpyArray, channels: NumpyArray) -> None:
    classes, is_fractional = _classes(channels), ids.dtype.kind == "f"
    # Of a few, Python's own numbers tell that faster than an array does.
    if not is_fractional and ids.size <= _FEW and all(0 <= one < classes for one in ids.ravel().tolist()):
        return
    is_wrong = np.ones(ids.shape, bool) if is_fractional else (ids < 0) | (ids >= classes)
    if is_wrong.any():
        first = tuple(int(axis) for axis in np.argwhere(is_wrong)[0])
        where = ", ".join(map(str, first))
        advice = "Pass integers." if is_fractional else of_two_classes(ids, channels) or "Count classes from 0."
        raise LabelError(
            f"labels must be {'integer ' if is_fractional else ''}class ids in [0, {classes}); "
            f"received labels[{where}]={ids[first]}. {advice}"
        )


def of_two_classes(labels: NumpyArray, outputs: NumpyArray) -> str | None:
    """Return how to explain two classes of a model that has one output for both, if labels look like these."""
    if outputs.shape[1:] not in ((), (1,)) or not np.isin(labels, (0, 1)).all():
        return None
    axis = ".reshape(-1, 1)" if outputs.ndim == 2 else ""
    return (
        "The model has one output: label 0 explains it, and the other of two classes is weight -1: "
        f"np.where(labels, 1.0, -1.0){axis}."
    )
