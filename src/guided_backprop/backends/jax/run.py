"""Runs an expanded JAX model with another backward pass at its ReLUs; loops and branches stay what they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from guided_backprop.backends.jax.program import REBUILT, REMATS, Block, Step, Value
from guided_backprop.backends.jax.relus import Relu
from guided_backprop.rules import PLAIN, ReluRule


class Runner:
    """Runs blocks under one rule.

    Args:
        rule: what a ReLU lets through.
        constants: the arrays that the model closed over.
    """

    def __init__(self, rule: ReluRule, constants: Sequence[Any]) -> None:
        self._rule = rule
        self._constants = constants

    def run(self, block: Block, inputs: Sequence[Any]) -> dict[Value, Any]:
        """Run a block and return all its values."""
        values: dict[Value, Any] = dict(zip(block.inputs, inputs, strict=True))
        for step in block.steps:
            if step.is_inside:
                continue
            if step.relu is not None:
                results = self._relu(step, step.relu, values)
            else:
                operands = [self.read(value, values) for value in step.inputs]
                results = self._step(step, operands)
                if step.is_on_path and self._rule.guides(step.activation or ""):
                    results = [_clamped(each) for each in results]
            values.update(zip(step.outputs, results, strict=True))
        return values

    def read(self, value: Value, values: dict[Value, Any]) -> Any:
        """Return the array of one value."""
        if value.literal is not None:
            return jnp.asarray(value.literal, value.aval.dtype)
        return self._constants[value.constant] if value.constant is not None else values[value]

    def _step(self, step: Step, operands: list[Any]) -> list[Any]:
        is_whole = step.name not in REBUILT or not step.is_on_path
        if is_whole or not any(_has_activation(block) for block in step.blocks):
            return step.run(operands)
        functions = [self._function(block) for block in step.blocks]
        params = step.eqn.params
        if step.name == "scan":
            return _scan(functions[0], operands, params)
        if step.name == "cond":
            results = jax.lax.switch(operands[0], functions, *operands[1:])
        elif step.name in REMATS:
            remat = jax.checkpoint(functions[0], prevent_cse=params["prevent_cse"], policy=params["policy"])
            results = remat(*operands)
        else:
            results = _shard_map(functions[0], params)(*operands)
        return list(results)

    def _function(self, block: Block) -> Callable[..., tuple[Any, ...]]:
        def function(*inputs: Any) -> tuple[Any, ...]:
            values = self.run(block, inputs)
            return tuple(self.read(value, values) for value in block.outputs)

        return function

    def _relu(self, step: Step, relu: Relu, values: dict[Value, Any]) -> list[Any]:
        first = relu.inside or step
        operands = [self.read(value, values) for value in first.inputs]
        x = operands.pop(relu.operand)
        cap = None if relu.cap is None else self.read(relu.cap, values)
        rule, shape = PLAIN if relu.is_half else self._rule, jnp.shape(x)

        def forward(x: Any, others: list[Any], cap: Any) -> Any:
            (y,) = first.run([*others[: relu.operand], x, *others[relu.operand :]])
            if relu.inside is None:
                return y
            (y,) = step.run([y if value is first.outputs[0] else cap for value in step.inputs])
            return y

        if relu.is_custom and rule.forward_gate:
            y = forward(x, operands, cap)
            return [_clamped(y) if rule.backward_gate else y]

        def keep(x: Any, others: list[Any], cap: Any) -> tuple[Any, Any]:
            is_open = None
            if rule.forward_gate:
                is_open = x > 0 if cap is None else (x > 0) & (x < cap)
            return forward(x, others, cap), is_open

        def back(is_open: Any, g: Any) -> tuple[Any, None, None]:
            if rule.backward_gate:
                g = jnp.where(g > 0, g, jnp.zeros_like(g))
            if is_open is not None:
                g = jnp.where(is_open, g, jnp.zeros_like(g))
            return _summed_to(g, shape), None, None

        ruled = jax.custom_vjp(forward)
        ruled.defvjp(keep, back)
        return [ruled(x, operands, cap)]


@jax.custom_vjp
def _clamped(y: Any) -> Any:
    """Return y; going back, only positive gradients pass."""
    return y


_clamped.defvjp(lambda y: (y, None), lambda _, g: (jnp.where(g > 0, g, jnp.zeros_like(g)),))


def _summed_to(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which x was repeated."""
    if g.shape == shape:
        return g
    padded = (1,) * (g.ndim - len(shape)) + shape
    axes = tuple(axis for axis, size in enumerate(padded) if size != g.shape[axis])
    return g.sum(axes, keepdims=True).reshape(shape)


def _has_activation(block: Block) -> bool:
    """Tell whether there is something in a block that a rule may act on."""
    return any(
        step.relu is not None or step.activation is not None or any(map(_has_activation, step.blocks))
        for step in block.steps
    )


def _scan(body: Callable[..., tuple[Any, ...]], operands: list[Any], params: dict[str, Any]) -> list[Any]:
    start, carried = params["num_consts"], params["num_carry"]
    constants, carry, slices = operands[:start], operands[start : start + carried], operands[start + carried :]

    def turn(carry: Any, slices: Any) -> tuple[Any, Any]:
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


def _shard_map(body: Callable[..., tuple[Any, ...]], params: dict[str, Any]) -> Callable[..., Any]:
    return jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=params["out_specs"],
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
