"""TensorFlow, and Keras on TensorFlow: trace the model once, then differentiate a copy of its graph.

In the copy every ReLU carries a gradient of its own, by a name that nothing else carries. The model's own
functions, layers and gradients are left as they are, and weights are read anew in every call.
"""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from guided_backprop.backends.base import Attributed, Backend, Vouch, Weigh, per_image
from guided_backprop.backends.keras import is_channels_last
from guided_backprop.backends.report import not_finite, spelled
from guided_backprop.backends.spelling import is_relu_like
from guided_backprop.backends.tensorflow.custom import SCOPE
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph import Traced, graph_of, renamed, trace
from guided_backprop.backends.tensorflow.nodes import constant_of
from guided_backprop.backends.tensorflow.relus import classify
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, ScoreError
from guided_backprop.rules import ReluRule

_KERAS = ("keras", "tf_keras")
# What a layer remembers of its last call, which a trace must not replace.
_REMEMBERED = ("_losses", "_loss_ids", "_eager_losses")


@dataclass(frozen=True)
class _Copy:
    """A marked copy of the model's graph, for images of one signature.

    Attributes:
        spec: the images' signature.
        graph_def: the graph.
        arguments: the names of its arguments: the images, then what it captured.
        captured: what it captured.
        output: the name of its output.
        watched: of each node whose values alone tell whether it spells a ReLU, the tensors it may be one of.
        head: the final softmax or sigmoid that is undone.
    """

    spec: tf.TensorSpec
    graph_def: Any
    arguments: list[str]
    captured: list[Any]
    output: str
    watched: dict[str, list[str]]
    head: str | None


@dataclass(frozen=True)
class _Plan:
    """The gradient of one model under one rule, for images of one signature."""

    run: Callable[..., Mapping[str, tf.Tensor]]
    editor: Editor
    head: str | None


@dataclass
class _Call:
    """One call of a plan: how its outputs weigh, and what came of that."""

    weigh: Weigh
    count: int
    outputs: Any = None
    weights: Any = None
    error: BaseException | None = field(default=None)


