"""Compiled graphs on disk, so that a second start need not record them again: a folder for each, there whole or not."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_FILE, _SAID = "map.onnx", "entry.json"


class Entry(NamedTuple):
    """A graph that was kept.

    Attributes:
        path: the file.
        said: what was said of it, as JSON has it.
    """

    path: Path
    said: Mapping[str, Any]


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
        said = json.loads((where / _SAID).read_text())
        is_whole = said["sha256"] == _digest(where / _FILE)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Entry(where / _FILE, said) if is_whole else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        said["sha256"] = _digest(draft / _FILE)
        (draft / _SAID).write_text(json.dumps(said))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    where = folder() / key
    # Another process may have been faster, or hold the file open.
    with suppress(OSError):
        drop(key)
        draft.replace(where)
        return Entry(where / _FILE, said)
    return Entry(draft / _FILE, said)


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
