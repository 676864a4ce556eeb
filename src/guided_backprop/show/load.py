"""Reading back a folder of explanations: what its manifest says, and its arrays, one by one or all as a record."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.extras import imported
from guided_backprop.record import Record
from guided_backprop.show.folder import ARRAYS, MANIFEST, SCHEMA_VERSION

Read = TypeVar("Read")
Loaded = TypeVar("Loaded", bound=Record)


def load(folder: str | os.PathLike[str], kind: type[Loaded]) -> Loaded:
    """Return what was saved, as a record of a kind; see ``Explanations.load``.

    Raises:
        OptionError: the folder holds nothing that was saved.
        ImageError: its arrays aren't those that were saved.
        MissingExtraError: safetensors is not installed.
    """
    return said_in(Path(folder), "load()", lambda place, said: _record(place, said, kind))


def _record(folder: Path, said: Mapping[str, Any], kind: type[Loaded]) -> Loaded:
    count = len(said["images"])
    with _opened(folder) as arrays:
        there = set(arrays.keys())
    nothing = np.zeros((count, 0), np.float32)
    images, outputs = (array_of(folder, name, count) if name in there else nothing for name in ("images", "outputs"))
    # The names of functions, which no tensor holds.
    labels = array_of(folder, "labels", count) if "labels" in there else np.array(said["labels"])
    attribution, scores = array_of(folder, "attribution", count), array_of(folder, "scores", count)
    return kind(
        attribution=attribution,
        images=images,
        labels=labels,
        scores=scores.astype(np.float64),
        outputs=outputs,
        coverage=Coverage([Nonlinearity(**row) for row in said["coverage"]]),
        method=said["method"],
        model=said["model"],
        head=said["head"],
        reducer=said["reducer"],
        # What an earlier version saved doesn't say it.
        channel_axis=said.get("channel_axis"),
    )


def said_in(folder: Path, caller: str, read: Callable[[Path, Mapping[str, Any]], Read]) -> Read:
    """Return what ``read`` makes of a folder and of what its manifest says.

    Raises:
        OptionError: there is none, it is of a later version, or ``read`` finds that it says something else.
        MissingExtraError: safetensors is not installed.
    """
    imported("safetensors", who=f"{caller} needs", install="'guided-backprop[save]'")
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = said["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {version!r} and not {SCHEMA_VERSION}")
        for name in ("method", "model"):
            if not isinstance(said[name], str):
                raise TypeError(f"its {name} is {said[name]!r:.80}")
        count, lengths = (
            len(said["images"]),
            {len(said[name]) for name in ("labels", "scores") if said[name] is not None},
        )
        if lengths != {count}:
            raise ValueError(f"its labels and scores are not {count}, as its images")
        return read(folder, said)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ImageError):
            raise
        raise OptionError(
            f"folder must be one that save() or the command explain wrote; received folder={os.fspath(folder)!r}, "
            f"whose {MANIFEST} cannot be read ({error}). Pass another folder."
        ) from error


def array_of(folder: Path, name: str, count: int, row: int | None = None) -> NumpyArray:
    """Return an array of a folder of so many images, or a row of it alone.

    Raises:
        ImageError: it isn't there as it was saved.
    """
    array: NumpyArray
    with _opened(folder) as arrays:
        rows = arrays.get_slice(name).get_shape()[0]
        if rows != count:
            raise ValueError(f"{name} of {rows} images, where {MANIFEST} has {count}")
        array = arrays.get_tensor(name) if row is None else arrays.get_slice(name)[row]
    return array


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(folder / ARRAYS, framework="numpy") as arrays:
            yield arrays
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise ImageError(
            f"{ARRAYS} must be as it was saved; received that of {str(folder)!r} ({error}). Save it anew."
        ) from error
