"""The methods of ``guided_backprop.captum`` as Captum's own: in its hands, at neurons of layers, and without Captum."""

import importlib.util
import inspect
import sys

import numpy as np
import pytest
import torch
from captum import attr, metrics
from torch import nn

import reference
from guided_backprop import GuidedBackprop, LabelError, NoReluError, OptionError
from guided_backprop import captum as ours
from guided_backprop.labels.captum import of_neurons
from networks import IMAGES, TOLERANCE, mixed
from networks_torch import Net

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients:UserWarning"),
]


class Branch(nn.Module):
    """A convolution that is also asked what it has, and a ReLU that works in place; the scale is given by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x, scale):
        return self.relu(self.conv(x)) * scale * self.conv.stride[0]


class TwoInputs(nn.Module):
    """Takes an image and a row of a table, and a scale; each ReLU is a module, as Captum needs it."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.branch = nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), Branch()
        self.embed, self.head, self.act, self.fc = nn.Linear(4, 5), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3)
        self.soft = nn.Softmax(1)

    def forward(self, image, row, scale=1.0):
        x = self.branch(self.relu(self.stem(image)), scale=scale).flatten(1)
        return self.soft(self.fc(self.act(self.head(x) + self.embed(row))))


@pytest.fixture(scope="module")
def two():
    torch.manual_seed(1)
    model = TwoInputs().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Maps of a size to compare.
            parameter.mul_(3)
    return model


def two_inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, 6, 6, generator=generator).double(), torch.randn(3, 4, generator=generator).double()


@pytest.mark.parametrize("name", ours.__all__)
def test_methods_are_called_and_used_as_captums(name):
    here, there = getattr(ours, name), getattr(attr, name)
    assert issubclass(here, attr.GradientAttribution)
    assert issubclass(here, attr.NeuronAttribution) == issubclass(there, attr.NeuronAttribution)
    for function in ("__init__", "attribute"):
        mine, theirs = (inspect.signature(getattr(kind, function)).parameters.values() for kind in (here, there))
        assert [(one.name, one.default) for one in mine] == [(one.name, one.default) for one in theirs]
    model = TwoInputs()
    method = here(model, model.stem) if "layer" in inspect.signature(here).parameters else here(model)
    assert method.forward_func is model
    assert not method.multiplies_by_inputs
    assert not method.has_convergence_delta()
    assert method.get_name() == there.get_name()
    with pytest.raises(NotImplementedError, match=f"received attribute_future of {name}. Call attribute"):
        method.attribute_future()


SELECTORS = [
    ("act", 2),
    ("fc", (-2,)),
    ("soft", 1),
    ("head", (slice(1, 3),)),
    ("branch", (1, 2, 0)),
    ("branch.relu", (slice(None), 1, slice(0, 2))),
    ("branch.conv", lambda output: output.square().sum((1, 2, 3))),
    ("branch", lambda output: output.amax((1, 2, 3), keepdim=True)),
    ("act", lambda output: output.mean()),
]


@pytest.mark.parametrize("is_input", [False, True])
@pytest.mark.parametrize(("name", "selector"), SELECTORS)
def test_neurons_are_captums(two, name, selector, is_input):
    image, row = two_inputs()
    layer = two.get_submodule(name)
    for kind in ("NeuronGuidedBackprop", "NeuronDeconvolution"):
        found = getattr(ours, kind)(two, layer).attribute(image, selector, (row, 0.5), is_input)
        expected = getattr(attr, kind)(two, layer).attribute(image.clone(), selector, (row, 0.5), is_input)
        torch.testing.assert_close(found, expected, **TOLERANCE["float64"])
        assert found.any()
    # The model is as it was.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in two.modules())
    assert two.get_submodule(name) is layer


def test_another_neuron_is_another_map(two):
    image, row = two_inputs()
    method = ours.NeuronGuidedBackprop(two, two.branch.relu)
    expected = attr.NeuronGuidedBackprop(two, two.branch.relu).attribute(image.clone(), (1, 2, 0), row)
    for selector, is_input in (((1, 2, 1), False), ((1, 2, 0), True), ((1, 2, slice(0, 2)), False)):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(method.attribute(image, selector, row, is_input), expected)


def test_a_neuron_is_what_the_formulas_say_where_captum_sees_no_relu():
    model, images = Net(torch.relu), torch.tensor(IMAGES)
    conv, layers = model.middle[1], mixed(reference.ReLU()).layers
    for is_input, count in ((False, 5), (True, 4)):
        front = reference.Sequential(layers[:count])
        weights = np.zeros_like(front.forward(IMAGES)[0])
        weights[:, 2, 1, 1] = 1
        expected = reference.attribution(front, IMAGES, weights, "guided")
        found = ours.NeuronGuidedBackprop(model, conv).attribute(images, (2, 1, 1), None, is_input)
        np.testing.assert_allclose(found, expected, **TOLERANCE["float64"])
        theirs = attr.NeuronGuidedBackprop(model, conv).attribute(images.clone(), (2, 1, 1), None, is_input)
        assert not np.allclose(theirs.detach(), expected, **TOLERANCE["float64"])


