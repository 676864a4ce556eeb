"""Grad-CAM and Guided Grad-CAM on each framework, against the formula written out in NumPy."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from captum import attr

import reference
from guided_backprop import GradCAM, GuidedBackprop, GuidedGradCAM, ModelError, OptionError
from guided_backprop.jax import tap
from guided_backprop.methods.cam import resized
from networks_jax import to_jax
from networks_keras import to_keras
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
IMAGES = np.random.default_rng(5).normal(size=(4, 3, 10, 9))
IDS = [2, 0, 1, 2]
rng = np.random.default_rng(27)
relu = reference.ReLU()
# The layer is the second ReLU, of 6 channels at (4, 4) positions: the way to an image is not a whole number.
BELOW = reference.Sequential(
    (
        reference.random_conv(rng, 3, 4, padding=(1, 1)),
        relu,
        reference.MaxPool2d((2, 2), (2, 2)),
        reference.random_conv(rng, 4, 6, kernel=(2, 1)),
        relu,
    )
)
ABOVE = reference.Sequential(
    (
        reference.random_conv(rng, 6, 5, padding=(1, 1)),
        relu,
        reference.GlobalAveragePool(),
        reference.random_linear(rng, 5, 3),
    )
)
NETWORK = reference.Sequential((*BELOW.layers, *ABOVE.layers))
LAYER = len(BELOW.layers) - 1


def bilinear(cam: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return one map at another size: the centre of a pixel lies at half its width, the border goes on outside."""
    rows, columns = cam.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = cam[y0, x0] * (x0 + 1 - x) + cam[y0, x1] * (x - x0)
            bottom = cam[y1, x0] * (x0 + 1 - x) + cam[y1, x1] * (x - x0)
            result[i, j] = top * (y0 + 1 - y) + bottom * (y - y0)
    return result


def cams(weights: np.ndarray) -> np.ndarray:
    """Return Grad-CAM's maps, from the formula."""
    activation, _ = BELOW.forward(IMAGES)
    _, backward = ABOVE.forward(activation)
    gradient = backward(weights, "saliency")
    importance = gradient.sum((2, 3)) / gradient[0, 0].size
    maps = np.maximum(np.einsum("nc,nchw->nhw", importance, activation), 0)
    return np.stack([bilinear(each, *IMAGES.shape[2:]) for each in maps])


def guided(weights: np.ndarray) -> np.ndarray:
    """Return Guided Grad-CAM's maps, from the formula."""
    return reference.attribution(NETWORK, IMAGES, weights, "guided") * cams(weights)[:, None]


def in_torch():
    model = to_torch(NETWORK)
    # One ReLU module is used three times; the layer is to be run once.
    model[LAYER] = torch.nn.ReLU()
    model.eval()
    return model, str(LAYER), torch.tensor(IMAGES)


def in_jax():
    below, above = to_jax(BELOW), to_jax(ABOVE)
    return lambda x: above(tap("features", below(x))), "features", jnp.asarray(IMAGES.transpose(0, 2, 3, 1))


def in_keras():
    """The same network, with a ReLU layer of its own for each ReLU."""
    images = keras.Input((10, 9, 3), dtype="float64")
    below = to_keras(BELOW, (10, 9, 3))
    above = to_keras(ABOVE, (4, 4, 6))
    named = keras.layers.Identity(name="features", dtype="float64")
    return (
        keras.Model(images, above(named(below(images)))),
        "features",
        np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)),
    )


FRAMEWORKS = {"torch": in_torch, "keras": in_keras, "jax": in_jax}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def explain(method, framework, labels, **options):
    model, layer, images = FRAMEWORKS[framework]()
    return method(model, layer, **options).explain(images, labels)


def in_oracle_layout(framework: str, values) -> np.ndarray:
    values = np.asarray(values)
    return values if framework == "torch" or values.shape[-1] != 3 else np.moveaxis(values, -1, -3)


