"""A choice among numbers, some of which are constants: a ReLU of what is no value of the model, or none."""

import numpy as np
import pytest

from guided_backprop.backends.choices import judge_choice
from guided_backprop.backends.notes import Choice
from guided_backprop.backends.spelling import Verdict

RNG = np.random.default_rng(0)
# Numbers of three runs, in pairs.
PAIRS = RNG.normal(size=(3, 5, 16, 2))


def beside(constant, places=slice(None)):
    """Return the pairs with a constant in place of the second ones."""
    pairs = PAIRS.copy()
    pairs[:, :, places, 1] = constant
    return pairs


def verdict(x, choose=lambda look: look.max(-1), choice=Choice.AMONG, **known):
    return judge_choice([(choose(look), look) for look in x], choice, **known).verdict


RELUS = {
    "0": beside(0.0),
    "another number": beside(0.5),
    "many numbers": beside(RNG.normal(size=16)),
    "in half of the places": beside(0.0, slice(8)),
    "in one place": beside(0.0, slice(3, 4)),
}
NONE = {
    "no constant": PAIRS,
    "a constant that is chosen never": beside(-1e9),
    "no number at all": beside(-np.inf),
    "not always the same": np.where(RNG.random((3, 50, 16, 2)) < 0.3, 0.0, RNG.normal(size=(3, 50, 16, 2))),
}


@pytest.mark.parametrize("name", RELUS)
def test_a_choice_among_constants_is_a_relu(name):
    assert verdict(RELUS[name]) is Verdict.PARTIAL
    assert verdict(-RELUS[name], lambda look: look.min(-1)) is Verdict.CONCAVE
    # Of the order, the largest is left.
    assert verdict(np.sort(RELUS[name], -1), lambda look: look[..., 1]) in (Verdict.PARTIAL, Verdict.NONE)


@pytest.mark.parametrize("name", NONE)
def test_other_choices_are_none(name):
    assert verdict(NONE[name]) is Verdict.NONE


def test_what_is_never_negative_is_closed_by_nothing():
    x = np.abs(beside(0.0)) * (RNG.random(PAIRS.shape) < 0.5)
    assert verdict(x, is_of_one_sign=True) is Verdict.NONE
    assert verdict(x) is Verdict.PARTIAL


def test_to_put_in_order_closes_nothing():
    assert verdict(beside(0.0), lambda look: np.sort(look, -1)) is Verdict.NONE


def test_a_pool_sees_what_is_around():
    """At the border alone it is none; where all of it sees constants it is a ReLU."""
    around = np.pad(RNG.normal(size=(3, 5, 12)), ((0, 0), (0, 0), (1, 2)))
    pool = lambda look: np.lib.stride_tricks.sliding_window_view(look, 3, -1).max(-1)  # noqa: E731
    assert verdict(around, pool, Choice.AROUND) is Verdict.NONE
    assert verdict(around, pool) is Verdict.PARTIAL
    assert verdict(beside(0.0), choice=Choice.AROUND) is Verdict.PARTIAL


def test_few_numbers_tell_nothing():
    assert verdict(beside(0.0)[:1]) is Verdict.UNSETTLED
    assert verdict(np.abs(beside(0.0))[:, :2, :3] + [0.5, 0.0]) is Verdict.UNSETTLED
