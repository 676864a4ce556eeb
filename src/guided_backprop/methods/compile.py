"""From a method to one whose explanations an engine computes: recorded, compared, timed, kept; and how it is called."""

import copy
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from guided_backprop.arrays import Images, Inputs, NumpyArray, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh, per_image
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export import cache
from guided_backprop.export.agreement import by_name, difference
from guided_backprop.export.engine import ENGINES, Engine, EngineName, installed, required
from guided_backprop.export.plan import TOP, WEIGHTS
from guided_backprop.labels.label import Weigher
from guided_backprop.methods.data import given
from guided_backprop.methods.options import Requirement, require
from guided_backprop.methods.recording import recorded
from guided_backprop.methods.trial import Method, compared, opened
from guided_backprop.version import __version__

# How often each engine is timed, and how far the highest score must be above the next for both to take the same class.
_RUNS, _GAP = 5, 1e-5
# By how much of its norm what was kept may differ, beside what was measured when it was made; else it is made anew.
_ALIKE, _TIMES = 1e-5, 10


class Weights(Protocol):
    """What is known of a model's weights."""

    def are_the_same(self) -> bool:
        """Tell whether nothing changed."""


class Compiled:
    """A graph that is open in an engine, and what it explains.

    Attributes:
        engine: the engine's name and version.
        times: how long an engine took for the images that were given, in seconds, by its name; empty where it was kept.
    """

    def __init__(self, engine: Engine, said: Mapping[str, Any], weights: Weights, like: Inputs) -> None:
        self.engine = engine.name
        self.times: Mapping[str, float] = said["times"]
        self._engine, self._said, self._weights = engine, said, weights
        self._kind = _kind(like)
        self._coverage = Coverage([Nonlinearity(*one) for one in said["coverage"]])
        self._maps = [name for name in said["outputs"] if name.startswith("attribution")]

    def __repr__(self) -> str:
        return self.engine

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # In another process the method runs as it is: what an engine has open does not travel.
        return _nothing, ()

    def attribute(
        self,
        backend: Backend,
        inputs: Inputs,
        weigh: Weigh,
        score: Score | None,
        as_it_is: Callable[[Backend, Inputs, Weigh, Score | None], Attributed],
    ) -> Attributed:
        """Explain a batch by the graph, or as it is, and say which.

        Raises:
            ModelError: the model is another one by now.
        """
        if not self._weights.are_the_same():
            raise ModelError(
                "model must be what was compiled; received one whose weights, layers or options changed since. "
                "Call compile(images) again, or optimize(images) for weights that change."
            )
        reason = self._why_not(inputs, score)
        if reason is None:
            try:
                attributed = self._run(backend, inputs, weigh)
            except GuidedBackpropError:
                raise
            except Exception as error:
                if backend.is_out_of_memory(error):
                    raise
                reason = f"{self.engine} failed"
            else:
                if attributed is not None:
                    return attributed
                reason = "values that are not finite"
        return replace(as_it_is(backend, inputs, weigh, score), engine=f"{backend.framework}: {reason}")

    def _why_not(self, inputs: Inputs, score: Score | None) -> str | None:
        """Return why this cannot be computed by the graph, or None."""
        if score is not None:
            return "a function as label"
        if _kind(inputs) != self._kind:
            return "images of another form, shape or dtype"
        return None

    def _run(self, backend: Backend, inputs: Inputs, weigh: Weigh) -> Attributed | None:
        """Run the graph; None where something is not finite, of which the model itself has to say what."""
        arrays = [np.ascontiguousarray(as_numpy(array)) for array in inputs.arrays]
        known = weigh.ids if isinstance(weigh, Weigher) else None
        count = inputs.count
        first = self._results(arrays, np.full(count, TOP) if known is None else known)
        outputs = first["outputs"]
        # Labels that do not suit the outputs are an error here.
        weights = weigh(outputs)
        results = [first]
        if known is None or ((known == TOP).any() and not _is_clear(outputs, backend.channel_axis(outputs) or 1)):
            results = [self._results(arrays, np.full(count, WEIGHTS), one) for one in weights]
        if not all(result["is_finite"].all() for result in results):
            return None
        maps = [self._in_form(result, backend, inputs) for result in results]
        head = self._said["head"]
        scores = [
            per_image(one, outputs) if head is None else result["scores"].astype(np.float64)
            for one, result in zip(weights, results, strict=True)
        ]
        return Attributed(maps, np.stack(scores), outputs, self._coverage, head, engine=self.engine)

    def _results(
        self, arrays: Sequence[NumpyArray], ids: NumpyArray, weights: NumpyArray | None = None
    ) -> dict[str, NumpyArray]:
        shape = (len(ids), *self._said["shape"])
        told = np.zeros(shape, np.float32) if weights is None else weights.astype(np.float32)
        return self._engine.run(by_name(self._said["inputs"], [*arrays, ids.astype(np.int64), told]))

    def _in_form(self, result: Mapping[str, NumpyArray], backend: Backend, inputs: Inputs) -> Inputs:
        left = iter([result[name] for name in self._maps])
        return inputs.map(lambda array: backend.from_numpy(next(left), array) if backend.is_floating(array) else None)


