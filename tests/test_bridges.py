"""Captum's calls on Captum's own test models and values, and Quantus' metrics on our maps."""

import keras
import numpy as np
import pytest
import torch
from captum import attr
from captum.testing.helpers import basic_models
from torch import nn

from guided_backprop import GuidedBackprop, LabelError, ModelError, OptionError, Saliency, faithfulness
from guided_backprop import captum as ours
from guided_backprop.quantus import explain
from networks import mlp
from networks_torch import to_torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes on non-linear:UserWarning"),
]
SQUARE = torch.arange(16.0).view(1, 1, 4, 4)
ONES = torch.ones(1, 1, 4, 4)


def one_conv() -> nn.Module:
    return basic_models.BasicModel_ConvNet_One_Conv().eval()


# What Captum's own tests expect of this model.
GUIDED = [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
DECONVOLUTION = [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]
GUIDED_GRAD_CAM = [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]
GUIDED_GRAD_CAM_OF_TWO = [[14.5, 29, 38, 19], [29, 58, 76, 38], [65, 130, 148, 74], [32.5, 65, 74, 37]]


@pytest.mark.parametrize(("method", "expected"), [(ours.GuidedBackprop, GUIDED), (ours.Deconvolution, DECONVOLUTION)])
def test_values_of_captums_tests(method, expected):
    torch.testing.assert_close(
        method(one_conv()).attribute(SQUARE, target=0), torch.tensor(expected).view(1, 1, 4, 4).float()
    )


def test_values_of_captums_tests_of_guided_grad_cam():
    model = one_conv()
    found = ours.GuidedGradCam(model, model.relu1).attribute(SQUARE, target=0)
    torch.testing.assert_close(found, torch.tensor(GUIDED_GRAD_CAM).view(1, 1, 4, 4))
    expected = torch.tensor(GUIDED_GRAD_CAM_OF_TWO).view(1, 1, 4, 4)
    both = ours.GuidedGradCam(model, model.conv1).attribute((SQUARE, ONES), target=0)
    further = ours.GuidedGradCam(model, model.conv1).attribute(SQUARE, target=0, additional_forward_args=ONES)
    for each in (*both, further):
        torch.testing.assert_close(each, expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, expected)


MULTI = torch.tensor([[1.0, 2.0, -3.0], [4.0, 0.5, 6.0]])
ARGUMENTS = [
    (one_conv, SQUARE.repeat(3, 1, 1, 1), [0, 1, 3], None),
    (one_conv, SQUARE.repeat(3, 1, 1, 1), torch.tensor([2, 0, 1]), ONES),
    (one_conv, (SQUARE, ONES), torch.tensor(3), None),
    (one_conv, SQUARE, -1, None),
    (lambda: basic_models.BasicModel_MultiLayer().eval(), MULTI, 1, (MULTI.flip(0), False)),
    (lambda: basic_models.BasicModel_MultiLayer().eval(), MULTI, (1, 0, -1), (None, True)),
    (lambda: basic_models.BasicModel_MultiLayer().eval(), MULTI, [(1, 0, 1), (0, 1, 1)], (None, True)),
    (lambda: basic_models.BasicModel_MultiLayer_MultiInput().eval(), (MULTI, MULTI * 2, MULTI.flip(1)), 0, 4),
    (lambda: to_torch(mlp(3, 4, 1)).float(), MULTI, None, None),
    (lambda: nn.Sequential(to_torch(mlp(3, 4, 2)).float(), nn.Softmax(1)).eval(), MULTI, 1, None),
]


@pytest.mark.parametrize("name", ["Saliency", "Deconvolution", "GuidedBackprop"])
@pytest.mark.parametrize(("build", "inputs", "target", "further"), ARGUMENTS)
def test_calls_give_what_captum_gives(name, build, inputs, target, further):
    torch.manual_seed(0)
    model = build()
    found = getattr(ours, name)(model).attribute(inputs, target=target, additional_forward_args=further)
    expected = getattr(attr, name)(model).attribute(inputs, target=target, additional_forward_args=further)
    torch.testing.assert_close(found, expected)
    assert type(found) is type(inputs)


def test_saliency_with_a_sign():
    model = to_torch(mlp(3, 4, 2)).float()
    for wanted in (True, False):
        expected = attr.Saliency(model).attribute(MULTI, 1, wanted)
        torch.testing.assert_close(ours.Saliency(model).attribute(MULTI, 1, wanted), expected)
    assert (expected < 0).any()


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_guided_grad_cam_is_captums(mode):
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.LazyLinear(3)).eval()
    images = torch.randn(2, 1, 9, 8)
    model(images)
    expected = attr.GuidedGradCam(model, model[3]).attribute(images, 2, interpolate_mode=mode)
    found = ours.GuidedGradCam(model, model[3]).attribute(images, 2, interpolate_mode=mode)
    torch.testing.assert_close(found, expected)
    assert found.any()


