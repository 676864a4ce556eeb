"""What a preprocessing does, as numbers that any language can follow: how it resizes, cuts and scales."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import floor
from typing import Final, get_args

import numpy as np
from PIL import Image

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import ModelError
from guided_backprop.models.preprocessing import Preprocessing, Resampling, ResizeCrop

# Photos whose sides are odd, and one that is smaller than what networks look at: width and height.
_SIZES: Final = ((331, 257), (257, 389), (150, 97))
# By how many steps of 0 to 255 a pixel may differ: what is rounded in between is rounded otherwise.
_OFF: Final = 1.01


def recipe_of(preprocess: object) -> ResizeCrop:
    """Return the recipe that does to photos what a preprocessing does.

    Of somebody else's function it is found by trying: black and white photos show how it scales, noise how it resizes
    and cuts; and it has to give the same pixels on photos of several sizes.

    Raises:
        ModelError: there is none, as where a photo is padded, turned, or sharpened.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from guided_backprop.models import Measured
        >>> from guided_backprop.models.recipe import recipe_of
        >>> def pixels(photo):
        ...     small = photo.resize((64, 64), Image.Resampling.BILINEAR)
        ...     return np.asarray(small, np.float32).transpose(2, 0, 1) / 255 - 0.5
        >>> print(recipe_of(Measured(pixels)))
        64 x 64, bilinear, the whole photo stretched, pixels / 255, mean .5
    """
    if isinstance(preprocess, ResizeCrop):
        if preprocess.further is None:
            return preprocess
        raise _no_recipe(f"{preprocess}, of which the last step is a function")
    assert isinstance(preprocess, Preprocessing)
    photos = [_noise(*size) for size in _SIZES]
    try:
        wanted = [as_numpy(preprocess(photo)).astype(np.float64) for photo in photos]
        black, white = (
            as_numpy(preprocess(Image.new("RGB", _SIZES[0], colour))).astype(np.float64)
            for colour in ("black", "white")
        )
    # It is anybody's function: what it says to a photo of noise is no news.
    except Exception as error:
        raise _no_recipe(f"a function that stopped at a photo of noise ({error})") from error
    if len({array.shape for array in wanted}) > 1 or wanted[0].ndim != 3 or not np.isfinite(white - black).all():
        raise _no_recipe("a function whose pictures are not of one shape (channels, height, width)")
    for recipe in _tried(preprocess, wanted[0].shape, black, white):
        if all(_is_same(recipe(photo), pixels, recipe) for photo, pixels in zip(photos, wanted, strict=True)):
            return recipe
    raise _no_recipe(f"{preprocess}, whose pixels no resizing and cutting gives")


def _tried(
    preprocess: Preprocessing, shape: Sequence[int], black: NumpyArray, white: NumpyArray
) -> Iterator[ResizeCrop]:
    """Yield what it may be, after what black and white photos became."""
    channels_last = shape[-1] in (1, 3) and shape[0] not in (1, 3)
    axes = (0, 1) if channels_last else (1, 2)
    size = (shape[0], shape[1]) if channels_last else (shape[1], shape[2])
    low, high = black.mean(axis=axes), white.mean(axis=axes)
    if (high - low <= 0).any():
        return
    # (pixels / 255 - mean) / std, at 0 and at 255.
    std = 1 / (high - low)
    rough = ResizeCrop(
        size,
        mean=tuple(float(number) for number in np.round(-low * std, 6)),
        std=tuple(float(number) for number in np.round(std, 6)),
        channels_last=channels_last,
        grey=shape[-1 if channels_last else 0] == 1,
    )
    for crop in _crops(preprocess, size):
        for resampling in get_args(Resampling):
            yield replace(rough, crop=crop, resampling=resampling)


def _crops(preprocess: Preprocessing, size: tuple[int, int]) -> Iterator[float | None]:
    """Yield how much may be kept: what was measured first, and what lies near it."""
    width, height = _SIZES[0]
    view = preprocess.view(width, height)
    if view is None:
        return
    left, top, right, bottom = view.box
    yield None
    share = max((right - left) / width, (bottom - top) / height)
    near = floor(min(size) / min(share, 1))
    for side in sorted(range(max(near - 4, min(size)), near + 5), key=lambda side: abs(side - near)):
        yield min(size) / side


def _is_same(mine: NumpyArray, wanted: NumpyArray, recipe: ResizeCrop) -> bool:
    if mine.shape != wanted.shape:
        return False
    std = np.asarray(recipe.std).reshape((-1,) if recipe.channels_last else (-1, 1, 1))
    return bool(np.abs((mine - wanted) * std).max() <= _OFF * recipe.scale)


def _noise(width: int, height: int) -> Image.Image:
    """Return a photo of spots and of fine noise: edges of all widths."""
    generator = np.random.default_rng(width)
    spots = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    large = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.NEAREST), np.float64)
    fine = generator.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(large + fine, 0, 255).astype(np.uint8))


def _no_recipe(received: str) -> ModelError:
    return ModelError(
        f"preprocess must be resizing, cutting and scaling, to be done outside of Python; received {received}. Pass a "
        "ResizeCrop, or --size, --crop, --mean and --std."
    )
