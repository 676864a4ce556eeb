"""An explanation as one program of XLA, with the model's arrays in it as constants: what depends on them alone is
worked out when it is compiled.

It is what explain() runs, forward and backward pass and what lies between, put into one program for each number of
images. Whether the model is still the one that it was made of is asked as explain() asks it: by what the model is made
of, or by its trace; and by the values of its arrays, of which JAX says that nobody changes them, but which others can.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.jax.backend import JaxBackend, Prepared
from guided_backprop.backends.jax.passes import of_classes
from guided_backprop.backends.kept import Kept
from guided_backprop.backends.refusals import changed
from guided_backprop.errors import ModelError
from guided_backprop.export.plan import WEIGHTS, Plan, port_names
from guided_backprop.export.program import CannotRun, Program, digests

# Each holds the weights, so few are kept.
_MOST: Final = 4


class JaxProgram(Program):
    """A model's explanations, in one program for each number of images.

    Args:
        backend: runs the model.
        given: a batch such as will be explained.
        plan: what is computed: a gradient.

    Raises:
        ModelError: its arrays are on several devices, or on another than the processor; or it is no program.
    """

    compiles_each_count = True

    def __init__(self, backend: JaxBackend, given: Inputs, plan: Plan) -> None:
        self.name = f"jax {jax.__version__}, compiled"
        self._backend, self._plan, self._given = backend, plan, given.map(jnp.asarray)
        arrays = self._given.arrays
        names, self.outputs = port_names(given, [backend.is_floating(array) for array in arrays])
        self.inputs = (*names, "labels", "weights")
        self._made = Kept(_MOST)
        self._first = self._prepared(self._given)
        self.coverage = self._first.coverages[0]
        # What JAX shows of an array is where the array lies: a change is seen there.
        self._memory = [*map(_in_memory, self._first.constants)]
        self._digests = digests(self._memory)

    def _prepared(self, given: Inputs) -> Prepared:
        self._backend.network.check()
        return self._backend.prepared(given, (self._plan.rule,), undo_head=self._backend.setup.undo_head)

    def are_the_same(self) -> bool:
        now = self._prepared(self._given)
        if now is self._first and not any(map(_is_gone, now.constants)):
            return digests(self._memory) == self._digests
        return now.key == self._first.key and _digests(now.constants) == self._digests

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        given = self._taken(inputs)
        ids, weights = jnp.asarray(inputs["labels"], jnp.int32), jnp.asarray(inputs["weights"])
        results = self._function("explain", given, ids, weights)(given.arrays, ids, weights)
        return dict(zip(self.outputs, map(np.asarray, results), strict=True))

    def outputs_of(self, inputs: Mapping[str, NumpyArray]) -> NumpyArray:
        given = self._taken(inputs)
        return np.asarray(self._function("outputs", given)(given.arrays))

    def _taken(self, inputs: Mapping[str, NumpyArray]) -> Inputs:
        """Return the images among what is given, as JAX takes them."""
        pairs = zip(self.inputs, self._given.arrays, strict=False)
        # Copied: of a result that is an image JAX gives the memory that it was given.
        return self._given.like([jnp.array(inputs[name], array.dtype) for name, array in pairs])

    def _function(self, name: Literal["explain", "outputs"], given: Inputs, *labels: jax.Array) -> Callable[..., Any]:
        function: Callable[..., Any] = self._made.get((name, given.count), lambda: self._make(name, given, *labels))
        return function

    def _make(self, name: Literal["explain", "outputs"], given: Inputs, *labels: jax.Array) -> Callable[..., Any]:
        """Return the program for so many images.

        Raises:
            CannotRun: the model does something else with so many images.
            ModelError: it is another one by now.
        """
        prepared = self._prepared(given)
        if (prepared.coverages[0], prepared.head) != (self.coverage, self._first.head):
            raise CannotRun(f"{given.count} images, of which the model makes something else")
        function = jax.jit(getattr(_Run(self._backend, prepared, self._plan), name))
        # Compiled here and now: what is in it is what is looked at next.
        jax.block_until_ready(function(given.arrays, *labels))  # type: ignore[no-untyped-call]
        if _digests(prepared.constants) != self._digests or not self.are_the_same():
            raise changed()
        return function


class _Run:
    """What one program computes.

    Args:
        backend: knows which of the images are explained, and where channels are.
        prepared: what explain() runs for so many images.
        plan: what is computed.
    """

    def __init__(self, backend: JaxBackend, prepared: Prepared, plan: Plan) -> None:
        self._backend, self._prepared, self._plan = backend, prepared, plan

    def explain(self, arrays: Sequence[jax.Array], ids: jax.Array, weights: jax.Array) -> list[jax.Array]:
        """Return outputs, maps, scores, and whether all of these are finite."""
        backend = self._backend
        output, scored, _, (pullback,) = self._forward(arrays)
        axis = backend.channel_axis(output) or 1
        is_weighed = (ids == WEIGHTS).reshape(-1, *[1] * (output.ndim - 1))
        seed = jnp.where(is_weighed, weights, of_classes(output, ids, axis)).astype(scored.dtype)
        maps = [
            backend.reduce(one, self._plan.reducer, backend.channel_axis(one))
            for one in self._prepared.backward(pullback, seed)
        ]
        numbers = [array for array in (output, *maps, *arrays) if backend.is_floating(array)]
        is_finite = jnp.stack([jnp.isfinite(array).all(tuple(range(1, array.ndim))) for array in numbers]).all(0)
        scores = (seed * scored).reshape(len(ids), -1).sum(1)
        return [_readable(output), *maps, scores, is_finite]

    def outputs(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """Return the model's outputs alone: what of the rest nobody asks for is not computed."""
        output, *_ = self._forward(arrays)
        return _readable(output)

    def _forward(self, arrays: Sequence[jax.Array]) -> Any:
        explained = [array for array in arrays if self._backend.is_floating(array)]
        others = [array for array in arrays if not self._backend.is_floating(array)]
        return self._prepared.forward(self._prepared.constants, explained, others)


def _readable(output: jax.Array) -> jax.Array:
    """Return numbers that NumPy knows."""
    return output.astype(jnp.float32) if output.dtype == jnp.bfloat16 else output


def _digests(constants: Sequence[Any]) -> list[int]:
    """Return a digest of each array of a model.

    Raises:
        ModelError: one is on several devices, or on another than the processor, where its values can't be looked at in
            each call; or it is not there any more.
    """
    return digests(map(_in_memory, constants))


def _is_gone(array: Any) -> bool:
    return isinstance(array, jax.Array) and array.is_deleted()


def _in_memory(array: Any) -> NumpyArray:
    if _is_gone(array):
        raise changed()
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    devices = array.devices()
    if len(devices) > 1 or next(iter(devices)).platform != "cpu":
        raise ModelError(
            "a model's arrays must be on the processor to be compiled, for their values have to be seen when they "
            f"change; received one on {', '.join(sorted(map(str, devices)))}. Explain by the method as it is."
        )
    is_special = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return np.asarray(jax.random.key_data(array) if is_special else array)
