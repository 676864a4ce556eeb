"""From a method to one whose explanations are computed by what is fastest: recorded, compared, timed, kept."""

import copy
import gc
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

from guided_backprop.arrays import Images, Inputs, NumpyArray, as_numpy, dtype_name
from guided_backprop.errors import GuidedBackpropError, ImageError, ModelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export import cache
from guided_backprop.export.agreement import difference
from guided_backprop.export.engine import ENGINES, Engine, EngineName, Fixed, installed, required
from guided_backprop.export.graph import Ports
from guided_backprop.methods.compiled import (
    Compilable,
    Compiled,
    InEngine,
    Optimized,
    Uncompiled,
    Weights,
    kind_of,
)
from guided_backprop.methods.data import given
from guided_backprop.methods.options import Requirement, require
from guided_backprop.methods.program import in_program
from guided_backprop.methods.recording import FEW, recorded
from guided_backprop.methods.timing import timed
from guided_backprop.methods.trial import Batch, Trial, are_apart, compared, opened
from guided_backprop.version import __version__

# By how much of its norm what was kept may differ, beside what was measured when it was made; else it is made anew.
_ALIKE, _TIMES = 1e-5, 10
# What the framework's own runs are called among the engines.
_OWN: Final = "torch"
_AS_IT_IS: Final = "torch, as it is"


def compile(  # noqa: A001 - as the method is called
    method: Compilable, images: Images, engine: Literal["auto"] | EngineName = "auto"
) -> Compiled:
    """Return what computes a method's explanations; see Method.compile."""
    names = ("auto", *ENGINES)
    require(Requirement("engine", engine, engine in names, f"one of {', '.join(names)}", 'Pass "auto".'))
    inputs = Inputs.of(given(method.subject, images, None).images)
    backend = method.subject.backend(inputs)
    if backend.framework != "torch" and engine != "auto":
        raise OptionError(
            f"engine must be auto for what {backend.framework} compiles itself; received engine={engine!r}. "
            "Leave it out."
        )
    backend.check_images(inputs)
    if not inputs.count:
        raise ImageError("images to compile for must not be empty; received no image. Pass at least one.")
    coarse = [dtype_name(array) for array in inputs.arrays if backend.is_floating(array)]
    if any(dtype != "float32" for dtype in coarse):
        raise ImageError(
            f"images to compile for must be in single precision; received {', '.join(coarse)}. Convert them, or take "
            "optimize(images)."
        )
    whole = copy.copy(method)
    whole.reducer = whole.compiled = None
    if backend.framework != "torch":
        return in_program(whole, inputs)
    wanted: Sequence[EngineName] = (installed() or ["onnxruntime"]) if engine == "auto" else [engine]
    return _Making(whole, inputs, wanted, has_own=engine == "auto").compiled()


def _told(explained: Explanations) -> list[NumpyArray]:
    maps = [as_numpy(array) for array in Inputs.of(explained.attribution).arrays if array is not None]
    return [explained.outputs, *maps, explained.scores]


