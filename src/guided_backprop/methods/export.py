"""From a method to a file: explained, recorded, written, run in its engine, and compared map by map."""

import copy
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np

from guided_backprop.arrays import Images, Inputs, Labels, Model, NumpyArray, as_numpy
from guided_backprop.coverage import Coverage
from guided_backprop.digest import digest
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, OptionError, OutputExistsError
from guided_backprop.explanations import Explanations
from guided_backprop.export.agreement import (
    DOUBLE,
    MOST,
    ROUNDING,
    SINGLE,
    by_name,
    counts,
    difference,
    images_of,
)
from guided_backprop.export.engine import Engine
from guided_backprop.export.graph import Graph
from guided_backprop.export.metadata import Metadata
from guided_backprop.export.plan import TOP, WEIGHTS, LabelKind, Plan
from guided_backprop.methods.data import given
from guided_backprop.methods.options import Requirement, require
from guided_backprop.rules import ReluRule
from guided_backprop.subject import Subject


class Method(Protocol):
    """What is asked of a method that is exported: see :class:`guided_backprop.methods.method.Method`."""

    subject: Subject
    rule: ReluRule
    reducer: Any
    compiled: Any

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def is_one_pass(self) -> bool:
        """Whether a map is what one backward pass gives."""

    @property
    def explains_inside(self) -> bool:
        """Whether a layer's output is explained."""

    def explain(self, images: Images, labels: Labels = None, *, progress: bool | None = None) -> Explanations:
        """Explain images."""

    def around(self, model: Model) -> Self:
        """Return the same for a copy of the model."""


# What a file ends in, by framework; a folder has no ending.
_ENDINGS: Final = {"torch": ".onnx", "jax": ".stablehlo", "tensorflow": ""}
_FORMS: Final = {
    "torch": "a file that ends in .onnx",
    "jax": "a file that ends in .stablehlo",
    "tensorflow": "a folder, whose name has no ending",
}
_GRAPHS: Final = {
    "jax": ("guided_backprop.backends.jax.export", "JaxGraph"),
    "tensorflow": ("guided_backprop.backends.tensorflow.export", "TensorFlowGraph"),
}
# How often images are rounded otherwise to find ties, and by what multiple of what they show a map may differ: an
# engine's rounding is not that of the draws.
_DRAWS, _TIES = 8, 3


@dataclass(frozen=True)
class Exported:
    """A file that explains, and how it was compared.

    Attributes:
        path: the file.
        inputs: what its inputs are called: the images, then the labels.
        outputs: what its results are called.
        coverage: what was done with each non-linearity, as in :class:`Explanations`.
        engine: the engine that it was compared in.
        counts: for how many images it was compared.
        difference: by how much of its norm a map differed at most from the method's, in that engine.
        precise_difference: the same of the graph in double precision, run in the framework; None where the model has
            no double precision.

    Example:
        >>> import tempfile, torch
        >>> from guided_backprop import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = GuidedBackprop(model).export(f"{folder}/map.onnx", torch.rand(2, 4))
        >>> exported.outputs, exported.counts, exported.difference < 1e-3
        (('outputs', 'attribution', 'scores', 'is_finite'), [1, 2, 17], True)
    """

    path: Path
    inputs: Sequence[str]
    outputs: Sequence[str]
    coverage: Coverage
    engine: str
    counts: Sequence[int]
    difference: float
    precise_difference: float | None


def export(
    method: Method,
    path: str | os.PathLike[str],
    images: Images,
    *,
    labels: LabelKind = "ids",
    classes: Sequence[str] | None = None,
    preprocessing: str | None = None,
) -> Exported:
    """Write a method and its model to a file; see :meth:`Method.export`."""
    path = Path(path)
    inputs = Inputs.of(given(method.subject, images, None).images)
    framework = method.subject.backend(inputs).framework
    ending = _ENDINGS[framework]
    require(
        Requirement("path", str(path), path.suffix == ending, f"{_FORMS[framework]}, for a model of {framework}",
                    f'Pass "map{ending}".'),
        Requirement("labels", labels, labels in ("ids", "weights"), '"ids" or "weights"', 'Pass "ids".'),
    )  # fmt: skip
    if path.is_dir():
        raise OutputExistsError(
            f"path must not be a folder that exists; received path={str(path)!r}. Choose another name, or remove it."
        )
    graph, trial, metadata = recorded(method, inputs, labels)
    return _written(path, graph, trial, replace(metadata, classes=classes, preprocessing=preprocessing))


