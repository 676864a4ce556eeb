"""The network that hides a ReLU, as tests of what is spelled build it in each framework, and its guided map."""

import numpy as np
import pytest

#: Weights and images, in single precision: ``(12, 12)``, ``(12, 20)``, ``(20, 9)``, and ``(4, 12)``.
WEIGHTS = tuple(
    np.random.default_rng(seed).normal(size=size).astype("float32") / 3
    for seed, size in enumerate([(12, 12), (12, 20), (20, 9)])
)
ROWS = np.random.default_rng(7).normal(size=(4, 12)).astype("float32")


def oracle():
    """Return the guided map of ``tanh(relu(relu(x @ a) @ b - .2) @ c)[:, 1]``, from the formulas alone."""
    first, second, third, x = (array.astype(float) for array in (*WEIGHTS, ROWS))
    hidden = np.maximum(x @ first, 0)
    inner = np.maximum(hidden @ second - 0.2, 0)
    g = (1 - np.tanh(inner @ third)[:, 1:2] ** 2) * third[:, 1]
    g = np.maximum(g, 0) * (inner > 0) @ second.T
    return np.maximum(g, 0) * (hidden > 0) @ first.T


class Library:
    """What spellings need of JAX or TensorFlow, under one name each."""

    def __init__(self, framework):
        self.xp = pytest.importorskip({"jax": "jax.numpy"}.get(framework, framework))
        if framework == "jax":
            jax = pytest.importorskip("jax")
            self.relu, self.stopped, self.array = jax.nn.relu, jax.lax.stop_gradient, self.xp.asarray
            self.cast, self.bits = (lambda x, kind: x.astype(kind)), jax.lax.bitcast_convert_type
            self.sum, self.max = (lambda x: x.sum(1)[:, None]), (lambda x: x.max(1)[:, None])
        else:
            self.relu, self.stopped, self.array = self.xp.nn.relu, self.xp.stop_gradient, self.xp.constant
            self.cast, self.bits = self.xp.cast, self.xp.bitcast
            self.sum, self.max = (
                (lambda x: self.xp.reduce_sum(x, 1)[:, None]),
                (lambda x: self.xp.reduce_max(x, 1)[:, None]),
            )
