"""What a job explains, and how: written before anything else is, and never changed but by what is added.

Its photos are cut into shards once. Photos that are added later are new shards of their own, so no shard ever shifts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from hashlib import sha256
from pathlib import PurePath
from typing import Any, NamedTuple, Self, final

from guided_backprop.errors import JobError, OptionError
from guided_backprop.jobs.maps import MapType, check

SCHEMA_VERSION = 1
#: The file of a job's plan.
PLAN = "job.json"
#: Which pictures a job draws.
PICTURES = ("none", "overlay", "all")


class Photo(NamedTuple):
    """A file that is explained.

    Attributes:
        path: relative to the folder of the photos, with forward slashes.
        size: in bytes, when the job was made.
        label: the class id that is explained; "top5" for the five best, or None for the one with the highest score.
    """

    path: str
    size: int
    label: int | str | None = None


class Shard(NamedTuple):
    """Some of a job's photos, whose explanations are one file."""

    number: int
    photos: Sequence[Photo]


@final
@dataclass(frozen=True)
class Settings:
    """How a job explains: the same settings and photos give the same maps.

    Attributes:
        model: its specification, as for :func:`guided_backprop.load_model`.
        weights: a digest of the model's weights; None where it has none that can be read.
        method: the method's name, as on the command line.
        options: the method's options.
        dtype: how maps are stored.
        batch_size: how many photos are explained at once.
        shard_size: how many photos a shard has.
        optimize: whether the method is made faster, where that agrees.
        pictures: which are drawn: "none", "overlay" or "all".
    """

    model: str
    weights: str | None
    method: str
    options: Mapping[str, Any]
    dtype: MapType
    batch_size: int
    shard_size: int
    optimize: bool
    pictures: str = "none"

    def __post_init__(self) -> None:
        check(self.dtype)
        for name, size in {"shard_size": self.shard_size, "batch_size": self.batch_size}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise OptionError(f"{name} must be a positive integer; received {name}={size!r}. Pass a number.")
        if self.pictures not in PICTURES:
            raise OptionError(
                f"pictures must be one of {', '.join(PICTURES)}; received pictures={self.pictures!r}. Pass one."
            )


@final
@dataclass(frozen=True)
class Plan:
    """A job: its photos, in the order in which they were given, and how they are explained.

    Attributes:
        settings: how.
        additions: the photos of the job's beginning, and those that were added, each time some.
        versions: of what made the job, for people.
    """

    settings: Settings
    additions: tuple[tuple[Photo, ...], ...]
    versions: Mapping[str, str]

    @property
    def photos(self) -> list[Photo]:
        """All photos."""
        return [photo for photos in self.additions for photo in photos]

    @property
    def identity(self) -> str:
        """A digest of all but the versions and what was added: by it a shard is known to be of this job."""
        return sha256(repr((astuple(self.settings), self.additions[0])).encode()).hexdigest()

    @property
    def labels(self) -> list[int] | str | None:
        """The class ids of all photos; or "top5", or None for the best classes."""
        labels = [photo.label for photo in self.photos]
        ids = [label for label in labels if isinstance(label, int)]
        return ids or next((label for label in labels if isinstance(label, str)), None)

    def with_pictures(self, pictures: str) -> Self:
        """Return the same job with other pictures."""
        return replace(self, settings=replace(self.settings, pictures=pictures))

    def shards(self) -> list[Shard]:
        """Return what each shard has."""
        size = self.settings.shard_size
        cut = [photos[start : start + size] for photos in self.additions for start in range(0, len(photos), size)]
        return [Shard(number, photos) for number, photos in enumerate(cut)]

    def with_added(self, photos: Sequence[Photo]) -> Self:
        """Return the job with those of the photos that it doesn't have yet.

        Raises:
            JobError: one that it has is another one now, or is gone.
        """
        there = {photo.path: photo for photo in photos}
        changed = [known for known in self.photos if there.get(known.path) != known]
        if changed:
            raise JobError(
                f"a job's photos must be as they were; received {changed[0].path!r}, {_change(changed[0], photos)}"
                f"{_others(changed)}. Put them back, or begin another job."
            )
        known = {photo.path for photo in self.photos}
        new = tuple(photo for photo in photos if photo.path not in known)
        return replace(self, additions=(*self.additions, new)) if new else self

    def refuse_other(self, other: "Plan") -> None:
        """Refuse to go on with another job than this.

        Raises:
            JobError: settings or photos are others; it names them.
        """
        for field in fields(Settings):
            here, there = getattr(self.settings, field.name), getattr(other.settings, field.name)
            if here != there:
                raise JobError(
                    f"a job must go on as it began, with {field.name}={here!r}; received {field.name}={there!r}. "
                    "Pass the same, or another folder for another job."
                )
        here, there = set(self.photos), set(other.photos)
        if here != there:
            new, gone = (sorted(photos, key=lambda photo: photo.path) for photos in (there - here, here - there))
            advice = "Add them (--add)" if new and not gone else "Put them back"
            what = f"{(gone or new)[0].path!r}, {_change(gone[0], there) if gone else 'which is new'}"
            raise JobError(
                f"a job must go on with the photos that it began with; received {what}{_others(gone or new)}. "
                f"{advice}, or pass another folder for another job."
            )

    def text(self) -> str:
        """Return this as JSON."""
        photos = [[list(photo) for photo in addition] for addition in self.additions]
        about = {"schema_version": SCHEMA_VERSION, "versions": self.versions, **asdict(self.settings)}
        return json.dumps({**about, "photos": photos}, indent=1) + "\n"

    @classmethod
    def of_text(cls, text: bytes, place: str) -> Self:
        """Return what was written as JSON.

        Raises:
            JobError: it is none of ours, or of a later version of the library.
        """
        try:
            said = json.loads(text)
            version, versions, photos = said.pop("schema_version"), said.pop("versions"), said.pop("photos")
            settings = Settings(**said)
            additions = tuple(tuple(_photo(*row) for row in addition) for addition in photos)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise JobError(
                f"{PLAN} must be as a job writes it; received folder={place!r} ({error}). Pass the folder of a job."
            ) from error
        if version != SCHEMA_VERSION:
            raise JobError(
                f"{PLAN} must be of schema version {SCHEMA_VERSION}; received {version!r} in {place!r}. "
                "Read it with the library that wrote it."
            )
        return cls(settings, additions, versions)


def _photo(path: str, size: int, label: int | str | None) -> Photo:
    if not isinstance(path, str) or not isinstance(size, int) or not isinstance(label, int | str | None):
        raise TypeError(f"no photo: {[path, size, label]!r:.80}")
    pure = PurePath(path)
    if pure.anchor or ".." in pure.parts:
        raise ValueError(f"a photo outside of its folder: {path!r:.80}")
    return Photo(path, size, label)


def _change(photo: Photo, now: Iterable[Photo]) -> str:
    """Return what became of a photo that isn't as it was."""
    label = next((other.label for other in now if other[:2] == photo[:2]), photo.label)
    is_other = label != photo.label
    return f"which had labels={photo.label!r} and not {label!r}" if is_other else "which has changed or is gone"


def _others(photos: Sequence[Photo]) -> str:
    return f" (and {len(photos) - 1} more)" if len(photos) > 1 else ""
