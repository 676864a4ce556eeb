"""An explanation as a graph of PyTorch's operations: made from a model and a plan, run, and written."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch.fx import GraphModule

from guided_backprop.arrays import Inputs, Model, NumpyArray, as_numpy
from guided_backprop.backends.base import Setup
from guided_backprop.backends.torch.export.conditions import bounded, least_of, turns_of
from guided_backprop.backends.torch.export.maps import cams, copies, of_pixels, put_together, repeated, scaled
from guided_backprop.backends.torch.export.precision import Step, steps_of
from guided_backprop.backends.torch.export.program import PROGRAM, Program, store
from guided_backprop.backends.torch.export.simplify import part_of
from guided_backprop.backends.torch.export.trace import Free, Passed, Recorder, Trace, traced
from guided_backprop.backends.torch.export.words import WORDS
from guided_backprop.backends.torch.export.writer import Writer
from guided_backprop.backends.torch.model.images import as_tensor
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError
from guided_backprop.export.engine import Engine, OnnxRuntime
from guided_backprop.export.graph import Graph
from guided_backprop.export.plan import TOP, WEIGHTS, Cam, Plan, noise_names, port_names
from guided_backprop.rules import PLAIN

_LARGEST: Final = torch.finfo(torch.float32).max


def require_processor(inputs: Inputs) -> None:
    """Raise ImageError for images that lie elsewhere: a graph is compared with what the processor computes."""
    devices = [as_tensor(array).device for array in inputs.arrays]
    elsewhere = [str(device) for device in devices if device.type != "cpu"]
    if elsewhere:
        raise ImageError(
            f"images to record a graph from must be on the processor, as the model; received some on {elsewhere[0]}. "
            "Pass images.cpu(), and export model.cpu()."
        )


def copied(model: Model, *, in_double: bool) -> Model | None:
    """Return a private copy of a model, in double precision if that is asked for; None if there can be none.

    What a model keeps of its last run is of no use where that was recorded.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    try:
        private = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return _doubled(private) if in_double else private
    except Exception:
        # What cannot be copied is recorded as it is.
        return None


