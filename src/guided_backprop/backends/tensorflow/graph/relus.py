"""Which nodes of a flat TensorFlow graph are ReLUs, in every spelling that is known by its operation.

To know another spelling is to write one entry of :data:`RECOGNISERS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.tensorflow.graph.nodes import OVERRIDE, Graph, attribute, operand_refs, word_of
from guided_backprop.backends.tensorflow.graph.operations import COMPARISONS

_INFINITY = float("inf")


class Relu(NamedTuple):
    """A ReLU: what goes through is what lies between two bounds.

    Attributes:
        operand: which operand of the first of its nodes is x.
        low: what x has to be above.
        high: what x has to be below.
        inside: the nodes in front of the one it ends with, last to first, and which operand of each leads to x.
    """

    operand: int
    low: float = 0.0
    high: float = _INFINITY
    inside: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """How the coverage lists it."""
        if self.low != 0:
            return f"threshold({self.low:g})"
        return "relu" if self.high == _INFINITY else f"relu{self.high:g}"


def relus_of(graph: Graph, order: list[NodeDef]) -> dict[str, Relu]:
    """Return the ReLUs of a graph by the node that each ends with."""
    relus: dict[str, Relu] = {}
    for node in order:
        # What has a gradient of its own is not what its operation says.
        spelling = None if OVERRIDE in node.attr else RECOGNISERS.get(node.op)
        relu = None if spelling is None else spelling(graph, node)
        if relu is not None:
            relus[node.name] = relu
    for node in order:
        if node.op == "Minimum" and node.name not in relus and OVERRIDE not in node.attr:
            _join(graph, node, relus)
    return relus


def _named(graph: Graph, node: NodeDef) -> Relu | None:
    return Relu(0)


def _relu6(graph: Graph, node: NodeDef) -> Relu | None:
    return Relu(0, high=6.0)


def _leaky(graph: Graph, node: NodeDef) -> Relu | None:
    return Relu(0) if attribute(node, "alpha").f == 0 else None


def _clip(graph: Graph, node: NodeDef) -> Relu | None:
    _, low, high = map(graph.constant, operand_refs(node))
    return Relu(0, high=high) if low == 0 and high is not None and high > 0 else None


def _maximum(graph: Graph, node: NodeDef) -> Relu | None:
    operand = against_zero(graph, node)
    return None if operand is None else Relu(operand)


def _chosen(graph: Graph, node: NodeDef) -> Relu | None:
    """``where(x > t, x, 0)``."""
    mask, x, other = operand_refs(node)
    return _above(graph, mask, x, 1) if graph.constant(other) == 0 else None


def _masked(graph: Graph, node: NodeDef) -> Relu | None:
    """``x * (x > t)``."""
    left, right = operand_refs(node)
    return _above(graph, right, left, 0) or _above(graph, left, right, 1)


def _added(graph: Graph, node: NodeDef) -> Relu | None:
    """``x + relu(-x)``."""
    refs = [graph.copied(ref) for ref in operand_refs(node)]
    for operand, other in ((0, refs[1]), (1, refs[0])):
        inner = graph.node(other)
        spelling = None if inner is None or OVERRIDE in inner.attr else RECOGNISERS.get(inner.op)
        relu = None if inner is None or spelling is None else spelling(graph, inner)
        if inner is None or relu is None or (relu.low, relu.high) != (0, _INFINITY):
            continue
        turned = graph.node(graph.copied(operand_refs(inner)[relu.operand]))
        is_turned = turned is not None and word_of(turned) == "neg"
        if turned is not None and is_turned and graph.copied(operand_refs(turned)[0]) == refs[operand]:
            return Relu(operand)
    return None


#: How each operation that may be a ReLU is told to be one.
RECOGNISERS: dict[str, Callable[[Graph, NodeDef], Relu | None]] = {
    "Add": _added,
    "AddV2": _added,
    "ClipByValue": _clip,
    "LeakyRelu": _leaky,
    "Maximum": _maximum,
    "Mul": _masked,
    "MulNoNan": _masked,
    "Relu": _named,
    "Relu6": _relu6,
    "Select": _chosen,
    "SelectV2": _chosen,
}


def against_zero(graph: Graph, node: NodeDef) -> int | None:
    """Return which operand a maximum or minimum compares with 0."""
    refs = operand_refs(node)
    for operand in (0, 1):
        if graph.constant(refs[1 - operand]) == 0 and graph.depends(refs[operand]):
            return operand
    return None


def _above(graph: Graph, mask: str, ref: str, operand: int) -> Relu | None:
    """Return the ReLU that a mask makes of a tensor, if it tells where that is above a threshold."""
    comparison = graph.node(graph.source(mask))
    if comparison is None or comparison.op not in COMPARISONS:
        return None
    x, bound = operand_refs(comparison)
    if word_of(comparison).startswith("less"):
        x, bound = bound, x
    threshold = graph.constant(bound)
    is_same = graph.source(x) == graph.source(ref)
    if is_same and graph.depends(x) and threshold is not None and threshold >= 0:
        return Relu(operand, low=threshold)
    return None


def _join(graph: Graph, node: NodeDef, relus: dict[str, Relu]) -> None:
    """Join a minimum with the ReLU in front of it, and behind it: they are one ReLU with a cap."""
    bounds = [graph.constant(ref) for ref in operand_refs(node)]
    for operand, cap in ((0, bounds[1]), (1, bounds[0])):
        if cap is None or not cap > 0 or bounds[operand] is not None:
            continue
        before, after = graph.node(graph.copied(operand_refs(node)[operand])), graph.only_user(node)
        joined = Relu(operand, low=-_INFINITY, high=cap)
        # Used elsewhere as well, the ReLU in front is one of its own.
        if before is not None and before.name in relus and graph.only_user(before) == node:
            joined = _behind(relus.pop(before.name), before, joined)
            relus[node.name] = joined
        if after is not None and after.name in relus:
            relus.pop(node.name, None)
            relus[after.name] = _behind(joined, node, relus[after.name])


def _behind(first: Relu, node: NodeDef, second: Relu) -> Relu:
    """Return the two ReLUs as one; the first ends with the node."""
    low, high = max(first.low, second.low), min(first.high, second.high)
    return Relu(second.operand, low, high, ((node.name, first.operand), *first.inside))
