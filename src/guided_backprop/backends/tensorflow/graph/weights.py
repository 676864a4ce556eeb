"""What weights of a traced function are, where it tells: constants in the graph, and what the function captured."""

from collections.abc import Mapping
from functools import cache
from math import isnan
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.tensorflow.graph.nodes import FLOATS, Graph, attribute, operand_refs, producer, word_of

# There are zeros in what these make where there were some before, and only there.
_KEEPS_ZEROS: Final = frozenset(
    """
    broadcast cast concatenate div flip identity identity_n mul neg reshape slice split stack stop_gradient transpose
    """.split()
)
# None is made by this of any finite number, as in what a batch-norm multiplies by.
_NEVER_ZERO: Final = "rsqrt"


class Weights:
    """Tells of constants whether there are zeros in them.

    Args:
        captured: what the outermost function captured, by the names of its arguments.
    """

    def __init__(self, captured: Mapping[str, tf.Tensor]) -> None:
        self._captured = captured
        self.may_have_zeros = cache(self._may_have_zeros)

    def _may_have_zeros(self, graph: Graph, ref: str, *, is_outermost: bool) -> bool:
        """Tell whether some of a constant's numbers may be 0: weights tell, and what a loop is given has none."""
        stack, seen = [ref], set[str]()
        while stack:
            ref = stack.pop()
            name, constant = producer(ref), graph.constant(ref)
            node = graph.nodes.get(name)
            if name in seen:
                continue
            seen.add(name)
            if constant is not None and not isnan(constant):
                has_zeros = constant == 0
            elif node is None or node.op == "ReadVariableOp":
                has_zeros = is_outermost and self._has_zeros(name if node is None else producer(operand_refs(node)[0]))
            elif word_of(node) == _NEVER_ZERO:
                has_zeros = False
            elif node.op == "Const":
                has_zeros = not np.all(tf.make_ndarray(attribute(node, "value").tensor))
            else:
                has_zeros = word_of(node) not in _KEEPS_ZEROS
                stack += [operand for operand in operand_refs(node) if graph.kind_of(operand) in FLOATS]
            if has_zeros:
                return True
        return False

    def _has_zeros(self, name: str) -> bool:
        array = self._array(name)
        return array is not None and not np.all(array)

    def _array(self, name: str) -> NumpyArray | None:
        tensor = self._captured.get(name)
        if tensor is None or not hasattr(tensor, "numpy"):
            return None
        if tensor.dtype == tf.resource:
            # The handle knows what lies behind it.
            kinds = [] if tensor._handle_data is None else tensor._handle_data.shape_and_type
            tensor = tf.raw_ops.ReadVariableOp(resource=tensor, dtype=kinds[0].dtype) if len(kinds) == 1 else None
        return None if tensor is None or not tensor.dtype.is_floating else np.asarray(tensor.numpy())


def slopes_of(graph: Graph, node: NodeDef) -> str:
    """Return the slopes of the PReLU that a node ends, of which half may be taken: that is one number."""
    products = _products(graph, node)
    inner = [one for product in products for one in _products(graph, product)]
    factors = [ref for one in [*products, *inner] for ref in operand_refs(one) if not graph.depends(ref)]
    return next(ref for ref in factors if isnan(graph.constant(ref) or 0))


def _products(graph: Graph, node: NodeDef) -> list[NodeDef]:
    made = [graph.node(ref) for ref in operand_refs(node)]
    return [one for one in made if one is not None and word_of(one) == "mul"]
