"""Guards against rounding are no ReLUs, in every framework alike; a ReLU of a ReLU is one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

from guided_backprop import GuidedBackprop
from guided_backprop.backends import guards
from guided_backprop.errors import NoReluError

RNG = np.random.default_rng(0)
FIRST, LAST, IMAGES, WEIGHTS = (RNG.normal(size=shape) for shape in [(6, 8), (8, 4), (3, 6), (3, 4)])


class Torch:
    relu, sqrt, abs, square, sign = torch.relu, torch.sqrt, torch.abs, torch.square, torch.sign
    softmax = staticmethod(lambda x: torch.softmax(x, 1))
    mean = staticmethod(lambda x: x.mean(1, keepdim=True))
    sum = staticmethod(lambda x: x.sum(1, keepdim=True))
    maximum = staticmethod(lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)))
    clamp = staticmethod(lambda x: x.clamp(min=0))
    matmul, transposed = torch.matmul, staticmethod(torch.t)
    images = staticmethod(torch.as_tensor)
    where, minimum = torch.where, staticmethod(lambda x: x.clamp(max=0))
    stack = staticmethod(lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0))
    halves = staticmethod(lambda x: x.chunk(2, 1))


class TensorFlow:
    relu, sqrt, abs, square, sign = tf.nn.relu, tf.sqrt, tf.abs, tf.square, tf.sign
    softmax = staticmethod(lambda x: tf.nn.softmax(x, 1))
    mean = staticmethod(lambda x: tf.reduce_mean(x, 1, keepdims=True))
    sum = staticmethod(lambda x: tf.reduce_sum(x, 1, keepdims=True))
    maximum = staticmethod(lambda x: tf.maximum(x, tf.zeros((), x.dtype)))
    clamp = staticmethod(lambda x: tf.clip_by_value(x, 0.0, np.inf))
    matmul, transposed = tf.matmul, tf.transpose
    images = staticmethod(tf.constant)
    where, minimum = tf.where, staticmethod(lambda x: tf.minimum(x, tf.zeros((), x.dtype)))
    stack = staticmethod(lambda x: tf.reduce_max(tf.stack([x, tf.zeros_like(x)]), 0))
    halves = staticmethod(lambda x: tf.split(x, 2, 1))


class Jax:
    relu, sqrt, abs, square, sign = jax.nn.relu, jnp.sqrt, jnp.abs, jnp.square, jnp.sign
    softmax = staticmethod(lambda x: jax.nn.softmax(x, 1))
    mean = staticmethod(lambda x: x.mean(1, keepdims=True))
    sum = staticmethod(lambda x: x.sum(1, keepdims=True))
    maximum = staticmethod(lambda x: jnp.maximum(x, 0.0))
    clamp = staticmethod(lambda x: jnp.clip(x, 0.0))
    matmul, transposed = jnp.matmul, jnp.transpose
    images = staticmethod(jnp.asarray)
    where, minimum = jnp.where, staticmethod(lambda x: jnp.minimum(x, 0.0))
    stack = staticmethod(lambda x: jnp.stack([x, jnp.zeros_like(x)]).max(0))
    halves = staticmethod(lambda x: jnp.split(x, 2, 1))


FRAMEWORKS = {"torch": Torch, "tensorflow": TensorFlow, "jax": Jax}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def variance(f, h):
    mean = f.mean(h)
    return f.mean(h * h) - mean * mean


def distances(f, h, bound):
    """All distances between the images, by their squares and products."""
    square = f.sum(f.square(h))
    return bound(square + f.transposed(square) - 2.0 * f.matmul(h, f.transposed(h)))


GUARDS = {
    "layer norm": lambda f, h: (h - f.mean(h)) / f.sqrt(f.maximum(variance(f, h)) + 1e-5),
    "layer norm by clamp": lambda f, h: (h - f.mean(h)) / f.sqrt(f.clamp(variance(f, h)) + 1e-5),
    "variance without a root": lambda f, h: h - f.maximum(f.mean(f.square(h)) - f.square(f.mean(h))),
    "variance by a ReLU": lambda f, h: h / (1.0 + f.relu(-f.square(f.mean(h)) + f.mean(h * h))),
    "a variance of sums under a root": lambda f, h: (
        h / f.sqrt(f.maximum(f.sum(h * h) - f.sum(h) * f.sum(h) / 8.0) / 7.0 + 1e-5)
    ),
    "sum of squares": lambda f, h: h / f.sqrt(f.maximum(f.sum(f.square(h))) + 1e-5),
    "magnitude": lambda f, h: f.maximum(f.abs(h)),
    "power pooling": lambda f, h: (f.sign(f.sum(h**2)) * f.relu(f.abs(f.sum(h**2)))) ** 0.5 + h,
    "distances": lambda f, h: f.matmul(distances(f, h, f.maximum), h),
}


def masked(f, h):
    """Guards of several kinds as masks of several kinds, in one network."""
    less, moment = f.mean(h * h) - f.mean(h) * f.mean(h), variance(f, h) + (f.sum(h * h) - f.square(f.sum(h)) / 8.0)
    h = h - f.where(less < 0, 0.0 * less, less) - (moment - f.minimum(moment))
    return h + f.mean(distances(f, h, lambda x: (x + f.abs(x)) / 2.0))


def nearly(f, h):
    """ReLUs of what is as a variance or a distance, but for the numbers that are summed."""
    first, second = f.halves(h)
    g = f.matmul(h, f.images(FIRST[:3].T))
    square, turned = f.sum(f.square(g)), f.transposed(g)
    h = h - f.maximum(f.mean(g * g) - f.square(f.mean(turned))) - f.relu(f.mean(first * first) - f.mean(second) ** 2.0)
    h = h - f.sqrt(f.maximum(f.sum(first * first) - f.sum(second * second)) + 1.0)
    h = h - f.mean(f.maximum(f.mean(g * g) - f.square(f.transposed(f.mean(g)))))
    h = h - f.mean(f.relu(square + square - 2.0 * f.matmul(g, turned)))
    return h + f.mean(f.relu(square + f.transposed(square) - 2.0 * f.matmul(g, g)))


RELUS = {
    "ReLU of a ReLU": lambda f, h: f.maximum(f.relu(h)) + h,
    "ReLU of a softmax": lambda f, h: f.clamp(f.softmax(h)) + h,
    "ReLU of a mean": lambda f, h: h - f.relu(f.mean(h)),
    "root of a ReLU": lambda f, h: h + f.sqrt(f.relu(f.mean(h)) + 1.0),
    "sum of squares less a square of the sum": lambda f, h: h - f.maximum(f.sum(h * h) - f.square(f.sum(h))),
    "variance with a weight": lambda f, h: h - f.maximum(f.mean(h * h) - 2.0 * f.square(f.mean(h))),
    "squares less a constant": lambda f, h: h - f.maximum(h * h - 1.0),
}


def explained(name, part, vouch=None):
    f = FRAMEWORKS[name]
    first, last = (np.asarray(each) if f is not Torch else torch.as_tensor(each) for each in (FIRST, LAST))
    model = lambda x: f.matmul(part(f, f.relu(f.matmul(x, first))), last)  # noqa: E731
    # Whether values look like a ReLU spelled as arithmetic is another question.
    vouch = dict.fromkeys("add div mul pow sub".split(), "plain") if vouch is None else vouch
    return GuidedBackprop(model, vouch=vouch).explain(f.images(IMAGES), WEIGHTS)


@cache
def guided_maps(part, *, guards):
    """The rule by hand, put on the ReLUs alone; compiled, which is sooner done than each operation of it."""

    @jax.custom_vjp
    def guided(x):
        return jnp.maximum(x, 0)

    guided.defvjp(lambda x: (jnp.maximum(x, 0), x > 0), lambda is_open, g: (jnp.maximum(g, 0) * is_open,))

    class ByHand(Jax):
        relu = guided
        maximum = guided if not guards else Jax.maximum
        clamp = guided if not guards else Jax.clamp

    class Guard(ByHand):
        relu = Jax.relu

    inside = Guard if guards else ByHand
    model = lambda x: part(inside, guided(x @ FIRST)) @ LAST  # noqa: E731
    return jax.jit(jax.grad(lambda x: (model(x) * WEIGHTS).sum()))(jnp.asarray(IMAGES))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", GUARDS)
def test_a_guard_keeps_its_derivative(case, framework):
    found = explained(framework, GUARDS[case])
    assert [(row.name, row.count) for row in found.coverage if row.treatment == "guided"] == [("relu", 1)]
    np.testing.assert_allclose(found.attribution, guided_maps(GUARDS[case], guards=True), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_guard_that_is_a_mask_keeps_its_derivative(framework):
    found = explained(framework, masked, vouch={})
    assert [(row.name, row.count) for row in found.coverage if row.treatment == "guided"] == [("relu", 1)]
    np.testing.assert_allclose(found.attribution, guided_maps(masked, guards=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_squares_of_other_numbers_are_no_guard(framework, monkeypatch):
    found, expected = explained(framework, nearly), guided_maps(nearly, guards=False)
    assert sum(row.count for row in found.coverage if row.treatment == "guided") == 7
    np.testing.assert_allclose(found.attribution, expected, rtol=1e-9, atol=1e-9)
    # With the axes left out these are variances and distances.
    for name in ("is_variance", "is_distance"):
        monkeypatch.setattr(guards, name, lambda *_, **__: True)
    found = explained(framework, lambda f, h: nearly(f, 1.0 * h))
    assert not np.allclose(found.attribution, expected, rtol=1e-3)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", RELUS)
def test_what_is_nearly_a_guard_is_a_relu(case, framework):
    found = explained(framework, RELUS[case])
    assert sum(row.count for row in found.coverage if row.treatment == "guided") == 2 + (case == "ReLU of a ReLU")
    np.testing.assert_allclose(found.attribution, guided_maps(RELUS[case], guards=False), rtol=1e-9, atol=1e-12)


def test_the_layer_norm_of_equinox_has_no_relu():
    import equinox as eqx

    with pytest.raises(NoReluError, match="maximum x1"):
        GuidedBackprop(jax.vmap(eqx.nn.LayerNorm(6))).explain(jnp.asarray(IMAGES), 1)


def test_power_pooling_alone_has_no_relu():
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.LPPool2d(2, 2), torch.nn.Flatten(), torch.nn.Linear(36, 3)]
    with pytest.raises(NoReluError, match="maximum x1"):
        GuidedBackprop(torch.nn.Sequential(*layers).eval()).explain(torch.rand(2, 1, 8, 8), 0)


def test_an_optimised_model_keeps_its_guards():
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.LPPool2d(2, 2), torch.nn.Flatten()]
    model, images = torch.nn.Sequential(*layers, torch.nn.Linear(36, 3)).eval(), torch.rand(2, 1, 8, 8)
    method = GuidedBackprop(model)
    expected = method.explain(images, 0)
    found = method.optimize(images).explain(images, 0)
    assert ("relu", 1, "guided") in found.coverage
    np.testing.assert_allclose(found.attribution, expected.attribution, rtol=1e-4, atol=1e-6)


def test_halves_of_one_operation_are_two_values():
    first, second = (lambda h: h.chunk(2, 1)), (lambda h: (h[:, :4], h[:, 4:]))
    weights = torch.as_tensor(LAST[:4])
    found = [
        GuidedBackprop(lambda x, cut=cut: gated(*cut(x @ torch.as_tensor(FIRST))) @ weights).explain(
            torch.as_tensor(IMAGES), WEIGHTS
        )
        for cut in (first, second)
    ]
    assert [str(each.coverage) for each in found] == ["relu x2 guided"] * 2
    np.testing.assert_allclose(found[0].attribution, found[1].attribution, rtol=1e-9)


def gated(a, b):
    """A leaky ReLU, were both of them one value."""
    return torch.relu(a) - 0.1 * torch.relu(-b)
