"""Which steps of a traced model lie between score and images, and which of them are ReLUs.

A step is known by its primitive and by the values of its constant operands, never by how the model was
written: ``jax.nn.relu``, ``jnp.maximum(x, 0)`` and ``lax.clamp(0, x, inf)`` are all ReLUs here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.graph.calls import is_of_jax, loop_sizes, source_of
from guided_backprop.backends.jax.graph.program import CUSTOM, REBUILT, Block, Program, Relu, Step, Value
from guided_backprop.backends.operations import Kind

_MOVES = frozenset("broadcast cast copy reshape squeeze stop_gradient transpose".split())
_OF_A_RELU = frozenset("broadcast cast clamp mark maximum minimum".split())


def _made(step: Step, operands: Sequence[Any]) -> Sequence[Any] | None:
    """Return what a step makes of constants; what is only moved is not worth a program for each shape.

    None for what depends on a size that is free; but for one number at all places of it, which stands for all.
    """
    if step.name == "dim_as_value" or any(not isinstance(size, int) for one in step.outputs for size in one.aval.shape):
        is_one = step.name == "broadcast_in_dim" and np.ndim(operands[0]) == 0
        return [np.reshape(operands[0], [1] * len(step.outputs[0].aval.shape))] if is_one else None
    if step.name not in ("reshape", "squeeze"):
        return step.run(operands)
    return [np.asarray(operands[0]).reshape(step.outputs[0].aval.shape)]


class Facts:
    """What is known of the values of a program, before it is run.

    Args:
        program: the model, traced.
        output: the index of nothing but the model's output; gradients start there.
    """

    def __init__(self, program: Program) -> None:
        self._constants = program.constants
        self._values: dict[Value, Any] = {}
        for value in program.block.inputs:
            value.depends = True
            value.carries = bool(jnp.issubdtype(value.aval.dtype, jnp.floating))
            if program.first is not None:
                value.carries = value is program.first.outputs[0]
        _forward(program.block)
        for value in program.block.outputs:
            value.is_live = True
        _backward(program.block)
        self.results = {id(value) for value in program.block.outputs}
        for step in program.steps():
            self.results |= {id(value) for block in step.blocks for value in block.outputs}

    def known(self, value: Value) -> Any:
        """Return the array that ``value`` always is, or None if that depends on the images or on a loop."""
        if value.depends:
            return None
        if value.constant is not None:
            return self._constants[value.constant]
        if value.literal is not None:
            return value.literal
        if value.outer is not None:
            return self.known(value.outer)
        if value.step is None:
            return None
        if value.step.word == "mark":
            return self.known(value.step.inputs[0])
        if value not in self._values:
            operands = [self.known(operand) for operand in value.step.inputs]
            if any(operand is None for operand in operands):
                return None
            operands = [
                jnp.asarray(operand, v.aval.dtype) if v.literal is not None else operand
                for operand, v in zip(operands, value.step.inputs, strict=True)
            ]
            made = _made(value.step, operands)
            if made is None:
                return None
            self._values.update(zip(value.step.outputs, made, strict=True))
        return self._values[value]

    def _numbers(self, value: Value) -> NumpyArray | None:
        """Return the same as NumPy's array: what is asked of JAX's own is compiled, for each shape."""
        known = self.known(value)
        return None if known is None else np.asarray(known)

    def is_zero(self, value: Value) -> bool:
        """Tell whether ``value`` is 0 everywhere, whatever the images are."""
        if value.stack is not None:
            return self.is_zero(value.stack)
        if value.step is not None and self._is_made_zero(value.step):
            return True
        known = self._numbers(value)
        return known is not None and jnp.issubdtype(known.dtype, jnp.number) and not known.any()

    def _is_made_zero(self, step: Step) -> bool:
        """Tell whether an operation makes 0 of whatever it is given."""
        if step.word == "mul":
            return any(map(self.is_zero, step.inputs))
        if step.word == "where":
            return all(map(self.is_zero, step.inputs[1:]))
        if step.word == "sub":
            return step.inputs[0] is step.inputs[1]
        return step.word in _MOVES and self.is_zero(step.inputs[0])

    def is_uniform(self, value: Value) -> bool:
        """Tell whether ``value`` is one number everywhere, whatever the images are."""
        if value.step is not None and value.step.word in _MOVES:
            return self.is_uniform(value.step.inputs[0])
        known = self._numbers(value)
        return self.is_zero(value) or (known is not None and bool(np.all(known == known.ravel()[0])))

    def find_relus(self, program: Program, vouch: Vouch) -> None:
        """Note on every step on the path how it is a ReLU, if it is one."""
        pairs = []
        for step in program.steps():
            if step.is_on_path:
                step.relu = self._relu_of(step, vouch)
                if step.relu is not None and step.relu.inside is not None:
                    pairs.append(step.relu.inside)
        for inside in pairs:
            inside.relu, inside.is_inside = None, True

    def _relu_of(self, step: Step, vouch: Vouch) -> Relu | None:
        if step.kind in (Kind.HIDDEN, Kind.UNKNOWN):
            return self._custom_relu(step, vouch)
        recognise = _RECOGNISERS.get(step.word)
        return None if recognise is None else recognise(self, step)

    def of_zero_slope(self, step: Step) -> Relu | None:
        """Return how a leaky ReLU or an ELU is a ReLU: with nothing on its negative side; a squareplus: not rounded."""
        return Relu("relu") if len(step.inputs) > 1 and self.is_zero(step.inputs[1]) else None

    def of_maximum(self, step: Step) -> Relu | None:
        """Return how a maximum is a ReLU, and what a minimum in front of it caps it at."""
        operand = self.operand_against_zero(step)
        if operand is None:
            return None
        front = step.inputs[operand].step
        if front is not None and self._is_cap_alone(front, step.inputs[operand]):
            inner = 0 if front.inputs[0].carries else 1
            return self._capped(front.inputs[1 - inner], inner, front)
        return Relu("relu", operand)

    def of_minimum(self, step: Step) -> Relu | None:
        """Return how a minimum caps the ReLU in front of it."""
        if step.inputs[0].carries == step.inputs[1].carries:
            return None
        x, cap = step.inputs if step.inputs[0].carries else step.inputs[::-1]
        if x.step is None or not self._is_alone(x) or cap.depends or self.is_zero(cap):
            return None
        if x.step.word == "maximum":
            operand = self.operand_against_zero(x.step)
            return None if operand is None else self._capped(cap, operand, x.step)
        # Of JAX's own ReLU it is known that its derivative is no other.
        is_own = x.step.name == "custom_jvp_call" and is_of_jax(x.step.eqn.params["call_jaxpr"])
        relu = self._custom_relu(x.step, {}) if is_own else None
        return None if relu is None or relu.name != "relu" else self._capped(cap, relu.operand, x.step)

    def of_clamp(self, step: Step) -> Relu | None:
        """Return how bounds from 0 on are a ReLU."""
        is_from_zero = len(step.inputs) == 3 and self.is_zero(step.inputs[0]) and step.inputs[1].carries
        return self._capped(step.inputs[2], 1, None) if is_from_zero else None

    def operand_against_zero(self, step: Step) -> int | None:
        """Return which operand a maximum or minimum compares with 0, or None."""
        for operand in (0, 1):
            if step.inputs[operand].carries and self.is_zero(step.inputs[1 - operand]):
                return operand
        return None

    def _custom_relu(self, step: Step, vouch: Vouch) -> Relu | None:
        name = custom_name(step)
        carrying = [index for index, value in enumerate(step.inputs) if value.carries]
        if vouch.get(name) == "relu":
            return Relu(name, carrying[0], is_custom=True)
        if len(carrying) != 1 or len(step.blocks) != 1 or step.name != "custom_jvp_call":
            return None
        block = step.blocks[0]
        last = block.outputs[0].step
        if last is None or any(inner.word not in _OF_A_RELU for inner in block.steps):
            return None
        relu = self._relu_of(last, {})
        if relu is None or (relu.inside or last).inputs[relu.operand] is not block.inputs[carrying[0]]:
            return None
        return Relu(relu.name, carrying[0], is_custom=True)

    def _capped(self, cap: Value, operand: int, inside: Step | None) -> Relu:
        known = self.known(cap)
        bounds = None if known is None else np.asarray(known, np.float64)
        if bounds is None or bounds.size == 0 or (bounds != bounds.flat[0]).any():
            return Relu("relu with a cap", operand, cap, inside)
        bound = float(bounds.flat[0])
        return Relu("relu" if bound == float("inf") else f"relu{bound:g}", operand, cap, inside)

    def _is_cap_alone(self, step: Step, y: Value) -> bool:
        return (
            step.word == "minimum"
            and self._is_alone(y)
            and step.inputs[0].carries != step.inputs[1].carries
            and not (step.inputs[0].depends and step.inputs[1].depends)
            and not any(map(self.is_zero, step.inputs))
        )

    def _is_alone(self, value: Value) -> bool:
        return len(value.uses) == 1 and id(value) not in self.results


#: What may be a ReLU by its bounds, by its word, and what tells.
_RECOGNISERS: dict[str, Callable[[Facts, Step], Relu | None]] = {
    "clamp": Facts.of_clamp,
    "elu": Facts.of_zero_slope,
    "leaky_relu": Facts.of_zero_slope,
    "maximum": Facts.of_maximum,
    "minimum": Facts.of_minimum,
    "squareplus": Facts.of_zero_slope,
}


def custom_name(step: Step) -> str:
    """Return the name of a custom function, as it is in the model's source; of anything else that of the operation."""
    if step.name not in CUSTOM:
        return step.name
    sources = (source_of(block) for block in step.eqn.params.values())
    name = next(filter(None, sources), step.name)
    return name.split(" at ")[0].rsplit(".", 1)[-1]


