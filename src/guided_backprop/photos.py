"""Reading photos: which files of a folder are images, and each of them as people see it."""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from guided_backprop.errors import ImageError, MissingExtraError

# Raster formats that Pillow decodes itself and knows by their first bytes. Not among them: EPS and
# WMF, which start other programs, and TGA, which takes almost any file for its own.
_FORMATS = {"AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
# What telephones write, which pillow-heif decodes: the names of files, and what stands in their first bytes.
_HEIC_ENDINGS = {".heic", ".heif", ".hif"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}

# A thinner image would need gigabytes once its short side has been enlarged to the network's size.
_LARGEST_ASPECT = 50
_FILTERS = Lock()


#: A file by its path, or open for reading bytes.
File = str | os.PathLike[str] | IO[bytes]


class Skipped(NamedTuple):
    """What was found in a folder and is no photo to read, and why."""

    path: Path
    reason: str


class PhotoFiles(NamedTuple):
    """The photos that are named or lie in folders, and what else lies there."""

    paths: Sequence[Path]
    skipped: Sequence[Skipped]


def read_image(path: File) -> Image.Image:
    """Read a photo as people see it.

    The EXIF orientation is applied; transparency is shown on white; 16-bit grey is scaled to 8 bit; of an
    animation the first frame is taken; colour profiles are ignored.

    Args:
        path: an image file, or one that is open to read its bytes: AVIF, BMP, GIF, ICO, JPEG, JPEG 2000, MPO, PNG, PPM,
            TIFF or WebP, as far as Pillow was built with them; HEIC with the extra ``[heic]``.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: there is no such file, it is a pipe, a device or a folder, it is not an image, damaged, truncated,
            larger than ``PIL.Image.MAX_IMAGE_PIXELS``, or over 50 times as long as wide; or its values have no fixed
            range (floating point, 32 bit).

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from guided_backprop.models import read_image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("LA", (4, 3)).save(file.name)
        ...     read_image(file.name).mode
        'RGB'
    """
    try:
        with _opened(path) as image:
            file_format = image.format
            # In place: of a copy the EXIF would be read again.
            ImageOps.exif_transpose(image, in_place=True)
            return as_rgb(image, file_format)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason, advice = str(error), "Make it smaller first."
        raise ImageError(_unreadable(path, reason, advice)) from error
    except MissingExtraError as error:
        raise ImageError(_unreadable(path, "it is HEIC", str(error))) from error
    # A damaged file can make a decoder raise anything: SyntaxError, struct.error, IndexError, zlib.error...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(_unreadable(path, reason, "Pass another file, or convert it to PNG.")) from error


def as_rgb(image: Image.Image, file_format: str | None = None) -> Image.Image:
    """Return an image as an RGB one, as people see it.

    Raises:
        ValueError: it has no pixels, is too thin, or its values have no fixed range.
    """
    if max(image.size) > _LARGEST_ASPECT * min(image.size):
        raise ValueError(f"it is more than {_LARGEST_ASPECT} times as long as wide")
    if _is_grey_of_16_bits(image, file_format):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = np.rint(np.asarray(image).astype(np.float64) / 257)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no fixed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def image_paths(arguments: Iterable[Path]) -> list[Path]:
    """Return files as they are and, for each folder, the images in it (not below it) sorted by name.

    Example:
        >>> from pathlib import Path
        >>> from guided_backprop.models import image_paths
        >>> [path.name for path in image_paths([Path("cat.jpg")])]
        ['cat.jpg']
    """
    return [*photo_files(arguments).paths]


def photo_files(arguments: Iterable[Path], *, recursive: bool = False) -> PhotoFiles:
    """Return files as they are and, for each folder, the images in it sorted by name, and what is left out.

    Args:
        arguments: files and folders.
        recursive: look into folders in folders too; links to folders are not followed.
    """
    endings = photo_endings()
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for argument in arguments:
        for path in _entries(argument, recursive=recursive) if argument.is_dir() else ():
            reason = _reason_to_skip(path, endings)
            if reason:
                skipped.append(Skipped(path, reason))
            else:
                paths.append(path)
        if not argument.is_dir():
            paths.append(argument)
    return PhotoFiles(paths, skipped)


def _entries(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """Yield what lies in a folder, sorted; and in the folders in it, if these are looked into."""
    below = []
    for path in sorted(folder.iterdir()):
        # Hidden ones are never photos: macOS leaves a ._cat.jpg next to each cat.jpg.
        if path.name.startswith("."):
            continue
        if recursive and path.is_dir() and not path.is_symlink():
            below.append(path)
        else:
            yield path
    for path in below:
        yield from _entries(path, recursive=True)


def _reason_to_skip(path: Path, endings: set[str]) -> str:
    """Return why a folder's entry is not read, or nothing."""
    if path.is_dir():
        if path.is_symlink():
            return "a link to a folder, which could lead in a circle"
        return "a folder, which is looked into only if you ask for it"
    if path.suffix.lower() in _HEIC_ENDINGS and not _knows_heic():
        return "HEIC, which needs: pip install 'guided-backprop[heic]'"
    if path.suffix.lower() not in endings:
        return "no image, by its name"
    return "" if path.is_file() else "no regular file"


def photo_endings() -> set[str]:
    """Return how the names of images end that can be read."""
    formats = _readable_formats()
    endings = {ending for ending, file_format in Image.registered_extensions().items() if file_format in formats}
    return endings | _HEIC_ENDINGS if _knows_heic() else endings


def _opened(path: File) -> Image.Image:
    """Open an image and read what is said of it, without Pillow's warnings: what is damaged there is no news."""
    # A pipe would be waited for, and a device read, without end.
    if isinstance(path, str | os.PathLike) and not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no regular file")
    # The filters of warnings are the process': one thread at a time, and not while pixels are decoded.
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        # Pillow only warns of an image above its limit, and refuses it above twice the limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = _heic(path) if _is_heic(path) else Image.open(path, formats=_readable_formats())
        try:
            image.getexif()
        except BaseException:
            image.close()
            raise
        return image


def _is_heic(path: File) -> bool:
    with Path(path).open("rb") if isinstance(path, str | os.PathLike) else nullcontext(path) as file:
        beginning = file.read(64)
        file.seek(0)
    # The first box: its length and kind, the brand that the file is, its version, and all that it can be read as.
    length = min(int.from_bytes(beginning[:4]), len(beginning))
    brands = {beginning[start : start + 4] for start in (8, *range(16, length, 4))}
    return beginning[4:8] == b"ftyp" and not brands.isdisjoint(_HEIC_BRANDS)


def _heic(path: File) -> Image.Image:
    """Open a HEIC file. Its decoder is not registered with Pillow, which others use too."""
    if not _knows_heic():
        raise MissingExtraError("Run: pip install 'guided-backprop[heic]'.")
    from pillow_heif import HeifImageFile  # noqa: PLC0415

    image: Image.Image = HeifImageFile(path)  # type: ignore[no-untyped-call]
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise Image.DecompressionBombError(f"{image.width * image.height} pixels are more than {limit}")
    return image


def _knows_heic() -> bool:
    return find_spec("pillow_heif") is not None


def _readable_formats() -> list[str]:
    Image.init()
    return sorted(_FORMATS & {*Image.OPEN})


def _is_grey_of_16_bits(image: Image.Image, file_format: str | None) -> bool:
    # Pillow opens a 16-bit PNG or PPM in a mode of 32 bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM"))


def _unreadable(path: File, reason: str, advice: str) -> str:
    reason = " ".join(reason.split()).rstrip(".")
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else str(getattr(path, "name", "a file"))
    return f"image must be a readable image file; received path={name!r} ({reason}). {advice}"
