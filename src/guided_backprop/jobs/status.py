"""What is there of a job: which shards are whole, which are missing, which are broken."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from guided_backprop.errors import JobError
from guided_backprop.jobs.folder import Folder, folder_at
from guided_backprop.jobs.part import Part, shard_name
from guided_backprop.jobs.plan import PLAN, Plan, Shard
from guided_backprop.jobs.rows import about_of, arrow, storable

if TYPE_CHECKING:
    import pyarrow as pa

# What is told of a shard's rows.
_TOLD = ["path", "error", "label"]


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
        shards: how many shards there should be.
        classes: how often each class was explained, by its id, the most frequent first.
        size: of the shards that are there, in bytes.
    """

    place: str
    photos: int
    explained: int
    failures: Mapping[str, str]
    missing: Sequence[int]
    broken: Mapping[int, str]
    shards: int
    classes: Mapping[int, int]
    size: int

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


def status(folder: str | os.PathLike[str], *, part: str | tuple[int, int] | None = None, verify: bool = True) -> Status:
    """Read every shard of a job, with its checksums, and tell what is there.

    Args:
        folder: of the job, as for :class:`Job`.
        part: as for :meth:`Job.run`: of the shards of this part alone.
        verify: whether the maps are read as well, and not only what is said of them.

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
    plan, names = plan_in(place), place.names()
    shards = [shard for shard in plan.shards() if chosen.has(shard.number)]
    there = [shard for shard in shards if shard_name(shard.number) in names]
    failures: dict[str, str] = {}
    broken: dict[int, str] = {}
    classes: Counter[int] = Counter()
    explained = size = 0
    for shard in there:
        try:
            size += place.size(shard_name(shard.number))
            table = shard_table(place, plan, shard, _TOLD, verify=verify)
        except JobError as error:
            broken[shard.number] = str(error)
            continue
        pairs = zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True)
        wrong = {path: error for path, error in pairs if error is not None}
        failures |= wrong
        explained += len(shard.photos) - len(wrong)
        classes.update(table["label"].drop_null().to_pylist())
    return Status(
        place=str(place),
        photos=sum(len(shard.photos) for shard in shards),
        explained=explained,
        failures=failures,
        missing=[shard.number for shard in shards if shard_name(shard.number) not in names],
        broken=broken,
        shards=len(shards),
        classes=dict(classes.most_common()),
        size=size,
    )


def plan_in(folder: Folder) -> Plan:
    """Return the plan of the job in a folder.

    Raises:
        JobError: there is none.
    """
    if PLAN not in folder.names():
        raise JobError(f"folder must be a job's; received folder={str(folder)!r}, without a {PLAN}. Pass another one.")
    return Plan.of_text(folder.read(PLAN), str(folder))


def shard_table(
    folder: Folder, plan: Plan, shard: Shard, columns: Sequence[str] | None = None, *, verify: bool = False
) -> "pa.Table":
    """Return the rows of a shard, all checksums of which are right.

    Args:
        folder: of the job.
        plan: the job.
        shard: the shard.
        columns: which are read; None for all.
        verify: whether the checksums of the others are looked at too.

    Raises:
        JobError: it is damaged, or of another job.
    """
    name = shard_name(shard.number)
    pq = arrow().parquet
    try:
        # In this thread alone: one of Arrow's that still lets go of what Python holds aborts a process that exits.
        options = {"page_checksum_verification": True, "pre_buffer": False}
        with folder.opened(name) as file, pq.ParquetFile(file, **options) as held:
            about = about_of(held.schema_arrow)
            for group in range(held.num_row_groups if verify else 0):
                held.read_row_group(group, use_threads=False)
            table = held.read(columns, use_threads=False)
            paths = table["path"].to_pylist()
    # A damaged file can make a reader raise anything.
    except Exception as error:
        # What the system or a store says has a number: it can't be read now, and may be whole.
        if isinstance(error, JobError) or (isinstance(error, OSError) and error.errno is not None):
            raise JobError(
                f"a job's folder must be readable; received {name!r} in folder={str(folder)!r} ({error}). Try again."
            ) from error
        raise _no_shard(folder, name, str(error).partition("\n")[0]) from error
    is_own = about.get("job") == plan.identity
    # With several labels a photo has several rows.
    if not is_own or [path for path, _ in groupby(paths)] != [storable(photo.path) for photo in shard.photos]:
        raise _no_shard(folder, name, "it is of another job")
    return table


def _no_shard(folder: Folder, name: str, reason: str) -> JobError:
    return JobError(
        f"a shard must be as its job wrote it; received {name!r} in folder={str(folder)!r} ({reason:.200}). "
        "Remove that file, and go on with the job: it is made anew."
    )
