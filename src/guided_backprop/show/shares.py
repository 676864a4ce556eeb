"""The numbers behind pictures: what of an attribution is shown, as shares of what is shown in full colour.

Arrays end in their channels, ``(..., H, W, C)``, except where a docstring says else.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.errors import ImageError, OptionError

# ``(H, W)`` or ``(H, W, C)``, of real numbers.
Pixels = NDArray[np.number[Any] | np.bool_]
# Which of an attribution's channels a picture shows: each, their mean, or the largest magnitude among them.
Channels = Literal["colour", "diverging", "magnitude"]

# Beyond this many standard deviations a Gaussian is nothing to the eye; and a map is nothing when smoothed further.
_REACH, _SMOOTHEST = 4, 100


def pixels_of(array: Pixels, name: str) -> NDArray[np.float64]:
    """Return pixels ``(H, W)`` or ``(H, W, C)`` as finite float64 ``(H, W, C)``.

    Raises:
        ImageError: there is another number of axes, no pixels, or values that are not finite.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(
            f"{name} must be pixels of shape (H, W) or (H, W, C); received {name} of shape {array.shape}. "
            "Pass one image at a time, channels last."
        )
    return _finite(array[..., np.newaxis] if array.ndim == 2 else array, name)


def shares(
    attribution: Pixels, of: Channels, percentile: float = 99.0, smooth: float = 0.0
) -> tuple[NDArray[np.float64], float]:
    """Return what a picture shows as shares of its full colour, in [-1, 1], and the magnitude of full colour.

    Args:
        attribution: ``(..., H, W, C)``, signed: a picture, or the slices of a volume, which have one scale.
        of: ``"colour"`` keeps three channels, and gives three times the mean of any other number of them;
            ``"diverging"`` and ``"magnitude"`` leave the axis out.
        percentile: which percentile of the magnitudes is full colour.
        smooth: the standard deviation, in pixels, of the Gaussian that is laid over what is shown.

    Raises:
        ImageError: values are not finite numbers.
        OptionError: percentile or smooth are outside their range.
    """
    check_options(percentile, smooth)
    finite = _finite(np.asarray(attribution), "attribution")
    drawn = _reduced(finite, of)
    axes = (-3, -2) if of == "colour" else (-2, -1)
    is_even = of == "magnitude" and drawn.min() == drawn.max()
    if smooth and not is_even:
        drawn = _smoothed(drawn, float(smooth), axes)
    magnitude = np.abs(drawn)
    full = float(np.percentile(magnitude, percentile)) or float(magnitude.max())
    # All alike, magnitudes tell no pixel from another.
    if full == 0 or is_even:
        return np.zeros_like(drawn), full
    # Clipped before the division: a quotient by a tiny scale can overflow.
    return np.clip(drawn, -full, full) / full, full


def check_options(percentile: float, smooth: float) -> None:
    """Raise OptionError for a percentile outside (0, 100], or a smoothing outside [0, 100] pixels."""
    if not isinstance(percentile, (int, float, np.number)) or not 0 < percentile <= 100:
        raise OptionError(
            f"percentile must be in (0, 100]; received percentile={percentile!r}. Pass 99 for the usual look."
        )
    if not isinstance(smooth, (int, float, np.number)) or not 0 <= smooth <= _SMOOTHEST:
        raise OptionError(
            f"smooth must be in [0, {_SMOOTHEST}] pixels; received smooth={smooth!r}. Pass 0 for the map as it is."
        )


def colours_of(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(..., 3)``: three channels as they are, any other number as the grey of their mean."""
    return pixels if pixels.shape[-1] == 3 else np.repeat(_mean(pixels)[..., np.newaxis], 3, axis=-1)


def resized(drawn: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return shares ``(H, W)`` or ``(H, W, 3)`` at another size, without steps, and never beyond what they were."""
    if drawn.shape[:2] == (height, width):
        return drawn
    channels = drawn[..., np.newaxis] if drawn.ndim == 2 else drawn
    larger = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(channels, -1, 0)
    ]
    limited = np.clip(np.stack(larger, axis=-1).astype(np.float64), drawn.min(), drawn.max())
    return limited[..., 0] if drawn.ndim == 2 else limited


def _finite(array: Pixels, name: str) -> NDArray[np.float64]:
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} must be real numbers; received {name} of dtype {array.dtype}. Convert it to float.")
    # float64 before anything else: |int8(-128)| and the range of a float16 do not fit their own type.
    pixels = array.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ImageError(
            f"{name} must be finite; received {np.count_nonzero(~np.isfinite(pixels))} values of {name} "
            "that are NaN or infinite. Find where the model first produces them."
        )
    return pixels


def _reduced(pixels: NDArray[np.float64], of: Channels) -> NDArray[np.float64]:
    if of == "magnitude":
        return np.asarray(np.abs(pixels).max(axis=-1))
    return colours_of(pixels) if of == "colour" else _mean(pixels)


def _mean(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    # Divided before they are added, so that the sum stays a float; at the end of their range rounding leads beyond it.
    with np.errstate(over="ignore"):
        means = (pixels / pixels.shape[-1]).sum(axis=-1)
    return np.asarray(np.clip(means, pixels.min(axis=-1), pixels.max(axis=-1)))


def _smoothed(drawn: NDArray[np.float64], deviation: float, axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Return values under a Gaussian along some axes; at an edge they are mirrored, so that none gets lost."""
    reach = int(np.ceil(_REACH * deviation))
    with np.errstate(over="ignore"):
        weights = np.exp(-((np.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    weights /= weights.sum()
    for axis in axes:
        length = drawn.shape[axis]
        mirrored = np.pad(np.moveaxis(drawn, axis, 0), [(reach, reach)] + [(0, 0)] * (drawn.ndim - 1), "symmetric")
        moved = sum(weight * mirrored[start : start + length] for start, weight in enumerate(weights))
        drawn = np.moveaxis(np.asarray(moved), 0, axis)
    return drawn
