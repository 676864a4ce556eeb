"""A page of pictures about many maps, class by class; of more than 200 classes an index, beside several such pages."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_backprop.arrays import as_numpy
from guided_backprop.explanations import Explanations
from guided_backprop.jobs.summary import ClassSummary, Explained, Summary, number_text, part_of
from guided_backprop.jobs.tally import Example
from guided_backprop.report.pages import Pages, check_free
from guided_backprop.show.embed import data_uri
from guided_backprop.show.folder import versions
from guided_backprop.show.panels import PANELS, signed_panel
from guided_backprop.version import __version__

# The longer side of a map's picture.
_SIDE = 160
Where = tuple[int, int]


@dataclass(frozen=True)
class Card:
    """What a page shows of one class.

    Attributes:
        one: its numbers.
        facts: the same as a page says them: a name and a text each.
        mean: where its maps lie on average, as a URI.
        typical: its typical maps, each with its URI.
        untypical: those that are the least.
    """

    one: ClassSummary
    facts: Sequence[tuple[str, str]]
    mean: str
    typical: Sequence[tuple[Example, str]]
    untypical: Sequence[tuple[Example, str]]

    @property
    def name(self) -> str:
        """The class."""
        return self.one.name

    title = label = name

    @property
    def score(self) -> float:
        """How many maps it has."""
        return float(self.one.count)

    @property
    def weight(self) -> int:
        """About how many bytes of a page it takes."""
        return 2_000 + len(self.mean) + sum(len(uri) for _, uri in [*self.typical, *self.untypical])


def write_summary(
    path: str | os.PathLike[str],
    maps: Explained,
    summary: Summary,
    *,
    command: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a page about many maps.

    Args:
        path: where the page will be.
        maps: what was summed up, of which the typical and the untypical ones are drawn.
        summary: what :func:`guided_backprop.summary` found of them.
        command: what to run to make this page again; None leaves it out.
        overwrite: replace a file that exists.

    Returns:
        The files: the page, or several pages and at last their index.

    Raises:
        OutputExistsError: there is something at the path, and ``overwrite`` is false or it is a folder.
        MissingExtraError: Jinja2 is not installed.
        JobError: a shard is damaged.

    Example:
        >>> import tempfile, torch
        >>> import guided_backprop as gb
        >>> from guided_backprop.report import write_summary
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> explanations = gb.GuidedBackprop(model).explain(torch.rand(4, 3, 8, 8), [0, 0, 1, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_summary(f"{folder}/maps.html", explanations, gb.summary(explanations))
        ...     print([file.name for file in files])
        ['maps.html']
    """
    target = Path(path)
    check_free(target, overwrite=overwrite)
    pages = Pages(target, overwrite=overwrite, whole="summary.html.j2", some="classes.html.j2")
    pictures = _pictures(maps, summary)
    about = {"method": summary.method, "model": summary.model}
    for one in summary.classes:
        pages.add(_card(one, pictures), about)
    columns = [name for name, text in _facts(summary.overall) if text]
    end = {
        "columns": columns,
        "command": command,
        "duplicates": summary.duplicates,
        "empty": summary.empty,
        "overall": _card(summary.overall, pictures),
        "rows": [[dict(_facts(one))[name] for name in columns] for one in [*summary.classes, summary.overall]],
        "versions": {"guided-backprop": __version__, **versions()},
    }
    pages.finish(about, end)
    return pages.files


def _pictures(maps: Explained, summary: Summary) -> Mapping[Where, str]:
    """Return a picture of each map that is shown, as a URI: each part is read once."""
    shown: dict[int, set[int]] = defaultdict(set)
    for one in [*summary.classes, summary.overall]:
        for example in (*one.typical, *one.untypical):
            shown[example.part].add(example.row)
    pictures: dict[Where, str] = {}
    for part, rows in sorted(shown.items()):
        explanations = part_of(maps, part)
        pictures |= {(part, row): _picture(explanations, row) for row in rows}
    return pictures


def _picture(explanations: Explanations, row: int) -> str:
    attribution, axis = as_numpy(explanations.attribution)[row], explanations.channel_axis
    is_flat = explanations.reducer is not None or axis is None
    pixels = attribution[..., np.newaxis] if is_flat else np.moveaxis(attribution, axis - 1, -1)
    panel = signed_panel(pixels.shape[-1])
    return data_uri(panel.painted(_NOTHING, panel.shares(pixels)), _SIDE)


# A signed map is drawn without its image.
_NOTHING = np.zeros((1, 1, 3), np.uint8)


def _card(one: ClassSummary, pictures: Mapping[Where, str]) -> Card:
    panel = PANELS["magnitude"]
    mean = data_uri(panel.painted(_NOTHING, panel.shares(one.mean[..., np.newaxis], 100.0)))
    typical, untypical = (
        [(example, pictures[example.part, example.row]) for example in group] for group in (one.typical, one.untypical)
    )
    return Card(one, _facts(one), mean, typical, untypical)


def _facts(one: ClassSummary) -> list[tuple[str, str]]:
    """Return what is known of a class, in words, in the same order for each; nothing for what isn't."""
    known: dict[str, str | float | None] = {
        "maps": f"{one.count}",
        "mean magnitude": one.magnitude,
        "centre across": one.across,
        "centre down": one.down,
        "share inside": one.inside,
        "of an area of": one.area,
        "likeness of two": one.likeness,
    }
    return [(name, number_text(value)) for name, value in known.items()]
