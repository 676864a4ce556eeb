"""Which sign the numbers of a node have, by what makes them."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isnan
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.signs import (
    Sign,
    sign_of,
    sign_of_array,
    sign_of_difference,
    sign_of_numbers,
    sign_of_range,
)
from guided_backprop.backends.tensorflow.graph.nodes import VALUES, Graph, attribute, operand_refs, word_of
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS, SHAPES

# They go by the word of what they are like, and may give another sign.
_UNLIKE_THEIR_WORD: Final = frozenset("ResizeBicubic ScaleAndTranslate TensorScatterSub".split())
_SQUARES: Final = frozenset("L2Loss Square SquaredDifference".split())

# Nothing is in them yet, and what is not put there is 0.
_EMPTY: Final = frozenset({"EmptyTensorList", "TensorListReserve"})
# What a softmax is lessened by, and what is done with that before.
_EXTREMES: Final = frozenset({"Max", "Min"})
_KEEPS_EXTREME: Final = frozenset({"Identity", "Select", "SelectV2", "StopGradient"})


def sign_of_node(graph: Graph, node: NodeDef, operands: Sequence[Sign]) -> Sign:
    """Return the sign that all that a node gives has, ``operands`` being those of what it reads."""
    if node.op == "Const":
        return sign_of_array(tf.make_ndarray(attribute(node, "value").tensor))
    if node.op in SHAPES or graph.role(node) == "relu":
        return Sign.NOT_NEGATIVE
    if node.op in _EMPTY:
        return Sign.ZERO
    kinds = [tf.as_dtype(graph.kind_of(ref)) for ref in graph.outputs_of(node) if graph.kind_of(ref)]
    if any(kind.is_complex for kind in kinds) or node.op in _UNLIKE_THEIR_WORD:
        return Sign.UNKNOWN
    if kinds and all(kind.is_bool for kind in kinds):
        return Sign.NOT_NEGATIVE
    refs, row = operand_refs(node), OPERATIONS[node.op]
    is_square, made_of = node.op == "Mul" and _is_square(graph, *refs), _made_of(graph, node, operands)
    if node.op == "OneHot":
        # It is told what is there, and what elsewhere.
        return made_of[-2] & made_of[-1]
    sign = sign_of(row, made_of, exponent_of(graph, node), is_square=is_square)
    extremes = [_extreme_of(graph, ref) for ref in refs] if node.op == "Sub" else [None, None]
    return sign | shift_of(graph, node) | sign_of_range(*extremes)


def shift_of(graph: Graph, node: NodeDef) -> Sign:
    """Return the sign of a value less one of its own numbers, in its place; unknown if it is anything else."""
    refs = operand_refs(node)
    return sign_of_difference(refs, partial(_extreme_of, graph)) if node.op == "Sub" else Sign.UNKNOWN


def _made_of(graph: Graph, node: NodeDef, operands: Sequence[Sign]) -> list[Sign]:
    """Return the signs of the numbers that a result is made of: no sizes, axes, places and masks."""
    refs, word = operand_refs(node), word_of(node)
    known = [sign or _sign_of_constant(graph, ref) for sign, ref in zip(operands, refs, strict=True)]
    if any(graph.kind_of(ref) in VALUES for ref in graph.outputs_of(node)) and word != "cast":
        known = [sign for sign, ref in zip(known, refs, strict=True) if graph.kind_of(ref) in VALUES]
    return known[:1] if word == "gather" else known


def exponent_of(graph: Graph, node: NodeDef) -> float | None:
    """Return the number that a node raises a value to, where that is known."""
    if node.op in _SQUARES:
        return 2.0
    exponent = graph.constant(operand_refs(node)[1]) if node.op == "Pow" else None
    return None if exponent is None or isnan(exponent) else exponent


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
        moving = [operand for operand in refs if graph.depends(operand)]
        is_divisor = node is not None and word_of(node) == "div" and moving != refs[:1]
        if len(moving) != 1 or is_divisor:
            return ref, factor
        for operand in refs:
            constant = graph.constant(operand)
            factor *= 1.0 if constant is None else constant
        factor *= -1.0 if node is not None and word_of(node) == "neg" else 1.0
        ref = moving[0]


def _extreme_of(graph: Graph, ref: str) -> tuple[str, str] | None:
    """Return what a value is the largest or smallest of, along axes that stay."""
    node = graph.node(ref)
    while node is not None and node.op in _KEEPS_EXTREME:
        refs = operand_refs(node)
        if word_of(node) == "where":
            # Where it is infinite it is replaced, in a sum of exponentials.
            mask = graph.node(refs.pop(0))
            if mask is None or mask.op != "IsFinite" or operand_refs(mask) != refs[:1]:
                return None
        node = graph.node(refs[0])
    if node is None or node.op not in _EXTREMES or not attribute(node, "keep_dims").b:
        return None
    return word_of(node), operand_refs(node)[0]


def _sign_of_constant(graph: Graph, ref: str) -> Sign:
    constant = graph.constant(ref)
    return Sign.UNKNOWN if constant is None else sign_of_numbers(constant, constant)


def has_levels(node: NodeDef, array_of: Callable[[str], NumpyArray | None]) -> bool:
    """Tell whether a node brings values to levels, of which neither the lowest nor the highest is 0 in any channel."""
    if not node.op.startswith("FakeQuantWithMinMax"):
        return False
    low, high = [array_of(ref) for ref in operand_refs(node)[1:]] or [
        np.asarray(attribute(node, name).f) for name in ("min", "max")
    ]
    # They are moved so that 0 is one of them.
    steps = 2.0 ** attribute(node, "num_bits").i - 2
    return low is not None and high is not None and bool((np.minimum(-low, high) > (high - low) / steps).all())
