"""The ways people write a ReLU, and use the finished network: one row each, one column per framework.

``relus`` has what is a ReLU, ``capped`` one with a cap, ``arithmetic`` what computes a ReLU by other operations,
``forms`` what is done with a whole model; ``functions`` and ``models`` have what takes more than a line. Each
framework's tests read their column: ``column(RELUS, "torch", "guided")``.

A cell is code with what is expected of it, or says in words why the framework cannot write the row:

    guided     the map is that of the oracle, under every method
    judged     the same under GuidedBackprop, for its values show what it is; DeconvNet refuses it, and saliency gives
               the plain gradient
    refused    an OpaqueRegionError, under every method but saliency

What is expected of Keras' cell is what is expected of the framework beneath it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["guided", "judged", "refused"]
Framework = Literal["torch", "tensorflow", "jax", "keras"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "tensorflow", "jax", "keras")


@dataclass(frozen=True)
class Cell:
    """How a framework writes a row, and what is expected of it."""

    write: Callable[..., Any]
    verdict: Verdict


def guided(write: Callable[..., Any]) -> Cell:
    return Cell(write, "guided")


def judged(write: Callable[..., Any]) -> Cell:
    return Cell(write, "judged")


def refused(write: Callable[..., Any]) -> Cell:
    return Cell(write, "refused")


Row = dict[Framework, Cell | str]


def row(elsewhere: str = "", **cells: Cell | str) -> Row:
    """Return a row; ``elsewhere`` says why the frameworks that are not named cannot write it."""
    return {framework: cells.pop(framework, elsewhere) for framework in FRAMEWORKS} | cells


def column(
    table: dict[str, Row], framework: Framework, verdict: Verdict | None = None, beneath: Framework | None = None
) -> dict[str, Callable[..., Any]]:
    """Return a framework's ways to write the rows of a table, of all verdicts or of one.

    ``beneath`` is the framework that computes what Keras says: where it writes the row, its verdict holds.
    """
    ways = {}
    for name, cells in table.items():
        cell, below = cells[framework], cells[beneath or framework]
        if isinstance(cell, Cell) and verdict in ((below if isinstance(below, Cell) else cell).verdict, None):
            ways[name] = cell.write
    return ways


def together(ways: dict[str, Callable[..., Any]]) -> list[tuple[str, str, str]]:
    """Return the names of ways by threes, for networks with three activations: each that is missed changes the map.

    Their number need not be divisible: the last of them are completed by the first.
    """
    names = [*ways, *[*ways][:2]]
    return [(names[start], names[start + 1], names[start + 2]) for start in range(0, len(ways), 3)]
