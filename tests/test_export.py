"""A method as a file: it gives the oracle's maps, and where it would not there is none."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, ImageError, ModelError, OpaqueRegionError, OptionError
from guided_backprop.arrays import Inputs
from guided_backprop.backends.torch.export import as_it_runs, graph, twins, words
from guided_backprop.export.agreement import difference, images_of
from guided_backprop.export.engine import OnnxRuntime
from guided_backprop.export.plan import RESULTS
from networks import IMAGES, LABELS
from networks_torch import Net, oracle
from spellings import column
from spellings.arithmetic import ARITHMETIC
from spellings.relus import RELUS

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


class Sum(nn.Module):
    """The sum of several networks: its map is the sum of theirs."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).eval()
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(network(x) for network in self.networks)


class Own(nn.Module):
    """A small network with a function of the user's behind its first layer."""

    def __init__(self, function) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.function = function
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self, self.first(x)))


class Strided(nn.Sequential):
    """Convolutions of all kinds: strided, with batch-norm, turned round, in groups; pools of both kinds."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU6(inplace=True),
                nn.MaxPool2d(3, 2, 1, ceil_mode=True),
                nn.Conv2d(8, 8, 3, padding=1, groups=2),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 1, 2),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.ConvTranspose2d(8, 6, 3, 2, 1),
                nn.ReLU(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(150, 4),
                nn.Softmax(1),
            )
            nn.init.normal_(self[1].running_mean)
            nn.init.uniform_(self[1].running_var, 0.5, 2)
        self.eval()


def rows(count: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(count).normal(size=(count, *shape)), dtype=torch.float32)


def run(path, images, labels) -> dict[str, np.ndarray]:
    given = {"images": np.asarray(images, np.float32), "labels": np.asarray(labels)}
    return OnnxRuntime(path, RESULTS).run(given)


def test_a_file_is_reloaded_where_neither_torch_nor_the_library_is(tmp_path):
    exported = GuidedBackprop(Net(nn.ReLU())).export(tmp_path / "map.onnx", torch.tensor(IMAGES))
    assert exported.difference < 1e-5
    assert exported.precise_difference < 1e-12
    assert list(tmp_path.iterdir()) == [exported.path]
    code = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
given = numpy.load(sys.argv[2])
for copies in given["copies"]:
    images, labels = (numpy.concatenate([given[name]] * copies) for name in ("images", "labels"))
    outputs, maps, scores, is_finite = session.run(None, {"images": images, "labels": labels})
    assert is_finite.all()
    numpy.testing.assert_allclose(maps, numpy.concatenate([given["oracle"]] * copies), rtol=1e-4, atol=1e-6)
    assert not numpy.allclose(maps[:1], given["oracle"][1:2], rtol=1e-4, atol=1e-6)
assert not {"torch", "guided_backprop"} & set(sys.modules)
"""
    given = {"images": IMAGES.astype(np.float32), "labels": np.array(LABELS), "oracle": oracle(), "copies": [1, 5]}
    np.savez(tmp_path / "given.npz", **given)
    subprocess.run([sys.executable, "-c", code, exported.path, tmp_path / "given.npz"], check=True)


# One of each way in which a ReLU is known: by its name, by what it saved, beside others, by its values.
KNOWN = ("layer in place", "maximum(x, zeros)", "where(x > 0, x, 0)")


def test_spellings_are_exported_together(tmp_path):
    ways = column(RELUS | ARITHMETIC, "torch", "guided") | column(RELUS | ARITHMETIC, "torch", "judged")
    some = {name: ways[name] for name in KNOWN}
    exported = GuidedBackprop(Sum(*map(Net, some.values()))).export(tmp_path / "map.onnx", torch.tensor(IMAGES))
    assert exported.precise_difference < 1e-12
    results = run(exported.path, IMAGES, LABELS)
    np.testing.assert_allclose(results["attribution"], oracle() * len(some), **TOLERANCE)
    assert not np.allclose(results["attribution"], oracle("saliency") * len(some), **TOLERANCE)


def test_what_explain_refuses_is_refused(tmp_path):
    spelling = next(iter(column(RELUS | ARITHMETIC, "torch", "refused").values()))
    with pytest.raises(OpaqueRegionError):
        GuidedBackprop(Net(spelling)).export(tmp_path / "map.onnx", torch.tensor(IMAGES))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [DeconvNet, GuidedBackprop])
