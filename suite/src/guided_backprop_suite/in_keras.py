"""Keras on TensorFlow: networks as models, ways to write their ReLUs, and ways to use the finished model."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from guided_backprop_suite.cases import Asked, Case, Framework, beside_spellings
from guided_backprop_suite.networks import Array, Layer, Network

Function = Callable[[Any], Any]
#: In single precision, for these libraries know no other.
DTYPE = "float32"


def applied(function: Function) -> Function:
    """Return a layer of somebody's own, made afresh for each call: it can be cloned, as layers are."""
    kind = type("Own", (layers.Layer,), {"call": lambda self, x: function(x)})
    return lambda x: kind(dtype=DTYPE)(x)


class Dropping(layers.Layer):  # type: ignore[misc]
    """Dropout that is never off."""

    def call(self, x: Any) -> Any:
        return tf.nn.dropout(x, 0.5)


class Subclassed(keras.Model):  # type: ignore[misc]
    """A model that calls another one."""

    def __init__(self, inner: keras.Model) -> None:
        super().__init__(dtype=DTYPE)
        self.inner = inner

    def call(self, images: Any) -> Any:
        return self.inner(images)


def magnitude(x: Any) -> Any:
    return (x + tf.abs(x)) / 2


def standardise(x: Any) -> Any:
    """Standard scores; the variance is kept from being negative by rounding."""
    mean = tf.reduce_mean(x, (1, 2, 3), keepdims=True)
    variance = tf.maximum(tf.reduce_mean(x * x, (1, 2, 3), keepdims=True) - mean * mean, 0.0)
    return (x - mean) / tf.sqrt(variance + 1e-5)


def filled(layer: layers.Layer, x: Any, *weights: Array) -> Any:
    y = layer(x)
    layer.set_weights(weights)
    return y


def conv(layer: Layer, x: Any) -> Any:
    if any(layer.get("padding", ())):
        x = layers.ZeroPadding2D(layer["padding"], dtype=DTYPE)(x)
    outputs, _, *kernel = layer["weight"].shape
    made = layers.Conv2D(outputs, kernel, layer.get("stride", (1, 1)), activation=layer["activation"], dtype=DTYPE)
    return filled(made, x, layer["weight"].transpose(2, 3, 1, 0), layer["bias"])


def linear(layer: Layer, x: Any) -> Any:
    dense = layers.Dense(len(layer["weight"]), activation=layer["activation"], dtype=DTYPE)
    return filled(dense, x, layer["weight"].T, layer["bias"])


def norm(layer: Layer, x: Any) -> Any:
    arrays = (layer[name] for name in ("weight", "bias", "mean", "variance"))
    return filled(layers.BatchNormalization(epsilon=1e-5, dtype=DTYPE), x, *arrays)


def flat(layer: Layer, x: Any) -> Any:
    order = (3, 1, 2) if layer["kind"] == "flatten" else (1, 2, 3)
    return layers.Flatten(dtype=DTYPE)(layers.Permute(order, dtype=DTYPE)(x))


def model_of(network: Network, relu: Function | None = None, fused: bool = False) -> keras.Model:
    """Return the network, channels last; ``relu`` is its ReLU, ``fused`` makes it the convolutions' activation."""

    def sequential(described: list[Layer], x: Any) -> Any:
        for place, layer in enumerate(described):
            following = described[place + 1]["kind"] if place + 1 < len(described) else ""
            is_before = fused and layer["kind"] in ("conv", "linear") and following == "relu"
            if fused and layer["kind"] == "relu":
                continue
            x = kinds[layer["kind"]](layer | {"activation": "relu" if is_before else None}, x)
        return x

    def product(layer: Layer, x: Any) -> Any:
        first, second = (sequential(branch, x) for branch in layer["branches"])
        if layer["kind"] == "mask":
            return applied(lambda pair: tf.where(pair[0] > 0, pair[1], 0.0))([first, second])
        return layers.Multiply(dtype=DTYPE)([first, second])

    kinds: dict[str, Callable[[Layer, Any], Any]] = {
        "conv": conv,
        "linear": linear,
        "norm": norm,
        "product": product,
        "mask": product,
        "flatten": flat,
        "tokens": flat,
        "relu": lambda layer, x: (relu or layers.ReLU(dtype=DTYPE))(x),
        "residual": lambda layer, x: layers.Add(dtype=DTYPE)([x, sequential(layer["layers"], x)]),
        "max_pool": lambda layer, x: layers.MaxPooling2D(layer["kernel"], dtype=DTYPE)(x),
        "mean": lambda layer, x: layers.GlobalAveragePooling2D(dtype=DTYPE)(x),
        "standardise": lambda layer, x: applied(standardise)(x),
        "root": lambda layer, x: applied(lambda x: tf.sqrt(x + 0.1))(x),
    }
    shape = network.images.shape[1:]
    images = keras.Input((*shape[1:], *shape[:1]), dtype=DTYPE)
    return keras.Model(images, sequential(network.layers, images))


# Ways to write a ReLU, and to use the model.

