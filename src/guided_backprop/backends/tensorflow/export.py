"""An explanation as a SavedModel of TensorFlow's: one graph with its weights, without the model and this library."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
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
from guided_backprop.backends.tensorflow.maps import are_finite, fitted, moment, of_pixels, positive, scaled
from guided_backprop.backends.tensorflow.plan import Copy, differentiate
from guided_backprop.errors import ModelError
from guided_backprop.export.engine import Engine
from guided_backprop.export.graph import Graph
from guided_backprop.export.plan import TOP, WEIGHTS, Noise, Plan, Sizes, noise_names, port_names
from guided_backprop.rules import PLAIN, ReluRule

# Where a SavedModel keeps what is said of it.
_METADATA: Final = "assets.extra/guided_backprop.json"
_SIGNATURE: Final = "serving_default"
# What is written on the marked copy, and means nothing elsewhere.
_MARK: Final = "_guided_backprop_"


class Recorder(TensorFlowBackend):
    """A model whose marked copy can be put into a larger graph.

    Args:
        setup: the model, and what is said about it.
        sizes: whether images are of one size, or of any.
    """

    def __init__(self, setup: Setup, sizes: Sizes) -> None:
        super().__init__(setup)
        self._sizes = sizes

    def _signatures(self, given: Inputs) -> Sequence[Sequence[Sequence[int | None]]]:
        if self._sizes == "fixed":
            return super()._signatures(given)
        free = [(0, *self.axes_of_positions(array)) for array in given.arrays]
        shapes = [enumerate(array.shape) for array in given.arrays]
        return [
            [[None if axis in axes else size for axis, size in shape] for axes, shape in zip(free, shapes, strict=True)]
        ]

    def copied(self, given: Inputs, rule: ReluRule) -> Copy:
        """Return the marked copy for any number of such images.

        Raises:
            ModelError: the model takes one number of images alone, or these leave open what is a ReLU.
        """
        self.network.check()
        with tf.init_scope():
            self.prepare(given.map(tf.convert_to_tensor), rule)
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


def _with_own_weights(copied: Copy, weights: dict[int, Weight]) -> Copy:
    """Return the copy with variables of its own, which have the values that the model's have now.

    Args:
        copied: the copy.
        weights: those that were made, by which handle of the model's each is in the place of.
    """
    captured: list[tf.Tensor] = []
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
        if id(tensor) not in weights:
            value = Weight.read(tensor, tf.as_dtype(kinds[0].dtype))
            weights[id(tensor)] = Weight(tensor, tf.Variable(value))
        captured.append(weights[id(tensor)].variable.handle)
    return replace(copied, traced=replace(copied.traced, captured=captured))


class _Part:
    """A model's marked copy as a part of a larger graph, under one rule.

    Args:
        setup: the model, and what is said about it.
        given: a batch such as will be explained.
        rule: what a ReLU lets through.
        sizes: whether images are of one size, or of any.
        weights: as of :func:`_with_own_weights`.

    Attributes:
        recorder: what made it.
        specs: the inputs' signatures.
    """

    def __init__(self, setup: Setup, given: Inputs, rule: ReluRule, sizes: Sizes, weights: dict[int, Weight]) -> None:
        self.recorder = Recorder(setup, sizes)
        self._copied = _with_own_weights(self.recorder.copied(given, rule), weights)
        self.specs, self._rule, self._vouch = self._copied.specs, rule, setup.vouch
        self.marked = renamed(self._copied.graph_def)

    def editor(self) -> Editor:
        """Return what is done with the nodes of one pass."""
        return Editor(self._rule, self._vouch)

    def passed(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the outputs for these inputs, and where the gradient is taken inside of the model the value there."""
        copied = self._copied
        names = [copied.output, *([copied.inside] if copied.inside else [])]
        return copied.bring(self.marked, inputs, names)

    def results(self) -> list[tf.TensorSpec]:
        """Return the shapes and the kinds of what a pass gives."""
        made = tf.function(lambda *inputs: self.passed(inputs), input_signature=self.specs, autograph=False)
        results = made.get_concrete_function().outputs
        return [tf.TensorSpec([None, *one.shape[1:]], one.dtype) for one in results]


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
        self._plan, weights = plan, dict[int, Weight]()
        self._model = self._at_layer = _Part(setup, given, plan.rule, plan.sizes, weights)
        if plan.cam is not None and plan.cam.is_factor:
            inner = replace(setup, input_layer=plan.cam.layer)
            self._at_layer = _Part(inner, given, PLAIN, plan.sizes, weights)
        self._recorder, specs = self._model.recorder, self._model.specs
        self.weights = list(weights.values())
        if plan.sizes == "dynamic":
            self.least = self._least(given)
        self._floats = [spec.dtype.is_floating for spec in specs]
        inside = self._at_layer.results()[-1] if plan.cam is not None else None
        self._mapped = [
            is_one and (inside is None or self._recorder.has_positions(spec, inside.shape.rank))
            for spec, is_one in zip(specs, self._floats, strict=True)
        ]
        names, self.outputs = port_names(given, self._mapped)
        if plan.photos is not None:
            # What no photo can be is said.
            plan.photos.pixels(np.asarray(given.arrays[0]))
            names = ["photos"]
        told = ["labels", "weights"] if plan.labels == "both" else ["labels"]
        self._told = len(names), len(names) + len(told)
        self.inputs = (*names, *told, *([] if plan.noise is None else noise_names(names, self._floats)))
        self._editors: list[Editor] = []
        signature = self._signature()
        concrete = tf.function(self._results, input_signature=signature, autograph=False).get_concrete_function()
        for part in {self._model, self._at_layer}:
            keep_functions(part.marked, concrete)
        # What is read by its handle alone is not known to be a variable.
        concrete.graph.variables = [weight.variable for weight in self.weights]
        self.coverage = self._editors[0].coverage()
        bounds = sorted({name for editor in self._editors for name in editor.bounds.values()})
        if bounds:
            raise ModelError(
                f"a graph can't look at a bound that is computed; received {', '.join(bounds)}. Write it as tf.nn.relu."
            )
        self._function = self._wrapped(*self._frozen(concrete))

    def _least(self, given: Inputs) -> list[list[int]]:
        """Return the least sizes of each input, which are tried: half of the example's."""
        axes = [self._recorder.axes_of_positions(array) for array in given.arrays]
        return [
            [max(1, array.shape[axis] // 2) for axis in along] for array, along in zip(given.arrays, axes, strict=True)
        ]

    def _signature(self) -> list[tf.TensorSpec]:
        """Return what the inputs are, by name."""
        plan, given = self._plan, list(self._model.specs)
        if plan.photos is not None:
            given = [tf.TensorSpec([None, *plan.photos.shape(given[0].shape.as_list()[1:])], tf.uint8)]
        given += [] if plan.labels == "weights" else [tf.TensorSpec([None], tf.int64)]
        given += [] if plan.labels == "ids" else [self._model.results()[0]]
        if plan.noise is not None:
            noisy = compress(self._model.specs, self._floats)
            given += [tf.TensorSpec([None, plan.noise.samples, *spec.shape[1:]], spec.dtype) for spec in noisy]
        return [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(given, self.inputs, strict=True)]

    def _results(self, *arrays: tf.Tensor) -> list[tf.Tensor]:
        recorder, noise, (images, told) = self._recorder, self._plan.noise, self._told
        inputs: Sequence[tf.Tensor]
        inputs, labels, drawn = arrays[:images], arrays[images:told], arrays[told:]
        if self._plan.photos is not None:
            inputs = [scaled(inputs[0], self._plan.photos, self._model.specs[0].dtype)]
        passed = self._model.passed(inputs)
        outputs = passed[0]
        seed = self._seed(outputs, labels)
        maps, found = self._maps(inputs, passed, seed)
        if noise is not None:
            copies = self._copies(inputs, drawn, noise)
            noisy, _ = self._maps(copies, self._model.passed(copies), tf.repeat(seed, noise.samples, 0))
            maps = [moment(noise, one) for one in noisy]
        maps = [self._reduced(one) for one in maps]
        scored, weights = found.get("logits", outputs), found.get("arrived 0", seed)
        scores = tf.reduce_sum(tf.reshape(weights * scored, [tf.shape(outputs)[0], -1]), 1)
        numbers = [tensor for tensor in (outputs, *maps, *arrays) if tensor.dtype.is_floating]
        is_finite = tf.reduce_all(tf.stack([are_finite(tensor) for tensor in numbers]), 0)
        if self._plan.labels == "ids" and outputs.shape.rank > 1:
            is_finite &= (labels[0] >= TOP) & (labels[0] < tf.shape(outputs, tf.int64)[self._class_axis(outputs)])
        for array, least in zip(inputs, self.least, strict=False):
            for axis, size in zip(recorder.axes_of_positions(array), least, strict=True):
                is_finite &= tf.shape(array)[axis] >= size
        return [outputs, *maps, scores, is_finite]

    def _reduced(self, attribution: tf.Tensor) -> tf.Tensor:
        """Return maps with their channels reduced: of the pixels of photos, if the graph takes photos."""
        photos, cam, axis = self._plan.photos, self._plan.cam, self._recorder.channel_axis(attribution)
        if photos is not None and (cam is None or cam.is_factor):
            attribution, axis = of_pixels(attribution, photos), -1
        return self._recorder.reduce(attribution, self._plan.reducer, axis)

    def _copies(self, inputs: Sequence[tf.Tensor], drawn: Sequence[tf.Tensor], noise: Noise) -> list[tf.Tensor]:
        """Return noisy copies, those of one image after the other."""
        left, copies = iter(drawn), []
        for images, is_float in zip(inputs, self._floats, strict=True):
            copy = tf.repeat(images, noise.samples, 0)
            if is_float:
                axes = range(1, images.shape.rank)
                spread = tf.reduce_max(images, axes, True) - tf.reduce_min(images, axes, True)
                scaled = next(left) * tf.expand_dims(spread * noise.share, 1)
                copy += tf.reshape(scaled, tf.shape(copy))
            copies.append(copy)
        return copies

    def _maps(
        self, inputs: Sequence[tf.Tensor], passed: Sequence[tf.Tensor], seed: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return the maps of images, with all channels, and what else was found on the way back."""
        plan, mapped = self._plan, [*compress(inputs, self._mapped)]
        gradients, found = self._derived(self._model, inputs, passed, seed)
        if plan.cam is None:
            images = compress(inputs, self._floats)
            return [g * x for g, x in zip(gradients, images, strict=True)] if plan.times_images else gradients, found
        inside, at_layer = passed[-1], gradients
        if plan.cam.is_factor:
            *outputs, inside = self._at_layer.passed(inputs)
            at_layer, _ = self._derived(self._at_layer, inputs, [*outputs, inside], seed)
        recorder = self._recorder
        small = positive(at_layer[0], inside, recorder.channel_axis(inside) or 1)
        cams = [fitted(small, images, plan.cam, recorder.channel_axis(images) or 1) for images in mapped]
        if plan.cam.is_factor:
            own = compress(gradients, compress(self._mapped, self._floats))
            cams = [g * cam for g, cam in zip(own, cams, strict=True)]
        return cams, found

    def _derived(
        self, part: _Part, inputs: Sequence[tf.Tensor], passed: Sequence[tf.Tensor], seed: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return the gradients of one pass: at the value inside, if there is one, else at each input that has one."""
        outputs, *inside = passed
        editor = part.editor()
        self._editors.append(editor)
        found = differentiate(editor, "gradient", inside or inputs, outputs, [seed])
        places = [0] if inside else [place for place, is_float in enumerate(self._floats) if is_float]
        return [found[f"gradient 0 {place}"] for place in places], found

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
        self.forward = _called(wrapped.prune(feeds[: self._told[0]], wrapped.graph.get_tensor_by_name(ports[0])))
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
