"""The graph that is looked at: parts of copies of it are run, and differentiated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from guided_backprop.backends.tensorflow.graph.functions import keep_functions, renamed

#: Puts a graph into the one that is being built, on inputs, and returns the tensors of some names; what stands in the
#: place of others, by their names, is ``instead``.
Import = Callable[..., list[tf.Tensor]]


@dataclass(frozen=True)
class Original:
    """A graph that is looked at.

    Attributes:
        graph_def: the graph.
        specs: the signatures of its inputs.
        bring: puts a copy of it into the graph that is being built.
    """

    graph_def: GraphDef
    specs: Sequence[tf.TensorSpec]
    bring: Import

    def sized(self, arrays: Sequence[tf.Tensor]) -> "Original":
        """Return the same for images of one size: in its graph less has to be worked out."""
        return replace(self, specs=[tf.TensorSpec(array.shape, array.dtype) for array in arrays])

    def built(
        self,
        run: Callable[..., object],
        change: Callable[[GraphDef], None] = lambda copy: None,
        beside: Sequence[tf.TensorSpec] = (),
    ) -> Callable[..., Any]:
        """Return, ready to be called, what runs a part of a copy.

        Args:
            run: what is run; it is given what puts the copy where it runs, and the inputs.
            change: what is done with the copy before.
            beside: the signatures of what comes before the inputs.
        """
        copy = GraphDef()
        copy.CopyFrom(self.graph_def)
        change(copy)
        # Of functions TensorFlow derives others, by their names.
        copy = renamed(copy)
        concrete: Callable[..., Any] = tf.function(
            partial(run, partial(self.bring, copy)), input_signature=[*beside, *self.specs], autograph=False
        ).get_concrete_function()
        keep_functions(copy, concrete)
        return concrete
