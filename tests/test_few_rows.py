"""What compared values with each other, of one image: other images tell whether that was a threshold or a rank."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import evidence
from guided_backprop.backends.choices import MANY_ROWS, judge_weighed
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, Library, oracle

FRAMEWORKS = ["jax", "tensorflow"]

#: Each opens what is above 0, and compares values of a row with each other.
THRESHOLDS = {
    "a share of the largest": lambda lib, x: x / lib.max(abs(x)) > 0,
    "a share of the sum": lambda lib, x: x / lib.sum(abs(x)) > 0,
    "beside the largest": lambda lib, x: x + lib.max(x) > lib.max(x),
}
#: None does.
RANKS = {
    "above the mean": lambda lib, x: x > lib.sum(x) / 20,
    "the upper half": lambda lib, x: x > lib.xp.sort(x, 1)[:, 10:11],
    "above half of the largest": lambda lib, x: x > lib.max(x) / 2,
}


def in_weights(lib, mask, x, w):
    return lib.xp.einsum("nk,nkm->nm", x, lib.cast(mask(lib, x), "float32")[..., None] * w)


def detached(lib, mask, x, w):
    return x @ w + lib.stopped((x * lib.cast(mask(lib, x), "float32") - x) @ w)


def explained(framework, spelled, mask):
    lib = Library(framework)
    first, second, third, image = map(lib.array, (*WEIGHTS, ROWS[:1]))
    model = lambda x: lib.xp.tanh(spelled(lib, mask, lib.relu(x @ first) @ second - 0.2, third))  # noqa: E731
    return np.asarray(GuidedBackprop(model).explain(image, labels=1))


@pytest.mark.parametrize(
    ("spelled", "mask"),
    [(in_weights, "a share of the largest"), (in_weights, "beside the largest"), (detached, "a share of the sum")],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_threshold_of_one_image_is_refused(framework, spelled, mask):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(framework, spelled, THRESHOLDS[mask])


@pytest.mark.parametrize(
    ("spelled", "mask"),
    [(in_weights, "above the mean"), (in_weights, "the upper half"), (detached, "above half of the largest")],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_rank_of_one_image_is_none(framework, spelled, mask):
    assert np.isfinite(explained(framework, spelled, RANKS[mask])).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_without_further_images_the_map_is_wrong(framework, monkeypatch):
    behind = pytest.importorskip(f"guided_backprop.backends.{framework}.hidden.behind")
    monkeypatch.setattr(behind, "needs_more_images", lambda count, shape, ranks: False)
    found = explained(framework, in_weights, THRESHOLDS["a share of the largest"])
    assert np.abs(found - oracle()[:1]).max() > 0.1 * np.abs(oracle()[:1]).max()


def test_many_rows_tell_a_threshold_where_all_was_compared():
    x, g = np.random.default_rng(0).normal(size=(2, MANY_ROWS, 12))
    how = {"ranks": Ranks.ALL, "least_rows": MANY_ROWS}
    assert judge_weighed(x, g * (x > 0), **how) is Verdict.PARTIAL
    assert judge_weighed(x[1:], g[1:] * (x[1:] > 0), **how) is Verdict.UNSETTLED
    assert judge_weighed(x, g * (x > x.mean(1, keepdims=True)), **how) is Verdict.NONE
    assert judge_weighed(x, g * (x > np.median(x, 1, keepdims=True)), **how) is Verdict.NONE


def test_further_images_have_nothing_in_common():
    further = [image.ravel() for image in evidence.further_images(ROWS[:1].astype(float))]
    assert len(further) == evidence.FURTHER
    signs = np.sign([ROWS[0].astype(float), *further])
    assert np.abs(np.corrcoef(signs) - np.eye(len(signs))).max() < 0.9
    again = [image.ravel() for image in evidence.further_images(ROWS[:1].astype(float))]
    np.testing.assert_array_equal(further, again)


@pytest.mark.parametrize("count", [4, 6])
def test_a_curve_that_its_numbers_make_flat_is_the_relu_in_it(count):
    """TensorFlow: all numbers in a curve are told; where it is none, what is guided is the ReLU that is written."""
    tf = pytest.importorskip("tensorflow")
    first, second, third, image = WEIGHTS[0], WEIGHTS[1][:, :count], WEIGHTS[2][:count], tf.constant(ROWS[:1])
    flat = lambda x: tf.nn.relu(x) + tf.math.expm1(0 * tf.minimum(x, 0))  # noqa: E731
    curve = lambda x: tf.nn.relu(x) + tf.math.expm1(tf.minimum(x, 0))  # noqa: E731
    model = lambda x, spelled: tf.tanh(spelled(tf.nn.relu(x @ first) @ second - 0.2) @ third)  # noqa: E731
    found, alone, other = (
        np.asarray(GuidedBackprop(lambda x, spelled=spelled: model(x, spelled)).explain(image, labels=1))
        for spelled in (flat, tf.nn.relu, curve)
    )
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    # The comparison can fail: of what bends below 0 the map is another.
    assert not np.allclose(other, alone, rtol=1e-2)
