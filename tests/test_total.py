"""What lost its gradient and meets one: a ReLU that no value of x's size and no derivative of the model shows."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends.choices import judge_stopped
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

torch = pytest.importorskip("torch")
total = pytest.importorskip("guided_backprop.backends.torch.hidden.total")

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(2, 5, 12))
IS_OPEN = X > 0


def unrecorded(x, w):
    with torch.no_grad():
        missing = (x.relu() - x) @ w
    return x @ w + missing


def written(x, w):
    missing = torch.zeros(len(x), w.shape[1])
    missing[:, 1:] = ((x.relu() - x) @ w[:, 1:]).detach()
    missing[:, :1].copy_(((x.relu() - x) @ w[:, :1]).detach())
    return x @ w + missing


def added_in_place(x, w):
    y = x @ w
    y += ((x.relu() - x) @ w).detach()
    return y


def joined(x, w):
    parts = torch.cat([x, (x.relu() - x).detach()], 1)
    return parts @ torch.cat([w, w])


def in_frequencies(x, w):
    waves = torch.fft.rfft(x) + torch.fft.rfft((x.relu() - x).detach())
    return torch.fft.irfft(waves, n=x.shape[1]) @ w


def out_of_memory_of_its_own(x, w):
    copied = x.clone().detach_()
    return x @ w + (copied.relu() - copied) @ w


def anew_without(x, w):
    y = x @ w @ w.T
    with torch.no_grad():
        z = x @ w @ w.T
        missing = (z.relu() - z) @ w
    return y @ w + missing


def anew(x, w, missing):
    """Return what is made of a value and of the same once more, without its gradient."""
    return x @ w @ w.T @ w + missing(x @ w @ w.T, w).detach()


#: Each is ``relu(x) @ w``, and its gradient that of ``x @ w``; of the last ones x is another layer's.
HIDDEN = {
    "a straight-through estimator": lambda x, w: x @ w + ((x.relu() - x) @ w).detach(),
    "in front of the weights": lambda x, w: x @ w + (x.relu() - x).detach() @ w,
    "by .data": lambda x, w: x @ w + ((x.relu() - x) @ w).data,
    "what is negative": lambda x, w: x @ w + torch.where(x > 0, 0.0, -x).detach() @ w,
    "half of a magnitude": lambda x, w: x @ w + ((x.abs() - x) / 2).detach() @ w,
    "in two steps": lambda x, w: x @ w + (x.relu() @ w).detach() - (x @ w).detach(),
    "no_grad": unrecorded,
    "written into zeros": written,
    "added in place": added_in_place,
    "put beside it": joined,
    "in the frequencies": in_frequencies,
    "detached in place": out_of_memory_of_its_own,
    "worked out anew": lambda x, w: anew(x, w, lambda z, w: (z.relu() - z) @ w),
    "worked out anew, in no_grad": anew_without,
    "of each row": lambda x, w: torch.vmap(lambda row: row @ w + ((row.relu() - row) @ w).detach())(x),
}


def quantised(x, w):
    codes = w.T[:, :2]
    rows = x.reshape(-1, 2)
    nearest = codes[torch.cdist(rows, codes).argmin(1)]
    return (rows + (nearest - rows).detach()).reshape(x.shape) @ w


def kept_without(x, w):
    with torch.no_grad():
        scale = x.abs().amax(1, keepdim=True)
    return x / scale @ w


#: None is a ReLU of x that a gradient passes by.
ORDINARY = {
    "a softmax": lambda x, w: (x - x.amax(1, keepdim=True).detach()).exp() @ w,
    "a scale": kept_without,
    "a spread": lambda x, w: x / x.detach().std(1, keepdim=True) @ w,
    "rounding": lambda x, w: (x + ((x * 8).round() / 8 - x).detach()) @ w,
    "rounding behind": lambda x, w: x @ w + ((x * 8).round() @ w / 8 - x @ w).detach(),
    "a sign": lambda x, w: (x.tanh() + (x.sign() - x.tanh()).detach()) @ w,
    "rounding within bounds": lambda x, w: ((c := x.clamp(-1, 1)) + ((c * 8).round() / 8 - c).detach()) @ w,
    "a code book": quantised,
    "a target": lambda x, w: (x @ w - (x.relu() @ (w + 0.5)).detach()) ** 2,
    "a target of a ReLU": lambda x, w: x.relu() @ w - (x.relu() @ (w * w)).detach(),
    "a ReLU's own target": lambda x, w: (r := x.relu()) @ w - 0.9 * (r @ w).detach(),
    "a part of a gradient": lambda x, w: (0.1 * x + (0.9 * x).detach()) @ w,
    "a weight of each number": lambda x, w: (x * x.sigmoid().detach()) @ w,
    "a mean": lambda x, w: (x - x.mean(1, keepdim=True).detach()) @ w,
    "attention without": lambda x, w: (x @ x.T).softmax(1).detach() @ x @ w,
    "a second derivative cut": lambda x, w: x @ w + 0.5 * (x.abs() @ w).detach(),
    "a target worked out anew": lambda x, w: anew(x, w, lambda z, w: -0.9 * z.relu() @ w),
    "half of a target worked out anew": lambda x, w: anew(x, w, lambda z, w: 0.5 * (z.relu() - z) @ w),
    "a copy": lambda x, w: x @ w + 0.5 * ((x.detach().clone().relu() - x.detach()) @ w),
    "a length that is bounded": lambda x, w: x * (1 / x.norm(dim=1, keepdim=True)).clamp(max=1).detach() @ w,
}


def network_of(spelled):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    first, second, third, images = map(torch.as_tensor, (*WEIGHTS, ROWS))
    return lambda x: spelled(torch.relu(x @ first) @ second - 0.2, third).tanh(), images


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_relu_that_the_gradient_passes_by_is_refused(name, count):
    model, images = network_of(HIDDEN[name])
    with pytest.raises(OpaqueRegionError, match=r"must be an operation of its own.*at test_total\.py:\d+"):
        GuidedBackprop(model).explain(images[:count], labels=1)


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_none_keeps_its_gradient(name, count):
    model, images = network_of(ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images[:count], labels=1))).all()


class Remembering(torch.nn.Module):
    """Keeps what it detached, asks whether gradients are on, and writes into a buffer."""

    def __init__(self, spelled):
        super().__init__()
        self.spelled, self.seen = spelled, []
        self.weights = [torch.as_tensor(w) for w in WEIGHTS]
        self.register_buffer("mean", torch.zeros(20))

    def forward(self, x):
        first, second, third = self.weights
        x = torch.relu(x @ first) @ second - 0.2
        self.last = x.detach()
        with torch.no_grad():
            self.mean.copy_(x.mean(0))
            scale = x.abs().amax(1, keepdim=True)
            self.seen.append((torch.is_grad_enabled(), self.last.requires_grad, scale.requires_grad))
        self.seen.append((torch.is_grad_enabled(), scale.is_leaf))
        return self.spelled(x / (1 + 0 * scale), third).tanh()


@pytest.mark.parametrize("name", ["a straight-through estimator", "a softmax"])
def test_the_model_sees_its_own_values_alone(name):
    model = Remembering((HIDDEN | ORDINARY)[name]).eval()
    try:
        GuidedBackprop(model).explain(torch.as_tensor(ROWS), labels=1)
        assert name in ORDINARY
    except OpaqueRegionError:
        assert name in HIDDEN
    assert set(model.seen) == {(False, False, False), (True, True)}
    kept = [model.last, model.mean]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in kept)


def test_what_is_vouched_for_is_let_off_at_its_place_alone():
    def spelled(x, w):
        first = x @ w + ((x.relu() - x) @ w).detach()
        return first + ((x.relu() - x) @ w).detach() + x @ w

    model, images = network_of(spelled)
    with pytest.raises(OpaqueRegionError) as refused:
        GuidedBackprop(model).explain(images, labels=1)
    name = str(refused.value).partition('vouch={"')[2].partition('"')[0]
    with pytest.raises(OpaqueRegionError) as second:
        GuidedBackprop(model, vouch={name: "plain"}).explain(images, labels=1)
    other = str(second.value).partition('vouch={"')[2].partition('"')[0]
    assert other != name
    vouched = GuidedBackprop(model, vouch={name: "plain", other: "plain"})
    assert np.isfinite(np.asarray(vouched.explain(images, labels=1))).all()


def test_what_is_made_of_what_is_vouched_for_is_let_off():
    model, images = network_of(lambda x, w: (x @ w + ((x.relu() - x) @ w).detach()) @ w[:9])
    with pytest.raises(OpaqueRegionError) as refused:
        GuidedBackprop(model).explain(images, labels=1)
    name = str(refused.value).partition('vouch={"')[2].partition('"')[0]
    assert name.startswith("add at")
    assert len(np.asarray(GuidedBackprop(model, vouch={name: "plain"}).explain(images, labels=1))) == len(images)


@pytest.mark.parametrize("name", ["a straight-through estimator", "in the frequencies", "no_grad"])
def test_planted_fault_without_the_total_derivative_the_map_is_wrong(name, monkeypatch):
    monkeypatch.setattr(total, "judge_stopped", lambda looks, ranks: Verdict.NONE)
    model, images = network_of(HIDDEN[name])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_planted_fault_what_is_worked_out_anew_is_another_value(monkeypatch):
    monkeypatch.setattr(total, "_repeated", lambda watch, own, beside: iter(()))
    model, images = network_of(HIDDEN["worked out anew"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    right, _ = network_of(lambda x, w: (x @ w @ w.T).relu() @ w)
    expected = np.asarray(GuidedBackprop(right).explain(images, labels=1))
    assert np.abs(found - expected).max() > 0.2 * np.abs(expected).max()


@pytest.mark.parametrize(("spelled", "count"), [(lambda x, w: x @ w, 1), (ORDINARY["a softmax"], 2)])
def test_only_what_lost_its_gradient_costs_another_run(spelled, count):
    runs = []

    def counted(x):
        runs.append(x)
        return model(x)

    model, images = network_of(spelled)
    explainer = GuidedBackprop(counted)
    explainer.explain(images, labels=1)
    assert len(runs) == count
    explainer.explain(images, labels=1)
    assert len(runs) == count + 1


def test_what_a_gradient_says_is_open_and_is_closed_is_a_relu():
    assert judge_stopped([(X, W, W * IS_OPEN)]) is Verdict.PARTIAL
    assert judge_stopped([(X, W, W * IS_OPEN + 1e-7)]) is Verdict.PARTIAL
    # Its own gradient says the same, or nothing; or nothing is left of both.
    assert judge_stopped([(X, W * IS_OPEN, W * IS_OPEN)]) is Verdict.NONE
    assert judge_stopped([(X, 0 * W, W * IS_OPEN)]) is Verdict.NONE
    assert judge_stopped([(X, W, 1e-8 * W * IS_OPEN)]) is Verdict.NONE
    assert judge_stopped([(X, W, W * (RNG.random(X.shape) < 0.5))]) is Verdict.NONE


def test_few_values_are_told_by_other_images():
    few = X[:1, :6], W[:1, :6], (W * IS_OPEN)[:1, :6]
    others = [(-X[:1, :6], W[:1, :6], W[:1, :6] * (X < 0)[:1, :6]) for _ in range(3)]
    assert judge_stopped([few]) is Verdict.UNSETTLED
    assert judge_stopped([few, *others]) is Verdict.PARTIAL
    # By rank nothing below 0 is open in four rows or more.
    assert judge_stopped([few, others[0]], Ranks.SOME) is Verdict.UNSETTLED