class _Making:
    """How a method is compiled for some images, in the fastest of some engines.

    Args:
        method: with its channels as they are.
        inputs: a batch such as will be explained.
        wanted: the engines that are tried.
        has_own: whether the framework's own runs are tried as well, optimised and as it is.
    """

    def __init__(self, method: Compilable, inputs: Inputs, wanted: Sequence[EngineName], *, has_own: bool) -> None:
        self._torch: Any = import_module("guided_backprop.backends.torch.export.weights")
        self._method, self._inputs, self._names, self._has_own = method, inputs, wanted, has_own
        self._weights: Weights = self._torch.Weights(method.subject.model)
        self._threads: int = self._torch.threads()
        # Which one is the fastest depends on these.
        self._case = f"{inputs.count} images, {self._threads} threads"
        self._open: dict[str, Engine] = {}
        # What the method makes of the images, or of these rows of them, once that is known.
        self._wanted: Sequence[NumpyArray] | None = None
        self._rows = slice(None)

    def compiled(self) -> Compiled:
        """Return what was kept, or what is made and kept."""
        key = self._key()
        entry = cache.entry(key)
        known = None if entry is None else self._known(entry)
        if known is not None:
            return known
        entry = cache.keep(key, self._write)
        made = self._fastest(entry, {name: self._made(entry, name) for name in entry.said["differences"]})
        if not self._weights.are_the_same():
            raise ModelError(
                "model must stay as it is when it is run, to be compiled; received one whose weights or options "
                "change. Take out what counts or remembers, or take optimize(images)."
            )
        return made

    def _key(self) -> str:
        method = self._method
        model = method.subject.model
        # Of a copy, which names its layers.
        about = [repr(method.around(model)), method.rule, self._torch.key_of(model), kind_of(self._inputs)]
        about += [__version__, cache.digest_of_code(), version("torch")]
        about += [(name, required(name).__version__) for name in self._names]
        return sha256(repr(about).encode()).hexdigest()[:40]

    def _known(self, entry: cache.Entry) -> Compiled | None:
        """Return what was kept, if it is whole, and explains these images as the method does."""
        try:
            times = entry.said["times"].get(self._case)
            names = entry.said["differences"] if times is None else [min(times, key=times.__getitem__)]
            kept = {name: self._kept(entry, name) for name in names}
            if not all(self._is_right(one, entry.said["differences"].get(name)) for name, one in kept.items()):
                return None
            if times is None:
                return self._fastest(entry, kept)
        except Exception:
            # Damaged: it is made anew.
            return None
        (compiled,) = kept.values()
        compiled.times = times
        return compiled

    def _made(self, entry: cache.Entry, name: str) -> Compiled:
        """Return what was compared, or the same for as many images as were given, if that is faster and right."""
        kind = ENGINES[cast(EngineName, name)]
        if kind.favours_count:
            with suppress(ModelError):
                faster = self._kept(entry, name)
                if self._is_right(faster, entry.said["differences"][name]):
                    return faster
        self._open[name] = opened(entry.path, entry.said["outputs"], kind, self._threads)
        return self._in_engine(entry, self._open[name])

    def _kept(self, entry: cache.Entry, name: str) -> Compiled:
        if name in (_OWN, _AS_IT_IS):
            return self._own() if name == _OWN else Uncompiled("torch")
        kind, outputs, count = ENGINES[cast(EngineName, name)], entry.said["outputs"], self._inputs.count
        fixed = (Fixed(count, entry.path, entry.said["apart"]),) if kind.favours_count else ()
        stored = entry.file(kind.form(count) or "")
        try:
            engine = opened(stored or entry.path, outputs, kind, self._threads, *fixed)
        except ModelError:
            if stored is None:
                raise
            # What an engine stored it may refuse; the graph is there as well.
            engine = opened(entry.path, outputs, kind, self._threads, *fixed)
        self._open[name] = engine
        return self._in_engine(entry, engine)

    def _is_right(self, compiled: Compiled, expected: float | None) -> bool:
        """Tell whether these images are explained as the method does; its own run was compared when it was made."""
        if expected is None:
            return True
        explained = self._with(compiled).explain(self._inputs.images, progress=False)
        if self._wanted is None:
            # Few: a first look at many takes the time and memory that were to be saved. Not the first, which may be a
            # piece of their own.
            self._rows = slice(1, 1 + FEW) if self._inputs.count > FEW else slice(None)
            self._wanted = _told(self._method.explain(self._inputs.rows(self._rows).images, progress=False))
        told = [array[self._rows] for array in _told(explained)]
        is_near = difference(told, self._wanted) <= max(_ALIKE, _TIMES * expected)
        return explained.engine == compiled.engine and is_near

    def _in_engine(self, entry: cache.Entry, engine: Engine) -> InEngine:
        return InEngine(engine, entry.said, self._weights, self._inputs)

    def _own(self) -> Optimized:
        return Optimized(self._method.optimize(self._inputs.rows(slice(1)).images), f"torch {version('torch')}")

    def _with(self, compiled: Compiled) -> Compilable:
        method = copy.copy(self._method)
        method.compiled = compiled
        return method

    def _fastest(self, entry: cache.Entry, contestants: dict[str, Compiled]) -> Compiled:
        """Return the contestant whose calls are the shortest, and keep which one it is."""
        if self._has_own:
            # Where the model cannot be run so there is one contestant less.
            with suppress(GuidedBackpropError):
                contestants[_OWN] = self._own()
            # To optimise does not pay for each model.
            contestants[_AS_IT_IS] = Uncompiled("torch")
        times = timed({name: self._with(one) for name, one in contestants.items()}, self._inputs.images)
        fastest = min(times, key=times.__getitem__)
        contestants[fastest].times = times
        cache.note(entry, {"times": {**entry.said["times"], self._case: times}})
        kind = ENGINES.get(cast(EngineName, fastest))
        form = None if kind is None else kind.form(self._inputs.count)
        if form is not None and entry.file(form) is None:
            cache.add(entry, form, self._open[fastest].store)
        return contestants[fastest]

    def _write(self, path: Path) -> Mapping[str, Any]:
        ports, trial, batches, said = self._recorded(path)
        # A recorded graph and its module hold each other.
        gc.collect()
        differences: dict[str, float] = {}
        problem: ModelError | None = None
        for name in self._names:
            try:
                # Not kept open: what it took for many images it would hold.
                engine = opened(path, ports.outputs, ENGINES[name], self._threads)
                differences[name] = trial.compare(engine, ports, batches)
            except ModelError as error:
                problem = problem or error
        if problem is not None and not differences:
            raise problem
        return {**said, "differences": differences, "times": {}}

    def _recorded(self, path: Path) -> tuple[Ports, Trial, Sequence[Batch], Mapping[str, Any]]:
        """Write the graph; return what an engine that opens it is compared with, and what is kept beside it.

        The model and the graph in double precision are let go of: they are four times the weights.
        """
        graph, trial, metadata = recorded(self._method, self._inputs, "both")
        self._wanted = _told(trial.explained)
        batches = trial.batches(graph.turns)
        compared(graph, trial, batches)
        graph.write(path, metadata.texts())
        said = {
            "inputs": list(graph.inputs), "outputs": list(graph.outputs),
            "coverage": [list(one) for one in graph.coverage], "shape": list(trial.explained.outputs.shape[1:]),
            "head": metadata.head, "apart": trial.precise is not None and are_apart(graph, batches),
        }  # fmt: skip
        return _Names(graph.inputs, graph.outputs), replace(trial, precise=None), batches, said


class _Names(NamedTuple):
    """What a graph's inputs and outputs are called."""

    inputs: Sequence[str]
    outputs: Sequence[str]
