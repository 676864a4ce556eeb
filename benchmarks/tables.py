"""The tables in Markdown, from what the CSV files hold; what was not measured is left out."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from contest import ENGINE_FORWARD, FAST_FORWARD, FORWARD, GRADIENT, OURS, PRODUCTS
from markdown import head, line
from rows import read
from summary import FRAMEWORKS, Key, Measured, Spread, not_right, peaks, settings, times

Wrong = set[tuple[str, str]]
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
ORDER = [
    *(FORWARD, FAST_FORWARD, ENGINE_FORWARD, PRODUCTS, GRADIENT, OURS, "ours optimized", "ours compiled", "ours lean"),
    *("Captum", "zennit", "pytorch-grad-cam", "Xplique", "tf-keras-vis"),
]
TITLES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([head(header), *map(line, rows)])


def names_of(found: Iterable[Iterable[str]]) -> list[str]:
    """Return all contestants, in the order of the columns."""
    return sorted({name for each in found for name in each}, key=ORDER.index)


def cell(spread: Spread | None, measured: Measured, name: str, *, is_marked: bool) -> str:
    if name in measured.errors:
        return "error"
    if spread is None:
        return ""
    return f"{spread}*" if is_marked else str(spread)


def time_tables(found: dict[Key, Measured], wrong: Wrong) -> list[str]:
    """Return two tables: times in forward passes, and how many times as long as this library's default."""
    main = {key: each for key, each in found.items() if key.job == "images"}
    if not main:
        return []
    names = [name for name in names_of([*each.seconds, *each.errors] for each in main.values()) if name != FORWARD]
    others = [name for name in names if name != OURS]
    first, second = [], []
    for key, measured in main.items():
        place = [key.model, str(key.batch)]
        first.append([*place, f"{1000 * measured.median(FORWARD):.2f} ms", *cells(key, measured, names, wrong)])
        second.append([*place, *cells(key, measured, others, wrong, base=OURS)])
    return [
        "Time, in forward passes of the model; median over rounds [quartiles]; `*`: the map is wrong.",
        grid(["model", "images", FORWARD, *names], first),
        f"How many times as long as `{OURS}` in the same round:",
        grid(["model", "images", *others], second),
    ]


def cells(key: Key, measured: Measured, names: Iterable[str], wrong: Wrong, base: str = FORWARD) -> list[str]:
    """Return a row's cells: the time of each contestant in times of the base, or its overhead in many calls."""
    found = []
    for name in names:
        if key.job.endswith("calls"):
            spread = overhead(measured, name, int(key.job.split()[0]))
        else:
            spread = measured.ratio(name, base)
        is_marked = name != GRADIENT and (key.model, name) in wrong
        found.append(cell(spread, measured, name, is_marked=is_marked))
    return found


def jobs_table(found: dict[Key, Measured], wrong: Wrong) -> list[str]:
    """Return the jobs, in forward passes; many calls in microseconds above the plain gradient, for each."""
    jobs = {key: each for key, each in found.items() if key.job != "images"}
    if not jobs:
        return []
    names = [name for name in names_of([*each.seconds, *each.errors] for each in jobs.values()) if name != FORWARD]
    rows = []
    for key, measured in jobs.items():
        unit = "µs a call above the gradient" if key.job.endswith("calls") else "forward passes"
        rows.append([key.job, f"{key.model}, {key.batch}", unit, *cells(key, measured, names, wrong)])
    return ["Jobs:", grid(["job", "model, images", "unit", *names], rows)]


def overhead(measured: Measured, name: str, count: int) -> Spread | None:
    return measured.spread(name, GRADIENT, lambda mine, other: 1e6 * (mine - other) / count)


def memory_table(path: Path) -> list[str]:
    found = peaks(path)
    if not found:
        return []
    names = names_of(found.values())
    rows = [
        [model, str(batch), *("" if name not in part else f"{part[name]:.0f}" for name in names)]
        for (model, batch), part in found.items()
    ]
    return ["Peak memory above the loaded model, in MB:", grid(["model", "images", *names], rows)]


def growth_tables(found: dict[Key, Measured]) -> list[str]:
    rows = []
    for key, measured in found.items():
        seconds = [f"{1000 * measured.median(name):.1f}" for name in (FORWARD, OURS, "ours optimized")]
        rows.append([key.model, str(key.batch), *seconds, str(measured.ratio(OURS))])
    if not rows:
        return []
    header = ["model", "images", "forward, ms", "ours, ms", "ours optimized, ms", "ours, in forward passes"]
    return ["### Growth with the batch and with depth", "![Growth](results/growth.png)", grid(header, rows)]


def curve_table(folder: Path) -> list[str]:
    weighed = peaks(folder / "curve-memory.csv")
    wrong = not_right(folder / "checks-curve.csv")
    rows = []
    for key, measured in times(folder / "curve-speed.csv").items():
        by_name = weighed.get((key.model, key.batch), {})
        names = [name for name in by_name if name != FORWARD]
        for name, found in zip(names, cells(key, measured, names, wrong), strict=True):
            rows.append([f"{key.model}, {key.batch}", name, found, f"{by_name[name]:.0f}"])
    if not rows:
        return []
    title, picture = "### Time against memory: this library's options", "![Time against memory](results/curve.png)"
    return [title, picture, grid(["model, images", "options", "forward passes", "peak, MB"], rows)]


def framework_tables(folder: Path, framework: str) -> list[str]:
    rows = read(folder / f"speed-{framework}.csv") + read(folder / f"memory-{framework}.csv")
    if not rows:
        return []
    found = times(folder / f"speed-{framework}.csv")
    wrong = not_right(folder / f"checks-{framework}.csv")
    parts = [*time_tables(found, wrong), *jobs_table(found, wrong), *memory_table(folder / f"memory-{framework}.csv")]
    return [f"### {TITLES[framework]}", f"{settings(rows)}.", *parts]


def report(folder: Path) -> str:
    parts = ["![Time and memory of all contestants](results/speed.png)"]
    parts += [part for framework in FRAMEWORKS for part in framework_tables(folder, framework)]
    parts += growth_tables(times(folder / "growth.csv")) + curve_table(folder)
    return "\n\n".join(parts)


def write(path: Path, text: str) -> None:
    """Replace what stands between the two marker lines of a file."""
    before, found_start, rest = path.read_text().partition(START)
    _, found_end, after = rest.partition(END)
    if not (found_start and found_end):
        sys.exit(f"{path} must contain the lines {START} and {END}, in this order.")
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
