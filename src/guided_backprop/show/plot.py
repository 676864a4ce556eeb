"""Figures of explanations: pictures, series, tables and volumes, one row per image, several methods side by side."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy, channels_last
from guided_backprop.errors import ImageError, MissingExtraError, OptionError
from guided_backprop.labels.names import ClassNames, label_text
from guided_backprop.record import Record
from guided_backprop.show.render import DIVERGING, RAMP, colour_picture, diverging, heatmap, overlay, picture, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Literal["image", "colour", "diverging", "heatmap", "overlay"]
Array = NDArray[Any]
Drawn = tuple["Figure", set[Panel]]

# A figure of more rows is taller than a screen and slower than saving the pictures.
_MOST_ROWS = 16
_MOST_FEATURES, _MOST_SLICES, _MOST_NAMES = 20, 5, 12
_WIDTH = 10.0
# What matplotlib can still draw: its margins overflow above, and its ticks vanish below.
_DRAWABLE = (1e-100, 1e100)
_TITLES = {
    "colour": "{}, grey is 0",
    "diverging": "{}, white is 0",
    "heatmap": "{}, magnitude",
    "overlay": "{}, magnitude",
}


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: the scale of its maps, what it shows, and what things are called."""

    percentile: float = 99.0
    panels: Sequence[Panel] | None = None
    class_names: ClassNames = ()
    feature_names: Sequence[str] | None = None
    titles: Sequence[str] = ()


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
    _check(shown, look)
    arrays = [
        channels_last(each.images, each.attribution, each.channel_axis, is_reduced=each.reducer is not None)
        for each in shown
    ]
    images = as_numpy(shown[0].images)
    drawers = {3: _draw_series, 4: _draw_pictures, 5: _draw_volumes}
    if arrays[0] is not None and images.ndim in drawers:
        drawer, images = drawers[images.ndim], arrays[0][0]
        maps = [array[1] for array in arrays if array is not None]
    elif images.ndim == 2:
        drawer, maps = _draw_tables, [as_numpy(each.attribution) for each in shown]
    else:
        raise ImageError(
            "plot() draws pictures, series (N, C, L), tables (N, F) and volumes (N, C, D, H, W); "
            f"received images of shape {images.shape}. Plot each input that has one of these shapes."
        )
    titles = _titles(shown[0], look, 28 if drawer is _draw_pictures else 90)
    figure, scales = drawer(kind, images, dict(zip(_names(shown), maps, strict=True)), replace(look, titles=titles))
    for axes, title in zip(figure.axes[:: len(figure.axes) // len(titles)], titles, strict=True):
        # Where there is no image, the first panel's own title stands below.
        own = axes.get_title()
        axes.set_title("")
        axes.set_title(f"{title}\n{own}".strip(), loc="left", fontsize="medium", parse_math=False)
    _add_bars(figure, scales)
    figure.supxlabel(_footnote(figure, shown, look, scales), fontsize="small", parse_math=False)
    return figure


def _titles(explanations: Record, look: Look, width: int) -> list[str]:
    """Return for each image what was explained, and its score, wrapped at a number of letters."""
    pairs = zip(explanations.labels, explanations.scores, strict=True)
    texts = [f"{_shortened(label_text(label, look.class_names), 90)}, score {score:.4g}" for label, score in pairs]
    return [textwrap.fill(text, width) for text in texts]


def _shortened(text: str, length: int) -> str:
    """Return the text with its middle left out if it is too long: what tells names apart is often at their end."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"


def _check(shown: Sequence[Record], look: Look) -> None:
    first = shown[0]
    if not 1 <= len(first) <= _MOST_ROWS:
        raise OptionError(
            f"plot() draws 1 to {_MOST_ROWS} images; received {len(first)} images. "
            f"Plot a slice, such as explanations[:{_MOST_ROWS}]."
        )
    # Raises where the percentile is none, also for what is drawn without one.
    scale(np.zeros((1, 1)), look.percentile)
    for other in shown[1:]:
        pairs = [(first.labels, other.labels), (as_numpy(first.images), as_numpy(other.images))]
        if not all(np.array_equal(*pair) for pair in pairs):
            raise OptionError(
                "methods must be explanations of the same images and labels; received others by "
                f"{other.method}. Make them with compare(images, labels, methods)."
            )
    for panel in look.panels or ():
        if panel not in get_args(Panel):
            raise OptionError(
                f"panels must be among {', '.join(get_args(Panel))}; received {panel!r}. Pass some of these names."
            )
    if isinstance(look.class_names, str) or isinstance(look.feature_names, str):
        raise OptionError("names must be a list of strings; received one string. Pass ['cat', 'dog'].")


def _names(shown: Sequence[Record]) -> list[str]:
    """Return the methods' names, made unique by the model's or else by a number."""
    names = [each.method for each in shown]
    if len(set(names)) < len(names):
        names = [f"{each.method} of {each.model}" for each in shown]
    return [f"{name} ({row})" if names.count(name) > 1 else name for row, name in enumerate(names, 1)]


def _is_signed(attribution: Array) -> bool:
    """Tell whether a map has values below 0: if none has, it is a magnitude, and its scale begins at 0."""
    return bool(attribution.min() < 0 or attribution.max() <= 0)


def _panels(attribution: Array, look: Look, *, is_alone: bool) -> list[Panel]:
    if look.panels is not None:
        return [panel for panel in look.panels if panel != "image"]
    if not _is_signed(attribution):
        return ["heatmap", "overlay"] if is_alone else ["heatmap"]
    signed: Panel = "colour" if attribution.shape[-1] == 3 else "diverging"
    return [signed, "heatmap", "overlay"] if is_alone else [signed]


def _panel(panel: Panel, image: Array, attribution: Array, percentile: float) -> Array:
    if panel == "overlay":
        return overlay(image, attribution, percentile)
    if panel == "heatmap":
        return heatmap(attribution, percentile)
    return (colour_picture if panel == "colour" else diverging)(attribution, percentile)


def _scale_text(panel: Panel, attribution: Array, percentile: float) -> str:
    of: Literal["colour", "diverging", "heatmap"] = panel if panel in ("colour", "diverging") else "heatmap"
    return f"p = {scale(attribution, percentile, of=of):.3g}" if attribution.any() else "all 0"


def _draw_pictures(kind: "type[Figure]", images: Array, maps: dict[str, Array], look: Look) -> "Drawn":
    columns = [(name, panel) for name in maps for panel in _panels(maps[name], look, is_alone=len(maps) == 1)]
    has_image = look.panels is None or "image" in look.panels or not columns
    count, scales = len(columns) + has_image, {panel for _, panel in columns}
    width = max(_WIDTH, 2.2 * count) if count > 2 else 4.0 * count
    # In inches: a bar takes 0.6 of the width, a line of a title 0.18 of the height.
    side = (width - 0.6 * len(_bars(scales))) / count - 0.1
    ratio = float(np.clip(images.shape[1] / images.shape[2], 0.2, 3))
    lines = sum(max(title.count("\n") + 1, 2 if row == 0 else 1) for row, title in enumerate(look.titles))
    height = len(images) * (side * ratio + 0.15) + 0.18 * lines + 0.5
    # Narrow pictures keep the room that their titles need.
    figure = kind(figsize=(width, height), layout="compressed" if ratio < 1.5 else "constrained")
    grid = figure.subplots(len(images), count, squeeze=False)
    for row, axes_of_row in enumerate(grid):
        panels = [("", picture(images[row]))] if has_image else []
        for name, panel in columns:
            title = _TITLES[panel].format(name if len(maps) > 1 else panel) if row == 0 else ""
            text = _scale_text(panel, maps[name][row], look.percentile)
            pixels = _panel(panel, images[row], maps[name][row], look.percentile)
            panels.append((f"{textwrap.fill(title, 30)}\n{text}".strip(), pixels))
        for axes, (title, pixels) in zip(axes_of_row, panels, strict=True):
            _show(axes, pixels)
            axes.set_title(title, fontsize="small", parse_math=False)
    return figure, scales


def _draw_volumes(kind: "type[Figure]", images: Array, maps: dict[str, Array], look: Look) -> "Drawn":
    """Draw the slices with the strongest attribution, in their order: of the image, and below it of each map."""
    depth = images.shape[1]
    count, panels = min(depth, _MOST_SLICES), {name: _panels(maps[name], look, is_alone=False) for name in maps}
    lines = [("", "image"), *[(name, panel) for name in maps for panel in panels[name]]]
    ratio = float(np.clip(images.shape[2] / images.shape[3], 0.2, 3))
    height = len(images) * (len(lines) * ((_WIDTH - 1) / count * ratio + 0.1) + 0.6) + 0.5
    figure = kind(figsize=(_WIDTH, height), layout="compressed")
    grid = figure.subplots(len(images) * len(lines), count, squeeze=False)
    first = next(iter(maps.values()))
    for row, image in enumerate(images):
        magnitude = _magnitude(first[row]).sum(axis=(1, 2))
        chosen = np.sort(np.argsort(-magnitude, kind="stable")[:count])
        for line, (name, panel) in enumerate(lines):
            values = image if panel == "image" else maps[name][row]
            # As one tall picture: all slices have one scale.
            tall, tall_image = (each.reshape(-1, *each.shape[2:]) for each in (values, image))
            pixels = picture(tall) if panel == "image" else _panel(panel, tall_image, tall, look.percentile)
            slices = pixels.reshape(depth, -1, *pixels.shape[1:])
            axes_of_line = grid[row * len(lines) + line]
            for axes, position in zip(axes_of_line, chosen, strict=True):
                _show(axes, slices[position])
                if line == len(lines) - 1:
                    axes.set_xlabel(f"slice {position} of {depth}", fontsize="small", parse_math=False)
            text = "" if panel == "image" else f"\n{_scale_text(panel, tall, look.percentile)}"
            axes_of_line[0].set_ylabel(f"{name or 'image'}{text}", fontsize="small", parse_math=False)
    return figure, {panel for _, panel in lines if panel != "image"}


def _draw_series(kind: "type[Figure]", series: Array, maps: dict[str, Array], look: Look) -> "Drawn":
    """Draw each series, and below it on the same axis a strip per method: a line per channel, a column per step."""
    scales: set[Panel] = set()
    channels = series.shape[-1]
    strip = float(np.clip(0.22 * channels, 0.35, 2.5))
    figure = kind(figsize=(_WIDTH, len(series) * (1.7 + (strip + 0.25) * len(maps)) + 0.8), layout="constrained")
    ratios = [1.5, *[strip] * len(maps)] * len(series)
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    names = _feature_names(look, channels, "channel")
    for row, values in enumerate(series):
        top, *strips = panels[row * (1 + len(maps)) :][: 1 + len(maps)]
        drawn, unit = _in_units(values)
        colours = [line.get_color() for line in top.plot(drawn, linewidth=1)]
        top.set_ylabel(f"series{unit}", fontsize="small", parse_math=False)
        for axes, (name, attribution) in zip(strips, maps.items(), strict=True):
            found = attribution[row].T
            panel: Panel = "diverging" if _is_signed(attribution) else "heatmap"
            scales.add(panel)
            full = scale(found, look.percentile)
            shares = np.clip(found.astype(np.float64), -full, full) / (full or 1)
            axes.imshow(
                shares,
                cmap=_colours(panel),
                vmin=-1 if panel == "diverging" else 0,
                vmax=1,
                aspect="auto",
                interpolation="nearest",
            )
            _name_channels(axes, names, colours, len(found))
            text = _scale_text("heatmap", found, look.percentile)
            axes.set_title(f"{name}, {text}", loc="left", fontsize="small", parse_math=False)
    panels[-1].set_xlabel("position", fontsize="small", parse_math=False)
    return figure, scales


def _name_channels(axes: "Axes", names: Sequence[str], colours: Sequence[Any], count: int) -> None:
    if count != len(names) or count > _MOST_NAMES:
        axes.set_yticks([])
        return
    axes.set_yticks(range(count), [_shortened(name, 24) for name in names], fontsize="small", parse_math=False)
    for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
        text.set_color(colour)


def _draw_tables(kind: "type[Figure]", rows: Array, maps: dict[str, Array], look: Look) -> "Drawn":
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
        order = np.argsort(-np.abs(first[row].astype(np.float64)), kind="stable")[:count]
        labels = [f"{_shortened(names[each], 28)} = {_number(rows[row, each])}" for each in order]
        for axes, (name, attribution) in zip(axes_of_row, maps.items(), strict=True):
            drawn, unit = _in_units(attribution[row][order])
            colours = [tuple(DIVERGING[6 if value > 0 else 2] / 255) for value in drawn]
            axes.barh(range(count), drawn, color=colours)
            axes.axvline(0, color="0.5", linewidth=0.8)
            axes.set_yticks(range(count), labels, fontsize="small", parse_math=False)
            axes.margins(y=0.01)
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlabel(f"{name if len(maps) > 1 else 'attribution'}{unit}", fontsize="small", parse_math=False)
        axes_of_row[0].invert_yaxis()
        if features > count:
            axes_of_row[0].set_ylabel(f"{count} strongest of {features}", fontsize="small", parse_math=False)
    return figure, set()


def _feature_names(look: Look, count: int, word: str) -> Sequence[str]:
    if look.feature_names is None:
        return [f"{word} {each}" for each in range(count)]
    names = [str(name) for name in look.feature_names]
    if len(names) != count:
        raise OptionError(
            f"feature_names must be one per {word}; received {len(names)} for {count}. Pass {count} names, or None."
        )
    return names


def _in_units(values: Array) -> tuple[Array, str]:
    """Return values that matplotlib can draw, and what they were divided by."""
    array = values.astype(np.float64)
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


def _number(value: Any) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _magnitude(values: Array) -> NDArray[np.float64]:
    """Return the largest magnitude over the channels, as a share of the largest of all."""
    magnitude: NDArray[np.float64] = np.abs(values.astype(np.float64)).max(axis=-1)
    return magnitude / (magnitude.max() or 1)


def _show(axes: "Axes", pixels: Array) -> None:
    axes.imshow(pixels, cmap=_colours("heatmap"), vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    # A frame: a white map is seen on a white page.
    axes.spines[:].set(color="0.8", linewidth=0.5)


def _colours(panel: Panel) -> Any:
    from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415

    return LinearSegmentedColormap.from_list("attribution", (DIVERGING if panel == "diverging" else RAMP) / 255)


def _add_bars(figure: "Figure", scales: set[Panel]) -> None:
    """Add a bar for each colour scale that is used, beside all panels."""
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import Normalize  # noqa: PLC0415

    panels = figure.axes[:]
    for panel, name, ticks, texts in _bars(scales):
        mappable = ScalarMappable(Normalize(ticks[0], 1), _colours(panel))
        shrink = min(1.0, 2.2 / figure.get_figheight())
        bar = figure.colorbar(mappable, ax=panels, shrink=shrink, aspect=18, fraction=0.03, pad=0.01)
        bar.set_ticks(ticks, labels=texts, fontsize="small", parse_math=False)
        bar.set_label(name, fontsize="small", parse_math=False)


def _bars(scales: set[Panel]) -> list[tuple[Panel, str, list[float], list[str]]]:
    """Return the scales' bars: colours, name, ticks and what stands at these."""
    bars: list[tuple[Panel, str, list[float], list[str]]] = []
    if "diverging" in scales:
        bars.append(("diverging", "lowers / raises the score", [-1, 0, 1], ["\N{MINUS SIGN}p", "0", "p"]))
    if scales & {"heatmap", "overlay"}:
        bars.append(("heatmap", "magnitude", [0, 1], ["0", "p"]))
    return bars


def _footnote(figure: "Figure", shown: Sequence[Record], look: Look, scales: set[Panel]) -> str:
    """Say by what the maps were made, what their scale is, and what became of signs and channels."""
    ndim = as_numpy(shown[0].images).ndim
    names = " and ".join(dict.fromkeys(each.model for each in shown))
    lines = [f"{', '.join(dict.fromkeys(each.method for each in shown))} of {names}"]
    if scales:
        lines.append(f"p: percentile {look.percentile:g} of a map's magnitudes, its full strength")
    if ndim == 2:
        lines.append("red raises the score, blue lowers it")
    elif reducers := {str(each.reducer) for each in shown if each.reducer}:
        lines.append(f"channels reduced by {', '.join(sorted(reducers))}")
    elif ndim > 3:
        meanings = {"colour": "each channel, signed", "diverging": "mean of the channels, signed"}
        lines += [f"{panel}: {meaning}" for panel, meaning in meanings.items() if panel in scales]
        lines += ["magnitude: largest of the channels"] if scales & {"heatmap", "overlay"} else []
    return textwrap.fill("; ".join(lines), int(13 * figure.get_figwidth()))
