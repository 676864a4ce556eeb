"""Where the files of a job are: a folder of this machine, or an address of an object store.

A file is there whole, or it isn't: it is written beside its place and moved there by one rename, after it has reached
the disk. What a process that died left behind is swept by the next one that holds the same lock.
"""

import os
import re
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from guided_backprop.errors import JobError, refused_as
from guided_backprop.jobs.extra import package
from guided_backprop.jobs.part import Part, shard_number

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")
_LOCK = re.compile(r"\.part-(?P<number>\d+)-of-(?P<count>\d+)\.lock")
# How many seconds another process may take to write a plan.
_PATIENCE = 60


class Folder(ABC):
    """The files of one job, by their names: relative, with forward slashes."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __str__(self) -> str:
        return self.place

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of the files that lie in the folder itself, but for hidden ones."""

    @abstractmethod
    def opened(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file that is there, to read any part of it."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return how many bytes a file has."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file that appears under this name when the context ends without an error, instead of any before."""

    @abstractmethod
    def put(self, name: str, held: bytes) -> None:
        """Write a file in its place, in folders that are made: one that counts only if another file is there."""

    @abstractmethod
    def planning(self) -> AbstractContextManager[None]:
        """Make the folder, and let one process at a time say what the job is; the others wait.

        Raises:
            JobError: another one takes too long.
        """

    @abstractmethod
    def locked(self, part: Part) -> AbstractContextManager[list[str]]:
        """Keep others from writing what a part writes; yield the names of what dead processes had begun.

        Raises:
            JobError: another process does some of that part.
        """

    @property
    def files(self) -> tuple[str, Any]:
        """Where the files are, and in which file system of fsspec; None is this machine's."""
        return self.place, None

    def read(self, name: str) -> bytes:
        """Return the whole of a file."""
        with _named(self.place), self.opened(name) as file:
            return file.read()


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """Return the folder of a path, or of an address such as ``s3://bucket/maps``.

    Raises:
        MissingExtraError: an address needs fsspec.
    """
    text = os.fspath(place)
    if text.startswith("file://"):
        return _Local(text.removeprefix("file://"))
    return _Remote(text) if re.match(r"[a-z][a-z0-9+.-]+://", text) else _Local(text)


class _Local(Folder):
    """A folder of this machine, or one that several machines share."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        # The lock that this process holds, and what file that is: a folder that was made anew has another one.
        self._held: tuple[Path, int] | None = None

    def names(self) -> set[str]:
        with _named(self.place):
            folder = Path(self.place)
            return {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        with _named(self.place):
            file = (Path(self.place) / name).open("rb")
        with file:
            yield file

    def size(self, name: str) -> int:
        with _named(self.place):
            return (Path(self.place) / name).stat().st_size

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        target = Path(self.place) / name
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with _File(partial, str(target)) as file:
                yield file
                with _named(str(target)):
                    file.flush()
                    os.fsync(file.fileno())
            with _named(str(target)):
                self._require_same()
                partial.replace(target)
                _sync(target.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def put(self, name: str, held: bytes) -> None:
        path = Path(self.place) / name
        with _named(str(path)):
            # Not the folder itself: that one was there, and another one would be another job's.
            for folder in reversed(Path(name).parents[:-1]):
                (Path(self.place) / folder).mkdir(exist_ok=True)
            path.write_bytes(held)

    @contextmanager
    def planning(self) -> Iterator[None]:
        filelock = package("filelock")
        with ExitStack() as held:
            with _named(self.place):
                Path(self.place).mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(filelock.FileLock(Path(self.place) / ".job.lock", timeout=_PATIENCE))
                except filelock.Timeout as error:
                    raise JobError(
                        f"a job must be begun by one process; received folder={self.place!r}, and another process has "
                        f"been at that for {_PATIENCE} s. Wait for it."
                    ) from error
                self._sweep(lambda name: shard_number(name) is None)
            yield

    @contextmanager
    def locked(self, part: Part) -> Iterator[list[str]]:
        with ExitStack() as held:
            with _named(self.place):
                lock = self._lock(part, held)
                self._held = lock, lock.stat().st_ino
                owner = lock.with_suffix(".owner")
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
                held.callback(owner.unlink, missing_ok=True)
                # Whoever holds the lock is the only one to write these: another one that began them is dead.
                swept = self._sweep(part.has_file)
            yield swept

    def _lock(self, part: Part, held: ExitStack) -> Path:
        filelock = package("filelock")
        folder = Path(self.place)
        own = folder / f".part-{part.number}-of-{part.count}.lock"
        try:
            held.enter_context(filelock.FileLock(own, timeout=0))
            # Others that would write some of the same files: a lock that nobody holds is left of a dead one.
            for path in folder.iterdir():
                lock = _LOCK.fullmatch(path.name)
                if lock and path != own and part.meets(int(lock["number"]), int(lock["count"])):
                    with filelock.FileLock(path, timeout=0):
                        pass
        except filelock.Timeout as error:
            raise self._taken(Path(error.lock_file), part) from error
        return own

    def _taken(self, lock: Path, part: Part) -> JobError:
        owner = "another process"
        with suppress(OSError):
            owner = lock.with_suffix(".owner").read_text("utf-8")
        return JobError(
            f"a part of a job must be done by one process; received folder={self.place!r} for part {part}, and "
            f"{owner} is at it. Wait for it, or give each process a part of its own (--part)."
        )

    def _require_same(self) -> None:
        """Refuse to write into a folder that took the place of the one that the run began in."""
        if self._held is not None and self._held[0].stat().st_ino != self._held[1]:
            raise FileNotFoundError(2, "it was removed, and made anew", self.place)

    def _sweep(self, is_own: Callable[[str], bool]) -> list[str]:
        """Remove what was begun of some files, and return their names."""
        swept = []
        for path in Path(self.place).iterdir():
            partial = _PARTIAL.fullmatch(path.name)
            if partial and is_own(partial["name"]):
                path.unlink(missing_ok=True)
                swept.append(partial["name"])
        return sorted(swept)


class _Remote(Folder):
    """An address that fsspec knows: what is put there appears when it is complete, as object stores have it."""

    def __init__(self, place: str) -> None:
        super().__init__(place.rstrip("/"))
        with _named(place):
            self._files, self._root = package("fsspec.core").url_to_fs(self.place)

    @property
    def files(self) -> tuple[str, Any]:
        return self._root, self._files

    def names(self) -> set[str]:
        with _named(self.place):
            self._files.invalidate_cache(self._root)
            if not self._files.isdir(self._root):
                return set()
            paths = self._files.ls(self._root, detail=False)
            return {name for name in (str(path).rpartition("/")[2] for path in paths) if name and name[0] != "."}

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        with _named(self.place):
            file = self._files.open(f"{self._root}/{name}", "rb")
        with file:
            yield file

    def size(self, name: str) -> int:
        with _named(self.place):
            return int(self._files.size(f"{self._root}/{name}"))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        # Kept here until it is whole: not every store drops what was begun and failed.
        with TemporaryDirectory() as folder:
            held = Path(folder) / "file"
            with _File(held, str(held)) as file:
                yield file
            with _named(f"{self.place}/{name}"):
                self._files.makedirs(self._root, exist_ok=True)
                self._files.put_file(str(held), f"{self._root}/{name}")

    def put(self, name: str, held: bytes) -> None:
        with _named(f"{self.place}/{name}"):
            self._files.pipe_file(f"{self._root}/{name}", held)

    @contextmanager
    def planning(self) -> Iterator[None]:
        yield

    @contextmanager
    def locked(self, part: Part) -> Iterator[list[str]]:
        # An object store has no locks. Two that do one part do it twice, and the second gives the same file.
        yield []


class _File(BufferedWriter):
    """A new file; what the system refuses to write to it is an error of ours, whoever writes."""

    def __init__(self, path: Path, place: str) -> None:
        self._place = place
        with _named(place):
            super().__init__(FileIO(path, "xb"))

    def write(self, held: "Buffer", /) -> int:
        with _named(self._place):
            return super().write(held)

    def flush(self) -> None:
        with _named(self._place):
            super().flush()


def _named(place: str) -> AbstractContextManager[None]:
    """Say of what the system refuses which place it was."""
    return refused_as(
        lambda reason: JobError(
            f"a job's folder must be one that can be written to and read; received {place!r:.300} ({reason}). "
            "What was finished is there: mend that, and go on with resume (--resume)."
        )
    )


def _sync(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the system can be asked for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
