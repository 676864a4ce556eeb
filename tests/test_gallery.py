"""The neurons of a layer: which images excite them most, where they look, and their maps, against the oracle."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reference
from guided_backprop import GuidedBackprop, ImageError, NoReluError, OptionError, Saliency, neuron_gallery
from guided_backprop.arrays import Inputs
from guided_backprop.jax import tap
from guided_backprop.neurons.receptive_field import receptive_field
from guided_backprop.subject import Subject
from networks_jax import to_jax
from networks_keras import to_keras
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SHAPE = (3, 41, 38)
IMAGES = np.random.default_rng(4).normal(size=(12, *SHAPE)).astype(np.float32)
CHANNELS, COUNT = [5, 1, 2], 4


def _trunk() -> reference.Sequential:
    rng = np.random.default_rng(8)
    relu = reference.ReLU()
    layers = (
        reference.random_conv(rng, 3, 4, stride=(2, 2), padding=(1, 1)),
        relu,
        reference.MaxPool2d((2, 2), (2, 2)),
        reference.random_conv(rng, 4, 5, padding=(1, 1)),
        relu,
        reference.random_conv(rng, 5, 6, padding=(1, 1)),
    )
    return reference.Sequential(layers)


TRUNK = _trunk()
OUTPUT = TRUNK.forward(IMAGES.astype(np.float64))[0]
STRENGTH = OUTPUT.reshape(len(IMAGES), 6, -1).max(2)
LAST = len(TRUNK.layers) - 1
# By hand: 3, then 2 more rows of twice as far, then 2 and 2 more of four times as far.
FIELD = 3 + 2 + 2 * 4 + 2 * 4


def channels_first(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, -3)


# Framework: the model, its layer, the images in its layout, and an array in the layout of the oracle.
FRAMEWORKS = {
    "torch": lambda: (to_torch(TRUNK).float(), str(LAST), torch.tensor(IMAGES), np.asarray),
    "keras": lambda: (to_keras(TRUNK, (None, None, 3), "float32"), -1, IMAGES.transpose(0, 2, 3, 1), channels_first),
    "jax": lambda: (_tapped(), "last", jnp.asarray(IMAGES.transpose(0, 2, 3, 1)), channels_first),
}


def _tapped():
    function = to_jax(TRUNK)
    return lambda images: tap("last", function(images)).mean((1, 2))


def whole_maps(gallery, rule: reference.Rule = "guided", shift: int = 0, directions=None) -> np.ndarray:
    """Return the oracle's maps on whole images, ``(C, K, ...)``; ``shift`` plants the neuron beside."""
    directions = np.eye(6) if directions is None else directions
    maps = np.zeros((*gallery.images.shape, *SHAPE))
    for row, channel in enumerate(gallery.channels):
        for column, image in enumerate(gallery.images[row]):
            weights = np.zeros((1, *OUTPUT.shape[1:]))
            at = gallery.positions[row, column]
            weights[0, :, at[0], (at[1] + shift) % OUTPUT.shape[3]] = directions[channel]
            maps[row, column] = reference.attribution(TRUNK, IMAGES[image : image + 1].astype(float), weights, rule)[0]
    return maps