def test_convolutions_and_pools_of_all_kinds(method, tmp_path):
    model, images = Strided(), rows(3, 3, 19, 19)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    exported = method(model).export(tmp_path / "map.onnx", images)
    explained = method(model).explain(images)
    results = run(exported.path, images, np.full(3, -1))
    assert exported.coverage == explained.coverage
    assert difference([results["attribution"], results["scores"]], [explained.attribution, explained.scores]) < 1e-4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    stored = onnx.load(exported.path)
    said = {entry.key: entry.value for entry in stored.metadata_props}
    assert said["method"] == method.__name__
    assert said["head"] == "softmax"
    assert json.loads(said["coverage"]) == [list(one) for one in explained.coverage]
    # OpenVINO computes garbage where a plain and a transposed convolution share square weights; others are there once.
    weights = {kind: {node.input[1] for node in stored.graph.node if node.op_type == kind} for kind in KINDS}
    shapes = {weight.name: list(weight.dims[:2]) for weight in stored.graph.initializer}
    shared = [shapes[name] for name in weights["Conv"] & weights["ConvTranspose"]]
    assert [8, 6] in shared
    assert all(out != into for out, into in shared)
    assert "BatchNormalization" not in {node.op_type for node in stored.graph.node}


KINDS = ("Conv", "ConvTranspose")


def test_labels_in_a_file(tmp_path):
    model, images = Own(lambda self, x: torch.relu(x)), rows(3, 6)
    method = GuidedBackprop(model, batch_size=2)
    results = run(method.export(tmp_path / "map.onnx", images).path, images, [-1, 2, 3])
    explained = method.explain(images[:2], [int(model(images)[0].argmax()), 2])
    np.testing.assert_allclose(results["attribution"][:2], explained.attribution, **TOLERANCE)
    # 3 is no class: that is said, and of the other images nothing else.
    assert results["is_finite"].tolist() == [True, True, False]
    broken = images.clone()
    broken[1, 0] = torch.nan
    assert run(tmp_path / "map.onnx", broken, [0, 0, 0])["is_finite"].tolist() == [True, False, True]
    weights = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    exported = method.export(tmp_path / "weights.onnx", images, labels="weights")
    results = run(exported.path, images, weights)
    np.testing.assert_allclose(results["attribution"], method.explain(images, weights).attribution, **TOLERANCE)


def indexed(self, x):
    x = torch.relu(x + 3)[:, :, None]
    parts = [x[:, 2:, 0], x[..., 0][:, :2], x[:, 4][:, None, 0] * x[:, :, :, None][:, :5, 0, 0], x[:, :][:, -4::3, -1]]
    return torch.cat(parts, 1)[:, 5:10] * x[:][:, 0]


def test_what_takes_all_of_an_axis_is_no_operation(tmp_path, monkeypatch):
    method, images = GuidedBackprop(Own(indexed)), rows(3, 6)
    exported = method.export(tmp_path / "map.onnx", images)
    assert exported.precise_difference < 1e-12
    results = run(exported.path, images, [0, 1, 2])
    np.testing.assert_allclose(results["attribution"], method.explain(images, [0, 1, 2]).attribution, **TOLERANCE)
    assert not np.allclose(results["attribution"], method.explain(images, [1, 2, 0]).attribution, **TOLERANCE)
    # A planted fault: an operation that is not there when the model is run.
    monkeypatch.setattr(as_it_runs, "_is_all", lambda part, size: False)
    with pytest.raises(ModelError, match="takes another way"):
        method.export(tmp_path / "other.onnx", images)


def test_a_shape_that_leaves_a_size_open_beside_the_number_of_images(tmp_path):
    def open_sizes(self, x):
        x = torch.relu(x).view(x.shape[0], 5, -1) * torch.ones(2)
        return x.mean(2).view(x.size(0), -1)

    images = rows(3, 6)
    exported = GuidedBackprop(Own(open_sizes)).export(tmp_path / "map.onnx", images)
    explained = GuidedBackprop(Own(open_sizes)).explain(images)
    results = run(exported.path, images, np.full(3, -1))
    np.testing.assert_allclose(results["attribution"], explained.attribution, **TOLERANCE)


def counting(self, x):
    self.count.add_(1)
    return torch.relu(x) * self.count / self.count


