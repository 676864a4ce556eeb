"""An explanation as a graph of PyTorch's operations: made from a model and a plan, run, and written."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.fx import GraphModule

from guided_backprop.arrays import Inputs, Model, NumpyArray, as_numpy
from guided_backprop.backends.base import Setup
from guided_backprop.backends.torch.export.trace import Passed, Recorder, Trace, traced
from guided_backprop.backends.torch.export.words import WORDS
from guided_backprop.backends.torch.export.writer import Writer
from guided_backprop.backends.torch.model.images import as_tensor
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError
from guided_backprop.export.engine import OnnxRuntime
from guided_backprop.export.graph import Graph
from guided_backprop.export.plan import TOP, WEIGHTS, Plan, port_names

# Up to how many images it is tried whether a model does something else from some number on.
_MOST_IMAGES: Final = 64
# By their names: SymPy, whose they are, has no types.
_EQUALITIES: Final = frozenset({"Equality", "Unequality"})
_LARGEST: Final = torch.finfo(torch.float32).max


def copied(model: Model, *, in_double: bool) -> Model | None:
    """Return a private copy of a model, in double precision if that is asked for; None if there can be none.

    What a model keeps of its last run is of no use where that was recorded.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    try:
        private = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return private.double() if in_double else private
    except Exception:
        # What cannot be copied is recorded as it is.
        return None


class TorchGraph(Graph):
    """The graph of a model in PyTorch.

    Args:
        setup: the model, and what is said about it.
        given: a batch such as will be explained, of two images at least.
        plan: what is computed.

    Raises:
        ModelError: the model does something else for some number of images, or cannot be recorded.
    """

    engine = OnnxRuntime

    def __init__(self, setup: Setup, given: Inputs, plan: Plan) -> None:
        self._recorder = Recorder(setup)
        # How images lie in memory is no matter of a graph, which has none.
        tensors = given.map(lambda array: as_tensor(array).contiguous())
        output = self._recorder.mark(tensors, plan.rule)
        ids, weights = torch.zeros(given.count, dtype=torch.int64), torch.zeros_like(output)
        labels = {"ids": [ids], "weights": [weights], "both": [ids, weights]}[plan.labels]
        names, self.outputs = port_names(given, [self._recorder.is_floating(tensor) for tensor in tensors.arrays])
        self.inputs = (*names, "labels", *["weights"][: len(labels) - 1])

        def explain(*arrays: torch.Tensor) -> list[torch.Tensor]:
            images, wanted = arrays[: -len(labels)], arrays[-len(labels) :]
            passed = self._recorder.passed(given.like(images), lambda output: _weights(output, wanted, plan, axis))
            return self._results(passed, images, wanted, plan)

        axis = self._recorder.channel_axis(output) or 1
        trace = traced(explain, [*tensors.arrays, *labels])
        self.coverage: Coverage = self._recorder.coverage
        self._module: GraphModule = trace.module
        self.turns = _turns(trace)

    def _results(
        self, passed: Passed, images: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], plan: Plan
    ) -> list[torch.Tensor]:
        recorder = self._recorder
        maps = [recorder.reduce(one, plan.reducer, recorder.channel_axis(one)) for one in passed.gradients]
        numbers = [tensor for tensor in (passed.output, *maps, *images, *labels) if tensor.is_floating_point()]
        is_finite = torch.stack([_are_finite(tensor) for tensor in numbers]).amin(0) > 0
        if plan.labels != "weights" and passed.output.ndim > 1:
            classes = passed.output.shape[recorder.channel_axis(passed.output) or 1]
            is_finite = is_finite & (labels[0] < classes) & (labels[0] >= (TOP if plan.labels == "ids" else WEIGHTS))
        return [passed.output.detach(), *maps, passed.scores, is_finite]

    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        with torch.no_grad():
            results = self._module(*[as_tensor(array) for array in inputs])
        return {name: as_numpy(result) for name, result in zip(self.outputs, results, strict=True)}

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        writer = Writer(self._module, WORDS, self.inputs, self.outputs)
        writer.file.write(path, writer.inputs, writer.outputs, metadata)


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


def _turns(trace: Trace) -> list[int]:
    """Return the numbers of images from which on a condition of the model's is another one.

    Raises:
        ModelError: it is one that holds for a single number, or turns where it can't be tried.
    """
    turns = set[int]()
    for guard in trace.guards:
        if trace.symbol not in guard.free_symbols:
            continue
        if any(type(part).__name__ in _EQUALITIES for part in _parts(guard)):
            raise _of_number(
                str(guard), "Take out what is done for one number alone; ask for x.shape[0] instead of len(x)."
            )
        answers = [bool(guard.subs(trace.symbol, count)) for count in range(1, _MOST_IMAGES + 2)]
        pairs = enumerate(itertools.pairwise(answers), start=2)
        turns |= {count for count, (before, after) in pairs if before != after}
        far = bool(guard.subs(trace.symbol, 1 << 20))
        if far != answers[-1]:
            raise _of_number(str(guard), f"Take out what depends on there being more than {_MOST_IMAGES} images.")
    return sorted(turns)


def _parts(guard: Any) -> Iterator[Any]:
    yield guard
    for part in guard.args:
        yield from _parts(part)


def _of_number(guard: str, advice: str) -> ModelError:
    return ModelError(
        f"model must do the same for any number of images to be exported; received one that asks whether {guard}. "
        f"{advice}"
    )
