"""Graphs of images of any size: the maps of explain at sizes that nobody named, or an error that says why."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ModelError,
    OptionError,
    RectGrad,
    Saliency,
    SmoothGrad,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends.torch.export import any_size, decompose, graph, maps, windows
from guided_backprop.backends.torch.export.any_size import linear, nearest
from guided_backprop.backends.torch.export.program import Program
from guided_backprop.export.agreement import difference
from guided_backprop.export.engine import OnnxRuntime
from guided_backprop.export.photos import Photos
from guided_backprop.methods.cam import resized
from guided_backprop.models import ResizeCrop

RNG = np.random.default_rng(0)
IMAGES = torch.tensor(RNG.normal(size=(2, 3, 41, 38)), dtype=torch.float32)
TAIL = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


class Skip(nn.Module):
    """What comes from below is brought to the size of what is there, and put beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(7, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(torch.relu(self.first(x)), size=x.shape[2:], mode="bilinear")
        return torch.relu(self.last(torch.cat([x, y], 1))).mean((2, 3))


class Own(nn.Module):
    """A convolution, a function of the user's, and a mean."""

    def __init__(self, function) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.function = function
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(torch.relu(self.conv(x)), x).mean((2, 3))


def sliced(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    one, other, third = y[:, :, 1:-1, ::2], y[:, 1:2, -7:], y[:, :, 2 : y.shape[2] // 2, 1::3]
    return (one.mean((2, 3)) - other.mean((2, 3)) - third.mean((2, 3)) / 2)[..., None, None]


def built(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 3
    return model


def pooled() -> nn.Sequential:
    first = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 5, 3, 2)]
    last = [nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), *TAIL, nn.Linear(6, 5), nn.Softmax(1)]
    return built(*first, *last)


NETWORKS = {
    "strides and maxima": (pooled, IMAGES),
    "averages": (
        lambda: built(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.ReLU(),
                      nn.AvgPool2d((2, 3), count_include_pad=False, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), *TAIL),
        IMAGES,
    ),
    "resizing": (
        lambda: built(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Upsample(scale_factor=4), nn.Conv2d(6, 4, 3, 3), nn.ReLU(),
                      nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                      nn.ConvTranspose2d(4, 3, 3, 2, 1), nn.ReLU(), *TAIL),
        IMAGES,
    ),
    "an output with positions": (lambda: built(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 4, 3)), IMAGES),
    "a size of another value": (lambda: built(Skip()), IMAGES),
    "slices": (lambda: Own(sliced), IMAGES),
    "series": (
        lambda: built(nn.Conv1d(3, 6, 3, 2), nn.ReLU(), nn.Conv1d(6, 6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
                      nn.Flatten()),
        IMAGES[:, :, 0],
    ),
    "volumes": (
        lambda: built(nn.Conv3d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 1),
                      nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        torch.tensor(RNG.normal(size=(2, 3, 14, 12, 15)), dtype=torch.float32),
    ),
}  # fmt: skip


def of_sizes(like: torch.Tensor, *sizes: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    shape = (count, like.shape[1], *sizes)
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_at_any_size_are_those_of_the_method(name, tmp_path):
    make, images = NETWORKS[name]
    method = GuidedBackprop(make())
    exported = method.export(tmp_path / "map.onnx", images, sizes="dynamic")
    assert exported.precise_difference < 1e-12
    assert exported.counts == [1, 2, 17]
    (least,) = exported.least_sizes
    assert len(least) == images.ndim - 2
    runs = OnnxRuntime(exported.path, exported.outputs)
    generator = np.random.default_rng(1)
    drawn = [generator.integers(least, 3 * np.array(least)).tolist() for _ in range(5)]
    for count, sizes in zip((1, 3, 1, 17, 1, 2), [least, *drawn], strict=True):
        given = of_sizes(images, *sizes, count=count)
        results = runs.run({"images": given.numpy(), "labels": np.arange(count) % 3})
        wanted = method.explain(given, np.arange(count) % 3)
        assert results["is_finite"].all()
        found = [results[one] for one in ("outputs", "attribution", "scores")]
        assert difference(found, [wanted.outputs, wanted.attribution, wanted.scores]) < 1e-4
        # Planted faults: another class, and another rule.
        other = Saliency(method.subject.model).explain(given, np.arange(count) % 3)
        for fault in (method.explain(given, (np.arange(count) + 1) % 3), other):
            assert difference([results["attribution"]], [fault.attribution]) > 1e-2
    smaller = of_sizes(images, *[size - 1 for size in least])
    assert not runs.run({"images": smaller.numpy(), "labels": np.array([0])})["is_finite"].any()


METHODS = {
    "a map at a layer": lambda model: GradCAM(model, "7"),
    "resized to the nearest": lambda model: GuidedGradCAM(model, "2", interpolation="nearest", reducer="sum"),
    "noisy copies": lambda model: SmoothGrad(GuidedGradCAM(model, "5"), samples=2, form="squared"),
}


def compare_at(sizes, method, runs):
    """Compare a graph with its method at other sizes; return what it takes beside images and labels."""
    images = of_sizes(IMAGES, *sizes, count=3)
    noise = method.plan.noise
    more = {} if noise is None else {"noise": np.float32(noise.drawn(Inputs.of(images))[0])}
    results = runs.run({"images": images.numpy(), "labels": np.arange(3), **more})
    wanted = method.explain(images, np.arange(3))
    assert difference([results["attribution"]], [wanted.attribution]) < 1e-4
    other = method.explain(images, np.arange(1, 4))
    assert difference([results["attribution"]], [other.attribution]) > 1e-2
    return more


@pytest.mark.parametrize("way", METHODS)
def test_all_methods_at_any_size(way, tmp_path):
    method = METHODS[way](pooled())
    exported = method.export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    runs = OnnxRuntime(exported.path, exported.outputs)
    for sizes in ((37, 52), (64, 33)):
        compare_at(sizes, method, runs)


@pytest.mark.parametrize("way", ["noisy copies", "resized to the nearest"])
def test_programs_of_pytorch_at_any_size(way, tmp_path):
    method = METHODS[way](pooled())
    exported = method.export(tmp_path / "map.pt2", IMAGES, sizes="dynamic")
    (least,) = exported.least_sizes
    runs = Program(exported.path, exported.outputs)
    for sizes in ((37, 52), (64, 33), least):
        more = compare_at(sizes, method, runs)
    smaller = of_sizes(IMAGES, *[size - 1 for size in least]).numpy()
    fewer = {name: noise[:1, :, :, :-1, :-1] for name, noise in more.items()}
    with pytest.raises(AssertionError, match=rf"size\(\)\[2\] >= {least[0]}"):
        runs.run({"images": smaller, "labels": np.array([0]), **fewer})


def test_photos_of_any_size(tmp_path):
    recipe = ResizeCrop((30, 34), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    photos = Photos.of(recipe)
    pixels = [RNG.integers(0, 256, (2, *sizes, 3), np.uint8) for sizes in ((30, 34), (43, 29))]
    images = [torch.from_numpy(photos.images(one, np.float32)) for one in pixels]
    method = GuidedBackprop(pooled())
    exported = method.export(tmp_path / "map.onnx", images[0], photos=recipe, sizes="dynamic")
    found = OnnxRuntime(exported.path, exported.outputs).run({"photos": pixels[1], "labels": np.array([0, 1])})
    wanted = photos.of_pixels(np.asarray(method.explain(images[1], [0, 1]).attribution))
    assert difference([found["attribution"]], [wanted]) < 1e-4


def test_a_file_says_which_sizes_are_free(tmp_path):
    exported = GuidedBackprop(pooled()).export(tmp_path / "map.onnx", IMAGES, sizes="dynamic", storage="float16")
    model = onnx.load(exported.path)
    shapes = {
        port.name: [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim]
        for port in (*model.graph.input, *model.graph.output)
    }
    assert shapes["images"] == shapes["attribution"] == ["N", 3, "images_2", "images_3"]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["least_sizes"] == str([list(sizes) for sizes in exported.least_sizes])
    assert exported.correlation > 0.99
    code = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for sizes in ((41, 38), (50, 77), (95, 40)):
    images = numpy.ones((2, 3, *sizes), numpy.float32)
    _, maps, _, is_finite = session.run(None, {"images": images, "labels": numpy.array([0, -1])})
    assert is_finite.all() and maps.shape == images.shape
assert not {"torch", "guided_backprop"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, exported.path], check=True)


def test_from_which_sizes_on_a_model_does_the_same(tmp_path):
    model = Own(lambda y, x: y * (2 if x.shape[2] < 30 else 1))
    exported = GuidedBackprop(model).export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    assert exported.least_sizes == [[30, 19]]
    runs = OnnxRuntime(exported.path, exported.outputs)
    for size, is_right in ((29, False), (30, True)):
        images = of_sizes(IMAGES, size, 25)
        results = runs.run({"images": images.numpy(), "labels": np.array([0])})
        wanted = GuidedBackprop(model).explain(images, 0)
        assert results["is_finite"].tolist() == [is_right]
        assert (difference([results["attribution"]], [wanted.attribution]) < 1e-4) == is_right


def flattened(y, x):
    return (y.flatten(1) @ torch.ones(4 * 21 * 19, 3))[..., None, None]


REFUSED = {
    "its values are put in a row": (Own(flattened), "any size .* asks whether"),
    "one size is another": (Own(lambda y, x: y * (2 if x.shape[2] == 41 else 1)), "asks whether Eq"),
    "even sizes": (Own(lambda y, x: y * (2 if x.shape[3] % 2 == 0 else 1)), "asks whether Eq"),
    "larger ones": (Own(lambda y, x: y * (2 if x.shape[2] > 900 else 1)), "asks whether"),
    "sizes that differ": (Own(lambda y, x: y * (2 if x.shape[2] > x.shape[3] else 1)), "asks whether"),
    "four places": (Own(lambda y, x: F.adaptive_avg_pool2d(y, 2)), "received an adaptive average to 2x2"),
    "the edge": (Own(lambda y, x: F.avg_pool2d(y, 2, ceil_mode=True)), "received an average over windows"),
    "its own size": (Own(lambda y, x: F.interpolate(y, size=(9, 9))), "received a resizing to the nearest"),
    "thirds": (Own(lambda y, x: F.interpolate(y, scale_factor=3)), r"a resizing to the nearest by \(3"),
    "curves": (Own(lambda y, x: F.interpolate(y, scale_factor=2, mode="bicubic")), "a resizing that is bicubic"),
    "it has no word": (Own(lambda y, x: y.sort(2)[0]), "ONNX row; received .* whose size is free"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_holds_for_one_size_is_refused(why, tmp_path):
    model, message = REFUSED[why]
    method = GuidedBackprop(model)
    assert method.export(tmp_path / "fixed.onnx", IMAGES).least_sizes == ()
    with pytest.raises(ModelError, match=message):
        method.export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    assert not (tmp_path / "map.onnx").exists()


def test_what_has_no_sizes_to_be_free_is_refused(tmp_path):
    vectors = built(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(OptionError, match="is for images with positions"):
        GuidedBackprop(vectors).export(tmp_path / "map.onnx", torch.ones(2, 4), sizes="dynamic")
    method = GuidedBackprop(NETWORKS["an output with positions"][0]())
    with pytest.raises(OptionError, match="for labels that have none"):
        method.export(tmp_path / "map.onnx", IMAGES, sizes="dynamic", labels="weights")
    with pytest.raises(OptionError, match="each value alone; received rectified, which ranks"):
        RectGrad(NETWORKS["an output with positions"][0]()).export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    with pytest.raises(OptionError, match="sizes must be"):
        method.export(tmp_path / "map.onnx", IMAGES, sizes="any")
    assert not list(tmp_path.iterdir())


def uncut(g, x, weight, *options):
    """Spread a gradient as it is right for one size alone."""
    stride, padding, dilation, groups = options
    axes = range(len(stride))
    reach = [(weight.shape[2 + axis] - 1) * dilation[axis] + 1 for axis in axes]
    rest = [(IMAGES.shape[2 + axis] + 2 * padding[axis] - reach[axis]) % stride[axis] for axis in axes]
    return torch.ops.aten.convolution(g, weight, None, stride, padding, dilation, True, rest, groups)


FAULTS = {
    "the way back of a stride ends elsewhere": (
        decompose, "spread", lambda right: lambda *given: right(*given).roll(1, 2), "in double precision"),
    "it is right for one size": (decompose, "spread", lambda right: uncut, "(?:asks whether|of 3x)"),
    "what it asked is not looked at": (graph, "least_of", lambda right: lambda trace, least: least,
                                       "for 2 images of 3x"),
    "a map is resized otherwise": (maps, "linear", lambda right: lambda *given: right(*given) * 1.001,
                                   "in double precision"),
    "windows lie elsewhere": (windows, "cut", lambda right: lambda x, axis, begin, *more: right(x, axis, 0, *more),
                              "in double precision"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, tmp_path, monkeypatch):
    module, name, other, message = FAULTS[fault]
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU()]
    model = built(*layers, *TAIL)
    if name == "least_of":
        model = Own(lambda y, x: y * (2 if x.shape[2] > 30 else 1))
    monkeypatch.setattr(module, name, other(getattr(module, name)))
    method = GradCAM(model, "1") if name == "linear" else GuidedBackprop(model)
    with pytest.raises(ModelError, match=message):
        method.export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("before", "after"), [(1, 7), (5, 5), (4, 9), (9, 4), (49, 224), (13, 3)])
def test_resizing_by_a_matrix_that_is_worked_out(before, after):
    like = torch.zeros((), dtype=torch.float64)
    for name, made in (("linear", linear), ("nearest", nearest)):
        wanted = resized(np.eye(before), [after], name)
        np.testing.assert_allclose(made(before, after, like), wanted, rtol=0, atol=1e-12)
    with torch.no_grad():
        eye = torch.eye(before, dtype=torch.float64)[:, None]
        for corners in (False, True):
            matrix = any_size.linear(before, after, like, corners=corners)
            wanted = F.interpolate(eye, size=after, mode="linear", align_corners=corners)[:, 0]
            np.testing.assert_allclose(matrix, wanted, rtol=0, atol=1e-12)


def test_each_weight_is_there_once(tmp_path):
    """What asks for a convolution's size is no reason not to fold batch-norm into it."""
    model = built(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), *TAIL
    )
    stored = {}
    for sizes in ("fixed", "dynamic"):
        exported = GuidedBackprop(model).export(tmp_path / f"{sizes}.onnx", IMAGES, sizes=sizes)
        weights = onnx.load(exported.path).graph.initializer
        stored[sizes] = sorted(list(one.dims) for one in weights if len(one.dims) == 4)
    assert stored["dynamic"] == stored["fixed"]
    assert len(stored["fixed"]) == 2
