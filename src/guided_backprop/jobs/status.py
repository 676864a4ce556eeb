"""What is there of a job: which shards are whole, which are missing, which are broken."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guided_backprop.errors import JobError
from guided_backprop.jobs.folder import Folder, folder_at
from guided_backprop.jobs.part import Part, shard_name, shard_number
from guided_backprop.jobs.plan import PLAN, Plan, Shard
from guided_backprop.jobs.rows import about_of, arrow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Status:
    """What is there of a job.

    Attributes:
        place: its folder.
        photos: how many it has.
        explained: how many of them are explained.
        failures: why others couldn't be, by their paths.
        missing: the numbers of the shards that aren't there yet.
        broken: why others can't be read, by their numbers.
    """

    place: str
    photos: int
    explained: int
    failures: Mapping[str, str]
    missing: Sequence[int]
    broken: Mapping[int, str]

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there and whole."""
        return not self.missing and not self.broken

    def __str__(self) -> str:
        parts = [f"{self.explained} of {self.photos} photos explained"]
        parts += [f"{len(self.failures)} could not be"] if self.failures else []
        parts += [f"{len(self.missing)} shards missing"] if self.missing else []
        parts += [f"broken: {', '.join(map(shard_name, self.broken))}"] if self.broken else []
        return f"{self.place}: {', '.join(parts)}"


def status(folder: str | os.PathLike[str], *, part: str | tuple[int, int] | None = None) -> Status:
    """Read every shard of a job, with its checksums, and tell what is there.

    Args:
        folder: of the job, as for :class:`Job`.
        part: as for :meth:`Job.run`: of the shards of this part alone.

    Raises:
        JobError: there is no job.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import guided_backprop as gb
        >>> photos = Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(photos / "cat.png")
        >>> job = gb.Job(photos / "maps", photos)
        >>> gb.jobs.status(photos / "maps").missing
        [0]
        >>> _ = job.run()
        >>> gb.jobs.status(photos / "maps").is_complete
        True
    """
    place, chosen = folder_at(folder), Part.of(part)
    plan = plan_in(place)
    there = {shard_number(name) for name in place.names()}
    failures: dict[str, str] = {}
    broken: dict[int, str] = {}
    missing, explained, photos = [], 0, 0
    for shard in plan.shards():
        if not chosen.has(shard.number):
            continue
        photos += len(shard.photos)
        if shard.number not in there:
            missing.append(shard.number)
            continue
        try:
            table = shard_table(place, plan, shard)
        except JobError as error:
            broken[shard.number] = str(error)
            continue
        pairs = zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True)
        wrong = {path: error for path, error in pairs if error is not None}
        failures |= wrong
        explained += len(shard.photos) - len(wrong)
    return Status(str(place), photos, explained, failures, missing, broken)


def plan_in(folder: Folder) -> Plan:
    """Return the plan of the job in a folder.

    Raises:
        JobError: there is none.
    """
    if PLAN not in folder.names():
        raise JobError(f"folder must be a job's; received folder={str(folder)!r}, without a {PLAN}. Pass another one.")
    return Plan.of_text(folder.read(PLAN), str(folder))


def shard_table(folder: Folder, plan: Plan, shard: Shard) -> "pa.Table":
    """Return the rows of a shard, all checksums of which are right.

    Raises:
        JobError: it is damaged, or of another job.
    """
    name = shard_name(shard.number)
    pq = arrow().parquet
    try:
        with folder.opened(name) as file:
            table = pq.read_table(file, page_checksum_verification=True)
        about = about_of(table)
        paths = table["path"].to_pylist()
    # A damaged file can make a reader raise anything.
    except Exception as error:
        raise _no_shard(folder, name, str(error).partition("\n")[0]) from error
    is_own = about.get("job") == plan.identity
    if not is_own or paths != [photo.path for photo in shard.photos]:
        raise _no_shard(folder, name, "it is of another job")
    return table


def _no_shard(folder: Folder, name: str, reason: str) -> JobError:
    return JobError(
        f"a shard must be as its job wrote it; received {name!r} in folder={str(folder)!r} ({reason:.200}). "
        "Remove that file, and go on with the job: it is made anew."
    )
