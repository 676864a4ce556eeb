"""Each way to write a ReLU, exported under each rule, gives the oracle's maps, or is refused by name.

One graph holds all ways, each in a network of two layers: the sum of the networks has the sum of their maps.
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, ModelError, Saliency, compare
from guided_backprop.export.engine import OnnxRuntime
from guided_backprop.methods.export import export_together
from networks import IMAGES, LABELS
from spellings import column
from spellings.arithmetic import ARITHMETIC
from spellings.relus import RELUS

# What a graph can't be of: sizes that depend on values, what works in place on what is cut, a loop over the images.
REFUSED = {
    "clip_ by a tensor on a view",
    "where in a loop",
    "prod(stack([x, x > 0]))",
}
# What is closed by something else besides: no ReLU of these layers, so the library's own map is what is compared.
BESIDES = {
    "where((x > 0) & pad, x, 0)",
    "x * ((x > 0) * pad)",
    "masked_fill((x < 0) | pad)",
    "where(x > S, x - S, 0)",
}
ROWS = {kind: column(RELUS | ARITHMETIC, "torch", kind) for kind in ("guided", "judged")}
# What is spelled as arithmetic has a gate that passes nothing where it is shut, which DeconvNet asks for.
RULES = {"guided": [GuidedBackprop, Saliency, DeconvNet], "judged": [GuidedBackprop, Saliency]}


class Layers(nn.Module):
    """Two layers, and a ReLU between them."""

    def __init__(self, relu) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.relu = relu
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.first(x))).sum((2, 3))


class Sum(nn.Module):
    """The sum of several networks."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).eval()
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(network(x) for network in self.networks)


def oracle(method: type) -> np.ndarray:
    """Return the map of one network, from the formulas alone."""
    first, last = (layer.weight.detach().numpy()[:, :, 0, 0] for layer in (Layers(None).first, Layers(None).last))
    x = np.einsum("oc,nchw->nohw", first, IMAGES) + Layers(None).first.bias.detach().numpy()[:, None, None]
    g = np.broadcast_to(last[LABELS][:, :, None, None], x.shape)
    left = {Saliency: g * (x > 0), DeconvNet: np.maximum(g, 0), GuidedBackprop: np.maximum(g, 0) * (x > 0)}
    return np.einsum("oc,nohw->nchw", first, left[method])


@pytest.mark.parametrize("kind", ROWS)
def test_every_way_under_every_rule(kind, tmp_path):
    ways = [relu for name, relu in ROWS[kind].items() if name not in REFUSED | BESIDES]
    assert len(ways) > 40
    methods = {tmp_path / f"{rule.__name__}.onnx": rule(Sum(list(map(Layers, ways)))) for rule in RULES[kind]}
    exported = export_together(methods, torch.tensor(IMAGES), compare)
    for one, rule in zip(exported, RULES[kind], strict=True):
        given = {"images": IMAGES.astype(np.float32), "labels": np.array(LABELS)}
        found = OnnxRuntime(one.path, one.outputs).run(given)["attribution"] / len(ways)
        assert_allclose(found, oracle(rule), rtol=1e-4, atol=1e-6)
        # Planted faults: one way of all under another rule.
        for other in set(RULES[kind]) - {rule}:
            fault = oracle(rule) + (oracle(other) - oracle(rule)) / len(ways)
            assert not np.allclose(found, fault, rtol=1e-4, atol=1e-6)


def test_what_closes_besides(tmp_path):
    model = Sum([Layers(ROWS["judged"][name]) for name in sorted(BESIDES)])
    exported = GuidedBackprop(model).export(tmp_path / "map.onnx", torch.tensor(IMAGES))
    assert exported.precise_difference < 1e-12
    assert exported.difference < 1e-5


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_graph_can_be_is_refused_by_name(name, tmp_path):
    method = GuidedBackprop(Layers((ROWS["guided"] | ROWS["judged"])[name]))
    method.explain(torch.tensor(IMAGES))
    with pytest.raises(ModelError):
        method.export(tmp_path / "map.onnx", torch.tensor(IMAGES))
    assert not list(tmp_path.iterdir())
