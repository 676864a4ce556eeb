"""What photos are given as: paths, folders, PIL images, arrays of bytes; and each as what it is read from."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from guided_backprop.errors import ImageError, OptionError
from guided_backprop.photos import Skipped, as_rgb, photo_files, read_image

#: A file, a folder, an image, or bytes ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``.
Photo = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


@final
@dataclass(frozen=True, eq=False)
class Source:
    """What one photo is read from.

    Attributes:
        name: for people, and for the names of files.
        path: its file, which is read anew when the photo is wanted; None for what was given as pixels.
        given: the pixels, or None.
    """

    name: str
    path: Path | None = None
    given: Image.Image | None = None

    def read(self) -> Image.Image:
        """Return the photo as people see it, RGB.

        Raises:
            ImageError: it can't be read.
        """
        if self.given is not None:
            return self.given
        if self.path is None:
            raise ImageError(f"a photo must have pixels; received none for {self.name}. Read its file again.")
        return read_image(self.path)


class Sources(NamedTuple):
    """All photos that were given, in their order, and what in the folders is none."""

    photos: Sequence[Source]
    skipped: Sequence[Skipped]


def sources_of(photos: Photo | Iterable[Photo], *, recursive: bool) -> Sources:
    """Return what each photo is read from.

    Raises:
        OptionError: there are none, or one of another kind.
        ImageError: pixels that are no picture of bytes.
    """
    found: list[Source] = []
    skipped: list[Skipped] = []
    for position, photo in enumerate(_each(photos)):
        if isinstance(photo, str | os.PathLike):
            files = photo_files([Path(photo)], recursive=recursive)
            found += [Source(str(path), path) for path in files.paths]
            skipped += files.skipped
        else:
            name = f"photo-{position:05d}"
            found.append(Source(name, None, _pixels(photo, name)))
    if not found:
        raise OptionError(
            f"photos must contain an image; received none{_skipped(skipped)}. Pass files, or a folder of image files."
        )
    return Sources(found, skipped)


def _each(photos: Photo | Iterable[Photo]) -> Iterable[Photo]:
    if isinstance(photos, str | os.PathLike | Image.Image):
        return [photos]
    if isinstance(photos, np.ndarray):
        return [photos] if photos.ndim < 4 else list(photos)
    # Of a file's bytes each would be a number.
    if isinstance(photos, Iterable) and not isinstance(photos, bytes | bytearray | memoryview):
        return photos
    raise _no_photo(photos)


def _pixels(photo: Image.Image | NDArray[np.uint8], name: str) -> Image.Image:
    """Return an image of the user's as people see it; the user's own stays as it is."""
    if not isinstance(photo, Image.Image | np.ndarray):
        raise _no_photo(photo)
    if isinstance(photo, np.ndarray):
        is_colour = photo.ndim == 3 and photo.shape[2] in (3, 4)
        if photo.dtype != np.uint8 or not (is_colour or photo.ndim == 2) or not photo.size:
            raise ImageError(
                "an array must be a photo of bytes, (H, W), (H, W, 3) or (H, W, 4) uint8; received "
                f"{photo.dtype} of shape {photo.shape} for {name}. What is preprocessed already goes into "
                "method.explain(images)."
            )
        photo = Image.fromarray(photo)
    try:
        return as_rgb(ImageOps.exif_transpose(photo))
    except (OSError, ValueError) as error:
        raise ImageError(f"a photo must be as people see it; received {name}: {error}. Pass another one.") from error


def _no_photo(photo: object) -> OptionError:
    return OptionError(
        f"photos must be paths, folders, PIL images or arrays of uint8; received {type(photo).__name__}. "
        "Pass one of these, or a list of them."
    )


def _skipped(skipped: Sequence[Skipped]) -> str:
    reasons = [f"{one.path.name} ({one.reason})" for one in skipped[:3]]
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f", but {', '.join(reasons)}{more}" if skipped else ""
