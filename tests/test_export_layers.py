"""PyTorch's own layers, each in a file: its map is that of the method, or the layer is refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import GuidedBackprop, ModelError
from guided_backprop.backends.torch.export import attention, borders, decompose, values, windows
from guided_backprop.export.engine import OnnxRuntime


class Own(nn.Module):
    """A function of what it is given, and of layers."""

    def __init__(self, function, *layers) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class Sum(nn.Module):
    """The sum of what several layers make of one value."""

    def __init__(self, layers) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.layers = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList(layers)
            self.last = nn.Linear(30, 5)
        self.eval()

    def forward(self, x):
        x = F.relu(self.first(x))
        # Of whatever shape a layer's result is, as many numbers, no two in one way.
        flat = [layer(x).flatten(1).flip(1)[:, :48].tile(1, 30)[:, :30] for layer in self.layers]
        return self.last(F.relu(sum(flat)))


PICTURES = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
GROUPS = {
    "borders": [nn.ReflectionPad2d((1, 2, 0, 3)), nn.ReplicationPad2d((2, 0, 1, 1))],
    "pools": [
        nn.AdaptiveMaxPool2d((3, 2)),
        nn.AdaptiveMaxPool2d(1),
        nn.LPPool2d(2, 2),
        Own(lambda x: F.interpolate(x, (3, 2), mode="bicubic", antialias=True)),
    ],
    "windows": [
        nn.Sequential(nn.Unfold(2, stride=(2, 1), padding=1), nn.Fold((4, 5), 2, stride=(2, 1), padding=1)),
        Own(lambda x: x.unfold(3, 3, 2)),
    ],
    "indices": [
        Own(lambda x: x[:, [2, 0, 1]]),
        Own(lambda x: x[:, torch.tensor([0, 2, -1]), torch.tensor([[1], [1]])]),
        Own(lambda x: x[:, [3, 1], :, [0, 0]].transpose(0, 1)),
        Own(lambda x: x.diagonal(1, 2, 3)),
        Own(lambda x: torch.zeros_like(x).scatter_add(1, torch.tensor([1, 0, 1, 0])[:, None, None].expand_as(x), x)),
    ],
    "value by value": [
        nn.Hardshrink(0.2),
        nn.Softshrink(0.2),
        nn.Hardsigmoid(),
        nn.Softsign(),
        Own(lambda x: x.sqrt().clamp(max=1)),
        Own(lambda x: x * torch.linspace(-1, 1, 5)),
        Own(lambda x: (3 * x).fmod(0.7) + (2 * x - 1).remainder(0.3) + (4 * x).frac()),
        Own(lambda x: torch.hypot(x, x.flip(1) + 0.1) + torch.atan2(x - 0.3, x.flip(1) - 0.2)),
        Own(lambda x: x.erfc() + x.exp2() + x.ldexp(torch.tensor(2))),
    ],
    "products": [
        Own(lambda x, layer: layer(x, x.flip(1)), nn.Bilinear(5, 5, 3)),
        Own(lambda x: torch.kron(x, torch.tensor([[1.0, -2.0]], dtype=x.dtype))),
        Own(lambda x: torch.kron(x, x.new_tensor([[[[1.0]], [[3.0]]]]))),
        Own(lambda x: torch.take_along_dim(x, torch.tensor([2, 0])[None, :, None, None], 1)),
        Own(lambda x: torch.take_along_dim(x, x.topk(2, 1).indices, 1)),
        nn.RMSNorm(5),
    ],
    "attention": [
        Own(
            lambda x, layer: layer(*[x.flatten(2)] * 3, need_weights=False)[0],
            nn.MultiheadAttention(20, 2, batch_first=True),
        ),
        Own(lambda x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, 1:], is_causal=True)),
    ],
}


@pytest.mark.parametrize("group", GROUPS)
def test_maps_of_layers_are_those_of_the_method(group, tmp_path):
    method = GuidedBackprop(Sum(GROUPS[group]))
    # What was explained before is exported as well: later calls look at less.
    method.explain(PICTURES)
    exported = method.export(tmp_path / "map.onnx", PICTURES)
    assert exported.precise_difference is None or exported.precise_difference < 1e-12
    given = {"images": PICTURES.numpy(), "labels": np.array([4, 1])}
    found = OnnxRuntime(exported.path, exported.outputs).run(given)
    wanted = method.explain(PICTURES, [4, 1]).attribution
    np.testing.assert_allclose(found["attribution"], wanted, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found["attribution"], method.explain(PICTURES, [1, 4]).attribution, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", [(1, torch.nn.ReflectionPad1d(2)), (3, torch.nn.ReplicationPad3d((1, 0, 2, 1, 0, 1)))])
def test_borders_of_series_and_volumes(form):
    """The derivative is PyTorch's own, which is another computation."""
    axes, layer = form
    x = torch.rand(2, 3, *(5, 4, 6)[:axes], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.rand_like(y)
    (wanted,) = torch.autograd.grad(y, x, g)
    name = {1: "reflection_pad1d", 3: "replication_pad3d"}[axes]
    rows, pads = borders.BORDERS, list(layer.padding)
    torch.testing.assert_close(rows[getattr(torch.ops.aten, name).default](x, pads), y)
    found = rows[getattr(torch.ops.aten, f"{name}_backward").default](g, x, pads)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, g[(..., *[slice(size) for size in x.shape[2:]])])


