"""Whether a graph explains as its method does: both are run on the same images, and all they give is compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from guided_backprop.arrays import Array, Images, Inputs, Labels, Model, NumpyArray, Tensor, as_numpy
from guided_backprop.errors import GuidedBackpropError, ModelError
from guided_backprop.explanations import Explanations
from guided_backprop.export.agreement import (
    DOUBLE,
    FEW,
    MOST,
    ROUNDING,
    SINGLE,
    by_name,
    correlation,
    counts,
    difference,
    images_of,
    of_other_sizes,
)
from guided_backprop.export.engine import Engine, Runner
from guided_backprop.export.graph import Graph, Ports
from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import TOP, WEIGHTS, Plan
from guided_backprop.rules import ReluRule
from guided_backprop.subject import Subject

# How often images are rounded otherwise to find ties, and by what multiple of what they show a map may differ: an
# engine's rounding is not that of the draws.
_DRAWS, _TIES = 8, 3


class Exportable(Protocol):
    """What is asked of a method that is exported: see :class:`guided_backprop.methods.explainer.Explainer`."""

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def subject(self) -> Subject:
        """The model, and what is said about it."""

    @property
    def plan(self) -> Plan:
        """What a graph of it computes."""

    def explain(self, images: Images, labels: Labels = None, *, progress: bool | None = None) -> Explanations:
        """Explain images."""

    def around(self, model: Model) -> Self:
        """Return the same for a copy of the model."""

    def as_it_is(self) -> Self:
        """Return the same, without what was compiled of it."""


class Method(Exportable, Protocol):
    """What is asked of a method that is compiled: see :class:`guided_backprop.methods.method.Method`."""

    subject: Subject
    rule: ReluRule
    reducer: Any
    compiled: Any


#: Explains images by several methods.
Explain = Callable[[Images, Labels, Sequence[Any]], Sequence[Explanations]]


def one_by_one(images: Images, labels: Labels, methods: Sequence[Any]) -> Sequence[Explanations]:
    """Explain images by one method after the other."""
    return [method.explain(images, labels, progress=False) for method in methods]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, and what is wanted of them.

    Attributes:
        images: as NumPy arrays.
        own: as the method is given them.
        told: what a graph is given beside them.
        labels: the labels, as the method is told.
        photos: how the images were photos, if a graph is given these.
    """

    images: Inputs
    own: Inputs
    told: Sequence[NumpyArray]
    labels: Labels
    photos: Photos | None = None

    @cached_property
    def pixels(self) -> NumpyArray:
        """The photos that the images were."""
        assert self.photos is not None
        return self.photos.pixels(self.images.arrays[0])

    def first(self, count: int) -> "Batch":
        """Return the first images alone."""
        rows = slice(count)
        labels = None if self.labels is None else as_numpy(self.labels)[rows]
        told = [array[rows] for array in self.told]
        return replace(self, images=self.images.rows(rows), own=self.own.rows(rows), told=told, labels=labels)

    @property
    def told_of(self) -> str:
        """What is said of it in an error."""
        sizes = " and ".join("x".join(map(str, array.shape[1:])) for array in self.images.arrays)
        return f"{self.images.count} images of {sizes}"

    @cached_property
    def doubled(self) -> Inputs:
        """The images in double precision."""
        if self.photos is not None:
            return self.images.like([self.photos.images(self.pixels, np.float64)])
        return self.images.map(lambda array: array.astype(np.float64) if array.dtype.kind == "f" else array)

    @cached_property
    def given(self) -> list[NumpyArray]:
        """What a graph is given."""
        return [*(self.images.arrays if self.photos is None else [self.pixels]), *self.told]

    @cached_property
    def given_in_double(self) -> list[NumpyArray]:
        """The same in double precision."""
        return [*(self.doubled.arrays if self.photos is None else [self.pixels]), *self.told]


class Shown:
    """What some methods make of images: asked for method by method, explained together, and each batch once.

    Args:
        methods: the methods.
        explain: explains by several of them.
    """

    def __init__(self, methods: Sequence[Exportable], explain: Explain) -> None:
        self._methods, self._explain = methods, explain
        self._known: list[tuple[Inputs, Sequence[Explanations]]] = []

    def __call__(self, place: int, images: Inputs, labels: Labels) -> Explanations:
        """Return what the method at a place makes of images."""
        for given, explained in self._known:
            if given is images:
                return explained[place]
        explained = self._explain(images.images, labels, self._methods)
        self._known.append((images, explained))
        return explained[place]


