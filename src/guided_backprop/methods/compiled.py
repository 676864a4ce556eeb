"""What a compiled method is computed by: a graph that is open in an engine, or PyTorch's optimised run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np

from guided_backprop.arrays import Images, Inputs, NumpyArray, as_numpy, dtype_name
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh, per_image
from guided_backprop.backends.refusals import changed
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import GuidedBackpropError
from guided_backprop.export.agreement import by_name
from guided_backprop.export.engine import Runner
from guided_backprop.export.plan import TOP, WEIGHTS
from guided_backprop.export.program import CannotRun
from guided_backprop.labels.label import Weigher, Weighting
from guided_backprop.methods.trial import Method

# Outputs of so many axes have no positions.
_PLAIN = 2
# How far the highest score must be above the next for an engine and Python to take the same class.
_GAP = 1e-5
#: What explains a batch by the method as it is.
AsItIs = Callable[[Backend, Inputs, Weigh, Score | None], Attributed]


class Weights(Protocol):
    """What is known of a model's weights."""

    def are_the_same(self) -> bool:
        """Tell whether nothing changed."""


class Compilable(Method, Protocol):
    """What is asked of a method that is compiled."""

    def optimize(self, images: Images) -> Self:
        """Return the same, run faster by its framework."""

    def explain_batch(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch."""


class Compiled(ABC):
    """What computes a method's explanations.

    Attributes:
        engine: its name and version.
        times: how long a call took for the images that were given, in seconds, by the name of what computed it.
        sees_values: whether it tells itself that images are not finite.
    """

    engine: str
    times: Mapping[str, float]
    sees_values: bool = False

    @abstractmethod
    def attribute(
        self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None, as_it_is: AsItIs
    ) -> Attributed:
        """Explain a batch, and say by what."""

    def __repr__(self) -> str:
        return self.engine

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # In another process the method runs as it is: what an engine has open does not travel.
        return _nothing, ()


class Optimized(Compiled):
    """The framework's own optimised run. It reads the weights in each call, so that a change counts at once.

    Args:
        method: optimised.
        version: the framework's name and version.
    """

    def __init__(self, method: Compilable, version: str) -> None:
        self.engine, self.times = f"{version}, optimized", {}
        self._method = method

    def attribute(
        self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None, as_it_is: AsItIs
    ) -> Attributed:
        own = self._method.subject.backend(inputs)
        return replace(self._method.explain_batch(own, inputs, weigh, score), engine=self.engine)


class Uncompiled(Compiled):
    """The method as it is, where what was compiled is not faster. It reads the weights in each call.

    Args:
        framework: the model's.
    """

    def __init__(self, framework: str) -> None:
        self.engine, self.times = f"{framework}: faster as it is", {}

    def attribute(
        self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None, as_it_is: AsItIs
    ) -> Attributed:
        return replace(as_it_is(backend, inputs, weigh, score), engine=self.engine)


class InEngine(Compiled):
    """A graph that is open in an engine.

    Args:
        engine: has it open.
        said: what was said of the graph when it was recorded.
        weights: of the model that it was recorded of.
        like: images such as it takes.
    """

    # The graph looks at the images as well, so nobody has to do so before.
    sees_values = True

    def __init__(self, engine: Runner, said: Mapping[str, Any], weights: Weights, like: Inputs) -> None:
        self.engine, self.times = engine.name, {}
        self._engine, self._said, self._weights = engine, said, weights
        self._kind = kind_of(like)
        self._coverage = Coverage([Nonlinearity(*one) for one in said["coverage"]])
        self._maps = [name for name in said["outputs"] if name.startswith("attribution")]

    def attribute(
        self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None, as_it_is: AsItIs
    ) -> Attributed:
        """Explain a batch by the graph, or as it is, and say which.

        Raises:
            ModelError: the model is another one by now.
        """
        # Not in a thread beside the engine: one that holds the interpreter while others have its processor would keep
        # the call waiting for longer than all weights take to read.
        if not self._weights.are_the_same():
            raise changed()
        return self._attributed(backend, inputs, weigh, score, as_it_is)

    def _attributed(
        self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None, as_it_is: AsItIs
    ) -> Attributed:
        reason = self._why_not(inputs, score)
        if reason is None:
            try:
                attributed = self._run(backend, inputs, weigh)
            except GuidedBackpropError:
                raise
            except CannotRun as why:
                reason = str(why)
            except Exception as error:
                if backend.is_out_of_memory(error):
                    raise
                reason = f"{self.engine} failed"
            else:
                if attributed is not None:
                    return attributed
                reason = "values that are not finite"
        backend.check_values(inputs)
        return replace(as_it_is(backend, inputs, weigh, score), engine=f"{backend.framework}: {reason}")

    def _why_not(self, inputs: Inputs, score: Score | None) -> str | None:
        """Return why this cannot be computed by the graph, or None."""
        if score is not None:
            return "a function as label"
        if kind_of(inputs) != self._kind:
            return "images of another form, shape or dtype"
        return None

    def _run(self, backend: Backend, inputs: Inputs, weigh: Weigh) -> Attributed | None:
        """Run the graph; None where something is not finite, of which the model itself has to say what."""
        arrays = [np.ascontiguousarray(as_numpy(array)) for array in inputs.arrays]
        known = weigh.ids if isinstance(weigh, Weigher) else None
        weights: Sequence[Weighting] | None
        if isinstance(weigh, Weigher) and known is not None:
            result = self._engine.run(self._told(arrays, known))
            outputs = result["outputs"]
            weigh.check(outputs)
            if TOP not in known.tolist() or _is_clear(outputs, backend.channel_axis(outputs) or 1):
                # Without positions the score of a class is the output itself.
                weights = None if outputs.ndim <= _PLAIN else weigh(outputs)
                return self._found([result], outputs, weights, backend, inputs)
        else:
            # What labels make of NaN may be an error of their own.
            backend.check_values(inputs)
            outputs = self._engine.outputs_of(self._told(arrays, np.full(inputs.count, TOP)))
        asked, weights = np.full(inputs.count, WEIGHTS), weigh(outputs)
        results = [self._engine.run(self._told(arrays, asked, one)) for one in weights]
        return self._found(results, outputs, weights, backend, inputs)

    def _found(
        self,
        results: Sequence[Mapping[str, NumpyArray]],
        outputs: NumpyArray,
        weights: Sequence[Weighting] | None,
        backend: Backend,
        inputs: Inputs,
    ) -> Attributed | None:
        """Return what the graph found for each label, if it is finite; without weights its scores are exact."""
        if not all(result["is_finite"].all() for result in results):
            return None
        maps = [self._in_form(result, backend, inputs) for result in results]
        head = self._said["head"]
        if weights is None or head is not None:
            scores = [result["scores"].astype(np.float64) for result in results]
        else:
            scores = [per_image(one, outputs) for one in weights]
        return Attributed(maps, np.array(scores), outputs, self._coverage, head, engine=self.engine)

    def _told(
        self, arrays: Sequence[NumpyArray], ids: NumpyArray, weights: NumpyArray | None = None
    ) -> Mapping[str, NumpyArray]:
        shape = (len(ids), *self._said["shape"])
        told = np.zeros(shape, np.float32) if weights is None else weights.astype(np.float32)
        return by_name(self._said["inputs"], [*arrays, ids.astype(np.int64), told])

    def _in_form(self, result: Mapping[str, NumpyArray], backend: Backend, inputs: Inputs) -> Inputs:
        left = iter([result[name] for name in self._maps])
        return inputs.map(lambda array: backend.from_numpy(next(left), array) if backend.is_floating(array) else None)


def _nothing() -> None:
    return None


def kind_of(inputs: Inputs) -> Hashable:
    """Return what images must have in common with those that a graph was recorded of."""
    kinds = [(tuple(array.shape[1:]), dtype_name(array)) for array in inputs.arrays]
    return inputs.form, tuple(kinds)


def _is_clear(outputs: NumpyArray, axis: int) -> bool:
    """Tell whether the class with the highest sum is so far above the next that rounding leaves it so."""
    if outputs.ndim == 1 or outputs.shape[axis] == 1:
        return True
    totals = np.moveaxis(outputs, axis, 1).reshape(len(outputs), outputs.shape[axis], -1).sum(2, dtype=np.float64)
    highest = np.partition(totals, -2, axis=1)[:, -2:]
    return bool((highest[:, 1] - highest[:, 0] > _GAP * np.abs(totals).max(1)).all())
