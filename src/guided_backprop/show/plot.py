"""Figures of explanations: what was explained, by which methods, and what the colours mean, around the panels."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.labels.names import label_text
from guided_backprop.record import Record
from guided_backprop.show.canvas import Canvas, figure_kind
from guided_backprop.show.colours import Colours
from guided_backprop.show.layouts import (
    Drawn,
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
from guided_backprop.show.panels import PANELS, Scale
from guided_backprop.show.remarks import remarks
from guided_backprop.show.shares import check_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# A figure of more rows is taller than a screen and slower than saving the pictures.
_MOST_ROWS = 16
# By the number of axes that the images have; a table has no channels.
_LAYOUTS: dict[int, Layout] = {2: draw_tables, 3: draw_series, 4: draw_pictures, 5: draw_volumes}
# A letter of a note takes a thirteenth of an inch.
_LETTERS = 13


def draw(shown: Sequence[Record], look: Look, canvas: Canvas) -> "Figure":
    """Draw explanations of the same images and labels by one or more methods; one label per image.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: there are no images or more than 16, an option has a value that is not offered, or methods
            explain different things.
        ImageError: the images are neither pictures, series, tables nor volumes, or values are not finite.
    """
    _check_rows(shown[0])
    _check_look(look)
    _check_same(shown)
    layout, images, maps = _arrays(shown)
    if look.smooth and layout not in (draw_pictures, draw_volumes):
        raise OptionError(f"smooth is for pictures and volumes; received images of shape {images.shape}. Leave it out.")
    titles = _titles(shown[0], look, 28 if layout is draw_pictures else 90)
    drawn = layout(canvas, images, maps, replace(look, titles=titles))
    panels = drawn.grid.reshape(-1)
    for axes, title in zip(panels[:: len(panels) // len(titles)], titles, strict=True):
        # Where there is no image, the first panel's own title stands below.
        own = axes.get_title()
        axes.set_title("")
        size = "medium" if canvas.is_own else "small"
        axes.set_title(f"{title}\n{own}".strip(), loc="left", fontsize=size, parse_math=False)
    # The figure itself, where the axes are of a part of it.
    figure: Figure = panels[0].figure.figure
    by_method = dict(zip(maps, shown, strict=True))
    if canvas.is_own:
        _add_bars(figure, drawn)
        said = _grouped({name: remarks(one, look.smooth) for name, one in by_method.items()})
        lines = [_about(by_method, look, drawn), *said, *look.notes]
        width = int(_LETTERS * figure.get_figwidth())
        note = "\n".join(textwrap.fill(line, width) for line in lines)
        figure.supxlabel(note, fontsize="small", parse_math=False)
    else:
        _put_below(panels[-1], "; ".join([shown[0].method, *_scaling(look, drawn)]))
    return figure


def save(figure: "Figure", file: str | os.PathLike[str]) -> None:
    """Save a figure in the format of the file's ending.

    Raises:
        OptionError: there is no such format, or ``file`` is no path.
    """
    if not isinstance(file, str | os.PathLike):
        raise OptionError(
            f"file must be a path to save to; received file={file!r:.80}. The scale is plot(percentile=99)."
        )
    endings = figure.canvas.get_supported_filetypes()
    if Path(file).suffix[1:].lower() not in endings:
        raise OptionError(
            f"file must end in one of {', '.join(sorted(endings))}; received file={os.fspath(file)!r}. Write maps.png."
        )
    figure.savefig(file, dpi=150)


def colours_along(cmap: "str | Colormap") -> Colours:
    """Return the colours along one of matplotlib's colour maps, or one that it knows by name.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: matplotlib knows no such map.
    """
    figure_kind()
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.colors import Colormap  # noqa: PLC0415

    if not isinstance(cmap, Colormap) and cmap not in list(colormaps):
        raise OptionError(
            f"cmap must be a colour map of matplotlib's, or its name; received cmap={cmap!r:.80}. Pass 'viridis'."
        )
    along = colormaps[cmap] if isinstance(cmap, str) else cmap
    return np.asarray(along(np.linspace(0, 1, 256)))[:, :3] * 255


def _check_rows(record: Record) -> None:
    if not 1 <= len(record) <= _MOST_ROWS:
        raise OptionError(
            f"plot() draws 1 to {_MOST_ROWS} images; received {len(record)} images. "
            f"Plot a slice, such as explanations[:{_MOST_ROWS}]."
        )


def _check_look(look: Look) -> None:
    # Also for what is drawn without them.
    check_options(look.percentile, look.smooth)
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
    """Return the methods' names, made unique by what was chosen of them, by the model's or else by a number."""
    names = [record.short_method for record in shown]
    if len(set(names)) < len(names):
        names = [record.method for record in shown]
    if len(set(names)) < len(names):
        names = [f"{record.method} of {record.model}" for record in shown]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def _titles(record: Record, look: Look, width: int) -> list[str]:
    """Return for each image what was explained, and its score, wrapped at a number of letters."""
    pairs = zip(record.labels, record.scores, strict=True)
    texts = [f"{shortened(label_text(label, look.class_names), 90)}, score {score:.4g}" for label, score in pairs]
    return [textwrap.fill(text, width) for text in texts]


def _add_bars(figure: "Figure", drawn: Drawn) -> None:
    """Add a bar for each colour scale that is used, beside all panels."""
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import Normalize  # noqa: PLC0415

    panels = figure.axes[:]
    for bar in bars_of(drawn.scales):
        mappable = ScalarMappable(Normalize(min(bar.ticks), max(bar.ticks)), colours_of(bar))
        shrink = min(1.0, 2.2 / figure.get_figheight())
        beside = figure.colorbar(mappable, ax=panels, shrink=shrink, aspect=18, fraction=0.03, pad=0.01)
        beside.set_ticks([*bar.ticks], labels=[*bar.ticks.values()], fontsize="small", parse_math=False)
        beside.set_label(bar.title, fontsize="small", parse_math=False)


def _put_below(axes: "Axes", note: str) -> None:
    """Write a note under axes of the user's, whose figure is left as it is."""
    width = axes.figure.figure.get_figwidth() * axes.get_position().width
    text = textwrap.fill(note, max(int(_LETTERS * width), 20))
    axes.set_xlabel(f"{axes.get_xlabel()}\n{text}".strip(), fontsize="small", parse_math=False)


