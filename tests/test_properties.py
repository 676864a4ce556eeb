"""Random networks: every method gives what the oracle gives, and what can be proved on paper holds."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, Method, Saliency
from networks_torch import to_torch
from reference import (
    Array,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Generator,
    GlobalAveragePool,
    Layer,
    Linear,
    MaxPool2d,
    Pair,
    ReLU,
    Residual,
    Rule,
    Sequential,
    attribution,
    random_batch_norm,
    random_conv,
    random_linear,
)
from variants import each_variant

_each_variant = each_variant("as it is", "lean", "lean, optimised")
METHODS: dict[Rule, type[Method]] = {"saliency": Saliency, "deconvnet": DeconvNet, "guided": GuidedBackprop}
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # two float64 implementations that add up in different orders

Shape = tuple[int, ...]

often = settings(deadline=None, max_examples=20, derandomize=True, database=None)
sometimes = settings(often, max_examples=10)


class Case(NamedTuple):
    """A network, a batch of images for it, and one weight per output for each image."""

    network: Sequential
    images: Array
    weights: Array


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch in one thread: networks this small only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def explain(network: Layer | nn.Module, images: Array, labels: object, rule: Rule) -> Array:
    """Return the library's attribution."""
    model = network if isinstance(network, nn.Module) else to_torch(network)
    explanations = METHODS[rule](model).explain(torch.tensor(images), labels)
    return np.asarray(explanations)


# How random networks are drawn: the structure by hypothesis, the numbers by a seed.

KINDS = ("conv", "relu", "relu6", "max pool", "avg pool", "batch norm", "residual", "shared")
HOMOGENEOUS_KINDS = ("conv", "relu", "max pool", "avg pool", "residual")


