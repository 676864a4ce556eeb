"""What an exported graph is to compute, as every framework understands it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from guided_backprop.arrays import Inputs
from guided_backprop.rules import ReluRule

#: What a graph is told to explain: class ids ``(N,)``, of which -1 is the top class, or weights of the output's shape;
#: or both, of which the weights count where the id is -2.
LabelKind = Literal["ids", "weights", "both"]
#: The ids that are no class's.
TOP, WEIGHTS = -1, -2

#: The results of a graph, in their order.
RESULTS = ("outputs", "attribution", "scores", "is_finite")


@dataclass(frozen=True)
class Plan:
    """What a graph computes.

    Attributes:
        rule: what a ReLU lets through.
        reducer: how the channel axis is reduced, or None.
        labels: what it is told to explain.
    """

    rule: ReluRule
    reducer: str | None = None
    labels: LabelKind = "ids"


def port_names(given: Inputs, are_explained: Sequence[bool]) -> tuple[Sequence[str], Sequence[str]]:
    """Return what a graph calls its images, and what its results: of several inputs by their names.

    Args:
        given: a batch.
        are_explained: of which of its arrays there are maps.
    """
    images = ["images"] if given.form == "one" else [f"images_{name}" for name in given.names]
    maps = [name.replace("images", "attribution") for name, is_one in zip(images, are_explained, strict=True) if is_one]
    return images, (RESULTS[0], *maps, *RESULTS[2:])
