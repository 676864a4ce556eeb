"""Ordinary parts of networks that look like ReLUs, or have one beside: none is refused, and each ReLU is guided."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import nomination
from test_slopes import FRAMEWORKS, TOLERANCES, Library

DRAWN = np.random.default_rng(1)
WEIGHTS = [DRAWN.normal(size=size) / 3 for size in ((8, 20), (20, 20), (20, 5))]
IMAGES = DRAWN.normal(size=(5, 8))
#: In some groups nothing is chosen from.
GROUPS = np.arange(3)[:, None] * np.arange(20) % 3 > 0
SCALES = np.array([[0.5], [1.0], [1.5]])


def reduced(lib, how, x, axis):
    """Return the sum or the largest of values along an axis, which is left out."""
    names = {"torch": {"sum": "sum", "max": "amax"}, "tensorflow": {"sum": "reduce_sum", "max": "reduce_max"}}
    return getattr(lib.xp, names.get(lib.xp.__name__, {}).get(how, how))(x, axis)


def explained(framework, activation):
    """Return the guided map of a model with a ReLU, and an activation behind it."""
    lib = Library(framework)
    first, second, last = map(lib.array, WEIGHTS)
    model = lambda x: activation(lib, lib.relu(x @ first) @ second - 0.3) @ last  # noqa: E731
    return np.asarray(GuidedBackprop(model).explain(lib.array(IMAGES), 1))


def by_size(lib, x):
    """Return a ReLU as a share of all sizes of its row, and of the largest one."""
    total, most = (reduced(lib, how, abs(x), -1)[:, None] for how in ("sum", "max"))
    return lib.relu(x) / (total + most)


def largest(lib, x):
    """Return the largest of each group, and 0 of one that is empty."""
    choices = lib.where(lib.array(GROUPS), x[:, None] * lib.array(SCALES), lib.array(np.full((3, 20), -1e9)))
    most = reduced(lib, "max", choices, 1)
    return lib.where(most < -1e8, lib.zero, most)


def wanted(back):
    """Return the guided map, from the formulas alone; ``back`` is what leaves the activation, of what it was given."""
    first, second, last = WEIGHTS
    outer, inner = IMAGES @ first, np.maximum(IMAGES @ first, 0) @ second - 0.3
    return np.where(outer > 0, np.maximum(back(inner, last[:, 1] + 0 * inner) @ second.T, 0), 0) @ first.T


def back_by_size(x, g):
    y, sizes = np.maximum(x, 0), np.abs(x)
    most = sizes.max(-1, keepdims=True)
    size = sizes.sum(-1, keepdims=True) + most
    by_size = (g * y).sum(-1, keepdims=True) / size**2
    return np.where(x > 0, np.maximum(g / size, 0), 0) - by_size * np.sign(x) * (1 + (sizes == most))


def back_largest(x, g):
    choices = np.where(GROUPS, x[:, None] * SCALES, -np.inf)
    return g * np.where(GROUPS.any(0), SCALES[choices.argmax(1), 0], 0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("activation", "back"), [(by_size, back_by_size), (largest, back_largest)])
def test_what_looks_like_a_relu_keeps_its_derivative(activation, back, framework):
    np.testing.assert_allclose(explained(framework, activation), wanted(back), **TOLERANCES[framework])


def test_planted_fault_what_a_relu_closes_is_judged_again(monkeypatch):
    monkeypatch.setattr(nomination.Step, "candidates", nomination.Step._every_candidate)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained("torch", by_size)


#: Of a library and x, each is a ReLU of x besides the one that is written there.
HIDDEN = {
    "behind weights": lambda lib, x: reduced(
        lib, "sum", (lib.relu(x) / abs(x) * x)[:, :, None] * lib.array(WEIGHTS[1]), 1
    ),
    "a mask behind weights": lambda lib, x: reduced(
        lib, "sum", (lib.relu(x) / abs(x))[:, :, None] * (x[:, :, None] * lib.array(WEIGHTS[1])), 1
    ),
    "a root": lambda lib, x: (lib.relu(x) * abs(x) + 1e-12) ** 0.5,
    "a product that is divided again": lambda lib, x: lib.relu(x) * lib.where(x > 0, x, lib.zero) / (abs(x) + 1e-9),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", HIDDEN)
def test_a_product_with_a_relu_hides_none(name, framework):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(framework, HIDDEN[name])
