"""What people are shown: figures of pictures, series, tables and volumes, and the HTML that a notebook shows.

Figures are asked for what they hold, and drawn for real: a warning of matplotlib's is an error here.
"""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from guided_backprop import (
    DeconvNet,
    Explanations,
    GradCAM,
    GuidedBackprop,
    ImageError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
)
from guided_backprop.commands.local_page import VIEWS
from guided_backprop.render import colour_picture, diverging, magnitude, overlay, picture, scale
from guided_backprop.show.colours import DIVERGING, RAMP
from guided_backprop.show.panels import PANELS, PanelName
from test_explanation import by_hand, explain, run_python

MINUS = "\N{MINUS SIGN}"


def drawn(figure: Any) -> np.ndarray:
    """Draw a figure as it is saved, and return its pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 1
    return pixels


def shown(axes: Any) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array())


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def of(values: np.ndarray, **about: Any) -> Explanations:
    return replace(by_hand(values, channel_axis=1 if values.ndim > 2 else None), **about)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def network(images: torch.Tensor) -> torch.nn.Module:
    """Return a network for pictures of any number of channels; its layer "0" is a convolution."""
    torch.manual_seed(0)
    layers = [torch.nn.LazyConv2d(4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(3)]
    model = torch.nn.Sequential(*layers)
    model(images)
    return model.eval()


# Pictures


def test_a_row_per_image_with_label_score_and_the_scale():
    explanations = explain(3)
    figure = explanations.plot(percentile=95)
    assert len(figure.axes) == 13  # and the bar
    left = [axes.get_title(loc="left") for axes in figure.axes[:12:4]]
    assert left == [f"class {row}, score {explanations.scores[row]:.4g}" for row in range(3)]
    image, signed = (values[2].numpy().transpose(1, 2, 0) for values in (explanations.images, explanations.attribution))
    assert_array_equal(shown(figure.axes[8]), picture(image))
    assert_array_equal(shown(figure.axes[9]), colour_picture(signed, 95))
    assert_array_equal(shown(figure.axes[10]), magnitude(signed, 95))
    assert_array_equal(shown(figure.axes[11]), overlay(image, signed, 95))
    with pytest.raises(AssertionError):
        assert_array_equal(shown(figure.axes[9]), colour_picture(signed, 99))
    # The scale by hand: the percentile of all channels' magnitudes, and of the largest in each pixel.
    scales = np.percentile(np.abs(signed), 95), np.percentile(np.abs(signed).max(2), 95)
    assert [title.split("\n")[-1] for title in titles(figure)[9:11]] == [
        f"magnitude at full colour: {value:.3g}" for value in scales
    ]
    note = figure.get_supxlabel().replace("\n", " ")
    assert "GuidedBackprop of Sequential; full colour: percentile 95 of a map's magnitudes" in note
    assert "colour: each channel, signed" in note
    assert "magnitude: largest magnitude of the channels" in note
    drawn(figure)


def test_pyplot_is_left_alone():
    code = (
        "import sys, numpy as np; from guided_backprop import Coverage, Explanations\n"
        "one = np.ones((1, 1, 2, 2)); e = Explanations(one, one, np.zeros(1), np.ones(1), one, Coverage(),"
        " 'Saliency', 'Net', channel_axis=1)\n"
        "e._repr_html_(); assert 'matplotlib' not in sys.modules\n"
        "e.plot(); assert 'matplotlib.pyplot' not in sys.modules; print('fine')"
    )
    assert run_python(code).stdout == "fine\n"


def test_methods_stand_side_by_side():
    images = rand(2, 3, 8, 6)
    model = network(images)
    found = compare(images, [0, 2], [Saliency(model), GuidedBackprop(model), GradCAM(model, layer="0")])
    figure = found[1].plot(methods=found)
    assert [title.split("\n")[0] for title in titles(figure)[1:4]] == [
        "Saliency, grey is 0",
        "GuidedBackprop, grey is 0",
        "GradCAM, magnitude",
    ]
    for column, each in enumerate(found[:2], 1):
        assert_array_equal(
            shown(figure.axes[4 + column]), colour_picture(each.attribution[1].numpy().transpose(1, 2, 0))
        )
    # Others come after this one, if it is not among them.
    assert titles(found[1].plot(methods=found[:1]))[1].startswith("GuidedBackprop")
    note = figure.get_supxlabel().replace("\n", " ")
    assert note.startswith("Saliency, GuidedBackprop, GradCAM of Sequential")
    # What is said of the channels is each method's own.
    assert "; Saliency, GuidedBackprop: colour: each channel, signed; GradCAM: channels reduced by sum" in note
    drawn(figure)


def test_one_table_names_all_panels(tmp_path):
    """Figures, saved files and the local page offer what stands in the table, and nothing else."""
    assert tuple(PANELS) == get_args(PanelName)
    assert tuple(PANELS)[1:] == VIEWS
    explanations = explain(1)
    with pytest.raises(OptionError, match=f"among {', '.join(PANELS)}; received 'other'"):
        explanations.plot(panels=["other"])
    endings = {panel.ending for panel in PANELS.values() if panel.ending}
    saved = explanations.save(tmp_path / "maps", names=["a"])
    assert {path.name for path in saved.glob("*.png")} == {f"a{ending}" for ending in endings}
    (image,), (attribution,) = explanations.pictures()
    for name, panel in PANELS.items():
        drawn = panel.picture(image, attribution)
        assert drawn.dtype == np.uint8
        assert drawn.shape[:2] == image.shape[:2]
        assert_array_equal(shown(explanations.plot(panels=[name]).axes[0]), drawn)
        if panel.ending:
            assert_array_equal(np.asarray(Image.open(saved / f"a{panel.ending}")), drawn)


def test_panels_are_chosen():
    explanations = explain(1)
    figure = explanations.plot(panels=["image", "diverging", "overlay"])
    signed = explanations.attribution[0].numpy().transpose(1, 2, 0)
    assert_array_equal(shown(figure.axes[1]), diverging(signed))
    assert [bar.get_ylabel() for bar in figure.axes[3:]] == ["lowers / raises the score", "magnitude"]
    assert [text.get_text() for text in figure.axes[3].get_yticklabels()] == ["full", "0", "full"]
    assert len(explanations.plot(panels=["magnitude"]).axes) == 2
    assert len(explanations.plot(panels=["image"]).axes) == 1


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
def test_any_number_of_channels(channels):
    images = rand(2, channels, 6, 8)
    explanations = GuidedBackprop(network(images)).explain(images, 1)
    figure = explanations.plot()
    signed = explanations.attribution[1].numpy().transpose(1, 2, 0)
    assert_array_equal(shown(figure.axes[4]), picture(images[1].numpy().transpose(1, 2, 0)))
    assert_array_equal(shown(figure.axes[5]), diverging(signed))
    assert_array_equal(shown(figure.axes[6]), magnitude(signed))
    assert "mean of the channels, signed" in figure.get_supxlabel()
    drawn(figure)


def test_channels_last_is_drawn_the_same():
    values = np.random.default_rng(0).normal(size=(1, 3, 8, 6))
    first = by_hand(values, channel_axis=1).plot()
    last = by_hand(np.moveaxis(values, 1, -1), channel_axis=3).plot()
    assert_array_equal(drawn(first), drawn(last))


@pytest.mark.parametrize("reducer", ["mean", "absmax"])
def test_a_reducer_and_the_sign_are_stated(reducer):
    figure = explain(1, reducer=reducer).plot()
    names = [title.split(",")[0] for title in titles(figure) if "," in title]
    assert names == (["overlay"] if reducer == "absmax" else ["diverging", "overlay"])
    assert f"channels reduced by {reducer}" in figure.get_supxlabel()


def test_a_map_without_negative_values_has_a_sequential_scale():
    images = rand(1, 1, 6, 6)
    method = GuidedBackprop(network(images))
    squared = SmoothGrad(method, samples=3, form="squared").explain(images, 0)
    assert titles(squared.plot())[1].startswith("magnitude\n")
    assert titles(method.explain(images, 0).plot())[1].startswith("diverging")


NAMES = ["cat", "a name that is so long that it has to be broken into lines and then to lose its middle: dog"]


@pytest.mark.parametrize("names", [NAMES, dict(enumerate(NAMES))])
def test_class_names(names):
    explanations = explain(3)
    figure = explanations.plot(class_names=names)
    left = [axes.get_title(loc="left") for axes in figure.axes[:12:4]]
    assert left[0] == f"0 cat, score {explanations.scores[0]:.4g}"
    assert left[1].replace("\n", " ").startswith("1 a name that is so long that it has to be")
    assert "…" in left[1]
    assert "dog, score" in left[1].replace("\n", " ")
    assert max(map(len, left[1].split("\n"))) <= 28
    assert left[2].startswith("class 2, score")
    assert "weighted outputs" in replace(explanations, labels=np.eye(3, 4)).plot().axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 3, 5, 5)),
        np.full((2, 3, 5, 5), 7.0),
        np.ones((1, 1, 1, 1)),
        np.array([[[[-1.7e308, 1.7e308]]]]),
        np.array([[[[4e-323, -4e-323]]]]),
        np.array([[[[-60000, 60000]]]], np.float16),
        np.ones((1, 3, 1, 60)),
        np.ones((1, 3, 60, 1)),
        np.zeros((2, 3, 9)),
        np.array([[[-1.7e308, 1.7e308]]]),
        np.array([[[4e-323, -4e-323]]]),
        np.ones((1, 1, 1)),
        np.zeros((2, 9)),
        np.array([[-1.7e308, 1.7e308]]),
        np.array([[4e-323, -4e-323]]),
        np.ones((1, 1)),
        np.zeros((1, 1, 4, 5, 5)),
        np.array([[[[[-1.7e308, 1.7e308]]]]]),
        np.ones((1, 2, 1, 1, 1)),
    ],
    ids=lambda values: f"{values.shape} {values.dtype} {values.flat[0]:.0e}",
)
def test_nothing_is_drawn_as_nan(values):
    explanations = of(values)
    figure = explanations.plot()
    drawn(figure)
    for axes in figure.axes:
        for image in axes.get_images():
            assert np.isfinite(np.asarray(image.get_array())).all()
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title, axes.xaxis.label]:
            assert "nan" not in text.get_text()
            assert "inf" not in text.get_text()
    drawn(explanations.plot(methods=[explanations, of(-values, images=values)]))
    assert "<img" in explanations._repr_html_() or "<svg" in explanations._repr_html_() or values.ndim == 2


@given(
    st.sampled_from([(2,), (3, 4), (3, 4, 2), (2, 2, 3, 2)]),
    st.floats(-(2.0**120), 2.0**120, width=32),
    st.integers(0, 9),
)
@settings(max_examples=8, deadline=None)
def test_any_values_can_be_drawn(shape, factor, seed):
    values = np.random.default_rng(seed).integers(-3, 4, (1, *shape)) * np.float32(factor)
    drawn(of(values.astype(np.float32)).plot())


def test_bfloat16_is_drawn():
    explanations = explain(1)
    half = replace(explanations, attribution=explanations.attribution.bfloat16(), images=explanations.images.bfloat16())
    drawn(half.plot())
    assert "<img" in half._repr_html_()


def test_sixteen_rows():
    figure = explain(16, shape=(3, 4, 6)).plot()
    assert len(figure.axes) == 65
    assert drawn(figure).shape[0] < 4000


def test_a_figure_is_saved_in_the_size_that_is_asked_for(tmp_path):
    explanations = explain(1)
    figure = explanations.plot(tmp_path / "maps.png", figsize=(6, 2))
    with Image.open(tmp_path / "maps.png") as image:
        assert image.size == (900, 300)
    assert tuple(figure.get_size_inches()) == (6, 2)
    with pytest.raises(OptionError, match=r"file must end in one of avif, .*received file='maps.txt'"):
        explanations.plot("maps.txt")


def test_colours_are_chosen_of_magnitudes_or_else_of_signed_maps():
    explanations = explain(1)
    (image,), (signed,) = explanations.pictures()
    along = np.round(colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255)
    figure = explanations.plot(cmap="viridis", panels=["diverging", "magnitude", "overlay"])
    expected = [diverging(signed), magnitude(signed, colours=along), overlay(image, signed, colours=along)]
    for axes, pixels in zip(figure.axes, expected, strict=False):
        assert_allclose(shown(axes).astype(int), pixels.astype(int), atol=1)
    with pytest.raises(AssertionError):
        assert_allclose(shown(figure.axes[1]).astype(int), magnitude(signed).astype(int), atol=1)
    alone = explanations.plot(cmap=colormaps["viridis"], panels=["diverging"])
    assert_allclose(shown(alone.axes[0]).astype(int), diverging(signed, colours=along).astype(int), atol=1)
    with pytest.raises(OptionError, match="cmap must be a colour map of matplotlib's, or its name; received cmap='no'"):
        explanations.plot(cmap="no")


def test_on_axes_of_the_users():
    explanations = explain(2)
    figure = Figure(figsize=(6, 4))
    theirs, ours = figure.subplots(1, 2)
    (image, _), (signed, _) = explanations.pictures()
    assert explanations[:1].plot(ax=ours, smooth=1) is figure
    assert len(figure.axes) == 2
    assert_array_equal(shown(ours), overlay(image, signed, smooth=1))
    assert "smoothed for looking, by a Gaussian of 1 pixels" in ours.get_xlabel().replace("\n", " ")
    assert (theirs.get_title(), theirs.get_images(), figure.get_supxlabel()) == ("", [], "")
    grid = Figure().subplots(2, 2)
    explanations.plot(ax=grid, panels=["image", "colour"])
    assert_array_equal(shown(grid[1, 0]), picture(explanations.pictures()[0][1]))
    with pytest.raises(OptionError, match=r"ax must be as many axes as there are panels, 2 rows of 4; received 4"):
        explanations.plot(ax=grid)
    with pytest.raises(OptionError, match="received 1: 'axes'"):
        explanations.plot(ax="axes")


def test_smoothing_is_stated_below_the_figure():
    explanations = explain(1)
    figure = explanations.plot(smooth=1.5)
    (_,), (signed,) = explanations.pictures()
    assert_array_equal(shown(figure.axes[2]), magnitude(signed, smooth=1.5))
    full = scale(signed, smooth=1.5)
    assert titles(figure)[2] == f"magnitude\nmagnitude at full colour: {full:.3g}"
    stated = "smoothed for looking, by a Gaussian of 1.5 pixels"
    assert stated in figure.get_supxlabel().replace("\n", " ")
    assert "smoothed" not in explanations.plot().get_supxlabel()
    with pytest.raises(OptionError, match="smooth is for pictures and volumes"):
        of(np.ones((1, 3))).plot(smooth=1)


def test_a_grid_is_said_to_be_the_strides():
    """A kernel of 3 at stride 2 touches every second pixel twice. At stride 1, or of the photo, nothing is said."""
    images = rand(2, 3, 64, 64)

    def note(stride: int, photo: torch.Tensor = images, smooth: float = 0) -> str:
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 3, stride), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        return GuidedBackprop(model.eval()).explain(photo, 0).plot(panels=["colour"], smooth=smooth).get_supxlabel()

    assert "the grid of 2 pixels is left by the network's stride" in note(2).replace("\n", " ")
    assert "grid" not in note(1)
    # A Gaussian of a pixel leaves nothing of it.
    assert "grid" not in note(2, smooth=1)
    assert "grid" in note(2, smooth=0.5)
    board = images.clone()
    board[:, :, ::2, ::2] += 3
    assert "grid" not in note(2, board)


def test_of_a_flat_map_of_deconvnet_it_is_said_why():
    images = rand(2, 3, 64, 64)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    for pooled in (False, True):
        body = [*layers[:2], torch.nn.MaxPool2d(2), *layers[2:]] if pooled else layers
        model = torch.nn.Sequential(*body, torch.nn.Linear(8, 3)).eval()
        found = DeconvNet(model).explain(images, 1)
        assert ("does not see the photo" in found.plot().get_supxlabel()) is not pooled
        # What is said is so: two photos have one map, and with max-pooling they have not.
        one, other = found.attribution.numpy()
        assert np.array_equal(one, other) is not pooled


# Series, tables, volumes


def test_a_series_stands_above_its_attribution():
    values = np.random.default_rng(0).normal(size=(2, 3, 40))
    first = of(values, images=np.cumsum(values, axis=2))
    figure = first.plot(
        methods=[first, of(np.abs(values), images=first.images, method="Other")], feature_names=list("xyz")
    )
    assert len(figure.axes) == 2 * 3 + 2  # and two bars
    top, signed, magnitude = figure.axes[3:6]
    assert_allclose([line.get_ydata() for line in top.lines], first.images[1])
    full = np.percentile(np.abs(values[1]), 99)
    assert_allclose(shown(signed), np.clip(values[1] / full, -1, 1))
    assert_allclose(shown(magnitude), np.clip(np.abs(values[1]) / full, 0, 1))
    assert signed.get_images()[0].get_clim() == (-1, 1)
    assert magnitude.get_images()[0].get_clim() == (0, 1)
    assert signed.get_title(loc="left") == f"GuidedBackprop, magnitude at full colour: {full:.3g}"
    assert [text.get_text() for text in signed.get_yticklabels()] == ["x", "y", "z"]
    assert top.get_xlim() == signed.get_xlim()
    drawn(figure)
    last = by_hand(np.moveaxis(values, 1, -1), channel_axis=2).plot()
    assert_allclose(shown(last.axes[3]), np.clip(values[1] / full, -1, 1))


def test_a_reduced_series_has_one_strip():
    series = np.random.default_rng(0).normal(size=(1, 3, 40))
    figure = of(series, attribution=series.mean(axis=1), reducer="mean").plot()
    assert shown(figure.axes[1]).shape == (1, 40)
    assert "channels reduced by mean" in figure.get_supxlabel()


def test_a_table_has_a_bar_for_each_feature():
    values = np.array([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    figure = of(values, images=values * 10).plot(feature_names=["age", "a < b & $x$", "w" * 60])
    first = figure.axes[0]
    assert [bar.get_width() for bar in first.patches] == [3, -2, 1]
    red, blue = (tuple(DIVERGING[row] / 255) for row in (6, 2))
    assert [bar.get_facecolor()[:3] for bar in first.patches] == [red, blue, red]
    names = [text.get_text() for text in first.get_yticklabels()]
    assert names == [f"{'w' * 13}…{'w' * 13} = 30", f"a < b & $x$ = {MINUS}20", "age = 10"]
    assert "red raises the score, blue lowers it" in figure.get_supxlabel()
    drawn(figure)


def test_only_the_strongest_features_are_drawn_and_methods_share_their_order():
    values = np.arange(1.0, 31)[None]
    figure = of(values).plot(methods=[of(-values[:, ::-1], images=values, method="Other")])
    first, other = figure.axes
    assert [bar.get_width() for bar in first.patches] == list(range(30, 10, -1))
    assert [bar.get_width() for bar in other.patches] == list(range(-1, -21, -1))
    assert first.get_ylabel() == "20 strongest of 30"
    assert [axes.get_xlabel() for axes in figure.axes] == ["GuidedBackprop", "Other"]
    drawn(figure)


def test_of_a_volume_the_strongest_slices_are_drawn_with_their_positions():
    values = np.random.default_rng(0).normal(size=(2, 1, 9, 4, 5)) * 0.1
    strongest = [1, 2, 4, 7, 8]
    values[:, :, strongest] *= 100
    figure = of(values).plot()
    assert len(figure.axes) == 2 * 2 * 5 + 1
    assert [axes.get_xlabel() for axes in figure.axes[5:10]] == [f"slice {position} of 9" for position in strongest]
    # All slices of a volume have one scale.
    whole = diverging(values[1, 0].reshape(-1, 5)).reshape(9, 4, 5, 3)
    assert_array_equal(shown(figure.axes[15]), whole[1])
    assert_array_equal(shown(figure.axes[19]), whole[8])
    drawn(figure)


# What is refused


@pytest.mark.parametrize("count", [0, 17])
def test_too_many_rows_and_none_are_refused(count):
    with pytest.raises(OptionError, match=rf"1 to 16 images; received {count} images. Plot a slice"):
        of(np.ones((count, 1, 2, 2))).plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"panels": ["photo"]}, "panels must be among image, colour, .* received 'photo'"),
        ({"percentile": 0}, "percentile must be in"),
        ({"methods": of(np.ones((1, 1, 2, 2)))}, "methods must be a list of explanations; received Explanations"),
        ({"methods": ["Saliency"]}, "methods must be a list of explanations; received .'Saliency'"),
        ({"class_names": "cat"}, "names must be a list of strings; received one string"),
        ({"methods": [of(np.ones((1, 1, 2, 3)), method="Other")]}, "same images and labels; received others by Other"),
        ({"methods": [of(np.eye(2)[None, None], labels=np.ones(1, int))]}, "same images and labels"),
    ],
)
def test_options_that_are_not_offered_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        of(np.eye(2)[None, None]).plot(**options)
    with pytest.raises(OptionError):
        of(np.eye(2)).plot(**options)


def test_mathematics_in_names_is_text():
    evil = "$\\frac{$ \\n $x$"
    drawn(of(np.ones((1, 1, 2, 2)), model=evil, method=evil).plot(class_names=[evil]))
    drawn(of(np.ones((1, 2)), model=evil, method=evil).plot(class_names=[evil], feature_names=[evil, evil]))
    drawn(of(np.ones((1, 2, 9)), model=evil, method=evil).plot(class_names=[evil], feature_names=[evil, evil]))
    drawn(of(np.ones((1, 1, 2, 2, 2)), model=evil, method=evil).plot(class_names=[evil]))


def test_feature_names_are_one_per_feature():
    with pytest.raises(OptionError, match="feature_names must be one per feature; received 2 for 3"):
        of(np.ones((1, 3))).plot(feature_names=["a", "b"])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ImageError, match=r"received images of shape \(1, 2, 3, 3, 3, 3\)"):
        of(np.ones((1, 2, 3, 3, 3, 3))).plot()
    with pytest.raises(ImageError, match="received 1 that are NaN"):
        of(np.array([[np.nan, 1.0]])).plot()


# Notebooks


class Page(HTMLParser):
    """Collects tags, text, and the pictures that data URIs hold; complains of tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.text, self.alts = "", []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "br"):
            self._open.append(tag)
        given = dict(attrs)
        uri = given.get("src") or given.get("href")
        if uri is not None:
            kind, _, data = uri.partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                self.pictures.append(np.asarray(image))
        if tag == "img":
            self.alts.append(given["alt"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_a_notebook_shows_images_and_maps():
    explanations = explain(2)
    page = Page(explanations._repr_html_())
    signed = explanations.attribution[1].numpy().transpose(1, 2, 0)
    assert_array_equal(page.pictures[4], colour_picture(signed))
    with pytest.raises(AssertionError):
        assert_array_equal(page.pictures[1], colour_picture(signed))
    assert page.alts[:3] == ["image", "colour: signed, grey is 0", "overlay: magnitude over the image"]
    assert f"class 1 score {explanations.scores[1]:.4g}" in page.text
    assert "relu x1 guided" in page.text
    assert not {"script", "style", "link"} & {*page.tags}


def test_the_rows_and_the_size_are_bounded():
    many = explain(200, shape=(3, 40, 40))
    page = Page(many._repr_html_())
    assert page.tags.count("img") == 18
    assert "6 of 200 are shown." in page.text
    assert len(of(np.random.default_rng(0).normal(size=(1, 3, 900, 900)))._repr_html_()) < 400_000
    assert len(of(np.random.default_rng(0).normal(size=(9, 40, 30_000)))._repr_html_()) < 1_500_000
    assert Page(of(np.random.default_rng(0).normal(size=(9, 1000)))._repr_html_()).tags.count("tr") == 1 + 6 * 9
    assert Page(explain(1)[:0]._repr_html_()).tags.count("img") == 0


def test_a_long_series_keeps_its_peaks():
    series = np.zeros((1, 1, 30_000))
    series[0, 0, 12_345] = -5
    page = Page(of(series)._repr_html_())
    strip = page.pictures[0]
    assert strip.shape == (1, 600, 3)
    assert_array_equal(np.flatnonzero((strip != 255).any(axis=2)), [12_345 * 600 // 30_000])
    assert_array_equal(strip[0, 246], DIVERGING[0])


def test_several_inputs_and_many_labels():
    images = {"photo": np.ones((2, 1, 4, 4)), "row": np.ones((2, 3)), "ids": np.ones((2, 3), int)}
    found = of(np.ones((2, 3)), images=images, channel_axis={"photo": 1, "row": None, "ids": None})
    found = replace(found, attribution={"photo": np.ones((2, 1, 4, 4)), "row": np.ones((2, 3)), "ids": None})
    page = Page(found._repr_html_())
    assert page.tags.count("img") == 6
    assert "input 'ids' not explained" in page.text
    several = GuidedBackprop(network(rand(1, 3, 4, 4))).explain(rand(2, 3, 4, 4), "top3")
    assert Page(several._repr_html_()).tags.count("img") == 18


@pytest.mark.parametrize(
    "values", [np.full((1, 3), np.nan), np.full((1, 1, 3, 3), np.inf), np.array([["a"]]), np.ones((1, 2, 2, 2, 2, 2))]
)
def test_whatever_it_is_a_notebook_shows_something(values):
    assert "GuidedBackprop" in Page(of(values)._repr_html_()).text


def test_names_are_text():
    evil = "<img src=x onerror=alert(1)>&amp;"
    found = of(np.ones((1, 1, 2, 2)), model=evil, method=evil, labels=np.array([evil]))
    page = Page(found._repr_html_())
    assert page.tags.count("img") == 3
    assert page.text.count(evil) == 3
    assert Page(of(np.full((1, 1), np.nan), model=evil, method=evil)._repr_html_()).tags[:1] in (["pre"], ["div"])


def test_scales_are_as_dark_at_both_ends_and_white_at_zero():
    linear = np.where(DIVERGING / 255 <= 0.04045, DIVERGING / 255 / 12.92, ((DIVERGING / 255 + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    assert_array_equal(DIVERGING[4], 255)
    assert (np.diff(lightness[:5]) > 0.05).all()
    assert (np.diff(lightness[4:]) < -0.05).all()
    assert_allclose(lightness, lightness[::-1], atol=0.12)
    assert len(RAMP) == len(DIVERGING) == 9
