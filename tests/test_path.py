"""The image times its gradient, integrated gradients and RectGrad, against their papers' formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from captum import attr

import reference
from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    ImageError,
    InputXGradient,
    IntegratedGradients,
    OptionError,
    RectGrad,
    Saliency,
    SmoothGrad,
    SquareGrad,
    VarGrad,
    compare,
)
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
rng = np.random.default_rng(5)
relu = reference.ReLU()
NETWORK = reference.Sequential(
    (
        reference.random_conv(rng, 2, 5),
        relu,
        reference.random_conv(rng, 5, 4),
        relu,
        reference.Flatten(),
        reference.random_linear(rng, 36, 3),
    )
)
IMAGES = rng.normal(size=(3, 2, 7, 7))
BASELINE = rng.normal(size=(2, 7, 7))
LABELS = [2, 0, 1]
METHODS = {"saliency": Saliency, "guided": GuidedBackprop}
same = np.asarray
last = lambda array: np.moveaxis(array, -3, -1)  # noqa: E731
# How a framework's model and arrays are made, and its layout.
FRAMEWORKS = {
    "torch": (to_torch, torch.tensor, same, same),
    "tensorflow": (to_tensorflow, tf.constant, last, lambda array: np.moveaxis(array, -1, -3)),
    "jax": (to_jax, jnp.asarray, last, lambda array: np.moveaxis(array, -1, -3)),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def scores(images):
    return NETWORK.forward(images)[0][range(3), LABELS]


def integrated(rule, places, weights):
    way = IMAGES - BASELINE
    maps = [reference.attribution(NETWORK, BASELINE + place * way, np.eye(3)[LABELS], rule) for place in places]
    return way * sum(weight * each for weight, each in zip(weights, maps, strict=True))


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_against_the_formulas(framework, rule):
    build, convert, lay, back = FRAMEWORKS[framework]
    method, images = METHODS[rule](build(NETWORK)), convert(lay(IMAGES))
    product = InputXGradient(method).explain(images, LABELS)
    expected = IMAGES * reference.attribution(NETWORK, IMAGES, np.eye(3)[LABELS], rule)
    np.testing.assert_allclose(back(np.asarray(product)), expected, **TOLERANCE)
    assert type(product.attribution) is type(product.images)
    assert product.convergence_delta is None
    assert product.coverage == method.explain(images, LABELS).coverage

    places, weights = np.polynomial.legendre.leggauss(4)
    expected = integrated(rule, (places + 1) / 2, weights / 2)
    found = IntegratedGradients(method, baseline=lay(BASELINE), steps=4).explain(images, LABELS)
    np.testing.assert_allclose(back(np.asarray(found)), expected, **TOLERANCE)
    gained = scores(IMAGES) - scores(np.broadcast_to(BASELINE, IMAGES.shape))
    np.testing.assert_allclose(found.convergence_delta, expected.sum((1, 2, 3)) - gained, rtol=1e-7, atol=1e-9)
    # The comparison can fail: with one place less it is another map.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(back(np.asarray(found)), integrated(rule, [0.5], [1.0]), rtol=1e-3)


def test_it_is_complete_with_saliency_alone():
    """The more steps, the more; a guided map is not, and says so."""
    model, images = to_torch(NETWORK), torch.tensor(IMAGES)
    deltas = [
        np.abs(IntegratedGradients(Saliency(model), steps=steps).explain(images, "top2").convergence_delta).max()
        for steps in (3, 20, 130)
    ]
    assert deltas[0] > 4 * deltas[1] > 16 * deltas[2]
    found = IntegratedGradients(Saliency(model, reducer="absmax"), steps=130).explain(images, "top2")
    assert found.convergence_delta.shape == found.scores.shape == (3, 2)
    np.testing.assert_allclose(found.convergence_delta, 0, atol=4e-2)
    np.testing.assert_array_equal(found[[2, 0]].convergence_delta, found.convergence_delta[[2, 0]])
    assert found.one_label_a_row().convergence_delta.shape == (6,)
    joined = type(found).concatenate([found[:1], found[1:]])
    np.testing.assert_array_equal(joined.convergence_delta, found.convergence_delta)
    guided = IntegratedGradients(GuidedBackprop(model), steps=30).explain(images, LABELS)
    assert np.abs(guided.convergence_delta).min() > 0.05


@pytest.mark.parametrize(
    ("quadrature", "places", "weights"),
    [("midpoint", [1 / 6, 1 / 2, 5 / 6], [1 / 3] * 3), ("trapezoid", [0, 0.5, 1], [0.25, 0.5, 0.25])],
)
def test_quadratures(quadrature, places, weights):
    method = IntegratedGradients(Saliency(to_torch(NETWORK)), baseline=BASELINE, steps=3, quadrature=quadrature)
    np.testing.assert_allclose(
        method.explain(torch.tensor(IMAGES), LABELS), integrated("saliency", places, weights), **TOLERANCE
    )


def test_captum_agrees():
    model, images, labels = to_torch(NETWORK), torch.tensor(IMAGES), torch.tensor(LABELS)
    product = attr.InputXGradient(model).attribute(images.clone().requires_grad_(), target=labels).detach()
    np.testing.assert_allclose(InputXGradient(Saliency(model)).explain(images, LABELS), product, rtol=1e-6, atol=1e-9)
    for ours, theirs in (("gauss-legendre", "gausslegendre"), ("midpoint", "riemann_middle")):
        found = IntegratedGradients(Saliency(model), baseline=0.3, steps=20, quadrature=ours).explain(images, LABELS)
        expected, delta = attr.IntegratedGradients(model).attribute(
            images, 0.3, labels, n_steps=20, method=theirs, return_convergence_delta=True
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        # Captum adds up in float32 here.
        np.testing.assert_allclose(found.convergence_delta, delta, rtol=1e-6, atol=1e-6)
        # The comparison can fail.
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(found, product, rtol=1e-3, atol=1e-4)


def test_batches():
    """Places go together as the batch size takes them, and change nothing."""
    sizes = []
    model, images = to_torch(NETWORK), torch.tensor(IMAGES)
    whole = IntegratedGradients(Saliency(model), steps=5).explain(images, LABELS)

    def counted(x):
        sizes.append(len(x))
        return model(x)

    for batch_size, largest in ((None, 3), (2, 2), (7, 6)):
        sizes.clear()
        method = IntegratedGradients(Saliency(counted, batch_size=batch_size), steps=5)
        np.testing.assert_allclose(method.explain(images, LABELS), whole.attribution, **TOLERANCE)
        assert max(sizes) == largest
        assert sum(sizes) == 3 * (1 + 5 + 1)


def test_several_inputs():
    torch.manual_seed(0)
    table = torch.nn.EmbeddingBag(5, 4).double()

    def model(first, ids, second):
        return torch.relu(first * 2 + second + table(ids))

    rows = torch.rand(3, 4).double(), torch.tensor([[0, 1], [2, 3], [4, 4]]), torch.rand(3, 4).double()
    found = IntegratedGradients(Saliency(model), steps=40).explain(rows, 1)
    assert found.attribution[1] is None
    np.testing.assert_allclose(found.convergence_delta, 0, atol=0.02)
    given = IntegratedGradients(Saliency(model), baseline=(rows[0][0], None, rows[2][0]), steps=4).explain(rows, 1)
    np.testing.assert_allclose(given.attribution[0][0], np.zeros(4), **TOLERANCE)
    with pytest.raises(OptionError, match="baseline must be a number, or given as the images are; received ndarray"):
        IntegratedGradients(Saliency(model), baseline=np.zeros(4)).explain(rows, 1)


def test_a_layers_output_times_its_gradient():
    model, images = to_torch(NETWORK), torch.tensor(IMAGES)
    found = InputXGradient(GuidedBackprop(model, input_layer="2")).explain(images, LABELS)
    plain = GuidedBackprop(model, input_layer="2").explain(images, LABELS)
    np.testing.assert_allclose(found, np.asarray(plain) * np.asarray(plain.images), **TOLERANCE)


def test_names_dtypes_and_gradients_of_the_images():
    method = GuidedBackprop(to_torch(NETWORK))
    images = torch.tensor(IMAGES, requires_grad=True)
    for around in (InputXGradient(method), IntegratedGradients(method, steps=2)):
        assert not around.explain(images, 1).attribution.requires_grad
        assert len(around.explain(images[:0])) == 0
    half = GuidedBackprop(to_torch(NETWORK).to(torch.bfloat16))
    assert InputXGradient(half).explain(images.detach().to(torch.bfloat16), 1).attribution.dtype == torch.bfloat16
    assert InputXGradient(method).name == "InputXGradient(GuidedBackprop)"
    assert IntegratedGradients(method, steps=2).name == (
        "IntegratedGradients(GuidedBackprop, baseline=0, steps=2, quadrature='gauss-legendre')"
    )
    assert repr(InputXGradient(RectGrad(method.subject.model))) == (
        "InputXGradient(RectGrad(Sequential, percentile=98))"
    )
    assert SquareGrad(method, samples=2).name == SmoothGrad(method, samples=2, form="squared").name
    assert VarGrad(method, samples=2).name == SmoothGrad(method, samples=2, form="variance").name


def test_bad_options():
    method = Saliency(to_torch(NETWORK))
    for options, message in (
        ({"steps": 0}, "steps must be an integer of 1 or more; received steps=0"),
        ({"steps": 1, "quadrature": "trapezoid"}, "steps must be an integer of 2 or more"),
        ({"quadrature": "simpson"}, "quadrature must be one of gauss-legendre, trapezoid, midpoint"),
        ({"baseline": float("nan")}, "baseline must be finite; received baseline=nan"),
    ):
        with pytest.raises(OptionError, match=message):
            IntegratedGradients(method, **options)
    with pytest.raises(OptionError, match="multiplies images by gradients; received GradCAM"):
        InputXGradient(GradCAM(to_torch(NETWORK), "2"))
    with pytest.raises(OptionError, match="input_layer='1', which explains none"):
        IntegratedGradients(Saliency(to_torch(NETWORK), input_layer="1"))
    with pytest.raises(ImageError, match=r"without a batch axis; received shape \(3, 2, 7, 7\)"):
        IntegratedGradients(method, baseline=IMAGES).explain(torch.tensor(IMAGES), 0)
    with pytest.raises(OptionError, match="percentile must be a number from 0 to 100; received percentile=101"):
        RectGrad(to_torch(NETWORK), percentile=101)


class Rectified(reference.ReLU):
    """The layer of the paper's formula: 1[a R > tau] R, tau the percentile of a R."""

    def forward(self, x):
        y = np.maximum(x, 0)

        def backward(g, percentile):
            threshold = np.percentile((y * g).reshape(len(x), -1), percentile, axis=1)
            assert threshold.min() >= 0
            return g * (y * g > threshold.reshape(-1, *[1] * (x.ndim - 1)))

        return y, backward


def rectified(percentile):
    layers = [Rectified() if layer is relu else layer for layer in NETWORK.layers]
    return reference.attribution(reference.Sequential(tuple(layers)), IMAGES, np.eye(3)[LABELS], percentile)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rectgrad(framework):
    build, convert, lay, back = FRAMEWORKS[framework]
    images = convert(lay(IMAGES))
    for percentile in (80, 98):
        found = RectGrad(build(NETWORK), percentile=percentile).explain(images, LABELS)
        np.testing.assert_allclose(back(np.asarray(found)), rectified(percentile), **TOLERANCE)
        assert str(found.coverage) == "relu x2 rectified"
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(back(np.asarray(found)), rectified(80), rtol=1e-3)


def test_methods_of_every_kind_are_compared():
    model, images = to_torch(NETWORK), torch.tensor(IMAGES)
    methods = [Saliency(model), InputXGradient(Saliency(model)), RectGrad(model, percentile=90), GuidedBackprop(model)]
    for found, method in zip(compare(images, LABELS, methods), methods, strict=True):
        np.testing.assert_array_equal(found, np.asarray(method.explain(images, LABELS)))
        assert found.method == method.name