def compile(  # noqa: A001 - as the method is called
    method: Method, images: Images, engine: Literal["auto"] | EngineName = "auto"
) -> Compiled | None:
    """Return what computes a method's explanations; None where the framework does so already. See Method.compile."""
    names = ("auto", *ENGINES)
    require(Requirement("engine", engine, engine in names, f"one of {', '.join(names)}", 'Pass "auto".'))
    inputs = Inputs.of(given(method.subject, images, None).images)
    backend = method.subject.backend(inputs)
    if backend.framework != "torch":
        if engine != "auto":
            raise OptionError(
                f"engine must be auto for what {backend.framework} compiles itself; received engine={engine!r}. "
                "Leave it out."
            )
        return None
    backend.check_images(inputs)
    if not inputs.count:
        raise ImageError("images to compile for must not be empty; received no image. Pass at least one.")
    coarse = [str(array.dtype) for array in inputs.arrays if backend.is_floating(array)]
    if any(not dtype.endswith("float32") for dtype in coarse):
        raise ImageError(
            f"images to compile for must be in single precision; received {', '.join(coarse)}. Convert them, or take "
            "optimize(images)."
        )
    wanted: Sequence[EngineName] = (installed() or ["onnxruntime"]) if engine == "auto" else [engine]
    whole = copy.copy(method)
    whole.reducer = whole.compiled = None
    return _Making(whole, inputs, wanted).compiled()


def _kind(inputs: Inputs) -> Hashable:
    """Return what images must have in common with those that a graph was recorded of."""
    kinds = [(tuple(array.shape[1:]), str(array.dtype).removeprefix("torch.")) for array in inputs.arrays]
    return inputs.form, tuple(kinds)


def _is_clear(outputs: NumpyArray, axis: int) -> bool:
    """Tell whether the class with the highest sum is so far above the next that rounding leaves it so."""
    if outputs.ndim == 1 or outputs.shape[axis] == 1:
        return True
    totals = np.moveaxis(outputs, axis, 1).reshape(len(outputs), outputs.shape[axis], -1).sum(2, dtype=np.float64)
    highest = np.partition(totals, -2, axis=1)[:, -2:]
    return bool((highest[:, 1] - highest[:, 0] > _GAP * np.abs(totals).max(1)).all())


def _told(explained: Explanations) -> list[NumpyArray]:
    maps = [as_numpy(array) for array in Inputs.of(explained.attribution).arrays if array is not None]
    return [explained.outputs, *maps, explained.scores]


def _nothing() -> None:
    return None


