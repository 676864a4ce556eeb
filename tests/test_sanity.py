"""The sanity checks: metrics by hand, planted faults, what is re-initialised, convergence against the oracle."""

import copy
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from click.testing import CliRunner
from flax import nnx
from PIL import Image
from skimage.filters import sobel
from torch import nn

import reference
from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    LabelError,
    MissingExtraError,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
    sanity_check,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends.jax.randomize import JaxCopy
from guided_backprop.backends.randomize import Weight
from guided_backprop.backends.torch.model.randomize import TorchCopy
from guided_backprop.commands.main import command
from guided_backprop.jax import tap
from guided_backprop.trust.convergence import vectors
from guided_backprop.trust.similarity import Maps, cosines
from networks import IMAGES, NETWORKS
from networks_torch import to_torch

GENERATOR = np.random.default_rng(5)
PHOTOS = GENERATOR.uniform(size=(3, 3, 24, 24))


@pytest.fixture(autouse=True)
def _seeded():
    """Networks are the same in each run."""
    keras.utils.set_random_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(seed: int = 0) -> nn.Module:
    """Return a network whose layers are registered in another order than they run in."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 5)
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 6, 3)
            self.unused = nn.Linear(2, 2)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.first(x)))
            return self.head(torch.relu(self.second(x)).mean((2, 3)))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network().double().eval()


# Metrics.


def rank_correlations(one, other):
    found = Maps(np.array([one], float)).similarity(Maps(np.array([other], float)))
    return found["spearman"][0], found["spearman_abs"][0]


def test_rank_correlation_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: products of the differences from 2.5 sum to 4.5, squares to 4.5 and 5.
    assert rank_correlations([1, 2, 2, 3], [1, 2, 3, 4])[0] == pytest.approx(4.5 / np.sqrt(4.5 * 5), rel=1e-12)
    signed, magnitudes = rank_correlations([1, -2, 3, -4], [-1, 2, -3, 4])
    assert (signed, magnitudes) == pytest.approx((-1, 1), rel=1e-12)
    # Any monotonous change keeps it, also of numbers whose squares are none in float32.
    assert rank_correlations([1, 2, 3], [1e-40, 1e-30, 1e38])[0] == pytest.approx(1, rel=1e-12)


def test_ssim_by_hand():
    one, other = GENERATOR.normal(size=(2, 5, 5))
    x, y = one / np.abs(one).max(), other / np.abs(other).max()
    # There is one window of 5 x 5; the range is 2.
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    covariance = ((x - x.mean()) * (y - y.mean())).sum() / 24
    expected = (2 * x.mean() * y.mean() + c1) * (2 * covariance + c2)
    expected /= (x.mean() ** 2 + y.mean() ** 2 + c1) * (x.var(ddof=1) + y.var(ddof=1) + c2)
    assert Maps(one[None]).similarity(Maps(other[None]))["ssim"][0] == pytest.approx(expected, rel=1e-9)
    assert Maps(one[None]).similarity(Maps(7 * one[None]))["ssim"][0] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("size", [6, 28, 64])
def test_histograms_of_gradients(size):
    across = np.sin(np.arange(size) * 0.9)[None, None, :] * np.ones((1, size, 1))
    along = across.transpose(0, 2, 1)
    assert Maps(across).similarity(Maps(3 * across))["hog"][0] == pytest.approx(1, rel=1e-9)
    assert Maps(across).similarity(Maps(along))["hog"][0] < 0.1


def test_channels_are_summed():
    values = GENERATOR.normal(size=(2, 3, 6, 6))
    by_hand = Maps(values.sum(axis=1)).similarity(Maps(np.abs(values).sum(axis=1)))
    other = replace_magnitude(values)
    found = Maps(values, 1).similarity(Maps(other, 1))
    np.testing.assert_allclose(found["spearman"], by_hand["spearman"], rtol=1e-12)
    assert Maps(values, 1).magnitude.max() == 1
    np.testing.assert_allclose(Maps(values, 1).magnitude * np.abs(values).sum(axis=1).max((1, 2), keepdims=True),
                               np.abs(values).sum(axis=1), rtol=1e-12)  # fmt: skip


def replace_magnitude(values: np.ndarray) -> np.ndarray:
    """Return three channels whose sum is the sum of the magnitudes of ``values``."""
    zeros = np.zeros_like(values[:, :1])
    return np.concatenate([np.abs(values).sum(axis=1, keepdims=True), zeros, zeros], axis=1)


def test_what_is_constant_has_similarity_0():
    maps = Maps(np.stack([np.zeros((8, 8)), np.full((8, 8), -3.0), GENERATOR.normal(size=(8, 8))]))
    assert maps.is_constant.tolist() == [True, True, False]
    for values in maps.similarity(maps).values():
        assert values[:2].tolist() == [0, 0]
        assert values[2] == pytest.approx(1, rel=1e-9)
    # The magnitudes are constant where the signs are not.
    signs = Maps(np.where(GENERATOR.normal(size=(1, 8, 8)) > 0, 1.0, -1.0))
    assert signs.is_constant.all()
    assert signs.similarity(signs)["spearman_abs"][0] == 0
    assert signs.similarity(signs)["spearman"][0] == pytest.approx(1)


def test_cosines_by_hand():
    np.testing.assert_allclose(cosines(np.array([[3, 4], [1, 0], [0, 0]]), np.array([[4, 3], [0, 2], [1, 1]])),
                               [0.96, 0, 0], rtol=1e-12)  # fmt: skip
    assert cosines(np.array([[1e-200, 0]]), np.array([[1e200, 0]]))[0] == 1


# What is re-initialised.


def fresh(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return Weight("layer", name, np.zeros(shape, np.float32)).fresh(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "shape", "fan_in"),
    [
        ("weight", (64, 32, 3, 3), 288),
        ("kernel", (3, 3, 32, 64), 288),
        ("depthwise_kernel", (3, 3, 400, 1), 9),
        ("w", (200, 100), 200),
        ("weight", (1, 5000), 5000),
    ],
)
def test_kernels_are_truncated_normal(name, shape, fan_in):
    values = fresh(name, shape)
    expected = np.sqrt(2 / fan_in)
    assert values.std() == pytest.approx(expected, rel=0.05)
    assert abs(values.mean()) < 4 * expected / np.sqrt(values.size)
    # Two standard deviations of what was truncated.
    assert 0.95 < np.abs(values).max() / (2 * expected / 0.8796) <= 1 + 1e-6
    assert values.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "mean", "spread"),
    [
        *((name, 0, 0.1) for name in ("bias", "beta", "offset", "b")),
        *((name, 1, 0.1) for name in ("weight", "gamma", "scale")),
        *((name, 0, 0) for name in ("running_mean", "moving_mean", "mean")),
        *((name, 1, 0) for name in ("running_var", "moving_variance", "var_ema")),
        ("alpha", 0.25, 0),
    ],
)
def test_vectors_are_as_in_a_fresh_layer(name, mean, spread):
    values = fresh(name, (4000,))
    assert values.mean() == pytest.approx(mean, abs=0.01)
    assert values.std() == pytest.approx(spread, rel=0.05, abs=1e-12)


def test_blocks_go_from_output_to_input_whatever_the_order_of_registration():
    model = small()
    copied = TorchCopy(model, lambda each: each(torch.tensor(PHOTOS)), 0)
    assert copied.layers == [("head",), ("second",), ("first", "norm")]
    check = sanity_check(GuidedBackprop(model), torch.tensor(PHOTOS), modes=["cascading"])
    assert check.blocks == (("head",), ("second",), ("first", "norm"))
    assert check.names == ("head", "second", "first")


def changed(model: nn.Module, other: nn.Module) -> set[str]:
    theirs = other.state_dict()
    return {
        name.rpartition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])
    }


def test_exactly_these_layers_are_re_initialised():
    model = small()
    copied = TorchCopy(model, lambda each: each(torch.tensor(PHOTOS)), 0)
    assert changed(model, copied.model) == set()
    copied.randomise({"head"})
    first = copied.model.head.weight.detach().clone()
    assert changed(model, copied.model) == {"head"}
    copied.randomise({"head", "second", "first", "norm"})
    assert changed(model, copied.model) == {"head", "second", "first", "norm"}
    assert torch.equal(copied.model.head.weight, first)
    assert copied.model.norm.running_var.tolist() == [1] * 4
    copied.randomise({"second"})
    assert changed(model, copied.model) == {"second"}
    copied.randomise(set())
    assert changed(model, copied.model) == set()
    other = TorchCopy(model, lambda each: each(torch.tensor(PHOTOS)), 1)
    other.randomise({"head"})
    assert not torch.equal(other.model.head.weight, first)


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_rows_are_the_similarities_of_such_models(mode):
    """The same by hand: a model with fresh layers, explained for the labels that the user's model has."""
    model, images = small(), torch.tensor(PHOTOS)
    check = sanity_check(GuidedBackprop(model), images, modes=[mode], seed=3)
    clean = GuidedBackprop(model).explain(images)
    # In the order of use, from input to output.
    names = ["first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    names += ["second.weight", "second.bias", "head.weight", "head.bias"]
    for number, block in enumerate(check.blocks):
        fresh_layers = sum(check.blocks[: number + 1], ()) if mode == "cascading" else block
        other = copy.deepcopy(model)
        for index, name in enumerate(names):
            layer, _, own = name.partition(".")
            if layer in fresh_layers:
                weight = Weight(layer, own, model.state_dict()[name].numpy())
                values = torch.tensor(weight.fresh(np.random.default_rng([3, index])))
                other.load_state_dict({**other.state_dict(), name: values})
        maps = np.asarray(GuidedBackprop(other).explain(images, clean.labels))
        found = Maps(np.asarray(clean), 1).similarity(Maps(maps, 1))
        for metric, values in found.items():
            row = check.row(mode, check.names[number], metric)
            assert (row.mean, row.spread) == pytest.approx((values.mean(), values.std()), rel=1e-9, abs=1e-12)
    assert check.row(mode, "first").mean < 0.95


class Attention(nn.Module):
    """Uses parameters of a child that is never called, and a weight through a function."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x @ self.matrix)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_what_no_layer_is_called_for_is_found_too():
    model, rows = Attention().eval(), torch.randn(2, 5, 4)
    copied = TorchCopy(model, lambda each: each(rows), 0)
    assert [set(each) for each in copied.layers] == [{"head"}, {"attention.out_proj"}, {"attention"}, {"Attention"}]
    copied.randomise(set(sum(copied.layers, ())))
    own = dict(model.named_parameters())
    assert all(not torch.equal(value, own[name]) for name, value in copied.model.named_parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["scripted", "compiled", "lean"])
def test_forms_of_a_torch_model(form):
    model, images = small(), torch.tensor(PHOTOS)
    expected = sanity_check(GuidedBackprop(model), images, modes=["cascading"])
    given = {"scripted": torch.jit.script, "compiled": torch.compile}.get(form, lambda each: each)(model)
    method = GuidedBackprop(given, memory="lean" if form == "lean" else None)
    found = sanity_check(method, images, modes=["cascading"])
    assert [len(block) for block in found.blocks] == [1, 1, 2]
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row[3:5] == pytest.approx(other[3:5], rel=1e-6, abs=1e-9)


def test_shared_layers_and_slopes():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.PReLU(3), conv, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).double().eval()
    copied = TorchCopy(model, lambda each: each(torch.tensor(PHOTOS)), 0)
    assert copied.layers[0] == ("5",)
    copied.randomise({"0", "1"})
    assert copied.model[0] is copied.model[2]
    assert copied.model[1].weight.tolist() == [0.25] * 3


def test_layers_of_jax_models_in_order():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.head, self.second = nnx.Linear(6, 5, rngs=rngs), nnx.Conv(4, 6, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.first(x)))
            return self.head(jax.jit(lambda x: nnx.relu(self.second(x)))(x).mean((1, 2)))

    images = PHOTOS.transpose(0, 2, 3, 1).astype(np.float32)
    copied = JaxCopy(Network(nnx.Rngs(0)), Inputs.of(images), 0)
    assert copied.layers == [("head",), ("second",), ("first", "norm")]


def to_jax(network: reference.Sequential):
    """Return the reference network "convolutional" as a function with parameters, all cast first."""

    def model(params, x):
        params = jax.tree_util.tree_map(lambda each: each * 1.0, params)
        x = jax.nn.relu(convolve(params["a"], x, 1))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = convolve(params["b"], x, 2)
        norm = params["norm"]
        x = (x - norm["mean"]) * (norm["scale"] * jax.lax.rsqrt(norm["var"] + 1e-5)) + norm["bias"]
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]

    def convolve(params, x, stride):
        numbers, pads = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
        return (
            jax.lax.conv_general_dilated(x, params["kernel"], (stride,) * 2, pads, dimension_numbers=numbers)
            + (params["bias"])
        )

    a, b, norm, head = (network.layers[index] for index in (0, 3, 4, 7))
    params = {
        # Sorted by their names, as JAX has them, they are in another order.
        "head": {"kernel": head.weight.T, "bias": head.bias},
        "b": {"kernel": b.weight.transpose(2, 3, 1, 0), "bias": b.bias},
        "a": {"kernel": a.weight.transpose(2, 3, 1, 0), "bias": a.bias},
        "norm": {"scale": norm.weight, "bias": norm.bias, "mean": norm.mean, "var": norm.variance},
    }
    return partial(model, jax.tree_util.tree_map(jnp.asarray, params))


def test_one_network_has_the_same_blocks_and_baselines_in_torch_and_jax():
    """Keras, on its three backends, is looked at in test_keras.py."""
    network = NETWORKS["convolutional"]
    in_torch = sanity_check(GuidedBackprop(to_torch(network)), torch.tensor(IMAGES))
    with jax.enable_x64(True):
        in_jax = sanity_check(GuidedBackprop(to_jax(network)), jnp.asarray(IMAGES.transpose(0, 2, 3, 1)))
    assert in_torch.blocks == (("7",), ("3", "4"), ("0",))
    assert in_jax.blocks == (("head",), ("b", "norm"), ("a",))
    assert_alike(in_jax, in_torch)


def assert_alike(check, other):
    """The same classes are compared, the same vectors propagated, and edges are edges."""
    for mode, block, metric in [
        ("labels", "runners-up", "cosine"),
        ("convergence", "images", "cosine"),
        ("edges", "", "ssim"),
    ]:
        found, expected = check.row(mode, block, metric), other.row(mode, block, metric)
        assert found[3:5] == pytest.approx(expected[3:5], rel=1e-5, abs=1e-7)


# Planted faults.


class Edges(Saliency):
    """A method that looks at no model."""

    def explain_batch(self, backend, inputs, weigh, score):
        found = super().explain_batch(backend, inputs, weigh, score)
        edges = np.array([[sobel(channel) for channel in image] for image in np.asarray(inputs.images)])
        return replace(found, attribution=[Inputs.of(torch.tensor(edges))] * len(found.attribution))


def test_a_method_that_ignores_the_model_is_told_so():
    check = sanity_check(Edges(small()), torch.tensor(PHOTOS))
    for row in check.rows:
        if row.mode in ("cascading", "independent", "labels"):
            assert (row.mean, row.spread) == pytest.approx((1, 0), abs=1e-9)
    assert check.beats_edges is False
    assert "these maps do not depend on the model and hardly tell classes apart." in check.sentence


def test_a_method_that_depends_on_the_model_is_not():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).double().eval()
    check = sanity_check(Saliency(model), torch.tensor(PHOTOS), labels=1)
    # One map of 24 x 24: a correlation by chance is 0.04.
    assert abs(check.row("cascading", "1").mean) < 0.2
    assert abs(check.row("labels", "runners-up", "cosine").mean) < 0.2
    assert "these maps change with what the upper layers learned" in check.sentence
    # The plain gradient of a linear model carries two random vectors to two directions.
    assert abs(check.row("convergence", "images", "cosine").mean) < 0.9


def test_random_maps_and_edges_are_the_baselines():
    check = sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS), modes=["cascading"])
    assert check.draws == 51
    for metric in ("spearman_abs", "spearman", "ssim", "hog"):
        assert abs(check.row("random", "", metric).mean) < 0.15
    maps = Maps(np.asarray(GuidedBackprop(small()).explain(torch.tensor(PHOTOS))), 1)
    edges = np.array([sobel(photo.mean(axis=0)) for photo in PHOTOS])
    for metric, values in maps.similarity(Maps(edges)).items():
        assert check.row("edges", "", metric).mean == pytest.approx(values.mean(), rel=1e-9)


def test_data_are_measured_batch_by_batch():
    """As if they were one batch, but for what is drawn anew in each; and more than one seed is drawn from."""
    method, images, labels = GuidedBackprop(small()), torch.tensor(PHOTOS), np.array([4, 0, 2])
    whole = sanity_check(method, images, labels, blocks=2)
    data = ((images[rows], labels[rows]) for rows in (slice(2), slice(2, 3)))
    steps = []
    streamed = sanity_check(method, data, blocks=2, progress=lambda done, count: steps.append((done, count)))
    assert (streamed.images, streamed.draws, streamed.names) == (3, 100, whole.names)
    of_draws = {("random", ""), ("labels", "random classes")}
    for row in whole.rows:
        other = streamed.row(*row[:3])
        if row[:2] in of_draws or row.mode == "convergence":
            assert other.mean != row.mean or row.block == ""
        else:
            assert other[3:5] == pytest.approx(row[3:5], rel=1e-9, abs=1e-12), row
            assert other.interval == pytest.approx(row.interval, rel=1e-9, abs=1e-12)
    assert steps[-1][0] == steps[-1][1] == 2 * steps[0][1]
    with pytest.raises(ImageError, match="received no batch"):
        sanity_check(method, iter([]))


def test_figures_have_intervals():
    check = sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS), modes=["cascading"], blocks=1)
    for row in check.rows:
        assert row.interval.low <= row.mean <= row.interval.high
    assert sum(row.interval.low < row.interval.high for row in check.rows) > len(check.rows) / 2
    assert "[" in check.table().splitlines()[-1]
    # What was learned is in the maps or is not; the images themselves are, or are not.
    pictures = PHOTOS.mean(axis=1)
    maps = Maps(np.asarray(GuidedBackprop(small()).explain(torch.tensor(PHOTOS))), 1)
    like = maps.similarity(Maps(pictures - pictures.mean(axis=(1, 2), keepdims=True)))["spearman"]
    assert check.row("recovery", "the model", "spearman").mean == pytest.approx(like.mean(), rel=1e-9)
    assert check.row("recovery", "all layers random", "spearman").mean != pytest.approx(like.mean(), rel=1e-3)
    alone = sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS[:1]), modes=["cascading"], blocks=1)
    assert np.isnan(alone.rows[0].interval).all()
    assert "[" not in alone.table().splitlines()[-1]


def test_labels_are_compared_with_the_classes_behind():
    model, images = small(), torch.tensor(PHOTOS)
    labels = [4, 0, 2]
    check = sanity_check(Saliency(model), images, labels, modes=["labels"])
    clean = np.asarray(Saliency(model).explain(images, labels))
    outputs = model(images).detach().numpy()
    expected = []
    for row, label in enumerate(labels):
        others = [each for each in np.argsort(-outputs[row]) if each != label][:4]
        maps = [np.asarray(Saliency(model).explain(images[row : row + 1], int(each)))[0] for each in others]
        expected.append(
            np.mean([(clean[row] * m).sum() / np.linalg.norm(clean[row]) / np.linalg.norm(m) for m in maps])
        )
    row = check.row("labels", "runners-up", "cosine")
    assert (row.mean, row.spread) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9)


# Convergence.


@pytest.mark.parametrize(("method", "rule"), [(Saliency, "saliency"), (GuidedBackprop, "guided")])
def test_convergence_is_the_oracles(method, rule):
    network = NETWORKS["convolutional"]
    check = sanity_check(method(to_torch(network)), torch.tensor(IMAGES), modes=["convergence"])
    x, backwards = IMAGES, []
    for layer in network.layers:
        x, back = layer.forward(x)
        backwards.append(back)
    one, other = vectors(x.shape, [0])
    at = {"output": (one, other)}
    for index in reversed(range(len(backwards))):
        one, other = backwards[index](one, rule), backwards[index](other, rule)
        at["images" if index == 0 else str(index - 1)] = one, other
    found = [row for row in check.rows if row.mode == "convergence"]
    assert [row.block for row in found] == ["output", "3", "0", "images"]
    for row in found:
        expected = [(g * h).sum() / np.sqrt((g * g).sum() * (h * h).sum()) for g, h in zip(*at[row.block], strict=True)]
        assert (row.mean, row.spread) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9)
    # The other method's are far away.
    (other_method,) = {Saliency, GuidedBackprop} - {method}
    others = sanity_check(other_method(to_torch(network)), torch.tensor(IMAGES), modes=["convergence"])
    assert abs(others.row("convergence", "images", "cosine").mean - found[-1].mean) > 0.05
    batched = sanity_check(method(to_torch(network), batch_size=3), torch.tensor(IMAGES), modes=["convergence"])
    assert batched.row("convergence", "0", "cosine").mean == pytest.approx(found[2].mean, rel=1e-9)


def test_layers_that_cannot_be_looked_into_are_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    model = nn.Sequential(Twice(), nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).double().eval()
    check = sanity_check(GuidedBackprop(model), torch.tensor(PHOTOS), modes=["convergence"])
    assert [row.block for row in check.rows if row.mode == "convergence"] == ["output", "images"]
    assert any(note.startswith("convergence at 0.conv is not measured") for note in check.notes)
    whole = sanity_check(GradCAM(small(), "second"), torch.tensor(PHOTOS), modes=["cascading", "convergence"])
    assert "convergence is not measured: the method is more than one backward pass" in whole.notes


# Other methods and images.


def test_other_methods():
    model, images = small(), torch.tensor(PHOTOS)
    methods = [
        GradCAM(model, model.second),
        GuidedGradCAM(model, model.second),
        SmoothGrad(GuidedBackprop(model, batch_size=2), samples=3),
        GuidedBackprop(model, reducer="absmax"),
        GuidedBackprop(model).optimize(images),
    ]
    for method in methods:
        check = sanity_check(method, images, modes=["cascading", "labels"])
        assert check.blocks == (("head",), ("second",), ("first", "norm"))
        assert all(np.isfinite(row.mean) for row in check.rows)
        assert check.row("cascading", "first").mean < 0.99
    neuron = sanity_check(GuidedBackprop(model, output_layer=model.second), images, labels=(2, "max"))
    assert neuron.blocks == (("second",), ("first", "norm"))


def test_what_is_explained_stays_although_other_outputs_are_highest():
    """A randomised model has another top class, and is strongest elsewhere; the paper's question is about one score."""
    seen = []

    class Noting(GuidedBackprop):
        def explain(self, images, labels=None, *, mask=None):
            seen.append(labels)
            return super().explain(images, labels, mask=mask)

    model, images = small(), torch.tensor(PHOTOS)
    sanity_check(Noting(model), images, modes=["cascading"])
    top = model(images).argmax(1).tolist()
    assert seen[0] is None
    assert [list(each) for each in seen[1:]] == [top] * 3
    seen.clear()
    sanity_check(Noting(model, output_layer="second"), images, (1, "max"), modes=["cascading"])
    assert seen[1] == seen[2]
    assert len(seen[1][0]) == 3


def test_tables_and_series_have_rank_correlations():
    table = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    series = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28, 3)).double().eval()
    for model, shape in ((table, (5, 6)), (series, (5, 2, 30))):
        check = sanity_check(GuidedBackprop(model), torch.tensor(GENERATOR.normal(size=shape)))
        assert {row.metric for row in check.rows} == {"spearman_abs", "spearman", "cosine"}
        assert check.row("edges") is None
        assert check.beats_edges is None
        assert "SSIM, HOG and edges are for pictures" in check.table()
        assert "edges" not in check.sentence
        check.plot()


