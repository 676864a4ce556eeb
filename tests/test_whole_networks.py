"""Parts of networks from model zoos that may look like a hidden ReLU and are none, and how often a model runs.

The reference is the framework's own gradient, taken in two steps around the one ReLU, and the formula between them.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn
from torch.nn import functional as F

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import nomination
from guided_backprop.backends.choices import judge_choice
from guided_backprop.backends.notes import Choice
from guided_backprop.backends.tensorflow.graph import weights
from guided_backprop.backends.tensorflow.hidden import values
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.hidden import derivatives, spelled, watch
from guided_backprop.backends.torch.hidden.derivatives import leads_around

RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(2, 3, 14, 14))


class Part(nn.Module):
    """A part behind one ReLU, as a network has it.

    Args:
        part: what it does with the ReLU's result, of eight channels.
    """

    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 1, 3)
        self.norm, self.attend = nn.LayerNorm(1), nn.Linear(1, 1)
        self.query, self.place = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 1))
        self.part, self.runs = part, 0
        self.double().eval()

    def forward(self, x):
        self.runs += 1
        return self.behind(F.relu(self.first(x)))

    def behind(self, relu):
        """Return two outputs."""
        return self.part(self, relu).flatten(1).unfold(1, 40, 7)[:, :2].sin().sum(2)

    def expected(self, x, label):
        """Return the map by the formula, with PyTorch's own gradients before and behind the ReLU."""
        x = x.clone().requires_grad_()
        before = self.first(x)
        relu = F.relu(before).detach().requires_grad_()
        (g,) = torch.autograd.grad(self.behind(relu)[:, label].sum(), relu)
        return torch.autograd.grad(before, x, g.clamp(min=0) * (before > 0))[0].numpy()


def pool_of_padded(model, relu):
    """HGNet's stem: what a ReLU gave is shifted below 0, then padded with zeros, then pooled."""
    return F.max_pool2d(F.pad(0.9 * relu - 0.04, (0, 1, 0, 1)), 2, 1)


def norm_of_one(model, relu):
    """CSATv2's map of places: tokens of one channel, made of the largest of all channels, are normalised."""
    placed = model.mix(torch.cat([relu.mean(1, keepdim=True), relu.amax(1, keepdim=True)], 1))
    tokens = placed.flatten(2).transpose(1, 2)
    return relu[:, :, 1:-1, 1:-1] * (tokens + model.attend(model.norm(tokens))).transpose(1, 2).view_as(placed)


def reshaped(model, relu):
    """EfficientViT's attention: heads are made of channels, and channels of heads."""
    heads = relu.reshape(len(relu) * 2, 4, -1)
    return ((heads @ heads.mT).softmax(-1) @ heads).mT.reshape(len(relu), 8, -1)


def additive_attention(model, relu, order=2.0):
    """SwiftFormer's attention: places are weighed by a row of numbers of one sign, whose length is 1."""
    tokens = F.normalize(relu.flatten(2).mT @ model.query, order, dim=2)
    weights = F.normalize(tokens @ model.place + 3.0, order, dim=1)
    mean = (weights * tokens).sum(1, keepdim=True)
    return mean * tokens @ model.query + tokens


def attention_by_magnitudes(model, relu):
    """The same, by lengths that are sums of magnitudes, each of which might be half of a ReLU."""
    return additive_attention(model, relu, order=1.0)


PARTS = [pool_of_padded, norm_of_one, reshaped, additive_attention]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("part", [*PARTS, attention_by_magnitudes])
def test_a_part_is_plain(part, count):
    model, x = Part(part), torch.tensor(IMAGES[:count])
    explained = GuidedBackprop(model).explain(x, 1)
    np.testing.assert_allclose(explained.attribution.numpy(), model.expected(x, 1), rtol=0, atol=1e-12)
    assert "relu x1 guided" in str(explained.coverage)


def test_planted_fault_a_border_is_a_relu_in_places(monkeypatch):
    monkeypatch.setattr(nomination.Step, "_is_around", False)
    with pytest.raises(OpaqueRegionError, match="max_pool"):
        GuidedBackprop(Part(pool_of_padded)).explain(torch.tensor(IMAGES), 1)


def test_planted_fault_a_bias_depends_on_the_images(monkeypatch):
    monkeypatch.setattr(watch, "_leaves_bias", lambda name, args: False)
    assert runs_later(norm_of_one) > 1