def recorded(method: Method, inputs: Inputs, labels: LabelKind) -> "tuple[Graph, Trial, Metadata]":
    """Return the graph of a method, what it is compared with, and what it says of itself."""
    if not method.is_one_pass or method.explains_inside:
        raise OptionError(
            "a graph is of a method of one pass at the images; received "
            f"{method!r:.80}. Take Saliency, DeconvNet, GuidedBackprop or RectGrad."
        )
    method = copy.copy(method)
    # What a graph is compared with is the model itself.
    method.compiled = None
    if not inputs.count:
        raise ImageError("images to record a graph from must not be empty; received no image. Pass at least one.")
    explained = method.explain(inputs.images)
    # Of one image alone a trace would not know its axis from others of size 1.
    few = inputs if inputs.count > 1 else inputs.rows(np.zeros(2, np.intp))
    framework = method.subject.backend(inputs).framework
    graph, twin = _recorded(method, few, Plan(method.rule, method.reducer, labels))
    if graph.coverage != explained.coverage:
        raise ModelError(
            "a graph must treat what explain() treats; received "
            f"{graph.coverage} instead of {explained.coverage}. Export the part of the model that runs alike each time."
        )
    metadata = Metadata(
        method.name, method.rule.name, method.subject.name, explained.head, labels, method.reducer, explained.coverage,
        {framework: str(sys.modules[framework].__version__)}, digest(method.subject.model),
    )  # fmt: skip
    # What the framework itself stored is what it runs; of another graph double precision has to show that it is right.
    may_round = twin is not None or framework in _GRAPHS
    return graph, Trial(method, twin, inputs, explained, labels, may_round), metadata


class _Batch(NamedTuple):
    """Images, and their labels as a graph and as a method is told."""

    images: Inputs
    told: Sequence[NumpyArray]
    labels: Labels


@dataclass(frozen=True)
class Trial:
    """What a graph is compared with.

    Attributes:
        method: the user's.
        precise: the same for a copy of its model in double precision, or None.
        inputs: the images that were given.
        explained: what the method made of them.
        labels: what the graph is told to explain.
        may_round: whether maps may differ where rounding decides: it is known that the graph computes what it must.
    """

    method: Method
    precise: Method | None
    inputs: Inputs
    explained: Explanations
    labels: LabelKind
    may_round: bool

    def batches(self, turns: Sequence[int]) -> list[_Batch]:
        """Return images and labels for as many images as a graph is tried for."""
        tried = counts(self.inputs.count, turns)
        return [_Batch(images_of(self.inputs, count), *self._wanted(count)) for count in tried]

    def _wanted(self, count: int) -> tuple[list[NumpyArray], Labels]:
        """Return labels for so many images, as a graph and as a method is told: of few images their top classes."""
        outputs, is_of_top = self.explained.outputs, count <= self.inputs.count
        weights = np.random.default_rng(count).normal(size=(count, *outputs.shape[1:]))
        if self.labels == "weights":
            return [weights], weights
        ids = np.full(count, TOP if is_of_top else WEIGHTS)
        if self.labels == "both":
            return [ids, weights], None if is_of_top else weights
        axis = self.method.subject.backend(self.inputs).channel_axis(outputs) or 1
        classes = np.arange(count) % (1 if outputs.ndim == 1 else outputs.shape[axis])
        return ([ids], None) if is_of_top else ([classes], classes)

    def compare(self, engine: Engine, graph: Graph, batches: Sequence[_Batch]) -> float:
        """Return by how much of its norm a map differs at most in an engine.

        Raises:
            ModelError: by more than rounding can explain.
        """
        largest = 0.0
        for images, told, labels in batches:
            try:
                results = engine.run(by_name(graph.inputs, [*images.arrays, *told]))
            except Exception as error:
                raise _differs(f"{type(error).__name__} for {images.count} images", engine.name) from error
            if not results["is_finite"].all():
                raise _differs("NaN or infinity", engine.name)
            found = difference([results[name] for name in graph.outputs[:-1]], self.maps(self.method, images, labels))
            if not found <= SINGLE and not found <= self.rounding(images, labels):
                raise _differs(f"a difference of {found:.2g} of the norm for {images.count} images", engine.name)
            largest = max(largest, found)
        return largest

    def maps(self, method: Method, images: Inputs, labels: Labels) -> list[NumpyArray]:
        """Return outputs, maps and scores as the method has them."""
        if method is self.method:
            # Of the kind that was given: a function does not say itself which framework's it is.
            backend = method.subject.backend(self.inputs)
            images = images.map(lambda array, like: backend.from_numpy(as_numpy(array), like), self.inputs)
        explained = method.explain(images.images, labels, progress=False)
        maps = [as_numpy(array) for array in Inputs.of(explained.attribution).arrays if array is not None]
        return [explained.outputs, *maps, explained.scores]

    def rounding(self, images: Inputs, labels: Labels) -> float:
        """Return by how much of its norm a map of the method's own differs where rounding decides.

        A ReLU of these images that is at a tie up to rounding opens in one engine and not in another, and both are
        right. Images that differ by no more than rounding show it: their maps differ by as much.
        """
        if not self.may_round:
            return 0.0
        generator, wanted = np.random.default_rng(0), self.maps(self.method, images, labels)

        def rounded(array: NumpyArray) -> NumpyArray:
            if array.dtype.kind != "f":
                return array
            return np.asarray(array * (1 + ROUNDING * generator.normal(size=array.shape)), array.dtype)

        moved = (self.maps(self.method, images.map(rounded), labels) for _ in range(_DRAWS))
        return min(_TIES * max(difference(maps, wanted) for maps in moved), MOST)


