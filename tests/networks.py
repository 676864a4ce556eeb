"""The small networks of the tests, each described once: the oracle runs the description, the frameworks build it.

``networks_torch``, ``networks_tensorflow``, ``networks_jax`` and ``networks_keras`` build them. Missing any one ReLU
changes the map of each: after every ReLU comes a layer with weights of both signs, so gradients of both signs arrive
at it.
"""

from itertools import pairwise

import numpy as np

import reference

SHAPE = (3, 8, 8)
CLASSES = 5
LABELS = [0, 3, 4, 1]
IMAGES = np.random.default_rng(1).normal(size=(4, *SHAPE))
TOLERANCE = {"float64": {"rtol": 1e-9, "atol": 1e-12}, "float32": {"rtol": 1e-5, "atol": 1e-5}}
RULES: dict[str, reference.Rule] = {"Saliency": "saliency", "DeconvNet": "deconvnet", "GuidedBackprop": "guided"}


def convolutional(relu: reference.ReLU) -> reference.Sequential:
    """Return conv, relu, max-pool, strided conv, batch-norm, relu, global average, linear."""
    rng = np.random.default_rng(0)
    return reference.Sequential(
        (
            reference.random_conv(rng, 3, 4, padding=(1, 1)),
            relu,
            reference.MaxPool2d((2, 2), (2, 2)),
            reference.random_conv(rng, 4, 6, stride=(2, 2), padding=(1, 1)),
            reference.random_batch_norm(rng, 6),
            relu,
            reference.GlobalAveragePool(),
            reference.random_linear(rng, 6, CLASSES),
        )
    )


def residual(relu: reference.ReLU) -> reference.Sequential:
    """Return a pre-activation network: x feeds both the ReLU and the skip, and all ReLUs are one."""
    rng = np.random.default_rng(2)

    def block() -> reference.Residual:
        return reference.Residual(reference.Sequential((relu, reference.random_conv(rng, 4, 4, padding=(1, 1)))))

    stem = reference.random_conv(rng, 3, 4, padding=(1, 1))
    pool = reference.AvgPool2d((2, 2), (2, 2))
    head = (reference.Flatten(), reference.random_linear(rng, 64, CLASSES))
    return reference.Sequential((stem, block(), block(), relu, pool, *head))


def mixed(relu: reference.ReLU, dilation: int = 2) -> reference.Sequential:
    """Return conv, x + conv(relu(x)), relu, max-pool, strided grouped conv, batch-norm, relu, linear.

    What spells its ReLUs in many ways. TensorFlow has no gradient of dilated convolutions on the CPU.
    """
    rng = np.random.default_rng(0)
    last = {"stride": (2, 2), "padding": (dilation, dilation), "dilation": (dilation, dilation), "groups": 2}
    return reference.Sequential(
        (
            reference.random_conv(rng, 3, 4, padding=(1, 1)),
            reference.Residual(reference.Sequential((relu, reference.random_conv(rng, 4, 4, padding=(1, 1))))),
            relu,
            reference.MaxPool2d((2, 2), (2, 2)),
            reference.random_conv(rng, 4, 6, **last),
            reference.random_batch_norm(rng, 6),
            relu,
            reference.Flatten(),
            reference.random_linear(rng, 24, CLASSES),
        )
    )


def dense(relu: reference.ReLU) -> reference.Sequential:
    """Return linear, x + linear(relu(x)), relu, linear, relu, linear: what compiles in a moment."""
    rng = np.random.default_rng(0)
    return reference.Sequential(
        (
            reference.Flatten(),
            reference.random_linear(rng, 192, 12),
            reference.Residual(reference.Sequential((relu, reference.random_linear(rng, 12, 12)))),
            relu,
            reference.random_linear(rng, 12, 8),
            relu,
            reference.random_linear(rng, 8, CLASSES),
        )
    )


def mlp(*sizes: int, seed: int = 0) -> reference.Sequential:
    """Return linear layers between these sizes, with a ReLU of its own between each two."""
    rng = np.random.default_rng(seed)
    linear = [reference.random_linear(rng, *pair) for pair in pairwise(sizes)]
    return reference.Sequential((*(part for layer in linear[:-1] for part in (layer, reference.ReLU())), linear[-1]))


def positions(outputs: int, padding: int = 0) -> reference.Sequential:
    """Return conv of 3 x 3, relu, conv of 1 x 1: scores at each position."""
    rng = np.random.default_rng(0)
    first = reference.random_conv(rng, 3, 4, padding=(padding, padding))
    return reference.Sequential((first, reference.ReLU(), reference.random_conv(rng, 4, outputs, kernel=(1, 1))))


NETWORKS: dict[str, reference.Sequential] = {
    "convolutional": convolutional(reference.ReLU()),
    "residual": residual(reference.ReLU()),
    "convolutional, capped": convolutional(reference.ReLU(6.0)),
    "residual, capped": residual(reference.ReLU(0.5)),
}


def attribution(network: reference.Layer, rule: reference.Rule, labels: list[int] = LABELS) -> reference.Array:
    """Return the oracle's map, ``(N, c, h, w)``."""
    return reference.attribution(network, IMAGES, np.eye(CLASSES)[labels], rule)


def expected(name: str, method: str) -> reference.Array:
    """Return the oracle's map of a network, by the names of both."""
    return attribution(NETWORKS[name], RULES[method])


def channels_last(array: reference.Array) -> reference.Array:
    """Return what is ``(N, c, h, w)`` as ``(N, h, w, c)``."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
