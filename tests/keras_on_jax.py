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
