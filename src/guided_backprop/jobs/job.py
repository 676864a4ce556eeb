"""A job: many photos explained into a folder of shards, each of which is there whole or not at all."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.jobs.begin import Beginning, as_json, photo_size
from guided_backprop.jobs.explainer import Explainer, Prepared
from guided_backprop.jobs.folder import Folder, folder_at
from guided_backprop.jobs.maps import MapType
from guided_backprop.jobs.part import Part, shard_name, shard_number
from guided_backprop.jobs.pictures import Pictures
from guided_backprop.jobs.plan import Photo, Plan, Settings, Shard
from guided_backprop.jobs.rows import Row, Writer, schema, sealed
from guided_backprop.jobs.source import Source, source_of
from guided_backprop.labels.names import PhotoLabels, class_ids
from guided_backprop.models import VisionModel
from guided_backprop.show.folder import versions
from guided_backprop.version import __version__

# So many batches are read and preprocessed ahead of the one that is explained.
_AHEAD = 2


@dataclass(frozen=True)
class Ran:
    """What one run of a job did.

    Attributes:
        shards: the numbers of the shards that it wrote.
        explained: how many photos it explained.
        failures: why others couldn't be, by their paths.
        swept: what dead processes had begun, and was removed.
        stopped: whether it was asked to stop before all was done.
    """

    shards: Sequence[int] = ()
    explained: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    swept: Sequence[str] = ()
    stopped: bool = False


class Written(NamedTuple):
    """What became of the photos of a shard that was written.

    Attributes:
        shard: its number.
        explained: how many of its photos are explained.
        failures: why others couldn't be, by their paths.
    """

    shard: int
    explained: int
    failures: Mapping[str, str]


#: Told after each batch: the shard, and its rows.
Progress = Callable[[Shard, Sequence[Row]], None]


class Job:
    """Photos, a model and a method; run as often as it takes, by as many processes as there are parts.

    A job is a folder: ``job.json`` says what is explained and how, and is written first; ``shard-00000.parquet`` and so
    on are the explanations, each of which appears by one rename when it is whole. Whatever happens to a process, what
    lies there under these names is finished. To go on is to run the job once more.

    The same shards come out bit for bit, whoever makes them and however often it took, on the same machine with the
    same versions.

    Args:
        folder: where to write: a path, or an address that fsspec knows, such as ``s3://bucket/maps``.
        photos: a folder, an address, or several files and folders.
        model: as for :class:`guided_backprop.jobs.Explainer`.
        method: likewise.
        options: likewise; what JSON can hold.
        load: likewise.
        dtype: likewise.
        optimize: likewise.
        labels: class ids or names, one for all photos, or one for each in their order; "top5" for the five best of
            each, None for the best.
        recursive: whether photos below folders of the folder are meant too.
        shard_size: how many photos a shard has: what an interruption costs at most.
        batch_size: how many photos are explained at once.
        pictures: what is drawn of each map on its photo, beside the shards: "none", "overlay", or "all"; None for all
            where there are up to 100 photos, and for what a job that goes on began with.
        resume: go on with the job that is in the folder, which must be this one.
        add: go on, and take in photos that are new, as further shards.

    Raises:
        OutputExistsError: the folder has something in it, and neither ``resume`` nor ``add`` is said.
        JobError: the folder is of another job, or can't be written; there are no photos.
        OptionError: an option has a value that is not offered.
        LabelError: a label is of no class, or labels are not one for each photo.
        GuidedBackpropError: all that loading the model raises, and explaining a picture of noise.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import guided_backprop as gb
        >>> photos = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(photos / f"{name}.png")
        >>> job = gb.Job(photos / "maps", photos, recursive=False)
        >>> job.missing()
        [0]
        >>> ran = job.run()  # or job.write(0), where something else gives out the shards
        >>> ran.explained, sorted(path.name for path in (photos / "maps").iterdir() if path.name[0] != ".")
        (2, ['job.json', 'shard-00000.parquet'])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        photos: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        model: str | VisionModel | None = None,
        method: str = "guided-backprop",
        options: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
        dtype: MapType = "float16",
        optimize: bool = True,
        labels: PhotoLabels = None,
        recursive: bool = True,
        shard_size: int = 512,
        batch_size: int = 16,
        pictures: Literal["none", "overlay", "all"] | None = "none",
        resume: bool = False,
        add: bool = False,
    ) -> None:
        self._explainer = Explainer(model, method, options=options, load=load, dtype=dtype, optimize=optimize)
        self.folder, self._source, self._folder = folder, source_of(photos, recursive=recursive), folder_at(folder)
        settings = Settings(
            model=self.vision.name if isinstance(model, VisionModel) else model or "default",
            weights=self.vision.digest(),
            method=method,
            options=as_json({**(options or {}), **({"load": dict(load)} if load else {})}),
            dtype=dtype,
            batch_size=self.vision.at_once or batch_size,
            shard_size=shard_size,
            optimize=optimize,
            pictures=pictures or "none",
        )
        listed, self.skipped = self._source.listed(folder)
        ids = class_ids(labels, self.vision.class_names, len(listed))
        chosen = ids if isinstance(ids, list) else [ids] * len(listed)
        own = tuple(photo._replace(label=label) for photo, label in zip(listed, chosen, strict=True))
        plan = Plan(settings, (own,), {**versions(), "guided_backprop": __version__})
        beginning = Beginning(self._folder, self._source, self._explainer, is_open=pictures is None)
        self.plan = beginning.added(plan) if add else beginning.begun(plan, goes_on=resume)

    @property
    def vision(self) -> VisionModel:
        """The model."""
        return self._explainer.vision

    @property
    def is_optimized(self) -> bool:
        """Whether the method was made faster, and explained a picture of noise alike."""
        self._explainer.kind(photo_size(self.plan, self._source))
        return self._explainer.is_optimized

    def run(
        self,
        *,
        part: str | tuple[int, int] | None = None,
        progress: Progress | None = None,
        finished: "Callable[[Written], None] | None" = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Ran:
        """Explain what isn't there yet.

        Args:
            part: ``"3/16"``: of sixteen processes the third, which takes every sixteenth shard.
            progress: told after each batch.
            finished: told after each shard, which is there then.
            is_stopped: asked after each batch whether to stop; what is whole is there then.

        Raises:
            JobError: another process is at this part, or the folder can't be written any more; what was whole is there.
            GuidedBackpropError: all that explaining raises.
        """
        chosen = Part.of(part)
        with self._folder.locked(chosen) as swept:
            missing: list[int] = self.missing(part=part)
            written: list[Written] = []
            with closing(self._shards(missing, progress, is_stopped)) as shards:
                for one in shards:
                    written.append(one)
                    if finished is not None:
                        finished(one)
        failures = {path: error for one in written for path, error in one.failures.items()}
        explained = sum(one.explained for one in written)
        return Ran([one.shard for one in written], explained, failures, swept, len(written) < len(missing))

    def missing(self, *, part: str | tuple[int, int] | None = None) -> list[int]:
        """Return the numbers of the shards that aren't there yet, of a part as for :meth:`run`."""
        chosen = Part.of(part)
        there = {shard_number(name) for name in self._folder.names()}
        return [shard.number for shard in self.plan.shards() if chosen.has(shard.number) and shard.number not in there]

    def write(self, shard: int) -> "Written":
        """Explain the photos of one shard and write it: for engines that give out shards, and see that each is done.

        It takes no lock: of two that write one shard the second replaces it by the same.

        Raises:
            OptionError: there is no such shard.
            GuidedBackpropError: as :meth:`run`.
        """
        count = len(self.plan.shards())
        if not 0 <= shard < count:
            raise OptionError(f"shard must be in [0, {count}); received shard={shard}. Pass one of missing().")
        (written,) = self._shards([shard], None, None)
        return written

    def _shards(
        self, numbers: Sequence[int], progress: Progress | None, is_stopped: Callable[[], bool] | None
    ) -> "Generator[Written]":
        """Write shards and yield what became of each, up to the one in which it is asked to stop."""
        if not numbers:
            return
        shards = self.plan.shards()
        with _reading() as pool:
            run = _Run(self.plan, self._source, self._folder, self._explainer, pool)
            for number in numbers:
                written = run.write(shards[number], progress, is_stopped)
                if written is None:
                    return
                yield written


class _Run:
    """One run of one part of a job."""

    def __init__(
        self, plan: Plan, source: Source, folder: Folder, explainer: Explainer, pool: ThreadPoolExecutor
    ) -> None:
        self._plan, self._source, self._folder, self._explainer, self._pool = plan, source, folder, explainer, pool
        kind = explainer.kind(photo_size(plan, source))
        self._columns, self._about = schema(kind.shape, kind.dtype), kind.about
        self._pictures = Pictures(plan)

    def write(self, shard: Shard, progress: Progress | None, is_stopped: Callable[[], bool] | None) -> "Written | None":
        """Explain the photos of a shard and write it; return None if it was asked to stop before."""
        columns = sealed({"shard": shard.number, "job": self._plan.identity, **self._about}, self._columns)
        failures: dict[str, str] = {}
        try:
            with self._folder.writing(shard_name(shard.number)) as file, Writer(file, columns) as writer:
                for photos, ready in self._read(shard):
                    if is_stopped is not None and is_stopped():
                        raise _StoppedError
                    rows = self._rows(photos, ready)
                    writer.write(rows)
                    failures |= {row.path: row.error for row in rows if row.error is not None}
                    if progress is not None:
                        progress(shard, rows)
        except _StoppedError:
            return None
        return Written(shard.number, len(shard.photos) - len(failures), failures)

    def _rows(self, photos: Sequence[Photo], ready: Sequence[Prepared | ImageError]) -> list[Row]:
        def draw(number: int, explanations: Explanations) -> None:
            one = ready[number]
            place = one.place if isinstance(one, Prepared) else None
            for name, held in self._pictures.drawn(photos[number].path, explanations, place):
                self._folder.put(name, held)

        labels = [photo.label for photo in photos]
        return self._explainer.rows([photo.path for photo in photos], ready, labels, draw)

    def _read(self, shard: Shard) -> Iterator[tuple[Sequence[Photo], list[Prepared | ImageError]]]:
        """Yield the photos of each batch as the network takes them; the next ones are read meanwhile."""
        size = self._plan.settings.batch_size
        batches = [shard.photos[start : start + size] for start in range(0, len(shard.photos), size)]
        ahead: deque[tuple[Sequence[Photo], list[Future[Prepared | ImageError]]]] = deque()
        for photos in [*batches, *[[]] * _AHEAD]:
            ahead.append((photos, [self._pool.submit(self._prepared, photo) for photo in photos]))
            if len(ahead) > _AHEAD:
                first, reading = ahead.popleft()
                yield first, [future.result() for future in reading]

    def _prepared(self, photo: Photo) -> Prepared | ImageError:
        try:
            return self._explainer.prepared(self._source.opened(photo), is_drawn=self._pictures.are_drawn)
        except ImageError as error:
            return error


class _StoppedError(Exception):
    """The run was asked to stop in the middle of a shard, which isn't written then."""


@contextmanager
def _reading() -> Iterator[ThreadPoolExecutor]:
    """Return threads that read photos; what they haven't begun is dropped at the end."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "guided-backprop-read")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class ShardWriter:
    """Writes the shards of a job in the workers of an engine, such as Ray's.

    ``ray.data.from_items([{"shard": number} for number in job.missing()]).map_batches(ShardWriter, batch_size=1,
    fn_constructor_args=(job,), concurrency=2)``: a worker that dies while it writes leaves no shard, and the engine
    gives that shard to another one.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, columns: Mapping[str, Sequence[int]]) -> dict[str, NumpyArray]:
        """Write the shards of the column ``"shard"``; return how many photos of each are explained, how many not."""
        written = [self._job.write(int(shard)) for shard in columns["shard"]]
        return {
            "shard": np.array([one.shard for one in written]),
            "explained": np.array([one.explained for one in written]),
            "failed": np.array([len(one.failures) for one in written]),
        }
