"""How sure a mean over images is: an interval by bootstrap, the images being drawn again and again."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_SHARES = (2.5, 97.5)


class Interval(NamedTuple):
    """Where the mean lies in 95 % of the resampled sets of images; both are NaN for a single image.

    Attributes:
        low: from here.
        high: up to here.
    """

    low: float
    high: float

    @property
    def leaves_zero_out(self) -> bool:
        """Whether all of it is on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(figures: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the interval of the mean of figures, one per image ``(N,)``; one seed draws the same images for all.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.trust.intervals import interval
        >>> interval(np.full(5, 2.0))
        Interval(low=2.0, high=2.0)
    """
    if len(figures) < 2:
        return Interval(np.nan, np.nan)
    drawn = np.random.default_rng([seed, 4]).integers(len(figures), size=(_RESAMPLES, len(figures)))
    low, high = np.percentile(figures[drawn].mean(axis=1), _SHARES)
    return Interval(float(low), float(high))


def said(mean: float, around: Interval) -> str:
    """Return a mean and its interval with two digits; nothing is below zero that is not so in them."""
    numbers = [f"{round(value, 2) + 0.0:.2f}" for value in (mean, *around)]
    return numbers[0] if np.isnan(around.low) else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