def test_maps_that_say_nothing_are_counted():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))

        def forward(self, x):
            return x.mean((1, 2, 3))[:, None] @ self.weight.T

    check = sanity_check(Saliency(Mean().eval()), torch.tensor(PHOTOS), labels=0)
    assert check.constant == 3
    assert {row.mean for row in check.rows if row.mode in ("cascading", "edges", "random")} == {0}
    assert "3 constant maps count as 0" in check.sentence
    assert "3 maps of randomised models were constant" in check.table()


# The result.


def test_blocks_and_progress():
    layers = [layer for _ in range(9) for layer in (nn.Linear(4, 4), nn.ReLU())]
    model, rows = nn.Sequential(*layers, nn.Linear(4, 3)).eval(), torch.randn(3, 4)
    seen = []
    check = sanity_check(
        Saliency(model), rows, blocks=4, modes=["cascading"], progress=lambda done, steps: seen.append((done, steps))
    )
    assert check.blocks == (("18",), ("16", "14", "12"), ("10", "8", "6"), ("4", "2", "0"))
    assert check.names == ("18", "16 to 12", "10 to 6", "4 to 0")
    assert seen == [(done, 5) for done in range(6)]
    assert len(sanity_check(Saliency(model), rows, blocks=1, modes=["cascading"]).blocks) == 1
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 3)).eval()
    named = sanity_check(Saliency(nested), rows, blocks=["1", "0"], modes=["independent"])
    assert named.blocks == (("1",), ("0.1", "0.0"))
    assert (
        "leaves Saliency maps at rank correlation between"
        in sanity_check(Saliency(nested), rows, modes=["independent"]).sentence
    )