def _recorded(method: Method, inputs: Inputs, plan: Plan) -> tuple[Graph, Method | None]:
    """Return the graph, in double precision if the model can be copied to that, with the method of that copy."""
    backend = method.subject.backend(inputs)
    if backend.framework in _GRAPHS:
        module, name = _GRAPHS[backend.framework]
        graph: Graph = getattr(import_module(module), name)(_plain(method.subject), inputs, plan)
        return graph, None
    recorder: Any = import_module("guided_backprop.backends.torch.export.graph")
    precise: Model | None = recorder.copied(method.subject.model, in_double=True)
    if precise is not None:
        twin = method.around(precise)
        doubled = inputs.map(lambda array: array.double() if hasattr(array, "double") else array.astype(np.float64))
        doubled = inputs.map(lambda array, other: other if backend.is_floating(array) else array, doubled)
        if _explains(twin, doubled):
            return recorder.TorchGraph(_plain(twin.subject), doubled, plan), twin
    alone: Model | None = recorder.copied(method.subject.model, in_double=False)
    recorded = method if alone is None else method.around(alone)
    return recorder.TorchGraph(_plain(recorded.subject), inputs, plan), None


def _explains(method: Method, inputs: Inputs) -> bool:
    """Tell whether a method explains images: where a model asks for single precision, its double does not."""
    try:
        method.explain(inputs.images, progress=False)
    except GuidedBackpropError:
        return False
    return True


def _plain(subject: Subject) -> Subject:
    """Return a subject that is run as it is: maps are the same."""
    return replace(subject, is_optimized=False, memory=None)


def _written(path: Path, graph: Graph, trial: Trial, metadata: Metadata) -> Exported:
    """Write the file where nobody looks, compare it, and put it at its place."""
    batches = trial.batches(graph.turns)
    precise = compared(graph, trial, batches)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".guided_backprop_") as folder:
        draft = Path(folder) / path.name
        graph.write(draft, metadata.texts())
        engine = opened(draft, graph.outputs, graph.engine)
        largest = trial.compare(engine, graph, batches)
        versions = {**metadata.versions, **dict([engine.name.split(" ", 1)])}
        graph.write(draft, replace(metadata, versions=versions, difference=largest, precise_difference=precise).texts())
        for file in Path(folder).iterdir():
            file.replace(path.with_name(file.name))
    tried = [batch.images.count for batch in batches]
    return Exported(path, graph.inputs, graph.outputs, graph.coverage, engine.name, tried, largest, precise)


def compared(graph: Graph, trial: Trial, batches: Sequence[_Batch]) -> float | None:
    """Compare the graph itself, in double precision; None where the model has none.

    Raises:
        ModelError: its maps are not the method's.
    """
    if trial.precise is None:
        return None
    largest = 0.0
    for images, told, labels in batches:
        doubled = images.map(lambda array: array.astype(np.float64) if array.dtype.kind == "f" else array)
        results = graph.run([*doubled.arrays, *told])
        found = difference([results[name] for name in graph.outputs[:-1]], trial.maps(trial.precise, doubled, labels))
        if not found <= DOUBLE:
            raise _differs(f"a difference of {found:.2g} of the norm for {images.count} images", "double precision")
        largest = max(largest, found)
    return largest


def opened(path: Path, outputs: Sequence[str], engine: type[Engine], threads: int = 0) -> Engine:
    """Return an engine that has a file open.

    Raises:
        ModelError: it cannot run it.
        MissingExtraError: it is not installed.
    """
    try:
        return engine(path, outputs, threads)
    except GuidedBackpropError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{engine.__name__} must be able to run the graph; received {reason:.200}. Export a part of the model."
        ) from error


def _differs(what: str, where: str) -> ModelError:
    return ModelError(
        f"a graph must give the maps that explain() gives; received {what} in {where}. Nothing was written: export a "
        "part of the model, and see from where on it differs."
    )
