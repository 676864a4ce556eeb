"""An explanation as one graph of TensorFlow's with the weights in it as constants: TensorFlow works out what depends on
them alone, and folds batch-norm into convolutions.

It is the graph that is exported, run where it was made.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.tensorflow.backend import TensorFlowBackend
from guided_backprop.backends.tensorflow.export import TensorFlowGraph, Weight
from guided_backprop.export.plan import Plan
from guided_backprop.export.program import Program, digests


class TensorFlowProgram(Program):
    """A model's explanations, in one graph for any number of images.

    Args:
        backend: runs the model.
        given: a batch such as will be explained.
        plan: what is computed: a gradient.

    Raises:
        ModelError: as for :class:`TensorFlowGraph`.
    """

    compiles_each_count = False

    def __init__(self, backend: TensorFlowBackend, given: Inputs, plan: Plan) -> None:
        self.name = f"tensorflow {tf.__version__}, compiled"
        self._backend = backend
        with tf.init_scope():
            self._graph = TensorFlowGraph(backend.setup, given, plan)
            self.inputs, self.outputs, self.coverage = self._graph.inputs, self._graph.outputs, self._graph.coverage
            weights = self._graph.weights
            # Of the values that are in the graph, whatever the model's are by now.
            self._digests = _digests(weight.variable.read_value() for weight in weights)
            handles = [(weight.handle, weight.variable.dtype) for weight in weights]
            # All at once: one call for each takes longer than to read what is there.
            read = tf.function(lambda: [Weight.read(*one) for one in handles], autograph=False)
            self._read = read.get_concrete_function()

    def are_the_same(self) -> bool:
        self._backend.network.check()
        with tf.init_scope():
            return _digests(self._read()) == self._digests

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        with tf.init_scope():
            # Copied: of a result that is an image TensorFlow may give the memory that it was given.
            return dict(self._graph.run([*map(np.array, inputs.values())]))

    def outputs_of(self, inputs: Mapping[str, NumpyArray]) -> NumpyArray:
        with tf.init_scope():
            ports = [tensor.dtype for tensor in self._graph.forward.inputs]
            arrays = zip(inputs.values(), ports, strict=False)
            return np.asarray(self._graph.forward(*[tf.cast(array, dtype) for array, dtype in arrays]))


def _digests(tensors: Iterable[tf.Tensor]) -> list[int]:
    return digests(map(_in_memory, tensors))


def _in_memory(tensor: Any) -> NumpyArray:
    """Return a tensor's memory, without a copy where Python knows such numbers."""
    try:
        return np.asarray(memoryview(tensor))
    except (TypeError, ValueError, BufferError):
        return np.asarray(tensor)
