"""What is detached and added behind weights: a ReLU by its values, of which no gradient tells."""

import re

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends.choices import judge_stopped
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.noting import Noting
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import oracle
from test_weighed import FRAMEWORKS, HOLDING, OPEN, SHUT, G, X, model_that_holds, network_of

#: PyTorch's are its own: what is detached there no graph shows.
TRACED = FRAMEWORKS[1:]


@pytest.mark.parametrize("name", SHUT)
def test_what_the_model_s_own_gradient_passes_and_values_do_not_is_a_relu(name):
    assert judge_stopped([(X, G, G * SHUT[name])]) is Verdict.PARTIAL
    assert judge_stopped([(X, G, G * SHUT[name])], Ranks.ALL) is Verdict.NONE
    # The gradient says so itself: what is closed in it is a ReLU's that it passes, or its own.
    assert judge_stopped([(X, G * SHUT[name], G * SHUT[name])]) is Verdict.NONE
    assert judge_stopped([(X, 0 * G, G * SHUT[name])]) is Verdict.NONE


@pytest.mark.parametrize("name", OPEN)
def test_other_derivatives_are_none(name):
    assert judge_stopped([(X, G, G * OPEN[name])]) is Verdict.NONE


def test_few_values_of_one_look_are_more_of_several():
    first, second = (X[:1], G[:1], (G * SHUT["below 0"])[:1]), (-X[:1], G[:1], (G * SHUT["above 0"])[:1])
    assert judge_stopped([first]) is Verdict.UNSETTLED
    assert judge_stopped([first, second]) is Verdict.PARTIAL
    assert judge_stopped([(np.abs(X), G, G)]) is Verdict.UNSETTLED


def stop(lib, x):
    return (lib.jax.lax if lib.framework == "jax" else lib.xp).stop_gradient(x)


def beside_itself(lib, x, w):
    """Return a ReLU that is guided in one place, and detached in another one."""
    y = lib.relu(x)
    return (x @ w + stop(lib, y @ w - x @ w) + 0.1 * (y @ w)) / 1.1


def of_the_larger_part(lib, x, w):
    mask = stop(lib, lib.number(x > 0))
    return x @ w + stop(lib, (x * mask - x) @ w)


def in_a_loop(lib, x, w):
    """Return a ReLU that is an operation of its own in a loop, and detached behind that."""
    y = lib.jax.lax.map(lib.relu, x) if lib.framework == "jax" else lib.xp.map_fn(lib.relu, x)
    return x @ w + stop(lib, (y - x) @ w)


#: Each is ``relu(x) @ w``.
HIDDEN = {
    "a ReLU in a loop": in_a_loop,
    "what a ReLU changes": lambda lib, x, w: x @ w + stop(lib, (lib.relu(x) - x) @ w),
    "a ReLU, and x taken away": lambda lib, x, w: x @ w - stop(lib, x @ w) + stop(lib, lib.relu(x) @ w),
    "what a mask changes": of_the_larger_part,
    "a magnitude": lambda lib, x, w: x @ w + stop(lib, (abs(x) @ w - x @ w) / 2),
    "what a choice changes": lambda lib, x, w: x @ w + stop(lib, (lib.xp.where(x > 0, x, 0 * x) - x) @ w),
    "a ReLU that is guided elsewhere": beside_itself,
    "a ReLU of the opposite": lambda lib, x, w: x @ w + stop(lib, lib.relu(-x) @ w),
    "a ReLU of a multiple": lambda lib, x, w: x @ w + stop(lib, (lib.relu(x * 2) / 2 - x) @ w),
    "a ReLU of a shift": lambda lib, x, w: x @ w + stop(lib, (lib.relu((x + 1) - 1) - x) @ w),
    "two layers of weights": lambda lib, x, w: (x @ w) @ eye(lib) + stop(lib, (lib.relu(x) @ w - x @ w) @ eye(lib)),
}


def eye(lib):
    return lib.array(np.eye(9, dtype="float32"))


def normalised(lib, x):
    """Return x less its mean, and divided by its size, both detached."""
    mean = stop(lib, lib.added_up(x) / 20)[:, None]
    return (x - mean) / stop(lib, lib.xp.sqrt(lib.added_up((x - mean) ** 2) + 1e-3))[:, None]


def softmax(lib, x):
    largest = lib.xp.reduce_max(x, 1) if lib.framework == "tensorflow" else x.max(1)
    grown = lib.xp.exp(x - stop(lib, largest)[:, None])
    return grown / lib.added_up(grown)[:, None]


def nearest(lib, x):
    """Return the nearest of some numbers, straight through."""
    table = lib.array(np.linspace(-2, 2, 9, dtype="float32"))
    which = lib.xp.argmin(abs(x[..., None] - table), 2)
    return x + stop(lib, lib.taken(table, which) - x)


