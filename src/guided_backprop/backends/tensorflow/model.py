"""How a TensorFlow model is called: a Keras layer, a SavedModel's signature, or a function."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from guided_backprop.arrays import call, like_inputs
from guided_backprop.backends.base import Score
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.refusals import detached, no_rows, no_score
from guided_backprop.errors import ModelError

# What cuts a gradient off.
CULPRITS = "stop_gradient(), numpy() or argmax()"
_KERAS = ("keras", "tf_keras")
# What a layer remembers of its last call, which a trace must not replace.
_REMEMBERED = ("_losses", "_loss_ids", "_eager_losses")


def is_keras(model: Any) -> bool:
    """Tell whether ``model`` is a Keras layer or model, of Keras 3 or of tf_keras."""
    layers = (sys.modules[name].layers.Layer for name in _KERAS if name in sys.modules)
    return isinstance(model, tuple(layers))


@contextmanager
def unremembered(model: Any) -> Iterator[None]:
    """Give back to each layer what it remembered of its last call; what a trace leaves there is no value."""
    layers = list(model._flatten_layers()) if is_keras(model) else []
    kept = [
        (layer, name, value, value.copy())
        for layer in layers
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


def check_model(model: Any) -> None:
    if is_keras(model) and not model.built:
        raise ModelError(
            "model must have weights; received a Keras model that was never built. Call it once, or build() it."
        )


def callable_of(model: Any, given: Any, output: str | int | None, *, begins_inside: bool) -> Callable[..., Any]:
    """Return what maps inputs, in the form that ``given`` has, to what is explained, in inference mode.

    With ``begins_inside`` the model returns its outputs and one more value, and so does this.
    """

    def forward(*inputs: tf.Tensor) -> Any:
        images = like_inputs(given, list(inputs))
        if is_keras(model):
            # Keras takes several inputs as one argument.
            outputs = model(list(images) if isinstance(images, tuple) else images, training=False)
        elif hasattr(model, "structured_input_signature"):
            outputs = _signature(model, images)
        else:
            outputs = call(model, images)
        inside = []
        if begins_inside:
            outputs, *inside = outputs
        explained = chosen(outputs, output, tf.is_tensor)
        if not isinstance(explained, tf.Tensor) or explained.shape.rank == 0:
            raise no_rows("N", _described(explained), "tensor")
        return (tf.identity(explained), *inside) if inside else tf.identity(explained)

    return forward


def slopes(score: Score, output: tf.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a score's plain derivative at the model's output, and its values ``(N,)``."""
    with tf.GradientTape() as tape:
        tape.watch(output)
        try:
            scores = score(output)
        except Exception as error:
            raise no_score(f"{type(error).__name__}: {error}") from error
    is_rows = isinstance(scores, tf.Tensor) and scores.shape == output.shape[:1]
    if not is_rows or not scores.dtype.is_floating:
        raise no_score(_described(scores))
    slope = tape.gradient(scores, output)
    if slope is None:
        raise detached(CULPRITS)
    slope = tf.convert_to_tensor(slope)
    return tf.cast(slope, tf.float64).numpy(), tf.cast(scores, tf.float64).numpy()


def _described(output: Any) -> str:
    return f"{output.shape} {output.dtype.name}" if isinstance(output, tf.Tensor) else type(output).__name__


def _signature(function: Any, images: Any) -> Any:
    """Call a concrete function; a SavedModel's signature takes inputs by name."""
    names = list(function.structured_input_signature[1])
    is_one = len(names) == 1 and not isinstance(images, (tuple, Mapping))
    return function(**{names[0]: images}) if is_one else call(function, images)
