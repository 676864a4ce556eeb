"""The coverage says the same of one computation in the three frameworks: a row per operation, a column for each."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F

from guided_backprop import GuidedBackprop

IMAGES = np.random.default_rng(0).uniform(0.1, 0.8, (2, 6)).astype(np.float32)
WEIGHT = np.random.default_rng(1).uniform(-1, 1, (6, 6)).astype(np.float32)

Function = Callable[[Any], Any]
T_WEIGHT = torch.tensor(WEIGHT)


def same(function: Function) -> tuple[Function, Function, Function]:
    """Return a function that is written alike in the three."""
    return function, function, function


def normalised(mean: Function, inverse_root: Function) -> Function:
    """Return layer norm, written out."""
    return lambda x: (x - mean(x)) * inverse_root(mean((x - mean(x)) ** 2) + 1e-5)


def of_matrices(in_torch: Function, in_tensorflow: Function, in_jax: Function) -> tuple[Function, Function, Function]:
    """Return functions of matrices that are symmetric and positive: of each image, one."""
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]], np.float32)
    return (
        lambda x: in_torch(x[:, :1, None] * torch.tensor(matrix)),
        lambda x: in_tensorflow(x[:, :1, None] * tf.constant(matrix)),
        lambda x: in_jax(x[:, :1, None] * jnp.asarray(matrix)),
    )


# What the three list, beside the ReLU in front; and how it is written in PyTorch, TensorFlow and JAX.
ROWS: dict[str, tuple[str, Function, Function, Function]] = {
    # Curves.
    "tan": ("tan x1", torch.tan, tf.tan, jnp.tan),
    "sin": ("sin x1", torch.sin, tf.sin, jnp.sin),
    "cos": ("cos x1", torch.cos, tf.cos, jnp.cos),
    "sinh": ("sinh x1", torch.sinh, tf.sinh, jnp.sinh),
    "cosh": ("cosh x1", torch.cosh, tf.cosh, jnp.cosh),
    "tanh": ("tanh x1", torch.tanh, tf.tanh, jnp.tanh),
    "asin": ("asin x1", torch.asin, tf.asin, jnp.arcsin),
    "acos": ("acos x1", torch.acos, tf.acos, jnp.arccos),
    "atan": ("atan x1", torch.atan, tf.atan, jnp.arctan),
    "asinh": ("asinh x1", torch.asinh, tf.asinh, jnp.arcsinh),
    "acosh": ("acosh x1", lambda x: torch.acosh(x + 2), lambda x: tf.acosh(x + 2), lambda x: jnp.arccosh(x + 2)),
    "atanh": ("atanh x1", torch.atanh, tf.atanh, jnp.arctanh),
    "atan2": (
        "atan2 x1",
        lambda x: torch.atan2(x, torch.ones_like(x)),
        lambda x: tf.atan2(x, tf.ones_like(x)),
        lambda x: jnp.arctan2(x, jnp.ones_like(x)),
    ),
    "erf": ("erf x1", torch.erf, tf.math.erf, jax.scipy.special.erf),
    "erfc": ("erfc x1", torch.erfc, tf.math.erfc, jax.scipy.special.erfc),
    "erfinv": ("erfinv x1", torch.erfinv, tf.math.erfinv, jax.scipy.special.erfinv),
    "lgamma": ("lgamma x1", torch.lgamma, tf.math.lgamma, jax.scipy.special.gammaln),
    "polygamma": (
        "polygamma x1",
        lambda x: torch.polygamma(1, x),
        lambda x: tf.math.polygamma(tf.ones_like(x), x),
        lambda x: jax.scipy.special.polygamma(1, x),
    ),
    "zeta": (
        "zeta x1",
        lambda x: torch.special.zeta(torch.full_like(x, 2), x),
        lambda x: tf.math.zeta(tf.fill(tf.shape(x), 2.0), x),
        lambda x: jax.scipy.special.zeta(jnp.full_like(x, 2), x),
    ),
    "igamma": (
        "igamma x1",
        lambda x: torch.special.gammainc(torch.ones_like(x), x),
        lambda x: tf.math.igamma(tf.ones_like(x), x),
        lambda x: jax.scipy.special.gammainc(jnp.ones_like(x), x),
    ),
    "bessel": ("bessel x1", torch.special.i0e, tf.math.bessel_i0e, jax.scipy.special.i0e),
    "abs": ("abs x1", torch.abs, tf.abs, jnp.abs),
    "modulo": (
        "modulo x1",
        lambda x: torch.remainder(x, 0.5),
        lambda x: tf.math.floormod(x, 0.5),
        lambda x: jnp.remainder(x, 0.5),
    ),
    "digamma": ("digamma x1", torch.digamma, tf.math.digamma, jax.scipy.special.digamma),
    # Exponentials, logarithms, powers and divisions.
    "exp": ("exp x1", torch.exp, tf.exp, jnp.exp),
    "exp2": ("exp x1", torch.exp2, tf.experimental.numpy.exp2, jnp.exp2),
    "expm1": ("expm1 x1", torch.expm1, tf.math.expm1, jnp.expm1),
    "log": ("log x1", torch.log, tf.math.log, jnp.log),
    "log1p": ("log1p x1", torch.log1p, tf.math.log1p, jnp.log1p),
    "log2": ("log x1", torch.log2, tf.experimental.numpy.log2, jnp.log2),
    "log10": ("log x1", torch.log10, tf.experimental.numpy.log10, jnp.log10),
    "square": ("pow x1", torch.square, tf.square, jnp.square),
    "cube": ("pow x1", *same(lambda x: x**3)),
    "a root as a power": ("pow x1", *same(lambda x: x**0.3)),
    "sqrt": ("sqrt x1", torch.sqrt, tf.sqrt, jnp.sqrt),
    "by its own root": (
        "div x1, sqrt x1",
        lambda x: x / torch.sqrt(x),
        lambda x: x / tf.sqrt(x),
        lambda x: x / jnp.sqrt(x),
    ),
    "rsqrt": ("rsqrt x1", torch.rsqrt, tf.math.rsqrt, jax.lax.rsqrt),
    "1 / x": ("div x1", *same(lambda x: 1 / x)),
    "division by what depends on the images": ("div x1", *same(lambda x: x / (x + 1.0))),
    "division by a constant": ("", *same(lambda x: x / 3.0)),
    "x * x": ("", *same(lambda x: x * x)),
    # Over several values.
    "prod": ("prod x1", lambda x: x.prod(1), lambda x: tf.reduce_prod(x, 1), lambda x: x.prod(1)),
    "cumprod": (
        "cumprod x1",
        lambda x: x.cumprod(1),
        lambda x: tf.math.cumprod(x, 1),
        lambda x: jnp.cumprod(x, 1),
    ),
    "cumsum": ("", lambda x: x.cumsum(1), lambda x: tf.cumsum(x, 1), lambda x: jnp.cumsum(x, 1)),
    "mean": ("", lambda x: x.mean(1), lambda x: tf.reduce_mean(x, 1), lambda x: x.mean(1)),
    "max": ("max x1", lambda x: x.amax(1), lambda x: tf.reduce_max(x, 1), lambda x: x.max(1)),
    "min": ("min x1", lambda x: x.amin(1), lambda x: tf.reduce_min(x, 1), lambda x: x.min(1)),
    "sort": ("sort x1", lambda x: torch.sort(x, 1).values, lambda x: tf.sort(x, 1), lambda x: jnp.sort(x, 1)),
    "topk": (
        "sort x1",
        lambda x: torch.topk(x, 3).values,
        lambda x: tf.math.top_k(x, 3).values,
        lambda x: jax.lax.top_k(x, 3)[0],
    ),
    "median": (
        "sort x1",
        lambda x: x[:, 1:].median(1).values,
        lambda x: tf.sort(x[:, 1:], 1)[:, 2],
        lambda x: jnp.median(x[:, 1:], 1),
    ),
    "norm": ("norm x1", lambda x: x.norm(dim=1), lambda x: tf.norm(x, axis=1), lambda x: jnp.linalg.norm(x, axis=1)),
    "max pooling": (
        "max_pool x1",
        lambda x: F.max_pool1d(x[:, None], 2),
        lambda x: tf.nn.max_pool1d(x[..., None], 2, 2, "VALID"),
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID"),
    ),
    "average pooling": (
        "",
        lambda x: F.avg_pool1d(x[:, None], 2),
        lambda x: tf.nn.avg_pool1d(x[..., None], 2, 2, "VALID"),
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2), (1, 2), "VALID") / 2,
    ),
    # Of matrices.
    "cholesky": ("cholesky x1", *of_matrices(torch.linalg.cholesky, tf.linalg.cholesky, jnp.linalg.cholesky)),
    "eigenvalues": ("eig x1", *of_matrices(torch.linalg.eigvalsh, tf.linalg.eigvalsh, jnp.linalg.eigvalsh)),
    "singular values": (
        "svd x1",
        *of_matrices(
            torch.linalg.svdvals,
            lambda x: tf.linalg.svd(x, compute_uv=False),
            lambda x: jnp.linalg.svd(x, compute_uv=False),
        ),
    ),
    "triangular solve": (
        "inv x1",
        *of_matrices(
            lambda x: torch.linalg.solve_triangular(x, torch.ones(2, 2, 1), upper=False),
            lambda x: tf.linalg.triangular_solve(x, tf.ones((2, 2, 1))),
            lambda x: jax.lax.linalg.triangular_solve(x, jnp.ones((2, 2, 1)), left_side=True, lower=True),
        ),
    ),
    "qr": (
        "pow x1, qr x1",
        *of_matrices(
            lambda x: torch.linalg.qr(x).R ** 2, lambda x: tf.linalg.qr(x).r ** 2, lambda x: jnp.linalg.qr(x).R ** 2
        ),
    ),
    "logsumexp": (
        "logsumexp x1",
        lambda x: torch.logsumexp(x, 1),
        lambda x: tf.reduce_logsumexp(x, 1),
        lambda x: jax.nn.logsumexp(x, 1),
    ),
    "layer norm, written out": (
        "pow x1, rsqrt x1",
        normalised(lambda x: x.mean(1, keepdim=True), torch.rsqrt),
        normalised(lambda x: tf.reduce_mean(x, 1, keepdims=True), tf.math.rsqrt),
        normalised(lambda x: x.mean(1, keepdims=True), jax.lax.rsqrt),
    ),
    # Bounds.
    "clamp": (
        "clamp x1",
        lambda x: x.clamp(0.2, 0.5),
        lambda x: tf.clip_by_value(x, 0.2, 0.5),
        lambda x: jnp.clip(x, 0.2, 0.5),
    ),
    "hardtanh": ("clamp x1", F.hardtanh, lambda x: tf.clip_by_value(x, -1.0, 1.0), jax.nn.hard_tanh),
    "at least": ("maximum x1", lambda x: x.clamp(min=0.3), lambda x: tf.maximum(x, 0.3), lambda x: jnp.maximum(x, 0.3)),
    "at most": ("minimum x1", lambda x: x.clamp(max=0.3), lambda x: tf.minimum(x, 0.3), lambda x: jnp.minimum(x, 0.3)),
    "the larger of two": (
        "maximum x1",
        lambda x: torch.maximum(x @ T_WEIGHT, x),
        lambda x: tf.maximum(x @ WEIGHT, x),
        lambda x: jnp.maximum(x @ WEIGHT, x),
    ),
    # Activations: one operation, or several.
    "gelu": ("gelu x1", F.gelu, tf.nn.gelu, jax.nn.gelu),
    "silu": ("silu x1", F.silu, tf.nn.silu, jax.nn.silu),
    "elu": ("elu x1", F.elu, tf.nn.elu, jax.nn.elu),
    "leaky ReLU": ("leaky_relu x1", F.leaky_relu, tf.nn.leaky_relu, jax.nn.leaky_relu),
    "leaky ReLU, written out with a cap": (
        "leaky_relu x1",
        lambda x: F.relu6(x) - 0.1 * F.relu(-x),
        lambda x: tf.nn.relu6(x) - 0.1 * tf.nn.relu(-x),
        lambda x: jax.nn.relu6(x) - 0.1 * jax.nn.relu(-x),
    ),
    "leaky ReLU, written out with a cap of its ReLU": (
        "leaky_relu x1",
        lambda x: F.relu(x).clamp(0, 4) - 0.1 * F.relu(-x),
        lambda x: tf.clip_by_value(tf.nn.relu(x), 0, 4) - 0.1 * tf.nn.relu(-x),
        lambda x: jnp.clip(jax.nn.relu(x), 0, 4) - 0.1 * jax.nn.relu(-x),
    ),
    "softplus": ("softplus x1", F.softplus, tf.math.softplus, jax.nn.softplus),
    "softsign": ("softsign x1", F.softsign, tf.nn.softsign, jax.nn.soft_sign),
    "sigmoid": (
        "sigmoid x1",
        lambda x: torch.sigmoid(x) * 2,
        lambda x: tf.sigmoid(x) * 2,
        lambda x: jax.nn.sigmoid(x) * 2,
    ),
    "softmax": (
        "softmax x1",
        lambda x: torch.softmax(x, 1) * 2,
        lambda x: tf.nn.softmax(x) * 2,
        lambda x: jax.nn.softmax(x) * 2,
    ),
    "log-softmax": (
        "log_softmax x1",
        lambda x: torch.log_softmax(x, 1) * 2,
        lambda x: tf.nn.log_softmax(x) * 2,
        lambda x: jax.nn.log_softmax(x) * 2,
    ),
    "softmax, written out": (
        "softmax x1",
        lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True) * 2,
        lambda x: tf.exp(x) / tf.reduce_sum(tf.exp(x), 1, keepdims=True) * 2,
        lambda x: jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True) * 2,
    ),
    "hard-sigmoid, written out": (
        "hardsigmoid x1",
        lambda x: F.relu6(x + 3.0) / 6.0,
        lambda x: tf.nn.relu6(x + 3.0) / 6.0,
        lambda x: jax.nn.relu6(x + 3.0) / 6.0,
    ),
}
FRAMEWORKS = {
    "torch": (torch.relu, torch.tensor),
    "tensorflow": (tf.nn.relu, tf.constant),
    "jax": (jax.nn.relu, jnp.asarray),
}
RESHAPES: dict[str, Function] = {
    "torch": lambda y: y.reshape(len(y), -1),
    "tensorflow": lambda y: tf.reshape(y, (2, -1)),
    "jax": lambda y: y.reshape(len(y), -1),
}


def listed(framework: str, function: Function) -> str:
    """Return what the coverage of a function behind a ReLU says, but for that ReLU."""
    relu, array = FRAMEWORKS[framework]

    def model(x: Any) -> Any:
        return RESHAPES[framework](function(relu(x) + 0.01))

    coverage = str(GuidedBackprop(model).explain(array(IMAGES), 0).coverage)
    rest, found = re.subn(r"(, )?relu x1 guided(, )?", lambda match: ", " if all(match.groups()) else "", coverage)
    assert found == 1, coverage
    return rest


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("operation", ROWS)
def test_the_coverage_is_the_same_in_each_framework(operation, framework):
    expected, *columns = ROWS[operation]
    function = dict(zip(FRAMEWORKS, columns, strict=True))[framework]
    assert listed(framework, function) == ", ".join(f"{row} plain" for row in expected.split(", ") if row)


def test_planted_fault_another_operation_is_another_coverage():
    assert listed("torch", torch.tan) != listed("torch", torch.tanh)


@pytest.mark.parametrize("operation", ROWS)
def test_the_columns_compute_the_same(operation):
    """So that a row does not compare what only goes by one name."""
    x = IMAGES + 0.01
    values = [
        np.asarray(column(array(x))).ravel()
        for column, (_, array) in zip(ROWS[operation][1:], FRAMEWORKS.values(), strict=True)
    ]
    for each in values[1:]:
        np.testing.assert_allclose(each, values[0], rtol=2e-3, atol=2e-4)
