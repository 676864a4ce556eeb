"""JAX: networks as functions, ways to write their ReLUs, and ways to use the finished function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from guided_backprop_suite.cases import Case, Framework, beside_spellings
from guided_backprop_suite.networks import Array, Layer, Network

# The oracle's networks are of double precision.
jax.config.update("jax_enable_x64", True)

Function = Callable[[Any], Any]


def standardise(x: Any) -> Any:
    """Standard scores; the variance is kept from being negative by rounding."""
    axes = (1, 2, 3)
    mean = x.mean(axes, keepdims=True)
    variance = jnp.maximum((x * x).mean(axes, keepdims=True) - mean * mean, 0)
    return (x - mean) / jnp.sqrt(variance + 1e-5)


def conv(layer: Layer) -> Function:
    stride, dilation = layer.get("stride", (1, 1)), layer.get("dilation", (1, 1))
    padding = [(side, side) for side in layer.get("padding", (0, 0))]

    def run(x: Any) -> Any:
        y = lax.conv_general_dilated(
            x, layer["weight"], stride, padding, rhs_dilation=dilation, feature_group_count=layer.get("groups", 1)
        )
        return y + layer["bias"][:, None, None]

    return run


def norm(layer: Layer) -> Function:
    scale, shift, mean, variance = (layer[name][:, None, None] for name in ("weight", "bias", "mean", "variance"))
    return lambda x: (x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift


def max_pool(layer: Layer) -> Function:
    size = (1, 1, *layer["kernel"])
    return lambda x: lax.reduce_window(x, -np.inf, lax.max, size, size, "VALID")


def model_of(network: Network, relu: Function = jax.nn.relu, block: Function = lambda branch: branch) -> Function:
    """Return the network as a function; ``relu`` is its ReLU, ``block`` what is done with a residual branch."""

    def sequential(layers: list[Layer]) -> Function:
        functions = [kinds[layer["kind"]](layer) for layer in layers]

        def run(x: Any) -> Any:
            for function in functions:
                x = function(x)
            return x

        return run

    def residual(layer: Layer) -> Function:
        branch = block(sequential(layer["layers"]))
        return lambda x: x + branch(x)

    def product(layer: Layer) -> Function:
        first, second = map(sequential, layer["branches"])
        if layer["kind"] == "mask":
            return lambda x: jnp.where(first(x) > 0, second(x), 0)
        return lambda x: first(x) * second(x)

    kinds: dict[str, Callable[[Layer], Function]] = {
        "conv": conv,
        "norm": norm,
        "residual": residual,
        "product": product,
        "mask": product,
        "max_pool": max_pool,
        "relu": lambda layer: relu,
        "linear": lambda layer: lambda x: x @ layer["weight"].T + layer["bias"],
        "mean": lambda layer: lambda x: x.mean((2, 3)),
        "flatten": lambda layer: lambda x: x.reshape(len(x), -1),
        "standardise": lambda layer: standardise,
        "root": lambda layer: lambda x: jnp.sqrt(x + 0.1),
        "tokens": lambda layer: lambda x: x.reshape(*x.shape[:2], -1).swapaxes(1, 2).reshape(len(x), -1),
    }
    return sequential(network.layers)


# Ways to write a ReLU, and to use the model.


def in_a_loop(x: Any) -> Any:
    return lax.fori_loop(0, 2, lambda turn, y: jnp.maximum(y, 0), x)


RELU = "`jax.nn.relu(x)`"
WRITTEN: dict[str, Function] = {
    RELU: jax.nn.relu,
    "`jax.nn.relu6(x)`, values below 6": jax.nn.relu6,
    "`jnp.maximum(x, 0)`": lambda x: jnp.maximum(x, 0),
    "`jnp.clip(x, 0)`": lambda x: jnp.clip(x, 0),
    "`lax.clamp(0.0, x, inf)`": lambda x: lax.clamp(0.0, x, jnp.inf),
    "`jnp.where(x > 0, x, 0)`": lambda x: jnp.where(x > 0, x, 0),
    "`x * (x > 0)`": lambda x: x * (x > 0),
    "`(x + abs(x)) / 2`": lambda x: (x + jnp.abs(x)) / 2,
    "`-jnp.minimum(-x, 0)`": lambda x: -jnp.minimum(-x, 0),
    "`jnp.sort` of `x` and zeros": lambda x: jnp.sort(jnp.stack([x, jnp.zeros_like(x)]), 0)[1],
    "`jax.jit(jnp.maximum)(x, 0)`": lambda x: jax.jit(jnp.maximum)(x, 0),
    "`lax.map(jax.nn.relu, x)`": lambda x: lax.map(jax.nn.relu, x),
    "in `lax.fori_loop`": in_a_loop,
    "in a branch of `lax.cond` that the image chooses": lambda x: lax.cond(
        x.mean() > -100, jax.nn.relu, lambda x: x, x
    ),
}
FORMS: dict[str, Callable[[Network], Function]] = {
    "`jax.jit(model)`": lambda network: jax.jit(model_of(network)),
    "`jax.vmap` of a model of one image": lambda network: jax.vmap(lambda x: model_of(network)(x[None])[0]),
    "a branch in `jax.checkpoint`": lambda network: model_of(network, block=jax.checkpoint),
}
CAPPED: dict[str, Function] = {
    "`jax.nn.relu6(x)`": jax.nn.relu6,
    "`jnp.clip(x, 0, 6)`": lambda x: jnp.clip(x, 0, 6),
    "`jnp.minimum(jax.nn.relu(x), 6)`": lambda x: jnp.minimum(jax.nn.relu(x), 6),
}
SHAPES = {"rows": "three rows of a table", "odd": "one image, one channel, odd sizes", "grouped": "grouped, dilated"}
TIED = (RELU, "`jnp.maximum(x, 0)`", "`jnp.clip(x, 0)`")


def written(function: Function) -> Callable[[Network], Function]:
    return lambda network: model_of(network, function)


def _cases() -> list[Case]:
    rows = [Case("spellings", name, "residual", written(function)) for name, function in WRITTEN.items()]
    rows += [Case("spellings", f"{RELU} in `x + f(relu(x))`", "shared", model_of)]
    rows += [Case("forms", name, "residual", build) for name, build in FORMS.items()]
    rows += [Case("shapes", f"{said}, {RELU}", name, model_of) for name, said in SHAPES.items()]
    rows += [
        Case("ties", f"at 0, {name}", "ties", written(WRITTEN[name]), has_same_gradient=name == RELU) for name in TIED
    ]
    rows += [Case("caps", name, "caps", written(function)) for name, function in CAPPED.items()]
    return [
        *rows,
        *beside_spellings(RELU, model_of),
    ]


# The framework.


def plain_gradient(model: Function, images: Any, labels: Any) -> Any:
    """Return the gradient that JAX itself gives."""
    return jax.grad(lambda x: model(x)[np.arange(len(labels)), labels].sum())(images)


def state(model: Function) -> Mapping[str, Any]:
    """Return nothing: a function of JAX has no state."""
    return {}


def back(found: Any) -> Array:
    """Return a map as an array."""
    return np.asarray(found)


JAX = Framework("jax", _cases(), jnp.asarray, back, lambda model, images: model(images), plain_gradient, state)
