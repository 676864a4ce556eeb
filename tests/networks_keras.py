"""From the reference network to the equal Keras model, channels last, whatever Keras' backend is."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import reference
from networks import mixed

Activation = Callable[[Any], Any]


def to_keras(
    network: reference.Layer, shape: tuple[int | None, int | None, int], dtype: str = "float64", *activate: Activation
) -> keras.Model:
    """Return the equal functional model of images ``(N, h, w, c)``; ``activate`` says how its ReLUs are written.

    Without ``activate`` there is a layer for each ReLU, and one that is used twice is one layer that is used twice.
    """
    images = keras.Input(shape, dtype=dtype)
    shared: dict[int, layers.Layer] = {}
    turns = iter(activate)

    def apply(layer: reference.Layer, x: Any) -> Any:
        if isinstance(layer, reference.ReLU) and activate:
            return next(turns)(x)
        return APPLY[type(layer)](layer, x, apply, shared, dtype)

    return keras.Model(images, apply(network, images))


def net(*activate: Activation, cap: float | None = None) -> keras.Model:
    """Return the mixed network; one activation for all of its three ReLUs, or one for each."""
    network = mixed(reference.ReLU(cap), dilation=1)
    return to_keras(network, (8, 8, 3), "float64", *(activate if len(activate) == 3 else activate * 3))


def _filled(layer: layers.Layer, x: Any, *weights: np.ndarray) -> Any:
    y = layer(x)
    layer.set_weights(weights)
    return y


def _conv(layer, x, apply, shared, dtype):
    if any(layer.padding):
        x = layers.ZeroPadding2D(layer.padding, dtype=dtype)(x)
    # TensorFlow has no gradient of grouped convolutions on the CPU.
    size, inputs = len(layer.weight) // layer.groups, layer.weight.shape[1]
    outputs = []
    for group in range(layer.groups):
        rows, columns = slice(size * group, size * (group + 1)), slice(inputs * group, inputs * (group + 1))
        conv = layers.Conv2D(size, layer.weight.shape[2:], layer.stride, dilation_rate=layer.dilation, dtype=dtype)
        part = x if layer.groups == 1 else x[..., columns]
        outputs.append(_filled(conv, part, layer.weight[rows].transpose(2, 3, 1, 0), layer.bias[rows]))
    return outputs[0] if layer.groups == 1 else layers.Concatenate(dtype=dtype)(outputs)


def _linear(layer, x, apply, shared, dtype):
    return _filled(layers.Dense(len(layer.weight), dtype=dtype), x, layer.weight.T, layer.bias)


def _norm(layer, x, apply, shared, dtype):
    norm = layers.BatchNormalization(epsilon=layer.epsilon, dtype=dtype)
    return _filled(norm, x, layer.weight, layer.bias, layer.mean, layer.variance)


def _relu(layer, x, apply, shared, dtype):
    return shared.setdefault(id(layer), layers.ReLU(max_value=layer.cap, dtype=dtype))(x)


def _flatten(layer, x, apply, shared, dtype):
    return layers.Flatten(dtype=dtype)(layers.Permute((3, 1, 2), dtype=dtype)(x))


def _sequential(layer, x, apply, shared, dtype):
    for part in layer.layers:
        x = apply(part, x)
    return x


APPLY: dict[type, Callable[..., Any]] = {
    reference.ReLU: _relu,
    reference.Conv2d: _conv,
    reference.Linear: _linear,
    reference.BatchNorm2d: _norm,
    reference.Flatten: _flatten,
    reference.Sequential: _sequential,
    reference.Residual: lambda layer, x, apply, shared, dtype: layers.Add(dtype=dtype)([x, apply(layer.branch, x)]),
    reference.MaxPool2d: lambda layer, x, apply, shared, dtype: layers.MaxPooling2D(
        layer.kernel, layer.stride, dtype=dtype
    )(x),
    reference.AvgPool2d: lambda layer, x, apply, shared, dtype: layers.AveragePooling2D(
        layer.kernel, layer.stride, dtype=dtype
    )(x),
    reference.GlobalAveragePool: lambda layer, x, apply, shared, dtype: layers.GlobalAveragePooling2D(dtype=dtype)(x),
}
