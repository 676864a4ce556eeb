"""Draw one ReLU at work: its values forward, and what each method lets through on the way back.

Run: python examples/one_relu.py docs/images/one_relu.svg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from guided_backprop import DeconvNet, GuidedBackprop, Method, Saliency

X = (5.0, 0.0, -5.0, 10.0)
G = (1.0, -2.0, 3.0, -4.0)
METHODS: tuple[type[Method], ...] = (Saliency, DeconvNet, GuidedBackprop)

POSITIVE, NEGATIVE, ZERO, CLOSED, INK = "#cfe8d5", "#f6d0c9", "#ececec", "#b8bcc4", "#22262e"
# Where the rows of cells are: what stands at x, the two gates, what stands at y.
AT_X, UPPER_GATE, LOWER_GATE, AT_Y = 3.3, 2.4, 1.6, 0.2
MIDDLE = (AT_X + AT_Y + 0.8) / 2


def backward(method: type[Method]) -> list[float]:
    """Return what leaves towards x; with G as weights of the output, G is the gradient that arrives."""
    explained = method(torch.relu).explain(torch.tensor([X]), torch.tensor([G]))
    values: list[float] = explained.attribution[0].tolist()
    return values


def draw(target: Path) -> None:
    """Write the figure to ``target``."""
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")
    forward, *panels = figure.subplots(2, 2).flat
    for axes in (forward, *panels):
        axes.set(xlim=(-1.05, 4.05), ylim=(0.15, 4.15), aspect="equal")
        axes.set_axis_off()
    forward.set_title("the forward pass", color=INK, x=0.6)
    cells(forward, AT_X, X, "x")
    cells(forward, AT_Y, torch.relu(torch.tensor(X)).tolist(), "y")
    arrow(forward, AT_X - 0.05, MIDDLE + 0.3)
    forward.text(2, MIDDLE, "ReLU", ha="center", va="center", color=INK)
    arrow(forward, MIDDLE - 0.3, AT_Y + 0.85)
    for axes, method in zip(panels, METHODS, strict=True):
        axes.set_title(method.__name__, color=INK, x=0.6)
        cells(axes, AT_X, backward(method), "")
        cells(axes, AT_Y, G, "g")
        gates = []
        # Of one unit: what leaves where g is negative and x is not, and where x is negative and g is not.
        one = np.ones(())
        if not method.rule.leaving(-one, -one, one, one, np):
            gates.append(gate(axes, LOWER_GATE, [g > 0 for g in G], "g > 0"))
        if not method.rule.leaving(one, 0 * one, -one, 0 * one, np):
            gates.append(gate(axes, UPPER_GATE, [x > 0 for x in X], "x > 0"))
        for column, bars in enumerate(zip(*gates, strict=True)):
            closed = [bar for bar in bars if bar is not None]
            if closed:
                axes.plot([column + 0.5] * 2, [AT_Y + 0.85, closed[0]], color=INK, linewidth=1.0)
            else:
                arrow(axes, AT_Y + 0.85, AT_X - 0.05, column + 0.5)
    # Letters as paths, and neither a date nor random names: the same file anywhere.
    with mpl.rc_context({"svg.hashsalt": "one ReLU"}):
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def cells(axes: Axes, bottom: float, values: Sequence[float], name: str) -> None:
    """Draw a row of numbers, coloured by their signs."""
    for left, value in enumerate(values):
        colour = POSITIVE if value > 0 else NEGATIVE if value < 0 else ZERO
        axes.add_patch(Rectangle((left + 0.04, bottom), 0.92, 0.8, facecolor=colour))
        text = f"{value:g}".replace("-", "\N{MINUS SIGN}")
        axes.text(left + 0.5, bottom + 0.4, text, ha="center", va="center", color=INK, fontsize=12)
    axes.text(-0.12, bottom + 0.4, name, ha="right", va="center", color=INK, fontsize=12, style="italic")


def gate(axes: Axes, bottom: float, is_open: Sequence[bool], name: str) -> list[float | None]:
    """Draw a bar wherever a gate is closed; return where it begins for each column, None where the gate is open."""
    for column, lets_pass in enumerate(is_open):
        if not lets_pass:
            axes.add_patch(Rectangle((column + 0.04, bottom), 0.92, 0.22, facecolor=CLOSED))
    axes.text(-0.12, bottom + 0.11, name, ha="right", va="center", color=INK, fontsize=11, style="italic")
    return [None if lets_pass else bottom for lets_pass in is_open]


def arrow(axes: Axes, start: float, end: float, x: float = 2.0) -> None:
    """Draw a vertical arrow."""
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(x, end), xytext=(x, start), arrowprops=style)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
