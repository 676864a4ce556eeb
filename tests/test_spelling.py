"""The judgement of values: what is a gate, what is none, and what values cannot tell."""

import numpy as np
import pytest

from guided_backprop.backends import rows, spelling
from guided_backprop.backends.evidence import other_images
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict, judge

SHAPE = (12, 8, 3, 3)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=SHAPE)
BY_CHANNEL = np.linspace(-0.5, 1.5, SHAPE[1]).reshape(1, -1, 1, 1)
BY_PLACE = RANDOM.uniform(0.5, 1.5, size=(1, *SHAPE[1:]))
IN_PLACES = np.arange(np.prod(SHAPE[1:])).reshape(SHAPE[1:]) % 3 == 0


def relu(x):
    return np.maximum(x, 0)


CASES = {
    "relu": (relu, Verdict.CONVEX),
    "of the negative": (lambda x: relu(-x), Verdict.CONVEX),
    "times 2": (lambda x: 2 * relu(x), Verdict.CONVEX),
    "times a channel's number": (lambda x: relu(x) * (BY_CHANNEL + 1), Verdict.CONVEX),
    "times a place's number": (lambda x: relu(x) * BY_PLACE, Verdict.CONVEX),
    "above a threshold": (lambda x: np.where(x > 0.7, x, 0), Verdict.CONVEX),
    "above a channel's threshold": (lambda x: np.where(x > BY_CHANNEL, x, 0), Verdict.CONVEX),
    "beyond a channel's threshold": (lambda x: relu(x - BY_CHANNEL), Verdict.CONVEX),
    "closed to another number": (lambda x: np.where(x > 0, x, -0.5), Verdict.CONVEX),
    "with a second mask": (lambda x: np.where((x > 0) & ~IN_PLACES, x, 0), Verdict.CONVEX),
    "a window": (lambda x: np.where((x > 0) & (x < 1), x, 0), Verdict.PARTIAL),
    "minimum": (lambda x: np.minimum(x, 0), Verdict.CONCAVE),
    "negative": (lambda x: -relu(x), Verdict.CONCAVE),
    "times numbers of both signs": (lambda x: relu(x) * BY_CHANNEL, Verdict.CONCAVE),
    "in places": (lambda x: np.where((x > 0) | IN_PLACES, x, 0), Verdict.PARTIAL),
    "times something": (lambda x: relu(x) * np.cos(np.arange(x.size)).reshape(x.shape), Verdict.PARTIAL),
    "identity": (lambda x: x, Verdict.NONE),
    "leaky": (lambda x: np.where(x > 0, x, 0.1 * x), Verdict.NONE),
    "magnitude": (np.abs, Verdict.NONE),
    "shifted": (lambda x: x + BY_CHANNEL, Verdict.NONE),
    "hard shrink": (lambda x: x * (np.abs(x) > 0.5), Verdict.NONE),
    "a mask of something else": (lambda x: x * (np.cos(np.arange(x.size)).reshape(x.shape) > 0), Verdict.NONE),
    "padding": (lambda x: x * (np.arange(3) < 2), Verdict.NONE),
    "minus infinity where padded": (lambda x: np.where(np.arange(3) < 2, x, -np.inf), Verdict.NONE),
    "another gate's mask": (lambda x: np.roll(x, 1) * (x > 0), Verdict.PARTIAL),
    "closed above in one channel": (lambda x: x * ((x > 0) == (np.arange(3) < 2)), Verdict.PARTIAL),
    "beside the opposite": (lambda x: x[..., None] * np.stack([x > 0, x <= 0], -1), Verdict.PARTIAL),
    "in front of a curve": (lambda x: np.stack([relu(x), np.sin(x)]), Verdict.PARTIAL),
    "several of each": (lambda x: x[..., None] * np.stack([np.cos(x), np.roll(x, 1) > 0], -1), Verdict.NONE),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name, dtype):
    function, verdict = CASES[name]
    assert judge(function(X).astype(dtype), X.astype(dtype), 4e-3).verdict is verdict


@pytest.mark.parametrize("name", [name for name, (_, verdict) in CASES.items() if verdict is Verdict.CONVEX])
def test_what_is_closed_is_known(name):
    """Where y has the value that it closes to, it does not change with x; elsewhere it does."""
    function, _ = CASES[name]
    y = function(X)
    found = judge(y, X)
    is_closed = y == found.closed
    moved = np.abs(function(X + 1e-9) - y) > 1e-12
    np.testing.assert_array_equal(moved, ~is_closed)


