"""One small residual network, written in every way people write one in JAX.

The same network as in the spellings for PyTorch: a ReLU that is missed anywhere changes the map, and the
reference network says what is right.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import reference

IMAGES = np.random.default_rng(1).normal(size=(4, 3, 8, 8))
CLASSES = 5
Activation = Callable[[Any], Any]
Model = Callable[[Any], Any]


def network(cap: float | None = None, seed: int = 0) -> reference.Sequential:
    """Return a dense reference network: linear, x + linear(relu(x)), relu, linear, relu, linear."""
    rng = np.random.default_rng(seed)
    relu = reference.ReLU(cap)
    layers = (
        reference.Flatten(),
        reference.random_linear(rng, 192, 12),
        reference.Residual(reference.Sequential((relu, reference.random_linear(rng, 12, 12)))),
        relu,
        reference.random_linear(rng, 12, 8),
        relu,
        reference.random_linear(rng, 8, CLASSES),
    )
    return reference.Sequential(layers)


def conv_network(seed: int = 0) -> reference.Sequential:
    """Return the reference network: conv, x + conv(relu(x)), relu, pool, strided grouped conv, norm, relu."""
    rng = np.random.default_rng(seed)
    relu = reference.ReLU()
    layers = (
        reference.random_conv(rng, 3, 4, padding=(1, 1)),
        reference.Residual(reference.Sequential((relu, reference.random_conv(rng, 4, 4, padding=(1, 1))))),
        relu,
        reference.MaxPool2d((2, 2), (2, 2)),
        reference.random_conv(rng, 4, 6, stride=(2, 2), padding=(2, 2), dilation=(2, 2), groups=2),
        reference.random_batch_norm(rng, 6),
        relu,
        reference.Flatten(),
        reference.random_linear(rng, 24, CLASSES),
    )
    return reference.Sequential(layers)


def oracle(labels: list[int], rule: reference.Rule = "guided", cap: float | None = None) -> reference.Array:
    """Return the right map."""
    return reference.attribution(network(cap), IMAGES, np.eye(CLASSES)[labels], rule)


def conv_oracle(labels: list[int], rule: reference.Rule = "guided") -> reference.Array:
    """Return the right map of the convolutional network."""
    return reference.attribution(conv_network(), IMAGES, np.eye(CLASSES)[labels], rule)


def linear(layer: reference.Linear, x: Any) -> Any:
    """The reference's linear layer."""
    return x @ jnp.asarray(layer.weight, x.dtype).T + jnp.asarray(layer.bias, x.dtype)


LAYERS = network().layers


def stem(x: Any) -> Any:
    return linear(LAYERS[1], x.reshape(len(x), -1))


def branch(x: Any) -> Any:
    return linear(LAYERS[2].branch.layers[1], x)


def middle(x: Any) -> Any:
    return linear(LAYERS[4], x)


def scores(x: Any) -> Any:
    return linear(LAYERS[6], x)


def net(*activate: Activation) -> Model:
    """Return the dense network; ``activate`` says how its three ReLUs are written."""
    first, second, third = activate if len(activate) == 3 else activate * 3

    def model(x: Any) -> Any:
        x = stem(x)
        x = second(x + branch(first(x)))
        return scores(third(middle(x)))

    return model


def conv(layer: reference.Conv2d, x: Any) -> Any:
    """The reference's convolution, channels first."""
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(layer.weight, x.dtype),
        layer.stride,
        [(side, side) for side in layer.padding],
        rhs_dilation=layer.dilation,
        feature_group_count=layer.groups,
    )
    return y + jnp.asarray(layer.bias, x.dtype)[:, None, None]


def norm(layer: reference.BatchNorm2d, x: Any) -> Any:
    """The reference's batch normalisation."""
    mean, variance, weight, bias = (
        jnp.asarray(each, x.dtype)[:, None, None] for each in (layer.mean, layer.variance, layer.weight, layer.bias)
    )
    return (x - mean) / jnp.sqrt(variance + layer.epsilon) * weight + bias


