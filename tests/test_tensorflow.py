"""TensorFlow and Keras: every ReLU, exactly, or an error; and what holds around the rule."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import networks
import networks_keras
from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.arrays import Inputs
from guided_backprop.backends.base import Attributed, Setup
from guided_backprop.backends.tensorflow import TensorFlowBackend
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.errors import ImageError, LabelError, ModelError, NoReluError, OpaqueRegionError, ScoreError
from guided_backprop.labels.parse import parse_label
from guided_backprop.rules import DECONV, GUIDED, PLAIN
from networks import CLASSES, LABELS, channels_last
from networks_tensorflow import Net, oracle, small_net, small_oracle
from spellings import column, together
from spellings.arithmetic import ARITHMETIC
from spellings.capped import CAPPED
from spellings.forms import FORMS
from spellings.functions import own_relu_tf
from spellings.relus import RELUS


def both(table, *verdicts):
    """Return what is written in plain TensorFlow, and what Keras' functions are on it."""
    return {
        f"{framework}, {name}": write
        for framework in ("tensorflow", "keras")
        for verdict in verdicts
        for name, write in column(table, framework, verdict, beneath="tensorflow").items()
    }


ACTIVATIONS, SPELLED = (both(RELUS | ARITHMETIC, verdict) for verdict in ("guided", "refused"))
CAPS, MODELS = both(CAPPED, "guided"), both(FORMS, "guided")
RULES = {"saliency": PLAIN, "deconvnet": DECONV, "guided": GUIDED}
IMAGES = channels_last(networks.IMAGES)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
# Loading and exporting models warns of itself, in versions to come or on this Python.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def explain(model: Any, images: Any = IMAGES, labels: Any = LABELS, rule: str = "guided", **options: Any) -> Attributed:
    """Explain one batch with a backend of its own."""
    return explain_with(backend(model, **options), images, labels, rule)


def backend(model: Any, undo_head: bool = True, vouch: Any = None) -> TensorFlowBackend:
    return TensorFlowBackend(Setup(model, undo_head=undo_head, vouch=vouch or {}))


def explain_with(
    one: TensorFlowBackend, images: Any = IMAGES, labels: Any = LABELS, rule: str = "guided"
) -> Attributed:
    """Explain one batch as a method does."""
    inputs = Inputs.of(images)
    one.check_images(inputs)
    (found,) = one.attribute(inputs, parse_label(labels, len(images)).weigh, [RULES[rule]])
    return replace(found, attribution=found.attribution[0].images, scores=found.scores[0])


def by_rule(model: Any, images: Any = IMAGES, labels: Any = LABELS) -> dict[str, Attributed]:
    """Explain one batch under all rules, which share one trace."""
    found = backend(model).attribute(Inputs.of(images), parse_label(labels, len(images)).weigh, [*RULES.values()])
    return dict(zip(RULES, found, strict=True))


@pytest.mark.parametrize("spellings", together(ACTIVATIONS), ids=" | ".join)
def test_every_spelling_of_a_relu(spellings):
    """Three in a network, under the rule that is hardest to get right; the worked example has each alone, by all."""
    result = explain(small_net(*(ACTIVATIONS[spelling] for spelling in spellings)))
    np.testing.assert_allclose(result.attribution, small_oracle(), **TOLERANCE)
    assert result.coverage == (("relu", 3, "guided"),)


@pytest.mark.parametrize("rule", RULES)
def test_a_convolutional_network(rule):
    """One ReLU of each common spelling."""
    relus = [ACTIVATIONS[f"tensorflow, {name}"] for name in ("relu", "maximum(x, 0)", "clip(0, inf)")]
    result = explain(Net(*relus), rule=rule)
    np.testing.assert_allclose(result.attribution, oracle(rule), **TOLERANCE)
    assert {("relu", 3, RULES[rule].name), ("max_pool", 1, "plain")} == set(result.coverage)


@pytest.mark.parametrize("spelling", CAPS)
def test_every_spelling_of_a_capped_relu(spelling):
    name = "relu6" if "relu6" in spelling else "relu1"
    for rule, result in by_rule(small_net(CAPS[spelling])).items():
        np.testing.assert_allclose(result.attribution[0].images, small_oracle(rule, cap=1.0), **TOLERANCE)
        assert (name, 3, RULES[rule].name) in result.coverage


@pytest.mark.parametrize("form", MODELS)
def test_every_form_of_a_model(form, tmp_path):
    """Under the rule that is hardest to get right; the others take the same way."""
    result = explain(MODELS[form](tmp_path))
    np.testing.assert_allclose(result.attribution, oracle(), **TOLERANCE)
    assert ("relu", 3, "guided") in result.coverage


def test_a_model_is_explained_again():
    one = backend(Net(tf.nn.relu))
    for _ in range(2):
        np.testing.assert_allclose(explain_with(one).attribution, oracle(), **TOLERANCE)


@pytest.mark.parametrize("spelling", SPELLED)
def test_a_relu_spelled_as_arithmetic_is_refused(spelling):
    net = small_net(SPELLED[spelling], tf.nn.relu, tf.nn.relu)
    one = backend(net)
    with pytest.raises(OpaqueRegionError, match="vouch"):
        explain_with(one)
    plain = plain_gradient(net, IMAGES, np.eye(CLASSES)[LABELS])
    np.testing.assert_allclose(explain_with(one, rule="saliency").attribution, plain, **TOLERANCE)


