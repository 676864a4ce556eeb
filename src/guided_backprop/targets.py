"""What is explained: from labels to the weight of each of the model's outputs in the score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy
from guided_backprop.errors import LabelError


class Target:
    """What is explained in a batch of ``count`` images.

    Args:
        labels: class ids, as ``(N,)`` integers or one integer for all images; or weights of the model's
            output's shape ``(N, K, ...)``, a one-hot row being one case; or None, the class with the
            highest score of each image. Class ids index axis 1 of the output; what remains (positions of
            a segmentation map) is summed.
        count: the number of images.

    Raises:
        LabelError: the labels are neither, or are not one per image.
    """

    def __init__(self, labels: Any, count: int) -> None:
        self._count = count
        self._labels = None if labels is None else _parse(labels, count)

    def weigh(self, outputs: NDArray[Any], start: int) -> NDArray[np.float64]:
        """Return the weights, of the shape of ``outputs``, for the images from ``start`` on.

        All labels are checked against the outputs' shape at once, so a bad one is found in the first batch.
        """
        rows = slice(start, start + len(outputs))
        if self._labels is not None and _is_weights(self._labels, outputs):
            return self._labels[rows].astype(np.float64)
        ids = self.ids(outputs, start)
        weights = np.zeros(outputs.shape)
        if outputs.ndim == 1:
            weights[:] = 1.0
        else:
            weights[np.arange(len(ids)), ids] = 1.0
        return weights

    def labels(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Return what was explained, given the outputs for all images: class ids or weights."""
        if self._labels is not None and _is_weights(self._labels, outputs):
            return self._labels
        return self.ids(outputs, 0)

    def ids(self, outputs: NDArray[Any], start: int) -> NDArray[np.int64]:
        """Return one class id per row of ``outputs``."""
        if self._labels is not None:
            _check_ids(self._labels, 1 if outputs.ndim == 1 else outputs.shape[1])
            return self._labels[start : start + len(outputs)].astype(np.int64)
        if outputs.ndim == 1:
            return np.zeros(len(outputs), np.int64)
        scores = outputs.reshape(*outputs.shape[:2], -1).sum(axis=2)
        return np.asarray(scores.argmax(axis=1), np.int64)


def _parse(labels: Any, count: int) -> NDArray[Any]:
    try:
        array = as_numpy(labels)
    except (TypeError, ValueError) as error:
        raise LabelError(
            f"labels must be class ids or weights; received labels={labels!r:.80}. Pass one integer per image."
        ) from error
    if array.dtype.kind not in "iuf":
        raise LabelError(f"labels must be numbers; received labels={labels!r:.80}. Pass class ids, counted from 0.")
    if array.ndim == 0:
        array = np.full(count, array)
    if len(array) != count:
        raise LabelError(
            f"labels must be one per image; received {len(array)} labels for {count} images. "
            "Pass one label per image, or one integer for all."
        )
    return array


def _is_weights(labels: NDArray[Any], outputs: NDArray[Any]) -> bool:
    """Tell weights from class ids; raise if the labels are neither."""
    if labels.ndim == 1 and (outputs.ndim > 1 or labels.dtype.kind != "f"):
        return False
    if labels.shape[1:] != outputs.shape[1:]:
        raise LabelError(
            f"labels must be class ids (N,) or weights of the output's shape (N, {_shape(outputs)}); "
            f"received labels of shape (N, {_shape(labels)}). Pass one integer per image."
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


def _check_ids(labels: NDArray[Any], classes: int) -> None:
    fractional = labels.dtype.kind == "f"
    wrong = np.flatnonzero((labels < 0) | (labels >= classes)) if not fractional else np.arange(len(labels))
    if wrong.size:
        advice = "Pass integers." if fractional else "Count classes from 0."
        raise LabelError(
            f"labels must be {'integer ' if fractional else ''}class ids in [0, {classes}); "
            f"received labels[{wrong[0]}]={labels[wrong[0]]}. {advice}"
        )


def _shape(array: NDArray[Any]) -> str:
    return ", ".join(map(str, array.shape[1:]))
