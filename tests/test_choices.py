"""A choice among numbers, or less one of them: a ReLU of what is no value of the model, or none."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends.choices import judge_behind, judge_choice
from guided_backprop.backends.notes import Choice
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError

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
    # Where nobody knows that, other images may tell; one number below is enough.
    assert verdict(x) is Verdict.UNSETTLED
    assert verdict(-x, lambda look: look.min(-1)) is Verdict.UNSETTLED
    x[0, 0, 0, 0] = -1.0
    assert verdict(x) is Verdict.PARTIAL


def test_to_put_in_order_closes_nothing():
    assert verdict(beside(0.0), lambda look: np.sort(look, -1)) is Verdict.NONE
    # So it is turned in sign, as of the largest opposites.
    assert verdict(beside(0.0), lambda look: np.sort(-look, -1)) is Verdict.NONE


def test_what_is_met_elsewhere_too_is_no_constant_by_chance(monkeypatch):
    steps = np.round(2 * np.abs(PAIRS)) / 2 + 1
    steps[:, 0, 0] = 1.5
    assert verdict(steps) is Verdict.NONE
    # A planted fault.
    monkeypatch.setattr(np, "setdiff1d", lambda one, other: np.unique(one))
    assert verdict(steps) is not Verdict.NONE


def test_a_pool_sees_what_is_around():
    """At the border alone it is none; where all of it sees constants it is a ReLU."""
    around = np.pad(RNG.normal(size=(3, 5, 12)), ((0, 0), (0, 0), (1, 2)))
    pool = lambda look: np.lib.stride_tricks.sliding_window_view(look, 3, -1).max(-1)  # noqa: E731
    assert verdict(around, pool, Choice.AROUND) is Verdict.NONE
    assert verdict(around, pool) is Verdict.PARTIAL
    assert verdict(beside(0.0), choice=Choice.AROUND) is Verdict.PARTIAL


def test_few_numbers_beside_a_constant_are_not_passed_by():
    assert verdict(beside(0.0)[:1]) is Verdict.UNSETTLED
    # No result is closed on these images: of so few it may be on others.
    assert verdict(np.abs(beside(0.0))[:, :2, :3] + [0.5, 0.0]) is Verdict.PARTIAL


@pytest.mark.parametrize(("weight", "expected"), [(1.0, Verdict.PARTIAL), (0.9, Verdict.NONE)])
def test_what_is_taken_away_behind_weights_is_told_by_derivatives(weight, expected):
    a, b, g = RNG.normal(size=(3, 5, 4))
    is_open, bound = a > b, b[:, :1]
    assert judge_behind((a, b), (g * is_open, g * ~is_open - weight * g)) is expected
    is_open = a > bound
    derivatives = g * is_open, (g * ~is_open - weight * g).sum(1, keepdims=True)
    assert judge_behind((a, bound), derivatives) is expected
    # All is open here, and may be closed elsewhere.
    assert judge_behind((abs(a), -abs(b)), (g, -g)) is Verdict.UNSETTLED


def difference(y, a, b):
    return judge_choice([(y[run], (a - b)[run]) for run in range(3)], Choice.APART).verdict


A, B = RNG.normal(size=(2, 3, 5, 4, 6))
C = RNG.normal(size=A.shape)
SCALES = RNG.normal(size=(4, 1))


@pytest.mark.parametrize(
    "y",
    [
        np.maximum(A, B) - B,
        B - np.maximum(A, B),
        A - np.minimum(A, B),
        0.3 * np.maximum(A, B) - 0.3 * B,
        SCALES * np.maximum(A, B) - SCALES * B,
        np.maximum(np.maximum(A, C), B) - B,
        (np.maximum(A, B) - B).swapaxes(2, 3),
    ],
)
def test_one_of_two_values_that_is_taken_away_again_leaves_a_relu(y):
    assert difference(y, A, B) is Verdict.PARTIAL
    # Of what nothing compared it is none.
    assert difference(y, RNG.normal(size=A.shape), RNG.normal(size=A.shape)) is Verdict.NONE


@pytest.mark.parametrize(
    "y",
    [
        np.maximum(A, B),
        np.maximum(A, B) - 0.5 * B,
        np.maximum(A, B) - C,
        np.maximum(A, B) - np.minimum(A, B),
        # Routed by a comparison, and never a multiple of the difference.
        (A > B) * C,
        np.where(A > B, C, B),
        np.logaddexp(A, B) - B,
    ],
)
def test_other_sums_of_the_larger_are_none(y):
    assert difference(y, A, B) is Verdict.NONE


HIDDEN = {
    "less b": lambda xp, a, b, mix, stop: xp.maximum(a, b) - b,
    "b less the smaller": lambda xp, a, b, mix, stop: b - xp.minimum(b, a),
    "where": lambda xp, a, b, mix, stop: -b + xp.where(a > b, a, b),
    "of a stack": lambda xp, a, b, mix, stop: (
        0.3 * getattr(xp, "amax", getattr(xp, "reduce_max", None))(xp.stack([a, b]), 0) - 0.3 * b
    ),
    "less what is repeated": lambda xp, a, b, mix, stop: xp.maximum(a, b[:, :1]) - b[:, :1],
    "behind weights": lambda xp, a, b, mix, stop: mix(xp.maximum(a, b)) - mix(b),
    "without a gradient": lambda xp, a, b, mix, stop: xp.maximum(a, stop(b)) - stop(b),
}


def ordinary(xp, a, b, mix, stop):
    """Return sums of a maxout, a shift of rows by their maximum, and a logarithm of a sum of exponentials."""
    amax = getattr(xp, "amax", getattr(xp, "reduce_max", None))
    larger = xp.maximum(a, b)
    log = getattr(xp, "log", None) or xp.math.log
    sums = larger + log(xp.exp(a - larger) + xp.exp(b - larger))
    row = a[:1] - amax(xp.stack([a, b, sums]), 0)[:1]
    return sums + a - amax(a, -1)[..., None] + larger - xp.minimum(a, b) - 0.5 * b + mix(larger) - mix(sums) + row


def network_of(framework, spelling):
    """Return a model with a ReLU of its own beside what is spelled, and its images."""
    weights = np.random.default_rng(1).normal(size=(3, 6, 8)).astype("float32")
    images = np.random.default_rng(2).normal(size=(4, 6)).astype("float32")
    if framework == "torch":
        xp = pytest.importorskip("torch")
        given, relu, array, stop = xp.as_tensor(images), xp.relu, xp.as_tensor, xp.Tensor.detach
    elif framework == "jax":
        jax = pytest.importorskip("jax")
        xp, relu, array, stop = jax.numpy, jax.nn.relu, jax.numpy.asarray, jax.lax.stop_gradient
        given = array(images)
    else:
        xp = pytest.importorskip("tensorflow")
        relu, array, given, stop = xp.nn.relu, xp.constant, xp.constant(images), xp.stop_gradient
    first, second, third = map(array, weights)
    mixing = array(np.random.default_rng(3).normal(size=(8, 8)).astype("float32"))

    def run(x):
        spelled = spelling(xp, x @ first, x @ second, lambda value: value @ mixing, stop)
        return xp.tanh(spelled) + relu(x @ third)

    return run, given


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_frameworks_refuse_a_relu_of_a_difference_that_nothing_computes(framework):
    for spelling in HIDDEN.values():
        model, images = network_of(framework, spelling)
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            GuidedBackprop(model).explain(images, labels=0)


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_frameworks_leave_maxouts_and_shifts_plain(framework):
    model, images = network_of(framework, ordinary)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=0))).all()


def turned(h):
    return 0.7 * h.roll(3, 1) + 0.1


# Of f(h), which is worked out each time that it is written, with the larger of two values, and weights.
AGAIN = {
    "a slice that is written twice": lambda h, f, larger, mix: mix(larger(h[:, :8], h[:, 8:])) - mix(h[:, 8:]),
    "what is worked out twice": lambda h, f, larger, mix: mix(larger(h[:, :8], f(h))) - mix(f(h)),
    "less the smaller": lambda h, f, larger, mix: mix(f(h)) + mix(larger(-f(h), -h[:, :8])),
    "its weights in one with those behind": lambda h, f, larger, mix: mix(larger(f(h), h[:, 8:])) - mix(h)[:, 8:],
    "b is made of a": lambda h, f, larger, mix: (lambda a: mix(larger(a, turned(a))) - mix(turned(a)))(f(h)),
    "a is made of b": lambda h, f, larger, mix: (lambda b: mix(turned(b)) + mix(larger(-turned(b), -b)))(f(h)),
    "b is made of a, less a": lambda h, f, larger, mix: (lambda a: mix(larger(turned(a), a)) - mix(turned(a)))(f(h)),
}
LEFT_OVER = {
    "a maxout": lambda h, f, larger, mix: mix(larger(h[:, :8], f(h))),
    "less nearly b": lambda h, f, larger, mix: mix(larger(h[:, :8], f(h))) - 0.9 * mix(f(h)),
    "beside its input": lambda h, f, larger, mix: mix(larger(h[:, :8], h[:, 8:])) + h[:, 8:] + f(h),
    "less another larger one": lambda h, f, larger, mix: mix(larger(h[:, :8], f(h))) - mix(larger(h[:, :8], h[:, 8:])),
    "a maxout with what is made of a": lambda h, f, larger, mix: (lambda a: mix(larger(a, turned(a))) + mix(a))(f(h)),
    "less nearly b, made of a": lambda h, f, larger, mix: (lambda a: mix(larger(a, turned(a))) - 0.9 * mix(turned(a)))(
        f(h)
    ),
}


def made_again(spelling):
    """Return a model of PyTorch in which b is made again where it is taken away, and its images."""
    torch = pytest.importorskip("torch")
    draw = torch.Generator().manual_seed(1)
    first, inner, mixing = (torch.randn(size, generator=draw) for size in ((6, 16), (16, 8), (8, 8)))
    whole = torch.block_diag(mixing, mixing)

    def run(x):
        h = torch.relu(x @ first) - 0.1 * (x @ first)
        spelled = spelling(h, lambda h: h @ inner, torch.maximum, lambda y: y @ (mixing if y.shape[1] == 8 else whole))
        return torch.tanh(spelled)

    return run, torch.randn((4, 6), generator=draw)


@pytest.mark.parametrize("spelling", AGAIN.values(), ids=list(AGAIN))
def test_pytorch_refuses_it_where_b_is_made_again(spelling):
    model, images = made_again(spelling)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=0)


@pytest.mark.parametrize("spelling", LEFT_OVER.values(), ids=list(LEFT_OVER))
def test_pytorch_leaves_plain_what_leaves_something_of_b(spelling):
    model, images = made_again(spelling)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=0))).all()


def test_planted_fault_b_is_asked_where_the_larger_one_had_it(monkeypatch):
    case = pytest.importorskip("guided_backprop.backends.torch.hidden.case")
    monkeypatch.setattr(case, "opposite", lambda path, node, suspect: None)
    for spelling in list(AGAIN.values())[1:]:
        model, images = made_again(spelling)
        GuidedBackprop(model).explain(images, labels=0)