class TensorFlowBackend(Backend):
    """A Keras model on TensorFlow, a ``tf.function``, a loaded SavedModel, or any callable on tensors.

    The model is traced once per shape and dtype of the images, as by ``tf.function``: new values of its
    variables are seen, other layers or Python attributes put into it later are not.
    """

    def __init__(self, model: Any, *, undo_head: bool, vouch: Vouch) -> None:
        self.name = str(getattr(model, "__qualname__", type(model).__name__))
        self._model = model
        self._undo_head = undo_head
        self._vouch = dict(vouch)
        self._copies: dict[tf.TensorSpec, _Copy] = {}
        self._plans: dict[tuple[tf.TensorSpec, ReluRule], _Plan] = {}
        self._calls: dict[int, _Call] = {}
        self._tokens = itertools.count()
        self._lock = threading.RLock()

    def check_images(self, images: Any) -> None:
        is_tensor = isinstance(images, tf.Tensor) and hasattr(images, "numpy")
        if not (is_tensor or isinstance(images, np.ndarray)) or len(images.shape) == 0:
            raise ImageError(
                "images must be an eager tf.Tensor or a NumPy array of shape (N, ...); "
                f"received images={type(images).__name__}. Stack the images to one batch."
            )
        if not tf.as_dtype(images.dtype).is_floating:
            raise ImageError(
                f"images must be real floating-point numbers; received images of dtype {_dtype_name(images)}. "
                "Preprocess them as for the model, for example tf.cast(images, tf.float32) / 255."
            )
        if not np.isfinite(np.asarray(images).astype(np.float64)).all():
            raise ImageError("images must be finite; received images with NaN or infinity. Remove these values.")

    def channel_axis(self, images: Any) -> int | None:
        if len(images.shape) <= 2:
            return None
        return len(images.shape) - 1 if is_channels_last(self._model, default=True) else 1

    def attribute(self, images: Any, weigh: Weigh, rule: ReluRule) -> Attributed:
        _check_model(self._model)
        # Out of the caller's graphs and off his tapes.
        with tf.init_scope():
            tensor = tf.convert_to_tensor(images)
            plan = self._plan(tensor, rule)
            call, results = self._run(plan, tensor, weigh)
        _judge(plan.editor, results)
        outputs, weights, gradient = call.outputs, call.weights, results["gradient"]
        if plan.head is not None:
            scores = per_image(results["arrived"].numpy(), results["logits"].numpy())
        else:
            scores = per_image(weights, outputs)
        values = gradient.numpy()
        if not (np.isfinite(scores).all() and np.isfinite(values.astype(np.float64)).all()):
            raise not_finite()
        attribution = values if isinstance(images, np.ndarray) else gradient
        return Attributed(attribution, scores, outputs, plan.editor.coverage(), plan.head)

    def reduce(self, attribution: Any, reducer: str, axis: int) -> Any:
        values = tf.convert_to_tensor(attribution)
        reduced = {
            "mean": tf.reduce_mean,
            "sum": tf.reduce_sum,
            "max": tf.reduce_max,
            "min": tf.reduce_min,
            "absmax": lambda values, axis: tf.reduce_max(tf.abs(values), axis),
        }[reducer](values, axis)
        return reduced.numpy() if isinstance(attribution, np.ndarray) else reduced

    def concatenate(self, batches: Sequence[Any]) -> Any:
        if len(batches) == 1:
            return batches[0]
        return np.concatenate(batches) if isinstance(batches[0], np.ndarray) else tf.concat(list(batches), 0)

    def empty_like(self, images: Any) -> Any:
        return np.empty_like(images) if isinstance(images, np.ndarray) else tf.zeros_like(images)

    def _plan(self, images: tf.Tensor, rule: ReluRule) -> _Plan:
        """Return the plan for such images, for any number of them unless the model is made for one number."""
        shape = images.shape.as_list()
        specs = [tf.TensorSpec(size, images.dtype) for size in ([None, *shape[1:]], shape)]
        with self._lock:
            copied = next((self._copies[spec] for spec in specs if spec in self._copies), None)
            if copied is None:
                copied = self._copy(specs)
                self._copies[copied.spec] = copied
            if (copied.spec, rule) not in self._plans:
                self._plans[copied.spec, rule] = self._build(copied, rule)
            return self._plans[copied.spec, rule]

    def _copy(self, specs: list[tf.TensorSpec]) -> "_Copy":
        """Trace the model, and mark in a copy of its graph what each node is."""
        spec, traced = self._trace(specs)
        findings = classify(traced.definition, traced.nested, [constant_of(each) for each in traced.captured])
        head = findings.undo_head() if self._undo_head else None
        graph_def, flat_names = graph_of(traced)
        watched = {f"{SCOPE}/{name}": [flat_names[ref] for ref in refs] for name, refs in findings.watched.items()}
        signature = traced.definition.signature
        arguments = [arg.name for arg in signature.input_arg]
        output = flat_names[traced.definition.ret[signature.output_arg[0].name]]
        return _Copy(spec, graph_def, arguments, traced.captured, output, watched, head)

    def _trace(self, specs: list[tf.TensorSpec]) -> tuple[tf.TensorSpec, Traced]:
        error: Exception | None = None
        for autograph, spec in itertools.product((False, True), specs):
            try:
                with unremembered(self._model):
                    return spec, trace(_callable(self._model), spec, autograph=autograph)
            except GuidedBackpropError:
                raise
            except Exception as caught:
                error = caught
        assert error is not None
        raise _model_error(error, specs[-1]) from error

    def _build(self, copied: "_Copy", rule: ReluRule) -> _Plan:
        """Differentiate the copy under a rule."""
        editor = Editor(rule, self._vouch, copied.watched)
        graph_def = renamed(copied.graph_def)

        def joint(images: tf.Tensor, token: tf.Tensor) -> dict[str, tf.Tensor]:
            graph = tf.compat.v1.get_default_graph()
            here = [images, *map(graph.capture, copied.captured)]
            given = {f"{name}:0": tensor for name, tensor in zip(copied.arguments, here, strict=True)}
            (outputs,) = tf.graph_util.import_graph_def(graph_def, given, [copied.output], name=SCOPE)
            weights = tf.numpy_function(self._weigh, [token, outputs], tf.float64)
            weights.set_shape(outputs.shape)
            return self._differentiate(editor, images, outputs, tf.cast(weights, outputs.dtype))

        try:
            concrete = tf.function(
                joint, input_signature=[copied.spec, tf.TensorSpec([], tf.int64)], autograph=False
            ).get_concrete_function()
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise _model_error(error, copied.spec) from error
        if not editor.watch and not editor.bounds:
            # Nothing is left to be seen in the values: raise before the model is run.
            editor.coverage()
        return _Plan(concrete, editor, copied.head)

    def _differentiate(
        self, editor: Editor, images: tf.Tensor, outputs: tf.Tensor, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        with editor.at_work():
            (gradient,) = tf.gradients(outputs, images, weights) if outputs.dtype.is_floating else (None,)
        if gradient is None:
            raise ScoreError(
                "score must depend on the images; received an output that carries no gradient to them. "
                "Look for stop_gradient(), numpy() or argmax() in the model."
            )
        results = {"gradient": tf.convert_to_tensor(gradient)}
        if editor.head is not None:
            results["logits"], results["arrived"] = editor.head
        return results | editor.seen()

    def _weigh(self, token: Any, outputs: Any) -> Any:
        """Say how the outputs weigh, between the forward and the backward pass of one call."""
        call = self._calls[int(token)]
        try:
            if outputs.ndim == 0 or len(outputs) != call.count:
                raise _output_error(call.count, outputs.shape)
            # bfloat16 is no number to NumPy.
            call.outputs = np.array(outputs, np.float32 if outputs.dtype.kind == "V" else None)
            call.weights = np.asarray(call.weigh(call.outputs), np.float64)
        except BaseException as error:
            call.error = error
            raise
        return call.weights

    def _run(self, plan: _Plan, images: tf.Tensor, weigh: Weigh) -> tuple[_Call, Mapping[str, tf.Tensor]]:
        token, call = next(self._tokens), _Call(weigh, len(images))
        self._calls[token] = call
        try:
            return call, plan.run(images, tf.constant(token, tf.int64))
        except Exception as error:
            if call.error is not None:
                raise call.error from None
            raise _model_error(error, tf.TensorSpec(images.shape, images.dtype)) from error
        finally:
            del self._calls[token]


def is_keras(model: Any) -> bool:
    """Tell whether ``model`` is a Keras layer or model, of Keras 3 or of tf_keras."""
    layers = (sys.modules[name].layers.Layer for name in _KERAS if name in sys.modules)
    return isinstance(model, tuple(layers))


@contextmanager
def unremembered(model: Any) -> Iterator[None]:
    """Give back to each layer what it remembered of its last call; what a trace leaves there is no value."""
    layers = list(model._flatten_layers()) if is_keras(model) else []
    kept = [
        (layer, name, value, value.copy())
        for layer in layers
        for name, value in vars(layer).items()
        if name in _REMEMBERED and hasattr(value, "copy")
    ]
    try:
        yield
    finally:
        for layer, name, value, copy in kept:
            value.clear()
            value.update(copy) if isinstance(copy, set) else value.extend(copy)
            object.__setattr__(layer, name, value)


def _check_model(model: Any) -> None:
    if is_keras(model) and not model.built:
        raise ModelError(
            "model must have weights; received a Keras model that was never built. Call it once, or build() it."
        )


def _callable(model: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return what maps images to the one output of the model, in inference mode."""

    def forward(images: tf.Tensor) -> tf.Tensor:
        if is_keras(model):
            outputs = model(images, training=False)
        elif hasattr(model, "structured_input_signature"):
            outputs = _signature(model, images)
        else:
            outputs = model(images)
        if not isinstance(outputs, tf.Tensor) or outputs.shape.rank == 0:
            raise _output_error("N", outputs.shape if isinstance(outputs, tf.Tensor) else type(outputs).__name__)
        return tf.identity(outputs)

    return forward


def _signature(function: Any, images: tf.Tensor) -> Any:
    """Call a concrete function; a SavedModel's signature takes a name and returns a dictionary of names."""
    names = list(function.structured_input_signature[1])
    if len(names) != 1:
        return function(images)
    outputs = function(**{names[0]: images})
    return next(iter(outputs.values())) if isinstance(outputs, dict) and len(outputs) == 1 else outputs


def _judge(editor: Editor, results: Mapping[str, tf.Tensor]) -> None:
    """Raise if the values of this call show a ReLU that is spelled as arithmetic."""
    found = {name for key, name in editor.bounds.items() if not results[key].numpy().any()}
    for key, (name, candidates) in editor.watch.items():
        result = results[key].numpy()
        rounding = 1e-3 if result.dtype.itemsize > 2 else 4e-2
        if any(is_relu_like(result, results[candidate].numpy(), rounding) for candidate in candidates):
            found.add(name)
    if found:
        raise spelled(found, "tf.nn.relu")


def _output_error(count: Any, received: Any) -> ModelError:
    return ModelError(
        f"model must return one tensor with a row per image, ({count}, ...); "
        f"received output={received}. Wrap the model in a function that returns that tensor."
    )


def _model_error(error: Exception, spec: tf.TensorSpec) -> ModelError:
    reason = _reason(error)
    advice = "Check the images' shape and dtype."
    if "numpy" in reason or "Symbolic" in reason or "symbolic" in reason or "eager" in reason.lower():
        advice = "Write the model so that tf.function can trace it, without numpy()."
    return ModelError(
        f"model must accept, and tf.function must trace and differentiate, the images; received images of shape "
        f"{tuple(spec.shape)}, {spec.dtype.name} and {type(error).__name__}: {reason} {advice}"
    )


def _reason(error: Exception) -> str:
    """Return the line of TensorFlow's long messages that says what is wrong."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected at", "Graph execution"))]
    is_traceback = len(said) < len(lines) - 1 or (bool(said) and said[0].startswith("in user code"))
    return (said[-1] if is_traceback else said[0]) if said else type(error).__name__


def _dtype_name(images: Any) -> str:
    return str(getattr(images.dtype, "name", images.dtype))