def test_table_sentence_and_plot():
    check = sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS))
    table = check.table()
    for text in ("Cascading", "Independent", "Labels", "Convergence", "edges in the image", "random maps", "3 images"):
        assert text in table
    assert "nan" not in table
    assert check.sentence.count(". ") == 0
    assert check.sentence.endswith(".")
    figure = check.plot()
    assert len(figure.axes) == 4 + 4 + 2
    for modes, panels in ((["labels"], 1), (["convergence", "cascading"], 5), (["independent"], 4)):
        part = sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS), modes=modes)
        assert len(part.plot().axes) == panels
        assert part.sentence.startswith(("Randomising", "The maps of the next classes"))
    # One seed, one result; another one, another.
    assert sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS)) == check
    assert sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS), seed=1) != check


# Nothing is touched.


def test_model_and_random_states_are_untouched():
    model, images = small(), torch.tensor(PHOTOS)
    model.register_forward_hook(lambda *_: None)
    model.head.requires_grad_(False)

    def state():
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        flags = [(each.requires_grad, each.grad is None, each._version) for each in model.parameters()]
        drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        values = [value.tolist() for value in model.state_dict().values()]
        return hooks, flags, [module.training for module in model.modules()], drawn, values, images.sum().item()

    before = state()
    sanity_check(GuidedBackprop(model), images)
    assert state() == before

    def stop(done, steps):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sanity_check(GuidedBackprop(model), images, progress=stop)
    assert state() == before


