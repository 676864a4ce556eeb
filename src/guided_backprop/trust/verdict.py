"""What the sanity checks found: rows, a table, a figure, and one plain sentence."""

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from guided_backprop.show.canvas import figure_kind
from guided_backprop.trust.intervals import Interval, said
from guided_backprop.trust.similarity import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODES = ("cascading", "independent", "labels", "convergence")
_TITLES = {
    "cascading": "Cascading: from the output down to this block",
    "independent": "Independent: this block alone",
    "labels": "Labels: the maps of other classes",
    "convergence": "Convergence: two random vectors, on their way back",
    "recovery": "Recovery: the maps, and the images themselves",
}
_HEADLINE = "spearman_abs"
_RANKS = ("spearman_abs", "spearman")
# What is said if the ranks of magnitudes, and of signed values, keep half of their correlation.
_UPPER = {
    (True, True): "say little of what the upper layers learned",
    (True, False): "show in their signs, and little in their strength, what the upper layers learned",
    (False, True): "show in their strength, and little in their signs, what the upper layers learned",
    (False, False): "change with what the upper layers learned",
}


def _number(value: float) -> str:
    """Return two digits; nothing is below zero that is not so in them."""
    return f"{round(value, 2) + 0.0:.2f}"


class Row(NamedTuple):
    """One number, over all images.

    Attributes:
        mode: "cascading" or "independent": the maps of the model against those of one with fresh layers; "random" or
            "edges": against random maps, and the edges in the image; "labels": against the maps of other classes;
            "convergence": two random vectors at a layer; "recovery": maps against the images themselves, brighter or
            darker than their mean: those of the model, and those of one whose layers are all fresh.
        block: which block, classes or layer; empty for "random" and "edges".
        metric: "spearman_abs" (ranks of magnitudes), "spearman" (ranks, signed), "ssim", "hog" or "cosine".
        mean: over the images, and over the draws of random maps.
        spread: the standard deviation over the same.
        interval: of the mean, by bootstrap over the images, 95 %.
    """

    mode: str
    block: str
    metric: str
    mean: float
    spread: float
    interval: Interval


