"""A private copy of a Keras model, on any backend, whose layers can be re-initialised."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import Protocol

from guided_backprop.arrays import Layer, Model, NumpyArray, Outputs, Tensor, as_numpy
from guided_backprop.backends.randomize import PrivateCopy, Weight
from guided_backprop.errors import ModelError


class Variable(Protocol):
    """A weight of Keras's, on any backend."""

    name: str
    path: str
    value: Tensor

    def assign(self, value: NumpyArray) -> object: ...


class KerasCopy(PrivateCopy):
    """A model of the same layers and weights. Its layers are those that have weights of their own.

    Args:
        model: the user's model.
        run: runs a model forward on some of the images.
        seed: chooses what layers are re-initialised to.

    Raises:
        ModelError: the model can't be copied.
    """

    def __init__(self, model: Model, run: Callable[[Model], object], seed: int) -> None:
        self.model = _copied(model)
        arrays = [as_numpy(variable.value) for variable in model.weights]
        given = {id(copied): value for copied, value in zip(self.model.weights, arrays, strict=True)}
        last: dict[int, int] = {}
        with _watched(self.model, last):
            run(self.model)
        layers = sorted(_layers(self.model), key=lambda layer: last.get(id(layer), -1))
        names = Counter(layer.name for layer in layers)
        weights: list[Weight] = []
        self._variables: list[Variable] = []
        for layer in layers:
            for variable in _own(layer) if id(layer) in last else ():
                value = given[id(variable)]
                if value.dtype.kind == "f" and value.size:
                    name = layer.name if names[layer.name] == 1 else variable.path.rpartition("/")[0]
                    weights.append(Weight(name, _purpose(layer, variable), value))
                    self._variables.append(variable)
        super().__init__(weights, seed)

    def _assign(self, values: dict[int, NumpyArray]) -> None:
        for index, value in values.items():
            self._variables[index].assign(value)


def _copied(model: Model) -> Model:
    """Return a deep copy; not as copy.deepcopy makes it, which builds layers anew from what they say of themselves."""
    tracking = sys.modules["keras.src.utils.tracking"]
    layers = _inside(model)
    memo: dict[int, object] = {id(layer): object.__new__(type(layer)) for layer in layers}
    memo |= {id(part): part for layer in layers for part in _of_training(layer)}
    # What draws random numbers, as a dropout does in training, holds its backend, which is a module of Python's.
    memo |= {id(module): module for module in list(sys.modules.values())}
    try:
        # Lists and dictionaries of layers are filled again: nothing new that a layer would have to know of.
        with tracking.DotNotTrackScope():
            for layer in layers:
                vars(memo[id(layer)]).update({name: copy.deepcopy(value, memo) for name, value in vars(layer).items()})
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"model must be one that can be copied; received {type(model).__name__} and {type(error).__name__}: "
            f"{reason[0] if reason else ''} Give its layers only what copy.deepcopy can copy."
        ) from error
    return memo[id(model)]


def _of_training(layer: Layer) -> Iterator[object]:
    """Yield what a layer holds that only training uses."""
    keras = sys.modules["keras"]
    for value in vars(layer).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (keras.Loss, keras.Metric, keras.Optimizer)):
                yield part


def _inside(model: Model) -> list[Layer]:
    """Return the model and all layers in it, also those that a layer holds for itself, as a Sequential its graph."""
    keras = sys.modules["keras"]
    layers, left = {}, [model]
    while left:
        layer = left.pop()
        if id(layer) not in layers:
            layers[id(layer)] = layer
            # On torch, a layer is a module too, and holds them as such.
            held = [*vars(layer).values(), *vars(layer).get("_modules", {}).values()]
            left += [*_layers(layer), *(value for value in held if isinstance(value, keras.Layer))]
    return list(layers.values())


@contextmanager
def _watched(model: Model, last: dict[int, int]) -> Iterator[None]:
    """Note of each layer of a copy when it was called last."""
    clock = count()

    def noting(layer: Layer) -> Callable[..., Outputs]:
        # Its number, for a twin of the layer runs it as well.
        inner, number = layer.call, id(layer)

        @wraps(inner)
        def call(*inputs: Tensor, **options: Tensor) -> Outputs:
            last[number] = next(clock)
            return inner(*inputs, **options)

        return call

    layers = _layers(model)
    for layer in layers:
        object.__setattr__(layer, "call", noting(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _layers(model: Model) -> list[Layer]:
    return list(dict.fromkeys(model._flatten_layers()))


def _own(layer: Layer) -> list[Variable]:
    """Return the weights that belong to no layer inside of this one."""
    inside = {id(weight) for inner in layer._flatten_layers(include_self=False) for weight in inner.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]


def _purpose(layer: Layer, variable: Variable) -> str:
    """Return the name of a weight; a depthwise convolution calls its kernel as a convolution does."""
    is_depthwise = type(layer).__name__.startswith("DepthwiseConv") and variable.name == "kernel"
    return "depthwise_kernel" if is_depthwise else str(variable.name)
