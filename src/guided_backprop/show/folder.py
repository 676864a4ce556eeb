"""A folder of explanations: pictures to look at, arrays to compute with, a manifest that says what they are.

- ``<name>_colour.png``, ``<name>_magnitude.png``, ``<name>_overlay.png``: one of each per image;
- ``attribution.safetensors``: the tensors attribution, scores and labels, and if asked images and outputs;
- ``manifest.json``: what the rest is. It is written last: if it is there, all is there.
"""

import glob
import json
import os
import platform
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
from PIL import Image

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends import FRAMEWORKS
from guided_backprop.coverage import Coverage
from guided_backprop.errors import (
    ImageError,
    OptionError,
    OutputError,
    OutputExistsError,
    refused_as,
)
from guided_backprop.extras import imported
from guided_backprop.record import Record
from guided_backprop.show.arrays_file import ArraysFile
from guided_backprop.show.names import FileNames
from guided_backprop.show.panels import MAPS
from guided_backprop.show.place import Place, picture_at
from guided_backprop.version import __version__

SCHEMA_VERSION = 1
ARRAYS = "attribution.safetensors"
MANIFEST = "manifest.json"

_SAVED = [panel for panel in MAPS if panel.ending is not None]
#: What a picture of ours is called, by which alone a manifest may name it.
PICTURE_NAME = re.compile(rf"[\w-]+({'|'.join(re.escape(str(panel.ending)) for panel in _SAVED)})")
_PARTIAL = re.compile(r"\..*\.partial-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}")
_HOST = re.sub(r"[^\w.-]+", "_", socket.gethostname())[:60]


