"""Speed and memory, side by side: the command line.

    speed.py run torch           check, time and weigh all contestants of a framework
    speed.py growth              time against the size of the batch and the depth of the network (PyTorch)
    speed.py curve               time against memory of this library's own options (PyTorch)
    speed.py report              tables and pictures of what was measured

Raw rows go to CSV files. Run a part again and it replaces its own rows only.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import memory
import rounds
from contest import ENGINE_FORWARD, FAST_FORWARD, FORWARD, GRADIENT, PRODUCTS, Contestant, Framework, Referee, load
from rows import replace, row

RESULTS, QUICK_RESULTS = Path("benchmarks/results"), Path("out/benchmarks")
TASKS = ("check", "images", "labels", "folder", "calls", "memory")
DEPTHS = ("ResNet-18", "ResNet-34", "ResNet-50", "ResNet-101", "ResNet-152")
_JOB = ("job", "model", "batch")


def listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")]


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--results", type=Path, help=f"folder of the CSV files; {RESULTS}, if quick {QUICK_RESULTS}")
    common.add_argument("--quick", action="store_true", help="see that it runs: 2 rounds, few images")
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--models", type=listed, help="names, with commas between")
    limits.add_argument("--batches", type=numbers, help="sizes, with commas between")
    limits.add_argument("--contestants", type=listed, help="names, with commas between; the forward pass always runs")
    limits.add_argument("--repeats", type=int, help="least number of rounds; 5, or 3 in rows that are slow")
    limits.add_argument("--memory-repeats", type=int, default=1, help="processes for each peak of memory")
    run = commands.add_parser("run", parents=[common, limits])
    run.add_argument("framework", choices=("torch", "tensorflow"))
    run.add_argument("--device", help="where PyTorch computes, such as cuda; the processor")
    run.add_argument("--tasks", type=listed, default=TASKS, help=f"of {','.join(TASKS)}")
    run.add_argument("--folder", type=int, help="images in the folder; 500")
    run.add_argument("--calls", type=int, help="explanations of the tiny network; 1000")
    commands.add_parser("growth", parents=[common, limits])
    commands.add_parser("curve", parents=[common, limits])
    report = commands.add_parser("report", parents=[common])
    report.add_argument("--write", type=Path, metavar="FILE", help="write the tables between the markers of FILE")
    options = parser.parse_args()
    options.results = options.results or (QUICK_RESULTS if options.quick else RESULTS)
    return options


def limits_of(options: argparse.Namespace) -> rounds.Limits:
    least = options.repeats or (2 if options.quick else 5)
    if options.quick:
        return rounds.Limits(least, seconds=0, most=least)
    # Who asks for more rounds gets them in slow rows too.
    return rounds.Limits(least, most=max(60, least), fewest=options.repeats or 3)


def check(framework: Framework, models: Iterable[str], contestants: Mapping[str, Contestant], path: Path) -> None:
    """Compare every contestant's map with the reference; a wrong one is timed all the same, and marked."""
    rows = []
    for model in models:
        referee = Referee(framework, model)
        for name, contestant in contestants.items():
            if contestant.explains:
                verdict = referee.judge(contestant)
                rows.append(row(framework, contestant, model=model, contestant=name, **dataclasses.asdict(verdict)))
                print(f"{framework.name} check, {model}, {name}: {verdict.word}", file=sys.stderr)
    replace(path, rows, ("model",))


def time_all(framework: Framework, jobs: Iterable[rounds.Job], limits: rounds.Limits, path: Path) -> None:
    for job in jobs:
        # After each job: whoever stops early keeps what there is.
        replace(path, job.measure(framework, limits), _JOB)


def weigh_all(framework: Framework, cases: list[tuple[str, int, str]], repeats: int, path: Path) -> None:
    for model, batch in dict.fromkeys(case[:2] for case in cases):
        part = [case for case in cases if case[:2] == (model, batch)]
        replace(path, memory.measure(framework, part, repeats), ("model", "batch"))


def only(framework: Framework, names: list[str] | None) -> Framework:
    """Return a framework with some of its contestants; the forward pass and the gradient are always there."""
    kept = {*(names or framework.contestants), FORWARD, GRADIENT}
    unknown = kept - framework.contestants.keys()
    if unknown:
        sys.exit(f"No such contestant: {', '.join(sorted(unknown))}. There are {', '.join(framework.contestants)}.")
    some = {name: each for name, each in framework.contestants.items() if name in kept}
    return dataclasses.replace(framework, contestants=some)


def run(options: argparse.Namespace) -> None:
    framework = only(load(options.framework, options.device), options.contestants)
    models = options.models or list(framework.models)
    batches = options.batches or ([1, 2] if options.quick else [1, 8, 32])
    folder, calls = options.folder or (8 if options.quick else 500), options.calls or (20 if options.quick else 1000)
    limits, results = limits_of(options), options.results
    speed, peaks, checks = (results / f"{kind}-{framework.name}.csv" for kind in ("speed", "memory", "checks"))
    jobs: dict[str, Callable[[], list[rounds.Job]]] = {
        "images": lambda: rounds.main_jobs(framework, models, batches),
        "labels": lambda: [rounds.labels_job(framework)],
        "folder": lambda: [rounds.folder_job(framework, folder)],
        "calls": lambda: [rounds.tiny_job(framework, calls)],
    }
    if "check" in options.tasks:
        checked = dict.fromkeys([*models, framework.job_model, rounds.TINY])
        check(framework, checked, framework.contestants, checks)
    for task, make in jobs.items():
        if task in options.tasks:
            time_all(framework, make(), limits, speed)
    if "memory" in options.tasks:
        names = [name for name in framework.contestants if name not in (FAST_FORWARD, ENGINE_FORWARD, PRODUCTS)]
        cases = [(model, batch, name) for model in models for batch in batches for name in names]
        weigh_all(framework, cases, options.memory_repeats, peaks)


def growth(options: argparse.Namespace) -> None:
    framework = load("torch")
    batches = options.batches or ([1, 2] if options.quick else [1, 2, 4, 8, 16, 32, 64])
    jobs = rounds.growth_jobs(framework, batches, options.models or (DEPTHS[:2] if options.quick else DEPTHS))
    time_all(framework, jobs, limits_of(options), options.results / "growth.csv")


def curve(options: argparse.Namespace) -> None:
    framework = load("torch")
    models = options.models or ["ResNet-50", "VGG-16"]
    batches = options.batches or [2 if options.quick else 8]
    contestants = rounds.curve_contestants(framework)
    check(framework, models, contestants, options.results / "checks-curve.csv")
    jobs = [rounds.curve_job(framework, model, batch) for model in models for batch in batches]
    time_all(framework, jobs, limits_of(options), options.results / "curve-speed.csv")
    cases = [(model, batch, name) for model in models for batch in batches for name in contestants]
    weigh_all(framework, cases, options.memory_repeats, options.results / "curve-memory.csv")


def report(options: argparse.Namespace) -> None:
    """Write tables and pictures; fail, after that, if a map of this library was wrong."""
    # Only here: the other commands need no matplotlib.
    import pictures  # noqa: PLC0415
    import summary  # noqa: PLC0415
    import tables  # noqa: PLC0415

    text = tables.report(options.results)
    print(text)
    pictures.draw_all(options.results)
    if options.write:
        tables.write(options.write, text)
    if summary.ours_wrong(options.results):
        sys.exit("A map of this library was not right: see the rows of checks-*.csv.")


def main() -> None:
    options = parsed()
    {"run": run, "growth": growth, "curve": curve, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