class Functional(nn.Module):
    """A network whose ReLU is a function."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, inputs, scale):
        return self.layers[1](torch.relu(self.layers[0](inputs))) * scale


def test_what_captum_gets_wrong_is_right_here():
    layers = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).eval()
    found = ours.GuidedBackprop(Functional(layers).eval()).attribute(MULTI, 1, 2.0)
    whole = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    torch.testing.assert_close(found, 2 * GuidedBackprop(whole).explain(MULTI, 1).attribution)
    with pytest.raises(AssertionError):
        # Captum finds no module to hook.
        torch.testing.assert_close(attr.GuidedBackprop(Functional(layers)).attribute(MULTI, 1, 2.0), found)


def test_bad_targets_and_models():
    model = one_conv()
    with pytest.raises(LabelError, match=r"target must be given .* received target=None and .* \(1, 4\)"):
        ours.GuidedBackprop(model).attribute(SQUARE)
    for target, message in [
        (4, r"^target must index the output for one image, \(4,\); received target=\(4,\)"),
        ((1, 0), r"target must index .* received target=\(1, 0\)"),
        (True, "target must be integers or slices; received target=True"),
        ((1, None), "target must be integers or slices"),
    ]:
        with pytest.raises(LabelError, match=message):
            ours.GuidedBackprop(model).attribute(SQUARE, target)
    with pytest.raises(LabelError, match="3 labels for 1 images"):
        ours.GuidedBackprop(model).attribute(SQUARE, [0, 1, 2])
    for target in (torch.tensor([[0, 1]]), torch.tensor([0.5]), "cat"):
        with pytest.raises(LabelError, match="target must be a class id, .* Pass a class id"):
            ours.GuidedBackprop(model).attribute(SQUARE, target)
    with pytest.raises(LabelError, match="1 labels for 3 images"):
        ours.GuidedBackprop(model).attribute(SQUARE.repeat(3, 1, 1, 1), [1])
    with pytest.raises(OptionError, match="received interpolate_mode='bicubic'"):
        ours.GuidedGradCam(model, model.conv1).attribute(SQUARE, 0, interpolate_mode="bicubic")
    dropping = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Dropout())
    with pytest.raises(ModelError, match="received training=True on 3"):
        ours.GuidedBackprop(dropping).attribute(SQUARE, 0)
    assert dropping.training


# Quantus.


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).eval()


IMAGES = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1])


@pytest.mark.filterwarnings("ignore")
def test_quantus_metrics(network):
    # Importing it warns, and leaves TensorFlow's messages; so not with the file.
    import quantus

    expected = np.asarray(GuidedBackprop(network).explain(IMAGES, LABELS))
    np.testing.assert_allclose(explain(network, IMAGES.astype(np.float64), LABELS), expected, rtol=1e-5, atol=1e-6)
    sparseness = quantus.Sparseness(disable_warnings=True)
    called = sparseness(network, IMAGES, LABELS, explain_func=explain)
    given = sparseness(network, IMAGES, LABELS, a_batch=expected)
    np.testing.assert_allclose(called, given, rtol=1e-5)
    other = sparseness(network, IMAGES, LABELS, explain_func=explain, explain_func_kwargs={"method": "DeconvNet"})
    assert not np.allclose(called, other)
    # A metric that explains noisy images again, and one that randomises the model's layers.
    sensitivity = quantus.MaxSensitivity(nr_samples=3, disable_warnings=True)
    assert np.isfinite(sensitivity(network, IMAGES, LABELS, explain_func=explain)).all()
    randomised = quantus.MPRT(disable_warnings=True, return_last_correlation=True)
    assert np.isfinite(randomised(network, IMAGES, LABELS, explain_func=explain)).all()
    assert not network.training


@pytest.mark.filterwarnings("ignore")
def test_deletion_and_insertion_are_those_of_quantus():
    """Of maps without ties, of which Quantus takes any first; by a number, for its mean is anew of what is left."""
    import quantus

    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    found = faithfulness(Saliency(network), IMAGES, LABELS, baseline=0.25, steps=8)
    maps = np.abs(np.asarray(Saliency(network).explain(IMAGES, LABELS)))
    assert all(len(np.unique(each)) == each.size for each in maps)

    def curves(a_batch):
        options = {"perturb_baseline": 0.25, "features_in_step": 8, "normalise": False, "disable_warnings": True}
        return np.array(quantus.PixelFlipping(**options)(network, IMAGES, LABELS, a_batch=a_batch, softmax=True))

    np.testing.assert_allclose(found.curves["deletion"]["Saliency"][:, 1:], curves(maps), rtol=0, atol=1e-6)
    # Deleting from the weakest on is inserting the strongest first, seen from the end.
    inserted = curves(maps.max() - maps)[:, ::-1]
    np.testing.assert_allclose(found.curves["insertion"]["Saliency"][:, :-1], inserted, rtol=0, atol=1e-6)
    assert np.abs(found.curves["deletion"]["Saliency"][:, 1:] - curves(maps.max() - maps)).max() > 1e-3


def test_other_methods_and_models_for_quantus(network):
    cam = explain(network, IMAGES, LABELS, method="GradCAM", layer="0")
    assert cam.shape == (4, 8, 8)
    assert explain(network, IMAGES, LABELS, method="GuidedGradCAM", layer="0").shape == IMAGES.shape
    assert explain(network, IMAGES, LABELS, reducer="absmax").shape == (4, 8, 8)
    in_keras = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, activation="relu")])
    found = explain(model=in_keras, inputs=IMAGES.transpose(0, 2, 3, 1), targets=np.array([0, 1, 1, 0]))
    assert found.shape == (4, 8, 8, 1)
    assert explain(network.double(), IMAGES, LABELS).dtype == np.float64
    network.float()
    with pytest.raises(OptionError, match="method must be one of .* received method='Gradient'"):
        explain(network, IMAGES, LABELS, method="Gradient")
