"""What is chosen by rank is no ReLU, though on a handful of images the largest lie as a threshold would leave them."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends import spelling
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict, judge
from guided_backprop.backends.step import Given

RNG = np.random.default_rng(0)
FRAMEWORKS = ["torch", "jax", "tensorflow"]


def largest(x, kept):
    return np.where(x >= np.sort(x, axis=1)[:, -kept:][:, :1], x, 0)


def test_the_largest_of_few_rows_are_no_threshold_with_a_second_mask():
    """None of two numbers below 0 is among the larger half of eight, and two above 0 are closed."""
    x = RNG.permuted(RNG.uniform(0.1, 1, size=(14, 8)) * np.where(np.arange(8) < 2, -1, 1), axis=1)
    kept = largest(x, 4)
    assert judge(kept, x, ranks=Ranks.SOME).verdict is Verdict.UNSETTLED
    assert judge(kept, x, ranks=Ranks.ALL).verdict is Verdict.NONE
    # Where nothing was compared with each other it is one.
    assert judge(kept, x).verdict is Verdict.CONVEX


def test_the_larger_half_of_few_rows_is_no_relu():
    x = RNG.uniform(0.1, 1, size=(3, 40)) * np.where(np.arange(40) < 20, -1, 1)
    verdicts = [judge(largest(x, 20), x, ranks=ranks).verdict for ranks in (Ranks.NONE, Ranks.SOME, Ranks.ALL)]
    # That just as many are above 0 has a chance of 1 in 500: it is refused.
    assert verdicts == [Verdict.CONVEX, Verdict.PARTIAL, Verdict.PARTIAL]
    for ranks in (Ranks.SOME, Ranks.ALL):
        assert judge(largest(x[:2], 20), x[:2], ranks=ranks).verdict is Verdict.UNSETTLED
        assert judge(largest(x, 18), x, ranks=Ranks.ALL).verdict is Verdict.NONE
    x = np.concatenate([x] * 4)
    assert judge(largest(x, 20), x, ranks=Ranks.SOME).verdict is Verdict.CONVEX


def test_what_rounding_leaves_of_what_is_closed_is_no_rank():
    """As of x and the larger of x and -x, if other weights make -x."""
    x = RNG.normal(size=(12, 12))
    y = np.where(x > 0, x, 1e-17 * x)
    assert judge(y, x, ranks=Ranks.ALL).verdict is Verdict.PARTIAL
    assert judge(np.where(x > 0, x, 1e-9 * x), x, ranks=Ranks.ALL).verdict is Verdict.NONE


def test_by_channel_more_evidence_is_asked_for():
    x = RNG.normal(size=(12, 6))
    thresholds = np.sort(x, 0)[5:7].mean(0)
    assert judge(np.where(x > thresholds, x, 0), x).verdict is Verdict.CONVEX
    assert judge(np.where(x > thresholds, x, 0), x, ranks=Ranks.SOME).verdict is not Verdict.CONVEX
    x = RNG.normal(size=(60, 12))
    assert judge(np.where(x > np.arange(12) / 12, x, 0), x, ranks=Ranks.SOME).verdict is Verdict.CONVEX


def in_torch():
    torch = pytest.importorskip("torch")
    at_least = lambda x, kept: x >= x.topk(kept, 1).values[:, -1:]  # noqa: E731
    return torch, torch.relu, torch.as_tensor, lambda x: torch.cat([x[:, 1:], x[:, :1]], 1), at_least


def in_jax():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    at_least = lambda x, kept: x >= jax.lax.top_k(x, kept)[0][:, -1:]  # noqa: E731
    return jnp, jax.nn.relu, jnp.asarray, lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], 1), at_least


def in_tensorflow():
    tf = pytest.importorskip("tensorflow")
    at_least = lambda x, kept: x >= tf.math.top_k(x, kept)[0][:, -1:]  # noqa: E731
    return tf, tf.nn.relu, tf.constant, lambda x: tf.concat([x[:, 1:], x[:, :1]], 1), at_least


def explained(framework, images, width, kept, spelled=None):
    """Return the map of a network that keeps the largest, and the right one; a ReLU is spelled behind it, if any."""
    xp, relu, array, turned, at_least = {"torch": in_torch, "jax": in_jax, "tensorflow": in_tensorflow}[framework]()
    weights = np.random.default_rng(2).normal(size=(4, width, width)).astype("float32") / width**0.5
    seeds = np.random.default_rng(3).normal(size=(images, width)).astype("float32")
    x = np.random.default_rng(images).normal(size=(images, width)).astype("float32")
    first, second, third, last = map(array, weights)

    def model(x):
        x = turned(x @ first)
        x = xp.where(at_least(x, kept), x, 0 * x)
        x = relu(x @ second) if spelled is None else spelled(x @ second, xp)
        return relu(x @ third) @ last

    found = np.asarray(GuidedBackprop(model).explain(array(x), seeds))
    put = np.roll(x @ weights[0], -1, 1)
    hidden = largest(put, kept) @ weights[1]
    behind = np.maximum(hidden, 0) @ weights[2]
    g = np.maximum(seeds @ weights[3].T, 0) * (behind > 0)
    g = np.maximum(g @ weights[2].T, 0) * (hidden > 0)
    g = (g @ weights[1].T) * (largest(put, kept) != 0)
    return found, np.roll(g, 1, 1) @ weights[0].T


@pytest.mark.parametrize(("images", "width", "kept"), [(1, 50, 25), (7, 8, 4), (3, 8, 2)])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_top_k_of_what_was_put_together_is_right_or_refused(framework, images, width, kept):
    try:
        found, right = explained(framework, images, width, kept)
    except OpaqueRegionError:
        assert images < 4
    else:
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_relu_that_is_spelled_behind_a_top_k_is_guided(framework):
    for spelled in (lambda x, xp: (x + abs(x)) / 2, lambda x, xp: xp.where(x > 0, x, 0 * x)):
        np.testing.assert_allclose(*explained(framework, 7, 8, 4, spelled), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_planted_fault_what_asks_for_no_more_evidence_of_ranks_is_seen(framework, monkeypatch):
    monkeypatch.setattr(spelling, "Ranks", type("NoRanks", (), {"ALL": None, "NONE": Ranks.SOME}))
    found, right = explained(framework, 3, 8, 2)
    assert not np.allclose(found, right, rtol=1e-2)


def maxout_of_pools():
    """Return the map of one image by a network of maxouts and pools, and the right one: the gradient, and one ReLU."""
    torch = pytest.importorskip("torch")
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*shape, generator=draw) / 3 for shape in [(12, 3, 3, 3), (16, 6, 3, 3)])
    last, images = torch.randn(8, 2, generator=draw), torch.randn(1, 3, 8, 8, generator=draw)

    def model(x, relu=torch.relu):
        x = torch.maximum(*torch.conv2d(x, first, padding=1).chunk(2, 1))
        x = torch.maximum(*torch.conv2d(torch.max_pool2d(x, 2), second, padding=1).chunk(2, 1))
        return relu(x).mean((2, 3)) @ last

    leaf = images.clone().requires_grad_()
    gate = lambda x: x * (x > 0).detach()  # noqa: E731
    # The ReLU comes last: what arrives there is the weights of the score.
    guided = lambda x: gate(x) * (last[:, 0] > 0)[:, None, None]  # noqa: E731
    model(leaf, guided)[:, 0].sum().backward()
    return GuidedBackprop(model).explain(images, 0).attribution, leaf.grad


def test_a_pool_of_maxouts_is_no_relu():
    found, right = maxout_of_pools()
    assert right.any()
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7)


def test_planted_fault_a_pool_that_compares_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(Given, "_pools_chosen", False)
    with pytest.raises(OpaqueRegionError, match="max_pool"):
        maxout_of_pools()


def above_the_mean(framework, images, shape):
    """Return the map of what is kept above the mean of its row, less that, and the right one: it is a ReLU."""
    xp, relu, array, *_ = {"torch": in_torch, "jax": in_jax, "tensorflow": in_tensorflow}[framework]()
    rng = np.random.default_rng(images)
    first, second, last = (rng.normal(size=(shape[-1], shape[-1])).astype("float32") for _ in range(3))
    x, seeds = (rng.normal(size=(images, *shape)).astype("float32") for _ in range(2))
    mean = xp.reduce_mean if framework == "tensorflow" else xp.mean
    axes = tuple(range(1, x.ndim))

    def model(x):
        x = relu(x @ array(first)) @ array(second)
        middle = mean(x, axes, keepdims=True)
        return xp.where(x > middle, x - middle, 0 * x) @ array(last)

    found = np.asarray(GuidedBackprop(model).explain(array(x), seeds))
    hidden = x @ first
    put = np.maximum(hidden, 0) @ second
    g = np.maximum(seeds @ last.T, 0) * (put > put.mean(axes, keepdims=True))
    g = (g - g.mean(axes, keepdims=True)) @ second.T
    return found, (np.maximum(g, 0) * (hidden > 0)) @ first.T


@pytest.mark.parametrize(("images", "shape"), [(1, (20,)), (2, (20,)), (5, (20,)), (1, (7, 7, 6)), (5, (7, 7, 6))])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_above_the_mean_of_its_row_is_a_relu(framework, images, shape):
    try:
        found, right = above_the_mean(framework, images, shape)
    except OpaqueRegionError:
        assert framework == "tensorflow" or images == 1
    else:
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_what_ranks_leave_by_chance_is_seen(framework, monkeypatch):
    monkeypatch.setattr(spelling, "_chance_at_zero", lambda *_: None)
    found, right = above_the_mean(framework, 1, (20,))
    assert np.abs(found - right).max() > 0.1 * np.abs(right).max()
