"""Where the photos of a job are: below a folder of this machine, or of an object store."""

import os
import stat
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from guided_backprop.errors import ImageError, JobError
from guided_backprop.jobs.extra import package
from guided_backprop.jobs.plan import Photo
from guided_backprop.photos import Skipped, photo_endings, photo_files

_ADDRESS = "://"
#: A file, a folder, or an address.
Where = str | os.PathLike[str]


class Listed(NamedTuple):
    """The photos of a job, each once, in the order in which they were given or lie in folders; and what is none."""

    photos: Sequence[Photo]
    skipped: Sequence[Skipped] = ()


class Source(Protocol):
    """Where the photos of a job are."""

    def listed(self, without: Where) -> Listed:
        """Return all photos, but for what is in one folder, and what lies beside them.

        Raises:
            JobError: a folder can't be looked into.
        """

    def opened(self, photo: Photo) -> IO[bytes]:
        """Return a photo's file, called by its relative path.

        Raises:
            ImageError: the photo is not what it was when the job began.
        """


def source_of(places: Where | Sequence[Where], *, recursive: bool = True) -> Source:
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
        missing = next((place for place in places if not _is_there(place)), None)
        if missing is not None or not places:
            raise JobError(f"photos must be there; received {str(missing)!r:.300}, and no such place. Pass another.")
        # A link to a file keeps its own name.
        self._places = [place.resolve() if place.is_dir() else place.parent.resolve() / place.name for place in places]
        self._recursive = recursive
        self._root = _root([place if place.is_dir() else place.parent for place in self._places])

    def listed(self, without: Where) -> Listed:
        try:
            output = Path(os.path.realpath(without))
        # A name that no folder can have, or one within a folder that was removed.
        except (OSError, ValueError) as error:
            raise JobError(f"a job's folder must be one; received {str(without)!r} ({error}). Pass another.") from error
        try:
            files = photo_files(self._places, recursive=self._recursive)
        except OSError as error:
            raise JobError(
                f"folders of photos must be readable; received {error.filename!r} ({error.strerror}). "
                "Allow that, or pass others."
            ) from error
        # What a run drew is no photo for the next.
        paths = [path for path in files.paths if not path.is_relative_to(output)]
        photos = {
            name: Photo(name, _size(path)) for path in paths for name in [path.relative_to(self._root).as_posix()]
        }
        return Listed([*photos.values()], [one for one in files.skipped if one.path != output])

    def opened(self, photo: Photo) -> IO[bytes]:
        try:
            with open(self._root / photo.path, "rb", opener=_without_waiting) as file:
                now = os.fstat(file.fileno())
                if not stat.S_ISREG(now.st_mode):
                    raise _changed(photo, "it is no regular file")
                return _held(file.read(photo.size + 1), photo, now.st_size)
        except OSError as error:
            raise _changed(photo, error.strerror) from error


class _Remote:
    def __init__(self, place: str, *, recursive: bool) -> None:
        self._place, self._recursive = place.rstrip("/"), recursive
        self._files, self._root = package("fsspec.core").url_to_fs(self._place)

    def listed(self, without: Where) -> Listed:
        depth = None if self._recursive else 1
        try:
            entries: dict[str, Any] = self._files.find(self._root, maxdepth=depth, detail=True)
        except OSError as error:
            raise JobError(f"photos must be there; received {self._place!r} ({error}). Pass another one.") from error
        endings, output = photo_endings(), f"{os.fspath(without).rstrip('/')}/"
        photos = []
        for path, entry in entries.items():
            name = path.removeprefix(self._root).lstrip("/")
            is_hidden = any(part.startswith(".") for part in name.split("/"))
            is_output = f"{self._place}/{name}".startswith(output)
            if not is_hidden and not is_output and Path(name).suffix.lower() in endings:
                photos.append(Photo(name, int(entry["size"])))
        return Listed(sorted(photos))

    def opened(self, photo: Photo) -> IO[bytes]:
        try:
            held = self._files.cat_file(f"{self._root}/{photo.path}")
        except (FileNotFoundError, PermissionError) as error:
            raise _changed(photo, str(error)) from error
        # Another time it may be there: that is no row for ever.
        except OSError as error:
            raise JobError(
                f"photos must be readable; received path={photo.path!r} in {self._place!r} ({error}). "
                "What was finished is there: go on with resume (--resume)."
            ) from error
        return _held(held, photo, len(held))


class _File(BytesIO):
    """A file's bytes, called by the path that it has in the job: so a row's error is the same wherever it is made."""

    def __init__(self, held: bytes, name: str) -> None:
        super().__init__(held)
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    # A name that no file can have.
    except (OSError, ValueError):
        return False


def _root(folders: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:
        raise JobError(f"photos must be on one drive; received {error}. Make a job of each.") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    # It has gone meanwhile: which its row will say.
    except OSError:
        return 0


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe nobody's writing is waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _held(held: bytes, photo: Photo, size: int) -> IO[bytes]:
    if len(held) != photo.size or size != photo.size:
        raise _changed(photo, f"{size} bytes")
    return _File(held, photo.path)


def _changed(photo: Photo, now: str | None) -> ImageError:
    return ImageError(
        f"image must be as it was when the job began, {photo.size} bytes; received path={photo.path!r} ({now}). "
        "Put it back, or begin another job."
    )
