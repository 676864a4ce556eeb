"""A ReLU of x, made of x and of one that is written, where a program shows how: ``x + relu(-x)`` in JAX and TensorFlow.

PyTorch tells it by values and derivatives, see test_beside.py.
"""

import numpy as np
import pytest

from guided_backprop import DeconvNet, GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import curves, sums
from guided_backprop.backends.spelling import Verdict
from networks_hidden import ROWS, WEIGHTS, Library

FRAMEWORKS = ["jax", "tensorflow"]
OPPOSITE = -np.eye(20, dtype="float32")
#: Each is ``relu(x)``; in TensorFlow the first ones are guided, and all others refused.
SPELLED = {
    "a sum": lambda x, lib: x + lib.relu(-x),
    "the other way round": lambda x, lib: lib.xp.maximum(-x, 0.0) + x,
    "a difference": lambda x, lib: x - (-lib.relu(-x)),
    "the opposite of the rest": lambda x, lib: -((-x) - lib.relu(-x)),
    "a multiple": lambda x, lib: (3 * x + lib.relu(-3 * x)) / 3,
    "several of them": lambda x, lib: x + lib.relu(-x) * 0.5 + lib.relu(-x) * 0.5,
    "a magnitude": lambda x, lib: (x + lib.relu(x) + lib.relu(-x)) / 2,
    "a sum of a stack": lambda x, lib: total(lib.xp.stack([x, lib.relu(-x)]), lib),
    "parts of what was put together": lambda x, lib: (lambda b: b[:, :20] + b[:, 20:])(joined([lib.relu(-x), x], lib)),
    "another shape": lambda x, lib: lib.xp.reshape(turned(lib.xp.reshape(x, (-1, 4, 5)), lib), (-1, 20)),
    "beside a number": lambda x, lib: (x + 1 + lib.relu(-x)) - 1,
    "by weights": lambda x, lib: x + lib.relu(x @ OPPOSITE),
    "a bound by weights": lambda x, lib: x + lib.relu(x @ OPPOSITE + 0.5) - 0.5,
    "of a difference": lambda x, lib: (lambda a, b: (a - b) + lib.relu(b - a))(2 * x, lib.xp.tanh(x) + x),
}
WRITTEN = {
    "a bound by weights": lambda x, relu, lib: relu(x - 0.5),
    "of a difference": lambda x, relu, lib: relu(x - lib.xp.tanh(x)),
}
AS_ONE_OPERATION = ["a sum", "the other way round", "another shape"]
#: Of one column.
ONE = np.eye(20, dtype="float32")[3]
#: What cannot be put under the rule, or behind weights: each is refused.
REFUSED = {
    "weights": lambda x, w, lib: x @ w + lib.relu(-x) @ w,
    "weights of what was put together": lambda x, w, lib: joined([x, lib.relu(-x)], lib) @ np.concatenate([w, w]),
    "the negative rest": lambda x, w, lib: (x - lib.relu(x)) @ w,
    "another value in between": lambda x, w, lib: (lambda u: (x + u + lib.relu(-u)) @ w)(lib.xp.tanh(x)),
    "in some columns": lambda x, w, lib: (x + (np.arange(20) % 2).astype("float32") * lib.relu(-x)) @ w,
    "weights of the opposite": lambda x, w, lib: x @ w + lib.relu(x @ OPPOSITE) @ w,
    "in one column": lambda x, w, lib: (x + ONE * lib.relu(-x)) @ w,
    "beside a large column": lambda x, w, lib: (
        ((x + (1 - ONE) * lib.relu(-x)) * (1 + 400 * ONE)) @ (w / (1 + 400 * ONE[:, None]))
    ),
}
#: None is one, and each ReLU is guided as it is written.
ORDINARY = {
    "the sizes": lambda x, w, relu: (relu(x) + relu(-x)) @ w,
    "one with a part of the opposite": lambda x, w, relu: (x + 0.9 * relu(-x)) @ w,
    "a magnitude": lambda x, w, relu: (x + 2 * relu(-x)) @ w,
    "a skip": lambda x, w, relu: (x + relu(x)) @ w,
    "a skip past weights": lambda x, w, relu: (x + relu(x) @ w @ w.T) @ w,
    "a skip past a layer": lambda x, w, relu: (x + relu(x @ (w @ w.T))) @ w,
    "a skip past a layer and its ReLU": lambda x, w, relu: (x + relu(-2 * x) @ (w @ w.T)) @ w,
    "half of the opposite": lambda x, w, relu: x @ w + 0.5 * (relu(-x) @ w),
    "weights of its own": lambda x, w, relu: x @ w + relu(-x) @ w[::-1],
    "a product with its ReLU": lambda x, w, relu: (x * relu(x)) @ w,
    "a hat": lambda x, w, relu: (relu(x + 1) * relu(1 - x)) @ w,
    "the larger of two": lambda x, w, relu: (lambda r: (x + relu(r - x)) @ w)(relu(x[:, ::-1])),
    "a bound": lambda x, w, relu: (x + relu(1 - x)) @ w,
    "a bound by weights": lambda x, w, relu: (x + relu(x @ OPPOSITE + 1)) @ w,
    "both, apart": lambda x, w, relu: relu(-x) @ w + x @ w[::-1],
}


