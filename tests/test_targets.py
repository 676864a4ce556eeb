"""What is explained: every form of labels, on each framework, against the oracle with weights made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import reference
from guided_backprop import Box, Explanations, GuidedBackprop, LabelError, OptionError, Saliency, ScoreError
from guided_backprop.labels.box import BoxLabel
from networks import mlp
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
IMAGES = np.random.default_rng(1).normal(size=(4, 3, 8, 8))
CHANNELS, SIDE = 5, 6


def _dense() -> reference.Sequential:
    """Return a network whose output is a map: ``(N, 5, 6, 6)``."""
    rng = np.random.default_rng(3)
    relu = reference.ReLU()
    first, second = (reference.random_conv(rng, *sizes, padding=(1, 1)) for sizes in ((3, 4), (4, 6)))
    return reference.Sequential((first, relu, second, relu, reference.random_conv(rng, 6, CHANNELS)))


NETWORK = _dense()
OUTPUT = NETWORK.forward(IMAGES)[0]
MASK = np.zeros((SIDE, SIDE), bool)
MASK[1:3, 2:6] = True
WEIGHTS = np.random.default_rng(2).normal(size=OUTPUT.shape)
# Framework: the model, the images in its layout, and an array in the layout of the oracle.
FRAMEWORKS = {
    "torch": (to_torch, torch.tensor, np.asarray),
    "tensorflow": (
        to_tensorflow,
        lambda images: tf.constant(images.transpose(0, 2, 3, 1)),
        lambda array: np.moveaxis(array, -1, -3),
    ),
    "jax": (to_jax, lambda images: jnp.asarray(images.transpose(0, 2, 3, 1)), lambda array: np.moveaxis(array, -1, -3)),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def at(*entries: tuple[int, ...]) -> np.ndarray:
    """Return weight 1 at one entry of each image."""
    weights = np.zeros(OUTPUT.shape)
    for row, entry in enumerate(entries):
        weights[(row, *entry)] = 1
    return weights


def strongest(row: int, channel: int) -> tuple[int, ...]:
    return (channel, *map(int, np.unravel_index(OUTPUT[row, channel].argmax(), (SIDE, SIDE))))


TOP = OUTPUT.sum((2, 3)).argmax(1)
IDS = [0, 3, 4, 1]
EVERYWHERE = np.zeros(OUTPUT.shape)
for image in range(4):
    for channel in range(CHANNELS):
        EVERYWHERE[(image, *strongest(image, channel))] = 1
ENTRIES = [(1, 2, 3), (0, 0, 5), (4, 5, 0), (2, 2, 2)]
# Labels, keywords, and the weights that they stand for.
FORMS = {
    "ids": (IDS, {}, at(*((each,) for each in IDS))),
    "one id": (2, {}, at(*[(2,)] * 4)),
    "the top class": (None, {}, at(*((each,) for each in TOP))),
    "one entry": ((1, 2, 3), {}, at(*[(1, 2, 3)] * 4)),
    "entries": (ENTRIES, {}, at(*ENTRIES)),
    "a channel where it is strongest": ((3, "max"), {}, at(*(strongest(row, 3) for row in range(4)))),
    "strongest and entries": (
        [(1, "max"), *ENTRIES[1:]],
        {},
        at(strongest(0, 1), *ENTRIES[1:]),
    ),
    "every channel where it is strongest": ("max", {}, EVERYWHERE),
    "ids within a mask": (IDS, {"mask": MASK}, at(*((each,) for each in IDS)) * MASK),
    "one mask an image": (
        1,
        {"mask": np.stack([MASK, ~MASK, MASK, ~MASK])},
        at(*[(1,)] * 4) * np.stack([MASK, ~MASK, MASK, ~MASK])[:, None],
    ),
    "a mask of weights": (IDS, {"mask": MASK * 0.5}, at(*((each,) for each in IDS)) * MASK * 0.5),
}


def explain(framework, labels, batch_size=None, method=GuidedBackprop, **keywords) -> tuple[np.ndarray, Explanations]:
    build, convert, back = FRAMEWORKS[framework]
    explanations = method(build(NETWORK), batch_size=batch_size).explain(convert(IMAGES), labels, **keywords)
    return back(np.asarray(explanations)), explanations


def expected(weights: np.ndarray) -> np.ndarray:
    return reference.attribution(NETWORK, IMAGES, weights, "guided")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_form(framework, form):
    labels, keywords, weights = FORMS[form]
    found, explanations = explain(framework, labels, **keywords)
    np.testing.assert_allclose(found, expected(weights), **TOLERANCE)
    np.testing.assert_allclose(explanations.scores, (weights * OUTPUT).sum((1, 2, 3)), **TOLERANCE)
    in_batches, _ = explain(framework, labels, batch_size=3, **keywords)
    np.testing.assert_allclose(in_batches, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_weights_have_the_layout_of_the_output(framework):
    weights = WEIGHTS if framework == "torch" else np.moveaxis(WEIGHTS, 1, -1)
    found, explanations = explain(framework, weights)
    np.testing.assert_allclose(found, expected(WEIGHTS), **TOLERANCE)
    np.testing.assert_array_equal(explanations.labels, weights)
    contrast = at(*((each,) for each in IDS)) - at(*((4 - each,) for each in IDS))
    turned = contrast if framework == "torch" else np.moveaxis(contrast, 1, -1)
    # The class in the middle is its own opposite.
    if (contrast.reshape(4, -1) != 0).any(1).all():
        np.testing.assert_allclose(explain(framework, turned.astype(int))[0], expected(contrast), **TOLERANCE)


@pytest.mark.parametrize(
    ("form", "planted"),
    [
        ("one entry", at(*[(1, 3, 2)] * 4)),
        ("one entry", at(*[(2, 2, 3)] * 4)),
        ("ids within a mask", at(*((each,) for each in IDS))),
        ("a channel where it is strongest", at(*[(3,)] * 4)),
        ("every channel where it is strongest", np.ones(OUTPUT.shape)),
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_faults_are_caught(framework, form, planted):
    labels, keywords, _ = FORMS[form]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(explain(framework, labels, **keywords)[0], expected(planted), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_was_explained_is_told(framework):
    assert explain(framework, None)[1].labels.tolist() == TOP.tolist()
    assert explain(framework, (3, "max"))[1].labels.tolist() == [list(strongest(row, 3)) for row in range(4)]
    assert explain(framework, ENTRIES)[1].labels.tolist() == [list(entry) for entry in ENTRIES]


# Many labels of one image.


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_many_labels_of_an_image(framework, batch_size):
    labels = np.array([[0, 1, 4], [4, 3, 2], [1, 1, 0], [2, 0, 3]])
    _, explanations = explain(framework, labels, batch_size=batch_size)
    assert explanations.attribution.shape[:2] == (4, 3)
    assert explanations.scores.shape == (4, 3)
    np.testing.assert_array_equal(explanations.labels, labels)
    back = FRAMEWORKS[framework][2]
    for column, ids in enumerate(labels.T):
        found = back(np.asarray(explanations.attribution[:, column]))
        weights = at(*((each,) for each in ids))
        np.testing.assert_allclose(found, expected(weights), **TOLERANCE)
        np.testing.assert_allclose(explanations.scores[:, column], (weights * OUTPUT).sum((1, 2, 3)), **TOLERANCE)
    assert explanations.coverage == explain(framework, 0)[1].coverage


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_top_labels(framework):
    order = np.argsort(-OUTPUT.sum((2, 3)), axis=1)
    _, explanations = explain(framework, "top3")
    np.testing.assert_array_equal(explanations.labels, order[:, :3])
    one = explain(framework, "top1")[1]
    assert one.attribution.shape[:2] == (4, 1)
    masked = explain(framework, "top2", mask=MASK)[1]
    np.testing.assert_array_equal(masked.labels, np.argsort(-(OUTPUT * MASK).sum((2, 3)), axis=1)[:, :2])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_labels_in_their_order(framework):
    _, explanations = explain(framework, "all")
    assert explanations.labels.tolist() == [list(range(5))] * 4
    by_ids = explain(framework, [list(range(5))] * 4)[1]
    np.testing.assert_array_equal(explanations, by_ids)
    masked = explain(framework, "all", mask=MASK)[1]
    np.testing.assert_allclose(masked.scores, (OUTPUT * MASK).sum((2, 3)), **TOLERANCE)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(explanations.scores, explain(framework, "top5")[1].scores)


def test_labels_of_two_classes_with_one_output():
    rows = torch.ones(3, 3)
    model = torch.nn.Sequential(to_torch(mlp(3, 4, 1)).float(), torch.nn.Sigmoid()).eval()
    method = Saliency(model)
    for_one, for_other = method.explain(rows, 0), method.explain(rows, [[-1.0]] * 3)
    np.testing.assert_array_equal(for_other, -np.asarray(for_one))
    advice = r"label 0 explains it, and the other of two classes is weight -1: np.where\(labels, 1.0, -1.0\)"
    for labels in ([0, 1, 1], 1, np.array([[0], [1], [1]]), np.array([[0.0], [1.0], [1.0]])):
        with pytest.raises(LabelError, match=advice):
            method.explain(rows, labels)
    with pytest.raises(LabelError, match=advice + r"\.$"):
        Saliency(torch.nn.Sequential(model, torch.nn.Flatten(0))).explain(rows, [0, 1, 1])
    # As the message says it.
    both = method.explain(rows, np.where([0, 1, 1], 1.0, -1.0).reshape(-1, 1))
    np.testing.assert_array_equal(both.attribution[0], for_other.attribution[0])
    np.testing.assert_array_equal(both.attribution[1], for_one.attribution[1])
    with pytest.raises(LabelError, match="Count classes from 0"):
        method.explain(rows, 2)


class Counting(torch.nn.Module):
    """Counts its forward passes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images):
        self.calls += 1
        return self.model(images)


