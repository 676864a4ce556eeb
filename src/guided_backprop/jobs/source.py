"""Where the photos of a job are: below a folder of this machine, or of an object store."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol

from guided_backprop.errors import ImageError, JobError
from guided_backprop.jobs.extra import package
from guided_backprop.jobs.plan import Photo
from guided_backprop.photos import photo_endings, photo_files

_ADDRESS = "://"


class Source(Protocol):
    """The photos of a job."""

    def listed(self) -> list[Photo]:
        """Return all photos, sorted by their paths."""

    def opened(self, photo: Photo) -> IO[bytes]:
        """Return a photo's file, called by its relative path.

        Raises:
            ImageError: the photo is not what it was when the job began.
        """


def source_of(places: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, recursive: bool = True) -> Source:
    """Return the photos of a folder, an address such as ``s3://bucket/photos``, or of several files and folders.

    Raises:
        JobError: there is no such place, or several addresses.
    """
    several = [places] if isinstance(places, str | os.PathLike) else list(places)
    texts = [os.fspath(place) for place in several]
    if any(_ADDRESS in text for text in texts):
        if len(texts) > 1:
            raise JobError(f"photos must be below one address; received {len(texts)} places. Pass one of them.")
        return _Remote(texts[0], recursive=recursive)
    return _Local([Path(text) for text in texts], recursive=recursive)


class _Local:
    def __init__(self, places: Sequence[Path], *, recursive: bool) -> None:
        missing = next((place for place in places if not place.exists()), None)
        if missing is not None or not places:
            raise JobError(f"photos must be there; received {str(missing)!r}, and no such place. Pass another one.")
        self._places, self._recursive = [place.resolve() for place in places], recursive
        self._root = Path(os.path.commonpath([place if place.is_dir() else place.parent for place in self._places]))

    def listed(self) -> list[Photo]:
        paths = photo_files(self._places, recursive=self._recursive).paths
        unique = {path.relative_to(self._root).as_posix(): path for path in paths}
        return [Photo(name, path.stat().st_size) for name, path in sorted(unique.items())]

    def opened(self, photo: Photo) -> IO[bytes]:
        try:
            return _held((self._root / photo.path).read_bytes(), photo)
        except OSError as error:
            raise _changed(photo, error.strerror) from error


class _Remote:
    def __init__(self, place: str, *, recursive: bool) -> None:
        self._place, self._recursive = place, recursive
        self._files, self._root = package("fsspec.core").url_to_fs(place.rstrip("/"))

    def listed(self) -> list[Photo]:
        depth = None if self._recursive else 1
        try:
            entries: dict[str, Any] = self._files.find(self._root, maxdepth=depth, detail=True)
        except OSError as error:
            raise JobError(f"photos must be there; received {self._place!r} ({error}). Pass another one.") from error
        endings = photo_endings()
        photos = []
        for path, entry in entries.items():
            name = path.removeprefix(self._root).lstrip("/")
            is_hidden = any(part.startswith(".") for part in name.split("/"))
            if not is_hidden and Path(name).suffix.lower() in endings:
                photos.append(Photo(name, int(entry["size"])))
        return sorted(photos)

    def opened(self, photo: Photo) -> IO[bytes]:
        try:
            return _held(self._files.cat_file(f"{self._root}/{photo.path}"), photo)
        except OSError as error:
            raise _changed(photo, str(error)) from error


class _File(BytesIO):
    """A file's bytes, called by the path that it has in the job: so a row's error is the same wherever it is made."""

    def __init__(self, held: bytes, name: str) -> None:
        super().__init__(held)
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)


def _held(held: bytes, photo: Photo) -> IO[bytes]:
    if len(held) != photo.size:
        raise _changed(photo, f"{len(held)} bytes")
    return _File(held, photo.path)


def _changed(photo: Photo, now: str | None) -> ImageError:
    return ImageError(
        f"image must be as it was when the job began, {photo.size} bytes; received path={photo.path!r} ({now}). "
        "Put it back, or begin another job."
    )
