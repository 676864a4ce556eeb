"""Keras on any framework: one kind of network for all. Keras is looked for among what is imported, never imported."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from guided_backprop.arrays import Inputs, Layer, Model, Outputs, Tensor
from guided_backprop.backends.keras_copy import KerasCopy
from guided_backprop.backends.mistakes import Shape
from guided_backprop.backends.network import Network
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import ambiguous, no_batch
from guided_backprop.backends.runs import Passage, Run, Start
from guided_backprop.backends.twins import Twins, watch
from guided_backprop.errors import ModelError

# Keras 3, and Keras 2 on TensorFlow, under the name that it has beside Keras 3.
_LIBRARIES = ("keras", "tf_keras")
# Where each has what it notes a call of a layer as, when a model is built.
_NODES = {"keras": "ops.node", "tf_keras": "engine.node"}
# What leads from a layer to all models that it is called in.
_OTHER_MODELS = ("_inbound_nodes", "_outbound_nodes", "_inbound_nodes_value", "_outbound_nodes_value")
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


def _called(model: Model, inputs: Inputs) -> Tensor:
    # Keras takes several inputs as one argument.
    return model(list(inputs.arrays) if inputs.form == "tuple" else inputs.images, training=False)


def _passed(passed: Callable[[Outputs], Outputs], output: Outputs) -> Outputs:
    """Let what a layer returns pass, unless that is a symbol: a Sequential may be put together anew before it runs."""
    value = output
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return output if type(value).__name__ == "KerasTensor" else passed(output)


def _started(start: Start, value: Tensor) -> Tensor:
    """Start with a value; which of its positions count, an embedding says beside it."""
    fresh = start(value)
    masking = sys.modules.get("keras.src.backend.common.masking")
    mask = getattr(value, "_keras_mask", None) if masking is None else masking.get_keras_mask(value)
    if mask is not None and masking is None:
        fresh._keras_mask = mask
    elif mask is not None and masking is not None:
        masking.set_keras_mask(fresh, mask)
    return fresh


class KerasNetwork(Network):
    """A Keras layer or model."""

    def __init__(self, model: Model, begin: Run | None = None, end: Run | None = None) -> None:
        super().__init__(model, begin, end)
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

    def call(self, inputs: Inputs, start: Start | None = None) -> Tensor:
        return super().call(inputs, None if start is None else partial(_started, start))

    def run(self, inputs: Inputs) -> Tensor:
        return _called(self.model, inputs)

    def run_watched(self, inputs: Inputs, passage: Passage) -> Tensor:
        twins, layers = Twins(self._is_part, _OTHER_MODELS), self.layers()
        model = twins.of(self.model)
        for name in passage.layers:
            watch(twins.of(layers[str(name)]), partial(_passed, passage.at(name)))
        return passage.run(lambda: _called(model, inputs))

    def _is_part(self, value: object) -> bool:
        nodes = sys.modules[f"{self._keras.__name__}.src.{_NODES[self._keras.__name__]}"]
        return isinstance(value, (self._keras.layers.Layer, nodes.Node))

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
        parts = [variable.value for variable in self.model.variables]
        for layer in self._all_layers():
            parts += [layer, *vars(layer).values()]
        return parts

    def layers(self) -> dict[str, Layer]:
        """Return the layers by the way to each; those that have the same, numbered."""
        ways = list(self._ways(self.model))
        counts, met = Counter(way for way, _ in ways), Counter[str]()
        layers = {}
        for way, layer in ways:
            layers[way if counts[way] == 1 else f"{way}[{met[way]}]"] = layer
            met[way] += 1
        return layers

    def layer_name(self, layer: Layer) -> str | int:
        """Return the first way to a layer; a string is a way, or the end of one that leads to one layer alone."""
        if not isinstance(layer, str) or layer in self.layers():
            return super().layer_name(layer)
        ends = [way == layer or way.endswith(f"/{layer}") for way, _ in self._ways(self.model)]
        ways = {way: one for is_end, (way, one) in zip(ends, self.layers().items(), strict=True) if is_end}
        if len({id(one) for one in ways.values()}) > 1:
            raise ambiguous(layer, list(ways))
        return next(iter(ways), None) or super().layer_name(layer)

    def _ways(self, model: Model, way: str = "", above: tuple[Layer, ...] = ()) -> Iterator[tuple[str, Layer]]:
        """Yield the layers in a model with the ways to them, each before what is in it."""
        for layer in self._inside(model):
            if not any(layer is one for one in above):
                yield f"{way}{layer.name}", layer
                yield from self._ways(layer, f"{way}{layer.name}/", (*above, layer))

    def _inside(self, model: Model) -> list[Layer]:
        """Return the layers that a layer or model holds itself; a model in its own order, then what else it holds."""
        kinds = self._keras.layers.InputLayer, self._keras.metrics.Metric
        own = list(getattr(model, "layers", []))
        held = model._flatten_layers(include_self=False, recursive=False)
        every = [*own, *(layer for layer in held if not isinstance(layer, kinds))]
        return list({id(layer): layer for layer in every}.values())

    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        if self._keras.__name__ != "keras":
            raise ModelError(
                "the weights of a Keras model can be re-initialised in Keras 3; received "
                f"model={self.name} of {self._keras.__name__}. Build it with keras."
            )
        return KerasCopy(self.model, run, seed)

    def _all_layers(self) -> list[Layer]:
        return list(self.model._flatten_layers())
