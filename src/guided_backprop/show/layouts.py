"""How pictures, series, tables and volumes are laid out in a figure: a function each, which draws all rows."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.labels.names import ClassNames
from guided_backprop.show.canvas import Canvas
from guided_backprop.show.colours import LOWERS, RAISES, Colours, Picture
from guided_backprop.show.panels import (
    MAGNITUDE,
    PANELS,
    SCALES,
    SIGNED,
    Bar,
    Panel,
    PanelName,
    Scale,
    signed_panel,
)
from guided_backprop.show.place import Place
from guided_backprop.show.render import picture, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.typing import ColorType

# The maps of each method by its name: pictures, series, tables or volumes, channels last.
Maps = Mapping[str, NumpyArray]
Layout = Callable[[Canvas, NumpyArray, Maps, "Look"], "Drawn"]

_MOST_FEATURES, _MOST_SLICES, _MOST_NAMES = 20, 5, 12
_WIDTH = 10.0
# What matplotlib can still draw: its margins overflow above, and its ticks vanish below.
_DRAWABLE = (1e-100, 1e100)


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: the scale of its maps, what it shows, and what things are called.

    Attributes:
        colours: of the magnitudes, or of the signed maps where there are none; None for the scales' own.
        places: of pictures: the photo that each was cut from, or None; empty for the images as they are.
        notes: what else is said below the figure, a line each.
    """

    percentile: float = 99.0
    smooth: float = 0.0
    colours: Colours | None = None
    panels: Sequence[PanelName] | None = None
    class_names: ClassNames = ()
    feature_names: Sequence[str] | None = None
    titles: Sequence[str] = ()
    places: Sequence[Place | None] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn: the panels ``(rows, columns)``, and for each method the scales of its maps."""

    grid: NDArray[np.object_]
    scales: Mapping[str, Sequence[Scale]]


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
        # A magnitude is not called so twice.
        parts = dict.fromkeys([self.panel.name if is_alone else self.method, self.panel.title])
        return textwrap.fill(", ".join(parts), 30)

    def scale_text(self, attribution: NumpyArray, look: Look) -> str:
        """Return the scale of one map; nothing for the image."""
        return "" if self.panel.scale is None else self.panel.scale.text(attribution, look.percentile, look.smooth)


def draw_pictures(canvas: Canvas, images: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw a row per image: the image, and beside it the panels of each method."""
    if canvas.is_one and look.panels is None:
        look = replace(look, panels=["overlay"])
    is_alone = len(maps) == 1
    columns = [strip for method in maps for strip in _strips(method, maps[method], look, is_alone=is_alone)]
    scales = _scales_of(columns)
    if look.panels is None or "image" in look.panels or not columns:
        columns.insert(0, _image_strip(maps))
    places = look.places or [None] * len(images)
    ratios = [_ratio(image if place is None else place.photo) for image, place in zip(images, places, strict=True)]
    # Above the first row stand the panels' own titles too, and below each of them its scale.
    lines = [title.count("\n") + 1 for title in look.titles]
    lines[0] = max(lines[0], *(strip.title(is_alone=is_alone).count("\n") + 2 for strip in columns))
    size = _size_of_pictures(ratios, len(columns), sum(lines), len(bars_of(scales)))
    # Narrow pictures keep the room that their titles need.
    kind: Literal["compressed", "constrained"] = "compressed" if max(ratios) < 1.5 else "constrained"
    grid = canvas.grid(len(images), len(columns), size, kind, height_ratios=ratios)
    for row, (axes_of_row, place) in enumerate(zip(grid, places, strict=True)):
        background = picture(images[row])
        for axes, strip in zip(axes_of_row, columns, strict=True):
            attribution = strip.maps[row]
            drawn = strip.panel.shares(attribution, look.percentile, look.smooth)
            _show(axes, place.painted(strip.panel, drawn) if place else strip.panel.painted(background, drawn))
            title = strip.title(is_alone=is_alone) if row == 0 else ""
            text = f"{title}\n{strip.scale_text(attribution, look)}".strip()
            axes.set_title(text, fontsize="small", parse_math=False)
    return Drawn(grid, scales)


def _ratio(pixels: NumpyArray) -> float:
    """Return height over width, as far as a figure has room for it."""
    return float(np.clip(pixels.shape[0] / pixels.shape[1], 0.2, 3))