def _without_front(x, axis, count):
    return 0 * x.expand([count if axis == other else size for other, size in enumerate(x.shape)])


def _twice(x, axes):
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return 2 * x


# By group: which layer of it, what is changed, and to what.
FAULTS = {
    "borders": (1, borders, "_times", _without_front),
    "pools": (1, windows, "gated", lambda g, is_open: g * torch.ones_like(is_open)),
    "windows": (0, windows, "both", lambda before, after: [0, 0, *after, *before][-4:]),
    "value by value": (2, decompose, "_SIXTH", 1 / 6),
    "products": (0, values, "_spread", _twice),
    "attention": (1, attention, "_scores", lambda query, key, *rest: (query * rest[-1]) @ key.transpose(-2, -1)),
}


@pytest.mark.parametrize("group", FAULTS)
def test_planted_faults_are_seen(group, tmp_path, monkeypatch):
    layer, *fault = FAULTS[group]
    monkeypatch.setattr(*fault)
    with pytest.raises(ModelError):
        GuidedBackprop(Sum([GROUPS[group][layer]])).export(tmp_path / "map.onnx", PICTURES)
    assert not list(tmp_path.iterdir())


def test_what_arrives_infinite_at_a_closed_relu_is_chosen_away(tmp_path, monkeypatch):
    """The root of what a ReLU shut has an infinite derivative: PyTorch's gate lets nothing of it pass."""
    monkeypatch.setattr(decompose, "_STEEP", frozenset())
    with pytest.raises(ModelError, match="difference of"):
        GuidedBackprop(Sum([Own(torch.sqrt)])).export(tmp_path / "map.onnx", PICTURES)


def test_what_has_no_word_is_refused_by_name(tmp_path):
    pools = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    layer = Own(lambda x, pool, back: back(*pool(x[..., :4])), *pools)
    with pytest.raises(ModelError, match=r"max_pool2d_with_indices\.default with the places of its largest values"):
        GuidedBackprop(Sum([layer])).export(tmp_path / "map.onnx", PICTURES)
    norm = nn.CrossMapLRN2d(3)
    with pytest.raises(ModelError, match=r"received CrossMapLRN2d, which asks .* Take torch.nn.LocalResponseNorm"):
        GuidedBackprop(Sum([norm])).export(tmp_path / "map.onnx", PICTURES)
    layer = Own(lambda x, recurrent: recurrent(x.flatten(2))[0], nn.LSTM(20, 3, batch_first=True))
    with pytest.raises(ModelError, match="no recurrent layer to be exported; received lstm"):
        GuidedBackprop(Sum([layer])).export(tmp_path / "map.onnx", PICTURES)
