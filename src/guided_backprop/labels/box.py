"""Object detection: which output of a detector a box is, and how it weighs in the score."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy
from guided_backprop.errors import LabelError

Part = Literal["class", "objectness", "left", "top", "right", "bottom", "position", "detection"]
_SIDES = ("left", "top", "right", "bottom")
# Sides that differ by less, as a share of the box, are at one place: float32 and other libraries round so.
_ROUNDING = 1e-5
_PARTS = (*_SIDES, "class", "objectness", "position", "detection")


@dataclass(frozen=True, eq=False)
class Box:
    """A box that a detector finds, as a label: ``explain(images, Box([20, 30, 90, 120], classes=7))``.

    The detector's output is ``(N, B, 4 + C)``, or ``(N, B, 5 + C)`` with an objectness: for each of B candidates
    left, top, right, bottom, [objectness,] and one score per class. The candidate that is explained is the one
    with the highest intersection over union (IoU) with ``boxes``, times the score of ``classes``, times the
    objectness if there is one, so that it is found again when the box moves a little.

    Args:
        boxes: the reference, ``(4,)`` for all images or ``(N, 4)``: left, top, right, bottom, in the output's units.
        classes: the class id, one for all images or ``(N,)``; None for each candidate's best class.
        of: what of the candidate is the score:

            * "class": the score of the class;
            * "objectness": the score that there is something;
            * "left", "top", "right", "bottom": where that side is;
            * "position": its IoU with the reference, which should not be the candidate itself: there the IoU is
              1, and no side moves it up; a side that is where the reference has it, but for rounding, weighs 0;
            * "detection": IoU times objectness times class score.
        has_objectness: whether the output has that column.

    Raises:
        LabelError: the box has no area, or the arguments have other shapes or values.
    """

    boxes: Any
    classes: Any = None
    of: Part = "class"
    has_objectness: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the model's output."""
        boxes = as_numpy(self.boxes)
        if boxes.shape[-1:] != (4,) or boxes.ndim > 2 or boxes.dtype.kind not in "iuf":
            raise LabelError(
                "boxes must be (4,) or (N, 4) numbers: left, top, right, bottom; "
                f"received boxes of shape {boxes.shape}. Pass four numbers per image."
            )
        if not np.isfinite(boxes).all() or not (boxes[..., :2] < boxes[..., 2:]).all():
            raise LabelError(
                f"boxes must have left < right and top < bottom; received boxes={boxes.tolist()!r:.80}. "
                "Convert them to corners."
            )
        if self.of not in _PARTS:
            raise LabelError(f"of must be one of {', '.join(_PARTS)}; received of={self.of!r}. Pass one of these.")
        if self.of == "objectness" and not self.has_objectness:
            raise LabelError('of="objectness" needs that column; received has_objectness=False. Pass True.')

    def for_images(self, count: int) -> "Box":
        """Return the same with one box and one class per image."""
        boxes = as_numpy(self.boxes).astype(np.float64)
        classes = None if self.classes is None else as_numpy(self.classes)
        if classes is not None and classes.dtype.kind not in "iu":
            raise LabelError(f"classes must be integers; received classes={self.classes!r:.80}. Pass class ids.")
        rows = [boxes if boxes.ndim == 2 else np.tile(boxes, (count, 1))]
        rows += [] if classes is None else [np.full(count, classes) if classes.ndim == 0 else classes]
        if any(len(each) != count for each in rows):
            raise LabelError(
                f"boxes and classes must be one per image; received {[len(each) for each in rows]} for {count} "
                "images. Pass one per image, or one for all."
            )
        return replace(self, boxes=rows[0], classes=rows[1] if len(rows) > 1 else None)

    def weigh(self, outputs: NDArray[Any], start: int) -> NDArray[np.float64]:
        """Return the weights, of the shape of ``outputs``, for the images from ``start`` on.

        For "position" and "detection" these are the derivatives of the score at the outputs.
        """
        first = 5 if self.has_objectness else 4
        if outputs.ndim != 3 or outputs.shape[2] <= first:
            raise LabelError(
                f"a Box needs outputs (N, B, {first} + C); received outputs of shape {outputs.shape}. "
                "Wrap the model in a function that returns its boxes and scores so."
            )
        classes = outputs.shape[2] - first
        if self.classes is not None and not ((self.classes >= 0) & (self.classes < classes)).all():
            raise LabelError(
                f"classes must be in [0, {classes}); received classes={self.classes.tolist()!r:.80}. Count from 0."
            )
        weights = np.zeros(outputs.shape)
        for row, output in enumerate(outputs.astype(np.float64)):
            match, column = self._match(output, start + row)
            weights[row, match] = self._weights(output[match], self.boxes[start + row], column)
            if not weights[row, match].any():
                raise LabelError(
                    f"of={self.of!r} needs a reference other than the candidate; received boxes[{start + row}]="
                    f"{self.boxes[start + row].tolist()}, where the overlap is at its maximum. "
                    "Pass the box it should be, or a side."
                )
        return weights

    def scores(self, outputs: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the score of each image where it is no single output, else None."""
        if self.of not in ("position", "detection"):
            return None
        found = np.zeros(len(outputs))
        for row, output in enumerate(outputs.astype(np.float64)):
            match, column = self._match(output, row)
            found[row] = _iou(output[match : match + 1, :4], self.boxes[row])[0]
            if self.of == "detection":
                found[row] *= output[match, column] * (output[match, 4] if self.has_objectness else 1)
        return found

    def _match(self, output: NDArray[np.float64], row: int) -> tuple[int, int]:
        """Return which candidate of an image is explained, and the column of its class."""
        first = 5 if self.has_objectness else 4
        overlap = _iou(output[:, :4], self.boxes[row])
        of_class = output[:, first:] if self.classes is None else output[:, [first + self.classes[row]]]
        found = overlap * _as_probability(of_class).max(axis=1)
        if self.has_objectness:
            found = found * _as_probability(output[:, 4])
        match = int(found.argmax())
        if overlap[match] == 0:
            raise LabelError(
                f"boxes must overlap a candidate; received boxes[{row}]={self.boxes[row].tolist()}, which "
                "overlaps none. Pass a box in the units of the model's output."
            )
        chosen = int(output[match, first:].argmax()) if self.classes is None else int(self.classes[row])
        return match, first + chosen

    def _weights(self, candidate: NDArray[np.float64], reference: NDArray[np.float64], column: int) -> NDArray[Any]:
        weights = np.zeros(len(candidate))
        if self.of in _SIDES:
            weights[_SIDES.index(self.of)] = 1
        elif self.of == "class":
            weights[column] = 1
        elif self.of == "objectness":
            weights[4] = 1
        else:
            weights[:4] = _iou_derivative(candidate[:4], reference)
            if self.of == "detection":
                overlap = _iou(candidate[None, :4], reference)[0]
                objectness = candidate[4] if self.has_objectness else 1.0
                weights[:4] *= objectness * candidate[column]
                weights[column] = overlap * objectness
                if self.has_objectness:
                    weights[4] = overlap * candidate[column]
        return weights


def _iou(boxes: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each box with the reference."""
    corners = np.minimum(boxes[:, 2:], reference[2:]) - np.maximum(boxes[:, :2], reference[:2])
    intersection = corners.clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    union = areas + (reference[2:] - reference[:2]).prod() - intersection
    return np.asarray(intersection / union)


def _iou_derivative(box: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the derivative of the IoU by each side; 0 for a side that is where the reference has it, but for rounding.

    There the IoU has a kink, and the slope to either side is arbitrary.
    """
    width, height = np.minimum(box[2:], reference[2:]) - np.maximum(box[:2], reference[:2])
    own_width, own_height = box[2:] - box[:2]
    intersection = width * height
    union = own_width * own_height + (reference[2:] - reference[:2]).prod() - intersection
    outward = np.array([-1, -1, 1, 1])
    # Inside of the reference a side that moves outwards adds to the intersection, and always to the own area.
    is_inside = np.concatenate([box[:2] > reference[:2], box[2:] < reference[2:]])
    by_intersection = np.array([height, width, height, width]) * is_inside * outward
    by_area = np.array([own_height, own_width, own_height, own_width]) * outward
    derivative = (by_intersection * (union + intersection) - intersection * by_area) / union**2
    is_kink = np.abs(box - reference) <= _ROUNDING * max(own_width, own_height)
    return np.asarray(np.where(is_kink, 0.0, derivative))


def _as_probability(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    is_probability = (scores >= 0).all() and (scores <= 1).all()
    return scores if is_probability else 1 / (1 + np.exp(-scores))
