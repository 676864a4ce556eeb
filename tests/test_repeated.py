"""What puts a value beside its own multiples, beside zeros, or out of sight: a choice by these tells its sign."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import empty, noting
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

torch = pytest.importorskip("torch")
functional = torch.nn.functional
weights = pytest.importorskip("guided_backprop.backends.torch.hidden.weights")

BOTH, FOUR = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[1.0, -1.0, 1.0, -1.0]]).double()
TWICE = torch.tensor([[2.0, 1.0]]).double()
ONE, ONE_AND_NONE = torch.ones(1, 1, 1).double(), torch.tensor([1.0, 0.0]).double()


def column(x):
    return x.reshape(-1, 1, 1)


def spread(x, kernel=ONE, **how):
    return functional.conv_transpose1d(x.reshape(1, 1, -1), kernel, **how)


def with_zeros_between(x):
    return functional.fold(x.reshape(1, 1, -1), (1, 2 * x.numel()), (1, 1), stride=(1, 2))[:, 0]


def bags(x):
    places = torch.stack([torch.arange(x.numel()), torch.full((x.numel(),), x.numel())], 1)
    values = torch.cat([x.flatten(), torch.zeros(1).double()])
    return functional.embedding_bag(places, values[:, None], mode="max").reshape(x.shape)


def in_a_thread(x):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda x: x * (x > 0), x).result()


def is_cut(x):
    """Return 1 where x is above 0: there the arc tangent of an imaginary number jumps."""
    return torch.complex(torch.zeros_like(x), x.exp()).atan().real.div(torch.pi / 2)


def above_its_mean(x):
    """Return a ReLU of x, which is what is left of another value less its mean."""
    y = x + x.mean(1, keepdim=True)
    other = y - y.mean(1, keepdim=True) + x.mean(1, keepdim=True)
    return torch.where(other > 0 * other.amax(1, keepdim=True), other, 0.0)


#: Each is a ReLU of x.
RELUS = {
    "the place of the larger of x and -x": lambda x: x * ((x[..., None] @ BOTH).argmax(-1) == 0),
    "a magnitude by the larger": lambda x: (x + (x[..., None] @ BOTH).amax(-1)) / 2,
    "a magnitude by a pool": lambda x: (
        (x + functional.max_pool1d(functional.conv1d(column(x), BOTH.T[..., None]).mT, 2).reshape(x.shape)) / 2
    ),
    "less the smaller": lambda x: (pair := x[..., None] @ BOTH).sub(pair.amin(-1, keepdim=True))[..., 0] / 2,
    "the larger of 2 x and x": lambda x: (x[..., None] @ TWICE).amax(-1) - x,
    "a norm of multiples": lambda x: x * (functional.layer_norm(x[..., None] @ FOUR, (4,), eps=1e-300)[..., 0] + 1) / 2,
    "a transposed convolution": lambda x: functional.max_pool1d(spread(x, stride=2, output_padding=1), 2).reshape(
        x.shape
    ),
    "a convolution's border": lambda x: (
        functional.conv2d(column(x)[..., None], ONE[..., None], padding=1).amax((1, 2, 3)).reshape(x.shape)
    ),
    "a pool over a convolution's border": lambda x: functional.max_pool2d(
        functional.conv2d(column(x)[..., None], ONE[..., None], padding=1), 3
    ).reshape(x.shape),
    "zeros that fill most of it": lambda x: functional.max_pool1d(
        functional.conv_transpose1d(column(x), ONE, stride=4, output_padding=3), 2
    )[..., 0].reshape(x.shape),
    "a border that fills most of it": lambda x: functional.max_pool1d(functional.conv1d(column(x), ONE, padding=3), 2)[
        ..., 1
    ].reshape(x.shape),
    "a fold": lambda x: functional.max_pool1d(with_zeros_between(x), 2).reshape(x.shape),
    "windows at a border": lambda x: functional.unfold(x.reshape(-1, 1, 1, 1), 3, padding=1).amax(1).reshape(x.shape),
    "a diagonal": lambda x: torch.diag_embed(x).amax(-1),
    "bags of two": bags,
    "a number of 0 among multiples": lambda x: (x[..., None] * (x.tanh()[..., None] * 0.0 + ONE_AND_NONE)).amax(-1),
    "a branch of a complex curve": lambda x: x * is_cut(x),
    "a rank of few rows that is a threshold": above_its_mean,
    "another thread": in_a_thread,
}


def network_of(spelled):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    first, second, third, images = (torch.as_tensor(array).double() for array in (*WEIGHTS, ROWS))
    return lambda x: (spelled(torch.relu(x @ first) @ second - 0.2) @ third).tanh(), images


def is_right_or_refused(spelled, count=4):
    model, images = network_of(spelled)
    try:
        found = np.asarray(GuidedBackprop(model).explain(images[:count], labels=1))
    except OpaqueRegionError:
        return True
    return np.allclose(found, oracle()[:count], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RELUS)
def test_it_is_right_or_refused(name):
    assert is_right_or_refused(RELUS[name])


@pytest.mark.parametrize("name", ["a magnitude by the larger", "the larger of 2 x and x"])
def test_planted_fault_what_is_larger_of_multiples_is_a_rank(name, monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.spelling._chance_at_zero", lambda *_: None)
    monkeypatch.setattr(noting.Noting, "multiplied", [])
    assert not is_right_or_refused(RELUS[name], 2)


@pytest.mark.parametrize("name", ["a transposed convolution", "a diagonal", "windows at a border"])
def test_planted_fault_gaps_are_not_looked_for(name, monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.torch.hidden.step.emptied_by", lambda name, args: empty.NOTHING)
    monkeypatch.setattr(noting.Noting, "multiplied", [])
    assert not is_right_or_refused(RELUS[name])


MAPS = torch.as_tensor(np.random.default_rng(3).normal(size=(3, 2, 8, 8)))
KERNELS = torch.as_tensor(np.random.default_rng(4).normal(size=(6, 2, 3, 3)))


def larger_half(x):
    return x * (x >= x.median(1, keepdim=True).values)


#: None is a ReLU, and nothing of it is refused.
ORDINARY = {
    "a pool behind a border": lambda x: functional.max_pool2d(functional.conv2d(x, KERNELS, padding=1), 2),
    "a pool behind a border as wide as the kernel": lambda x: functional.max_pool2d(
        functional.conv2d(x, KERNELS[..., :1, :1], padding=1), 2
    ),
    "a wide border": lambda x: functional.conv2d(x, KERNELS, padding=2, dilation=2).amax(1, keepdim=True),
    "twice as large": lambda x: functional.max_pool2d(functional.conv_transpose2d(x, KERNELS.mT.transpose(0, 1)), 2),
    "a median of windows": lambda x: functional.unfold(x, 3, padding=1).reshape(3, 2, 9, 8, 8).median(2).values,
    "the larger half": lambda x: larger_half(x.flatten(1)),
    "a place of many": lambda x: functional.conv2d(x, KERNELS) * functional.conv2d(x, KERNELS).argmax(1)[:, None],
    "a norm of rows": lambda x: functional.layer_norm(x, x.shape[1:]),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_none_keeps_its_derivative(name):
    def model(x):
        return ORDINARY[name](torch.relu(x) - 0.4).flatten(1).tanh().sum(1, keepdim=True)

    x = MAPS.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():
        found = np.asarray(GuidedBackprop(model).explain(MAPS, labels=0))
    assert np.allclose(found, g.clamp(min=0).numpy(), rtol=0, atol=1e-9)


#: Of 9 values: what a convolution is given, and where it leaves zeros.
WINDOWS = {
    "each value": (empty.Window(9, 9, 1), (False, False)),
    "ordinary padding": (empty.Window(9, 9, 3, low=1), (False, False)),
    "padding in front as wide as a window": (empty.Window(9, 10, 3, low=3), (False, True)),
    "padding behind": (empty.Window(9, 10, 1), (False, True)),
    "spread over a border": (empty.Window(9, 13, 3, low=4, spread=2), (False, False)),
    "every second one, each as wide": (empty.Window.transposed(9, 18, 2, step=2, low=0, spread=1), (False, False)),
    "every second one": (empty.Window.transposed(9, 17, 1, step=2, low=0, spread=1), (True, False)),
    "every second one, and one more": (empty.Window.transposed(9, 18, 1, step=2, low=0, spread=1), (True, True)),
    "every second one, spread": (empty.Window.transposed(9, 21, 3, step=2, low=0, spread=2), (True, False)),
    "every third one": (empty.Window.transposed(9, 26, 2, step=3, low=0, spread=1), (True, False)),
    "nothing at all": (empty.Window(1, 1, 2, low=1, spread=2), (False, False)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_where_windows_see_nothing_zeros_are_left(name):
    window, expected = WINDOWS[name]
    assert empty.emptied([window, empty.Window(4, 4, 1)]) == expected


@pytest.mark.parametrize(("stride", "rest"), [(1, 0), (2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(("kernel", "spread", "edge"), [(1, 1, 0), (2, 1, 0), (3, 2, 2), (2, 3, 1)])
def test_a_transposed_convolution_leaves_zeros_there(stride, rest, kernel, spread, edge):
    ones, weight = torch.ones(1, 1, 9), torch.ones(1, 1, kernel)
    made = functional.conv_transpose1d(ones, weight, None, stride, edge, rest, 1, spread)
    seen = np.flatnonzero(made[0, 0])
    expected = seen[-1] - seen[0] + 1 > seen.size, seen[-1] - seen[0] + 1 < made.numel()
    given = [ones, weight, None, [stride], [edge], [spread], True, [rest], 1]
    assert weights.emptied_by("convolution", given) == expected


@pytest.mark.parametrize(
    ("kernel", "spread", "edge"), [(1, 1, 0), (1, 1, 1), (3, 1, 1), (3, 1, 3), (2, 3, 4), (2, 12, 9)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_leaves_zeros_there(stride, kernel, spread, edge):
    ones, weight = torch.ones(1, 1, 9), torch.ones(1, 1, kernel)
    made = functional.conv1d(ones, weight, None, stride, edge, spread)
    seen = np.flatnonzero(made[0, 0])
    expected = seen[-1] - seen[0] + 1 > seen.size, seen[-1] - seen[0] + 1 < made.numel()
    given = [ones, weight, None, [stride], [edge], [spread], False, [0], 1]
    assert weights.emptied_by("convolution", given) == expected
