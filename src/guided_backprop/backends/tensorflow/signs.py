"""Which values are never negative, whatever the images are: no value of theirs tells a ReLU from the identity."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.tensorflow.nodes import Graph, attribute, operand_refs, word_of
from guided_backprop.backends.tensorflow.operations import OPERATIONS, SHAPES

_ALWAYS = frozenset("abs exp hardsigmoid norm relu relu6 rsqrt sigmoid softmax softplus sqrt".split())
_IF_ALL_ARE = frozenset(
    "add avg_pool clamp conv cumsum div einsum identity_n log1p matmul max max_pool mean min minimum mul prod "
    "resize scatter_add sort sum where".split()
)


def never_negative(graph: Graph, node: NodeDef, operands: Sequence[bool]) -> bool:
    """Tell whether what a node gives is never negative, ``operands`` saying so of what it reads."""
    word, refs = word_of(node), operand_refs(node)
    if node.op == "Const":
        return _is_positive(tf.make_ndarray(attribute(node, "value").tensor))
    if word in _ALWAYS or node.op in SHAPES or graph.role(node) == "relu" or node.op in ("Square", "SquaredDifference"):
        return True
    if node.op == "Pow":
        return operands[0] or graph.constant(refs[1]) in (2.0, 4.0, 6.0)
    if node.op == "Mul" and _is_square(graph, *refs):
        return True
    known = [is_positive or _is_known(graph, ref) for is_positive, ref in zip(operands, refs, strict=True)]
    if word in ("maximum", "clamp"):
        return any(known[:2])
    if word == "where":
        return all(known[1:])
    if word == "gather" or OPERATIONS[node.op].kind is Kind.MOVES:
        return _are_all(graph, known, refs)
    return word in _IF_ALL_ARE and _are_all(graph, known, refs)


def _are_all(graph: Graph, known: Sequence[bool], refs: Sequence[str]) -> bool:
    return all(is_positive or _is_index(graph, ref) for is_positive, ref in zip(known, refs, strict=True))


def _is_square(graph: Graph, left: str, right: str) -> bool:
    """Tell whether two values are multiples of one, by constants of the same sign."""
    (one, first), (two, second) = _multiple(graph, left), _multiple(graph, right)
    return one == two and first * second > 0


def _multiple(graph: Graph, ref: str) -> tuple[str, float]:
    """Return what a value is a multiple of, and how much of it; NaN if nobody knows."""
    factor = 1.0
    while True:
        ref = graph.source(ref)
        node = graph.node(ref)
        refs = operand_refs(node) if node is not None and word_of(node) in ("div", "mul", "neg") else []
        moving = [each for each in refs if graph.depends(each)]
        is_divisor = node is not None and word_of(node) == "div" and moving != refs[:1]
        if len(moving) != 1 or is_divisor:
            return ref, factor
        for each in refs:
            constant = graph.constant(each)
            factor *= 1.0 if constant is None else constant
        factor *= -1.0 if node is not None and word_of(node) == "neg" else 1.0
        ref = moving[0]


def _is_known(graph: Graph, ref: str) -> bool:
    constant = graph.constant(ref)
    return constant is not None and constant >= 0


def _is_index(graph: Graph, ref: str) -> bool:
    kind = graph.kind_of(ref)
    return tf.as_dtype(kind).is_integer or tf.as_dtype(kind).is_bool if kind else False


def _is_positive(values: NumpyArray) -> bool:
    return values.dtype.kind in "iufbV" and bool((values.astype(np.float64) >= 0).all())