REFUSED = {
    "it does something else for five images": (lambda self, x: F.relu(x) * (2 if len(x) == 5 else 1), "asks whether"),
    "from thirty on": (lambda self, x: F.relu(x) * (2 if x.shape[0] > 29 else 1), "difference of .* for 30 images"),
    "from a hundred on": (lambda self, x: F.relu(x) * (2 if x.shape[0] > 99 else 1), "more than 64 images"),
    "for one image": (lambda self, x: F.relu(x) * (2 if x.shape[0] == 1 else 1), "difference of .* for 1 images"),
    "it counts": (counting, "must not change its buffers"),
    "it has no word": (lambda self, x: torch.lgamma(F.relu(x) + 1), "have an ONNX row; received .*gamma"),
    "it adds what its precision has": (lambda self, x: F.rms_norm(F.relu(x) * 1e-4, (5,)), "add, .* 1.19e-07, and 2.2"),
    "it casts": (lambda self, x: (F.relu(x).bfloat16() * 1.1).to(x.dtype), "copy, whose result is of torch.bfloat16"),
    "it asks for values": (lambda self, x: F.relu(x) * (2 if bool((x > -99).all()) else 1), "can be traced"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_file_would_do_otherwise_is_refused(why, tmp_path):
    function, message = REFUSED[why]
    model, images = Own(function), rows(4, 6)
    GuidedBackprop(model).explain(images)
    before = int(model.count)
    with pytest.raises(ModelError, match=message):
        GuidedBackprop(model).export(tmp_path / "map.onnx", images)
    assert not list(tmp_path.iterdir())
    assert model.count.dtype == torch.float32
    assert why == "it counts" or int(model.count) == before


def test_a_random_model_is_refused_even_if_it_is_vouched_for(tmp_path):
    method = GuidedBackprop(Own(lambda self, x: F.dropout(torch.relu(x))), vouch={"random": "plain"})
    with pytest.raises(ModelError, match="draws random"):
        method.export(tmp_path / "map.onnx", rows(2, 6))


def test_planted_faults_of_graph_and_file_are_seen(tmp_path, monkeypatch):
    method, images = GuidedBackprop(Own(lambda self, x: torch.relu(x))), rows(2, 6)
    with monkeypatch.context() as patch:
        patch.setattr(twins, "_left", lambda rule, g, derived, x, y: derived)
        with pytest.raises(ModelError, match="in double precision"):
            method.export(tmp_path / "map.onnx", images)
    with monkeypatch.context() as patch:
        patch.setitem(words.WORDS, "where", lambda to, node, condition, x, y: to.name(x))
        with pytest.raises(ModelError, match="in onnxruntime"):
            method.export(tmp_path / "map.onnx", images)
    assert not list(tmp_path.iterdir())


def test_a_tie_is_no_fault_of_a_file(tmp_path, monkeypatch):
    """What rounding does to the library's own map is excused, and nothing else: here all else would be refused."""
    monkeypatch.setattr("guided_backprop.methods.trial.SINGLE", -1.0)
    method, images = GuidedBackprop(Own(lambda self, x: torch.relu(x))), rows(2, 6)
    assert method.export(tmp_path / "map.onnx", images).difference < 3e-6
    monkeypatch.setitem(words.WORDS, "where", lambda to, node, condition, x, y: to.name(x))
    with pytest.raises(ModelError, match="in onnxruntime"):
        method.export(tmp_path / "other.onnx", images)


def test_threads_export_at_once(tmp_path):
    method, images = GuidedBackprop(Own(lambda self, x: torch.relu(x))), rows(2, 6)
    with ThreadPoolExecutor(2) as pool:
        files = [tmp_path / "0.onnx", tmp_path / "1.onnx"]
        exported = list(pool.map(lambda path: method.export(path, images), files))
    assert max(one.difference for one in exported) < 1e-5


def test_a_file_that_was_there_stays_where_there_is_none_to_replace_it(tmp_path):
    path = tmp_path / "map.onnx"
    path.write_text("before")
    with pytest.raises(ModelError):
        GuidedBackprop(Own(counting)).export(path, rows(2, 6))
    assert path.read_text() == "before"
    with pytest.raises(OptionError, match=r"a file that ends in \.onnx"):
        GuidedBackprop(Own(counting)).export(tmp_path / "map.tflite", rows(2, 6))


def test_images_to_try_differ_from_those_that_were_given():
    given = rows(2, 3, 4)
    images = images_of(Inputs.of(given), 5).arrays[0]
    assert images.shape == (5, 3, 4)
    np.testing.assert_array_equal(images[:2], given)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_images_that_lie_elsewhere_are_refused():
    """Only a GPU has a model run there; that they are refused is told from a device that computes nothing."""
    graph.require_processor(Inputs.of(torch.zeros(2, 3)))
    with pytest.raises(ImageError, match=r"on the processor, as the model; received some on meta\. Pass images\.cpu"):
        graph.require_processor(Inputs.of(torch.zeros(2, 3, device="meta")))