class ExplanationFolder:
    """A folder that explanations are written to batch by batch, and that appears whole or not at all.

    All is written as it comes, next to where the folder will be, until ``finish`` moves everything into place; one
    batch is in memory. Use it in a ``with`` statement: what was not finished is removed.

    Args:
        folder: where to write.
        overwrite: write into a folder that exists. Files of the same names are replaced, and files that
            an earlier manifest lists are removed; nothing else is touched.
        percentile: the scale of the pictures, as in :mod:`guided_backprop.render`.
        images: keep images and outputs too.

    Raises:
        OutputExistsError: folder exists and ``overwrite`` is false, or it is a file.
        OutputError: the system refuses to write there; all that writes raises it.
        MissingExtraError: safetensors is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        percentile: float = 99.0,
        images: bool = False,
    ) -> None:
        imported("safetensors.numpy", who="save() needs", install="'guided-backprop[save]'")
        self._folder = Path(folder)
        self._overwrite = overwrite
        self._percentile = percentile
        self._has_images = images
        self._partial: Path | None = None
        self._file_names = FileNames()
        self._about: dict[str, str | int | None] = {}
        self._coverages: list[Coverage] = []
        self._arrays: ArraysFile | None = None
        # Of all images: for people, who look into the manifest.
        self._scores: list[float] = []
        self._labels: list[object] | None = []
        self._images: list[dict[str, object]] = []
        with self._writable():
            _check_free(self._folder, overwrite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(
        self,
        explanations: Record,
        names: Sequence[str] | None = None,
        places: Sequence[Place | None] = (),
    ) -> list[Mapping[str, str]]:
        """Write the pictures of one batch and keep its arrays.

        Args:
            explanations: of the same model and method as those before.
            names: one per image. Files are called after their last part, without the ending, made safe
                as a file name and made unique by a number.
            places: the photo that each image was cut from, on which its pictures are drawn, or None; empty to draw
                the images as they are.

        Returns:
            For each image the file names of its pictures by kind; empty if it is not picture-like.

        Raises:
            OptionError: names are not one string per image.
            ImageError: the attribution's shape differs from the batches before.
        """
        names = self._checked_names(names, len(explanations))
        arrays = {
            "attribution": as_numpy(explanations.attribution),
            "scores": np.asarray(explanations.scores),
            "labels": np.asarray(explanations.labels),
        }
        if self._has_images:
            arrays |= {"images": as_numpy(explanations.images), "outputs": explanations.outputs}
        labels = arrays["labels"].tolist() if arrays["labels"].ndim == 1 else None
        if arrays["labels"].dtype.kind == "U":
            # The names of functions, which no tensor holds: they are in the manifest.
            del arrays["labels"]
        shape = arrays["attribution"].shape[1:]
        known = {} if self._arrays is None else self._arrays.shapes
        if known.get("attribution", shape) != shape:
            raise ImageError(
                "images of one folder must have one shape; received attribution of shape "
                f"{shape} after {known['attribution']}. Give all images one size in the preprocessing."
            )
        files = self._write_pictures(explanations, names, places)
        self._images += [{"name": name, "files": kinds} for name, kinds in zip(names, files, strict=True)]
        self._keep(arrays)
        self._scores += explanations.scores.tolist()
        # Weights can be a million numbers an image: they are in the arrays, not in the manifest.
        self._labels = None if self._labels is None or labels is None else self._labels + labels
        self._coverages.append(explanations.coverage)
        self._about = {
            "method": explanations.method,
            "model": explanations.model,
            "head": explanations.head,
            "reducer": explanations.reducer,
            "channel_axis": explanations.channel_axis,
        }
        return list(files)

    def finish(self) -> Path:
        """Write arrays and manifest, move everything into place, and return the folder.

        Raises:
            OptionError: nothing was added.
        """
        from safetensors import safe_open  # noqa: PLC0415

        if self._arrays is None:
            raise OptionError("a folder needs at least one batch; received none. Call add() before finish().")
        with self._writable():
            place = self._place()
            self._arrays.finish(place / ARRAYS)
            with safe_open(place / ARRAYS, framework="numpy"):
                pass  # What is put in place is readable.
            manifest = json.dumps(self._manifest(), indent=2) + "\n"
            (place / MANIFEST).write_text(manifest, encoding="utf-8")
            self._publish(place)
            _sweep(self._folder.resolve())
        return self._folder

    def _keep(self, arrays: Mapping[str, NumpyArray]) -> None:
        with self._writable():
            if self._arrays is None:
                self._arrays = ArraysFile(self._place())
            self._arrays.add(arrays)

    def _writable(self) -> AbstractContextManager[None]:
        """Say of what the system refuses which folder it was."""
        return refused_as(
            lambda reason: OutputError(
                f"folder must be one that can be written to; received folder={str(self._folder)!r:.300} ({reason}). "
                "Choose another one, or make room."
            )
        )

    def _checked_names(self, names: Sequence[str] | None, count: int) -> list[str]:
        if names is None:
            return [f"image-{len(self._images) + row:05d}" for row in range(count)]
        if isinstance(names, str) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise OptionError(
                f"names must be one string per image; received names={names!r:.80} for {count} images. "
                "Pass a list of strings, or None."
            )
        return list(names)

    def _write_pictures(
        self, explanations: Record, names: Sequence[str], places: Sequence[Place | None]
    ) -> list[dict[str, str]]:
        pixels = explanations.pictures()
        with self._writable():
            folder = self._place()
        if pixels is None:
            return [{} for _ in names]
        files: list[dict[str, str]] = []
        for name, image, attribution, place in zip(names, *pixels, places or [None] * len(names), strict=True):
            stem = self._file_names.of(name)
            files.append({panel.name: f"{stem}{panel.ending}" for panel in _SAVED})
            for panel in _SAVED:
                picture = picture_at(place, panel, image, attribution, self._percentile)
                with self._writable():
                    Image.fromarray(picture).save(folder / f"{stem}{panel.ending}")
        return files

    def _manifest(self) -> dict[str, object]:
        return {
            "schema_version": SCHEMA_VERSION,
            "guided_backprop": __version__,
            **self._about,
            "labels": self._labels,
            "scores": self._scores,
            "coverage": [row._asdict() for row in Coverage.merge(self._coverages)],
            "percentile": self._percentile,
            "arrays": ARRAYS,
            "images": self._images,
            "versions": versions(),
        }

    def _place(self) -> Path:
        """Return the hidden folder that is written to until all is complete, on the same file system."""
        if self._partial is None:
            target = self._folder.resolve()
            inside = target.is_dir()
            parent = target if inside else target.parent
            owner = f"{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            partial = parent / f".{'' if inside else target.name[:60]}.partial-{owner}"
            partial.mkdir(parents=True)
            self._partial = partial
        return self._partial

    def _publish(self, partial: Path) -> None:
        target = self._folder.resolve()
        try:
            # Once more: it may have been made in the meantime.
            _check_free(self._folder, self._overwrite)
            if not target.exists():
                partial.rename(target)
            else:
                stale = _listed_files(target) - {path.name for path in partial.iterdir()}
                _swap(target, partial)
                for name in stale:
                    (target / name).unlink(missing_ok=True)
                shutil.rmtree(partial)
        except OSError as error:
            self._keep_elsewhere(partial, target, error)
        self._partial = None

    def _keep_elsewhere(self, partial: Path, target: Path, error: OSError) -> NoReturn:
        """Let what is finished stay where it can, and say where."""
        free = (target.with_name(f"{target.name}-{number}") for number in count(2))
        kept = next(path for path in free if not os.path.lexists(path))
        try:
            partial.rename(kept)
        except OSError:
            kept = partial
        self._partial = None
        kind = OutputExistsError if isinstance(error, FileExistsError | IsADirectoryError) else OutputError
        reason = "it appeared meanwhile" if isinstance(error, OutputExistsError) else error
        raise kind(
            f"folder must be as it was when this began; received folder={str(self._folder)!r} ({reason}). "
            f"What was finished is in {str(kept)!r}; move it from there."
        ) from error


def _swap(target: Path, partial: Path) -> None:
    """Move files into a folder, in the place of those that are called alike: all of them, or none.

    Raises:
        IsADirectoryError: one of the names is a folder's.
        OSError: the system refuses; all is as it was.
    """
    names = sorted((path.name for path in partial.iterdir()), key=lambda name: name == MANIFEST)
    blocked = next((name for name in names if (target / name).is_dir()), None)
    if blocked is not None:
        raise IsADirectoryError(21, "a folder has the name of a file", blocked)
    old = partial / ".old"
    old.mkdir()
    moved: list[str] = []
    try:
        # The old manifest goes first and the new one comes last: a folder without one is not complete.
        for name in (MANIFEST, *names[:-1]):
            if os.path.lexists(target / name):
                (target / name).rename(old / name)
        for name in names:
            (partial / name).rename(target / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            (target / name).rename(partial / name)
        for path in old.iterdir():
            path.rename(target / path.name)
        old.rmdir()
        raise


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that died had begun, in this folder or beside it for this one."""
    hidden = [*target.glob("..partial-*"), *target.parent.glob(f".{glob.escape(target.name[:60])}.partial-*")]
    for path in hidden:
        partial = _PARTIAL.fullmatch(path.name)
        if partial and partial["host"] == _HOST and not _is_alive(int(partial["process"])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    # Elsewhere a signal of number 0 is no question.
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def versions() -> dict[str, str]:
    """Return the versions of Python, NumPy and the frameworks in use."""
    frameworks = {
        name: str(sys.modules[name].__version__) for name in FRAMEWORKS if hasattr(sys.modules.get(name), "__version__")
    }
    return {"python": platform.python_version(), "numpy": np.__version__, **frameworks}


def _check_free(folder: Path, overwrite: bool) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExistsError(
            f"folder must be a folder or not exist; received folder={str(folder)!r}, which is a file. "
            "Choose another name."
        )
    if folder.is_dir() and not overwrite:
        raise OutputExistsError(
            f"folder must not exist yet; received folder={str(folder)!r}, which does. "
            "Choose another name, or pass overwrite=True (--overwrite)."
        )


def _listed_files(folder: Path) -> set[str]:
    """Return the pictures that the manifest in ``folder`` lists, if it is one of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [name for image in manifest["images"] for name in image["files"].values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()
    # A manifest is data, not permission: only plain picture names inside the folder are ever removed.
    return {name for name in files if isinstance(name, str) and PICTURE_NAME.fullmatch(name)}