def turned(x, lib):
    return x + lib.relu(-x)


def joined(values, lib):
    return lib.xp.concat(values, axis=1)


def total(stack, lib):
    return (lib.xp.sum if hasattr(lib.xp, "sum") else lib.xp.reduce_sum)(stack, 0)


def by_hand(lib):
    """Return a ReLU with the guided rule, written for a framework."""
    if lib.xp.__name__ == "tensorflow":

        @lib.xp.custom_gradient
        def guided(x):
            return lib.relu(x), lambda g: lib.relu(g) * lib.xp.cast(x > 0, g.dtype)

        return guided
    import jax

    guided = jax.custom_vjp(lib.relu)
    guided.defvjp(lambda x: (lib.relu(x), x), lambda x, g: (lib.relu(g) * (x > 0),))
    return guided


def network_of(spelled, relu):
    """Return a model with a ReLU of its own in front of what is spelled."""
    first, second, third = WEIGHTS
    return lambda x: spelled(relu(x @ first) @ second - 0.2, third)


def right(spelled, lib):
    """Return the map of a model whose ReLUs are all guided by hand, by the framework alone."""
    model, images = network_of(spelled, by_hand(lib)), lib.array(ROWS)
    if lib.xp.__name__ == "tensorflow":
        with lib.xp.GradientTape() as tape:
            tape.watch(images)
            score = lib.xp.reduce_sum(model(images)[:, 1])
        return np.asarray(tape.gradient(score, images))
    import jax

    return np.asarray(jax.grad(lambda x: model(x)[:, 1].sum())(images))


def explained(spelled, lib, method=GuidedBackprop, **options):
    found = method(network_of(spelled, lib.relu), **options).explain(lib.array(ROWS), labels=1)
    return np.asarray(found.attribution)


def together(names, write):
    """Return one model of all: as many maps, added up, each by weights of its own."""
    return lambda x, w: sum(write(name)(x) @ np.roll(w, place, 0) for place, name in enumerate(names))


def compare(names, lib):
    found = explained(together(names, lambda name: lambda x: SPELLED[name](x, lib)), lib)
    plain, relu = (lambda x, relu, lib: relu(x)), by_hand(lib)
    expected = right(together(names, lambda name: lambda x: WRITTEN.get(name, plain)(x, relu, lib)), lib)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("framework", "names"), [("jax", [*SPELLED]), ("tensorflow", AS_ONE_OPERATION)])
def test_what_is_a_relu_with_the_one_that_is_added_is_guided(framework, names):
    compare(names, Library(framework))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_put_under_the_rule_is_refused(name, framework):
    lib = Library(framework)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x, w: REFUSED[name](x, w, lib), lib)


@pytest.mark.parametrize("name", [name for name in SPELLED if name not in AS_ONE_OPERATION])
def test_tensorflow_refuses_what_is_no_single_sum(name):
    lib = Library("tensorflow")
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x, w: SPELLED[name](x, lib) @ w, lib)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_none_is_guided_as_it_is_written(framework):
    lib = Library(framework)
    relu = by_hand(lib)
    found = explained(lambda x, w: sum(write(x, w, lib.relu) for write in ORDINARY.values()), lib)
    expected = right(lambda x, w: sum(write(x, w, relu) for write in ORDINARY.values()), lib)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_in_jax_a_loop_is_looked_into_whatever_its_weights_are():
    import jax

    lib = Library("jax")
    turns = np.ones((2, 20), np.float32)
    found = explained(lambda x, w: jax.lax.scan(lambda y, v: (turned(y * v, lib), None), x, turns)[0] @ w, lib)
    relu = by_hand(lib)
    np.testing.assert_allclose(found, right(lambda x, w: relu(x) @ w, lib), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "write", [lambda x, relu: relu(x) - 0.1 * relu(-x), lambda x, relu: relu(x) + 0.1 * (x - relu(x))]
)
def test_a_leaky_relu_of_two_keeps_its_derivative(write, framework):
    lib = Library(framework)
    found = explained(lambda x, w: write(x, lib.relu) @ w, lib)
    np.testing.assert_allclose(found, right(lambda x, w: lib.xp.maximum(x, 0.1 * x) @ w, lib), rtol=1e-4, atol=1e-5)


