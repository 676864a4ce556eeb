"""A record by row and by input: indexed as NumPy indexes the first axis, whatever framework its arrays are of."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

from guided_backprop import Coverage, Explanation, Explanations, GuidedBackprop, Nonlinearity, OptionError, SmoothGrad
from guided_backprop.arrays import Inputs
from guided_backprop.record import Record
from networks import mlp
from networks_torch import to_torch

COUNT = 4
VALUES = np.random.default_rng(0).normal(size=(COUNT, 3, 5, 5)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1])
SCORES = np.array([1.5, -2.0, 0.25, 3.0])
OUTPUTS = np.stack([SCORES, -SCORES], axis=1)
COVERAGE = Coverage([Nonlinearity("relu", 16, "guided"), Nonlinearity("sigmoid", 1, "plain")])
FRAMEWORKS = {"numpy": np.array, "torch": torch.tensor, "tensorflow": tf.constant, "jax": jnp.asarray}
# An index, and the rows that it means.
INDEXES = {
    "a list": ([0, 2], [0, 2]),
    "another order, twice, from the end": ([3, 0, -1], [3, 0, 3]),
    "an array": (np.array([2, 1], np.uint8), [2, 1]),
    "a mask": (LABELS == 1, [1, 3]),
    "a list of booleans": ([True, False, False, True], [0, 3]),
    "a tensor": (torch.tensor([1, 2]), [1, 2]),
    "a mask of another framework": (tf.constant(SCORES) > 0, [0, 2, 3]),
    "a slice": (slice(1, 3), [1, 2]),
    "a slice backwards": (slice(None, None, -2), [3, 1]),
    "nothing": ([], []),
    "no row of a mask": (SCORES > 99, []),
}


def record(convert=np.array, **fields) -> Explanations:
    """Return explanations of a given attribution, with images that are its opposite."""
    found = Explanations(
        convert(VALUES), convert(-VALUES), LABELS, SCORES, OUTPUTS, COVERAGE, "GuidedBackprop", "Net", channel_axis=1
    )
    return replace(found, **fields)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_as_numpy_chooses_them(framework, index):
    whole = record(FRAMEWORKS[framework])
    chosen, rows = whole[INDEXES[index][0]], INDEXES[index][1]
    assert type(chosen) is Explanations
    assert type(chosen.attribution) is type(whole.attribution)
    assert type(chosen.images) is type(whole.images)
    assert len(chosen) == len(rows)
    np.testing.assert_array_equal(chosen, VALUES[rows])
    np.testing.assert_array_equal(np.asarray(chosen.images), -VALUES[rows])
    np.testing.assert_array_equal(chosen.labels, LABELS[rows])
    np.testing.assert_array_equal(chosen.scores, SCORES[rows])
    np.testing.assert_array_equal(chosen.outputs, OUTPUTS[rows])
    assert (chosen.coverage, chosen.method, chosen.model, chosen.channel_axis) == (COVERAGE, "GuidedBackprop", "Net", 1)
    assert [float(one.score) for one in chosen] == SCORES[rows].tolist()


@pytest.mark.parametrize("planted", [[1, 0], [0, 0], [0, 1]])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_in_the_wrong_order_are_caught(framework, planted):
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(record(FRAMEWORKS[framework])[[0, 2]], VALUES[planted])


@pytest.mark.parametrize("index", [2, -2, np.int64(2), np.array(2), torch.tensor(2)])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_integer_is_one_explanation(framework, index):
    one = record(FRAMEWORKS[framework])[index]
    assert type(one) is Explanation
    np.testing.assert_array_equal(one, VALUES[2])
    np.testing.assert_array_equal(np.asarray(one.image), -VALUES[2])
    assert (int(one.label), one.score, one.output.tolist()) == (0, 0.25, [0.25, -0.25])


def test_rows_on_another_device():
    meta = replace(record(torch.tensor), attribution=torch.empty(VALUES.shape, device="meta"))
    assert meta[[0, 2]].attribution.shape == (2, 3, 5, 5)
    assert str(meta[LABELS == 1].attribution.device) == "meta"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_of_several_inputs(framework):
    convert = FRAMEWORKS[framework]
    ids = convert(np.arange(COUNT))
    named = record(
        attribution={"image": convert(VALUES), "ids": None, "row": convert(VALUES[:, 0, 0])},
        images={"image": convert(-VALUES), "ids": ids, "row": convert(VALUES[:, 1, 1])},
        channel_axis={"image": 1, "ids": None, "row": None},
    )
    part = named[[3, 1]]
    assert list(part.attribution) == ["image", "ids", "row"]
    assert part.attribution["ids"] is None
    np.testing.assert_array_equal(np.asarray(part.images["ids"]), [3, 1])
    np.testing.assert_array_equal(part.of_input("row"), VALUES[[3, 1], 0, 0])
    assert part.of_input("image").channel_axis == 1
    assert part.by_input()["ids"] is None
    assert list(named[1].attribution) == ["image", "ids", "row"]
    pair = record(attribution=(convert(VALUES), None), images=(convert(-VALUES), ids), channel_axis=(1, None))[
        LABELS == 1
    ]
    np.testing.assert_array_equal(pair.of_input(0), VALUES[[1, 3]])
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(pair.of_input(0), VALUES[[3, 1]])
    for wrong in ("ids", "other", 0, [1]):
        with pytest.raises(OptionError, match="of_input"):
            named.of_input(wrong)
    with pytest.raises(OptionError, match=re.escape("np.asarray() needs one input; received explanations of 3 inputs")):
        np.asarray(part)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_of_many_labels(framework):
    many = record(
        attribution=FRAMEWORKS[framework](np.stack([VALUES, 2 * VALUES], axis=1)),
        labels=np.stack([LABELS, 1 - LABELS], axis=1),
        scores=np.stack([SCORES, 2 * SCORES], axis=1),
    )
    part = many[[2, 0]]
    np.testing.assert_array_equal(part, np.stack([VALUES, 2 * VALUES], axis=1)[[2, 0]])
    np.testing.assert_array_equal(part.labels, [[0, 1], [0, 1]])
    flat = part.one_label_a_row()
    np.testing.assert_array_equal(flat, [factor * VALUES[row] for row in (2, 0) for factor in (1, 2)])
    np.testing.assert_array_equal(flat.labels, [0, 1, 0, 1])
    np.testing.assert_array_equal(many[-1].score, [3.0, 6.0])


def test_rows_of_what_was_explained():
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3))
    method = GuidedBackprop(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), pool).eval())
    images = torch.rand(4, 3, 8, 8)
    explanations = method.explain(images, [0, 1, 0, 1])
    again = method.explain(images[[1, 3]], 1)
    np.testing.assert_allclose(explanations[explanations.labels == 1], again, rtol=1e-5, atol=1e-7)
    assert len(explanations[[0, 2]].plot().axes) == 2 * 4 + 1


@pytest.mark.parametrize("index", [4, -5, np.int64(4), [0, 4], [-5], np.array([9])])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_out_of_range(framework, index):
    with pytest.raises(IndexError, match=r"index must be in \[-4, 4\); received index=(4|-5|9)\. Count"):
        record(FRAMEWORKS[framework])[index]


@pytest.mark.parametrize("mask", [[True] * 3, np.ones(5, bool)])
def test_a_mask_of_another_length(mask):
    with pytest.raises(IndexError, match=r"one boolean per image; received [35] for 4 images"):
        record()[mask]


@pytest.mark.parametrize(
    "index",
    [
        None,
        ...,
        True,
        np.True_,
        1.0,
        [0.0, 1.0],
        "ids",
        (0, 1),
        (slice(2), 0),
        [[0, 1]],
        np.ones((4, 1), bool),
        {0},
        [[0], 1],
    ],
)
def test_what_is_no_index(index):
    with pytest.raises(OptionError, match=r"index must be an integer, a slice, .*; received index="):
        record()[index]


def test_an_empty_record():
    empty = record(torch.tensor)[:0]
    assert len(empty) == len(empty[[]]) == len(empty[np.zeros(0, bool)]) == 0
    with pytest.raises(IndexError, match=r"in \[0, 0\); received index=0"):
        empty[0]


def test_a_record_alone_is_data():
    plain = Record(VALUES, -VALUES, LABELS, SCORES, OUTPUTS, COVERAGE, "GuidedBackprop", "Net")
    assert type(plain[[1]]) is Record
    assert not hasattr(plain, "plot")
    np.testing.assert_array_equal(plain[[1]], VALUES[[1]])


# One line that a person can read.


def test_the_words_of_each():
    explanations = record()
    assert repr(COVERAGE) == "Coverage(relu x16 guided, sigmoid x1 plain)"
    assert repr(Coverage()) == "Coverage(none)"
    assert str(COVERAGE) == "relu x16 guided, sigmoid x1 plain"
    described = "shape=(4, 3, 5, 5), coverage='relu x16 guided, sigmoid x1 plain')"
    assert repr(explanations) == f"Explanations(method='GuidedBackprop', model='Net', {described}"
    row = "shape=(3, 5, 5), relu x16 guided, sigmoid x1 plain)"
    assert repr(explanations[1]) == f"Explanation(label=1, score=-2, {row}"
    of = {
        "entry": (np.array([1, 2, 3]), 1234.5678, "label=[1, 2, 3], score=1235"),
        "many": (np.array([0, 1]), np.array([1 / 3, 2.0]), "label=[0, 1], score=[0.3333, 2]"),
        "one-hot": (np.eye(3)[1], 1e-9, "label=[0, 1, 0], score=1e-09"),
        "weights": (np.ones((5, 6, 6)), 0.0, "label=weights of shape (5, 6, 6), score=0"),
        "callable": (np.array("margin"), 0.0, "label=margin, score=0"),
    }
    for label, score, words in of.values():
        assert repr(replace(explanations[1], label=label, score=score)) == f"Explanation({words}, {row}"
    both = replace(explanations[1], attribution=(VALUES[0], None))
    assert "shape=((3, 5, 5), None)" in repr(both)


def test_the_words_of_a_method_around_another():
    model = to_torch(mlp(4, 3, 2))
    smooth = SmoothGrad(GuidedBackprop(model, reducer="sum"), samples=3)
    described = "samples=3, noise=0.15, seed=0, form='mean'"
    assert repr(smooth) == f"SmoothGrad(GuidedBackprop(Sequential, reducer='sum'), {described})"
    assert smooth.name == f"SmoothGrad(GuidedBackprop, {described})"


# What a model is given, in each form.


@pytest.mark.parametrize("form", ["one", "tuple", "names"])
def test_inputs_of_each_form(form):
    image, row = VALUES, VALUES[:, 0, 0]
    images = {"one": image, "tuple": (image, row), "names": {"image": image, "row": row}}[form]
    inputs = Inputs.of(images)
    assert inputs.count == COUNT
    assert list(inputs.names) == {"one": [0], "tuple": [0, 1], "names": ["image", "row"]}[form]
    assert inputs.form == Inputs.of(inputs.rows(slice(2)).images).form
    assert inputs.form != Inputs.of({"row": row, "image": image}).form
    again = inputs.images
    assert type(again) is type(images)
    arrays = list(again.values()) if form == "names" else list(again) if form == "tuple" else [again]
    assert all(found is given for found, given in zip(arrays, [image, row], strict=False))
    doubled = inputs.map(lambda array, factor: array * factor, inputs.like([2, 3][: len(arrays)]))
    for found, given, factor in zip(doubled.arrays, [image, row], [2, 3], strict=False):
        np.testing.assert_array_equal(found, factor * given)
    assert inputs.like([None] * len(arrays)).map(abs).arrays == [None] * len(arrays)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_libraries_take_explanations_for_their_attribution(framework):
    found = record(FRAMEWORKS[framework])
    assert tuple(found.shape) == VALUES.shape
    assert tuple(found[0].shape) == (3, 5, 5)
    for convert in (torch.as_tensor, torch.tensor, tf.convert_to_tensor, jnp.asarray, np.asarray, np.from_dlpack):
        converted = convert(found)
        assert tuple(converted.shape) == VALUES.shape
        np.testing.assert_array_equal(np.asarray(converted), VALUES)
    np.testing.assert_array_equal(np.abs(found), np.abs(VALUES))
    np.testing.assert_array_equal(torch.as_tensor(found[::-1]), VALUES[::-1])


def test_a_conversion_shares_memory_where_it_may():
    in_torch = record(torch.tensor)
    assert torch.as_tensor(in_torch).data_ptr() == in_torch.attribution.data_ptr()
    # What JAX holds must not change under its feet.
    in_jax = record(jnp.asarray)
    torch.as_tensor(in_jax)[:] = 0
    np.testing.assert_array_equal(in_jax, VALUES)
    several = replace(in_torch, attribution=(in_torch.attribution,) * 2, images=(in_torch.images,) * 2)
    assert several.shape == ((COUNT, 3, 5, 5),) * 2
    with pytest.raises(OptionError, match="needs one input"):
        torch.as_tensor(several)
