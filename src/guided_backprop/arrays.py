"""From the arrays of any framework to NumPy's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_numpy(values: Any) -> NDArray[Any]:
    """Return ``values`` (array or tensor, on any device) as a NumPy array; bfloat16 becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):
            values = values.float()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def channels_last(
    images: Any, attribution: Any, channel_axis: int | None, *, is_reduced: bool
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return images and attribution ``(N, H, W)`` or ``(N, H, W, C)``, or None if they are not pictures."""
    images, attribution = as_numpy(images), as_numpy(attribution)
    if channel_axis is None or images.ndim != 4:
        return None
    images = np.moveaxis(images, channel_axis, -1)
    if is_reduced:
        return images, attribution
    attribution = np.moveaxis(attribution, channel_axis, -1)
    return (images, attribution) if attribution.shape[-1] in (1, 3) else None
