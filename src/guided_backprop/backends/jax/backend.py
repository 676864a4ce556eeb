"""JAX: trace the model, put the rule on the ReLUs of the trace, and let JAX differentiate and compile that.

The model is traced anew unless nothing that it can read has changed, so it is always explained with the parameters that
it has now; what is compiled is kept, with the parameters as arguments. Nothing global is changed.
"""

from collections.abc import Callable, Hashable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from guided_backprop.arrays import Inputs
from guided_backprop.backends.again import ANY_DRAW
from guided_backprop.backends.base import Attributed, Backend, Score, Setup, Weigh, per_image
from guided_backprop.backends.jax.cache import SHARED, ends_of, is_shared, key_of, numbers_of
from guided_backprop.backends.jax.coverage import count
from guided_backprop.backends.jax.graph.batch import may_take_for_one_image
from guided_backprop.backends.jax.graph.composites import mark_activations
from guided_backprop.backends.jax.graph.heads import Head, head_of
from guided_backprop.backends.jax.graph.program import CUSTOM, Program, Step
from guided_backprop.backends.jax.graph.relus import Facts, custom_name, place_of
from guided_backprop.backends.jax.hidden.findings import Record
from guided_backprop.backends.jax.hidden.masks import Audit
from guided_backprop.backends.jax.network import JaxNetwork
from guided_backprop.backends.jax.passes import forward_pass, passes
from guided_backprop.backends.jax.state import state_of
from guided_backprop.backends.kept import Kept, traced_of
from guided_backprop.backends.keras import KerasNetwork, is_keras
from guided_backprop.backends.mistakes import described, no_array, no_rows
from guided_backprop.backends.network import Network
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.refusals import (
    coverage_of,
    detached,
    hidden,
    no_score,
    not_finite,
    spelled,
    unreadable,
)
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule

#: A traced model, and its outputs' shapes.
_Traced = tuple[core.ClosedJaxpr, Any]


@dataclass(frozen=True)
class Prepared:
    """How a model is run on images of one signature, with the arrays that it has.

    Attributes:
        key: what it has in common with others that run and derive alike, whatever their arrays hold.
        constants: these arrays.
        forward: from these and the images to the outputs, and what the backward pass needs.
        backward: from that to the gradient.
        coverages: what was done with each non-linearity, for each rule.
        head: the final softmax or sigmoid that is undone, if any.
    """

    key: Hashable
    constants: list[Any]
    forward: Any
    backward: Any
    coverages: list[Coverage]
    head: str | None


