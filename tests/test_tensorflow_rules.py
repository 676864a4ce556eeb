"""TensorFlow: a rule of a user's own acts on every ReLU, in every form; and the kernels of the named rules."""

import numpy as np
import pytest
import tensorflow as tf

from guided_backprop import DeconvNet, GuidedBackprop, OpaqueRegionError
from guided_backprop.backends.tensorflow.classify import classify
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.functions import graph_of, renamed
from guided_backprop.backends.tensorflow.graph.tracing import trace
from guided_backprop.methods.gradients import Method
from guided_backprop.rules import DECONV, GUIDED, OPEN, PLAIN, ReluRule
from test_own_rules import FIRST, IMAGES, LABEL, LAST, SECOND, TOLERANCE, FunctionsGrad, HalfGrad, RectGrad, expected


def net(relu):
    def model(x):
        first = x @ FIRST
        return relu((relu(first) + first) @ SECOND) @ LAST

    return model


def looped(x):
    """Both ReLUs are turns of one loop, and each is in a branch."""
    skips, weights = tf.constant([1.0, 0.0], x.dtype), tf.stack([SECOND, np.eye(8)])

    def turn(number, x):
        y = tf.cond(number < 9, lambda: tf.nn.relu(x), lambda: x)
        return number + 1, (y + skips[number] * x) @ weights[number]

    return tf.while_loop(lambda number, x: number < 2, turn, (0, x @ FIRST))[1] @ LAST


@tf.custom_gradient
def own_relu(x):
    return tf.maximum(x, 0), lambda g: g * tf.cast(x > 0, g.dtype)


@tf.custom_gradient
def dense_relu(x):
    """A ReLU and the layer before it in one function."""
    y = tf.maximum(x @ FIRST, 0)
    return y, lambda g: (g * tf.cast(y > 0, g.dtype)) @ FIRST.T


# How a model is written, where its ReLUs are capped, and what is said of it.
FORMS = {
    "relu": (net(tf.nn.relu), np.inf, {}),
    "maximum": (net(lambda x: tf.maximum(x, 0)), np.inf, {}),
    "maximum of one row": (net(lambda x: tf.maximum(x, np.zeros((1, 8)))), np.inf, {}),
    "where": (net(lambda x: tf.where(x > 0, x, 0)), np.inf, {}),
    "clip": (net(lambda x: tf.clip_by_value(x, 0, 1)), 1.0, {}),
    "minimum of relu": (net(lambda x: tf.minimum(tf.nn.relu(x), 1)), 1.0, {}),
    "three bounds": (net(lambda x: tf.clip_by_value(tf.nn.relu(x), 0, 1)), 1.0, {}),
    "relu6": (net(tf.nn.relu6), 6.0, {}),
    "tf.function": (tf.function(net(tf.function(tf.nn.relu))), np.inf, {}),
    "loop of branches": (looped, np.inf, {}),
    "recompute_grad": (net(tf.recompute_grad(tf.nn.relu)), np.inf, {}),
    "vouched": (net(own_relu), np.inf, {"own_relu": "relu"}),
}
# Loops over images, whose turns know nothing of the others.
ROW_BY_ROW = {
    "map_fn": (net(lambda x: tf.map_fn(lambda row: tf.minimum(tf.nn.relu(row), 1), x)), 1.0, {}),
    "vouched in a loop": (net(lambda x: tf.map_fn(own_relu, x)), np.inf, {"own_relu": "relu"}),
}


def check(method, model, cap, vouch):
    images = tf.constant(IMAGES)
    explanations = method(model, vouch=vouch).explain(images, LABEL)
    np.testing.assert_allclose(explanations, expected(method, cap), **TOLERANCE)
    assert {row.treatment for row in explanations.coverage} == {method.rule.name}
    # Planted: what another rule gives is another map.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(DeconvNet(model, vouch=vouch).explain(images, LABEL), explanations, rtol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_a_rule_that_reads_values(form):
    check(RectGrad, *FORMS[form])


@pytest.mark.parametrize("form", [*FORMS, *ROW_BY_ROW])
def test_a_rule_that_reads_gradients_alone(form):
    check(HalfGrad, *{**FORMS, **ROW_BY_ROW}[form])


def test_functions_of_a_rule():
    check(FunctionsGrad, *FORMS["relu"])


def test_values_are_those_of_a_maximum_that_broadcasts():
    """The rule is given x in the shape of y, and what leaves is summed to that of x."""
    shapes = []

    class Seen(ReluRule):
        name, reads_values = "seen", True

        def leaving(self, g, derived, x, y, xp):
            shapes.append({tuple(values.shape) for values in (g, derived, x, y)})
            return derived * x

    class See(Method):
        rule = Seen()

    def model(x):
        return tf.maximum(tf.reshape(x, (2, 1)), np.zeros((2, 3)))

    weights = np.array([[1.0, 2.0, -4.0], [1.0, 2.0, 3.0]])
    explanations = See(model).explain(tf.constant([2.0, -1.0], tf.float64), weights)
    assert shapes == [{(2, 3)}]
    np.testing.assert_array_equal(explanations, [-2.0, 0.0])