@dataclass(frozen=True)
class SanityCheck:
    """How far the maps of a method depend on what a model learned.

    Attributes:
        method: the method's name.
        model: the model's name.
        images: how many images were explained.
        blocks: the names of the layers of each block, from the output to the input.
        names: what the blocks are called in the rows.
        rows: all numbers.
        draws: how many random maps the metrics were calibrated with.
        constant: how many maps of re-initialised models said nothing, all values being equal; each counts as a
            similarity of 0.
        notes: what was not measured, and why.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop, sanity_check
        >>> layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)]
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> check = sanity_check(GuidedBackprop(model), torch.rand(2, 3, 8, 8), modes=["cascading"])
        >>> check.sentence[:36], check.row("random").mode, type(check.beats_edges)
        ('Randomising the top 1 of 2 blocks le', 'random', <class 'bool'>)
        >>> print(check.table().splitlines()[0])
        GuidedBackprop of Sequential: 2 images, 50 random maps; mean [95 % by bootstrap over images]
        >>> figure = check.plot()  # needs matplotlib
    """

    method: str
    model: str
    images: int
    blocks: tuple[tuple[str, ...], ...] = field(repr=False)
    names: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)
    draws: int
    constant: int = 0
    notes: tuple[str, ...] = ()

    def row(self, mode: str, block: str = "", metric: str = _HEADLINE) -> Row | None:
        """Return one row, or None if it was not measured."""
        wanted = (mode, block, metric)
        return next((row for row in self.rows if (row.mode, row.block, row.metric) == wanted), None)

    @property
    def beats_edges(self) -> bool | None:
        """Whether the maps of a network that learned nothing are less like the maps than the edges in the images are.

        An edge detector looks at no model, so it is the baseline: maps that stay closer to themselves than to edges
        when all blocks are re-initialised show the image and the architecture more than what was learned. By the rank
        correlation of magnitudes; None if it was not measured.
        """
        last, edges = self.row("cascading", self.names[-1]), self.row("edges")
        return None if last is None or edges is None else last.mean < edges.mean

    @property
    def sentence(self) -> str:
        """What was found, in one sentence; numbers first, then what they say.

        "The top" is a quarter of the blocks. Maps "say little of what the upper layers learned" if they keep a rank
        correlation of 0.5 with fresh ones there, of magnitudes and of signed values; they "hardly tell classes apart"
        from a cosine of 0.9 on, and do so "poorly" from 0.5 on; that they are closer to those of an untrained network
        than to edges is said from a difference of 0.05 on, and of 0.1 to random maps.
        """
        numbers, words = [], []
        for part in (self._of_randomised, self._of_labels, self._of_convergence):
            said = part()
            numbers += said[:1]
            words += said[1:]
        about = f" ({self.images} image{'' if self.images == 1 else 's'} of {self.model}"
        about += f"; {self.constant} constant maps count as 0)" if self.constant else ")"
        verdict = f": these maps {', '.join(words[:-1])}{' and ' if words[1:] else ''}{words[-1]}" if words else ""
        text = "; ".join(numbers)
        return f"{text[:1].upper()}{text[1:]}{about}{verdict}."

    def _of_randomised(self) -> list[str]:
        """Return what randomised layers leave, and what that means."""
        random, edges = self.row("random"), self.row("edges")
        assert random is not None
        beside = f"random maps are at {_number(random.mean)}"
        beside += f" and the edges in the images at {_number(edges.mean)}" if edges else ""
        mode = "cascading" if self.row("cascading", self.names[-1]) else "independent"
        means = [[row.mean for name in self.names if (row := self.row(mode, name, metric))] for metric in _RANKS]
        if not means[0]:
            return []
        strength, signed = map(np.array, means)
        if mode == "independent":
            many = f"between {_number(strength.min())} and {_number(strength.max())}"
            return [f"randomising one block leaves {self.method} maps at rank correlation {many}, where {beside}"]
        top = ceil(len(strength) / 4)
        numbers = (
            f"randomising the top {top} of {len(strength)} blocks leaves {self.method} maps at rank correlation "
            f"{_number(strength[top - 1])} ({_number(signed[top - 1])} with signs), and all of them at "
            f"{_number(strength[-1])} ({_number(signed[-1])}), where {beside}"
        )
        if min(strength.min(), signed.min()) > 0.99:
            return [numbers, "do not depend on the model"]
        words = [_UPPER[bool(strength[top - 1] >= 0.5), bool(signed[top - 1] >= 0.5)]]
        if edges and strength[-1] >= max(edges.mean + 0.05, random.mean + 0.1):
            words.append("are closer to those of an untrained network than to the image's edges")
        return [numbers, *words]

    def _of_labels(self) -> list[str]:
        row = self.row("labels", "runners-up", "cosine")
        if row is None:
            return []
        numbers = f"the maps of the next classes have cosine similarity {_number(row.mean)} with them"
        apart = {0.9: "hardly tell classes apart", 0.5: "tell classes apart poorly"}
        words = next((text for least, text in apart.items() if row.mean >= least), "tell classes apart")
        return [numbers, words]

    def _of_convergence(self) -> list[str]:
        row = self.row("convergence", "images", "cosine")
        return (
            []
            if row is None
            else [f"two random vectors at the output arrive at the images with cosine {_number(row.mean)}"]
        )

    def table(self) -> str:
        """Return all numbers as text, each with its interval over the images."""
        lines = [
            f"{self.method} of {self.model}: {self.images} image{'' if self.images == 1 else 's'}, "
            f"{self.draws} random maps; mean [95 % by bootstrap over images]"
        ]
        for mode, title in _TITLES.items():
            rows = [row for row in self.rows if row.mode == mode]
            if rows:
                metrics = list(dict.fromkeys(row.metric for row in rows))
                blocks = [(mode, block) for block in dict.fromkeys(row.block for row in rows)]
                if mode in MODES[:2]:
                    blocks += [("edges", ""), ("random", "")]
                lines += ["", *self._section(title, blocks, metrics)]
        lines += ["", *self.notes] if self.notes else []
        if self.constant:
            lines += ["", f"{self.constant} maps of randomised models were constant: similarity 0"]
        return "\n".join(lines)

    def _section(self, title: str, blocks: list[tuple[str, str]], metrics: list[str]) -> list[str]:
        labels = {"edges": "edges in the image", "random": "random maps"}
        grid = []
        for mode, block in blocks:
            cells = [self.row(mode, block, metric) for metric in metrics]
            if any(cells):
                grid.append(
                    [
                        block or labels[mode],
                        *(said(row.mean, row.interval) if row else "-" for row in cells),
                    ]
                )
        head = ["", *(METRICS.get(metric, metric) for metric in metrics)]
        widths = [max(len(line[column]) for line in [head, *grid]) for column in range(len(head))]
        lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in [head, *grid]]
        return [title, *(line.rstrip() for line in lines)]

    def plot(self) -> "Figure":
        """Draw the curves: for each metric the similarity after each block, with the edges' and the random maps' level.

        Returns:
            A figure that belongs to nobody; pyplot does not know of it, so nothing has to be closed.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        kind = figure_kind()
        modes = [mode for mode in MODES if any(row.mode == mode for row in self.rows)]
        curves = [mode for mode in modes if mode in MODES[:2]]
        others = [mode for mode in modes if mode not in curves]
        metrics = [metric for metric in METRICS if self.row("random", "", metric)]
        rows = len(curves) + bool(others)
        figure = kind(figsize=(13, 3.6 * rows + 0.7), layout="constrained")
        parts = figure.subfigures(max(rows, 1), 1, squeeze=False)[:, 0]
        for part, mode in zip(parts, curves, strict=False):
            part.suptitle(_TITLES[mode], fontsize="medium")
            panels = part.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
            for axes, metric in zip(panels, metrics, strict=True):
                self._draw_curve(axes, mode, metric)
            panels[0].set_ylabel("similarity to the model's map")
            panels[0].legend(fontsize="x-small", loc="lower left")
        if others:
            panels = parts[-1].subplots(1, len(others), squeeze=False)[0]
            for axes, mode in zip(panels, others, strict=True):
                self._draw_others(axes, mode)
        many = f"{self.images} image{'' if self.images == 1 else 's'}"
        figure.suptitle(f"{self.method} of {self.model}, {many}; bands are one standard deviation", fontsize="medium")
        return figure

    def _draw_curve(self, axes: "Axes", mode: str, metric: str) -> None:
        rows = [row for name in self.names if (row := self.row(mode, name, metric))]
        mean, spread = np.array([row.mean for row in rows]), np.array([row.spread for row in rows])
        ticks = ["none", *(row.block.rpartition(" to ")[2] for row in rows)]
        mean, spread = np.concatenate([[1], mean]), np.concatenate([[0], spread])
        places = np.arange(len(mean))
        axes.fill_between(places, mean - spread, mean + spread, color="tab:blue", alpha=0.2, linewidth=0)
        axes.plot(places, mean, "o-", color="tab:blue", markersize=3, label=self.method)
        for baseline, colour, label in (
            ("edges", "tab:orange", "edges in the image"),
            ("random", "0.4", "random maps"),
        ):
            level = self.row(baseline, "", metric)
            if level:
                axes.axhline(level.mean, color=colour, linestyle="--", linewidth=1, label=label)
        axes.set_xticks(places, ticks, rotation=60, ha="right", rotation_mode="anchor", fontsize="x-small")
        axes.set_ylim(-0.25, 1.05)
        axes.set_title(METRICS[metric], fontsize="small")

    def _draw_others(self, axes: "Axes", mode: str) -> None:
        rows = [row for row in self.rows if row.mode == mode and row.metric in ("cosine", _HEADLINE)]
        blocks = list(dict.fromkeys(row.block for row in rows))
        for number, metric in enumerate(dict.fromkeys(row.metric for row in rows)):
            drawn = [row for row in rows if row.metric == metric]
            means, spreads = [row.mean for row in drawn], [row.spread for row in drawn]
            if mode == "labels":
                places = np.arange(len(blocks)) + 0.4 * number - 0.2
                axes.bar(places, means, 0.36, yerr=spreads, capsize=3, label=METRICS.get(metric, metric))
            else:
                axes.errorbar(range(len(blocks)), means, spreads, fmt="o-", markersize=3, capsize=3)
        axes.axhline(0, color="0.4", linewidth=0.8)
        if mode == "labels":
            axes.legend(fontsize="x-small", loc="lower left")
        is_long = mode == "convergence"
        turned: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        axes.set_xticks(range(len(blocks)), blocks, fontsize="x-small" if is_long else "small", **turned)
        axes.set_ylim(-0.25, 1.05)
        axes.set_title(_TITLES[mode], fontsize="medium")
        axes.set_ylabel("cosine" if is_long else "similarity")
