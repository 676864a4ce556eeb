"""TensorFlow, and Keras on TensorFlow: trace the model once, then differentiate a copy of its graph.

In the copy every ReLU carries a gradient of its own, by a name that nothing else carries. The model's own
functions, layers and gradients are left as they are, and weights are read anew in every call.
"""

import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from guided_backprop.arrays import Array, Inputs, Model, NumpyArray, Tensor
from guided_backprop.backends.again import looks_unbatched
from guided_backprop.backends.base import Attributed, Backend, Score, Setup, Vouch, Weigh, per_image
from guided_backprop.backends.kept import shared_of, traced_of
from guided_backprop.backends.keras import KerasNetwork, is_keras
from guided_backprop.backends.mistakes import no_array, no_rows
from guided_backprop.backends.network import Network
from guided_backprop.backends.refusals import not_finite, spelled
from guided_backprop.backends.tensorflow.classify import classify
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.functions import Traced, graph_of, made_by
from guided_backprop.backends.tensorflow.graph.nodes import producer
from guided_backprop.backends.tensorflow.graph.tracing import trace
from guided_backprop.backends.tensorflow.hidden.original import Original
from guided_backprop.backends.tensorflow.hidden.values import Watch
from guided_backprop.backends.tensorflow.model import HINTS, TensorFlowNetwork, callable_of, inside_of, reason_of_graph
from guided_backprop.backends.tensorflow.plan import Call, Copy, Kind, OtherLabels, Plan, Rules, running
from guided_backprop.errors import GuidedBackpropError, ModelError
from guided_backprop.rules import ReluRule


