"""From methods to graphs: explained, and recorded, in double precision where that can be."""

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np

from guided_backprop.arrays import Inputs, Model
from guided_backprop.backends.base import Backend
from guided_backprop.coverage import Coverage
from guided_backprop.digest import digest
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, OptionError
from guided_backprop.export.graph import Graph
from guided_backprop.export.metadata import Metadata
from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import LabelKind, Plan, Sizes
from guided_backprop.methods.trial import Explain, Exportable, Shown, Trial, one_by_one
from guided_backprop.rules import Rectified
from guided_backprop.subject import Subject

_GRAPHS: Final = {
    "jax": ("guided_backprop.backends.jax.export", "JaxGraph"),
    "tensorflow": ("guided_backprop.backends.tensorflow.export", "TensorFlowGraph"),
}
#: Of how many images a graph is recorded, or compared again, where they show what all show.
FEW: Final = 2


class _Graphs(NamedTuple):
    """Graphs of one model.

    Attributes:
        graphs: one for each method.
        precise: what the methods make of images in double precision, if the graphs are of that.
        cause: returns what of them depends on their precision, in words; None if nothing does.
    """

    graphs: Sequence[Graph]
    precise: Shown | None
    cause: Callable[[], str | None] = lambda: None


class Recorded(NamedTuple):
    """The graph of a method, what it is compared with, and what it says of itself."""

    graph: Graph
    trial: Trial
    metadata: Metadata


def recorded(
    method: Exportable, inputs: Inputs, labels: LabelKind, *, photos: Photos | None = None, sizes: Sizes = "fixed"
) -> Recorded:
    """Record one method."""
    return recorded_together([method], inputs, labels, photos=photos, sizes=sizes)[0]


def recorded_together(
    methods: Sequence[Exportable],
    inputs: Inputs,
    labels: LabelKind,
    explain: Explain = one_by_one,
    *,
    photos: Photos | None = None,
    sizes: Sizes = "fixed",
) -> list[Recorded]:
    """Record methods of one model.

    Args:
        methods: the methods; several of them if they differ in rule and reducer alone.
        inputs: a batch such as will be explained.
        labels: what the graphs are told to explain.
        explain: explains images by several methods.
        photos: how the photos that the graphs take become images; None for graphs that take images.
        sizes: whether the graphs take images of other sizes.

    Raises:
        OptionError: a method is none that can be a graph.
        ModelError: the model is none.
    """
    if not inputs.count:
        raise ImageError("images to record a graph from must not be empty; received no image. Pass at least one.")
    # What a graph is compared with is the model itself.
    methods = [method.as_it_is() for method in methods]
    plans = [replace(_with(method.plan, labels, photos), sizes=sizes) for method in methods]
    if photos is not None:
        # Channels are reduced after the map is one of pixels.
        methods = [_unreduced(method) for method in methods]
    shown = Shown(methods, explain)
    found = [shown(place, inputs, None) for place in range(len(methods))]
    subject = methods[0].subject
    framework = subject.backend(inputs).framework
    if sizes == "dynamic":
        _require_free(subject.backend(inputs), inputs, plans, found[0].outputs.shape)
    # Of one image alone a trace would not know its axis from others of size 1.
    given = inputs if inputs.count > 1 else inputs.rows(np.zeros(FEW, np.intp))
    if framework in _GRAPHS:
        made = _Graphs(_of_framework(subject, given, plans, framework), None)
    else:
        made = _of_few(methods, given, plans, explain, [explained.coverage for explained in found])
    # What the framework itself stored is what it runs; of another graph double precision has to show that it is right.
    may_round = made.precise is not None or framework in _GRAPHS
    weights, versions = digest(subject.model), {framework: str(sys.modules[framework].__version__)}
    together = []
    for place, (method, plan, graph, explained) in enumerate(zip(methods, plans, made.graphs, found, strict=True)):
        if graph.coverage != explained.coverage:
            # What numbers that are added tell, as of a softsign, is named where a model is looked at first.
            first = method.around(subject.model).explain(inputs.images, progress=False)
            require_alike(graph.coverage, first.coverage)
        trial = Trial(method, shown, made.precise, place, inputs, explained, plan, may_round, made.cause)
        metadata = Metadata(
            method.name, plan.rule.name, subject.name, explained.head, labels, plan.reducer, explained.coverage,
            versions, weights or graph.digest(), layer=_layer(method), least_sizes=graph.least or None,
        )  # fmt: skip
        together.append(Recorded(graph, trial, metadata))
    return together


def require_gradient(method: Exportable, plans: Sequence[Plan], framework: str) -> None:
    """Raise OptionError unless plans are of gradients at images."""
    if not all(plan.is_gradient and plan.photos is None for plan in plans):
        raise OptionError(
            f"a program of {framework} is of a method of one pass, of images; received {method!r:.80}. "
            "Take Saliency, DeconvNet, GuidedBackprop or RectGrad, and no photos."
        )