ONE_HOT = np.eye(3)[IDS]


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_against_the_formula(framework, batch_size):
    explanations = explain(GradCAM, framework, IDS, batch_size=batch_size)
    np.testing.assert_allclose(explanations, cams(ONE_HOT), **TOLERANCE)
    np.testing.assert_allclose(explanations.scores, NETWORK.forward(IMAGES)[0][range(4), IDS], **TOLERANCE)
    assert explanations.reducer == "sum"
    sharp = explain(GuidedGradCAM, framework, IDS, batch_size=batch_size)
    np.testing.assert_allclose(in_oracle_layout(framework, sharp), guided(ONE_HOT), **TOLERANCE)
    assert sharp.reducer is None
    # The CAM differs from image to image, and from position to position.
    assert (np.asarray(explanations).std(axis=(1, 2)) > 5e-3).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_faults_are_caught(framework):
    cam = np.asarray(explain(GradCAM, framework, IDS))
    other = cams(np.eye(3)[[0, 1, 2, 0]])
    crude = np.stack([np.kron(each, np.ones((3, 3)))[:10, :9] for each in cam[:, ::3, ::3]])
    for planted in (other, crude):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            np.testing.assert_allclose(cam, planted, **TOLERANCE)
    sharp = in_oracle_layout(framework, explain(GuidedGradCAM, framework, IDS))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(sharp, reference.attribution(NETWORK, IMAGES, ONE_HOT, "guided"), **TOLERANCE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_labels(framework):
    expected = np.stack([cams(np.eye(3)[[each] * 4]) for each in (2, 0)], axis=1)
    explanations = explain(GradCAM, framework, [[2, 0]] * 4)
    np.testing.assert_allclose(explanations, expected, **TOLERANCE)
    sharp = explain(GuidedGradCAM, framework, [[2, 0]] * 4, reducer="absmax")
    both = np.stack([np.abs(guided(np.eye(3)[[each] * 4])).max(1) for each in (2, 0)], axis=1)
    np.testing.assert_allclose(sharp, both, **TOLERANCE)
    contrast = ONE_HOT - np.roll(ONE_HOT, 1, axis=1)
    np.testing.assert_allclose(explain(GradCAM, framework, contrast), cams(contrast), **TOLERANCE)
    top = np.eye(3)[NETWORK.forward(IMAGES)[0].argmax(1)]
    np.testing.assert_allclose(explain(GradCAM, framework, None), cams(top), **TOLERANCE)
    scored = explain(GradCAM, framework, lambda output: 2 * output[:, 1])
    np.testing.assert_allclose(scored, 2 * cams(np.eye(3)[[1] * 4]), **TOLERANCE)
    model, layer, images = FRAMEWORKS[framework]()
    assert GradCAM(model, layer).explain(images[:0]).attribution.shape == (0, 10, 9)
    assert GuidedGradCAM(model, layer).explain(images[:0]).attribution.shape == (0, *images.shape[1:])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_resizing_is_bilinear(size):
    maps = np.random.default_rng(size).normal(size=(2, size, 3))
    for sizes in ((1, 1), (2, 9), (7, 3), (20, 11)):
        expected = np.stack([bilinear(each, *sizes) for each in maps])
        np.testing.assert_allclose(resized(maps, list(sizes)), expected, **TOLERANCE)


def test_one_and_three_dimensions():
    for conv, pool, shape in (
        (torch.nn.Conv1d, torch.nn.AdaptiveAvgPool1d(1), (2, 3, 12)),
        (torch.nn.Conv3d, torch.nn.AdaptiveAvgPool3d(1), (2, 3, 4, 6, 5)),
    ):
        layers = [conv(3, 4, 3, stride=2, padding=1), torch.nn.ReLU(), pool, torch.nn.Flatten(), torch.nn.Linear(4, 2)]
        model = torch.nn.Sequential(*layers).double().eval()
        images = torch.randn(shape, dtype=torch.float64)
        features = model[:2](images)
        weights = model[4].weight[1] / features[0, 0].numel()
        small = torch.einsum("c,nc...->n...", weights, features).clamp(min=0)[:, None]
        mode = "linear" if len(shape) == 3 else "trilinear"
        expected = torch.nn.functional.interpolate(small, shape[2:], mode=mode)[:, 0].detach()
        found = GradCAM(model, 1).explain(images, 1).attribution
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_agrees_with_captum():
    model, _, images = in_torch()
    # Captum needs a module for each ReLU.
    model[1], model[LAYER + 2] = torch.nn.ReLU(), torch.nn.ReLU()
    model.eval()
    peer = attr.GuidedGradCam(model, model[LAYER])
    theirs = peer.attribute(images.clone(), target=IDS, interpolate_mode="bilinear").numpy(force=True)
    np.testing.assert_allclose(GuidedGradCAM(model, model[LAYER]).explain(images, IDS), theirs, **TOLERANCE)
    # With its default, the nearest position, it is another map.
    nearest = peer.attribute(images.clone(), target=IDS).numpy(force=True)
    ours = GuidedGradCAM(model, model[LAYER], interpolation="nearest").explain(images, IDS)
    np.testing.assert_allclose(ours, nearest, **TOLERANCE)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(nearest, theirs, **TOLERANCE)


def test_a_relu_behind_the_layer_that_works_in_place():
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).double().eval()
    images = torch.tensor(IMAGES)
    conv = model[0](images)
    gradient = torch.autograd.grad(model[1:](conv.clone())[:, 1].sum(), conv)[0]
    small = (gradient.mean((2, 3), keepdim=True) * conv).sum(1).clamp(min=0).detach().numpy()
    expected = np.stack([bilinear(each, 10, 9) for each in small])
    np.testing.assert_allclose(GradCAM(model, "0").explain(images, 1), expected, **TOLERANCE)