def conv_net(x: Any) -> Any:
    """The convolutional network; one ReLU of each common spelling."""
    layers = conv_network().layers
    x = conv(layers[0], x)
    x = jax.nn.relu(x + conv(layers[1].branch.layers[1], jnp.maximum(x, 0)))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = lax.clamp(0.0, norm(layers[5], conv(layers[4], x)), jnp.inf)
    return linear(layers[8], x.reshape(len(x), -1))


ZEROS = np.zeros(1)

ACTIVATIONS: dict[str, Activation] = {
    "jax.nn.relu": jax.nn.relu,
    "jit(relu)": jax.jit(jax.nn.relu),
    "maximum(x, 0)": lambda x: jnp.maximum(x, 0),
    "maximum(0, x)": lambda x: jnp.maximum(0.0, x),
    "maximum(x, x - x)": lambda x: jnp.maximum(x, x - x),
    "maximum(x, zeros_like)": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "maximum(x, zeros of NumPy)": lambda x: jnp.maximum(x, ZEROS),
    "maximum(x, zeros of JAX)": lambda x: jnp.maximum(jnp.asarray(ZEROS) * 3, x),
    "maximum(x, 0 * x)": lambda x: jnp.maximum(x, 0 * x),
    "fmax(x, 0)": lambda x: jnp.fmax(x, 0),
    "fmax(0, x)": lambda x: jnp.fmax(0.0, x),
    "lax.max": lambda x: lax.max(x, lax.full_like(x, 0)),
    "clip(x, 0)": lambda x: jnp.clip(x, 0),
    "clip(x, 0, inf)": lambda x: jnp.clip(x, 0, jnp.inf),
    "x.clip(0)": lambda x: x.clip(0),
    "lax.clamp": lambda x: lax.clamp(0.0, x, jnp.inf),
    "lax.clamp by arrays": lambda x: lax.clamp(jnp.zeros_like(x), x, jnp.full_like(x, jnp.inf)),
    "leaky_relu(slope=0)": lambda x: jax.nn.leaky_relu(x, 0.0),
    "elu(alpha=0)": lambda x: jax.nn.elu(x, 0.0),
    "maximum of twice the negative": lambda x: jnp.maximum(-1 * -x, 0),
    "vmap": jax.vmap(lambda row: jax.nn.relu(row)),
    "vmap of maximum": jax.vmap(jax.vmap(lambda row: jnp.maximum(row, 0))),
    "vmap of an array of zeros": lambda x: jax.vmap(jnp.maximum)(x, jnp.zeros_like(x)),
    "lax.map": lambda x: lax.map(jax.nn.relu, x),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "custom_jvp": jax.custom_jvp(lambda x: jnp.maximum(x, 0)),
}
ACTIVATIONS["custom_jvp"].defjvp(lambda x, t: (jnp.maximum(x[0], 0), t[0] * (x[0] > 0)))

CAPPED: dict[str, Activation] = {
    "clip(0, 1)": lambda x: jnp.clip(x, 0, 1),
    "lax.clamp": lambda x: lax.clamp(0.0, x, 1.0),
    "lax.clamp by arrays": lambda x: lax.clamp(jnp.zeros(()), x, jnp.ones(())),
    "minimum(maximum)": lambda x: jnp.minimum(jnp.maximum(x, 0), 1),
    "maximum(minimum)": lambda x: jnp.maximum(jnp.minimum(x, 1.0), 0),
    "minimum(maximum) by arrays": lambda x: jnp.minimum(jnp.ones_like(x), jnp.maximum(ZEROS, x)),
    "relu6": lambda x: jax.nn.relu6(x * 6) / 6,
}


def scanned(x: Any) -> Any:
    """Two of the ReLUs in turns of a loop: the weights and zeros are what it runs over."""
    x = stem(x)
    layer = LAYERS[2].branch.layers[1]
    weights, flags = jnp.stack([jnp.asarray(layer.weight, x.dtype)] * 2), jnp.array([1.0, 0.0], x.dtype)

    def turn(x: Any, slices: Any) -> tuple[Any, None]:
        weight, flag, zero = slices
        y = jnp.maximum(x, zero) @ weight.T + jnp.asarray(layer.bias, x.dtype)
        return flag * (x + y) + (1 - flag) * jnp.maximum(x, zero), None

    x, _ = lax.scan(turn, x, (weights, flags, jnp.zeros((2, 1))))
    return scores(jax.nn.relu(middle(x)))


