"""A model that draws random numbers is refused by name; one that only looks so is not; no generator is touched."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import GuidedBackprop, ModelError, Saliency

OWN = torch.Generator().manual_seed(0)


class Drawing(nn.Module):
    """Linear, relu, something random, linear, in evaluation mode."""

    def __init__(self, draw) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self._draw = nn.Linear(6, 8), nn.Linear(8, 3), draw
        self.generator, self.numbers = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self._draw(self, torch.relu(self.first(x))))


def images() -> torch.Tensor:
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(1))


# A GPU draws what dropout leaves out in an operation of its own.
DROPOUT = "native_dropout" if torch.empty(0).is_cuda else "bernoulli"
DRAWS = {
    "noise": (lambda net, h: h + torch.randn_like(h), "randn_like"),
    "a mask": (lambda net, h: h * (torch.rand(3, 8) < 0.5), "rand"),
    "gumbel": (lambda net, h: F.gumbel_softmax(h, dim=1), "exponential"),
    "a permutation": (lambda net, h: h[:, torch.randperm(8)], "randperm"),
    "bernoulli": (lambda net, h: h * torch.bernoulli(torch.full_like(h, 0.5)), "bernoulli"),
    "functional dropout": (lambda net, h: F.dropout(h, training=True), DROPOUT),
    "attention": (
        lambda net, h: F.scaled_dot_product_attention(*[h.view(3, 1, 4, 2)] * 3, dropout_p=0.5).flatten(1),
        DROPOUT,
    ),
    "its own generator": (lambda net, h: h + torch.randn(h.shape, generator=net.generator), "randn"),
    "a generator of the module's file": (lambda net, h: h + torch.randn(h.shape, generator=OWN), "randn"),
    "Python": (lambda net, h: h * random.random(), "random"),
    "NumPy": (lambda net, h: h + torch.from_numpy(np.random.rand(3, 8).astype("f4")), "random"),
    "NumPy's, its own": (lambda net, h: h * float(net.numbers.random()), "random"),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("method", [Saliency, GuidedBackprop])
def test_a_model_that_draws_is_refused(name, method):
    draw, drawn = DRAWS[name]
    with pytest.raises(ModelError, match=rf'map is random; received .*vouch={{"{drawn}": "plain"}}'):
        method(Drawing(draw)).explain(images(), 1)
    assert len(method(Drawing(draw), vouch={drawn: "plain"}).explain(images(), 1)) == 3
    assert len(method(Drawing(draw), vouch={"random": "plain"}).explain(images(), 1)) == 3


@pytest.mark.parametrize(
    ("numbers", "draw"),
    [
        (lambda: np.random.default_rng(0), lambda numbers: lambda: float(numbers.random())),
        (lambda: np.random.RandomState(0), lambda numbers: lambda: float(numbers.rand())),
        (lambda: random.Random(0), lambda numbers: numbers.random),
        (lambda: torch.Generator().manual_seed(0), lambda numbers: lambda: torch.rand((), generator=numbers)),
    ],
)
def test_a_function_that_draws_from_what_it_closes_over_is_refused(numbers, draw):
    weight, drawn = torch.ones(6, 3), draw(numbers())
    with pytest.raises(ModelError, match="map is random"):
        GuidedBackprop(lambda x: torch.relu(x) @ weight * drawn()).explain(images(), 1)


class Augmented:
    """What is called and draws from a generator of its own."""

    def __init__(self) -> None:
        self.numbers, self.weight = random.Random(0), torch.ones(6, 3)

    def __call__(self, x):
        return torch.relu(x) @ self.weight * self.numbers.random()


class Remote:
    """What is called, and fails to say what it has."""

    def __call__(self):
        return 2

    def __getattr__(self, name):
        raise RuntimeError(name)


def closed_over(model):
    return lambda x: model(x)


@pytest.mark.parametrize("reached", [lambda one: one, lambda one: one.__call__, closed_over])
def test_what_is_called_and_draws_from_its_own_is_refused(reached):
    for one in (Augmented(), Drawing(lambda net, h: h * float(net.numbers.random())).eval()):
        with pytest.raises(ModelError, match="map is random"):
            GuidedBackprop(reached(one)).explain(images(), 1)


def test_what_fails_to_say_what_it_has_is_not_asked():
    remote, weight = Remote(), torch.ones(6, 3)
    assert GuidedBackprop(lambda x: torch.relu(x) @ weight * remote()).explain(images(), 1).coverage


def test_planted_fault_a_draw_that_is_not_vouched_for_is_refused_still():
    model = Drawing(lambda net, h: (h + torch.randn_like(h)) * random.random())
    with pytest.raises(ModelError, match="randn_like"):
        GuidedBackprop(model, vouch={"rand": "plain"}).explain(images(), 1)


def _forked(net, h):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return h + torch.randn_like(h)


def _seeded(net, h):
    torch.manual_seed(3)
    return h + torch.randn_like(h)


def _built_on_the_way(net, h):
    if not hasattr(net, "late"):
        net.late = nn.Linear(8, 8).eval()
    return net.late(h)


SETTLED = {
    "nothing random": lambda net, h: h,
    "the same seed in each call": _seeded,
    "a fork of the generators": _forked,
    "a generator made for the call": lambda net, h: h + torch.randn(8, generator=torch.Generator().manual_seed(2)),
    "what the first call builds": _built_on_the_way,
    "attention": lambda net, h: F.scaled_dot_product_attention(*[h.view(3, 1, 4, 2)] * 3).flatten(1),
    "dropout": lambda net, h: F.dropout(h, training=net.training),
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_is_no_chance_is_explained(name):
    model = Drawing(SETTLED[name])
    first, second = (GuidedBackprop(model).explain(images(), 1) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_generators_stay_as_they_are():
    model = Drawing(SETTLED["nothing random"])
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    GuidedBackprop(model).explain(images(), 1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))


def test_another_thread_may_draw():
    def draws(net, h):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: (torch.rand(3), random.random())).result()
        return h

    assert len(GuidedBackprop(Drawing(draws)).explain(images(), 1)) == 3
