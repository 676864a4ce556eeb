"""Random programs of ordinary operations: the map is that of the rule written by hand, or there is an error.

The reference is the same program with the rule in ``tf.custom_gradient``, differentiated by TensorFlow alone.
``make fuzz`` tries thousands.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from guided_backprop import GuidedBackprop, OpaqueRegionError, ScoreError
from random_programs import EVERY_SECOND, beside_zeros, composed, often

RNG = np.random.default_rng(0)
DENSE, BIAS = [RNG.normal(size=(8, 8)) / 2 for _ in range(4)], RNG.normal(size=8)
IMAGES, WEIGHTS = tf.constant(RNG.normal(size=(7, 8))), RNG.normal(size=(7, 8))
ROWS = {"axis": -1, "keepdims": True}


@tf.custom_gradient
def by_hand(x):
    return tf.maximum(x, 0.0), lambda g: tf.maximum(g, 0.0) * tf.cast(x > 0, g.dtype)


def mean(x):
    return tf.reduce_mean(x, **ROWS)


def mask(x):
    return tf.cast(x > 0, x.dtype)


def turned(x, step):
    return tf.while_loop(lambda turn, y: turn < 2, lambda turn, y: (turn + 1, step(y)), (0, x))[1]


def averaged(pool, x):
    return tf.repeat(pool(x[:, :, None], 2, 2, "VALID")[..., 0], 2, -1)


#: From x and a ReLU to a value of the same shape. A ReLU stands behind a dense layer: of what is never negative it
#: would be a guard.
ORDINARY = {
    "dense": lambda x, relu: x @ DENSE[0],
    "bias": lambda x, relu: x + BIAS,
    "relu": lambda x, relu: relu(x @ DENSE[1]),
    "residual": lambda x, relu: x + relu(x @ DENSE[2]),
    "two branches": lambda x, relu: relu(x @ DENSE[0]) - relu(x @ DENSE[1]),
    "relu in a loop": lambda x, relu: tf.map_fn(lambda row: relu(tf.linalg.matvec(DENSE[3], row)), x),
    "relu in a branch": lambda x, relu: tf.cond(tf.size(x) > 1, lambda: relu(x @ DENSE[3]), lambda: x),
    "relu in turns": lambda x, relu: turned(x, lambda y: tf.tanh(relu(y @ DENSE[0]) + y)),
    "squeeze and excite": lambda x, relu: x * tf.sigmoid(relu(x @ DENSE[2]) @ DENSE[3]),
    "tanh": lambda x, relu: tf.tanh(x),
    "gelu": lambda x, relu: tf.nn.gelu(x),
    "silu": lambda x, relu: x * tf.sigmoid(x),
    "elu": lambda x, relu: tf.nn.elu(x),
    "leaky": lambda x, relu: tf.nn.leaky_relu(x, 0.1),
    "softplus": lambda x, relu: tf.math.softplus(x),
    "softmax": lambda x, relu: tf.nn.softmax(x),
    "logsumexp": lambda x, relu: x - tf.reduce_logsumexp(x, **ROWS),
    "absolute": lambda x, relu: tf.abs(x),
    "square": lambda x, relu: tf.square(x) / 4,
    "root": lambda x, relu: tf.sqrt(tf.square(x) + 1.0),
    "layer norm": lambda x, relu: (x - mean(x)) * tf.math.rsqrt(mean(tf.square(x - mean(x))) + 1e-3),
    "l2": lambda x, relu: tf.math.l2_normalize(x, -1),
    "l1": lambda x, relu: x / (tf.reduce_sum(tf.abs(x), **ROWS) + 1.0),
    "max": lambda x, relu: x - tf.reduce_max(x, **ROWS),
    "maxout": lambda x, relu: tf.maximum(x, tf.reverse(x, [-1])),
    "pool": lambda x, relu: averaged(tf.nn.max_pool1d, x),
    "pool around": lambda x, relu: tf.nn.max_pool1d(x[:, :, None], 3, 1, "SAME")[..., 0],
    "pool of what is padded": lambda x, relu: tf.nn.max_pool1d(tf.pad(x, [[0, 0], [1, 1]])[..., None], 3, 1, "VALID")[
        ..., 0
    ],
    "average": lambda x, relu: averaged(tf.nn.avg_pool1d, x),
    "sort": lambda x, relu: tf.sort(x, -1),
    "top-k": lambda x, relu: tf.where(x >= tf.math.top_k(x, 4)[0][..., -1:], x, tf.zeros_like(x)),
    # By another value: of few values alone the largest ones look like what a ReLU lets through.
    "hard attention": lambda x, relu: x + x * tf.one_hot(tf.argmax(x @ DENSE[3], -1), 8, dtype=x.dtype),
    "soft attention": lambda x, relu: (tf.nn.softmax(x[:, :, None] * x[:, None, :]) @ x[:, :, None])[..., 0],
    "gate of another": lambda x, relu: x * tf.sigmoid(tf.roll(x, 1, -1)),
    "mask of another": lambda x, relu: x * mask(tf.roll(x, 1, -1)),
    "pruned": lambda x, relu: x * (np.arange(8) % 3 > 0),
    "padded": lambda x, relu: tf.where(np.arange(8) < 6, x, tf.zeros_like(x)),
    "NaN guard": lambda x, relu: tf.where(tf.math.is_nan(x), tf.zeros_like(x), x),
    "clip": lambda x, relu: tf.clip_by_value(x, -1.0, 2.0),
    "floor": lambda x, relu: tf.maximum(x, -0.5),
    "Huber": lambda x, relu: tf.where(tf.abs(x) < 1, 0.5 * x * x, tf.abs(x) - 0.5),
    "embedding": lambda x, relu: x + tf.gather(tf.constant(DENSE[0]), tf.argmax(x, -1)),
    "detached": lambda x, relu: x / tf.stop_gradient(1.0 + tf.math.reduce_std(x)),
    "straight through": lambda x, relu: x + tf.stop_gradient(tf.round(4.0 * x) / 4.0 - x),
    "flip": lambda x, relu: tf.reverse(x, [-1]),
    "moved": lambda x, relu: tf.reshape(tf.transpose(tf.reshape(x, [-1, 2, 4]), [0, 2, 1]), [-1, 8]),
    "gathered": lambda x, relu: tf.gather(x, [3, 1, 0, 2, 7, 6, 5, 4], axis=1),
    "split": lambda x, relu: tf.concat([part * (1.0 + place) for place, part in enumerate(tf.split(x, 2, 1))], 1),
    "cumulative": lambda x, relu: tf.cumsum(x, -1) / 4,
    "convolution": lambda x, relu: tf.nn.conv1d(x[:, :, None], DENSE[0][:3, :1, None], 1, "SAME")[..., 0],
}
#: What is a ReLU, and does not say so.
ARITHMETIC = {
    "a mask": lambda x: x * tf.round(tf.sigmoid(x)),
    "a magnitude": lambda x: (x + tf.abs(x)) / 2.0,
    "a root": lambda x: (x + tf.sqrt(x * x)) / 2.0,
    "a stack": lambda x: tf.reduce_max(tf.stack([x, tf.zeros_like(x)]), 0),
    "stacked and sorted": lambda x: tf.sort(tf.stack([x, tf.zeros_like(x)], -1), -1)[..., 1],
    "in a loop": lambda x: tf.map_fn(lambda row: tf.where(row <= 0, tf.zeros_like(row), row), x),
    "a product": lambda x: tf.linalg.matvec(tf.linalg.diag(mask(x)), x),
    "a detached part": lambda x: x + tf.stop_gradient(tf.nn.relu(x) - x),
}
TWICE, WIDE = DENSE[2].repeat(2, 1), beside_zeros(DENSE[2])
#: The same of what is no value of the program.
CHOICES = {
    "weights of 0": lambda x: tf.reduce_max(tf.reshape(x @ WIDE, [-1, 8, 2]), -1),
    "a mask and a pool": lambda x: tf.nn.max_pool1d((x @ TWICE * EVERY_SECOND)[..., None], 2, 2, "VALID")[..., 0],
    "in order": lambda x: tf.sort(tf.reshape(x @ WIDE, [-1, 8, 2]), -1)[..., 1],
    "the smallest": lambda x: -tf.reduce_min(tf.reshape(x @ -WIDE, [-1, 8, 2]), -1),
}


def behind(write):
    return lambda x: write(x @ DENSE[2])


HIDDEN = {name: behind(write) for name, write in ARITHMETIC.items()} | CHOICES


def program(names, relu, hidden):
    return composed(names, ORDINARY, relu, hidden, DENSE)


def outcome(names):
    """Return "right", "refused", "not finite", or "wrong"."""
    with tf.GradientTape() as tape:
        tape.watch(IMAGES)
        outputs = program(names, by_hand, dict.fromkeys(HIDDEN, behind(by_hand)))(IMAGES)
    right = tape.gradient(outputs, IMAGES, tf.constant(WEIGHTS)).numpy()
    try:
        found = GuidedBackprop(program(names, tf.nn.relu, HIDDEN)).explain(IMAGES, WEIGHTS)
    except OpaqueRegionError:
        return "refused"
    except ScoreError:
        return "not finite"
    is_right = np.allclose(found.attribution, right, rtol=1e-6, atol=1e-9 * max(1.0, np.abs(right).max()))
    return "right" if is_right else "wrong"


SETTINGS = often(60)
STEPS = st.sampled_from(sorted(ORDINARY))


@SETTINGS
@given(st.lists(STEPS, min_size=1, max_size=6))
def test_a_program_of_ordinary_operations(names):
    assert outcome(names) != "wrong"


@SETTINGS
@given(st.lists(STEPS, max_size=3), st.sampled_from(sorted(HIDDEN)), st.lists(STEPS, max_size=3))
def test_a_program_that_hides_a_relu(before, hidden, after):
    assert outcome([*before, hidden, *after]) != "wrong"


#: None has a ReLU but those that are written, and each looks like one on some values.
ORDINARY_CHOICES = [
    ["maxout", "pool around"],
    ["split", "maxout", "gate of another"],
    ["mask of another", "gate of another", "maxout"],
    ["convolution", "top-k", "clip", "sort"],
    ["layer norm", "relu in a loop", "straight through", "padded", "max"],
]


@pytest.mark.parametrize("names", ORDINARY_CHOICES, ids=" ".join)
def test_what_opens_by_other_values_is_plain(names):
    assert outcome(names) == "right"


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_among_constants_is_refused(name):
    assert outcome([name]) == "refused"


def test_planted_fault_a_relu_that_is_not_guided_is_seen(monkeypatch):
    monkeypatch.setitem(HIDDEN, "a fault", behind(tf.nn.elu))
    assert outcome(["a fault"]) == "wrong"
