"""A call out of a graph to a Python function.

``tf.numpy_function`` notes the function on the outermost graph there is, that of the whole process, so the function and
all that it reaches would live for ever. Here that graph is one of its own.
"""

from collections.abc import Callable, Sequence
from typing import cast

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef


class CallOut:
    """A function of NumPy arrays that graphs can call for as long as this lives; they do not keep it alive.

    Args:
        function: from NumPy arrays to as many as there are dtypes.
        results: their dtypes.
    """

    def __init__(self, function: Callable[..., object], *results: tf.DType) -> None:
        self._results = list(results)
        # TensorFlow's registry of such functions refers to them weakly.
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.numpy_function(function, [], self._results)

    def __call__(self, arguments: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Call the function in the graph that is being built, and return what it gives."""
        token = self._node.attr["token"].s
        # One that gives nothing is an operation.
        given = tf.raw_ops.PyFunc(input=list(arguments), token=token, Tout=self._results)
        return list(given) if self._results else []

    def node(self, name: str, arguments: Sequence[str], dtypes: Sequence[int]) -> NodeDef:
        """Return such a call as a node of a definition."""
        node = NodeDef()
        node.CopyFrom(self._node)
        node.name = name
        node.input.extend(arguments)
        node.attr["Tin"].list.type.extend(dtypes)
        return node

    @property
    def _node(self) -> NodeDef:
        (operation,) = self._graph.get_operations()
        return cast("NodeDef", operation.node_def)
