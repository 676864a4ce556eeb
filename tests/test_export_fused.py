"""What a graph says so that engines fuse it: the maps stay, and a wrong spelling is refused."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from guided_backprop import DeconvNet, GuidedBackprop, ModelError, Saliency
from guided_backprop.backends.torch.export import decompose, gates, layer_words, pools, simplify, windows
from guided_backprop.export.engine import ENGINES, installed
from guided_backprop.export.plan import RESULTS

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


class Padded(nn.Module):
    """As networks that come from TensorFlow: padded in front of strided convolutions, capped, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 5, 2, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.deep = nn.Conv2d(8, 8, 3, groups=8)
            self.wide = nn.Conv2d(8, 6, 3, 2)
            self.last = nn.Conv2d(6, 4, 3)
            nn.init.uniform_(self.norm.running_var, 0.05, 0.2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.norm(self.stem(F.pad(x, (1, 2, 1, 2)))))
        x = x + F.hardtanh(self.deep(F.pad(x, (1, 1, 1, 1))), 0, 0.5)
        x = F.max_pool2d(x, 3, 2, 1)
        largest = F.max_pool2d(x, 2)[:, :4].mean((2, 3))
        x = self.wide(F.pad(x, (0, 1, 0, 1))).clamp(0, 1)
        # Padded for two, of which one is no convolution.
        around = F.pad(x, (1, 1, 1, 1))
        return (self.last(around) + around[:, :4, 1:-1, 1:-1]).amax((2, 3)) + largest


IMAGES = torch.tensor(np.random.default_rng(0).normal(size=(3, 3, 22, 25)) * 3, dtype=torch.float32)


def run(path, images, engine="onnxruntime"):
    return ENGINES[engine](path, RESULTS).run({"images": images.numpy(), "labels": np.full(len(images), 1)})


@pytest.mark.parametrize("method", [Saliency, DeconvNet, GuidedBackprop])
def test_pads_gates_and_strided_first_convolutions(method, tmp_path):
    model = Padded()
    exported = method(model).export(tmp_path / "map.onnx", IMAGES)
    assert exported.precise_difference < 1e-12
    explained = method(model).explain(IMAGES, 1)
    for engine in installed():
        np.testing.assert_allclose(run(exported.path, IMAGES, engine)["attribution"], explained, **TOLERANCE)
    nodes = onnx.load(exported.path).graph.node
    counts = Counter(node.op_type for node in nodes)
    made_by = {name: node for node in nodes for name in node.output}
    # No clamp's input is read by anything else: it is part of the convolution in front of it.
    for clamp in (node for node in nodes if node.op_type == "Clip"):
        if made_by[clamp.input[0]].op_type == "Conv":
            assert [node.op_type for node in nodes if clamp.input[0] in node.input] == ["Clip"]
    # The first convolution's way back is one of stride 1, and no other has less than a stride around it.
    assert counts["ConvTranspose"] == 1
    said = [one for node in nodes if node.op_type == "Conv" for one in node.attribute if one.name == "pads"]
    assert {(1, 1, 2, 2), (0, 0, 1, 1), (1, 1, 1, 1)} <= {tuple(one.ints) for one in said}


