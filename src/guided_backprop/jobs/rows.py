"""The rows of a shard: what is known of each photo, as a table of Arrow, and as a file of Parquet.

Columns:

- ``path``: the photo; ``error``: why it could not be explained, else null, and then all others are null;
- ``label``, ``score``: the class that was explained, and the number whose gradient the map is;
- ``top``: the best classes and their probabilities, best first, where the model is a classifier;
- ``coverage``: the non-linearities on the way, how often, and what was done with each; ``head``: what was undone;
- ``photo``, ``box``: the photo's width and height, and left, top, right and bottom of what the network saw of it;
- ``map``: the attribution, a tensor of one shape in all rows; ``scale``: what its numbers are multiples of.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage
from guided_backprop.jobs.extra import package

if TYPE_CHECKING:
    import pyarrow as pa


# Columns of texts, where rows are handed to an engine.
_TEXTS = ("path", "error", "coverage", "head")
# What a file says of itself.
_ABOUT = "guided_backprop"


class Row(NamedTuple):
    """What is known of one photo; see above."""

    path: str
    error: str | None = None
    label: int | None = None
    score: float | None = None
    top: Sequence[tuple[int, float]] | None = None
    coverage: Coverage | None = None
    head: str | None = None
    photo: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    map: NumpyArray | None = None
    scale: float | None = None


def storable(text: str) -> str:
    r"""Return a text as UTF-8 can hold it: of a file's name, the bytes that are none are spelled ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


def arrow() -> Any:
    """Return pyarrow, with its Parquet.

    Raises:
        MissingExtraError: it isn't installed.
    """
    package("pyarrow.parquet")
    return package("pyarrow")


def schema(shape: Sequence[int], dtype: np.dtype[Any]) -> "pa.Schema":
    """Return the columns of maps of a shape, as they are stored."""
    pa = arrow()
    top = pa.struct([("label", pa.int64()), ("probability", pa.float32())])
    met = pa.struct([("name", pa.string()), ("count", pa.int64()), ("treatment", pa.string())])
    return pa.schema(
        [
            ("path", pa.string()),
            ("error", pa.string()),
            ("label", pa.int64()),
            ("score", pa.float64()),
            ("top", pa.list_(top)),
            ("coverage", pa.list_(met)),
            ("head", pa.string()),
            ("photo", pa.list_(pa.int32(), 2)),
            ("box", pa.list_(pa.float64(), 4)),
            ("map", pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape)),
            ("scale", pa.float32()),
        ]
    )


def table(rows: Sequence[Row], columns: "pa.Schema") -> "pa.Table":
    """Return rows as a table."""
    pa = arrow()
    held = {name: [getattr(row, name) for row in rows] for name in columns.names if name not in ("top", "coverage")}
    held["top"] = [row.top and [{"label": label, "probability": share} for label, share in row.top] for row in rows]
    held["coverage"] = [row.coverage and [met._asdict() for met in row.coverage] for row in rows]
    arrays = [
        _tensors(held[column.name], column.type) if column.name == "map" else pa.array(held[column.name], column.type)
        for column in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def _tensors(maps: Sequence[NumpyArray | None], kind: Any) -> Any:
    pa = arrow()
    size = int(np.prod(kind.shape))
    numbers = np.zeros((len(maps), size), kind.value_type.to_pandas_dtype())
    for place, tensor in zip(numbers, maps, strict=True):
        if tensor is not None:
            place[:] = tensor.reshape(-1)
    absent = pa.array([tensor is None for tensor in maps])
    flat = pa.array(numbers.reshape(-1), kind.value_type)
    storage = pa.FixedSizeListArray.from_arrays(flat, type=kind.storage_type, mask=absent)
    return pa.ExtensionArray.from_storage(kind, storage)


def sealed(about: Mapping[str, object], columns: "pa.Schema") -> "pa.Schema":
    """Return columns with what a file says of itself, and a digest of that: only pages have checksums of their own."""
    tensors = columns.field("map").type
    said = json.dumps({**about, "shape": tensors.shape, "dtype": np.dtype(tensors.value_type.to_pandas_dtype()).name})
    return columns.with_metadata({_ABOUT: said, f"{_ABOUT}.sha256": sha256(said.encode()).hexdigest()})


def about_of(columns: "pa.Schema") -> dict[str, Any]:
    """Return what a shard says of itself.

    Raises:
        ValueError: that isn't what was written, or the columns are others.
    """
    metadata = columns.metadata or {}
    said = metadata.get(_ABOUT.encode(), b"")
    if sha256(said).hexdigest().encode() != metadata.get(f"{_ABOUT}.sha256".encode()):
        raise ValueError("what it says of itself is damaged")
    about: dict[str, Any] = json.loads(said)
    if not columns.equals(schema(about["shape"], np.dtype(about["dtype"]))):
        raise ValueError("its columns are damaged")
    return about


def as_columns(rows: Sequence[Row], blank: Row) -> dict[str, NumpyArray]:
    """Return rows as arrays, one for each column, and always of the same kind; what a row lacks ``blank`` has."""
    columns = {}
    for name, lacking in blank._asdict().items():
        held = [lacking if row is None else row for row in (getattr(row, name) for row in rows)]
        columns[name] = np.array([str(one) for one in held], object) if name in _TEXTS else np.array(held)
    return columns


class Writer:
    """Writes the rows of one shard, batch by batch, in a ``with`` statement; pages carry a checksum.

    Args:
        file: where to.
        columns: as from :func:`sealed`.
    """

    def __init__(self, file: IO[bytes], columns: "pa.Schema") -> None:
        # Split into bytes, the ones that tell the size lie beside each other: numbers that differ share them. A number
        # of eight bits Parquet writes in 32, but its place in a list of all there are, a dictionary, in eight.
        is_byte = columns.field("map").type.value_type.bit_width == 8
        numbers = "map.list.element"
        self._columns = columns
        self._writer = arrow().parquet.ParquetWriter(
            file,
            self._columns,
            compression="zstd",
            use_dictionary=["head", "error", *([numbers] if is_byte else [])],
            column_encoding=None if is_byte else {numbers: "BYTE_STREAM_SPLIT"},
            write_page_checksum=True,
            # They would stand where there are no checksums.
            write_statistics=False,
        )

    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows."""
        self._writer.write_table(table(rows, self._columns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # It has to be closed as long as the file is open, also where that can't be written to any more.
        with suppress(Exception) if kind else nullcontext():
            self._writer.close()
