"""How pictures, series, tables and volumes are laid out in a figure: a function each, which draws all rows."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.labels.names import ClassNames
from guided_backprop.show.panels import (
    MAGNITUDE,
    MAGNITUDE_BAR,
    PANELS,
    SCALES,
    SIGNED,
    Bar,
    Panel,
    PanelName,
    Scale,
    signed_panel,
)
from guided_backprop.show.render import LOWERS, RAISES, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

# The maps of each method by its name: pictures, series, tables or volumes, channels last.
Maps = Mapping[str, NumpyArray]
# A figure, and the scales of the panels in it.
Drawn = tuple["Figure", list[Scale]]
Layout = Callable[["type[Figure]", NumpyArray, Maps, "Look"], Drawn]

_MOST_FEATURES, _MOST_SLICES, _MOST_NAMES = 20, 5, 12
_WIDTH = 10.0
# What matplotlib can still draw: its margins overflow above, and its ticks vanish below.
_DRAWABLE = (1e-100, 1e100)


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: the scale of its maps, what it shows, and what things are called."""

    percentile: float = 99.0
    panels: Sequence[PanelName] | None = None
    class_names: ClassNames = ()
    feature_names: Sequence[str] | None = None
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class _Strip:
    """A panel of one method's maps, or of the images, in all rows of a figure: a column, or lines of slices."""

    method: str
    panel: Panel
    maps: NumpyArray

    def title(self, *, is_alone: bool) -> str:
        """Return what is drawn and what its zero looks like; nothing for the image."""
        if not self.panel.title:
            return ""
        return textwrap.fill(f"{self.panel.name if is_alone else self.method}, {self.panel.title}", 30)

    def scale_text(self, attribution: NumpyArray, percentile: float) -> str:
        """Return the scale of one map; nothing for the image."""
        return "" if self.panel.scale is None else self.panel.scale.text(attribution, percentile)


