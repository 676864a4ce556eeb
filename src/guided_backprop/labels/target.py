"""What is explained: from labels to the weight of each of the model's outputs in the score."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy
from guided_backprop.errors import LabelError
from guided_backprop.labels.box import Box

_FORMS = 'Pass class ids, None, "top5" or another number, "max", or weights of the output\'s shape.'


class Target:
    """What is explained in a batch of ``count`` images.

    Outputs are ``(N,)``, ``(N, C)`` or ``(N, C, ...)``, with channels (classes) on axis 1 or where
    ``channel_axis`` says; what comes after the channel are positions.

    Args:
        labels: one of

            * class ids, ``(N,)`` integers or one integer for all images: that channel, summed over positions;
            * ``(N, K)`` integers: K of these for each image;
            * None: the channel with the highest sum; ``"top5"``: the five highest, in this order;
            * a tuple ``(channel, row, column)``: that entry, for all images; a list of tuples: one per image;
            * ``(channel, "max")``: a channel at its strongest position; ``"max"``: every channel at its own;
            * weights of the output's shape, a one-hot row being one case;
            * a :class:`guided_backprop.Box`: a box that a detector finds;
            * a callable from the output, a tensor of the framework, to ``(N,)``.
        count: the number of images.
        mask: with class ids, None or "top5": the positions that count, ``(...)`` or ``(N, ...)``.

    Raises:
        LabelError: the labels are none of these, or are not one per image.
    """

    def __init__(self, labels: Any, count: int, mask: Any = None) -> None:
        self._count = count
        self._labels: Any = None
        self._top: int | None = None
        self.score: Callable[[Any], Any] | None = None
        if isinstance(labels, Box):
            self._labels = labels.for_images(count)
        elif isinstance(labels, str):
            self._labels, self._top = _parse_name(labels)
        elif _is_entry(labels) or _is_entries(labels):
            self._labels = _parse_entries(labels, count)
        elif callable(labels) and not hasattr(labels, "__array__"):
            self.score = labels
        elif labels is None:
            self._top = 1
        else:
            self._labels = _parse(labels, count)
        self._is_single = self._top == 1 and labels is None
        self._mask = None if mask is None else _parse_mask(mask)
        if self._top is None and not isinstance(self._labels, np.ndarray):
            self._refuse_mask("these labels")

    def weigh(self, outputs: NDArray[Any], start: int = 0, channel_axis: int = 1) -> list[NDArray[np.float64]]:
        """Return the weights of each label, of the shape of ``outputs``, for the images from ``start`` on.

        All labels are checked against the outputs' shape at once, so a bad one is found in the first batch.
        """
        if self.score is not None:
            return [np.ones(outputs.shape)]
        if isinstance(self._labels, Box):
            return [self._labels.weigh(outputs, start)]
        rows = slice(start, start + len(outputs))
        if isinstance(self._labels, np.ndarray) and _is_weights(self._labels, outputs):
            self._refuse_mask("weights")
            return [self._labels[rows].astype(np.float64)]
        if outputs.ndim == 1:
            self._ids(outputs, start)
            self._refuse_mask("an output without positions")
            return [np.ones(outputs.shape)]
        channels = _moved(outputs, channel_axis, 1)
        found = self._explained(channels, start)
        if found.ndim == outputs.ndim and isinstance(self._labels, str):
            weights = [found]
        elif self._is_entry:
            weights = [_at(channels.shape, [np.arange(len(found)), *found.T])]
        else:
            columns = found.reshape(len(found), -1).T
            weights = [self._within_mask(_at(channels.shape, [np.arange(len(ids)), ids]), start) for ids in columns]
        return [_moved(each, 1, channel_axis) for each in weights]

    def labels(self, outputs: NDArray[Any], channel_axis: int = 1) -> NDArray[Any]:
        """Return what was explained, given the outputs for all images.

        Integers are class ids ``(N,)`` or ``(N, K)``, or entries ``(N, D)``; floating-point numbers are weights;
        a callable is there by its name.
        """
        if self.score is not None:
            return np.full(self._count, getattr(self.score, "__name__", type(self.score).__name__))
        if isinstance(self._labels, Box):
            return self._labels.weigh(outputs, 0)
        if isinstance(self._labels, np.ndarray) and _is_weights(self._labels, outputs):
            return self._labels.astype(np.float64)
        if outputs.ndim == 1:
            return self._ids(outputs, 0)
        explained = self._explained(_moved(outputs, channel_axis, 1), 0)
        is_weights = isinstance(self._labels, str)
        return _moved(explained, 1, channel_axis) if is_weights else explained

    def scores(self, outputs: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the score of each image where it is not the weighted sum of outputs, else None."""
        return self._labels.scores(outputs) if isinstance(self._labels, Box) else None

    def is_many(self, outputs: NDArray[Any]) -> bool:
        """Tell whether each image has a row of labels."""
        if isinstance(self._labels, np.ndarray):
            return self._labels.ndim == 2 and not _is_weights(self._labels, outputs)
        return self._top is not None and not self._is_single

    @property
    def _is_entry(self) -> bool:
        return isinstance(self._labels, list)

    def _explained(self, channels: NDArray[Any], start: int) -> NDArray[Any]:
        """Return ids ``(N,)`` or ``(N, K)``, entries ``(N, D)``, or, for "max", weights."""
        if isinstance(self._labels, str):
            return _strongest(channels)
        if self._is_entry:
            return _entries(self._labels, channels, start)
        return self._ids(channels, start)

    def _ids(self, outputs: NDArray[Any], start: int) -> NDArray[np.int64]:
        """Return the class ids of each row of ``outputs``."""
        classes = 1 if outputs.ndim == 1 else outputs.shape[1]
        if isinstance(self._labels, np.ndarray):
            _check_ids(self._labels, classes)
            return self._labels[start : start + len(outputs)].astype(np.int64)
        if self._top is None:
            raise LabelError(
                f"labels must suit the model's output of shape (N,); received labels={self._labels!r:.80}. Pass None."
            )
        if self._top > classes:
            raise LabelError(
                f'labels="top{self._top}" needs {self._top} classes; received an output of shape '
                f'(N, {_shape(outputs)}). Pass "top{classes}".'
            )
        if outputs.ndim == 1:
            return np.zeros((len(outputs),) if self._is_single else (len(outputs), 1), np.int64)
        summed = self._within_mask(outputs, start).reshape(*outputs.shape[:2], -1).sum(axis=2)
        if self._is_single:
            return np.asarray(summed.argmax(axis=1), np.int64)
        return np.asarray(np.argsort(-summed, axis=1, kind="stable")[:, : self._top], np.int64)

    def _refuse_mask(self, what: str) -> None:
        if self._mask is not None:
            raise LabelError(f"mask chooses positions of a class; received mask and {what}. Pass class ids as labels.")

    def _within_mask(self, values: NDArray[Any], start: int) -> NDArray[Any]:
        """Return channels ``(N, C, ...)`` with nothing outside of the mask."""
        if self._mask is None:
            return values
        positions, shape = values.shape[2:], self._mask.shape
        if not positions or shape not in (positions, (self._count, *positions)):
            raise LabelError(
                f"mask must have the shape of the output's positions, {positions} or {(self._count, *positions)}; "
                f"received mask of shape {shape}. Resize it to the model's output."
            )
        rows = self._mask[None] if shape == positions else self._mask
        empty = np.flatnonzero(~rows.reshape(len(rows), -1).any(axis=1))
        if empty.size:
            raise LabelError(f"mask must not be empty; received mask[{empty[0]}]=0. Mark at least one position.")
        rows = rows if len(rows) == 1 else rows[start : start + len(values)]
        return values * rows[:, None]