# Errors.


def test_models_that_hide_their_weights():
    model, images = small(), torch.tensor(PHOTOS)
    with pytest.raises(ModelError, match=r"is a torch.nn.Module; received model=.*lambda"):
        sanity_check(Saliency(lambda x: model(x)), images)
    with pytest.raises(ModelError, match="received Broken, which uses none"):
        sanity_check(
            Saliency(type("Broken", (nn.Module,), {"forward": lambda self, x: x.sum((2, 3))})().eval()), images
        )
    kernel = tf.ones((4, 3))
    with pytest.raises(ModelError, match="if it is a Keras model; received model=.*lambda"):
        sanity_check(Saliency(lambda x: x @ kernel), tf.random.stateless_normal((2, 4), (0, 0)))
    with pytest.raises(ModelError, match=r"functools.partial\(function, parameters\); received model=.*lambda"):
        sanity_check(Saliency(lambda x: x @ jnp.ones((4, 3))), jnp.ones((2, 4)))
    net = partial(lambda w, x: tap("hidden", x @ w) * 2, jnp.ones((4, 3)))
    with pytest.raises(OptionError, match="of a JAX function explains its output, .* output_layer='hidden'"):
        sanity_check(Saliency(net, output_layer="hidden"), jnp.ones((2, 4)))