def test_the_head_is_undone():
    model, layer, images = in_torch()
    probable = torch.nn.Sequential(*model, torch.nn.Softmax(1)).eval()
    explanations = GradCAM(probable, layer).explain(images, IDS)
    assert explanations.head == "softmax"
    np.testing.assert_allclose(explanations, cams(ONE_HOT), **TOLERANCE)
    sharp = GuidedGradCAM(probable, layer).explain(images, IDS)
    assert sharp.head == "softmax"
    np.testing.assert_allclose(sharp, guided(ONE_HOT), **TOLERANCE)


@pytest.mark.parametrize("method", [GradCAM, GuidedGradCAM])
def test_the_model_is_untouched_and_threads_do_not_meet(method):
    model, layer, images = in_torch()
    before = pickle.dumps(model.state_dict()), [type(each) for each in model.modules()], list(model._modules)
    explainer = method(model, layer)
    expected = np.asarray(explainer.explain(images, IDS))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: explainer.explain(images, IDS), range(16)):
            np.testing.assert_array_equal(found, expected)
    assert before == (pickle.dumps(model.state_dict()), [type(each) for each in model.modules()], list(model._modules))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert images.grad is None


class Twice(torch.nn.Module):
    """Runs one layer twice, and another never."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x))).mean((2, 3))


class Two(torch.nn.Module):
    """Takes two images of different sizes, and how much the second counts."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 2)

    def forward(self, first, second, weight):
        small = torch.nn.functional.avg_pool2d(second, 2) * weight[:, None, None, None]
        return self.head(torch.relu(self.conv(first + small)).mean((2, 3)))


def test_several_inputs():
    torch.manual_seed(1)
    model = Two().double().eval()
    first, second, weight = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 12, 10), torch.tensor([1, 2])
    given = first.double(), second.double(), weight
    explanations = GradCAM(model, "conv").explain(given, 1)
    assert explanations.attribution[2] is None
    features = model.conv(given[0] + torch.nn.functional.avg_pool2d(given[1], 2) * weight[:, None, None, None])
    gradient = torch.autograd.grad(model.head(torch.relu(features).mean((2, 3)))[:, 1].sum(), features)[0]
    small = (gradient.mean((2, 3), keepdim=True) * features).sum(1).clamp(min=0).detach().numpy()
    assert small.any()
    for map_, sizes in zip(explanations.attribution[:2], ((6, 5), (12, 10)), strict=True):
        np.testing.assert_allclose(map_, np.stack([bilinear(each, *sizes) for each in small]), **TOLERANCE)
    sharp = GuidedGradCAM(model, "conv").explain(given, 1).attribution
    plain = GuidedBackprop(model).explain(given, 1).attribution
    np.testing.assert_allclose(sharp[1], plain[1] * explanations.attribution[1][:, None], **TOLERANCE)
    assert sharp[2] is None


def test_an_input_without_positions_has_no_map():
    torch.manual_seed(1)
    model = Two().double().eval()
    first, weight = torch.randn(2, 3, 6, 5).double(), torch.tensor([1.0, 2.0]).double()
    given = first, torch.zeros(2, 3, 12, 10).double(), weight
    for method in (GradCAM, GuidedGradCAM):
        image, _, row = method(model, "conv").explain(given, 1).attribution
        assert row is None
        alone = method(model, "conv").explain((*given[:2], weight.long()), 1).attribution[0]
        np.testing.assert_allclose(image, alone, **TOLERANCE)
        assert image.any()


def test_what_grad_cam_cannot_explain_is_refused():
    model, _, images = in_torch()
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(270, 4), torch.nn.ReLU()).double().eval()
    apart = torch.nn.ModuleDict({"a": torch.nn.Conv2d(3, 3, 1)})
    bad = [
        (
            Twice().double().eval(),
            "conv",
            images,
            ModelError,
            "received layer=.conv., .* run 2 times",
        ),
        (Twice().double().eval(), "unused", images, ModelError, "received layer='unused', which was run 0 times"),
        (flat, "1", images, OptionError, r"must both have positions.* shape \(4, 4\) .* \(4, 3, 10, 9\)"),
        (model, "9", images, OptionError, "received layer='9'"),
        (model, apart["a"], images, OptionError, "received layer=Conv2d, which is not in it"),
        (torch.add, "0", (images, images), ModelError, "received model=builtin"),
        (lambda x: x, "a", images, ModelError, "received model=function"),
        (lambda x: tf.nn.relu(x), "a", tf.constant(IMAGES), ModelError, "received model=function"),
        (in_jax()[0], "feature", jnp.asarray(IMAGES.transpose(0, 2, 3, 1)), OptionError, "Did you mean 'features'"),
    ]
    for net, name, values, error, message in bad:
        for method in (GradCAM, GuidedGradCAM):
            with pytest.raises(error, match=message):
                method(net, name).explain(values, 0)
    with pytest.raises(OptionError, match="one of linear, nearest; received interpolation='cubic'"):
        GuidedGradCAM(model, "4", interpolation="cubic")
