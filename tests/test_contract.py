"""One class, three frameworks, one number: the same networks in each framework against the oracle."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import guided_backprop
import networks
import reference
from guided_backprop import GuidedBackprop, ImageError, LabelError, ModelError, compare
from networks import IMAGES, LABELS, NETWORKS, RULES, TOLERANCE
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
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


def explain(framework: str, network: reference.Layer, methods: Sequence[str], dtype: str) -> list[np.ndarray]:
    """Return the map of each method; they share one trace."""
    build, images, back = FRAMEWORKS[framework]
    model = build(network)
    if framework == "torch":
        model = model.to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        given = images(IMAGES.astype(dtype))
        found = compare(given, LABELS, [getattr(guided_backprop, method)(model) for method in methods])
    for explanations in found:
        assert type(explanations.attribution) is type(given)
        assert explanations.attribution.dtype == given.dtype
    return [back(explanations) for explanations in found]


@cache
def explained(framework: str, network: str, dtype: str) -> dict[str, np.ndarray]:
    return dict(zip(RULES, explain(framework, NETWORKS[network], [*RULES], dtype), strict=True))


# Of float32 each kind of layer once, with a cap and without.
CASES = [*((network, "float64") for network in NETWORKS), ("convolutional", "float32"), ("residual, capped", "float32")]


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize(("network", "dtype"), CASES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_contract(framework, network, method, dtype):
    attribution = explained(framework, network, dtype)[method]
    np.testing.assert_allclose(attribution, networks.expected(network, method), **TOLERANCE[dtype])


@pytest.mark.parametrize("fault", ["a ReLU is missing", "a gate is forgotten"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_faults_are_caught(framework, network, fault):
    if fault == "a ReLU is missing":
        (attribution,) = explain(framework, without_one_relu(NETWORKS[network]), ["GuidedBackprop"], "float64")
    else:
        attribution = explained(framework, network, "float64")["Saliency"]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(attribution, networks.expected(network, "GuidedBackprop"), rtol=1e-2, atol=1e-3)


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


# What the method promises around the rule, on each framework.


def made(framework: str) -> tuple[Any, Any]:
    """Return the convolutional network and its images, in float32."""
    build, images, _ = FRAMEWORKS[framework]
    model = build(NETWORKS["convolutional"])
    return (model.float() if framework == "torch" else model), images(IMAGES.astype("float32"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_batches_and_reducers(framework):
    model, images = made(framework)
    whole = GuidedBackprop(model).explain(images, LABELS)
    split = GuidedBackprop(model, batch_size=3).explain(images, np.eye(networks.CLASSES)[LABELS])
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(split.scores, whole.scores, rtol=1e-4)
    axis = whole.channel_axis
    assert np.asarray(whole).shape[axis] == 3
    reductions = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}
    reductions["absmax"] = lambda array, axis: np.abs(array).max(axis)
    for reducer, reduction in reductions.items():
        reduced = GuidedBackprop(model, reducer=reducer).explain(images, LABELS)
        assert type(reduced.attribution) is type(images)
        np.testing.assert_allclose(reduced, reduction(np.asarray(whole), axis), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bad_images_and_labels(framework):
    model, images = made(framework)
    method = GuidedBackprop(model)
    whole = method.explain(images, LABELS)
    for labels in ([0, 1, 2, 5], [0, -1, 2, 3], [0.5] * 4, [0] * 3, "cat", np.zeros((4, 4))):
        with pytest.raises(LabelError, match="received"):
            method.explain(images, labels)
    for bad in (images * float("nan"), images / 0):
        with pytest.raises(ImageError, match="finite"):
            method.explain(bad, LABELS)
    with pytest.raises(ImageError, match="floating"):
        method.explain(integers(framework), LABELS)
    with pytest.raises(ModelError, match="received images of shape"):
        method.explain(images[..., :2] if framework != "torch" else images[:, :2], LABELS)
    assert len(method.explain(images[:0])) == 0
    # Nothing of what went wrong stayed behind.
    np.testing.assert_array_equal(method.explain(images, LABELS), whole)
    np.testing.assert_allclose(np.asarray(images), FRAMEWORKS[framework][1](IMAGES.astype("float32")))


def integers(framework: str) -> Any:
    whole = {"torch": torch.ones, "tensorflow": tf.ones, "jax": jnp.ones}[framework]
    kinds = {"torch": torch.int32, "tensorflow": tf.int32, "jax": jnp.int32}
    return whole((4, 3, 8, 8) if framework == "torch" else (4, 8, 8, 3), dtype=kinds[framework])


USES = {
    "tensorflow": "import tensorflow as tf; f, x = lambda x: tf.nn.relu(x * 2), tf.ones((2, 3))",
    "jax": "import jax, jax.numpy as jnp; f, x = lambda x: jax.nn.relu(x * 2), jnp.ones((2, 3))",
}


@pytest.mark.parametrize("framework", USES)
def test_the_use_of_one_framework_imports_no_other(framework):
    """That of PyTorch is looked at by test_out_of_memory.py, in a process that there is anyway."""
    others = [other for other in FRAMEWORKS if other != framework]
    program = f"""
import sys
{USES[framework]}
before = set(sys.modules)
from guided_backprop import GuidedBackprop
assert str(GuidedBackprop(f).explain(x, 1).coverage) == "relu x1 guided"
print([name for name in {others} if name in set(sys.modules) - before])
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_parameters_of_a_jax_model_are_untouched():
    parameters = {"first": np.random.default_rng(0).normal(size=(4, 6)), "second": np.ones((6, 3))}
    before = {name: value.copy() for name, value in parameters.items()}
    settings = (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    method = GuidedBackprop(lambda x: jax.nn.relu(x @ parameters["first"]) @ parameters["second"])
    images = jnp.ones((2, 4))
    first = np.asarray(method.explain(images, 1))
    with pytest.raises(LabelError):
        method.explain(images, 9)
    np.testing.assert_equal(parameters, before)
    assert settings == (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    parameters["second"][:, 1] = 2
    np.testing.assert_allclose(method.explain(images, 1), 2 * first, rtol=1e-5)