def cut(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return what is inside of the boxes."""
    rows = [
        [each[:, top:bottom, left:right] for each, ((top, bottom), (left, right)) in zip(*pair, strict=True)]
        for pair in zip(maps, boxes, strict=True)
    ]
    return np.array(rows)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_strongest_images_and_their_maps(framework):
    model, layer, images, back = FRAMEWORKS[framework]()
    gallery = neuron_gallery(model, layer, CHANNELS, images, count=COUNT, batch_size=5)
    strongest = np.argsort(-STRENGTH[:, CHANNELS], axis=0)[:COUNT].T
    np.testing.assert_array_equal(gallery.images, strongest)
    np.testing.assert_allclose(
        gallery.activations, np.take_along_axis(STRENGTH[:, CHANNELS].T, strongest, 1), rtol=1e-5
    )
    for row, channel in enumerate(CHANNELS):
        for column, image in enumerate(strongest[row]):
            place = np.unravel_index(OUTPUT[image, channel].argmax(), OUTPUT.shape[2:])
            np.testing.assert_array_equal(gallery.positions[row, column], place)
    maps = whole_maps(gallery)
    np.testing.assert_allclose(back(gallery.attribution), cut(maps, gallery.boxes), **TOLERANCE)
    np.testing.assert_array_equal(back(gallery.crops), cut(IMAGES[gallery.images], gallery.boxes))
    # Nothing lies outside of the boxes: what they hold is the whole map.
    assert np.abs(cut(maps, gallery.boxes)).sum() == pytest.approx(np.abs(maps).sum(), rel=1e-12)
    assert gallery.crops.shape[:2] == (3, COUNT)
    assert 0 < gallery.share < 0.6
    assert str(gallery.coverage) == "max_pool x1 plain, relu x2 guided"


@pytest.mark.parametrize("planted", [{"rule": "saliency"}, {"shift": 1}])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_faults_are_caught(framework, planted):
    model, layer, images, back = FRAMEWORKS[framework]()
    gallery = neuron_gallery(model, layer, CHANNELS, images, count=COUNT)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(
            back(gallery.attribution), cut(whole_maps(gallery, **planted), gallery.boxes), **TOLERANCE
        )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_directions_are_sums_of_channels(framework):
    model, layer, images, back = FRAMEWORKS[framework]()
    directions = np.random.default_rng(3).normal(size=(2, 6))
    gallery = neuron_gallery(model, layer, dict(zip(("one", "other"), directions, strict=True)), images, count=3)
    assert gallery.names == ("one", "other")
    values = np.tensordot(directions, OUTPUT, axes=(1, 1))
    strongest = values.reshape(2, len(IMAGES), -1).max(2)
    np.testing.assert_array_equal(gallery.images, np.argsort(-strongest, axis=1)[:, :3])
    np.testing.assert_allclose(gallery.activations, -np.sort(-strongest, axis=1)[:, :3], rtol=1e-5)
    maps = whole_maps(gallery, directions=directions)
    np.testing.assert_allclose(back(gallery.attribution), cut(maps, gallery.boxes), **TOLERANCE)
    assert gallery.share < 0.6
    planted = cut(whole_maps(gallery, directions=directions[::-1]), gallery.boxes)
    assert np.abs(back(gallery.attribution) - planted).max() > 0.01


def test_the_receptive_field_is_that_of_the_layers():
    gallery = neuron_gallery(to_torch(TRUNK).float(), str(LAST), 0, torch.tensor(IMAGES), count=2)
    assert gallery.crops.shape[3:] == (FIELD, FIELD)
    assert (gallery.boxes[..., 1] - gallery.boxes[..., 0] == FIELD).all()
    assert (gallery.boxes >= 0).all()
    assert (gallery.boxes[..., 1] <= SHAPE[1:]).all()


@st.composite
def _stacks(draw):
    """Return kernel, stride, padding and dilation of a convolution, and of layers that are one or a maximum."""
    stack = [(False, 3, 1, 1, 1)]
    for _ in range(draw(st.integers(0, 3))):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        stride = draw(st.integers(1, min(kernel, 2)))
        padding = draw(st.integers(0, kernel // 2))
        stack.append((draw(st.booleans()), kernel, stride, padding, dilation))
    return stack


@settings(max_examples=40, deadline=None, derandomize=True)
@given(_stacks())
def test_the_receptive_field_is_exact(stack):
    size, step, start = 1, 1, 0
    layers, channels = [], 2
    with torch.random.fork_rng():
        torch.manual_seed(len(stack))
        for is_maximum, kernel, stride, padding, dilation in stack:
            if is_maximum:
                layers += [nn.MaxPool2d(kernel, stride, padding, dilation)]
            else:
                layers += [nn.Conv2d(channels, 16, kernel, stride, padding, dilation), nn.ReLU()]
                channels = 16
            start -= padding * step
            size += (kernel - 1) * dilation * step
            step *= stride
    model = nn.Sequential(*layers).eval()
    images = torch.zeros(1, 2, 64, 70)
    backend = Subject(model, undo_head=False).backend(images)
    axes = receptive_field(backend, images, backend.outputs(Inputs.of(images)))
    for axis, length in zip(axes, (64, 70), strict=True):
        # A window that is nearly as large as the image may be taken for the whole of it.
        if size > length // 2:
            continue
        assert (axis.size, axis.start, axis.stride) == (size, start, step)


def test_any_crop_gives_the_map_of_the_whole_image():
    """Strides and padding fall alike, wherever the neuron is: at each position of a strided network."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        convs = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
        model = nn.Sequential(*convs, nn.Conv2d(4, 2, 1)).double().eval()
    images = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, 61, 66)))
    backend = Subject(model, undo_head=False).backend(images)
    outputs = backend.outputs(Inputs.of(images))
    rows, columns = receptive_field(backend, images, outputs)
    assert rows.stride == columns.stride == 8
    method = GuidedBackprop(model)
    for i, j in np.ndindex(outputs.shape[2:]):
        whole = method.explain(images, (1, i, j)).attribution[0]
        (top, bottom, row), (left, right, column) = rows.crop(i), columns.crop(j)
        assert (bottom - top) * (right - left) < 61 * 66
        part = method.explain(images[:, :, top:bottom, left:right], (1, row, column))
        np.testing.assert_allclose(part.scores, outputs[:, 1, i, j], rtol=1e-9)
        np.testing.assert_allclose(part.attribution[0], whole[:, top:bottom, left:right], rtol=1e-9, atol=1e-12)
        assert whole.abs().sum() == pytest.approx(float(part.attribution.abs().sum()), rel=1e-9)


