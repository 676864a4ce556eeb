"""PyTorch: the first call for a model is watched, of many images a part; what is left open there is asked again."""

import numpy as np
import pytest
import torch
from torch import nn

from guided_backprop import GuidedBackprop, ModelError, OpaqueRegionError, Saliency
from guided_backprop.backends.torch.backend import TorchBackend
from guided_backprop.backends.torch.hidden.spelled import Before

MANY = 16
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
DRAWN = np.random.default_rng(0)
IMAGES = torch.from_numpy(DRAWN.normal(size=(MANY, 12)))
WEIGHTS = [torch.from_numpy(DRAWN.normal(size=shape)) for shape in ((12, 12), (12, 20), (20, 3))]


class Everything(set):
    """What is known of all."""

    def __contains__(self, name):
        return True


def spelled(x):
    return x * (x > 0)


class Model(nn.Module):
    """Layers, a ReLU, and an activation; keeps how many images each run was given."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.runs = activation, []

    def forward(self, images):
        self.runs.append(len(images))
        return self.activation(torch.relu(images @ WEIGHTS[0]) @ WEIGHTS[1]) @ WEIGHTS[2]


def wanted(images=IMAGES):
    """The guided map from the formula: x > 0 and g > 0 at both ReLUs."""
    first, second, last = (weights.numpy() for weights in WEIGHTS)
    x = images.numpy() @ first
    gates = [x > 0, np.maximum(x, 0) @ second > 0]
    g = np.maximum(last[:, 1], 0) * gates[1] @ second.T
    return np.maximum(g, 0) * gates[0] @ first.T


def runs(model):
    done, model.runs = list(model.runs), []
    return done


def test_a_part_of_many_images_is_watched():
    model = Model(torch.relu)
    method = GuidedBackprop(model)
    for expected in ([MANY // 8, MANY], [MANY]):
        np.testing.assert_allclose(method.explain(IMAGES, 1).attribution, wanted(), **TOLERANCE)
        assert runs(model) == expected


@pytest.mark.parametrize(("method", "count"), [(GuidedBackprop, 7), (Saliency, MANY)])
def test_few_images_are_run_once_and_so_are_those_of_a_rule_that_asks_for_no_relu(method, count):
    model = Model(torch.relu)
    method(model).explain(IMAGES[:count], 1)
    assert runs(model) == [count]


@pytest.mark.parametrize(
    "activation",
    [
        spelled,
        # Another way through the model where there are many.
        lambda x: spelled(x) if len(x) > 4 else torch.relu(x),
        lambda x: torch.relu(x) if len(x) > 4 else spelled(x),
    ],
)
def test_what_is_spelled_is_found_in_all_images(activation):
    model = Model(activation)
    method = GuidedBackprop(model)
    for images in (IMAGES, IMAGES[:2], IMAGES):
        np.testing.assert_allclose(method.explain(images, 1).attribution, wanted(images), **TOLERANCE)


def test_planted_fault_what_a_part_showed_holds_for_every_way(monkeypatch):
    real = TorchBackend._look_at_few

    def look(backend, *args, **named):
        real(backend, *args, **named)
        backend._watched = None

    monkeypatch.setattr(TorchBackend, "_look_at_few", look)
    monkeypatch.setattr(Before, "is_clear", lambda before, way, count: True)
    found = GuidedBackprop(Model(lambda x: spelled(x) if len(x) > 4 else torch.relu(x))).explain(IMAGES, 1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found.attribution, wanted(), **TOLERANCE)


# Few units, of which one image tells too little; and what each is made of x, a ReLU of it.
FEW = torch.from_numpy(DRAWN.normal(size=(12, 6)))
LAST = torch.from_numpy(DRAWN.normal(size=(6, 3)))
OF_FEW = {
    "the opposite": lambda x: (x + torch.relu(-x)) @ LAST,
    "the opposite behind weights": lambda x: x @ LAST + torch.relu(-x) @ LAST,
    "a bound behind weights": lambda x: (x + 5).clamp(min=5) @ LAST - 5 * LAST.sum(0),
}


def explained_of_few(write, *counts):
    """Return the last map of so many images after another, and what is right; None where it is refused."""
    method, found = GuidedBackprop(lambda images: write(torch.relu(images @ WEIGHTS[0]) @ FEW)), None
    for count in counts:
        try:
            found = method.explain(IMAGES[:count], 1).attribution.numpy()
        except OpaqueRegionError:
            found = None
    first = IMAGES[: counts[-1]].numpy() @ WEIGHTS[0].numpy()
    g = np.maximum(LAST.numpy()[:, 1], 0) * (np.maximum(first, 0) @ FEW.numpy() > 0) @ FEW.numpy().T
    return found, np.maximum(g, 0) * (first > 0) @ WEIGHTS[0].numpy().T


@pytest.mark.parametrize("counts", [(8,), (15,), (16,), (1, 8), (1, 16)])
@pytest.mark.parametrize("spelling", OF_FEW)
def test_what_one_image_tells_too_little_of_is_watched_whole(spelling, counts):
    found, expected = explained_of_few(OF_FEW[spelling], *counts)
    if found is not None:
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_planted_fault_one_image_tells_of_all(monkeypatch):
    monkeypatch.setattr(Before, "is_clear", lambda before, way, count: way in before.clear)
    found, expected = explained_of_few(OF_FEW["the opposite behind weights"], 1, 16)
    assert found is not None
    assert abs(found - expected).max() > 0.1


def test_slopes_that_become_0_are_seen_in_the_next_call():
    prelu = nn.PReLU(20).double()
    method = GuidedBackprop(Model(prelu).eval())
    method.explain(IMAGES, 1)
    with torch.no_grad():
        prelu.weight[3] = 0
    with pytest.raises(OpaqueRegionError, match="prelu"):
        method.explain(IMAGES, 1)


#: How a leaky ReLU is chosen by a mask, of slopes for each number of the images.
CHOSEN = {
    "times": lambda x, slopes: torch.where(x > 0, x, slopes * x),
    "turned": lambda x, slopes: torch.where(x <= 0, x * slopes, x),
    "both": lambda x, slopes: 0.5 * torch.where(x > 0, 2 * x, -(-2 * (x * slopes))),
}


@pytest.mark.parametrize("form", CHOSEN)
def test_slopes_that_a_mask_chooses_and_some_of_which_are_0_are_refused_in_each_call(form):
    slopes = torch.full((len(IMAGES), 20), 0.2, dtype=torch.float64)
    method = GuidedBackprop(Model(lambda x: CHOSEN[form](x, slopes)).eval())
    leaky = GuidedBackprop(Model(lambda x: nn.functional.leaky_relu(x, 0.2)).eval()).explain(IMAGES, 1).attribution
    np.testing.assert_allclose(method.explain(IMAGES, 1).attribution, leaky, **TOLERANCE)
    slopes[-1, :4] = 0
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        method.explain(IMAGES, 1)
    slopes[:] = 0
    np.testing.assert_allclose(method.explain(IMAGES, 1).attribution, wanted(), **TOLERANCE)


def test_what_a_mask_of_whole_rows_chooses_keeps_its_derivative():
    slopes, rows = torch.ones(20).double().index_fill(0, torch.tensor([3]), 0), torch.arange(len(IMAGES))[:, None] > 3
    found = GuidedBackprop(Model(lambda x: torch.where(rows, x, slopes * x)).eval()).explain(IMAGES, 1)
    assert found.attribution.shape == IMAGES.shape


def test_a_model_that_draws_is_refused_where_a_part_fails():
    def drawn(images):
        if len(images) < 2:
            raise ValueError
        return torch.relu(images @ WEIGHTS[0]) * float(np.random.rand())

    with pytest.raises(ModelError, match="random"):
        GuidedBackprop(drawn).explain(IMAGES, 1)


def test_a_model_that_takes_so_many_images_alone_is_watched_whole():
    def activation(x):
        assert len(x) == MANY
        return spelled(x)

    np.testing.assert_allclose(GuidedBackprop(Model(activation)).explain(IMAGES, 1).attribution, wanted(), **TOLERANCE)


class Cut(nn.Module):
    """Each row in the order of its size, cut by how many of its values are positive, which only weights show."""

    def forward(self, images):
        rows = []
        for row in torch.relu(images @ WEIGHTS[0]) @ WEIGHTS[1]:
            values, order = row.sort(descending=True)
            kept, _ = torch.tensor_split(values, (row > 0).sum()[None].cpu())
            rows.append(kept @ WEIGHTS[2][order[: len(kept)]])
        return torch.stack(rows)


def test_what_was_refused_for_one_image_is_refused_for_two():
    method = GuidedBackprop(Cut())
    for count in (1, 2):
        with pytest.raises(OpaqueRegionError, match="mm at"):
            method.explain(IMAGES[:count], 1)


def test_planted_fault_what_was_refused_counts_as_asked(monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.torch.backend.Before", lambda: Before(tried=Everything()))
    assert str(GuidedBackprop(Cut()).explain(IMAGES[:2], 1).coverage) == "relu x1 guided, sort x2 plain"