def test_another_rule_acts_on_the_sum_as_on_a_relu():
    lib = Library("jax")
    found = explained(lambda x, w: turned(x, lib) @ w, lib, DeconvNet)
    np.testing.assert_allclose(found, explained(lambda x, w: lib.relu(x) @ w, lib, DeconvNet), rtol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_who_vouches_for_a_sum_has_its_relus_guided_as_they_are_written(framework):
    lib = Library(framework)
    write = REFUSED["the negative rest"]
    found = explained(lambda x, w: write(x, w, lib), lib, vouch={"sub": "plain"})
    hand = by_hand(lib)
    expected = right(lambda x, w: (x - hand(x)) @ w, lib)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["weights", "the negative rest"])
def test_planted_fault_sums_are_not_looked_at(name, framework, monkeypatch):
    monkeypatch.setattr(sums.Sums, "joins", lambda self: iter(()))
    lib = Library(framework)
    relu = by_hand(lib)
    expected = right(lambda x, w: relu(x) @ w, lib)
    found = explained(lambda x, w: REFUSED[name](x, w, lib), lib)
    assert np.abs(found - expected).max() > 0.2 * np.abs(expected).max()


FAULTS = {
    "in one column": ("_is_no_chance", lambda *_: False, 1 - ONE),
    "beside a large column": ("min", max, ONE),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_a_few_columns_are_not_looked_at(name, monkeypatch):
    attribute, instead, opened = FAULTS[name]
    monkeypatch.setattr(sums, attribute, instead, raising=False)
    lib = Library("jax")
    relu = by_hand(lib)
    expected = right(lambda x, w: (opened * x + (1 - opened) * relu(x)) @ w, lib)
    found = explained(lambda x, w: REFUSED[name](x, w, lib), lib)
    assert np.abs(found - expected).max() > 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("exact", [0, 3])
def test_of_many_numbers_some_are_closed_by_chance_and_none_exactly(exact):
    slopes = np.random.default_rng(3).uniform(0, 2, 20_000)
    slopes[:exact], slopes[-6:] = 0, 1e-5
    # What x is multiplied by on either side of 0.
    y = np.stack([-2 * slopes, -slopes, np.ones(20_000), 2 * np.ones(20_000)]).astype(np.float32)
    x = np.array(sums.FAR)[:, None] * np.ones(20_000)
    assert (np.abs(y[0] - y[1]) <= 256 * 2.0**-23).any()
    judgement = sums.judge_sum(y, x[2:], x, 2.0**-23, is_alone=True, is_shifted=False)
    assert judgement.verdict is (Verdict.PARTIAL if exact else Verdict.NONE)


def capped(x, lib, shift):
    """Return ``clip(z, 0, 1)`` of ``z = x + (shift + 2.5) / 5``, as an older hard-sigmoid of it."""
    five, shifts = np.full(20, 5, "float32"), np.full(20, shift, "float32")
    y = 0.2 * (five * x + shifts) + 0.5
    return lib.xp.clip(y, 0, 1) if hasattr(lib.xp, "clip") else lib.xp.clip_by_value(y, 0, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("shift", "said"), [(-2.5, "relu1 x1 guided"), (-0.5, "hardsigmoid x1 plain")])
def test_arrays_of_one_number_make_a_relu_of_a_hard_sigmoid(framework, shift, said):
    lib = Library(framework)
    model = network_of(lambda x, w: capped(x, lib, shift) @ w, lib.relu)
    assert said in str(GuidedBackprop(model).explain(lib.array(ROWS), labels=1).coverage)


def test_planted_fault_in_jax_arrays_are_no_numbers(monkeypatch):
    monkeypatch.setattr(curves, "_undone", lambda value, view: None)
    with pytest.raises(AssertionError):
        test_arrays_of_one_number_make_a_relu_of_a_hard_sigmoid("jax", -2.5, "relu1 x1 guided")


def test_planted_fault_in_jax_a_sum_is_guided_where_it_is_written(monkeypatch):
    monkeypatch.setattr(sums.Sums, "joins", lambda self: iter(()))
    with pytest.raises(AssertionError):
        compare(["a sum"], Library("jax"))