def _about(shown: Mapping[str, Record], look: Look, drawn: Drawn) -> str:
    """Say by what the maps were made, what their scale is, and what became of signs and channels."""
    methods = ", ".join(dict.fromkeys(record.method for record in shown.values()))
    models = " and ".join(dict.fromkeys(record.model for record in shown.values()))
    said = {method: _of_signs_and_channels(record, drawn.scales.get(method, ())) for method, record in shown.items()}
    return "; ".join([f"{methods} of {models}", *_scaling(look, drawn), *_grouped(said)])


def _scaling(look: Look, drawn: Drawn) -> list[str]:
    """Say what full colour is, and what the maps were smoothed by."""
    if not drawn.scales:
        return []
    smoothed = [f"smoothed for looking, by a Gaussian of {look.smooth:g} pixels"] if look.smooth else []
    return [f"full colour: percentile {look.percentile:g} of a map's magnitudes", *smoothed]


def _grouped(said: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what is said of each method, each sentence once: without names where it holds for all."""
    methods_of: dict[str, list[str]] = {}
    for method, sentences in said.items():
        for sentence in sentences:
            methods_of.setdefault(sentence, []).append(method)
    return [
        sentence if len(methods) == len(said) else f"{', '.join(methods)}: {sentence}"
        for sentence, methods in methods_of.items()
    ]


def _of_signs_and_channels(record: Record, scales: Sequence[Scale]) -> list[str]:
    """Say what the colours of one method's panels are."""
    axes = as_numpy(record.images).ndim
    if axes == 2:
        return ["red raises the score, blue lowers it"]
    if record.reducer:
        return [f"channels reduced by {record.reducer}"]
    # In a series each channel is seen.
    return [f"{scale.of}: {scale.meaning}" for scale in scales] if axes > 3 else []
