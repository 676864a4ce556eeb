"""What is compiled of a program: the forward pass, with the derivatives under some rules, and the backward pass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from guided_backprop.backends.jax.graph.heads import Head
from guided_backprop.backends.jax.graph.program import Block, Program
from guided_backprop.backends.jax.run import Runner
from guided_backprop.rules import PLAIN, ReluRule


def passes(program: Program, head: Head | None, rules: Sequence[ReluRule]) -> tuple[Any, Any]:
    """Compile the forward pass, which returns its derivative under each rule, and the backward pass.

    For several rules the forward pass stands there several times; the compiler leaves one.
    """
    # Not the program itself: it would keep its constants alive, and JAX goes on with the values that it knows of a
    # NumPy array for as long as anybody holds on to them.
    block, first = program.block, program.first

    @jax.jit
    def forward(
        constants: list[Any], images: list[jax.Array], others: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array, list[jax.Array], list[Any]]:
        inside, pullbacks = [], []
        if first is not None:
            runner = Runner(PLAIN, constants)
            inside = [runner.read(first.outputs[0], runner.run(first, _inputs(block, images, others)))]
        for rule in rules:
            runner = Runner(rule, constants)
            value, pullback, output = jax.vjp(
                lambda arrays, runner=runner: (
                    _explained(block, head, runner, _inputs(block, arrays, others))
                    if first is None
                    else _explained(block, head, runner, [*_inputs(block, images, others), *arrays])
                ),
                inside or images,
                has_aux=True,
            )
            pullbacks.append(pullback)
        return output, value, inside, pullbacks

    @jax.jit
    def backward(pullback: Any, seed: jax.Array) -> list[jax.Array]:
        (gradients,) = pullback(seed)
        return gradients  # type: ignore[no-any-return]

    return forward, backward


def _inputs(block: Block, images: Sequence[jax.Array], others: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the images, which are floating-point numbers, and the other inputs, in the order of the model."""
    floats, rest = iter(images), iter(others)
    given = block.inputs[: len(images) + len(others)]
    return [next(floats) if jnp.issubdtype(value.aval.dtype, jnp.floating) else next(rest) for value in given]


def _explained(
    block: Block, head: Head | None, runner: Runner, inputs: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return what is differentiated, which is what a head is undone of, and the model's output."""
    arrays = runner.run(block, inputs)
    output = runner.read(block.outputs[0], arrays)
    if head is None:
        return output, output
    value = arrays[head.logits]
    for step in head.moves:
        (value,) = step.run([value])
    return value.astype(output.dtype), output


def of_classes(output: jax.Array, ids: jax.Array, axis: int) -> jax.Array:
    """Return weight 1 for a class of each image, at all its positions; a negative id is that of the highest."""
    if output.ndim == 1:
        return jnp.ones_like(output)
    totals = output.sum([other for other in range(1, output.ndim) if other != axis])
    chosen = jnp.arange(output.shape[axis]) == jnp.where(ids < 0, totals.argmax(1), ids)[:, None]
    shape = [size if place in (0, axis) else 1 for place, size in enumerate(output.shape)]
    return jnp.broadcast_to(chosen.reshape(shape), output.shape).astype(output.dtype)


def forward_pass(program: Program) -> Any:
    """Compile the forward pass alone."""
    block = program.block

    @jax.jit
    def forward(constants: list[Any], inputs: list[jax.Array]) -> jax.Array:
        runner = Runner(PLAIN, constants)
        return runner.read(block.outputs[0], runner.run(block, inputs))

    return forward