def draw_pictures(kind: "type[Figure]", images: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw a row per image: the image, and beside it the panels of each method."""
    is_alone = len(maps) == 1
    columns = [strip for method in maps for strip in _strips(method, maps[method], look, is_alone=is_alone)]
    scales = _scales(columns)
    if look.panels is None or "image" in look.panels or not columns:
        columns.insert(0, _image_strip(maps))
    ratio = float(np.clip(images.shape[1] / images.shape[2], 0.2, 3))
    size = _size_of_pictures(len(images), len(columns), ratio, look.titles, bars_of(scales))
    # Narrow pictures keep the room that their titles need.
    figure = kind(figsize=size, layout="compressed" if ratio < 1.5 else "constrained")
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    for row, axes_of_row in enumerate(grid):
        for axes, strip in zip(axes_of_row, columns, strict=True):
            attribution = strip.maps[row]
            _show(axes, strip.panel.draw(images[row], attribution, look.percentile))
            title = strip.title(is_alone=is_alone) if row == 0 else ""
            text = f"{title}\n{strip.scale_text(attribution, look.percentile)}".strip()
            axes.set_title(text, fontsize="small", parse_math=False)
    return figure, scales


def _size_of_pictures(
    rows: int, columns: int, ratio: float, titles: Sequence[str], bars: Sequence[Bar]
) -> tuple[float, float]:
    """Return width and height in inches: a bar takes 0.6 of the width, a line of a title 0.18 of the height."""
    width = max(_WIDTH, 2.2 * columns) if columns > 2 else 4.0 * columns
    side = (width - 0.6 * len(bars)) / columns - 0.1
    # Above the first row stand the panels' own titles too, which are two lines at most.
    lines = [title.count("\n") + 1 for title in titles]
    lines[0] = max(lines[0], 2)
    return width, rows * (side * ratio + 0.15) + 0.18 * sum(lines) + 0.5


def draw_volumes(kind: "type[Figure]", images: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw the slices with the strongest attribution, in their order: of the image, and below it of each map."""
    depth = images.shape[1]
    count = min(depth, _MOST_SLICES)
    of_maps = [strip for method in maps for strip in _strips(method, maps[method], look, is_alone=False)]
    lines = [_image_strip(maps), *of_maps]
    ratio = float(np.clip(images.shape[2] / images.shape[3], 0.2, 3))
    height = len(images) * (len(lines) * ((_WIDTH - 1) / count * ratio + 0.1) + 0.6) + 0.5
    figure = kind(figsize=(_WIDTH, height), layout="compressed")
    grid = figure.subplots(len(images) * len(lines), count, squeeze=False)
    first = next(iter(maps.values()))
    for row, image in enumerate(images):
        chosen = strongest_slices(first[row], count)
        grid_of_image = grid[row * len(lines) :][: len(lines)]
        for axes_of_line, strip in zip(grid_of_image, lines, strict=True):
            _draw_slices(axes_of_line, strip, image, strip.maps[row], chosen=chosen, percentile=look.percentile)
        for axes, position in zip(grid_of_image[-1], chosen, strict=True):
            axes.set_xlabel(f"slice {position} of {depth}", fontsize="small", parse_math=False)
    return figure, _scales(of_maps)


def _draw_slices(
    axes_of_line: Sequence["Axes"],
    strip: _Strip,
    image: NumpyArray,
    attribution: NumpyArray,
    *,
    chosen: NDArray[np.intp],
    percentile: float,
) -> None:
    # As one tall picture: all slices have one scale.
    tall_image, tall = (volume.reshape(-1, *volume.shape[2:]) for volume in (image, attribution))
    pixels = strip.panel.draw(tall_image, tall, percentile)
    slices = pixels.reshape(len(image), -1, *pixels.shape[1:])
    for axes, position in zip(axes_of_line, chosen, strict=True):
        _show(axes, slices[position])
    text = f"{strip.method}\n{strip.scale_text(tall, percentile)}".strip()
    axes_of_line[0].set_ylabel(text, fontsize="small", parse_math=False)


def strongest_slices(attribution: NumpyArray, count: int) -> NDArray[np.intp]:
    """Return the positions of the slices of the largest sum of magnitudes, the largest of the channels each."""
    magnitude: NDArray[np.float64] = np.abs(attribution.astype(np.float64)).max(axis=-1)
    # As a share of the largest: a sum of large ones would be infinite.
    shares = (magnitude / (magnitude.max() or 1)).sum(axis=(1, 2))
    return np.sort(np.argsort(-shares, kind="stable")[:count])


def draw_series(kind: "type[Figure]", series: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw each series, and below it on the same axis a strip per method: a line per channel, a column per step."""
    channels = series.shape[-1]
    strip = float(np.clip(0.22 * channels, 0.35, 2.5))
    figure = kind(figsize=(_WIDTH, len(series) * (1.7 + (strip + 0.25) * len(maps)) + 0.8), layout="constrained")
    ratios = [1.5, *[strip] * len(maps)] * len(series)
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    names = _feature_names(look, channels, "channel")
    scales = {method: SIGNED if _is_signed(attribution) else MAGNITUDE for method, attribution in maps.items()}
    for row, steps in enumerate(series):
        top, *strips = panels[row * (1 + len(maps)) :][: 1 + len(maps)]
        drawn, unit = _in_units(steps)
        colours = [line.get_color() for line in top.plot(drawn, linewidth=1)]
        top.set_ylabel(f"series{unit}", fontsize="small", parse_math=False)
        for axes, (method, attribution) in zip(strips, maps.items(), strict=True):
            _draw_strip(axes, method, attribution[row].T, scales[method], look.percentile)
            _name_channels(axes, names, colours, attribution.shape[-1])
    panels[-1].set_xlabel("position", fontsize="small", parse_math=False)
    return figure, list(scales.values())


def _draw_strip(axes: "Axes", method: str, attribution: NumpyArray, of: Scale, percentile: float) -> None:
    """Draw one ``(C, L)`` map of a series; each of its values is shown, whatever the scale's name."""
    full = scale(attribution, percentile)
    shares = np.clip(attribution.astype(np.float64), -full, full) / (full or 1)
    bar = of.bar or MAGNITUDE_BAR
    axes.imshow(
        shares, cmap=colours_of(bar), vmin=min(bar.ticks), vmax=max(bar.ticks), aspect="auto", interpolation="nearest"
    )
    title = f"{method}, {MAGNITUDE.text(attribution, percentile)}"
    axes.set_title(title, loc="left", fontsize="small", parse_math=False)


def _name_channels(axes: "Axes", names: Sequence[str], colours: Sequence["ColorType"], count: int) -> None:
    if count != len(names) or count > _MOST_NAMES:
        axes.set_yticks([])
        return
    axes.set_yticks(range(count), [shortened(name, 24) for name in names], fontsize="small", parse_math=False)
    for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
        text.set_color(colour)


def draw_tables(kind: "type[Figure]", rows: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw the strongest features as bars, the strongest on top, red if they raise the score and blue if they lower it.

    All methods have the order of the first.
    """
    features = rows.shape[1]
    count = min(features, _MOST_FEATURES)
    names = _feature_names(look, features, "feature")
    figure = kind(figsize=(_WIDTH, len(rows) * (0.22 * count + 0.9) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), len(maps), squeeze=False, sharey="row")
    first = next(iter(maps.values()))
    for row, axes_of_row in enumerate(grid):
        strongest = np.argsort(-np.abs(first[row].astype(np.float64)), kind="stable")[:count]
        labels = [f"{shortened(names[feature], 28)} = {_number(rows[row, feature])}" for feature in strongest]
        for axes, (method, attribution) in zip(axes_of_row, maps.items(), strict=True):
            title = method if len(maps) > 1 else "attribution"
            _draw_features(axes, title, attribution[row][strongest], labels)
        axes_of_row[0].invert_yaxis()
        if features > count:
            axes_of_row[0].set_ylabel(f"{count} strongest of {features}", fontsize="small", parse_math=False)
    return figure, []


def _draw_features(axes: "Axes", title: str, attribution: NumpyArray, labels: Sequence[str]) -> None:
    drawn, unit = _in_units(attribution)
    axes.barh(range(len(drawn)), drawn, color=[tuple((RAISES if move > 0 else LOWERS) / 255) for move in drawn])
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), labels, fontsize="small", parse_math=False)
    axes.margins(y=0.01)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{title}{unit}", fontsize="small", parse_math=False)


def _strips(method: str, maps: NumpyArray, look: Look, *, is_alone: bool) -> list[_Strip]:
    """Return the panels of a method's maps: those that are asked for, or what suits the maps."""
    if look.panels is not None:
        panels = [PANELS[name] for name in look.panels if name != "image"]
    else:
        first = [signed_panel(maps.shape[-1])] if _is_signed(maps) else []
        magnitudes = [PANELS["heatmap"], PANELS["overlay"]]
        panels = [*first, *magnitudes] if is_alone else [*first, *magnitudes][:1]
    return [_Strip(method, panel, maps) for panel in panels]


def _image_strip(maps: Maps) -> _Strip:
    # Whatever the map is: of the image's own panel it draws nothing.
    return _Strip("image", PANELS["image"], next(iter(maps.values())))


def _scales(strips: Sequence[_Strip]) -> list[Scale]:
    return [strip.panel.scale for strip in strips if strip.panel.scale is not None]


def _is_signed(attribution: NumpyArray) -> bool:
    """Tell whether a map has values below 0: if none has, it is a magnitude, and its scale begins at 0."""
    return bool(attribution.min() < 0 or attribution.max() <= 0)


def bars_of(scales: Sequence[Scale]) -> list[Bar]:
    """Return the bars of scales, each once."""
    return [scale.bar for scale in SCALES if scale in scales and scale.bar is not None]


def colours_of(bar: Bar) -> "Colormap":
    """Return the colours along a bar, as matplotlib wants them."""
    from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415

    return LinearSegmentedColormap.from_list("attribution", bar.colours / 255)


def shortened(text: str, length: int) -> str:
    """Return the text with its middle left out if it is too long: what tells names apart is often at their end."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"


def _feature_names(look: Look, count: int, word: str) -> Sequence[str]:
    if look.feature_names is None:
        return [f"{word} {position}" for position in range(count)]
    names = [str(name) for name in look.feature_names]
    if len(names) != count:
        raise OptionError(
            f"feature_names must be one per {word}; received {len(names)} for {count}. Pass {count} names, or None."
        )
    return names


def _in_units(numbers: NumpyArray) -> tuple[NDArray[np.float64], str]:
    """Return numbers that matplotlib can draw, and what they were divided by."""
    array = numbers.astype(np.float64)
    if not np.isfinite(array).all():
        raise ImageError(
            f"values must be finite; received {np.count_nonzero(~np.isfinite(array))} that are NaN or infinite. "
            "Find where the model first produces them."
        )
    peak = float(np.abs(array).max(initial=0))
    if peak == 0 or _DRAWABLE[0] < peak < _DRAWABLE[1]:
        return array, ""
    unit = 10.0 ** max(int(np.floor(np.log10(peak))), -307)
    return array / unit, f" / {unit:.0e}"


def _number(number: SupportsFloat) -> str:
    return f"{float(number):.3g}".replace("-", "\N{MINUS SIGN}")


def _show(axes: "Axes", pixels: NumpyArray) -> None:
    axes.imshow(pixels, cmap=colours_of(MAGNITUDE_BAR), vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    # A frame: a white map is seen on a white page.
    axes.spines[:].set(color="0.8", linewidth=0.5)