def _parse(labels: Any, count: int) -> NDArray[Any]:
    try:
        array = as_numpy(labels)
    except (TypeError, ValueError) as error:
        raise LabelError(f"labels must be numbers; received labels={labels!r:.80}. {_FORMS}") from error
    if array.dtype.kind not in "iuf":
        raise LabelError(f"labels must be numbers; received labels={labels!r:.80}. {_FORMS}")
    if array.ndim == 0:
        array = np.full(count, array)
    if len(array) != count:
        raise LabelError(
            f"labels must be one per image; received {len(array)} labels for {count} images. "
            "Pass one label per image, or one integer for all."
        )
    return array


def _parse_mask(mask: Any) -> NDArray[np.float64]:
    values = as_numpy(mask)
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise LabelError(f"mask must be finite numbers; received mask of dtype {values.dtype}. Pass booleans.")
    return values.astype(np.float64)


def _parse_name(name: str) -> tuple[str | None, int | None]:
    """Return "max", or the number in "top5"."""
    number = name.removeprefix("top")
    if name == "max":
        return name, None
    if name != number and number.isdecimal() and int(number) > 0:
        return None, int(number)
    raise LabelError(f'labels must be "max" or "top5" if they are a word; received labels={name!r}. {_FORMS}')


def _is_entry(labels: Any) -> bool:
    return isinstance(labels, tuple)


def _is_entries(labels: Any) -> bool:
    return isinstance(labels, list) and any(map(_is_entry, labels))