#: None is a ReLU of x but those that are guided.
ORDINARY = {
    "statistics": lambda lib, x, w: normalised(lib, x) @ w,
    "statistics of a ReLU": lambda lib, x, w: normalised(lib, lib.relu(x)) @ w,
    "statistics of a ReLU behind weights": lambda lib, x, w: softmax(lib, normalised(lib, lib.relu(x) @ w)),
    "a softmax": lambda lib, x, w: softmax(lib, lib.relu(x)) @ w,
    "rounded": lambda lib, x, w: x @ w + stop(lib, (lib.xp.round(8 * x) / 8 - x) @ w),
    "quantised": lambda lib, x, w: nearest(lib, x) @ w,
    "a target": lambda lib, x, w: x @ w - stop(lib, lib.relu(x @ w * 2) @ lib.xp.transpose(w) @ w),
    "a branch that is detached": lambda lib, x, w: lib.relu(x) @ w + stop(lib, lib.relu(lib.xp.tanh(x)) @ w),
    "half of a gradient": lambda lib, x, w: (0.5 * x + stop(lib, 0.5 * x)) @ w,
    "half of a ReLU's gradient": lambda lib, x, w: 0.5 * (lib.relu(x) @ w) + stop(lib, 0.5 * (lib.relu(x) @ w)),
    "a gate": lambda lib, x, w: (x @ w) * stop(lib, lib.xp.tanh(lib.relu(x) @ w)),
    "a residual": lambda lib, x, w: x @ w + stop(lib, lib.relu(x) @ w),
    "an average that moves": lambda lib, x, w: 0.9 * stop(lib, lib.relu(x) @ w) + 0.1 * (lib.relu(x) @ w),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("framework", TRACED)
def test_a_relu_that_is_detached_behind_weights_is_refused(framework, name):
    model, images = network_of(framework, HIDDEN[name])
    relu = network_of(framework, lambda lib, x, w: lib.relu(x) @ w)[0]
    np.testing.assert_allclose(np.asarray(model(images)), np.asarray(relu(images)), rtol=1e-4, atol=1e-5)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", TRACED)
def test_what_a_model_detaches_of_itself_is_plain(framework, name):
    model, images = network_of(framework, ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


@pytest.mark.parametrize("holding", HOLDING)
@pytest.mark.parametrize("framework", TRACED)
def test_a_relu_that_is_detached_inside_of_what_holds_it_is_refused(framework, holding):
    for count in (20, 6):
        model, images = model_that_holds(framework, holding, HIDDEN["what a ReLU changes"], count)
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize("name", ["statistics of a ReLU", "rounded", "half of a gradient"])
@pytest.mark.parametrize("holding", HOLDING)
@pytest.mark.parametrize("framework", TRACED)
def test_what_is_detached_inside_and_no_relu_is_plain(framework, holding, name):
    model, images = model_that_holds(framework, holding, ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_planted_fault_a_stop_inside_of_a_loop_that_is_forgotten(monkeypatch):
    monkeypatch.setattr(Noting, "_was_stopped", False)
    model, images = model_that_holds("tensorflow", "a loop", HIDDEN["what a ReLU changes"])
    GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize("framework", TRACED)
def test_the_place_can_be_vouched_for(framework):
    model, images = network_of(framework, HIDDEN["what a ReLU changes"])
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic, with add at") as caught:
        GuidedBackprop(model).explain(images, labels=1)
    place = str(caught.value).partition('vouch={"')[2].partition('"')[0]
    found = GuidedBackprop(model, vouch={place: "plain"}).explain(images, labels=1)
    assert np.abs(np.asarray(found) - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("framework", TRACED)
def test_planted_fault_what_is_stopped_and_not_followed_leaves_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(Noting, "_is_stop", False)
    model, images = network_of(framework, HIDDEN["what a ReLU changes"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_a_loop_without_a_gradient_back_is_refused_by_name():
    """As a fixed point is looked for, and its last step alone differentiated: what leads there JAX does not tell."""
    jax = pytest.importorskip("jax")
    draw = np.random.default_rng(0)
    first, second, last = (draw.normal(size=shape) / 3 for shape in [(6, 8), (8, 8), (8, 3)])
    images = draw.normal(size=(2, 6))

    def model(x):
        x = x @ first
        step = lambda state: (jax.numpy.tanh(state[0] @ second + x), state[1] + 1)  # noqa: E731
        found = jax.lax.while_loop(lambda state: state[1] < 4, step, (0 * x, 0))[0]
        return jax.nn.relu(jax.lax.stop_gradient(found) @ second + x) @ last

    with jax.enable_x64(True):
        with pytest.raises(OpaqueRegionError, match="vouch") as caught:
            GuidedBackprop(model).explain(jax.numpy.asarray(images), 0)
        place = re.search('vouch={"(.*?)"', str(caught.value)).group(1)
        found = GuidedBackprop(model, vouch={place: "plain"}).explain(jax.numpy.asarray(images), 0)
    x = images @ first
    fixed = 0 * x
    for _ in range(4):
        fixed = np.tanh(fixed @ second + x)
    is_open = (fixed @ second + x > 0) & (last[:, 0] > 0)
    np.testing.assert_allclose(found, (last[:, 0] * is_open) @ first.T, rtol=1e-6, atol=1e-12)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, (last[:, 0] * (fixed @ second + x > 0)) @ first.T, rtol=1e-6, atol=1e-12)
