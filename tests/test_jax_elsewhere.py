"""ReLUs of a JAX program that lie on both sides of a loop, a branch or a checkpoint, in whatever order and turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends.jax.hidden import behind, looks

RNG = np.random.default_rng(0)
FIRST, SECOND, LAST = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 8)), RNG.normal(size=(8, 4))
LAYERS = RNG.normal(size=(3, 8, 8))
ORDER = RNG.permutation(8)
IMAGES, WEIGHTS = RNG.normal(size=(24, 6)), RNG.normal(size=(24, 4))
KEPT = (np.arange(24) % 4 != 3)[:, None]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def parts(h, weight=SECOND):
    return jnp.abs(h @ weight), h @ weight > 0


def turned(h):
    return [part.T for part in parts(h)]


def carried(state, weight):
    return tuple(part * 1.0 for part in parts(state[0], weight)), None


def last_of_a_scan(h):
    return jnp.multiply(*lax.scan(carried, (h, h), LAYERS)[0])


def bounds(h):
    return lax.map(lambda weight: jnp.maximum(h @ weight, 0.5), jnp.asarray(SECOND.T))


# Each is a ReLU of what h and SECOND, or the last of LAYERS, make, in some order: its size and its sign meet elsewhere.
RELUS = {
    "turned inside": lambda h: jnp.multiply(*jax.checkpoint(turned)(h)).T,
    "turned outside": lambda h: jnp.multiply(*[part.T for part in jax.checkpoint(parts)(h)]).T,
    "columns in another order": lambda h: jnp.multiply(*[part[:, ORDER] for part in jax.checkpoint(parts)(h)]),
    "rows from the end": lambda h: jnp.multiply(*[part[::-1] for part in jax.checkpoint(parts)(h)]),
    "a part": lambda h: jnp.multiply(*[part[:, :5] for part in jax.checkpoint(parts)(h)]) @ SECOND[:5],
    "a branch": lambda h: jnp.multiply(*lax.cond(h.sum() < 1e9, turned, lambda h: [h.T, h.T > 9], h)).T,
    "column by column": lambda h: jnp.multiply(
        *[part.T for part in lax.map(lambda weight: parts(h, weight), jnp.asarray(SECOND.T))]
    ),
    "one of several turns": lambda h: jnp.multiply(
        *[part[1] for part in lax.map(lambda weight: parts(h, weight), jnp.asarray(LAYERS))]
    ),
    "the last of a chain of turns": last_of_a_scan,
    "a minimum, column by column": lambda h: -lax.map(lambda w: jnp.minimum(h @ w, 0), jnp.asarray(SECOND.T)).T,
    "a bound, column by column": lambda h: bounds(h).T - 0.5,
    "a bound of a checkpoint, twice": lambda h: (
        jnp.stack([jax.checkpoint(lambda h: jnp.maximum(h @ SECOND, 0.5))(h)] * 2).sum(0) - 1
    ),
    "a bound of one of several turns": lambda h: (
        lax.map(lambda w: jnp.maximum(h @ w, 0.5), jnp.asarray(LAYERS))[1] - 0.5
    ),
    "a bound of rows, turned": lambda h: (lax.map(lambda row: jnp.maximum(row @ SECOND, 0.5), h).T - 0.5).T,
}

# No ReLU is in these but the first one, and what of them is closed is closed by something else.
FINE = {
    "padding in a loop": lambda h: lax.map(lambda row: jnp.where(row[1], jnp.abs(row[0] @ SECOND), 0), (h, KEPT)),
    "padding of a checkpoint, turned": lambda h: jnp.where(KEPT, jnp.multiply(*jax.checkpoint(leaky)(h)).T, 0),
    "the largest half of a checkpoint, turned": lambda h: jax.checkpoint(largest)(h).T * 1.5,
    "a bound that is shifted otherwise": lambda h: bounds(h).T - 0.3,
    "a bound that is doubled": lambda h: bounds(h).T * 2,
    "weights of a softmax that are as good as 0": lambda h: softly(h @ SECOND),
}


def leaky(h):
    size, sign = turned(h)
    return size, sign * 1.1 - 0.1


def largest(h):
    h = h @ SECOND
    return jnp.where(h >= lax.top_k(h, 4)[0][:, -1:], h, 0).T


def softly(h):
    """Attention that runs along a sequence, and knows the largest score so far alone; of padding it gives 0."""
    tokens = h.reshape(-1, 4, 2) * KEPT[..., None] @ LAYERS[0, :2]
    queries, keys = tokens @ LAYERS[1], tokens @ LAYERS[1].T

    def turn(state, given):
        (top, whole, result), (key, token) = state, given
        score = (queries * key[:, None]).sum(-1)
        new = jnp.maximum(top, score)
        left, right = jnp.exp(top - new), jnp.exp(score - new)
        return (new, whole * left + right, result * left[..., None] + right[..., None] * token[:, None]), None

    zeros = jnp.zeros(tokens.shape[:2])
    turns = keys.swapaxes(0, 1), (tokens @ LAYERS[2]).swapaxes(0, 1)
    _, whole, result = lax.scan(turn, (zeros - jnp.inf, zeros, tokens * 0), turns)[0]
    return (result / whole[..., None]).sum(1)


def explained(part):
    model = lambda x: part(jax.nn.relu(x @ FIRST)) @ LAST  # noqa: E731
    return GuidedBackprop(model).explain(jnp.asarray(IMAGES), WEIGHTS).attribution


@pytest.mark.parametrize("name", RELUS)
def test_what_comes_out_in_another_order_is_refused(name):
    with pytest.raises(OpaqueRegionError):
        explained(RELUS[name])


@pytest.mark.parametrize("name", FINE)
def test_what_something_else_closes_keeps_its_derivative(name):
    _, back = jax.vjp(lambda h: FINE[name](h) @ LAST, jnp.maximum(IMAGES @ FIRST, 0))
    (g,) = back(jnp.asarray(WEIGHTS))
    right = (np.maximum(g, 0) * (IMAGES @ FIRST > 0)) @ FIRST.T
    np.testing.assert_allclose(explained(FINE[name]), right, rtol=1e-9, atol=1e-12)


def test_what_is_closed_nowhere_runs_nothing_through_all_blocks(monkeypatch):
    monkeypatch.setattr(looks, "across", None)
    explained(lambda h: jnp.multiply(*jax.checkpoint(leaky)(h)).T)


def test_what_a_relu_gives_its_derivative_makes_of_x_and_what_a_softmax_gives_not():
    x = np.random.default_rng(5).normal(size=(4, 6))
    derivative = (x > 0) * np.linspace(1, 2, 6)
    look = behind._Look(x, derivative, np.asarray((x * derivative).sum()))
    assert behind._is_multiple(look)
    assert not behind._is_multiple(look._replace(sums=look.sums + 1e-6))
