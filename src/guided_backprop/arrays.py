"""From the arrays of any framework to NumPy's."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from guided_backprop.explanation import Explanations


def as_numpy(values: Any) -> NDArray[Any]:
    """Return ``values`` (array or tensor, on any device) as a NumPy array; bfloat16 becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):
            values = values.float()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def channels_last(explanations: "Explanations") -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return images and attribution ``(N, H, W)`` or ``(N, H, W, C)``, or None if they are not pictures."""
    axis = explanations.channel_axis
    images, attribution = as_numpy(explanations.images), as_numpy(explanations.attribution)
    if axis is None or images.ndim != 4:
        return None
    images = np.moveaxis(images, axis, -1)
    if explanations.reducer is not None:
        return images, attribution
    attribution = np.moveaxis(attribution, axis, -1)
    return (images, attribution) if attribution.shape[-1] in (1, 3) else None
