"""An explanation as one program of JAX's own: StableHLO, for any number of images, on processors and accelerators.

One image is explained, and that is mapped over the images: so their number stays free, which the trace of a batch would
have burnt in. A model whose output for an image depends on the others of its batch shows where maps are compared.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.base import Setup
from guided_backprop.backends.jax.backend import JaxBackend
from guided_backprop.backends.jax.hidden.findings import numbered
from guided_backprop.backends.jax.passes import of_classes
from guided_backprop.backends.refusals import unsettled
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ModelError
from guided_backprop.export.engine import Engine
from guided_backprop.export.graph import Graph
from guided_backprop.export.plan import TOP, Plan, port_names

# By how many of the images it is judged what is a ReLU.
_JUDGED: Final = 8
# Where the program runs, whatever it is written on.
_PLATFORMS: Final = ("cpu", "cuda", "tpu")
# What one image gives: the output, what is differentiated, and its gradient for a seed.
_Passed = tuple[jax.Array, jax.Array, Callable[[jax.Array], Sequence[jax.Array]]]


class Recorder(JaxBackend):
    """A model whose pass for one image can be put into a larger program."""

    def one_image(self, given: Inputs, plan: Plan) -> tuple[Callable[[Sequence[jax.Array]], _Passed], Coverage]:
        """Return what explains one image, and what was done with each non-linearity.

        Raises:
            ModelError: the given images do not tell alike what is a ReLU.
        """
        self.network.check()
        images = [given.rows(slice(row, row + 1)).map(jnp.asarray) for row in range(min(given.count, _JUDGED))]
        image = images[0]
        if len({Recorder(self.setup).gates(one, plan) for one in images}) > 1:
            raise unsettled("a value that some of them show to be one, and others don't,")
        made = self.prepared(image, (plan.rule,), undo_head=self.setup.undo_head)

        def explain(leaves: Sequence[jax.Array]) -> _Passed:
            explained = [leaf for leaf in leaves if self.is_floating(leaf)]
            others = [leaf for leaf in leaves if not self.is_floating(leaf)]
            output, scored, _, (pullback,) = made.forward(made.constants, explained, others)
            return output, scored, lambda seed: made.backward(pullback, seed)

        return explain, made.coverages[0]

    def gates(self, image: Inputs, plan: Plan) -> Hashable:
        """Return where the program of one image has ReLUs that are known by its values, in a new recorder."""
        program = self._program(self._trace(image, begins_inside=False), image, begins_inside=False)
        self._analyse(program, (plan.rule,), image.arrays)
        return tuple(number for number, value in enumerate(numbered(program)) if value.gate is not None)


class StableHlo(Engine):
    """A stored program, in JAX: without the library, and without the model."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None:
        self.name = f"jax {jax.__version__}"
        self._program, self._outputs = export.deserialize(bytearray(path.read_bytes())), outputs

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        return _called(self._program, list(inputs.values()), self._outputs)


class JaxGraph(Graph):
    """The explanation of a model as a program.

    Args:
        setup: the model, and what is said about it.
        given: a batch such as will be explained.
        plan: what is computed.

    Raises:
        ModelError: the program can't be stored, as where it calls back to Python.
    """

    engine, turns = StableHlo, ()

    def __init__(self, setup: Setup, given: Inputs, plan: Plan) -> None:
        self._recorder, self._labels, self._reducer = Recorder(setup), plan.labels, plan.reducer
        one = given.rows(slice(0, 1)).map(jnp.asarray)
        self._explain, self.coverage = self._recorder.one_image(given, plan)
        output = jax.eval_shape(lambda *leaves: self._explain(leaves)[0], *one.arrays)
        names, self.outputs = port_names(given, [self._recorder.is_floating(array) for array in one.arrays])
        self.inputs = (*names, "labels")
        (count,) = export.symbolic_shape("count")
        label = output.shape[1:] if plan.labels == "weights" else ()
        kind = output.dtype if plan.labels == "weights" else jnp.int32
        sizes = [(array.shape[1:], array.dtype) for array in one.arrays]
        specs = [_spec((count, *shape), dtype) for shape, dtype in (*sizes, (label, kind))]
        try:
            self._program = export.export(jax.jit(jax.vmap(self._of_image)), platforms=_PLATFORMS)(*specs)
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise ModelError(
                "a program must be stored whole; received "
                f"{type(error).__name__}: {' '.join(str(error).split()):.200}. Take out what calls Python."
            ) from error

    def _of_image(self, *arrays: jax.Array) -> list[jax.Array]:
        *leaves, label = arrays
        output, scored, derive = self._explain([leaf[None] for leaf in leaves])
        seed = self._seed(output, scored, label)
        recorder = self._recorder
        maps = [recorder.reduce(one, self._reducer, recorder.channel_axis(one))[0] for one in derive(seed)]
        numbers = [array for array in (output, *maps, *arrays) if jnp.issubdtype(array.dtype, jnp.floating)]
        is_finite = jnp.stack([jnp.isfinite(array).all() for array in numbers]).all()
        if self._labels == "ids" and output.ndim > 1:
            is_finite &= (label >= TOP) & (label < output.shape[self._class_axis(output)])
        return [output[0], *maps, (seed * scored).sum(), is_finite]

    def _seed(self, output: jax.Array, scored: jax.Array, label: jax.Array) -> jax.Array:
        """Return how much each output weighs: as the label says, or 1 for a class, at all its positions."""
        is_told = self._labels == "weights"
        seed = label[None] if is_told else of_classes(output, label[None], self._class_axis(output))
        return seed.astype(scored.dtype)

    def _class_axis(self, output: jax.Array) -> int:
        return self._recorder.channel_axis(output) or 1

    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        return _called(self._program, inputs, self.outputs)

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the program, and beside it what it says of itself, which has no place in it."""
        path.write_bytes(self._program.serialize())
        path.with_suffix(".json").write_text(json.dumps(dict(metadata), indent=1))


def _spec(shape: Sequence[Any], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _called(program: Any, inputs: Sequence[NumpyArray], outputs: Sequence[str]) -> dict[str, NumpyArray]:
    arrays = [jnp.asarray(array, aval.dtype) for array, aval in zip(inputs, program.in_avals, strict=True)]
    return {name: np.asarray(result) for name, result in zip(outputs, program.call(*arrays), strict=True)}