def test_what_is_refused_is_refused_again():
    one = backend(small_net(SPELLED["tensorflow, (x + |x|) / 2"], tf.nn.relu, tf.nn.relu))
    for _ in range(2):
        with pytest.raises(OpaqueRegionError, match="vouch"):
            explain_with(one)


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_planted_fault_a_missed_relu_is_caught(missed):
    activations = [tf.nn.relu] * 3
    activations[missed] = own_relu_tf
    result = explain(Net(*activations), vouch={"own_relu_tf": "plain"})
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(result.attribution, oracle(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rule", ["saliency", "deconvnet"])
def test_planted_fault_a_forgotten_gate_is_caught(rule):
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(explain(Net(tf.nn.relu), rule=rule).attribution, oracle(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrap", [lambda relu: relu, tf.function, lambda relu: lambda x: tf.map_fn(relu, x)])
def test_a_custom_gradient_can_be_vouched_for(rule, wrap):
    model = Net(wrap(own_relu_tf), tf.nn.relu, tf.nn.relu)
    result = explain(model, rule=rule, vouch={"own_relu_tf": "relu"})
    np.testing.assert_allclose(result.attribution, oracle(rule), **TOLERANCE)
    assert ("own_relu_tf", 1, RULES[rule].name) in result.coverage


class WithCustomGradients(tf.Module):
    """Three functions that come back from a SavedModel without the Python code of their gradients."""

    spec = tf.TensorSpec((None, 4), tf.float64)

    @tf.function(input_signature=[spec])
    def own(self, x):
        return tf.nn.relu(own_relu_tf(x * 2.0))

    @tf.function(input_signature=[spec])
    def recomputed(self, x):
        return tf.nn.relu(tf.recompute_grad(tf.nn.relu)(x * 2.0))

    @tf.function(input_signature=[spec])
    def silu(self, x):
        return tf.nn.relu(tf.nn.silu(x * 2.0))


def test_custom_gradients_of_a_saved_model_are_refused(tmp_path):
    module, x = WithCustomGradients(), np.random.default_rng(0).normal(size=(3, 4))
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for function in (loaded.own, loaded.recomputed):
        with pytest.raises(OpaqueRegionError, match="received CustomGradient"):
            explain(function, x, 0)
    ruled = explain(loaded.own, x, 0, vouch={"CustomGradient": "relu"})
    np.testing.assert_array_equal(ruled.attribution, explain(module.recomputed, x, 0).attribution)
    assert str(explain(loaded.silu, x, 0).coverage) == "relu x1 guided, silu x1 plain"


@tf.RegisterGradient("GradientOfATest")
def gradient_of_a_test(op, g):
    return g * tf.cast(op.outputs[0] > 0, g.dtype)


def test_an_overridden_gradient_is_refused():
    @tf.function
    def model(x):
        with tf.compat.v1.get_default_graph().gradient_override_map({"Relu": "GradientOfATest"}):
            return tf.nn.relu(x)

    x = np.array([[1.0, -1.0]])
    with pytest.raises(OpaqueRegionError, match="GradientOfATest"):
        explain(model, x, 0)
    weights = np.array([[-1.0, 1.0]])
    for rule, expected in (("saliency", [-1, 0]), ("guided", [0, 0]), ("deconvnet", [0, 1])):
        result = explain(model, x, weights, rule, vouch={"GradientOfATest": "relu"})
        np.testing.assert_array_equal(result.attribution, [expected])


def test_a_gradient_inside_the_forward_pass_is_left_alone():
    def model(x):
        return tf.gradients(tf.nn.relu(x) ** 3, x)[0] / 3.0

    result = explain(model, np.array([[2.0, -1.0]]), np.array([[1.0, 1.0]]))
    np.testing.assert_allclose(result.outputs, [[4.0, 0.0]])
    np.testing.assert_allclose(result.attribution, [[4.0, 0.0]])


# The rule.


@pytest.mark.parametrize("spelling", ACTIVATIONS)
def test_worked_example(spelling):
    """x = [5, 0, -5, 10], g = [1, -2, 3, -4]; the tie at 0 is closed in every spelling."""
    x, g = (np.array([values] * 2, float) for values in ([5, 0, -5, 10], [1, -2, 3, -4]))
    found = by_rule(lambda x: ACTIVATIONS[spelling](x * 1.0), x, g)
    for rule, expected in (("saliency", [1, 0, 0, -4]), ("deconvnet", [1, 0, 3, 0]), ("guided", [1, 0, 0, 0])):
        np.testing.assert_array_equal(found[rule].attribution[0].images, [expected, expected])


@pytest.mark.parametrize("spelling", ["relu", "maximum(x, 0)", "maximum(0, x)", "(x >= 0) * x"])
def test_gate_is_closed_at_zero_for_positive_gradients(spelling):
    for rule in ("saliency", "guided"):
        result = explain(RELUS[spelling]["tensorflow"].write, np.array([[0.0, 1.0]]), np.ones((1, 2)), rule)
        np.testing.assert_array_equal(result.attribution, [[0.0, 1.0]])


RELU6 = {
    "tf.nn.relu6": tf.nn.relu6,
    "keras.ops.relu6": keras.ops.relu6,
    "layers.ReLU(6)": lambda x: layers.ReLU(6.0)(x),
    "clip_by_value": lambda x: tf.clip_by_value(x, 0.0, 6.0),
    "minimum of relu": lambda x: tf.minimum(tf.nn.relu(x), 6.0),
}


@pytest.mark.parametrize("spelling", RELU6)
def test_gate_is_closed_at_and_above_the_cap(spelling):
    x = np.array([[-1.0, 3.0, 6.0, 7.0]], np.float32)
    for rule, expected in (("saliency", [0, 1, 0, 0]), ("guided", [0, 1, 0, 0]), ("deconvnet", [1, 1, 1, 1])):
        result = explain(RELU6[spelling], x, np.ones((1, 4)), rule)
        np.testing.assert_array_equal(result.attribution, [expected])
        assert str(result.coverage) == f"relu6 x1 {RULES[rule].name}"


def test_threshold_keeps_its_own_gate():
    x = np.array([[0.2, 0.4, 0.5, 0.9]], np.float32)
    for relu in (layers.ReLU(threshold=0.5), lambda x: keras.ops.threshold(x, 0.5, 0.0)):
        result = explain(relu, x, np.array([[1.0, 1.0, 1.0, 2.0]]))
        np.testing.assert_array_equal(result.attribution, [[0, 0, 0, 2]])
        assert str(result.coverage) == "threshold(0.5) x1 guided"


def test_the_gate_belongs_to_the_relu_and_not_to_the_tensor():
    """-3 x + relu(x) w: the skip path keeps its negative gradient."""
    x, w = np.array([[1.0, 2.0, -1.0, -2.0]]), np.array([1.0, -1.0, 1.0, 1.0])
    result = explain(lambda x: -3.0 * x + tf.nn.relu(x) * w, x, np.ones((1, 4)))
    np.testing.assert_array_equal(result.attribution, [[-2, -3, -3, -3]])


def plain_gradient(model, x, weights):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x)
    return tape.gradient(outputs, x, tf.cast(weights, outputs.dtype)).numpy()


OTHERS = {
    "prelu": lambda: layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25)),
    "hardsigmoid": lambda: layers.Activation("hard_sigmoid"),
    "hardswish": lambda: layers.Activation("hard_silu"),
    "celu": lambda: layers.Activation("celu"),
    "elu": lambda: layers.ELU(),
    "selu": lambda: layers.Activation("selu"),
    "gelu": lambda: layers.Activation(lambda x: keras.activations.gelu(x, approximate=False)),
    "tanh": lambda: layers.Activation("tanh"),
    "silu": lambda: layers.Activation("silu"),
    "leaky_relu": lambda: layers.LeakyReLU(0.1),
    "leaky_relu of ReLU": lambda: layers.ReLU(negative_slope=0.1),
    "leaky_relu with a cap": lambda: layers.ReLU(1.0, negative_slope=0.1),
    "leaky_relu with a threshold": lambda: layers.ReLU(threshold=0.5, negative_slope=0.1),
    "softplus": lambda: layers.Activation("softplus"),
    "softsign": lambda: layers.Activation("softsign"),
    "clamp of hard_tanh": lambda: layers.Activation("hard_tanh"),
}


@pytest.mark.parametrize("activation", OTHERS)
def test_other_activations_are_listed_and_keep_their_derivative(activation):
    name, layer = activation.split()[0], OTHERS[activation]()
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), layers.Dense(6), layer, layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    one = backend(net)
    with pytest.raises(NoReluError, match=f"{name} x1.*Saliency"):
        explain_with(one, x, 0)
    mixed = keras.Sequential([keras.Input((6,)), net, layers.Dense(3, activation="relu"), layers.Dense(2)])
    assert {(name, 1, "plain"), ("relu", 1, "guided")} <= set(explain(mixed, x, 0).coverage)
    expected = plain_gradient(net, x, np.eye(2)[[0, 0, 0]])
    np.testing.assert_allclose(explain_with(one, x, 0, "saliency").attribution, expected, rtol=1e-5, atol=1e-6)