class _Making:
    """How a method is compiled for some images, in the fastest of some engines."""

    def __init__(self, method: Method, inputs: Inputs, wanted: Sequence[EngineName]) -> None:
        self._torch: Any = import_module("guided_backprop.backends.torch.export.weights")
        self._method, self._inputs, self._wanted = method, inputs, wanted
        self._weights: Weights = self._torch.Weights(method.subject.model)
        self._threads: int = self._torch.threads()
        self._engine: Engine | None = None

    def compiled(self) -> Compiled:
        """Return what was kept, or what is made and kept."""
        key = self._key()
        entry = cache.entry(key)
        known = None if entry is None else self._known(entry)
        if known is not None:
            return known
        entry = cache.keep(key, self._write)
        assert self._engine is not None
        if not self._weights.are_the_same():
            raise ModelError(
                "model must stay as it is when it is run, to be compiled; received one whose weights or options "
                "change. Take out what counts or remembers, or take optimize(images)."
            )
        return Compiled(self._engine, entry.said, self._weights, self._inputs)

    def _key(self) -> str:
        method = self._method
        model = method.subject.model
        # Of a copy, which names its layers.
        about = [repr(method.around(model)), method.rule, self._torch.key_of(model), _kind(self._inputs), self._threads]
        # Which engine is the fastest depends on how many images there are.
        about += [
            self._inputs.count,
            __version__,
            version("torch"),
            *[(name, required(name).__version__) for name in self._wanted],
        ]
        return sha256(repr(about).encode()).hexdigest()[:40]

    def _known(self, entry: cache.Entry) -> Compiled | None:
        """Return what was kept, if it is whole, and explains these images as the method does."""
        try:
            engine = opened(entry.path, entry.said["outputs"], ENGINES[entry.said["engine"]], self._threads)
            method = copy.copy(self._method)
            method.compiled = compiled = Compiled(engine, entry.said, self._weights, self._inputs)
            explained, expected = (one.explain(self._inputs.images, progress=False) for one in (method, self._method))
            found = difference(_told(explained), _told(expected))
            is_right = explained.engine == engine.name and found <= max(_ALIKE, _TIMES * entry.said["difference"])
        except Exception:
            # Damaged: it is made anew.
            return None
        return compiled if is_right else None

    def _write(self, path: Path) -> Mapping[str, Any]:
        graph, trial, metadata = recorded(self._method, self._inputs, "both")
        batches = trial.batches(graph.turns)
        compared(graph, trial, batches)
        graph.write(path, metadata.texts())
        engines: dict[str, Engine] = {}
        differences: dict[str, float] = {}
        problem: ModelError | None = None
        for name in self._wanted:
            try:
                engines[name] = opened(path, graph.outputs, ENGINES[name], self._threads)
                differences[name] = trial.compare(engines[name], graph, batches)
            except ModelError as error:
                problem = problem or error
                engines.pop(name, None)
        if problem is not None and not engines:
            raise problem
        told = [*self._inputs.map(as_numpy).arrays, np.full(self._inputs.count, TOP)]
        shape = trial.explained.outputs.shape[1:]
        told.append(np.zeros((self._inputs.count, *shape), np.float32))
        times = _timed(engines, by_name(graph.inputs, told))
        fastest = min(times, key=times.__getitem__)
        self._engine = engines[fastest]
        return {
            "engine": fastest, "times": times, "difference": differences[fastest], "head": metadata.head,
            "coverage": [list(one) for one in graph.coverage], "shape": list(shape),
            "inputs": list(graph.inputs), "outputs": list(graph.outputs),
        }  # fmt: skip


def _timed(engines: Mapping[str, Engine], told: Mapping[str, NumpyArray]) -> dict[str, float]:
    """Return how long each engine takes, one after the other in turn."""
    runs: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(_RUNS + 1):
        for name, engine in engines.items():
            begin = time.perf_counter()
            engine.run(told)
            # The first run is for what an engine makes once.
            if turn:
                runs[name].append(time.perf_counter() - begin)
    # The fastest run is the one that nothing else disturbed.
    return {name: min(seconds) for name, seconds in runs.items()}