@dataclass(frozen=True)
class Trial:
    """What a graph is compared with.

    Attributes:
        method: the user's.
        shown: what it and those that are exported with it make of images.
        precise: the same for copies of the model in double precision, or None.
        place: which of them it is.
        inputs: the images that were given.
        explained: what the method made of them.
        plan: what the graph computes.
        may_round: whether maps may differ where rounding decides: it is known that the graph computes what it must.
        cause: returns what of the graph depends on its precision, in words; None if nothing does.
    """

    method: Exportable
    shown: Shown
    precise: Shown | None
    place: int
    inputs: Inputs
    explained: Explanations
    plan: Plan
    may_round: bool
    cause: Callable[[], str | None] = lambda: None

    def batches(self, turns: Sequence[int], least: Sequence[Sequence[int]] = ()) -> list[Batch]:
        """Return images and labels for as many images as a graph is tried for, and of other sizes if it takes them."""
        # Of noisy copies the model sees several times as many.
        copies = 1 if self.plan.noise is None else self.plan.noise.samples
        tried = [
            self.batch(count, is_of_top=count <= self.inputs.count)
            for count in counts(self.inputs.count, turns, copies)
        ]
        if not least:
            return tried
        backend = self.method.subject.backend(self.inputs)
        axes = [backend.axes_of_positions(array) for array in self.inputs.arrays]
        others = of_other_sizes(self.inputs, axes, least)
        return [*tried, *(self.batch(one.count, is_of_top=True, inputs=one) for one in others)]

    def batch(self, count: int, *, is_of_top: bool, inputs: Inputs | None = None) -> Batch:
        """Return so many images, of those that were given or of others; and labels: their top classes, or others."""
        photos = self.plan.photos
        images = images_of(inputs or self.inputs, count, -2 if photos is not None and photos.channels_last else -1)
        told, labels = self._wanted(count, is_of_top=is_of_top)
        noise = self.plan.noise
        # Of the kind that was given: a function does not say itself which framework's it is.
        backend = self.method.subject.backend(self.inputs)
        if photos is not None:
            # What was stored in between is rounded to whole pixels.
            images = images.map(lambda array: photos.images(photos.pixels(array), np.float32))
        # What was explained when it was given is not explained once more.
        is_given = labels is None and inputs is None and photos is None and count == self.inputs.count
        own = self.inputs if is_given else images.map(backend.from_numpy, self.inputs)
        return Batch(images, own, [*told, *([] if noise is None else noise.drawn(images))], labels, self.plan.photos)

    def _wanted(self, count: int, *, is_of_top: bool) -> tuple[list[NumpyArray], Labels]:
        """Return labels for so many images, as a graph and as a method is told."""
        outputs = self.explained.outputs
        weights = np.random.default_rng(count).normal(size=(count, *outputs.shape[1:]))
        if self.plan.labels == "weights":
            return [weights], weights
        ids = np.full(count, TOP if is_of_top else WEIGHTS)
        if self.plan.labels == "both":
            return [ids, weights], None if is_of_top else weights
        axis = self.method.subject.backend(self.inputs).channel_axis(outputs) or 1
        classes = np.arange(count) % (1 if outputs.ndim == 1 else outputs.shape[axis])
        return ([ids], None) if is_of_top else ([classes], classes)

    def compare(self, engine: Runner, graph: Ports, batches: Sequence[Batch]) -> float:
        """Return by how much of its norm a map differs at most in an engine.

        Raises:
            ModelError: by more than rounding can explain.
        """
        largest = 0.0
        for batch in batches:
            try:
                results = engine.run(by_name(graph.inputs, batch.given))
            except GuidedBackpropError:
                raise
            except Exception as error:
                raise _differs(f"{type(error).__name__} for {batch.told_of}", engine.name) from error
            if not results["is_finite"].all():
                raise _differs("NaN or infinity", engine.name)
            wanted = self.told_by(self.shown(self.place, batch.own, batch.labels))
            found = difference([results[name] for name in graph.outputs[:-1]], wanted)
            if not found <= SINGLE and not self._is_rounding(found, batch, wanted):
                told = f"a difference of {found:.2g} of the norm for {batch.told_of}"
                raise _differs(told, engine.name, self.cause())
            largest = max(largest, found)
        return largest

    def told_by(self, explained: Explanations) -> list[NumpyArray]:
        """Return outputs, maps and scores as the graph gives them."""
        maps = [as_numpy(array) for array in Inputs.of(explained.attribution).arrays if array is not None]
        photos, backend = self.plan.photos, self.method.subject.backend(self.inputs)
        if photos is not None and (self.plan.cam is None or self.plan.cam.is_factor):
            maps = [as_numpy(backend.reduce(photos.of_pixels(one), self.plan.reducer, -1)) for one in maps]
        return [explained.outputs, *maps, explained.scores]

    def _is_rounding(self, found: float, batch: Batch, wanted: Sequence[NumpyArray]) -> bool:
        """Tell whether a map of the method's own differs as much where rounding decides.

        A ReLU of these images that is at a tie up to rounding opens in one engine and not in another, and both are
        right. Images that differ by no more than rounding show it: their maps differ by as much.
        """
        if not self.may_round or not found <= MOST:
            return False
        generator, backend = np.random.default_rng(0), self.method.subject.backend(self.inputs)

        def rounded(array: NumpyArray, like: Array) -> Tensor:
            if array.dtype.kind == "f":
                array = np.asarray(array * (1 + ROUNDING * generator.normal(size=array.shape)), array.dtype)
            return backend.from_numpy(array, like)

        for _ in range(_DRAWS):
            moved = batch.images.map(rounded, self.inputs)
            maps = self.told_by(self.method.explain(moved.images, batch.labels, progress=False))
            if found <= _TIES * difference(maps, wanted):
                return True
        return False

    def measure(self, engine: Engine, graph: Graph, batches: Sequence[Batch]) -> tuple[float, float]:
        """Return by how much of its norm a map differs at most, and how an image's maps correlate at least."""
        largest, least = 0.0, 1.0
        for batch in batches:
            results = engine.run(by_name(graph.inputs, batch.given))
            found = [results[name] for name in graph.outputs[:-1]]
            wanted = self.told_by(self.shown(self.place, batch.own, batch.labels))
            largest = max(largest, difference(found, wanted))
            least = min(least, correlation(found[1:-1], wanted[1:-1]))
        return largest, least


