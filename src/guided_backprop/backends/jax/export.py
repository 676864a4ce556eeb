"""An explanation as one program of JAX's own: StableHLO, for any number of images, on processors and accelerators.

One image is explained, and that is mapped over the images: so their number stays free, which the trace of a batch would
have burnt in. A model whose output for an image depends on the others of its batch shows where maps are compared.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from guided_backprop.arrays import Inputs, NumpyArray
from guided_backprop.backends.base import Setup
from guided_backprop.backends.jax.any_size import COUNT, Free, between, carry_over, of_one_size, spread_strides
from guided_backprop.backends.jax.backend import JaxBackend, Prepared, covered
from guided_backprop.backends.jax.graph.composites import mark_activations
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.jax.hidden.findings import numbered
from guided_backprop.backends.jax.passes import of_classes, passes
from guided_backprop.backends.refusals import unsettled
from guided_backprop.coverage import Coverage
from guided_backprop.digest import digest_of
from guided_backprop.errors import GuidedBackpropError, ModelError
from guided_backprop.export.engine import Engine
from guided_backprop.export.graph import Graph
from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import TOP, Cam, Noise, Plan, noise_names, port_names
from guided_backprop.rules import PLAIN, ReluRule

# By how many of the images it is judged what is a ReLU.
_JUDGED: Final = 8
# Where the program runs, whatever it is written on.
_PLATFORMS: Final = ("cpu", "cuda", "tpu")


class _Passed(NamedTuple):
    """What the pass of one image gives.

    Attributes:
        output: the model's output.
        scored: what is differentiated.
        inside: where the gradient is taken inside of the model, the value there; else nothing.
        derive: from a seed to the gradients.
    """

    output: jax.Array
    scored: jax.Array
    inside: Sequence[jax.Array]
    derive: Callable[[jax.Array], Sequence[jax.Array]]


#: Explains one image, given as a batch of one.
_Explain = Callable[[Sequence[jax.Array]], _Passed]


class Recorder(JaxBackend):
    """A model whose pass for one image can be put into a larger program.

    Attributes:
        constants: the arrays that this pass holds.
    """

    constants: Sequence[Any]

    def one_image(self, given: Inputs, rule: ReluRule, free: Free | None = None) -> tuple[_Explain, Coverage]:
        """Return what explains one image, and what was done with each non-linearity; of any size if some are free.

        Raises:
            ModelError: the given images do not tell alike what is a ReLU, or the model holds for one size.
        """
        self.network.check()
        images = [given.rows(slice(row, row + 1)).map(jnp.asarray) for row in range(min(given.count, _JUDGED))]
        image = images[0]
        if len({Recorder(self.setup).gates(one, rule) for one in images}) > 1:
            raise unsettled("a value that some of them show to be one, and others don't,")
        made = self.prepared(image, (rule,), undo_head=self.setup.undo_head)
        self.constants = made.constants
        if free is not None:
            made = self._of_any_size(image, rule, free, made)

        def explain(leaves: Sequence[jax.Array]) -> _Passed:
            explained = [leaf for leaf in leaves if self.is_floating(leaf)]
            others = [leaf for leaf in leaves if not self.is_floating(leaf)]
            output, scored, inside, (pullback,) = made.forward(made.constants, explained, others)
            return _Passed(output, scored, inside, lambda seed: made.backward(pullback, seed))

        return explain, made.coverages[0]

    def _of_any_size(self, image: Inputs, rule: ReluRule, free: Free, made: Prepared) -> Prepared:
        """Return the same for images whose sizes are free, by what was found of the one."""
        begins_inside = self.begins_inside
        found = self._program(self._trace(image, begins_inside=begins_inside), image, begins_inside=begins_inside)
        self._analyse(found, (rule,), image)
        try:
            traced = self._trace(free.specs, begins_inside=begins_inside)
        except GuidedBackpropError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise of_one_size(f"what cannot be traced so ({reason:.200})") from error
        program = self._program(traced, free.specs, begins_inside=begins_inside)
        facts = Facts(program)
        facts.find_relus(program, self.setup.vouch)
        mark_activations(program, facts)
        carry_over(found, program)
        head, coverages = covered(program, (rule,), undo_head=self.setup.undo_head)
        if coverages != made.coverages:
            raise of_one_size(f"one with {coverages[0]} instead of {made.coverages[0]}")
        spread_strides(program)
        forward, backward = passes(program, head, (rule,))
        return replace(made, constants=program.constants, forward=forward, backward=backward, coverages=coverages)

    def gates(self, image: Inputs, rule: ReluRule) -> Hashable:
        """Return where the program of one image has ReLUs that are known by its values, in a new recorder."""
        begins_inside = self.begins_inside
        program = self._program(self._trace(image, begins_inside=begins_inside), image, begins_inside=begins_inside)
        self._analyse(program, (rule,), image)
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
        self._recorder, self._plan = Recorder(setup), plan
        recorder, first = self._recorder, given.rows(slice(0, 1)).map(jnp.asarray)
        arrays, self._free = first.arrays, self._free_of(first)
        self._explain, self.coverage = recorder.one_image(given, plan.rule, self._free)
        self._at_layer = self._explain
        if plan.cam is not None and plan.cam.is_factor:
            inner = Recorder(replace(setup, input_layer=plan.cam.layer))
            self._at_layer = inner.one_image(given, PLAIN, self._free)[0]
        specs = arrays if self._free is None else self._free.specs.arrays
        output, inside = jax.eval_shape(self._forward, *specs)
        self._floats = [recorder.is_floating(array) for array in arrays]
        self._mapped = [
            is_one and (plan.cam is None or recorder.has_positions(array, inside[0].ndim))
            for array, is_one in zip(arrays, self._floats, strict=True)
        ]
        names, self.outputs = port_names(given, self._mapped)
        if plan.photos is not None:
            # What no photo can be is said.
            plan.photos.pixels(np.asarray(arrays[0]))
            self._dtype, names = arrays[0].dtype, ["photos"]
        self.inputs = (*names, "labels", *([] if plan.noise is None else noise_names(names, self._floats)))
        self._program = self._stored(arrays, output)

    def _free_of(self, first: Inputs) -> Free | None:
        """Return which sizes are free."""
        if self._plan.sizes == "fixed":
            return None
        free = Free(first, [self._recorder.axes_of_positions(array) for array in first.arrays])
        self.least = free.least
        return free

    def _forward(self, *leaves: jax.Array) -> tuple[jax.Array, Sequence[jax.Array]]:
        return self._explain(leaves).output, self._at_layer(leaves).inside

    def _stored(self, arrays: Sequence[jax.Array], output: Any) -> Any:
        """Return the program for any number of such images."""
        plan = self._plan
        shapes = [array.shape[1:] for array in arrays] if self._free is None else self._free.shapes
        told = (output.shape[1:], output.dtype) if plan.labels == "weights" else ((), jnp.int32)
        given = [*zip(shapes, [array.dtype for array in arrays], strict=True), told]
        if plan.photos is not None:
            given[0] = plan.photos.shape(shapes[0]), jnp.dtype(jnp.uint8)
        if plan.noise is not None:
            noisy = [(array, shape) for array, shape in zip(arrays, shapes, strict=True) if self._is_float(array)]
            given += [((plan.noise.samples, *shape), array.dtype) for array, shape in noisy]
        count = export.symbolic_shape(COUNT)[0] if self._free is None else self._free.count
        specs = [_spec((count, *shape), dtype) for shape, dtype in given]
        try:
            return export.export(jax.jit(jax.vmap(self._of_image)), platforms=_PLATFORMS)(*specs)
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise ModelError(
                "a program must be stored whole; received "
                f"{type(error).__name__}: {' '.join(str(error).split()):.200}. Take out what calls Python"
                f"{'.' if self._free is None else ', or leave sizes out.'}"
            ) from error

    def _of_image(self, *arrays: jax.Array) -> list[jax.Array]:
        images, noise, photos = len(self._mapped), self._plan.noise, self._plan.photos
        leaves, label, drawn = [leaf[None] for leaf in arrays[:images]], arrays[images], arrays[images + 1 :]
        if photos is not None:
            leaves = [_scaled(leaves[0], photos, self._dtype)]
        passed = self._explain(leaves)
        seed = self._seed(passed.output, passed.scored, label)
        if noise is None:
            maps = self._maps(leaves, passed, seed)
        else:
            maps = [_moment(noise.form, copies) for copies in self._of_copies(leaves, drawn, noise, seed)]
        maps = [self._reduced(one)[0] for one in maps]
        numbers = [array for array in (passed.output, *maps, *arrays) if self._is_float(array)]
        is_finite = jnp.stack([jnp.isfinite(array).all() for array in numbers]).all()
        if self._plan.labels == "ids" and passed.output.ndim > 1:
            is_finite &= (label >= TOP) & (label < passed.output.shape[self._class_axis(passed.output)])
        return [passed.output[0], *maps, (seed * passed.scored).sum(), is_finite]

    def _reduced(self, attribution: jax.Array) -> jax.Array:
        """Return a map with its channels reduced: of the pixels of a photo, if the program takes photos."""
        photos, cam, axis = self._plan.photos, self._plan.cam, self._recorder.channel_axis(attribution)
        if photos is not None and (cam is None or cam.is_factor):
            last = attribution if photos.channels_last else jnp.moveaxis(attribution, 1, -1)
            attribution, axis = last * jnp.asarray(photos.slopes, last.dtype), -1
        reduced: jax.Array = self._recorder.reduce(attribution, self._plan.reducer, axis)
        return reduced

    def _of_copies(
        self, leaves: Sequence[jax.Array], drawn: Sequence[jax.Array], noise: Noise, seed: jax.Array
    ) -> list[jax.Array]:
        """Return the maps of noisy copies of one image, by what weighs the outputs of that."""

        def of_one(*drawn: jax.Array) -> list[jax.Array]:
            left = iter(drawn)
            noisy = [
                leaf + next(left) * (jnp.ptp(leaf) * noise.share) if is_float else leaf
                for leaf, is_float in zip(leaves, self._floats, strict=True)
            ]
            return self._maps(noisy, self._explain(noisy), seed)

        copies: list[jax.Array] = jax.vmap(of_one)(*drawn)
        return copies

    def _maps(self, leaves: Sequence[jax.Array], passed: _Passed, seed: jax.Array) -> list[jax.Array]:
        """Return the maps of one image, with all channels."""
        plan = self._plan
        if plan.cam is None:
            gradients, images = passed.derive(seed), compress(leaves, self._floats)
            return [g * x for g, x in zip(gradients, images, strict=True)] if plan.times_images else list(gradients)
        inside = self._at_layer(leaves) if plan.cam.is_factor else passed
        positive = _positive(inside, seed, self._recorder.channel_axis(inside.inside[0]) or 1)
        fitted = [
            _fitted(positive, leaf, plan.cam, self._recorder.channel_axis(leaf) or 1)
            for leaf in compress(leaves, self._mapped)
        ]
        if not plan.cam.is_factor:
            return fitted
        mapped = compress(passed.derive(seed), compress(self._mapped, self._floats))
        return [g * cam for g, cam in zip(mapped, fitted, strict=True)]

    def _is_float(self, array: jax.Array) -> bool:
        return self._recorder.is_floating(array)

    def _seed(self, output: jax.Array, scored: jax.Array, label: jax.Array) -> jax.Array:
        """Return how much each output weighs: as the label says, or 1 for a class, at all its positions."""
        is_told = self._plan.labels == "weights"
        seed = label[None] if is_told else of_classes(output, label[None], self._class_axis(output))
        return seed.astype(scored.dtype)

    def _class_axis(self, output: jax.Array) -> int:
        return self._recorder.channel_axis(output) or 1

    def digest(self) -> str | None:
        known = [one for one in self._recorder.constants if not jnp.issubdtype(one.dtype, jax.dtypes.extended)]
        return digest_of((str(place), one) for place, one in enumerate(known))

    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        return _called(self._program, inputs, self.outputs)

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the program, and beside it what it says of itself, which has no place in it."""
        path.write_bytes(self._program.serialize())
        path.with_suffix(".json").write_text(json.dumps(dict(metadata), indent=1))


