"""Every differentiable operation of a framework has a row in its table, and what has none is refused by its name."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from jax import lax
from jax.extend import core
from jax.interpreters import ad, mlir
from tensorflow.python.framework import op_def_registry, ops

from guided_backprop import GuidedBackprop, OpaqueRegionError, Saliency
from guided_backprop.backends.jax.graph import operations as in_jax
from guided_backprop.backends.operations import LISTED, NONLINEARITIES, Kind, Table
from guided_backprop.backends.tensorflow.graph import operations as in_tensorflow
from guided_backprop.backends.tensorflow.graph import relus

TABLES = {"jax": in_jax.OPERATIONS, "tensorflow": in_tensorflow.OPERATIONS}
IMAGES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)


def jax_operations() -> set[str]:
    """The primitives that JAX differentiates, and no other library in this process."""
    program = (
        "import jax, jax.experimental.checkify, jax.experimental.pallas, jax.experimental.sparse\n"
        "from jax.interpreters import ad\n"
        "print(*(primitive.name for primitive in ad.primitive_jvps))"
    )
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def tensorflow_operations() -> set[str]:
    """The operations that TensorFlow has a gradient function for; tests register others."""
    registry = ops.gradient_registry
    names = {name for name in registry.list() if registry.lookup(name) is not None}
    return {name for name in names if name in in_tensorflow.UNKNOWN_ON_PURPOSE or op_def_registry.get(name)}


DIFFERENTIABLE = {
    "jax": (jax_operations, in_jax.UNKNOWN_ON_PURPOSE),
    "tensorflow": (tensorflow_operations, in_tensorflow.UNKNOWN_ON_PURPOSE),
}


@pytest.mark.parametrize("framework", DIFFERENTIABLE)
def test_every_differentiable_operation_has_a_row(framework):
    operations, unknown_on_purpose = DIFFERENTIABLE[framework]
    table = TABLES[framework]
    names = operations()
    assert names - set(table) - unknown_on_purpose == set()
    assert not unknown_on_purpose & set(table)
    # Planted: a row that is missing is seen.
    (exp, *_) = table.called("exp") & names
    assert names - (set(table) - {exp}) - unknown_on_purpose == {exp}


@pytest.mark.parametrize("framework", TABLES)
def test_what_is_listed_goes_by_the_vocabulary(framework):
    rows = [row for row in TABLES[framework].values() if row.kind in LISTED - {Kind.HIDDEN}]
    assert {row.word for row in rows} <= NONLINEARITIES


def primitive(name, forward, is_open):
    """Return a new primitive of JAX that has no row; its derivative is 1 where it is open."""
    made = core.Primitive(name)
    made.def_impl(forward)
    made.def_abstract_eval(lambda x: x)
    mlir.register_lowering(made, mlir.lower_fun(forward, multiple_results=False))
    ad.defjvp(made, lambda tangent, x: tangent * is_open(x))
    return made


disguised_p = primitive("disguised", lambda x: jnp.maximum(x, 0), lambda x: (x > 0).astype(x.dtype))
harmless_p = primitive("harmless", lambda x: x + 1, jnp.ones_like)


@pytest.mark.parametrize("made", [disguised_p, harmless_p], ids=lambda made: made.name)
def test_jax_an_operation_without_a_row_is_refused_by_name(made):
    model = lambda x: jax.nn.relu(made.bind(x @ WEIGHT) @ WEIGHT)  # noqa: E731
    with pytest.raises(OpaqueRegionError, match=f"received {made.name} "):
        GuidedBackprop(model).explain(jnp.asarray(IMAGES), 1)
    plain = Saliency(model).explain(jnp.asarray(IMAGES), 1)
    assert (made.name, 1, "plain") in plain.coverage
    x = jnp.asarray(IMAGES)
    np.testing.assert_allclose(plain, jax.grad(lambda x: model(x)[:, 1].sum())(x), rtol=1e-5, atol=1e-6)


def test_jax_an_operation_without_a_row_is_what_is_vouched_for():
    relu = lambda x: jax.nn.relu(jax.nn.relu(x @ WEIGHT) @ WEIGHT)  # noqa: E731
    disguised = lambda x: jax.nn.relu(disguised_p.bind(x @ WEIGHT) @ WEIGHT)  # noqa: E731
    expected = GuidedBackprop(relu).explain(jnp.asarray(IMAGES), 1)
    found = GuidedBackprop(disguised, vouch={"disguised": "relu"}).explain(jnp.asarray(IMAGES), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert ("disguised", 1, "guided") in found.coverage
    plain = GuidedBackprop(disguised, vouch={"disguised": "plain"}).explain(jnp.asarray(IMAGES), 1)
    assert str(plain.coverage) == "disguised x1 plain, relu x1 guided"
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)


def without(table, *names):
    """Return a smaller table."""
    rows = [(name, row) for name, row in table.items() if name not in names]
    return Table({kind: " ".join(f"{name}={row.word}" for name, row in rows if row.kind is kind) for kind in Kind})


def test_jax_a_row_that_is_removed_makes_an_operation_unknown(monkeypatch):
    smaller = without(in_jax.OPERATIONS, "tanh")

    def model():
        # Another one each time: what was traced of one is kept for it.
        return lambda x: jax.nn.relu(jnp.tanh(x) @ WEIGHT)

    assert ("tanh", 1, "plain") in GuidedBackprop(model()).explain(jnp.asarray(IMAGES), 1).coverage
    monkeypatch.setattr("guided_backprop.backends.jax.graph.program.OPERATIONS", smaller)
    with pytest.raises(OpaqueRegionError, match="received tanh "):
        GuidedBackprop(model()).explain(jnp.asarray(IMAGES), 1)


def through_an_array(x):
    """What is written to an array in place, and read again."""
    held = jax.new_ref(jnp.zeros_like(x))
    held[...] = x * 2
    return held[...]


def reduced(x):
    """By a function that JAX does not know."""
    return lax.reduce(x, np.float32(0), lambda a, b: jnp.maximum(a, b) + 0, (1,))[:, None] * jnp.ones(6)


@pytest.mark.parametrize("operation", [through_an_array, reduced])
def test_jax_what_no_trace_shows_is_refused(operation):
    with pytest.raises(OpaqueRegionError, match=r"received (swap|reduce|get) "):
        GuidedBackprop(lambda x: jax.nn.relu(x) + operation(jax.nn.relu(x @ WEIGHT))).explain(jnp.asarray(IMAGES), 1)


@pytest.fixture
def nothing_known_of_relu(monkeypatch):
    """TensorFlow's table without the rows of ReLU and tanh, and ReLU without its recogniser."""
    smaller = without(in_tensorflow.OPERATIONS, "Relu", "Tanh")
    for module in ("graph.nodes", "classify", "hidden.taint", "hidden.traces", "hidden.signs"):
        monkeypatch.setattr(f"guided_backprop.backends.tensorflow.{module}.OPERATIONS", smaller)
    monkeypatch.delitem(relus.RECOGNISERS, "Relu")


