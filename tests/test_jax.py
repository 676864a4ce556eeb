"""Every ReLU of a JAX model, exactly, or an error: the same network in every spelling, against the oracle."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import networks
import reference
from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.arrays import Inputs
from guided_backprop.backends.base import Setup
from guided_backprop.backends.jax import JaxBackend
from guided_backprop.errors import ImageError, ModelError, NoReluError, OpaqueRegionError, ScoreError
from guided_backprop.labels.parse import parse_label
from guided_backprop.rules import DECONV, GUIDED, PLAIN
from networks import CLASSES, LABELS, attribution, channels_last, dense, mixed
from networks_jax import net, oracle, outputs, to_jax
from spellings import column, together
from spellings.arithmetic import ARITHMETIC
from spellings.capped import CAPPED
from spellings.forms import FORMS
from spellings.functions import called_back_jax, exported, own_relu
from spellings.relus import RELUS

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
IMAGES = channels_last(networks.IMAGES)
ACTIVATIONS = column(RELUS | ARITHMETIC, "jax", "guided")
SPELLED = column(RELUS | ARITHMETIC, "jax", "refused")
assert not column(RELUS | ARITHMETIC, "jax", "a hole")
RULES = {"saliency": PLAIN, "deconvnet": DECONV, "guided": GUIDED}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def attribute(model, images, labels=None, rule=GUIDED, *, undo_head=True, vouch=None):
    backend = JaxBackend(Setup(model, undo_head=undo_head, vouch=vouch or {}))
    return attribute_by(backend, images, labels, rule)


def attribute_by(backend, images, labels=None, rule=GUIDED):
    inputs = Inputs.of(images)
    backend.check_images(inputs)
    (found,) = backend.attribute(inputs, parse_label(labels, len(images)).weigh, [rule])
    return replace(found, attribution=found.attribution[0].images, scores=found.scores[0])


def explain(model, labels=LABELS, rule=GUIDED, **options):
    return np.asarray(attribute(model, IMAGES, labels, rule, **options).attribution)


def plain_gradient(model):
    """Return the gradient that JAX itself gives; compiled, which is sooner done than each operation of it."""
    return jax.jit(jax.grad(lambda x: model(x)[jnp.arange(4), jnp.array(LABELS)].sum()))(jnp.asarray(IMAGES))


def by_rule(model, images=IMAGES, labels=LABELS, rules=tuple(RULES)):
    """Return the maps of one batch under several rules, which are judged once and compiled as one program."""
    weigh = parse_label(labels, len(images)).weigh
    found = JaxBackend(Setup(model)).attribute(Inputs.of(images), weigh, [RULES[name] for name in rules])
    return {name: each.attribution[0].images for name, each in zip(rules, found, strict=True)}


@pytest.mark.parametrize("spellings", together(ACTIVATIONS), ids=" | ".join)
def test_every_spelling_of_a_relu(spellings):
    """Three in a network, under the rule that is hardest to get right; the worked example has each alone, by all."""
    found = attribute(net(*(ACTIVATIONS[spelling] for spelling in spellings)), IMAGES, LABELS)
    np.testing.assert_allclose(found.attribution, oracle(), **TOLERANCE)
    others = {row.name for row in found.coverage if row.treatment == "plain"} - {"max_pool"}
    assert {*spellings} & {*ARITHMETIC} or not others
    np.testing.assert_allclose(found.outputs, outputs(), **TOLERANCE)


@pytest.mark.parametrize("spelling", column(CAPPED, "jax", "guided"))
def test_every_spelling_of_a_capped_relu(spelling):
    for name, found in by_rule(net(CAPPED[spelling]["jax"].write)).items():
        np.testing.assert_allclose(found, oracle(name, cap=1.0), **TOLERANCE)


@pytest.mark.parametrize("form", column(FORMS, "jax"))
def test_every_form_of_a_model(form, tmp_path):
    """The rule that is hardest to get right; the others take the same way."""
    found = attribute(FORMS[form]["jax"].write(tmp_path), IMAGES, LABELS)
    np.testing.assert_allclose(found.attribution, oracle(), **TOLERANCE)
    np.testing.assert_allclose(found.outputs, outputs(), **TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
def test_a_convolutional_network(rule):
    """One ReLU of each common spelling."""
    described = mixed(reference.ReLU())
    model = to_jax(described, lambda x: jnp.maximum(x, 0), jax.nn.relu, lambda x: lax.clamp(0.0, x, jnp.inf))
    found = attribute(model, IMAGES, LABELS, RULES[rule])
    np.testing.assert_allclose(found.attribution, channels_last(attribution(described, rule)), **TOLERANCE)
    assert ("relu", 3, RULES[rule].name) in found.coverage


@pytest.mark.parametrize("spelling", SPELLED)
def test_a_relu_spelled_as_arithmetic_is_refused(spelling):
    model = net(SPELLED[spelling], jax.nn.relu, jax.nn.relu)
    with pytest.raises(OpaqueRegionError, match="vouch"):
        explain(model)
    np.testing.assert_allclose(explain(model, rule=PLAIN), plain_gradient(model), **TOLERANCE)


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_planted_fault_a_missed_relu_is_caught(missed):
    activations = [jax.nn.relu] * 3
    activations[missed] = own_relu
    found = explain(net(*activations), vouch={"own_relu": "plain"})
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, oracle(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rule", ["saliency", "deconvnet"])
def test_planted_fault_a_forgotten_gate_is_caught(rule):
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(explain(net(jax.nn.relu), rule=RULES[rule]), oracle(), rtol=1e-2, atol=1e-3)


def test_a_custom_function_can_be_vouched_for():
    model = net(own_relu, jax.nn.relu, jax.nn.relu)
    for name, rule in RULES.items():
        found = attribute(model, IMAGES, LABELS, rule, vouch={"own_relu": "relu"})
        np.testing.assert_allclose(found.attribution, oracle(name), **TOLERANCE)
    assert ("own_relu", 1, "guided") in found.coverage


@pytest.mark.parametrize(
    ("hidden", "name"),
    [(exported, "call_exported.*before jax.export"), (called_back_jax, "pure_callback"), (own_relu, "own_relu")],
)
def test_what_hides_its_relus_is_refused_by_name(hidden, name):
    with pytest.raises(OpaqueRegionError, match=name):
        explain(net(hidden, jax.nn.relu, jax.nn.relu))


# The rule.


@pytest.mark.parametrize("spelling", ACTIVATIONS)
def test_worked_example(spelling):
    """x = [5, 0, -5, 10], g = [1, -2, 3, -4]; the tie at 0 is closed in every spelling."""
    x = np.array([[5.0, 0.0, -5.0, 10.0]] * 2)
    g = np.array([[1.0, -2.0, 3.0, -4.0], [1.0, 2.0, 3.0, -4.0]])
    model = lambda x: ACTIVATIONS[spelling](x * 1.0)  # noqa: E731
    # Where no operation is a ReLU, Saliency is the framework's own derivative: at the tie half open, or NaN.
    is_explicit = spelling not in ARITHMETIC and "*" not in spelling
    found = by_rule(model, x, g, [name for name in RULES if is_explicit or name != "saliency"])
    if is_explicit:
        np.testing.assert_array_equal(found["saliency"], [[1, 0, 0, -4]] * 2)
    np.testing.assert_allclose(found["deconvnet"], [[1, 0, 3, 0], [1, 2, 3, 0]], rtol=1e-15)
    np.testing.assert_allclose(found["guided"], [[1, 0, 0, 0]] * 2, rtol=1e-15)


@pytest.mark.parametrize("relu6", [jax.nn.relu6, lambda x: jnp.clip(x, 0, 6), lambda x: lax.clamp(0.0, x, 6.0)])
def test_gate_is_closed_at_and_above_the_cap(relu6):
    x = np.array([[-1.0, 3.0, 6.0, 7.0]])
    for rule, expected in ((PLAIN, [0, 1, 0, 0]), (GUIDED, [0, 1, 0, 0]), (DECONV, [1, 1, 1, 1])):
        found = attribute(relu6, x, np.ones((1, 4)), rule)
        np.testing.assert_array_equal(found.attribution, [expected])
        assert str(found.coverage) == f"relu6 x1 {rule.name}"


def test_a_maximum_that_broadcasts_sums_its_gradient():
    x, g = np.array([2.0, -1.0]), np.array([[1.0, 2.0, -4.0], [1.0, 2.0, 3.0]])
    model = lambda x: jax.vmap(lambda v: jnp.maximum(v, jnp.zeros(3)))(x)  # noqa: E731
    for rule, expected in ((PLAIN, [-1, 0]), (DECONV, [3, 6]), (GUIDED, [3, 0])):
        np.testing.assert_array_equal(attribute(model, x, g, rule).attribution, expected)


def test_the_gate_belongs_to_the_relu_and_not_to_the_tensor():
    """-3 x + relu(x) w: the skip path keeps its negative gradient."""
    x, w = np.array([[1.0, 2.0, -1.0, -2.0]]), jnp.array([1.0, -1.0, 1.0, 1.0])
    found = attribute(lambda x: -3 * x + jax.nn.relu(x) * w, x, np.ones((1, 4)))
    np.testing.assert_array_equal(found.attribution, [[-2, -3, -3, -3]])


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (jax.nn.hard_swish, "hardswish"),
        (jax.nn.hard_sigmoid, "hardsigmoid"),
        (jax.nn.hard_tanh, "clamp"),
        (jax.nn.celu, "celu"),
        (jax.nn.elu, "elu"),
        (jax.nn.selu, "selu"),
        (jax.nn.gelu, "gelu"),
        (partial(jax.nn.gelu, approximate=False), "gelu"),
        (jax.nn.silu, "silu"),
        (jax.nn.softplus, "softplus"),
        (jax.nn.leaky_relu, "leaky_relu"),
        (lambda x: jax.nn.leaky_relu(x, 0.3), "leaky_relu"),
        (jax.nn.mish, "mish"),
        (jax.nn.log_sigmoid, "log_sigmoid"),
        (jax.nn.soft_sign, "softsign"),
        (jax.nn.squareplus, "squareplus"),
        (jnp.tanh, "tanh"),
        (jax.nn.sigmoid, "sigmoid"),
        (lambda x: jax.nn.softmax(x) + 0, "softmax"),
        (lambda x: jax.nn.log_softmax(x) + 0, "log_softmax"),
    ],
)
def test_other_activations_are_listed_and_keep_their_derivative(activation, name):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(6, 6)), rng.normal(size=(3, 6))
    model = lambda x: activation(x @ weight) @ weight  # noqa: E731
    one = JaxBackend(Setup(model))
    with pytest.raises(NoReluError, match=f"{name} x1.*Saliency"):
        attribute_by(one, x, 0)
    mixed = attribute(lambda x: jax.nn.relu(model(x)) @ weight, x, 0)
    assert str(mixed.coverage) in (f"{name} x1 plain, relu x1 guided", f"relu x1 guided, {name} x1 plain")
    gradient = jax.grad(lambda x: model(x)[:, 0].sum())(x)
    np.testing.assert_allclose(attribute_by(one, x, 0, PLAIN).attribution, gradient, **TOLERANCE)


def test_an_explicit_relu6_is_a_relu_also_behind_a_hard_swish():
    model = lambda x: jax.nn.relu6(jax.nn.hard_swish(x) + 3) + jnp.maximum(jax.nn.celu(x), 0)  # noqa: E731
    found = attribute(model, IMAGES.reshape(4, -1), 0)
    assert str(found.coverage) == "celu x1 plain, hardswish x1 plain, relu x1 guided, relu6 x1 guided"


def test_a_function_named_as_a_composite_is_looked_into():
    @jax.jit
    def celu(x):
        return jax.nn.relu(x)

    np.testing.assert_allclose(explain(net(celu)), oracle(), **TOLERANCE)


def test_a_relu_on_parameters_is_not_on_the_path():
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    with pytest.raises(NoReluError, match="no non-linearity"):
        attribute(lambda x: x @ jax.nn.relu(weight), np.ones((2, 6)), 0)


@jax.custom_vjp
def by_hand(x):
    """The rule written by hand."""
    return jnp.maximum(x, 0)


by_hand.defvjp(lambda x: (jnp.maximum(x, 0), x > 0), lambda is_open, g: (jnp.maximum(g, 0) * is_open,))


def layer_norm(x, floor):
    """As Flax does it: the variance has a floor of 0 under its root."""
    mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(floor(square - mean * mean) + 1e-6)


# Legitimate masks.

LEGITIMATE = {
    "NaN guard": lambda x: jnp.where(jnp.isnan(x), 0.0, x),
    "nan_to_num": jnp.nan_to_num,
    "guard of infinity": lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    "fixed mask": lambda x: x * (jnp.arange(x.shape[1]) % 2),
    "padding mask": lambda x: jnp.where(jnp.arange(x.shape[1]) < 5, x, 0.0),
    "mask of the image's own brightness": lambda x: jnp.where(x.mean(1, keepdims=True) > 0, x, 0.0),
    "gate by another feature": lambda x: jnp.where(jnp.flip(x, 1) > 0, x, 0.0),
    "maximum of two branches": lambda x: jnp.maximum(x, jnp.flip(x, 1)),
    "where as a maximum": lambda x: jnp.where(x > jnp.flip(x, 1), x, jnp.flip(x, 1)),
    "leaky ReLU by where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "leaky ReLU by maximum": lambda x: jnp.maximum(x, 0.1 * x),
    "leaky ReLU by magnitude": lambda x: 0.55 * x + 0.45 * jnp.abs(x),
    "ELU by where": lambda x: jnp.where(x > 0, x, jnp.expm1(x)),
    "softsign": jax.nn.soft_sign,
    "absolute value": jnp.abs,
    "x sign(x)": lambda x: x * jnp.sign(x),
    "L1 normalisation": lambda x: x / jnp.abs(x).sum(1, keepdims=True),
    "root mean square": lambda x: x / jnp.sqrt((x * x).mean(1, keepdims=True)),
    "floor that is not 0": lambda x: jnp.maximum(x, 1e-6),
    "hard tanh by clip": lambda x: jnp.clip(x, -1, 1),
    "part overwritten": lambda x: x.at[:, 0].set(0.0),
    "zeros appended": lambda x: jnp.concatenate([x, jnp.zeros_like(x)], 1)[:, :12],
    "layer norm": lambda x: layer_norm(x, lambda variance: jnp.maximum(0.0, variance)),
    "layer norm by clip": lambda x: layer_norm(x, lambda variance: jnp.clip(variance, 0)),
    "standardize": jax.nn.standardize,
    "custom_jvp": jax.custom_jvp(lambda x: jnp.sin(x)),
    "custom_jvp with a branch": jax.custom_jvp(lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)),
    "custom_vjp": jax.custom_vjp(lambda x: jnp.sin(x)),
}
LEGITIMATE["custom_jvp"].defjvp(lambda x, t: (jnp.sin(x[0]), t[0] * 2))
LEGITIMATE["custom_jvp with a branch"].defjvp(lambda x, t: (jnp.sin(x[0]), t[0] * 2))
LEGITIMATE["custom_vjp"].defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (g * 2,))


@pytest.mark.parametrize("mask", LEGITIMATE)
def test_what_is_no_relu_is_not_refused(mask):
    """The gradient of what stands in for the first ReLU stays plain, that of the true ReLUs is guided."""
    stand_in = LEGITIMATE[mask]
    gradient = plain_gradient(net(stand_in, by_hand, by_hand))
    np.testing.assert_allclose(explain(net(stand_in, jax.nn.relu, jax.nn.relu)), gradient, **TOLERANCE)


def test_a_masked_transformer_is_explained():
    rng = np.random.default_rng(0)
    q, k, v, up, down = (jnp.asarray(rng.normal(size=shape) / 3) for shape in [(8, 8)] * 3 + [(8, 16), (16, 8)])
    causal, padded = np.tril(np.ones((6, 6), bool)), np.arange(6) >= 4

    def block(x, relu):
        x = layer_norm(x, lambda variance: jnp.maximum(0.0, variance))
        attention = jnp.einsum("nqd,nkd->nqk", x @ q, x @ k)
        attention = jnp.where(causal & ~padded, attention, -jnp.inf)
        x = x + jax.nn.softmax(attention) @ (x @ v)
        return x + relu(x @ up) @ down

    def model(x, relu):
        return jnp.where(padded[:, None], 0.0, block(block(x, relu), relu)).sum(1)

    x = rng.normal(size=(2, 6, 8))
    found = attribute(partial(model, relu=jax.nn.relu), x, [0, 2])
    assert {("relu", 2, "guided"), ("softmax", 2, "plain")} <= set(found.coverage)
    # Compiled as one program: JAX compiles each operation otherwise.
    gradient = jax.jit(jax.grad(lambda x: model(x, by_hand)[jnp.arange(2), jnp.array([0, 2])].sum()))(x)
    np.testing.assert_allclose(found.attribution, gradient, **TOLERANCE)


# Heads.

HEADS = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "softmax behind moves": lambda x: jax.nn.softmax(x[:, :, None], 1).squeeze(2).astype(x.dtype),
    "softmax written out": lambda x: jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True),
    "log_softmax by logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=1, keepdims=True),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_score_is_the_logit_in_front_of_the_head(head):
    model = net(jax.nn.relu)
    found = attribute(lambda x: HEADS[head](model(x)), IMAGES, LABELS)
    np.testing.assert_allclose(found.attribution, oracle(), **TOLERANCE)
    np.testing.assert_allclose(found.scores, np.asarray(model(IMAGES))[range(4), LABELS], **TOLERANCE)
    np.testing.assert_allclose(found.outputs, HEADS[head](model(IMAGES)), **TOLERANCE)
    assert found.head == head.split()[0]
    kept = attribute(lambda x: HEADS[head](model(x)), IMAGES, LABELS, undo_head=False)
    assert kept.head is None
    np.testing.assert_allclose(kept.scores, kept.outputs[range(4), LABELS])
    assert not np.allclose(kept.attribution, oracle())


def test_attention_is_no_head():
    model = net(jax.nn.relu)
    found = attribute(lambda x: jax.nn.softmax(model(x)) @ jnp.ones((CLASSES, 2)), IMAGES, 0)
    assert found.head is None
    assert ("softmax", 1, "plain") in found.coverage


# Frameworks.


def test_flax_linen():
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.LayerNorm()(linen.Dense(6)(x.reshape(len(x), -1)))
            x = linen.BatchNorm(use_running_average=True)(linen.relu(x))
            return linen.Dense(3)(linen.Dropout(0.5, deterministic=True)(linen.relu(x)))

    model = Net()
    variables = model.init(jax.random.key(0), IMAGES)
    found = attribute(lambda x: model.apply(variables, x), IMAGES, 0)
    assert ("relu", 2, "guided") in found.coverage
    bound = attribute(model.bind(variables), IMAGES, 0)
    np.testing.assert_array_equal(bound.attribution, found.attribution)


def test_flax_nnx_with_parameters_that_change():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first, self.last = nnx.Linear(192, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
            self.norm, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))))

    model = Net()
    with pytest.raises(ModelError, match=r"(Dropout|BatchNorm).*model\.eval\(\)"):
        attribute(model, IMAGES, 0)
    model.eval()
    backend = JaxBackend(Setup(model))
    before = attribute_by(backend, IMAGES, 0)
    assert str(before.coverage) == "relu x1 guided, rsqrt x1 plain" or ("relu", 1, "guided") in before.coverage
    model.last.kernel[...] = model.last.kernel[...] * 2
    after = attribute_by(backend, IMAGES, 0)
    np.testing.assert_allclose(after.attribution, 2 * before.attribution, rtol=1e-6)
    np.testing.assert_allclose(after.outputs, model(IMAGES), rtol=1e-6)
    assert len(backend._compiled._made) == 1
    # What drops nothing is in no mode.
    model.dropout.rate, model.dropout.deterministic = 0.0, False
    np.testing.assert_allclose(attribute(model, IMAGES, 0).attribution, after.attribution, rtol=1e-6)


def test_equinox():
    import equinox as eqx

    mlp = eqx.nn.MLP(192, 3, 6, 2, activation=jax.nn.relu, key=jax.random.key(0))
    norm = eqx.nn.LayerNorm(192)
    found = attribute(jax.vmap(lambda image: mlp(norm(image.ravel()))), IMAGES, 0)
    assert ("relu", 2, "guided") in found.coverage
    assert all(row.treatment == "plain" for row in found.coverage if row.name != "relu")
    with pytest.raises(ModelError, match="inference_mode"):
        attribute(eqx.nn.Sequential([eqx.nn.Dropout(0.5)]), IMAGES, 0)


def test_haiku():
    import haiku as hk

    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 5, 3])(hk.Flatten()(x))))
    parameters = model.init(jax.random.key(0), IMAGES)
    found = attribute(lambda x: model.apply(parameters, x), IMAGES, 0)
    assert ("relu", 2, "guided") in found.coverage


def test_arrays_that_a_function_closes_over_are_read_on_each_call():
    holder = {"weight": np.ones(CLASSES), "shift": 0.0}
    model = net(jax.nn.relu)
    backend = JaxBackend(Setup(lambda x: model(x) * holder["weight"] + holder["shift"]))
    for factor in (1.0, 2.0, 3.0):
        holder["weight"][:] = factor
        found = attribute_by(backend, IMAGES, LABELS)
        np.testing.assert_allclose(found.attribution, factor * oracle(), **TOLERANCE)
    holder["shift"] = 7.0
    np.testing.assert_allclose(attribute_by(backend, IMAGES, LABELS).scores, found.scores + 7.0)


def test_zeros_that_change_are_no_longer_a_relu():
    floor = np.zeros(8)
    backend = JaxBackend(Setup(lambda x: jnp.maximum(x, floor)))
    assert str(attribute_by(backend, np.ones((2, 8)), 0).coverage) == "relu x1 guided"
    floor[:] = 0.5
    with pytest.raises(NoReluError, match="maximum x1"):
        attribute_by(backend, np.ones((2, 8)), 0)


# Images, models, threads.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (IMAGES.astype(int), "int64"),
        (IMAGES > 0, "bool"),
        (IMAGES * 1j, "complex"),
        (IMAGES.tolist(), "list"),
        (None, "NoneType"),
        (np.float64(1.0), "float64"),
        (np.array(1.0), "ndarray"),
        (np.full((2, 3), np.nan), "finite"),
        (np.full((2, 3), np.inf), "finite"),
    ],
)
def test_bad_images(bad, message):
    with pytest.raises(ImageError, match=message):
        attribute(net(jax.nn.relu), bad, 0)


def test_images_that_are_traced_are_refused():
    with pytest.raises(ImageError, match=r"outside of jax\.jit"):
        jax.jit(lambda x: attribute(net(jax.nn.relu), x, 0).attribution)(IMAGES)


def convolved(kernel, order):
    """Return a convolution that takes one image, as Flax's and Equinox's layers do."""
    conv = lambda x: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=(order, "HWIO", order))  # noqa: E731
    return lambda x: jax.nn.relu(conv(x[None] / 2)[0])


def test_one_image_without_a_batch_axis_is_refused():
    wide, narrow, image = jnp.ones((3, 3, 3, 3)), jnp.ones((1, 1, 3, 3)), jnp.ones((8, 8, 3))
    last, first = convolved(wide, "NHWC"), convolved(wide, "NCHW")
    turned = lambda x: jnp.moveaxis(first(jnp.moveaxis(x, -1, 0)), 0, -1)  # noqa: E731
    for method, (model, one) in product((Saliency, GuidedBackprop), ((last, image), (first, image.T), (turned, image))):
        with pytest.raises(ImageError, match=r"takes for one image\. Pass images\[None\]"):
            method(model).explain(one, lambda output: output.mean((1, 2)))
        assert method(jax.vmap(model)).explain(one[None], lambda output: output.mean((1, 2, 3))).coverage
    rows = Saliency(convolved(narrow, "NHWC")).explain(image, lambda output: output.mean((1, 2)))
    assert len(rows) == 8


@pytest.mark.parametrize("channel", [lambda x: x[:, None], lambda x: x.reshape(-1, 1, 8, 8)])
def test_one_image_whose_channel_is_put_in_is_a_batch_of_one(channel):
    model = lambda x: jax.nn.relu(lax.conv(channel(x), jnp.ones((2, 1, 3, 3)), (1, 1), "SAME")).sum((2, 3))  # noqa: E731
    assert GuidedBackprop(model).explain(jnp.ones((1, 8, 8)), 0).coverage


def test_what_is_called_and_gives_nothing_is_no_step():
    def model(x):
        jax.debug.callback(lambda *_: None, x)
        return jnp.where(x > 0, x, 0)

    weights = np.linspace(-1, 1, IMAGES.size).reshape(IMAGES.shape)
    found, expected = (GuidedBackprop(one).explain(jnp.asarray(IMAGES), weights) for one in (model, jax.nn.relu))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: 1.0, ModelError, "a real array"),
        (lambda x: x.sum(), ModelError, "row per image"),
        (lambda x: 1 / 0, ModelError, "ZeroDivisionError"),
        (lambda x: jnp.asarray(np.asarray(x)), ModelError, "TracerArrayConversionError"),
        (lambda x: lax.while_loop(lambda x: x.sum() < 0, lambda x: x + 1, jax.nn.relu(x)), ModelError, "differentiat"),
        (lambda x: jnp.ones((len(x), 3)), ScoreError, "depend"),
        (lambda x: lax.stop_gradient(x), ScoreError, "depend"),
        (lambda x: jax.nn.relu(x) * 1e300 * 1e300, ScoreError, "finite"),
        (
            lambda x: jax.nn.relu(x) * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
            ModelError,
            "received random numbers, with mul at",
        ),
    ],
)
def test_bad_models(model, error, message):
    with pytest.raises(error, match=message):
        attribute(model, np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_attribution_is_of_the_kind_of_the_images(dtype):
    images = jnp.asarray(IMAGES, dtype)
    found = attribute(net(jax.nn.relu), images, LABELS)
    assert isinstance(found.attribution, jax.Array)
    assert found.attribution.dtype == images.dtype
    error = np.abs(np.asarray(found.attribution, np.float64) - oracle())
    assert np.median(error) <= 0.2 * np.abs(oracle()).mean()
    assert isinstance(attribute(net(jax.nn.relu), np.asarray(images), LABELS).attribution, np.ndarray)


def test_channels_come_last():
    backend = JaxBackend(Setup(net(jax.nn.relu)))
    assert backend.channel_axis(IMAGES) == 3
    assert backend.channel_axis(IMAGES[:, 0, 0]) is None
    np.testing.assert_array_equal(backend.reduce(IMAGES, "absmax", 3), np.abs(IMAGES).max(3))
    assert isinstance(backend.reduce(jnp.asarray(IMAGES), "mean", 3), jax.Array)
    assert backend.concatenate([jnp.asarray(IMAGES), jnp.asarray(IMAGES)]).shape == (8, 8, 8, 3)
    assert backend.empty_like(IMAGES[:0]).shape == (0, 8, 8, 3)


def test_eight_threads_on_one_model():
    """Explaining and differentiating at once gives bit for bit what one thread gives."""
    model = net(jax.nn.relu)
    backend = JaxBackend(Setup(model))
    plain = jax.jit(jax.grad(lambda x: model(x)[:, 0].sum()))

    def run(job):
        with jax.enable_x64(True):
            rule = (PLAIN, DECONV, GUIDED, None)[job % 4]
            images = jnp.asarray(IMAGES)
            return np.asarray(plain(images) if rule is None else attribute_by(backend, images, 0, rule).attribution)

    expected = [run(job) for job in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for job, found in enumerate(pool.map(run, range(80))):
            np.testing.assert_array_equal(found, expected[job % 4])


def test_the_output_is_that_of_the_compiled_model():
    model, images = jax.jit(to_jax(reference.Sequential(dense(reference.ReLU()).layers[1:]))), IMAGES.reshape(4, -1)
    np.testing.assert_array_equal(attribute(model, images, LABELS).outputs, model(jnp.asarray(images)))


@pytest.mark.parametrize("bounded", [jnp.maximum, lambda x, bound: lax.clamp(jnp.asarray(bound, x.dtype), x, jnp.inf)])
def test_a_bound_that_is_zero_in_places_is_refused(bounded):
    bound = np.tile(np.array([0.0, -1e9, 0.0, -1e9], np.float32), (2, 1))
    method = GuidedBackprop(lambda x: jax.nn.relu(bounded(x, bound) @ jnp.ones((4, 3))))
    with pytest.raises(OpaqueRegionError, match="vouch"):
        method.explain(jnp.ones((2, 4)), 1)


def test_a_relu_with_another_constant_below_is_guided():
    method = GuidedBackprop(lambda x: jax.nn.relu(jnp.where(x > 0, x, -0.5) @ jnp.ones((4, 3))))
    assert str(method.explain(jnp.ones((2, 4)), 1).coverage) == "relu x2 guided"
