"""The panels that people look at, each once: what is drawn, what it is called, its scale, and its saved file.

A panel is a row of :data:`PANELS`. Figures, notebooks, saved folders, the report and the local page read that table;
which of the panels they show is their own choice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.show.colours import DIVERGING, RAMP, Colours, Picture
from guided_backprop.show.render import (
    paint_colour,
    paint_diverging,
    paint_magnitude,
    paint_overlay,
    picture,
)
from guided_backprop.show.shares import Channels, Pixels, shares

# One for each row of the table below; a test compares the two.
PanelName = Literal["image", "colour", "diverging", "magnitude", "overlay"]
# From the image, the shares of full colour, and the colours of the scale's bar.
Paint = Callable[[Picture, NDArray[np.float64], Colours], Picture]


@dataclass(frozen=True, eq=False)
class Bar:
    """A bar beside a figure: the colours along it, what they mean, and what stands where; 1 is full colour."""

    colours: Colours
    title: str
    ticks: Mapping[float, str]


@dataclass(frozen=True, eq=False)
class Scale:
    """What the values of some panels are, and how strong full colour is.

    Attributes:
        of: which of the channels are shown, as for :func:`guided_backprop.render.scale`.
        meaning: in a figure's footnote.
        bar: None where colours are added up of three signed channels, which no bar shows.
    """

    of: Channels
    meaning: str
    bar: Bar | None

    def text(self, attribution: Pixels, percentile: float, smooth: float = 0.0) -> str:
        """Return the magnitude that is shown in full colour, for people; of a map ``(..., H, W, C)``."""
        full = shares(attribution, self.of, percentile, smooth)[1]
        return f"magnitude at full colour: {full:.3g}" if full else "all 0"


EACH_CHANNEL = Scale("colour", "each channel, signed", None)
SIGNED_BAR = Bar(DIVERGING, "lowers / raises the score", {-1: "full", 0: "0", 1: "full"})
SIGNED = Scale("diverging", "mean of the channels, signed", SIGNED_BAR)
MAGNITUDE_BAR = Bar(RAMP, "magnitude", {0: "0", 1: "full"})
MAGNITUDE = Scale("magnitude", "largest magnitude of the channels", MAGNITUDE_BAR)


@dataclass(frozen=True, eq=False)
class Panel:
    """One way to look at a map, or at the image itself.

    Attributes:
        name: what users call it.
        paint: from the image and the shares of full colour to a picture.
        scale: None for the image.
        title: in a figure, after the method's name.
        caption: in a notebook.
        photo_caption: on a page of photos.
        reading: how it is read, for who chooses among the panels.
        ending: of the saved file, after the image's name; None for what is not saved.
    """

    name: PanelName
    paint: Paint
    scale: Scale | None = None
    title: str = ""
    caption: str = ""
    photo_caption: str = ""
    reading: str = ""
    ending: str | None = None

    def picture(
        self,
        image: Pixels,
        attribution: Pixels,
        percentile: float = 99.0,
        *,
        smooth: float = 0.0,
        colours: Colours | None = None,
    ) -> Picture:
        """Return the panel ``(H, W, 3)`` of an image and its map, channels last."""
        return self.painted(picture(image), self.shares(attribution, percentile, smooth), colours)

    def shares(self, attribution: Pixels, percentile: float = 99.0, smooth: float = 0.0) -> NDArray[np.float64]:
        """Return what the panel shows of a map ``(..., H, W, C)``, as shares of full colour; nothing for the image."""
        if self.scale is None:
            return np.zeros(())
        return shares(attribution, self.scale.of, percentile, smooth)[0]

    def painted(self, image: Picture, drawn: NDArray[np.float64], colours: Colours | None = None) -> Picture:
        """Return shares as a picture, in the colours of the scale's bar unless there are others."""
        bar = None if self.scale is None else self.scale.bar
        own = RAMP if bar is None else bar.colours
        return self.paint(image, drawn, own if colours is None else colours)


_ROWS = (
    Panel(
        "image",
        lambda image, _drawn, _colours: image,
        caption="image",
        photo_caption="photo",
    ),
    Panel(
        "colour",
        lambda _image, drawn, _colours: paint_colour(drawn),
        EACH_CHANNEL,
        title="grey is 0",
        caption="colour: signed, grey is 0",
        photo_caption="colour: signed, grey is 0",
        reading="signed, grey is 0",
        ending="_colour.png",
    ),
    Panel(
        "diverging",
        lambda _image, drawn, colours: paint_diverging(drawn, colours),
        SIGNED,
        title="white is 0",
        caption="diverging: signed, white is 0",
        photo_caption="diverging: signed, white is 0",
        reading="red raises the score, blue lowers it",
    ),
    Panel(
        "magnitude",
        lambda _image, drawn, colours: paint_magnitude(drawn, colours),
        MAGNITUDE,
        title="magnitude",
        caption="magnitude",
        photo_caption="magnitude",
        reading="magnitudes",
        ending="_magnitude.png",
    ),
    Panel(
        "overlay",
        paint_overlay,
        MAGNITUDE,
        title="magnitude",
        caption="overlay: magnitude over the image",
        photo_caption="overlay: magnitude over the photo",
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
