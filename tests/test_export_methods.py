"""What else is exported: maps at layers, of noisy copies, of photos; programs of PyTorch; weights in half precision."""

import json
import subprocess
import sys
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    InputXGradient,
    IntegratedGradients,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends.torch.export import graph
from guided_backprop.backends.torch.export.maps import put_together
from guided_backprop.backends.torch.export.trace import Recorder
from guided_backprop.export.engine import OnnxRuntime
from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import Noise
from guided_backprop.methods.export import export_together
from guided_backprop.methods.smooth_grad import Form
from guided_backprop.models import ResizeCrop

RECIPE = ResizeCrop((13, 11), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 13, 11, 3), np.uint8)
IMAGES = torch.from_numpy(Photos.of(RECIPE).images(PIXELS, np.float32))
TOLERANCE = 1e-5


def built() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5), nn.Softmax(1)).eval()


MODEL = built()
METHODS = {
    "a layer's positions": GradCAM(MODEL, "4"),
    "a layer itself, resized to the nearest": GradCAM(MODEL, MODEL[2], interpolation="nearest"),
    "a product": GuidedGradCAM(MODEL, "4", reducer="sum"),
    "the variance of products": SmoothGrad(GuidedGradCAM(MODEL, "2", reducer="absmax"), samples=2, form="variance"),
    "times the image": InputXGradient(Saliency(MODEL)),
}


def run(exported, images, labels, **more) -> dict[str, np.ndarray]:
    given = dict(zip(exported.inputs, [images, labels], strict=False)) | more
    return OnnxRuntime(exported.path, exported.outputs).run(given)


def differ(one, other) -> float:
    one, other = np.asarray(one), np.asarray(other)
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("way", METHODS)
def test_maps_are_those_of_the_method(way, tmp_path):
    """For other images, and another number of them, than were given."""
    method = METHODS[way]
    exported = method.export(tmp_path / "map.onnx", IMAGES[:2])
    assert exported.precise_difference < 1e-12
    noise = method.plan.noise
    more = {} if noise is None else {"noise": np.float32(noise.drawn(Inputs.of(IMAGES))[0])}
    results = run(exported, IMAGES.numpy(), np.array([4, -1, 0, 1, 2]), **more)
    top = method.explain(IMAGES)
    labels = [4, int(top.labels[1]), 0, 1, 2]
    wanted = method.explain(IMAGES, labels)
    assert differ(results["attribution"], wanted.attribution) < TOLERANCE
    assert differ(results["scores"], wanted.scores) < TOLERANCE
    assert exported.coverage == wanted.coverage
    # Planted faults: other classes, and another method's map.
    assert differ(results["attribution"], top.attribution) > 1e-2
    others = [other for other in METHODS.values() if other is not method]
    assert all(
        differ(results["attribution"], found.attribution) > 1e-2
        for found in (other.explain(IMAGES, labels) for other in others)
        if found.attribution.shape == wanted.attribution.shape
    )


