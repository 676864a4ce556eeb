"""The oracle itself, checked from outside: by hand-worked numbers, by finite differences, and by PyTorch's gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal

from networks_torch import to_torch
from reference import (
    Array,
    AvgPool2d,
    Backward,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Rule,
    Sequential,
    attribution,
    random_batch_norm,
    random_conv,
    random_linear,
)
from test_properties import TOLERANCE as EXACT
from test_properties import Case, cases, often

Build = Callable[[np.random.Generator], Layer]
Shape = tuple[int, ...]

STEP = 1e-6  # the kinks of every network below are further away than this, from every image below
TOLERANCE = {"rtol": 1e-6, "atol": 1e-8}  # of a central difference with that step


def assert_is_gradient(layer: Layer, shape: Shape, seed: int = 0) -> None:
    """Check ``backward(g, "saliency")`` against central differences of ``sum(g * forward(x))``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    y, backward = layer.forward(x)
    g = rng.normal(size=y.shape)
    estimate = np.zeros(shape)
    for index in np.ndindex(shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += STEP
        behind[index] -= STEP
        estimate[index] = np.sum(g * (layer.forward(ahead)[0] - layer.forward(behind)[0])) / (2 * STEP)
    assert_allclose(backward(g, "saliency"), estimate, **TOLERANCE)


def deep_network(rng: np.random.Generator) -> Sequential:
    """Return a network with one of everything."""
    branch = (ReLU(), random_conv(rng, 4, 4, padding=(1, 1)), random_batch_norm(rng, 4), ReLU(cap=1.5))
    layers = (
        random_conv(rng, 2, 4, stride=(2, 1), padding=(1, 0)),
        random_batch_norm(rng, 4),
        ReLU(),
        Residual(Sequential(branch)),
        MaxPool2d((2, 2), (2, 2), (1, 0)),
        AvgPool2d((2, 2), (1, 1)),
        random_conv(rng, 4, 6, (1, 1), groups=2),
        ReLU(),
        GlobalAveragePool(),
        random_linear(rng, 6, 3),
    )
    return Sequential(layers)


def shared_layers_network(rng: np.random.Generator) -> Sequential:
    """Return a network in which one convolution and one ReLU are each used three times."""
    conv, relu = random_conv(rng, 2, 2, padding=(1, 1)), ReLU()
    return Sequential((conv, relu, conv, relu, Residual(Sequential((conv, relu))), Flatten()))


def crooked_conv(rng: np.random.Generator) -> Conv2d:
    """Return a convolution with every option, and different ones along h and along w."""
    return random_conv(rng, 4, 2, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)


WITHOUT_RELU: dict[str, tuple[Build, Shape]] = {
    "conv": (lambda rng: random_conv(rng, 2, 3), (2, 2, 5, 4)),
    "conv 1x1": (lambda rng: random_conv(rng, 2, 3, (1, 1)), (2, 2, 3, 4)),
    "conv stride": (lambda rng: random_conv(rng, 2, 3, (2, 3), stride=(3, 2)), (1, 2, 7, 8)),
    "conv padding": (lambda rng: random_conv(rng, 2, 3, padding=(2, 1)), (1, 2, 4, 5)),
    "conv dilation": (lambda rng: random_conv(rng, 2, 3, (3, 2), dilation=(2, 3)), (1, 2, 6, 7)),
    "conv groups": (lambda rng: random_conv(rng, 4, 6, groups=2), (2, 4, 4, 4)),
    "conv everything": (crooked_conv, (2, 4, 6, 5)),
    "linear": (lambda rng: random_linear(rng, 7, 3), (2, 7)),
    "batch norm": (lambda rng: random_batch_norm(rng, 3), (2, 3, 2, 3)),
    "max pool": (lambda rng: MaxPool2d((2, 2), (2, 2)), (2, 2, 5, 4)),
    "max pool that overlaps": (lambda rng: MaxPool2d((3, 2), (2, 1), (1, 1)), (2, 2, 5, 5)),
    "avg pool": (lambda rng: AvgPool2d((2, 2), (2, 2)), (2, 2, 5, 4)),
    "avg pool that overlaps": (lambda rng: AvgPool2d((3, 2), (2, 1), (1, 1)), (2, 2, 5, 5)),
    "global average pool": (lambda rng: GlobalAveragePool(), (2, 3, 2, 3)),
    "flatten": (lambda rng: Flatten(), (2, 3, 2, 3)),
}
WITH_RELU: dict[str, tuple[Build, Shape]] = {
    "relu": (lambda rng: ReLU(), (2, 3, 4, 4)),
    "relu with cap": (lambda rng: ReLU(cap=0.5), (2, 3, 4, 4)),
    "residual": (lambda rng: Residual(Sequential((ReLU(), random_conv(rng, 2, 2, (1, 1))))), (2, 2, 3, 3)),
    "deep network": (deep_network, (2, 2, 9, 8)),
    "shared layers": (shared_layers_network, (2, 2, 4, 4)),
}
CASES = WITHOUT_RELU | WITH_RELU


@pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)
def test_saliency_is_the_gradient(build: Build, shape: Shape) -> None:
    for seed in range(3):
        assert_is_gradient(build(np.random.default_rng(seed)), shape, seed)


