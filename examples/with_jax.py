"""JAX without any library: parameters, a function of images, and the map of an inner value that ``tap`` names.

Run: python examples/with_jax.py maps.png
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from guided_backprop import GuidedBackprop, Saliency, compare
from guided_backprop.jax import tap


def apply(parameters: list[tuple[jax.Array, jax.Array]], images: jax.Array) -> jax.Array:
    """Return scores ``(N, 10)`` of images ``(N, 8, 8, 1)``."""
    hidden = images.reshape(len(images), -1)
    for number, (weight, bias) in enumerate(parameters[:-1]):
        hidden = tap(f"hidden{number}", jnp.maximum(hidden @ weight + bias, 0))
    weight, bias = parameters[-1]
    return hidden @ weight + bias


@jax.jit
def step(parameters: list[tuple[jax.Array, jax.Array]], images: jax.Array, labels: jax.Array) -> list:
    """Return the parameters after one step of gradient descent."""

    def loss(parameters: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(parameters, images)), labels[:, None], 1).mean()

    return jax.tree.map(lambda value, slope: value - 0.5 * slope, parameters, jax.grad(loss)(parameters))


def main(target: str) -> None:
    """Draw the maps of three digits into ``target``."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16, jnp.float32), jnp.asarray(digits.target)
    rng, sizes = np.random.default_rng(0), [(64, 48), (48, 32), (32, 10)]
    draw = [(rng.normal(size=size) * (2 / size[0]) ** 0.5, np.zeros(size[1])) for size in sizes]
    parameters = [(jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)) for weight, bias in draw]
    for _ in range(300):
        parameters = step(parameters, images[:1500], labels[:1500])

    model, unseen, right = partial(apply, parameters), images[1500:], labels[1500:]
    print(f"{(model(unseen).argmax(1) == right).mean():.0%} of {len(unseen)} digits are right")
    shown = jnp.array([int(jnp.argmax(right == digit)) for digit in (0, 3, 7)])
    found = compare(unseen[shown], right[shown], [Saliency(model), GuidedBackprop(model)])
    found[0].plot(methods=found).savefig(target)
    inside = GuidedBackprop(model, output_layer="hidden0").explain(unseen[shown])
    print(f"{found[1].coverage}; the strongest units of the first layer are {inside.labels.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1])
