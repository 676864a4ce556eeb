"""What the first images close, and others open: a spelled ReLU that passed nothing yet is still looked at.

A model with one unit that is a ReLU spelled as arithmetic, closed for one image and open for the next one.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

from guided_backprop import GuidedBackprop, ModelError, OpaqueRegionError
from guided_backprop.backends import nomination
from guided_backprop.backends.jax.export import Recorder
from guided_backprop.backends.tensorflow.hidden.values import Watch
from guided_backprop.backends.torch.hidden import case
from guided_backprop.methods import trial

RNG = np.random.default_rng(3)
DRAWN = RNG.normal(size=(99, 6))
FIRST, UNIT, LAST = RNG.normal(size=(6, 6)), RNG.normal(size=(6, 1)), np.array([[1.0, -2.0, 0.5]])
# What arrives at the unit is negative, so that a ReLU that is missed passes what the rule closes.
WEIGHTS = np.array([[-1.0, 1.0, 0.0]])
MODELS = {
    "torch": lambda x: (
        (lambda h: h * (h > 0))(torch.relu(x @ torch.tensor(FIRST)) @ torch.tensor(UNIT)) @ torch.tensor(LAST)
    ),
    "tensorflow": lambda x: (lambda h: (h + tf.abs(h)) / 2.0)(tf.nn.relu(x @ FIRST) @ UNIT) @ LAST,
    "jax": lambda x: (lambda h: (h + jnp.abs(h)) / 2)(jax.nn.relu(x @ FIRST) @ UNIT) @ LAST,
}
CONVERT = {"torch": torch.tensor, "tensorflow": tf.constant, "jax": jnp.asarray}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def images():
    """Return an image that closes the unit, and one that opens it."""
    unit = (np.maximum(DRAWN @ FIRST, 0) @ UNIT)[:, 0]
    return DRAWN[unit < -0.5][:1], DRAWN[unit > 0.5][:1]


def maps(framework):
    """Return the maps of both images, one after the other, by one method; None for one that is refused."""
    method, found = GuidedBackprop(MODELS[framework]), []
    for image in images():
        try:
            found.append(np.asarray(method.explain(CONVERT[framework](image), WEIGHTS).attribution))
        except OpaqueRegionError:
            found.append(None)
    return found


@pytest.mark.parametrize("framework", MODELS)
def test_what_is_closed_at_first_is_found_when_it_opens(framework):
    # Nothing positive arrives, so nothing leaves.
    assert all(attribution is None or not attribution.any() for attribution in maps(framework))


def test_planted_fault_what_passed_nothing_once_is_plain_for_good(monkeypatch):
    monkeypatch.setattr(case.Case, "_is_closed", False)
    monkeypatch.setattr(case.Case, "is_open", False)
    # Nor is it found behind the weights that follow.
    monkeypatch.setattr(nomination.Step, "_weighed", lambda *_: ())
    closed, opened = maps("torch")
    assert not closed.any()
    assert opened.any()


ENDINGS = {"torch": ".onnx", "tensorflow": "", "jax": ".stablehlo"}


@pytest.mark.parametrize("framework", MODELS)
def test_what_the_images_leave_open_is_not_exported(framework, tmp_path):
    """A file does not look at later images."""
    closed = CONVERT[framework](np.repeat(images()[0], 2, 0))
    with pytest.raises(
        (ModelError, OpaqueRegionError), match="is one. Pass more images, or others|must be an operation"
    ):
        GuidedBackprop(MODELS[framework]).export(tmp_path / f"map{ENDINGS[framework]}", closed)
    assert not list(tmp_path.iterdir())


def test_planted_fault_what_was_left_open_is_plain_in_the_file(tmp_path, monkeypatch):
    closed, opened = images()
    monkeypatch.setattr(Watch, "unsettled", "")
    monkeypatch.setattr(trial, "counts", lambda *given: [2])
    GuidedBackprop(MODELS["tensorflow"]).export(
        tmp_path / "map", tf.constant(np.repeat(closed, 2, 0)), labels="weights"
    )
    explain = tf.saved_model.load(tmp_path / "map").signatures["serving_default"]
    found = explain(images=tf.constant(opened), labels=tf.constant(WEIGHTS))
    # Nothing positive arrives there, so nothing may leave.
    assert found["attribution"].numpy().any()


def test_images_that_are_judged_otherwise_are_not_exported_in_jax(tmp_path, monkeypatch):
    shown = iter(range(9))
    monkeypatch.setattr(Recorder, "gates", lambda *given: next(shown))
    with pytest.raises(ModelError, match="images must tell what of a graph is a ReLU"):
        GuidedBackprop(lambda x: jax.nn.relu(x @ FIRST)).export(tmp_path / "map.stablehlo", jnp.asarray(DRAWN[:3]))
    assert next(shown) == 3
