"""Loader: models that Keras saved, ``model.keras`` or ``model.h5``."""

from collections.abc import Iterator
from typing import Any

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.vision import VisionModel

# Layers that say for themselves what they do to pixels.
_RESCALING = ("Rescaling", "Normalization")


def load(asked: Asked) -> VisionModel:
    """Load a model without what it was trained with.

    Raises:
        MissingExtraError: Keras, or what it runs on, isn't installed.
        ModelError: it can't be loaded, holds Python code, or doesn't say what it is shown.
    """
    keras = asked.package("keras", "tensorflow")
    try:
        network = keras.saving.load_model(asked.name, compile=False, safe_mode=not asked.trust_pickle)
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        unsafe = "safe_mode" in reason or "unsafe" in reason or "lambda" in reason.lower()
        advice = (
            "It holds Python code: pass trust_pickle=True (--trust-pickle) to run that, if you trust who wrote it."
            if unsafe and not asked.trust_pickle
            else "Load it yourself, and pass file.py:function."
        )
        raise ModelError(
            f"model must be a file that Keras can load; received model={asked.spec!r} ({reason:.300}). {advice}"
        ) from error
    return of_network(network, asked)


def of_network(network: Any, asked: Asked) -> VisionModel:
    """Return a Keras model with what it says and what is said of its input.

    Raises:
        ModelError: that isn't all that has to be known.
    """
    # Several inputs have a list of shapes; a model that was never called has none.
    shape = getattr(network, "input_shape", None)
    return asked.vision_model(network, shape if isinstance(shape, tuple) else (), rescales=_rescales(network))


def _rescales(network: Any) -> bool:
    """Tell whether a model rescales pixels itself, before it does anything else that it has learned."""
    for layer in _leaves(network):
        if type(layer).__name__ in _RESCALING:
            return True
        if layer.weights:
            return False
    return False


def _leaves(layer: Any) -> Iterator[Any]:
    """Yield the layers of a model in their order, and those of the models in it."""
    inner = getattr(layer, "layers", None)
    if inner is None:
        yield layer
    for child in inner or ():
        yield from _leaves(child)
