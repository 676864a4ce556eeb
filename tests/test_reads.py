"""When a trace is used again: for a model that is what it was, by any method on it; never for one that changed."""

import itertools
import math
import os
import random
import types
from functools import partial

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx

from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.backends.reads import read_by

ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
TRACES: list[int] = []
FACTOR = 1.0


class Counted(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.factor, self.calls = 1.0, 0

    def call(self, rows):
        TRACES.append(1)
        self.calls += 1
        return rows * self.factor


class Written(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.counted = keras.layers.Dense(5, use_bias=False), Counted()

    def call(self, rows):
        return keras.ops.relu(self.dense(self.counted(rows)))


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.parts = tf.Variable(WEIGHT), {"factor": [1.0]}

    def __call__(self, rows):
        TRACES.append(1)
        return tf.nn.relu(rows @ self.weight * self.parts["factor"][0])


class Nnx(nnx.Module):
    def __init__(self):
        self.dense, self.factor = nnx.Linear(4, 5, use_bias=False, rngs=nnx.Rngs(0)), 1.0
        self.dense.kernel[...] = jnp.asarray(WEIGHT)

    def __call__(self, rows):
        TRACES.append(1)
        return nnx.relu(self.dense(rows) * self.factor)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, rows):
        TRACES.append(1)
        return flax.linen.relu(flax.linen.Dense(5, use_bias=False)(rows))


class Equinox(equinox.Module):
    weight: jax.Array
    factor: list[float]

    def __call__(self, rows):
        TRACES.append(1)
        return jax.nn.relu(rows @ self.weight * self.factor[0])


def functional():
    rows, counted = keras.Input((4,)), Counted()
    dense = keras.layers.Dense(5, activation="relu", use_bias=False)
    model = keras.Model(rows, dense(counted(rows)))
    dense.set_weights([WEIGHT])
    return model, partial(setattr, counted, "factor")


def written():
    model = Written()
    model(ROWS)
    model.dense.set_weights([WEIGHT])
    return model, partial(setattr, model.counted, "factor")


def module():
    model = Module()
    return model, partial(model.parts["factor"].__setitem__, 0)


def closed_over(framework, array):
    weight, held, count = array(WEIGHT), [1.0], 0

    def model(rows):
        nonlocal count
        count += 1
        TRACES.append(1)
        return framework.nn.relu(rows @ weight * held[0])

    return model, partial(held.__setitem__, 0)


def of_global(framework, array):
    weight = array(WEIGHT)
    globals()["FACTOR"] = 1.0

    def model(rows):
        TRACES.append(1)
        return (lambda y: framework.nn.relu(y * FACTOR))(rows @ weight)

    return model, partial(globals().__setitem__, "FACTOR")


def numpys(framework, array):
    weight = WEIGHT.copy()

    def model(rows):
        TRACES.append(1)
        return framework.nn.relu(rows @ weight)

    return model, lambda factor: np.multiply(WEIGHT, factor, out=weight)


def of_nnx():
    model = Nnx()
    return model, partial(setattr, model, "factor")


def linen():
    parameters = {"params": {"Dense_0": {"kernel": jnp.asarray(WEIGHT)}}}
    change = lambda factor: parameters["params"]["Dense_0"].update(kernel=jnp.asarray(WEIGHT) * factor)  # noqa: E731
    return partial(Linen().apply, parameters), change


def of_equinox():
    model = Equinox(jnp.asarray(WEIGHT), [1.0])
    return model, partial(model.factor.__setitem__, 0)


MODELS = {
    "functional": functional,
    "subclassed": written,
    "tf.Module": module,
    "nnx": of_nnx,
    "linen": linen,
    "equinox": of_equinox,
    **{
        f"{name}, {framework.__name__}": partial(make, framework, array)
        for framework, array in ((tf, tf.Variable), (jax, jnp.asarray))
        for name, make in (("closed over", closed_over), ("global", of_global), ("NumPy's", numpys))
    },
}


IS_JAX = ("nnx", "linen", "equinox", "jax")


@pytest.mark.parametrize("name", MODELS)
def test_methods_on_one_model_trace_it_once_until_it_changes(name):
    model, change = MODELS[name]()
    rows = jnp.asarray(ROWS) if name.endswith(IS_JAX) else tf.constant(ROWS)
    TRACES.clear()
    # The method that is kept is of before each change: in JAX it sees that as well.
    methods = [Saliency(model)] if name.endswith(IS_JAX) else []
    factor = None
    for changed in (True, False, True, False, True):
        if changed:
            factor = -2.0 * factor if factor else 1.0
            change(factor)
        expected = (ROWS @ WEIGHT[:, [1]] * factor > 0) * WEIGHT[:, 1] * factor
        before, count = len(TRACES), len(TRACES)
        for method in (Saliency(model), GuidedBackprop(model), Saliency(model), *methods):
            # The one ReLU's gradient is never negative, so the rules agree.
            np.testing.assert_allclose(method.explain(rows, 1), expected, rtol=1e-5)
            count = len(TRACES) if count == before else count
        # The first of them traces it, and it alone.
        assert (count > before) == changed
        assert len(TRACES) == count


def test_a_trace_is_of_one_layer_output_and_shape():
    model, _ = functional()
    names = [None, model.layers[1], model.layers[2]]
    TRACES.clear()
    for layer, count in zip(names, itertools.count(1)):
        for _ in range(2):
            Saliency(model, output_layer=layer).explain(ROWS, 1)
        assert len(TRACES) >= count
        before = len(TRACES)
        Saliency(model, output_layer=layer).explain(ROWS, 2)
        assert len(TRACES) == before
    Saliency(model, vouch={"elu": "plain"}).explain(ROWS, 1)
    assert len(TRACES) > before


class Random:
    """Draws a number in each call."""

    def __call__(self, rows):
        return tf.nn.relu(rows) * random.random()


class Read:
    """Counts, and reads it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, rows):
        self.calls += 1
        return tf.nn.relu(rows) * float(getattr(self, "calls"))  # noqa: B009 - it is about that


NUMBERS, MINE = iter([1.0, 2.0]), types.ModuleType("mine")
MINE.factor = 1.0
UNKNOWN = {
    "random numbers": Random(),
    "an iterator": lambda rows: tf.nn.relu(rows) * next(NUMBERS),
    "a module of one's own": lambda rows: tf.nn.relu(rows) * MINE.factor,
    "the surroundings": lambda rows: tf.nn.relu(rows) * float(os.environ.get("FACTOR", "1")),
    "NumPy's random numbers": lambda rows: tf.nn.relu(rows) * np.random.random(),
    "a variable's value": lambda rows: tf.nn.relu(rows) * tf.init_scope,
    "names by strings": lambda rows: tf.nn.relu(rows) * eval("FACTOR"),
    "objects in an array": partial(lambda held, rows: tf.nn.relu(rows) * held[0], np.array([1.0], object)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_change_unseen_is_not_told(name):
    assert read_by(UNKNOWN[name]) is None


def test_what_is_read_and_what_is_written():
    known = lambda rows: tf.nn.relu(rows) * math.pi * FACTOR  # noqa: E731
    assert read_by(known) == read_by(known)
    before = read_by(known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math, "pi", 3.0)
        assert read_by(known) != before
    model = Read()
    before = read_by(model)
    assert before == read_by(model)
    model(tf.ones((1, 2)))
    assert before != read_by(model)
    # A function in the place of another one, in a class of one's own and in a framework's.
    layer = Counted()
    for owner, name in ((Counted, "call"), (keras.layers.Layer, "another")):
        before = read_by(layer)
        assert before is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, lambda self, rows: rows, raising=False)
            assert read_by(layer) != before
        assert read_by(layer) == before
