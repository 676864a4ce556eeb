"""What a job wrote, read back: shard by shard, when it is asked for."""

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import OptionError
from guided_backprop.explained.read import Saved
from guided_backprop.explained.read import read as read_saved
from guided_backprop.explanations import Explanations
from guided_backprop.extras import imported
from guided_backprop.jobs.folder import Folder, folder_at
from guided_backprop.jobs.maps import restored
from guided_backprop.jobs.part import shard_name, shard_number
from guided_backprop.jobs.plan import PLAN, Plan, Shard
from guided_backprop.jobs.rows import about_of, arrow, schema
from guided_backprop.jobs.status import plan_in, shard_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray as xr

# Of a row all but its map, which is most of it.
_FACTS = "path error label score top coverage head photo box scale".split()
# What rows are kept by.
_KEPT_BY = ["path", "error", "label"]


class Maps(Sequence[Explanations]):
    """The maps of a job, one :class:`guided_backprop.Explanations` for each shard that is there, read when asked for.

    What was filtered out, and photos that could not be explained, are in no explanations; a shard may have none then.
    ``images`` and ``outputs`` were not stored, and have no columns.

    Attributes:
        plan: what was explained, and how.
        missing: the numbers of the shards that aren't there yet.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import guided_backprop as gb
        >>> photos = Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(photos / "cat.png")
        >>> _ = gb.Job(photos / "maps", photos).run()
        >>> maps = gb.read(photos / "maps")
        >>> maps[0].attribution.shape, list(maps.paths())
        ((1, 3, 224, 224), [['cat.png']])
        >>> [(paths, len(explanations)) for paths, explanations in maps.by_shard()]
        [(['cat.png'], 1)]
        >>> maps.filter(path="dog*").to_pandas()["path"].tolist()
        []
        >>> maps.to_xarray().dims, maps.dataset().count_rows()
        (('photo', 'axis_1', 'axis_2', 'axis_3'), 1)
    """

    def __init__(
        self,
        folder: Folder,
        plan: Plan,
        shards: Sequence[Shard],
        missing: Sequence[int],
        keep: "Callable[[pa.Table], NumpyArray] | None" = None,
    ) -> None:
        self.plan, self.missing = plan, missing
        self._folder, self._shards, self._keep = folder, shards, keep

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> Explanations: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "Explanations | Self":
        if isinstance(index, slice):
            return type(self)(self._folder, self.plan, self._shards[index], self.missing, self._keep)
        return _explanations(self._table(self._shards[index]))

    def __iter__(self) -> Iterator[Explanations]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        about = f"{len(self)} shards, {len(self.missing)} missing" if self.missing else f"{len(self)} shards"
        return f"Maps({str(self._folder)!r}, {self.plan.settings.method} of {self.plan.settings.model}, {about})"

    def filter(
        self, *, label: int | Sequence[int] | None = None, path: str | None = None, failed: bool | None = None
    ) -> Self:
        """Return those of some classes, of photos whose path matches a pattern, or only what failed, or what did not.

        Args:
            label: a class id, or several.
            path: as in a shell: ``"dogs/*.jpg"``.
            failed: True for photos that could not be explained, which only the table shows.
        """
        labels = None if label is None else {*np.atleast_1d(np.asarray(label)).tolist()}

        def keep(table: "pa.Table") -> NumpyArray:
            chosen = np.ones(len(table), bool) if self._keep is None else self._keep(table)
            if labels is not None:
                chosen &= np.array([one in labels for one in table["label"].to_pylist()], bool)
            if path is not None:
                chosen &= np.array([fnmatchcase(one, path) for one in table["path"].to_pylist()], bool)
            if failed is not None:
                chosen &= np.array([(one is not None) == failed for one in table["error"].to_pylist()], bool)
            return chosen

        return type(self)(self._folder, self.plan, self._shards, self.missing, keep)

    def paths(self) -> Iterator[list[str]]:
        """Yield, for each shard, the photos of its explanations."""
        for shard in self._shards:
            table = self._table(shard, _KEPT_BY)
            yield table.filter(table["error"].is_null())["path"].to_pylist()

    def by_shard(self) -> Iterator[tuple[list[str], Explanations]]:
        """Yield, for each shard, the photos of its explanations, and these."""
        for shard in self._shards:
            table = self._table(shard)
            yield table.filter(table["error"].is_null())["path"].to_pylist(), _explanations(table)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table of all but the maps: a row for each photo, also those that could not be explained.

        Raises:
            MissingExtraError: pandas isn't installed.
        """
        _package("pandas")
        return self._facts.to_pandas()

    def to_xarray(self) -> "xr.DataArray":
        """Return all maps, float32, as an array with the photos' paths, labels and scores as coordinates.

        Raises:
            OptionError: there is no shard yet.
            MissingExtraError: xarray isn't installed.
        """
        xarray = _package("xarray")
        self._require_shards("to_xarray()")
        tables = [self._table(shard) for shard in self._shards]
        parts = [_explanations(table) for table in tables]
        rows = [table.filter(table["error"].is_null()) for table in tables]
        maps = np.concatenate([part.attribution for part in parts])
        axes = ["photo", *(f"axis_{number}" for number in range(1, maps.ndim))]
        coordinates = {
            "path": ("photo", [path for table in rows for path in table["path"].to_pylist()]),
            "label": ("photo", np.concatenate([part.labels for part in parts])),
            "score": ("photo", np.concatenate([part.scores for part in parts])),
        }
        array: xr.DataArray = xarray.DataArray(maps, dims=axes, coords=coordinates, name=self.plan.settings.method)
        return array

    def dataset(self) -> Any:
        """Return all shards as they are, as a ``pyarrow.dataset.Dataset``: for queries, and for other engines.

        Raises:
            OptionError: there is no shard yet; or these are filtered: ask the data set itself for that.
        """
        self._require_shards("dataset()")
        if self._keep is not None:
            raise OptionError("dataset() is of whole shards; received filtered ones. Filter the data set itself.")
        from pyarrow.dataset import dataset  # noqa: PLC0415

        place, files = self._folder.files
        paths = [f"{place.rstrip('/')}/{shard_name(shard.number)}" for shard in self._shards]
        return dataset(paths, format="parquet", filesystem=files)

    def _require_shards(self, caller: str) -> None:
        if not self._shards:
            raise OptionError(f"{caller} needs a shard; received none, of {len(self.missing)} missing. Run the job.")

    @cached_property
    def _facts(self) -> "pa.Table":
        nothing = schema([1], np.dtype(np.float32)).empty_table().select(_FACTS)
        tables = [self._table(shard, _FACTS).replace_schema_metadata() for shard in self._shards]
        return arrow().concat_tables([nothing, *tables])

    def _table(self, shard: Shard, columns: Sequence[str] | None = None) -> "pa.Table":
        table = shard_table(self._folder, self.plan, shard, columns)
        return table if self._keep is None else table.filter(arrow().array(self._keep(table)))


def read(folder: str | os.PathLike[str]) -> Maps | Saved:
    """Read back what was written into a folder: by a job, by ``save()``, or by the command ``explain``.

    Args:
        folder: a path; or, of a job, an address such as ``s3://bucket/maps``.

    Returns:
        Of a job its maps, shard by shard; of what was saved otherwise a sequence of maps. Arrays are read when they are
        asked for.

    Raises:
        OptionError: there is no such folder, or it holds nothing that was saved, or what a later version saved.
        JobError: a job's plan is damaged; or, when it is asked for, a shard is.
        MissingExtraError: safetensors, or for a job pyarrow, is not installed.

    Example:
        >>> import tempfile, torch
        >>> import guided_backprop as gb
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> explanations = gb.GuidedBackprop(model.eval()).explain(torch.rand(2, 3, 8, 8), 1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     saved = gb.read(explanations.save(f"{parent}/maps", names=["cat.jpg", "dog.jpg"]))
        ...     print(saved[1].name, saved[1].label, saved[1].attribution.shape, saved[1].picture().size)
        dog.jpg 1 (3, 8, 8) (8, 8)
    """
    place = folder_at(folder)
    return maps_in(place) if PLAN in place.names() else read_saved(folder)


def maps_in(folder: Folder) -> Maps:
    """Return what a job wrote into a folder.

    Raises:
        JobError: there is no job.
    """
    plan = plan_in(folder)
    there = {shard_number(name) for name in folder.names()}
    shards = plan.shards()
    missing = [shard.number for shard in shards if shard.number not in there]
    return Maps(folder, plan, [shard for shard in shards if shard.number in there], missing)


def _explanations(table: "pa.Table") -> Explanations:
    """Return what is explained in a shard's rows."""
    about = about_of(table.schema)
    table = table.filter(table["error"].is_null())
    kind = table.schema.field("map").type
    held = [chunk.storage.flatten().to_numpy(zero_copy_only=False) for chunk in table["map"].chunks]
    maps = np.concatenate([np.zeros(0, kind.value_type.to_pandas_dtype()), *held]).reshape(-1, *kind.shape)
    heads = table["head"].unique().to_pylist()
    met = {tuple(Nonlinearity(**one) for one in row) for row in table["coverage"].to_pylist()}
    nothing = np.zeros((len(table), 0), np.float32)
    return Explanations(
        attribution=restored(maps, table["scale"].to_numpy()),
        images=nothing,
        labels=table["label"].to_numpy().astype(np.int64),
        scores=table["score"].to_numpy().astype(np.float64),
        outputs=nothing,
        coverage=Coverage.merge([Coverage(one) for one in sorted(met)]),
        method=about["method"],
        model=about["model"],
        head=heads[0] if heads else None,
        reducer=about["reducer"],
        channel_axis=about["channel_axis"],
    )


def _package(name: str) -> Any:
    return imported(name, who=f"to_{name}() needs", install=name)
