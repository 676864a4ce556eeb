"""ReLUs of a JAX program that later constants make, and those of which there are several results of each number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import rows
from guided_backprop.backends.jax import backend
from guided_backprop.backends.jax.hidden import findings

RNG = np.random.default_rng(0)
FIRST, SECOND, LAST = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 8)), RNG.normal(size=(8, 4))
IMAGES, WEIGHTS = RNG.normal(size=(9, 6)), RNG.normal(size=(9, 4))
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}

# What is made of h, the constants at first, what changes, and the multiple of relu(h - shift) that it is then.
LATER = {
    "multiples of h and |h|": (lambda h, p: p["a"] * h + p["b"] * jnp.abs(h), {"a": 0.5, "b": 0.3}, {"b": 0.5}, 0),
    "a bound less a number": (lambda h, p: jnp.maximum(h, p["b"]) - p["c"], {"b": 0.5, "c": 0.3}, {"c": 0.5}, 0.5),
    "a difference as a slope": (
        lambda h, p: jnp.where(h > 0, h, (p["a"] - p["b"]) * h),
        {"a": 0.5, "b": 0.3},
        {"b": 0.5},
        0,
    ),
    "a curve as a slope": (lambda h, p: jnp.where(h > 0, h, jax.nn.sigmoid(p["s"]) * h), {"s": 0.1}, {"s": -1e3}, 0),
    "a threshold": (lambda h, p: h * (h > p["t"]), {"t": -50.0}, {"t": 1e-3}, 0),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def right(shift):
    """Return the map by formulas alone: of two layers and two ReLUs, the second shifted."""
    h = IMAGES @ FIRST
    second = np.maximum(h, 0) @ SECOND - shift
    g = np.maximum(WEIGHTS @ LAST.T, 0) * (second > 0)
    return (np.maximum(g @ SECOND.T, 0) * (h > 0)) @ FIRST.T


def explained_later(name):
    """Return the map of a method that explained the same program before, with other constants."""
    part, first, changed, _ = LATER[name]
    constants = {key: jnp.asarray(value) for key, value in first.items()}
    method = GuidedBackprop(lambda x: part(jax.nn.relu(x @ FIRST) @ SECOND, constants) @ LAST)
    method.explain(jnp.asarray(IMAGES), WEIGHTS)
    constants |= {key: jnp.asarray(value) for key, value in changed.items()}
    return method.explain(jnp.asarray(IMAGES), WEIGHTS).attribution


@pytest.mark.parametrize("name", LATER)
def test_what_constants_make_a_relu_in_a_later_call_is_guided(name):
    np.testing.assert_allclose(explained_later(name), right(LATER[name][3]), **TOLERANCE)


def test_planted_fault_what_was_found_holds_for_all_constants(monkeypatch):
    monkeypatch.setattr(backend, "numbers_of", lambda program: ())
    name = "a threshold"
    assert not np.allclose(explained_later(name), right(LATER[name][3]))


@pytest.mark.parametrize("relu", [jax.nn.relu, lambda x: x * (x > 0)])
def test_weights_that_change_judge_nothing_anew(relu, monkeypatch):
    judged = []
    monkeypatch.setattr(findings, "Judge", lambda *args, of=findings.Judge: judged.append(args) or of(*args))
    kernel, scales, last = RNG.normal(size=(3, 3, 4, 4)), RNG.normal(size=4), RNG.normal(size=(4, 3))
    constants = [jnp.asarray(array) for array in (kernel, scales, last)]

    def network(x):
        x = jax.lax.reduce_window(relu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
        weights, scales, last = constants
        y = jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return relu(x + y * scales).mean((1, 2)) @ last

    method, images = GuidedBackprop(network), jnp.asarray(RNG.normal(size=(2, 8, 8, 4)))
    for _ in range(3):
        method.explain(images, 1)
        constants = [1.01 * array for array in constants]
    assert len(judged) == 1


def masks(h):
    return (h > 0).astype(h.dtype), (h <= 0).astype(h.dtype)


def scattered(h):
    places = jnp.arange(8) + 8 * (h > 0)
    return jnp.zeros((len(h), 16)).at[jnp.arange(len(h))[:, None], places].set(h)


PARTS = {
    "a stack of masks": lambda h: h[..., None] * jnp.stack(masks(h), -1),
    "masks that cancel in a sum": lambda h: h[..., None] * jnp.stack([masks(h)[0], -masks(h)[0]], -1),
    "one hot": lambda h: h[..., None] * jax.nn.one_hot((h > 0) * 1, 2),
    "a product of sums": lambda h: jnp.einsum("nf,nfk->nkf", h, jax.nn.one_hot((h > 0) * 1, 2)),
    "a stack along a new first axis": lambda h: h[None] * jnp.stack(masks(h)),
    "scattered": scattered,
    "beside each other": lambda h: jnp.concatenate([h, h], 1) * jnp.concatenate(masks(h), 1),
}


def of_parts(part):
    weights = np.random.default_rng(1).normal(size=(16, 4))
    return lambda x: part(jax.nn.relu(x @ FIRST) @ SECOND).reshape(len(x), -1) @ weights


@pytest.mark.parametrize("count", [1, 5, 9])
@pytest.mark.parametrize("name", PARTS)
def test_several_results_of_each_number_are_judged(name, count):
    with pytest.raises(OpaqueRegionError):
        GuidedBackprop(of_parts(PARTS[name])).explain(jnp.asarray(IMAGES[:count]), WEIGHTS[:count])


BOUNDS = {
    "beside another value": lambda h: jnp.stack([jnp.maximum(h, 0.5), jnp.tanh(h)], -1) - 0.5,
    "shifted otherwise the second time": lambda h: jnp.stack([jnp.maximum(h, 0.5)] * 2, -1) - jnp.array([0.5, 0]),
    "put behind another value": lambda h: 2 * jnp.concatenate([jnp.tanh(h), jnp.maximum(h, 0.5)], 1) - 1,
    "a logarithm of both": lambda h: jnp.log(jnp.stack([jnp.maximum(jnp.exp(h), 1)] * 2, -1)),
    "from above": lambda h: 0.5 - jnp.stack([jnp.minimum(h, 0.5), jnp.tanh(h)], -1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_several_results_of_what_is_bounded_are_judged(name):
    with pytest.raises(OpaqueRegionError):
        GuidedBackprop(of_parts(BOUNDS[name])).explain(jnp.asarray(IMAGES), WEIGHTS)


@pytest.mark.parametrize("shift", [-0.3, 0.7])
def test_several_results_that_stay_bounds_are_plain(shift):
    bounded = of_parts(lambda h: jnp.stack([jnp.maximum(h, 0.5), jnp.clip(h, -1, 1)], -1) + shift)
    coverage = GuidedBackprop(bounded).explain(jnp.asarray(IMAGES), WEIGHTS).coverage
    assert ("relu", 1, "guided") in [tuple(each) for each in coverage]


def test_several_results_that_close_nothing_are_plain():
    def repeated(h):
        return h[..., None] * jax.nn.softmax(jnp.stack([jnp.abs(h), jnp.max(h, 1, keepdims=True) - h], -1))

    coverage = GuidedBackprop(of_parts(repeated)).explain(jnp.asarray(IMAGES), WEIGHTS).coverage
    assert ("relu", 1, "guided") in [tuple(each) for each in coverage]


def test_planted_fault_what_has_another_size_is_passed_by(monkeypatch):
    monkeypatch.setattr(rows, "has_parts", lambda size, of_x: False)
    GuidedBackprop(of_parts(PARTS["a stack of masks"])).explain(jnp.asarray(IMAGES), WEIGHTS)
