"""From attribution to pictures for people's eyes: heatmap, overlay, the grey-centred and the blue-white-red picture.

Everything here is for looking, never for computing: values are stretched and clipped. Arrays are
channels-last, ``(H, W)`` or ``(H, W, C)``, of any real dtype. The scale of a map is a percentile of its
magnitudes and not their maximum, because a single extreme pixel would turn everything else grey; say
which percentile wherever a picture is shown.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.errors import ImageError, OptionError

# ``(H, W)`` or ``(H, W, C)``, of real numbers.
Pixels = NDArray[np.number[Any] | np.bool_]
# ``(H, W, 3)``, or ``(H, W)`` in grey.
Picture = NDArray[np.uint8]
# Which of an attribution's channels a picture shows: each, their mean, or the largest magnitude among them.
Channels = Literal["colour", "diverging", "heatmap"]

# Black, purple, red, orange, pale yellow: lightness rises evenly along the ramp, so the order of values
# is seen without a legend, in print, and by colour-blind readers. Nine points of "inferno" (CC0).
RAMP = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ]
)

# Blue, white, red: as dark at one end as at the other, and nobody takes the two for each other, whatever colours they
# see.
DIVERGING = np.array(
    [
        (5, 48, 97),
        (33, 102, 172),
        (67, 147, 195),
        (146, 197, 222),
        (255, 255, 255),
        (244, 165, 130),
        (214, 96, 77),
        (178, 24, 43),
        (103, 0, 31),
    ]
)

# A bar's colours, where a table's feature raises or lowers the score.
RAISES, LOWERS = DIVERGING[6], DIVERGING[2]

# How much of its brightness the image keeps under an overlay: enough to be recognised, too little to
# outshine the bright end of the ramp.
_DIMMED = 0.5
_LUMA = np.array([0.299, 0.587, 0.114])


def heatmap(attribution: Pixels, percentile: float = 99.0) -> NDArray[np.float64]:
    """Return how strongly each pixel moves the score, regardless of the sign and the channel.

    The largest magnitude over the channels, divided by the stated percentile of all pixels, clipped to 1.
    If that percentile is 0 although some pixels are not, the maximum takes its place. A map without
    contrast (all pixels alike, for example all zero) gives zeros.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes becomes 1, in (0, 100].

    Returns:
        ``(H, W)`` float64 in [0, 1].

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile is outside (0, 100].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import heatmap
        >>> heatmap(np.array([[0.0, 1.0], [-2.0, 4.0]]), percentile=100)
        array([[0.  , 0.25],
               [0.5 , 1.  ]])
    """
    magnitude = _shown(attribution, "heatmap")
    if magnitude.min() == magnitude.max():
        return np.zeros_like(magnitude)
    return _scaled(magnitude, percentile)


def colour_picture(attribution: Pixels, percentile: float = 99.0) -> Picture:
    """Return the classic picture of an attribution: zero is mid-grey, positive brighter, negative darker.

    ``0.5 + 0.5 * a / p``, with p the stated percentile of all magnitudes, clipped. Three channels are
    shown as red, green and blue. One channel, or none, is shown in grey; so is the mean over the channels
    of any other number of them, because they have no colour of their own.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes is shown in full strength, in (0, 100].

    Returns:
        ``(H, W, 3)`` uint8; where the attribution is zero, 128.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile is outside (0, 100].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import colour_picture
        >>> colour_picture(np.array([[-3.0, 0.0, 3.0]]))[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    return as_bytes(0.5 + 0.5 * _scaled(_shown(attribution, "colour"), percentile))


def diverging(attribution: Pixels, percentile: float = 99.0) -> Picture:
    """Return the signed map from blue over white to red: white is zero, red raises the score, blue lowers it.

    Of several channels the mean is shown: what moves the score when all channels of a pixel rise together. Channels
    of opposite signs cancel; :func:`heatmap` shows these too.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes is shown in full strength, in (0, 100].

    Returns:
        ``(H, W, 3)`` uint8; where the attribution is zero, 255.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile is outside (0, 100].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import diverging
        >>> diverging(np.array([[-3.0, 0.0, 3.0]]))[0].tolist()
        [[5, 48, 97], [255, 255, 255], [103, 0, 31]]
    """
    return as_bytes(_ramped(0.5 + 0.5 * _scaled(_shown(attribution, "diverging"), percentile), DIVERGING))


def scale(attribution: Pixels, percentile: float = 99.0, *, of: Channels = "heatmap") -> float:
    """Return the magnitude that a picture shows in full strength; 0 if the attribution is all zero.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: as in the picture.
        of: which picture: of :func:`colour_picture`, :func:`diverging` or :func:`heatmap` (and :func:`overlay`).

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile is outside (0, 100].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import scale
        >>> scale(np.array([[0.0, 1.0], [-2.0, 4.0]]), percentile=100)
        4.0
    """
    return _scale(_shown(attribution, of), percentile)


def overlay(image: Pixels, attribution: Pixels, percentile: float = 99.0, opacity: float = 0.9) -> Picture:
    """Return the heatmap in colour over the image, which is shown dimmed and without its own colours.

    From black over red to pale yellow the heatmap rises from 0 to 1. It covers the image the more the
    higher it is, so the image stays visible where the heatmap is low.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` in any range; stretched from its minimum to its maximum.
        attribution: ``(H, W)`` or ``(H, W, C)``, signed, for the same H and W.
        percentile: as in :func:`heatmap`.
        opacity: how much the strongest pixels hide of the image, in [0, 1].

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageError: the two differ in height or width, or one of them has another number of axes, no
            pixels, or values that are not finite.
        OptionError: percentile is outside (0, 100], or opacity outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import overlay
        >>> overlay(np.zeros((2, 2, 3)), np.eye(2)).shape
        (2, 2, 3)
    """
    if not 0 <= opacity <= 1:
        raise OptionError(
            f"opacity must be in [0, 1]; received opacity={opacity!r}. Pass 0.9 to hide most of the image."
        )
    heat = heatmap(attribution, percentile)
    background = picture(image)
    if background.shape[:2] != heat.shape:
        raise ImageError(
            "image and attribution must have the same height and width; received image of shape "
            f"{np.shape(image)} and attribution of shape {np.shape(attribution)}. "
            "Pass both channels-last, and the image as the model saw it."
        )
    grey = _DIMMED * (background / 255.0) @ _LUMA
    cover = opacity * heat[..., np.newaxis]
    return as_bytes((1 - cover) * grey[..., np.newaxis] + cover * _ramped(heat, RAMP))


def picture(image: Pixels) -> Picture:
    """Return an image for display, whatever range its preprocessing gave it.

    All channels together are stretched from the image's minimum to its maximum; an image of one value is
    mid-grey. Channels become colours as in :func:`colour_picture`.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` in any range.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageError: image has another number of axes, no pixels, or values that are not finite.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import picture
        >>> picture(np.array([[-1.0, 1.0]]))[0, :, 0]
        array([  0, 255], dtype=uint8)
    """
    colours = _colours(_pixels(image, "image"))
    # Halved: the distance between the ends of the float range is not a float.
    low, high = colours.min() / 2, colours.max() / 2
    if low == high:
        return np.full(colours.shape, 128, np.uint8)
    return as_bytes((colours / 2 - low) / (high - low))


def _pixels(values: Pixels, name: str) -> NDArray[np.float64]:
    """Return ``values`` as finite float64 pixels ``(H, W, C)``."""
    array = np.asarray(values)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(
            f"{name} must be pixels of shape (H, W) or (H, W, C); received {name} of shape {array.shape}. "
            "Pass one image at a time, channels last."
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} must be real numbers; received {name} of dtype {array.dtype}. Convert it to float.")
    # float64 before anything else: |int8(-128)| and the range of a float16 do not fit their own type.
    pixels = array.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ImageError(
            f"{name} must be finite; received {np.count_nonzero(~np.isfinite(pixels))} values of {name} "
            "that are NaN or infinite. Find where the model first produces them."
        )
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _colours(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(H, W, 3)``: three channels as they are, any other number as the grey of their mean."""
    if pixels.shape[2] == 3:
        return pixels
    # Divided before they are added, so that the sum stays a float.
    grey = (pixels / pixels.shape[2]).sum(axis=2, keepdims=True)
    return np.repeat(grey, 3, axis=2)


def _shown(attribution: Pixels, of: Channels) -> NDArray[np.float64]:
    """Return the values that a picture shows: of each channel, their mean, or the largest magnitude among them."""
    pixels = _pixels(attribution, "attribution")
    if of == "heatmap":
        return np.asarray(np.abs(pixels).max(axis=2))
    # Divided before they are added, so that the sum stays a float.
    return _colours(pixels) if of == "colour" else np.asarray((pixels / pixels.shape[2]).sum(axis=2))


def _scale(attribution: NDArray[np.float64], percentile: float) -> float:
    """Return the percentile of the magnitudes, or else their maximum."""
    if not isinstance(percentile, (int, float, np.number)) or not 0 < percentile <= 100:
        raise OptionError(
            f"percentile must be in (0, 100]; received percentile={percentile!r}. Pass 99 for the usual look."
        )
    magnitude = np.abs(attribution)
    return float(np.percentile(magnitude, percentile)) or float(magnitude.max())


def _scaled(attribution: NDArray[np.float64], percentile: float) -> NDArray[np.float64]:
    """Return ``attribution`` divided by its scale, in [-1, 1]."""
    full = _scale(attribution, percentile)
    # Clipped before the division: a quotient by a tiny scale can overflow.
    return np.clip(attribution, -full, full) / full if full > 0 else np.zeros_like(attribution)


def _ramped(shares: NDArray[np.float64], ramp: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the ramp's colours ``(H, W, 3)``, in [0, 1], at values in [0, 1]."""
    points = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(shares, points, channel / 255.0) for channel in ramp.T], axis=2)


def as_bytes(shares: NDArray[np.float64]) -> Picture:
    """Return values in [0, 1] as bytes; a half is 128."""
    return np.floor(shares * 255 + 0.5).astype(np.uint8)
