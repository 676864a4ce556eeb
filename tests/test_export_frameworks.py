"""Explanations of JAX as StableHLO, of TensorFlow and Keras as a SavedModel: the maps that ``explain`` gives."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

from guided_backprop import DeconvNet, GuidedBackprop, ModelError, OptionError, OutputExistsError, Saliency

RNG = np.random.default_rng(0)
KERNEL, DENSE = RNG.normal(size=(3, 3, 3, 8)).astype("f4"), RNG.normal(size=(8, 5)).astype("f4")
IMAGES = RNG.normal(size=(3, 11, 10, 3)).astype("f4")
IN_JAX = jnp.asarray(IMAGES)

# Whatever computes, none of it is this library: its maps, for other numbers of images, go into a file.
RELOADED = """
import sys
import numpy as np
images, labels = np.load(sys.argv[3]), np.array([4, -1, 0, 1, 2])
if sys.argv[1] == "jax":
    from jax import export
    program = export.deserialize(bytearray(open(sys.argv[2], "rb").read()))
    outputs, maps, scores, is_finite = program.call(images, labels.astype("i4"))
else:
    import tensorflow as tf
    results = tf.saved_model.load(sys.argv[2]).signatures["serving_default"](
        images=tf.constant(images), labels=tf.constant(labels))
    outputs, maps = results["outputs"], results["attribution"]
assert not any(name.startswith("guided_backprop") for name in sys.modules)
np.savez(sys.argv[4], outputs=np.asarray(outputs), maps=np.asarray(maps))
"""


def in_jax(x):
    """Have a ReLU spelled by ``where``, a norm and a softmax."""
    y = jax.lax.conv_general_dilated(x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jnp.where(y > 0, y, 0)
    y = jax.nn.relu(y - y.mean((1, 2), keepdims=True))
    return jax.nn.softmax(y.mean((1, 2)) @ DENSE)


@pytest.fixture(scope="module")
def in_keras():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    middle = [layers.Conv2D(8, 3, 2), layers.BatchNormalization(), layers.ReLU(6.0), layers.GlobalMaxPooling2D()]
    return keras.Sequential([layers.Input((11, 10, 3)), *middle, layers.Dense(5, activation="softmax")])


class InTensorFlow(tf.Module):
    """Have a ReLU in a loop, and an output for each position."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(KERNEL)

    @tf.function
    def __call__(self, x):
        y = tf.nn.relu(tf.nn.conv2d(x, self.kernel, 1, "SAME"))
        for _ in tf.range(2):
            y = tf.nn.relu(y - 0.1)
        return y


def positions(x):
    return jax.nn.relu(jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC")))


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_maps_where_the_library_is_not(framework, in_keras, tmp_path):
    method = GuidedBackprop(in_jax if framework == "jax" else in_keras)
    path = tmp_path / ("map.stablehlo" if framework == "jax" else "map")
    kind = jnp.asarray if framework == "jax" else np.asarray
    exported = method.export(path, kind(IMAGES))
    assert exported.counts == [1, 3, 17]
    assert exported.difference < 1e-5
    assert exported.coverage == method.explain(kind(IMAGES)).coverage
    said = path.with_suffix(".json") if framework == "jax" else path / "assets.extra/guided_backprop.json"
    assert json.loads(said.read_text())["head"] == "softmax"
    images = RNG.normal(size=(5, 11, 10, 3)).astype("f4")
    np.save(tmp_path / "images.npy", images)
    where = [framework, str(path), str(tmp_path / "images.npy"), str(tmp_path / "found.npz")]
    done = subprocess.run([sys.executable, "-c", RELOADED, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    top = method.explain(kind(images))
    wanted = method.explain(kind(images), [4, int(top.labels[1]), 0, 1, 2])
    assert_allclose(found["maps"], wanted.attribution, rtol=1e-5, atol=1e-7)
    assert_allclose(found["outputs"], wanted.outputs, rtol=1e-5)
    # A planted fault: the map by another rule, and of another class.
    other = Saliency(method.subject.model).explain(kind(images), wanted.labels).attribution
    for fault in (other, top.attribution):
        assert np.abs(found["maps"] - np.asarray(fault)).max() > 1e-3 * np.abs(found["maps"]).max()


def test_other_forms_of_models_in_jax(tmp_path):
    def both(a, b):
        return jax.nn.relu(a @ DENSE) + jax.nn.relu(b @ DENSE)

    inputs = {"a": jnp.asarray(DENSE.T[:3]), "b": jnp.asarray(DENSE.T[2:])}
    exported = DeconvNet(both).export(tmp_path / "two.stablehlo", inputs)
    assert exported.inputs == ("images_a", "images_b", "labels")
    assert exported.outputs == ("outputs", "attribution_a", "attribution_b", "scores", "is_finite")
    GuidedBackprop(positions).export(tmp_path / "positions.stablehlo", IN_JAX)
    GuidedBackprop(positions, reducer="absmax").export(tmp_path / "w.stablehlo", IN_JAX, labels="weights")


def test_other_forms_of_models_in_tensorflow(tmp_path):
    exported = GuidedBackprop(InTensorFlow(), reducer="absmax").export(tmp_path / "map", IMAGES, labels="weights")
    assert exported.difference < 1e-5
    with pytest.raises(OutputExistsError, match="path must not be a folder that exists"):
        GuidedBackprop(InTensorFlow()).export(tmp_path / "map", IMAGES)


def test_what_is_refused(in_keras, tmp_path):
    with pytest.raises(OptionError, match=r"a file that ends in \.stablehlo, for a model of jax"):
        GuidedBackprop(in_jax).export(tmp_path / "map.onnx", IN_JAX)
    with pytest.raises(OptionError, match="a folder, whose name has no ending, for a model of tensorflow"):
        GuidedBackprop(in_keras).export(tmp_path / "map.tflite", IMAGES)

    def calling(x):
        told = jax.ShapeDtypeStruct((len(x), 5), x.dtype)
        return in_jax(x) + jax.pure_callback(np.sin, told, jax.lax.stop_gradient(x[:, 0, :5, 0]))

    with pytest.raises(ModelError):
        GuidedBackprop(calling).export(tmp_path / "map.stablehlo", IN_JAX)

    def of_the_batch(x):
        return in_jax(x) * (1 + jax.lax.stop_gradient(x).mean())

    with pytest.raises(ModelError, match="a graph must give the maps that explain"):
        GuidedBackprop(of_the_batch).export(tmp_path / "map.stablehlo", IN_JAX)

    one = tf.function(lambda x: tf.nn.relu(tf.reshape(x, [3, 330])), input_signature=[tf.TensorSpec(IMAGES.shape)])
    with pytest.raises(ModelError, match="for 1 images in tensorflow"):
        GuidedBackprop(one).export(tmp_path / "map", IMAGES)
    assert list(tmp_path.iterdir()) == []
