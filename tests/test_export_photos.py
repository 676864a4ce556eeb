"""Programs of JAX and SavedModels that take photos, and scale them: the map of their pixels, as in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

from guided_backprop import GradCAM, GuidedBackprop, GuidedGradCAM, ImageError, ModelError, OptionError, SmoothGrad
from guided_backprop.backends.jax import export as jax_export
from guided_backprop.backends.tensorflow import export as tensorflow_export
from guided_backprop.export.photos import Photos
from guided_backprop.jax import tap
from guided_backprop.models import ResizeCrop

RNG = np.random.default_rng(0)
RECIPE = ResizeCrop((7, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), channels_last=True)
FIRST = ResizeCrop((7, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
PIXELS = RNG.integers(0, 256, (3, 7, 8, 3), np.uint8)
LARGER = RNG.integers(0, 256, (3, 9, 14, 3), np.uint8)
KERNEL, DENSE = RNG.normal(size=(3, 3, 3, 4)).astype("f4"), RNG.normal(size=(4, 5)).astype("f4")


def in_jax(x):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "VALID", dimension_numbers=dims)
    return tap("conv", jax.nn.relu(y)).mean((1, 2)) @ DENSE


def channels_first(x):
    return in_jax(jnp.moveaxis(x, 1, -1))


def in_tensorflow(x):
    return tf.linalg.matmul(tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "VALID")), (1, 2)), DENSE)


def scaled(pixels):
    """Scale as the recipe says, worked out here."""
    return (pixels * np.float32(1 / 255) - np.array(RECIPE.mean, "f4")) / np.array(RECIPE.std, "f4")


def oracle(pixels, labels):
    """Return guided maps of pixels of the network above, from the formulas alone."""
    x = scaled(pixels.astype(np.float64))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    y = np.einsum("nhwcij,ijco->nhwo", windows, KERNEL)
    g = np.maximum(DENSE[:, labels].T[:, None, None] / y[0, ..., 0].size, 0) * (y > 0)
    found = np.zeros(x.shape)
    for i in range(3):
        for j in range(3):
            found[:, i : i + y.shape[1], j : j + y.shape[2]] += np.einsum("nhwo,co->nhwc", g, KERNEL[i, j])
    return found / 255 / RECIPE.std


def run(exported, pixels, labels):
    if exported.path.suffix:
        engine = jax_export.StableHlo(exported.path, exported.outputs)
    else:
        engine = tensorflow_export.SavedModel(exported.path, exported.outputs)
    return engine.run({"photos": pixels, "labels": np.asarray(labels)})


MODELS = {
    "jax": (in_jax, RECIPE, jnp.asarray, "map.stablehlo"),
    "channels first": (channels_first, FIRST, jnp.asarray, "map.stablehlo"),
    "tensorflow": (in_tensorflow, RECIPE, tf.constant, "map"),
}


# JAX has channels last, as far as positions are asked for.
@pytest.mark.parametrize(
    ("framework", "sizes"),
    [*((name, "fixed") for name in MODELS), ("jax", "dynamic"), ("tensorflow", "dynamic")],
)
def test_photos_are_scaled_in_the_graph(framework, sizes, tmp_path):
    model, recipe, kind, name = MODELS[framework]
    images = kind(Photos.of(recipe).images(PIXELS, np.float32))
    exported = GuidedBackprop(model).export(tmp_path / name, images, photos=recipe, sizes=sizes)
    assert exported.inputs == ("photos", "labels")
    pixels = LARGER if sizes == "dynamic" else PIXELS[::-1]
    results = run(exported, pixels, [4, 0, 1])
    assert_allclose(results["attribution"], oracle(pixels, [4, 0, 1]), rtol=1e-4, atol=1e-7)
    assert results["is_finite"].all()
    # Planted faults: of other classes, and the map of images.
    assert not np.allclose(results["attribution"], oracle(pixels, [0, 1, 2]), rtol=1e-4, atol=1e-7)
    of_images = oracle(pixels, [4, 0, 1]) * 255 * RECIPE.std
    assert not np.allclose(results["attribution"], of_images, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_channels_of_pixels_are_reduced(framework, tmp_path):
    model, recipe, kind, name = MODELS[framework]
    images = kind(Photos.of(recipe).images(PIXELS, np.float32))
    exported = GuidedBackprop(model, reducer="absmax").export(tmp_path / name, images, photos=recipe)
    found = run(exported, PIXELS, [4, 0, 1])["attribution"]
    assert_allclose(found, np.abs(oracle(PIXELS, [4, 0, 1])).max(-1), rtol=1e-4, atol=1e-7)
    assert not np.allclose(found, oracle(PIXELS, [4, 0, 1]).sum(-1), rtol=1e-4, atol=1e-7)


def test_maps_at_layers_of_photos(tmp_path):
    images = jnp.asarray(Photos.of(RECIPE).images(PIXELS, np.float32))
    cam = GradCAM(in_jax, "conv")
    exported = cam.export(tmp_path / "cam.stablehlo", images, photos=RECIPE)
    wanted = np.asarray(cam.explain(images, [4, 0, 1]).attribution)
    found = run(exported, PIXELS, [4, 0, 1])["attribution"]
    assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    product = GuidedGradCAM(in_jax, "conv").export(tmp_path / "product.stablehlo", images, photos=RECIPE)
    found = run(product, PIXELS, [4, 0, 1])["attribution"]
    assert_allclose(found, oracle(PIXELS, [4, 0, 1]) * wanted[..., None], rtol=1e-4, atol=1e-7)
    assert not np.allclose(found, oracle(PIXELS, [4, 0, 1]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_what_is_no_photo_is_refused(framework, tmp_path, monkeypatch):
    model, recipe, kind, name = MODELS[framework]
    images = Photos.of(recipe).images(PIXELS, np.float32)
    with pytest.raises(ImageError, match="images must be photos as the recipe scales them"):
        GuidedBackprop(model).export(tmp_path / name, kind(images + 0.003), photos=recipe)
    with pytest.raises(OptionError, match="takes photos is of gradients or class activation maps"):
        SmoothGrad(GuidedBackprop(model)).export(tmp_path / name, kind(images), photos=recipe)
    # A planted fault: pixels are scaled otherwise than the recipe says.
    module, fault = (jax_export, "_scaled") if framework == "jax" else (tensorflow_export, "scaled")
    right = getattr(module, fault)
    monkeypatch.setattr(module, fault, lambda *given: right(*given) * 1.01)
    with pytest.raises(ModelError, match="a graph must give"):
        GuidedBackprop(model).export(tmp_path / name, kind(images), photos=recipe)
    assert not list(tmp_path.iterdir())