def test_models_that_cannot_be_copied():
    class Moody(nn.Module):
        """Does something else in each copy."""

        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 3), 1.0

        def __deepcopy__(self, memo):
            other = Moody()
            other.load_state_dict(self.state_dict())
            other.scale = 2.0
            return other.eval()

        def forward(self, x):
            return self.linear(x) * self.scale

    with pytest.raises(ModelError, match="received another output from a copy of Moody"):
        sanity_check(Saliency(Moody().eval()), torch.randn(2, 4))
    model = small()
    model.kept = model.head.weight * 2
    with pytest.raises(ModelError, match="copy.deepcopy can copy; received Network and RuntimeError"):
        sanity_check(Saliency(model), torch.tensor(PHOTOS))


def test_bad_options():
    method, images = GuidedBackprop(small()), torch.tensor(PHOTOS)
    for options, words in [
        ({"modes": "cascading"}, "modes must be some of"),
        ({"modes": ["random"]}, "received modes="),
        ({"blocks": 0}, "blocks must be a positive integer"),
        ({"blocks": ["heads"]}, "received 'heads' of 'head', 'second', 'first'"),
        ({"seed": -1}, "seed must be"),
    ]:
        with pytest.raises(OptionError, match=words):
            sanity_check(method, images, **options)
    with pytest.raises(OptionError, match="method must be a method; received method=Network"):
        sanity_check(small(), images)
    with pytest.raises(OptionError, match="needs one input; received 2 inputs"):
        sanity_check(method, (images, images))
    with pytest.raises(LabelError, match="one per image; received 2 of each"):
        sanity_check(method, images, "top2")
    with pytest.raises(ImageError, match="images must not be empty"):
        sanity_check(method, images[:0])
    with pytest.raises(ModelError, match="eval mode"):
        sanity_check(GuidedBackprop(small().train()), images)


