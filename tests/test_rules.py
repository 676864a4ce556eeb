"""The rules as functions, against the table of the paper written once more; and NaN and infinities."""

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

from guided_backprop.rules import DECONV, GUIDED, OPEN, PLAIN, SMOOTH, Guided, ReluRule

X = np.array([5.0, 0.0, -5.0, 10.0])
G = np.array([1.0, -2.0, 3.0, -4.0])
TABLE = {
    PLAIN: lambda x, g: g * (x > 0),
    DECONV: lambda x, g: g * (g > 0),
    GUIDED: lambda x, g: g * (x > 0) * (g > 0),
    OPEN: lambda x, g: g,
}
FUNCTIONS = {
    "numpy": (np, np.asarray),
    "torch": (torch, torch.tensor),
    "jax": (jnp, jnp.asarray),
    "tensorflow": (tf.experimental.numpy, tf.constant),
}


def leaving(rule: ReluRule, x: np.ndarray, g: np.ndarray, framework: str = "numpy") -> np.ndarray:
    xp, array = FUNCTIONS[framework]
    derived = np.where(x > 0, g, np.zeros_like(g))
    return np.asarray(rule.leaving(array(g), array(derived), array(x), array(np.maximum(x, 0)), xp))


def test_the_worked_example():
    assert leaving(PLAIN, X, G).tolist() == [1, 0, 0, -4]
    assert leaving(DECONV, X, G).tolist() == [1, 0, 3, 0]
    assert leaving(GUIDED, X, G).tolist() == [1, 0, 0, 0]
    assert leaving(OPEN, X, G).tolist() == G.tolist()


@pytest.mark.parametrize("framework", FUNCTIONS)
@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.name)
def test_the_table(rule, framework):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 50)).astype(np.float32)
    x[:5], g[5:10], g[10:12] = 0, 0, (np.inf, -np.inf)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(TABLE[rule](x, g), nan=0.0, posinf=np.inf, neginf=-np.inf)
    found = leaving(rule, x, g, framework)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(leaving(DECONV if rule == GUIDED else GUIDED, x, g, framework), expected)


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.name)
def test_nan_goes_on_unless_the_forward_gate_is_closed(rule):
    found = leaving(rule, np.array([1.0, -1.0]), np.array([np.nan, np.nan]))
    is_gated = rule in (PLAIN, GUIDED)
    assert np.isnan(found).tolist() == [True, not is_gated]


def test_equal_rules_are_one_to_a_backend():
    assert Guided() == GUIDED
    assert hash(Guided()) == hash(GUIDED)
    assert Guided(guides_smooth=True) != GUIDED
    assert len({PLAIN, DECONV, GUIDED, OPEN}) == 4


def test_smooth_activations_are_guided_when_asked_for():
    assert [GUIDED.treatment(name) for name in ("gelu", "tanh")] == ["plain", "plain"]
    assert [Guided(guides_smooth=True).treatment(name) for name in ("gelu", "tanh")] == ["guided", "plain"]
    assert {"gelu", "silu", "prelu"} <= SMOOTH