def _parse_entries(labels: Any, count: int) -> list[tuple[Any, ...]]:
    rows: Sequence[Any] = [labels] * count if _is_entry(labels) else labels
    for row in rows:
        is_numbers = _is_entry(row) and all(isinstance(each, (int, np.integer)) for each in row)
        is_strongest = _is_entry(row) and len(row) == 2 and row[1] == "max" and isinstance(row[0], (int, np.integer))
        if not (is_numbers or is_strongest) or not row:
            raise LabelError(
                'labels that are tuples must be (channel, row, column), or (channel, "max"); '
                f"received {row!r:.80}. Pass a list of integers if these are class ids."
            )
    if len(rows) != count:
        raise LabelError(
            f"labels must be one per image; received {len(rows)} tuples for {count} images. Pass one tuple for all."
        )
    return list(rows)


def _entries(rows: list[tuple[Any, ...]], channels: NDArray[Any], start: int) -> NDArray[np.int64]:
    """Return the entry that each row of ``channels`` is asked for; all are checked, in the first batch already."""
    sizes = channels.shape[1:]
    for index, row in enumerate(rows):
        asked = (row[0],) if row[-1] == "max" else row
        is_inside = all(0 <= each < size for each, size in zip(asked, sizes, strict=False))
        if not is_inside or (len(row) != len(sizes) and row[-1] != "max") or (len(sizes) == 1 and row[-1] == "max"):
            raise LabelError(
                f"labels that are tuples must index the model's output, {sizes} with channels first; "
                f"received labels[{index}]={row!r}. Pass a list of integers if these are class ids."
            )
    found = np.zeros((len(channels), len(sizes)), np.int64)
    for index, row in enumerate(rows[start : start + len(channels)]):
        if row[-1] == "max":
            strongest = np.unravel_index(channels[index, row[0]].argmax(), sizes[1:])
            found[index] = (row[0], *strongest)
        else:
            found[index] = row
    return found


def _strongest(channels: NDArray[Any]) -> NDArray[np.float64]:
    """Return weight 1 where each channel is strongest."""
    if channels.ndim < 3:
        raise LabelError(
            f'labels="max" needs an output with positions; received one of shape (N, {_shape(channels)}). '
            "Pass output_layer, or class ids."
        )
    flat = channels.reshape(*channels.shape[:2], -1)
    is_strongest = np.arange(flat.shape[2]) == flat.argmax(axis=2, keepdims=True)
    return np.asarray(is_strongest.reshape(channels.shape), np.float64)


def _at(shape: tuple[int, ...], index: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    weights = np.zeros(shape)
    weights[tuple(index)] = 1.0
    return weights


def _is_weights(labels: NDArray[Any], outputs: NDArray[Any]) -> bool:
    """Tell weights from class ids; raise if the labels are neither, or could be both."""
    if labels.ndim == 1 and (outputs.ndim > 1 or labels.dtype.kind != "f"):
        return False
    is_integer = labels.dtype.kind in "iu"
    if labels.shape[1:] != outputs.shape[1:]:
        if labels.ndim == 2 and is_integer and labels.shape[1]:
            return False
        raise LabelError(
            f"labels must be class ids (N,) or (N, K), or weights of the output's shape (N, {_shape(outputs)}); "
            f"received labels of shape (N, {_shape(labels)}). Pass one integer per image."
        )
    if is_integer and labels.ndim == 2 and (np.abs(labels) > 1).any():
        raise LabelError(
            "integer labels of the output's shape could be class ids or weights; "
            f"received labels of shape (N, {_shape(labels)}) with values beyond -1, 0 and 1. "
            f'Pass weights as floating-point numbers, or labels="top{labels.shape[1]}" for all classes.'
        )
    if not np.isfinite(labels).all():
        raise LabelError("labels that are weights must be finite; received NaN or infinity. Remove them.")
    empty = np.flatnonzero(~labels.reshape(len(labels), -1).any(axis=1))
    if empty.size:
        raise LabelError(
            f"labels that are weights must not all be zero; received labels[{empty[0]}]=0. "
            "Give at least one output a weight."
        )
    return True


def _moved(array: NDArray[Any], source: int, target: int) -> NDArray[Any]:
    return array if source == target else np.moveaxis(array, source, target)


def _check_ids(labels: NDArray[Any], classes: int) -> None:
    is_integer = labels.dtype.kind != "f"
    if is_integer and labels.size and labels.min() >= 0 and labels.max() < classes:
        return
    is_wrong = (labels < 0) | (labels >= classes) | (labels.dtype.kind == "f")
    if is_wrong.any():
        fractional = labels.dtype.kind == "f"
        first = tuple(int(each) for each in np.argwhere(is_wrong)[0])
        where = ", ".join(map(str, first))
        advice = "Pass integers." if fractional else "Count classes from 0."
        raise LabelError(
            f"labels must be {'integer ' if fractional else ''}class ids in [0, {classes}); "
            f"received labels[{where}]={labels[first]}. {advice}"
        )


def _shape(array: NDArray[Any]) -> str:
    return ", ".join(map(str, array.shape[1:]))