def test_missing_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"without skimage. Run: pip install 'guided-backprop\[trust\]'"):
        sanity_check(GuidedBackprop(small()), torch.tensor(PHOTOS))


def test_labels_that_are_no_class_ids():
    model, images = small(), torch.tensor(PHOTOS)
    check = sanity_check(Saliency(model), images, np.eye(5)[[0, 1, 2]])
    assert check.row("labels", "runners-up", "cosine") is None
    assert any("labels are not compared" in note for note in check.notes)
    assert sanity_check(Saliency(model), images, lambda output: output[:, 0]).row("cascading", "head") is not None


def test_keras_in_this_process():
    """On TensorFlow; the other backends are looked at in test_keras.py."""
    assert keras.config.backend() == "tensorflow"
    layers = [keras.Input((24, 24, 3)), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax")])
    check = sanity_check(GuidedBackprop(model), PHOTOS.transpose(0, 2, 3, 1).astype(np.float32))
    assert [len(block) for block in check.blocks] == [1, 1]
    assert check.row("cascading", check.names[1]).mean < 0.99


# The command.

NETS = """
import numpy as np
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers), lambda image: np.asarray(image, np.float32).transpose(2, 0, 1) / 255
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    for name in ("a", "b"):
        Image.fromarray(GENERATOR.integers(0, 256, (20, 20, 3), np.uint8)).save(f"{name}.png")
    Path("broken.png").write_bytes(b"no image")
    yield tmp_path
    sys.modules.pop("nets", None)


def check(*arguments: str):
    return CliRunner().invoke(command(), ["check", "--model", "nets:make", *arguments])


def test_the_command_prints_and_draws(folder):
    done = check("a.png", "b.png", "--plot", "curves.png", "--method", "saliency", "--labels", "1,2")
    assert done.exit_code == 0, done.output
    assert "Saliency of Sequential: 2 images" in done.output
    assert done.output.rstrip().endswith(".")
    with Image.open("curves.png") as picture:
        assert picture.width > 1000
    again = check("a.png", "--plot", "curves.png")
    assert (again.exit_code, "curves.png, which exists" in again.output) == (1, True)
    nowhere = check("a.png", "--plot", "no/curves.png")
    assert "whose folder does not exist" in nowhere.output


def test_the_command_reports_what_it_cannot_read(folder):
    done = check(".", "--blocks", "1")
    assert done.exit_code == 1
    assert "broken.png" in done.output
    assert "2 images of Sequential" in done.output
    assert check("broken.png").exit_code == 1
    assert check("a.png", "--labels", "7").exit_code == 2
