"""The largest of several multiples of each number: it tells the sign of that, also behind weights, and no rank."""

from functools import partial

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import noting
from guided_backprop.backends.choices import MANY_ROWS, judge_weighed
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, Library, oracle

FRAMEWORKS = ["jax", "tensorflow", "torch"]
# What says of what is made in a block of what that is made outside.
FORGOTTEN = {"jax": "Taint._origins", "tensorflow": "Body.origins"}
RNG = np.random.default_rng(0)
X, G = RNG.normal(size=(2, MANY_ROWS, 12))


class Multiples(Library):
    """What makes multiples, and chooses among them, under one name in each framework."""

    def __init__(self, framework):
        if framework == "torch":
            self.xp = torch = pytest.importorskip("torch")
            self.relu, self.array = torch.relu, torch.as_tensor
            self.largest, self.smallest = (lambda x: x.amax(-1)), (lambda x: x.amin(-1))
        else:
            super().__init__(framework)
            ends = ("max", "min") if framework == "jax" else ("reduce_max", "reduce_min")
            self.largest, self.smallest = (partial(getattr(self.xp, end), axis=-1) for end in ends)
        self.framework, self.lax = framework, pytest.importorskip("jax.lax") if framework == "jax" else None
        self.joined = self.xp.concat if framework == "tensorflow" else self.xp.concatenate

    def number(self, array):
        return self.array(np.asarray(array, "float32"))

    def times(self, x, *factors):
        """Return each number times some others, which a product of matrices makes of it."""
        return x[..., None] @ self.number([factors])

    def in_order(self, x):
        ordered = self.xp.sort(x, -1)
        return getattr(ordered, "values", ordered)[..., -1]


def mirrored(lib, x):
    """Return x and -x beside each other, number by number: no operation on one number makes them."""
    eye = np.eye(20)
    return lib.xp.reshape(x @ lib.number(np.stack([eye, -eye], -1).reshape(20, 40)), (-1, 20, 2))


def doubled(lib, x):
    half = lib.times(x, 1, -1) * 0.5
    return half + x[..., None] * 0.5


#: Each is ``relu(x) @ w``.
HIDDEN = {
    "a magnitude": lambda lib, x, w: (x @ w + lib.largest(lib.times(x, 1, -1)) @ w) / 2,
    "by a product": lambda lib, x, w: (x @ w + lib.largest(x[..., None] * lib.number([1, -1])) @ w) / 2,
    "side by side": lambda lib, x, w: (x @ w + lib.largest(lib.xp.stack([x, -x], -1)) @ w) / 2,
    "of other sizes": lambda lib, x, w: (x @ w + lib.largest(lib.times(x, 2, -1)) @ w) / 3,
    "of four": lambda lib, x, w: (x @ w + lib.largest(lib.times(x, 1, -1, 0.5, -0.2)) @ w) / 2,
    "the smallest": lambda lib, x, w: (x @ w - lib.smallest(lib.times(x, 1, -1)) @ w) / 2,
    "the last in order": lambda lib, x, w: (x @ w + lib.in_order(lib.times(x, 1, -1)) @ w) / 2,
    "a magnitude of them": lambda lib, x, w: (x @ w + lib.largest(abs(lib.times(x, 1, -1))) @ w) / 2,
    "a shift": lambda lib, x, w: (x @ w + (lib.largest(lib.times(x, 1, -1) + 3) - 3) @ w) / 2,
    "of all at once": lambda lib, x, w: (x @ w + lib.largest(mirrored(lib, x)) @ w) / 2,
    "of two products": lambda lib, x, w: (
        (x @ w + lib.xp.maximum(x @ lib.number(np.eye(20)), x @ lib.number(-np.eye(20))) @ w) / 2
    ),
    "beside x": lambda lib, x, w: lib.joined([x, lib.largest(lib.times(x, 1, -1))], 1) @ (lib.joined([w, w], 0) / 2),
    "behind two layers": lambda lib, x, w: (x @ w + lib.largest(lib.times(x, 1, -1)) @ w) @ lib.number(np.eye(9) / 2),
    "a ReLU itself": lambda lib, x, w: lib.largest(doubled(lib, x)) @ w,
    "what cancels": lambda lib, x, w: lib.largest(lib.xp.stack([x, 0.5 * x - x / 2], -1)) @ w,
}
#: Made in a branch or a loop, chosen outside, or the other way round: ``held`` is what runs it so.
HELD = {
    "made in a branch": lambda held, lib, x, w: (x @ w + lib.largest(held(lambda z: lib.times(z, 1, -1), x)) @ w) / 2,
    "chosen in a branch": lambda held, lib, x, w: (x @ w + held(lib.largest, lib.times(x, 1, -1)) @ w) / 2,
    "both in a branch": lambda held, lib, x, w: (x @ w + held(lambda z: lib.largest(lib.times(z, 1, -1)), x) @ w) / 2,
    "weights in a branch": lambda held, lib, x, w: (
        (x @ w + held(lambda v: v @ w, lib.largest(lib.times(x, 1, -1)))) / 2
    ),
}

#: None is a ReLU of anything.
ORDINARY = {
    "a magnitude alone": (lambda lib, x, w: lib.largest(lib.times(x, 1, -1)) @ w, lambda x, w: np.abs(x) @ w),
    "a leak": (
        lambda lib, x, w: lib.largest(lib.times(x, 1, 0.25)) @ w,
        lambda x, w: np.where(x > 0, x, 0.25 * x) @ w,
    ),
    "a maxout": (
        lambda lib, x, w: lib.largest(lib.xp.reshape(x @ w, (-1, 3, 3))),
        lambda x, w: (x @ w).reshape(-1, 3, 3).max(-1),
    ),
    "the largest of a row": (
        lambda lib, x, w: (x @ w) + lib.largest(x)[:, None],
        lambda x, w: x @ w + x.max(-1, keepdims=True),
    ),
}


