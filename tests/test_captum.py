"""Agreement with Captum on the networks that Captum gets right.

Captum hooks ``nn.ReLU`` modules, and replaces the gradient of the tensor that goes into one. So it is right
where every ReLU is a module of its own, without a cap, and nothing else reads its input.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum import attr
from numpy.testing import assert_allclose
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, Method, Saliency
from networks_torch import to_torch
from reference import (
    Array,
    Conv2d,
    Flatten,
    Generator,
    GlobalAveragePool,
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

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
]

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
LABELS = [0, 2, 1]
IMAGES = torch.tensor(np.random.default_rng(7).normal(size=(3, 2, 9, 9)))

PAIRS: dict[Rule, tuple[type[Method], type[attr.GradientAttribution]]] = {
    "saliency": (Saliency, attr.Saliency),
    "deconvnet": (DeconvNet, attr.Deconvolution),
    "guided": (GuidedBackprop, attr.GuidedBackprop),
}


def plain_network(rng: Generator) -> Sequential:
    """Return convolutions, ReLUs and max-pooling, one after the other."""
    layers = (
        random_conv(rng, 2, 4, padding=(1, 1)),
        ReLU(),
        MaxPool2d((3, 3), (2, 2)),
        random_conv(rng, 4, 6),
        ReLU(),
        Flatten(),
        random_linear(rng, 24, 8),
        ReLU(),
        random_linear(rng, 8, 3),
    )
    return Sequential(layers)


def post_activation_network(rng: Generator) -> Sequential:
    """Return two residual blocks as in the first ResNet: the ReLU comes after the sum."""
    layers = (random_conv(rng, 2, 4, padding=(1, 1)), random_batch_norm(rng, 4), ReLU())
    for _ in range(2):
        branch = (same_conv(rng), random_batch_norm(rng, 4), ReLU(), same_conv(rng), random_batch_norm(rng, 4))
        layers += (Residual(Sequential(branch)), ReLU())
    return Sequential((*layers, GlobalAveragePool(), random_linear(rng, 4, 3)))


def pre_activation_network(rng: Generator) -> Sequential:
    """Return a residual block as in the second ResNet: skip path and ReLU read the same tensor."""
    block = Residual(Sequential((ReLU(), same_conv(rng), ReLU(), same_conv(rng))))
    return Sequential((random_conv(rng, 2, 4), block, ReLU(), GlobalAveragePool(), random_linear(rng, 4, 3)))


def same_conv(rng: Generator) -> Conv2d:
    """Return a convolution that keeps four channels and the size."""
    return random_conv(rng, 4, 4, padding=(1, 1))


def explain_with_both(model: nn.Module, rule: Rule) -> tuple[Array, Array]:
    """Return the library's attribution and Captum's."""
    method, peer = PAIRS[rule]
    options = {"abs": False} if rule == "saliency" else {}
    theirs = peer(model).attribute(IMAGES.clone(), target=LABELS, **options)
    return np.asarray(method(model).explain(IMAGES, LABELS)), theirs.numpy(force=True)


def explain_with_oracle(network: Sequential, rule: Rule) -> Array:
    """Return the oracle's attribution."""
    return attribution(network, IMAGES.numpy(), np.eye(3)[LABELS], rule)


@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("build", [plain_network, post_activation_network])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_captum(build: Callable[[Generator], Sequential], rule: Rule, seed: int) -> None:
    network = build(np.random.default_rng(seed))
    ours, theirs = explain_with_both(to_torch(network), rule)
    assert ours.any()
    assert_allclose(ours, theirs, **TOLERANCE)
    assert_allclose(ours, explain_with_oracle(network, rule), **TOLERANCE)


@pytest.mark.parametrize("rule", PAIRS)
def test_comparison_catches_another_rule(rule: Rule) -> None:
    model = to_torch(plain_network(np.random.default_rng(0)))
    ours, _ = explain_with_both(model, rule)
    for other in PAIRS.keys() - {rule}:
        _, theirs = explain_with_both(model, other)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_allclose(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_captum_changes_a_skip_path_that_shares_its_tensor(rule: Rule) -> None:
    # Captum's GuidedBackprop clamps the sum of skip path and ReLU; its Deconvolution drops the skip path.
    network = pre_activation_network(np.random.default_rng(0))
    ours, theirs = explain_with_both(to_torch(network), rule)
    assert_allclose(ours, explain_with_oracle(network, rule), **TOLERANCE)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_allclose(theirs, ours, **TOLERANCE)