def test_a_vouched_function_that_holds_more_than_a_relu():
    def model(x):
        return dense_relu(x) @ LAST

    vouch = {"dense_relu": "relu"}
    images = tf.constant(IMAGES)
    g = np.maximum(LAST[:, LABEL], 0) * (IMAGES @ FIRST > 0)
    np.testing.assert_allclose(GuidedBackprop(model, vouch=vouch).explain(images, LABEL), g @ FIRST.T, **TOLERANCE)
    with pytest.raises(OpaqueRegionError, match="rect rule; received dense_relu of 1 inputs"):
        RectGrad(model, vouch=vouch).explain(images, LABEL)


# The kernels against the formula: every gradient meets every value, with ties, caps, infinities and NaN.

INFINITY, NAN = np.inf, np.nan
_rng = np.random.default_rng(0)
X, G = np.meshgrid(
    np.concatenate([[0.0, -0.0, 1.0, 6.0, 7.0, -1.0, INFINITY, -INFINITY, NAN], _rng.normal(size=15) * 4]),
    np.concatenate([[0.0, -0.0, INFINITY, -INFINITY, NAN], _rng.normal(size=15)]),
)
SPELLINGS = {
    "relu": (tf.nn.relu, INFINITY),
    "relu6": (tf.nn.relu6, 6.0),
    "maximum": (lambda x: tf.maximum(x, 0), INFINITY),
    "clip": (lambda x: tf.clip_by_value(x, 0, 1), 1.0),
    "minimum of relu": (lambda x: tf.minimum(tf.nn.relu(x), 1), 1.0),
    "relu of minimum": (lambda x: tf.nn.relu(tf.minimum(x, 1)), 1.0),
}


def leaving(relu, rule):
    """Return what leaves one ReLU towards X where G arrives."""
    traced = trace(relu, [tf.TensorSpec(X.shape, tf.float64)], autograph=False)
    classify(traced.definition, traced.nested, [])
    graph_def, names = graph_of(traced)
    (result,) = (names[ref] for ref in traced.definition.ret.values())
    (argument,) = (arg.name for arg in traced.definition.signature.input_arg)

    @tf.function
    def run(x, g):
        (y,) = tf.graph_util.import_graph_def(renamed(graph_def), {f"{argument}:0": x}, [result], name="model")
        with Editor(rule, {}).at_work():
            return tf.gradients(y, x, g)[0]

    return run(tf.constant(X), tf.constant(G)).numpy()


@pytest.mark.parametrize("rule", [PLAIN, DECONV, GUIDED, OPEN], ids=lambda rule: rule.name)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_named_rules_are_the_formula(spelling, rule):
    relu, cap = SPELLINGS[spelling]
    is_open = (X > 0) & ((cap > X) | np.isinf(cap))
    formula = rule.leaving(G, np.where(is_open, G, 0), X, np.clip(X, 0, cap), np)
    if spelling in ("relu", "relu6") and rule in (PLAIN, GUIDED):
        # TensorFlow's kernels multiply by the gate: what is not finite stays so, and is refused.
        formula = np.where(~is_open & ~np.isfinite(rule.leaving(G, G, X, X, np)), NAN, formula)
    np.testing.assert_array_equal(leaving(lambda x: relu(x), rule), formula)
    other = DECONV if rule != DECONV else GUIDED
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(leaving(lambda x: relu(x), other), formula)


BOUNDED = {
    "clip(x, 0, .1)": (lambda x: tf.clip_by_value(x, tf.constant(0.0, x.dtype), tf.constant(0.1, x.dtype)), 0.1),
    "minimum(relu(x), .1)": (lambda x: tf.minimum(tf.nn.relu(x), tf.constant(0.1, x.dtype)), 0.1),
    "where(x > .7, x, 0)": (lambda x: tf.where(x > tf.constant(0.7, x.dtype), x, tf.zeros([], x.dtype)), 0.7),
    "clip(x, 0, largest)": (lambda x: tf.clip_by_value(x, tf.constant(0.0, x.dtype), x.dtype.max), None),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spelling", BOUNDED)
def test_a_bound_is_exact_in_the_dtype_of_the_map(spelling, dtype):
    relu, bound = BOUNDED[spelling]
    exact = np.array(bound or 1.0, dtype)
    x = np.array([[np.nextafter(exact, exact.dtype.type(-9)), exact, np.nextafter(exact, exact.dtype.type(9)), -1]])
    found = GuidedBackprop(lambda x: relu(x)).explain(tf.constant(x, dtype), np.ones((1, 4))).attribution
    is_cap = bound is not None and "where" not in spelling
    expected = [1, 1, 1, 0] if bound is None else [1, 0, 0, 0] if is_cap else [0, 0, 1, 0]
    np.testing.assert_array_equal(found, [expected])