def network_of(framework, spelled):
    """Return a model with a ReLU of its own in front of what is spelled."""
    lib = Multiples(framework)
    first, second, third = map(lib.array, WEIGHTS)
    return lambda x: lib.xp.tanh(spelled(lib, lib.relu(x @ first) @ second - 0.2, third)), lib


def explained(framework, spelled, rows=ROWS):
    model, lib = network_of(framework, spelled)
    return np.asarray(GuidedBackprop(model).explain(lib.array(rows), labels=1))


def oracle_of(spelled):
    """Return the guided map of ``tanh(spelled(relu(x @ a) @ b - .2, c))[:, 1]``, by differences behind the ReLU."""
    first, second, third, x = (array.astype(float) for array in (*WEIGHTS, ROWS))
    hidden = np.maximum(x @ first, 0)
    inner = hidden @ second - 0.2
    steps = 1e-6 * np.eye(inner.shape[1])
    ends = [[np.tanh(spelled(inner + side * step, third))[:, 1] for side in (1, -1)] for step in steps]
    g = np.stack([above - below for above, below in ends], 1) / 2e-6
    return np.maximum(g @ second.T, 0) * (hidden > 0) @ first.T


@pytest.mark.parametrize(("name", "rows"), [*((name, 4) for name in HIDDEN), ("a magnitude", 2), ("a ReLU itself", 2)])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_chosen_among_multiples_is_right_or_refused(framework, name, rows):
    try:
        found = explained(framework, HIDDEN[name], ROWS[:rows])
    except OpaqueRegionError:
        return
    assert np.allclose(found, oracle()[:rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["a magnitude", "of all at once", "a ReLU itself"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_multiples_are_not_looked_at(framework, name, monkeypatch):
    monkeypatch.setattr(noting.Noting, "multiplied", [])
    assert np.abs(explained(framework, HIDDEN[name]) - oracle()).max() > 0.2 * np.abs(oracle()).max()


def in_branch(lib, made, x):
    """Run something in a branch that is taken, beside one of other multiples."""
    if lib.framework == "jax":
        return lib.lax.cond(x.sum() < 1e9, made, lambda z: made(0.5 * z), x)
    return lib.xp.cond(lib.xp.reduce_sum(x) < 1e9, lambda: made(x), lambda: made(0.5 * x))


def in_loop(lib, made, x):
    """Run something in each of two turns of a loop, which hand over multiples of one value."""
    if lib.framework == "jax":
        return lib.lax.scan(lambda z, times: (z, made(z) * times), x, lib.number([0.5, 1]))[1][1]
    begin = (0, x, made(x) * 0)
    return lib.xp.while_loop(lambda i, *_: i < 2, lambda i, z, _: (i + 1, z, made(z)), begin)[2]


@pytest.mark.parametrize("held", [in_branch, in_loop])
@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_what_a_branch_or_a_loop_makes_of_it_is_right_or_refused(framework, name, held):
    model, lib = network_of(framework, lambda lib, x, w: HELD[name](partial(held, lib), lib, x, w))
    model = lib.xp.function(model) if framework == "tensorflow" else model
    try:
        found = GuidedBackprop(model).explain(lib.array(ROWS), labels=1)
    except OpaqueRegionError:
        return
    assert np.allclose(found, oracle(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("framework", "held"), [("jax", in_branch), ("tensorflow", in_loop)])
def test_planted_fault_what_blocks_are_given_is_forgotten(framework, held, monkeypatch):
    monkeypatch.setattr(f"guided_backprop.backends.{framework}.hidden.taint." + FORGOTTEN[framework], lambda *_: ())
    model, lib = network_of(framework, lambda lib, x, w: HELD["made in a branch"](partial(held, lib), lib, x, w))
    model = lib.xp.function(model) if framework == "tensorflow" else model
    found = np.asarray(GuidedBackprop(model).explain(lib.array(ROWS), labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_none_keeps_its_derivative(framework, name):
    spelled, same = ORDINARY[name]
    assert np.allclose(explained(framework, spelled), oracle_of(same), rtol=0, atol=1e-4)


def test_what_the_largest_of_a_row_shows_it_shows_for_later_calls(monkeypatch):
    model, lib = network_of("tensorflow", lambda lib, x, w: lib.largest(x)[:, None] @ w[:1])
    method = GuidedBackprop(model)
    first = np.asarray(method.explain(lib.array(ROWS), labels=1))
    monkeypatch.setattr("guided_backprop.backends.tensorflow.hidden.derivatives.Derivatives.towards", None)
    assert np.array_equal(first, np.asarray(method.explain(lib.array(ROWS), labels=1)))


def test_of_what_compared_values_all_that_is_positive_has_to_be_open():
    is_open = X > 0
    assert judge_weighed(X, G * is_open, Ranks.ALL, least_rows=MANY_ROWS) is Verdict.PARTIAL
    is_open[3, np.argmax(X[3])] = False
    assert judge_weighed(X, G * is_open, Ranks.ALL, least_rows=MANY_ROWS) is Verdict.NONE
    # Columns of which nothing comes are no part of it.
    assert judge_weighed(X, G * (X > 0) * (np.arange(12) < 8), Ranks.ALL, least_rows=MANY_ROWS) is Verdict.PARTIAL
