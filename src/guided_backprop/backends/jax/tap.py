"""Names for the values inside of a JAX function."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from guided_backprop.arrays import Images, Inputs
from guided_backprop.backends.jax.graph.program import Program


def tap(name: str, value: jax.Array) -> jax.Array:
    """Return ``value`` as it is, and let ``output_layer=name`` explain it, or ``input_layer=name`` from there on.

    It is JAX's own ``checkpoint_name``: models that use that for their values need no tap.

    Args:
        name: the name; where it is given several times, a pair with the value's number says which: ``(name, 1)``.
        value: an array with a row per image, outside of loops, branches and checkpoints.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from guided_backprop import GuidedBackprop
        >>> from guided_backprop.jax import tap
        >>> def model(images):
        ...     hidden = tap("hidden", jax.nn.relu(images @ jnp.eye(3)))
        ...     return hidden.sum(axis=1, keepdims=True)
        >>> GuidedBackprop(model, output_layer="hidden").explain(jnp.ones((2, 3)), 1).attribution.tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return checkpoint_name(value, name)  # type: ignore[no-any-return, no-untyped-call]


def names_of(model: Callable[..., Any], images: Images) -> list[str]:
    """Return the names that a function gives to its values, in the order that they are made in."""
    inputs = Inputs.of(images)

    def traced(*arrays: jax.Array) -> tuple[()]:
        inputs.like(arrays).call(model)
        return ()

    return list(Program(jax.make_jaxpr(traced)(*inputs.arrays)).named())