def place_of(step: Step) -> str:
    """Return the name of an operation, and which line of the model asked for it."""
    return f"{custom_name(step)} at {step.line}" if step.line else custom_name(step)


def _forward(block: Block) -> None:
    """Note on the values of a block whether they depend on the images, and whether a gradient flows there."""
    for step in block.steps:
        depends = any(value.depends for value in step.inputs)
        carries = any(value.carries for value in step.inputs) and step.kind is not Kind.COMPARES
        for value in step.outputs:
            value.depends = depends
            value.carries = carries and jnp.issubdtype(value.aval.dtype, jnp.inexact)
        if depends:
            _forward_inside(step)


def _forward_inside(step: Step) -> None:
    for block in step.blocks:
        outer = step.inputs[1:] if step.word == "cond" else step.inputs
        if len(outer) != len(block.inputs):
            outer = [value for value in step.inputs if value.depends][:1] * len(block.inputs)
        _mark(block.inputs, outer)
        _forward(block)
        if step.word == "scan":
            start, carried = loop_sizes(step.eqn.params)
            while _mark(block.inputs[start : start + carried], block.outputs[:carried]):
                _forward(block)
    if step.name in REBUILT and step.blocks:
        for index, value in enumerate(step.outputs):
            results = [block.outputs[index] for block in step.blocks]
            value.carries = any(result.carries for result in results)
            # What a branch returns depends on what chose the branch.
            value.depends = any(result.depends for result in results) or (
                step.word == "cond" and step.inputs[0].depends
            )


def _mark(inner: Sequence[Value], outer: Sequence[Value]) -> bool:
    """Let ``inner`` depend on the images where ``outer`` does; tell whether that changed anything."""
    has_changed = False
    for value, source in zip(inner, outer, strict=True):
        carries = source.carries and jnp.issubdtype(value.aval.dtype, jnp.inexact)
        has_changed |= (source.depends and not value.depends) or (carries and not value.carries)
        value.depends |= source.depends
        value.carries |= carries
    return has_changed


def _backward(block: Block) -> None:
    """Note on the values of a block whether a gradient flows there from the output."""
    for step in reversed(block.steps):
        if not any(value.is_live and value.carries for value in step.outputs):
            continue
        for value in step.inputs:
            value.is_live = True
        for inner in step.blocks:
            is_same = len(inner.outputs) == len(step.outputs)
            for index, value in enumerate(inner.outputs):
                # What a loop carries may be read by its next pass.
                is_carried = step.word == "scan" and index < loop_sizes(step.eqn.params)[1]
                value.is_live = is_carried or not is_same or step.outputs[index].is_live
            _backward(inner)
