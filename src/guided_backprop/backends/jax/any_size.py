"""A model that is traced for images of any size: what was found of its program for one size holds for that as well.

Only a program with values can be judged. That for any size has none, but does the same, step by step, with what depends
on the images; if it does not, the model is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import export

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.jax.graph.program import Gate, Program, Step, Value
from guided_backprop.backends.jax.hidden.findings import numbered
from guided_backprop.errors import ModelError

#: What the number of images is called.
COUNT: Final = "count"
_OF_CONVOLUTIONS: Final = (
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
    "batch_group_count", "precision", "preferred_element_type",
)  # fmt: skip


class Free:
    """The sizes of images that are free.

    Args:
        given: images, a batch of one.
        axes: for each of them which of its axes are free.

    Attributes:
        least: for each of them the least size along each of these: half of what is given.
        count: how many images there are.
        shapes: for each of them the sizes of one image, as symbols where they are free.
    """

    def __init__(self, given: Inputs, axes: Sequence[Sequence[int]]) -> None:
        arrays = given.arrays
        self.least = [
            [max(1, array.shape[axis] // 2) for axis in some] for array, some in zip(arrays, axes, strict=True)
        ]
        names = [{axis: f"size_{place}_{axis}" for axis in some} for place, some in enumerate(axes)]
        bounds = [
            f"{name} >= {least}"
            for some, sizes in zip(names, self.least, strict=True)
            for name, least in zip(some.values(), sizes, strict=True)
        ]
        # All of one scope: a symbol of another is another size.
        scope = export.SymbolicScope(bounds)
        (self.count,) = export.symbolic_shape(COUNT, scope=scope)
        self.shapes = [
            export.symbolic_shape(
                ", ".join(some.get(axis, str(size)) for axis, size in enumerate(array.shape) if axis), scope=scope
            )
            for array, some in zip(arrays, names, strict=True)
        ]
        self.specs = given.like(
            [
                jax.ShapeDtypeStruct((1, *shape), array.dtype)  # type: ignore[no-untyped-call]
                for array, shape in zip(arrays, self.shapes, strict=True)
            ]
        )


def carry_over(found: Program, program: Program) -> None:
    """Note on a program for any size the gates that were found in the one for one size.

    Raises:
        ModelError: they do not do the same.
    """
    before, after = _of_images(found), _of_images(program)
    if [_name_of(value) for value in before] != [_name_of(value) for value in after]:
        raise of_one_size("one that does something else for other sizes")
    places = dict(zip(before, after, strict=True))
    for value, other in places.items():
        if value.gate is not None:
            gate = value.gate
            if gate.closed.size > 1 and not _fits(gate.closed, other):
                raise of_one_size("a ReLU that is spelled by numbers of one size")
            x = None if gate.x is None else places[gate.x]
            other.gate = Gate(gate.closed, gate.slack, x, gate.slope, is_at_zero=gate.is_at_zero)


def _of_images(program: Program) -> list[Value]:
    """Return the values that depend on the images, in their order: what is made of sizes alone is not counted."""
    return [value for value in numbered(program) if value.depends]


def _name_of(value: Value) -> tuple[str, int]:
    step: Step | None = value.step
    return ("", 0) if step is None else (step.name, len(step.outputs))


def _fits(closed: NumpyArray, value: Value) -> bool:
    """Tell whether an array broadcasts against a value whatever its free sizes are."""
    sizes: Sequence[Any] = value.aval.shape[len(value.aval.shape) - closed.ndim :]
    return all(size == 1 or isinstance(other, int) for size, other in zip(closed.shape, sizes, strict=True))


class _Strided(Step):
    """A convolution whose way back JAX can say for any size."""

    def run(self, operands: Sequence[Any]) -> list[Any]:
        return [_convolved(self.eqn.params, *operands)]


def _convolved(params: Mapping[str, Any], x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolve; the way back is one of stride 1, of what arrives with zeros in between.

    What is around the images, and what is cut out behind, is said by places, for JAX cannot tell how much it is.
    """
    sizes, dims, stride = x.shape, params["dimension_numbers"], params["window_strides"]
    axes = list(zip(dims.lhs_spec[2:], dims.out_spec[2:], dims.rhs_spec[2:], strict=True))
    of = {name: params[name] for name in _OF_CONVOLUTIONS}

    def at(stride: Sequence[int], x: jax.Array, weights: jax.Array) -> jax.Array:
        options: Any = of | {"window_strides": tuple(stride), "padding": [(0, 0)] * len(stride)}
        y: jax.Array = jax.lax.conv_general_dilated(x, weights, **options)
        return y

    @jax.custom_vjp
    def convolved(x: jax.Array, weights: jax.Array) -> jax.Array:
        for (here, _, _), (before, after) in zip(axes, params["padding"], strict=True):
            x = _taken(x, here, -before, before + sizes[here] + after)
        return at(stride, x, weights)

    def forward(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return convolved(x, weights), weights

    def backward(weights: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        between, reached = [(0, 0, 0)] * g.ndim, list(sizes)
        for (here, there, window), step, spread in zip(axes, stride, params["rhs_dilation"], strict=True):
            between[there] = (0, 0, step - 1)
            reached[here] = (g.shape[there] - 1) * step + 1 + (weights.shape[window] - 1) * spread
        spec = jax.ShapeDtypeStruct(tuple(reached), g.dtype)  # type: ignore[no-untyped-call]
        back = jax.linear_transpose(lambda x: at([1] * len(axes), x, weights), spec)
        (derived,) = back(jax.lax.pad(g, jnp.zeros((), g.dtype), between))
        for (here, _, _), (before, _) in zip(axes, params["padding"], strict=True):
            derived = _taken(derived, here, before, sizes[here])
        return derived, jnp.zeros_like(weights)

    convolved.defvjp(forward, backward)
    y: jax.Array = convolved(x, weights)
    return y


def _taken(x: jax.Array, axis: int, begin: Any, count: Any) -> jax.Array:
    """Return so many values along an axis from a place on, which may lie in front of it; 0 where there is none."""
    places = jnp.arange(count) + begin
    # A place that is negative would be counted from the end.
    places = jnp.where(places < 0, x.shape[axis], places)
    return jnp.take(x, places, axis=axis, mode="fill", fill_value=0)


def spread_strides(program: Program) -> None:
    """Let the convolutions of a program for any size be ones that JAX can derive."""
    for block in (program.block, program.first):
        if block is not None:
            block.steps[:] = [_spread(step) for step in block.steps]


def _spread(step: Step) -> Step:
    if step.name != "conv_general_dilated" or step.inputs[1].depends:
        return step
    params = step.eqn.params
    is_plain = set(params["lhs_dilation"]) == {1} and params["batch_group_count"] == 1
    is_known = all(isinstance(pad, int) for pad in chain(*params["padding"]))
    if not is_plain or (is_known and set(params["window_strides"]) == {1}):
        return step
    return _Strided(**{one.name: getattr(step, one.name) for one in fields(step)})


def between(before: Any, after: Any, dtype: Any, *, is_linear: bool) -> jax.Array:
    """Return the matrix ``(before, after)`` that resizes a map along one axis: worked out in the program."""
    rows, columns = jnp.arange(before)[:, None], jnp.arange(after)
    if not is_linear:
        is_taken: jax.Array = (rows * after <= columns * before) & (columns * before < (rows + 1) * after)
        return is_taken.astype(dtype)
    ratio = jnp.asarray(before, dtype) / jnp.asarray(after, dtype)
    at = jnp.clip((columns.astype(dtype) + 0.5) * ratio - 0.5, 0, jnp.asarray(before - 1, dtype))
    return jax.nn.relu(1 - jnp.abs(at - rows.astype(dtype)))


def of_one_size(what: str) -> ModelError:
    """Return the error for what holds for one size."""
    return ModelError(
        f'a model of images of any size must have no part that holds for one; received {what} for sizes="dynamic". '
        'Leave it out, for sizes="fixed".'
    )
