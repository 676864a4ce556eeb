"""Where the axes of what a node reads go, by the shapes that TensorFlow infers."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.axes import Axes, multiplied, of_equation, pointwise, reduced, reshaped
from guided_backprop.backends.tensorflow.graph.functions import Traced, graph_of
from guided_backprop.backends.tensorflow.graph.nodes import Graph, attribute, operand_refs, word_of

_SHAPES: Final = "_output_shapes"
# Value by value, as far as second moments are made with them; what is smaller is repeated.
_POINTWISE: Final = frozenset("add cast copy div identity mul neg pow stop_gradient sub where".split())
_RESHAPES: Final = frozenset({"ExpandDims", "Reshape", "Squeeze"})

#: The sizes of values, NaN where they are not known; no entry where not even their number is.
Shapes = Mapping[str, Sequence[float]]


def shapes_of(graph: Graph) -> Shapes:
    """Return the shapes of all values of a function, as far as they can be inferred."""
    definition = graph.definition
    graph_def, names = graph_of(Traced(definition, {}, []))
    for number, node in enumerate(graph_def.node[: len(definition.signature.input_arg)]):
        known = definition.arg_attr[number].attr[_SHAPES].list.shape if number in definition.arg_attr else ()
        if known:
            node.attr["shape"].shape.CopyFrom(known[0])
    try:
        with tf.Graph().as_default() as inferred:
            tf.graph_util.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError):
        # As of operations that are nowhere but where the model runs: then nothing is told of them.
        return {}
    shapes = {ref: inferred.get_tensor_by_name(name).shape for ref, name in names.items()}
    return {
        ref: [nan if size is None else size for size in shape.as_list()]
        for ref, shape in shapes.items()
        if shape.rank is not None
    }


def axes_of(graph: Graph, node: NodeDef, shapes: Shapes) -> Axes | None:
    """Return where the axes of what a node reads go; None if nobody says so here."""
    given = [shapes.get(graph.copied(ref)) for ref in operand_refs(node)]
    known = [shape for shape in given if shape is not None]
    axes = _axes_of(graph, node, known, shapes) if len(known) == len(given) else None
    # Where there is one number along an axis it is nowhere else.
    return axes and axes.without_ones(known)


def _axes_of(graph: Graph, node: NodeDef, given: Sequence[Sequence[float]], shapes: Shapes) -> Axes | None:
    rank = len(given[0])
    match node.op:
        case "Sum" | "Mean":
            axes = _constant(graph, node)
            return None if axes is None else reduced(rank, axes, given[0], is_kept=attribute(node, "keep_dims").b)
        case "Transpose":
            order = _constant(graph, node)
            return None if order is None else Axes([[order.index(axis) - rank for axis in range(rank)]])
        case "AvgPool" | "AvgPool3D":
            how = tuple(str(attribute(node, name)) for name in ("ksize", "strides", "padding", "data_format"))
            return Axes([range(-rank, 0)], [nan], how)
        case "BroadcastTo":
            return pointwise([rank])
        case "MatMul" | "BatchMatMul" | "BatchMatMulV2" | "BatchMatMulV3":
            turned = [("transpose_a", "adj_x"), ("transpose_b", "adj_y")]
            return multiplied(given, [any(attribute(node, name).b for name in names) for names in turned])
        case "Einsum":
            return of_equation(attribute(node, "equation").s.decode(), given)
    made = shapes.get(f"{node.name}:output:0")
    if node.op in _RESHAPES:
        return None if made is None else reshaped(given[0], made)
    return pointwise([len(shape) for shape in given]) if word_of(node) in _POINTWISE else None


def _constant(graph: Graph, node: NodeDef) -> list[int] | None:
    """Return the axes that a node is told by its second operand."""
    told = graph.node(graph.copied(operand_refs(node)[1]))
    if told is None or told.op != "Const":
        return None
    return [int(axis) for axis in np.ravel(tf.make_ndarray(attribute(told, "value").tensor))]