def draw_conv(draw: st.DrawFn, rng: Generator, shape: Shape, *, keeps_shape: bool = False) -> Conv2d:
    """Draw a convolution that fits images of ``shape``, (c, h, w)."""
    channels, *size = shape
    groups = draw(st.sampled_from([groups for groups in (1, 2, 3) if channels % groups == 0]))
    outputs = channels if keeps_shape else groups * draw(st.integers(1, 2))
    kernel, stride, padding, dilation = [], [], [], []
    for side in size:
        width = draw(st.sampled_from([1, 3] if keeps_shape else [1, 2, 3]))
        spread = draw(st.integers(1, 2))
        reach = spread * (width - 1)
        least = max(0, -((side - reach - 1) // 2))
        kernel.append(width)
        dilation.append(spread)
        stride.append(1 if keeps_shape else draw(st.integers(1, 3)))
        padding.append(reach // 2 if keeps_shape else draw(st.integers(least, least + 2)))
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    return random_conv(rng, channels, outputs, (kernel[0], kernel[1]), groups=groups, **options)


def draw_window(draw: st.DrawFn, shape: Shape) -> tuple[Pair, Pair, Pair]:
    """Draw kernel, stride and padding of a pool that fits images of ``shape``, (c, h, w)."""
    sides = []
    for side in shape[1:]:
        width = draw(st.integers(1, min(3, side)))
        sides.append((width, draw(st.integers(1, 3)), draw(st.integers(0, width // 2))))
    kernel, stride, padding = zip(*sides, strict=True)
    return kernel, stride, padding


def draw_layer(draw: st.DrawFn, rng: Generator, shape: Shape, kind: str) -> Layer:
    """Draw a layer that fits images of ``shape``, (c, h, w)."""
    match kind:
        case "conv":
            layer: Layer = draw_conv(draw, rng, shape)
        case "conv that keeps shape":
            layer = draw_conv(draw, rng, shape, keeps_shape=True)
        case "max pool":
            layer = MaxPool2d(*draw_window(draw, shape))
        case "avg pool":
            layer = AvgPool2d(*draw_window(draw, shape))
        case "batch norm":
            layer = random_batch_norm(rng, shape[0])
        case "shared":
            relu, conv = ReLU(), draw_conv(draw, rng, shape, keeps_shape=True)
            layer = Sequential((relu, conv, relu, conv))
        case "residual":
            inner = ["conv that keeps shape", "relu", "residual"]
            kinds = draw(st.lists(st.sampled_from(inner), min_size=1, max_size=3))
            layer = Residual(Sequential(tuple(draw_layer(draw, rng, shape, kind) for kind in kinds)))
        case _:
            layer = ReLU(cap=6.0 if kind == "relu6" else None)
    return layer


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Case:
    """Draw a network with at least one ReLU, images and weights."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(least, most)) for least, most in ((1, 3), (1, 3), (4, 8), (4, 8)))
    images = 3 * rng.normal(size=shape)
    layers: list[Layer] = []
    x = images
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6)):
        layers.append(draw_layer(draw, rng, x.shape[1:], kind))
        x, _ = layers[-1].forward(x)
    # The last layers: a ReLU that every path goes through, and a head.
    last = draw(st.sampled_from([kind for kind in kinds if kind in ("relu", "relu6")]))
    layers += [
        draw_layer(draw, rng, x.shape[1:], last),
        draw(st.sampled_from([Flatten(), GlobalAveragePool()])),
    ]
    x, _ = layers[-1].forward(x)
    layers.append(random_linear(rng, x.shape[1], draw(st.integers(1, 4))))
    return Case(Sequential(tuple(layers)), images, rng.normal(size=(len(images), len(layers[-1].bias))))


# The comparison that everything rests on. All rules explain one network that is drawn and built once.


@often
@given(cases())
def test_every_network_agrees_with_the_oracle(case: Case) -> None:
    model = to_torch(case.network)
    for rule in METHODS:
        assert_allclose(explain(model, case.images, case.weights, rule), attribution(*case, rule), **TOLERANCE)


@sometimes
@given(cases(), st.data())
def test_class_id_is_a_one_hot_weight(case: Case, data: st.DataObject) -> None:
    outputs = case.weights.shape[1]
    labels = [data.draw(st.integers(0, outputs - 1)) for _ in case.images]
    model = to_torch(case.network)
    for rule in METHODS:
        expected = attribution(case.network, case.images, np.eye(outputs)[labels], rule)
        assert_allclose(explain(model, case.images, labels, rule), expected, **TOLERANCE)


# What can be proved on paper.


@sometimes
@given(cases(), st.floats(1e-3, 1e3))
def test_scaled_weights_scale_the_map(case: Case, factor: float) -> None:
    # max(a g, 0) = a max(g, 0) for a > 0, and all else is linear in g.
    model = to_torch(case.network)
    for rule in METHODS:
        expected = factor * explain(model, case.images, case.weights, rule)
        scaled = explain(model, case.images, factor * case.weights, rule)
        assert_allclose(scaled, expected, rtol=1e-9, atol=1e-12 * factor)


@sometimes
@given(cases())
def test_batch_is_its_images_one_by_one(case: Case) -> None:
    model = to_torch(case.network)
    for rule, method in METHODS.items():
        # One method, as a user has it: what it found of one image holds for the next.
        one = method(model)
        pairs = zip(torch.tensor(case.images), case.weights, strict=True)
        one_by_one = [np.asarray(one.explain(image[None], weight[None])) for image, weight in pairs]
        assert_allclose(explain(model, case.images, case.weights, rule), np.concatenate(one_by_one), **TOLERANCE)


@sometimes
@given(cases())
def test_map_of_a_network_that_begins_with_a_relu(case: Case) -> None:
    # That ReLU has the last word: nothing negative leaves it, and nothing where the image is not positive.
    model = to_torch(Sequential((ReLU(), case.network)))
    saliency, deconvnet, guided = (explain(model, case.images, case.weights, rule) for rule in METHODS)
    assert deconvnet.min() >= 0
    assert guided.min() >= 0
    assert not guided[case.images <= 0].any()
    assert not saliency[case.images <= 0].any()


@sometimes
@given(cases())
def test_rules_agree_where_no_gradient_is_negative(case: Case) -> None:
    # With weights >= 0 everywhere every g is >= 0, so the backward gate has nothing to stop.
    # With a score that only falls every g at the last ReLU is <= 0, so it stops everything.
    model, weights = to_torch(without_negative_weights(case.network)), np.abs(case.weights)
    saliency = explain(model, case.images, weights, "saliency")
    assert_allclose(explain(model, case.images, weights, "guided"), saliency, **TOLERANCE)
    assert not explain(model, case.images, -weights, "guided").any()
    assert not explain(model, case.images, -weights, "deconvnet").any()


@sometimes
@given(cases(HOMOGENEOUS_KINDS))
def test_saliency_times_image_is_the_score_without_biases(case: Case) -> None:
    # Without biases and caps the network is positively homogeneous: Euler's theorem.
    network = without_biases(case.network)
    explanations = Saliency(to_torch(network)).explain(torch.tensor(case.images), case.weights)
    scores = (network.forward(case.images)[0] * case.weights).sum(axis=1)
    assert_allclose(explanations.scores, scores, rtol=1e-9, atol=1e-9)
    products = np.asarray(explanations) * case.images
    assert_allclose(products.sum(axis=(1, 2, 3)), scores, rtol=1e-9, atol=1e-9)


@sometimes
@given(st.integers(0, 2**32 - 1))
def test_rescaled_hidden_channels_change_nothing(seed: int) -> None:
    # Channel k times a_k > 0 before the ReLU, and divided by it after: the same function, the same map.
    rng = np.random.default_rng(seed)
    first, second, head = random_conv(rng, 2, 3), random_conv(rng, 3, 4), random_linear(rng, 4, 2)
    scale = rng.uniform(0.1, 10, size=3)
    louder = Conv2d(first.weight * scale[:, None, None, None], first.bias * scale)
    softer = Conv2d(second.weight / scale[:, None, None], second.bias)
    images, weights = rng.normal(size=(2, 2, 7, 6)), rng.normal(size=(2, 2))
    one, other = (
        Sequential((before, ReLU(), after, ReLU(), GlobalAveragePool(), head))
        for before, after in ((first, second), (louder, softer))
    )
    for rule in METHODS:
        assert_allclose(explain(one, images, weights, rule), explain(other, images, weights, rule), **TOLERANCE)


def without_negative_weights(layer: Layer) -> Layer:
    """Return the layer with the magnitude of its weights; biases may still be negative."""
    match layer:
        case Sequential():
            return Sequential(tuple(without_negative_weights(part) for part in layer.layers))
        case Residual():
            return Residual(without_negative_weights(layer.branch))
        case Conv2d():
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return Conv2d(np.abs(layer.weight), layer.bias, *geometry)
        case BatchNorm2d():
            return BatchNorm2d(np.abs(layer.weight), layer.bias, layer.mean, layer.variance)
        case Linear():
            return Linear(np.abs(layer.weight), layer.bias)
    return layer


def without_biases(layer: Layer) -> Layer:
    """Return the layer without biases."""
    match layer:
        case Sequential():
            return Sequential(tuple(without_biases(part) for part in layer.layers))
        case Residual():
            return Residual(without_biases(layer.branch))
        case Conv2d():
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return Conv2d(layer.weight, np.zeros(len(layer.bias)), *geometry)
        case Linear():
            return Linear(layer.weight, np.zeros(len(layer.bias)))
    return layer


# Planted faults: the comparison must catch each of them.


def deep_case() -> Case:
    """Return a fixed network with six ReLUs, capped, pooled and residual, images and weights."""
    rng = np.random.default_rng(1)
    branch = (ReLU(), random_conv(rng, 4, 4, padding=(1, 1)), ReLU(), random_conv(rng, 4, 4, (1, 1)))
    layers = (
        ReLU(cap=6.0),
        random_conv(rng, 2, 4),
        random_batch_norm(rng, 4),
        ReLU(),
        Residual(Sequential(branch)),
        random_conv(rng, 4, 4, (1, 1)),  # without it all that arrives at the ReLU above has passed a ReLU
        ReLU(cap=6.0),
        MaxPool2d((2, 2), (2, 2)),
        random_conv(rng, 4, 4, (2, 2)),
        ReLU(),
        Flatten(),
        random_linear(rng, 16, 3),
    )
    return Case(Sequential(layers), 4 * rng.normal(size=(2, 2, 8, 8)), rng.normal(size=(2, 3)))


RELUS = 6  # in deep_case


class PlainRelu(torch.autograd.Function):
    """A ReLU whose derivative is spelled out, so that no rule can act on it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, top: float) -> torch.Tensor:
        """Clip x."""
        ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Apply the forward gate alone."""
        (is_open,) = ctx.saved_tensors
        return g * is_open, None


class PlainReluModule(nn.Module):
    """The module that runs ``PlainRelu``."""

    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clip x."""
        return PlainRelu.apply(x, self.top)


def relu_names(model: nn.Module) -> list[str]:
    """Return the paths of the ReLUs in ``model``."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.ReLU, nn.ReLU6))]


@pytest.mark.parametrize("rule", METHODS)
def test_fixed_network_agrees_with_the_oracle(rule: Rule) -> None:
    case = deep_case()
    assert len(relu_names(to_torch(case.network))) == RELUS
    assert_allclose(explain(*case, rule), attribution(*case, rule), **TOLERANCE)


@pytest.mark.parametrize("rule", METHODS)
def test_comparison_catches_another_rule(rule: Rule) -> None:
    case = deep_case()
    for other in METHODS.keys() - {rule}:
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_allclose(explain(*case, rule), attribution(*case, other), **TOLERANCE)


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("position", range(RELUS))
def test_comparison_catches_a_skipped_relu(rule: Rule, position: int) -> None:
    case = deep_case()
    model = to_torch(case.network)
    name = relu_names(model)[position]
    top = 6.0 if isinstance(model.get_submodule(name), nn.ReLU6) else float("inf")
    model.set_submodule(name, PlainReluModule(top))
    method = METHODS[rule](model.eval(), vouch={"PlainRelu": "plain"})
    explanations = method.explain(torch.tensor(case.images), case.weights)
    assert_allclose(explanations.outputs, case.network.forward(case.images)[0], **TOLERANCE)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_allclose(np.asarray(explanations), attribution(*case, rule), **TOLERANCE)
