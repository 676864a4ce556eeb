"""Object detection: which output of a detector a box is, and how it weighs in the score."""

from dataclasses import dataclass
from typing import Literal, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guided_backprop.arrays import Array, Labels, NumpyArray, as_numpy
from guided_backprop.errors import LabelError
from guided_backprop.labels.label import Label, Weighting
from guided_backprop.labels.mask import Mask, refuse_mask

Part = Literal["class", "objectness", "left", "top", "right", "bottom", "position", "detection"]
_SIDES = ("left", "top", "right", "bottom")
# Sides that differ by less, as a share of the box, are at one place: float32 and other libraries round so.
_ROUNDING = 1e-5
_PARTS = (*_SIDES, "class", "objectness", "position", "detection")


@final
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

    Example:
        >>> import torch
        >>> from guided_backprop import Box, GuidedBackprop
        >>> def detector(images):  # one candidate: left, top, right, bottom, and the score of one class
        ...     left = torch.relu(images.mean((1, 2, 3)))
        ...     return torch.stack([left, left, left + 8, left + 8, 2 * left], 1)[:, None]
        >>> box = Box([0, 0, 8, 8], classes=0)
        >>> GuidedBackprop(detector).explain(torch.ones(2, 3, 4, 4), box).scores.tolist()
        [2.0, 2.0]
    """

    boxes: ArrayLike | Array
    classes: ArrayLike | Array | None = None
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


@final
@dataclass(frozen=True, eq=False)
class BoxLabel(Label):
    """A box for each image.

    Attributes:
        boxes: ``(N, 4)``.
        classes: ``(N,)``, or None for each candidate's best class.
        of: as for :class:`Box`.
        first: the column of the first class.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.integer] | None
    of: Part
    first: int

    @classmethod
    def parse(cls, labels: Labels, count: int, mask: Mask | None = None) -> Self | None:
        """Return the label if it is a Box.

        Raises:
            LabelError: classes are no integers, there is not one box and class per image, or there is a mask.
        """
        if not isinstance(labels, Box):
            return None
        boxes = as_numpy(labels.boxes).astype(np.float64)
        boxes = boxes if boxes.ndim == 2 else np.tile(boxes, (count, 1))
        classes = None if labels.classes is None else as_numpy(labels.classes)
        if classes is not None:
            if classes.dtype.kind not in "iu":
                raise LabelError(f"classes must be integers; received classes={labels.classes!r:.80}. Pass class ids.")
            classes = np.full(count, classes) if classes.ndim == 0 else classes
        lengths = [len(rows) for rows in (boxes, classes) if rows is not None]
        if any(length != count for length in lengths):
            raise LabelError(
                f"boxes and classes must be one per image; received {lengths} for {count} "
                "images. Pass one per image, or one for all."
            )
        refuse_mask(mask, "these labels")
        return cls(boxes, classes, labels.of, 5 if labels.has_objectness else 4)

    def weigh(self, outputs: NumpyArray, start: int = 0, channel_axis: int = 1) -> list[Weighting]:
        """Return the weights; for "position" and "detection" these are the derivatives of the score at the outputs."""
        self._check(outputs)
        weights = np.zeros(outputs.shape)
        for row, candidates in enumerate(outputs.astype(np.float64)):
            match, column = self._match(candidates, start + row)
            weights[row, match] = self._weights(candidates[match], self.boxes[start + row], column)
            if not weights[row, match].any():
                raise LabelError(
                    f"of={self.of!r} needs a reference other than the candidate; received boxes[{start + row}]="
                    f"{self.boxes[start + row].tolist()}, where the overlap is at its maximum. "
                    "Pass the box it should be, or a side."
                )
        return [weights]

    def explained(self, outputs: NumpyArray, channel_axis: int = 1) -> NumpyArray:
        return self.weigh(outputs)[0]

    def scores(self, outputs: NumpyArray) -> NDArray[np.float64] | None:
        if self.of not in ("position", "detection"):
            return None
        scores = np.zeros(len(outputs))
        for row, candidates in enumerate(outputs.astype(np.float64)):
            match, column = self._match(candidates, row)
            scores[row] = _iou(candidates[match : match + 1, :4], self.boxes[row])[0]
            if self.of == "detection":
                scores[row] *= candidates[match, column] * self._objectness(candidates[match])
        return scores

    def _check(self, outputs: NumpyArray) -> None:
        if outputs.ndim != 3 or outputs.shape[2] <= self.first:
            raise LabelError(
                f"a Box needs outputs (N, B, {self.first} + C); received outputs of shape {outputs.shape}. "
                "Wrap the model in a function that returns its boxes and scores so."
            )
        count = outputs.shape[2] - self.first
        if self.classes is not None and not ((self.classes >= 0) & (self.classes < count)).all():
            raise LabelError(
                f"classes must be in [0, {count}); received classes={self.classes.tolist()!r:.80}. Count from 0."
            )

    def _match(self, candidates: NDArray[np.float64], row: int) -> tuple[int, int]:
        """Return which of an image's candidates is explained, and the column of its class."""
        overlap = _iou(candidates[:, :4], self.boxes[row])
        columns = slice(self.first, None) if self.classes is None else [self.first + self.classes[row]]
        likelihood = overlap * _as_probability(candidates[:, columns]).max(axis=1)
        if self.first == 5:
            likelihood = likelihood * _as_probability(candidates[:, 4])
        match = int(likelihood.argmax())
        if not likelihood[match] > 0:
            place = f"boxes[{row}]={self.boxes[row].tolist()}"
            if not overlap.any():
                raise LabelError(
                    f"boxes must overlap a candidate; received {place}, which overlaps none. "
                    "Pass a box in the units of the model's output."
                )
            wanted = "any class" if self.classes is None else f"class {self.classes[row]}"
            raise LabelError(
                f"a candidate that overlaps the box must have a score; received {place}, where the scores of {wanted} "
                "are 0. Pass the class that was found there."
            )
        best = candidates[match, self.first :].argmax() if self.classes is None else self.classes[row]
        return match, self.first + int(best)

    def _weights(self, candidate: NDArray[np.float64], reference: NDArray[np.float64], column: int) -> Weighting:
        weights = np.zeros(len(candidate))
        columns = {"class": column, "objectness": 4} | {side: place for place, side in enumerate(_SIDES)}
        if self.of in columns:
            weights[columns[self.of]] = 1
            return weights
        weights[:4] = _iou_derivative(candidate[:4], reference)
        if self.of == "detection":
            # The product rule: IoU times objectness times class score.
            overlap, objectness = _iou(candidate[None, :4], reference)[0], self._objectness(candidate)
            weights[:4] *= objectness * candidate[column]
            weights[column] = overlap * objectness
            if self.first == 5:
                weights[4] = overlap * candidate[column]
        return weights

    def _objectness(self, candidate: NDArray[np.float64]) -> float:
        """Return how sure a candidate is that there is something; 1 where the output does not say."""
        return float(candidate[4]) if self.first == 5 else 1.0


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
