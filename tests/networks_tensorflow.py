"""From the reference network to the equal function in TensorFlow, channels last."""

import os
from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import reference
from networks import LABELS, attribution, channels_last, dense, mixed

Activation = Callable[[Any], Any]
Model = Callable[[Any], Any]


def to_tensorflow(network: reference.Layer, *activate: Activation, hold: Callable[[Any], Any] = np.asarray) -> Model:
    """Return a function of images ``(N, h, w, c)``, in their dtype.

    ``activate`` says how its ReLUs are written, ``hold`` what keeps its weights. Sizes are constants and biases are no
    sums that might broadcast: the gradients of those take longer to trace than all else.
    """

    def build(layer: Any) -> Callable[[Any, Any], Any]:
        if isinstance(layer, reference.Sequential):
            parts = [build(part) for part in layer.layers]
            return lambda x, turns: reduce(lambda x, part: part(x, turns), parts, x)
        if isinstance(layer, reference.Residual):
            branch = build(layer.branch)
            return lambda x, turns: x + branch(x, turns)
        if isinstance(layer, reference.ReLU):
            return lambda x, turns: next(turns, _relu(layer))(x)
        step = STEPS[type(layer)](layer, hold)
        return lambda x, turns: step(x)

    model = build(network)
    return lambda x: model(x, iter(activate))


class Net(tf.Module):
    """The mixed network with its weights in variables; one activation for all of its three ReLUs, or one for each."""

    def __init__(self, *activate: Activation) -> None:
        super().__init__()
        self.weights: list[tf.Variable] = []
        network = mixed(reference.ReLU(), dilation=1)
        self.model = to_tensorflow(network, *(activate if len(activate) == 3 else activate * 3), hold=self._hold)

    def _hold(self, value: np.ndarray) -> tf.Variable:
        self.weights.append(tf.Variable(value))
        return self.weights[-1]

    def __call__(self, x: Any) -> Any:
        """Return the scores (N, 5)."""
        return self.model(x)


def small_net(*activate: Activation) -> Model:
    """Return the dense network; one activation for all of its three ReLUs, or one for each."""
    return to_tensorflow(dense(reference.ReLU()), *(activate if len(activate) == 3 else activate * 3))


def oracle(rule: reference.Rule = "guided", labels: list[int] = LABELS) -> reference.Array:
    """Return the right map of the mixed network, channels last."""
    return channels_last(attribution(mixed(reference.ReLU(), dilation=1), rule, labels))


def small_oracle(rule: reference.Rule = "guided", cap: float | None = None) -> reference.Array:
    """Return the right map of the dense network, channels last."""
    return channels_last(attribution(dense(reference.ReLU(cap)), rule))


def _relu(layer: reference.ReLU) -> Activation:
    return tf.nn.relu if layer.cap is None else lambda x: tf.clip_by_value(x, 0.0, tf.cast(layer.cap, x.dtype))


def _conv(layer: reference.Conv2d, hold: Callable[[Any], Any]) -> Model:
    weight, bias = hold(layer.weight.transpose(2, 3, 1, 0)), hold(layer.bias)
    pads = [[side, side] for side in (0, *layer.padding, 0)]

    def convolve(x: Any) -> Any:
        kernel, x = tf.cast(weight, x.dtype), tf.pad(x, pads)
        # TensorFlow has no gradient of grouped convolutions on the CPU.
        pairs = zip(tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        outputs = [tf.nn.conv2d(part, own, layer.stride, "VALID", dilations=layer.dilation) for part, own in pairs]
        return tf.nn.bias_add(outputs[0] if layer.groups == 1 else tf.concat(outputs, -1), tf.cast(bias, x.dtype))

    return convolve


def _norm(layer: reference.BatchNorm2d, hold: Callable[[Any], Any]) -> Model:
    scale = layer.weight / np.sqrt(layer.variance + layer.epsilon)
    factor, shift = hold(scale), hold(layer.bias - layer.mean * scale)
    return lambda x: x * tf.cast(factor, x.dtype) + tf.cast(shift, x.dtype)


def _linear(layer: reference.Linear, hold: Callable[[Any], Any]) -> Model:
    weight, bias = hold(layer.weight.T), hold(layer.bias)
    return lambda x: tf.nn.bias_add(x @ tf.cast(weight, x.dtype), tf.cast(bias, x.dtype))


STEPS: dict[type, Callable[[Any, Callable[[Any], Any]], Model]] = {
    reference.Conv2d: _conv,
    reference.MaxPool2d: lambda layer, hold: lambda x: tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID"),
    reference.AvgPool2d: lambda layer, hold: lambda x: tf.nn.avg_pool2d(x, layer.kernel, layer.stride, "VALID"),
    reference.BatchNorm2d: _norm,
    reference.GlobalAveragePool: lambda layer, hold: lambda x: tf.reduce_mean(x, (1, 2)),
    reference.Flatten: lambda layer, hold: lambda x: tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (-1, prod(x.shape[1:]))),
    reference.Linear: _linear,
}