def compared(graph: Graph, trial: Trial, batches: Sequence[Batch]) -> float | None:
    """Compare the graph itself, in double precision; None where the model has none.

    Of more images it is compared for the first few: what it does for as many is compared in an engine.

    Raises:
        ModelError: its maps are not the method's.
    """
    if trial.precise is None:
        return None
    largest = 0.0
    most = inf if trial.plan.noise is not None else max([FEW, *graph.turns])
    few = [one if one.images.count <= most else one.first(int(most)) for one in batches]
    for batch in {one.told_of: one for one in few}.values():
        try:
            results = graph.run(batch.given_in_double)
        except Exception as error:
            raise _differs(f"{type(error).__name__} for {batch.told_of}", "double precision") from error
        wanted = trial.told_by(trial.precise(trial.place, batch.doubled, batch.labels))
        found = difference([results[name] for name in graph.outputs[:-1]], wanted)
        if not found <= DOUBLE:
            raise _differs(f"a difference of {found:.2g} of the norm for {batch.told_of}", "double precision")
        largest = max(largest, found)
    return largest


def are_apart(graph: Graph, batches: Sequence[Batch]) -> bool:
    """Tell whether what a graph in double precision gives for an image depends on that image, and nothing beside it.

    What reads another one shows it where that is no number, or, as a comparison does, where it is far from what it was.
    """
    batch = next(one for one in batches if one.images.count >= FEW).first(FEW)
    wanted = graph.run(batch.given_in_double)
    for factors, moved in (([nan, 1, 1], 0), ([1, nan, 1], 0), ([1, 1, nan], 0), ([-1e3, 1, 1e3], 1)):

        def changed(array: NumpyArray, factors: Sequence[float] = factors, moved: int = moved) -> NumpyArray:
            return np.roll((array.T * factors).T if array.dtype.kind == "f" else array, moved, axis=0)

        kept = np.equal(factors, 1)
        found = graph.run([*map(changed, batch.doubled.arrays), *(np.roll(array, moved, 0) for array in batch.told)])
        now = [np.roll(found[name], -moved, 0)[kept] for name in found]
        if not difference(now, [wanted[name][kept] for name in found]) <= DOUBLE:
            return False
    return True


def opened(path: Path, outputs: Sequence[str], engine: type[Engine], threads: int = 0, *fixed: Any) -> Engine:
    """Return an engine that has a file open.

    Args:
        path: the file.
        outputs: what its results are called.
        engine: which engine.
        threads: how many threads one call uses.
        fixed: for one that favours a number of images, which.

    Raises:
        ModelError: it cannot run it.
        MissingExtraError: it is not installed.
    """
    try:
        return engine(path, outputs, threads, *fixed)
    except GuidedBackpropError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{engine.__name__} must be able to run the graph; received {reason:.200}. Export a part of the model."
        ) from error


def _differs(what: str, where: str, cause: str | None = None) -> ModelError:
    why = "" if cause is None else f", behind {cause}"
    advice = "export a part of the model, and see from where on it differs."
    if cause is not None:
        advice = "say a number that holds in any precision, as eps=1e-6, and take casts out."
    return ModelError(
        f"a graph must give the maps that explain() gives; received {what} in {where}{why}. Nothing was written: "
        f"{advice}"
    )
