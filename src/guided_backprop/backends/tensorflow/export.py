"""An explanation as a SavedModel of TensorFlow's: one graph with its weights, without the model and this library."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.base import Setup
from guided_backprop.backends.refusals import unsettled
from guided_backprop.backends.tensorflow.backend import TensorFlowBackend
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.functions import keep_functions, renamed
from guided_backprop.backends.tensorflow.graph.nodes import OVERRIDE
from guided_backprop.backends.tensorflow.plan import Copy, differentiate
from guided_backprop.errors import ModelError
from guided_backprop.export.engine import Engine
from guided_backprop.export.graph import Graph
from guided_backprop.export.plan import TOP, WEIGHTS, Plan, port_names
from guided_backprop.rules import ReluRule

# Where a SavedModel keeps what is said of it.
_METADATA: Final = "assets.extra/guided_backprop.json"
_SIGNATURE: Final = "serving_default"
# What is written on the marked copy, and means nothing elsewhere.
_MARK: Final = "_guided_backprop_"


class Recorder(TensorFlowBackend):
    """A model whose marked copy can be put into a larger graph."""

    def copied(self, given: Inputs, rule: ReluRule) -> Copy:
        """Return the marked copy for any number of such images.

        Raises:
            ModelError: the model takes one number of images alone, or these leave open what is a ReLU.
        """
        self.network.check()
        with tf.init_scope():
            self._plan(given.map(tf.convert_to_tensor), (rule,), 1, undoes_head=self.setup.undo_head)
        kind, copied = next(iter(self._copies.items()))
        if any(spec.shape[0] is not None for spec in kind.specs):
            raise ModelError(
                "a graph must take any number of images; received a model that takes one number of them alone. "
                "Build it with None as the size of its first axis."
            )
        watch = self._watches.get(kind)
        if watch is not None and watch.unsettled:
            raise unsettled(watch.unsettled)
        return copied


class Weight(NamedTuple):
    """A variable of the model, and one that has the value that it had.

    Attributes:
        handle: the model's own.
        variable: the other one.
    """

    handle: tf.Tensor
    variable: tf.Variable

    @staticmethod
    def read(handle: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Return what a variable is now."""
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)


def _with_own_weights(copied: Copy) -> tuple[Copy, list[Weight]]:
    """Return the copy with variables of its own, which have the values that the model's have now."""
    captured: list[tf.Tensor] = []
    weights: list[Weight] = []
    for tensor in copied.traced.captured:
        if tensor.dtype != tf.resource:
            captured.append(tensor)
            continue
        kinds = tensor._handle_data.shape_and_type
        if len(kinds) != 1:
            raise ModelError(
                "a graph must hold all that the model reads; received a table or another resource. Export a part of "
                "the model that reads none."
            )
        weights.append(Weight(tensor, tf.Variable(Weight.read(tensor, tf.as_dtype(kinds[0].dtype)))))
        captured.append(weights[-1].variable.handle)
    return replace(copied, traced=replace(copied.traced, captured=captured)), weights