def test_an_explicit_relu6_is_a_relu():
    result = explain(lambda x: tf.nn.relu6(x + 3.0) * 0.5, np.ones((2, 4)), 0)
    assert str(result.coverage) == "relu6 x1 guided"


def test_saliency_is_the_plain_gradient():
    model = Net(tf.nn.relu)
    expected = plain_gradient(model, IMAGES, np.eye(CLASSES)[LABELS])
    np.testing.assert_allclose(explain(model, rule="saliency").attribution, expected, **TOLERANCE)


def test_a_relu_on_weights_is_not_on_the_path():
    weight = tf.Variable(np.random.default_rng(0).normal(size=(6, 3)))
    with pytest.raises(NoReluError, match="no non-linearity"):
        explain(lambda x: x @ tf.nn.relu(weight), np.ones((2, 6)), 0)


def test_a_variable_bound_that_is_zero_is_refused():
    floor = tf.Variable(np.full(4, 0.1))
    one = backend(lambda x: tf.nn.relu(tf.maximum(x, floor)))
    assert ("maximum", 1, "plain") in explain_with(one, np.ones((1, 4)), 0).coverage
    floor.assign(np.zeros(4))
    with pytest.raises(OpaqueRegionError, match="maximum"):
        explain_with(one, np.ones((1, 4)), 0)


