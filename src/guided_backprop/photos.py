"""Reading photos: which files of a folder are images, and each of them as people see it."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from guided_backprop.errors import ImageError

# Raster formats that Pillow decodes itself and knows by their first bytes. Not among them: EPS and
# WMF, which start other programs, and TGA, which takes almost any file for its own.
_FORMATS = {"AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}

# A thinner image would need gigabytes once its short side has been enlarged to the network's size.
_LARGEST_ASPECT = 50
_FILTERS = Lock()


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo as people see it.

    The EXIF orientation is applied; transparency is shown on white; 16-bit grey is scaled to 8 bit; of an
    animation the first frame is taken; colour profiles are ignored.

    Args:
        path: an image file: AVIF, BMP, GIF, ICO, JPEG, JPEG 2000, MPO, PNG, PPM, TIFF or WebP, as far as
            Pillow was built with them.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: there is no such file, it is not an image, damaged, truncated, larger than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or over 50 times as long as wide; or its values have no fixed
            range (floating point, 32 bit).
    """
    try:
        with _opened(path) as image:
            file_format = image.format
            # In place: of a copy the EXIF would be read again.
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image, file_format)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason, advice = str(error), "Make it smaller first."
        raise ImageError(_unreadable(path, reason, advice)) from error
    # A damaged file can make a decoder raise anything: SyntaxError, struct.error, IndexError, zlib.error...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(_unreadable(path, reason, "Pass another file, or convert it to PNG.")) from error


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image and read what is said of it, without Pillow's warnings: what is damaged there is no news."""
    # The filters of warnings are the process': one thread at a time, and not while pixels are decoded.
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        # Pillow only warns of an image above its limit, and refuses it above twice the limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(path, formats=_readable_formats())
        try:
            image.getexif()
        except BaseException:
            image.close()
            raise
        return image


def image_paths(arguments: Iterable[Path]) -> list[Path]:
    """Return files as they are and, for each folder, the images in it (not below it) sorted by name."""
    formats = _readable_formats()
    endings = {ending for ending, file_format in Image.registered_extensions().items() if file_format in formats}
    paths: list[Path] = []
    for argument in arguments:
        paths += _images_in(argument, endings) if argument.is_dir() else [argument]
    return paths


def _images_in(folder: Path, endings: set[str]) -> list[Path]:
    # Hidden ones are never photos: macOS leaves a ._cat.jpg next to each cat.jpg.
    seen = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")]
    return sorted(path for path in seen if path.is_file())


def _readable_formats() -> list[str]:
    Image.init()
    return sorted(_FORMATS & {*Image.OPEN})


def _rgb(image: Image.Image, file_format: str | None) -> Image.Image:
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


def _is_grey_of_16_bits(image: Image.Image, file_format: str | None) -> bool:
    # Pillow opens a 16-bit PNG or PPM in a mode of 32 bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM"))


def _unreadable(path: str | os.PathLike[str], reason: str, advice: str) -> str:
    reason = " ".join(reason.split()).rstrip(".")
    return f"image must be a readable image file; received path={os.fspath(path)!r} ({reason}). {advice}"
