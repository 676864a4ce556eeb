"""Runs an expanded JAX model with another backward pass at its ReLUs; loops and branches stay what they are."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import compress
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from guided_backprop.backends.jax.graph.calls import loop_sizes
from guided_backprop.backends.jax.graph.program import REBUILT, REMATS, Activation, Block, Gate, Relu, Step, Value
from guided_backprop.backends.jax.graph.relus import custom_name
from guided_backprop.errors import OpaqueRegionError
from guided_backprop.rules import GUIDED, ArrayFunctions, Guided, Plain, ReluRule

Arrays = tuple[Array, ...]
# What JAX keeps for the backward pass: any tree of arrays.
Kept = Any
Params = Mapping[str, Any]
_FUNCTIONS = cast("ArrayFunctions", jnp)


class Runner:
    """Runs blocks under one rule.

    Args:
        rule: what a ReLU lets through.
        constants: the arrays that the model closed over.
    """

    def __init__(self, rule: ReluRule, constants: Sequence[Array]) -> None:
        self._rule = rule
        self._constants = constants

    def run(self, block: Block, inputs: Sequence[Array]) -> dict[Value, Array]:
        """Run a block and return all its values."""
        arrays: dict[Value, Array] = dict(zip(block.inputs, inputs, strict=True))
        for step in block.steps:
            if step.is_inside:
                continue
            activation = step.activation if step.is_on_path else None
            if step.relu is not None:
                results = [self._relu(step, step.relu, arrays)]
            elif activation is not None and self._rule.guides(activation.name):
                results = [self._smooth(step, activation, arrays)]
            else:
                operands = [self.read(value, arrays) for value in step.inputs]
                results = self._step(step, operands)
            arrays.update(zip(step.outputs, results, strict=True))
            for value in step.outputs:
                if value.gate is not None:
                    arrays[value] = self._gated(value.gate, arrays[value], arrays)
        return arrays

    def read(self, value: Value, arrays: dict[Value, Array]) -> Array:
        """Return the array of one value."""
        if value.literal is not None:
            return jnp.asarray(value.literal, value.aval.dtype)
        return self._constants[value.constant] if value.constant is not None else arrays[value]

    def _step(self, step: Step, operands: list[Array]) -> list[Array]:
        is_whole = step.name not in REBUILT or not step.is_on_path
        if is_whole or not any(_has_activation(block) for block in step.blocks):
            return step.run(operands)
        functions = [self._function(block) for block in step.blocks]
        params = step.eqn.params
        if step.word == "scan":
            return _scan(functions[0], operands, params)
        if step.word == "cond":
            results = jax.lax.switch(operands[0], functions, *operands[1:])
        elif step.name in REMATS:
            remat = jax.checkpoint(functions[0], prevent_cse=params["prevent_cse"], policy=params["policy"])
            results = remat(*operands)
        else:
            results = _shard_map(functions[0], params)(*operands)
        return list(results)

    def _function(self, block: Block) -> Callable[..., Arrays]:
        def function(*inputs: Array) -> Arrays:
            arrays = self.run(block, inputs)
            return tuple(self.read(value, arrays) for value in block.outputs)

        return function

    def _relu(self, step: Step, relu: Relu, arrays: dict[Value, Array]) -> Array:
        """Run a ReLU forward as it is; going back, the rule says what leaves it."""
        first = relu.inside or step
        operands = [self.read(value, arrays) for value in first.inputs]
        if relu.is_custom:
            return self._custom(step, operands)
        x = operands.pop(relu.operand)
        cap = None if relu.cap is None else self.read(relu.cap, arrays)

        def forward(x: Array, others: list[Array], cap: Array | None) -> Array:
            (y,) = first.run([*others[: relu.operand], x, *others[relu.operand :]])
            if relu.inside is None or cap is None:
                return y
            (y,) = step.run([y if value is first.outputs[0] else cap for value in step.inputs])
            return y

        return _ruled(self._rule, forward, x, operands, cap)

    def _gated(self, gate: Gate, y: Array, arrays: dict[Value, Array]) -> Array:
        """Return y, which is a ReLU though no operation there is one; going back, the rule says what leaves."""
        if type(self._rule) is Plain:
            return y
        if gate.x is None or gate.slope is None:
            return _closed_behind(self._rule, gate, y)
        # What made y is left out on the way back: at a root of 0 it has no derivative.
        y = jax.lax.stop_gradient(y)
        return _ruled_slope(self._rule, gate, gate.slope, self.read(gate.x, arrays), y)

    def _custom(self, step: Step, operands: list[Array]) -> Array:
        """Run a ReLU that brings a derivative of its own, which is then its forward gate."""
        carries = [value.carries for value in step.inputs]

        def forward(carrying: list[Array], others: list[Array]) -> Array:
            left, rest = iter(carrying), iter(others)
            (y,) = step.run([next(left) if is_carrying else next(rest) for is_carrying in carries])
            return y

        others = [operand for operand, is_carrying in zip(operands, carries, strict=True) if not is_carrying]
        return _ruled_derivative(self._rule, custom_name(step), forward, list(compress(operands, carries)), others)

    def _smooth(self, last: Step, activation: Activation, arrays: dict[Value, Array]) -> Array:
        """Run a smooth activation that the rule acts on; its own derivative is its forward gate."""
        made = {value for step in activation.steps for value in step.outputs}
        outside = [
            value
            for step in activation.steps
            for value in step.inputs
            if value in arrays and value is not activation.x and value not in made
        ]

        def forward(carrying: list[Array], others: list[Array]) -> Array:
            inside = {activation.x: carrying[0], **dict(zip(outside, others, strict=True))}
            for step in activation.steps:
                results = step.run([self.read(value, inside) for value in step.inputs])
                inside.update(zip(step.outputs, results, strict=True))
            return inside[last.outputs[0]]

        x, others = self.read(activation.x, arrays), [arrays[value] for value in outside]
        return _ruled_derivative(self._rule, activation.name, forward, [x], others)


def _ruled(rule: ReluRule, forward: Callable[..., Array], x: Array, others: list[Array], cap: Array | None) -> Array:
    """Return what a ReLU makes of x; going back, the rule says what leaves.

    Args:
        rule: what the ReLU lets through.
        forward: the ReLU, a function of the arguments that follow. They are no part of it, for JAX does not
            differentiate a function with a rule of its own that holds on to values from outside.
        x: its input.
        others: its other operands.
        cap: its upper bound; None if there is none.
    """
    shape = jnp.shape(x)

    def keep(x: Array, others: list[Array], cap: Array | None) -> tuple[Array, Kept]:
        y = forward(x, others, cap)
        is_open = x > 0 if cap is None else (x > 0) & (x < cap)
        return y, (is_open, (jnp.broadcast_to(x, y.shape), y) if rule.reads_values else (None, None))

    def back(kept: Kept, g: Array) -> tuple[Array, None, None]:
        is_open, (x, y) = kept
        derived = jnp.where(is_open, g, jnp.zeros_like(g))
        return _summed_to(rule.leaving(g, derived, x, y, _FUNCTIONS), shape), None, None

    ruled = jax.custom_vjp(forward)
    ruled.defvjp(keep, back)
    return ruled(x, others, cap)


def _is_closed(gate: Gate, y: Array) -> Array:
    closed = jnp.asarray(gate.closed, y.dtype)
    return y == closed if gate.slack == 0 else jnp.abs(y - closed) <= gate.slack


def _closed_behind(rule: ReluRule, gate: Gate, y: Array) -> Array:
    """Return y; going back, the rule closes what arrives, and what made y applies its own derivative."""

    def back(is_closed: Array, g: Array) -> tuple[Array]:
        return (rule.leaving(g, jnp.where(is_closed, jnp.zeros_like(g), g), None, None, _FUNCTIONS),)

    ruled = jax.custom_vjp(lambda y: y)
    ruled.defvjp(lambda y: (y, _is_closed(gate, y)), back)
    return ruled(y)  # type: ignore[no-any-return]


def _ruled_slope(rule: ReluRule, gate: Gate, slope: float, x: Array, y: Array) -> Array:
    """Return y, a multiple of a ReLU of x, or of -x; going back, what leaves the ReLU goes to x."""
    size, sign = abs(slope), 1.0 if slope > 0 else -1.0

    def keep(x: Array, y: Array) -> tuple[Array, Kept]:
        is_open = y != jnp.asarray(gate.closed, y.dtype) if gate.is_at_zero else ~_is_closed(gate, y)
        is_open = is_open & (sign * x.reshape(y.shape) > 0) if gate.is_at_zero else is_open
        kept = (sign * x.reshape(y.shape), y / size) if rule.reads_values else (None, None)
        return y, (is_open, kept)

    def back(kept: Kept, g: Array) -> tuple[Array, Array]:
        is_open, (before, after) = kept
        g = size * g if size != 1.0 else g
        derived = jnp.where(is_open, g, jnp.zeros_like(g))
        left = rule.leaving(g, derived, before, after, _FUNCTIONS)
        return (sign * left).reshape(shape).astype(dtype), jnp.zeros_like(g)

    shape, dtype = x.shape, x.dtype
    ruled = jax.custom_vjp(lambda x, y: y)
    ruled.defvjp(keep, back)
    return ruled(x, y)  # type: ignore[no-any-return]


def _ruled_derivative(
    rule: ReluRule, name: str, forward: Callable[..., Array], carrying: list[Array], others: list[Array]
) -> Array:
    """Return what an activation with a derivative of its own gives out; going back, the rule says what leaves.

    Args:
        rule: what the activation lets through.
        name: what the activation is called.
        forward: the activation, a function of the two lists that follow.
        carrying: those of its operands that a gradient flows to.
        others: the rest.
    """
    if type(rule) is Plain:
        return forward(carrying, others)
    if type(rule) is Guided:
        return _guided(forward(carrying, others))

    def keep(carrying: list[Array], others: list[Array]) -> tuple[Array, Kept]:
        y, derivative = jax.vjp(lambda carrying: forward(carrying, others), carrying)
        if any(x.shape != y.shape for x in carrying):
            raise OpaqueRegionError(
                f"an activation must return values of its input's shape under the {rule.name} rule; received {name} "
                f"that returns {y.shape}. Write it as two functions, one of them the ReLU alone."
            )
        return y, (derivative, (carrying, y) if rule.reads_values else ([None] * len(carrying), None))

    def back(kept: Kept, g: Array) -> tuple[list[Array], None]:
        derivative, (carrying, y) = kept
        (derived,) = derivative(g)
        return [
            rule.leaving(g, gradient, x, y, _FUNCTIONS) for gradient, x in zip(derived, carrying, strict=True)
        ], None

    ruled = jax.custom_vjp(forward)
    ruled.defvjp(keep, back)
    return ruled(carrying, others)


@jax.custom_vjp
def _guided(y: Array) -> Array:
    """Return y; going back, only positive gradients pass.

    What made y then applies its derivative, which is linear in g: so what leaves is what the guided rule says.
    """
    return y


_guided.defvjp(lambda y: (y, None), lambda _, g: (GUIDED.leaving(g, g, None, None, _FUNCTIONS),))


def _summed_to(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which x was repeated."""
    if g.shape == shape:
        return g
    padded = (1,) * (g.ndim - len(shape)) + shape
    axes = tuple(axis for axis, size in enumerate(padded) if size != g.shape[axis])
    return g.sum(axes, keepdims=True).reshape(shape)


