"""On JAX, where no other library has the method: a guided map against JAX's own plain gradient, compiled.

    jax_ratio.py         prints a table in Markdown

Times are of one call, medians over rounds in which both run, after a first call whose time is shown too.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from markdown import print_head, print_row
from small_network import small

from guided_backprop import GuidedBackprop

ROUNDS = 9


def resnet() -> keras.Model:
    return keras.applications.ResNet50(weights=None, classifier_activation=None)


def plain_gradient(model: keras.Model) -> Callable[[Any], Any]:
    """Return the gradient of the fourth output, compiled once, with the weights as arguments."""

    @jax.jit
    def gradient(trained: list[Any], others: list[Any], images: jax.Array) -> jax.Array:
        def score(images: jax.Array) -> jax.Array:
            outputs, _ = model.stateless_call(trained, others, images, training=False)
            return outputs[:, 3].sum()

        return jax.grad(score)(images)

    def run(images: jax.Array) -> jax.Array:
        trained = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        return gradient(trained, others, images).block_until_ready()

    return run


def seconds(function: Callable[[Any], Any], images: jax.Array) -> float:
    start = time.perf_counter()
    function(images)
    return time.perf_counter() - start


def measured(name: str, model: keras.Model, images: jax.Array) -> list[str]:
    method = GuidedBackprop(model)
    contestants = [plain_gradient(model), lambda images: method.explain(images, 3)]
    first = [seconds(function, images) for function in contestants]
    times = np.array([[seconds(function, images) for function in contestants] for _ in range(ROUNDS)])
    ratios = times[:, 1] / times[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    cells = [f"{1000 * np.median(times[:, 0]):.1f} ms", f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
    return [name, str(len(images)), *cells, f"{first[0]:.1f} s", f"{first[1]:.1f} s"]


def main() -> None:
    header = ["model", "images", "plain gradient", "guided / plain", "first plain", "first guided"]
    print_head(header)
    rng = np.random.default_rng(0)
    for name, build, side, sizes in (("small CNN", small, 32, (1, 8)), ("ResNet50", resnet, 224, (1, 8))):
        model = build()
        for size in sizes:
            images = jnp.asarray(rng.normal(size=(size, side, side, 3)), jnp.float32)
            print_row(measured(name, model, images))


if __name__ == "__main__":
    main()
