"""A rule of a user's own is one class: it acts on every ReLU, in each framework, with no change to a backend."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from jax import lax

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.methods.gradients import Method
from guided_backprop.rules import DECONV, GUIDED, OPEN, PLAIN, ReluRule
from own_rules import Functions, Halved, Rect

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(6, 5))
FIRST, SECOND, LAST = rng.normal(size=(5, 8)), rng.normal(size=(8, 8)) / 2, rng.normal(size=(8, 3))
LABEL = 1


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class RectGrad(Method):
    rule = Rect(0.4)


class HalfGrad(Method):
    rule = Halved()


class FunctionsGrad(Method):
    rule = Functions()


def expected(method, cap=np.inf):
    """The map, by NumPy alone; two ReLUs and a path beside the first one."""
    first = IMAGES @ FIRST
    second = (np.clip(first, 0, cap) + first) @ SECOND

    def back(x, g):
        y, is_open = np.clip(x, 0, cap), (x > 0) & (x < cap)
        if method is HalfGrad:
            return np.where(g < 0, g / 2, g)
        if method is FunctionsGrad:
            return method.rule.leaving(g, g * is_open, x, y, np)
        return g * is_open * (y * g > np.sort(y * g, axis=1)[:, [int(0.4 * 8)]])

    g = back(second, np.tile(LAST[:, LABEL], (6, 1))) @ SECOND.T
    return (g + back(first, g)) @ FIRST.T


def net(relu):
    return lambda x: (lambda first: relu((relu(first) + first) @ SECOND) @ LAST)(x @ FIRST)


def scanned(x):
    """Both ReLUs are turns of one loop."""
    first = x @ FIRST
    skips, weights = jnp.array([1.0, 0.0]), jnp.stack([jnp.asarray(SECOND), jnp.eye(8)])

    def turn(x, slices):
        skip, weight = slices
        return (jax.nn.relu(x) + skip * x) @ weight, None

    return lax.scan(turn, first, (skips, weights))[0] @ LAST


@jax.custom_jvp
def own_relu(x):
    return jnp.maximum(x, 0)


own_relu.defjvp(lambda x, t: (own_relu(*x), t[0] * (x[0] > 0)))


@jax.custom_vjp
def add_relu(x, skip):
    """A fused residual: two operands carry a gradient."""
    return jnp.maximum(x + skip, 0)


add_relu.defvjp(lambda x, skip: (add_relu(x, skip), x + skip > 0), lambda is_open, g: (g * is_open, g * is_open))

# How a model is written, and where its ReLUs are capped.
JAX = {
    "relu": (net(jax.nn.relu), np.inf),
    "maximum": (net(lambda x: jnp.maximum(x, 0)), np.inf),
    "custom_jvp": (net(own_relu), np.inf),
    "clip": (net(lambda x: jnp.clip(x, 0, 1)), 1.0),
    "minimum of maximum": (net(lambda x: jnp.minimum(jnp.maximum(0, x), 1)), 1.0),
    "relu6": (net(jax.nn.relu6), 6.0),
    "jit": (jax.jit(net(jax.jit(jax.nn.relu))), np.inf),
    "scan": (scanned, np.inf),
    "cond": (net(lambda x: lax.cond(x[0, 0] > -99, jax.nn.relu, lambda x: x, x)), np.inf),
    "checkpoint": (jax.checkpoint(net(jax.nn.relu)), np.inf),
    "while in scan": (net(lambda x: lax.fori_loop(0, 1, lambda _, x: jnp.maximum(x, 0), x)), np.inf),
    "vouched": (net(lambda x: add_relu(x, 0 * x)), np.inf),
}


@cache
def guided_by_jax():
    return np.asarray(GuidedBackprop(net(jax.nn.relu)).explain(jnp.asarray(IMAGES), LABEL))


@pytest.mark.parametrize("method", [RectGrad, HalfGrad])
@pytest.mark.parametrize("form", JAX)
def test_jax(form, method):
    model, cap = JAX[form]
    if form == "vouched":
        # What the second operand, 0 * x, is given is multiplied by 0.
        found = method(model, vouch={"add_relu": "relu"}).explain(jnp.asarray(IMAGES), LABEL)
    else:
        found = method(model).explain(jnp.asarray(IMAGES), LABEL)
    np.testing.assert_allclose(found, expected(method, cap), **TOLERANCE)
    assert {row.treatment for row in found.coverage} == {method.rule.name}
    assert sum(row.count for row in found.coverage) == 2
    # Planted: what another rule gives is another map.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(guided_by_jax(), found, rtol=1e-2)


def test_jax_functions_of_a_rule():
    found = FunctionsGrad(net(jax.nn.relu)).explain(jnp.asarray(IMAGES), LABEL)
    np.testing.assert_allclose(found, expected(FunctionsGrad), **TOLERANCE)


def test_jax_values_are_those_of_a_maximum_that_broadcasts():
    """The rule is given x in the shape of y, and what leaves is summed to that of x."""
    found = []

    class Seen(ReluRule):
        name, reads_values = "seen", True

        def leaving(self, g, derived, x, y, xp):
            found.append({each.shape for each in (g, derived, x, y)})
            return derived * x

    class See(Method):
        rule = Seen()

    model = jax.vmap(lambda row: jnp.maximum(row, jnp.zeros(3)))
    maps = See(model).explain(jnp.array([2.0, -1.0]), np.array([[1.0, 2.0, -4.0], [1.0, 2.0, 3.0]]))
    assert found == [{(2, 3)}]
    np.testing.assert_array_equal(maps, [-2.0, 0.0])


def test_jax_a_vouched_function_of_another_shape_is_refused_where_the_rule_needs_values_of_one_shape():
    @jax.custom_vjp
    def dense_relu(x):
        return jnp.maximum(x @ FIRST, 0)

    dense_relu.defvjp(lambda x: (dense_relu(x), x), lambda x, g: ((g * (x @ FIRST > 0)) @ FIRST.T,))
    model = lambda x: dense_relu(x) @ LAST[:8]  # noqa: E731
    guided = GuidedBackprop(model, vouch={"dense_relu": "relu"}).explain(jnp.asarray(IMAGES), LABEL)
    g = np.maximum(LAST[:, LABEL], 0) * (IMAGES @ FIRST > 0)
    np.testing.assert_allclose(guided, g @ FIRST.T, **TOLERANCE)
    with pytest.raises(Exception, match="rect rule; received dense_relu"):
        RectGrad(model, vouch={"dense_relu": "relu"}).explain(jnp.asarray(IMAGES), LABEL)


@dataclass(frozen=True)
class SmoothRect(Rect):
    """The same, at smooth activations as well."""

    guides_smooth: bool = True


class SmoothRectGrad(Method):
    rule = SmoothRect(0.4)


def prelu(x):
    return jax.nn.relu(x) - jnp.full(8, 0.25) * jax.nn.relu(-x)


# The activation, and its values and derivative by NumPy.
SMOOTH_JAX = {
    "silu, written out": (
        lambda x: x * jax.nn.sigmoid(x),
        lambda x: (x / (1 + np.exp(-x)), (1 + x * (1 - 1 / (1 + np.exp(-x)))) / (1 + np.exp(-x))),
    ),
    "softplus": (jax.nn.softplus, lambda x: (np.logaddexp(x, 0), 1 / (1 + np.exp(-x)))),
    "prelu": (prelu, lambda x: (np.where(x > 0, x, 0.25 * x), np.where(x > 0, 1, 0.25))),
    "leaky_relu in a loop": (
        lambda x: lax.map(lambda x: jnp.maximum(x, 0.25 * x), x[None])[0],
        lambda x: (np.where(x > 0, x, 0.25 * x), np.where(x > 0, 1, 0.25)),
    ),
}


@pytest.mark.parametrize("name", SMOOTH_JAX)
def test_jax_smooth_activations(name):
    activation, formula = SMOOTH_JAX[name]
    y, derivative = formula(IMAGES @ FIRST)
    g = np.tile((LAST[:, LABEL])[:8], (6, 1))
    is_open = y * g > np.sort(y * g, axis=1)[:, [int(0.4 * 8)]]
    expected = (g * derivative * is_open) @ FIRST.T
    found = SmoothRectGrad(lambda x: activation(x @ FIRST) @ LAST).explain(jnp.asarray(IMAGES), LABEL)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert [row.treatment for row in found.coverage] == ["rect"]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose((g * derivative) @ FIRST.T, expected, **TOLERANCE)


class Loud(ReluRule):
    """Closed where what the derivative made of g is small: another map than where g is."""

    name, guides_smooth = "loud", True

    def leaving(self, g, derived, x, y, xp):
        return xp.where(xp.abs(derived) > 0.3, derived, xp.zeros_like(g))


class LoudGrad(Method):
    rule = Loud()


SOFTPLUS = {
    "torch": (torch.tensor, lambda x: torch.nn.functional.softplus(x @ torch.tensor(FIRST)) @ torch.tensor(LAST)),
    "tensorflow": (tf.constant, lambda x: tf.nn.softplus(x @ FIRST) @ LAST),
    "jax": (jnp.asarray, lambda x: jax.nn.softplus(x @ FIRST) @ LAST),
}


@pytest.mark.parametrize("framework", SOFTPLUS)
def test_a_rule_is_given_what_the_derivative_of_a_smooth_activation_made(framework):
    convert, model = SOFTPLUS[framework]
    g, derivative = np.tile(LAST[:, LABEL], (6, 1)), 1 / (1 + np.exp(-(IMAGES @ FIRST)))
    found = LoudGrad(model).explain(convert(IMAGES), LABEL)
    np.testing.assert_allclose(found, np.where(np.abs(g * derivative) > 0.3, g * derivative, 0) @ FIRST.T, **TOLERANCE)
    assert [(row.name, row.treatment) for row in found.coverage] == [("softplus", "loud")]
    # Planted: it is not the same where the rule is asked before the derivative.
    asked_before = np.where(np.abs(g) > 0.3, g, 0) * derivative
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, asked_before @ FIRST.T, **TOLERANCE)


@pytest.mark.parametrize(
    ("convert", "gelu"),
    [
        (torch.tensor, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        (tf.constant, lambda x: tf.nn.gelu(x)),
    ],
)
def test_a_rule_that_needs_it_refuses_an_activation_of_several_derivatives(convert, gelu):
    with pytest.raises(OpaqueRegionError, match="loud rule acts on what an activation's derivative gives"):
        LoudGrad(lambda x: gelu(x * 1.0) * 1.0).explain(convert(IMAGES), LABEL)
    guided = GuidedBackprop(lambda x: gelu(x * 1.0), smooth="guide").explain(convert(IMAGES), LABEL)
    assert [(row.name, row.treatment) for row in guided.coverage] == [("gelu", "guided")]


X = np.concatenate([rng.normal(size=20), [0.0, 0.0, 0.0, 1.0, 2.0, -1.0, 3.0, -3.0, 0.5, -0.5]])[None]
G = np.concatenate([rng.normal(size=20), [1.0, -1.0, np.nan, 1.0, 1.0, 1.0, np.nan, np.nan, np.inf, -np.inf]])[None]


@pytest.mark.parametrize("rule", [PLAIN, DECONV, GUIDED, OPEN], ids=lambda rule: rule.name)
@pytest.mark.parametrize(
    ("relu", "cap"),
    [
        (jax.nn.relu, np.inf),
        (lambda x: jnp.maximum(x, 0), np.inf),
        (lambda x: jnp.clip(x, 0, 1), 1.0),
        (jax.nn.relu6, 6.0),
    ],
)
def test_jax_named_rules_are_the_formula(rule, relu, cap):
    """Also where a ReLU brings a derivative of its own, and the guided rule acts on what arrives there."""
    from guided_backprop.backends.jax.graph.program import Program
    from guided_backprop.backends.jax.graph.relus import Facts
    from guided_backprop.backends.jax.run import Runner

    program = Program(jax.make_jaxpr(relu)(X))
    Facts(program).find_relus(program, {})
    runner = Runner(rule, program.constants)
    _, pullback = jax.vjp(lambda x: runner.read(program.block.outputs[0], runner.run(program.block, [x])), X)
    (found,) = pullback(G)
    derived = np.where((X > 0) & (cap > X), G, 0.0)
    y = np.clip(X, 0, cap)
    np.testing.assert_array_equal(found, rule.leaving(G, derived, X, y, np))
    other = DECONV if rule != DECONV else GUIDED
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(found, other.leaving(G, derived, X, y, np))
