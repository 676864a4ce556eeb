"""Tasks, each shown on a small network that is trained here, on each framework; and what Xplique's operators compute.

A trained network is written back as the oracle's layers (``reference.py``), and from there to each framework. A 1-D
convolution is for the oracle a 2-D one of height 1, and a 3-D one a matrix, so nothing is compared with itself.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import torch
from torch import nn

import reference
from guided_backprop import Box, GuidedBackprop, LabelError, Saliency
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
FRAMEWORKS = ("torch", "tensorflow", "jax")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _global_random_numbers():
    """All random numbers are drawn from local generators."""
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    yield
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def in_torch(network: reference.Layer) -> nn.Module:
    # Modules draw weights when they are made, before these are replaced.
    with torch.random.fork_rng(devices=[]):
        return to_torch(network)


def fit(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor], steps: int, rate: float = 0.01) -> nn.Module:
    """Train in float32, and return the model in float64."""
    model.float().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    # Threads that wait for each other on a busy machine take longer than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(steps):
            optimiser.zero_grad()
            loss(model).backward()
            optimiser.step()
    finally:
        torch.set_num_threads(threads)
    return model.double().eval()


def trained(network: reference.Sequential, loss: Callable[[nn.Module], torch.Tensor], steps: int) -> Any:
    """Return the network with weights that PyTorch found."""
    model = fit(in_torch(network), loss, steps)
    parts = []
    for layer, module in zip(network.layers, model, strict=True):
        is_trained = isinstance(layer, reference.Conv2d | reference.Linear)
        found = {name: value.detach().numpy().copy() for name, value in module.named_parameters()} if is_trained else {}
        parts.append(replace(layer, **found))
    return reference.Sequential(tuple(parts))


def logits_of(network: reference.Layer, images: np.ndarray) -> np.ndarray:
    return network.forward(images)[0]


def in_framework(framework: str, network: reference.Layer) -> Any:
    return {"torch": in_torch, "tensorflow": to_tensorflow, "jax": to_jax}[framework](network)


def given_to(framework: str, values: np.ndarray) -> Any:
    """Return values ``(N, C, ...)`` in the framework's kind and layout."""
    if framework == "torch":
        return torch.tensor(values)
    last = np.moveaxis(values, 1, -1)
    return tf.constant(last) if framework == "tensorflow" else jnp.asarray(last)


def taken_from(framework: str, values: Any) -> np.ndarray:
    """Undo ``given_to``."""
    return np.asarray(values) if framework == "torch" else np.moveaxis(np.asarray(values), -1, 1)


