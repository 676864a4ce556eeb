"""One class, three frameworks, one number: the same networks in each framework against the oracle."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import contract
import guided_backprop
import reference
from contract import IMAGES, LABELS, NETWORKS, RULES, TOLERANCE
from guided_backprop import GuidedBackprop, ImageError
from networks_plain import to_jax, to_tensorflow
from networks_torch import to_torch

# Framework: the network, the images in its layout, and the map back in the oracle's layout.
FRAMEWORKS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "torch": (to_torch, torch.tensor, np.asarray),
    "tensorflow": (
        to_tensorflow,
        lambda images: tf.constant(images.transpose(0, 2, 3, 1)),
        lambda array: np.asarray(array).transpose(0, 3, 1, 2),
    ),
    "jax": (
        to_jax,
        lambda images: jnp.asarray(images.transpose(0, 2, 3, 1)),
        lambda array: np.asarray(array).transpose(0, 3, 1, 2),
    ),
}


def explain(framework: str, network: reference.Layer, method: str, dtype: str) -> np.ndarray:
    build, images, back = FRAMEWORKS[framework]
    model = build(network)
    if framework == "torch":
        model = model.to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        given = images(IMAGES.astype(dtype))
        explanations = getattr(guided_backprop, method)(model).explain(given, LABELS)
    assert type(explanations.attribution) is type(given)
    assert explanations.attribution.dtype == given.dtype
    return back(explanations)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_contract(framework, network, method, dtype):
    attribution = explain(framework, NETWORKS[network], method, dtype)
    np.testing.assert_allclose(attribution, contract.expected(network, method), **TOLERANCE[dtype])


@pytest.mark.parametrize("fault", ["a ReLU is missing", "a gate is forgotten"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_faults_are_caught(framework, network, fault):
    method = "GuidedBackprop" if fault == "a ReLU is missing" else "Saliency"
    planted = without_one_relu(NETWORKS[network]) if fault == "a ReLU is missing" else NETWORKS[network]
    attribution = explain(framework, planted, method, "float64")
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(attribution, contract.expected(network, "GuidedBackprop"), rtol=1e-2, atol=1e-3)


def without_one_relu(network: reference.Sequential) -> reference.Sequential:
    """Return the network without its last ReLU: the smallest change of a network that must be seen."""
    last = max(i for i, layer in enumerate(network.layers) if isinstance(layer, reference.ReLU))
    return reference.Sequential(tuple(layer for i, layer in enumerate(network.layers) if i != last))


def test_a_plain_function_is_of_the_framework_of_its_images():
    method = GuidedBackprop(lambda x: (x * (x.shape[0] > 0) - 1) @ x.T)
    with pytest.raises(ImageError, match="received images=ndarray"):
        method.explain(IMAGES.reshape(4, -1))
    with pytest.raises(ImageError, match="received images=list"):
        method.explain([1.0])
