"""The command ``guided-backprop status``: what is there of a job, what is missing, what is broken."""

import sys
from collections.abc import Sequence

import click

from guided_backprop.commands.shared import one_line_errors, printable, size_text
from guided_backprop.jobs.part import shard_name
from guided_backprop.jobs.status import Status, status


@click.command("status")
@click.argument("folder")
@click.option("--part", metavar="K/N", help="Of the shards of this part alone.")
def status_command(*, folder: str, part: str | None) -> None:
    """Read every shard of a job's FOLDER, with its checksums, and say what is there, missing, broken.

    The exit status is 0 if all images are explained, else 1.
    """
    with one_line_errors():
        known = status(folder, part=part)
    for line in _lines(known):
        click.echo(printable(line))
    if known.failures or not known.is_complete:
        sys.exit(1)


def _lines(known: Status) -> list[str]:
    whole = known.shards - len(known.missing) - len(known.broken)
    lines = [
        f"{known.place}: {known.explained} of {known.photos} images explained, {size_text(known.size)}",
        f"whole: {whole} of {known.shards} shards",
    ]
    lines += [f"missing: {_ranges(known.missing)}"] if known.missing else []
    lines += [f"broken: {shard_name(number)}: {reason}" for number, reason in known.broken.items()]
    return lines + [f"error: {path}: {reason}" for path, reason in known.failures.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers in a few letters: ``0, 3-7``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, one)) for one in ranges)