def test_many_labels_take_one_forward_pass():
    model = Counting(to_torch(NETWORK)).eval()
    GuidedBackprop(model).explain(torch.tensor(IMAGES), "top5")
    assert model.calls == 1


def test_many_labels_behind_a_softmax():
    model = torch.nn.Sequential(to_torch(NETWORK), torch.nn.Flatten(), torch.nn.Softmax(1)).eval()
    explanations = GuidedBackprop(model).explain(torch.tensor(IMAGES), [[0, 7]] * 4)
    assert explanations.head == "softmax"
    for column, entry in enumerate([(0, 0, 0), (0, 1, 1)]):
        np.testing.assert_allclose(explanations.attribution[:, column], expected(at(*[entry] * 4)), **TOLERANCE)


def test_rows_of_many_labels(tmp_path):
    explanations = explain("torch", "top3")[1]
    assert explanations[1].attribution.shape == (3, 3, 8, 8)
    assert explanations[1].score.shape == (3,)
    assert explanations[1:3].labels.shape == (2, 3)
    assert len(explanations) == 4
    assert len(explanations.plot().axes) == 4 * 3 * 4 + 1
    folder = explanations.save(tmp_path / "maps", names=list("abcd"))
    assert len(list(folder.glob("*_magnitude.png"))) == 12
    assert (folder / "a_colour.png").exists()


