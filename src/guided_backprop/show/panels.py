"""The panels that people look at, each once: what is drawn, what it is called, its scale, and its saved file.

A panel is a row of :data:`PANELS`. Figures, notebooks, saved folders, the report and the local page read that table;
which of the panels they show is their own choice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.show.render import (
    DIVERGING,
    RAMP,
    Channels,
    Picture,
    Pixels,
    as_bytes,
    colour_picture,
    diverging,
    heatmap,
    overlay,
    picture,
    scale,
)

# One for each row of the table below; a test compares the two.
PanelName = Literal["image", "colour", "diverging", "heatmap", "overlay"]


@dataclass(frozen=True, eq=False)
class Bar:
    """A bar beside a figure: the colours along it, what they mean, and what stands where; 1 is full strength."""

    colours: NDArray[np.int_]
    title: str
    ticks: Mapping[float, str]


@dataclass(frozen=True, eq=False)
class Scale:
    """What the values of some panels are, and how strong full strength is.

    Attributes:
        of: which of the channels are shown, as for :func:`guided_backprop.render.scale`.
        meaning: in a figure's footnote.
        bar: None where colours are added up of three signed channels, which no bar shows.
    """

    of: Channels
    meaning: str
    bar: Bar | None

    def text(self, attribution: Pixels, percentile: float) -> str:
        """Return the magnitude that is shown in full strength, for people."""
        return f"p = {scale(attribution, percentile, of=self.of):.3g}" if attribution.any() else "all 0"


EACH_CHANNEL = Scale("colour", "colour: each channel, signed", None)
SIGNED_BAR = Bar(DIVERGING, "lowers / raises the score", {-1: "\N{MINUS SIGN}p", 0: "0", 1: "p"})
SIGNED = Scale("diverging", "diverging: mean of the channels, signed", SIGNED_BAR)
MAGNITUDE_BAR = Bar(RAMP, "magnitude", {0: "0", 1: "p"})
MAGNITUDE = Scale("heatmap", "magnitude: largest of the channels", MAGNITUDE_BAR)


@dataclass(frozen=True, eq=False)
class Panel:
    """One way to look at a map, or at the image itself.

    Attributes:
        name: what users call it.
        draw: from the image and its map, channels last, and the percentile: a picture; or values in [0, 1] without
            colours of their own, which a figure gives the colours of the scale's bar and all else greys.
        scale: None for the image.
        title: in a figure, after the method's name.
        caption: in a notebook.
        photo_caption: on a page of photos.
        reading: how it is read, for who chooses among the panels.
        ending: of the saved file, after the image's name; None for what is not saved.
    """

    name: PanelName
    draw: Callable[[Pixels, Pixels, float], Pixels]
    scale: Scale | None = None
    title: str = ""
    caption: str = ""
    photo_caption: str = ""
    reading: str = ""
    ending: str | None = None

    def picture(self, image: Pixels, attribution: Pixels, percentile: float = 99.0) -> Picture:
        """Return the panel as bytes: ``(H, W, 3)``, or ``(H, W)`` in grey."""
        drawn = self.draw(image, attribution, percentile)
        return drawn.astype(np.uint8) if drawn.dtype == np.uint8 else as_bytes(drawn.astype(np.float64))


_ROWS = (
    Panel(
        "image",
        lambda image, _attribution, _percentile: picture(image),
        caption="image",
        photo_caption="photo",
    ),
    Panel(
        "colour",
        lambda _image, attribution, percentile: colour_picture(attribution, percentile),
        EACH_CHANNEL,
        title="grey is 0",
        caption="signed, grey is 0",
        photo_caption="signed, grey is 0",
        reading="signed, grey is 0",
        ending="_colour.png",
    ),
    Panel(
        "diverging",
        lambda _image, attribution, percentile: diverging(attribution, percentile),
        SIGNED,
        title="white is 0",
        caption="signed, white is 0",
        photo_caption="signed, white is 0",
        reading="red raises the score, blue lowers it",
    ),
    Panel(
        "heatmap",
        lambda _image, attribution, percentile: heatmap(attribution, percentile),
        MAGNITUDE,
        title="magnitude",
        caption="magnitude",
        photo_caption="magnitude",
        reading="magnitudes",
        ending="_heatmap.png",
    ),
    Panel(
        "overlay",
        overlay,
        MAGNITUDE,
        title="magnitude",
        caption="magnitude over the image",
        photo_caption="magnitude, over the photo",
        reading="magnitudes",
        ending="_overlay.png",
    ),
)
PANELS: Mapping[PanelName, Panel] = {panel.name: panel for panel in _ROWS}
# The panels of a map, which are all but the image.
MAPS = tuple(panel for panel in _ROWS if panel.scale is not None)
# The scales of these, in their order.
SCALES = tuple(dict.fromkeys(panel.scale for panel in _ROWS if panel.scale is not None))


def signed_panel(channels: int) -> Panel:
    """Return the panel that shows signs: each of three channels, or else the mean of the channels."""
    return PANELS["colour" if channels == 3 else "diverging"]