def guided(network: reference.Layer, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return reference.attribution(network, images, weights, "guided")


def plain(network: reference.Layer, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return reference.attribution(network, images, weights, "saliency")


def check(found: np.ndarray, right: np.ndarray, planted: np.ndarray, rtol: float = 1e-9) -> None:
    """Compare; ``planted`` is what a fault would have given, and even a coarse comparison must tell it."""
    size = np.abs(right).max()
    assert size > 0
    np.testing.assert_allclose(found, right, rtol=rtol, atol=rtol * size)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(planted, right, rtol=1e-2, atol=1e-2 * size)


def share_on(maps: np.ndarray, place: np.ndarray) -> float:
    """Return which share of the maps' magnitude lies on ``place``, of the maps' shape."""
    return float((np.abs(maps) * place).sum() / np.abs(maps).sum())


RELU = reference.ReLU()


# Classification: images of digits.


@pytest.fixture(scope="module")
def digits():
    data = sklearn.datasets.load_digits()
    images, ids = data.images[:, None] / 16, data.target
    rng = np.random.default_rng(0)
    first, second = (reference.random_conv(rng, *sizes, padding=(1, 1)) for sizes in ((1, 6), (6, 8)))
    layers = (first, RELU, second, RELU, reference.MaxPool2d((2, 2), (2, 2)), reference.Flatten())
    network = reference.Sequential((*layers, reference.random_linear(rng, 128, 10)))
    seen, targets = torch.tensor(images[:600], dtype=torch.float32), torch.tensor(ids[:600])
    network = trained(network, lambda model: nn.functional.cross_entropy(model(seen), targets), 60)
    unseen = images[1500:], ids[1500:]
    assert (logits_of(network, unseen[0]).argmax(1) == unseen[1]).mean() > 0.8
    return network, *unseen


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_classification(framework, digits):
    network, images, ids = digits
    images, ids = images[:6], ids[:6]
    model, given = in_framework(framework, network), given_to(framework, images)
    one_hot, rival = np.eye(10)[ids], np.eye(10)[(ids + 1) % 10]
    for labels, weights in ((ids, one_hot), (one_hot, one_hot), (one_hot - rival, one_hot - rival)):
        explanations = GuidedBackprop(model).explain(given, labels)
        found = taken_from(framework, explanations.attribution)
        check(found, guided(network, images, weights), guided(network, images, rival))
        np.testing.assert_allclose(explanations.scores, (logits_of(network, images) * weights).sum(1), **TOLERANCE)


def test_the_pixels_of_a_digit_matter(digits):
    """Without the pixels that the map marks, the score falls further than without as many others of the digit."""
    network, images, ids = digits
    images, ids = images[:100], ids[:100]
    maps = np.asarray(GuidedBackprop(in_torch(network)).explain(torch.tensor(images), ids))
    rng = np.random.default_rng(1)
    rows = np.arange(len(ids))
    before = logits_of(network, images)[rows, ids]

    def fall(importance: np.ndarray) -> float:
        importance = np.where(images > 0.3, importance, -np.inf).reshape(len(ids), -1)
        without = images.reshape(len(ids), -1).copy()
        np.put_along_axis(without, np.argsort(-importance, axis=1)[:, :5], 0, axis=1)
        return float((before - logits_of(network, without.reshape(images.shape))[rows, ids]).mean())

    by_chance = fall(rng.uniform(size=images.shape))
    assert fall(maps) > 1.3 * by_chance
    assert fall(-maps) < by_chance


def test_a_class_that_is_only_not_the_other():
    """Two logits of opposite weights: no positive path leads to the second, its gradient is the first's times -1."""
    rng = np.random.default_rng(7)
    weight = np.abs(rng.normal(size=(1, 6)))
    last = reference.Linear(np.concatenate([weight, -weight]), np.zeros(2))
    network = reference.Sequential((reference.random_linear(rng, 4, 6), RELU, last))
    model, rows = in_torch(network), torch.tensor(rng.normal(size=(5, 4)))
    first, second = (np.asarray(GuidedBackprop(model).explain(rows, label)) for label in (0, 1))
    assert first.any()
    assert not second.any()
    first, second = (np.asarray(Saliency(model).explain(rows, label)) for label in (0, 1))
    check(second, -first, first)


# Regression: where is the spot? An image to two numbers, or to one.


SPOT_SIDE = 10


def _spots(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images of one spot, and its centre (row, column)."""
    centres = rng.uniform(2, SPOT_SIDE - 3, size=(count, 2))
    rows, columns = np.mgrid[:SPOT_SIDE, :SPOT_SIDE]
    away = (rows - centres[:, :1, None]) ** 2 + (columns - centres[:, 1:, None]) ** 2
    return np.exp(-away / 2)[:, None] + rng.normal(size=(count, 1, SPOT_SIDE, SPOT_SIDE)) / 20, centres


@pytest.fixture(scope="module")
def spots():
    rng = np.random.default_rng(1)
    first, second = (reference.random_conv(rng, *sizes, padding=(1, 1)) for sizes in ((1, 6), (6, 6)))
    layers = (first, RELU, second, RELU, reference.Flatten())
    network = reference.Sequential((*layers, reference.random_linear(rng, 6 * SPOT_SIDE**2, 2)))
    images, centres = (torch.tensor(each, dtype=torch.float32) for each in _spots(rng, 400))
    network = trained(network, lambda model: ((model(images) - centres) ** 2).mean(), 200)
    images, centres = _spots(rng, 50)
    assert np.abs(logits_of(network, images) - centres).mean() < 0.4
    return network, images, centres


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_regression_to_two_numbers(framework, spots):
    network, images, _ = spots
    images = images[:8]
    model, given, unit = in_framework(framework, network), given_to(framework, images), np.eye(2)
    for number in (0, 1):
        explanations = GuidedBackprop(model).explain(given, number)
        found = taken_from(framework, explanations.attribution)
        right, other = (guided(network, images, np.tile(unit[each], (8, 1))) for each in (number, 1 - number))
        check(found, right, other)
        np.testing.assert_allclose(explanations.scores, logits_of(network, images)[:, number], **TOLERANCE)


def test_a_regression_looks_at_the_spot(spots):
    network, images, centres = spots
    rows, columns = np.mgrid[:SPOT_SIDE, :SPOT_SIDE]
    away = np.hypot(rows - centres[:, :1, None], columns - centres[:, 1:, None])[:, None]
    maps = np.asarray(GuidedBackprop(in_torch(network)).explain(torch.tensor(images), 0))
    near = away < 3
    assert share_on(maps, near) > 1.3 * near.mean()


def test_the_gradient_of_a_regression_follows_the_spot(spots):
    """Along the way in which a spot moves by one row, the row grows by one and the column does not."""
    network, images, centres = spots
    rows, columns = np.mgrid[:SPOT_SIDE, :SPOT_SIDE]
    down, right = rows - centres[:, :1, None], columns - centres[:, 1:, None]
    moving = np.exp(-(down**2 + right**2) / 2) * down
    method, given = Saliency(in_torch(network)), torch.tensor(images)
    along = [(np.asarray(method.explain(given, number))[:, 0] * moving).sum((1, 2)).mean() for number in (0, 1)]
    np.testing.assert_allclose(along, [1, 0], atol=0.25)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(along[::-1], [1, 0], atol=0.25)


def test_regression_to_one_number_an_image(spots):
    """An output ``(N,)`` needs no label, and is what ``(N, 1)`` is."""
    network, images, _ = spots
    column = reference.Sequential((*network.layers[:-1], _only(network.layers[-1], 1)))
    model = in_torch(column)
    right = guided(column, images, np.ones((50, 1)))
    planted = guided(network, images, np.tile([1.0, 0.0], (50, 1)))
    for each, labels in ((model, None), (model, 0), (nn.Sequential(model, nn.Flatten(0)), None)):
        check(np.asarray(GuidedBackprop(each.eval()).explain(torch.tensor(images), labels)), right, planted)


def _only(linear: reference.Linear, number: int) -> reference.Linear:
    return reference.Linear(linear.weight[number : number + 1], linear.bias[number : number + 1])


# Tables: the progress of diabetes from ten measurements.


@pytest.fixture(scope="module")
def table():
    data = sklearn.datasets.load_diabetes()
    rows = (data.data - data.data.mean(0)) / data.data.std(0)
    goal = (data.target - data.target.mean()) / data.target.std()
    rng = np.random.default_rng(2)
    layers = (reference.random_linear(rng, 10, 12), RELU, reference.random_linear(rng, 12, 1))
    seen, wanted = (torch.tensor(each[:330], dtype=torch.float32) for each in (rows, goal[:, None]))

    def loss(model: nn.Module) -> torch.Tensor:
        decay = sum((parameter**2).sum() for parameter in model.parameters())
        return ((model(seen) - wanted) ** 2).mean() + 0.05 * decay

    network = trained(reference.Sequential(layers), loss, 200)
    unexplained = ((logits_of(network, rows[330:])[:, 0] - goal[330:]) ** 2).mean() / goal[330:].var()
    assert unexplained < 0.6
    return network, rows[330:], goal[330:], data.feature_names


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tables(framework, table):
    network, rows, *_ = table
    found = GuidedBackprop(in_framework(framework, network)).explain(given_to(framework, rows))
    ones = np.ones((len(rows), 1))
    check(np.asarray(found), guided(network, rows, ones), plain(network, rows, ones))


def test_tables_in_keras(table):
    network, rows, *_ = table
    first, _, second = network.layers
    model = _in_keras([keras.layers.Dense(12, "relu", **KERAS), keras.layers.Dense(1, **KERAS)], (10,), (first, second))
    ones = np.ones((len(rows), 1))
    check(np.asarray(GuidedBackprop(model).explain(rows)), guided(network, rows, ones), plain(network, rows, ones))


# Initialisers that draw would take their seeds from Python's own generator.
KERAS = {"dtype": "float64", "kernel_initializer": "zeros"}


def _in_keras(layers: list[Any], shape: tuple[int | None, ...], filled: tuple[reference.Linear, ...]) -> keras.Model:
    """Return a Keras model whose layers with weights have those of ``filled``."""
    model = keras.Sequential([keras.Input(shape, dtype="float64"), *layers])
    for layer, source in zip([each for each in layers if each.weights], filled, strict=True):
        layer.set_weights([np.moveaxis(source.weight, (0, 1), (-1, -2)), source.bias])
    return model


def test_the_measurements_that_matter(table):
    """The two largest attributions are of those measurements whose permutation costs the network most."""
    network, rows, goal, names = table
    maps = np.asarray(GuidedBackprop(in_torch(network)).explain(torch.tensor(rows)))
    rng = np.random.default_rng(3)
    cost = np.zeros(10)
    for feature in range(10):
        for _ in range(20):
            mixed = rows.copy()
            mixed[:, feature] = rng.permutation(mixed[:, feature])
            cost[feature] += ((logits_of(network, mixed)[:, 0] - goal) ** 2).mean() / 20
    largest = {names[each] for each in np.argsort(-np.abs(maps).mean(0))[:2]}
    assert largest == {names[each] for each in np.argsort(-cost)[:2]} == {"bmi", "s5"}
    # More weight and more lipids mean a worse course.
    assert maps.mean(0)[[names.index("bmi"), names.index("s5")]].min() > 0


# Series and volumes: convolutions along one axis, and along three.


@dataclass(frozen=True, eq=False)
class Convolutions:
    """Convolutions with a ReLU after each, the maximum over positions, and a linear layer; of any number of axes."""

    layers: tuple[reference.Linear, ...]

    @property
    def axes(self) -> int:
        return self.layers[0].weight.ndim - 2

    @staticmethod
    def drawn(rng: np.random.Generator, axes: int, kernel: int, sizes: tuple[int, ...]) -> "Convolutions":
        layers = []
        for inputs, outputs in pairwise(sizes[:-1]):
            weight = rng.normal(size=(outputs, inputs, *[kernel] * axes)) * np.sqrt(2 / inputs / kernel**axes)
            layers.append(reference.Linear(weight, np.zeros(outputs)))
        return Convolutions((*layers, reference.random_linear(rng, *sizes[-2:])))

    def in_torch(self) -> nn.Module:
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[self.axes]
        most = {1: nn.AdaptiveMaxPool1d, 3: nn.AdaptiveMaxPool3d}[self.axes](1)
        parts: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            for each in self.layers[:-1]:
                parts += [conv(each.weight.shape[1], each.weight.shape[0], each.weight.shape[2:]), nn.ReLU()]
            model = nn.Sequential(*parts, most, nn.Flatten(), nn.Linear(*self.layers[-1].weight.shape[::-1])).double()
        filled = [part for part in model if hasattr(part, "weight")]
        for part, each in zip(filled, self.layers, strict=True):
            part.load_state_dict({"weight": torch.tensor(each.weight), "bias": torch.tensor(each.bias)})
        return model.eval()

    def in_keras(self) -> keras.Model:
        conv, most = {
            1: (keras.layers.Conv1D, keras.layers.GlobalMaxPooling1D),
            3: (keras.layers.Conv3D, keras.layers.GlobalMaxPooling3D),
        }[self.axes]
        *firsts, last = self.layers
        convs = [conv(len(each.bias), each.weight.shape[2:], activation="relu", **KERAS) for each in firsts]
        shape = (*[None] * self.axes, firsts[0].weight.shape[1])
        layers = [*convs, most(dtype="float64"), keras.layers.Dense(len(last.bias), **KERAS)]
        return _in_keras(layers, shape, self.layers)

    def in_jax(self) -> Callable[[Any], Any]:
        letters = {1: "W", 3: "DHW"}[self.axes]
        form = (f"N{letters}C", f"OI{letters}", f"N{letters}C")
        strides = (1,) * self.axes

        def apply(x: Any) -> Any:
            for each in self.layers[:-1]:
                y = jax.lax.conv_general_dilated(x, jnp.asarray(each.weight), strides, "VALID", dimension_numbers=form)
                x = jax.nn.relu(y + each.bias)
            return x.max(range(1, self.axes + 1)) @ self.layers[-1].weight.T + self.layers[-1].bias

        return apply

    def in_framework(self, framework: str) -> Any:
        return {"torch": self.in_torch, "tensorflow": self.in_keras, "jax": self.in_jax}[framework]()

    def trained(self, loss: Callable[[nn.Module], torch.Tensor], steps: int) -> "Convolutions":
        model = fit(self.in_torch(), loss, steps)
        filled = [part for part in model if hasattr(part, "weight")]
        found = (reference.Linear(*(value.detach().numpy() for value in (part.weight, part.bias))) for part in filled)
        return Convolutions(tuple(found))

    def oracle(self, shape: tuple[int, ...]) -> reference.Sequential:
        """Return the oracle's network of inputs ``(N, C * ...)``, flattened, by matrices that loops write."""
        parts: list[reference.Layer] = []
        for each in self.layers[:-1]:
            matrix, shape = _as_matrix(each.weight, shape)
            bias = np.repeat(each.bias, np.prod(shape[1:]))
            parts += [reference.Linear(matrix, bias), RELU]
        return reference.Sequential((*parts, Maximum(shape[0]), self.layers[-1]))


@dataclass(frozen=True, eq=False)
class Maximum:
    """The largest value of each channel, whose positions are flattened or not; of equal ones the first."""

    channels: int

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, reference.Backward]:
        flat = x.reshape(len(x), self.channels, -1)
        is_largest = np.arange(flat.shape[2]) == flat.argmax(2)[..., None]
        return flat.max(2), lambda g, rule: (g[..., None] * is_largest).reshape(x.shape)


def _as_matrix(weight: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the matrix of a convolution of inputs of ``shape`` (C, ...), and the outputs' shape."""
    outputs, _, *kernel = weight.shape
    steps = [size - each + 1 for size, each in zip(shape[1:], kernel, strict=True)]
    matrix = np.zeros((outputs, *steps, *shape))
    for place in product(*map(range, steps)):
        for offset in product(*map(range, kernel)):
            there = tuple(np.add(place, offset))
            matrix[(slice(None), *place, slice(None), *there)] = weight[(slice(None), slice(None), *offset)]
    return matrix.reshape(outputs * int(np.prod(steps)), -1), (outputs, *steps)


def _check_convolutions(framework: str, network: Convolutions, values: np.ndarray, ids: np.ndarray) -> None:
    oracle, rows = network.oracle(values.shape[1:]), values.reshape(len(values), -1)
    explanations = GuidedBackprop(network.in_framework(framework)).explain(given_to(framework, values), ids)
    classes = np.eye(len(network.layers[-1].bias))
    one_hot = classes[ids], classes[(ids + 1) % len(classes)]
    right, other = (guided(oracle, rows, each).reshape(values.shape) for each in one_hot)
    check(taken_from(framework, explanations.attribution), right, other)
    np.testing.assert_allclose(explanations.scores, logits_of(oracle, rows)[np.arange(len(ids)), ids], **TOLERANCE)


SERIES_LENGTH, BUMP = 48, 3


def _series(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return series of two channels, whether the first has nothing (0), a bump (1) or a dip (2), and where it is.

    The second channel has one of these as well, somewhere else, and does not matter.
    """
    ids, others = rng.integers(0, 3, size=(2, count))
    places = rng.integers(8, SERIES_LENGTH - 8, size=(2, count))
    shapes = np.exp(-((np.arange(SERIES_LENGTH) - places[..., None]) ** 2) / 4)
    clean = shapes * np.array([0, 1, -1])[np.stack([ids, others])][..., None]
    return clean.swapaxes(0, 1) + rng.normal(size=(count, 2, SERIES_LENGTH)) / 10, ids, places[0]


@pytest.fixture(scope="module")
def series():
    rng = np.random.default_rng(4)
    network = Convolutions.drawn(rng, 1, 5, (2, 6, 6, 3))
    values, ids, _ = _series(rng, 300)
    seen, targets = torch.tensor(values, dtype=torch.float32), torch.tensor(ids)
    network = network.trained(lambda model: nn.functional.cross_entropy(model(seen), targets), 150)
    values, ids, places = _series(rng, 40)
    found = network.in_torch()(torch.tensor(values)).argmax(1).numpy()
    assert (found == ids).mean() > 0.95
    return network, values, ids, places


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_series(framework, series):
    network, values, ids, _ = series
    _check_convolutions(framework, network, values, ids)


def test_a_series_is_an_image_of_height_one(series):
    """The oracle's own sliding window, besides the matrix."""
    network, values, ids, _ = series
    convs = [reference.Conv2d(each.weight[:, :, None], each.bias) for each in network.layers[:-1]]
    layers = (convs[0], RELU, convs[1], RELU, Maximum(6), network.layers[-1])
    flat = reference.Sequential(layers)
    found = np.asarray(GuidedBackprop(network.in_torch()).explain(torch.tensor(values), ids))
    one_hot = np.eye(3)[ids], np.eye(3)[(ids + 1) % 3]
    right, other = (guided(flat, values[:, :, None], each)[:, :, 0] for each in one_hot)
    check(found, right, other)


def test_the_map_of_a_series_lies_on_the_bump(series):
    network, values, ids, places = series
    is_there = ids > 0
    values, ids, places = values[is_there], ids[is_there], places[is_there]
    maps = np.asarray(GuidedBackprop(network.in_torch()).explain(torch.tensor(values), ids))
    channels, peaks = np.unravel_index(np.abs(maps).reshape(len(maps), -1).argmax(1), maps.shape[1:])
    is_right = (channels == 0) & (np.abs(peaks - places) <= BUMP)
    assert is_right.mean() > 0.9
    # What is asserted of the bump is false of another place.
    assert ((channels == 0) & (np.abs(peaks - places[::-1]) <= BUMP)).mean() < 0.5


# Videos: does a square go right or left?


CLIP = (6, 7, 9)


def _clips(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clips ``(N, 1, frames, rows, columns)``, whether the square goes right (1), and where it is."""
    ids = rng.integers(0, 2, size=count)
    where = np.zeros((count, 1, *CLIP), bool)
    for clip, goes_right in zip(where, ids, strict=True):
        row, start = rng.integers(0, CLIP[1] - 1), rng.integers(0, 3)
        for frame in range(CLIP[0]):
            column = start + frame if goes_right else CLIP[2] - 2 - start - frame
            clip[0, frame, row : row + 2, max(column, 0) : column + 2] = True
    return where + rng.normal(size=where.shape) / 10, ids, where


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(5)
    network = Convolutions.drawn(rng, 3, 3, (1, 5, 6, 2))
    values, ids, _ = _clips(rng, 120)
    seen, targets = torch.tensor(values, dtype=torch.float32), torch.tensor(ids)
    network = network.trained(lambda model: nn.functional.cross_entropy(model(seen), targets), 120)
    values, ids, where = _clips(rng, 20)
    assert (network.in_torch()(torch.tensor(values)).argmax(1).numpy() == ids).mean() > 0.9
    return network, values, ids, where


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_videos(framework, clips):
    network, values, ids, _ = clips
    _check_convolutions(framework, network, values, ids)


def test_the_map_of_a_video_lies_on_what_moves(clips):
    network, values, ids, where = clips
    maps = np.asarray(GuidedBackprop(network.in_torch()).explain(torch.tensor(values), ids))
    assert share_on(maps, where) > 4 * where.mean()
    assert share_on(maps, where[::-1]) < 0.7 * share_on(maps, where)


# Semantic segmentation: what makes this region stripes that lie, or that stand?


SCENE, REACH = 16, 3


def _scenes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of two patches of stripes, and each pixel's class: nothing, lying, standing."""
    images = rng.normal(size=(count, 1, SCENE, SCENE)) / 5
    ids = np.zeros((count, SCENE, SCENE), int)
    stripes = np.tile([1.0, 1.0, -1.0, -1.0], 2)[:6]
    for image, pixels in zip(images, ids, strict=True):
        corners = rng.permutation([(0, 0), (0, 9), (9, 0), (9, 9)])[:2] + rng.integers(0, 2, size=(2, 2))
        for kind, (top, left) in zip((1, 2), corners, strict=True):
            place = slice(top, top + 6), slice(left, left + 6)
            image[0][place] += stripes[:, None] if kind == 1 else stripes
            pixels[place] = kind
    return images, ids


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(6)
    sizes = ((1, 8), (8, 8), (8, 3))
    first, second, third = (reference.random_conv(rng, *size, padding=(1, 1)) for size in sizes)
    network = reference.Sequential((first, RELU, second, RELU, third))
    images, ids = _scenes(rng, 60)
    seen, targets = torch.tensor(images, dtype=torch.float32), torch.tensor(ids)
    network = trained(network, lambda model: nn.functional.cross_entropy(model(seen), targets), 120)
    images, ids = _scenes(rng, 6)
    is_right = logits_of(network, images).argmax(1) == ids
    assert is_right[ids > 0].mean() > 0.85
    return network, images, ids


def _with_softmax(framework: str, network: reference.Layer) -> Any:
    """Return the network with a softmax over the classes of each position."""
    model = in_framework(framework, network)
    if framework == "torch":
        return nn.Sequential(model, nn.Softmax(1)).eval()
    softmax = tf.nn.softmax if framework == "tensorflow" else jax.nn.softmax
    return lambda images: softmax(model(images))


def _of_class(mask: np.ndarray, kind: int) -> np.ndarray:
    """Return weights ``(N, 3, ...)`` of one class in a region."""
    weights = np.zeros((len(mask), 3, SCENE, SCENE))
    weights[:, kind] = mask
    return weights


@pytest.mark.parametrize("make", [in_framework, _with_softmax])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_segmentation(framework, make, scenes):
    """A class in a region; a softmax over classes is undone at each position."""
    network, images, ids = scenes
    model, given = make(framework, network), given_to(framework, images)
    for kind in (1, 2):
        mask = ids == kind
        explanations = GuidedBackprop(model).explain(given, kind, mask=mask)
        weights = _of_class(mask, kind)
        found = taken_from(framework, explanations.attribution)
        check(found, guided(network, images, weights), guided(network, images, _of_class(mask | True, kind)))
        expected = (logits_of(network, images) * weights).sum((1, 2, 3))
        np.testing.assert_allclose(explanations.scores, expected, **TOLERANCE)
    assert explanations.head == (None if make is in_framework else "softmax")


def test_the_map_of_a_region_stays_within_its_reach(scenes):
    """Three 3x3 convolutions see three pixels around; the map lies on the region itself for the most part."""
    network, images, ids = scenes
    model, given = in_torch(network), torch.tensor(images)
    for kind in (1, 2):
        mask = ids == kind
        near = np.stack([_grown(each, REACH) for each in mask])[:, None]
        maps = np.asarray(GuidedBackprop(model).explain(given, kind, mask=mask))
        assert not maps[~near].any()
        assert share_on(maps, mask[:, None]) > 0.6
        everywhere = np.asarray(GuidedBackprop(model).explain(given, kind))
        assert everywhere[~near].any()


def _grown(mask: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(mask, reach)
    offsets = product(range(2 * reach + 1), repeat=2)
    return np.any([padded[row : row + SCENE, column : column + SCENE] for row, column in offsets], axis=0)


def test_regions_add_up(scenes):
    """The plain gradient of two regions is the sum of theirs; the map of the larger region is no map of the smaller."""
    network, images, _ = scenes
    left = np.zeros((SCENE, SCENE), bool)
    left[:, : SCENE // 2] = True
    method, given = Saliency(in_torch(network)), torch.tensor(images)
    both, one, two = (np.asarray(method.explain(given, 1, mask=each)) for each in (left | True, left, ~left))
    check(one + two, both, one)


# Object detection: a grid of candidates, each with left, top, right, bottom, objectness and two classes.


GRID, CELL, SPREAD = 4, 4, 4.0
CENTRES = np.stack(np.meshgrid(*[np.arange(GRID) * CELL + CELL / 2] * 2, indexing="xy"), -1).reshape(-1, 2)
ANCHORS = np.concatenate([CENTRES, CENTRES], axis=1)


def _detections(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images of a full and of a hollow square, their boxes ``(N, 2, 4)``, and the cells of their centres."""
    images = rng.normal(size=(count, 1, SCENE, SCENE)) / 20
    boxes = np.zeros((count, 2, 4))
    for image, found in zip(images, boxes, strict=True):
        halves = rng.permutation(2) * 8
        for kind, half in enumerate(halves):
            side = rng.integers(5, 8)
            top, left = rng.integers(0, SCENE - side), half + rng.integers(0, 9 - side)
            image[0, top : top + side, left : left + side] += 1
            if kind == 1:
                image[0, top + 1 : top + side - 1, left + 1 : left + side - 1] -= 1
            found[kind] = left, top, left + side, top + side
    column, row = np.moveaxis((boxes[..., :2] + boxes[..., 2:]) / 2 // CELL, -1, 0)
    return images, boxes, (row * GRID + column).astype(int)


def _raw_to_output(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates ``(N, 16, 7)`` from the network's ``(N, 7, 4, 4)``, and their derivative by it."""
    rows = np.moveaxis(raw, 1, -1).reshape(len(raw), -1, 7)
    probability = 1 / (1 + np.exp(-rows[..., 4:]))
    output = np.concatenate([ANCHORS + SPREAD * rows[..., :4], probability], axis=2)
    return output, np.concatenate([np.full_like(rows[..., :4], SPREAD), probability * (1 - probability)], axis=2)


def _detector(framework: str, network: reference.Layer) -> Any:
    """Return the network with candidates as its output."""
    model = in_framework(framework, network)
    if framework == "torch":

        class Detector(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                rows = self.model(images).permute(0, 2, 3, 1).reshape(len(images), -1, 7)
                anchors = torch.tensor(ANCHORS, dtype=rows.dtype)
                return torch.cat([anchors + SPREAD * rows[..., :4], torch.sigmoid(rows[..., 4:])], dim=2)

        return Detector().eval()
    if framework == "tensorflow":

        def in_tensorflow(images: Any) -> Any:
            rows = tf.reshape(model(images), (-1, GRID * GRID, 7))
            return tf.concat([ANCHORS + SPREAD * rows[..., :4], tf.sigmoid(rows[..., 4:])], axis=2)

        return in_tensorflow

    def in_jax(images: Any) -> Any:
        rows = model(images).reshape(-1, GRID * GRID, 7)
        return jnp.concatenate([ANCHORS + SPREAD * rows[..., :4], jax.nn.sigmoid(rows[..., 4:])], axis=2)

    return in_jax


@dataclass(frozen=True, eq=False)
class Found:
    """A trained detector, images that it did not see, and what it says of the two squares of each."""

    network: reference.Sequential
    images: np.ndarray
    boxes: np.ndarray
    cells: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        return _raw_to_output(logits_of(self.network, self.images))[0]

    def of(self, kind: int) -> np.ndarray:
        """Return the candidates ``(N, 7)`` of one of the squares."""
        return self.outputs[np.arange(len(self.images)), self.cells[:, kind]]

    def weights(self, kind: int, column: int) -> np.ndarray:
        """Return weight 1 at one number of these candidates."""
        weights = np.zeros(self.outputs.shape)
        weights[np.arange(len(weights)), self.cells[:, kind], column] = 1
        return weights

    def guided(self, weights: np.ndarray) -> np.ndarray:
        """Return the oracle's maps for weights of the candidates."""
        raw = logits_of(self.network, self.images)
        g = (weights * _raw_to_output(raw)[1]).reshape(len(raw), GRID, GRID, 7)
        return guided(self.network, self.images, np.moveaxis(g, -1, 1))


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(8)
    first, second, third = (reference.random_conv(rng, *size, padding=(1, 1)) for size in ((1, 8), (8, 12), (12, 16)))
    pool = reference.MaxPool2d((2, 2), (2, 2))
    layers = (first, RELU, pool, second, RELU, pool, third, RELU)
    network = reference.Sequential((*layers, reference.random_conv(rng, 16, 7, kernel=(1, 1))))
    images, boxes, cells = _detections(rng, 200)
    seen, wanted = torch.tensor(images, dtype=torch.float32), torch.tensor(boxes, dtype=torch.float32)
    anchors, index = torch.tensor(ANCHORS, dtype=torch.float32), torch.tensor(cells)
    # Objectness and classes are 0 where nothing is.
    kinds = torch.zeros(len(seen), GRID * GRID, 2)
    kinds[torch.arange(len(seen))[:, None], index] = torch.eye(2)
    goal = torch.cat([kinds.amax(2, keepdim=True), kinds], dim=2)

    def loss(model: nn.Module) -> torch.Tensor:
        rows = model(seen).permute(0, 2, 3, 1).reshape(len(seen), -1, 7)
        matched = rows.gather(1, index[..., None].expand(-1, -1, 7))
        sides = (anchors[index] + SPREAD * matched[..., :4] - wanted).abs().mean()
        return sides + 10 * nn.functional.binary_cross_entropy_with_logits(rows[..., 4:], goal)

    network = trained(network, loss, 400)
    found = Found(network, *_detections(rng, 20))
    is_found = [
        (_overlap(found.of(kind)[:, :4], found.boxes[:, kind]) > 0.6) & (found.of(kind)[:, 5:].argmax(1) == kind)
        for kind in (0, 1)
    ]
    assert np.mean(is_found) > 0.7
    chosen = np.flatnonzero(np.all(is_found, axis=0))[:6]
    return Found(network, found.images[chosen], found.boxes[chosen], found.cells[chosen])


def _overlap(boxes: np.ndarray, others: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """Return the intersection over union of boxes ``(..., 4)``."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    intersection = (high - low).clip(0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection + epsilon)


PARTS = {"left": 0, "top": 1, "right": 2, "bottom": 3, "objectness": 4}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_detection(framework, squares):
    """The class score, the objectness and the sides of a box that is given by its true place."""
    model, given = _detector(framework, squares.network), given_to(framework, squares.images)
    parts = ("class", *PARTS) if framework == "torch" else ("class", "left")
    for kind, part in product((0, 1), parts):
        box = Box(squares.boxes[:, kind], classes=kind, of=part, has_objectness=True)
        explanations = GuidedBackprop(model).explain(given, box)
        column = PARTS.get(part, 5 + kind)
        found = taken_from(framework, explanations.attribution)
        right, planted = (squares.guided(squares.weights(each, column)) for each in (kind, 1 - kind))
        check(found, right, planted)
        np.testing.assert_allclose(explanations.scores, squares.of(kind)[:, column], **TOLERANCE)


def test_the_map_of_a_box_lies_on_it(squares):
    """A pixel of the box has a larger magnitude than a pixel of the other box, on average."""
    method, given = GuidedBackprop(_detector("torch", squares.network)), torch.tensor(squares.images)
    rows, columns = np.mgrid[:SCENE, :SCENE]
    left, top, right, bottom = np.moveaxis(squares.boxes, -1, 0)[..., None, None]
    is_inside = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    for kind, part in product((0, 1), ("class", "objectness", "detection")):
        box = Box(squares.boxes[:, kind] + 0.3, kind, part, has_objectness=True)
        maps = np.abs(np.asarray(method.explain(given, box)))[:, 0]
        own, other = (maps[is_inside[:, each]].mean() for each in (kind, 1 - kind))
        assert own > 1.2 * other


def test_a_box_that_moves_a_little_has_the_same_map(squares):
    method, given = GuidedBackprop(_detector("torch", squares.network)), torch.tensor(squares.images)
    for kind in (0, 1):
        still = np.asarray(method.explain(given, Box(squares.boxes[:, kind], kind, has_objectness=True)))
        for shift in ([1, 0, 1, 0], [0, -1, 0, -1], [-1, -1, 1, 1], [1.5, 1, 0.5, 1]):
            box = Box(squares.boxes[:, kind] + np.array(shift), kind, has_objectness=True)
            np.testing.assert_array_equal(method.explain(given, box), still)
        # Moved onto the other square, it is found there.
        box = Box(squares.boxes[:, 1 - kind], 1 - kind, has_objectness=True)
        assert not np.allclose(method.explain(given, box), still, rtol=1e-2)


# Xplique's operators, f the model's output and t the targets; each formula is written out here. Xplique explains
# the output as it is, hence undo_head=False where the model ends in a softmax.


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_xplique_classification(framework, digits):
    """sum(f * t) over classes: a one-hot row, or its class id."""
    network, images, ids = digits
    images, ids = images[:6], ids[:6]
    one_hot = np.eye(10)[ids]
    model, given = _with_softmax(framework, network), given_to(framework, images)
    logits = logits_of(network, images)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score = (probability * one_hot).sum(1)
    at_logits = probability * (one_hot - score[:, None])
    for labels in (ids, one_hot):
        explanations = GuidedBackprop(model, undo_head=False).explain(given, labels)
        np.testing.assert_allclose(explanations.scores, score, **TOLERANCE)
        found = taken_from(framework, explanations.attribution)
        check(found, guided(network, images, at_logits), guided(network, images, one_hot))
    undone = GuidedBackprop(model).explain(given, ids)
    check(taken_from(framework, undone.attribution), guided(network, images, one_hot), found)


def test_xplique_regression(spots):
    """sum(f * t) as well: weights, such as +1 and -1 for what raises the row and lowers the column."""
    network, images, _ = spots
    targets = np.tile([1.0, -1.0], (len(images), 1))
    explanations = GuidedBackprop(in_torch(network)).explain(torch.tensor(images), targets)
    right, planted = (guided(network, images, each) for each in (targets, np.abs(targets)))
    check(np.asarray(explanations), right, planted)
    np.testing.assert_allclose(explanations.scores, (logits_of(network, images) * targets).sum(1), **TOLERANCE)


def test_xplique_mean_absolute_error(spots):
    """mean(|f - t|), which Xplique has deprecated: a callable; its gradient is 0 where t is the prediction."""
    network, images, centres = spots
    predicted, goal = logits_of(network, images), torch.tensor(centres)
    method, given = GuidedBackprop(in_torch(network)), torch.tensor(images)
    explanations = method.explain(given, lambda output: (output - goal).abs().mean(1))
    np.testing.assert_allclose(explanations.scores, np.abs(predicted - centres).mean(1), **TOLERANCE)
    right, planted = (guided(network, images, sign / 2) for sign in (np.sign(predicted - centres), np.ones((50, 2))))
    check(np.asarray(explanations), right, planted)
    at_prediction = method.explain(given, lambda output: (output - output.detach()).abs().mean(1))
    assert not np.asarray(at_prediction).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_xplique_segmentation(framework, scenes):
    """sum(f * t) / count(t != 0): a mask divided by its size, or weights; t may be -1 outside of a border."""
    network, images, ids = scenes
    region = (ids == 1).astype(float)
    outside = np.stack([_grown(each, 1) for each in ids == 1]) & (ids != 1)
    model, given = _with_softmax(framework, network), given_to(framework, images)
    logits = logits_of(network, images)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for mask in (region, region - outside):
        targets = _of_class(mask, 1)
        count = (targets != 0).sum((1, 2, 3))
        weights = targets / count[:, None, None, None]
        score = (probability * weights).sum((1, 2, 3))
        at_logits = probability * (weights - (probability * weights).sum(1, keepdims=True))
        right = guided(network, images, at_logits)
        planted = guided(network, images, probability * (targets - (probability * targets).sum(1, keepdims=True)))
        turned = weights if framework == "torch" else np.moveaxis(weights, 1, -1)
        method = GuidedBackprop(model, undo_head=False)
        for labels, keywords in ((1, {"mask": mask / count[:, None, None]}), (turned, {})):
            explanations = method.explain(given, labels, **keywords)
            np.testing.assert_allclose(explanations.scores, score, **TOLERANCE)
            check(taken_from(framework, explanations.attribution), right, planted)


EPSILON = 1e-4
# Whether objectness and class are factors.
OPERATORS = {
    "detection": (True, True),
    "box position": (False, False),
    "box probability": (True, False),
    "box class": (False, True),
}


def xplique_score(output: np.ndarray, references: np.ndarray, has_probability: bool, has_class: bool) -> float:
    """Return the mean over references of the best candidate's IoU * objectness * cosine of the classes, of one image.

    ``output`` is ``(B, 5 + C)``, ``references`` are ``(R, 5 + C)``, with one-hot classes.
    """
    best = []
    for each in references:
        factors = _overlap(output[:, :4], each[:4], EPSILON)
        if has_probability:
            factors = factors * output[:, 4]
        if has_class:
            lengths = np.linalg.norm(output[:, 5:], axis=1) * np.linalg.norm(each[5:])
            factors = factors * (output[:, 5:] @ each[5:]) / (lengths + EPSILON)
        best.append(factors.max())
    return float(np.mean(best))


def as_label(references: np.ndarray, has_probability: bool, has_class: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the same as a label: a function of the detector's output in PyTorch."""
    wanted = torch.tensor(references)[:, :, None]

    def score(output: torch.Tensor) -> torch.Tensor:
        found = output[:, None]
        low = torch.maximum(wanted[..., :2], found[..., :2])
        high = torch.minimum(wanted[..., 2:4], found[..., 2:4])
        intersection = (high - low).clamp(min=0).prod(-1)
        areas = [(each[..., 2:4] - each[..., :2]).prod(-1) for each in (wanted, found)]
        factors = intersection / (areas[0] + areas[1] - intersection + EPSILON)
        if has_probability:
            factors = factors * found[..., 4]
        if has_class:
            lengths = found[..., 5:].norm(dim=-1) * wanted[..., 5:].norm(dim=-1)
            factors = factors * (found[..., 5:] * wanted[..., 5:]).sum(-1) / (lengths + EPSILON)
        return factors.amax(2).mean(1)

    return score


def derivative(score: Callable[[np.ndarray], float], output: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Return the derivative of a score by each number, from differences."""
    found = np.zeros(output.shape)
    for index in np.ndindex(*output.shape):
        moved = np.zeros(output.shape)
        moved[index] = step
        found[index] = (score(output + moved) - score(output - moved)) / (2 * step)
    return found


def _references(squares: Found, kinds: tuple[int, ...]) -> np.ndarray:
    """Return true boxes as Xplique's targets ``(N, R, 7)``, off the sides that the detector found."""
    boxes = squares.boxes[:, kinds] + np.array([0.13, 0.11, 0.07, 0.17])
    classes = np.broadcast_to(np.eye(2)[list(kinds)], (len(boxes), len(kinds), 2))
    return np.concatenate([boxes, np.ones((*boxes.shape[:2], 1)), classes], axis=2)


@pytest.mark.parametrize("kinds", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_xplique_detection(operator, kinds, squares):
    """Each of the four operators is a callable label, with one reference or with several."""
    factors, references = OPERATORS[operator], _references(squares, kinds)
    model, given = _detector("torch", squares.network), torch.tensor(squares.images)
    explanations = GuidedBackprop(model).explain(given, as_label(references, *factors))
    pairs = list(zip(squares.outputs, references, strict=True))
    scores = [xplique_score(output, wanted, *factors) for output, wanted in pairs]
    np.testing.assert_allclose(explanations.scores, scores, **TOLERANCE)
    weights = [
        derivative(lambda each, wanted=wanted: xplique_score(each, wanted, *factors), output)
        for output, wanted in pairs
    ]
    right = squares.guided(np.stack(weights))
    # Differences are right to seven digits or so.
    planted = squares.guided(sum(squares.weights(each, 5 + each) for each in kinds))
    check(np.asarray(explanations), right, planted, rtol=1e-6)
    # The factors are told apart by the scores: these are not those of any other operator.
    for other in set(OPERATORS.values()) - {factors}:
        others = [xplique_score(output, wanted, *other) for output, wanted in pairs]
        assert not np.allclose(explanations.scores, others, rtol=1e-6)


def test_a_box_instead_of_an_operator(squares):
    """IoU alone is of="position" where the best candidate is the same.

    of="detection" has the class score where the operator has the cosine of the class scores.
    """
    references = _references(squares, (1,))
    overlap = _overlap(squares.outputs[..., :4], references[..., :4])
    is_same = (overlap.argmax(1) == squares.cells[:, 1]) & (
        (overlap * squares.outputs[..., 6]).argmax(1) == squares.cells[:, 1]
    )
    assert is_same.sum() >= 3
    references, cells = references[is_same], squares.cells[is_same, 1]
    method, given = GuidedBackprop(_detector("torch", squares.network)), torch.tensor(squares.images[is_same])
    position, detection, of_class = (
        method.explain(given, Box(references[:, 0, :4], 1, part, has_objectness=True))
        for part in ("position", "detection", "class")
    )
    # Xplique's 1e-4 in the denominator is the whole difference: boxes here have an area of 25 and more.
    by_operator, by_detection = (
        method.explain(given, as_label(references, *OPERATORS[each])) for each in ("box position", "detection")
    )
    check(np.asarray(position), np.asarray(by_operator), np.asarray(of_class), rtol=1e-4)
    np.testing.assert_allclose(position.scores, by_operator.scores, rtol=1e-5)

    def with_class_score(output: torch.Tensor) -> torch.Tensor:
        rows = output[torch.arange(len(output)), torch.tensor(cells)]
        return as_label(references, *OPERATORS["box probability"])(rows[:, None]) * rows[:, 6]

    by_hand = method.explain(given, with_class_score)
    check(np.asarray(detection), np.asarray(by_hand), np.asarray(of_class), rtol=1e-4)
    np.testing.assert_allclose(detection.scores, by_hand.scores, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(detection.scores, by_detection.scores, rtol=1e-6)


def test_several_boxes_are_averaged(squares):
    """One score for several references is the mean of theirs, and the plain gradient is the mean of their maps."""
    method, given = Saliency(_detector("torch", squares.network)), torch.tensor(squares.images)
    one, two, both = (
        np.asarray(method.explain(given, as_label(_references(squares, kinds), *OPERATORS["detection"])))
        for kinds in ((0,), (1,), (0, 1))
    )
    check(both, (one + two) / 2, one)


def test_a_box_that_is_the_prediction_itself(squares):
    """The IoU is 1 and cannot rise: here an error; Xplique's formula has the slope of the area alone, an arbitrary one.

    At a tie, TensorFlow gives the derivative of a maximum or minimum to its first argument, the reference; what is
    left says that a smaller box would be better.
    """
    given = given_to("tensorflow", squares.images)
    method = GuidedBackprop(_detector("tensorflow", squares.network))
    outputs = method.explain(given, Box(squares.boxes[:, 0], 0, has_objectness=True)).outputs
    references = outputs[np.arange(len(outputs)), squares.cells[:, 0]]
    with pytest.raises(LabelError, match="overlap is at its maximum"):
        method.explain(given, Box(references[:, :4], 0, "position", has_objectness=True))

    def position(output: Any) -> Any:
        boxes, wanted = output[..., :4], tf.constant(references[:, None, :4])
        low, high = tf.maximum(wanted[..., :2], boxes[..., :2]), tf.minimum(wanted[..., 2:], boxes[..., 2:])
        intersection = tf.reduce_prod(tf.maximum(high - low, 0), -1)
        areas = [tf.reduce_prod(each[..., 2:] - each[..., :2], -1) for each in (wanted, boxes)]
        return tf.reduce_max(intersection / (areas[0] + areas[1] - intersection + EPSILON), axis=1)

    explanations = method.explain(given, position)
    width, height = (references[:, 2:4] - references[:, :2]).T
    area = width * height
    weights = np.zeros(outputs.shape)
    outward = np.stack([-height, -width, height, width], 1)
    slope = -(area / (area + EPSILON) ** 2)[:, None] * outward
    weights[np.arange(len(weights)), squares.cells[:, 0], :4] = slope
    check(taken_from("tensorflow", explanations.attribution), squares.guided(weights), squares.guided(-weights))


def test_a_score_of_a_whole_batch_with_a_batch_size(squares):
    """A callable is given one batch: numbers of each image that it holds do not fit a part of them."""
    label = as_label(_references(squares, (0,)), *OPERATORS["detection"])
    method = GuidedBackprop(_detector("torch", squares.network), batch_size=4)
    with pytest.raises(LabelError, match="callable must return one real number per image"):
        method.explain(torch.tensor(squares.images), label)