def in_tensorflow_net(unknown):
    return lambda x: tf.maximum(unknown(x @ WEIGHT) @ WEIGHT, 0)


def row_by_row(function):
    return lambda x: tf.map_fn(function, x)


@pytest.mark.usefixtures("nothing_known_of_relu")
@pytest.mark.parametrize("unknown", [tf.nn.relu, row_by_row(tf.nn.relu)], ids=["seen", "in a loop"])
def test_tensorflow_an_operation_without_a_row_that_is_a_relu(unknown):
    model, images = in_tensorflow_net(unknown), tf.constant(IMAGES)
    with pytest.raises(OpaqueRegionError, match='vouch={"Relu at .*Relu": "plain"}'):
        GuidedBackprop(model).explain(images, 1)
    expected = GuidedBackprop(lambda x: tf.maximum(tf.maximum(x @ WEIGHT, 0) @ WEIGHT, 0)).explain(images, 1)
    guided = GuidedBackprop(model, vouch={"Relu": "relu"}).explain(images, 1)
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-6)
    assert str(guided.coverage) == "Relu x1 guided, relu x1 guided"
    plain = GuidedBackprop(model, vouch={"Relu": "plain"}).explain(images, 1)
    assert str(plain.coverage) == "Relu x1 plain, relu x1 guided"
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    assert ("Relu", 1, "plain") in Saliency(model).explain(images, 1).coverage


@pytest.mark.usefixtures("nothing_known_of_relu")
def test_tensorflow_an_operation_without_a_row_that_is_harmless():
    """Its values are looked at, and acquit it, in a loop too."""
    images = tf.constant(IMAGES)
    guided = GuidedBackprop(in_tensorflow_net(tf.tanh)).explain(images, 1)
    assert str(guided.coverage) == "Tanh x1 plain, relu x1 guided"
    x = IMAGES @ WEIGHT
    g = np.maximum(np.eye(6)[[1]] * (np.tanh(x) @ WEIGHT > 0), 0) @ WEIGHT.T
    np.testing.assert_allclose(guided, (g * (1 - np.tanh(x) ** 2)) @ WEIGHT.T, rtol=1e-4, atol=1e-5)
    looped = GuidedBackprop(in_tensorflow_net(row_by_row(tf.tanh))).explain(images, 1)
    np.testing.assert_allclose(looped, guided, rtol=1e-5, atol=1e-6)


def test_tensorflow_an_operation_that_is_unknown_on_purpose():
    def model(x):
        return tf.reshape(tf.image.rgb_to_hsv(tf.reshape(tf.nn.relu(x @ WEIGHT), (-1, 2, 3))), (-1, 6))

    assert str(GuidedBackprop(model).explain(tf.constant(IMAGES), 1).coverage) == "RGBToHSV x1 plain, relu x1 guided"
