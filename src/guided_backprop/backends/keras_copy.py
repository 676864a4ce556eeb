"""A private copy of a Keras model, on any backend, whose layers can be re-initialised."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import Any

from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.randomize import PrivateCopy, Weight
from guided_backprop.errors import ModelError


class KerasCopy(PrivateCopy):
    """A model of the same configuration and weights. Its layers are those that have weights of their own.

    Args:
        model: the user's model.
        run: runs a model forward on some of the images.
        seed: chooses what layers are re-initialised to.

    Raises:
        ModelError: the model can't be built anew from its configuration.
    """

    def __init__(self, model: Any, run: Callable[[Any], Any], seed: int) -> None:
        self.model = _copied(model)
        values = [as_numpy(variable.value) for variable in model.weights]
        given = {id(copied): value for copied, value in zip(self.model.weights, values, strict=True)}
        last: dict[int, int] = {}
        with _watched(self.model, last):
            run(self.model)
        layers = sorted(_layers(self.model), key=lambda layer: last.get(id(layer), -1))
        names = Counter(layer.name for layer in layers)
        weights: list[Weight] = []
        self._variables: list[Any] = []
        for layer in layers:
            for variable in _own(layer) if id(layer) in last else ():
                value = given[id(variable)]
                if value.dtype.kind == "f" and value.size:
                    name = layer.name if names[layer.name] == 1 else variable.path.rpartition("/")[0]
                    weights.append(Weight(name, _purpose(layer, variable), value))
                    self._variables.append(variable)
        super().__init__(weights, seed)

    def _assign(self, values: dict[int, NDArray[Any]]) -> None:
        for index, value in values.items():
            self._variables[index].assign(value)


def _copied(model: Any) -> Any:
    """Return a model of the same configuration and weights."""
    keras = sys.modules["keras"]
    # Of whatever layer draws for itself what its configuration does not say.
    drawn = random.getstate()
    try:
        with keras.saving.custom_object_scope({type(layer).__name__: type(layer) for layer in _layers(model)}):
            copied = type(model).from_config(_seeded(model.get_config()))
        if not copied.built:
            copied.build_from_config(model.get_build_config())
        for variable, own in zip(copied.weights, model.weights, strict=True):
            variable.assign(own.value)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            "a Keras model can be copied if from_config(get_config()) builds it anew; received "
            f"{type(model).__name__} and {type(error).__name__}: {reason[0] if reason else ''} "
            "Write get_config() for its classes, or make it a Functional or Sequential model."
        ) from error
    finally:
        if random.getstate() != drawn:
            random.setstate(drawn)
    return copied


def _seeded(config: Any) -> Any:
    """Return a configuration with a seed wherever there is none: else one is drawn from Python's global generator."""
    if isinstance(config, dict):
        return {key: 0 if key == "seed" and value is None else _seeded(value) for key, value in config.items()}
    return type(config)(map(_seeded, config)) if type(config) in (list, tuple) else config


@contextmanager
def _watched(model: Any, last: dict[int, int]) -> Iterator[None]:
    """Note of each layer of a copy when it was called last."""
    clock = count()

    def noting(layer: Any) -> Callable[..., Any]:
        inner = layer.call

        @wraps(inner)
        def call(*inputs: Any, **options: Any) -> Any:
            last[id(layer)] = next(clock)
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


def _layers(model: Any) -> list[Any]:
    return list(dict.fromkeys(model._flatten_layers()))


def _own(layer: Any) -> list[Any]:
    """Return the weights that belong to no layer inside of this one."""
    inside = {id(weight) for each in layer._flatten_layers(include_self=False) for weight in each.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]


def _purpose(layer: Any, variable: Any) -> str:
    """Return the name of a weight; a depthwise convolution calls its kernel as a convolution does."""
    is_depthwise = type(layer).__name__.startswith("DepthwiseConv") and variable.name == "kernel"
    return "depthwise_kernel" if is_depthwise else str(variable.name)
