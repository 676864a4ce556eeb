"""From attribution to pictures for people's eyes: signed in colour, from blue over white to red, as magnitudes.

Everything here is for looking, never for computing: values are stretched and clipped. Arrays are
channels-last, ``(H, W)`` or ``(H, W, C)``, of any real dtype. What a map shows in full colour is a percentile of its
magnitudes and not their maximum, because a single extreme pixel would turn everything else grey; say
which percentile wherever a picture is shown.
"""

import numpy as np
from numpy.typing import NDArray

from guided_backprop.errors import ImageError, OptionError
from guided_backprop.show.colours import DIVERGING, RAMP, Colours, Picture, as_bytes, faded, ramped, shade
from guided_backprop.show.shares import Channels, Pixels, colours_of, pixels_of, resized, shares

# How much the strongest pixels of an overlay hide of the image's colours.
OPACITY = 0.9


def heatmap(attribution: Pixels, percentile: float = 99.0, *, smooth: float = 0.0) -> NDArray[np.float64]:
    """Return how strongly each pixel moves the score, regardless of the sign and the channel: the numbers alone.

    The largest magnitude over the channels, divided by the stated percentile of all pixels, clipped to 1.
    If that percentile is 0 although some pixels are not, the maximum takes its place. A map without
    contrast (all pixels alike, for example all zero) gives zeros. :func:`magnitude` is the picture of it.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes becomes 1, in (0, 100].
        smooth: the standard deviation, in pixels, of a Gaussian over the magnitudes, in [0, 100]; 0 leaves them
            as they are.

    Returns:
        ``(H, W)`` float64 in [0, 1].

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import heatmap
        >>> heatmap(np.array([[0.0, 1.0], [-2.0, 4.0]]), percentile=100)
        array([[0.  , 0.25],
               [0.5 , 1.  ]])
    """
    return shares(pixels_of(attribution, "attribution"), "magnitude", percentile, smooth)[0]


def magnitude(
    attribution: Pixels, percentile: float = 99.0, *, smooth: float = 0.0, colours: Colours = RAMP
) -> Picture:
    """Return the heatmap in colour: white is zero, and over red and violet it rises to dark blue.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: as in :func:`heatmap`.
        smooth: as in :func:`heatmap`.
        colours: other colours, ``(K, 3)`` in [0, 255], from zero to full colour.

    Returns:
        ``(H, W, 3)`` uint8; where the attribution is zero, 255.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import magnitude
        >>> magnitude(np.array([[0.0, -3.0]]))[0].tolist()
        [[255, 255, 255], [28, 32, 133]]
    """
    return paint_magnitude(heatmap(attribution, percentile, smooth=smooth), colours)


