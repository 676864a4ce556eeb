"""Colours: what stands for a share of full strength, and the image behind a map."""

import numpy as np
from numpy.typing import NDArray

# ``(H, W, 3)``.
Picture = NDArray[np.uint8]
# Points ``(K, 3)``, evenly spaced from the least share to the largest.
Colours = NDArray[np.number]

# White, peach, coral, magenta, violet, dark blue: nine points that are evenly far apart to the eye (CIEDE2000), and
# lightness falls all the way, so that the order of values is seen without a legend, in print, and by colour-blind
# readers. The strong end is dark: on a photo that was faded towards white nothing else is.
RAMP = np.array(
    [
        (255, 255, 255),
        (255, 229, 203),
        (255, 188, 146),
        (255, 138, 113),
        (255, 89, 114),
        (232, 47, 131),
        (182, 30, 148),
        (115, 36, 149),
        (28, 32, 133),
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

# How far the image behind a map is faded towards white: its own colours are still seen, and black is a middle grey,
# on which the strong end of the ramp is read.
_FADED = 0.5
# How far light and shade of the image lighten and darken what lies over it: so much that its outlines are seen under a
# large strong patch, and so little that the order of the colours stays.
_SHADED = 0.15
_LUMA = np.array([0.299, 0.587, 0.114])


def ramped(shares: NDArray[np.float64], ramp: Colours) -> NDArray[np.float64]:
    """Return the ramp's colours ``(..., 3)``, in [0, 1], at values in [0, 1]."""
    points = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(shares, points, channel / 255.0) for channel in ramp.T], axis=-1)


def faded(image: Picture) -> NDArray[np.float64]:
    """Return the image behind a map, in [0, 1]: its own colours, half way to white."""
    return (1 - _FADED) * (image / 255.0) + _FADED


def shade(image: Picture) -> NDArray[np.float64]:
    """Return how much an image lightens and darkens what lies over it, ``(H, W, 1)``; a middle grey does not."""
    grey: NDArray[np.float64] = (image / 255.0) @ _LUMA
    return _SHADED * (grey[..., np.newaxis] - 0.5)


def dimmed(image: Picture) -> NDArray[np.float64]:
    """Return what of an image is not in question, in [0, 1]: grey, and fainter than behind a map."""
    grey = (image / 255.0) @ _LUMA
    return np.repeat(0.35 * grey[..., np.newaxis] + 0.65, 3, axis=-1)


def as_bytes(shares: NDArray[np.float64]) -> Picture:
    """Return values in [0, 1] as bytes; a half is 128."""
    return np.floor(shares * 255 + 0.5).astype(np.uint8)
