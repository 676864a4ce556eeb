"""TensorFlow, and Keras on TensorFlow: trace the model once, then differentiate a copy of its graph.

In the copy every ReLU carries a gradient of its own, by a name that nothing else carries. The model's own
functions, layers and gradients are left as they are, and weights are read anew in every call.
"""

import itertools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from guided_backprop.arrays import Array, Images, Inputs, Model, NumpyArray, Tensor
from guided_backprop.backends.base import Attributed, Backend, Score, Setup, Weigh, per_image
from guided_backprop.backends.keras import KerasNetwork, is_keras
from guided_backprop.backends.network import Network
from guided_backprop.backends.refusals import detached, no_rows, not_finite, spelled
from guided_backprop.backends.tensorflow.classify import classify
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.custom import SCOPE
from guided_backprop.backends.tensorflow.graph.functions import (
    Traced,
    graph_of,
    keep_functions,
    made_by,
    renamed,
    trace,
)
from guided_backprop.backends.tensorflow.graph.nodes import constant_of, producer
from guided_backprop.backends.tensorflow.hidden.values import Watch
from guided_backprop.backends.tensorflow.model import (
    CULPRITS,
    TensorFlowNetwork,
    callable_of,
    inside_of,
    model_error,
    slopes,
)
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError
from guided_backprop.rules import ReluRule

_Specs = tuple[tf.TensorSpec, ...]
_Rules = tuple[ReluRule, ...]


class _Kind(NamedTuple):
    """What a graph is made for: the inputs' signatures, if they come in a tuple or by name, if a head is undone."""

    specs: _Specs
    form: Hashable
    undoes_head: bool


@dataclass(frozen=True)
class _Copy:
    """A marked copy of the model's graph, for images of one signature.

    Attributes:
        specs: the inputs' signatures.
        graph_def: the graph.
        arguments: the names of its arguments: the inputs, then what it captured.
        captured: what it captured.
        output: the name of its output.
        inside: the name of the value that the gradient is taken at; None for the inputs.
        watch: the operations that may be ReLUs for all that their names say.
        head: the final softmax or sigmoid that is undone.
    """

    specs: _Specs
    graph_def: GraphDef
    arguments: list[str]
    captured: list[tf.Tensor]
    output: str
    inside: str | None
    watch: "Watch"
    head: str | None


@dataclass(frozen=True)
class _Plan:
    """The gradients of one model under some rules, for images of one signature."""

    run: Callable[..., Mapping[str, tf.Tensor]]
    editors: list[Editor]
    head: str | None


@dataclass
class _Call:
    """One call of a plan: how its outputs weigh, and what came of that.

    Attributes:
        weigh: from outputs to weights.
        score: what weighs the outputs by its slope instead, if anything.
        count: how many images there are.
        labels: how many labels of each image the plan is made for.
    """

    weigh: Weigh
    score: Score | None
    count: int
    labels: int
    outputs: NumpyArray = field(init=False)
    weights: NumpyArray = field(init=False)
    scores: NumpyArray | None = None
    error: BaseException | None = field(default=None)