def _doubled(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model in double precision, which adds what it added: a norm that is not told takes what its kind has."""
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm) and module.eps is None and module.weight is not None:
            module.eps = torch.finfo(module.weight.dtype).eps
    return model.double()


class Asked(NamedTuple):
    """What a model asked of sizes.

    Attributes:
        turns: the numbers of images at which it may do something else.
        least: of each input of images the least sizes, where any are taken.
    """

    turns: Sequence[int]
    least: Sequence[Sequence[int]]


class _Ports(NamedTuple):
    """What a graph's inputs and its outputs are called, and what it was recorded with, of which sizes are free."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    examples: Sequence[torch.Tensor]
    free: Sequence[Mapping[int, Free]]


class TorchGraph(Graph):
    """The graph of one method in PyTorch, of those that were recorded together.

    Args:
        module: its graph.
        ports: what its inputs and its outputs are called, and what it was recorded with.
        coverage: what was done with each non-linearity.
        asked: for how many images, and from which sizes on, it does the same.
        run: runs all that were recorded together, and returns the results of this one.
    """

    engine = OnnxRuntime

    def __init__(
        self,
        module: GraphModule,
        ports: _Ports,
        coverage: Coverage,
        asked: Asked,
        run: Callable[[Sequence[NumpyArray]], Sequence[NumpyArray]],
    ) -> None:
        self._module, self._run = module, run
        self.inputs, self.outputs, self._examples, self._free = ports
        self.coverage, (self.turns, self.least) = coverage, asked

    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        return dict(zip(self.outputs, self._run(inputs), strict=True))

    def steps(self) -> Sequence[Step]:
        """Return what it is made of."""
        return steps_of(self._module)

    def opens(self, path: Path) -> type[Engine]:
        return Program if path.suffix == PROGRAM else self.engine

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        if path.suffix == PROGRAM:
            store(self._module, self._examples, path, metadata, self._named())
        else:
            self._write(path, metadata, is_half=False)

    def _named(self) -> list[dict[int, tuple[str, int]]]:
        """Return for each example what the sizes of its free axes are called, and the least that they may be."""
        least = {
            size: one
            for axes, sizes in zip(self._free, self.least, strict=False)
            for size, one in zip([axes[axis] for axis in sorted(axes)], sizes, strict=True)
        }
        return [
            {axis: (f"size_{place}_{there}", least[place, there]) for axis, (place, there) in axes.items()}
            for axes in self._free
        ]

    def write_in_half(self, path: Path, metadata: Mapping[str, str]) -> None:
        if path.suffix == PROGRAM:
            super().write_in_half(path, metadata)
        self._write(path, metadata, is_half=True)

    def _write(self, path: Path, metadata: Mapping[str, str], *, is_half: bool) -> None:
        writer = Writer(self._module, WORDS, self.inputs, self.outputs, is_half=is_half)
        writer.file.write(path, writer.inputs, writer.outputs, metadata)


def graphs(setup: Setup, given: Inputs, plans: Sequence[Plan]) -> list[TorchGraph]:
    """Record methods of one model from one forward pass.

    Args:
        setup: the model, and what is said about it.
        given: a batch such as will be explained, of two images at least.
        plans: what each graph computes: the rule and the reducer may differ.

    Raises:
        ModelError: the model does something else for some number of images, or cannot be recorded.
    """
    recording = _Recording(setup, given, plans)
    trace = traced(recording.explain, recording.examples, recording.free)
    asked = Asked(turns_of(trace), _bounded(trace, recording))
    together = _Together(trace.module)
    return [
        TorchGraph(part_of(trace.module, part), ports, coverage, asked, partial(together.run, part))
        for part, ports, coverage in zip(trace.parts, recording.ports, recording.coverages, strict=True)
    ]


def _bounded(trace: Trace, recording: "_Recording") -> Sequence[Sequence[int]]:
    """Return the least sizes of each input of images, where they are free, and let the graph say of smaller ones so.

    They are what the model allows, from half of the example's sizes on: so small ones are tried.
    """
    examples = recording.examples
    promised = least_of(trace, {(place, axis): examples[place].shape[axis] // 2 for place, axis in trace.free})
    if not promised:
        return ()
    bounded(trace, promised)
    return [[promised[size] for size in sorted(axes.values())] for axes in recording.free[: recording.images]]


class _Together:
    """A graph of several methods, which is run once for all of them."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._before: list[tuple[Sequence[NumpyArray], Sequence[NumpyArray]]] = []

    def run(self, part: slice, inputs: Sequence[NumpyArray]) -> Sequence[NumpyArray]:
        """Return the results of one method."""
        for given, results in self._before:
            if len(given) == len(inputs) and all(one is other for one, other in zip(given, inputs, strict=True)):
                return results[part]
        with torch.no_grad():
            results = [as_numpy(result) for result in self._module(*[as_tensor(array) for array in inputs])]
        self._before.append((inputs, results))
        return results[part]


class _Recording:
    """What explains images by some methods while it is recorded.

    Attributes:
        examples: what it is recorded with.
        free: which sizes of these are free: see :func:`traced`.
        images: how many of these are images.
        ports: for each method what its inputs and its outputs are called, and what it is recorded with.
        coverages: for each method what was done with each non-linearity, once it is recorded.
    """

    def __init__(self, setup: Setup, given: Inputs, plans: Sequence[Plan]) -> None:
        self._plans, self._plan, self._given = plans, plans[0], given
        self._recorder = Recorder(setup)
        # How images lie in memory is no matter of a graph, which has none.
        tensors = given.map(lambda array: as_tensor(array).contiguous())
        output = self._recorder.mark(tensors, [plan.rule for plan in plans])
        self._inside: Recorder | None = None
        cam = self._plan.cam
        if cam is not None:
            self._inside = self._recorder
            if cam.is_factor:
                self._inside = Recorder(replace(setup, input_layer=cam.layer))
                self._inside.mark(tensors, [PLAIN])
        self._axis = self._recorder.channel_axis(output) or 1
        ids, weights = torch.zeros(given.count, dtype=torch.int64), torch.zeros_like(output)
        labels = {"ids": [ids], "weights": [weights], "both": [ids, weights]}[self._plan.labels]
        noise, photos = self._plan.noise, self._plan.photos
        drawn = [] if noise is None else [torch.as_tensor(one).to(output.dtype) for one in noise.drawn(given)]
        self.examples = [*tensors.arrays, *labels, *drawn]
        if photos is not None:
            self._dtype = tensors.arrays[0].dtype
            pixels = torch.as_tensor(photos.pixels(as_numpy(tensors.arrays[0])))
            self.examples = [pixels, *labels]
        self.free = self._free(tensors, len(labels), len(drawn))
        self.images, self._labels = len(tensors.arrays), len(labels)
        floats = [self._recorder.is_floating(tensor) for tensor in tensors.arrays]
        names = port_names(given, floats)[0]
        noises = noise_names(names, floats)
        inputs = (
            *(names if photos is None else ["photos"]),
            "labels",
            *["weights"][: len(labels) - 1],
            *noises[: len(drawn)],
        )
        self.coverages: list[Coverage] = []
        has_map = floats if cam is None else self._with_positions(tensors)
        self.ports = [_Ports(inputs, port_names(given, has_map)[1], self.examples, self.free)] * len(plans)

    def _free(self, images: Inputs, labels: int, noisy: int) -> list[dict[int, Free]]:
        """Return which axes of the examples have a size that is free, and which size that is."""
        recorder, free = self._recorder, list[dict[int, Free]]()
        if self._plan.sizes == "fixed":
            return [{} for _ in self.examples]
        for place, image in enumerate(images.arrays):
            axes = recorder.axes_of_positions(image) if self._plan.photos is None else [1, 2]
            free.append({axis: (place, axis) for axis in axes})
        noises = [
            {axis + 1: size for axis, size in axes.items()}
            for axes, image in zip(free, images.arrays, strict=True)
            if recorder.is_floating(image)
        ]
        return [*free, *[{} for _ in range(labels)], *noises[:noisy]]

    def _with_positions(self, tensors: Inputs) -> list[bool]:
        """Tell of which of the inputs there are class activation maps."""
        assert self._inside is not None
        return [self._recorder.has_positions(one, self._inside.axes_inside) for one in tensors.arrays]

    def explain(self, *arrays: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return the results of each method."""
        images, told = self.images, self.images + self._labels
        given, wanted, drawn = arrays[:images], arrays[images:told], arrays[told:]
        photos, noise = self._plan.photos, self._plan.noise
        inputs = self._given.like(given if photos is None else [scaled(given[0], photos, self._dtype)])
        found = self._explained(inputs, lambda output: _weights(output, wanted, self._plan, self._axis))
        self.coverages = [passed.coverage for passed, _ in found]
        if noise is not None:
            weights = repeated(found[0][0].weights, noise.samples)
            noisy = self._explained(copies(inputs, noise, drawn), lambda output: weights)
            found = [(passed, put_together(noise, maps)) for (passed, _), (_, maps) in zip(found, noisy, strict=True)]
        return [
            self._results(passed, maps, arrays, wanted, plan)
            for (passed, maps), plan in zip(found, self._plans, strict=True)
        ]

    def _explained(
        self, images: Inputs, weigh: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[tuple[Passed, list[torch.Tensor]]]:
        """Return the pass of each method, and the maps of the images."""
        found = self._recorder.passed(images, weigh)
        plan = self._plan
        if plan.cam is None:
            maps = [list(passed.gradients) for passed in found]
        else:
            assert self._inside is not None
            inside = self._inside.passed(images, weigh)[0] if plan.cam.is_factor else found[0]
            fitted = cams(self._inside, inside, images, plan.cam)
            maps = [_times(passed.gradients, fitted, images, plan.cam) for passed in found]
        if plan.times_images:
            floats = [image for image in images.arrays if image.is_floating_point()]
            maps = [[g * x for g, x in zip(each, floats, strict=True)] for each in maps]
        return list(zip(found, maps, strict=True))

    def _results(
        self,
        passed: Passed,
        maps: Sequence[torch.Tensor],
        arrays: Sequence[torch.Tensor],
        labels: Sequence[torch.Tensor],
        plan: Plan,
    ) -> list[torch.Tensor]:
        recorder, photos = self._recorder, plan.photos
        if photos is not None and (plan.cam is None or plan.cam.is_factor):
            maps = [recorder.reduce(of_pixels(one, photos), plan.reducer, -1) for one in maps]
        else:
            maps = [recorder.reduce(one, plan.reducer, recorder.channel_axis(one)) for one in maps]
        numbers = [tensor for tensor in (passed.output, *maps, *arrays) if tensor.is_floating_point()]
        is_finite = torch.stack([_are_finite(tensor) for tensor in numbers]).amin(0) > 0
        if plan.labels != "weights" and passed.output.ndim > 1:
            classes = passed.output.shape[recorder.channel_axis(passed.output) or 1]
            is_finite = is_finite & (labels[0] < classes) & (labels[0] >= (TOP if plan.labels == "ids" else WEIGHTS))
        return [passed.output, *maps, passed.scores, is_finite]


def _times(
    gradients: Sequence[torch.Tensor], fitted: Sequence[torch.Tensor | None], images: Inputs, cam: Cam
) -> list[torch.Tensor]:
    """Return class activation maps, or their products with the gradients at the images, where there are any."""
    if not cam.is_factor:
        return [one for one in fitted if one is not None]
    left = iter(gradients)
    pairs = [(next(left), one) for one, image in zip(fitted, images.arrays, strict=True) if image.is_floating_point()]
    return [g * one for g, one in pairs if one is not None]


def _weights(output: torch.Tensor, labels: Sequence[torch.Tensor], plan: Plan, axis: int) -> torch.Tensor:
    """Return how much each output weighs in the score: as labels say, or 1 for a class, at all its positions."""
    if plan.labels == "weights":
        return labels[0].to(output.dtype)
    weights = torch.ones_like(output) if output.ndim == 1 else _of_classes(output, labels[0], axis)
    if plan.labels == "ids":
        return weights
    is_weighed = (labels[0] == WEIGHTS).reshape(-1, *[1] * (output.ndim - 1))
    return torch.where(is_weighed, labels[1].to(output.dtype), weights)


def _of_classes(output: torch.Tensor, labels: torch.Tensor, axis: int) -> torch.Tensor:
    channels = output.movedim(axis, 1)
    totals = channels.flatten(2).sum(2) if output.ndim > 2 else channels
    ids = torch.where(labels < 0, totals.argmax(1), labels)
    chosen = torch.arange(totals.shape[1], device=output.device) == ids[:, None]
    weights = chosen.to(output.dtype).reshape(*chosen.shape, *[1] * (output.ndim - 2))
    return weights.expand(channels.shape).movedim(1, axis)


def _are_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return 1 for each image without NaN or infinity, else 0: engines do not look for them."""
    is_number = (tensor.detach().abs() <= _LARGEST).to(torch.float32)
    return is_number if tensor.ndim == 1 else is_number.flatten(1).amin(1)
