"""The files of a report: one page; of more than 200 images several, with an index of all.

A full page is written at once, beside where it will be, so that of many images no pictures are held in memory. The
pages appear at the end, all or none, the index last.
"""

import base64
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from guided_backprop.errors import OutputExistsError
from guided_backprop.report.inline import base_style, environment, source_hash, text_of
from guided_backprop.trust.likeness import Likeness, number

if TYPE_CHECKING:
    from jinja2 import Environment

# A page of as many images and the usual five maps has about 60 MB, which browsers still scroll.
PER_PAGE = 200


@dataclass(frozen=True)
class Map:
    """One map of an image: by which method, what its colours mean, the picture as a URI, whether it is shown first."""

    method: str
    kind: str
    uri: str
    is_first: bool = False


@dataclass(frozen=True)
class Entry:
    """What a page shows of one image; of its classes the best with their probabilities.

    ``is_exact`` says that the page holds each pixel; ``caption`` stands below the photo, ``warning`` beside it.
    """

    name: str
    label: str
    score: float
    size: tuple[int, int]
    is_exact: bool
    best: Sequence[tuple[float, str]]
    photo: str
    maps: Sequence[Map]
    likeness: Likeness
    caption: str
    warning: str = ""

    @property
    def title(self) -> str:
        """The last part of the name, if it is a path."""
        return self.name.replace("\\", "/").rstrip("/").rpartition("/")[2] or self.name

    @property
    def weight(self) -> int:
        """About how many bytes of a page it takes: its pictures, and what is said around them."""
        return 5_000 + len(self.photo) + sum(len(shown.uri) for shown in self.maps)


class Shown(Protocol):
    """What pages show many of, and an index lists: an image, or a class."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def title(self) -> str:
        """What it is called in short."""

    @property
    def label(self) -> str:
        """Its class."""

    @property
    def score(self) -> float:
        """A number that it is sorted by."""

    @property
    def weight(self) -> int:
        """About how many bytes of a page it takes."""


@dataclass(frozen=True)
class Line:
    """What the index says of one image: among all, and on which page it is, both counted from 1."""

    number: int
    page: int
    name: str
    title: str
    label: str
    score: float


@dataclass(frozen=True)
class Page:
    """One of several pages: its file's name, also as a link, which images it shows, and its size in bytes."""

    file: str
    first: int
    last: int
    size: int

    @property
    def link(self) -> str:
        """The name as a link."""
        return quote(os.fsencode(self.file))


class Pages:
    """The files of one report, which images are added to.

    Args:
        path: the page, or the index of several.
        overwrite: replace what exists.
        whole: the template of the page, or of the index.
        some: that of one of several pages.
    """

    def __init__(
        self, path: Path, *, overwrite: bool, whole: str = "report.html.j2", some: str = "photos.html.j2"
    ) -> None:
        self._path, self._overwrite, self._whole, self._some = path, overwrite, whole, some
        self.lines: list[Line] = []
        self._entries: list[Shown] = []
        self._pages: list[Page] = []
        self._folder: Path | None = None

    def add(self, entry: Shown, about: Mapping[str, object]) -> None:
        """Show one more.

        Args:
            entry: the image, or the class.
            about: what each page says, by the names that the templates have for it.
        """
        if len(self._entries) == PER_PAGE:
            self._write_page(about, is_last=False)
        self._entries.append(entry)
        line = Line(len(self.lines) + 1, len(self._pages) + 1, entry.name, entry.title, entry.label, entry.score)
        self.lines.append(line)

    @property
    def files(self) -> list[Path]:
        """Where the pages are, the index last."""
        return [*(self._path.with_name(page.file) for page in self._pages), self._path]

    def finish(self, about: Mapping[str, object], end: Mapping[str, object]) -> None:
        """Write what is left, and let all of it appear.

        Args:
            about: as for :meth:`add`.
            end: what the page, or the index, says at its end.

        Raises:
            OutputExistsError: there is something at the place of one of them.
        """
        if self._pages:
            self._write_page(about, is_last=True)
        facts = {**about, **end, "lines": self.lines, "entries": self._entries, "pages": self._pages}
        facts["size"] = sum(page.size for page in self._pages) or _size(self._entries)
        self._write(self._path.name, self._whole, facts)
        self._appear()

    def _write_page(self, about: Mapping[str, object], *, is_last: bool) -> None:
        place, last = len(self._pages) + 1, len(self.lines)
        near = {"previous": place - 1, "next": 0 if is_last else place + 1}
        links = {name: quote(os.fsencode(self._file(other))) if other else None for name, other in near.items()}
        first = last - len(self._entries) + 1
        facts = {**about, **links, "index": quote(os.fsencode(self._path.name)), "entries": self._entries}
        facts |= {"first": first, "last": last, "size": _size(self._entries)}
        # Better known now than after the last image.
        check_free(self._path.with_name(self._file(place)), overwrite=self._overwrite)
        size = self._write(self._file(place), self._some, facts)
        self._pages.append(Page(self._file(place), first, last, size))
        self._entries = []

    def _file(self, place: int) -> str:
        return f"{self._path.stem}-{place}{self._path.suffix}"

    def _write(self, name: str, template: str, facts: Mapping[str, object]) -> int:
        """Write a page where it is not seen yet, and return its size."""
        if self._folder is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # On the same disk, so that its files are moved and not copied; gone with this object, whatever happens.
            self._folder = Path(tempfile.mkdtemp(prefix=".report.partial-", dir=self._path.parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / name
        with path.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(_environment().get_template(template).stream(facts))
        return path.stat().st_size

    def _appear(self) -> None:
        assert self._folder is not None
        for path in self.files:
            check_free(path, overwrite=self._overwrite)
        for path in self.files:
            (self._folder / path.name).replace(path)
        self._folder.rmdir()
        self._folder = None


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise if there is something at a path that may not be replaced.

    Raises:
        OutputExistsError: there is, and ``overwrite`` is false or it is a folder.
    """
    if path.is_dir():
        raise OutputExistsError(
            f"path must be a file; received path={str(path)!r}, which is a folder. Name a file in it."
        )
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise OutputExistsError(
            f"path must not exist yet; received path={str(path)!r}, which does. "
            "Choose another name, or pass overwrite=True (--overwrite)."
        )


def _environment() -> "Environment":
    from markupsafe import Markup  # noqa: PLC0415

    filled = environment("guided_backprop.report")
    filled.filters["png"] = lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}"
    filled.filters["figure"] = lambda value: "none: a map is all 0" if value is None else number(value, 4)
    filled.filters["score"] = lambda value: f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    filled.filters["bytes"] = lambda size: f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    # Files of this package, which are code and not text.
    code = {"report.css": base_style(), "report.js": text_of("guided_backprop.report", "report.js")}
    filled.globals["inside"] = {name: Markup(text) for name, text in code.items()}
    filled.globals["hashes"] = {name: source_hash(text) for name, text in code.items()}
    return filled


def _size(entries: Sequence[Shown]) -> int:
    """Return about how large a page of these is."""
    return 30_000 + sum(entry.weight for entry in entries)
