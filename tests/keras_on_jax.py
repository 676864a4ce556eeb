"""What holds for Keras on JAX alone: test_keras_backends.py runs it in the process that it has for JAX."""

import keras
import numpy as np
import pytest
from keras import layers

from guided_backprop import GuidedBackprop, ModelError, NoReluError
from guided_backprop.backends.jax.backend import JaxBackend

# Keras' variables have no copy keyword yet, which NumPy says at each conversion.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_model_is_traced_until_it_changes(monkeypatch):
    traces, trace = [], JaxBackend._trace
    monkeypatch.setattr(JaxBackend, "_trace", lambda *args, **named: traces.append(1) or trace(*args, **named))
    conv = layers.Conv2D(4, 3, activation="relu")
    inner = [conv, layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((9, 9, 3)), *inner])
    images, method = np.random.default_rng(0).random((2, 9, 9, 3)).astype("float32"), GuidedBackprop(model)
    before = np.asarray(method.explain(images, 1))
    settled = len(traces)
    for _ in range(4):
        method.explain(images, 2)
    assert len(traces) == settled
    conv.set_weights([values * -1 for values in conv.get_weights()])
    assert not np.allclose(method.explain(images, 1), before)
    assert len(traces) == settled + 1
    conv.strides = (2, 2)
    with pytest.raises(ModelError):
        method.explain(images, 1)
    conv.strides, conv.activation = (1, 1), keras.activations.gelu
    with pytest.raises(NoReluError):
        method.explain(images, 1)


def test_a_compiled_model_explains_alike_until_it_changes():
    conv = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential(
        [keras.Input((9, 9, 3)), conv, layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    )
    images, method = np.random.default_rng(0).random((2, 9, 9, 3)).astype("float32"), GuidedBackprop(model)
    compiled = method.compile(images)
    explained = compiled.explain(images, 1)
    assert explained.engine.startswith("jax ")
    np.testing.assert_allclose(explained, method.explain(images, 1), rtol=1e-4, atol=1e-6)
    assert not np.allclose(explained, method.explain(images, 2), rtol=1e-4, atol=1e-6)
    conv.set_weights([values * -1 for values in conv.get_weights()])
    with pytest.raises(ModelError, match="changed since"):
        compiled.explain(images, 1)
    again = method.compile(images)
    np.testing.assert_allclose(again.explain(images, 1), method.explain(images, 1), rtol=1e-4, atol=1e-6)
    conv.strides = (2, 2)
    with pytest.raises(ModelError):
        again.explain(images, 1)