class TensorFlowBackend(Backend):
    """A Keras model on TensorFlow, a ``tf.function``, a loaded SavedModel, or any callable on tensors.

    The model is traced once per shape and dtype of the images, as by ``tf.function``: new values of its
    variables are seen, other layers or Python attributes put into it later are not.
    """

    framework = "tensorflow"

    # NumPy's functions for tf.Tensors, which promote no dtypes.
    functions = tf.experimental.numpy

    batched = "lambda images: tf.map_fn(model, images)"

    asks, hints = "accept, and tf.function must trace and differentiate,", HINTS

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._check = partial(self.check_beginning, count=None) if self.begins_inside else None
        self._copies: dict[Kind, Copy] = {}
        self._plans: dict[tuple[Kind, Rules, int], Plan] = {}
        self._watches: dict[Kind, Watch] = {}
        # Whether the model is traced for any number of images.
        self._is_free = True
        self._lock = threading.RLock()

    @classmethod
    def network_of(cls, model: Model) -> Network:
        return KerasNetwork(model) if is_keras(model) else TensorFlowNetwork(model)

    def check_kind(self, array: Tensor) -> None:
        is_tensor = isinstance(array, tf.Tensor) and hasattr(array, "numpy")
        if not (is_tensor or isinstance(array, np.ndarray)) or len(array.shape) == 0:
            raise no_array(array, "an eager tf.Tensor or a NumPy array")

    def is_floating(self, array: Array) -> bool:
        return bool(tf.as_dtype(array.dtype).is_floating)

    def is_finite(self, array: Array) -> bool:
        numbers = np.asarray(array)
        # bfloat16 is no number to NumPy.
        return bool(np.isfinite(numbers.astype(np.float32) if numbers.dtype.kind == "V" else numbers).all())

    def attribute(
        self, inputs: Inputs, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        self.network.check()
        with _apart():
            given = inputs.map(tf.convert_to_tensor)
            try:
                plan, call, results = self._run(given, weigh, tuple(rules), score, labels=1)
            except OtherLabels as other:
                plan, call, results = self._run(given, weigh, tuple(rules), score, labels=other.count)
        self.refuse_chance(inputs, call.outputs)
        for editor in plan.editors:
            _check_bounds(editor, results)
        if call.scores is not None:
            scores = [call.scores]
        elif plan.head is not None:
            logits = results["logits"].numpy()
            scores = [per_image(results[f"arrived {label}"].numpy(), logits) for label in range(len(call.weights))]
        else:
            scores = [per_image(weight, call.outputs) for weight in call.weights]
        activation = self.inside(results["activation"], inputs) if self.begins_inside else None
        explained = inputs if activation is None else Inputs.of(activation)
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

    def outputs(self, inputs: Inputs) -> NumpyArray:
        self.network.check()
        with _apart():
            given = inputs.map(tf.convert_to_tensor)
            forward = callable_of(self.network, given, self.setup.output)
            with self.network.unremembered():
                output = forward(*given.arrays).numpy()
        return output.astype(np.float32) if output.dtype.kind == "V" else output  # type: ignore[no-any-return]

    def reason_of(self, error: Exception) -> str:
        return reason_of_graph(error)

    def from_numpy(self, array: NumpyArray, like: Array) -> Tensor:
        return array.astype(like.dtype) if isinstance(like, np.ndarray) else tf.cast(array, like.dtype)

    def _gradients(self, results: Mapping[str, tf.Tensor], name: str, inputs: Inputs) -> Inputs:
        """Return the gradients of one name in the form of the inputs."""
        gradients: list[Tensor] = [results.get(f"{name} {position}") for position in range(len(inputs.arrays))]
        if any(gradient is not None and not self.is_finite(gradient) for gradient in gradients):
            raise not_finite()
        for position, array in enumerate(inputs.arrays):
            if isinstance(array, np.ndarray) and gradients[position] is not None:
                gradients[position] = gradients[position].numpy()
        return inputs.like(gradients)

    def prepare(self, given: Inputs, rule: ReluRule) -> None:
        """Trace and judge the model for such images, under a rule."""
        try:
            self._plan(given, (rule,), 1, undoes_head=self.setup.undo_head)
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise self._own_error(error, given) or _fault(error) from error

    def _plan(self, given: Inputs, rules: Rules, labels: int, *, undoes_head: bool) -> Plan:
        """Return the plan for such images, for any number of them unless the model is made for one number."""
        kinds = []
        for sizes in self._signatures(given):
            specs = (tf.TensorSpec(size, tensor.dtype) for size, tensor in zip(sizes, given.arrays, strict=True))
            kinds.append(Kind(tuple(specs), given.form, undoes_head))
        with self._lock:
            kind = next((kind for kind in kinds if kind in self._copies), None)
            if kind is not None and not self._copies[kind].is_as_it_was:
                # Slopes that are learned may be 0 now, or no longer.
                self._copies[kind] = _copy_of(self._trace([kind], given)[1], kind, self.setup.vouch)
                self._watches.pop(kind, None)
                self._plans = {key: plan for key, plan in self._plans.items() if key[0] != kind}
            if kind is None:
                kind, copied = self._copy(kinds, given)
                shape, taken = given.arrays[0].shape.as_list(), copied.traced.convolved
                if not self.begins_inside and any(looks_unbatched(shape, one) for one in taken):
                    self.refuse_one_image(given)
                self._copies[kind] = copied
            if any(rule.needs_every_relu for rule in rules):
                self._refuse_spelled(kind, given)
            if (kind, rules, labels) not in self._plans:
                self._plans[kind, rules, labels] = self._copies[kind].plan(rules, labels, self.setup.vouch)
            return self._plans[kind, rules, labels]

    def _signatures(self, given: Inputs) -> Sequence[Sequence[Sequence[int | None]]]:
        """Return the shapes to trace the model for, of which the first are taken that it can be traced for."""
        shapes = [tensor.shape.as_list() for tensor in given.arrays]
        return [*([[[None, *shape[1:]] for shape in shapes]] if self._is_free else []), shapes]

    def _watch(self, copied: Copy, begins: Sequence[tf.Tensor]) -> Watch:
        """Return what looks at values; what the gradient begins at is one more input of that.

        It is not shared: each method looks at values of its own images, with the weights that it meets.
        """
        size = copied.specs[0].shape[0]
        specs = [*copied.specs, *(tf.TensorSpec([size, *value.shape[1:]], value.dtype) for value in begins)]
        return Watch(
            copied.places,
            Original(copied.graph_def, specs, copied.bring),
            copied.flat_names,
            sums=copied.sums,
            begins_inside=bool(begins),
        )

    def _refuse_spelled(self, kind: Kind, given: Inputs) -> None:
        """Raise if the values of these images show a ReLU that is no operation of its own; look if any may still."""
        if names := {place.name for place in self._copies[kind].places if place.is_relu}:
            raise spelled(names, "tf.nn.relu")
        watch = self._watches.get(kind)
        if watch is not None and not watch.is_open:
            return
        begins = inside_of(self.network, given, self._check)
        if watch is None:
            watch = self._watches[kind] = self._watch(self._copies[kind], begins)
        relus = watch.found([*given.arrays, *begins])
        if relus:
            # What is made of it is found as well.
            raise spelled({relus[0].name}, "tf.nn.relu")

    def _copy(self, kinds: list[Kind], given: Inputs) -> tuple[Kind, Copy]:
        """Return a copy of the model's trace; methods on one model share it for as long as the model traces alike."""
        traces, vouch = traced_of(self.setup.model), frozenset(self.setup.vouch.items())
        key = (*kinds, self.network.begin, self.network.end, self.setup.output, vouch)
        known: tuple[Kind, Copy] | None = None if traces is None else traces.peek(key)
        if known is not None and known[1].is_as_it_was:
            return known
        kind, traced = self._trace(kinds, given)
        if traced.gradients:
            # They hold functions of the model's, and may lead to it.
            return kind, _copy_of(traced, kind, self.setup.vouch)
        # What can't be told to be the same may show to be.
        shared, same = shared_of(self.setup.model), (kind, vouch, traced.digest())
        copied: Copy = shared.get(same, lambda: _copy_of(traced, kind, self.setup.vouch))
        if not copied.is_as_it_was:
            copied = _copy_of(traced, kind, self.setup.vouch)
            shared.keep(same, copied)
        if traces is not None:
            traces.keep(key, (kind, copied))
        return kind, copied

    def _trace(self, kinds: list[Kind], given: Inputs) -> tuple[Kind, Traced]:
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
        # What keeps it from being traced may be a generator that it makes.
        self.refuse_chance(given)
        raise self.failed(error, given.arrays, given) from error

    def _run(
        self, given: Inputs, weigh: Weigh, rules: Rules, score: Score | None, *, labels: int
    ) -> tuple[Plan, Call, Mapping[str, tf.Tensor]]:
        call = Call(weigh, score, given.count, labels)
        # Another thread may change it meanwhile.
        was_free = self._is_free
        try:
            plan = self._plan(given, rules, labels, undoes_head=self.setup.undo_head and score is None)
            with running(call) as number:
                return plan, call, plan.run(number, *given.arrays)
        except GuidedBackpropError:
            raise
        except Exception as error:
            if call.error is not None:
                raise call.error from None
            own = self._own_error(error, given)
            if own is not None or not was_free:
                raise own or _fault(error) from error
        # It may count its images while it is traced, as by x.shape[0] or 1: then that is done for their number.
        self._is_free = False
        return self._run(given, weigh, rules, score, labels=labels)

    def _own_error(self, error: Exception, given: Inputs) -> ModelError | None:
        """Return what to say of an error of a copy if it is the model's own; None if the model has none."""
        if self.is_out_of_memory(error):
            return self.failed(error, given.arrays, given)
        forward = callable_of(self.network, given, self.setup.output)
        try:
            with self.network.unremembered(), tf.GradientTape() as tape:
                tape.watch(given.arrays)
                output = forward(*given.arrays)
            tape.gradient(output, given.arrays)
        except Exception:
            return self.failed(error, given.arrays, given)
        if output.shape.rank == 0 or len(output) != given.count:
            return no_rows(given.count, output, "tensor", self.why(given))
        return None


def _fault(error: Exception) -> ModelError:
    """Return what to say of an error of a copy of a model that has none."""
    return ModelError(
        "the copy of a model must run wherever the model does; received a model that runs, and "
        f"error={type(error).__name__} from its copy. This is a fault of guided-backprop: please report it, with "
        "the model."
    )


def _apart() -> AbstractContextManager[Any]:
    """Return what keeps out of the caller's graphs and off his tapes: where there are some, for it stops all tapes."""
    is_needed = record.could_possibly_record() or not tf.executing_eagerly()
    return tf.init_scope() if is_needed else nullcontext()


def _copy_of(traced: Traced, kind: Kind, vouch: Vouch) -> Copy:
    """Mark in a copy of a traced graph what each node is."""
    signature = traced.definition.signature
    begin = made_by(traced.definition, signature.output_arg[1].name) if len(signature.output_arg) > 1 else ""
    findings = classify(traced.definition, traced.nested, traced.captured, vouch, producer(begin))
    head = findings.undo_head() if kind.undoes_head else None
    graph_def, flat_names = graph_of(traced)
    arguments = [arg.name for arg in signature.input_arg]
    output, *inside = (flat_names[made_by(traced.definition, arg.name)] for arg in signature.output_arg)
    first = inside[0] if inside else None
    places, sums = findings.places, findings.sums
    return Copy(
        kind.specs, traced, graph_def, arguments, output, first, places, sums, flat_names, head, findings.weights_read
    )


def _check_bounds(editor: Editor, results: Mapping[str, tf.Tensor]) -> None:
    """Raise if a bound of this call makes a ReLU of a maximum or minimum."""
    names = {name for key, name in editor.bounds.items() if not results[key].numpy().all()}
    if names:
        raise spelled(names, "tf.nn.relu")
