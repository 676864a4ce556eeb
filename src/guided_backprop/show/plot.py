"""Figures of explanations: what was explained, by which methods, and what the colours mean, around the panels."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import ImageError, MissingExtraError, OptionError
from guided_backprop.labels.names import label_text
from guided_backprop.record import Record
from guided_backprop.show.layouts import (
    Layout,
    Look,
    Maps,
    bars_of,
    colours_of,
    draw_pictures,
    draw_series,
    draw_tables,
    draw_volumes,
    shortened,
)
from guided_backprop.show.panels import PANELS, SCALES, Scale
from guided_backprop.show.render import scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A figure of more rows is taller than a screen and slower than saving the pictures.
_MOST_ROWS = 16
# By the number of axes that the images have; a table has no channels.
_LAYOUTS: dict[int, Layout] = {2: draw_tables, 3: draw_series, 4: draw_pictures, 5: draw_volumes}


def figure_kind() -> "type[Figure]":
    """Return matplotlib's figure, which pyplot does not know of; raise MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "plot() needs matplotlib; received an environment without it. Run: pip install 'guided-backprop[plot]'."
        ) from error
    return Figure


def draw(shown: Sequence[Record], look: Look) -> "Figure":
    """Draw explanations of the same images and labels by one or more methods; one label per image.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: there are no images or more than 16, an option has a value that is not offered, or methods
            explain different things.
        ImageError: the images are neither pictures, series, tables nor volumes, or values are not finite.
    """
    kind = figure_kind()
    _check_rows(shown[0])
    _check_look(look)
    _check_same(shown)
    layout, images, maps = _arrays(shown)
    titles = _titles(shown[0], look, 28 if layout is draw_pictures else 90)
    figure, scales = layout(kind, images, maps, replace(look, titles=titles))
    for axes, title in zip(figure.axes[:: len(figure.axes) // len(titles)], titles, strict=True):
        # Where there is no image, the first panel's own title stands below.
        own = axes.get_title()
        axes.set_title("")
        axes.set_title(f"{title}\n{own}".strip(), loc="left", fontsize="medium", parse_math=False)
    _add_bars(figure, scales)
    figure.supxlabel(_footnote(figure, shown, look, scales), fontsize="small", parse_math=False)
    return figure


def _check_rows(record: Record) -> None:
    if not 1 <= len(record) <= _MOST_ROWS:
        raise OptionError(
            f"plot() draws 1 to {_MOST_ROWS} images; received {len(record)} images. "
            f"Plot a slice, such as explanations[:{_MOST_ROWS}]."
        )


def _check_look(look: Look) -> None:
    # Raises where the percentile is none, also for what is drawn without one.
    scale(np.zeros((1, 1)), look.percentile)
    for panel in look.panels or ():
        if panel not in PANELS:
            raise OptionError(
                f"panels must be among {', '.join(PANELS)}; received {panel!r}. Pass some of these names."
            )
    if isinstance(look.class_names, str) or isinstance(look.feature_names, str):
        raise OptionError("names must be a list of strings; received one string. Pass ['cat', 'dog'].")


def _check_same(shown: Sequence[Record]) -> None:
    first = shown[0]
    for other in shown[1:]:
        pairs = [(first.labels, other.labels), (as_numpy(first.images), as_numpy(other.images))]
        if not all(np.array_equal(*pair) for pair in pairs):
            raise OptionError(
                "methods must be explanations of the same images and labels; received others by "
                f"{other.method}. Make them with compare(images, labels, methods)."
            )


def _arrays(shown: Sequence[Record]) -> tuple[Layout, NumpyArray, Maps]:
    """Return the layout that suits the images, these, and the maps of each method, channels last."""
    images = as_numpy(shown[0].images)
    pairs = [(images, as_numpy(record.attribution)) if images.ndim == 2 else record.channels_last() for record in shown]
    layout, first = _LAYOUTS.get(images.ndim), pairs[0]
    if layout is None or first is None:
        raise ImageError(
            "plot() draws pictures, series (N, C, L), tables (N, F) and volumes (N, C, D, H, W); "
            f"received images of shape {images.shape}. Plot each input that has one of these shapes."
        )
    maps = [pair[1] for pair in pairs if pair is not None]
    return layout, first[0], dict(zip(_names(shown), maps, strict=True))


def _names(shown: Sequence[Record]) -> list[str]:
    """Return the methods' names, made unique by the model's or else by a number."""
    names = [record.method for record in shown]
    if len(set(names)) < len(names):
        names = [f"{record.method} of {record.model}" for record in shown]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def _titles(record: Record, look: Look, width: int) -> list[str]:
    """Return for each image what was explained, and its score, wrapped at a number of letters."""
    pairs = zip(record.labels, record.scores, strict=True)
    texts = [f"{shortened(label_text(label, look.class_names), 90)}, score {score:.4g}" for label, score in pairs]
    return [textwrap.fill(text, width) for text in texts]


def _add_bars(figure: "Figure", scales: Sequence[Scale]) -> None:
    """Add a bar for each colour scale that is used, beside all panels."""
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import Normalize  # noqa: PLC0415

    panels = figure.axes[:]
    for bar in bars_of(scales):
        mappable = ScalarMappable(Normalize(min(bar.ticks), max(bar.ticks)), colours_of(bar))
        shrink = min(1.0, 2.2 / figure.get_figheight())
        drawn = figure.colorbar(mappable, ax=panels, shrink=shrink, aspect=18, fraction=0.03, pad=0.01)
        drawn.set_ticks([*bar.ticks], labels=[*bar.ticks.values()], fontsize="small", parse_math=False)
        drawn.set_label(bar.title, fontsize="small", parse_math=False)


def _footnote(figure: "Figure", shown: Sequence[Record], look: Look, scales: Sequence[Scale]) -> str:
    """Say by what the maps were made, what their scale is, and what became of signs and channels."""
    methods = ", ".join(dict.fromkeys(record.method for record in shown))
    models = " and ".join(dict.fromkeys(record.model for record in shown))
    lines = [f"{methods} of {models}"]
    if scales:
        lines.append(f"p: percentile {look.percentile:g} of a map's magnitudes, its full strength")
    lines += _of_signs_and_channels(shown, scales)
    return textwrap.fill("; ".join(lines), int(13 * figure.get_figwidth()))


def _of_signs_and_channels(shown: Sequence[Record], scales: Sequence[Scale]) -> list[str]:
    axes = as_numpy(shown[0].images).ndim
    if axes == 2:
        return ["red raises the score, blue lowers it"]
    if reducers := {record.reducer for record in shown if record.reducer}:
        return [f"channels reduced by {', '.join(sorted(reducers))}"]
    # In a series each channel is seen.
    return [used.meaning for used in SCALES if used in scales] if axes > 3 else []