def _size_of_pictures(ratios: Sequence[float], columns: int, lines: int, bars: int) -> tuple[float, float]:
    """Return width and height in inches: a bar takes 0.6 of the width, a line of a title 0.18 of the height."""
    width = max(_WIDTH, 2.4 * columns) if columns > 2 else 4.0 * columns
    side = (width - 0.6 * bars) / columns - 0.1
    return width, sum(side * ratio + 0.15 for ratio in ratios) + 0.18 * lines + 0.5


def draw_volumes(canvas: Canvas, images: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw the slices with the strongest attribution, in their order: of the image, and below it of each map."""
    depth = images.shape[1]
    count = min(depth, _MOST_SLICES)
    of_maps = [strip for method in maps for strip in _strips(method, maps[method], look, is_alone=False)]
    lines = [_image_strip(maps), *of_maps]
    ratio = _ratio(images[0, 0])
    height = len(images) * (len(lines) * ((_WIDTH - 1) / count * ratio + 0.1) + 0.6) + 0.5
    grid = canvas.grid(len(images) * len(lines), count, (_WIDTH, height), "compressed")
    first = next(iter(maps.values()))
    for row, image in enumerate(images):
        chosen = strongest_slices(first[row], count)
        grid_of_image = grid[row * len(lines) :][: len(lines)]
        # As one tall picture: all slices have one range.
        background = picture(image.reshape(-1, *image.shape[2:])).reshape(*image.shape[:3], 3)
        for axes_of_line, strip in zip(grid_of_image, lines, strict=True):
            _draw_slices(axes_of_line, strip, background, strip.maps[row], chosen=chosen, look=look)
        for axes, position in zip(grid_of_image[-1], chosen, strict=True):
            axes.set_xlabel(f"slice {position} of {depth}", fontsize="small", parse_math=False)
    return Drawn(grid, _scales_of(of_maps))


def _draw_slices(
    axes_of_line: Sequence["Axes"],
    strip: _Strip,
    background: NumpyArray,
    attribution: NumpyArray,
    *,
    chosen: NDArray[np.intp],
    look: Look,
) -> None:
    # Before slices are chosen: all have one scale.
    drawn = strip.panel.shares(attribution, look.percentile, look.smooth)
    for axes, position in zip(axes_of_line, chosen, strict=True):
        _show(axes, strip.panel.painted(background[position], drawn[position] if drawn.ndim else drawn))
    text = f"{strip.method}\n{strip.scale_text(attribution, look)}".strip()
    axes_of_line[0].set_ylabel(text, fontsize="small", parse_math=False)


def strongest_slices(attribution: NumpyArray, count: int) -> NDArray[np.intp]:
    """Return the positions of the slices of the largest sum of magnitudes, the largest of the channels each."""
    magnitude: NDArray[np.float64] = np.abs(attribution.astype(np.float64)).max(axis=-1)
    # As a share of the largest: a sum of large ones would be infinite.
    shares = (magnitude / (magnitude.max() or 1)).sum(axis=(1, 2))
    return np.sort(np.argsort(-shares, kind="stable")[:count])


def draw_series(canvas: Canvas, series: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw each series, and below it on the same axis a strip per method: a line per channel, a column per step."""
    channels = series.shape[-1]
    strip = float(np.clip(0.22 * channels, 0.35, 2.5))
    size = (_WIDTH, len(series) * (1.7 + (strip + 0.25) * len(maps)) + 0.8)
    ratios = [1.5, *[strip] * len(maps)] * len(series)
    panels = canvas.grid(len(ratios), 1, size, "constrained", sharex=True, height_ratios=ratios)
    names = _feature_names(look, channels, "channel")
    chosen = [PANELS["diverging" if _is_signed(attribution) else "magnitude"] for attribution in maps.values()]
    scales = _scales_of([_Strip(*named) for named in zip(maps, _in_colours(chosen, look), maps.values(), strict=True)])
    bars = {method: bar for method in maps for bar in bars_of({method: scales[method]})}
    for row, steps in enumerate(series):
        top, *strips = panels[row * (1 + len(maps)) :, 0][: 1 + len(maps)]
        drawn, unit = _in_units(steps)
        colours = [line.get_color() for line in top.plot(drawn, linewidth=1)]
        top.set_ylabel(f"series{unit}", fontsize="small", parse_math=False)
        for axes, (method, attribution) in zip(strips, maps.items(), strict=True):
            _draw_strip(axes, method, attribution[row].T, bars[method], look.percentile)
            _name_channels(axes, names, colours, attribution.shape[-1])
    panels[-1, 0].set_xlabel("position", fontsize="small", parse_math=False)
    return Drawn(panels, scales)


def _draw_strip(axes: "Axes", method: str, attribution: NumpyArray, bar: Bar, percentile: float) -> None:
    """Draw one ``(C, L)`` map of a series; each of its values is shown, whatever the scale's name."""
    full = scale(attribution, percentile)
    drawn = np.clip(attribution.astype(np.float64), -full, full) / (full or 1)
    low, high = min(bar.ticks), max(bar.ticks)
    axes.imshow(drawn, cmap=colours_of(bar), vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    title = f"{method}, {MAGNITUDE.text(attribution[..., np.newaxis], percentile)}"
    axes.set_title(title, loc="left", fontsize="small", parse_math=False)


def _name_channels(axes: "Axes", names: Sequence[str], colours: Sequence["ColorType"], count: int) -> None:
    if count != len(names) or count > _MOST_NAMES:
        axes.set_yticks([])
        return
    axes.set_yticks(range(count), [shortened(name, 24) for name in names], fontsize="small", parse_math=False)
    for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
        text.set_color(colour)


def draw_tables(canvas: Canvas, rows: NumpyArray, maps: Maps, look: Look) -> Drawn:
    """Draw the strongest features as bars, the strongest on top, red if they raise the score and blue if they lower it.

    All methods have the order of the first.
    """
    features = rows.shape[1]
    count = min(features, _MOST_FEATURES)
    names = _feature_names(look, features, "feature")
    size = (_WIDTH, len(rows) * (0.22 * count + 0.9) + 0.6)
    grid = canvas.grid(len(rows), len(maps), size, "constrained", sharey="row")
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
    return Drawn(grid, {})


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
        magnitudes = [PANELS["magnitude"], PANELS["overlay"]]
        panels = [*first, *magnitudes] if is_alone else [*first, *magnitudes][:1]
    return [_Strip(method, panel, maps) for panel in _in_colours(panels, look)]


def _in_colours(panels: Sequence[Panel], look: Look) -> list[Panel]:
    """Return panels with the colours that are asked for: of the magnitudes, or of the signed where there are none."""
    scales = [panel.scale for panel in panels]
    own = MAGNITUDE if MAGNITUDE in scales else SIGNED
    if look.colours is None or own.bar is None:
        return [*panels]
    other = replace(own, bar=replace(own.bar, colours=look.colours))
    return [replace(panel, scale=other) if panel.scale is own else panel for panel in panels]


def _image_strip(maps: Maps) -> _Strip:
    # Whatever the map is: of the image's own panel it draws nothing.
    return _Strip("image", PANELS["image"], next(iter(maps.values())))


def _scales_of(strips: Sequence[_Strip]) -> dict[str, list[Scale]]:
    """Return the scales of each method's panels, each once."""
    scales: dict[str, list[Scale]] = {}
    for strip in strips:
        if strip.panel.scale is not None and strip.panel.scale not in scales.setdefault(strip.method, []):
            scales[strip.method].append(strip.panel.scale)
    return scales


def _is_signed(attribution: NumpyArray) -> bool:
    """Tell whether a map has values below 0: if none has, it is a magnitude, and its scale begins at 0."""
    return bool(attribution.min() < 0 or attribution.max() <= 0)


def bars_of(scales: Mapping[str, Sequence[Scale]]) -> list[Bar]:
    """Return the bars of all methods' scales, each once, in their order."""
    by_kind = {scale.of: scale.bar for of_method in scales.values() for scale in of_method}
    bars = [by_kind.get(scale.of) for scale in SCALES]
    return [bar for bar in bars if bar is not None]


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


def _show(axes: "Axes", pixels: Picture) -> None:
    axes.imshow(pixels)
    axes.set_xticks([])
    axes.set_yticks([])
    # A frame: a white map is seen on a white page.
    axes.spines[:].set(color="0.8", linewidth=0.5)