def _has_activation(block: Block) -> bool:
    """Tell whether there is something in a block that a rule may act on."""
    return any(
        step.relu is not None
        or step.activation is not None
        or any(value.gate is not None for value in step.outputs)
        or any(map(_has_activation, step.blocks))
        for step in block.steps
    )


def _scan(body: Callable[..., Arrays], operands: list[Array], params: Params) -> list[Array]:
    start, carried = loop_sizes(params)
    constants, carry, slices = operands[:start], operands[start : start + carried], operands[start + carried :]

    def turn(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        results = body(*constants, *carry, *slices)
        return results[:carried], results[carried:]

    last, stacked = jax.lax.scan(
        turn,
        tuple(carry),
        tuple(slices),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*last, *stacked]


def _shard_map(body: Callable[..., Arrays], params: Params) -> Callable[..., Arrays]:
    if "in_names" in params:
        return _shard_map_before_0_6(body, params)
    return jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=params["out_specs"],
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )


def _shard_map_before_0_6(body: Callable[..., Arrays], params: Params) -> Callable[..., Arrays]:
    """Do the same where JAX has it among what is experimental, and says of each axis by which names it is cut."""
    # Not what a later version has under this name, which takes other arguments.
    shard_map: Callable[..., Callable[..., Arrays]] = import_module("jax.experimental.shard_map").shard_map

    def specs(every: Sequence[Mapping[int, tuple[str, ...]]]) -> tuple[jax.sharding.PartitionSpec, ...]:
        return tuple(
            jax.sharding.PartitionSpec(*(names.get(axis) for axis in range(max(names, default=-1) + 1)))  # type: ignore[no-untyped-call]
            for names in every
        )

    return shard_map(
        body,
        mesh=params["mesh"],
        in_specs=specs(params["in_names"]),
        out_specs=specs(params["out_names"]),
        check_rep=params["check_rep"],
        auto=params["auto"],
    )
