"""Deletion and insertion by hand, with intervals that can be told from others; Quantus' are in ``test_bridges.py``."""

import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from torch import nn

from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    LabelError,
    MissingExtraError,
    OptionError,
    Saliency,
    faithfulness,
)
from guided_backprop.trust.faithfulness import CURVES
from guided_backprop.trust.intervals import Interval, interval, said

RNG = np.random.default_rng(0)
IMAGES = torch.tensor(RNG.uniform(size=(6, 1, 12, 10)))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, 5)]
        return nn.Sequential(*layers).double().eval()


@pytest.fixture(scope="module")
def checked(model):
    return faithfulness(GuidedBackprop(model, batch_size=4), IMAGES, steps=10)


def test_by_hand():
    """Of two values the first alone moves the score: deleting it first is best, and inserting it first too."""
    rows = np.array([[3.0, 1.0], [2.0, 1.0]])
    weights = jax.numpy.array([[1.0, 0.01], [0.0, 0.0]])
    with jax.enable_x64(True):
        found = faithfulness(Saliency(lambda x: x @ weights.T), jax.numpy.asarray(rows), 0, baseline=0.0, steps=2)
    share = lambda score: 1 / (1 + np.exp(-score))  # noqa: E731
    for row, (first, second) in enumerate(rows):
        deletion = [share(first + 0.01 * second), share(0.01 * second), 0.5]
        np.testing.assert_allclose(found.curves["deletion"]["Saliency"][row], deletion, rtol=1e-9)
        insertion = [0.5, share(first), share(first + 0.01 * second)]
        np.testing.assert_allclose(found.curves["insertion"]["Saliency"][row], insertion, rtol=1e-9)
    curve = found.curves["deletion"]["Saliency"]
    area = ((curve[:, 0] + curve[:, 1]) / 2 + (curve[:, 1] + curve[:, 2]) / 2) / 2
    assert found.area("Saliency", "deletion").mean == pytest.approx(area.mean(), rel=1e-12)
    assert list(found.curves["deletion"]) == ["Saliency", "random"]


def test_intervals_are_of_the_images():
    figures = RNG.normal(size=40)
    low, high = interval(figures)
    # The standard error of the mean, by its formula.
    wide = 2 * 1.96 * figures.std() / np.sqrt(len(figures))
    assert low < figures.mean() < high
    assert high - low == pytest.approx(wide, rel=0.15)
    assert interval(figures) == interval(figures) != interval(figures, seed=1)
    assert not interval(figures - figures.mean()).leaves_zero_out
    assert interval(figures + 5).leaves_zero_out
    assert interval(figures - 5).leaves_zero_out
    assert np.isnan(interval(figures[:1])).all()
    assert (said(0.5, interval(figures[:1])), said(-0.001, Interval(-0.1, 0.2))) == ("0.50", "0.00 [-0.10, 0.20]")


def test_all_maps_end_in_the_same_places(model, checked):
    assert list(checked.curves["deletion"]) == ["GuidedBackprop", "Saliency", "edges", "random"]
    shares = model(IMAGES).softmax(1).max(1).values.detach().numpy()
    for name, curve in checked.curves["deletion"].items():
        other = checked.curves["insertion"][name]
        np.testing.assert_allclose(curve[:, 0], shares, rtol=1e-12)
        np.testing.assert_allclose(curve[:, [0, -1]], other[:, [-1, 0]], rtol=1e-12)
    means = {name: curve.mean() for name, curve in checked.curves["deletion"].items()}
    assert len({*means.values()}) == 4
    # Images of three channels lose all of them at a place.
    again = faithfulness(GuidedBackprop(model, batch_size=6), IMAGES, steps=10)
    for curve in CURVES:
        assert again.area("GuidedBackprop", curve).mean == pytest.approx(checked.area("GuidedBackprop", curve).mean)


def test_a_place_is_all_its_channels():
    class Brightest(nn.Module):
        def forward(self, x):
            """Return the sum of the first place, and nothing."""
            return torch.stack([torch.relu(x[:, :, 0, 0]).sum(1), x.sum((1, 2, 3)) * 0], 1)

    images = torch.ones(3, 3, 6, 6)
    found = faithfulness(GuidedBackprop(Brightest()), images, 0, baseline=0.0, steps=36)
    assert found.curves["deletion"]["GuidedBackprop"][:, 1:] == pytest.approx(np.full((3, 36), 0.5))
    assert found.curves["insertion"]["GuidedBackprop"][0, 1] == pytest.approx(1 / (1 + np.exp(-3)))
    assert found.area("random", "deletion").better > 0
    assert "better than a random order" in found.sentence.replace("the images' edges and ", "")


def test_the_sentence_says_what_the_intervals_say(checked):
    assert checked.sentence.startswith(
        "On 6 images of Sequential, the places that GuidedBackprop marks are by deletion (0"
    )
    sure = [
        replace_area(area, better_interval=Interval(0.1, 0.2), better=0.15) if area.map == "edges" else area
        for area in checked.areas
    ]
    assert "better than the images' edges" in replace(checked, areas=tuple(sure)).sentence
    worse = [replace_area(area, better_interval=Interval(-0.2, -0.1), better=-0.15) for area in checked.areas]
    said_worse = replace(checked, areas=tuple(worse)).sentence
    assert said_worse.count("worse than Saliency, the images' edges and a random order") == 2
    lines = checked.table().splitlines()
    assert len(lines) == 3 + 4
    assert "[" in lines[-1]


def replace_area(area, **changes):
    return area._replace(**changes)


def test_other_methods(model):
    for method in (GradCAM(model, "3"), InputXGradient(Saliency(model))):
        found = faithfulness(method, IMAGES[:2], steps=2)
        assert next(iter(found.curves["deletion"])) == method.name
        assert found.area(method.name, "deletion").better == 0


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"baseline": "black"}, OptionError, 'baseline must be "mean" or a finite number'),
        ({"steps": 0}, OptionError, "steps must be"),
        ({"method": 3}, OptionError, "method must be a method"),
        ({"labels": np.ones((6, 5))}, LabelError, "labels must be class ids"),
        ({"images": (IMAGES, IMAGES)}, OptionError, "one input"),
    ],
)
def test_mistakes(model, changed, error, words):
    given = {"method": GuidedBackprop(model), "images": IMAGES, "labels": None} | changed
    with pytest.raises(error, match=words):
        faithfulness(given.pop("method"), given.pop("images"), given.pop("labels"), **given)


def test_without_its_libraries(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match="trust"):
        faithfulness(GuidedBackprop(model), IMAGES)
