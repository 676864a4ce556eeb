"""Compiled graphs on disk, so that a second start need not record them again: a folder for each, there whole or not."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from guided_backprop.export.extra import package

_FILE, _SAID = "map.onnx", "entry.json"
# Where all of this library's own code is.
_CODE = Path(__file__).parents[1]


class Entry(NamedTuple):
    """A graph that was kept.

    Attributes:
        where: its folder.
        said: what was said of it, as JSON has it.
    """

    where: Path
    said: dict[str, Any]

    @property
    def path(self) -> Path:
        """The graph's file."""
        return self.where / _FILE

    def file(self, name: str) -> Path | None:
        """Return a file that was added; None if there is none, or it is not as it was written."""
        digest = self.said["files"].get(name)
        try:
            return self.where / name if digest is not None and digest == _digest(self.where / name) else None
        except OSError:
            return None


def folder() -> Path:
    """Return where graphs are kept: as ``GUIDED_BACKPROP_CACHE`` says, or where this system keeps such files."""
    return Path(os.environ.get("GUIDED_BACKPROP_CACHE") or home())


def home() -> Path:
    """Return where this system keeps what this library can make or fetch again."""
    if sys.platform == "win32":
        above = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    elif sys.platform == "darwin":
        above = Path.home() / "Library/Caches"
    else:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return above / "guided-backprop"


def entry(key: str) -> Entry | None:
    """Return what is kept by a key; None if there is nothing, or it is not as it was written."""
    where = folder() / key
    try:
        found = Entry(where, json.loads((where / _SAID).read_text()))
        return None if found.file(_FILE) is None else found
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest: str = hashlib.file_digest(file, package("xxhash").xxh3_128).hexdigest()
    return digest


@lru_cache
def digest_of_code(folder: Path = _CODE) -> str:
    """Return a digest of all Python files in a folder: what older code of this library made is made anew.

    All of them are read, once in a process, for what a graph says depends on most: what is a ReLU, what leaves it, how
    it is recorded and written. A version says less, as where the library is worked on. Where there are no files, as in
    an archive, it is that of nothing, and the version alone says it.
    """
    known = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        known.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode())
        known.update(path.read_bytes())
    return known.hexdigest()


def keep(key: str, write: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Keep what is written, in place of what was there; where nothing can be kept, it is there for this process.

    Args:
        key: by what it is found again.
        write: writes the file, and returns what is to be said of it.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder(), prefix=".draft_"))
    except OSError:
        draft = Path(tempfile.mkdtemp(prefix="guided_backprop_"))
    try:
        said = dict(write(draft / _FILE))
        said["files"] = {_FILE: _digest(draft / _FILE)}
        (draft / _SAID).write_text(json.dumps(said))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    where = folder() / key
    # Another process may have been faster, or hold the file open.
    with suppress(OSError):
        drop(key)
        draft.replace(where)
        return Entry(where, said)
    return Entry(draft, said)


def note(entry: Entry, said: Mapping[str, Any]) -> None:
    """Say more of what is kept; where nothing can be written, to this process alone."""
    entry.said.update(said)
    with suppress(OSError):
        _put(entry.where / _SAID, lambda path: path.write_text(json.dumps(entry.said)))


def add(entry: Entry, name: str, write: Callable[[Path], object]) -> None:
    """Keep another file beside the graph, if it can be written."""
    with suppress(OSError):
        _put(entry.where / name, write)
        note(entry, {"files": {**entry.said["files"], name: _digest(entry.where / name)}})


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file where nobody looks, and move it to its place."""
    draft = path.with_name(f".{os.getpid()}_{threading.get_ident()}_{path.name}")
    try:
        write(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def drop(key: str) -> None:
    """Take out what is kept by a key: moved away first, so that nobody finds half of it."""
    where = folder() / key
    if where.exists():
        away = Path(tempfile.mkdtemp(dir=folder(), prefix=".gone_"))
        where.replace(away / key)
        shutil.rmtree(away, ignore_errors=True)


def kept() -> tuple[int, int]:
    """Return how many graphs are kept, and how many bytes that are, drafts included."""
    files = [path for path in folder().rglob("*") if path.is_file()] if folder().is_dir() else []
    return sum(path.name == _SAID for path in files), sum(path.stat().st_size for path in files)


def clear() -> None:
    """Take out all that is kept, and nothing else that is there."""
    for where in list(folder().iterdir()) if folder().is_dir() else []:
        if where.is_dir() and (where.name.startswith((".draft_", ".gone_")) or (where / _SAID).exists()):
            shutil.rmtree(where, ignore_errors=True)
