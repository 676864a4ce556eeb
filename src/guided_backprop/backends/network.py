"""A user's model as a backend asks it: how it is called, what layers it has, itself up to one of them, a copy.

There is one kind of network for Keras models, whatever Keras runs on, and at least one for each framework's own.
"""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from guided_backprop.arrays import Images, Inputs, Layer, Model, Tensor
from guided_backprop.backends.mistakes import Shape, wrong_number, wrong_shape
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import no_layer, no_layers
from guided_backprop.backends.runs import Passage, Run, Start, checked_call, is_pair
from guided_backprop.errors import OptionError


class Network(ABC):
    """A model of one kind, from one of its layers on, or up to one.

    Args:
        model: the user's model.
        begin: the run of a layer whose output the gradient is taken at; None for the images.
        end: the run of a layer that it ends with; None for the whole model.
    """

    #: Whether the model has names for values that only its trace knows. Then ``begin`` and ``end`` are such names, and
    #: calling the network is calling the model.
    is_named_by_trace = False

    def __init__(self, model: Model, begin: Run | None = None, end: Run | None = None) -> None:
        self.model, self.begin, self.end = model, begin, end
        # Of which inputs, by their form and shapes, it is known that the end is run once.
        self._counted: set[Hashable] = set()

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return name_of(self.model)

    @property
    @abstractmethod
    def is_channels_last(self) -> bool:
        """Whether the axis of channels is the last one."""

    def check(self) -> None:  # noqa: B027 - most kinds have nothing to check
        """Raise ModelError if the model is in training mode, or has no weights yet."""

    def check_inputs(self, inputs: Inputs) -> None:  # noqa: B027 - most kinds do not say how many axes they want
        """Raise ImageError if an input is one image, of a model that says how many axes a batch has."""

    def input_counts(self) -> range:
        """Return how many inputs the model takes, as far as its signature says."""
        return counts_of(self.model)

    def input_names(self) -> Sequence[str]:
        """Return what the model's inputs are called, as far as its signature says."""
        return names_of(self.model)

    def input_shapes(self) -> Sequence[Shape] | None:
        """Return the shape of each input, None for a free size, if the model says it for sure."""
        return None

    def first_layer(self) -> tuple[str, Shape, int] | None:
        """Return the name of what probably is the first layer, the shape that it takes, and its axis of channels."""
        return None

    def why(self, inputs: Inputs) -> str | None:
        """Return what is wrong with inputs that the model refused, and what to pass, where it says what it takes."""
        number = wrong_number(inputs, self.input_counts(), self.input_names())
        if number is not None or not isinstance(inputs.form, str):
            return number
        shapes, first = self.input_shapes(), self.first_layer()
        if shapes is not None and len(shapes) == len(inputs.arrays):
            owners = ["The model"] if len(shapes) == 1 else [f"Its input {number}" for number in range(len(shapes))]
            wrong = map(wrong_shape, inputs.arrays, shapes, map(self._channel_axis, shapes), owners)
            return next(filter(None, wrong), None)
        if first is None or len(inputs.arrays) > 1:
            return None
        name, shape, channel_axis = first
        return wrong_shape(inputs.arrays[0], shape, channel_axis, f"Its first layer, {name},")

    def _channel_axis(self, shape: Shape) -> int:
        return len(shape) - 1 if self.is_channels_last else 1

    def check_runs(self, inputs: Inputs) -> None:
        """Run the whole model once, to see that the layer that it ends with is run once: then it is run up to there.

        That is what a call does first. It is for where a whole run would be seen, as by what watches it.

        Raises:
            ModelError: the layer is run several times, and none of them was chosen; or it is not run.
        """
        if self.end is not None and not self._stops(inputs):
            self._between(inputs, Passage(None, self.end))

    def call(self, inputs: Inputs, start: Start | None = None) -> Tensor:
        """Return the model's outputs, or those of the layer that it ends with.

        Args:
            inputs: what the model is given.
            start: is given the value that the gradient begins at, if that is a layer's, and returns the one that the
                model goes on with; None to leave it as it is.
        """
        if self.is_named_by_trace or not (self.begin or self.end):
            return self.run(inputs)
        return self._between(inputs, Passage(self.begin, self.end, start, stops=self._stops(inputs)))

    def run(self, inputs: Inputs) -> Tensor:
        """Return the whole model's outputs."""
        return inputs.call(self.model)

    def run_watched(self, inputs: Inputs, passage: Passage) -> Tensor:
        """Run the model, watched at some of its layers, and return what it ends with.

        Raises:
            ModelError: the model has no layers by name; or a layer is not run, or several times.
            OptionError: a run was chosen that there is not; or the end comes first.
        """
        del inputs, passage
        raise no_layers(self.model)

    def _between(self, inputs: Inputs, passage: Passage) -> Tensor:
        output = self.run_watched(inputs, passage)
        self._counted.add(_kind_of(inputs))
        return output

    def _stops(self, inputs: Inputs) -> bool:
        """Tell whether nothing is run after the end: its run was chosen, or is known to be the only one."""
        return self.end is not None and (self.end.call is not None or _kind_of(inputs) in self._counted)

    def unremembered(self) -> AbstractContextManager[None]:
        """Give back to the model, at the end, what it remembered of its last call."""
        return nullcontext()

    def parts(self) -> list[Any] | None:
        """Return all that a trace of the model depends on; None if that can't be told."""
        return None

    def layers(self) -> Mapping[str, Layer]:
        """Return the layers by name, in the model's own order.

        Raises:
            ModelError: the model has no layers by name.
        """
        raise no_layers(self.model)

    def layer_names(self, images: Images = None) -> list[str]:
        """Return the names that a layer may be given by; ``images`` for a model that must be traced to tell them.

        Raises:
            ModelError: the model has no layers by name.
        """
        del images
        return list(self.layers())

    def layer_name(self, layer: Layer) -> str | int:
        """Return the name of a layer that is given by itself, by its position or by its name.

        Raises:
            ModelError: the model has no layers by name.
            OptionError: the model has no such layer.
        """
        layers = self.layers()
        names = list(layers)
        if isinstance(layer, int) and -len(names) <= layer < len(names):
            return names[layer]
        if isinstance(layer, str) and layer in names:
            return layer
        if isinstance(layer, (int, str)):
            raise no_layer(layer, names)
        for name, one in layers.items():
            if one is layer:
                return name
        raise OptionError(
            f"layer must be a part of the model; received layer={type(layer).__name__}, which is not in "
            "it. Pass a layer of this model, or its name."
        )

    def run_of(self, layer: Layer) -> Run:
        """Return which run of a layer is meant: of one that is given as for :meth:`layer_name`, or as a pair with it.

        Raises:
            ModelError: the model has no layers by name.
            OptionError: the model has no such layer.
        """
        if is_pair(layer):
            call = checked_call(layer)
            return Run(self.layer_name(layer[0]), call)
        return Run(self.layer_name(layer))

    def between(self, begin: Run | None, end: Run | None) -> Self:
        """Return the network from one layer on, up to another.

        Raises:
            ModelError: the model has no layers.
        """
        return type(self)(self.model, begin, end)

    @abstractmethod
    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        """Return a copy of the model whose layers can be re-initialised.

        Args:
            inputs: some images.
            run: runs a model on them as a method does, forward only, so that the order of the layers is known.
            seed: chooses what layers are re-initialised to.

        Raises:
            ModelError: the model hides its weights, or can't be copied.
            OptionError: the network ends at a value that a copy has no name for.
        """


def _kind_of(inputs: Inputs) -> Hashable:
    """Return what inputs have in common for which a model does the same, whatever their values and number."""
    # In words, for sizes that are free while a model is traced have no hash.
    return inputs.form, tuple((str(tuple(array.shape[1:])), str(array.dtype)) for array in inputs.arrays)


def counts_of(function: Callable[..., object]) -> range:
    """Return how many arguments a function can be given by position: from those that it needs to all."""
    parameters = _parameters_of(function)
    by_position = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = sum(one.default is one.empty for one in by_position)
    has_more = not parameters or any(one.kind is one.VAR_POSITIONAL for one in parameters)
    return range(needed, sys.maxsize if has_more else len(by_position) + 1)


def names_of(function: Callable[..., object]) -> list[str]:
    """Return the names of a function's arguments; none if it takes others as well."""
    parameters = _parameters_of(function)
    has_more = any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)
    return [] if has_more else [one.name for one in parameters]


def _parameters_of(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Return a function's parameters; none if it does not say them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def name_of(model: Model) -> str:
    """Return the name of a function, or what a model is one of."""
    return str(getattr(model, "__qualname__", type(model).__name__))