class JaxBackend(Backend):
    """A differentiable callable on JAX arrays: a function, or a module of Flax, Equinox or Haiku."""

    framework = "jax"

    functions = jnp

    compiles_each_size = True

    batched = "jax.vmap(model)"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._compiled = Kept()
        # What a module ran last, with what it was made of then.
        self._last = Kept()
        # Plans that hold something of the user's, by what is shared of the model as it was when they were made.
        self._own = WeakKeyDictionary[Kept, Kept]()
        self._judged = Kept()

    @classmethod
    def network_of(cls, model: Any) -> Network:
        return KerasNetwork(model) if is_keras(model) else JaxNetwork(model)

    def check_kind(self, array: Any) -> None:
        if isinstance(array, jax.core.Tracer):
            raise ImageError(
                "images must be arrays with values; received images that are being traced. "
                "Call explain outside of jax.jit, jax.grad and jax.vmap."
            )
        if not isinstance(array, (jax.Array, np.ndarray)) or array.ndim == 0:
            raise no_array(array, "a jax.Array or a NumPy array")

    def is_floating(self, array: Any) -> bool:
        return bool(jnp.issubdtype(array.dtype, jnp.floating))

    def is_finite(self, array: Any) -> bool:
        return bool(jnp.isfinite(jnp.asarray(array)).all())

    def attribute(
        self, inputs: Inputs, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        self.network.check()
        given = inputs.map(jnp.asarray)
        leaves = given.arrays
        plan = self.prepared(given, tuple(rules), undo_head=self.setup.undo_head and score is None)
        explained = [leaf for leaf in leaves if self.is_floating(leaf)]
        others = [leaf for leaf in leaves if not self.is_floating(leaf)]
        try:
            outputs, scored, inside, pullbacks = plan.forward(plan.constants, explained, others)
            weights, told = (weigh(_as_numpy(outputs)), None) if score is None else _slopes(score, outputs)
            seeds = [jnp.asarray(weight, scored.dtype) for weight in weights]
            gradients = [[plan.backward(pullback, seed) for seed in seeds] for pullback in pullbacks]
            jax.block_until_ready(gradients)  # type: ignore[no-untyped-call]
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise self.failed(error, leaves, given) from error
        self.refuse_chance(given, _as_numpy(outputs))
        scores = np.stack([per_image(weight, _as_numpy(scored)) for weight in weights]) if told is None else told
        if not (np.isfinite(scores).all() and all(map(self.is_finite, jax.tree_util.tree_leaves(gradients)))):
            raise not_finite()
        common = (scores, _as_numpy(outputs))
        activation = self.inside(inside[0], inputs) if self.begins_inside else None
        inputs = inputs if activation is None else Inputs.of(activation)
        attributed = []
        for under, coverage in zip(gradients, plan.coverages, strict=True):
            maps = [self._in_form(derived, inputs) for derived in under]
            attributed.append(Attributed(maps, *common, coverage, plan.head, activation))
        return attributed

    def outputs(self, inputs: Inputs) -> np.ndarray[Any, Any]:
        self.network.check()
        given = inputs.map(jnp.asarray)
        program = self._program(self._trace(given, begins_inside=False), given, begins_inside=False)
        forward = self._compile(program, (None, key_of(program)), (), lambda: forward_pass(program))
        return _as_numpy(forward(program.constants, given.arrays))

    def from_numpy(self, array: np.ndarray[Any, Any], like: Any) -> Any:
        return array.astype(like.dtype) if isinstance(like, np.ndarray) else jnp.asarray(array, like.dtype)

    def _in_form(self, gradients: list[jax.Array], inputs: Inputs) -> Inputs:
        """Return the gradients in the form of the inputs."""
        left = iter(gradients)
        return inputs.map(lambda array: _like(next(left), array) if self.is_floating(array) else None)

    def prepared(self, inputs: Inputs, rules: tuple[ReluRule, ...], *, undo_head: bool) -> Prepared:
        """Return what runs the model on such images: what was made before, as long as the model is what it was."""
        shapes = inputs.form, tuple((array.shape, array.dtype) for array in inputs.arrays)
        state = state_of(self.network)
        before, last = self._last.peek((shapes, rules, undo_head)) or (None, None)
        if isinstance(last, Prepared) and state is not None and before == state:
            return last
        plan = self._shared_plan(inputs, rules, shapes, undo_head=undo_head)
        if state is not None:
            self._last.keep((shapes, rules, undo_head), (state, plan))
        return plan

    def _shared_plan(
        self, inputs: Inputs, rules: tuple[ReluRule, ...], shapes: Hashable, *, undo_head: bool
    ) -> Prepared:
        traces = traced_of(self.setup.model)
        own = Kept() if traces is None else self._own.setdefault(traces, Kept())
        key = (shapes, self.network.begin, self.network.end, self.setup.output, frozenset(self.setup.vouch.items()))
        traced, plan = (own.peek(one) or (traces and traces.peek(one)) for one in (key, (key, rules, undo_head)))
        if isinstance(plan, Prepared):
            return plan
        traced = traced or self._trace(inputs, begins_inside=self.begins_inside)
        program = self._program(traced, inputs, begins_inside=self.begins_inside)
        analysed = self._analyse(program, rules, inputs)
        head, coverages = covered(program, rules, undo_head=undo_head)
        compiled = (rules, head is not None, analysed)
        forward, backward = self._compile(program, compiled, rules, lambda: passes(program, head, rules))
        plan = Prepared(compiled, program.constants, forward, backward, coverages, None if head is None else head.name)
        # What holds something of the user's may lead to the model: then each method keeps its own.
        kept = own if traces is None or not is_shared(program, compiled, rules) else traces
        kept.keep(key, traced)
        kept.keep((key, rules, undo_head), plan)
        return plan

    def _compile(self, program: Program, key: Hashable, rules: Sequence[ReluRule], build: Callable[[], Any]) -> Any:
        """Return what was built of a program of this key by this method; by any, where nothing in it is the user's."""
        shared = SHARED if is_shared(program, key, rules) else None
        return self._compiled.get(key, build if shared is None else lambda: shared.get(key, build))

    def _trace(self, inputs: Inputs, *, begins_inside: bool) -> _Traced:
        leaves = inputs.arrays

        # A function of its own for each trace: what JAX remembers of the model may be older than it is.
        def traced(*arrays: Any) -> Any:
            inside: list[jax.Array] = []

            def start(value: Any) -> jax.Array:
                self.check_beginning(value, len(leaves[0]))
                # A value of its own, though the layer gives back what it was given.
                inside.append(checkpoint_name(value, "input_layer"))  # type: ignore[no-untyped-call]
                return inside[-1]

            outputs = self.network.call(inputs.like(arrays), start if begins_inside else None)
            return self._explained(outputs, inside, len(leaves[0]))

        try:
            with self.network.unremembered():
                return jax.make_jaxpr(traced, return_shape=True)(*leaves)
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise self.failed(error, leaves, inputs) from error

    def _program(self, traced: _Traced, inputs: Inputs, *, begins_inside: bool) -> Program:
        """Return a program of its own of a trace: what is found of it is written on it."""
        jaxpr, shape = traced
        program = Program(jaxpr)
        begin, end = (self.network.begin, self.network.end) if self.network.is_named_by_trace else (None, None)
        if begin or end:
            shape = program.between(begin if begins_inside else None, end)
        elif begins_inside:
            shape = program.begin_at(program.block.outputs.pop())
        if program.first is not None:
            self.check_beginning(program.first.outputs[0].aval, inputs.count)
        if not _is_rows(shape, inputs.count):
            raise no_rows(inputs.count, shape, "array", self.why(inputs))
        return program

    def _explained(self, outputs: Any, inside: list[jax.Array], count: int) -> Any:
        """Return what is explained of the model's outputs, and what is inside; nothing if its name is to be found."""
        if self.network.is_named_by_trace and self.network.end is not None:
            return ()
        output = chosen(outputs, self.setup.output, lambda leaf: isinstance(leaf, jax.Array))
        if not isinstance(output, jax.Array):
            raise no_rows(count, output, "array")
        return (output, *inside) if inside else output

    def _analyse(self, program: Program, rules: Sequence[ReluRule], images: Inputs) -> Hashable:
        """Find the ReLUs, and raise if there is something that must not pass unseen.

        Returns:
            What the program has in common with those that run and derive alike.
        """
        facts = Facts(program)
        if not program.block.outputs[0].carries:
            raise detached("stop_gradient(), argmax() or round()")
        if program.first is None and may_take_for_one_image(program, images.arrays[0].shape):
            self.refuse_one_image(images)
        facts.find_relus(program, self.setup.vouch)
        mark_activations(program, facts)
        audit = Audit(self.setup.vouch)
        audit.visit(program.block)
        random = set() if {ANY_DRAW, "random_bits"} & set(self.setup.vouch) else self._random_of(audit, images)
        if random:
            raise ModelError(
                "model must be in eval mode, or its map is random; received random numbers, with "
                f"{', '.join(sorted(random))}. Call model.eval(), pass deterministic=True, or "
                'vouch={"random_bits": "plain"} if a fixed key is meant.'
            )
        known = key_of(program)
        if not any(rule.needs_every_relu for rule in rules):
            return known
        for name in sorted(audit.opaque - set(self.setup.vouch)):
            raise _hidden(name)
        try:
            record = self._record(known, program, facts, images.arrays)
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise self._unreadable(error, program, images.arrays) from error
        _refuse(record.mark(program), program, rules)
        return known, record.key()

    def _record(self, known: Hashable, program: Program, facts: Facts, images: Sequence[jax.Array]) -> Record:
        """Return what was found of a program like this: one with the same numbers in it, if these count."""
        key: Hashable = known, ends_of(program)
        record: Record | None = self._judged.peek(key)
        if record is None:
            same = key, numbers_of(program)
            record = self._judged.peek(same) or Record.of(program, facts, self.setup.vouch, images)
            key = same if record.is_by_numbers else key
        self._judged.keep(key, record)
        return record

    def _random_of(self, audit: Audit, images: Inputs) -> Set[str]:
        """Return where random numbers meet what a gradient comes through.

        For one image alone weights that are drawn once may have the shape of noise: of two images they have not.
        """
        if images.count == 1 and audit.random:
            two = images.map(lambda array: jnp.repeat(array, 2, 0))
            with suppress(GuidedBackpropError):
                traced = self._trace(two, begins_inside=self.begins_inside)
                program = self._program(traced, two, begins_inside=self.begins_inside)
                Facts(program)
                audit = Audit(self.setup.vouch)
                audit.visit(program.block)
        return audit.random

    def _unreadable(self, error: Exception, program: Program, images: Sequence[jax.Array]) -> GuidedBackpropError:
        """Return what to say of values that could not be looked at: the model's own error, if it has one."""
        try:
            y, back = jax.vjp(lambda *inputs: forward_pass(program)(program.constants, inputs), *images)
            jax.block_until_ready(back(y))  # type: ignore[no-untyped-call]
        except Exception:
            return self.failed(error, images)
        return unreadable("those of its program", error)


def covered(program: Program, rules: Sequence[ReluRule], *, undo_head: bool) -> tuple[Head | None, list[Coverage]]:
    """Return the head that is undone, and what was done with each non-linearity under each rule."""
    head = head_of(program.block.outputs[0]) if undo_head else None
    coverages = []
    for rule in rules:
        counts = count(program.block, rule)
        if head is not None and counts[head.name, "plain"]:
            counts[head.name, "plain"] -= 1
            counts[head.name, "undone"] += 1
        coverages.append(coverage_of(+counts, rule))
    return head, coverages


def _slopes(score: Score, output: jax.Array) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return a score's plain derivative at the model's output, and its values ``(1, N)``."""
    try:
        scores, pullback = jax.vjp(score, output)
    except Exception as error:
        raise no_score(f"{type(error).__name__}: {error}") from error
    is_array = isinstance(scores, jax.Array) and jnp.issubdtype(scores.dtype, jnp.floating)
    if not is_array or scores.shape != output.shape[:1]:
        raise no_score(described(scores))
    (slopes,) = pullback(jnp.ones_like(scores))
    return [_as_numpy(slopes).astype(np.float64)], _as_numpy(scores).astype(np.float64)[None]


def _is_rows(shape: Any, count: int) -> bool:
    return hasattr(shape, "shape") and len(shape.shape) > 0 and shape.shape[0] == count


def _refuse(refused: Sequence[Step], program: Program, rules: Sequence[ReluRule]) -> None:
    """Raise for what gates values and is no ReLU, or is one that a rule cannot act on."""
    names = {place_of(step) for step in refused}
    for name in sorted(custom_name(step) for step in refused if step.name in CUSTOM):
        raise hidden(name)
    if names:
        raise spelled(names, "jax.nn.relu")
    for step in program.steps():
        if any(value.gate is not None and value.gate.x is None for value in step.outputs):
            for rule in rules:
                if rule.needs_every_relu and (rule.reads_values or not rule.is_shut_by_gate):
                    raise OpaqueRegionError(
                        f"the {rule.name} rule needs the input of every ReLU; received one spelled as arithmetic, with "
                        f"{place_of(step)}. Write it as jax.nn.relu."
                    )


def _hidden(name: str) -> OpaqueRegionError:
    """Return the error for what hides its ReLUs; of an exported function only its code and its derivative are left."""
    if name != "call_exported":
        return hidden(name)
    return OpaqueRegionError(
        "an exported function hides its ReLUs; received call_exported between score and image. "
        'Pass the function as it was before jax.export, or vouch={"call_exported": "plain"} if it contains none.'
    )


def _as_numpy(array: jax.Array) -> np.ndarray[Any, Any]:
    numbers = np.asarray(array)
    return numbers.astype(np.float32) if array.dtype == jnp.bfloat16 else numbers


def _like(gradient: jax.Array, images: Any) -> Any:
    """Return the values as the kind of array, and in the dtype, of the images."""
    return np.asarray(gradient).astype(images.dtype, copy=False) if isinstance(images, np.ndarray) else gradient
