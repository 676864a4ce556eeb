"""What is folded, what must not be, and that an optimised or lean method stays right when model or images change."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guided_backprop import (
    DeconvNet,
    GuidedBackprop,
    ImageError,
    ModelError,
    OpaqueRegionError,
    OptionError,
    Saliency,
    ScoreError,
    compare,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends.torch.fast import kernels
from guided_backprop.backends.torch.fast.stem import StridedConvolution
from guided_backprop.backends.torch.hidden import step
from guided_backprop.backends.torch.hidden.watch import ForwardWatch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def made(build, seed: int = 0) -> nn.Module:
    """Return a model in float64 whose batch-norms do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, -2, 2)
                    nn.init.normal_(module.bias)
    return model


def folds_of(method: GuidedBackprop):
    """Return how many convolutions are folded, and whether padding is."""
    # The model tells its framework.
    backend = method.subject.backend(None)
    folds = backend._run_forward.__self__.folds
    return sum(kernel.norm is not None for kernel in folds.kernels.values()), folds.pads


def names_of(method: GuidedBackprop, batch: torch.Tensor) -> list[str]:
    """Return the names of the nodes between score and images."""
    backend = method.subject.backend(batch)
    run, _ = backend._run(Inputs.of(batch), [method.rule], undoes_head=True)
    return [node.name() for node in run.path.nodes]


