"""Leaky ReLUs some of whose slopes are 0: ReLUs there, by the numbers in them, however few values tell of it."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import curves
from guided_backprop.backends.curves import Curve, curve_of, parts_of

DRAWN = np.random.default_rng(0)
WEIGHTS, IMAGES = DRAWN.normal(size=(3, 6, 6)), DRAWN.normal(size=(3, 6))
SLOPES = np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
# One of them, of a column in which a single value is closed.
CLOSED = np.where(np.arange(6) == 2, 0, SLOPES)
ROWS = np.array([[1.0], [2.0], [1.0]])
FRAMEWORKS = ["torch", "jax", "tensorflow"]
# JAX works in float32 here.
TOLERANCES = {framework: {"rtol": 1e-9, "atol": 1e-12} for framework in FRAMEWORKS} | {
    "jax": {"rtol": 1e-4, "atol": 1e-5}
}


class Library:
    """What the forms need of a framework, under one name each."""

    def __init__(self, framework):
        self.xp = xp = pytest.importorskip({"jax": "jax.numpy"}.get(framework, framework))
        self.array = getattr(xp, {"torch": "as_tensor", "jax": "asarray", "tensorflow": "constant"}[framework])
        self.relu = {"torch": xp, "jax": pytest.importorskip("jax").nn, "tensorflow": getattr(xp, "nn", xp)}[
            framework
        ].relu
        self.where, self.larger = xp.where, xp.maximum
        self.expm1 = xp.math.expm1 if framework == "tensorflow" else xp.expm1
        self.total = xp.reduce_sum if framework == "tensorflow" else xp.sum
        self.zero, self.one = self.array(0.0, dtype=self.array(SLOPES).dtype), self.array(np.ones(6))

    def number(self, mask):
        """Return 1 where a mask is, and 0 elsewhere."""
        return self.where(mask, self.one, 0 * self.one)


#: Each of a library, x and slopes: the activation, and by NumPy what its slopes are.
FORMS = {
    "a choice": (lambda lib, x, s: lib.where(x > 0, x, s * x), lambda s: s),
    "the other choice": (lambda lib, x, s: 0.5 * lib.where(x <= 0, -(-2 * (x * s)), 2 * x), lambda s: s),
    "a factor": (lambda lib, x, s: x * lib.where(2 * x > 0, lib.one, s), lambda s: s),
    "a sum of masks": (lambda lib, x, s: x * (s + (1 - s) * lib.number(x > 0)), lambda s: s),
    "a magnitude": (lambda lib, x, s: (x * (1 + s) + abs(x) * (1 - s)) / 2, lambda s: s),
    "the larger": (lambda lib, x, s: lib.larger(x, s * x), lambda s: s),
    "a PReLU": (lambda lib, x, s: lib.relu(x) - s * lib.relu(-x), lambda s: s),
    "arrays of two sizes": (lambda lib, x, s: lib.where(x > 0, x, s * x * lib.array(ROWS)), lambda s: s * ROWS),
    "another shape": (
        lambda lib, x, s: (lambda y, t: lib.xp.reshape(lib.where(y > 0, y, t * y), (-1, 6)))(
            *(lib.xp.reshape(value, (-1, 2, 3)) for value in (x, s))
        ),
        lambda s: s,
    ),
    "an array along rows": (lambda lib, x, s: lib.where(x > 0, x, s / lib.total(s) * x), lambda s: s / s.sum()),
}


def model_of(lib, activation, slopes):
    """Return a model with a ReLU, and behind it an activation of these slopes."""
    first, second, last, slopes = map(lib.array, (*WEIGHTS, slopes))
    return lambda x: activation(lib, lib.relu(x @ first) @ second - 0.3, slopes) @ last


def wanted(derivative):
    """Return the guided map where the activation keeps its derivative, a function of its input."""
    first, second, last = WEIGHTS
    x = IMAGES @ first
    g = last[:, 1] * derivative(np.maximum(x, 0) @ second - 0.3)
    return np.where(x > 0, np.maximum(g @ second.T, 0), 0) @ first.T


def explained(framework, activation, slopes):
    lib = Library(framework)
    return np.asarray(GuidedBackprop(model_of(lib, activation, slopes)).explain(lib.array(IMAGES), 1).attribution)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_slope_of_0_is_that_of_a_relu_and_refused(framework, form):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(framework, FORMS[form][0], CLOSED)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_slopes_are_those_of_a_leaky_relu(framework, form):
    activation, of = FORMS[form]
    found = explained(framework, activation, SLOPES)
    np.testing.assert_allclose(found, wanted(lambda x: np.where(x > 0, 1, of(SLOPES))), **TOLERANCES[framework])


#: What looks like one in part, and is none: of a library and x, and its derivative by NumPy.
ORDINARY = {
    "an ELU of two choices": (
        lambda lib, x, s: lib.where(x > 0, x, lib.expm1(lib.where(x > 0, lib.zero, x))),
        lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
    ),
    "an ELU of an array": (
        lambda lib, x, s: lib.where(x > 0, x, s * lib.expm1(lib.where(x > 0, lib.zero, x))),
        lambda x: np.where(x > 0, 1, SLOPES * np.exp(np.minimum(x, 0))),
    ),
    "a constant mask": (
        lambda lib, x, s: lib.where(lib.array(CLOSED) > 0, x, lib.zero),
        lambda x: np.where(CLOSED > 0, 1, 0) + 0 * x,
    ),
    "slopes that another value chooses": (
        lambda lib, x, s: lib.where(lib.total(x * x) > 0, x, lib.array(CLOSED) * x),
        lambda x: np.ones_like(x),
    ),
}


@pytest.mark.parametrize("case", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_the_numbers_make_no_relu_of_keeps_its_derivative(framework, case):
    activation, derivative = ORDINARY[case]
    found = explained(framework, activation, SLOPES)
    np.testing.assert_allclose(found, wanted(derivative), **TOLERANCES[framework])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_values_alone_miss_one_slope_of_0(framework, monkeypatch):
    monkeypatch.setattr(curves, "curve_of", lambda *_: None)
    found = explained(framework, FORMS["a sum of masks"][0], CLOSED)
    assert np.abs(found - wanted(lambda x: (x > 0) * 1.0)).max() > 1e-3


class Expression:
    """A graph of no framework: each value is a word with operands, a number, an array, or x."""

    def made(self, value):
        return value if isinstance(value, tuple) else None

    def number(self, value):
        return float("nan") if value in ARRAYS else None


ARRAYS = {"slopes": CLOSED, "rows": ROWS, "others": np.ones(4), "zeros": np.zeros(2)}
MASK = ("greater", ("x", 0.0))


def leaky(slopes):
    return ("where", (MASK, "x", ("mul", (slopes, "x"))))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (leaky("slopes"), Curve(True, False, False, False, False)),
        (("neg", (leaky("slopes"),)), Curve(False, True, False, False, False)),
        (leaky("zeros"), Curve(True, False, True, False, False)),
        (leaky(0.1), Curve(False, False, False, True, True)),
        (leaky("rows"), Curve(False, False, False, True, True)),
        (("where", (("logical_and", (MASK, "slopes")), "x", 0.0)), Curve(True, False, True, False, False)),
        (("mul", ("slopes", "x")), Curve(False, False, False, False, False)),
        (("maximum", ("x", "slopes")), Curve(True, False, False, False, False)),
        (("clamp", ("x", "slopes", 6.0)), Curve(True, False, False, False, False)),
        (("clamp", ("x", 0.0, 6.0)), Curve(True, False, True, False, False)),
        # Shifted by arrays it is a whole one, though not of x in all places.
        (("maximum", (("sub", ("x", "slopes")), 0.0)), Curve(True, False, True, False, False)),
        (("softplus", ("x",)), Curve(False, False, False, False, False)),
        (("where", (MASK, "x", ("expm1", ("x",)))), Curve(False, False, False, True, False)),
        # Of what nobody knows, of arrays that do not fit, and of what x is not in, nothing is said.
        (("matmul", ("x", "rows")), None),
        (leaky("others"), Curve(False, False, False, True, True)),
        (("add", (leaky("slopes"), ("mul", ("others", "x")))), None),
        (("add", ("slopes", 1.0)), None),
    ],
)
def test_what_a_value_is_of_another_one(value, expected):
    assert curve_of(value, parts_of(value, "x", Expression(), ARRAYS.get)) == expected


def test_so_many_slopes_are_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr(curves, "_MOST_COLUMNS", 4)
    value = ("add", (leaky("slopes"), ("mul", (0.0, ("mul", ("rows", "x"))))))
    assert curve_of(value, parts_of(value, "x", Expression(), ARRAYS.get)) == Curve(True, False, False, False, False)


def learned(framework):
    """Return a method whose model is given its slopes by a weight, how these are set, and the images."""
    if framework == "jax":
        nnx, jnp = pytest.importorskip("flax.nnx"), pytest.importorskip("jax.numpy")

        class Model(nnx.Module):
            def __init__(self):
                self.slopes = nnx.Param(np.asarray(SLOPES, "float32"))

            def __call__(self, x):
                return model_of(Library("jax"), FORMS["a choice"][0], self.slopes[...])(x)

        model = Model()
        return GuidedBackprop(model), lambda slopes: model.slopes.set_value(jnp.asarray(slopes, "float32"))
    lib = Library(framework)
    slopes = lib.array(SLOPES.copy()) if framework == "torch" else lib.xp.Variable(SLOPES)
    first, second, last = map(lib.array, WEIGHTS)
    activation = FORMS["a sum of masks"][0]
    method = GuidedBackprop(lambda x: activation(lib, lib.relu(x @ first) @ second - 0.3, slopes) @ last)
    return method, lambda new: slopes.copy_(lib.array(new)) if framework == "torch" else slopes.assign(new)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_slopes_that_are_learned_count_as_they_are_in_each_call(framework):
    (method, assign), images = learned(framework), Library(framework).array(IMAGES)
    expected = wanted(lambda x: np.where(x > 0, 1, SLOPES))
    for _ in range(2):
        np.testing.assert_allclose(np.asarray(method.explain(images, 1)), expected, **TOLERANCES[framework])
        assign(CLOSED)
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            method.explain(images, 1)
        assign(SLOPES)