def test_reduced_channels_of_many_labels():
    explanations = GuidedBackprop(to_torch(NETWORK), reducer="absmax").explain(torch.tensor(IMAGES), "top3")
    assert explanations.attribution.shape == (4, 3, 8, 8)
    whole = explain("torch", "top3")[0]
    np.testing.assert_allclose(explanations.attribution, np.abs(whole).max(2), **TOLERANCE)


# A score that is a function of the output.


SCORES = {
    "torch": lambda output: (output**2).sum((1, 2, 3)),
    "tensorflow": lambda output: tf.reduce_sum(output**2, (1, 2, 3)),
    "jax": lambda output: (output**2).sum((1, 2, 3)),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_callable(framework):
    found, explanations = explain(framework, SCORES[framework])
    np.testing.assert_allclose(found, expected(2 * OUTPUT), **TOLERANCE)
    np.testing.assert_allclose(explanations.scores, (OUTPUT**2).sum((1, 2, 3)), **TOLERANCE)
    assert explanations.labels.tolist() == ["<lambda>"] * 4
    in_batches, _ = explain(framework, SCORES[framework], batch_size=3)
    np.testing.assert_allclose(in_batches, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_callable_that_gives_no_score(framework):
    for wrong in (lambda output: output, lambda output: 1.0, lambda output: output[99, 0, 0, 0, 0, 0]):
        with pytest.raises(LabelError, match=r"one real number per image, \(N,\)"):
            explain(framework, wrong)


RELUS = {"torch": torch.relu, "tensorflow": tf.nn.relu, "jax": jax.nn.relu}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_rule_ends_at_the_output(framework):
    """A ReLU of the callable has its own derivative; guided, it would let nothing of a negative weight through."""
    relu, back = RELUS[framework], FRAMEWORKS[framework][2]
    found, explanations = explain(framework, lambda output: -relu(output + 1e3)[:, 2, 3, 1])
    entry = back(np.arange(OUTPUT.size).reshape(1, *OUTPUT.shape)) if framework == "torch" else None
    weights = np.zeros(OUTPUT.shape)
    weights[(slice(None), 2, 3, 1) if entry is not None else (slice(None), 1, 2, 3)] = -1
    np.testing.assert_allclose(found, expected(weights), **TOLERANCE)
    assert np.abs(found).max() > 0
    assert str(explanations.coverage) == "relu x2 guided"


def test_a_callable_that_does_not_look_at_the_output():
    with pytest.raises(ScoreError, match="carries no gradient"):
        explain("torch", lambda output: torch.ones(4))


def test_a_callable_sees_the_probabilities():
    """What is asked for is explained: the head is undone for labels only."""
    linear = torch.nn.Linear(3, 4).double()
    model = torch.nn.Sequential(linear, torch.nn.ReLU(), torch.nn.Linear(4, 2).double(), torch.nn.Softmax(1)).eval()
    rows = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explanations = Saliency(model).explain(rows, lambda output: output[:, 1])
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    np.testing.assert_allclose(explanations.attribution, gradient, **TOLERANCE)
    assert explanations.head is None


def test_callables_are_not_kept_for_ever():
    method = GuidedBackprop(to_tensorflow(NETWORK))
    images = tf.constant(IMAGES[:1].transpose(0, 2, 3, 1))
    for factor in range(1, 12):
        found = method.explain(images, lambda output, factor=factor: factor * tf.reduce_sum(output, (1, 2, 3)))
        np.testing.assert_allclose(found.scores, factor * OUTPUT[:1].sum((1, 2, 3)), **TOLERANCE)
    backend = method.subject.backend(images)
    assert len(backend._copies) == len(backend._plans) == 1


# What must not pass.


@pytest.mark.parametrize(
    ("labels", "keywords", "message"),
    [
        ((1, 2), {}, r"must index the model's output, \(5, 6, 6\) with channels first; received labels\[0\]=\(1, 2\)"),
        ((1, 2, 6), {}, r"received labels\[0\]=\(1, 2, 6\)"),
        ((5, "max"), {}, r"received labels\[0\]=\(5, 'max'\)"),
        ((-1, 0, 0), {}, "must index"),
        ((), {}, r"\(channel, row, column\)"),
        (("max", 1), {}, r"\(channel, row, column\)"),
        ((1.5, 2, 3), {}, r"\(channel, row, column\)"),
        ((np.zeros(4, int), np.ones(4, int)), {}, r"\(channel, row, column\)"),
        ([(1, 2, 3)] * 3, {}, "received 3 tuples for 4 images"),
        ([(1, 2, 3)] * 3 + [4], {}, r"\(channel, row, column\)"),
        ([*ENTRIES[:3], (9, 0, 0)], {}, r"received labels\[3\]=\(9, 0, 0\)"),
        ("min", {}, "a word; received labels='min'"),
        ("top0", {}, "a word; received labels='top0'"),
        ("top", {}, "a word"),
        ("top6", {}, 'needs 6 classes.*Pass "top5"'),
        ([[0, 5]] * 4, {}, r"in \[0, 5\); received labels\[0, 1\]=5"),
        ([[0.5, 1]] * 4, {}, "class ids"),
        (np.zeros((4, 5, 6)), {}, "weights of the output's shape"),
        (np.zeros((4, 0), int), {}, "weights of the output's shape"),
        (0, {"mask": np.ones((5, 6))}, r"mask must have the shape .*received mask of shape \(5, 6\)"),
        (0, {"mask": np.ones((3, 6, 6))}, "received mask of shape"),
        (0, {"mask": np.zeros((6, 6))}, r"mask must not be empty; received mask\[0\]=0"),
        (0, {"mask": np.stack([MASK, MASK, MASK & False, MASK])}, r"mask\[2\]=0"),
        (0, {"mask": np.full((6, 6), np.nan)}, "finite"),
        (0, {"mask": np.full((6, 6), "a")}, "finite"),
        ((1, 2, 3), {"mask": MASK}, "Pass class ids"),
        ("max", {"mask": MASK}, "Pass class ids"),
        (lambda output: output.sum((1, 2, 3)), {"mask": MASK}, "Pass class ids"),
        (WEIGHTS, {"mask": MASK}, "Pass class ids"),
    ],
)
def test_bad_labels(labels, keywords, message):
    with pytest.raises(LabelError, match=message):
        explain("torch", labels, **keywords)


def test_labels_of_an_output_without_positions():
    model = to_torch(mlp(3, 4, 3)).float()
    method, rows = GuidedBackprop(model), torch.ones(2, 3)
    np.testing.assert_array_equal(method.explain(rows, (1,)), method.explain(rows, 1))
    for labels, message in (
        ("max", "needs an output with positions"),
        ((1, "max"), "must index"),
        ((0, 1), "Pass a list of integers"),
        ([[0, 1, 2], [2, 1, 0]], "could be class ids or weights"),
    ):
        with pytest.raises(LabelError, match=message):
            method.explain(rows, labels)
    with pytest.raises(LabelError, match="mask must have the shape"):
        method.explain(rows, 0, mask=np.ones(3))


def test_labels_of_one_number_an_image():
    model = torch.nn.Sequential(to_torch(mlp(3, 4, 1)).float(), torch.nn.Flatten(0))
    method, rows = Saliency(model.eval()), torch.ones(2, 3)
    expected = method.explain(rows)
    for labels in (0, [0, 0], [1.0, 1.0]):
        np.testing.assert_array_equal(method.explain(rows, labels), expected)
    assert method.explain(rows, "top1").attribution.shape == (2, 1, 3)
    twice = method.explain(rows, [[0, 0], [0, 0]])
    assert twice.scores.shape == twice.labels.shape == (2, 2)
    np.testing.assert_array_equal(twice.attribution[:, 1], expected)
    for labels in (1, "top2", "max", (0,)):
        with pytest.raises(LabelError):
            method.explain(rows, labels)


# Boxes.


CANDIDATES, CLASSES = 6, 3


class Detector(torch.nn.Module):
    """A dense detector: for each candidate left, top, right, bottom, objectness, and class scores."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.trunk = torch.nn.Linear(12, 16).double()
        self.head = torch.nn.Linear(16, CANDIDATES * (5 + CLASSES)).double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / 4

    def forward(self, images):
        raw = self.head(torch.relu(self.trunk(images.flatten(1)))).reshape(-1, CANDIDATES, 5 + CLASSES)
        corners = torch.arange(CANDIDATES)[:, None] * 4.0 + torch.tensor([0.0, 0.0, 9.0, 7.0])
        return torch.cat([raw[..., :4] + corners, torch.sigmoid(raw[..., 4:])], dim=2)


DETECTOR = Detector().eval()
SCENES = np.random.default_rng(5).normal(size=(3, 3, 2, 2))
FOUND = DETECTOR(torch.tensor(SCENES)).detach().numpy()


def plain_gradient(score) -> np.ndarray:
    """Return the gradient of a function of the detector's output."""
    leaf = torch.tensor(SCENES, requires_grad=True)
    (gradient,) = torch.autograd.grad(score(DETECTOR(leaf)).sum(), leaf)
    return gradient.numpy()


def overlap(boxes: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union, for autograd."""
    sides = torch.minimum(boxes[:, 2:], reference[:, 2:]) - torch.maximum(boxes[:, :2], reference[:, :2])
    inside = sides.clamp(min=0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, reference)]
    return inside / (areas[0] + areas[1] - inside)


REFERENCE = FOUND[:, 2, :4] + np.array([0.4, -0.3, 0.6, 0.2])
PARTS = {
    "class": lambda output: output[:, 2, 6],
    "objectness": lambda output: output[:, 2, 4],
    "left": lambda output: output[:, 2, 0],
    "bottom": lambda output: output[:, 2, 3],
    "position": lambda output: overlap(output[:, 2, :4], torch.tensor(REFERENCE)),
    "detection": lambda output: overlap(output[:, 2, :4], torch.tensor(REFERENCE)) * output[:, 2, 4] * output[:, 2, 6],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_box(part):
    box = Box(REFERENCE, classes=1, of=part, has_objectness=True)
    explanations = Saliency(DETECTOR, undo_head=False).explain(torch.tensor(SCENES), box)
    np.testing.assert_allclose(explanations.attribution, plain_gradient(PARTS[part]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(explanations.scores, PARTS[part](torch.tensor(FOUND)), rtol=1e-9)
    in_batches = Saliency(DETECTOR, undo_head=False, batch_size=2).explain(torch.tensor(SCENES), box)
    np.testing.assert_allclose(in_batches, explanations, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(in_batches.scores, explanations.scores, rtol=1e-9)


def test_a_box_is_found_again_when_it_moves():
    for shift in ([0, 0, 0, 0], [1, 1, 1, 1], [-1.5, 0.5, 0.5, -1]):
        box = Box(FOUND[:, 2, :4] + np.array(shift), classes=[1, 1, 1], has_objectness=True)
        explanations = Saliency(DETECTOR).explain(torch.tensor(SCENES), box)
        assert [tuple(map(int, np.argwhere(weights)[0])) for weights in explanations.labels] == [(2, 6)] * 3
    other = Saliency(DETECTOR).explain(torch.tensor(SCENES), Box(FOUND[:, 3, :4], 1, has_objectness=True))
    assert not np.allclose(other, explanations)


def test_a_box_of_any_class():
    explanations = Saliency(DETECTOR).explain(torch.tensor(SCENES), Box(FOUND[0, 2, :4], has_objectness=True))
    (match, column) = np.argwhere(explanations.labels[0])[0]
    assert (match, column) == (2, 5 + FOUND[0, 2, 5:].argmax())


def test_a_candidate_that_is_no_object_is_not_the_box():
    """Class scores of empty places mean nothing."""
    outputs = np.array([[[0, 0, 9, 9, 0.01, 0.9, 0.9], [1, 1, 9, 9, 0.9, 0.5, 0.6]]])
    for has_objectness, expected_match in ((True, 1), (False, 0)):
        box = BoxLabel.parse(Box([0, 0, 9, 9], classes=1, has_objectness=has_objectness), 1)
        assert np.argwhere(box.weigh(outputs)[0][0])[0][0] == expected_match


def test_one_box_for_all_images_and_no_objectness():
    class Bare(torch.nn.Module):
        def forward(self, images):
            return torch.cat([DETECTOR(images)[..., :4], DETECTOR(images)[..., 5:]], 2)

    explanations = Saliency(Bare().eval()).explain(torch.tensor(SCENES), Box([8, 8, 17, 15], classes=0))
    assert np.argwhere(explanations.labels[0]).tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box([1, 2, 3]), r"received boxes of shape \(3,\)"),
        (lambda: Box([[3, 2, 1, 4]]), "left < right"),
        (lambda: Box([1, 2, np.nan, 4]), "left < right"),
        (lambda: Box([0, 0, 1, 1], of="colour"), "received of='colour'"),
        (lambda: Box([0, 0, 1, 1], of="objectness"), "has_objectness=False"),
        (lambda: Box([0, 0, 9, 9], classes=0.5), "classes must be integers"),
        (lambda: Box([[0, 0, 9, 9]] * 2), r"received \[2\] for 3 images"),
        (lambda: Box([0, 0, 9, 9], classes=[0, 1]), r"received \[3, 2\]"),
        (lambda: Box([0, 0, 9, 9], classes=3, has_objectness=True), r"classes must be in \[0, 3\)"),
        (lambda: Box([900, 900, 909, 909]), "overlaps none"),
        (lambda: Box(FOUND[:, 2, :4], 1, of="position", has_objectness=True), "where the overlap is at its maximum"),
        (lambda: Box(FOUND[:, 2, :4] + 1e-7, 1, of="position", has_objectness=True), "the overlap is at its maximum"),
    ],
)
def test_bad_boxes(make, message):
    with pytest.raises(LabelError, match=message):
        Saliency(DETECTOR).explain(torch.tensor(SCENES), make())


def test_a_box_needs_a_detector():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3).double()).eval()
    with pytest.raises(LabelError, match=r"received outputs of shape \(3, 3\)"):
        Saliency(model).explain(torch.tensor(SCENES), Box([0, 0, 1, 1]))


# Where output_layer looks.


def test_a_layer_is_given_by_itself():
    model = to_torch(NETWORK)
    by_name, by_itself = (
        GuidedBackprop(model, output_layer=layer).explain(torch.tensor(IMAGES), (1, "max")) for layer in ("2", model[2])
    )
    np.testing.assert_array_equal(by_itself, by_name)
    with pytest.raises(OptionError, match="received layer=Conv2d, which is not in it"):
        GuidedBackprop(model, output_layer=torch.nn.Conv2d(1, 1, 1))
