"""Tracing a function, and forgetting the custom gradients that TensorFlow registers meanwhile.

It never forgets one itself, and with it the graph, the weights and the functions of the user's that it holds.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework import ops

from guided_backprop.backends.tensorflow.graph.compiled import CONVOLUTIONS, is_compiled_whole
from guided_backprop.backends.tensorflow.graph.functions import CALLS, Traced, flattened
from guided_backprop.backends.tensorflow.graph.nodes import OVERRIDE

# What names that TensorFlow makes up for a custom gradient begin with.
CUSTOM_GRADIENT = "CustomGradient"


def trace(model: Callable[..., tf.Tensor], specs: Sequence[tf.TensorSpec], *, autograph: bool) -> Traced:
    """Trace ``model`` on inputs like ``specs`` and return its graph; the model must return one tensor.

    The custom gradients that are registered meanwhile are known for as long as what is returned lives.
    """
    before, graphs = registered_names(), list[tf.Graph]()

    def noting(*inputs: tf.Tensor) -> tf.Tensor:
        graphs.append(tf.compat.v1.get_default_graph())
        return model(*inputs)

    try:
        concrete = tf.function(noting, input_signature=list(specs), autograph=autograph).get_concrete_function()
    except BaseException:
        for graph in graphs:
            forget_gradients(own_gradients(graph.as_graph_def(), before))
        raise
    graph_def = concrete.graph.as_graph_def()
    if any(is_compiled_whole(function) for function in graph_def.library.function):
        # What is called again has no shapes but those that are written on it.
        graph_def = concrete.graph.as_graph_def(add_shapes=True)
    library = {function.signature.name: function for function in graph_def.library.function}
    traced = flattened(concrete.function_def, library, concrete.captured_inputs)
    traced.gradients = own_gradients(graph_def, before)
    traced.convolved = list(_convolved(concrete.graph))
    weakref.finalize(traced, forget_gradients, traced.gradients).atexit = False
    return traced


def _convolved(graph: tf.Graph) -> Iterator[list[int]]:
    for operation in graph.get_operations():
        shape = operation.inputs[0].shape if operation.type in CONVOLUTIONS else None
        if shape is not None and shape.rank:
            batch, *inner = [size or 0 for size in shape.as_list()]
            channels = inner.pop(-1 if operation.get_attr("data_format").endswith(b"C") else 0)
            yield [batch, channels, *inner]
            # TensorFlow puts an axis of one into what has one position axis.
            yield [batch, channels, *(size for size in inner if size != 1)]
    for function in graph._functions.values():
        # One that was read from a file has none.
        if isinstance(getattr(function, "graph", None), tf.Graph):
            yield from _convolved(function.graph)


def own_gradients(graph: GraphDef, before: Collection[str]) -> frozenset[str]:
    """Return the custom gradients that were registered for a graph of ours, and for nothing else.

    Args:
        graph: the graph, and the functions that it uses.
        before: the names that were registered before it was begun. A function that it calls is the user's and goes on
            being used, so the gradients in there are left out; the bodies of its control flow are its own.
    """
    library = {function.signature.name: function for function in graph.library.function}
    names, left = set[str](), [*graph.node]
    while left:
        node = left.pop()
        name = node.attr[OVERRIDE].s.decode() if OVERRIDE in node.attr else ""
        if name.startswith(CUSTOM_GRADIENT) and name not in before:
            names.add(name)
        if node.op not in CALLS and node.op not in library:
            for value in node.attr.values():
                for function in [value.func] if value.WhichOneof("value") == "func" else value.list.func:
                    left += library[function.name].node_def if function.name in library else ()
    return frozenset(names)


def registered_names() -> frozenset[str]:
    """Return the names of all gradient functions."""
    return frozenset(ops.gradient_registry.list())


def forget_gradients(names: Iterable[str]) -> None:
    """Take out of TensorFlow's registry what was registered for a graph of ours.

    It never forgets a custom gradient, and with it the graph, the weights and the functions of the user's in there.
    """
    for name in names:
        ops.gradient_registry._registry.pop(name, None)
