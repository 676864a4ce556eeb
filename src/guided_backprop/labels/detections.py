"""What a detector found in each image, as lists of their own lengths, put into the one output that a Box reads."""

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from guided_backprop.arrays import NumpyArray, Tensor, as_numpy
from guided_backprop.errors import LabelError

_KEYS = ("boxes", "scores", "labels")


def stack_detections(detections: Sequence[Mapping[str, Tensor]], classes: int, count: int) -> Tensor:
    """Return the detections of a batch as one output, in which a :class:`Box` finds what it explains.

    Detectors of torchvision, and the post-processing of others, give for each image a dictionary of ``boxes`` ``(B,
    4)``, ``scores`` ``(B,)`` and ``labels`` ``(B,)``, with another B in each image. Here each image has ``count`` rows:
    a box, and its score in the column of its class. All other scores are 0, and so are the rows that no detection
    fills: boxes without area, which no Box overlaps. Gradients go through boxes and scores.

    Args:
        detections: one dictionary of PyTorch tensors for each image; other keys are not read.
        classes: the number of classes: more than the largest label, as a detector's ``num_classes``.
        count: the number of rows of each image: as many as the detector gives at most, so that all batches are alike.

    Returns:
        ``(N, count, 4 + classes)``, of the dtype and device of the boxes.

    Raises:
        LabelError: the detections are no such dictionaries, there are none in all images, an image has more than
            ``count``, a label is not below ``classes``, or scores are not in [0, 1].

    Example:
        >>> import torch
        >>> from guided_backprop import stack_detections
        >>> detection = {"boxes": torch.tensor([[2.0, 3.0, 8.0, 9.0]]), "scores": torch.tensor([0.75])}
        >>> stack_detections([detection | {"labels": torch.tensor([1])}], classes=2, count=2)
        tensor([[[2.0000, 3.0000, 8.0000, 9.0000, 0.0000, 0.7500],
                 [0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    torch = sys.modules.get("torch")
    for row, found in enumerate(detections):
        tensors = [found.get(key) if isinstance(found, Mapping) else None for key in _KEYS]
        if torch is None or not all(map(torch.is_tensor, tensors)):
            received = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise LabelError(
                "detections must be a dictionary of PyTorch tensors, boxes, scores and labels, for each image; "
                f"received detections[{row}]={received!r:.80}. Pass what the detector returns for a batch."
            )
        _check(row, *map(as_numpy, tensors), classes=classes, count=count)
    if torch is None or not any(len(found["boxes"]) for found in detections):
        raise LabelError(
            f"detections must hold a box; received none in {len(detections)} images. Lower the detector's threshold."
        )
    images = []
    for boxes, scores, labels in ([found[key] for key in _KEYS] for found in detections):
        # Of numbers, not of tensors: which class was found has no gradient, and is no gate.
        one_hot = torch.as_tensor(np.eye(classes)[as_numpy(labels)]).to(scores)
        rows = torch.cat([boxes, scores[:, None] * one_hot], dim=1)
        images.append(torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows))))
    return torch.stack(images)


def _check(row: int, boxes: NumpyArray, scores: NumpyArray, labels: NumpyArray, *, classes: int, count: int) -> None:
    """Check the detections of one image."""
    size = len(boxes)
    if boxes.shape != (size, 4) or scores.shape != (size,) or labels.shape != (size,) or labels.dtype.kind not in "iu":
        raise LabelError(
            "detections must hold boxes (B, 4), scores (B,) and integer labels (B,); received "
            f"detections[{row}] of shapes {boxes.shape}, {scores.shape} and {labels.shape}. Pass one of each for a box."
        )
    if size > count:
        raise LabelError(
            f"count must be the most detections of an image; received count={count} and {size} in detections[{row}]. "
            "Pass what the detector is limited to."
        )
    if not ((labels >= 0) & (labels < classes)).all():
        raise LabelError(
            f"classes must be more than each label; received classes={classes} and labels up to {labels.max()} in "
            f"detections[{row}]. Pass the detector's num_classes."
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise LabelError(
            f"scores must be in [0, 1], for 0 stands for what was not found; received detections[{row}] with scores "
            f"from {scores.min():g} to {scores.max():g}. Apply the detector's sigmoid or softmax."
        )
