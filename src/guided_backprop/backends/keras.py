"""Keras on any framework: one kind of network for all. Keras is looked for among what is imported, never imported."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Self

from guided_backprop.arrays import Inputs, Layer, Model, Tensor
from guided_backprop.backends.keras_copy import KerasCopy
from guided_backprop.backends.mistakes import Shape
from guided_backprop.backends.network import Network
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import no_batch
from guided_backprop.errors import ModelError

# Keras 3, and Keras 2 on TensorFlow, under the name that it has beside Keras 3.
_LIBRARIES = ("keras", "tf_keras")
# What a layer remembers of its last call, which a trace must not replace.
_REMEMBERED = ("_losses", "_loss_ids", "_eager_losses")


def is_keras(model: Model) -> bool:
    """Tell whether ``model`` is a Keras layer or model."""
    return _library_of(model) is not None


def framework_of_keras(model: Model) -> str | None:
    """Return what Keras runs on, if ``model`` is a layer or model of Keras 3."""
    keras = _library_of(model)
    return str(keras.config.backend()) if keras is not None and keras.__name__ == "keras" else None


def _library_of(model: Model) -> ModuleType | None:
    """Return the library that ``model`` is a layer or model of."""
    imported = (sys.modules[name] for name in _LIBRARIES if name in sys.modules)
    return next((library for library in imported if isinstance(model, library.layers.Layer)), None)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for want, size in zip(wanted, shape, strict=True))


class KerasNetwork(Network):
    """A Keras layer or model.

    Args:
        model: the user's model.
        called: what is called in its place: a model of the same layers that ends, or returns more, elsewhere.
    """

    def __init__(self, model: Model, called: Model = None) -> None:
        super().__init__(model)
        self._called = model if called is None else called
        library = _library_of(model)
        assert library is not None
        self._keras: Any = library

    @property
    def name(self) -> str:
        return type(self.model).__name__

    @property
    def is_channels_last(self) -> bool:
        return str(self._keras.backend.image_data_format()) == "channels_last"

    def check(self) -> None:
        if not self.model.built:
            raise ModelError(
                "model must have weights; received a Keras model that was never built. Call it once, or build() it."
            )

    def check_inputs(self, inputs: Inputs) -> None:
        specs = self.input_shapes()
        # By name, or one for several: what is whose is Keras' matter.
        if inputs.form not in ("one", "tuple") or not specs or len(specs) != len(inputs.arrays):
            return
        for array, spec in zip(inputs.arrays, specs, strict=True):
            wanted, shape = spec[1:], tuple(array.shape)
            # Keras itself puts an axis of one channel behind images that have none.
            is_without_channel = wanted[1:] and wanted[-1] == 1 and shape[-1] != 1 and _fits(shape[1:], wanted[:-1])
            if _fits(shape, wanted) and not is_without_channel:
                raise no_batch(shape)

    def input_counts(self) -> range:
        shapes = self.input_shapes()
        # Keras takes several inputs as one argument, so a signature says nothing.
        return range(1, sys.maxsize) if shapes is None else range(len(shapes), len(shapes) + 1)

    def input_names(self) -> list[str]:
        # What Keras takes for a name, its own error says.
        return []

    def first_layer(self) -> tuple[str, Shape, int] | None:
        """Return the first layer that says what it wants: so many axes, and a size of one of them."""
        for layer in self._all_layers():
            spec = getattr(layer, "input_spec", None)
            axes, count = getattr(spec, "axes", None), getattr(spec, "ndim", None) or getattr(spec, "min_ndim", None)
            if axes and count:
                shape: list[int | None] = [None] * count
                for axis, size in axes.items():
                    shape[axis] = size
                return str(layer.name), shape, next(iter(axes)) % count
        return None

    def input_shapes(self) -> list[tuple[int | None, ...]] | None:
        inputs = getattr(self.model, "inputs", None)
        return [tuple(one.shape) for one in inputs] if inputs else None

    def call(self, inputs: Inputs) -> Tensor:
        # Keras takes several inputs as one argument.
        return self._called(list(inputs.arrays) if inputs.form == "tuple" else inputs.images, training=False)

    @contextmanager
    def unremembered(self) -> Iterator[None]:
        """Give back to each layer what it remembered of its last call; what a trace leaves there is no value."""
        kept = [
            (layer, name, value, value.copy())
            for layer in self._all_layers()
            for name, value in vars(layer).items()
            if name in _REMEMBERED and hasattr(value, "copy")
        ]
        try:
            yield
        finally:
            for layer, name, value, copy in kept:
                value.clear()
                value.update(copy) if isinstance(copy, set) else value.extend(copy)
                object.__setattr__(layer, name, value)

    def parts(self) -> list[object]:
        """Return the values of all variables, and each layer with its attributes."""
        parts = [variable.value for variable in self._called.variables]
        for layer in self._all_layers():
            parts += [layer, *vars(layer).values()]
        return parts

    def layers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in getattr(self.model, "layers", [])}

    def until(self, name: str | int) -> Self:
        return self._with_output(name, lambda output, inside: inside)

    def beginning_at(self, name: str | int) -> Self:
        return self._with_output(name, lambda output, inside: [output, inside])

    def _with_output(self, name: str | int, outputs: Callable[[Tensor, Tensor], Tensor | list[Tensor]]) -> Self:
        """Return the network of the same layers and weights with other outputs."""
        model = self.model
        try:
            # A Sequential that was never called knows of lists alone.
            is_list = isinstance(model, self._keras.Sequential)
            first, last = (model.inputs[0], model.outputs[0]) if is_list else (model.input, model.output)
            called = self._keras.Model(first, outputs(last, self.layers()[str(name)].output))
        except (AttributeError, ValueError) as error:
            raise ModelError(
                "a layer can be named in a Functional or Sequential model; received "
                f"model={type(model).__name__} and layer {name!r}. Pass a function that returns the output of that "
                "layer."
            ) from error
        return type(self)(model, called)

    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        if self._keras.__name__ != "keras":
            raise ModelError(
                "the weights of a Keras model can be re-initialised in Keras 3; received "
                f"model={self.name} of {self._keras.__name__}. Build it with keras."
            )
        return KerasCopy(self.model, run, seed)

    def _all_layers(self) -> list[Layer]:
        return list(self._called._flatten_layers())
