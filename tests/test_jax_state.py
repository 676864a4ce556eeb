"""When a trace is used again: a module that is what it was, and never one that changed in any way."""

from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.backends.jax.backend import JaxBackend
from guided_backprop.backends.reads import read_by
from networks_flax import Linen, Nnx, linen

ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


class Equinox(equinox.Module):
    first: jax.Array
    activation: object
    factor: float = equinox.field(static=True)

    def __call__(self, rows):
        return self.activation(rows @ self.first) * self.factor @ jnp.ones((5, 3))


def perceptron():
    return Equinox(jnp.asarray(WEIGHT), jax.nn.relu, 2.0)


@pytest.fixture
def traces(monkeypatch):
    """Count how often a model is traced."""
    found = []
    trace = JaxBackend._trace
    monkeypatch.setattr(JaxBackend, "_trace", lambda *args, **named: found.append(1) or trace(*args, **named))
    return found


@pytest.mark.parametrize("build", [Nnx, partial(linen, ROWS), perceptron])
def test_a_module_is_traced_once(build, traces):
    model = build()
    method = GuidedBackprop(model)
    first = np.asarray(method.explain(ROWS, 1))
    assert len(traces) == 1
    np.testing.assert_array_equal(method.explain(ROWS, 1), first)
    np.testing.assert_allclose(method.explain(ROWS + 1, 2), GuidedBackprop(model).explain(ROWS + 1, 2), rtol=1e-6)
    method.explain(ROWS, lambda output: output[:, 0])
    assert len(traces) == 1
    method.explain(ROWS[:2], 1)
    assert len(traces) == 2


def _closure():
    weight = jnp.asarray(WEIGHT)
    return lambda rows: jax.nn.relu(rows @ weight)


def _linen_closure():
    module, parameters = Linen(), linen(ROWS).args[0]
    return lambda rows: module.apply(parameters, rows)


def _nnx_closure():
    model = Nnx()
    return lambda rows: model(rows)


PLAIN = {
    "a closure": _closure,
    "compiled": lambda: jax.jit(_closure()),
    "of linen": _linen_closure,
    "of nnx": _nnx_closure,
    "mapped": lambda: jax.vmap(perceptron()),
}


@pytest.mark.parametrize("build", PLAIN)
def test_a_plain_function_is_traced_once(build, traces):
    function = PLAIN[build]()
    method = GuidedBackprop(function)
    first = np.asarray(method.explain(ROWS, 1))
    for _ in range(3):
        np.testing.assert_array_equal(method.explain(ROWS, 1), first)
    GuidedBackprop(function).explain(ROWS, 2)
    assert len(traces) == 1


def test_a_function_is_traced_again_when_what_it_closes_over_changed(traces):
    held = {"weight": jnp.asarray(WEIGHT)}
    method = Saliency(lambda rows: jax.nn.relu(rows @ held["weight"]))
    for factor in (1.0, 2.0):
        held["weight"] = jnp.asarray(WEIGHT) * factor
        expected = (np.asarray(ROWS @ WEIGHT)[:, [1]] > 0) * WEIGHT[:, 1] * factor
        np.testing.assert_allclose(method.explain(ROWS, 1), expected, rtol=1e-6)
    assert len(traces) == 2


def _new_weights(model):
    model.first.kernel[...] = model.first.kernel[...] * -1.5


def _new_attribute(model):
    model.factor = -3.0


def _new_part(model):
    model.first = nnx.Linear(4, 6, rngs=nnx.Rngs(7))


@pytest.mark.parametrize("change", [_new_weights, _new_attribute, _new_part])
def test_a_module_that_changed_is_traced_again(change):
    model = Nnx()
    method = GuidedBackprop(model)
    before = np.asarray(method.explain(ROWS, 1))
    change(model)
    after = np.asarray(method.explain(ROWS, 1))
    np.testing.assert_allclose(after, GuidedBackprop(model).explain(ROWS, 1), rtol=1e-6)
    assert not np.allclose(after, before)


def test_parameters_put_into_a_dictionary_in_place():
    model = linen(ROWS)
    method = GuidedBackprop(model)
    before = np.asarray(method.explain(ROWS, 1))
    dense = model.args[0]["params"]["Dense_1"]
    dense["kernel"] = dense["kernel"] * -2
    after = np.asarray(method.explain(ROWS, 1))
    np.testing.assert_allclose(after, GuidedBackprop(model).explain(ROWS, 1), rtol=1e-6)
    assert not np.allclose(after, before)


def test_modules_are_told_apart_by_what_they_hold():
    same = perceptron()
    assert read_by(same) == read_by(same)
    assert read_by(same) != read_by(perceptron())
    assert read_by(same) != read_by(Equinox(same.first, same.activation, 3.0))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2, 0], [[0, 1]] * 7, lambda outputs: outputs[:, 1]])
def test_batches_are_of_one_size_and_traced_once(traces, labels):
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(7, 4)), jnp.float32)
    model = Nnx()
    found = GuidedBackprop(model, batch_size=3).explain(rows, labels)
    assert len(traces) == 1
    expected = GuidedBackprop(model).explain(rows, labels)
    for name in ("attribution", "scores", "outputs"):
        values = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(np.asarray(getattr(found, name)), values, rtol=1e-5, atol=1e-6)
        # The images are not alike, so that a batch put in the wrong place is seen.
        assert not np.allclose(values[-1], values[-2])
    assert found.batch_size == 3
