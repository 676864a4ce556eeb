"""The small contract every framework fulfils: run a model, edit its backward pass, give back the result.

A backend knows nothing of methods, of labels or of files. It is handed a batch, a function that says
how the outputs weigh in the score, and a rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guided_backprop.arrays import Array, Inputs, Layer, Model, NumpyArray, Tensor, as_numpy
from guided_backprop.backends.again import (
    ANY_DRAW,
    are_parts_of_one,
    refuse_other_outputs,
    shared_states,
    takes_batch_axis,
)
from guided_backprop.backends.mistakes import model_failed
from guided_backprop.backends.network import Network
from guided_backprop.backends.reach import name_of_source, sources_of
from guided_backprop.backends.refusals import no_batch, no_beginning, no_floats, reason_of
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, ModelError, OptionError
from guided_backprop.rules import ReluRule

#: From the model's outputs ``(N, ...)`` to their weights in the score, for each label that is asked for.
Weigh = Callable[[NumpyArray], Sequence[NDArray[np.float64]]]
#: From the model's output, in its own framework, to ``(N,)``: a score that no weights say.
Score = Callable[[Tensor], Tensor]
Vouch = Mapping[str, Literal["relu", "plain"]]
Memory = Literal["lean"]

# How frameworks say that memory ran out: by the error's kind, or in words.
_NO_MEMORY = ("OutOfMemoryError", "ResourceExhaustedError")
_NO_MEMORY_WORDS = ("allocate memory", "enough memory", "out of memory", "resource_exhausted")


@dataclass(frozen=True, eq=False)
class Setup:
    """A model and what is said about it: all that a backend is made from.

    Attributes:
        model: the user's model.
        output_layer: the layer that the model ends with: itself, its name, or its position, or a pair of that and
            which of its runs; None for the whole model.
        input_layer: the layer whose output the gradient is taken at, as above; None for the images.
        output: which of several outputs is explained, by name or position; None for the only one, or "logits".
        undo_head: whether a final softmax or sigmoid is undone.
        vouch: what is known of parts that hide what they compute.
        memory: "lean" to keep less for the backward pass.
        is_optimized: whether the backend is made faster, on the first images that it is asked for.
    """

    model: Model
    output_layer: Layer = None
    input_layer: Layer = None
    output: str | int | None = None
    undo_head: bool = True
    vouch: Vouch = field(default_factory=dict)
    memory: Memory | None = None
    is_optimized: bool = False


@dataclass(frozen=True)
class Attributed:
    """What a backend gives back for one batch.

    Attributes:
        attribution: for each label, the gradient of the scores under the rule: of the form, shape, dtype,
            device and kind of the inputs; None for one of integers.
        scores: ``(K, N)`` float64, for each label the scalar per image that was differentiated.
        outputs: the model's own output as a NumPy array, ``(N, ...)``.
        coverage: the non-linearities on the path from score to image.
        head: the final softmax or sigmoid that was undone, or ``None``.
        activation: where the gradient is taken inside of the model, the value there; the attribution is of its shape
            then. Both are NumPy arrays if the images are, else the framework's.
        convergence_delta: ``(K, N)`` float64 of integrated gradients: the sum of the map less what the score gained.
        engine: what computed it, if it is not the framework; or why that did.
    """

    attribution: list[Inputs]
    scores: NDArray[np.float64]
    outputs: NumpyArray
    coverage: Coverage
    head: str | None
    activation: Array | None = None
    convergence_delta: NDArray[np.float64] | None = None
    engine: str | None = None


class Backend(ABC):
    """One model in one framework.

    Images are an array ``(N, ...)``; for a model of several inputs a tuple or a dictionary of arrays.

    Args:
        setup: the model, and what is said about it.

    Raises:
        OptionError: the model has no such layer, or the framework has no such option.
        ModelError: the model has no layers, or how they are connected is not known.

    Attributes:
        setup: the same.
        name: the model's name, for people.
        network: what is run: the model, up to the layer that it ends with.
        begins_inside: whether the gradient is taken at a layer's output instead of the images.
    """

    #: "torch", "tensorflow" or "jax".
    framework: str
    #: The framework's functions on arrays, by NumPy's names.
    functions: Any
    #: Whether a batch of a size that has not been before takes long, since it is compiled.
    compiles_each_size: bool = False
    #: What a model must do with the images; what to do if it does not, and where an error's reason has certain words.
    asks: str = "accept and differentiate"
    advice: str = "Check the images' shape and dtype."
    hints: Mapping[str, str] = MappingProxyType({})
    #: What makes a model of batches of one that takes a single image.
    batched: str
    #: Which ways there are to keep less for the backward pass.
    memories: Sequence[Memory] = ()

    def __init__(self, setup: Setup) -> None:
        if setup.memory is not None and setup.memory not in self.memories:
            raise OptionError(
                f'memory="lean" is for PyTorch; received memory={setup.memory!r} for {self.framework}, which plans its '
                "memory itself. Pass None, and batch_size."
            )
        network = self.network_of(setup.model)
        self.setup, self.name = setup, network.name
        begin, end = (
            None if layer is None else network.run_of(layer) for layer in (setup.input_layer, setup.output_layer)
        )
        # Then the gradient is taken at a value inside of the model.
        self.begins_inside = begin is not None
        self.network = network.between(begin, end) if begin or end else network
        # Whether the model was run again, and gave the same; the states before it ran at all.
        self._is_settled, self._states = False, shared_states()

    @classmethod
    @abstractmethod
    def network_of(cls, model: Model) -> Network:
        """Return the model as a network of the kind that it is."""

    def check_images(self, inputs: Inputs) -> None:
        """Raise ImageError unless each input is a batch, and those that are explained are finite numbers."""
        self.check_form(inputs)
        self.check_values(inputs)

    def check_values(self, inputs: Inputs) -> None:
        """Raise ImageError unless the inputs that are explained are finite numbers."""
        if any(self.is_floating(array) and not self.is_finite(array) for array in inputs.arrays):
            raise ImageError("images must be finite; received images with NaN or infinity. Remove these values.")

    def check_form(self, inputs: Inputs) -> None:
        """Raise ImageError unless each input is a batch, and there are floating-point numbers to explain."""
        arrays = inputs.arrays
        for array in arrays:
            self.check_kind(array)
        self.network.check_inputs(inputs)
        if not arrays or not (self.begins_inside or any(map(self.is_floating, arrays))):
            raise no_floats(arrays)
        if len(arrays) > 1 and len({len(array) for array in arrays}) > 1:
            raise ImageError(
                "images of several inputs must have one row per image in each; received inputs of "
                f"{', '.join(str(len(array)) for array in arrays)} rows. Give all the same number."
            )

    def check_beginning(self, value: Tensor, count: int | None) -> None:
        """Raise ModelError unless a layer's output is one real array, with a row for each of ``count`` images."""
        is_array = hasattr(value, "dtype") and hasattr(value, "shape")
        if not is_array or not self.is_floating(value) or (count is not None and tuple(value.shape[:1]) != (count,)):
            received = f"{value.dtype}, {tuple(value.shape)}" if is_array else type(value).__name__
            raise no_beginning(received, count)

    def inside(self, value: Array, inputs: Inputs) -> Array:
        """Return a layer's output that a gradient was taken at: as a NumPy array if the inputs are."""
        self.check_beginning(value, inputs.count)
        return as_numpy(value) if isinstance(inputs.arrays[0], np.ndarray) else value

    @abstractmethod
    def check_kind(self, array: Tensor) -> None:
        """Raise ImageError unless ``array`` is ``(N, ...)``, of a kind that the framework takes."""

    @abstractmethod
    def is_floating(self, array: Array) -> bool:
        """Tell whether ``array`` holds real floating-point numbers that a gradient can be taken by."""

    @abstractmethod
    def is_finite(self, array: Array) -> bool:
        """Tell whether no value is NaN or infinite."""

    def channel_axis(self, array: Array) -> int | None:
        """Return where channels are in one input, or in an output; None if it has no channels and positions."""
        axes = len(array.shape)
        if axes <= 2:
            return None
        return axes - 1 if self.network.is_channels_last else 1

    def axes_of_positions(self, array: Array) -> list[int]:
        """Return where positions are in one input, or in an output."""
        channels = self.channel_axis(array)
        return [] if channels is None else [axis for axis in range(1, len(array.shape)) if axis != channels]

    def has_positions(self, array: Array, axes: int) -> bool:
        """Tell whether one input has as many axes of positions as a layer's output of so many axes, and a gradient."""
        return self.is_floating(array) and self.channel_axis(array) is not None and len(array.shape) == axes

    @abstractmethod
    def attribute(
        self, inputs: Inputs, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        """Explain one batch under each of several rules, from one forward pass.

        Args:
            inputs: a batch that ``check_images`` accepted.
            weigh: from the model's outputs to their weights in the score, ``(N, ...)`` for each label.
            rules: what a ReLU lets through.
            score: explains this function of the model's output instead of what ``weigh`` says. The output's weights are
                its plain derivative, for the rules are the model's alone; no head is undone.

        Raises:
            ModelError: the model cannot be explained, or hides its ReLUs, or has none.
            ScoreError: the score does not depend on the images, or is not finite.
        """

    @abstractmethod
    def outputs(self, inputs: Inputs) -> NumpyArray:
        """Return the model's output ``(N, ...)`` for inputs that ``check_images`` accepted; runs forward only."""

    @abstractmethod
    def from_numpy(self, array: NumpyArray, like: Array) -> Tensor:
        """Return ``array`` as one of the kind and dtype, and on the device, of ``like``."""

    def optimized(self, inputs: Inputs) -> "Backend":
        """Return a backend of the same model that is faster, having run it on these inputs; or this one."""
        self.check_images(inputs)
        return self

    @cached_property
    def sources(self) -> Sequence[object]:
        """The generators that the model's code reaches, and what makes some: none of them may be used."""
        return list(sources_of(self.setup.model))

    def refuse_chance(self, inputs: Inputs, outputs: NumpyArray | None = None) -> None:
        """Raise ModelError if the model gives other outputs in another run, where it may.

        Its code tells, or numbers that somebody drew since.

        Args:
            inputs: some images.
            outputs: what was explained of them, if anything was.
        """
        if self._is_settled or ANY_DRAW in self.setup.vouch or not inputs.count:
            return
        names = set(map(name_of_source, self.sources))
        names |= {"numpy.random or random"} if not names and shared_states() != self._states else set()
        if names:
            refuse_other_outputs(outputs, partial(self.outputs, inputs), names)
        self._is_settled = True

    def refuse_one_image(self, inputs: Inputs) -> None:
        """Raise ImageError if the model takes the images for one; it is asked where a convolution looks like that."""

        def run(change: Callable[[NumpyArray], NumpyArray]) -> NumpyArray:
            return self.outputs(inputs.map(lambda array: self.from_numpy(change(as_numpy(array)), array)))

        outputs = self.outputs(inputs)
        takes_batch = takes_batch_axis(outputs, run)
        if are_parts_of_one(outputs, run, takes_batch=takes_batch):
            raise no_batch(inputs.arrays[0].shape, "" if takes_batch else self.batched)

    def is_out_of_memory(self, error: BaseException | None) -> bool:
        """Tell whether an error, or what caused it, says that memory ran out."""
        while error is not None:
            if isinstance(error, MemoryError) or type(error).__name__ in _NO_MEMORY:
                return True
            if any(words in str(error).lower() for words in _NO_MEMORY_WORDS):
                return True
            error = error.__cause__ or error.__context__
        return False

    def failed(self, error: Exception, arrays: Sequence[Array], inputs: Inputs | None = None) -> ModelError:
        """Return the error for a model that failed on arrays; on ``inputs``, if it may be by their form and shapes."""
        reason, why = self.reason_of(error), None if inputs is None else self.why(inputs)
        hints = (hint for words, hint in self.hints.items() if words in reason.lower())
        return model_failed(error, arrays, self.asks, reason, why or next(hints, self.advice))

    def why(self, inputs: Inputs) -> str | None:
        """Return what is wrong with inputs that the model does not take, and what to pass, where that can be told."""
        # Whatever keeps it from being told, the model's own error has to be.
        with suppress(Exception):
            return self.network.why(inputs)
        return None

    def reason_of(self, error: Exception) -> str:
        """Return what an error of the framework says, in a line."""
        return reason_of(error)

    def reduce(self, attribution: Array, reducer: str | None, axis: int | None) -> Tensor:
        """Reduce ``axis`` by "mean", "sum", "max", "min" or "absmax", which is the largest magnitude; or leave it."""
        if reducer is None or axis is None:
            return attribution
        functions = self._functions_for(attribution)
        values = functions.abs(attribution) if reducer == "absmax" else attribution
        name = {"max": "amax", "absmax": "amax", "min": "amin"}.get(reducer, reducer)
        return getattr(functions, name)(values, axis=axis)

    def concatenate(self, batches: Sequence[Array]) -> Tensor:
        """Join batches along the first axis."""
        return batches[0] if len(batches) == 1 else self._functions_for(batches[0]).concatenate(list(batches), axis=0)

    def stack(self, labels: Sequence[Array]) -> Tensor:
        """Put what belongs to the labels of each image beside each other, along axis 1."""
        return self._functions_for(labels[0]).stack(list(labels), axis=1)

    def empty_like(self, images: Array) -> Tensor:
        """Return an attribution for ``images``, of no meaning; used for a batch of no images."""
        return self._functions_for(images).zeros_like(images)

    def _functions_for(self, array: Array) -> Any:
        return np if isinstance(array, np.ndarray) else self.functions


def per_image(weights: ArrayLike, outputs: ArrayLike) -> NDArray[np.float64]:
    """Return the weighted sum of each row; what has no weight does not count, not even if it is infinite."""
    weights, outputs = np.asarray(weights, np.float64), np.asarray(outputs, np.float64)
    if np.isfinite(outputs).all():
        return np.asarray((weights * outputs).reshape(len(weights), -1).sum(axis=1))
    product = np.multiply(weights, outputs, out=np.zeros(weights.shape), where=weights != 0)
    summed: NDArray[np.float64] = product.reshape(len(product), -1).sum(axis=1)
    return summed
