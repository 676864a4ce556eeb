"""How alike maps are: those of several classes, and a map and the edges of its image; and what that says, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guided_backprop.trust.similarity import Maps, cosines, edges

Array = NDArray[Any]

# From here on two maps are called nearly one picture: the angle between them is below 26 degrees.
SAME = 0.9
# From this rank correlation on, most of what a map shows is said to be edges.
EDGES = 0.5


@dataclass(frozen=True)
class Trust:
    """A check of how far maps can be believed, as a report shows it.

    Attributes:
        title: its heading.
        sentence: what was found, in words.
        rows: a table: in each row the same names of columns, and what stands there.
        picture: a figure, the bytes of a PNG file.

    Example:
        >>> from guided_backprop.report import Trust
        >>> Trust("Randomised weights", "The map hardly changes.", [{"layers": 1, "similarity": 0.98}]).title
        'Randomised weights'
    """

    title: str
    sentence: str
    rows: Sequence[Mapping[str, Any]] = ()
    picture: bytes | None = None


@dataclass(frozen=True)
class Rival:
    """Another class, and the cosine similarity of its maps with those of the class that is explained.

    ``is_lowest`` says that its score is the lowest of all.
    """

    name: str
    guided: float | None
    plain: float | None
    is_lowest: bool = False


@dataclass(frozen=True)
class Likeness:
    """How alike the maps of one image are; None where a map has nothing to compare.

    Attributes:
        label: the class that is explained.
        rivals: other classes, best first.
        guided_edges: rank correlation of the guided map with the image's edges.
        plain_edges: that of Saliency.
    """

    label: str
    rivals: Sequence[Rival]
    guided_edges: float | None
    plain_edges: float | None

    def sentences(self) -> list[str]:
        """Say what the figures mean."""
        return [sentence for sentence in (self._of_classes(), self._of_edges()) if sentence]

    def _of_classes(self) -> str:
        known = {_first(rival.name): rival.guided for rival in self.rivals if rival.guided is not None}
        same = [name for name, value in known.items() if value >= SAME]
        if not known:
            return ""
        if not same:
            return f"The guided map of {_first(self.label)} differs from those of the other classes in the table."
        if len(same) < len(known):
            names = _joined([_first(self.label), *same])
            return f"The guided maps of {names} are nearly one picture; those of the other classes differ."
        return (
            f"The guided maps of {_joined([_first(self.label), *same])} are nearly one picture (cosine similarity "
            f"{_down(min(known.values()))} or more): this map does not tell these classes apart. It shows what the "
            "network picks up in the image, not why it says one of them."
        )

    def _of_edges(self) -> str:
        if self.guided_edges is None:
            return ""
        beside = "" if self.plain_edges is None else f", and of {number(self.plain_edges, 2)} with Saliency"
        verdict = (
            "Most of what the guided map shows are edges, which can be found without the network."
            if self.guided_edges >= EDGES
            else "1 would be the edges themselves; a low figure alone does not make a map right."
        )
        return (
            "A plain edge detector, which knows nothing of the network, has a rank correlation of "
            f"{number(self.guided_edges, 2)} with the guided map{beside}. {verdict}"
        )


def summaries(likenesses: Sequence[Likeness]) -> list[Trust]:
    """Return what several images together say: how alike the maps of several classes are, and how like edges."""
    rivals = [rival for likeness in likenesses for rival in likeness.rivals]
    guided = [rival.guided for rival in rivals if rival.guided is not None]
    checks = []
    if guided:
        alike = sum(value >= SAME for value in guided)
        verdict = " They show what the network picks up, not why it chose a class." if 2 * alike > len(guided) else ""
        checks.append(
            Trust(
                "Do the maps tell classes apart?",
                f"In {alike} of {len(guided)} comparisons with another class, the guided maps are nearly one picture: "
                f"their cosine similarity is {SAME} or more.{verdict}",
                _spread(guided, [rival.plain for rival in rivals]),
            )
        )
    edges = [likeness.guided_edges for likeness in likenesses], [likeness.plain_edges for likeness in likenesses]
    if rows := _spread(*edges):
        checks.append(
            Trust(
                "Do the maps show more than edges?",
                "Rank correlation (Spearman) of the maps' magnitudes with the image's edges (Sobel), which is the "
                "baseline: an edge detector knows nothing of the network. 1 would be the edges themselves, 0 nothing "
                "in common; a low figure alone does not make a map right.",
                rows,
            )
        )
    return checks


def cosine(one: Array, other: Array) -> float | None:
    """Return the cosine similarity of two signed maps: 1 for one picture at any strength, 0 for unrelated ones.

    None if one of them is all zero.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.trust.likeness import cosine
        >>> cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0]))
        0.96
    """
    first, second = np.asarray(one)[np.newaxis], np.asarray(other)[np.newaxis]
    return float(cosines(first, second)[0]) if first.any() and second.any() else None


def edge_correlation(image: Array, attribution: Array) -> float | None:
    """Return Spearman's rank correlation of a map's magnitudes with the edges of its image (Sobel), in [-1, 1].

    The edges are those of the mean of the channels; the magnitude is summed over the channels. An edge detector
    knows nothing of the network: what it finds as well, the map need not have from the network. None if the image has
    no edges, or all magnitudes of the map are alike.

    Args:
        image: ``(H, W, C)`` in any range.
        attribution: ``(H, W, C)``, signed, for the same H and W.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.trust.likeness import edge_correlation
        >>> image = np.zeros((8, 8, 1))
        >>> image[2:6, 2:6] = 1
        >>> edge_correlation(image, np.ones((8, 8, 1))) is None
        True
    """
    edges_of = Maps(edges(image.mean(axis=-1)[np.newaxis]))
    maps = Maps(attribution[np.newaxis], channel_axis=3)
    return None if edges_of.is_constant[0] or not np.ptp(maps.magnitude) else float(maps.rank_correlation(edges_of)[0])


def number(value: float, digits: int) -> str:
    """Return a number as it stands in a text."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _down(value: float) -> str:
    """Return a number from 0 to 1 rounded down: what is said to be 0.999 or more is not less."""
    return f"{np.floor(value * 1000) / 1000:.3f}"


def _spread(guided: Sequence[float | None], plain: Sequence[float | None]) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for method, measured in (("GuidedBackprop", guided), ("Saliency", plain)):
        known = [value for value in measured if value is not None]
        if known:
            figures = {"lowest": min(known), "median": float(np.median(known)), "highest": max(known)}
            rows.append({"method": method, **{name: number(value, 3) for name, value in figures.items()}})
    return rows


def _first(name: str) -> str:
    """Return the first of several names of a class."""
    return name.split(",", maxsplit=1)[0]


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
