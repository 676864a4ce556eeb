"""Names of files after what they show: safe on every system, and no two alike."""

import re
import unicodedata
from pathlib import PurePosixPath

from PIL import Image

# File systems end at 255 bytes; this leaves room for "_overlay.png" and a number.
_LONGEST_STEM = 150


class FileNames:
    """Names for files, without their endings, each given once; the n-th of a name has its number.

    Example:
        >>> from guided_backprop.show.names import FileNames
        >>> names = FileNames()
        >>> names.of("photos/cat.jpg"), names.of("cat.png"), names.path_of("my dogs/cat.jpg")
        ('cat', 'cat-2', 'my_dogs/cat')
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        # Up to where the numbers of a name are taken: without that, many of one name would take quadratic time.
        self._last: dict[str, int] = {}

    def of(self, name: str) -> str:
        """Return a name after the last part of a path."""
        return self._unique(_stem(PurePosixPath(name.replace("\\", "/")).name))

    def path_of(self, path: str) -> str:
        """Return a path with forward slashes after another one, relative as that is."""
        *folders, name = path.split("/")
        return self._unique("/".join([*map(_safe, folders), _stem(name)]))

    def _unique(self, name: str) -> str:
        # Compared without case: some file systems do not tell Cat.png from cat.png.
        key = name.casefold()
        number, unique = self._last.get(key, 1), name
        while unique.casefold() in self._taken:
            number += 1
            unique = f"{name}-{number}"
        self._last[key] = number
        self._taken.add(unique.casefold())
        return unique


def _stem(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return _safe(stem if dot and f".{ending.lower()}" in Image.registered_extensions() else name)


def _safe(name: str) -> str:
    # Word characters only: no separators, no leading dot, no device names such as "con.x", no surrogates.
    safe = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFKC", name))
    return safe.encode()[:_LONGEST_STEM].decode(errors="ignore").strip("-") or "image"