def runs_later(part):
    """Return how often a model runs for the second explanation."""
    model = Part(part)
    method, x = GuidedBackprop(model), torch.tensor(IMAGES)
    method.explain(x, 1)
    first = model.runs
    method.explain(x, 1)
    return model.runs - first


@pytest.mark.parametrize("part", PARTS)
def test_later_calls_are_not_watched(part):
    """What was seen once is known by its graph: a later call runs the model once, and not once more to be watched."""
    assert runs_later(part) == 1


def test_planted_fault_a_reshape_has_another_name_where_it_is_watched(monkeypatch):
    monkeypatch.delitem(nodes.SAME, "ViewBackward0")
    assert runs_later(reshaped) == 2


def derivatives_by_call(monkeypatch):
    """Return how many backward passes judge what its images never tell, in each of three explanations."""
    taken, found = [], derivatives._pulled
    monkeypatch.setattr(derivatives, "_pulled", lambda *args: taken.append(args) or found(*args))
    method, counts = GuidedBackprop(Part(attention_by_magnitudes)), [0]
    for _ in range(3):
        method.explain(torch.tensor(IMAGES), 1)
        counts.append(len(taken))
    return np.diff(counts)


def test_what_was_plain_once_is_not_judged_again(monkeypatch):
    first, *later = derivatives_by_call(monkeypatch)
    assert first > 10
    assert max(later) < first / 10


def test_planted_fault_what_was_plain_is_forgotten(monkeypatch):
    monkeypatch.setattr(spelled, "_key", lambda way, suspect: object())
    first, *later = derivatives_by_call(monkeypatch)
    assert min(later) > first / 10


def test_what_comes_through_relus_alone_is_not_reached():
    x = torch.randn(3, requires_grad=True)
    inner = x * 2
    through, around = F.relu(inner) * 3, F.relu(inner) + inner
    path = nodes.Path.between((through.sum() + around.sum()).grad_fn, [inner.grad_fn])
    assert not leads_around(path, through.grad_fn, {inner.grad_fn})
    assert leads_around(path, around.grad_fn, {inner.grad_fn})
    # What a ReLU gave is in front of it.
    assert leads_around(path, through.grad_fn, {through.grad_fn.next_functions[0][0]})


def of_keras():
    """Return NASNet's reduction in miniature: a batch-norm's values of either sign are padded and pooled."""
    layers = keras.layers
    shape = {"kernel_initializer": keras.initializers.RandomNormal(seed=1), "dtype": "float64"}
    model = keras.Sequential(
        [
            keras.Input((14, 14, 3), dtype="float64"),
            layers.Conv2D(4, 3, activation="relu", **shape),
            layers.Conv2D(24, 1, use_bias=False, **shape),
            layers.BatchNormalization(dtype="float64"),
            layers.ZeroPadding2D(1, dtype="float64"),
            layers.MaxPooling2D(2, 2, dtype="float64"),
            layers.Flatten(dtype="float64"),
            layers.Dense(2, **shape),
        ]
    )
    model.layers[2].moving_mean.assign(RNG.normal(size=24))
    return model


def test_a_pool_of_padded_values_in_keras():
    model, x = of_keras(), IMAGES.transpose(0, 2, 3, 1)
    explained = GuidedBackprop(model).explain(x, 1)
    first, rest = model.layers[0], model.layers[1:]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(start := tf.constant(x))
        tape.watch(relu := first(start))
        y = relu
        for layer in rest:
            y = layer(y)
        score = tf.reduce_sum(y[:, 1])
    g = tf.nn.relu(tape.gradient(score, relu))
    expected = tape.gradient(relu, start, g)
    np.testing.assert_allclose(np.asarray(explained.attribution), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_known", [True, False])
def test_planted_fault_a_batch_norm_multiplies_by_zeros(is_known, monkeypatch):
    """Where its factors may be 0, constants may lie anywhere among what is chosen from, and not around it alone."""
    seen = set()
    monkeypatch.setattr(
        values, "judge_choice", lambda looks, choice, **known: seen.add(choice) or judge_choice(looks, choice, **known)
    )
    if not is_known:
        monkeypatch.setattr(weights, "_NEVER_ZERO", "")
    GuidedBackprop(of_keras()).explain(IMAGES.transpose(0, 2, 3, 1), 1)
    assert seen == {Choice.AROUND if is_known else Choice.AMONG}