def test_neurons_in_front_of_which_there_is_nothing_to_guide(two):
    image, row = two_inputs()
    expected = torch.autograd.functional.jacobian(lambda image: two.stem(image)[:, 1, 2, 2].sum(), image)
    found = ours.NeuronGuidedBackprop(two, two.stem).attribute(image, (1, 2, 2), row)
    torch.testing.assert_close(found, expected, **TOLERANCE["float64"])
    smooth = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)).double().eval()
    with pytest.raises(NoReluError, match="found gelu x1"):
        ours.NeuronGuidedBackprop(smooth, smooth[2]).attribute(row, 1)


def test_bad_selectors(two):
    image, row = two_inputs()
    for layer, selector, message in [
        (two.act, 5, r"^neuron_selector must index the output for one image, \(5,\); received neuron_selector=\(5,\)"),
        (two.act, (None,), r"neuron_selector must be integers or slices; received neuron_selector=\(None,\)"),
        (
            two.branch,
            (0, slice(4, 9), 0),
            r"must index .*, \(2, 4, 4\); received neuron_selector=\(0, sl",
        ),
        (two.branch, (slice(0, 1), 2, 4), r"must index .*, \(2, 4, 4\)"),
        (two.act, lambda output: output, r"one real number per image, \(N,\); received"),
    ]:
        with pytest.raises(LabelError, match=message):
            ours.NeuronGuidedBackprop(two, layer).attribute((image, row), selector)
    # One number for all images may be another one for a part of them.
    halved = GuidedBackprop(two, output_layer=two.act, batch_size=1)
    with pytest.raises(LabelError, match="one real number per image"):
        halved.explain((image, row), of_neurons(lambda output: output.mean(), 3))
    with pytest.raises(OptionError, match="received layer=Conv2d, which is not in it"):
        ours.NeuronGuidedBackprop(two, nn.Conv2d(1, 1, 1)).attribute((image, row), 0, None, True)


@pytest.mark.parametrize("is_input", [False, True])
def test_guided_grad_cam_of_inputs_without_positions(two, is_input):
    image, row = two_inputs()
    given, further = (image, row), (0.5,)
    found = ours.GuidedGradCam(two, two.branch.relu).attribute(given, 1, further, attribute_to_layer_input=is_input)
    theirs = attr.GuidedGradCam(two, two.branch.relu)
    with pytest.warns(UserWarning, match="returning empty tensor"):
        expected = theirs.attribute(given, 1, further, attribute_to_layer_input=is_input)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE["float64"])
    assert found[1].shape == expected[1].shape == (0,)
    # What the ReLU is given is another CAM.
    with pytest.warns(UserWarning, match="returning empty tensor"):
        other = theirs.attribute(given, 1, further, attribute_to_layer_input=not is_input)
    assert not torch.allclose(found[0], other[0])
    with pytest.raises(OptionError, match="layer and images must both have positions"):
        ours.GuidedGradCam(two, two.head).attribute(given, 1)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(two, kind):
    image, row = two_inputs()
    target = {"target": [0, 2, 1], "additional_forward_args": (row, 0.5)}
    neuron = {"neuron_selector": (1, 2, 0), "additional_forward_args": (row, 0.5)}
    for name, layer, options in [
        ("Saliency", (), {"abs": False, **target}),
        ("GuidedBackprop", (), target),
        ("GuidedGradCam", (two.branch,), target),
        ("NeuronGuidedBackprop", (two.branch,), neuron),
    ]:
        maps = []
        for library, seed in ((ours, 0), (attr, 0), (attr, 1)):
            torch.manual_seed(seed)
            tunnel = attr.NoiseTunnel(getattr(library, name)(two, *layer))
            noise = {"nt_type": kind, "nt_samples": 5, "nt_samples_batch_size": 2, "stdevs": 0.3}
            maps.append(tunnel.attribute(image, **noise, **options))
        # Squares of a gradient of a probability are small.
        found, expected, planted = (tensor / maps[1].abs().max() for tensor in maps)
        torch.testing.assert_close(found, expected, **TOLERANCE["float64"])
        assert not torch.allclose(found, planted)


def test_metrics(two):
    given, measured = two_inputs(), {}

    def shaken(inputs):
        noise = tuple(torch.randn_like(tensor) * 0.1 for tensor in inputs)
        return noise, tuple(tensor - change for tensor, change in zip(inputs, noise, strict=True))

    for library, name in ((ours, "GuidedBackprop"), (attr, "GuidedBackprop"), (ours, "Deconvolution")):
        method = getattr(library, name)(two)
        torch.manual_seed(0)
        infidelity = metrics.infidelity(two, shaken, given, method.attribute(given, 1), target=1)
        torch.manual_seed(0)
        sensitivity = metrics.sensitivity_max(method.attribute, given, target=1, n_perturb_samples=3)
        measured[library, name] = torch.stack([infidelity, sensitivity])
    found, expected, planted = measured.values()
    torch.testing.assert_close(found, expected, **TOLERANCE["float64"])
    assert not torch.allclose(found, planted)


def test_without_captum(two, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "captum"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("without_captum", ours.__file__)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert not issubclass(alone.GuidedBackprop, attr.GradientAttribution)
    image, row = two_inputs()
    for name, layer, label in [("GuidedBackprop", (), 1), ("NeuronDeconvolution", (two.act,), 2)]:
        found, expected = (
            getattr(library, name)(two, *layer).attribute(image, label, row) for library in (alone, ours)
        )
        torch.testing.assert_close(found, expected, **TOLERANCE["float64"])