def colour_picture(attribution: Pixels, percentile: float = 99.0, *, smooth: float = 0.0) -> Picture:
    """Return the classic picture of an attribution: zero is mid-grey, positive brighter, negative darker.

    ``0.5 + 0.5 * a / full``, with full the stated percentile of all magnitudes, clipped. Three channels are
    shown as red, green and blue. One channel, or none, is shown in grey; so is the mean over the channels
    of any other number of them, because they have no colour of their own.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes is shown in full colour, in (0, 100].
        smooth: the standard deviation, in pixels, of a Gaussian over the signed values, in [0, 100]; neighbours of
            opposite signs cancel.

    Returns:
        ``(H, W, 3)`` uint8; where the attribution is zero, 128.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import colour_picture
        >>> colour_picture(np.array([[-3.0, 0.0, 3.0]]))[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    return paint_colour(shares(pixels_of(attribution, "attribution"), "colour", percentile, smooth)[0])


def diverging(
    attribution: Pixels, percentile: float = 99.0, *, smooth: float = 0.0, colours: Colours = DIVERGING
) -> Picture:
    """Return the signed map from blue over white to red: white is zero, red raises the score, blue lowers it.

    Of several channels the mean is shown: what moves the score when all channels of a pixel rise together. Channels
    of opposite signs cancel; :func:`magnitude` shows these too.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: which percentile of the magnitudes is shown in full colour, in (0, 100].
        smooth: as in :func:`colour_picture`.
        colours: other colours, ``(K, 3)`` in [0, 255], from what lowers the score to what raises it.

    Returns:
        ``(H, W, 3)`` uint8; where the attribution is zero, 255.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import diverging
        >>> diverging(np.array([[-3.0, 0.0, 3.0]]))[0].tolist()
        [[5, 48, 97], [255, 255, 255], [103, 0, 31]]
    """
    return paint_diverging(shares(pixels_of(attribution, "attribution"), "diverging", percentile, smooth)[0], colours)


def scale(attribution: Pixels, percentile: float = 99.0, *, of: Channels = "magnitude", smooth: float = 0.0) -> float:
    """Return the magnitude that a picture shows in full colour; 0 if the attribution is all zero.

    Args:
        attribution: ``(H, W)`` or ``(H, W, C)``, signed.
        percentile: as in the picture.
        of: which picture: ``"colour"``, ``"diverging"``, or ``"magnitude"``, which is that of an overlay too.
        smooth: as in the picture.

    Raises:
        ImageError: attribution has another number of axes, no pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import scale
        >>> scale(np.array([[0.0, 1.0], [-2.0, 4.0]]), percentile=100)
        4.0
    """
    return shares(pixels_of(attribution, "attribution"), of, percentile, smooth)[1]


def overlay(
    image: Pixels,
    attribution: Pixels,
    percentile: float = 99.0,
    opacity: float = OPACITY,
    *,
    smooth: float = 0.0,
    colours: Colours = RAMP,
) -> Picture:
    """Return the magnitudes over the image, which keeps its own colours and is faded half way to white.

    The stronger a pixel moves the score, the darker its colour is and the more it covers of the image: where the
    heatmap is 0 there is the image alone, where it is 1 hardly more of it than its light and shade, by which outlines
    are still seen. Bright and dark images are read alike.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` in any range; stretched from its minimum to its maximum.
        attribution: ``(H, W)`` or ``(H, W, C)``, signed, for the same H and W; or smaller in the same proportions, and
            is then enlarged without steps.
        percentile: as in :func:`heatmap`.
        opacity: how much the strongest pixels hide of the image's colours, in [0, 1].
        smooth: as in :func:`heatmap`, in pixels of the attribution.
        colours: as in :func:`magnitude`.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageError: the two differ in height or width, or one of them has another number of axes, no
            pixels, or values that are not finite.
        OptionError: percentile or smooth are outside their range, or opacity outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from guided_backprop.render import overlay
        >>> overlay(np.zeros((2, 2, 3)), np.eye(2)).shape
        (2, 2, 3)
    """
    if not 0 <= opacity <= 1:
        raise OptionError(
            f"opacity must be in [0, 1]; received opacity={opacity!r}. Pass {OPACITY} to hide most of the image."
        )
    heat = heatmap(attribution, percentile, smooth=smooth)
    background = picture(image)
    if not _is_of(heat.shape, background.shape[:2]):
        raise ImageError(
            "image and attribution must have the same height and width, or the same proportions; received image of "
            f"shape {np.shape(image)} and attribution of shape {np.shape(attribution)}. "
            "Pass both channels-last, and the image as the model saw it."
        )
    return paint_overlay(background, resized(heat, *background.shape[:2]), colours, opacity)


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
    colours = colours_of(pixels_of(image, "image"))
    # Halved: the distance between the ends of the float range is not a float.
    low, high = colours.min() / 2, colours.max() / 2
    if low == high:
        return np.full(colours.shape, 128, np.uint8)
    return as_bytes((colours / 2 - low) / (high - low))


def _is_of(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Tell whether two heights and widths are the same, or the first is smaller in the same proportions."""
    if small == large or small[0] >= large[0] or small[1] >= large[1]:
        return small == large
    # Each side of the larger may have been rounded.
    return abs(large[0] * small[1] - large[1] * small[0]) <= (small[0] + small[1]) / 2


# From shares of full colour to a picture of them.


def paint_colour(drawn: NDArray[np.float64]) -> Picture:
    """Return three signed channels around a middle grey."""
    return as_bytes(0.5 + 0.5 * drawn)


def paint_diverging(drawn: NDArray[np.float64], colours: Colours = DIVERGING) -> Picture:
    """Return signed shares in the colours of a ramp, zero in its middle."""
    return as_bytes(ramped(0.5 + 0.5 * drawn, colours))


def paint_magnitude(drawn: NDArray[np.float64], colours: Colours = RAMP) -> Picture:
    """Return shares from 0 to 1 in the colours of a ramp."""
    return as_bytes(ramped(drawn, colours))


def paint_overlay(
    image: Picture, drawn: NDArray[np.float64], colours: Colours = RAMP, opacity: float = OPACITY
) -> Picture:
    """Return shares from 0 to 1 over an image of their size, as in :func:`overlay`."""
    cover = opacity * drawn[..., np.newaxis]
    laid = np.clip(ramped(drawn, colours) + shade(image), 0, 1)
    return as_bytes((1 - cover) * faded(image) + cover * laid)
