"""From the reference network to the equal function in JAX, channels last."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reference
from networks import IMAGES, LABELS, attribution, channels_last, dense

Activation = Callable[[Any], Any]
Model = Callable[[Any], Any]


def to_jax(network: reference.Layer, *activate: Activation) -> Model:
    """Return a function of images ``(N, h, w, c)``, in their dtype; ``activate`` says how its ReLUs are written."""
    return lambda x: _apply(network, x, iter(activate))


def net(*activate: Activation) -> Model:
    """Return the dense network; one activation for all of its three ReLUs, or one for each."""
    return to_jax(dense(reference.ReLU()), *(activate if len(activate) == 3 else activate * 3))


def oracle(rule: reference.Rule = "guided", cap: float | None = None, labels: list[int] = LABELS) -> reference.Array:
    """Return the right map of the dense network, channels last."""
    return channels_last(attribution(dense(reference.ReLU(cap)), rule, labels))


def outputs() -> reference.Array:
    """Return what the dense network says of the images."""
    return dense(reference.ReLU()).forward(IMAGES)[0]


def _apply(layer: Any, x: Any, turns: Any) -> Any:
    if isinstance(layer, reference.Sequential):
        for part in layer.layers:
            x = _apply(part, x, turns)
        return x
    if isinstance(layer, reference.Residual):
        return x + _apply(layer.branch, x, turns)
    if isinstance(layer, reference.ReLU):
        return next(turns, _relu(layer))(x)
    return STEPS[type(layer)](layer, x)


def _relu(layer: reference.ReLU) -> Activation:
    return jax.nn.relu if layer.cap is None else lambda x: jnp.clip(x, 0.0, layer.cap)


def _conv(layer: reference.Conv2d, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer.weight.transpose(2, 3, 1, 0), x.dtype),
        layer.stride,
        [(side, side) for side in layer.padding],
        rhs_dilation=layer.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=layer.groups,
    )
    return y + jnp.asarray(layer.bias, x.dtype)


def _pool(layer: Any, x: Any, start: Any, combine: Any) -> Any:
    return jax.lax.reduce_window(x, start, combine, (1, *layer.kernel, 1), (1, *layer.stride, 1), "VALID")


def _norm(layer: reference.BatchNorm2d, x: Any) -> Any:
    scale = layer.weight / np.sqrt(layer.variance + layer.epsilon)
    return x * jnp.asarray(scale, x.dtype) + jnp.asarray(layer.bias - layer.mean * scale, x.dtype)


STEPS: dict[type, Callable[[Any, Any], Any]] = {
    reference.Conv2d: _conv,
    reference.MaxPool2d: lambda layer, x: _pool(layer, x, -jnp.inf, jax.lax.max),
    reference.AvgPool2d: lambda layer, x: _pool(layer, x, 0.0, jax.lax.add) / (layer.kernel[0] * layer.kernel[1]),
    reference.BatchNorm2d: _norm,
    reference.GlobalAveragePool: lambda layer, x: x.mean((1, 2)),
    reference.Flatten: lambda layer, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
    reference.Linear: lambda layer, x: x @ jnp.asarray(layer.weight.T, x.dtype) + jnp.asarray(layer.bias, x.dtype),
}
