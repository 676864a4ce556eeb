"""The pictures, from what the CSV files hold; a picture without numbers is not drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from contest import ENGINE_FORWARD, FAST_FORWARD, FORWARD, GRADIENT, OURS, PRODUCTS
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rows import read
from summary import FRAMEWORKS, Key, Measured, not_right, peaks, times
from tables import TITLES, names_of

mpl.use("agg")

# Ours in blues, what is no contestant in greys, the others in warm colours.
COLORS = {
    FORWARD: "0.8",
    FAST_FORWARD: "0.72",
    ENGINE_FORWARD: "0.8",
    PRODUCTS: "0.64",
    GRADIENT: "0.56",
    OURS: "#1f4e8c",
    "ours optimized": "#4f8fd0",
    "ours compiled": "#2f9d8f",
    "ours lean": "#9cc4ea",
    "Captum": "#d9822b",
    "zennit": "#b5443a",
    "pytorch-grad-cam": "#e3b23c",
    "Xplique": "#d9822b",
    "tf-keras-vis": "#b5443a",
}


def shown_batch(batches: Sequence[int]) -> int:
    """Return the batch of the bars: 8, if it was measured."""
    return 8 if 8 in batches else max(batches)


def bars(
    axes: Axes,
    models: Sequence[str],
    names: Sequence[str],
    value: Callable[[str, str], tuple[float, ...] | None],
    wrong: set[tuple[str, str]],
) -> None:
    """Draw a group of bars for each model; ``value`` gives the lower end of the whisker, the bar, the upper end."""
    width = 0.85 / max(len(names), 1)
    for index, name in enumerate(names):
        low, middle, high = np.array([value(model, name) or (np.nan,) * 3 for model in models]).T
        places = np.arange(len(models)) + (index - (len(names) - 1) / 2) * width
        whiskers = np.stack([middle - low, high - middle])
        drawn = axes.bar(places, middle, width, yerr=whiskers, label=name, color=COLORS[name], error_kw={"lw": 0.8})
        for model, bar in zip(models, drawn, strict=True):
            if name != GRADIENT and (model, name) in wrong:
                bar.set(hatch="xxxx", edgecolor="white")
    axes.set_xticks(np.arange(len(models)), models)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def draw_speed(folder: Path) -> None:
    """Draw a column for each framework: time above, peak memory below."""
    present = [each for each in FRAMEWORKS if read(folder / f"speed-{each}.csv")]
    if not present:
        return
    figure, grid = plt.subplots(2, len(present), figsize=(9 * len(present), 8), squeeze=False, layout="constrained")
    for framework, (above, below) in zip(present, grid.T, strict=True):
        draw_times(above, folder, framework)
        draw_peaks(below, folder, framework)
    figure.savefig(folder / "speed.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_times(axes: Axes, folder: Path, framework: str) -> None:
    found = {key: each for key, each in times(folder / f"speed-{framework}.csv").items() if key.job == "images"}
    if not found:
        return
    batch = shown_batch([key.batch for key in found])
    chosen = {key.model: each for key, each in found.items() if key.batch == batch}
    names = [name for name in names_of(each.seconds for each in chosen.values()) if name != FORWARD]
    wrong = not_right(folder / f"checks-{framework}.csv")
    bars(axes, list(chosen), names, lambda model, name: chosen[model].ratio(name), wrong)
    axes.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_title(f"{TITLES[framework]}: time, batch {batch}; crossed: the map is wrong")
    axes.set_ylabel("forward passes of the model")


def draw_peaks(axes: Axes, folder: Path, framework: str) -> None:
    found = peaks(folder / f"memory-{framework}.csv")
    if not found:
        axes.set_axis_off()
        return
    batch = shown_batch([batch for _, batch in found])
    chosen = {model: part for (model, size), part in found.items() if size == batch}
    names = names_of(chosen.values())

    def value(model: str, name: str) -> tuple[float, ...] | None:
        return (chosen[model][name],) * 3 if name in chosen[model] else None

    bars(axes, list(chosen), names, value, set())
    axes.set_title(f"{TITLES[framework]}: peak memory above the loaded model, batch {batch}")
    axes.set_ylabel("MB")


def draw_growth(folder: Path) -> None:
    """Draw time against the batch, with the straight line that fits best, and time against depth."""
    found = times(folder / "growth.csv")
    parts = {job: {key: each for key, each in found.items() if key.job.endswith(job)} for job in ("batch", "depth")}
    if not all(parts.values()):
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    draw_line(left, parts["batch"], [key.batch for key in parts["batch"]])
    left.set(title="ResNet-18", xlabel="images in the batch", ylabel="seconds")
    draw_line(right, parts["depth"], [int(key.model.removeprefix("ResNet-")) for key in parts["depth"]])
    right.set(title="ResNets, 4 images", xlabel="layers", ylabel="seconds")
    figure.savefig(folder / "growth.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_line(axes: Axes, part: dict[Key, Measured], sizes: list[int]) -> None:
    for name in (FORWARD, GRADIENT, OURS, "ours optimized"):
        seconds = [each.median(name) for each in part.values()]
        axes.plot(sizes, seconds, "o", color=COLORS[name], label=name)
        slope, start = np.polyfit(sizes, seconds, 1)
        axes.plot(sizes, start + slope * np.array(sizes), color=COLORS[name], linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def draw_curve(folder: Path) -> None:
    """Draw a point for each set of options: time and peak memory."""
    weighed = peaks(folder / "curve-memory.csv")
    panels = {key: each for key, each in times(folder / "curve-speed.csv").items() if key[1:] in weighed}
    if not panels:
        return
    figure, grid = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5), squeeze=False)
    for axes, (key, measured) in zip(grid[0], panels.items(), strict=True):
        draw_points(axes, measured, weighed[key[1:]])
        axes.set(
            title=f"{key.model}, batch {key.batch}", xlabel="peak memory, MB", ylabel="forward passes of the model"
        )
    figure.savefig(folder / "curve.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_points(axes: Axes, measured: Measured, megabytes: dict[str, float]) -> None:
    """Draw one line for each way, through its sizes of a batch."""
    ways: dict[str, list[str]] = {}
    for name in megabytes:
        if name != FORWARD and name in measured.seconds:
            ways.setdefault(name.partition(",")[0], []).append(name)
    for way, names in ways.items():
        points = sorted((megabytes[name], measured.ratio(name).middle, name) for name in names)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=way)
        for x, y, name in points:
            axes.annotate(
                name.partition("batch_size=")[2], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, title="with batch_size", fontsize=8)


def draw_all(folder: Path) -> None:
    draw_speed(folder)
    draw_growth(folder)
    draw_curve(folder)