LAYER = "`layers.ReLU()`"
WRITTEN: dict[str, Function] = {
    '`layers.Activation("relu")`': lambda x: layers.Activation("relu", dtype=DTYPE)(x),
    "`layers.Lambda(tf.nn.relu)`": lambda x: layers.Lambda(tf.nn.relu, dtype=DTYPE)(x),
    "`layers.ReLU(max_value=6)`, values below 6": lambda x: layers.ReLU(max_value=6.0, dtype=DTYPE)(x),
    "`keras.activations.relu(x)`": keras.activations.relu,
    "`ops.relu(x)`": ops.relu,
    "`ops.maximum(x, 0)`": lambda x: ops.maximum(x, 0.0),
    "`ops.where(x > 0, x, 0)`": lambda x: ops.where(x > 0, x, 0.0),
    "`tf.nn.relu(x)` in a layer": applied(tf.nn.relu),
    "`tf.maximum(x, 0)` in a layer": applied(lambda x: tf.maximum(x, tf.zeros((), x.dtype))),
    "`tf.clip_by_value(x, 0, inf)` in a layer": applied(lambda x: tf.clip_by_value(x, 0.0, np.inf)),
    "`x * (x > 0)` in a layer": applied(lambda x: x * tf.cast(x > 0, x.dtype)),
}
ARITHMETIC = "`(x + abs(x)) / 2` in a layer"
CAPPED: dict[str, Function] = {
    "`layers.ReLU(max_value=6)`": WRITTEN["`layers.ReLU(max_value=6)`, values below 6"],
    "`ops.relu6(x)`": ops.relu6,
    "`ops.clip(x, 0, 6)`": lambda x: ops.clip(x, 0.0, 6.0),
}
#: TensorFlow has no gradient of grouped or dilated convolutions on a processor.
SHAPES = {"rows": "three rows of a table", "odd": "one image, one channel, odd sizes"}
TIED: dict[str, Function | None] = {LAYER: None, "`ops.maximum(x, 0)`": WRITTEN["`ops.maximum(x, 0)`"]}


def written(function: Function | None) -> Callable[[Network], keras.Model]:
    return lambda network: model_of(network, function)


def shared(network: Network) -> keras.Model:
    return model_of(network, layers.ReLU(dtype=DTYPE))


def nested(network: Network) -> keras.Model:
    inner = model_of(network)
    images = keras.Input(inner.input_shape[1:], dtype=DTYPE)
    return keras.Model(images, inner(images))


def subclassed(network: Network) -> keras.Model:
    model = Subclassed(model_of(network))
    model(given(network.images))
    return model


def reloaded(network: Network) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        model_of(network).save(Path(folder) / "model.keras")
        return keras.models.load_model(Path(folder) / "model.keras")


def dropping(network: Network) -> keras.Model:
    inner = model_of(network)
    images = keras.Input(inner.input_shape[1:], dtype=DTYPE)
    return keras.Model(images, inner(Dropping(dtype=DTYPE)(images)))


FORMS: dict[str, Callable[[Network], keras.Model]] = {
    "a model in a model": nested,
    "a subclassed model": subclassed,
    "saved as `.keras`, and read": reloaded,
}


def _cases() -> list[Case]:
    rows = [
        Case("spellings", LAYER, "residual", model_of),
        Case("spellings", 'layers with `activation="relu"`', "rows", lambda network: model_of(network, fused=True)),
        Case("spellings", f"one {LAYER} called everywhere", "residual", shared),
        Case("spellings", f"{LAYER} in `x + f(relu(x))`", "shared", model_of),
        *(Case("spellings", name, "residual", written(function)) for name, function in WRITTEN.items()),
        Case("spellings", ARITHMETIC, "residual", written(applied(magnitude)), may_be_refused=True),
        *(Case("forms", name, "residual", build) for name, build in FORMS.items()),
        *(Case("shapes", f"{said}, {LAYER}", name, model_of) for name, said in SHAPES.items()),
    ]
    rows += [
        Case("ties", f"at 0, {name}", "ties", written(function), has_same_gradient=name == LAYER)
        for name, function in TIED.items()
    ]
    rows += [Case("caps", name, "caps", written(function)) for name, function in CAPPED.items()]
    return [
        *rows,
        *beside_spellings(LAYER, model_of),
        Case("state", f"all is left as it was, {LAYER}", "residual", model_of, Asked.STATE),
        Case("random parts", "dropout that is on", "residual", dropping, Asked.REFUSAL),
    ]


# The framework.


def given(images: Array) -> Any:
    """Return images as a tensor, channels last."""
    return tf.constant(np.moveaxis(images, 1, -1), DTYPE)


def back(found: Any) -> Array:
    """Return a map as an array, channels first."""
    return np.moveaxis(np.asarray(found), -1, 1)


def plain_gradient(model: Any, images: Any, labels: Any) -> Any:
    """Return the gradient that TensorFlow itself gives."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(tf.gather(model(images, training=False), labels, batch_dims=1))
    return tape.gradient(score, images)


def state(model: Any) -> Mapping[str, Any]:
    """Return weights, activations, and what layers are trained."""
    found: dict[str, Any] = {f"weight {number}": value for number, value in enumerate(model.get_weights())}
    for layer in model.layers:
        activation = getattr(layer, "activation", None)
        found[layer.name] = (type(layer).__name__, layer.trainable, getattr(activation, "__name__", None))
    return found


KERAS = Framework("keras", _cases(), given, back, lambda model, images: model(images), plain_gradient, state)
