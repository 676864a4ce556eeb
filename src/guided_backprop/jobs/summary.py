"""What many maps have in common: ``summary``, class by class, as a table; the maps are read twice, some at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.extras import imported
from guided_backprop.jobs.reading import Maps
from guided_backprop.jobs.tally import Array, Example, Laid, Tally, laid, magnitudes, mask_of
from guided_backprop.labels.names import ClassNames, label_text

if TYPE_CHECKING:
    import pandas as pd

#: A mask ``(H, W)`` of booleans, or a box (left, top, right, bottom), in pixels of the maps; None for none.
Marked = NumpyArray | tuple[float, float, float, float] | None
#: Maps: of a job, or explanations, or several of these.
Explained = Explanations | Maps | Sequence[Explanations]

# From here on two maps of one class are one map, but for rounding.
_SAME = 1 - 1e-5
# So many maps are looked at at once.
_AT_ONCE = 64
_COLUMNS = ("class", "maps", "magnitude", "across", "down", "inside", "area", "alike", "most typical", "least typical")


class ClassSummary(NamedTuple):
    """The maps of one class, or of all.

    Attributes:
        label: the class id; None for all.
        name: the id and the class's name, where that is known.
        count: how many maps there are.
        magnitude: the mean magnitude of a pixel, summed over the channels.
        across: where the centre of mass is from left to right, on average: from 0 to 1. None where all maps are 0.
        down: where it is from top to bottom.
        inside: which share of the magnitudes lies inside of what is marked, on average; None where nothing is.
        area: which share of the map that is.
        likeness: the mean likeness of two maps, from 0 to 1; None of a single one.
        typical: the maps nearest to the mean, nearest first.
        untypical: those farthest from it, farthest first.
        mean: where the magnitudes lie on average: shares, in 32 x 32 cells at most.
    """

    label: int | None
    name: str
    count: int  # type: ignore[assignment]  # a tuple's own count() is not missed here
    magnitude: float
    across: float | None
    down: float | None
    inside: float | None
    area: float | None
    likeness: float | None
    typical: Sequence[Example]
    untypical: Sequence[Example]
    mean: Array


@final
@dataclass(frozen=True, eq=False)
class Summary:
    """What many maps have in common; prints as a table.

    Attributes:
        method: that explained.
        model: that was explained.
        classes: of each class, the most frequent first.
        overall: of all maps.
        duplicates: photos whose maps are the same but for rounding, in groups.
        empty: how many maps are all 0.

    Example:
        >>> import torch
        >>> import guided_backprop as gb
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> found = gb.summary(gb.GuidedBackprop(network).explain(torch.rand(2, 3, 8, 8), 1))
        >>> [row["class"] for row in found.rows()], found.to_pandas().shape
        (['class 1', 'all'], (2, 10))
    """

    method: str
    model: str
    classes: Sequence[ClassSummary] = field(repr=False)
    overall: ClassSummary = field(repr=False)
    duplicates: Sequence[Sequence[str]] = field(repr=False)
    empty: int = 0

    def rows(self) -> list[dict[str, str | int | float | None]]:
        """Return a row for each class, and the last for all."""
        return [dict(zip(_COLUMNS, _cells(one), strict=True)) for one in [*self.classes, self.overall]]

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a table.

        Raises:
            MissingExtraError: pandas isn't installed.
        """
        pandas = imported("pandas", who="to_pandas() needs", install="pandas")
        table: pd.DataFrame = pandas.DataFrame(self.rows(), columns=_COLUMNS)
        return table

    def __str__(self) -> str:
        rows = [list(_COLUMNS), *([number_text(value) for value in row.values()] for row in self.rows())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = [f"the same map: {', '.join(group)}" for group in self.duplicates]
        notes += [f"{self.empty} maps are all 0"] if self.empty else []
        return "\n".join([f"{self.method} of {self.model}", *lines, *notes])


def summary(
    maps: Explained,
    *,
    inside: "Marked | Callable[[str], Marked]" = None,
    class_names: ClassNames = (),
    most: int = 4,
) -> Summary:
    """Add up many maps, class by class.

    They are read twice, a shard at a time. What is held is some 16 kB for each class, and 8 bytes for each map.

    Args:
        maps: of a job, as from :func:`read`; explanations of pictures and of class ids; or several of these.
        inside: a mask or a box, whose share of the magnitudes is told; or a function from a photo's name to one.
        class_names: names of the classes, a list or a dictionary by class id.
        most: how many typical and untypical photos are named for each class.

    Raises:
        OptionError: there are no maps, they are not of pictures or of classes, or an option isn't as it must be.
        JobError: a shard is damaged.

    Example:
        >>> import numpy as np, torch
        >>> import guided_backprop as gb
        >>> conv = torch.nn.Conv2d(3, 2, 3)
        >>> network = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> explanations = gb.GuidedBackprop(network.eval()).explain(torch.rand(6, 3, 8, 8), [0, 0, 0, 1, 1, 1])
        >>> found = gb.summary(explanations, inside=(0, 0, 4, 8), class_names=["cat", "dog"])
        >>> [(one.name, one.count) for one in found.classes], found.overall.area
        ([('0 cat', 3), ('1 dog', 3)], 0.5)
        >>> found.to_pandas()["maps"].tolist()
        [3, 3, 6]
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise OptionError(f"most must be an integer from 0; received most={most!r}. Pass 4.")
    counted = _Counted(maps, inside)
    return counted.summary(class_names, most)


class _Chunk(NamedTuple):
    """Some maps of one part, from a row on, and what the photos are called."""

    part: int
    start: int
    names: Sequence[str]
    explanations: Explanations


class _Counted:
    """The first pass over all maps: sums, and the keys by which maps can be the same."""

    def __init__(self, maps: Explained, inside: "Marked | Callable[[str], Marked]") -> None:
        self._maps, self._inside = maps, inside
        self._tallies: dict[int | None, Tally] = defaultdict(Tally)
        self._about: tuple[str, str, tuple[int, ...]] | None = None
        keys = [self._add(chunk) for chunk in _chunks(maps)]
        if not keys:
            raise OptionError(
                "a summary needs maps; received none. Pass explanations, or the folder of a job that ran."
            )
        repeated, counts = np.unique(np.concatenate(keys), return_counts=True)
        self._repeated = repeated[counts > 1]

    def _add(self, chunk: _Chunk) -> NDArray[np.uint64]:
        explanations = chunk.explanations
        pixels = magnitudes(explanations)
        about = explanations.method, explanations.model, pixels.shape[1:]
        self._about = self._about or about
        if about != self._about:
            raise OptionError(
                f"a summary needs maps of one method, model and shape; received {self._about} and {about}. "
                "Sum up those that are alike."
            )
        maps = laid(explanations.labels, pixels)
        shares = np.array([self._shares(name, one) for name, one in zip(chunk.names, pixels, strict=True)])
        for label, rows in _classes(maps):
            self._tallies[label].add(maps.of(rows), *shares[rows].T)
        return maps.key

    def _shares(self, name: str, pixels: Array) -> tuple[float, float]:
        """Return the share of a map inside of what is marked, and of its area; NaN where nothing is."""
        mask = mask_of(self._inside(name) if callable(self._inside) else self._inside, pixels.shape)
        if mask is None:
            return np.nan, np.nan
        return float((pixels * mask).sum() / (pixels.sum() or 1)), float(mask.mean())

    def summary(self, class_names: ClassNames, most: int) -> Summary:
        """Read all maps once more: for those that are typical, and those that are the same."""
        ranked: dict[int | None, _Ranked] = defaultdict(lambda: _Ranked(most))
        same = _Same(self._repeated)
        for chunk in _chunks(self._maps):
            maps = laid(chunk.explanations.labels, magnitudes(chunk.explanations))
            same.add(chunk.names, maps)
            for label, rows in _classes(maps):
                told = rows[maps.tells[rows]]
                for row, likeness in zip(told, self._tallies[label].likenesses(maps.of(told)), strict=True):
                    score = float(chunk.explanations.scores[row])
                    ranked[label].add(
                        Example(chunk.names[row], float(likeness), score, chunk.part, chunk.start + int(row))
                    )
        overall = self._tallies.pop(None)
        order = sorted(self._tallies.items(), key=lambda pair: (-pair[1].count, pair[0]))
        classes = [
            _class(label, label_text(np.int64(label or 0), class_names), tally, ranked[label]) for label, tally in order
        ]
        method, model, _ = self._about or ("", "", ())
        every = _class(None, "all", overall, ranked[None])
        return Summary(method, model, classes, every, same.groups(), overall.count - overall.told)


def _classes(maps: Laid) -> Iterator[tuple[int | None, NDArray[np.intp]]]:
    """Yield the rows of each class, and those of all."""
    for label in np.unique(maps.labels):
        yield int(label), np.flatnonzero(maps.labels == label)
    yield None, np.arange(len(maps.labels))


class _Ranked:
    """The maps most like, and least like, the mean: so many at most, of equal ones the first."""

    def __init__(self, most: int) -> None:
        self._most, self._seen = most, 0
        self._typical: list[tuple[float, int, Example]] = []
        self._untypical: list[tuple[float, int, Example]] = []

    def add(self, example: Example) -> None:
        self._seen += 1
        for heap, rank in ((self._typical, example.likeness), (self._untypical, -example.likeness)):
            entry = (rank, -self._seen, example)
            if len(heap) < self._most:
                heappush(heap, entry)
            elif self._most:
                heappushpop(heap, entry)

    @property
    def ends(self) -> tuple[list[Example], list[Example]]:
        """The most typical, and the least typical ones, each in their order."""
        typical, untypical = (
            [one for *_, one in sorted(heap, reverse=True)] for heap in (self._typical, self._untypical)
        )
        return typical, untypical


class _Same:
    """Finds maps of one class that are the same but for rounding, among those whose keys are."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._keys = keys
        self._groups: dict[tuple[int, int], list[tuple[Array, list[str]]]] = defaultdict(list)

    def add(self, names: Sequence[str], maps: Laid) -> None:
        # They are sorted, and many more than these.
        places = np.searchsorted(self._keys, maps.key)
        is_known = places < len(self._keys)
        is_known[is_known] = self._keys[places[is_known]] == maps.key[is_known]
        rows = np.flatnonzero(is_known & maps.tells)
        for row, direction in zip(rows.tolist(), maps.of(rows).directions, strict=True):
            groups = self._groups[int(maps.key[row]), int(maps.labels[row])]
            own = next((photos for first, photos in groups if first @ direction > _SAME), None)
            if own is None:
                groups.append((direction, [names[row]]))
            else:
                own.append(names[row])

    def groups(self) -> list[list[str]]:
        return [photos for groups in self._groups.values() for _, photos in groups if len(photos) > 1]


def _chunks(maps: Explained) -> Iterator[_Chunk]:
    """Yield maps with one label a row, some at a time."""
    for number, (names, part) in enumerate(_parts(maps)):
        for start in range(0, len(part), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            yield _Chunk(number, start, names[rows], part[rows])


def _parts(maps: Explained) -> Iterator[tuple[Sequence[str], Explanations]]:
    if isinstance(maps, Maps):
        yield from maps.by_shard()
        return
    count = 0
    for part in [maps] if isinstance(maps, Explanations) else maps:
        rows = part.single_input("summary()").one_label_a_row()
        yield [f"image-{number:05d}" for number in range(count, count + len(rows))], rows
        count += len(rows)


def part_of(maps: Explained, number: int) -> Explanations:
    """Return the part that an example is of, with one label a row."""
    parts: Sequence[Explanations] = [maps] if isinstance(maps, Explanations) else maps
    return parts[number].one_label_a_row()


def _class(label: int | None, name: str, tally: Tally, ranked: _Ranked) -> ClassSummary:
    typical, untypical = ranked.ends
    down, across = (tally.centre / tally.told).tolist() if tally.told else (None, None)
    return ClassSummary(
        label=label,
        name=name,
        count=tally.count,
        magnitude=tally.magnitude / tally.count,
        across=across,
        down=down,
        inside=tally.inside / tally.marked if tally.marked else None,
        area=tally.area / tally.marked if tally.marked else None,
        likeness=tally.likeness,
        typical=typical,
        untypical=untypical,
        mean=tally.cells / max(tally.told, 1),
    )


def _cells(one: ClassSummary) -> list[str | int | float | None]:
    first = [group[0].name if group else None for group in (one.typical, one.untypical)]
    return [one.name, one.count, one.magnitude, one.across, one.down, one.inside, one.area, one.likeness, *first]


def number_text(value: str | float | None) -> str:
    """Return what stands in a table for a number, or for what isn't known."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