# Legitimate masks.


@tf.custom_gradient
def hand_guided(x):
    """The rule written by hand."""

    def grad(g):
        return tf.nn.relu(g) * tf.cast(x > 0, g.dtype)

    return tf.nn.relu(x), grad


LEGITIMATE = {
    "NaN guard": lambda x: tf.where(tf.math.is_nan(x), tf.zeros_like(x), x),
    "finite guard": lambda x: tf.where(tf.math.is_finite(tf.exp(x)), tf.exp(x), 0.0),
    "fixed mask": lambda x: x * tf.constant([1.0, 0.0, 1.0] * 4, x.dtype),
    "brightness": lambda x: tf.where(tf.reduce_mean(x, -1, keepdims=True) > 0, x, 0.0),
    "gate by another channel": lambda x: tf.where(tf.reverse(x, [-1]) > 0, x, 0.0),
    "maximum of two branches": lambda x: tf.maximum(x, tf.reverse(x, [-1])),
    "where as a maximum": lambda x: tf.where(x > tf.reverse(x, [-1]), x, tf.reverse(x, [-1])),
    "leaky ReLU by where": lambda x: tf.where(x > 0, x, 0.1 * x),
    "ELU by where": lambda x: tf.where(x > 0, x, tf.exp(x) - 1.0),
    "softsign": tf.nn.softsign,
    "absolute value": tf.abs,
    "L1 normalisation": lambda x: x / tf.reduce_sum(tf.abs(x), -1, keepdims=True),
    "root mean square": lambda x: x / tf.sqrt(tf.reduce_mean(x * x, -1, keepdims=True)),
    "floor that is not 0": lambda x: tf.maximum(x, 1e-6),
    "hard shrink": keras.activations.hard_shrink,
    "soft shrink": keras.activations.soft_shrink,
    "square plus": keras.activations.squareplus,
}


@pytest.mark.parametrize("mask", LEGITIMATE)
def test_what_is_no_relu_is_not_refused(mask):
    """The gradient of what stands in for the first ReLU stays plain, that of the true ReLUs is guided."""
    stand_in = LEGITIMATE[mask]
    by_hand = plain_gradient(small_net(stand_in, hand_guided, hand_guided), IMAGES, np.eye(CLASSES)[LABELS])
    found = explain(small_net(stand_in, tf.nn.relu, tf.nn.relu)).attribution
    np.testing.assert_allclose(found, by_hand, **TOLERANCE)


def test_a_masked_transformer_is_explained():
    keras.utils.set_random_seed(0)
    rows = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(rows, rows, use_causal_mask=True)
    x = layers.LayerNormalization()(rows + x)
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, activation="relu")(x)))
    padded = keras.ops.arange(6) >= 4
    x = keras.ops.where(padded[None, :, None], 0.0, x)
    model = keras.Model(rows, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    images = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    result = explain(model, images, [0, 2])
    assert ("relu", 1, "guided") in result.coverage
    assert ("softmax", 1, "plain") in result.coverage


@pytest.mark.parametrize("cell", ["SimpleRNN", "LSTM", "GRU"])
def test_a_recurrent_network_with_relu(cell):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 3)), getattr(layers, cell)(4, activation="relu"), layers.Dense(2)])
    images = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    assert ("relu", 1 + (cell == "LSTM"), "guided") in explain(model, images, 0).coverage
    expected = plain_gradient(model, images, np.eye(2)[[0, 0]])
    np.testing.assert_allclose(explain(model, images, 0, "saliency").attribution, expected, rtol=1e-5, atol=1e-6)


# Heads.


def own_softmax(x):
    return keras.layers.Softmax(dtype="float64")(x)


HEADS = {
    "softmax": tf.nn.softmax,
    "softmax of a layer": own_softmax,
    "softmax in a function": tf.function(tf.nn.softmax),
    "log_softmax": tf.nn.log_softmax,
    "sigmoid": tf.nn.sigmoid,
    "log_sigmoid": tf.math.log_sigmoid,
    "softmax behind moves": lambda x: tf.squeeze(tf.nn.softmax(x[:, None]), 1),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_score_is_the_logit_in_front_of_the_head(head):
    net = Net(tf.nn.relu)
    expected = explain(net)
    result = explain(lambda x: HEADS[head](net(x)))
    np.testing.assert_allclose(result.attribution, oracle(), **TOLERANCE)
    np.testing.assert_allclose(result.scores, expected.scores, **TOLERANCE)
    np.testing.assert_allclose(result.outputs, HEADS[head](net(IMAGES)))
    assert result.head == head.split()[0]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_can_be_kept(head):
    net = Net(tf.nn.relu)
    result = explain(lambda x: HEADS[head](net(x)), undo_head=False)
    assert result.head is None
    np.testing.assert_allclose(result.scores, result.outputs[range(4), LABELS])
    assert not np.allclose(result.attribution, oracle())


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_a_keras_head(head):
    model = networks_keras.net(layers.ReLU(dtype="float64"))
    model.layers[-1].activation = keras.activations.get(head)
    result = explain(model)
    np.testing.assert_allclose(result.attribution, oracle(), **TOLERANCE)
    np.testing.assert_allclose(result.outputs, model(IMAGES), **TOLERANCE)
    assert result.head == head


def test_attention_is_no_head():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), layers.Softmax(), layers.Dense(2)])
    result = explain(model, np.ones((2, 4), np.float32), 0)
    assert result.head is None
    assert ("softmax", 1, "plain") in result.coverage


