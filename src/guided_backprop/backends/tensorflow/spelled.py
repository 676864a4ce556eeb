"""ReLUs spelled as arithmetic: where a sign of x meets a tensor, the values say whether it is a ReLU of it.

``x > 0``, ``|x|`` and ``sign(x)`` say where x is positive. They are followed through the operations that
keep their shape; where one meets a tensor, the result is compared with the ReLU of that tensor and of x.
"""

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.tensorflow.nodes import Graph, attribute, operand_refs, producer, word_of
from guided_backprop.backends.tensorflow.operations import COMPARISONS, OPERATIONS

_CHOICES = OPERATIONS.called("where")
_SIGNS = OPERATIONS.called("abs", "norm", "sign", "sqrt")
# What keeps the shape of one operand.
_KEEPS = OPERATIONS.called(
    *"cast ceil floor gather identity logical_not neg nonzero relu relu6 reshape rint round stop_gradient".split(),
    "transpose",
)
_SCATTERS = OPERATIONS.called("scatter")
_MEETS = (
    _CHOICES
    | _SCATTERS
    | OPERATIONS.called(*"add div logical_and logical_or maximum minimum mul pow scatter_add sub".split())
)
_STACKS = OPERATIONS.called("concatenate", "stack")
_LARGEST = OPERATIONS.called("max", "sort")
_FLOATS = {kind.as_datatype_enum for kind in (tf.float16, tf.bfloat16, tf.float32, tf.float64)}


def watched(graph: Graph, order: list[NodeDef]) -> dict[str, list[str]]:
    """Return the nodes at which a sign meets a tensor, and of what each may be a ReLU."""
    signs: dict[str, set[str]] = {}
    found: dict[str, list[str]] = {}
    pieces: set[str] = set()
    for node in order:
        refs = operand_refs(node)
        sources = {source for ref in refs for source in signs.get(producer(ref), ())}
        own = _sign_of(graph, node)
        # A part of one activation says nothing that the activation does not; a norm says what a root says.
        if own is not None and graph.role(node) != "part":
            signs[node.name] = {own}
        elif not sources:
            if _is_stacked(graph, node):
                found[node.name] = [*operand_refs(graph.nodes[producer(refs[0])])]
        elif node.op in _KEEPS or _is_power(graph, node):
            signs[node.name] = sources
        elif node.op in _MEETS:
            if _is_piece(graph, node, sources):
                # The larger choice is compared with x, and not with a piece of itself.
                pieces.add(node.name)
                continue
            unsigned = [ref for ref in refs if producer(ref) not in signs.keys() | pieces]
            others = [ref for ref in unsigned if _is_float(graph, ref) and graph.depends(ref)]
            if others or node.op in _SCATTERS:
                found[node.name] = [*others, *sorted(sources)]
            else:
                signs[node.name] = sources
                if attribute(node, "T").type in _FLOATS:
                    found[node.name] = sorted(sources)
    return found


def _sign_of(graph: Graph, node: NodeDef) -> str | None:
    """Return x of ``x > constant`` or ``|x|``."""
    refs = operand_refs(node)
    if attribute(node, "T").type not in _FLOATS:
        return None
    if node.op in _SIGNS and graph.depends(refs[0]):
        return refs[0]
    if node.op in COMPARISONS:
        dependent = [ref for ref in refs if graph.depends(ref)]
        if len(dependent) == 1:
            return dependent[0]
    return None


def _is_power(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a power of one operand by a constant."""
    return word_of(node) == "pow" and sum(map(graph.depends, operand_refs(node))) == 1


def _is_piece(graph: Graph, node: NodeDef, sources: set[str]) -> bool:
    """Tell whether a choice is one piece of a larger one, on the same x: the larger one is looked at."""
    users = graph.consumers[node.name]
    if node.op not in _CHOICES or len(users) != 1 or users[0].op not in _CHOICES:
        return False
    condition = graph.node(graph.source(operand_refs(users[0])[0]))
    outer = None if condition is None else _sign_of(graph, condition)
    return outer is not None and graph.source(outer) in map(graph.source, sources)


def _is_float(graph: Graph, ref: str) -> bool:
    node = graph.node(ref)
    kinds = [] if node is None else [attribute(node, name).type for name in ("DstT", "T", "dtype")]
    kind = next(filter(None, kinds), None)
    return kind is None or kind in _FLOATS


def _is_stacked(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a maximum over a stack of a tensor and a constant."""
    if node.op not in _LARGEST:
        return False
    stacked = graph.node(graph.source(operand_refs(node)[0]))
    if stacked is None or stacked.op not in _STACKS:
        return False
    parts = operand_refs(stacked)[: None if stacked.op == "Pack" else -1]
    return any(graph.constant(part) == 0 for part in parts)
