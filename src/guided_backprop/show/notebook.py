"""What a notebook shows of explanations: a few rows of HTML without scripts, which needs NumPy and Pillow alone."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.labels.names import label_text
from guided_backprop.record import Record
from guided_backprop.show.colours import LOWERS, RAISES, Picture
from guided_backprop.show.embed import data_uri
from guided_backprop.show.layouts import strongest_slices
from guided_backprop.show.panels import PANELS, Panel, signed_panel
from guided_backprop.show.place import Place
from guided_backprop.show.render import diverging

_MOST_ROWS, _MOST_FEATURES, _MOST_CHANNELS, _MOST_STEPS = 6, 8, 12, 600
_SIDE = 160
_CELL = 'style="padding:4px 8px;text-align:left;vertical-align:middle"'
_LINES = ("#1f77b4", "#e8710a", "#2ca02c", "#9467bd", "#c2185b", "#8c6d31")


def html(explanations: Record, places: Sequence[Place | None] = (), notes: Sequence[str] = ()) -> str:
    """Return a table of the first images; whatever goes wrong, at least what ``repr`` says, and never an error.

    Args:
        explanations: what was found.
        places: the photo that each image was cut from, or None; empty for the images as they are.
        notes: lines below the table.
    """
    try:
        return _page(explanations, places, notes)
    except Exception:
        # Whatever was wrong with the values, an output cell with a traceback of ours would not help.
        return f"<pre>{escape(repr(explanations))}</pre>"


def _page(explanations: Record, places: Sequence[Place | None], notes: Sequence[str]) -> str:
    count = len(explanations)
    about = (
        f"<b>{escape(explanations.method)}</b> of {escape(explanations.model)}: "
        f"{count} {'image' if count == 1 else 'images'}, {escape(str(explanations.coverage))}"
    )
    parts = [f"<div>{about}</div>"]
    if isinstance(explanations.images, (tuple, Mapping)):
        for name, record in explanations.by_input().items():
            parts.append(f"<div><b>input {escape(repr(name))}</b></div>")
            parts.append("not explained" if record is None else _table(record, ()))
    else:
        parts.append(_table(explanations, places))
    parts += [f"<div>{escape(note)}</div>" for note in notes]
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'


def _table(explanations: Record, places: Sequence[Place | None]) -> str:
    rows = explanations[:_MOST_ROWS].one_label_a_row()[:_MOST_ROWS]
    count = explanations.scores.size
    images, maps = rows.channels_last() or (as_numpy(rows.images), as_numpy(rows.attribution))
    cells = {2: _features, 3: _series, 4: _pictures, 5: _slices}.get(images.ndim, _shapes)
    lines = []
    for row, (image, attribution) in enumerate(zip(images, maps, strict=True)):
        place = places[row] if places else None
        drawn = cells(image, attribution) if place is None else _on_photo(place, attribution)
        shown = "".join(f"<td {_CELL}>{cell}</td>" for cell in drawn)
        label, score = rows.labels[row], rows.scores[row]
        lines.append(f"<tr><td {_CELL}>{escape(label_text(label))}<br>score {score:.4g}</td>{shown}</tr>")
    captions = [panel.caption for panel in _panels(maps)] if cells in (_pictures, _slices) else ["attribution"]
    head = "".join(f"<th {_CELL}>{caption}</th>" for caption in ("explained", *captions))
    rest = f"<div>{len(rows)} of {count} are shown.</div>" if count > len(rows) else ""
    if images.ndim > 2:
        rest += "<div>Full colour: percentile 99 of a map's magnitudes.</div>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{rest}"


def _panels(attribution: NumpyArray) -> tuple[Panel, ...]:
    return PANELS["image"], signed_panel(attribution.shape[-1]), PANELS["overlay"]


def _pictures(image: NumpyArray, attribution: NumpyArray) -> list[str]:
    return [_image(panel.picture(image, attribution), panel.caption) for panel in _panels(attribution)]


def _on_photo(place: Place, attribution: NumpyArray) -> list[str]:
    return [_image(place.picture(panel, attribution), panel.caption) for panel in _panels(attribution)]


def _slices(volume: NumpyArray, attribution: NumpyArray) -> list[str]:
    (strongest,) = strongest_slices(attribution, 1)
    image, *maps = _pictures(volume[strongest], attribution[strongest])
    return [f"{image}<br>slice {strongest} of {len(volume)}", *maps]


def _image(pixels: Picture, caption: str) -> str:
    height, width = pixels.shape[:2]
    side = _SIDE / max(height, width)
    kind = "auto" if side < 1 else "pixelated"
    size = f'width="{max(round(width * side), 1)}" height="{max(round(height * side), 1)}"'
    return f'<img src="{data_uri(pixels, 2 * _SIDE)}" alt="{caption}" {size} style="image-rendering:{kind}">'


def _series(series: NumpyArray, attribution: NumpyArray) -> list[str]:
    """Draw the lines of a few channels, and below them a strip of the map: a line per channel, a column per step."""
    channels = _columns(series.astype(np.float64).T[:_MOST_CHANNELS])
    channels = channels / (np.abs(channels).max() or 1)
    low, high = min(channels.min(), 0), max(channels.max(), 0)
    steps = np.arange(channels.shape[1]) + 0.5
    lines = []
    for row, channel in enumerate(channels):
        heights = 58 - 56 * (channel - low) / ((high - low) or 1)
        points = " ".join(f"{step:g},{height:.1f}" for step, height in zip(steps, heights, strict=True))
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{_LINES[row % len(_LINES)]}" '
            'vector-effect="non-scaling-stroke"/>'
        )
    strip = data_uri(diverging(_columns(attribution.T[:_MOST_CHANNELS])), _MOST_STEPS)
    width, height = channels.shape[1], 60 + 8 * min(attribution.shape[-1], _MOST_CHANNELS)
    return [
        f'<svg viewBox="0 0 {width} {height}" width="480" height="{height}" preserveAspectRatio="none" role="img" '
        f'aria-label="series, and its attribution below it">{"".join(lines)}<image href="{strip}" y="60" '
        f'width="{width}" height="{height - 60}" preserveAspectRatio="none" style="image-rendering:pixelated"/></svg>'
    ]


def _columns(channels: NumpyArray) -> NumpyArray:
    """Return channels ``(C, L)`` with a bounded L: of neighbouring steps the one of the largest magnitude."""
    if channels.shape[1] <= _MOST_STEPS:
        return channels
    parts = np.array_split(channels, _MOST_STEPS, axis=1)
    strongest = [np.take_along_axis(part, np.abs(part).argmax(axis=1, keepdims=True), axis=1) for part in parts]
    return np.concatenate(strongest, axis=1)


def _features(row: NumpyArray, attribution: NumpyArray) -> list[str]:
    """Write the strongest features as a table with bars."""
    moves = attribution.astype(np.float64)
    strongest = np.argsort(-np.abs(moves), kind="stable")[:_MOST_FEATURES]
    peak = np.abs(moves).max(initial=0) or 1
    lines = []
    for feature in strongest:
        colour = ",".join(map(str, RAISES if moves[feature] > 0 else LOWERS))
        bar = f"width:{120 * abs(moves[feature] / peak):.0f}px;height:10px;background:rgb({colour})"
        lines.append(
            f"<tr><td {_CELL}>feature {feature} = {row[feature]:.3g}</td><td {_CELL}>{moves[feature]:+.3g}</td>"
            f'<td {_CELL}><div style="{bar}"></div></td></tr>'
        )
    rest = f"<div>the strongest of {len(moves)}</div>" if len(moves) > len(strongest) else ""
    return [f"<table>{''.join(lines)}</table>{rest}"]


def _shapes(_image: NumpyArray, attribution: NumpyArray) -> list[str]:
    return [f"{attribution.dtype} of shape {attribution.shape}"]
