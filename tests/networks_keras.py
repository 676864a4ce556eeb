"""From the reference network to the equal Keras model, channels last, whatever Keras' backend is."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import reference


def to_keras(network: reference.Layer, shape: tuple[int, int, int], dtype: str = "float64") -> keras.Model:
    """Return the equal functional model of images ``(N, h, w, c)``, with a layer for each ReLU."""
    images = keras.Input(shape, dtype=dtype)
    shared: dict[int, layers.Layer] = {}

    def apply(layer: reference.Layer, x: Any) -> Any:
        return APPLY[type(layer)](layer, x, apply, shared, dtype)

    return keras.Model(images, apply(network, images))


def _filled(layer: layers.Layer, x: Any, *weights: np.ndarray) -> Any:
    y = layer(x)
    layer.set_weights(weights)
    return y


def _conv(layer, x, apply, shared, dtype):
    outputs, _, *kernel = layer.weight.shape
    if any(layer.padding):
        x = layers.ZeroPadding2D(layer.padding, dtype=dtype)(x)
    conv = layers.Conv2D(
        outputs, kernel, strides=layer.stride, dilation_rate=layer.dilation, groups=layer.groups, dtype=dtype
    )
    return _filled(conv, x, layer.weight.transpose(2, 3, 1, 0), layer.bias)


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
