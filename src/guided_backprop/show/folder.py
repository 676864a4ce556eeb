"""A folder of explanations: pictures to look at, arrays to compute with, a manifest that says what they are.

- ``<name>_colour.png``, ``<name>_magnitude.png``, ``<name>_overlay.png``: one of each per image;
- ``attribution.safetensors``: the tensors attribution, scores and labels;
- ``manifest.json``: what the rest is. It is written last: if it is there, all is there.
"""

import json
import os
import platform
import re
import shutil
import sys
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from PIL import Image

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends import FRAMEWORKS
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, MissingExtraError, OptionError, OutputExistsError
from guided_backprop.record import Record
from guided_backprop.show.panels import MAPS
from guided_backprop.show.place import Place, picture_at
from guided_backprop.version import __version__

SCHEMA_VERSION = 1
ARRAYS = "attribution.safetensors"
MANIFEST = "manifest.json"

_SAVED = [panel for panel in MAPS if panel.ending is not None]
_PICTURE_NAME = re.compile(rf"[\w-]+({'|'.join(re.escape(str(panel.ending)) for panel in _SAVED)})")

# File systems end at 255 bytes; this leaves room for "_overlay.png" and a number.
_LONGEST_STEM = 150


class ExplanationFolder:
    """A folder that explanations are written to batch by batch, and that appears whole or not at all.

    Pictures are written as they come, next to where the folder will be; of each batch only attribution,
    scores and labels are kept, until ``finish`` moves everything into place. Use it in a ``with``
    statement: what was not finished is removed.

    Args:
        folder: where to write.
        overwrite: write into a folder that exists. Files of the same names are replaced, and files that
            an earlier manifest lists are removed; nothing else is touched.
        percentile: the scale of the pictures, as in :mod:`guided_backprop.render`.

    Raises:
        OutputExistsError: folder exists and ``overwrite`` is false, or it is a file.
        MissingExtraError: safetensors is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, overwrite: bool = False, percentile: float = 99.0) -> None:
        try:
            import safetensors.numpy  # noqa: F401, PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "save() needs safetensors; received an environment without it. "
                "Run: pip install 'guided-backprop[save]'."
            ) from error
        self._folder = Path(folder)
        self._overwrite = overwrite
        self._percentile = percentile
        self._partial: Path | None = None
        self._taken: set[str] = set()
        self._about: dict[str, str | None] = {}
        self._coverages: list[Coverage] = []
        self._arrays: list[dict[str, NumpyArray]] = []
        self._images: list[dict[str, object]] = []
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
        if self._arrays and self._arrays[0]["attribution"].shape[1:] != arrays["attribution"].shape[1:]:
            raise ImageError(
                "images of one folder must have one shape; received attribution of shape "
                f"{arrays['attribution'].shape[1:]} after {self._arrays[0]['attribution'].shape[1:]}. "
                "Give all images one size in the preprocessing."
            )
        files = self._write_pictures(explanations, names, places)
        self._images += [{"name": name, "files": kinds} for name, kinds in zip(names, files, strict=True)]
        self._arrays.append(arrays)
        # Not the explanations themselves: their images are drawn already, and would double the memory.
        self._coverages.append(explanations.coverage)
        self._about = {
            "method": explanations.method,
            "model": explanations.model,
            "head": explanations.head,
            "reducer": explanations.reducer,
        }
        return list(files)

    def finish(self) -> Path:
        """Write arrays and manifest, move everything into place, and return the folder.

        Raises:
            OptionError: nothing was added.
        """
        from safetensors.numpy import save_file  # noqa: PLC0415

        if not self._arrays:
            raise OptionError("a folder needs at least one batch; received none. Call add() before finish().")
        arrays = {
            name: np.ascontiguousarray(np.concatenate([batch[name] for batch in self._arrays]))
            for name in self._arrays[0]
        }
        self._arrays.clear()
        place = self._place()
        save_file(arrays, place / ARRAYS)
        # safetensors lets only the owner read its file; others may as far as they may in the folder.
        (place / ARRAYS).chmod(place.stat().st_mode & 0o666)
        manifest = json.dumps(self._manifest(arrays), indent=2) + "\n"
        (place / MANIFEST).write_text(manifest, encoding="utf-8")
        self._publish(place)
        return self._folder

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
        folder = self._place()
        if pixels is None:
            return [{} for _ in names]
        files: list[dict[str, str]] = []
        for name, image, attribution, place in zip(names, *pixels, places or [None] * len(names), strict=True):
            stem = _stem(name, self._taken)
            files.append({panel.name: f"{stem}{panel.ending}" for panel in _SAVED})
            for panel in _SAVED:
                picture = picture_at(place, panel, image, attribution, self._percentile)
                Image.fromarray(picture).save(folder / f"{stem}{panel.ending}")
        return files

    def _manifest(self, arrays: Mapping[str, NumpyArray]) -> dict[str, object]:
        labels = arrays["labels"]
        return {
            "schema_version": SCHEMA_VERSION,
            "guided_backprop": __version__,
            **self._about,
            # Weights can be a million numbers an image: they are in the arrays, not here.
            "labels": labels.tolist() if labels.ndim == 1 else None,
            "scores": arrays["scores"].tolist(),
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
            partial = parent / f".{'' if inside else target.name[:100]}.partial-{uuid.uuid4().hex[:8]}"
            partial.mkdir(parents=True)
            self._partial = partial
        return self._partial

    def _publish(self, partial: Path) -> None:
        # Once more: it may have been made in the meantime.
        _check_free(self._folder, self._overwrite)
        target = self._folder.resolve()
        if not target.exists():
            partial.rename(target)
        else:
            # The old manifest goes first and the new one comes last: a folder without one is not complete.
            stale = _listed_files(target)
            for name in (MANIFEST, *stale):
                (target / name).unlink(missing_ok=True)
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):
                path.replace(target / path.name)
            partial.rmdir()
        self._partial = None


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


def _stem(name: str, taken: set[str]) -> str:
    """Return a file name without ending for ``name``, safe on every system, and add it to ``taken``."""
    last = PurePosixPath(name.replace("\\", "/")).name
    stem, dot, ending = last.rpartition(".")
    if not dot or f".{ending.lower()}" not in Image.registered_extensions():
        stem = last
    # Word characters only: no separators, no leading dot, no device names such as "con.x", no surrogates.
    stem = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFKC", stem))
    stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore").strip("-") or "image"
    unique, number = stem, 1
    # Compared without case: some file systems do not tell Cat.png from cat.png.
    while unique.casefold() in taken:
        number += 1
        unique = f"{stem}-{number}"
    taken.add(unique.casefold())
    return unique


def _listed_files(folder: Path) -> list[str]:
    """Return the pictures that the manifest in ``folder`` lists, if it is one of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [name for image in manifest["images"] for name in image["files"].values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    # A manifest is data, not permission: only plain picture names inside the folder are ever removed.
    return [name for name in files if isinstance(name, str) and _PICTURE_NAME.fullmatch(name)]