class SavedModel(Engine):
    """A folder as TensorFlow reads it, without the library and without the model."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None:
        self.name = f"tensorflow {tf.__version__}"
        self._loaded = tf.saved_model.load(str(path))
        self._outputs = outputs

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        function = self._loaded.signatures[_SIGNATURE]
        ports = {name: spec.dtype for name, spec in function.structured_input_signature[1].items()}
        found = function(**{name: tf.cast(array, ports[name]) for name, array in inputs.items()})
        return {name: np.asarray(found[name]) for name in self._outputs}


class TensorFlowGraph(Graph):
    """The explanation of a model as a graph, with the weights in it.

    Args:
        setup: the model, and what is said about it.
        given: a batch such as will be explained.
        plan: what is computed.

    Raises:
        ModelError: the model takes one number of images alone, or a bound that it computes would have to be looked at
            in each call.

    Attributes:
        weights: the model's variables, with the values that are in the graph.
        forward: from images to the model's outputs.
    """

    engine, turns = SavedModel, ()

    def __init__(self, setup: Setup, given: Inputs, plan: Plan) -> None:
        self._recorder, self._plan = Recorder(setup), plan
        copied, self.weights = _with_own_weights(self._recorder.copied(given, plan.rule))
        floats = [spec.dtype.is_floating for spec in copied.specs]
        self._explained = [position for position, is_float in enumerate(floats) if is_float]
        names, self.outputs = port_names(given, floats)
        self._count = len(names)
        editor, marked = Editor(plan.rule, setup.vouch), renamed(copied.graph_def)
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(copied.specs, names, strict=True)]

        def explain(*arrays: tf.Tensor) -> list[tf.Tensor]:
            (outputs,) = copied.bring(marked, arrays[: self._count], [copied.output])
            return self._results(editor, outputs, arrays)

        labels = self._label_specs(copied, marked)
        self.inputs, signature = (*names, *[label.name for label in labels]), [*specs, *labels]
        concrete = tf.function(explain, input_signature=signature, autograph=False).get_concrete_function()
        keep_functions(marked, concrete)
        # What is read by its handle alone is not known to be a variable.
        concrete.graph.variables = [weight.variable for weight in self.weights]
        self.coverage = editor.coverage()
        if editor.bounds:
            bounds = ", ".join(sorted({*editor.bounds.values()}))
            raise ModelError(
                f"a graph can't look at a bound that is computed; received {bounds}. Write it as tf.nn.relu."
            )
        self._function = self._wrapped(*self._frozen(concrete))

    def _label_specs(self, copied: Copy, marked: GraphDef) -> list[tf.TensorSpec]:
        ids = tf.TensorSpec([None], tf.int64, "labels")
        if self._plan.labels == "ids":
            return [ids]
        shape, dtype = self._output(copied, marked)
        name = "labels" if self._plan.labels == "weights" else "weights"
        weights = tf.TensorSpec(shape, dtype, name)
        return [ids, weights] if self._plan.labels == "both" else [weights]

    def _output(self, copied: Copy, marked: GraphDef) -> tuple[Sequence[int | None], tf.DType]:
        """Return the shape and the kind of the model's outputs."""

        def forward(*inputs: tf.Tensor) -> tf.Tensor:
            return copied.bring(marked, inputs, [copied.output])[0]

        made = tf.function(forward, input_signature=copied.specs, autograph=False).get_concrete_function()
        return [None, *made.outputs[0].shape[1:]], made.outputs[0].dtype

    def _results(self, editor: Editor, outputs: tf.Tensor, arrays: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs, labels = arrays[: self._count], arrays[self._count :]
        seed = self._seed(outputs, labels)
        found = differentiate(editor, "gradient", inputs, outputs, [seed])
        gradients = [found[f"gradient 0 {position}"] for position in self._explained]
        recorder = self._recorder
        maps = [recorder.reduce(one, self._plan.reducer, recorder.channel_axis(one)) for one in gradients]
        scored, weights = found.get("logits", outputs), found.get("arrived 0", seed)
        scores = tf.reduce_sum(tf.reshape(weights * scored, [tf.shape(outputs)[0], -1]), 1)
        numbers = [tensor for tensor in (outputs, *maps, *arrays) if tensor.dtype.is_floating]
        is_finite = tf.reduce_all(tf.stack([_are_finite(tensor) for tensor in numbers]), 0)
        if self._plan.labels == "ids" and outputs.shape.rank > 1:
            is_finite &= (labels[0] >= TOP) & (labels[0] < tf.shape(outputs, tf.int64)[self._class_axis(outputs)])
        return [outputs, *maps, scores, is_finite]

    def _seed(self, outputs: tf.Tensor, labels: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return how much each output weighs: as labels say, or 1 for a class, at all its positions."""
        if self._plan.labels == "weights":
            return labels[0]
        seed = self._of_classes(outputs, labels[0])
        if self._plan.labels == "ids":
            return seed
        is_weighed = tf.reshape(labels[0] == WEIGHTS, [-1, *[1] * (outputs.shape.rank - 1)])
        return tf.where(is_weighed, labels[1], seed)

    def _of_classes(self, outputs: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        if outputs.shape.rank == 1:
            return tf.ones_like(outputs)
        axis = self._class_axis(outputs)
        others = [other for other in range(1, outputs.shape.rank) if other != axis]
        totals = tf.reduce_sum(outputs, others)
        ids = tf.where(label < 0, tf.argmax(totals, 1), label)
        chosen = tf.one_hot(ids, tf.shape(outputs)[axis], dtype=outputs.dtype)
        for other in others:
            chosen = tf.expand_dims(chosen, other)
        return chosen * tf.ones_like(outputs)

    def _class_axis(self, array: tf.Tensor) -> int:
        return self._recorder.channel_axis(array) or 1

    def _frozen(self, concrete: Any) -> tuple[GraphDef, list[str]]:
        """Return the graph with its weights as constants, without marks; and what its results are called there."""
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        graph_def = frozen.graph.as_graph_def()
        for node in (*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)):
            for name in [name for name in node.attr if name == OVERRIDE or name.startswith(_MARK)]:
                del node.attr[name]
        return graph_def, [tensor.name for tensor in frozen.outputs]

    def _wrapped(self, graph_def: GraphDef, ports: Sequence[str]) -> Any:
        """Return the graph as a function of its inputs by name."""
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
        feeds = [wrapped.graph.get_tensor_by_name(f"{name}:0") for name in self.inputs]
        self.forward = _called(wrapped.prune(feeds[: self._count], wrapped.graph.get_tensor_by_name(ports[0])))
        results = {name: wrapped.graph.get_tensor_by_name(port) for name, port in zip(self.outputs, ports, strict=True)}
        pruned = wrapped.prune(feeds, results)
        self._explain = _called(pruned)
        return pruned

    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        ports = (tensor.dtype for tensor in self._function.inputs)
        found = self._explain(*[tf.cast(array, dtype) for array, dtype in zip(inputs, ports, strict=True)])
        return {name: np.asarray(found[name]) for name in self.outputs}

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write a folder, which holds what it says of itself as well."""
        shutil.rmtree(path, ignore_errors=True)
        module = tf.Module()
        module.explain = self._function
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(path), {_SIGNATURE: self._function}, options)
        said = path / _METADATA
        said.parent.mkdir(exist_ok=True)
        said.write_text(json.dumps(dict(metadata), indent=1))


def _called(pruned: Any) -> Any:
    """Return a function that calls a pruned one, which by itself words an error in each call, to try another way."""
    return tf.function(pruned, autograph=False).get_concrete_function(*pruned.inputs)


def _are_finite(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(tf.reshape(tf.math.is_finite(tensor), [tf.shape(tensor)[0], -1]), 1)