class Own(nn.Module):
    """A model of some modules and a function of them and images."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self._function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(self, x)


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def twice(self, x):
    hidden = self.conv(x)
    return torch.relu(self.norm(hidden)) + hidden


# Build, the images' shape, and how many convolutions are folded.
FOLDED = {
    "conv, norm": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()), (3, 4, 9, 8), 1),
    "no bias": (lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(4), nn.ReLU()), (3, 4, 9, 8), 1),
    "no affine": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False), nn.ReLU()), (3, 4, 9, 8), 1),
    "groups": (lambda: nn.Sequential(conv(groups=2), nn.BatchNorm2d(4), nn.ReLU()), (3, 4, 9, 8), 1),
    "depthwise": (lambda: nn.Sequential(conv(groups=4, stride=2), nn.BatchNorm2d(4), nn.ReLU6()), (3, 4, 9, 8), 1),
    "a series": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), (3, 2, 20), 1),
    "a volume": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU()), (3, 2, 6, 7, 8), 1),
    "functional": (
        lambda: Own(
            lambda self, x: torch.relu(
                F.batch_norm(
                    input=F.conv2d(x, self.conv.weight, padding="same"),
                    running_mean=self.norm.running_mean,
                    running_var=self.norm.running_var,
                )
            ),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
        ),
        (3, 4, 9, 8),
        0,
    ),
    "the result is used twice": (lambda: Own(twice, conv=conv(), norm=nn.BatchNorm2d(4)), (3, 4, 9, 8), 0),
    "the weight is used twice": (
        lambda: Own(
            lambda self, x: self.norm(self.conv(torch.relu(self.conv(x)))), conv=conv(), norm=nn.BatchNorm2d(4)
        ),
        (3, 4, 9, 8),
        0,
    ),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(4), conv(), nn.ReLU()), (3, 4, 9, 8), 0),
    "statistics of the batch": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
        (1, 4, 9, 8),
        0,
    ),
    "the shape is asked in between": (
        lambda: Own(
            lambda self, x: torch.relu(self.norm(self.ask(self.conv(x)))) * 1.5,
            conv=conv(),
            norm=nn.BatchNorm2d(4),
            ask=Own(lambda self, x: x if x.shape[1] == 4 and x.dim() == 4 else x * 2),
        ),
        (3, 4, 9, 8),
        1,
    ),
    "changed in place in between": (
        lambda: Own(lambda self, x: torch.relu(self.norm(self.conv(x).mul_(2))), conv=conv(), norm=nn.BatchNorm2d(4)),
        (3, 4, 9, 8),
        0,
    ),
    "a view of fixed layout": (
        lambda: Own(
            lambda self, x: torch.relu(self.norm(self.conv(x))).view(len(x), -1), conv=conv(), norm=nn.BatchNorm2d(4)
        ),
        (3, 4, 9, 8),
        1,
    ),
}


@pytest.mark.parametrize("memory", [None, "lean"])
@pytest.mark.parametrize("name", FOLDED)
def test_what_is_folded(name, memory):
    build, shape, count = FOLDED[name]
    model = made(build)
    plain = GuidedBackprop(model)
    fast = GuidedBackprop(model, memory=memory).optimize(images(1, *shape[1:], seed=7))
    assert folds_of(fast)[0] == count
    for given_ in (images(*shape), images(1, *shape[1:], seed=2)):
        # Weights of both signs, so that gradients of both signs arrive at a last ReLU.
        weights = images(*model(given_).shape, seed=9)
        expected, found = plain.explain(given_, weights), fast.explain(given_, weights)
        np.testing.assert_allclose(found, expected, **TOLERANCE)
        np.testing.assert_allclose(found.scores, expected.scores, **TOLERANCE)
        assert found.coverage == expected.coverage
        # A planted fault: forgetting the rule.
        assert not np.allclose(found, Saliency(model).explain(given_, weights), **TOLERANCE)


PADDED = {
    "zeros": (lambda: nn.Sequential(nn.ZeroPad2d(2), conv(), nn.ReLU(), nn.ZeroPad2d((1, 1, 0, 0)), conv()), True),
    "not alike": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(stride=2), nn.ReLU()), True),
    "ones": (lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), conv(), nn.ReLU()), True),
    "reflected": (lambda: nn.Sequential(nn.ReflectionPad2d(1), conv(), nn.ReLU()), True),
    "used otherwise": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), conv()), False),
    "cut off": (lambda: nn.Sequential(nn.ZeroPad2d(-1), conv(), nn.ReLU()), True),
    "returned": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.ZeroPad2d(1)), False),
    "padding by a word": (
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()),
        False,
    ),
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_that_a_convolution_does_itself(name):
    build, is_folded = PADDED[name]
    model = made(build)
    fast = GuidedBackprop(model).optimize(images(1, 4, 9, 8))
    assert folds_of(fast)[1] == is_folded
    given_ = images(3, 4, 9, 8)
    np.testing.assert_allclose(fast.explain(given_, 1), GuidedBackprop(model).explain(given_, 1), **TOLERANCE)


SIDES = st.tuples(*[st.integers(0, 3)] * 4)
WINDOWS = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(2, 5),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "groups": st.sampled_from([1, 4]),
    }
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(SIDES, WINDOWS, st.booleans())
def test_padding_of_any_widths(dtype, sides, windows, has_norm):
    layers = nn.ZeroPad2d(sides), nn.Conv2d(4, 4, **windows), nn.BatchNorm2d(4) if has_norm else nn.Identity()
    model = made(lambda: nn.Sequential(conv(), nn.ReLU(), *layers, nn.ReLU(), nn.Conv2d(4, 4, 1))).to(dtype)
    given_ = images(2, 4, 11, 12).to(dtype)
    weights = images(*model(given_).shape, seed=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_LEAST_WORK", 0)
        fast = GuidedBackprop(model).optimize(given_[:1])
        is_padded = "ConstantPadNdBackward0" in names_of(fast, given_)
        found = fast.explain(given_, weights)
    is_alike = sides[0] == sides[1] and sides[2] == sides[3]
    assert is_padded == (not is_alike and windows["dilation"] > 1)
    expected = np.asarray(GuidedBackprop(model).explain(given_, weights))
    tolerance = TOLERANCE if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(found, expected, **tolerance)
    # A planted fault: padded on the other side.
    if not is_alike:
        model[2] = nn.ZeroPad2d((sides[1], sides[0], sides[3], sides[2])).eval()
        assert not np.allclose(found, GuidedBackprop(model).explain(given_, weights), **tolerance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(4, 11), st.integers(4, 11)),
    st.integers(2, 5),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(12, 25), st.integers(12, 25)),
)
def test_the_first_convolution(kernel, stride, padding, size):
    weight, x = images(5, 3, *kernel), images(2, 3, *size).requires_grad_()
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    g = images(*expected.shape, seed=3)
    found = StridedConvolution.apply(x, weight, None, ((stride, stride), padding))
    np.testing.assert_allclose(found.detach(), expected.detach(), **TOLERANCE)
    (right,) = torch.autograd.grad(expected, x, g)
    np.testing.assert_allclose(torch.autograd.grad(found, x, g)[0], right, **TOLERANCE)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(right.roll(1, 3), right, **TOLERANCE)


def test_a_large_first_convolution_is_run_so():
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)))
    fast = GuidedBackprop(model).optimize(images(1, 3, 20, 21))
    names = names_of(fast, images(2, 3, 20, 21))
    assert "StridedConvolutionBackward" in names
    assert not any("BatchNorm" in name for name in names)
    given_ = images(2, 3, 20, 21)
    np.testing.assert_allclose(fast.explain(given_, 1), GuidedBackprop(model).explain(given_, 1), **TOLERANCE)


def _changed_afterwards(self, x):
    hidden = self.relu(self.conv(x))
    hidden += x
    return self.conv2(hidden)


def _changed_through_a_view(self, x):
    hidden = self.relu(self.conv(x))
    hidden.flatten(1).mul_(2)
    return self.conv2(hidden)


def _with(forward, relu):
    return lambda: Own(forward, conv=conv(), relu=relu, conv2=conv())


def _hooked(self, x):
    hidden = self.relu(self.conv(x))
    if hidden.requires_grad:
        self.seen = []
        hidden.register_hook(self.seen.append)
    return self.conv2(hidden)


# Build, the name in the coverage, and whether the ReLU is one of ours.
GATED = {
    "ReLU": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()), "relu", True),
    "ReLU in place": (lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), conv()), "relu", True),
    "before a pool": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), conv()), "relu", True),
    "before a sum": (_with(lambda self, x: self.conv2(x) + self.relu(self.conv(x)), nn.ReLU()), "relu", True),
    "before two": (_with(lambda self, x: self.conv2(y := self.relu(self.conv(x))) + y, nn.ReLU()), "relu", True),
    "method": (_with(lambda self, x: self.conv2(self.conv(x).relu()), nn.Identity()), "relu", True),
    "method in place": (_with(lambda self, x: self.conv2(self.conv(x).relu_()), nn.Identity()), "relu", True),
    "of a view": (_with(lambda self, x: self.conv2(self.conv(x).view_as(x).relu_()), nn.Identity()), "relu", False),
    "ReLU6": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU6(), conv()), "relu6", True),
    "ReLU6 in place": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), conv()), "relu6", True),
    "another cap": (lambda: nn.Sequential(conv(), nn.Hardtanh(0, 0.5, inplace=True), conv()), "relu0.5", True),
    "functional": (_with(lambda self, x: self.conv2(F.relu6(input=self.conv(x))), nn.Identity()), "relu6", True),
    "first of all": (lambda: nn.Sequential(nn.ReLU6(inplace=True), conv()), "relu6", True),
    "no ReLU": (lambda: nn.Sequential(conv(), nn.Hardtanh(-1, 1), nn.Threshold(0, 0), conv()), "relu", False),
    "changed afterwards": (_with(_changed_afterwards, nn.ReLU6()), "relu6", False),
    "changed through a view": (_with(_changed_through_a_view, nn.ReLU6(inplace=True)), "relu6", False),
    "the gradient is looked at": (_with(_hooked, nn.ReLU()), "relu", False),
}


@pytest.mark.parametrize("kind", [Saliency, DeconvNet, GuidedBackprop])
@pytest.mark.parametrize("memory", [None, "lean"])
@pytest.mark.parametrize("name", GATED)
def test_what_is_gated(name, memory, kind):
    build, relu, is_gated = GATED[name]
    model = made(build)
    fast = kind(model, memory=memory).optimize(images(1, 4, 9, 8, seed=7))
    given_ = 3 * images(2, 4, 9, 8)
    assert ("GatedReluBackward" in names_of(fast, given_)) == (is_gated and memory is None)
    weights = images(*model(given_).shape, seed=9)
    expected, found = kind(model).explain(given_, weights), fast.explain(given_, weights)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert found.coverage == expected.coverage
    assert relu in {row.name for row in found.coverage}
    # A planted fault: the other rules.
    for other in {Saliency, DeconvNet, GuidedBackprop} - {kind}:
        assert not np.allclose(found, other(model).explain(given_, weights), **TOLERANCE)


def _scaled_by_images(self, x):
    weight = x.mean((0, 2, 3)) + 1
    hidden = F.batch_norm(torch.relu(self.conv(x)), self.norm.running_mean, self.norm.running_var, weight)
    return self.conv2(torch.relu(hidden))


def _norm_is_looked_at(self, x):
    hidden = self.norm(torch.relu(self.conv(x)))
    if hidden.requires_grad:
        hidden.register_hook(lambda g: None)
    return self.conv2(torch.relu(hidden))


# Build, and whether the batch-norm is one of ours.
SCALED = {
    "before a ReLU": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), conv()), True),
    "ReLU in place": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(True), conv()), True),
    "no affine": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4, affine=False), conv()), True),
    "used twice": (
        _with(
            lambda self, x: self.conv2(y := self.relu(self.conv(x))) - y, nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
        ),
        True,
    ),
    "of rows": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.ReLU(), nn.BatchNorm1d(5)),
        True,
    ),
    "scaled by the images": (lambda: Own(_scaled_by_images, conv=conv(), norm=nn.BatchNorm2d(4), conv2=conv()), False),
    "looked at": (lambda: Own(_norm_is_looked_at, conv=conv(), norm=nn.BatchNorm2d(4), conv2=conv()), False),
}


@pytest.mark.parametrize("kind", [Saliency, DeconvNet, GuidedBackprop])
@pytest.mark.parametrize("memory", [None, "lean"])
@pytest.mark.parametrize("name", SCALED)
def test_a_batch_norm_that_cannot_be_folded_only_scales(name, memory, kind):
    build, is_ours = SCALED[name]
    model = made(build)
    fast = kind(model, memory=memory).optimize(images(1, 4, 9, 8, seed=7))
    given_ = images(2, 4, 9, 8)
    assert ("ScalingNormBackward" in names_of(fast, given_)) == (is_ours and memory is None)
    weights = images(*model(given_).shape, seed=9)
    expected, found = kind(model).explain(given_, weights), fast.explain(given_, weights)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert found.coverage == expected.coverage
    # Planted faults: the other rules, and another factor.
    for other in {Saliency, DeconvNet, GuidedBackprop} - {kind}:
        assert not np.allclose(found, other(model).explain(given_, weights), **TOLERANCE)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_var.mul_(1.5)
    changed = fast.explain(given_, weights)
    np.testing.assert_allclose(changed, kind(model).explain(given_, weights), **TOLERANCE)
    assert not np.allclose(changed, expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_rules_and_labels_on_one_gated_graph(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "_LEAST_WORK", 0)

    # A ReLU's result goes to one convolution (strided and not), to a pool, and to more than one: each rule must undo
    # what the one before set.
    def skip(turn):
        return Own(lambda self, x: sum([x, self.conv(x)][::turn]), conv=conv())

    model = made(
        lambda: nn.Sequential(
            *(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(stride=2), nn.ReLU6(), nn.MaxPool2d(2), conv(groups=4)),
            *(
                nn.ReLU(),
                skip(1),
                nn.ReLU(),
                skip(-1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=4),
                nn.ReLU(),
            ),
            *(nn.Flatten(), nn.Linear(4 * 81, 5)),
        )
    ).to(dtype)
    given_ = images(3, 4, 13, 13).to(dtype)
    methods = [kind(model) for kind in (GuidedBackprop, Saliency, DeconvNet, GuidedBackprop)]
    expected = compare(given_, "top3", methods)
    found = compare(given_, "top3", [method.optimize(given_) for method in methods])
    for ours, right in zip(found, expected, strict=True):
        rounding = {"rtol": 1e-3, "atol": 1e-5 * float(np.abs(right).max())}
        np.testing.assert_allclose(ours, right, **(TOLERANCE if dtype == torch.float64 else rounding))
    # A planted fault: the rule before.
    assert not np.allclose(expected[0], expected[1], rtol=1e-3)


def _hooked_node(self, x):
    hidden = self.conv2(self.relu(self.conv(x)))
    if hidden.grad_fn is not None:
        self.seen = []
        hidden.grad_fn.register_hook(lambda given, _: self.seen.append(given[0]))
    return hidden


@pytest.mark.parametrize("forward", [_hooked, _hooked_node])
def test_a_gradient_that_the_model_keeps_stays_as_it_was(forward):
    model = made(_with(forward, nn.ReLU()))
    GuidedBackprop(model).optimize(images(1, 4, 9, 8)).explain(images(2, 4, 9, 8), 1)
    (seen,) = model.seen
    # The rule would have clamped it.
    assert (seen < 0).any()


def test_what_changes_later_is_learned_from_the_example():
    runs = []

    def forward(self, x):
        runs.append(x)
        return _changed_afterwards(self, x)

    model = made(_with(forward, nn.ReLU6()))
    fast = GuidedBackprop(model).optimize(images(1, 4, 9, 8))
    runs.clear()
    fast.explain(images(2, 4, 9, 8), 1)
    assert len(runs) == 1


def _second_derivative(relu):
    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            (slope,) = torch.autograd.grad((relu(self.conv(x)) ** 2).sum(), x, create_graph=True)
        return self.conv2(torch.relu(x)).mean((2, 3)) + slope.mean((2, 3))

    return _with(forward, nn.Identity())


def _slope_written_out(self, x):
    slope = F.conv_transpose2d(2 * F.relu6(self.conv(x)), self.conv.weight, padding=1)
    return self.conv2(torch.relu(x)).mean((2, 3)) + slope.mean((2, 3))


@pytest.mark.parametrize("relu", [torch.relu, F.relu6, F.silu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_differentiates_itself_twice(relu, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "_LEAST_WORK", 0)
    model, given_ = made(_second_derivative(relu)).to(dtype), images(2, 4, 9, 8).to(dtype)
    expected = Saliency(model).explain(given_, 1)
    tolerance = TOLERANCE if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(Saliency(model).optimize(given_).explain(given_, 1), expected, **tolerance)
    # A planted fault: the second derivative is 0.
    first = Own(lambda self, x: self.conv2(torch.relu(x)).mean((2, 3)), conv2=model.conv2).eval()
    assert not np.allclose(Saliency(first).explain(given_, 1), expected, **tolerance)
    if relu is not F.silu:
        # Its derivative closes what the ReLU in front of it closes anyway.
        written = Own(_slope_written_out, conv=model.conv, conv2=model.conv2).eval()
        assert model.conv(given_).max() < 6
        for method in (GuidedBackprop(model), GuidedBackprop(model).optimize(given_)):
            right = GuidedBackprop(written).explain(given_, 1)
            np.testing.assert_allclose(method.explain(given_, 1), right, **tolerance)
            assert not np.allclose(right, expected, **tolerance)


@pytest.mark.parametrize(("dtype", "cap"), [(torch.float16, 0.1), (torch.bfloat16, 0.7)])
def test_a_cap_in_a_narrow_dtype(dtype, cap):
    model = made(lambda: nn.Sequential(nn.Linear(6, 50), nn.Hardtanh(0, cap), nn.Linear(50, 3))).to(dtype)
    given_ = (3 * images(4, 6)).to(dtype)
    expected = np.asarray(GuidedBackprop(model).explain(given_, 0))
    scale = float(np.abs(expected).max())
    found = np.asarray(GuidedBackprop(model).optimize(given_).explain(given_, 0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 * scale)
    # A planted fault: no unit reaches the cap.
    model[1].max_val = 1e4
    assert np.abs(np.asarray(GuidedBackprop(model).explain(given_, 0)) - expected).max() > 2e-2 * scale


def test_a_relu_in_place_that_is_cut_off_where_nothing_is_differentiated():
    def forward(self, x):
        hidden = self.conv(x)
        with torch.no_grad():
            hidden = F.relu(hidden, inplace=True)
        return torch.relu(self.conv2(hidden)) + torch.relu(x)

    model, given_ = made(_with(forward, nn.Identity())), images(2, 4, 9, 8)
    expected = Saliency(model).explain(given_, 1)
    np.testing.assert_allclose(Saliency(model).optimize(given_).explain(given_, 1), expected, **TOLERANCE)
    detached = Own(lambda self, x: torch.relu(x)).eval()
    assert not np.allclose(Saliency(detached).explain(given_, 1), expected, **TOLERANCE)


@pytest.mark.parametrize("kind", [Saliency, DeconvNet, GuidedBackprop])
def test_nan_on_the_way_back_is_an_error(kind, monkeypatch):
    monkeypatch.setattr(kernels, "_LEAST_WORK", 0)

    def forward(self, x):
        hidden = torch.relu(self.conv2(torch.relu(self.conv(x))))
        # The root's derivative is infinite at 0, and times 0 it is not a number.
        return torch.stack([torch.sqrt((self.zero(hidden) ** 2).sum(1)).mean((1, 2)), hidden.mean((1, 2, 3))], 1)

    model = made(lambda: Own(forward, conv=conv(), conv2=conv(), zero=conv(bias=False))).float()
    nn.init.zeros_(model.zero.weight)
    given_ = images(1, 4, 9, 8).float()
    for method in (kind(model), kind(model).optimize(given_)):
        with pytest.raises(ScoreError):
            method.explain(given_, 0)
    nn.init.ones_(model.zero.weight)
    kind(model).optimize(given_).explain(given_, 0)


def test_a_custom_function_of_the_same_name_is_no_relu_of_ours():
    class GatedRelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    model = Own(lambda self, x: torch.relu(GatedRelu.apply(x))).eval()
    with pytest.raises(OpaqueRegionError, match="GatedRelu"):
        GuidedBackprop(model).explain(images(1, 4, 9, 8), 1)


# What changes later.


def _scale_weight(model: nn.Module) -> None:
    model[0].weight.mul_(-1.5)


def _one_weight(model: nn.Module) -> None:
    model[0].weight[1, 2, 0, 1] += 1


def _statistics(model: nn.Module) -> None:
    model[1].running_var.mul_(3)


def _new_parameter(model: nn.Module) -> None:
    model[1].weight = nn.Parameter(model[1].weight * -2)


def _new_epsilon(model: nn.Module) -> None:
    model[1].eps = 0.5


def _through_data(model: nn.Module) -> None:
    # This leaves no trace in the tensor's version.
    model[0].weight.data.mul_(0.3)


def _new_layer(model: nn.Module) -> None:
    model[1] = nn.Identity().eval()


CHANGES = [_scale_weight, _one_weight, _statistics, _new_parameter, _new_epsilon, _through_data, _new_layer]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_count_at_once(change):
    model = made(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    given_ = images(2, 4, 9, 8)
    fast = GuidedBackprop(model).optimize(given_)
    before = np.asarray(fast.explain(given_, 1))
    with torch.no_grad():
        change(model)
    after = fast.explain(given_, 1)
    np.testing.assert_allclose(after, GuidedBackprop(model).explain(given_, 1), **TOLERANCE)
    assert not np.allclose(after, before)


def test_another_way_on_other_images():
    """What was learned from the example does not hold: the model is run as it is."""

    def forward(self, x):
        hidden = self.conv(x)
        return torch.relu(self.norm(hidden) if x.mean() > 0 else hidden * 2)

    model = made(lambda: Own(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
    positive, negative = images(2, 4, 9, 8).abs(), -images(2, 4, 9, 8).abs()
    fast = GuidedBackprop(model).optimize(positive)
    assert folds_of(fast)[0] == 1
    for given_ in (positive, negative, positive):
        np.testing.assert_allclose(fast.explain(given_, 1), GuidedBackprop(model).explain(given_, 1), **TOLERANCE)


def _in_front_of_the_norm(self, x):
    hidden = self.conv(x)
    normed = torch.relu(self.norm(hidden))
    return normed if x.mean() > 0 else normed + hidden


def _returned_as_well(self, x):
    hidden = self.conv(x)
    normed = torch.relu(self.norm(hidden))
    return normed, (normed if x.mean() > 0 else hidden)


def _padded_images(self, x):
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = torch.relu(self.norm(self.conv(padded)))
    return hidden if x.mean() > 0 else hidden + padded


def _padded_for_two(self, x):
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = torch.relu(self.norm(self.conv(padded)))
    return hidden if x.mean() > 0 else hidden + self.conv2(padded)


def _padded_for_its_size(self, x):
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = torch.relu(self.norm(self.conv(padded)))
    return hidden if x.mean() > 0 else hidden * padded.shape[2]


@pytest.mark.parametrize(
    "forward", [_in_front_of_the_norm, _returned_as_well, _padded_images, _padded_for_two, _padded_for_its_size]
)
def test_what_was_left_out_is_used_on_other_images(forward):
    model = made(lambda: Own(forward, conv=conv(), norm=nn.BatchNorm2d(4), conv2=conv()))
    positive, negative = images(2, 4, 9, 8).abs(), -images(2, 4, 9, 8).abs()
    options = {"output": 1} if forward is _returned_as_well else {}
    plain = GuidedBackprop(model, **options) if not options else Saliency(model, **options)
    fast = plain.optimize(positive)
    assert folds_of(fast)[0] == 1
    for given_ in (positive, negative, positive):
        np.testing.assert_allclose(fast.explain(given_, 1), plain.explain(given_, 1), **TOLERANCE)


def test_nothing_of_the_users_changes():
    model = made(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    state, given_ = deepcopy(model.state_dict()), images(2, 4, 9, 8)
    pixels, random = given_.clone(), torch.get_rng_state()
    fast = GuidedBackprop(model, memory="lean").optimize(given_)
    fast.explain(given_, 1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(given_, pixels)
    assert torch.equal(torch.get_rng_state(), random)
    # The user's own hooks see the batch-norm run: with one image where a gradient is compared.
    assert set(seen) == {(1, 4, 9, 8), (2, 4, 9, 8)}
    assert not GuidedBackprop(model).subject.is_optimized


def test_eight_threads_on_one_optimised_method():
    model = made(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4), nn.ReLU()))
    batches = [images(1, 4, 9, 8, seed=seed) for seed in range(8)]
    expected = [np.asarray(GuidedBackprop(model).explain(batch, 1)) for batch in batches]
    gradients = []
    for batch in batches:
        leaf = batch.clone().requires_grad_()
        gradients.append(torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0])
    fast = GuidedBackprop(model, memory="lean").optimize(batches[0])

    def work(number: int) -> None:
        for _ in range(25):
            np.testing.assert_allclose(fast.explain(batches[number], 1), expected[number], **TOLERANCE)
            leaf = batches[number].clone().requires_grad_()
            (own,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
            np.testing.assert_allclose(own, gradients[number], **TOLERANCE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_bad_input():
    model = made(lambda: nn.Sequential(conv(), nn.ReLU()))
    with pytest.raises(ImageError, match="must not be empty"):
        GuidedBackprop(model).optimize(images(0, 4, 9, 8))
    with pytest.raises(ImageError, match="must be finite"):
        GuidedBackprop(model).optimize(images(1, 4, 9, 8) * np.nan)
    with pytest.raises(ModelError, match="must accept"):
        GuidedBackprop(model).optimize(images(1, 3, 9, 8))
    with pytest.raises(ModelError, match="eval mode"):
        GuidedBackprop(made(lambda: nn.Sequential(conv(), nn.Dropout())).train()).optimize(images(1, 4, 9, 8))
    with pytest.raises(OptionError, match='memory must be "lean" or None'):
        GuidedBackprop(model, memory="low")


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_lean_is_for_pytorch(framework):
    import jax
    import tensorflow as tf

    relu, batch = {"tensorflow": (tf.nn.relu, tf.ones((1, 2))), "jax": (jax.nn.relu, jax.numpy.ones((1, 2)))}[framework]
    with pytest.raises(OptionError, match=f"for PyTorch; received memory='lean' for {framework}"):
        GuidedBackprop(lambda x: relu(x), memory="lean").explain(batch, 0)
    fast = GuidedBackprop(lambda x: relu(x)).optimize(batch)
    np.testing.assert_array_equal(fast.explain(batch, 0), GuidedBackprop(lambda x: relu(x)).explain(batch, 0))


# Memory that is really less, as the system counts it.
PROGRAM = """
import sys, torch
from torch import nn
from guided_backprop import GuidedBackprop
torch.manual_seed(0)
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 16, 3, padding=1)]
for _ in range(12):
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
images = torch.rand(8, 3, 96, 96)
def peak(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
for memory in ("lean", None):
    method = GuidedBackprop(model, memory=memory)
    method.explain(images[:1], 1)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak("VmRSS")
    method.explain(images, 1)
    print(peak("VmHWM") - before)
"""


def test_lean_takes_less_memory():
    # What is freed goes back to the system at once, and is not counted any more. Lean comes first: what is left of it
    # would make the other's look less.
    options = {"env": os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, **options)
    lean, usual = map(int, done.stdout.split())
    assert lean < 0.35 * usual


def test_functions_of_our_own_hide_nothing_more_to_look_at(monkeypatch):
    """An optimised model is looked at where the model is: its functions give their results a gradient.

    A planted fault: taken for such that give none, each layer behind them is looked at.
    """
    looked_at: list[str] = []
    suspects = ForwardWatch._suspects

    def seen(self, looked, *rest, **named):
        looked_at.append(looked.name)
        return suspects(self, looked, *rest, **named)

    monkeypatch.setattr(ForwardWatch, "_suspects", seen)
    model = made(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 7, 2), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)),
            *(nn.ReLU(), nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
        )
    ).float()
    batch = images(2, 3, 56, 56).float()
    plain = GuidedBackprop(model).explain(batch, 1)
    optimized = GuidedBackprop(deepcopy(model)).optimize(batch).explain(batch, 1)
    np.testing.assert_allclose(optimized, plain, rtol=1e-3, atol=1e-5)
    assert not looked_at
    monkeypatch.setattr(step, "is_inside_own", lambda: False)
    GuidedBackprop(deepcopy(model)).optimize(batch).explain(batch, 1)
    assert looked_at


@pytest.mark.parametrize("is_known", [True, False])
def test_what_pays_for_many_images_alone_is_no_other_way(is_known, monkeypatch):
    """Of many images one is watched, whatever is packed for all of them; else all are, as the planted fault shows."""
    if not is_known:
        monkeypatch.setattr(kernels.PackedConvolution, "stands_for", None)
    model = made(lambda: nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 3))).float()
    batch, watched = images(9, 8, 10, 10).float(), []
    follow = ForwardWatch.follow
    monkeypatch.setattr(ForwardWatch, "follow", lambda watch, x: (watched.append(len(x)), follow(watch, x))[1])
    method = GuidedBackprop(model).optimize(batch[:1])
    assert "PackedConvolution" not in str(names_of(method, batch[:1]))
    assert "PackedConvolution" in str(names_of(method, batch))
    watched.clear()
    method = GuidedBackprop(model).optimize(batch[:1])
    found = method.explain(batch, 1).attribution
    assert watched == ([1] if is_known else [1, 9])
    np.testing.assert_allclose(found, GuidedBackprop(model).explain(batch, 1).attribution, rtol=1e-4, atol=1e-5)
