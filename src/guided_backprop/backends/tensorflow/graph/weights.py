"""What weights of a traced function are, where it tells: constants in the graph, and what the function captured."""

from collections.abc import Iterable, Mapping
from functools import cache, partial
from math import isnan
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.tensorflow.graph.nodes import FLOATS, Graph, attribute, operand_refs, producer, word_of
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS

# There are zeros in what these make where there were some before, and only there.
_KEEPS_ZEROS: Final = frozenset(
    """
    broadcast cast concatenate div flip identity identity_n mul neg reshape slice split stack stop_gradient transpose
    """.split()
)
# None is made by this of any finite number, as in what a batch-norm multiplies by.
_NEVER_ZERO: Final = "rsqrt"
# What draws, what holds other operations, and what nobody has heard of.
_UNEVALUATED: Final = frozenset({Kind.HIDDEN, Kind.HOLDS, Kind.RANDOM, Kind.UNKNOWN})


class Weights:
    """Tells of constants whether there are zeros in them, and what they are.

    Args:
        captured: what the outermost function captured, by the names of its arguments.

    Attributes:
        read: what was captured and asked for, with its numbers: others may make another graph of it.
    """

    def __init__(self, captured: Mapping[str, tf.Tensor]) -> None:
        self.read: list[tuple[tf.Tensor, NumpyArray]] = []
        self._captured = captured
        self._arrays: dict[tuple[int, str], tuple[Graph, NumpyArray | None]] = {}
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

    def array(self, graph: Graph, ref: str, *, is_outermost: bool) -> NumpyArray | None:
        """Return a constant, also one that is made of others; None if nobody knows it."""
        key = id(graph), ref
        if key not in self._arrays:
            # The graph is held, so that no other gets its number.
            self._arrays[key] = graph, self._made(graph, ref, is_outermost=is_outermost)
        return self._arrays[key][1]

    def _made(self, graph: Graph, ref: str, *, is_outermost: bool) -> NumpyArray | None:
        nodes, stack = dict[str, NodeDef](), [producer(ref)]
        while stack:
            name = stack.pop()
            node = graph.nodes.get(name)
            if name in nodes:
                continue
            if node is None or node.op == "ReadVariableOp":
                source = name if node is None else producer(operand_refs(node)[0])
                array = self._held(source) if is_outermost else None
                if array is None:
                    return self._repeated(graph, ref, is_outermost=is_outermost)
                self.read.append((self._captured[source], array))
                nodes[name] = NodeDef(name=name, op="Const")
                nodes[name].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
                nodes[name].attr["dtype"].type = tf.as_dtype(array.dtype).as_datatype_enum
            elif graph.depends(name) or (node.op != "Const" and OPERATIONS[node.op].kind in _UNEVALUATED):
                return self._repeated(graph, ref, is_outermost=is_outermost)
            else:
                inputs = list(map(_flat, operand_refs(node)))
                nodes[name] = NodeDef(name=name, op=node.op, input=inputs, attr=node.attr)
                stack += map(producer, inputs)
        return _evaluated(nodes.values(), _flat(ref))

    def _repeated(self, graph: Graph, ref: str, *, is_outermost: bool) -> NumpyArray | None:
        """Return what is repeated as often as the images tell, which are known in a run alone."""
        node = graph.node(ref)
        is_known = node is not None and node.op in ("BroadcastTo", "Tile")
        return self.array(graph, operand_refs(node)[0], is_outermost=is_outermost) if is_known else None

    def _has_zeros(self, name: str) -> bool:
        array = self._array(name)
        return array is not None and not np.all(array)

    def _array(self, name: str) -> NumpyArray | None:
        array = self._held(name)
        # bfloat16 is no number to NumPy.
        return array if array is not None and array.dtype.kind not in "biu" else None

    def _held(self, name: str) -> NumpyArray | None:
        tensor = self._captured.get(name)
        return None if tensor is None else held(tensor)


def held(tensor: tf.Tensor) -> NumpyArray | None:
    """Return the numbers of what a function captured, those of a variable as they are now."""
    if not hasattr(tensor, "numpy"):
        return None
    if tensor.dtype == tf.resource:
        # The handle knows what lies behind it.
        kinds = [] if tensor._handle_data is None else tensor._handle_data.shape_and_type
        tensor = tf.raw_ops.ReadVariableOp(resource=tensor, dtype=kinds[0].dtype) if len(kinds) == 1 else None
    is_number = tensor is not None and (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool)
    return np.asarray(tensor.numpy()) if tensor is not None and is_number else None


def _flat(ref: str) -> str:
    """Return a reference as a graph has it, not a function."""
    return f"{producer(ref)}:{ref.rpartition(':')[2] if ':' in ref else 0}"


def _evaluated(nodes: Iterable[NodeDef], name: str) -> NumpyArray | None:
    """Return what some operations give, of constants; None if that is no array of numbers or truths."""
    graph_def = GraphDef(node=nodes)
    bring = partial(tf.graph_util.import_graph_def, graph_def, return_elements=[name])
    try:
        (tensor,) = tf.compat.v1.wrap_function(bring, [])()
    except (tf.errors.OpError, ValueError):
        return None
    array = np.asarray(tensor.numpy())
    return array if array.dtype.kind in "fiub" else None
