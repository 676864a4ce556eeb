"""What a node is part of, by the graph alone: a minimum with 0, a function in pieces, the shift of an exponential."""

from collections.abc import Iterator
from typing import Final

from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.tensorflow.graph.nodes import Graph, operand_refs, word_of
from guided_backprop.backends.tensorflow.graph.operations import COMPARISONS, OPERATIONS

_KEEPS_ZERO: Final = frozenset("cast div identity mul neg".split())


def is_shift(graph: Graph, node: NodeDef) -> bool:
    """Tell what an exponential is shifted by, as of a sum of these whose largest is to be 1."""
    users = graph.consumers.get(node.name, [])
    return bool(users) and node.name not in graph.returned and all(word_of(user) == "exp" for user in users)


def is_explicit(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a minimum with 0, or a multiple of one."""
    while True:
        if node.op in ("ClipByValue", "Minimum"):
            return True
        moving = [ref for ref in operand_refs(node) if graph.depends(ref)]
        inner = graph.node(moving[0]) if len(moving) == 1 else None
        if inner is None or (word_of(node) not in _KEEPS_ZERO and OPERATIONS[node.op].kind is not Kind.MOVES):
            return False
        node = inner


def is_piece(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a choice is a piece of a function of the same values that ends in a choice: that is looked at."""
    if word_of(node) != "where":
        inner = graph.node(next(filter(graph.depends, operand_refs(node)), ""))
        return inner is not None and _is_curve(graph, node) and is_piece(graph, inner)
    user = graph.only_user(node)
    while user is not None and word_of(user) != "where" and _is_curve(graph, user):
        user = graph.only_user(user)
    if user is None or word_of(user) != "where":
        return False
    compared = [set(_compared(graph, operand_refs(choice)[0])) for choice in (node, user)]
    return bool(compared[0] & compared[1])


def _is_curve(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a function of one value that depends on the images, value by value."""
    is_one = sum(map(graph.depends, operand_refs(node))) == 1
    return is_one and (OPERATIONS[node.op].kind is Kind.SMOOTH or word_of(node) in ("add", "div", "mul", "neg", "sub"))


def _compared(graph: Graph, mask: str) -> Iterator[str]:
    """Yield what a mask compares."""
    comparison = graph.node(graph.source(mask))
    if comparison is not None and comparison.op in COMPARISONS:
        yield from (graph.source(ref) for ref in operand_refs(comparison) if graph.depends(ref))
