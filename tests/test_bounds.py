"""A bound that is not 0, of which a curve, a product or a shift makes a ReLU again; and what stays a bound."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import bounds, nomination
from guided_backprop.backends.bounds import judge_at_zero, judge_bound_behind, judge_bounded
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

RNG = np.random.default_rng(0)
FRAMEWORKS = ["torch", "jax", "tensorflow"]
X = RNG.normal(size=(5, 12))


def test_what_is_open_below_the_threshold_of_all_others_is_closed_nowhere():
    x = np.random.default_rng(1).normal(size=(16, 12)) + 3
    y = np.maximum(x, 3) - 3
    assert judge_bounded(y, x).verdict is Verdict.CONVEX
    some = np.arange(12) % 2
    assert judge_bounded(np.where(some, y, x - 3), x).verdict is Verdict.PARTIAL
    # Nor where one of these is next to 0 by chance, as one of thousands is.
    x = np.tile(x, (4, 1))
    x[0, 0] = 3 + 1e-15
    assert judge_bounded(np.where(some, np.maximum(x, 3), x) - 3, x).verdict is Verdict.PARTIAL


def test_what_a_bound_closes_is_a_relu_where_it_is_0():
    far = X + 50
    assert judge_bounded(np.log(np.maximum(np.exp(X), 1)), X).verdict is Verdict.CONVEX
    assert judge_bounded(np.sqrt(np.maximum(far, 50) ** 2) - 50, far).verdict is Verdict.CONVEX
    # A dozen values are enough, for that a bound is a threshold is known.
    assert judge_bounded(np.maximum(far[:1], 50) - 50, far[:1]).verdict is Verdict.CONVEX
    assert judge_bounded(np.minimum(X, 0), X).verdict is Verdict.CONCAVE
    # One that rounds what lies above it as well, as levels do, to one number here and there.
    for levels, values in ((0.05, X), (0.5, X), (0.02, RNG.normal(size=(40, 12)))):
        rounded = levels * np.round(np.maximum(values, 0) / levels)
        assert judge_bounded(rounded, values + 2).is_gate
        assert not judge_bounded(np.expm1(rounded), values + 2).is_gate
    # Of what is never negative a mask takes small numbers for nothing, as of a splat's opacity.
    small = np.where(np.abs(X) < 0.1, 0, np.abs(X))
    assert judge_bounded(small, np.abs(X)).is_gate
    assert judge_bounded(small, np.abs(X), is_of_one_sign=True).verdict is Verdict.NONE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_may_leave_something_of_a_bound(dtype):
    far = (X + 5).astype(dtype)
    left = np.maximum(far, far.dtype.type(5)) - far.dtype.type(5)
    unit = 5 * np.finfo(dtype).eps
    assert judge_bounded(left + np.where(far < 5, unit, 0).astype(dtype), far).verdict is Verdict.CONVEX
    # One unit here and none there, as of numbers that are computed by fours.
    uneven = np.where((far < 5) & (np.arange(12) % 4 > 0), unit, 0).astype(dtype)
    assert judge_bounded(left + uneven, far).verdict is Verdict.PARTIAL


def test_a_length_that_a_small_number_keeps_from_0_leaves_more():
    far = X - 100
    clipped = far * np.minimum(1, 100 / (np.abs(far) + 1e-7)) + 100
    assert judge_bounded(clipped, far).verdict is Verdict.PARTIAL
    assert not judge_bounded(clipped + 1e-3 * (X < 0) * X, far).is_gate


def test_few_values_of_a_bound_leave_it_open():
    norm = np.array([[96.4, 100.1, 98.0]])
    assert judge_bounded(np.maximum(100 - norm, 0), norm).verdict is Verdict.UNSETTLED
    norm = np.concatenate([norm, [[103.6, 99.9, 102.0]], [[99.0, 102.2, 96.5]]])
    assert judge_bounded(np.maximum(100 - norm, 0), norm).is_gate
    # What is closed in between, and a curve, are none.
    assert judge_bounded(np.array([[0.0, 1.0, 2.0]]), np.array([[98.0, 96.4, 100.1]])).verdict is Verdict.NONE


@pytest.mark.parametrize("count", [3, 4, 8, 40])
@pytest.mark.parametrize("left", [0.0, 1e-16])
def test_a_bound_may_be_another_number_for_each_value(count, left):
    x = RNG.normal(size=(count, 64))
    bounds = np.linspace(-0.4, 0.4, 64)
    y = np.maximum(x, bounds) - bounds + left * (np.arange(64) % 3)
    assert judge_bounded(y, x).is_gate
    # One image tells nothing of them; nor does what is bounded above as well, whatever lies on a line of few.
    assert judge_bounded(y[:1], x[:1]).verdict is Verdict.UNSETTLED
    above = np.clip(x, bounds - 0.3, bounds + 0.3) - bounds + 0.3
    assert not judge_bounded(above, x).is_gate
    assert not judge_bounded(y + 0.01, x).is_gate


def test_a_bound_is_a_relu_where_its_weights_take_it_away_again():
    w, seeds = RNG.normal(size=(12, 4)), np.array([0.7, 1.2, 1.9, 1.4])
    far = X + 5
    derivative, sums = (far > 5) * (w @ seeds), (np.maximum(far, 5) @ w - 5 * w.sum(0)) @ seeds
    assert judge_bound_behind(far, derivative, sums) is Verdict.PARTIAL
    # Any other bias, or none, leaves a bound what it is; so does one row, whose sum may be anything.
    assert judge_bound_behind(far, derivative, sums + 0.01) is Verdict.NONE
    assert judge_bound_behind(far, derivative, np.maximum(far, 5) @ w @ seeds) is Verdict.NONE
    assert judge_bound_behind(far[:1], derivative[:1], sums[:1]) is Verdict.NONE
    # Two sums of one row tell it: what is closed for these may be no part of them.
    others = w @ seeds[::-1]
    twice = np.repeat(far[:1], 2, 0)
    g = (twice > 5) * np.stack([w @ seeds, others])
    sums = ((twice - 5) * g).sum(1)
    assert judge_bound_behind(twice, g, sums) is Verdict.PARTIAL
    assert judge_bound_behind(twice, g, sums + 0.01) is Verdict.NONE


def test_the_bends_of_a_known_curve_are_its_own():
    assert judge_at_zero(np.clip(X, 0, 9), X).verdict is Verdict.CONVEX
    assert judge_at_zero(np.clip(X, 0, 1), X).verdict is Verdict.PARTIAL
    assert judge_at_zero(np.minimum(X, 0), X).verdict is Verdict.CONCAVE
    assert judge_at_zero(np.clip(X + 0.5, 0, 9), X).verdict is Verdict.NONE
    assert judge_at_zero(np.clip(X + 0.5, 0, 1), X).verdict is Verdict.NONE


OTHERS = {
    "a floor": np.maximum(X, 1e-6),
    "a floor far from 0": np.maximum(X, -1),
    "a logarithm with a floor": np.log(np.maximum(1 / (1 + np.exp(-X)), 0.1)),
    "a curve": np.exp(np.maximum(X, 0)) - 1,
    "both bounds": np.clip(X, -1, 1),
    "a mean": X - np.maximum(X, 0.5).mean(1, keepdims=True),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_bounds_stay_what_they_are(name, dtype):
    assert judge_bounded(OTHERS[name].astype(dtype), X.astype(dtype)).verdict is Verdict.NONE


class Words:
    """What the spellings need of a framework, under one name each."""

    def __init__(self, framework):
        self.framework = framework
        self.xp = pytest.importorskip({"jax": "jax.numpy"}.get(framework, framework))
        heads = {"torch": self.xp, "tensorflow": self.xp}.get(framework) or pytest.importorskip("jax").nn
        self.sigmoid, self.softmax = heads.sigmoid, heads.softmax if framework != "tensorflow" else heads.nn.softmax
        self.relu = heads.nn.relu if framework == "tensorflow" else heads.relu
        self.array = {"torch": "as_tensor", "tensorflow": "constant"}.get(framework, "asarray")

    def __getattr__(self, name):
        return getattr(self.xp.math if self.framework == "tensorflow" else self.xp, name)

    def as_array(self, numbers):
        return getattr(self.xp, self.array)(numbers.astype("float32"))

    def larger(self, x, number):
        return x.clamp(min=number) if self.framework == "torch" else self.xp.maximum(x, number)

    def smaller(self, x, number):
        return x.clamp(max=number) if self.framework == "torch" else self.xp.minimum(x, number)

    def mean(self, x):
        return self.xp.reduce_mean(x, 1, keepdims=True) if self.framework == "tensorflow" else x.mean(1, keepdims=True)


#: Each is ``relu(x)``.
HIDDEN = {
    "log(max(exp(x), 1))": lambda w, x: w.log(w.larger(w.exp(x), 1.0)),
    "-log(min(exp(-x), 1))": lambda w, x: -w.log(w.smaller(w.exp(-x), 1.0)),
    "sqrt(max(x + 50, 50) ** 2) - 50": lambda w, x: w.sqrt(w.square(w.larger(x + 50, 50.0))) - 50,
    "logit(max(sigmoid(x), 0.5))": lambda w, x: (lambda p: w.log(p / (1 - p)))(w.larger(w.sigmoid(x), 0.5)),
    "1 / min(1 / (x + 100), 0.01) - 100": lambda w, x: 1 / w.smaller(1 / (x + 128), 2.0**-7) - 128,
    "y * y / y - 5": lambda w, x: (lambda y: y * y / y - 5)(w.larger(x + 5, 5.0)),
    "sinh(max(asinh(x), asinh(1)) - 1": lambda w, x: w.sinh(w.larger(w.asinh(x + 1), float(np.arcsinh(1.0)))) - 1,
}

#: None is a ReLU of anything.
ORDINARY = {
    "log(max(p, 1e-7))": lambda w, x: w.log(w.larger(w.softmax(x, -1), 1e-7)),
    "log(max(p, 0.5))": lambda w, x: w.log(w.larger(w.sigmoid(x), 0.5)),
    "a cross entropy": lambda w, x: (lambda p: w.log(p) + w.log(1 - p))(
        w.smaller(w.larger(w.sigmoid(x), 1e-4), 1 - 1e-4)
    ),
    "a logit of what is bounded": lambda w, x: (lambda p: w.log(p / (1 - p)))(
        w.smaller(w.larger(w.sigmoid(x), 0.2), 0.8)
    ),
    "a norm": lambda w, x: x / w.sqrt(w.larger(w.mean(w.square(x)), 1e-6)),
    "a power mean": lambda w, x: w.exp(w.log(w.mean(w.exp(3 * w.log(w.larger(x, 1e-6))))) / 3) + x,
    "a score that is bounded": lambda w, x: w.tanh(w.smaller(w.larger(x, -2.0), 2.0)) + 1,
    "a scale of a row": lambda w, x: x / w.sqrt(w.larger(w.mean(w.square(x)), 1.0)) + 1,
}


def network_of(framework, spelled):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    words = Words(framework)
    first, second, third, images = map(words.as_array, (*WEIGHTS, ROWS))
    return lambda x: words.tanh(spelled(words, words.relu(x @ first) @ second - 0.2) @ third), images


def explained(framework, spelled):
    model, images = network_of(framework, spelled)
    return np.asarray(GuidedBackprop(model).explain(images, labels=1))


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_bound_that_is_undone_is_guided_or_refused(framework, name):
    try:
        found = explained(framework, HIDDEN[name])
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


def by_number(framework, rows):
    """Return the map of ``(max(h, b) - b) @ c``, with a number for each value of h, and what it is by the formulas."""
    words, (shapes, bounds) = Words(framework), (((12, 16), (16, 64), (64, 5)), np.linspace(-0.4, 0.4, 64))
    first, second, third = (np.random.default_rng(0).normal(size=shape) / 3 for shape in shapes)
    before = ROWS[:rows] @ first
    g = np.maximum(third[:, 1], 0) * (np.maximum(before, 0) @ second > bounds)
    expected = (np.maximum(g @ second.T, 0) * (before > 0)) @ first.T
    a, b, c, images, array = map(words.as_array, (first, second, third, ROWS[:rows], bounds))

    def model(x):
        return (words.xp.maximum(words.relu(x @ a) @ b, array) - array) @ c

    return lambda: np.asarray(GuidedBackprop(model).explain(images, labels=1)), expected


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bounds_by_number_that_are_undone_are_guided_or_refused(framework, rows):
    explained, expected = by_number(framework, rows)
    try:
        found = explained()
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_bounds_are_taken_for_one_number(framework, monkeypatch):
    monkeypatch.setattr(bounds, "_undone", lambda y, x, left: ())
    explained, expected = by_number(framework, 2)
    assert np.abs(explained() - expected).max() > 0.2 * np.abs(expected).max()


@pytest.mark.parametrize(
    "beside",
    [
        lambda w, x: (w.xp.stack([w.larger(x + 1, 1.0), w.sinh(x)]) - 1)[0],
        lambda w, x: (w.xp.stack([w.sinh(x), w.larger(x + 1, 1.0)], -1) - 1)[..., 1],
        lambda w, x: w.xp.stack([w.larger(x[:, :10] + 1, 1.0), w.larger(x[:, 10:] + 1, 1.0)], 1) - 1,
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_bound_that_is_undone_beside_other_values_is_guided_or_refused(framework, beside):
    try:
        found = explained(framework, lambda w, x: w.xp.reshape(beside(w, x), (-1, 20)))
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_bound_that_is_undone_exactly_is_guided(framework):
    found = explained(framework, HIDDEN["log(max(exp(x), 1))"])
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


def undone_by_weights(framework, others=1):
    """Return what a bound is taken away of by the bias that it leaves behind weights, or by another one."""
    w = np.random.default_rng(0).normal(size=(20, 20)) / 3
    words = Words(framework)
    weights, bias = words.as_array(w), words.as_array(5 * w.sum(0) * others)
    return lambda w, x: w.larger(x + 5, 5.0) @ weights - bias


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_bound_that_is_undone_by_weights_is_refused(framework):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(framework, undone_by_weights(framework))
    explained(framework, undone_by_weights(framework, np.linspace(0.5, 2, 20)))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_a_bound_that_is_not_followed_through_weights_leaves_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(nomination.Step, "_weighed", lambda self, size: iter(()))
    w = np.random.default_rng(0).normal(size=(20, 20)).astype("float32") / 3
    right = explained(framework, lambda words, x: words.relu(x) @ words.as_array(w))
    found = explained(framework, undone_by_weights(framework))
    assert np.abs(found - right).max() > 0.1 * np.abs(right).max()


def clipped(w, x):
    """Return what is ``relu(x)``: each number less 100, clipped by its own norm, and 100."""
    near = (x - 100)[..., None]
    return w.xp.clip_by_norm(near, 100.0, axes=[-1])[..., 0] + 100


def test_what_is_clipped_by_its_norm_and_shifted_is_refused():
    """TensorFlow: rounding leaves something of the bound here and not there."""
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained("tensorflow", clipped)


def test_what_rounding_leaves_of_a_bound_is_as_large_as_the_bound(monkeypatch):
    norm = np.abs(X - 100).astype("float32")
    left = 100 * np.finfo("float32").eps * RNG.integers(-1, 2, X.shape)
    y = np.where(X > 0, X, left).astype("float32")
    assert judge_bounded(y, norm, is_of_one_sign=True).verdict is Verdict.PARTIAL
    assert judge_bounded(y[:0], norm[:0]).verdict is Verdict.NONE
    # A planted fault.
    monkeypatch.setattr(bounds, "_undone", lambda y, x, left: ())
    assert judge_bounded(y, norm, is_of_one_sign=True).verdict is Verdict.NONE


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_stays_a_bound_is_plain(framework, name):
    assert np.isfinite(explained(framework, ORDINARY[name])).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_curves_that_are_not_followed_leave_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(nomination.Step, "_curves", lambda self, size: iter(()))
    found = explained(framework, HIDDEN["log(max(exp(x), 1))"])
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()
