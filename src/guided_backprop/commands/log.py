"""What the command ``explain`` says: of few photos what was seen in each, of many how far it is, and a summary."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from guided_backprop.commands.facts import facts_grid
from guided_backprop.commands.shared import printable, size_text
from guided_backprop.coverage import Coverage
from guided_backprop.jobs.job import Job, Ran, Written
from guided_backprop.jobs.pictures import MOST_DRAWN, Pictures
from guided_backprop.jobs.plan import Shard
from guided_backprop.jobs.rows import Row, storable
from guided_backprop.jobs.status import Status
from guided_backprop.progress import duration, said_elsewhere

# How many errors that are known from before, and how many classes, are named.
_MOST_ERRORS, _MOST_CLASSES = 10, 5


class Log:
    """Speaks for one run of a job, in a ``with`` statement.

    Args:
        job: the job.
        part: of it, as for :meth:`Job.run`.
        is_quiet: whether only errors are said.
    """

    def __init__(self, job: Job, part: str | None, *, is_quiet: bool) -> None:
        self._job, self._is_quiet = job, is_quiet
        # A pipe has no width: nothing is folded there.
        width = None if sys.stdout.isatty() else 10_000
        self._console = Console(width=width, markup=False, highlight=False, emoji=False, quiet=is_quiet)
        self._pictures = Pictures(job.plan)
        self._are_few = len(job.plan.photos) <= MOST_DRAWN
        shards = job.plan.shards()
        self._shards = [shards[number] for number in job.missing(part=part)]
        self._total = sum(len(shard.photos) for shard in self._shards)
        self._done = self._finished = 0
        self._told: set[str] = set()
        self._coverages: set[Coverage] = set()
        self._heads: set[str] = set()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._console.print(str(self._job.vision), soft_wrap=True)
        if self._shards and self._job.plan.settings.optimize:
            is_used = self._job.is_optimized
            self._console.print(
                "optimised: maps of a picture of noise agree" if is_used else "not optimised: no faster method agrees"
            )
        self._begun = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        is_hidden = self._is_quiet or not self._console.is_terminal
        bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True, disable=is_hidden)
        self._open.enter_context(said_elsewhere())
        self._bar = self._open.enter_context(bar)
        self._task = self._bar.add_task("explaining", total=self._total, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._seconds = time.monotonic() - self._begun
        self._open.close()

    def batch(self, shard: Shard, rows: Sequence[Row]) -> None:
        """Say what became of some photos."""
        photos = list(dict.fromkeys(row.path for row in rows))
        self._done += len(photos)
        for row in rows:
            if row.error is not None:
                self._say_error(row.path, row.error)
            elif row.coverage is not None:
                self._coverages.add(row.coverage)
                self._heads |= {row.head} if row.head else set()
        if self._are_few:
            names = {storable(photo.path): photo.path for photo in shard.photos}
            for path in photos:
                self._say_photo(path, names[path], [row for row in rows if row.path == path and row.error is None])
        self._bar.update(self._task, completed=self._done, rate=f"{self._rate():.1f}/s")

    def shard(self, written: Written) -> None:
        """Say that a shard is there: in a log, for a terminal has a bar."""
        self._finished += 1
        if self._console.is_terminal:
            return
        failed = f", {len(written.failures)} could not be read" if written.failures else ""
        left = (self._total - self._done) / self._rate() if self._done else 0.0
        self._console.print(
            f"shard {written.shard}: {written.explained} explained{failed}; {self._finished} of {len(self._shards)} "
            f"shards, {self._rate():.1f} images a second, {duration(left)} left"
        )

    def sum_up(self, ran: Ran, known: Status) -> None:
        """Say what was done, and what is there."""
        if ran.swept:
            self._console.print(f"removed what a process that died had begun: {', '.join(ran.swept)}")
        for head in sorted(self._heads):
            self._console.print(f"scores: the logits in front of the model's {head}")
        if self._coverages:
            self._console.print(f"coverage: {Coverage.merge(sorted(self._coverages))}")
        if known.classes:
            self._console.print(f"classes: {self._classes(known)}", soft_wrap=True)
        there = known.shards - len(known.missing)
        self._console.print(
            f"{known.explained} of {known.photos} images explained by {self._job.plan.settings.method} in "
            f"{printable(known.place)} ({there} of {known.shards} shards, {size_text(known.size)}, "
            f"{len(known.failures)} errors); {ran.explained} of them now, in {self._seconds:.1f} s",
            soft_wrap=True,
        )
        before = {path: error for path, error in known.failures.items() if path not in self._told}
        for path, error in list(before.items())[:_MOST_ERRORS]:
            self._say_error(path, error)
        if len(before) > _MOST_ERRORS:
            click.echo(f"Error: {len(before) - _MOST_ERRORS} more; guided-backprop status names all.", err=True)
        for broken in known.broken.values():
            click.echo(f"Error: {printable(broken)}", err=True)
        if ran.stopped:
            click.echo(
                f"Stopped: {there} of {known.shards} shards are there. Go on by the same command with --resume.",
                err=True,
            )

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._begun, 1e-9)

    def _say_error(self, path: str, error: str) -> None:
        self._told.add(path)
        click.echo(f"Error: {printable(error)}", err=True)

    def _say_photo(self, path: str, name: str, rows: Sequence[Row]) -> None:
        """Say what was seen in one photo, of which there is a row for each label."""
        vision = self._job.vision
        for number, row in enumerate(rows):
            if row.label is None or row.photo is None:
                continue
            facts = [("explained", f"{vision.class_name(row.label)}, score {row.score:.4g}")]
            if number == 0:
                self._console.print(printable(path), style="bold", soft_wrap=True)
                facts += [(f"{share:.1%}", vision.class_name(label)) for label, share in row.top or ()]
            view = vision.view(*row.photo)
            facts += [("warning", view.warning)] if view is not None and view.warning else []
            files = self._pictures.names(name)
            drawn = files[number] if files else {}
            facts += [(kind, printable(f"{self._job.folder}/{file}")) for kind, file in drawn.items()]
            self._console.print(facts_grid(facts))

    def _classes(self, known: Status) -> str:
        named = [
            f"{self._job.vision.class_name(label)} x{count}"
            for label, count in list(known.classes.items())[:_MOST_CLASSES]
        ]
        more = len(known.classes) - len(named)
        return ", ".join(named) + (f", and {more} more" if more else "")