# Images, dtypes, models.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tf.constant(IMAGES > 0), "bool"),
        (tf.cast(IMAGES, tf.uint8), "uint8"),
        (tf.cast(IMAGES, tf.complex128), "complex"),
        (IMAGES.astype(int), "int64"),
        (IMAGES.tolist(), "list"),
        (None, "NoneType"),
        (tf.constant(1.0), "Tensor"),
        (IMAGES * np.nan, "finite"),
        (tf.constant(IMAGES) / 0.0, "finite"),
        (tf.Variable(IMAGES), "Variable"),
    ],
)
def test_bad_images(bad, message):
    with pytest.raises(ImageError, match=message):
        backend(Net(tf.nn.relu)).check_images(Inputs.of(bad))


def test_symbolic_images_are_refused():
    one = backend(Net(tf.nn.relu))
    with pytest.raises(ImageError, match="eager"):
        tf.function(lambda x: one.check_images(Inputs.of(x)), autograph=False)(tf.constant(IMAGES))


def test_kinds_and_channels():
    one = backend(Net(tf.nn.relu))
    assert isinstance(explain_with(one).attribution, np.ndarray)
    tensor = explain_with(one, tf.constant(IMAGES)).attribution
    assert isinstance(tensor, tf.Tensor)
    np.testing.assert_allclose(tensor, oracle(), **TOLERANCE)
    assert one.channel_axis(IMAGES) == 3
    assert one.channel_axis(IMAGES[0, 0]) is None
    for kind in (np.asarray, tf.constant):
        batch = kind(IMAGES)
        assert type(one.concatenate([batch, batch])) is type(batch)
        assert one.concatenate([batch, batch]).shape == (8, 8, 8, 3)
        assert one.empty_like(batch[:0]).shape == (0, 8, 8, 3)
        np.testing.assert_allclose(one.reduce(batch, "absmax", 3), np.abs(IMAGES).max(3))
        for reducer in ("mean", "sum", "max", "min"):
            np.testing.assert_allclose(one.reduce(batch, reducer, 3), getattr(np, reducer)(IMAGES, 3), **TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2), ("float16", 0.05)])
def test_dtypes(dtype, tolerance):
    images = tf.cast(IMAGES, dtype)
    net = Net(tf.nn.relu)
    lowered = tf.function(lambda x: tf.cast(net(tf.cast(x, tf.float64)), x.dtype))
    result = explain(lowered, images)
    assert result.attribution.dtype == images.dtype
    error = np.abs(tf.cast(result.attribution, tf.float64).numpy() - oracle())
    assert np.median(error) <= tolerance * np.abs(oracle()).mean()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_policies(policy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", dtype=policy),
            layers.Flatten(dtype=policy),
            layers.Dense(3, activation="softmax", dtype=policy),
        ]
    )
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    result = explain(model, images, 0)
    assert result.attribution.dtype == np.float32
    assert ("relu", 1, "guided") in result.coverage
    assert result.head == "softmax"


def test_the_batch_size_is_free_and_traces_once():
    traces = []
    net = Net(tf.nn.relu)

    def model(x):
        traces.append(x.shape)
        return net(x)

    one = backend(model)
    for count in (4, 1, 3):
        result = explain_with(one, IMAGES[:count], LABELS[:count])
        np.testing.assert_allclose(result.attribution, oracle()[:count], **TOLERANCE)
    assert len(traces) == 1


def test_updated_weights_are_seen():
    model = networks_keras.net(layers.ReLU(dtype="float64"))
    one = backend(model)
    before = explain_with(one)
    model.layers[2].kernel.assign(model.layers[2].kernel * 2.0)
    after = explain_with(one)
    np.testing.assert_allclose(after.outputs, model(IMAGES), **TOLERANCE)
    np.testing.assert_allclose(after.attribution, explain(model).attribution, **TOLERANCE)
    assert not np.allclose(after.attribution, before.attribution)


def reads_numpy(x):
    return tf.nn.relu(x.numpy())


def draws(x):
    return tf.nn.relu(tf.nn.dropout(tf.reshape(x, (-1, 192)), 0.5))


