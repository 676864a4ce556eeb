"""Smooth activations under ``smooth="guide"``: the derivative from the formula, applied to max(g, 0)."""

from math import sqrt

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import torch
from keras import layers
from torch import nn

from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    NoReluError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
)
from guided_backprop.rules import SMOOTH

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
SLOPE, ALPHA, BETA = 0.2, 1.3, 1.7
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# From the formulas: each activation, of float64 arrays.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "leaky_relu": lambda x: np.where(x > 0, x, SLOPE * x),
    "prelu": lambda x: np.where(x > 0, x, SLOPE * x),
    "elu": lambda x: np.where(x > 0, x, ALPHA * np.expm1(x)),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, ALPHA * np.expm1(x / ALPHA)),
    "gelu": lambda x: x * 0.5 * (1 + scipy.special.erf(x / sqrt(2))),
    "tanh gelu": tanh_gelu,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(BETA * x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "older hardswish": lambda x: x * np.clip(0.2 * x + 0.5, 0, 1),
    "softplus": softplus,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}


def derivative(name: str, x: np.ndarray) -> np.ndarray:
    """Return the activation's derivative, by central differences of its formula."""
    step = 1e-6
    return (FORMULAS[name](x + step) - FORMULAS[name](x - step)) / (2 * step)


# The network: two rows of weights with the activation between them, and a hidden layer in front.
rng = np.random.default_rng(0)
FIRST, SECOND, LAST = rng.normal(size=(5, 8)), rng.normal(size=(8, 8)) / 2, rng.normal(size=(8, 3)) / 2
IMAGES = rng.normal(size=(6, 5)) * 2


def expected(name: str, *, guides: bool, label: int = 1) -> np.ndarray:
    first = IMAGES @ FIRST
    second = FORMULAS[name](first) @ SECOND
    g = np.broadcast_to(LAST[:, label], second.shape)
    for x, weights in ((second, SECOND), (first, FIRST)):
        g = derivative(name, x) * (np.maximum(g, 0) if guides else g)
        g = g @ weights.T
    return g


def in_torch(activation):
    def model(x):
        first, second, last = (torch.tensor(each) for each in (FIRST, SECOND, LAST))
        return activation(activation(x @ first) @ second) @ last

    return model, torch.tensor(IMAGES)


def in_tensorflow(activation):
    def model(x):
        return activation(activation(x @ FIRST) @ SECOND) @ LAST

    return model, tf.constant(IMAGES)


def in_jax(activation):
    return in_tensorflow(activation)[0], jnp.asarray(IMAGES)


def in_keras(layer):
    """A Keras model; the layer is made anew for each of the two places."""
    dense = [layers.Dense(n, use_bias=False, dtype="float64") for n in (8, 8, 3)]
    images = keras.Input((5,), dtype="float64")
    model = keras.Model(images, dense[2](layer()(dense[1](layer()(dense[0](images))))))
    for each, weights in zip(dense, (FIRST, SECOND, LAST), strict=True):
        each.set_weights([weights])
    return model, IMAGES


F = nn.functional


def slopes(x):
    return F.prelu(x, torch.full((8,), SLOPE, dtype=torch.float64))


def on_a_view(x):
    F.leaky_relu_(x.view(-1), SLOPE)
    return x


def torch_tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(sqrt(2 / np.pi) * (x + 0.044715 * torch.pow(x, 3))))


def keras_prelu():
    return layers.PReLU(keras.initializers.Constant(SLOPE), dtype="float64")


def activation(name, **options):
    return lambda: layers.Activation(lambda x: getattr(keras.activations, name)(x, **options), dtype="float64")


OLDER, LEAKY, PRELU, ELU = ("older hardswish", "hardswish"), ("leaky_relu",) * 2, ("prelu",) * 2, ("elu",) * 2
# One for each unit, so that they are no known number.
SLOPES, SLOPES_OF_JAX = torch.full((8,), SLOPE, dtype=torch.float64), np.full(8, SLOPE)
VARIABLE = tf.Variable(np.full(8, SLOPE))

