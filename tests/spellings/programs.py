"""Further ways to compute a ReLU, and what is near to one, in JAX alone: in loops, by indices, by a choice."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def with_zeros(x, axis=-1):
    return jnp.stack([x, jnp.zeros_like(x)], axis)


def by_index(x):
    flat = x.ravel()
    places = jnp.nonzero(flat > 0, size=flat.size, fill_value=flat.size)[0]
    return jnp.zeros(flat.size + 1, x.dtype).at[places].set(flat[places])[:-1].reshape(x.shape)


def rows(x):
    return jnp.arange(len(x))[:, None]


def columns(x):
    return jnp.arange(x.shape[1])[None]


def filled_in_a_loop(x):
    """The mask is made of what the loop closes over."""
    return lax.fori_loop(0, x.shape[1], lambda i, y: y.at[:, i].set(x[:, i] * (x[:, i] > 0)), x * 0)


def copied_sign(x):
    return lax.map(lambda s: lax.cond(s > 0, lambda s: s, lambda s: 0.0 * s, s), x.ravel()).reshape(x.shape)


def written_into_a_column(x):
    column = x.reshape(-1, 1)
    return column.at[jnp.arange(x.size), 0].set(jnp.where(column > 0, column, 0)[:, 0]).reshape(x.shape)


def convolved(x, padding, **how):
    return lax.conv_general_dilated(
        x.reshape(-1, 1, 1, 1),
        jnp.ones((1, 1, 1, 1)),
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **how,
    )


#: Each is a ReLU of x ``(N, features)``.
GUIDED = {
    # What a mask that a curve makes leaves undefined, another choice closes.
    "what a rounded curve leaves undefined": lambda x: jnp.nan_to_num(
        jnp.where(jnp.round(jax.nn.sigmoid(x)) > 0.5, x, jnp.nan)
    ),
    "written into a column": written_into_a_column,
    "root of a square": lambda x: jnp.where(x > 0, jnp.sqrt(x * x), 0.0),
    "power of a square": lambda x: jnp.where(x > 0, (x * x) ** 0.5, 0.0),
    "logarithm of an exponential": lambda x: jnp.where(x > 0, jnp.log(jnp.exp(x)), 0.0),
    "fori_loop that closes over x": filled_in_a_loop,
    "scan over x": lambda x: lax.scan(lambda carry, s: (carry, jnp.where(s > 0, s, 0)), 0, x)[1],
    "scan over x and a mask": lambda x: lax.scan(lambda carry, s: (carry, s[0] * s[1]), 0, (x, (x > 0) * 1.0))[1],
    "scan that carries x": lambda x: lax.scan(lambda carry, s: (jnp.where(carry > 0, carry, 0), s), x, jnp.ones(3))[0],
    "a mask from a while loop": lambda x: (
        x * lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, (x > 0) * 1.0), (0, jnp.zeros_like(x)))[1]
    ),
    "cond on single values": copied_sign,
    "at[:].multiply": lambda x: x.at[:].multiply(x > 0),
    "at[].set": lambda x: x.at[jnp.where(x < 0, rows(x), len(x)), columns(x)].set(0.0, mode="drop"),
    "at[].get": lambda x: x.at[jnp.where(x > 0, rows(x), len(x)), columns(x)].get(mode="fill", fill_value=0.0),
    "nonzero and a scatter": by_index,
    "copysign": lambda x: (x + jnp.copysign(x, 1.0)) / 2,
    "take_along_axis": lambda x: jnp.take_along_axis(
        jnp.stack([x * 0, x], -1), (x > 0).astype(int)[..., None], -1
    ).squeeze(-1),
    "one_hot": lambda x: (jax.nn.one_hot((x > 0).astype(int), 2) * jnp.stack([x * 0, x], -1)).sum(-1),
    "argmax": lambda x: x * jnp.argmax(jnp.stack([x * 0, x], -1), -1),
    "argsort": lambda x: x * jnp.argsort(with_zeros(x), -1)[..., 0],
    "median": lambda x: jnp.median(jnp.stack([x, x * 0, x * 0 + 1e9], -1), -1),
    "quantile": lambda x: jnp.quantile(with_zeros(x), 1.0, axis=-1),
    "top_k": lambda x: lax.top_k(with_zeros(x), 1)[0][..., 0],
    "-cummin": lambda x: -lax.cummin(with_zeros(-x), x.ndim)[..., 1],
    "reduce_window": lambda x: lax.reduce_window(
        with_zeros(x), -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "VALID"
    ).squeeze(-1),
    "segment_max": lambda x: jax.ops.segment_max(
        jnp.concatenate([x.ravel(), x.ravel() * 0]), jnp.tile(jnp.arange(x.size), 2), x.size
    ).reshape(x.shape),
    "max of an outer product": lambda x: (x[..., None] * jnp.array([1.0, 0.0])).max(-1),
    "singular value": lambda x: (x + jnp.linalg.svd(x[..., None, None], compute_uv=False)[..., 0]) / 2,
    "rounded up": lambda x: x * jnp.clip(jnp.ceil(x), 0, 1),
    "rounded sigmoid": lambda x: x * jnp.round(jax.nn.sigmoid(x)),
    "bits": lambda x: x * (1 - (lax.bitcast_convert_type(x, jnp.int64) < 0)),
    "detached ratio": lambda x: x * lax.stop_gradient(jax.nn.relu(x) / jnp.where(x == 0, 1, x)),
    "diagonal matrix": lambda x: jnp.einsum("nc,nck->nk", x, jnp.eye(x.shape[1]) * (x > 0)[:, None]),
    "tiled mask": lambda x: (jnp.tile(x, (1, 2)) * (jnp.tile(x, (1, 2)) > 0))[:, : x.shape[1]],
    "padded mask": lambda x: (jnp.pad(x, ((0, 0), (1, 1))) * jnp.pad(x > 0, ((0, 0), (1, 1))))[:, 1:-1],
    "a part of x": lambda x: jnp.concatenate([x[:, :4] * (x[:, :4] > 0), jax.nn.relu(x[:, 4:])], 1),
    "by logarithm": lambda x: (x + jnp.exp(jnp.log(x * x) / 2)) / 2,
    "by an angle": lambda x: x * (1 - jnp.arctan2(jnp.zeros_like(x), x) / np.pi),
    "digitize": lambda x: x * jnp.digitize(x, jnp.zeros(1)),
    "a mask in a linear solve": lambda x: lax.custom_linear_solve(
        lambda v: v, x, lambda _, b: b * (x > 0), symmetric=True
    ),
    "squareplus": lambda x: jax.nn.squareplus(x, 0.0),
    "slopes of 0": lambda x: jax.nn.relu(x) - jnp.zeros(x.shape[1]) * jax.nn.relu(-x),
    "the border of a convolution": lambda x: convolved(x, ((0, 0), (1, 1))).max(2).reshape(x.shape),
    "a sum of windows that are wider than x": lambda x: (
        lax.reduce_window(x.reshape(-1, 1), 0.0, lax.add, (1, 1), (1, 1), ((0, 0), (1, 0))).max(1).reshape(x.shape)
    ),
    "0 times a CELU": lambda x: jnp.maximum(x, 0) + 0.0 * jnp.expm1(jnp.minimum(x, 0)),
}


def safe_elu(x):
    return jnp.where(x > 0, x, jnp.expm1(jnp.where(x > 0, 0.0, x)))


def gate(x):
    return jnp.where(x > 0, x, 0)


def size_and_sign(x):
    return jnp.abs(x @ WEIGHT), x @ WEIGHT > 0


#: These hide one in a way that values or derivatives leave open.
REFUSED = {
    # Of a scan over a row of two some parts have no numbers at all.
    "associative_scan": lambda x: lax.associative_scan(jnp.maximum, jnp.stack([x * 0, x]))[1],
    "cummax": lambda x: lax.cummax(with_zeros(x), x.ndim)[..., 1],
    # By what is in it alone it is a SiLU.
    "SiLU of a sign": lambda x: x * (0 * jax.nn.sigmoid(x) + (1 + x / jnp.abs(x)) / 2),
    "GELU of a root": lambda x: x * (1e-30 * lax.erf(x) + (1 + x / (x * x) ** 0.5) / 2),
    "straight-through": lambda x: x + lax.stop_gradient(jax.nn.relu(x) - x),
    # Other curves that end at 0 look like guards, and so do these.
    "root of one side": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0),
    "logarithm of one side": lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), 0.0),
    # The number that is put there for the exponential is more than that: it is added as well, or chosen elsewhere.
    "a safe exponential and what is safe": lambda x: safe_elu(x) + jnp.where(x > 0, 0.0, x),
    "a safe slope on another side": lambda x: jnp.where(x > 1, x, 2 * jnp.where(x > 0, 0.0, x)),
    "what a curve leaves at a number": lambda x: (lambda y: jnp.where(jnp.isinf(y), 0, y))(
        jnp.where(jax.nn.sigmoid(x) > 0.5, x, jnp.inf)
    ),
    "a gate of what is safe": lambda x: jnp.where(x > -1, gate(jnp.where(x > -1, x, 3.0)), x),
    "zeros that a transposed convolution leaves": lambda x: lax.reduce_window(
        convolved(x, ((0, 0), (0, 1)), lhs_dilation=(1, 2)), -jnp.inf, lax.max, (1, 1, 2, 1), (1, 1, 2, 1), "VALID"
    ).reshape(x.shape),
    "a curve that a custom function undoes": lambda x: jax.scipy.special.xlogy(
        jnp.where(KEPT, jnp.clip(1e12 * x, 0, 1), 1), jnp.exp(x)
    ),
    "logarithm of a guarded exponential": lambda x: jnp.log(jnp.where(x > 0, jnp.exp(x), 1)),
    # What they are of is in another block than they are.
    "a size and a sign from a checkpoint": lambda x: jnp.multiply(*jax.checkpoint(size_and_sign)(x)),
    "a size and a sign into a checkpoint": lambda x: jax.checkpoint(jnp.multiply)(*size_and_sign(x)),
    "a size and a sign from one into another": lambda x: jax.checkpoint(jnp.multiply)(
        *jax.checkpoint(size_and_sign)(x)
    ),
    "a minimum of a loop, turned": lambda x: -lax.map(lambda row: jnp.minimum(row @ WEIGHT, 0), x),
    "a bound of a branch, shifted": lambda x: (
        lax.cond(x.sum() < 1e9, lambda x: jnp.maximum(x @ WEIGHT + 3, 3), lambda x: x, x) - 3
    ),
    "sorted in a checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sort(with_zeros(x @ WEIGHT)))(x)[..., 1],
    "a bound of some columns behind weights": lambda x: (jnp.maximum(x + 3, 3)[:, 2:] - 3) @ WEIGHT[2:],
    # What is guided closes some columns, and the others are x as it was.
    "a sum with what is guided in some columns": lambda x: x + jnp.where((x < 0) & KEPT, -x, 0.0),
    "bounded on both sides by choices": lambda x: jnp.where(x < -1, -1, jnp.where(x > 1, 1, x)),
    "a sum of neighbours' differences": lambda x: (lambda x: x + jax.nn.relu(-x))(x - jnp.roll(x, 1, -1)),
    "a product along a stack": lambda x: jnp.prod(jnp.stack([jnp.where(KEPT, x > 0, 1).astype(x.dtype), x]), 0),
    "a stack of both, added up": lambda x: jnp.stack([x, jnp.where((x < 0) & KEPT, -x, 0.0)]).sum(0),
}

#: These open and close by the size of x, and are no ReLU by value; and where they are open.
GATED = {
    "a second mask": (lambda x: jnp.where((x > 0) & KEPT, x, 0.0), lambda x: (x > 0) & KEPT),
    "a product of masks": (lambda x: x * ((x > 0) * KEPT), lambda x: (x > 0) & KEPT),
    "thresholds by channel": (lambda x: jnp.where(x > SHIFT, x - SHIFT, 0.0), lambda x: x > SHIFT),
    "another constant": (lambda x: jnp.where(x > 0, x, -0.5), lambda x: x > 0),
}

SHIFT = np.linspace(-0.5, 1.5, 8)
WEIGHT = np.random.default_rng(1).normal(size=(8, 8))
EXPERTS = np.random.default_rng(2).normal(size=(3, 8, 8))
KEPT = np.arange(8) != 3


def attention(x, mask=True):
    tokens = x.reshape(-1, 4, 2)
    scores = jnp.where(mask, jnp.einsum("nqd,nkd->nqk", tokens, tokens), -1e9)
    return (jax.nn.softmax(scores, -1) @ tokens).reshape(x.shape)


def routed(x):
    p = jax.nn.softmax(x @ WEIGHT[:, :3])
    largest, places = lax.top_k(p, 2)
    gates = jnp.zeros_like(p).at[rows(x), places].set(largest)
    return jnp.einsum("ne,nd,edk->nk", gates, x, EXPERTS)


def response_norm(x):
    squares = jnp.convolve((x * x).ravel(), jnp.ones(3) / 3, mode="same").reshape(x.shape)
    return x / (1 + squares) ** 0.75


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def spread(x):
    return x.max(1) - x.min(1)


#: No ReLU is in these, in front of one or behind one.
FINE = {
    "a pool that sees a border": lambda x: lax.reduce_window(
        lax.conv_general_dilated(x[:, None], jnp.ones((1, 1, 1)), (1,), [(1, 1)]),
        -jnp.inf,
        lax.max,
        (1, 1, 2),
        (1, 1, 1),
        "VALID",
    )[:, 0, 1:],
    "local response norm": response_norm,
    "all rows kept": lambda x: x[np.array([True] * len(x))],
    "padding mask": lambda x: jnp.where(KEPT, x, 0),
    "root with a guard": lambda x: jnp.where(x * x > 0, jnp.sqrt(jnp.where(x * x > 0, x * x, 1)), 0),
    "an activation that is 0 on one side": jax.nn.sparse_plus,
    "NaN guard": lambda x: jnp.where(jnp.isnan(x), 0.0, x),
    "mask of probabilities": lambda x: jax.nn.sigmoid(x) * (jax.nn.sigmoid(x) > 0.5),
    "pruned weights": lambda x: x @ (WEIGHT * (abs(WEIGHT) > 0.5)),
    "experts by top-k": routed,
    "expert by argmax": lambda x: jnp.einsum("nd,ndk->nk", x, jnp.asarray(EXPERTS)[jnp.argmax(x[:, :3], -1)]),
    "hard attention": lambda x: (
        jnp.take_along_axis(x.reshape(-1, 4, 2), jnp.argmax(x.reshape(-1, 4, 2).sum(2), 1)[:, None, None], 1).repeat(
            4, 1
        )
    ).reshape(x.shape),
    "layer norm": layer_norm,
    "root mean square": lambda x: x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
    "unit length": lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12),
    "attention": attention,
    "causal attention": lambda x: attention(x, np.tril(np.ones((4, 4), bool))),
    "embedding of a label": lambda x: x + jnp.asarray(WEIGHT)[jnp.argmax(x, -1)],
    "positions": lambda x: x + jnp.asarray(WEIGHT)[jnp.arange(len(x))],
    "clipped probabilities": lambda x: jnp.log(jnp.clip(jax.nn.softmax(x), 1e-7, 1.0)) @ WEIGHT,
    "resized": lambda x: jax.image.resize(x.reshape(-1, 4, 2), (len(x), 8, 4), "bilinear")[:, ::2, ::2].reshape(
        x.shape
    ),
    "interpolated": lambda x: jax.vmap(lambda v: jnp.interp(jnp.linspace(0, 7, 8), jnp.arange(8.0), v))(x),
    "max pooling": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"),
    "maxout": lambda x: jnp.maximum(x @ WEIGHT, x @ WEIGHT.T),
    "maxout in a checkpoint, halved": lambda x: jax.checkpoint(lambda x: jnp.maximum(x @ WEIGHT, x @ WEIGHT.T))(x) / 2,
    "a magnitude from a loop": lambda x: lax.map(lambda row: abs(row @ WEIGHT), x) * jax.nn.sigmoid(x),
    "next to a step": lambda x: x * jnp.clip(1e300 * (x * x + 1), 0, 1),
    "a linear solve": lambda x: jnp.linalg.solve(WEIGHT, x.T).T,
    "mish by its parts": lambda x: x * jnp.tanh(jnp.logaddexp(x, 0)),
    "a steeper softplus by its parts": lambda x: jnp.logaddexp(5 * x, 0) / 5,
    "running maximum": lambda x: lax.associative_scan(jnp.maximum, x, axis=1),
    "signed root": lambda x: jnp.sign(x) * jnp.sqrt(abs(x)),
    "sorted": lambda x: jnp.sort(x, -1),
    "gate by the mean": lambda x: x * jax.nn.sigmoid(x.mean(-1, keepdims=True)),
    "divided by the spread": lambda x: x / (1 + x.std(-1, keepdims=True)),
    "hard tanh": lambda x: jnp.clip(x, -1, 1),
    "a safe exponential": safe_elu,
    "a safe exponential, the other way round": lambda x: jnp.where(x <= 0, jnp.exp(jnp.where(x > 0, 0.0, x)) - 1, x),
    "safe logarithms": lambda x: jnp.where(
        x < 0, -jnp.log1p(jnp.where(x < 0, -x, 0)), jnp.log1p(jnp.where(x < 0, 0, x))
    ),
    "a sigmoid that never overflows": lambda x: jnp.where(
        x >= 0, 1 / (1 + jnp.exp(-jnp.where(x >= 0, x, 0))), (lambda e: e / (1 + e))(jnp.exp(jnp.where(x >= 0, 0, x)))
    ),
    "saturation": lambda x: jnp.where(x.max(1) > 0, spread(x) / jnp.where(spread(x) > 0, spread(x), 1), 0)[:, None] * x,
    "a complex number by its size": lambda x: (x * (jnp.tanh(abs(x + 1j * x)) + 0j)).real,
    "softmax over an axis of its own": lambda x: jax.vmap(jax.nn.softmax, 1, 1)(x.reshape(-1, 2, 4)).reshape(x.shape),
}