def normalised(x):
    scale = tf.ones(3, tf.float32)
    return tf.nn.relu(tf.compat.v1.nn.fused_batch_norm(tf.cast(x, tf.float32), scale, scale)[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: 1.0, "a real tensor"),
        (lambda x: tf.reduce_sum(x), "row per image"),
        (lambda x: tf.reduce_sum(x, 0), "row per image"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: tf.reshape(x, (7, -1)), "reshape|Reshape"),
        (reads_numpy, r"without numpy\(\)"),
        (lambda x: tf.nn.relu(np.asarray(x)), "tf.function must trace"),
        (draws, "received random_uniform"),
        (normalised, "inference mode"),
    ],
)
def test_a_model_that_cannot_be_explained(model, message):
    with pytest.raises(ModelError, match=message):
        explain(model, labels=0, rule="saliency")


def test_a_keras_model_that_has_no_weights_yet():
    with pytest.raises(ModelError, match="never built"):
        explain(keras.Sequential([layers.Dense(3, activation="relu")]), np.ones((2, 4)), 0)


@pytest.mark.parametrize("model", [lambda x: tf.stop_gradient(x)[:, 0, 0], lambda x: tf.ones((tf.shape(x)[0], 3))])
def test_a_score_that_does_not_depend_on_the_image_is_an_error(model):
    with pytest.raises(ScoreError, match="depend"):
        explain(model, labels=0, rule="saliency")


def test_a_model_that_overflows():
    with pytest.raises(ScoreError, match="finite"):
        explain(lambda x: tf.reshape(tf.nn.relu(x), (-1, 192)) * 1e300 * 1e300, labels=0)


def test_a_python_branch_on_a_tensor_is_followed():
    net = Net(tf.nn.relu)

    def model(x):
        if tf.reduce_sum(x) > 1e9:
            x = x * 2.0
        return net(x)

    np.testing.assert_allclose(explain(model).attribution, oracle(), **TOLERANCE)


def branch(x):
    return tf.cond(tf.reduce_sum(x) > -1e30, lambda: tf.nn.relu(x), lambda: x)


BESIDE = {
    "a branch that nobody reads": lambda x, h: (branch(x), h)[1],
    "a loop that nobody reads": lambda x, h: (tf.map_fn(tf.nn.relu, h), h)[1],
    "a branch without a gradient": lambda x, h: h + tf.stop_gradient(branch(x)),
    "a loop without a gradient": lambda x, h: h * tf.stop_gradient(tf.map_fn(lambda row: row + 2.0, x)),
    "suppression of boxes": lambda x, h: h[
        :,
        : tf.size(
            tf.image.non_max_suppression(tf.cast(h[0, :, None] * tf.ones([1, 4], h.dtype), tf.float32), [1.0] * 4, 4)
        )
        + 9,
    ],
}


@pytest.mark.parametrize("beside", BESIDE)
def test_control_flow_beside_the_way_of_the_score(beside):
    x, w = tf.constant(np.random.default_rng(0).normal(size=(3, 4))), np.random.default_rng(1).normal(size=(4, 4))
    model = lambda x: BESIDE[beside](x, tf.nn.relu(x @ w))  # noqa: E731
    by_hand = plain_gradient(lambda x: BESIDE[beside](x, hand_guided(x @ w)), x, np.eye(4)[[1, 1, 1]])
    np.testing.assert_allclose(explain(model, x, 1).attribution, by_hand, **TOLERANCE)
    assert explain(model, x, 1, "saliency").coverage


W, SLOPES = tf.constant(np.eye(4)), tf.constant(np.random.default_rng(0).uniform(0.1, 0.3, size=(9, 4)))
#: Of nine images all are needed, and derivatives of all; eight are looked at first.
FOR_ALL = {
    "slopes for each image": lambda x, h: h + tf.where(x > 0, x, SLOPES * x),
    "a part that asks for nine": lambda x, h: h + tf.concat(tf.split(tf.abs(x), 9), 0),
    "images that are counted while it is traced": lambda x, h: tf.reshape(h + tf.abs(x), [x.shape[0] or 1, -1]) @ W,
    "a part that has no derivative": lambda x, h: (
        h + (x + tf.stop_gradient(tf.linalg.lu(x[..., None, None])[0][..., 0, 0])) @ W
    ),
}


@pytest.mark.parametrize("case", FOR_ALL)
def test_a_model_for_one_number_of_images(case):
    x, w = np.random.default_rng(1).normal(size=(9, 4)), np.random.default_rng(2).normal(size=(4, 4))
    by_hand = plain_gradient(lambda x: FOR_ALL[case](x, hand_guided(x @ w)), x, np.eye(4)[[1] * 9])
    np.testing.assert_allclose(
        explain(lambda x: FOR_ALL[case](x, tf.nn.relu(x @ w)), x, 1).attribution, by_hand, **TOLERANCE
    )


def test_another_thread_may_find_first_that_a_model_is_for_one_number_of_images(monkeypatch):
    own_error = TensorFlowBackend._own_error

    def meanwhile(backend, error, given):
        backend._is_free = False
        return own_error(backend, error, given)

    monkeypatch.setattr(TensorFlowBackend, "_own_error", meanwhile)
    test_a_model_for_one_number_of_images("images that are counted while it is traced")


def test_planted_fault_a_gate_by_slopes_for_each_image():
    x = np.random.default_rng(1).normal(size=(9, 4))
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        explain(lambda x: tf.nn.relu(x @ W) + tf.where(x @ W > 0, x @ W, 0.0 * SLOPES * x), x, 1)