def test_planted_faults_of_maps_are_seen(tmp_path, monkeypatch):
    for name, method in {"cams": GradCAM(MODEL, "4"), "put_together": SmoothGrad(Saliency(MODEL), samples=2)}.items():
        right = getattr(graph, name)
        with monkeypatch.context() as patch:
            patch.setattr(graph, name, lambda *given, right=right: [one * 1.0001 for one in right(*given)])
            with pytest.raises(ModelError, match="in double precision"):
                method.export(tmp_path / "map.onnx", IMAGES[:2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", get_args(Form))
def test_maps_of_copies_are_put_together_as_the_method_does(form):
    maps = RNG.normal(size=(2, 5, 3, 4))
    (found,) = put_together(Noise(5, 0.1, form, list), [torch.tensor(maps.reshape(10, 3, 4))])
    wanted = {
        "mean": maps.mean(1),
        "absolute": np.abs(maps).mean(1),
        "squared": (maps**2).mean(1),
        "variance": maps.var(1),
    }
    assert_allclose(found, wanted.pop(form), rtol=1e-12, atol=1e-12)
    assert all(differ(found, other) > 1e-2 for other in wanted.values())


def test_what_can_be_no_graph_is_refused(tmp_path):
    with pytest.raises(OptionError, match="a graph is of gradients at the images"):
        IntegratedGradients(Saliency(MODEL)).export(tmp_path / "map.onnx", IMAGES)
    with pytest.raises(OptionError, match="takes photos is of gradients or class activation maps"):
        SmoothGrad(Saliency(MODEL)).export(tmp_path / "map.onnx", IMAGES, photos=RECIPE)
    assert not list(tmp_path.iterdir())


def test_noise_that_is_no_number_is_seen(tmp_path):
    exported = SmoothGrad(Saliency(MODEL), samples=2).export(tmp_path / "map.onnx", IMAGES[:2])
    noise = np.zeros((2, 2, 3, 13, 11), np.float32)
    noise[1, 0, 0, 0, 0] = np.nan
    results = run(exported, IMAGES[:2].numpy(), np.array([0, 1]), noise=noise)
    assert results["is_finite"].tolist() == [True, False]
    # Without noise it is the map itself.
    wanted = Saliency(MODEL).explain(IMAGES[:1], 0).attribution[0]
    assert differ(results["attribution"][0], wanted) < TOLERANCE


def test_a_class_activation_map_is_compiled():
    method = GuidedGradCAM(MODEL, "4", reducer="sum")
    compiled = method.compile(IMAGES, engine="onnxruntime")
    found, wanted = compiled.explain(IMAGES, "top2"), method.explain(IMAGES, "top2")
    assert found.engine.startswith("onnxruntime")
    assert differ(found.attribution, wanted.attribution) < TOLERANCE
    assert differ(found.attribution, GuidedBackprop(MODEL, reducer="sum").explain(IMAGES, "top2").attribution) > 1e-2
    assert SmoothGrad(compiled, samples=2).explain(IMAGES).engine.startswith("onnxruntime")


@pytest.mark.parametrize("method", [GuidedBackprop(MODEL), GuidedGradCAM(MODEL, "4", reducer="absmax")])
def test_photos_are_scaled_in_the_graph(method, tmp_path):
    exported = method.export(tmp_path / "map.onnx", IMAGES[:2], photos=RECIPE)
    assert exported.inputs[0] == "photos"
    results = run(exported, PIXELS, np.arange(5))
    # By the chain rule, worked out by PyTorch: of a model that scales pixels itself.
    scale = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        scale.weight[:, :, 0, 0] = torch.diag(1 / 255 / torch.tensor(RECIPE.std))
        scale.bias[:] = -torch.tensor(RECIPE.mean) / torch.tensor(RECIPE.std)
    whole = nn.Sequential(scale, *MODEL).eval()
    photos = torch.tensor(PIXELS).float().permute(0, 3, 1, 2)
    wanted = GuidedBackprop(whole).explain(photos, np.arange(5)).attribution.permute(0, 2, 3, 1)
    if isinstance(method, GuidedGradCAM):
        cam = GradCAM(MODEL, "4").explain(IMAGES, np.arange(5)).attribution
        wanted = (wanted * cam[..., None]).abs().amax(-1)
    assert differ(results["attribution"], wanted) < TOLERANCE
    assert differ(results["outputs"], MODEL(IMAGES).detach()) < TOLERANCE
    said = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert said["photos"] == str(RECIPE)


def test_photos_that_are_none_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "map.onnx"
    with pytest.raises(ImageError, match="images must be photos as the recipe scales them"):
        GuidedBackprop(MODEL).export(path, IMAGES, photos=ResizeCrop((13, 11), mean=(0.5,), std=(0.21,)))
    with pytest.raises(OptionError, match="photos must be a recipe that scales colours"):
        GuidedBackprop(MODEL).export(path, IMAGES, photos=ResizeCrop((13, 11), grey=True))
    with pytest.raises(ImageError, match="images must be of three channels"):
        GuidedBackprop(MODEL[3:]).export(path, torch.rand(2, 6, 7, 6), photos=RECIPE)
    # A planted fault: pixels are scaled otherwise than the recipe says.
    monkeypatch.setattr(graph, "scaled", lambda pixels, photos, dtype: IMAGES[: len(pixels)].to(dtype) * 0 + 0.1)
    with pytest.raises(ModelError):
        GuidedBackprop(MODEL).export(path, IMAGES, photos=RECIPE)
    assert not list(tmp_path.iterdir())


def test_weights_in_half_precision(tmp_path):
    method = GuidedBackprop(MODEL)
    half = method.export(tmp_path / "half.onnx", IMAGES[:2], storage="float16")
    assert half.correlation > 0.999
    assert 1e-6 < half.stored_difference < 0.05
    weights = {tuple(entry.dims): entry.data_type for entry in onnx.load(half.path).graph.initializer}
    assert weights[8, 6, 3, 3] == onnx.TensorProto.FLOAT16
    assert weights[8,] == onnx.TensorProto.FLOAT
    found = run(half, IMAGES.numpy(), np.arange(5))["attribution"]
    wanted = method.explain(IMAGES, np.arange(5)).attribution
    assert 1e-6 < differ(found, wanted) < 0.05
    said = {entry.key: entry.value for entry in onnx.load(half.path).metadata_props}
    assert float(said["correlation"]) == half.correlation
    assert said["storage"] == "float16"


def test_weights_beyond_half_precision_are_refused(tmp_path):
    model = built()
    with torch.no_grad():
        model[3].weight *= 1e6
        model[7].weight /= 1e6
    with pytest.raises(ModelError, match="maps must be alike when weights are stored in half precision"):
        GuidedBackprop(model).export(tmp_path / "map.onnx", IMAGES[:2], storage="float16")
    for path in ("map.pt2", "map.onnx"):
        with pytest.raises(OptionError, match="storage must be"):
            GuidedBackprop(model).export(tmp_path / path, IMAGES, storage="float16" if path == "map.pt2" else "int8")
    assert not list(tmp_path.iterdir())


def test_a_program_of_pytorch_runs_where_the_library_is_not(tmp_path):
    method = GuidedBackprop(MODEL)
    exported = method.export(tmp_path / "map.pt2", IMAGES[:2])
    assert exported.engine.startswith("torch ")
    code = """
import sys, numpy, torch
told = {"guided_backprop.json": ""}
program = torch.export.load(sys.argv[1], extra_files=told).module()
given = numpy.load(sys.argv[2])
outputs, maps, scores, is_finite = program(*[torch.from_numpy(given[name]) for name in ("images", "labels")])
assert is_finite.all()
assert not any(name.startswith("guided_backprop") for name in sys.modules)
numpy.savez(sys.argv[3], maps=maps.numpy(), said=told["guided_backprop.json"])
"""
    np.savez(tmp_path / "given.npz", images=IMAGES.numpy(), labels=np.arange(5))
    where = [tmp_path / "map.pt2", tmp_path / "given.npz", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", code, *where], check=True)
    found = np.load(tmp_path / "found.npz")
    assert differ(found["maps"], method.explain(IMAGES, np.arange(5)).attribution) < TOLERANCE
    assert differ(found["maps"], Saliency(MODEL).explain(IMAGES, np.arange(5)).attribution) > 1e-2
    assert json.loads(str(found["said"]))["method"] == "GuidedBackprop"


def test_rules_are_recorded_from_one_forward_pass(tmp_path, monkeypatch):
    passes = []
    once = Recorder.passed
    monkeypatch.setattr(Recorder, "passed", lambda self, *given: passes.append(1) or once(self, *given))
    methods = {tmp_path / f"{kind.__name__}.onnx": kind(MODEL) for kind in (GuidedBackprop, Saliency, DeconvNet)}
    together = export_together(methods, IMAGES[:2], compare)
    assert len(passes) == 1
    for exported, method in zip(together, methods.values(), strict=True):
        wanted = method.explain(IMAGES, np.arange(5))
        assert exported.coverage == wanted.coverage
        assert exported.precise_difference < 1e-12
        assert differ(run(exported, IMAGES.numpy(), np.arange(5))["attribution"], wanted.attribution) < TOLERANCE
    # A planted fault: one is given another's results.
    right = graph.part_of
    monkeypatch.setattr(graph, "part_of", lambda module, part: right(module, slice(4, 8)))
    with pytest.raises(ModelError, match="in onnxruntime"):
        export_together(methods, IMAGES[:2], compare)