@pytest.mark.parametrize("shift", [9, -9])
def test_values_of_one_sign_are_no_evidence(shift):
    x = X + shift
    assert judge(relu(x), x).verdict is Verdict.UNSETTLED
    together = np.concatenate([x, *other_images(x)])
    assert judge(relu(together), together).verdict is Verdict.CONVEX
    assert judge(together.copy(), together).verdict is Verdict.NONE


def test_of_what_is_never_negative_nothing_is_told():
    x = relu(X)
    for y in (x, x / (1 + 1e-4 * x * x), 3 * x):
        assert judge(y, x).verdict is Verdict.UNSETTLED


def test_what_is_never_negative_and_masked_by_something_else_is_no_gate():
    """A 0 is on neither side of 0, and tells nothing of a gate there."""
    x, mask = relu(X), np.roll(X, 1) > 0
    assert judge(x * mask, x).verdict is Verdict.NONE
    # Planted: where x changes its sign, the same mask for what is positive alone closes one side in places.
    assert judge(np.where((X > 0) & ~mask, 0, X), X).verdict is Verdict.PARTIAL


def test_what_goes_in_steps_and_is_masked_by_something_else_is_no_gate():
    """Of two values that are one number one is open: that is no threshold; and what is 0 itself is not closed."""
    x = np.zeros((7, 8))
    x[:, ::3], x[::3, 5], x[::4, 6:] = 0.25, 0.75, 0.25
    assert judge(np.where(np.arange(8) < 6, x, 0), x).verdict is Verdict.NONE
    x[:, ::3] = 0.5
    assert not judge(np.where(np.arange(8) < 6, x, 0), x).is_gate


@pytest.mark.parametrize("turn", [1, -1])
def test_what_is_never_negative_is_no_relu_where_a_mask_lets_it_through(turn):
    """Of probabilities, those above 0.5: none is below 0, where a ReLU closes; of what is lessened by 0.5, half are."""
    p = 1 / (1 + np.exp(-X))
    assert judge(turn * np.where(p > 0.5, p, 0), turn * p, is_of_one_sign=True).verdict is Verdict.NONE
    assert judge(turn * p * BY_PLACE * (p > 0.5), turn * p, is_of_one_sign=True).verdict is Verdict.NONE
    assert judge(relu(p - 0.5), p, is_of_one_sign=True).verdict is Verdict.CONVEX
    assert judge(np.maximum(p, 0.5), p, is_of_one_sign=True).verdict is Verdict.CONVEX
    # Planted: as nothing is known of its sign, it is a gate.
    assert judge(np.where(p > 0.5, p, 0), p).verdict is Verdict.CONVEX


def test_the_largest_of_a_row_are_no_gate():
    """Chosen by rank, they are compared with each other; on other images other sizes are among the largest."""
    together = np.concatenate([X, *other_images(X), X - 2]).reshape(-1, 72)
    kept = np.where(together >= np.sort(together, axis=1)[:, -9:-8], together, 0)
    assert judge(kept, together, ranks=Ranks.ALL).verdict is Verdict.NONE


