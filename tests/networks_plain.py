"""From the reference network to the equal plain function in JAX or TensorFlow, channels last."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

import reference

Step = Callable[[Any, Any], Any]


def to_jax(network: reference.Layer) -> Callable[[Any], Any]:
    """Return a function of images ``(N, h, w, c)`` on JAX arrays, in their dtype."""
    return lambda x: _apply(network, x, JAX)


def to_tensorflow(network: reference.Layer) -> Callable[[Any], Any]:
    """Return a function of images ``(N, h, w, c)`` on TensorFlow tensors, in their dtype."""
    return lambda x: _apply(network, x, TENSORFLOW)


def _apply(layer: Any, x: Any, steps: dict[type, Step]) -> Any:
    if isinstance(layer, reference.Sequential):
        for part in layer.layers:
            x = _apply(part, x, steps)
        return x
    if isinstance(layer, reference.Residual):
        return x + _apply(layer.branch, x, steps)
    return steps[type(layer)](layer, x)


def _pads(layer: Any) -> list[list[int]]:
    return [[side, side] for side in (0, *layer.padding, 0)]


def _scale(layer: reference.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    scale = layer.weight / np.sqrt(layer.variance + layer.epsilon)
    return scale, layer.bias - layer.mean * scale


def _jax_relu(layer: reference.ReLU, x: Any) -> Any:
    return jax.nn.relu(x) if layer.cap is None else jnp.clip(x, 0.0, layer.cap)


def _jax_conv(layer: reference.Conv2d, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer.weight.transpose(2, 3, 1, 0), x.dtype),
        layer.stride,
        _pads(layer)[1:3],
        rhs_dilation=layer.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=layer.groups,
    )
    return y + jnp.asarray(layer.bias, x.dtype)


def _jax_pool(layer: Any, x: Any, start: Any, combine: Any) -> Any:
    return jax.lax.reduce_window(x, start, combine, (1, *layer.kernel, 1), (1, *layer.stride, 1), "VALID")


JAX: dict[type, Step] = {
    reference.ReLU: _jax_relu,
    reference.Conv2d: _jax_conv,
    reference.MaxPool2d: lambda layer, x: _jax_pool(layer, x, -jnp.inf, jax.lax.max),
    reference.AvgPool2d: lambda layer, x: _jax_pool(layer, x, 0.0, jax.lax.add) / (layer.kernel[0] * layer.kernel[1]),
    reference.BatchNorm2d: lambda layer, x: (
        x * jnp.asarray(_scale(layer)[0], x.dtype) + jnp.asarray(_scale(layer)[1], x.dtype)
    ),
    reference.GlobalAveragePool: lambda layer, x: x.mean((1, 2)),
    reference.Flatten: lambda layer, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
    reference.Linear: lambda layer, x: x @ jnp.asarray(layer.weight.T, x.dtype) + jnp.asarray(layer.bias, x.dtype),
}


def _tf_relu(layer: reference.ReLU, x: Any) -> Any:
    return tf.nn.relu(x) if layer.cap is None else tf.clip_by_value(x, 0.0, tf.cast(layer.cap, x.dtype))


def _tf_conv(layer: reference.Conv2d, x: Any) -> Any:
    weight = tf.cast(layer.weight.transpose(2, 3, 1, 0), x.dtype)
    y = tf.nn.conv2d(tf.pad(x, _pads(layer)), weight, layer.stride, "VALID", dilations=layer.dilation)
    return y + tf.cast(layer.bias, x.dtype)


TENSORFLOW: dict[type, Step] = {
    reference.ReLU: _tf_relu,
    reference.Conv2d: _tf_conv,
    reference.MaxPool2d: lambda layer, x: tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID"),
    reference.AvgPool2d: lambda layer, x: tf.nn.avg_pool2d(x, layer.kernel, layer.stride, "VALID"),
    reference.BatchNorm2d: lambda layer, x: x * tf.cast(_scale(layer)[0], x.dtype) + tf.cast(_scale(layer)[1], x.dtype),
    reference.GlobalAveragePool: lambda layer, x: tf.reduce_mean(x, (1, 2)),
    reference.Flatten: lambda layer, x: tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (tf.shape(x)[0], -1)),
    reference.Linear: lambda layer, x: x @ tf.cast(layer.weight.T, x.dtype) + tf.cast(layer.bias, x.dtype),
}
