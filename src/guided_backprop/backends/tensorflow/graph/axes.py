"""Where the axes of what a node reads go, and where its windows see nothing, by the shapes that TensorFlow infers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan, nan
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.axes import Axes, multiplied, of_equation, pointwise, reduced, reshaped
from guided_backprop.backends.empty import NOTHING, Empty, Window, emptied
from guided_backprop.backends.tensorflow.graph.functions import Traced, graph_of
from guided_backprop.backends.tensorflow.graph.nodes import Graph, attribute, operand_refs, word_of

_SHAPES: Final = "_output_shapes"
# Value by value, as far as second moments are made with them; what is smaller is repeated.
_POINTWISE: Final = frozenset("add cast copy div identity mul neg pow stop_gradient sub where".split())
_RESHAPES: Final = frozenset({"ExpandDims", "Reshape", "Squeeze"})
_TRANSPOSED: Final = frozenset({"Conv2DBackpropInput", "Conv3DBackpropInputV2", "DepthwiseConv2dNativeBackpropInput"})
_PADDED: Final = frozenset({"Conv2D", "DepthwiseConv2dNative"})
# What nobody knows the size of is as wide as that.
_WIDE: Final = 16

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


def emptied_by(graph: Graph, node: NodeDef, shapes: Callable[[], Shapes]) -> Empty:
    """Return where a convolution leaves zeros between or around values; shapes are asked for where it may."""
    is_transposed = node.op in _TRANSPOSED
    if not is_transposed and not (node.op in _PADDED and attribute(node, "padding").s == b"EXPLICIT"):
        return NOTHING
    known = shapes()
    of_what, weights, *more = (graph.copied(ref) for ref in operand_refs(node))
    given, made = known.get(more[0] if is_transposed else of_what), known.get(f"{node.name}:output:0")
    return emptied(_windows(node, given, known.get(weights), made))


def _windows(node: NodeDef, *shapes: Sequence[float] | None) -> Iterator[Window]:
    """Yield what a convolution looks at along each axis, given the shapes of values, of weights and of its results."""
    steps, spreads, edges = (attribute(node, name).list.i for name in ("strides", "dilations", "explicit_paddings"))
    is_same, is_transposed = attribute(node, "padding").s == b"SAME", node.op in _TRANSPOSED
    places = [place for place, axis in enumerate(attribute(node, "data_format").s.decode()) if axis not in "NC"]
    for number, place in enumerate(places):
        at = (place, number, place)
        size, length, count = (_size(shape, axis) for shape, axis in zip(shapes, at, strict=True))
        size, length = size or _WIDE, length or 1
        step, spread, low = steps[place], spreads[place], edges[2 * place] if edges else 0
        reach = spread * (length - 1) + 1
        if is_transposed:
            count = count or max(size * step, (size - 1) * step + reach)
            low = max((size - 1) * step + reach - count, 0) // 2 if is_same else low
            yield Window.transposed(size, count, length, step=step, low=low, spread=spread)
        else:
            yield Window(size, (size + low + edges[2 * place + 1] - reach) // step + 1, length, step, low, spread)


def _size(shape: Sequence[float] | None, axis: int) -> int:
    """Return how many there are along an axis; 0 where nobody knows."""
    return 0 if shape is None or isnan(shape[axis]) else int(shape[axis])