@pytest.mark.parametrize(("window", "stride", "padding"), [(7, 2, 3), (3, 2, 1), (4, 3, 0), (2, 3, 1), (1, 2, 0)])
def test_strided_convolutions_of_few_channels(window, stride, padding, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, window, stride, padding), nn.ReLU(), nn.Flatten()).eval()
    method, images = GuidedBackprop(model), IMAGES[..., :20, :23]
    exported = method.export(tmp_path / "map.onnx", images)
    assert exported.precise_difference < 1e-12
    np.testing.assert_allclose(run(exported.path, images)["attribution"], method.explain(images, 1), **TOLERANCE)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank, tmp_path):
    conv, pool = (nn.Conv1d, nn.Conv3d)[rank // 2], (nn.MaxPool1d, nn.MaxPool3d)[rank // 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(conv(2, 4, 5, 2, 2), nn.ReLU(), pool(2), conv(4, 3, 2), nn.ReLU(), nn.Flatten()).eval()
    images = torch.tensor(np.random.default_rng(1).normal(size=(2, 2, *[13] * rank)), dtype=torch.float32)
    method = GuidedBackprop(model)
    exported = method.export(tmp_path / "map.onnx", images)
    assert exported.precise_difference < 1e-12
    np.testing.assert_allclose(run(exported.path, images)["attribution"], method.explain(images, 1), **TOLERANCE)


def test_images_of_any_size(tmp_path):
    method = GuidedBackprop(Padded())
    exported = method.export(tmp_path / "map.onnx", IMAGES, sizes="dynamic")
    larger = torch.tensor(np.random.default_rng(2).normal(size=(1, 3, 41, 30)), dtype=torch.float32)
    for images in (IMAGES, larger):
        np.testing.assert_allclose(run(exported.path, images)["attribution"], method.explain(images, 1), **TOLERANCE)


def recorded(function, *arrays):
    return make_fx(function)(*arrays)


def values(count: int = 64) -> torch.Tensor:
    some = torch.tensor(np.random.default_rng(3).normal(size=(count, 2, 1, 1)) * 3, dtype=torch.float64)
    return torch.cat(
        [some, torch.tensor([0.0, -0.0, 3.0, 6.0, 1e-40, 3 - 1e-9]).double().reshape(-1, 1, 1, 1).expand(-1, 2, 1, 1)]
    )


def test_a_gate_reads_a_clamp_where_that_tells_it():
    def function(x):
        y, z = x.clamp(0, 3), torch.relu(x)
        return y, z, x > 0, x < 3, x.clone() < 3, x < 6, x > 1, x >= 3

    module = recorded(function, values())
    wanted = module(values())
    gates.open_by_results(module)
    module.recompile()
    for one, other in zip(module(values()), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    read = [
        str(node.args[0].target)
        for node in module.graph.nodes
        if str(node.target) in ("aten.gt.Scalar", "aten.lt.Scalar")
    ]
    # Those that ask for another number read what they did.
    assert [name.startswith(("aten.clamp", "aten.relu")) for name in read] == [True, True, True, False, False]


def test_a_clamp_is_moved_in_front_of_a_mask_alone():
    weight = torch.tensor(np.random.default_rng(4).normal(size=(2, 2, 1, 1)))

    def function(x):
        g = torch.conv2d(x, weight)
        return (g * (x > 0).to(g.dtype)).clamp(min=0), (torch.conv2d(x, weight * 2) * x).clamp(min=0)

    module = recorded(function, values())
    wanted = module(values())
    gates.clamp_first(module)
    module.recompile()
    for one, other in zip(module(values()), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    clamped = [node.args[0].target for node in module.graph.nodes if str(node.target) == "aten.clamp.default"]
    assert sorted(map(str, clamped)) == ["aten.convolution.default", "aten.mul.Tensor"]


def halved(module):
    for node in module.graph.nodes:
        if node.target == gates.aten.lt.Scalar:
            node.args = (node.args[0], node.args[1] / 2)


FAULTS = {
    "a gate asks for another number": (simplify, "open_by_results", halved),
    "a pad too few": (layer_words, "_cut_of", lambda crop, count: np.zeros(count, np.int64)),
    "planes the other way round": (
        decompose,
        "interleaved",
        lambda planes, axes: pools.interleaved(planes.flip(2), axes),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_spelling_is_refused(fault, tmp_path, monkeypatch):
    where, name, wrong = FAULTS[fault]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(ModelError, match="difference|received"):
        GuidedBackprop(Padded()).export(tmp_path / "map.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


def derived(x, window):
    """What becomes of a gradient, by torch and by a graph's words; the gradient's values are all different."""
    y = F.max_pool2d(x, window)
    g = torch.arange(1.0, y.numel() + 1, dtype=x.dtype).reshape(y.shape)
    found, places = F.max_pool2d(x.requires_grad_(), window, return_indices=True)
    (wanted,) = torch.autograd.grad(found, x, g)
    window = [window, window] if isinstance(window, int) else list(window)
    told = windows._max_pool_backward(2, g, x.detach(), window, window, [0, 0], [1, 1], False, places)
    return told, wanted


# Few numbers, so that most windows have their maximum at several places.
TIED = torch.tensor(np.random.default_rng(1).integers(-1, 2, size=(2, 3, 8, 16)), dtype=torch.float64)


@pytest.mark.parametrize("window", [2, (1, 2), (4, 8), 3, (2, 3), 1])
def test_the_first_maximum_of_a_window_wins(window, monkeypatch):
    for x in (TIED, TIED.clamp(min=0), torch.zeros_like(TIED)):
        told, wanted = derived(x.clone(), window)
        torch.testing.assert_close(told, wanted, rtol=0, atol=0)
    told = windows._to_first

    def to_last(*given):
        flipped = [one.flip(2, 3) for one in given[:3]]
        return told(*flipped, given[3]).flip(2, 3)

    monkeypatch.setattr(windows, "_to_first", to_last)
    is_at_once = window in (2, (1, 2), (4, 8))
    assert torch.equal(*derived(TIED.clone(), window)) != is_at_once


# Window, stride, padding, dilation, and whether windows may end outside.
OVERLAPPING = [
    (2, [3, 3], [2, 2], [1, 1], [1, 1], False),
    (2, [4, 2], [1, 3], [2, 0], [1, 2], True),
    (2, [1, 5], [3, 1], [0, 2], [1, 1], False),
    (3, [2, 3, 3], [1, 2, 3], [1, 0, 1], [2, 1, 1], True),
]


@pytest.mark.parametrize("how", OVERLAPPING)
def test_the_first_maximum_wins_where_windows_overlap(how, monkeypatch):
    axes, window, stride, padding, dilation, ceil_mode = how
    pool = (F.max_pool2d, F.max_pool3d)[axes - 2]
    for sizes in ((2, 3, *(7, 8, 5)[:axes]), (3, *(8, 6, 6)[:axes])):
        x = torch.tensor(np.random.default_rng(2).integers(-1, 2, size=sizes), dtype=torch.float64, requires_grad=True)
        y, places = pool(x, window, stride, padding, dilation, ceil_mode, return_indices=True)
        g = torch.arange(1.0, y.numel() + 1, dtype=x.dtype).reshape(y.shape)
        (wanted,) = torch.autograd.grad(y, x, g)
        given = axes, g, x.detach(), window, stride, padding, dilation, ceil_mode, places
        torch.testing.assert_close(windows._max_pool_backward(*given), wanted, rtol=0, atol=0)
        with monkeypatch.context() as patch:
            patch.setattr(windows, "gated", lambda g, is_open: g)
            assert not torch.equal(windows._max_pool_backward(*given), wanted)
