"""The gradients of one model, ready to be run: differentiated from a marked copy of its graph.

Nothing here leads to the model, so that all methods on it can share this, for as long as it lives: a graph holds the
model's variables, and asks how the outputs of a call weigh by the call's number.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.base import Score, Vouch, Weigh
from guided_backprop.backends.kept import Kept
from guided_backprop.backends.mistakes import no_rows
from guided_backprop.backends.refusals import detached
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.callout import CallOut
from guided_backprop.backends.tensorflow.graph.custom import SCOPE
from guided_backprop.backends.tensorflow.graph.functions import Traced, keep_functions, renamed
from guided_backprop.backends.tensorflow.graph.weights import held
from guided_backprop.backends.tensorflow.hidden.sums import Joined
from guided_backprop.backends.tensorflow.hidden.traces import Place
from guided_backprop.backends.tensorflow.model import CULPRITS, slopes
from guided_backprop.rules import ReluRule

Specs = tuple[tf.TensorSpec, ...]
Rules = tuple[ReluRule, ...]


class Kind(NamedTuple):
    """What a graph is made for: the inputs' signatures, if they come in a tuple or by name, if a head is undone."""

    specs: Specs
    form: Hashable
    undoes_head: bool


@dataclass(frozen=True)
class Copy:
    """A marked copy of the model's graph, for images of one signature.

    Attributes:
        specs: the inputs' signatures.
        traced: what it is a copy of.
        graph_def: the graph.
        arguments: the names of its arguments: the inputs, then what it captured.
        output: the name of its output.
        inside: the name of the value that the gradient is taken at; None for the inputs.
        places: the operations that may be ReLUs for all that their names say.
        sums: those that add up a value and ReLUs of it.
        flat_names: the names in the graph of what the traced function's nodes give.
        head: the final softmax or sigmoid that is undone.
        read: the weights whose numbers say what may be a ReLU, and what they were.
        plans: what was made of it last.
    """

    specs: Specs
    traced: Traced
    graph_def: GraphDef
    arguments: list[str]
    output: str
    inside: str | None
    places: Sequence[Place]
    sums: Sequence[Joined]
    flat_names: Mapping[str, str]
    head: str | None
    read: Sequence[tuple[tf.Tensor, NumpyArray]] = ()
    plans: Kept = field(default_factory=Kept)

    @property
    def is_as_it_was(self) -> bool:
        """Whether the weights have the numbers that were read, as slopes that are learned may not."""
        return all(np.array_equal(before, np.asarray(held(weight))) for weight, before in self.read)

    def bring(
        self,
        graph_def: GraphDef,
        inputs: Sequence[tf.Tensor],
        names: list[str],
        *,
        instead: Mapping[str, tf.Tensor] = MappingProxyType({}),
    ) -> list[tf.Tensor]:
        """Put a copy of the graph into the one that is being built, on inputs; return the tensors of these names.

        The value that the gradient is taken at may be one more input, and others may be replaced by their names.
        """
        count = len(self.specs)
        given, captured = self.arguments[:count], self.arguments[count:]
        if len(inputs) > count and self.inside is not None:
            given = [*given, self.inside.partition(":")[0]]
        here = [*inputs, *map(tf.compat.v1.get_default_graph().capture, self.traced.captured)]
        named = {f"{name}:0": tensor for name, tensor in zip([*given, *captured], here, strict=True)}
        return list(tf.graph_util.import_graph_def(graph_def, named | dict(instead), names, name=SCOPE))

    def plan(self, rules: Rules, labels: int, vouch: Vouch) -> "Plan":
        """Return the gradients under some rules; those of rules of a user's own, which may hold anything, are not kept.

        Of one copy it is always the same that is vouched for.
        """
        if all(type(rule).__module__ == ReluRule.__module__ for rule in rules):
            plan: Plan = self.plans.get((rules, labels), lambda: build(self, rules, labels, vouch))
            return plan
        return build(self, rules, labels, vouch)


@dataclass(frozen=True)
class Plan:
    """The gradients of one model under some rules, for images of one signature."""

    run: Callable[..., Mapping[str, tf.Tensor]]
    editors: list[Editor]
    head: str | None


@dataclass
class Call:
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


class OtherLabels(Exception):  # noqa: N818 - no error: the plan for that number is run instead
    """Each image has another number of labels than the plan was made for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


def build(copied: Copy, rules: Rules, labels: int, vouch: Vouch) -> Plan:
    """Differentiate the copy under each rule, once for each label."""
    editors = [Editor(rule, vouch) for rule in rules]
    graph_def = renamed(copied.graph_def)

    def joint(token: tf.Tensor, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        names = [copied.output, *([copied.inside] if copied.inside else [])]
        outputs, *inside = copied.bring(graph_def, inputs, names)
        (weights,) = _ASK([token, outputs])
        weights.set_shape([labels, *outputs.shape])
        seeds = tf.unstack(tf.cast(weights, outputs.dtype))
        results = {"activation": tf.identity(inside[0])} if inside else {}
        for number, editor in enumerate(editors):
            results |= differentiate(editor, f"gradient {number}", inside or inputs, outputs, seeds)
        return results

    signature = [tf.TensorSpec([], tf.int64), *copied.specs]
    concrete = tf.function(joint, input_signature=signature, autograph=False).get_concrete_function()
    for editor in editors:
        if not editor.bounds:
            # Nothing is left to be seen in the values: raise before the model is run.
            editor.coverage()
    plan = Plan(concrete, editors, copied.head)
    keep_functions(graph_def, plan)
    return plan


def differentiate(
    editor: Editor, name: str, inputs: Sequence[tf.Tensor], outputs: tf.Tensor, weights: list[tf.Tensor]
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


def _weigh(token: NumpyArray, outputs: NumpyArray) -> NumpyArray:
    """Say how the outputs weigh, between the forward and the backward pass of one call."""
    call = _CALLS[int(token)]
    try:
        if outputs.ndim == 0 or len(outputs) != call.count:
            raise no_rows(call.count, tf.TensorSpec(outputs.shape, outputs.dtype), "tensor")
        # bfloat16 is no number to NumPy.
        call.outputs = np.array(outputs, np.float32 if outputs.dtype.kind == "V" else None)
        if call.score is None:
            call.weights = np.stack(call.weigh(call.outputs)).astype(np.float64, copy=False)
        else:
            weights, call.scores = slopes(call.score, tf.constant(outputs))
            call.weights = weights[None]
        if len(call.weights) != call.labels:
            raise OtherLabels(len(call.weights))
    except BaseException as error:
        call.error = error
        raise
    return call.weights


# The calls that are being run, by number.
_CALLS: dict[int, Call] = {}
_NUMBERS = itertools.count()
_ASK = CallOut(_weigh, tf.float64)


@contextmanager
def running(call: Call) -> Iterator[tf.Tensor]:
    """Let a plan ask a call how its outputs weigh; gives the number that the plan knows it by."""
    number = next(_NUMBERS)
    _CALLS[number] = call
    try:
        yield tf.constant(number, tf.int64)
    finally:
        del _CALLS[number]
