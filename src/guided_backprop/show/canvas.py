"""What a figure is drawn on: a new figure that pyplot does not know of, or axes of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Sharing = bool | Literal["none", "all", "row", "col"]


def figure_kind() -> "type[Figure]":
    """Return matplotlib's figure, which pyplot does not know of; raise MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "plot() needs matplotlib; received an environment without it. Run: pip install 'guided-backprop[plot]'."
        ) from error
    return Figure


@dataclass(frozen=True, eq=False)
class Canvas:
    """Where panels are drawn.

    Attributes:
        size: width and height of a new figure in inches; None for what suits what is drawn.
        given: axes of the user's to draw on, one or as many as there are panels, in rows; None for a new figure.
    """

    size: tuple[float, float] | None = None
    given: "Axes | Sequence[Axes] | NDArray[np.object_] | None" = None

    @property
    def is_own(self) -> bool:
        """Whether the figure is new, so that bars and notes may stand around the panels."""
        return self.given is None

    @property
    def is_one(self) -> bool:
        """Whether a single panel is asked for."""
        return self.given is not None and np.size(np.asarray(self.given, dtype=object)) == 1

    def grid(
        self,
        rows: int,
        columns: int,
        size: tuple[float, float],
        layout: Literal["compressed", "constrained"],
        *,
        sharex: Sharing = False,
        sharey: Sharing = False,
        height_ratios: Sequence[float] | None = None,
    ) -> "NDArray[np.object_]":
        """Return axes ``(rows, columns)``.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: other axes are given, or another number of them.
        """
        kind = figure_kind()
        if self.given is None:
            figure = kind(figsize=size if self.size is None else self.size, layout=layout)
            grid: NDArray[np.object_] = figure.subplots(
                rows, columns, squeeze=False, sharex=sharex, sharey=sharey, height_ratios=height_ratios
            )
            return grid
        from matplotlib.axes import Axes  # noqa: PLC0415

        given = np.asarray(self.given, dtype=object).reshape(-1)
        if len(given) != rows * columns or not all(isinstance(axes, Axes) for axes in given):
            of = f"{rows} rows of {columns}" if rows > 1 else f"{columns}"
            raise OptionError(
                f"ax must be as many axes as there are panels, {of}; received {len(given)}: {self.given!r:.80}. "
                "Pass plt.subplots(rows, columns)[1], or choose panels, as in panels=['overlay']."
            )
        return given.reshape(rows, columns)
