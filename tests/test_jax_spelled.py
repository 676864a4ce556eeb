"""ReLUs of a JAX program that no operation is: found by their values and guided, or refused; and what is none."""

import random
from contextlib import nullcontext
from functools import cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_backprop import DeconvNet, GuidedBackprop, Saliency, compare
from guided_backprop.backends.jax.graph.program import Value
from guided_backprop.backends.jax.hidden import looks, taint
from guided_backprop.backends.jax.hidden.opening import ROUNDING, as_told, snapped
from guided_backprop.backends.spelling import Verdict, judge
from guided_backprop.errors import ModelError, NoReluError, OpaqueRegionError
from networks import mlp
from networks_jax import to_jax
from spellings.programs import FINE, GATED, GUIDED, REFUSED

RNG = np.random.default_rng(0)
NETWORK = mlp(6, 8, 8, 4)
IMAGES, WEIGHTS = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 4))
EYES = np.concatenate([np.eye(6), -np.eye(6), np.eye(6)[::-1]], axis=1)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@jax.custom_vjp
def by_hand(x):
    """The rule written by hand."""
    return jnp.maximum(x, 0)


by_hand.defvjp(lambda x: (jnp.maximum(x, 0), x > 0), lambda is_open, g: (jnp.maximum(g, 0) * is_open,))


def network(activation):
    return to_jax(NETWORK, jax.nn.relu, activation)


def maps(model):
    return [
        each.attribution for each in compare(jnp.asarray(IMAGES), WEIGHTS, [GuidedBackprop(model), DeconvNet(model)])
    ]


def explained(model, method=GuidedBackprop, **options):
    return method(model, **options).explain(jnp.asarray(IMAGES), WEIGHTS)


def gradient(model):
    """Return the gradient that JAX itself gives; compiled, which is sooner done than each operation of it."""
    return jax.jit(jax.grad(lambda x: (model(x) * WEIGHTS).sum()))(IMAGES)


@pytest.fixture(scope="module")
def right():
    with jax.enable_x64(True):
        return maps(network(jax.nn.relu))