@pytest.mark.parametrize(("build", "shape"), WITHOUT_RELU.values(), ids=WITHOUT_RELU)
def test_rules_agree_without_relu(build: Build, shape: Shape) -> None:
    rng = np.random.default_rng(0)
    y, backward = build(rng).forward(rng.normal(size=shape))
    g = rng.normal(size=y.shape)
    assert_array_equal(backward(g, "deconvnet"), backward(g, "saliency"))
    assert_array_equal(backward(g, "guided"), backward(g, "saliency"))


# By hand.


@pytest.mark.parametrize(
    ("rule", "leaves"),
    [("saliency", [1, 0, 0, -4]), ("deconvnet", [1, 0, 3, 0]), ("guided", [1, 0, 0, 0])],
)
def test_worked_example(rule: Rule, leaves: list[float]) -> None:
    x, g = np.array([[5.0, 0, -5, 10]]), np.array([[1.0, -2, 3, -4]])
    assert_array_equal(attribution(ReLU(), x, g, rule), [leaves])
    # The gate belongs to the ReLU, not to the tensor: the skip path keeps its negative gradient.
    assert_array_equal(attribution(Residual(ReLU()), x, g, rule), g + np.array(leaves))


@pytest.mark.parametrize(
    ("rule", "leaves"),
    [("saliency", [0, 0, 1, -1, 0, 0]), ("deconvnet", [1, 1, 1, 0, 1, 1]), ("guided", [0, 0, 1, 0, 0, 0])],
)
def test_cap_closes_the_forward_gate(rule: Rule, leaves: list[float]) -> None:
    x, g = np.array([[-1.0, 0, 3, 3, 6, 7]]), np.array([[1.0, 1, 1, -1, 1, 1]])
    assert_array_equal(ReLU(cap=6).forward(x)[0], [[0, 0, 3, 3, 6, 6]])
    assert_array_equal(attribution(ReLU(cap=6), x, g, rule), [leaves])


def test_first_of_equal_maxima_wins() -> None:
    g = np.array([[[[1.0, 2], [3, 4]]]])
    taken = attribution(MaxPool2d((2, 2), (2, 2)), np.zeros((1, 1, 4, 4)), g, "saliency")
    assert_array_equal(taken[0, 0], [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])


def test_conv_by_hand() -> None:
    conv = Conv2d(np.array([[[[1.0, -2], [3, 4]]]]), np.array([0.5]), stride=(2, 2))
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    y, backward = conv.forward(x)
    assert_array_equal(y[0, 0], [[30.5, 42.5], [78.5, 90.5]])  # 0 * 1 - 1 * 2 + 4 * 3 + 5 * 4 + 0.5 = 30.5
    taken = backward(np.array([[[[1.0, 0], [0, 10]]]]), "guided")
    assert_array_equal(taken[0, 0], [[1, -2, 0, 0], [3, 4, 0, 0], [0, 0, 10, -20], [0, 0, 30, 40]])


def test_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="received rule='integrated'"):
        attribution(ReLU(), np.ones((1, 2)), np.ones((1, 2)), "integrated")


# Planted faults: the check above must catch each of them.


@dataclass(frozen=True, eq=False)
class ConvThatForgetsItsStride(Conv2d):
    """Forward right; backward as if the stride were 1."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the right y with the wrong backward."""
        dense, dense_backward = Conv2d(self.weight, self.bias).forward(x)

        def backward(g: Array, rule: Rule) -> Array:
            misplaced = np.zeros(dense.shape)
            misplaced[:, :, : g.shape[2], : g.shape[3]] = g
            return dense_backward(misplaced, rule)

        return Conv2d.forward(self, x)[0], backward


@dataclass(frozen=True, eq=False)
class BatchNormThatForgetsItsVariance(BatchNorm2d):
    """Forward right; backward as if the variance were 1."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the right y with the wrong backward."""
        return BatchNorm2d.forward(self, x)[0], lambda g, rule: g * self.weight[:, None, None]


@dataclass(frozen=True, eq=False)
class ResidualThatForgetsItsSkip(Residual):
    """Forward right; backward through the branch alone."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the right y with the wrong backward."""
        y, through_branch = self.branch.forward(x)
        return x + y, through_branch


@dataclass(frozen=True, eq=False)
class ReLUThatForgetsItsGate(ReLU):
    """Forward right; backward lets everything through."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the right y with the wrong backward."""
        return ReLU.forward(self, x)[0], lambda g, rule: g


def test_finite_differences_catch_a_wrong_backward() -> None:
    rng = np.random.default_rng(0)
    conv, norm = random_conv(rng, 2, 2, stride=(2, 2)), random_batch_norm(rng, 2)
    right_and_wrong: dict[Layer, Layer] = {
        conv: ConvThatForgetsItsStride(conv.weight, conv.bias, conv.stride),
        norm: BatchNormThatForgetsItsVariance(norm.weight, norm.bias, norm.mean, norm.variance),
        Residual(ReLU()): ResidualThatForgetsItsSkip(ReLU()),
        ReLU(): ReLUThatForgetsItsGate(),
    }
    for right, wrong in right_and_wrong.items():
        assert_is_gradient(right, (1, 2, 5, 5))
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_is_gradient(wrong, (1, 2, 5, 5))


@often
@given(cases())
def test_torch_network_is_the_same_network(case: Case) -> None:
    images = torch.tensor(case.images, requires_grad=True)
    outputs = to_torch(case.network)(images)
    assert_allclose(outputs.detach(), case.network.forward(case.images)[0], **EXACT)
    (gradient,) = torch.autograd.grad(outputs, images, torch.tensor(case.weights))
    assert_allclose(gradient, attribution(*case, "saliency"), **EXACT)