def test_what_is_less_its_smallest_is_no_gate_of_it(monkeypatch):
    """It is 0 once in each row, of what is below 0 itself; a mask that closes as many elsewhere is a gate."""
    x = np.random.default_rng(1).normal(size=(3, 8, 6, 6))
    low, high = x.min((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    for y in ((x - low) / (high - low), (high - x) / (high - low)):
        assert judge(y, x, ranks=Ranks.SOME).verdict is Verdict.NONE
        with monkeypatch.context() as planted:
            planted.setattr(spelling, "_are_ends_of_rows", lambda *_: False)
            assert judge(y, x, ranks=Ranks.SOME).verdict is not Verdict.NONE
    second = x == np.sort(x.reshape(24, 36))[:, 1].reshape(3, 8, 1, 1)
    assert judge(np.where(second, 0, x), x).verdict is Verdict.PARTIAL


def test_planted_fault_two_values_refute():
    x = RANDOM.normal(size=(300,))
    y = relu(x)
    y[np.flatnonzero(x < -0.1)[7]] = 0.123
    y[np.flatnonzero(x > 0.1)[7]] = 0
    assert judge(y, x).verdict is Verdict.NONE
    # They tell of their own channels alone.
    assert judge(y.reshape(50, 6), x.reshape(50, 6)).verdict is Verdict.PARTIAL


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_a_gate_in_some_channels_is_seen_whatever_closes_the_others(axis, shift, monkeypatch):
    x, z = np.random.default_rng(2).normal(size=(2, 6, 8, 5, 8))
    is_own = np.reshape(np.arange(8) < 3, (8, 1, 1) if axis == 1 else (8,))
    assert judge(x * np.where(is_own, x > shift, z > 0), x).verdict is Verdict.PARTIAL
    assert judge(np.where(np.where(is_own, x > shift, z > 0), x - shift, 0), x).verdict is Verdict.PARTIAL
    # Planted: what closes them all is made of something else, of rows, or of the images by their rank.
    for mask in (z > 0, z[:, :1] > 0, x.sum((1, 2, 3), keepdims=True) > 0, np.abs(x) > 0.7):
        assert judge(x * mask, x).verdict is Verdict.NONE
    few = np.s_[:1, :, :2, :2] if axis == 1 else np.s_[:1, :2, :2]
    y = x * np.where(is_own, x > 0, z > 0)
    assert not judge(y[few], x[few]).is_gate
    monkeypatch.setattr(spelling, "_is_gate_in_channels", lambda *_: False)
    assert judge(y, x).verdict is Verdict.NONE


def test_what_a_mask_closes_along_a_whole_axis_it_chose_once(monkeypatch):
    """Keys that are padding are so for all queries: two images tell no gate."""
    x = np.random.default_rng(3).normal(size=(2, 16, 16))
    mask = np.ones((2, 1, 16), bool)
    mask[0, 0, [3, 5]], x[:, :, 3] = False, np.abs(x[:, :, 3]) * [[-1], [1]]
    y = x * mask
    assert not judge(y, x).is_gate
    monkeypatch.setattr(rows, "_chosen", lambda is_closed: is_closed)
    assert judge(y, x).verdict is Verdict.PARTIAL


def test_rounding_is_no_gate_and_rounding_from_0_is_one():
    x = np.random.default_rng(0).normal(size=(8, 50))
    assert judge(np.round(4 * x) / 4, x).verdict is Verdict.NONE
    assert judge(np.clip(np.round(4 * x) / 4, 0, None), x).is_gate
    assert judge(np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), x - 0.5).verdict is Verdict.NONE


def test_what_rounding_leaves_of_a_sum_is_closed():
    x = X.ravel()[:48].astype(np.float32).reshape(4, 12)
    magnitude = np.abs(x) * (1 + np.finfo(np.float32).eps * (np.arange(48) % 3 > 0).reshape(x.shape))
    assert judge((x + magnitude.astype(np.float32)) / 2, x).verdict is Verdict.PARTIAL
    # A curve that comes close to 0 closes nothing, as exp does far below.
    assert judge(np.exp(8 * x), x).verdict is Verdict.NONE


def test_few_values_beside_constants_are_no_evidence():
    """A mask of the model's own closes what it closes by its place; a few negative numbers may be among that."""
    x = np.abs(RANDOM.normal(size=(6, 8))) * np.where(np.arange(8) == 6, -1, 1)
    mask = np.arange(8) % 3 > 0
    assert judge(np.where(x > 0, x * mask, 0), x).verdict is not Verdict.CONVEX
    x = RANDOM.normal(size=(6, 8))
    assert judge(np.where(x > 0, x * mask, 0), x).verdict is Verdict.CONVEX
    # One negative number in eight is closed by a mask of anything as often as not.
    x = np.abs(RANDOM.normal(size=(1, 8))) * np.where(np.arange(8) == 6, -1, 1)
    assert judge(np.where(x > 0, x, 0), x).verdict is Verdict.UNSETTLED


@pytest.mark.parametrize("place", [np.s_[:, 1:4], np.s_[:, :, 1:2], np.s_[:1, 5, 1:7, 1:7]])
def test_a_few_channels_or_rows_of_a_large_map_are_seen(place):
    x = np.random.default_rng(0).normal(size=(2, 64, 44, 44))
    y = x.copy()
    y[place] = np.maximum(y[place], 0)
    assert judge(y, x).verdict is Verdict.PARTIAL
    # Of what closes both signs alike, as a mask of its own, nothing is a gate.
    y[place] = np.where(np.arange(x.shape[-1]) % 2, x, 0)[place]
    assert judge(y, x).verdict is Verdict.NONE


@pytest.mark.parametrize("left", [0.0, 1e-15])
def test_of_several_results_of_each_number_those_with_values_alike_are_looked_at(left):
    asked = []

    def how(part, x):
        asked.append(part)
        return judge(part, x)

    y = np.stack([np.tanh(X), np.exp(X)], -1)
    assert spelling.judge_parts(y, X, how, is_by_size=True).verdict is Verdict.NONE
    assert not asked
    # Rounding may leave something of what is closed.
    closed = np.where(X > 0, X, left * RANDOM.normal(size=X.shape))
    assert spelling.judge_parts(np.stack([np.tanh(X), closed], -1), X, how, is_by_size=True).is_gate
    assert asked