@pytest.mark.parametrize("program", GUIDED)
def test_a_relu_that_values_show_is_guided(program, right):
    for found, expected in zip(maps(network(GUIDED[program])), right, strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("program", GATED)
def test_what_opens_and_closes_by_size_is_guided(program):
    gated, is_open = GATED[program]
    ruled = jax.custom_vjp(gated)
    ruled.defvjp(lambda x: (gated(x), is_open(x)), lambda is_open, g: (jnp.maximum(g, 0) * is_open,))
    model = to_jax(NETWORK, by_hand, ruled)
    expected = gradient(model)
    np.testing.assert_allclose(explained(network(gated)).attribution, expected, **TOLERANCE)


@pytest.mark.parametrize("program", REFUSED)
def test_what_values_leave_open_is_refused(program):
    with pytest.raises(OpaqueRegionError, match="vouch"):
        explained(network(REFUSED[program]))


@pytest.mark.parametrize("program", FINE)
def test_what_is_no_relu_keeps_its_derivative(program):
    """In front of a ReLU, and behind it, where all values are of one sign."""
    part = FINE[program]
    model, ruled = (to_jax(NETWORK, part, lambda x, relu=relu: part(relu(x))) for relu in (jax.nn.relu, by_hand))
    found = explained(model)
    expected = gradient(ruled)
    np.testing.assert_allclose(found.attribution, expected, **TOLERANCE)


def test_what_is_rounded_off_beside_larger_values_closes_nothing():
    drawn = np.random.default_rng(3)
    x = (0.2 * drawn.normal(size=176) + 1e-4 * drawn.normal(size=(16, 176))).astype(np.float32)
    y = (x + np.maximum(drawn.normal(size=x.shape) * 10, 0)).astype(np.float32).astype(float)
    value, x = Value(jax.ShapeDtypeStruct(x.shape, np.float32)), x.astype(float)
    told = as_told(x, y, np.ones(x.shape), value)
    assert judge(snapped(y, value), snapped(told, value), ROUNDING).verdict is Verdict.NONE
    # As finely as they are known, values that come out alike seem to be closed.
    assert judge(snapped(y, value), snapped(x, value), ROUNDING).verdict is Verdict.PARTIAL


def test_where_nothing_is_nominated_nothing_is_run(monkeypatch):
    monkeypatch.setattr(looks, "watched", None)
    explained(network(jax.nn.relu))
    with pytest.raises(ModelError):
        explained(network(lambda x: x * (x > 0)))


def test_what_is_looked_at_in_several_layers_is_compiled_at_once(monkeypatch):
    """To compile a program for each place takes a minute where there are many of them."""
    compiled = []
    watched = looks.watched
    monkeypatch.setattr(looks, "watched", lambda *asked: compiled.append(asked) or watched(*asked))

    def programs(layers):
        compiled.clear()
        explained(network(lambda x: reduce(lambda y, _: jnp.tanh(FINE["layer norm"](y)), range(layers), x)))
        return len(compiled)

    assert programs(2) == programs(1) < 4


@pytest.mark.parametrize(
    ("stopped", "hidden"), [("mul", lambda x: x * (x > 0)), ("abs", lambda x: (x + jnp.abs(x)) / 2)]
)
def test_planted_fault_a_taint_that_stops_is_caught(stopped, hidden, monkeypatch, right):
    whole = taint.Taint._follow
    monkeypatch.setattr(
        taint.Taint, "_follow", lambda self, step, block: None if step.name == stopped else whole(self, step, block)
    )
    found = explained(network(hidden))
    assert not np.allclose(found.attribution, right[0], rtol=1e-2)


def test_images_of_one_sign_are_no_evidence():
    """All that comes in is positive: other images have to tell the ReLU from the identity."""
    last = to_jax(mlp(6, 4))
    model = lambda x: last(jnp.where(x > 0, x, 0))  # noqa: E731
    found = GuidedBackprop(model).explain(jnp.abs(IMAGES), WEIGHTS)
    assert ("relu", 1, "guided") in found.coverage
    with pytest.raises(NoReluError):
        GuidedBackprop(lambda x: last(jnp.where(jnp.isnan(x), 0, x))).explain(jnp.abs(IMAGES), WEIGHTS)


def test_a_place_can_be_vouched_for():
    model = network(lambda x: x * (x > 0))
    found = explained(model, vouch={"mul": "plain"})
    assert ("relu", 1, "guided") in found.coverage


def test_a_look_that_fails_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(looks, "watched", None)
    with pytest.raises(OpaqueRegionError, match=r"looked at.*TypeError"):
        explained(network(lambda x: x * (x > 0)))


def test_a_derivative_that_is_no_multiple_s_is_refused_for_one_image():
    """Half of the slope that its values have: one image shows one value of each channel."""
    half = lambda x: jnp.maximum(x, jax.lax.stop_gradient(jax.nn.relu(x)))  # noqa: E731
    with pytest.raises(OpaqueRegionError, match="max at"):
        GuidedBackprop(lambda x: half(x @ EYES) @ EYES.T).explain(jnp.asarray(IMAGES[:1]), WEIGHTS[:1, :1] * np.ones(6))


def test_a_value_of_0_that_is_open_is_divided_by_nowhere():
    x = jnp.asarray(np.where(np.eye(*IMAGES.shape) > 0, 0, IMAGES))
    found = GuidedBackprop(lambda x: jnp.where(x > -1, x, -1) + 1).explain(x, np.asarray(IMAGES))
    np.testing.assert_array_equal(found, np.where(x > -1, np.maximum(IMAGES, 0), 0))


@pytest.mark.parametrize("noise", [jax.random.normal, jax.random.uniform])
def test_noise_is_refused_and_weights_drawn_inside_are_not(noise):
    key = jax.random.key(0)
    for method in (GuidedBackprop, Saliency):
        with pytest.raises(ModelError, match="random"):
            explained(network(lambda x: jax.nn.relu(x) + noise(key, x.shape)), method)
    noisy = network(lambda x: jax.nn.relu(x) * noise(key, x.shape))
    explained(noisy, vouch={"random_bits": "plain"})
    weight, bias = (lambda: jax.random.normal(key, (6, 4))), (lambda: jax.random.normal(key, (4,)))
    explained(lambda x: jax.nn.relu(x @ weight() + bias()))
    for shape, is_refused in (((1, 8), False), ((), True)):
        model = network(lambda x, shape=shape: jax.nn.relu(x) + noise(key, shape or x.shape))
        with pytest.raises(ModelError, match="random") if is_refused else nullcontext():
            Saliency(model).explain(jnp.asarray(IMAGES[:1]), 1)


RANDOM = {
    "a permutation": lambda key, x: x[:, jax.random.permutation(key, 8)],
    "a choice by the images": lambda key, x: x * jax.nn.one_hot(jax.random.categorical(key, x), 8),
    "a mask of the channels": lambda key, x: x * jax.random.bernoulli(key, 0.5, (8,)),
    "a branch": lambda key, x: jax.lax.cond(jax.random.bernoulli(key), lambda x: x, lambda x: 2 * x, x),
    "a crop": lambda key, x: jnp.roll(x, jax.random.randint(key, (), 0, 8), 1),
    "noise as a bound": lambda key, x: jnp.maximum(x, jax.random.normal(key, x.shape)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_drawn_and_is_no_weight_is_refused(name):
    model = network(lambda x: RANDOM[name](jax.random.key(0), jax.nn.relu(x)))
    with pytest.raises(ModelError, match=r"received random numbers, with \w+"):
        explained(model, Saliency)
    if name == "a branch":
        assert explained(model, Saliency, vouch={"random": "plain"}).coverage


def test_a_key_that_is_made_of_the_images_is_no_chance():
    key = lambda x: jax.random.key(x.sum().astype(int))  # noqa: E731
    explained(network(lambda x: jax.nn.relu(x) + jax.random.normal(key(x), x.shape)), Saliency)


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.rand(8)])
def test_what_python_or_numpy_draw_in_each_trace_is_refused(draw):
    model = network(lambda x: jax.nn.relu(x) * draw())
    with pytest.raises(ModelError, match=r"map is random.* reads .*random"):
        explained(model, Saliency)
    assert explained(model, Saliency, vouch={"random": "plain"}).coverage
    built = cache(draw)
    assert explained(network(lambda x: jax.nn.relu(x) * built()), Saliency).coverage


DRAWN = np.random.default_rng(1).normal(size=(3, 6, 6))


def beside_its_own(choose):
    """Return a model with a ReLU, and a choice between h and what is made of it of which that is taken away again."""
    first, inner, mixing = map(jnp.asarray, DRAWN)

    def model(x):
        h = jax.nn.relu(x @ first) - 0.3
        return choose(h, h @ inner, lambda value: (value @ mixing)[:, :4])

    return model


def test_one_of_two_that_are_made_of_each_other_is_taken_away_behind_weights():
    for choose in (
        lambda h, made, mix: mix(jnp.maximum(h, made)) - mix(made),
        lambda h, made, mix: mix(h) - mix(jnp.minimum(made, h)),
    ):
        with pytest.raises(OpaqueRegionError):
            explained(beside_its_own(choose))
    kept = beside_its_own(lambda h, made, mix: mix(jnp.maximum(h, made)) - mix(0.9 * made) + mix(h))
    assert np.isfinite(explained(kept).attribution).all()


SLOPES = np.array([0.2, 0.2, 0, 0.3, 0.1, 0.2])
PARTLY = {
    "the other way round": lambda y: jnp.where(y <= 0, y * np.where(SLOPES, SLOPES, 1e-8), y),
    "a row": lambda y: jnp.where(y > 0, y, np.array([[0.1], [0.1], [0], [0.1], [0.1]]) * y),
    "a constant choice": lambda y: jnp.where(y > 0, y, jnp.where(SLOPES > 0, 0.1 * y, 0)),
    "in a loop": lambda y: jax.lax.scan(
        lambda c, s: (jnp.where(c > 0, c, s * c), 0), y, jnp.stack([SLOPES + 1, SLOPES])
    )[0],
}
WHOLE = {
    "no slope is 0": lambda y: jnp.where(y > 0, y, (SLOPES + 0.1) * y),
    "the same zeros on both sides": lambda y: jnp.where(y > 0, SLOPES * y, (0.1 * SLOPES) * y),
}


def with_slopes(spelled):
    first, last = map(jnp.asarray, DRAWN[:2])
    return lambda x: spelled(jax.nn.relu(x @ first) @ last - 0.2)[:, :4]


@pytest.mark.parametrize("name", PARTLY)
def test_a_choice_some_of_whose_slopes_are_0_is_refused(name):
    with pytest.raises(OpaqueRegionError):
        explained(with_slopes(PARTLY[name]))


@pytest.mark.parametrize("name", WHOLE)
def test_a_choice_that_closes_nothing_anywhere_is_plain(name):
    found = explained(with_slopes(WHOLE[name]), Saliency)
    np.testing.assert_allclose(found.attribution, gradient(with_slopes(WHOLE[name])), **TOLERANCE)
    assert ("relu", 1, "guided") in explained(with_slopes(WHOLE[name])).coverage
