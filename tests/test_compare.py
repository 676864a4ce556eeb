"""Several methods on the same images: each gives what it gives alone, and one forward pass serves all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import networks
from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    LabelError,
    NoReluError,
    Saliency,
    SmoothGrad,
    compare,
)
from networks import IMAGES, LABELS, NETWORKS, RULES
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
KINDS = {"Saliency": Saliency, "DeconvNet": DeconvNet, "GuidedBackprop": GuidedBackprop}
FRAMEWORKS = {
    "torch": (to_torch, torch.tensor, np.asarray),
    "tensorflow": (to_tensorflow, lambda images: tf.constant(images.transpose(0, 2, 3, 1)), None),
    "jax": (to_jax, lambda images: jnp.asarray(images.transpose(0, 2, 3, 1)), None),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def in_oracle_layout(framework, explanations) -> np.ndarray:
    array = np.asarray(explanations)
    return array if framework == "torch" else np.moveaxis(array, -1, -3)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_method_gives_what_the_oracle_gives(framework):
    """In batches; test_contract.py compares each network, all images at once."""
    network = "residual, capped"
    build, convert, _ = FRAMEWORKS[framework]
    model = build(NETWORKS[network])
    found = compare(convert(IMAGES), LABELS, [kind(model, batch_size=3) for kind in KINDS.values()])
    assert [each.method for each in found] == list(RULES)
    for name, explanations in zip(KINDS, found, strict=True):
        attribution = in_oracle_layout(framework, explanations)
        np.testing.assert_allclose(attribution, networks.expected(network, name), **TOLERANCE)
        # The comparison can fail: no two methods agree.
        for other in RULES.keys() - {name}:
            assert not np.allclose(attribution, networks.expected(network, other), **TOLERANCE)
        np.testing.assert_allclose(explanations.scores, found[0].scores, rtol=1e-12)
        assert any(row.treatment == type(KINDS[name](model)).rule.name for row in explanations.coverage)


class Counting(nn.Module):
    """Counts how often it is run forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.model(images)


def test_one_forward_pass_serves_all():
    model = Counting(to_torch(NETWORKS["residual"])).eval()
    compare(torch.tensor(IMAGES), LABELS, [kind(model) for kind in KINDS.values()])
    assert model.count == 1
    # Other reducers do not matter; other options do.
    compare(torch.tensor(IMAGES), LABELS, [GuidedBackprop(model), Saliency(model, reducer="sum")])
    assert model.count == 2
    compare(torch.tensor(IMAGES), LABELS, [GuidedBackprop(model), Saliency(model, batch_size=2)])
    assert model.count == 2 + 1 + 2


@pytest.mark.parametrize("options", [{}, {"memory": "lean"}])
def test_what_each_gives_alone(options):
    """With a head, several labels, a mask of channels, extensions, and methods of other kinds in between."""
    model = nn.Sequential(*to_torch(NETWORKS["convolutional"]), nn.Softmax(1)).eval()
    images = torch.tensor(IMAGES)
    methods = [
        GuidedBackprop(model, **options),
        GradCAM(model, "4"),
        Saliency(model, reducer="absmax", **options),
        GuidedGradCAM(model, "4"),
        SmoothGrad(GuidedBackprop(model, **options), samples=2),
        DeconvNet(model, **options),
        GuidedBackprop(model, smooth="guide", **options),
    ]
    for labels in (LABELS, "top3", None, lambda output: output[:, 1]):
        for method, found in zip(methods, compare(images, labels, methods), strict=True):
            alone = method.explain(images, labels)
            np.testing.assert_allclose(found, alone, **TOLERANCE)
            np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-12)
            assert (found.method, found.coverage, found.head) == (alone.method, alone.coverage, alone.head)


def test_no_methods_and_bad_input():
    model = to_torch(NETWORKS["convolutional"])
    assert compare(torch.tensor(IMAGES), LABELS, []) == []
    with pytest.raises(LabelError, match="class ids"):
        compare(torch.tensor(IMAGES), 99, [GuidedBackprop(model), Saliency(model)])
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double().eval()
    with pytest.raises(NoReluError, match="deconv rule needs"):
        compare(torch.tensor(IMAGES), LABELS, [Saliency(plain), DeconvNet(plain)])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_rule_several_times(framework):
    build, convert, _ = FRAMEWORKS[framework]
    model = build(NETWORKS["convolutional"])
    methods = [GuidedBackprop(model, reducer="sum"), Saliency(model), GuidedBackprop(model)]
    summed, plain, whole = compare(convert(IMAGES), LABELS, methods)
    whole, plain = in_oracle_layout(framework, whole), in_oracle_layout(framework, plain)
    np.testing.assert_allclose(whole, networks.expected("convolutional", "GuidedBackprop"), **TOLERANCE)
    np.testing.assert_allclose(np.asarray(summed), whole.sum(axis=1), **TOLERANCE)
    assert not np.allclose(np.asarray(summed), plain.sum(axis=1), **TOLERANCE)
