"""How alike two maps are, by the metrics of Adebayo et al. 2018 (arXiv:1810.03292), from SciPy and scikit-image."""

from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import MissingExtraError

Array = NDArray[np.float64]

#: Each metric's name for people. SSIM and HOG are for pictures.
METRICS = {
    "spearman_abs": "rank correlation of magnitudes",
    "spearman": "rank correlation",
    "ssim": "SSIM",
    "hog": "HOG",
}
_WINDOW = 5
_CELL = 16
# So many cells, along each side, are normalised together.
_BLOCK = 3


class Maps:
    """The maps of some images, with their channels put together, ready to be compared.

    The signed map is the sum of the channels and the magnitude the sum of their magnitudes, as in the paper's code.

    Args:
        attribution: ``(N, ...)``.
        channel_axis: where the channels are; None if there are none.
    """

    def __init__(self, attribution: NumpyArray, channel_axis: int | None = None) -> None:
        maps = attribution.astype(np.float64)
        self.signed: Array = _scaled(maps if channel_axis is None else maps.sum(axis=channel_axis))
        magnitude = np.abs(maps)
        self.magnitude: Array = _scaled(magnitude if channel_axis is None else magnitude.sum(axis=channel_axis))

    def similarity(self, other: Self) -> dict[str, Array]:
        """Return each metric, ``(N,)``, 1 for equal maps. Where either of two maps is constant it is 0."""
        metrics = {
            "spearman_abs": self.rank_correlation(other),
            "spearman": _products(self._ranks, other._ranks),
        }
        if self.is_picture:
            is_clear = ~(self._is_flat | other._is_flat)
            pairs = zip(self.signed, other.signed, strict=True)
            metrics["ssim"] = np.array([_ssim(*pair) for pair in pairs]) * is_clear
            metrics["hog"] = _products(self._gradients, other._gradients) * is_clear
        return metrics

    def rank_correlation(self, other: Self) -> Array:
        """Return Spearman's rank correlation of magnitudes, ``(N,)``."""
        return _products(self._magnitude_ranks, other._magnitude_ranks)

    @property
    def is_picture(self) -> bool:
        """Tell whether there are two axes of positions, long enough for a window."""
        return self.signed.ndim == 3 and min(self.signed.shape[1:]) >= _WINDOW

    @property
    def is_constant(self) -> NDArray[np.bool_]:
        """Tell of each map whether it says nothing."""
        return np.asarray(self._is_flat | (np.ptp(_rows(self.magnitude), axis=1) == 0))

    @property
    def _is_flat(self) -> NDArray[np.bool_]:
        return np.asarray(np.ptp(_rows(self.signed), axis=1) == 0)

    @cached_property
    def _ranks(self) -> Array:
        return _ranks(self.signed)

    @cached_property
    def _magnitude_ranks(self) -> Array:
        return _ranks(self.magnitude)

    @cached_property
    def _gradients(self) -> Array:
        """The histograms of gradients, in cells of 16 pixels, or of a third of the picture if that is less."""
        from skimage.feature import hog  # noqa: PLC0415

        cell = tuple(min(_CELL, side // _BLOCK) for side in self.signed.shape[1:])
        histograms = [hog(picture, pixels_per_cell=cell, cells_per_block=(_BLOCK, _BLOCK)) for picture in self.signed]
        return _standardised(np.array(histograms))


def cosines(one: NumpyArray, other: NumpyArray) -> Array:
    """Return the cosine of the angle between rows ``(N, ...)``; 0 where one of them is zero."""
    return _products(_unit(_rows(one.astype(np.float64))), _unit(_rows(other.astype(np.float64))))


def edges(images: NumpyArray) -> Array:
    """Return the magnitude of the Sobel gradient of each of ``(N, H, W)``."""
    from skimage.filters import sobel  # noqa: PLC0415

    return np.array([sobel(image.astype(np.float64)) for image in images])


def need_libraries() -> None:
    """Raise MissingExtraError unless SciPy and scikit-image are installed."""
    try:
        import scipy  # noqa: F401, PLC0415
        import skimage  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"sanity_check() needs SciPy and scikit-image; received an environment without {error.name}. "
            "Run: pip install 'guided-backprop[trust]'."
        ) from error


def _scaled(maps: Array) -> Array:
    """Return each map divided by its largest magnitude: in [-1, 1], and 0 stays 0."""
    largest = np.abs(_rows(maps)).max(axis=1).reshape(-1, *[1] * (maps.ndim - 1))
    return np.asarray(np.divide(maps, largest, out=np.zeros(maps.shape), where=largest > 0))


def _ranks(maps: Array) -> Array:
    from scipy.stats import rankdata  # noqa: PLC0415

    return _standardised(rankdata(_rows(maps), axis=1))


def _ssim(one: Array, other: Array) -> float:
    from skimage.metrics import structural_similarity  # noqa: PLC0415

    return float(structural_similarity(one, other, win_size=_WINDOW, data_range=2.0))


def _rows(maps: NumpyArray) -> NumpyArray:
    return maps.reshape(len(maps), -1)


def _standardised(rows: Array) -> Array:
    """Return rows of mean 0 and length 1, so that products are correlations; constant ones become 0."""
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _unit(rows: Array) -> Array:
    # Divided by the largest first: the squares of small numbers are none.
    rows = _scaled(rows)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0))


def _products(one: Array, other: Array) -> Array:
    return np.asarray((one * other).sum(axis=1))