def switched(x: Any) -> Any:
    """A branch that the image's own brightness chooses, one that is fixed, and one of three."""
    x = stem(x)
    x = lax.cond(x.sum() > -1e9, lambda x: x + branch(jax.nn.relu(x)), lambda x: x * 3, x)
    x = lax.cond(True, jax.nn.relu, lambda x: x, x)
    return scores(lax.switch(jnp.array(1), [jnp.tanh, lambda x: jnp.maximum(x, 0), lambda x: x], middle(x)))


def looped(x: Any) -> Any:
    """A loop of fixed length."""
    x = stem(x)
    x = lax.fori_loop(0, 1, lambda turn, x: x + branch(jax.nn.relu(x)), x)
    return scores(jax.nn.relu(middle(jax.nn.relu(x))))


def sharded(model: Model) -> Model:
    """The model, one part of the batch on each device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    return jax.shard_map(model, mesh=mesh, in_specs=spec, out_specs=spec)


def on_own_block(x: Any) -> Any:
    """Each block under a checkpoint, with policies."""
    x = jax.checkpoint(lambda x: jax.nn.relu(x + branch(jnp.maximum(x, 0))), prevent_cse=False)(stem(x))
    keep = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda x: scores(jax.nn.relu(middle(x))), policy=keep)(x)


class Object:
    """An object that can be called."""

    def __call__(self, x: Any) -> Any:
        """Return the scores (N, 5)."""
        return net(jax.nn.relu)(x)


FORMS: dict[str, Callable[[], Model]] = {
    "function": lambda: net(jax.nn.relu),
    "object": lambda: Object(),
    "partial": lambda: partial(lambda relu, x: net(relu)(x), jax.nn.relu),
    "jit": lambda: jax.jit(net(jax.nn.relu)),
    "jit of jit": lambda: jax.jit(lambda x: jax.jit(net(jax.jit(lambda x: jnp.maximum(x, 0))))(x)),
    "vmap": lambda: jax.vmap(lambda image: net(jax.nn.relu)(image[None])[0]),
    "vmap of jit": lambda: jax.vmap(jax.jit(lambda image: net(lambda x: jnp.maximum(x, 0))(image[None])[0])),
    "map": lambda: lambda x: lax.map(lambda image: net(jax.nn.relu)(image[None])[0], x),
    "scan": lambda: scanned,
    "cond and switch": lambda: switched,
    "vmap of cond": lambda: jax.vmap(lambda image: switched(image[None])[0]),
    "fori_loop": lambda: looped,
    "checkpoint": lambda: jax.checkpoint(net(jax.nn.relu)),
    "checkpointed blocks": lambda: on_own_block,
    "jit of checkpoint of scan": lambda: jax.jit(jax.checkpoint(scanned)),
    "shard_map": lambda: sharded(net(jax.nn.relu)),
    "jit of shard_map with maximum": lambda: jax.jit(sharded(net(lambda x: jnp.maximum(x, 0)))),
    "scan in shard_map": lambda: sharded(net(lambda x: lax.map(jax.nn.relu, x))),
    "named_call": lambda: jax.named_call(net(jax.nn.relu), name="block"),
}


@jax.custom_vjp
def own_relu(x: Any) -> Any:
    """A ReLU as a custom function."""
    return jnp.maximum(x, 0)


own_relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, g: (g * (x > 0),))


@jax.custom_jvp
def scaled_relu(x: Any, factor: Any) -> Any:
    """A ReLU inside of a larger custom function."""
    return jnp.maximum(x, 0) * factor


scaled_relu.defjvp(lambda x, t: (scaled_relu(*x), t[0] * (x[0] > 0) * x[1]))


# Each is a ReLU, and none of them is one operation.
SPELLED: dict[str, Activation] = {
    "where(x > 0, x, 0)": lambda x: jnp.where(x > 0, x, 0),
    "where(x <= 0, zeros, x)": lambda x: jnp.where(x <= 0, jnp.zeros_like(x), x),
    "where(stop_gradient(x) > 0)": lambda x: jnp.where(lax.stop_gradient(x) > 0, x, 0.0),
    "where(x >= 0, 2 x, 0) / 2": lambda x: jnp.where(x >= 0, 2 * x, 0) / 2,
    "where of an and": lambda x: jnp.where((x > 0) & (x < jnp.inf), x, 0),
    "x * (x > 0)": lambda x: x * (x > 0),
    "(x > 0).astype * x": lambda x: (x > 0).astype(x.dtype) * x,
    "2 * ~(x < 0) * x / 2": lambda x: 2.0 * (~(x < 0)).astype(x.dtype) * x / 2,
    "where on the left": lambda x: jnp.where(jnp.zeros(()) < x, x, 0),
    "mask of the flat": lambda x: (x.ravel() * (x > 0).ravel()).reshape(x.shape),
    "mask of the transposed": lambda x: (x.T * (x > 0).T).T,
    "mask of what was moved and moved back": lambda x: jnp.moveaxis(jnp.moveaxis(x, 0, 1) * 1, 1, 0) * (x > 0),
    "(x + |x|) / 2": lambda x: (x + jnp.abs(x)) / 2,
    "0.3 x + 0.3 |x|": lambda x: (0.3 * x + 0.3 * jnp.abs(x)) / 0.6,
    "(x - -|x|) / 2": lambda x: (x - -jnp.abs(x)) / 2,
    "(x + sqrt(x * x)) / 2": lambda x: (x + jnp.sqrt(x * x)) / 2,
    "(x + sqrt(square)) / 2": lambda x: (x + jnp.sqrt(jnp.square(x))) / 2,
    "(x + max(x, -x)) / 2": lambda x: (x + jnp.maximum(x, -x)) / 2,
    "x - minimum(x, 0)": lambda x: x - jnp.minimum(x, 0),
    "-minimum(-x, 0)": lambda x: -jnp.minimum(-x, 0),
    "x - clip(max=0)": lambda x: x - jnp.clip(x, max=0),
    "x - lax.clamp": lambda x: x - lax.clamp(-jnp.inf, x, 0.0),
    "heaviside": lambda x: x * jnp.heaviside(lax.stop_gradient(x), 0),
    "x * max(sign(x), 0)": lambda x: x * jnp.maximum(lax.stop_gradient(jnp.sign(x)), 0),
    "x * (sign(x) + 1) / 2": lambda x: x * (jnp.sign(x) + 1) / 2,
    "stack and max": lambda x: jnp.stack([x, jnp.zeros_like(x)]).max(0),
    "stack and sort": lambda x: jnp.sort(jnp.stack([x, jnp.zeros_like(x)], -1), -1)[..., 1],
    "select": lambda x: jnp.select([x > 0], [x], 0.0),
    "lax.select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
    "piecewise": lambda x: jnp.piecewise(x, [x > 0], [lambda x: x, 0.0]),
    "vmap of cond": lambda x: jax.vmap(lambda x: lax.cond(x > 0, lambda x: x, lambda x: 0.0 * x, x))(x.ravel()).reshape(
        x.shape
    ),
    "einsum": lambda x: jnp.einsum("nc,nc->nc", x, (x > 0).astype(x.dtype)),
    "where in jit in scan": lambda x: lax.map(jax.jit(lambda x: jnp.where(x > 0, x, 0)), x),
    "where in checkpoint": jax.checkpoint(lambda x: jnp.where(x > 0, x, 0)),
    "mask made outside of a checkpoint": lambda x: jax.checkpoint(lambda x, mask: x * mask)(x, x > 0),
    "custom_vjp": own_relu,
    "custom_jvp": lambda x: scaled_relu(x, jnp.ones((), x.dtype)),
}
