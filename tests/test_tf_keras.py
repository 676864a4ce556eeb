"""Keras 2 as it is beside Keras 3: layers of its models of every kind, against the rule in NumPy."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from guided_backprop import GuidedBackprop, ModelError, OptionError, layer_names

rng = np.random.default_rng(0)
ROWS = rng.normal(size=(4, 4)).astype("float32")
WEIGHTS = {"first": rng.normal(size=(4, 6)), "features": rng.normal(size=(6, 5)), "head": rng.normal(size=(5, 3))}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def dense(name, activation=None):
    return layers.Dense(WEIGHTS[name].shape[1], activation=activation, use_bias=False, name=name)


def parts():
    return [dense("first", "relu"), dense("features")], [layers.ReLU(), dense("head")]


def sequential(each, size=4, **options):
    return tf_keras.Sequential([tf_keras.Input((size,)), *each], **options)


def functional(each, size=4, **options):
    rows = x = tf_keras.Input((size,))
    for layer in each:
        x = layer(x)
    return tf_keras.Model(rows, x, **options)


class Written(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.below, self.above = parts()

    def call(self, x):
        for layer in [*self.below, *self.above]:
            x = layer(x)
        return x


def written(folder):
    model = Written()
    model(ROWS)
    return model


def nested(folder):
    below, above = parts()
    return sequential([functional(below, name="base"), *above])


def shared(folder):
    """A second model of the layers, which sees other rows than the first."""
    each = [*parts()[0], *parts()[1]]
    rows = tf_keras.Input((4,))
    x = other = rows
    for layer in [layers.Rescaling(100.0), *each]:
        x = layer(x)
    for layer in each:
        other = layer(other)
    return tf_keras.Model(rows, other)


def from_file(folder):
    filled(nested(folder)).save(folder / "model.h5")
    return tf_keras.models.load_model(folder / "model.h5", compile=False)


def filled(model):
    for layer in model._flatten_layers():
        if layer.name in WEIGHTS:
            layer.set_weights([WEIGHTS[layer.name]])
    return model


KINDS = {
    "sequential": lambda folder: sequential([*parts()[0], *parts()[1]]),
    "functional": lambda folder: functional([*parts()[0], *parts()[1]]),
    "subclassed": written,
    "nested": nested,
    "shared": shared,
    ".h5": from_file,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_layers_and_maps(kind, tmp_path):
    model = filled(KINDS[kind](tmp_path))
    first = ROWS @ WEIGHTS["first"]
    features = np.maximum(first, 0) @ WEIGHTS["features"]
    arrived = np.maximum(WEIGHTS["head"][:, 1], 0) * (features > 0)
    below = lambda g: (np.maximum(g, 0) * (first > 0)) @ WEIGHTS["first"].T  # noqa: E731
    whole = GuidedBackprop(model).explain(ROWS, 1)
    np.testing.assert_allclose(whole, below(arrived @ WEIGHTS["features"].T), **TOLERANCE)
    np.testing.assert_allclose(whole.outputs, np.maximum(features, 0) @ WEIGHTS["head"], **TOLERANCE)
    name = next(name for name in layer_names(model) if name.endswith("features"))
    for layer in (name, "features"):
        neuron = GuidedBackprop(model, output_layer=layer).explain(ROWS, 2)
        np.testing.assert_allclose(neuron, below(WEIGHTS["features"][:, 2]), **TOLERANCE)
        inside = GuidedBackprop(model, input_layer=layer).explain(ROWS, 1)
        np.testing.assert_allclose(inside, arrived, **TOLERANCE)
    # The planted fault: another neuron, another layer.
    assert not np.allclose(neuron, below(WEIGHTS["features"][:, 1]), **TOLERANCE)
    with pytest.raises(OptionError):
        GuidedBackprop(model, output_layer="nowhere").explain(ROWS, 1)


def test_a_layer_that_is_run_twice():
    weight = rng.normal(size=(4, 4))
    layer = layers.Dense(4, activation="relu", use_bias=False, name="twice")
    model = functional([layer, layer])
    layer.set_weights([weight])
    first, second = ROWS @ weight, np.maximum(ROWS @ weight, 0) @ weight
    found = GuidedBackprop(model, output_layer=("twice", 0)).explain(ROWS, 1)
    np.testing.assert_allclose(found, (first[:, [1]] > 0) * weight[:, 1], **TOLERANCE)
    found = GuidedBackprop(model, output_layer=("twice", 1)).explain(ROWS, 1)
    expected = (np.maximum((second[:, [1]] > 0) * weight[:, 1], 0) * (first > 0)) @ weight.T
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    with pytest.raises(ModelError, match="run 2 times"):
        GuidedBackprop(model, output_layer="twice").explain(ROWS, 1)