class TensorFlowBackend(Backend):
    """A Keras model on TensorFlow, a ``tf.function``, a loaded SavedModel, or any callable on tensors.

    The model is traced once per shape and dtype of the images, as by ``tf.function``: new values of its
    variables are seen, other layers or Python attributes put into it later are not.
    """

    framework = "tensorflow"

    # NumPy's functions for tf.Tensors, which promote no dtypes.
    functions = tf.experimental.numpy

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._check = partial(self.check_beginning, count=None) if self.begins_inside else None
        self._copies: dict[_Kind, _Copy] = {}
        self._plans: dict[tuple[_Kind, _Rules, int], _Plan] = {}
        self._calls: dict[int, _Call] = {}
        self._tokens = itertools.count()
        self._lock = threading.RLock()

    @classmethod
    def network_of(cls, model: Model) -> Network:
        return KerasNetwork(model) if is_keras(model) else TensorFlowNetwork(model)

    def check_kind(self, array: Tensor) -> None:
        is_tensor = isinstance(array, tf.Tensor) and hasattr(array, "numpy")
        if not (is_tensor or isinstance(array, np.ndarray)) or len(array.shape) == 0:
            raise ImageError(
                "images must be an eager tf.Tensor or a NumPy array of shape (N, ...); "
                f"received images={type(array).__name__}. Stack the images to one batch."
            )

    def is_floating(self, array: Array) -> bool:
        return bool(tf.as_dtype(array.dtype).is_floating)

    def is_finite(self, array: Array) -> bool:
        numbers = np.asarray(array)
        # bfloat16 is no number to NumPy.
        return bool(np.isfinite(numbers.astype(np.float32) if numbers.dtype.kind == "V" else numbers).all())

    def attribute(
        self, images: Images, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        self.network.check()
        # Out of the caller's graphs and off his tapes.
        with tf.init_scope():
            given = Inputs.of(images).map(tf.convert_to_tensor)
            try:
                plan, call, results = self._run(given, weigh, tuple(rules), score, labels=1)
            except _OtherLabels as other:
                plan, call, results = self._run(given, weigh, tuple(rules), score, labels=other.count)
        for editor in plan.editors:
            _check_bounds(editor, results)
        if call.scores is not None:
            scores = [call.scores]
        elif plan.head is not None:
            logits = results["logits"].numpy()
            scores = [per_image(results[f"arrived {label}"].numpy(), logits) for label in range(len(call.weights))]
        else:
            scores = [per_image(weight, call.outputs) for weight in call.weights]
        activation = self.inside(results["activation"], images) if self.begins_inside else None
        explained = images if activation is None else activation
        if not np.isfinite(scores).all():
            raise not_finite()
        attributed = []
        for number, editor in enumerate(plan.editors):
            names = [f"gradient {number} {label}" for label in range(len(call.weights))]
            gradients = [self._gradients(results, name, explained) for name in names]
            attributed.append(
                Attributed(gradients, np.stack(scores), call.outputs, editor.coverage(), plan.head, activation)
            )
        return attributed

    def outputs(self, images: Images) -> NumpyArray:
        self.network.check()
        with tf.init_scope():
            given = Inputs.of(images).map(tf.convert_to_tensor)
            forward = callable_of(self.network, given, self.setup.output)
            with self.network.unremembered():
                output = forward(*given.arrays).numpy()
        return output.astype(np.float32) if output.dtype.kind == "V" else output  # type: ignore[no-any-return]

    def from_numpy(self, array: NumpyArray, like: Array) -> Tensor:
        return array.astype(like.dtype) if isinstance(like, np.ndarray) else tf.cast(array, like.dtype)

    def _gradients(self, results: Mapping[str, tf.Tensor], name: str, images: Images) -> Images:
        """Return the gradients of one name in the form of the images."""
        inputs = Inputs.of(images)
        gradients: list[Tensor] = [results.get(f"{name} {position}") for position in range(len(inputs.arrays))]
        if any(gradient is not None and not self.is_finite(gradient) for gradient in gradients):
            raise not_finite()
        for position, array in enumerate(inputs.arrays):
            if isinstance(array, np.ndarray) and gradients[position] is not None:
                gradients[position] = gradients[position].numpy()
        return inputs.like(gradients).images

    def _plan(self, given: Inputs, rules: _Rules, labels: int, *, undoes_head: bool) -> _Plan:
        """Return the plan for such images, for any number of them unless the model is made for one number."""
        shapes = [tensor.shape.as_list() for tensor in given.arrays]
        kinds = []
        for sizes in ([[None, *shape[1:]] for shape in shapes], shapes):
            specs = (tf.TensorSpec(size, tensor.dtype) for size, tensor in zip(sizes, given.arrays, strict=True))
            kinds.append(_Kind(tuple(specs), given.form, undoes_head))
        with self._lock:
            kind = next((kind for kind in kinds if kind in self._copies), None)
            if kind is None:
                kind, copied = self._copy(kinds, given)
                self._copies[kind] = copied
            if (kind, rules, labels) not in self._plans:
                if any(rule.needs_every_relu for rule in rules):
                    self._refuse_spelled(self._copies[kind].watch, given)
                try:
                    self._plans[kind, rules, labels] = self._build(self._copies[kind], rules, labels)
                except GuidedBackpropError:
                    raise
                except Exception as error:
                    raise self._failed(error, given) from error
            return self._plans[kind, rules, labels]

    def _refuse_spelled(self, watch: Watch, given: Inputs) -> None:
        """Raise if the values of these images show a ReLU that is no operation of its own."""
        try:
            relus = watch.found([*given.arrays, *inside_of(self.network, given, self._check)])
        except Exception as error:
            raise self._failed(error, given) from error
        if relus:
            # What is made of it is found as well.
            raise spelled({relus[0].name}, "tf.nn.relu")

    def _copy(self, kinds: list[_Kind], given: Inputs) -> tuple[_Kind, "_Copy"]:
        """Trace the model, and mark in a copy of its graph what each node is."""
        kind, traced = self._trace(kinds, given)
        captured = [constant_of(tensor) for tensor in traced.captured]
        begin = made_by(traced.definition, traced.definition.signature.output_arg[1].name) if self.begins_inside else ""
        findings = classify(traced.definition, traced.nested, captured, self.setup.vouch, producer(begin))
        head = findings.undo_head() if kind.undoes_head else None
        graph_def, flat_names = graph_of(traced)
        signature = traced.definition.signature
        arguments = [arg.name for arg in signature.input_arg]
        output, *inside = (flat_names[made_by(traced.definition, arg.name)] for arg in signature.output_arg)
        first = inside[0] if inside else None
        # What the gradient begins at is one more input here.
        begins, size = inside_of(self.network, given, self._check), kind.specs[0].shape[0]
        specs = [*kind.specs, *(tf.TensorSpec([size, *value.shape[1:]], value.dtype) for value in begins)]
        given_names = [*arguments[: len(kind.specs)], *(name.partition(":")[0] for name in inside)]
        bring = partial(_bring, [*given_names, *arguments[len(kind.specs) :]], traced.captured)
        watch = Watch(findings.places, graph_def, flat_names, specs, bring, begins_inside=bool(begins))
        return kind, _Copy(kind.specs, graph_def, arguments, traced.captured, output, first, watch, head)

    def _trace(self, kinds: list[_Kind], given: Inputs) -> tuple[_Kind, Traced]:
        error: Exception | None = None
        for autograph, kind in itertools.product((False, True), kinds):
            forward = callable_of(self.network, given, self.setup.output, self._check)
            try:
                with self.network.unremembered():
                    return kind, trace(forward, kind.specs, autograph=autograph)
            except GuidedBackpropError:
                raise
            except Exception as caught:
                error = caught
        assert error is not None
        raise model_error(error, kinds[-1].specs) from error

    def _build(self, copied: "_Copy", rules: _Rules, labels: int) -> _Plan:
        """Differentiate the copy under each rule, once for each label."""
        editors = [Editor(rule, self.setup.vouch) for rule in rules]
        graph_def = renamed(copied.graph_def)

        def joint(token: tf.Tensor, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            names = [copied.output, *([copied.inside] if copied.inside else [])]
            outputs, *inside = _bring(copied.arguments, copied.captured, graph_def, inputs, names)
            weights = tf.numpy_function(self._weigh, [token, outputs], tf.float64)
            weights.set_shape([labels, *outputs.shape])
            seeds = tf.unstack(tf.cast(weights, outputs.dtype))
            results = {"activation": tf.identity(inside[0])} if inside else {}
            for number, editor in enumerate(editors):
                results |= self._differentiate(editor, f"gradient {number}", inside or inputs, outputs, seeds)
            return results

        signature = [tf.TensorSpec([], tf.int64), *copied.specs]
        concrete = tf.function(joint, input_signature=signature, autograph=False).get_concrete_function()
        for editor in editors:
            if not editor.bounds:
                # Nothing is left to be seen in the values: raise before the model is run.
                editor.coverage()
        plan = _Plan(concrete, editors, copied.head)
        keep_functions(graph_def, plan)
        return plan

    def _differentiate(
        self, editor: Editor, name: str, inputs: Sequence[tf.Tensor], outputs: tf.Tensor, weights: list[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        explained = [position for position, tensor in enumerate(inputs) if tensor.dtype.is_floating]
        results = {}
        with editor.at_work():
            for label, weight in enumerate(weights if outputs.dtype.is_floating else []):
                gradients = tf.gradients(outputs, [inputs[position] for position in explained], weight)
                if all(gradient is None for gradient in gradients):
                    break
                for position, gradient in zip(explained, gradients, strict=True):
                    dense = tf.zeros_like(inputs[position]) if gradient is None else tf.convert_to_tensor(gradient)
                    results[f"{name} {label} {position}"] = dense
        if not results:
            raise detached(CULPRITS)
        for label, (logits, arrived) in enumerate(editor.heads):
            results["logits"], results[f"arrived {label}"] = logits, arrived
        return results | editor.seen()

    def _weigh(self, token: NumpyArray, outputs: NumpyArray) -> NumpyArray:
        """Say how the outputs weigh, between the forward and the backward pass of one call."""
        call = self._calls[int(token)]
        try:
            if outputs.ndim == 0 or len(outputs) != call.count:
                raise no_rows(call.count, outputs.shape, "tensor")
            # bfloat16 is no number to NumPy.
            call.outputs = np.array(outputs, np.float32 if outputs.dtype.kind == "V" else None)
            if call.score is None:
                call.weights = np.stack(call.weigh(call.outputs)).astype(np.float64, copy=False)
            else:
                weights, call.scores = slopes(call.score, tf.constant(outputs))
                call.weights = weights[None]
            if len(call.weights) != call.labels:
                raise _OtherLabels(len(call.weights))
        except BaseException as error:
            call.error = error
            raise
        return call.weights

    def _run(
        self, given: Inputs, weigh: Weigh, rules: _Rules, score: Score | None, *, labels: int
    ) -> tuple[_Plan, _Call, Mapping[str, tf.Tensor]]:
        plan = self._plan(given, rules, labels, undoes_head=self.setup.undo_head and score is None)
        inputs = given.arrays
        token, call = next(self._tokens), _Call(weigh, score, len(inputs[0]), labels)
        self._calls[token] = call
        try:
            return plan, call, plan.run(tf.constant(token, tf.int64), *inputs)
        except Exception as error:
            if call.error is not None:
                raise call.error from None
            raise self._failed(error, given) from error
        finally:
            del self._calls[token]

    def _failed(self, error: Exception, given: Inputs) -> ModelError:
        """Return what to say of an error of a copy: the model's own, or a fault of ours if the model has none."""
        specs = tuple(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in given.arrays)
        if self.is_out_of_memory(error):
            return model_error(error, specs)
        forward = callable_of(self.network, given, self.setup.output)
        try:
            with self.network.unremembered(), tf.GradientTape() as tape:
                tape.watch(given.arrays)
                output = forward(*given.arrays)
            tape.gradient(output, given.arrays)
        except Exception:
            return model_error(error, specs)
        return ModelError(
            "the copy of a model must run wherever the model does; received a model that runs, and "
            f"error={type(error).__name__} from its copy. This is a fault of guided-backprop: please report it, with "
            "the model."
        )


class _OtherLabels(Exception):  # noqa: N818 - no error: the plan for that number is run instead
    """Each image has another number of labels than the plan was made for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


def _bring(
    arguments: list[str], captured: list[tf.Tensor], graph_def: GraphDef, inputs: Sequence[tf.Tensor], names: list[str]
) -> list[tf.Tensor]:
    """Put a copy of a graph into the one that is being built, on inputs; return the tensors of these names."""
    here = [*inputs, *map(tf.compat.v1.get_default_graph().capture, captured)]
    named = {f"{name}:0": tensor for name, tensor in zip(arguments, here, strict=True)}
    return list(tf.graph_util.import_graph_def(graph_def, named, names, name=SCOPE))


def _check_bounds(editor: Editor, results: Mapping[str, tf.Tensor]) -> None:
    """Raise if a bound of this call makes a ReLU of a maximum or minimum."""
    names = {name for key, name in editor.bounds.items() if not results[key].numpy().all()}
    if names:
        raise spelled(names, "tf.nn.relu")