def _require_free(backend: Backend, inputs: Inputs, plans: Sequence[Plan], output: Sequence[int]) -> None:
    """Raise OptionError where no size can be free."""
    ranking = [plan.rule.name for plan in plans if isinstance(plan.rule, Rectified)]
    if ranking:
        # Which place in the order a percentile is depends on how many values there are.
        raise OptionError(
            f'sizes="dynamic" is for rules that look at each value alone; received {ranking[0]}, which ranks those of '
            'a layer. Leave it out, for sizes="fixed".'
        )
    has_positions = any(backend.axes_of_positions(array) for array in inputs.arrays)
    if not has_positions or (plans[0].labels == "weights" and len(output) > 2):
        shapes = ", ".join(str(tuple(array.shape)) for array in inputs.arrays)
        raise OptionError(
            'sizes="dynamic" is for images with positions, and for labels that have none; received images of shape '
            f"{shapes}, and labels={plans[0].labels!r} for an output of shape {tuple(output)}. Leave it out, for "
            'sizes="fixed".'
        )


def require_alike(found: Coverage, wanted: Coverage) -> None:
    """Raise ModelError unless a graph treats what the method treats."""
    if found != wanted:
        raise ModelError(
            f"a graph must treat what explain() treats; received {found} instead of {wanted}. Export the part of the "
            "model that runs alike each time."
        )


def _with(plan: Plan, labels: LabelKind, photos: Photos | None) -> Plan:
    if photos is not None and (plan.noise is not None or plan.times_images):
        raise OptionError(
            "a graph that takes photos is of gradients or class activation maps; received SmoothGrad or "
            "InputXGradient, which are made of images. Leave photos out."
        )
    return replace(plan, labels=labels, photos=photos)


def _unreduced(method: Exportable) -> Exportable:
    if method.plan.cam is not None and not method.plan.cam.is_factor:
        return method
    other = copy.copy(method)
    vars(other)["reducer"] = None
    return other


def _layer(method: Exportable) -> str | None:
    """Return the name of the layer of a class activation map."""
    if method.plan.cam is None:
        return None
    named = method.around(method.subject.model).plan.cam
    return None if named is None else str(named.layer)


def _of_framework(subject: Subject, inputs: Inputs, plans: Sequence[Plan], framework: str) -> Sequence[Graph]:
    """Return graphs of a framework that records what it runs itself."""
    module, name = _GRAPHS[framework]
    kind: Any = getattr(import_module(module), name)
    return [kind(_plain(subject), inputs, plan) for plan in plans]


def _of_few(
    methods: Sequence[Exportable], inputs: Inputs, plans: Sequence[Plan], explain: Explain, wanted: Sequence[Coverage]
) -> _Graphs:
    """Return the graphs, recorded of a few images where these show what all of them show.

    A graph is the same for any number; to record one takes several runs, in double precision.
    """
    if inputs.count > FEW:
        with suppress(GuidedBackpropError):
            made = _recorded(methods, inputs.rows(slice(FEW)), plans, explain)
            if [graph.coverage for graph in made.graphs] == wanted:
                return made
    return _recorded(methods, inputs, plans, explain)


def _recorded(methods: Sequence[Exportable], inputs: Inputs, plans: Sequence[Plan], explain: Explain) -> _Graphs:
    """Return the graphs, in double precision if the model can be copied to that, with the methods of that copy."""
    subject = methods[0].subject
    backend = subject.backend(inputs)
    recorder: Any = import_module("guided_backprop.backends.torch.export.graph")
    recorder.require_processor(inputs)

    def graphs(model: Model, given: Inputs) -> tuple[Sequence[Any], list[Exportable]]:
        twins = [method.around(model) for method in methods]
        # Of a twin, which names its own layers.
        made = [replace(plan, cam=twin.plan.cam) for plan, twin in zip(plans, twins, strict=True)]
        return recorder.graphs(_plain(twins[0].subject), given, made), twins

    def of_its_own() -> Sequence[Any]:
        alone: Model | None = recorder.copied(subject.model, in_double=False)
        made: Sequence[Any] = (
            recorder.graphs(_plain(subject), inputs, plans) if alone is None else graphs(alone, inputs)[0]
        )
        return made

    precise: Model | None = recorder.copied(subject.model, in_double=True)
    if precise is not None:
        doubled = inputs.map(lambda array: array.double() if hasattr(array, "double") else array.astype(np.float64))
        doubled = inputs.map(lambda array, other: other if backend.is_floating(array) else array, doubled)
        if _explains(methods[0].around(precise), doubled):
            made, twins = graphs(precise, doubled)
            # Kept are its words alone, for the graph holds the weights.
            cause = partial(_cause, [graph.steps() for graph in made], of_its_own)
            return _Graphs(made, Shown(twins, explain), cause)
    return _Graphs(of_its_own(), None)


def _cause(steps: Sequence[Any], of_its_own: Callable[[], Sequence[Any]]) -> str | None:
    """Return what of graphs depends on the precision that they were recorded in."""
    precision: Any = import_module("guided_backprop.backends.torch.export.precision")
    with suppress(GuidedBackpropError):
        for one, other in zip(steps, of_its_own(), strict=True):
            found: str | None = precision.of_precision(one, other.steps())
            if found is not None:
                return found
    return None


def _explains(method: Exportable, inputs: Inputs) -> bool:
    """Tell whether a method explains images: where a model asks for single precision, its double does not."""
    try:
        method.explain(inputs.images, progress=False)
    except GuidedBackpropError:
        return False
    return True


def _plain(subject: Subject) -> Subject:
    """Return a subject that is run as it is: maps are the same."""
    return replace(subject, is_optimized=False, memory=None)