#: Of x and slopes: what is a leaky ReLU, and a ReLU where a slope is 0, in a function of its own.
IN_PLACES = {
    "a map": lambda x, slopes: tf.map_fn(lambda row: tf.where(row > 0, row, slopes * row), x),
    "a branch": lambda x, slopes: tf.cond(tf.size(x) > 1, lambda: tf.where(x > 0, x, slopes * x), lambda: x),
}


def of_slopes(form, slopes):
    """Return a model and its images, with a leaky ReLU of these slopes behind a ReLU."""
    w, x = np.random.default_rng(2).normal(size=(6, 6)), np.random.default_rng(1).normal(size=(3, 6))
    return lambda x, relu=tf.nn.relu: form(relu(x @ w) @ w - 0.3, tf.constant(slopes)) @ w, tf.constant(x)


@pytest.mark.parametrize("form", IN_PLACES)
def test_one_slope_of_0_is_that_of_a_relu_however_few_values_tell(form):
    model, x = of_slopes(IN_PLACES[form], np.array([0.1, 0.2, 0.0, 0.3, 0.2, 0.1]))
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        explain(model, x, 1)
    assert explain(model, x, 1, "saliency").coverage


@pytest.mark.parametrize("form", IN_PLACES)
def test_other_slopes_are_those_of_a_leaky_relu(form):
    model, x = of_slopes(IN_PLACES[form], np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1]))
    by_hand = plain_gradient(lambda x: model(x, hand_guided), x, np.eye(6)[[1, 1, 1]])
    np.testing.assert_allclose(explain(model, x, 1).attribution, by_hand, **TOLERANCE)


def test_an_array_beside_what_no_number_of_it_makes_a_relu_is_plain():
    gains = np.array([0.0, 1.0, -1.0, 2.0, 0.5, 0.0])
    for form in (
        lambda x, gains: tf.nn.leaky_relu(x) * gains,
        lambda x, gains: tf.abs(x) * gains + x / 3,
        lambda x, gains: x * tf.sigmoid(gains * x),
        lambda x, gains: tf.where(gains > 0, tf.abs(x), x),
        lambda x, gains: tf.clip_by_value(x, -1 - gains**2, 1 + gains**2),
    ):
        model, x = of_slopes(form, gains)
        by_hand = plain_gradient(lambda x, model=model: model(x, hand_guided), x, np.eye(6)[[1, 1, 1]])
        np.testing.assert_allclose(explain(model, x, 1).attribution, by_hand, **TOLERANCE)


def test_an_auxiliary_output_with_a_branch():
    def model(x):
        h = tf.nn.relu(x * 2.0)
        return {"logits": h, "auxiliary": branch(h)}

    one = TensorFlowBackend(Setup(model, output="logits"))
    np.testing.assert_array_equal(explain_with(one, np.array([[1.0, -1.0]]), 0).attribution, [[2.0, 0.0]])


def test_a_fault_of_the_library_says_so(monkeypatch):
    def fail(*_):
        raise ValueError("model/guided_backprop_function_7")

    monkeypatch.setattr(Editor, "differentiate", fail)
    with pytest.raises(ModelError, match="fault of guided-backprop") as caught:
        explain(Net(tf.nn.relu))
    assert "function_7" not in str(caught.value)


def test_bad_labels_come_through():
    with pytest.raises(LabelError, match=r"in \[0, 5\)"):
        explain(Net(tf.nn.relu), labels=9)


def test_weighted_outputs_and_no_labels():
    model = Net(tf.nn.relu)
    weights = np.random.default_rng(0).normal(size=(4, CLASSES))
    result = explain(model, labels=weights)
    np.testing.assert_allclose(result.scores, (model(IMAGES).numpy() * weights).sum(1), **TOLERANCE)
    top = explain(model, labels=None)
    np.testing.assert_allclose(top.scores, model(IMAGES).numpy().max(1), **TOLERANCE)


def test_a_real_architecture_is_covered():
    model = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None)
    relus = sum(isinstance(layer, layers.ReLU) for layer in model._flatten_layers())
    result = explain(model, np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32), 0)
    assert result.coverage == (("relu6", relus, "guided"), ("softmax", 1, "undone"))
    assert result.head == "softmax"


# Nothing of the user's changes.


def users_state(model, images):
    """Everything of the user's that could have been touched, as values."""
    gradient = plain_gradient(lambda x: model(x, training=False), images, np.eye(CLASSES)[LABELS])
    return [
        [value.numpy() for value in model.variables],
        [layer.trainable for layer in model._flatten_layers()],
        [np.asarray(loss) for loss in model.losses],
        gradient,
        model(images, training=False).numpy(),
        model.optimizer.iterations.numpy(),
        tf.random.get_global_generator().state.numpy(),
        images.copy(),
    ]


