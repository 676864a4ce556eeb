"""Where a spot of a photo comes out in a network's input: it knows nothing of how a view is made."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from guided_backprop.models import View


def spot_error(preprocess: Callable[[Image.Image], object], view: View) -> float:
    """Return how far from where the view says spots of the photo come out, in pixels of the input."""
    (width, height), (left, top, right, bottom) = view.photo, view.box
    inner = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    black = np.asarray(preprocess(Image.new("RGB", (width, height))))
    errors = []
    for share in (0.3, 0.5, 0.8):
        x, y = (inner[axis] + share * (inner[axis + 2] - inner[axis]) for axis in (0, 1))
        half = max((right - left) / view.size[0], (bottom - top) / view.size[1], 1) * 3
        low, high = (int(x - half), int(y - half)), (int(x + half) + 1, int(y + half) + 1)
        photo = Image.new("RGB", (width, height))
        photo.paste((255, 255, 255), (*low, *high))
        shown = np.asarray(preprocess(photo), np.float64) - black
        weight = shown.mean(axis=0 if shown.shape[0] in (1, 3) else 2)
        rows, columns = np.indices(weight.shape) + 0.5
        seen = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        middle = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
        expected = (
            (middle[0] - left) / (right - left) * view.size[0],
            (middle[1] - top) / (bottom - top) * view.size[1],
        )
        errors += [abs(seen[0] - expected[0]), abs(seen[1] - expected[1])]
    return max(errors)