class Excited(nn.Module):
    """Channels are weighed by what the whole image shows, as in squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(images))
        return self.second(hidden * torch.sigmoid(hidden.mean((2, 3), keepdim=True)))


class Upsampled(nn.Module):
    """Neurons look through windows that do not all move by the same stride."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.down(images))
        return self.up(nn.functional.interpolate(hidden, scale_factor=3, mode="nearest"))


class Placed(nn.Module):
    """Adds what depends on the place, for images of one size: a crop of the image has another value, or none."""

    def __init__(self, *, is_strict: bool) -> None:
        super().__init__()
        self.first, self.second, self.is_strict = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), is_strict

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(30 if self.is_strict else images.shape[2])[:, None] / 10
        return self.second(torch.relu(self.first(images + rows)))


NETWORKS = {
    "squeeze and excitation": (Excited, "second", 1.0),
    "upsampling": (Upsampled, "up", None),
    "one size": (lambda: Placed(is_strict=True), "second", 1.0),
    "places": (lambda: Placed(is_strict=False), "second", None),
    "a layer without positions": (lambda: nn.Sequential(nn.Conv2d(3, 4, 30), nn.ReLU(), nn.Flatten()), "2", 1.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_where_no_window_moves_the_whole_image_counts(name):
    make, layer, share = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().double().eval()
    images = torch.tensor(np.random.default_rng(0).normal(size=(5, 3, 30, 30)))
    gallery = neuron_gallery(model, layer, [0, 3], images, count=3)
    method = GuidedBackprop(model, output_layer=layer)
    for row, channel in enumerate(gallery.channels):
        entries = [(int(channel), *map(int, at)) for at in gallery.positions[row]]
        found = method.explain(images[gallery.images[row]], entries)
        np.testing.assert_allclose(found.scores, gallery.activations[row], rtol=1e-9)
        for column, (whole, box) in enumerate(zip(found.attribution, gallery.boxes[row], strict=True)):
            (top, bottom), (left, right) = box
            np.testing.assert_allclose(gallery.attribution[row, column], whole[:, top:bottom, left:right], rtol=1e-9)
            assert whole[:, top:bottom, left:right].abs().sum() == pytest.approx(float(whole.abs().sum()))
    assert share is None or gallery.share == share


def test_a_keras_model_for_one_size():
    images = IMAGES.transpose(0, 2, 3, 1)
    fixed, free = (to_keras(TRUNK, (*size, 3), "float32") for size in (SHAPE[1:], (None, None)))
    whole, part = (neuron_gallery(model, -1, CHANNELS[:1], images, count=2) for model in (fixed, free))
    assert whole.share == 1 > part.share
    np.testing.assert_allclose(whole.attribution, part.attribution, **TOLERANCE)


def test_batches_are_read_once():
    model = to_torch(TRUNK).float()
    images = torch.tensor(IMAGES)
    whole = neuron_gallery(model, str(LAST), CHANNELS, images, count=COUNT)
    streamed = neuron_gallery(model, str(LAST), CHANNELS, iter(images.split(5)), count=COUNT)
    np.testing.assert_array_equal(streamed.images, whole.images)
    np.testing.assert_allclose(streamed.attribution, whole.attribution, **TOLERANCE)
    few = neuron_gallery(model, str(LAST), CHANNELS, images[:3], count=9)
    assert few.images.shape == (3, 3)
    assert sorted(few.images[0]) == [0, 1, 2]


def test_other_methods_and_series():
    """A series has one axis of positions, and no picture."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv1d(2, 4, 5, padding=2), nn.ReLU(), nn.Conv1d(4, 3, 3)).eval()
    series = torch.tensor(np.random.default_rng(2).normal(size=(6, 2, 50)), dtype=torch.float32)
    gallery = neuron_gallery(model, "2", 1, series, count=2, method=Saliency)
    assert gallery.crops.shape == (1, 2, 2, 7)
    assert gallery.method == "Saliency"
    whole = Saliency(model).explain(series[gallery.images[0, :1]], (1, int(gallery.positions[0, 0, 0])))
    begin, end = gallery.boxes[0, 0, 0]
    np.testing.assert_allclose(gallery.attribution[0, 0], whole.attribution[0, :, begin:end], **TOLERANCE)
    with pytest.raises(ImageError, match="a picture needs images"):
        gallery.picture()


def test_pictures():
    gallery = neuron_gallery(to_torch(TRUNK).float(), str(LAST), CHANNELS, torch.tensor(IMAGES), count=COUNT)
    pixels = gallery.picture()
    tile = FIELD + 4
    assert pixels.shape == (3 * tile, 2 * COUNT * tile, 3)
    assert pixels.dtype == np.uint8
    # The left half shows the crops, the right half the maps: grey where nothing matters.
    assert (pixels[:, COUNT * tile :] == 128).mean() > (pixels[:, : COUNT * tile] == 128).mean()
    figure = gallery.plot(percentile=95)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes] == ["channel 5", "channel 1", "channel 2"]
    assert "percentile 95" in figure.get_supxlabel()


BAD = {
    "no channels": ({"channels": []}, OptionError, "channels must be one or several integers"),
    "channels that are no integers": ({"channels": [0.5]}, OptionError, r"received channels=\[0.5\]"),
    "a channel that is not there": ({"channels": [6]}, OptionError, r"channels must be in \[0, 6\)"),
    "a negative channel": ({"channels": -1}, OptionError, r"channels must be in \[0, 6\)"),
    "a direction of another layer": ({"channels": {"a": np.ones(5)}}, OptionError, "each of the layer's 6 channels"),
    "directions of two lengths": ({"channels": {"a": [1.0], "b": [1.0, 2.0]}}, OptionError, "of one length"),
    "no directions": ({"channels": {}}, OptionError, "one or several vectors"),
    "no count": ({"count": 0}, OptionError, "count must be a positive integer"),
    "no batch": ({"batch_size": True}, OptionError, "batch_size must be a positive integer"),
    "no images": ({"images": torch.zeros(0, *SHAPE)}, ImageError, "received no image"),
    "no batches": ({"images": []}, ImageError, "received no image"),
    "no iterable": ({"images": 3}, ImageError, "iterable of batches"),
    "several inputs": ({"images": (torch.zeros(1, *SHAPE),)}, OptionError, "images of 1 inputs"),
    "several shapes": (
        {"images": [torch.zeros(1, *SHAPE), torch.zeros(1, 3, 50, 50)]},
        ImageError,
        r"one shape; received \(3, 41, 38\) and \(3, 50, 50\)",
    ),
    "not finite": ({"images": torch.full((1, *SHAPE), torch.nan)}, ImageError, "finite"),
    "a layer that is not there": ({"layer": "55"}, OptionError, "Did you mean '5'"),
    "no ReLU": ({"layer": "0"}, NoReluError, "at least one ReLU"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changed, kind, message = BAD[name]
    arguments = {"layer": str(LAST), "channels": 0, "images": torch.tensor(IMAGES)} | changed
    with pytest.raises(kind, match=message):
        neuron_gallery(to_torch(TRUNK).float(), **arguments)


def test_outputs_alone():
    """A backend's forward pass gives what the model gives."""
    for make in FRAMEWORKS.values():
        model, layer, images, back = make()
        found = Subject(model, output_layer=layer, undo_head=False).backend(images).outputs(Inputs.of(images))
        np.testing.assert_allclose(back(found), OUTPUT, rtol=1e-4, atol=1e-5)
