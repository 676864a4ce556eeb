"""What an exported graph is to compute, as every framework understands it."""

from dataclasses import dataclass
from typing import Literal

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