def stateful_net():
    model = networks_keras.net(lambda x: layers.Dropout(0.5, dtype="float64")(layers.ReLU(dtype="float64")(x)))
    model.layers[2].kernel_regularizer = keras.regularizers.L2(0.1)
    model.layers[3].activity_regularizer = keras.regularizers.L2(0.1)
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("labels", [LABELS, 99])
def test_nothing_of_the_users_changes(labels):
    model = stateful_net()
    before = users_state(model, IMAGES)
    try:
        explain(model, labels=labels)
    except LabelError:
        assert labels == 99
    kept = [np.asarray(loss) for loss in model.losses]
    np.testing.assert_equal(kept, before[2])
    np.testing.assert_equal(users_state(model, IMAGES), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.layers[2].bias.assign_add(np.full(4, 1e-9)),
        lambda model: setattr(model.layers[2], "trainable", False),
        lambda model: model.optimizer.iterations.assign_add(1),
        lambda model: tf.random.get_global_generator().normal([1]),
    ],
)
def test_planted_fault_a_changed_state_is_caught(change):
    model = stateful_net()
    before = users_state(model, IMAGES)
    change(model)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(users_state(model, IMAGES), before)


def test_explaining_under_the_users_tape_and_function():
    net = Net(tf.nn.relu)
    one = backend(net)
    x = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(x)
        explain_with(one, x)
        score = tf.reduce_sum(net(x))
    np.testing.assert_allclose(tape.gradient(score, x), plain_gradient(net, IMAGES, np.ones((4, 5))), **TOLERANCE)
    maps = []
    tf.function(lambda: maps.append(explain_with(one).attribution), autograph=False)()
    np.testing.assert_allclose(maps[0], oracle(), **TOLERANCE)


def test_eight_threads_on_one_model():
    """Explaining, differentiating and predicting at once gives what one thread gives."""
    model = Net(tf.nn.relu)
    one = backend(model)

    def guided(label):
        return explain_with(one, IMAGES, label).attribution

    def saliency(label):
        return explain_with(one, IMAGES, label, "saliency").attribution

    def plain(label):
        return plain_gradient(model, IMAGES, np.eye(CLASSES)[[label] * 4])

    def predicted(label):
        return model(IMAGES).numpy()

    jobs = [(job, label) for job in (guided, saliency, plain, predicted) for label in range(CLASSES)] * 4
    expected = {(job, label): job(label) for job, label in jobs}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: job[0](job[1]), jobs))
    for job, result in zip(jobs, results, strict=True):
        np.testing.assert_allclose(result, expected[job], **TOLERANCE)


def test_eight_threads_that_trace_at_once():
    models = [
        Net(RELUS[name]["tensorflow"].write) for name in ("relu", "maximum(x, 0)", "loop", "in a compiled function")
    ] * 2
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda model: explain(model), models):
            np.testing.assert_allclose(result.attribution, oracle(), **TOLERANCE)


PARTLY_MASKED = {
    "where((x > 0) & pad, x, 0)": lambda x: tf.where((x > 0) & ~EVERY_THIRD, x, 0.0),
    "x * ((x > 0) * pad)": lambda x: x * tf.cast((x > 0) & ~EVERY_THIRD, x.dtype),
    "where(x > 0, scale * x, 0)": lambda x: tf.where(x > 0, x * tf.linspace(tf.cast(-0.5, x.dtype), 1.5, 6), 0.0),
    "one value": lambda x: (x[:1, :1] + tf.abs(x[:1, :1])) / 2,
}
EVERY_THIRD = np.arange(6) % 3 == 0


@pytest.mark.parametrize("spelling", PARTLY_MASKED)
def test_a_relu_that_a_second_mask_or_factor_meets_is_refused(spelling):
    x = tf.constant(np.random.default_rng(0).normal(size=(7, 6)))
    x = tf.abs(x[:1]) if spelling == "one value" else x
    with pytest.raises(OpaqueRegionError, match="spelled"):
        explain(lambda x: tf.nn.relu(PARTLY_MASKED[spelling](x * 2) * 2), x, 0)
    assert explain(lambda x: tf.nn.relu(tf.where(EVERY_THIRD, x * 2, 0.0)), tf.abs(x), 0).coverage


def test_what_is_settled_runs_no_model_in_python_again():
    runs = []
    counted = layers.Lambda(lambda x: runs.append(x) or tf.nn.relu(x))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="stem"), counted, layers.Dense(3)])
    one = TensorFlowBackend(Setup(model, input_layer="stem"))
    inputs, weigh = Inputs.of(np.ones((2, 4), "float32")), parse_label(1, 2).weigh
    one.attribute(inputs, weigh, [GUIDED])
    before = len(runs)
    one.attribute(inputs, weigh, [GUIDED])
    assert len(runs) == before > 0


def test_the_way_to_complex_numbers_and_back_says_nothing_in_the_log(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    weight = tf.constant(np.random.default_rng(0).normal(size=(6, 3)))
    rows = tf.constant(np.random.default_rng(1).normal(size=(4, 6)))
    model = lambda rows: tf.nn.relu(tf.math.real(tf.signal.fft(tf.cast(rows, tf.complex128)))) @ weight  # noqa: E731
    found = Saliency(model).explain(rows, 1)
    GuidedBackprop(model).explain(rows, 1)
    assert not caplog.records
    with tf.GradientTape() as tape:
        tape.watch(rows)
        scores = model(rows)[:, 1]
    np.testing.assert_allclose(found.attribution, tape.gradient(scores, rows), **TOLERANCE)
    # TensorFlow's own way does say something.
    assert "discard the imaginary part" in caplog.text