# Framework and spelling: how to build it, the formula, and the name in the coverage.
SPELLINGS = {
    "torch F.leaky_relu": (in_torch, lambda x: F.leaky_relu(x, SLOPE), "leaky_relu", "leaky_relu"),
    "torch leaky_relu_": (in_torch, lambda x: F.leaky_relu_(x, SLOPE), "leaky_relu", "leaky_relu"),
    "torch maximum": (in_torch, lambda x: torch.maximum(x, SLOPE * x), "leaky_relu", "leaky_relu"),
    "torch in place on a view": (
        in_torch,
        lambda x: (F.leaky_relu_(x.view(-1), SLOPE), x)[1],
        "leaky_relu",
        "leaky_relu",
    ),
    "torch F.prelu": (in_torch, slopes, "prelu", "prelu"),
    "torch F.elu": (in_torch, lambda x: F.elu(x, ALPHA), "elu", "elu"),
    "torch F.selu": (in_torch, F.selu, "selu", "elu"),
    "torch F.celu": (in_torch, lambda x: F.celu(x, ALPHA), "celu", "celu"),
    "torch F.gelu": (in_torch, F.gelu, "gelu", "gelu"),
    "torch F.gelu of tanh": (in_torch, lambda x: F.gelu(x, approximate="tanh"), "tanh gelu", "gelu"),
    "torch erf": (in_torch, lambda x: x * 0.5 * (1 + torch.erf(x / sqrt(2))), "gelu", "gelu"),
    "torch erf, the other way": (in_torch, lambda x: (1 + torch.special.erf(x / sqrt(2))) * (0.5 * x), "gelu", "gelu"),
    "torch tanh": (in_torch, torch_tanh_gelu, "tanh gelu", "gelu"),
    "torch F.silu": (in_torch, F.silu, "silu", "silu"),
    "torch x * sigmoid(x)": (in_torch, lambda x: x * torch.sigmoid(x), "silu", "silu"),
    "torch x.mul(sigmoid)": (in_torch, lambda x: x.sigmoid().mul(x), "silu", "silu"),
    "torch swish": (in_torch, lambda x: x * torch.sigmoid(BETA * x), "swish", "silu"),
    "torch F.mish": (in_torch, F.mish, "mish", "mish"),
    "torch x * tanh(softplus(x))": (in_torch, lambda x: x * torch.tanh(F.softplus(x, threshold=100)), "mish", "mish"),
    "torch F.hardswish": (in_torch, F.hardswish, "hardswish", "hardswish"),
    "torch x * hardsigmoid(x)": (in_torch, lambda x: x * F.hardsigmoid(x), "hardswish", "hardswish"),
    "torch x * clamp(x / 5 + 1 / 2)": (in_torch, lambda x: x * (0.2 * x + 0.5).clamp(0, 1), *OLDER),
    "torch clamp of both sides": (in_torch, lambda x: x.clamp(min=0) + SLOPE * x.clamp(max=0), *LEAKY),
    "torch ELU by bounds": (in_torch, lambda x: x.clamp_min(0) + (ALPHA * (x.exp() - 1)).clamp_max(0), *ELU),
    "torch PReLU of both sides": (in_torch, lambda x: x.clamp_min(0) + SLOPES * x.clamp_max(0), *PRELU),
    "torch F.softplus": (in_torch, lambda x: F.softplus(x, threshold=100), "softplus", "softplus"),
    "tf leaky_relu": (in_tensorflow, lambda x: tf.nn.leaky_relu(x, SLOPE), "leaky_relu", "leaky_relu"),
    "tf maximum": (in_tensorflow, lambda x: tf.maximum(x, SLOPE * x), "leaky_relu", "leaky_relu"),
    "tf selu": (in_tensorflow, tf.nn.selu, "selu", "selu"),
    "tf gelu": (in_tensorflow, tf.nn.gelu, "gelu", "gelu"),
    "tf gelu of tanh": (in_tensorflow, lambda x: tf.nn.gelu(x, approximate=True), "tanh gelu", "gelu"),
    "tf erf": (in_tensorflow, lambda x: x * 0.5 * (1 + tf.math.erf(x / sqrt(2))), "gelu", "gelu"),
    "tf silu": (in_tensorflow, tf.nn.silu, "silu", "silu"),
    "tf swish": (in_tensorflow, lambda x: tf.nn.silu(x, BETA), "swish", "silu"),
    "tf x * sigmoid(x)": (in_tensorflow, lambda x: x * tf.sigmoid(x), "silu", "silu"),
    "tf x * tanh(softplus(x))": (in_tensorflow, lambda x: x * tf.tanh(tf.math.softplus(x)), "mish", "mish"),
    "tf x * clip(x / 5 + 1 / 2)": (in_tensorflow, lambda x: x * tf.clip_by_value(0.2 * x + 0.5, 0, 1), *OLDER),
    "tf both sides": (in_tensorflow, lambda x: tf.maximum(x, 0) + SLOPE * tf.minimum(x, 0), *LEAKY),
    "tf PReLU by a magnitude": (in_tensorflow, lambda x: tf.nn.relu(x) + VARIABLE * (x - abs(x)) * 0.5, *PRELU),
    "tf ELU": (in_tensorflow, lambda x: tf.nn.relu(x) + tf.minimum(ALPHA * (tf.exp(x) - 1), 0), *ELU),
    "tf softplus": (in_tensorflow, tf.math.softplus, "softplus", "softplus"),
    "keras LeakyReLU": (in_keras, lambda: layers.LeakyReLU(SLOPE, dtype="float64"), "leaky_relu", "leaky_relu"),
    "keras PReLU": (in_keras, keras_prelu, "prelu", "prelu"),
    "keras ELU": (in_keras, lambda: layers.ELU(ALPHA, dtype="float64"), "elu", "elu"),
    "keras selu": (in_keras, activation("selu"), "selu", "selu"),
    "keras celu": (in_keras, activation("celu", alpha=ALPHA), "celu", "celu"),
    "keras gelu": (in_keras, activation("gelu", approximate=False), "gelu", "gelu"),
    "keras gelu of tanh": (in_keras, activation("gelu", approximate=True), "tanh gelu", "gelu"),
    "keras silu": (in_keras, activation("silu"), "silu", "silu"),
    "keras mish": (in_keras, activation("mish"), "mish", "mish"),
    "keras hard_silu": (in_keras, activation("hard_silu"), "hardswish", "hardswish"),
    "keras softplus": (in_keras, activation("softplus"), "softplus", "softplus"),
    "jax leaky_relu": (in_jax, lambda x: jax.nn.leaky_relu(x, SLOPE), "leaky_relu", "leaky_relu"),
    "jax maximum": (in_jax, lambda x: jnp.maximum(x, SLOPE * x), "leaky_relu", "leaky_relu"),
    "jax elu": (in_jax, lambda x: jax.nn.elu(x, ALPHA), "elu", "elu"),
    "jax selu": (in_jax, jax.nn.selu, "selu", "selu"),
    "jax celu": (in_jax, lambda x: jax.nn.celu(x, ALPHA), "celu", "celu"),
    "jax gelu": (in_jax, lambda x: jax.nn.gelu(x, approximate=False), "gelu", "gelu"),
    "jax gelu of tanh": (in_jax, jax.nn.gelu, "tanh gelu", "gelu"),
    "jax erf": (in_jax, lambda x: x * 0.5 * (1 + jax.scipy.special.erf(x / sqrt(2))), "gelu", "gelu"),
    "jax silu": (in_jax, jax.nn.silu, "silu", "silu"),
    "jax x * sigmoid(x)": (in_jax, lambda x: x * jax.nn.sigmoid(x), "silu", "silu"),
    "jax mish": (in_jax, jax.nn.mish, "mish", "mish"),
    "jax x * tanh(softplus(x))": (in_jax, lambda x: x * jnp.tanh(jax.nn.softplus(x)), "mish", "mish"),
    "jax hard_swish": (in_jax, jax.nn.hard_swish, "hardswish", "hardswish"),
    "jax x * clip(x / 5 + 1 / 2)": (in_jax, lambda x: x * jnp.clip(0.2 * x + 0.5, 0, 1), *OLDER),
    "jax PReLU of both sides": (in_jax, lambda x: jnp.maximum(x, 0) + SLOPES_OF_JAX * jnp.minimum(x, 0), *PRELU),
    "jax ELU": (in_jax, lambda x: jnp.maximum(x, 0) + jnp.minimum(ALPHA * (jnp.exp(x) - 1), 0), *ELU),
    "jax softplus": (in_jax, jax.nn.softplus, "softplus", "softplus"),
    "jax checkpoint": (in_jax, jax.checkpoint(jax.nn.silu), "silu", "silu"),
    "jax scan": (
        in_jax,
        lambda x: jax.lax.scan(lambda carry, row: (carry, jax.nn.silu(row)), 0, x)[1],
        "silu",
        "silu",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_against_the_formula(spelling):
    build, activation, formula, name = SPELLINGS[spelling]
    model, images = build(activation)
    explanations, saliency = compare(images, 1, [GuidedBackprop(model, smooth="guide"), Saliency(model)])
    outputs = FORMULAS[formula](FORMULAS[formula](IMAGES @ FIRST) @ SECOND) @ LAST
    np.testing.assert_allclose(explanations.outputs, outputs, rtol=1e-6)
    # Central differences are good to 1e-9; some frameworks compute their own in float32 inside.
    is_exact = np.allclose(explanations.outputs, outputs, rtol=1e-12, atol=1e-12)
    tolerance = {"rtol": 1e-6 if is_exact else 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(explanations, expected(formula, guides=True), **tolerance)
    count = explanations.coverage[0].count
    assert tuple(explanations.coverage) == ((name, count, "guided"),)
    assert count == (12 if "scan" in spelling else 2)
    assert explanations.method == "GuidedBackprop(smooth='guide')"
    # Planted: the plain gradient is another map, and that is what Saliency finds.
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(explanations, expected(formula, guides=False), **tolerance)
    np.testing.assert_allclose(saliency, expected(formula, guides=False), **tolerance)
    assert tuple(saliency.coverage) == ((name, count, "plain"),)
    with pytest.raises(NoReluError, match=f'{name} x{count}.*Use Saliency\\(model\\), or smooth="guide"'):
        GuidedBackprop(model).explain(images, 1)


def test_the_table_is_covered_in_full():
    assert {name for *_, name in SPELLINGS.values()} | {"rrelu"} == SMOOTH


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_gates_are_no_activations(name):
    for build, activation in (
        (in_torch, getattr(torch, name)),
        (in_jax, getattr(jax.nn, name)),
        (in_tensorflow, getattr(tf, name)),
    ):
        model, images = build(activation)
        with pytest.raises(NoReluError, match=rf"{name} x2. Use Saliency\(model\)\."):
            GuidedBackprop(model, smooth="guide").explain(images, 1)


def gates(module):
    """Return products with a sigmoid of something else: squeeze-and-excitation, a gated linear unit, a cell's."""

    def model(x):
        hidden = x @ module.first
        excited = hidden * module.sigmoid(hidden @ module.second)
        halves = excited[:, :4] * module.sigmoid(excited[:, 4:])
        return (module.tanh(halves) * module.sigmoid(halves * 2 + hidden[:, :4])) @ module.last[:4]

    return model


class _Torch:
    first, second, last = (torch.tensor(each) for each in (FIRST, SECOND, LAST))
    sigmoid, tanh = staticmethod(torch.sigmoid), staticmethod(torch.tanh)


class _TensorFlow:
    first, second, last = FIRST, SECOND, LAST
    sigmoid, tanh = staticmethod(tf.sigmoid), staticmethod(tf.tanh)


class _Jax(_TensorFlow):
    sigmoid, tanh = staticmethod(jax.nn.sigmoid), staticmethod(jax.nn.tanh)


@pytest.mark.parametrize(
    ("module", "convert"), [(_Torch, torch.tensor), (_TensorFlow, tf.constant), (_Jax, jnp.asarray)]
)
def test_products_with_something_else_keep_their_derivative(module, convert):
    model = gates(module)
    with pytest.raises(NoReluError, match="found sigmoid x3, tanh x1"):
        GuidedBackprop(model, smooth="guide").explain(convert(IMAGES), 1)


def test_relus_beside_smooth_activations():
    """The rule acts on both; without the option on ReLUs alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(torch.relu(self.second(F.gelu(self.first(x)))))

    torch.manual_seed(0)
    model, images = Net().double().eval(), torch.tensor(IMAGES)
    assert str(GuidedBackprop(model).explain(images, 1).coverage) == "gelu x1 plain, relu x1 guided"
    guided = GuidedBackprop(model, smooth="guide").explain(images, 1)
    assert str(guided.coverage) == "gelu x1 guided, relu x1 guided"
    x = model.first(images).detach().numpy()
    gate = (model.second(F.gelu(model.first(images))) > 0).numpy()
    g = (gate * np.maximum(model.last.weight[1].detach().numpy(), 0)) @ model.second.weight.detach().numpy()
    g = derivative("gelu", x) * np.maximum(g, 0)
    np.testing.assert_allclose(guided, g @ model.first.weight.detach().numpy(), rtol=1e-6, atol=1e-8)


def test_the_whole_family_takes_it():
    layers_ = [nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers_).eval()
    images = torch.rand(2, 3, 8, 8)
    cam = GuidedGradCAM(model, "1", smooth="guide").explain(images, 1)
    assert cam.method == "GuidedGradCAM(smooth='guide')"
    maps = GuidedBackprop(model, smooth="guide").explain(images, 1).attribution
    cams = GradCAM(model, "1").explain(images, 1).attribution
    torch.testing.assert_close(cam.attribution, maps * cams[:, None])
    smooth = SmoothGrad(GuidedBackprop(model, smooth="guide"), samples=2).explain(images, 1)
    assert smooth.method.startswith("SmoothGrad(GuidedBackprop(smooth='guide'), ")
    assert "smooth='guide'" in smooth.plot()._supxlabel.get_text()


@pytest.mark.parametrize("method", [Saliency, DeconvNet])
def test_it_belongs_to_guided_backpropagation(method):
    with pytest.raises(OptionError, match=f'smooth="guide" extends guided .* received it for {method.__name__}'):
        method(nn.GELU(), smooth="guide")
    with pytest.raises(OptionError, match="smooth must be .* received smooth='gelu'"):
        GuidedBackprop(nn.GELU(), smooth="gelu")
