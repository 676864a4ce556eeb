"""Pictures of attributions: heatmap, colour picture, overlay, and the display of an image.

Worked examples, a pixel-by-pixel reference written from the documented formulas alone, properties over
arbitrary arrays, and the errors.
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib import colormaps
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab

from guided_backprop import ImageError, OptionError
from guided_backprop.render import colour_picture, diverging, heatmap, magnitude, overlay, picture, scale
from guided_backprop.show.colours import RAMP
from guided_backprop.show.render import paint_overlay
from guided_backprop.show.shares import resized, shares

RENDERERS = (heatmap, magnitude, diverging, colour_picture, picture, lambda values: overlay(values, np.ones((2, 3))))
PIXELS = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=64),
)


def reference_heatmap(attribution: np.ndarray, percentile: float) -> np.ndarray:
    """The documented formula, one pixel after the other."""
    height, width = attribution.shape[:2]
    magnitude = [[max(abs(float(a)) for a in np.ravel(attribution[y, x])) for x in range(width)] for y in range(height)]
    scale = float(np.percentile(magnitude, percentile))
    return np.array([[min(m / scale, 1.0) for m in row] for row in magnitude])


def test_heatmap_divides_the_largest_magnitude_over_channels_by_the_percentile():
    attribution = np.random.default_rng(0).normal(size=(7, 5, 3))
    expected = reference_heatmap(attribution, 90)
    assert_allclose(heatmap(attribution, 90), expected)
    assert (expected == 1).sum() == 4  # the clipped tenth of 35 pixels
    for fault in (heatmap(attribution, 99), heatmap(attribution.mean(axis=2), 90), heatmap(attribution[:, ::-1], 90)):
        with pytest.raises(AssertionError):
            assert_allclose(fault, expected)


def test_heatmap_ignores_sign_and_scale():
    attribution = np.random.default_rng(1).normal(size=(6, 6, 3))
    assert_allclose(heatmap(-attribution), heatmap(attribution))
    assert_allclose(heatmap(1e-30 * attribution), heatmap(attribution))


@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, -1e-300])
def test_heatmap_without_contrast_is_zero(value):
    assert_array_equal(heatmap(np.full((4, 4, 3), value)), np.zeros((4, 4)))


def test_a_few_pixels_are_seen_although_the_percentile_is_zero():
    attribution = np.zeros((100, 100))
    attribution[3, 4], attribution[5, 6] = 2.0, -1.0
    heat = heatmap(attribution)
    assert heat[3, 4] == 1
    assert heat[5, 6] == 0.5
    assert heat.sum() == 1.5
    shown = colour_picture(attribution)
    assert_array_equal(shown[3, 4], 255)
    assert_array_equal(shown[5, 6], 64)
    assert_array_equal(shown[0, 0], 128)


@pytest.mark.parametrize(
    "attribution",
    [
        np.array([[-128, 0, 64]], np.int8),
        np.array([[-60000, 0, 30000]], np.float16),
        np.array([[-1.7e308, 0, 0.85e308]]),
        np.array([[-4e-323, 0, 2e-323]]),
    ],
    ids=["int8", "float16", "huge", "denormal"],
)
def test_extreme_values_neither_overflow_nor_vanish(attribution):
    assert_allclose(heatmap(attribution, 100), [[1, 0, 0.5]], rtol=1e-3)
    assert_array_equal(colour_picture(attribution, 100)[0, :, 0], [0, 128, 191])
    assert_array_equal(picture(attribution)[0, :, 0], [0, 170, 255])


def test_colour_picture_is_centred_at_grey_and_keeps_red_green_blue():
    attribution = np.zeros((2, 2, 3))
    attribution[0, 0] = 4, -4, 2
    attribution[1, 1] = 9, -9, 0
    shown = colour_picture(attribution, percentile=100 * 9 / 11)  # the tenth of twelve magnitudes: 4
    assert shown.dtype == np.uint8
    assert_array_equal(shown[0, 0], [255, 0, 191])
    assert_array_equal(shown[1, 1], [255, 0, 128])  # clipped
    assert_array_equal(shown[0, 1], [128, 128, 128])


def test_colour_picture_of_other_channels_is_the_grey_of_their_mean():
    attribution = np.random.default_rng(2).normal(size=(4, 5, 6))
    expected = colour_picture(attribution.mean(axis=2))
    assert_array_equal(colour_picture(attribution), expected)
    assert_array_equal(expected[..., 0], expected[..., 2])
    assert_array_equal(colour_picture(attribution[..., :1]), colour_picture(attribution[..., 0]))


def test_picture_stretches_any_range_to_bytes():
    image = np.linspace(-2.1, 2.6, 12).reshape(2, 2, 3)
    shown = picture(image)
    assert shown.shape == (2, 2, 3)
    assert (shown.min(), shown.max()) == (0, 255)
    assert_array_equal(shown.ravel(), np.floor(np.arange(12) / 11 * 255 + 0.5))
    assert_array_equal(picture(np.full((2, 3), 7)), np.full((2, 3, 3), 128))


def test_overlay_leaves_the_faded_image_where_the_heatmap_is_zero_and_only_its_shade_where_it_is_one():
    image = np.zeros((2, 2, 3))
    image[0] = 1, 0, 0
    image[1, 1] = 1
    attribution = np.array([[0.0, 0.0], [5.0, -5.0]])
    shown = overlay(image, attribution, opacity=1)
    assert_array_equal(shown[0], [[255, 128, 128]] * 2)
    # Black darkens and white lightens what lies over it by 7.5 %, and a middle grey leaves it.
    assert_allclose(shown[1], RAMP[-1] + np.array([[-0.075], [0.075]]) * 255, rtol=0, atol=0.51)
    assert_array_equal(overlay(np.full((2, 2), 7), attribution, opacity=1)[1], [RAMP[-1]] * 2)
    assert_array_equal(overlay(image, attribution, opacity=0)[1, 0], 128)


def test_a_map_smaller_than_the_image_is_enlarged_without_steps():
    small = np.tile(np.linspace(0, 1, 20)[:, np.newaxis], (1, 30))
    large = resized(small, 40, 60)
    expected = ((np.arange(40) + 0.5) / 2 - 0.5) / 19
    assert_allclose(large[6:-6, 5], expected[6:-6], atol=1e-6)
    with pytest.raises(AssertionError):
        assert_allclose(np.repeat(small, 2, axis=0)[6:-6, 5], expected[6:-6], atol=1e-6)
    image = np.random.default_rng(0).random((40, 60, 3))
    assert_array_equal(overlay(image, small, 100), paint_overlay(picture(image), large))
    assert overlay(np.zeros((40, 61)), small).shape == (40, 61, 3)


@pytest.mark.parametrize("of", ["colour", "diverging", "magnitude"])
def test_smoothing_is_a_gaussian_over_what_is_shown(of):
    attribution = np.random.default_rng(3).normal(size=(9, 12, 3))
    drawn = {"colour": attribution, "diverging": attribution.mean(2), "magnitude": np.abs(attribution).max(2)}[of]
    # Independent: scipy's, with mirrored edges, cut off at four standard deviations.
    sigma = (1.5, 1.5, 0) if of == "colour" else 1.5
    expected = ndimage.gaussian_filter(drawn, sigma, mode="reflect", truncate=4)
    found, full = shares(attribution, of, 90, 1.5)
    assert_allclose(full, np.percentile(np.abs(expected), 90), rtol=1e-12)
    assert_allclose(found, np.clip(expected / full, -1, 1), atol=1e-12)
    with pytest.raises(AssertionError):
        assert_allclose(shares(attribution, of, 90, 1.4)[0], found, atol=1e-12)
    assert scale(attribution, 90, of=of, smooth=1.5) == full


def test_a_map_without_contrast_has_none_when_smoothed():
    assert_array_equal(heatmap(np.full((7, 7), 0.1), smooth=1.3), 0)
    assert_array_equal(heatmap(np.eye(3), smooth=1e-9), np.eye(3))


@pytest.mark.parametrize("smooth", [-1, 101, float("nan"), "2"])
def test_a_smoothing_outside_its_range_is_refused(smooth):
    with pytest.raises(OptionError, match=r"smooth must be in \[0, 100\] pixels; received smooth="):
        heatmap(np.eye(3), smooth=smooth)


def test_the_colours_of_magnitudes_are_evenly_far_apart_and_ever_darker():
    along = magnitude(np.linspace(0, 1, 17)[np.newaxis], percentile=100)
    lab = rgb2lab(along / 255)[0]
    steps = deltaE_ciede2000(lab[:-1], lab[1:])
    assert steps.max() < 1.5 * steps.min(), steps
    assert (np.diff(lab[:, 0]) < -2).all(), lab[:, 0]
    # A fault: the rainbow is not even.
    jet = rgb2lab(colormaps["jet"](np.linspace(0, 1, 17))[np.newaxis, :, :3])[0]
    steps = deltaE_ciede2000(jet[:-1], jet[1:])
    assert steps.max() > 1.5 * steps.min()


@given(PIXELS)
@example(np.array([[5e-324, 0.0]]))
@example(np.full((1, 1, 3), np.finfo(np.float64).max))
def test_every_finite_attribution_has_finite_pictures(attribution):
    before = attribution.copy()
    heat = heatmap(attribution)
    assert heat.shape == attribution.shape[:2]
    assert ((heat >= 0) & (heat <= 1)).all()
    pictures = [render(attribution) for render in (magnitude, diverging, colour_picture, picture)]
    for shown in (*pictures, overlay(attribution, attribution)):
        assert shown.shape == (*attribution.shape[:2], 3)
        assert shown.dtype == np.uint8
    assert_array_equal(attribution, before)


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(6), r"received \w+ of shape \(6,\)"),
        (np.zeros((1, 2, 3, 1)), "one image at a time"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((2, 3, 0)), r"shape \(2, 3, 0\)"),
        (np.full((2, 3), np.nan), "received 6 values of"),
        (np.array([[1, 2, 3], [4, 5, np.inf]]), "received 1 values of"),
        (np.zeros((2, 3), complex), "must be real numbers"),
        (np.array([["a", "b"]]), "must be real numbers"),
    ],
)
def test_what_is_not_finite_pixels_is_refused(render, values, message):
    with pytest.raises(ImageError, match=message):
        render(values)


@pytest.mark.parametrize("shape", [(4, 4), (3, 3), (2, 4), (1, 2), (6, 8)])
def test_an_overlay_needs_one_size_or_the_same_proportions(shape):
    with pytest.raises(ImageError, match=r"or the same proportions; received image of shape \(3, 4, 4\)"):
        overlay(np.zeros((3, 4, 4)), np.zeros(shape))


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
@pytest.mark.parametrize("render", [heatmap, colour_picture])
def test_a_percentile_outside_its_range_is_refused(render, percentile):
    with pytest.raises(OptionError, match=r"percentile must be in \(0, 100\]; received percentile="):
        render(np.eye(3), percentile)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_outside_its_range_is_refused(opacity):
    with pytest.raises(OptionError, match="opacity must be in"):
        overlay(np.eye(3), np.eye(3), opacity=opacity)