def _spec(shape: Sequence[Any], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _scaled(pixels: jax.Array, photos: Photos, dtype: Any) -> jax.Array:
    """Return photos ``(N, H, W, 3)`` as images."""
    mean, std = jnp.asarray(photos.mean, dtype), jnp.asarray(photos.std, dtype)
    images = (pixels.astype(dtype) * jnp.asarray(photos.scale, dtype) - mean) / std
    return images if photos.channels_last else jnp.moveaxis(images, -1, 1)


def _positive(passed: _Passed, seed: jax.Array, axis: int) -> jax.Array:
    """Return a class activation map at the size of its layer, ``(1, ...)``."""
    (g,) = passed.derive(seed)
    weights = g.mean([other for other in range(1, g.ndim) if other != axis], keepdims=True)
    return jax.nn.relu((weights * passed.inside[0]).sum(axis))


def _fitted(positive: jax.Array, image: jax.Array, cam: Cam, axis: int) -> jax.Array:
    """Return it at the size of an image, with one channel."""
    for place, after in enumerate((size for other, size in enumerate(image.shape) if other not in (0, axis)), start=1):
        before: Any = positive.shape[place]
        if isinstance(before, int) and isinstance(after, int):
            matrix = jnp.asarray(cam.matrix(before, after).T, image.dtype)
        else:
            matrix = between(before, after, image.dtype, is_linear=cam.is_linear)
        along = jnp.matmul(jnp.moveaxis(positive, place, -1), matrix, precision="highest")
        positive = jnp.moveaxis(along, -1, place)
    return jnp.expand_dims(positive, axis)


def _moment(form: str, maps: jax.Array) -> jax.Array:
    """Return what the maps of noisy copies are together."""
    match form:
        case "absolute":
            return jnp.abs(maps).mean(0)
        case "squared":
            return (maps * maps).mean(0)
        case "variance":
            return maps.var(0)
    return maps.mean(0)


def _called(program: Any, inputs: Sequence[NumpyArray], outputs: Sequence[str]) -> dict[str, NumpyArray]:
    arrays = [jnp.asarray(array, aval.dtype) for array, aval in zip(inputs, program.in_avals, strict=True)]
    return {name: np.asarray(result) for name, result in zip(outputs, program.call(*arrays), strict=True)}
