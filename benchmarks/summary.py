"""From raw rows to medians and quartiles. Ratios are taken inside of a round, and only then put in order."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contest import FORWARD, OURS_LIBRARY
from rows import Row, read

FRAMEWORKS = ("torch", "tensorflow")


class Key(NamedTuple):
    """What was measured: which job, on which model, with how many images."""

    job: str
    model: str
    batch: int


class Spread(NamedTuple):
    """The quartiles."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        return cls(*map(float, np.quantile(list(values), (0.25, 0.5, 0.75))))

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass
class Measured:
    """What is known of one key: the seconds of each contestant by round, and who raised an error."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)

    def spread(self, name: str, base: str, combine: Callable[[float, float], float]) -> Spread | None:
        """Return the spread, over rounds, of a contestant's seconds combined with another's of the same round."""
        mine, other = self.seconds.get(name, {}), self.seconds.get(base, {})
        shared = mine.keys() & other.keys()
        return Spread.of(combine(mine[each], other[each]) for each in shared) if shared else None

    def ratio(self, name: str, base: str = FORWARD) -> Spread | None:
        return self.spread(name, base, lambda mine, other: mine / other)

    def median(self, name: str) -> float:
        return Spread.of(self.seconds[name].values()).middle


def times(path: Path) -> dict[Key, Measured]:
    """Return what a file of times holds; jobs and models in the file's order, batches by size."""
    found: dict[Key, Measured] = {}
    for each in read(path):
        measured = found.setdefault(Key(each["job"], each["model"], int(each["batch"])), Measured())
        if each["error"]:
            measured.errors.add(each["contestant"])
        else:
            rounds = measured.seconds.setdefault(each["contestant"], {})
            rounds[int(each["round"])] = float(each["seconds"])
    # A part that was measured anew stands at the end of the file.
    jobs, models = (list(dict.fromkeys(getattr(key, name) for key in found)) for name in ("job", "model"))
    return dict(
        sorted(found.items(), key=lambda item: (jobs.index(item[0].job), models.index(item[0].model), item[0].batch))
    )


def peaks(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return the median peak of each contestant, in megabytes, by model and batch; NaN after an error."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for each in read(path):
        by_name = values.setdefault((each["model"], int(each["batch"])), {})
        by_name.setdefault(each["contestant"], []).append(float(each["megabytes"] or "nan"))
    models = list(dict.fromkeys(model for model, _ in values))
    keys = sorted(values, key=lambda key: (models.index(key[0]), key[1]))
    return {key: {name: float(np.median(them)) for name, them in values[key].items()} for key in keys}


def not_right(path: Path) -> set[tuple[str, str]]:
    """Return the pairs of model and contestant whose map is not the reference's."""
    return {(each["model"], each["contestant"]) for each in read(path) if each["word"] != "right"}


def ours_wrong(folder: Path) -> bool:
    """Return whether a map of this library is not the reference's, in any of its variants."""
    found = [each for path in folder.glob("checks-*.csv") for each in read(path)]
    return any(each["library"].startswith(OURS_LIBRARY) and each["word"] != "right" for each in found)


def settings(rows: list[Row]) -> str:
    """Return what rows were measured with, in one line."""
    cpus, threads, libraries = (sorted({each[name] for each in rows}) for name in ("cpu", "threads", "library"))
    return f"{' and '.join(cpus)}; {' or '.join(threads)} threads; {', '.join(libraries)}"
