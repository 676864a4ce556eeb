"""Keras 3 on any backend: its layers by name. Keras is looked for among what is imported, never imported."""

import sys
from collections.abc import Callable
from typing import Any

from guided_backprop.errors import ModelError


def is_keras(model: Any) -> bool:
    """Tell whether ``model`` is a Keras layer or model."""
    keras: Any = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Layer)


def is_channels_last(model: Any, *, default: bool) -> bool:
    """Tell whether the model's images are channels-last; ``default`` says so of a model that is not Keras'."""
    return str(sys.modules["keras"].config.image_data_format()) == "channels_last" if is_keras(model) else default


def has_prelu(model: Any) -> bool:
    """Tell whether a Keras model contains a PReLU, which Keras writes with two ReLUs."""
    if not is_keras(model):
        return False
    return any(isinstance(layer, sys.modules["keras"].layers.PReLU) for layer in model._flatten_layers())


def layers_of(model: Any) -> dict[str, Any]:
    """Return the layers of a Keras model by name, in its own order."""
    return {layer.name: layer for layer in getattr(model, "layers", [])}


def run_until(model: Any, name: str) -> Any:
    """Return a model of the same layers and weights that ends with the layer called ``name``.

    Raises:
        ModelError: the model was written as a class, so how its layers are connected is not known.
    """
    return _with_output(model, name, lambda output, inside: inside)


def run_with(model: Any, name: str) -> Any:
    """Return a model of the same layers and weights that returns its outputs, and that of one layer.

    Raises:
        ModelError: the model was written as a class, so how its layers are connected is not known.
    """
    return _with_output(model, name, lambda output, inside: [output, inside])


def _with_output(model: Any, name: str, outputs: Callable[[Any, Any], Any]) -> Any:
    keras = sys.modules["keras"]
    try:
        # A Sequential that was never called knows of lists alone.
        is_list = isinstance(model, keras.Sequential)
        first, last = (model.inputs[0], model.outputs[0]) if is_list else (model.input, model.output)
        return keras.Model(first, outputs(last, layers_of(model)[name].output))
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"a layer can be named in a Functional or Sequential model; received model={type(model).__name__} and "
            f"layer {name!r}. Pass a function that returns the output of that layer."
        ) from error
