"""Raw rows: what each measurement left behind, in CSV files that a part can be measured anew in."""

import csv
from collections.abc import Iterable
from pathlib import Path

from contest import Contestant, Framework, described

Row = dict[str, str]


def cpu_name() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def row(framework: Framework, contestant: Contestant, /, **values: object) -> Row:
    """Return one row: the values, and what they were measured with."""
    setting = {
        "library": described(contestant.library),
        "framework": described(framework.library),
        "cpu": cpu_name(),
        "threads": framework.threads(),
    }
    return {
        name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in (values | setting).items()
    }


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def replace(path: Path, rows: Iterable[Row], part: tuple[str, ...]) -> None:
    """Write rows in place of the former ones that agree with any of them in the columns ``part``."""
    fresh = list(rows)
    if not fresh:
        return
    renewed = {tuple(each[name] for name in part) for each in fresh}
    kept = [each for each in read(path) if tuple(each[name] for name in part) not in renewed]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(fresh[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + fresh)
