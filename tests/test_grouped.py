"""Convolutions in groups, and in three dimensions with channels first, which Keras has XLA compile on TensorFlow.

TensorFlow's own kernels have no gradient of them on processors but for what oneDNN has: nothing in float64.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.backends.tensorflow.graph import groups
from reference import Conv2d, ReLU

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras compiles layers on TensorFlow alone", allow_module_level=True)

RULES = {"saliency": Saliency, "guided": GuidedBackprop}
IMAGES = np.random.default_rng(0).normal(size=(2, 7, 8, 8))
#: Of eight channels: groups, results, and how far the kernel steps and is spread.
LAYERS = {
    "two groups": (2, 6, (1, 1), (1, 1)),
    "four groups, strided": (4, 8, (2, 2), (1, 1)),
    "spread": (4, 8, (1, 1), (2, 2)),
    "each channel": (8, 8, (1, 1), (1, 1)),
    "each channel twice, strided": (8, 16, (2, 2), (1, 1)),
    "each channel, strided along one side": (8, 8, (2, 1), (1, 1)),
}


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def filled(layer, shape):
    """Build a layer, and give it the same weights each time."""
    layer.build(shape)
    layer.set_weights([numbers(*weight.shape) for weight in layer.weights])
    return layer


def layer_of(count, results, strides, spread):
    layer = keras.layers.Conv2D(
        results, 3, strides, groups=count, dilation_rate=spread, activation="relu", dtype="float64"
    )
    return filled(layer, IMAGES.shape)


def by_hand(count, results, strides, spread, rule):
    """Return the map of such a layer by the formulas, and how its results weigh."""
    weight, bias = numbers(3, 3, 8 // count, results), numbers(results)
    layer = Conv2d(weight.transpose(3, 2, 0, 1), bias, strides, (0, 0), spread, count)
    y, back = layer.forward(IMAGES.transpose(0, 3, 1, 2))
    weights = numbers(*y.shape, seed=2)
    _, gate = ReLU().forward(y)
    return back(gate(weights, rule), rule).transpose(0, 2, 3, 1), weights.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_groups_has_the_map_of_the_formulas(name, rule):
    right, weights = by_hand(*LAYERS[name], rule)
    found = RULES[rule](layer_of(*LAYERS[name])).explain(IMAGES, weights)
    np.testing.assert_allclose(found.attribution, right, rtol=1e-9, atol=1e-9)
    assert ("relu x1 guided" in str(found.coverage)) == (rule == "guided")


@pytest.mark.parametrize("name", ["two groups", "each channel"])
def test_planted_fault_groups_in_another_order_are_seen(monkeypatch, name):
    right, weights = by_hand(*LAYERS[name], "guided")
    split, reshape = tf.split, tf.reshape
    monkeypatch.setattr(tf, "split", lambda value, count, axis: split(value, count, axis)[::-1])
    monkeypatch.setattr(tf, "reshape", lambda value, shape: reshape(value, shape)[..., ::-1, :])
    method = GuidedBackprop(layer_of(*LAYERS[name]))
    assert not np.allclose(method.explain(IMAGES, weights).attribution, right)


def test_a_kernel_of_tensorflows_own_is_used_where_there_is_one(monkeypatch):
    right, weights = by_hand(*LAYERS["two groups"], "guided")
    kinds = []
    monkeypatch.setattr(groups, "_has_kernel", lambda kind, rank, device: kinds.append(kind) or False)
    found = GuidedBackprop(layer_of(*LAYERS["two groups"])).explain(IMAGES.astype("float32"), weights)
    assert kinds
    np.testing.assert_allclose(found.attribution, right, rtol=1e-4, atol=1e-4)


def test_full_memory_is_no_missing_kernel(monkeypatch):
    groups._has_kernel.cache_clear()

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    with monkeypatch.context() as patch:
        patch.setattr(tf, "function", full)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            groups._has_kernel(tf.float64, 4, "")
    assert groups._has_kernel(tf.float64, 4, "") is False


def test_in_a_loop_the_same_is_right():
    layer = filled(
        keras.layers.Conv2D(8, 3, groups=4, padding="same", activation="relu", dtype="float64"), IMAGES.shape
    )

    def turns(x):
        return tf.while_loop(lambda turn, _: turn < 2, lambda turn, y: (turn + 1, layer(y)), (0, x))[1]

    images = tf.constant(IMAGES)
    once, twice = (GuidedBackprop(model).explain(images, IMAGES) for model in (lambda x: layer(layer(x)), turns))
    np.testing.assert_allclose(twice.attribution, once.attribution, rtol=1e-9, atol=1e-12)


VOLUMES = numbers(2, 4, 5, 3, 4)


def whole(weight, count):
    """Return the weights of a convolution in groups as one whole, 0 between groups."""
    given, taken = weight.shape[-2] * count, weight.shape[-1] // count
    dense = np.zeros((*weight.shape[:-2], given, weight.shape[-1]))
    for group in range(count):
        rows = slice(group * weight.shape[-2], (group + 1) * weight.shape[-2])
        columns = slice(group * taken, (group + 1) * taken)
        dense[..., rows, columns] = weight[..., columns]
    return dense


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_volumes_have_the_map_of_one_convolution_with_channels_last(order, count):
    is_first = order == "channels_first"
    images = np.moveaxis(VOLUMES, -1, 1) if is_first else VOLUMES
    layer = keras.layers.Conv3D(8, 2, groups=count, data_format=order, activation="relu", dtype="float64")
    filled(layer, images.shape)
    weight, bias = (tf.constant(value) for value in (whole(layer.get_weights()[0], count), layer.get_weights()[1]))
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(VOLUMES))
        y = tf.nn.conv3d(x, weight, [1] * 5, "VALID") + bias
    weights = numbers(*y.shape, seed=2)
    right = tape.gradient(y, x, tf.constant(np.maximum(weights, 0) * (y.numpy() > 0))).numpy()
    found = GuidedBackprop(layer).explain(images, np.moveaxis(weights, -1, 1) if is_first else weights).attribution
    np.testing.assert_allclose(np.moveaxis(found, 1, -1) if is_first else found, right, rtol=1e-9, atol=1e-9)
