"""Known curves that the numbers beside them make a switch of: a pole tells a sign, a shift puts a bend at 0."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends.step import Given
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

PI = float(np.pi)


class Words:
    """What the curves need of a framework, under one name each."""

    def __init__(self, framework):
        self.framework = framework
        self.xp = pytest.importorskip({"jax": "jax.numpy"}.get(framework, framework))
        if framework == "jax":
            self.nn = pytest.importorskip("jax").nn
            self.relu, self.hard_sigmoid, self.hard_swish = self.nn.relu, self.nn.hard_sigmoid, self.nn.hard_swish
        else:
            self.nn = self.xp.nn
            self.relu = self.nn.relu
            self.hard_sigmoid = lambda x: self.nn.relu6(x + 3) / 6
            self.hard_swish = lambda x: x * self.nn.relu6(x + 3) / 6

    def atan(self, x):
        return self.xp.math.atan(x) if self.framework == "tensorflow" else self.xp.arctan(x)

    def array(self, numbers):
        return (self.xp.constant if self.framework == "tensorflow" else self.xp.asarray)(numbers.astype("float32"))

    def mean(self, x):
        mean = self.xp.reduce_mean if self.framework == "tensorflow" else self.xp.mean
        return mean(x, 1, keepdims=True)


def angle_between(words, x):
    u = x / 10 + PI / 2
    return x * (u - words.atan(words.xp.tan(u))) / PI


#: Each is ``relu(x)`` for the values of the network.
HIDDEN = {
    "atan of x and 1 / x": lambda words, x: x * (words.atan(x) + words.atan(1 / x)) / PI + x / 2,
    "atan of a quotient": lambda words, x: x * (words.atan(x / 3) + words.atan(3 / x)) / PI + x / 2,
    "tan, and atan of it": angle_between,
    "a hard sigmoid from 0": lambda words, x: words.hard_sigmoid(x / 10 - 3) * 60,
}

#: None is a ReLU of anything.
ORDINARY = {
    "a share of a row": lambda words, x: x / (words.mean(x) + 0.3),
    "a softsign": lambda words, x: x / (1 + abs(x)),
    "a quotient": lambda words, x: words.atan(x / (words.xp.tanh(x) + 2)),
    "a quotient of either sign": lambda words, x: words.xp.tanh(x / (x - 20)),
    "a tangent": lambda words, x: words.xp.tan(words.xp.tanh(x)),
    "a hard sigmoid": lambda words, x: x * words.hard_sigmoid(x),
    "a hard sigmoid of a shifted value": lambda words, x: words.hard_sigmoid(x / 2 - 2.5),
    "a hard sigmoid as steep": lambda words, x: words.hard_sigmoid(2 * x + 0.5) * words.hard_sigmoid(1 - x),
    "a hard swish": lambda words, x: words.hard_swish(x - 1),
}


def explained(framework, spelled):
    words = Words(framework)
    first, second, third, images = map(words.array, (*WEIGHTS, ROWS))
    inner = lambda x: words.relu(x @ first) @ second - 0.2  # noqa: E731
    model = lambda x: words.xp.tanh(spelled(words, inner(x)) @ third)  # noqa: E731
    return np.asarray(GuidedBackprop(model).explain(images, labels=1))


FRAMEWORKS = ["jax", "tensorflow"]


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_curve_that_is_a_switch_is_guided_or_refused(framework, name):
    try:
        found = explained(framework, HIDDEN[name])
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_hard_sigmoid_from_0_is_guided(framework):
    found = explained(framework, HIDDEN["a hard sigmoid from 0"])
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


def test_a_hard_sigmoid_that_falls_from_0_is_guided_where_that_is_taken_away():
    """TensorFlow writes it with a ReLU6, which is a ReLU as it stands."""
    found = explained("jax", lambda words, x: 60 - words.hard_sigmoid(3 - x / 10) * 60)
    np.testing.assert_allclose(found, oracle(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_curves_are_plain(framework, name):
    assert np.isfinite(explained(framework, ORDINARY[name])).all()


@pytest.mark.parametrize("name", ["atan of x and 1 / x", "tan, and atan of it"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_a_pole_that_chooses_nothing_leaves_a_wrong_map(framework, name, monkeypatch):
    monkeypatch.setattr(Given, "chooses", Given._holds_taint)
    found = explained(framework, HIDDEN[name])
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_a_curve_that_is_known_by_its_name_leaves_a_wrong_map(framework, monkeypatch):
    for module in ("curves", "jax.graph.composites"):
        monkeypatch.setattr(f"guided_backprop.backends.{module}.is_switch", lambda last, x, view: False)
    found = explained(framework, HIDDEN["a hard sigmoid from 0"])
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()
