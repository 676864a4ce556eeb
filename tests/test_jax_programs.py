"""Random JAX programs of ordinary operations: each map is that of the rule written by hand, or there is an error.

The reference is the same program with the rule as a ``jax.custom_vjp``, differentiated by JAX alone. ``make fuzz``
tries thousands.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from guided_backprop import GuidedBackprop, OpaqueRegionError, ScoreError
from random_programs import EVERY_SECOND, beside_zeros, composed, often

RNG = np.random.default_rng(0)
DENSE, BIAS = RNG.normal(size=(4, 8, 8)).astype(np.float32) / 2, RNG.normal(size=8).astype(np.float32)
IMAGES, WEIGHTS = RNG.normal(size=(2, 7, 8)).astype(np.float32)


@jax.custom_vjp
def by_hand(x):
    return jnp.maximum(x, 0)


by_hand.defvjp(lambda x: (by_hand(x), x), lambda x, g: (jnp.where((x > 0) & (g > 0), g, 0),))


def mean(x):
    return x.mean(-1, keepdims=True)


def detached(x):
    return lax.stop_gradient(x)


def convolved(x):
    axes = ("NHC", "HIO", "NHC")
    kernel = DENSE[0][:3, :1, None]
    return lax.conv_general_dilated(x[:, :, None], kernel, (1,), "SAME", dimension_numbers=axes)[..., 0]


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME")


#: From x and a ReLU to a value of the same shape. A ReLU stands behind a dense layer: of what is never negative it
#: would be a guard.
ORDINARY = {
    "dense": lambda x, relu: x @ DENSE[0],
    "bias": lambda x, relu: x + BIAS,
    "relu": lambda x, relu: relu(x @ DENSE[1]),
    "residual": lambda x, relu: x + relu(x @ DENSE[2]),
    "two branches": lambda x, relu: relu(x @ DENSE[0]) - relu(x @ DENSE[1]),
    "relu in a loop": lambda x, relu: lax.map(lambda row: relu(DENSE[3] @ row), x),
    "relu in a branch": lambda x, relu: lax.cond(x.sum() > 0, lambda x: relu(x @ DENSE[3]), jnp.tanh, x),
    "relu in turns": lambda x, relu: lax.fori_loop(0, 2, lambda turn, y: jnp.tanh(relu(y @ DENSE[0]) + y), x),
    "relu again": lambda x, relu: jax.checkpoint(lambda x: relu(x @ DENSE[2]) @ DENSE[1])(x),
    "relu by rows": lambda x, relu: jax.vmap(lambda row: relu(row @ DENSE[2]))(x),
    "squeeze and excite": lambda x, relu: x * jax.nn.sigmoid(relu(x @ DENSE[2]) @ DENSE[3]),
    "tanh": lambda x, relu: jnp.tanh(x),
    "gelu": lambda x, relu: jax.nn.gelu(x),
    "silu": lambda x, relu: x * jax.nn.sigmoid(x),
    "elu": lambda x, relu: jax.nn.elu(x),
    "leaky": lambda x, relu: jax.nn.leaky_relu(x, 0.1),
    "softplus": lambda x, relu: jax.nn.softplus(x),
    "softmax": lambda x, relu: jax.nn.softmax(x),
    "logsumexp": lambda x, relu: x - jax.nn.logsumexp(x, -1, keepdims=True),
    "absolute": lambda x, relu: jnp.abs(x),
    "square": lambda x, relu: x * x / 4,
    "root": lambda x, relu: jnp.sqrt(x * x + 1),
    "layer norm": lambda x, relu: (x - mean(x)) * lax.rsqrt(mean((x - mean(x)) ** 2) + 1e-3),
    "l2": lambda x, relu: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "l1": lambda x, relu: x / (jnp.abs(x).sum(-1, keepdims=True) + 1),
    "max": lambda x, relu: x - x.max(-1, keepdims=True),
    "maxout": lambda x, relu: jnp.maximum(x, x[:, ::-1]),
    "pool": lambda x, relu: pooled(x),
    "pool of what is padded": lambda x, relu: lax.reduce_window(
        jnp.pad(x, ((0, 0), (1, 1))), -jnp.inf, lax.max, (1, 3), (1, 1), "VALID"
    ),
    "sort": lambda x, relu: jnp.sort(x, -1),
    "top-k": lambda x, relu: jnp.where(x >= lax.top_k(x, 4)[0][..., -1:], x, 0),
    # By another value: of few values alone the largest ones look like what a ReLU lets through.
    "hard attention": lambda x, relu: x + x * jax.nn.one_hot((x @ DENSE[3]).argmax(-1), 8),
    "soft attention": lambda x, relu: (jax.nn.softmax(x[:, :, None] * x[:, None]) @ x[:, :, None])[..., 0],
    "gate of another": lambda x, relu: x * jax.nn.sigmoid(jnp.roll(x, 1, -1)),
    "mask of another": lambda x, relu: x * (jnp.roll(x, 1, -1) > 0),
    "pruned": lambda x, relu: x * (np.arange(8) % 3 > 0),
    "padded": lambda x, relu: jnp.where(np.arange(8) < 6, x, 0),
    "NaN guard": lambda x, relu: jnp.where(jnp.isnan(x), 0, x),
    "clip": lambda x, relu: jnp.clip(x, -1, 2),
    "floor": lambda x, relu: jnp.maximum(x, -0.5),
    "Huber": lambda x, relu: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
    "embedding": lambda x, relu: x + jnp.asarray(DENSE[0])[x.argmax(-1)],
    "detached": lambda x, relu: x / detached(1 + x.std()),
    "straight through": lambda x, relu: x + detached(jnp.round(4 * x) / 4 - x),
    "branch": lambda x, relu: lax.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x, x),
    "flip": lambda x, relu: x[:, ::-1],
    "moved": lambda x, relu: x.reshape(-1, 2, 4).transpose(0, 2, 1).reshape(-1, 8),
    "gathered": lambda x, relu: x[:, np.array([3, 1, 0, 2, 7, 6, 5, 4])],
    "split": lambda x, relu: jnp.concatenate([x[:, :4], 2 * x[:, 4:]], 1),
    "cumulative": lambda x, relu: jnp.cumsum(x, -1) / 4,
    "convolution": lambda x, relu: convolved(x),
}
#: What is a ReLU, and does not say so.
ARITHMETIC = {
    "a choice": lambda x: jnp.where(x > 0, x, 0),
    "a mask": lambda x: x * jnp.round(jax.nn.sigmoid(x)),
    "a magnitude": lambda x: (x + jnp.abs(x)) / 2,
    "a root": lambda x: (x + jnp.sqrt(x * x)) / 2,
    "a stack": lambda x: jnp.stack([x, 0 * x]).max(0),
    "stacked and sorted": lambda x: jnp.sort(jnp.stack([x, 0 * x], -1), -1)[..., 1],
    "without its negative part": lambda x: x - jnp.minimum(x, 0),
    "in a loop": lambda x: lax.map(lambda row: jnp.where(row <= 0, 0, row), x),
    "in a branch": lambda x: lax.cond(x.sum() > -1e9, lambda x: x * (x > 0), lambda x: x, x),
    "a product": lambda x: jax.vmap(lambda row: jnp.diag((row > 0).astype(x.dtype)) @ row)(x),
    "a detached part": lambda x: x + detached(jax.nn.relu(x) - x),
}
TWICE, WIDE = DENSE[2].repeat(2, 1), beside_zeros(DENSE[2]).astype(np.float32)
#: The same of what is no value of the program.
CHOICES = {
    "weights of 0": lambda x: (x @ WIDE).reshape(-1, 8, 2).max(-1),
    "a mask and a pool": lambda x: lax.reduce_window(
        x @ TWICE * EVERY_SECOND.astype(np.float32), -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"
    ),
    "in order": lambda x: jnp.sort((x @ WIDE).reshape(-1, 8, 2), -1)[..., 1],
    "the smallest": lambda x: -(x @ -WIDE).reshape(-1, 8, 2).min(-1),
}


def behind(write):
    return lambda x: write(x @ DENSE[2])


HIDDEN = {name: behind(write) for name, write in ARITHMETIC.items()} | CHOICES


def program(names, relu, hidden):
    return composed(names, ORDINARY, relu, hidden, DENSE)


def outcome(names):
    """Return "right", "refused", "not finite", or how far off the map is."""
    images, weights = jnp.asarray(IMAGES), jnp.asarray(WEIGHTS)
    # Operation by operation: what is compiled for one program serves the next.
    _, back = jax.vjp(program(names, by_hand, dict.fromkeys(HIDDEN, behind(by_hand))), images)
    (right,) = map(np.asarray, back(weights))
    try:
        found = np.asarray(GuidedBackprop(program(names, jax.nn.relu, HIDDEN)).explain(images, WEIGHTS))
    except OpaqueRegionError:
        return "refused"
    except ScoreError:
        return "not finite"
    off = np.linalg.norm(found - right) / max(np.linalg.norm(right), 1e-12)
    return "right" if off < 1e-3 else f"off by {off:.2g}"


SETTINGS = often(50)
STEPS = st.sampled_from(sorted(ORDINARY))
# Twice it compares values with zeros, and is a ReLU.
PROGRAMS = st.lists(STEPS, max_size=6).filter(lambda names: names.count("top-k") < 2)


@SETTINGS
@given(PROGRAMS)
def test_a_program_of_ordinary_operations(names):
    assert outcome(names) in ("right", "refused", "not finite")


@SETTINGS
@given(PROGRAMS, st.sampled_from(sorted(HIDDEN)), st.integers(0, 6))
def test_a_program_that_hides_a_relu(names, hidden, place):
    assert outcome([*names[:place], hidden, *names[place:]]) in ("right", "refused", "not finite")


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_among_constants_is_refused(name):
    assert outcome([name]) == "refused"


@pytest.mark.parametrize("name", ORDINARY)
def test_each_ordinary_operation_is_taken(name):
    assert outcome([name]) == "right"


def test_planted_fault_a_relu_that_is_not_guided_is_seen(monkeypatch):
    monkeypatch.setitem(HIDDEN, "a fault", behind(jax.nn.elu))
    assert outcome(["a fault"]).startswith("off by")


def test_what_goes_in_steps_is_no_relu_where_a_mask_leaves_it_out():
    assert outcome(["clip", "a choice", "softmax", "straight through", "padded"]) == "right"


def test_the_largest_of_a_handful_of_images_are_no_threshold():
    assert outcome(["padded", "a stack", "gate of another", "embedding", "top-k"]) == "right"
