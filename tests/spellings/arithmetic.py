"""What computes a ReLU by operations none of which is one: the rows and their cells, most of them refused.

With them stand a few that are no ReLU by value, but open and close by the sign of what they let through.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
import torch.nn.functional as F
from jax import lax
from torch.utils.checkpoint import checkpoint

from spellings import Row, guided, judged, refused, row
from spellings.functions import (
    OwnRelu,
    assigned,
    called_back,
    called_back_jax,
    every_third,
    every_third_torch,
    exported,
    magnitude_on_view,
    masked_on_view,
    own_relu,
    own_relu_tf,
    partly_assigned,
    scale,
    scale_torch,
    scaled_relu,
    scattered,
    scattered_tf,
    second,
    turned,
)
from spellings.relus import INF, ONE_BOUND, kind, zero

NO_FUNCTION = "it has no such function"
NO_ASSIGNMENT = "its arrays are not assigned to"
LOOPS_IN_PYTHON = "its loops and branches are Python's own"
IN_PROGRAMS = "it is among the programs, as no ReLU by value"
AS_BENEATH = "its functions are those of the framework beneath it"

ARITHMETIC: dict[str, Row] = {
    # Chosen by a mask.
    "where(x <= 0, zeros, x)": row(
        torch=judged(lambda x: torch.where(x <= 0, torch.zeros_like(x), x)),
        tensorflow=refused(lambda x: tf.where(x <= 0, tf.zeros_like(x), x)),
        jax=guided(lambda x: jnp.where(x <= 0, jnp.zeros_like(x), x)),
        keras=refused(lambda x: keras.ops.where(x <= 0, keras.ops.zeros_like(x), x)),
    ),
    "where(stop_gradient(x) > 0, x, 0)": row(
        torch=judged(lambda x: torch.where(x.detach() > 0, x, 0.0)),
        tensorflow=guided(lambda x: tf.where(tf.stop_gradient(x) > 0, x, 0.0)),
        jax=guided(lambda x: jnp.where(lax.stop_gradient(x) > 0, x, 0.0)),
        keras=guided(lambda x: keras.ops.where(keras.ops.stop_gradient(x) > 0, x, 0.0)),
    ),
    "where(x >= 0, 2 x, 0) / 2": row(
        torch=judged(lambda x: torch.where(x >= 0, 2 * x, 0) / 2),
        tensorflow=refused(lambda x: tf.where(x >= 0, 2.0 * x, 0.0) / 2.0),
        jax=guided(lambda x: jnp.where(x >= 0, 2 * x, 0) / 2),
        keras=refused(lambda x: keras.ops.where(x >= 0, 2 * x, 0.0) / 2),
    ),
    "where((x > 0) & (x < inf), x, 0)": row(
        torch=judged(lambda x: torch.where((x > 0) & (x < INF), x, 0)),
        tensorflow=refused(lambda x: tf.where((x > 0) & (x < INF), x, 0.0)),
        jax=guided(lambda x: jnp.where((x > 0) & (x < jnp.inf), x, 0)),
        keras=AS_BENEATH,
    ),
    "where(zeros < x, x, 0)": row(
        torch=judged(lambda x: torch.where(torch.zeros_like(x) < x, x, 0.0)),
        tensorflow=guided(lambda x: tf.where(tf.zeros_like(x) < x, x, 0.0)),
        jax=guided(lambda x: jnp.where(jnp.zeros(()) < x, x, 0)),
        keras=AS_BENEATH,
    ),
    "where in a loop": row(
        torch=judged(lambda x: torch.stack([torch.where(image <= 0, 0.0, image) for image in x])),
        tensorflow=refused(lambda x: tf.map_fn(lambda y: tf.where(y <= 0, tf.zeros_like(y), y), x)),
        jax=guided(lambda x: lax.map(jax.jit(lambda x: jnp.where(x > 0, x, 0)), x)),
        keras=LOOPS_IN_PYTHON,
    ),
    "where in a checkpoint": row(
        torch=judged(lambda x: checkpoint(lambda x: torch.where(x <= 0, 0.0, x), x, use_reentrant=False)),
        tensorflow=refused(tf.recompute_grad(lambda x: tf.where(x <= 0, tf.zeros_like(x), x))),
        jax=guided(jax.checkpoint(lambda x: jnp.where(x > 0, x, 0))),
        keras=AS_BENEATH,
    ),
    # On PyTorch, Keras' own is a where.
    "select": row(
        NO_FUNCTION,
        torch=judged(lambda x: torch.where(~(x > 0), 0.0, x)),
        jax=guided(lambda x: jnp.select([x > 0], [x], 0.0)),
        keras=guided(lambda x: keras.ops.select([x > 0], [x], 0.0)),
    ),
    "select of the lower level": row(
        torch="its where has none",
        tensorflow=refused(lambda x: tf.raw_ops.SelectV2(condition=x <= 0, t=tf.zeros_like(x), e=x)),
        jax=guided(lambda x: lax.select(x > 0, x, jnp.zeros_like(x))),
        keras=AS_BENEATH,
    ),
    "piecewise": row(NO_FUNCTION, jax=guided(lambda x: jnp.piecewise(x, [x > 0], [lambda x: x, 0.0]))),
    "vmap of a branch": row(
        LOOPS_IN_PYTHON,
        tensorflow="its vectorized_map of a branch is a loop",
        jax=guided(
            lambda x: jax.vmap(lambda x: lax.cond(x > 0, lambda x: x, lambda x: 0.0 * x, x))(x.ravel()).reshape(x.shape)
        ),
    ),
    # Multiplied by a mask.
    "(x > 0).astype * x": row(
        torch=judged(lambda x: (x > 0).double() * x),
        tensorflow="x * (x > 0) is written so, among the ReLUs",
        jax=guided(lambda x: (x > 0).astype(x.dtype) * x),
        keras=AS_BENEATH,
    ),
    "2 * ~(x < 0) * x / 2": row(
        torch=judged(lambda x: 2.0 * (~(x < 0)).double() * x / 2),
        tensorflow=refused(lambda x: 2.0 * tf.cast(~(x < 0), x.dtype) * x / 2.0),
        jax=guided(lambda x: 2.0 * (~(x < 0)).astype(x.dtype) * x / 2),
        keras=AS_BENEATH,
    ),
    "x * not(x < 0)": row(
        torch=judged(lambda x: x * torch.logical_not(x < 0)),
        tensorflow=refused(lambda x: x * tf.cast(tf.logical_not(x < 0), x.dtype)),
        jax=guided(lambda x: x * jnp.logical_not(x < 0)),
        keras=refused(lambda x: x * keras.ops.cast(keras.ops.logical_not(x < 0), kind(x))),
    ),
    "2 * (x > 0) * x / 2": row(
        torch=judged(lambda x: 2.0 * (x > 0) * x / 2.0),
        tensorflow=refused(lambda x: 2.0 * tf.cast(x > 0, x.dtype) * x / 2.0),
        jax=guided(lambda x: 2.0 * (x > 0) * x / 2.0),
        keras=AS_BENEATH,
    ),
    "mask of the flat": row(
        torch=judged(lambda x: x.flatten().mul((x > 0).flatten()).view_as(x)),
        tensorflow=refused(
            lambda x: tf.reshape(tf.reshape(x, [-1]) * tf.cast(tf.reshape(x, [-1]) > 0, x.dtype), tf.shape(x))
        ),
        jax=guided(lambda x: (x.ravel() * (x > 0).ravel()).reshape(x.shape)),
        keras=AS_BENEATH,
    ),
    "mask of the transposed": row(
        torch=judged(lambda x: (x.transpose(0, 1) * (x > 0).transpose(0, 1)).transpose(0, 1)),
        tensorflow=refused(lambda x: turned(turned(x) * tf.cast(turned(x) > 0, x.dtype))),
        jax=guided(lambda x: (x.T * (x > 0).T).T),
        keras=AS_BENEATH,
    ),
    "mask of what was moved and moved back": row(
        torch=judged(lambda x: torch.movedim(torch.movedim(x, 0, 1) * 1, 1, 0) * (x > 0)),
        tensorflow=refused(lambda x: turned(turned(x) * 1.0) * tf.cast(x > 0, x.dtype)),
        jax=guided(lambda x: jnp.moveaxis(jnp.moveaxis(x, 0, 1) * 1, 1, 0) * (x > 0)),
        keras=AS_BENEATH,
    ),
    "mask made outside of a checkpoint": row(
        torch=judged(lambda x: checkpoint(torch.mul, x, x > 0, use_reentrant=False)),
        tensorflow=guided(lambda x: tf.recompute_grad(lambda x, mask: x * mask)(x, tf.cast(x > 0, x.dtype))),
        jax=guided(lambda x: jax.checkpoint(lambda x, mask: x * mask)(x, x > 0)),
        keras=AS_BENEATH,
    ),
    "einsum": row(
        torch=judged(lambda x: torch.einsum("nc...,nc...->nc...", x, (x > 0).to(x.dtype))),
        tensorflow=refused(lambda x: tf.einsum("n...c,n...c->n...c", x, tf.cast(x > 0, x.dtype))),
        jax=guided(lambda x: jnp.einsum("n...c,n...c->n...c", x, (x > 0).astype(x.dtype))),
        keras=AS_BENEATH,
    ),
    "addcmul": row(NO_FUNCTION, torch=judged(lambda x: torch.addcmul(torch.zeros_like(x), x, (x > 0).double()))),
    "lerp": row(NO_FUNCTION, torch=judged(lambda x: torch.lerp(torch.zeros_like(x), x, (x > 0).double()))),
    "heaviside": row(
        torch=judged(lambda x: x * torch.heaviside(x.detach(), torch.zeros_like(x))),
        tensorflow=NO_FUNCTION,
        jax=guided(lambda x: x * jnp.heaviside(lax.stop_gradient(x), 0)),
        keras=AS_BENEATH,
    ),
    "max(x - 1, -1) + 1": row(
        torch=judged(lambda x: (x - 1).clamp(min=-1) + 1),
        tensorflow=refused(lambda x: tf.maximum(x - 1.0, -1.0) + 1.0),
        jax=guided(lambda x: jnp.maximum(x - 1, -1) + 1),
        keras=AS_BENEATH,
    ),
    "x * (x > -x)": row(
        torch=judged(lambda x: x * (x > -x)),
        tensorflow=refused(lambda x: x * tf.cast(x > -x, x.dtype)),
        jax=guided(lambda x: x * (x > -x)),
        keras=AS_BENEATH,
    ),
    "(max(stack([x, -x])) + x) / 2": row(
        torch=judged(lambda x: (torch.stack([x, -x]).amax(0) + x) / 2),
        tensorflow=refused(lambda x: (tf.reduce_max(tf.stack([x, -x]), 0) + x) / 2.0),
        jax=guided(lambda x: (jnp.stack([x, -x]).max(0) + x) / 2),
        keras=AS_BENEATH,
    ),
    "max(2 * stack([x, 0])) / 2": row(
        torch=judged(lambda x: (torch.stack([x, torch.zeros_like(x)]) * 2).amax(0) / 2),
        tensorflow=refused(lambda x: tf.reduce_max(tf.stack([x, tf.zeros_like(x)]) * 2.0, 0) / 2.0),
        jax=guided(lambda x: (jnp.stack([x, jnp.zeros_like(x)]) * 2).max(0) / 2),
        keras=AS_BENEATH,
    ),
    "max(x @ [[1, 0]])": row(
        torch=judged(lambda x: (x[..., None] @ torch.eye(2, dtype=x.dtype)[:1]).amax(-1)),
        tensorflow=refused(lambda x: tf.reduce_max(x[..., None] @ tf.eye(2, dtype=x.dtype)[:1], -1)),
        jax=guided(lambda x: (x[..., None] @ jnp.eye(2)[:1]).max(-1)),
        keras=AS_BENEATH,
    ),
    "max(stack([x, x]) where a mask is)": row(
        torch=judged(lambda x: torch.stack([x, x]).masked_fill(second(x.ndim, torch.tensor), 0.0).amax(0)),
        tensorflow=refused(
            lambda x: tf.reduce_max(tf.where(second(len(x.shape), tf.constant), 0 * x[None], tf.stack([x, x])), 0)
        ),
        jax=guided(lambda x: jnp.where(second(x.ndim, jnp.array), 0, jnp.stack([x, x])).max(0)),
        keras=AS_BENEATH,
    ),
    "x * one_hot(argmax([0, x]))": row(
        torch=judged(lambda x: x * F.one_hot(torch.stack([0 * x, x], -1).argmax(-1), 2)[..., 1]),
        tensorflow=refused(lambda x: x * tf.one_hot(tf.argmax(tf.stack([0 * x, x], -1), -1), 2, dtype=x.dtype)[..., 1]),
        jax=guided(lambda x: x * jax.nn.one_hot(jnp.stack([0 * x, x], -1).argmax(-1), 2)[..., 1]),
        keras=AS_BENEATH,
    ),
    "x * max(sign(x), 0)": row(
        torch=judged(lambda x: x * x.detach().sign().clamp(min=0)),
        tensorflow=refused(lambda x: x * tf.maximum(tf.sign(x), 0.0)),
        jax=guided(lambda x: x * jnp.maximum(lax.stop_gradient(jnp.sign(x)), 0)),
        keras=refused(lambda x: x * keras.ops.maximum(keras.ops.sign(x), 0.0)),
    ),
    "x * (sign(x) + 1) / 2": row(
        torch=judged(lambda x: x * (torch.sign(x) + 1) / 2),
        tensorflow=refused(lambda x: x * (tf.sign(x) + 1.0) / 2.0),
        jax=guided(lambda x: x * (jnp.sign(x) + 1) / 2),
        keras=AS_BENEATH,
    ),
    # Filled and assigned.
    "masked_fill": row(NO_FUNCTION, torch=judged(lambda x: x.masked_fill(x < 0, 0.0))),
    "masked_fill_": row(NO_ASSIGNMENT, torch=judged(lambda x: (lambda y: y.masked_fill_(y < 0, 0.0))(x.clone()))),
    "masked_scatter": row(NO_FUNCTION, torch=judged(lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)))),
    "y[y < 0] = 0": row(NO_ASSIGNMENT, torch=judged(assigned), jax="what it traces is not indexed by a mask"),
    "y[x > 0] = x[x > 0]": row(NO_ASSIGNMENT, torch=judged(scattered), tensorflow=refused(scattered_tf)),
    "a part in place, and a magnitude": row(NO_ASSIGNMENT, torch=judged(partly_assigned)),
    "masked in place on a view": row(NO_ASSIGNMENT, torch=refused(masked_on_view)),
    "a magnitude in place on a view": row(NO_ASSIGNMENT, torch=refused(magnitude_on_view)),
    # By a magnitude.
    "(x + |x|) / 2": row(
        torch=judged(lambda x: (x + x.abs()) / 2),
        tensorflow=refused(lambda x: (x + tf.abs(x)) / 2.0),
        jax=guided(lambda x: (x + jnp.abs(x)) / 2),
        keras=refused(lambda x: (x + keras.ops.absolute(x)) / 2),
    ),
    "0.3 x + 0.3 |x|": row(
        torch=judged(lambda x: (0.3 * x + 0.3 * x.abs()) / 0.6),
        tensorflow=refused(lambda x: (0.3 * x + 0.3 * tf.abs(x)) / 0.6),
        jax=guided(lambda x: (0.3 * x + 0.3 * jnp.abs(x)) / 0.6),
        keras=AS_BENEATH,
    ),
    "(x - -|x|) / 2": row(
        torch=judged(lambda x: (x - -x.abs()) / 2),
        tensorflow=refused(lambda x: (x - -tf.abs(x)) / 2.0),
        jax=guided(lambda x: (x - -jnp.abs(x)) / 2),
        keras=AS_BENEATH,
    ),
    "(x + sqrt(x * x)) / 2": row(
        torch=judged(lambda x: (x + (x * x).sqrt()) / 2),
        tensorflow=refused(lambda x: (x + tf.sqrt(x * x)) / 2.0),
        jax=guided(lambda x: (x + jnp.sqrt(x * x)) / 2),
        keras=AS_BENEATH,
    ),
    "(x + sqrt(square(x))) / 2": row(
        torch=judged(lambda x: (x + torch.square(x).sqrt()) / 2),
        tensorflow=refused(lambda x: (x + tf.sqrt(tf.square(x))) / 2.0),
        jax=guided(lambda x: (x + jnp.sqrt(jnp.square(x))) / 2),
        keras=AS_BENEATH,
    ),
    "(x + (x ** 2) ** 0.5) / 2": row(
        torch=judged(lambda x: (x + (x**2) ** 0.5) / 2),
        tensorflow=refused(lambda x: (x + (x**2.0) ** 0.5) / 2.0),
        jax=guided(lambda x: (x + (x**2) ** 0.5) / 2),
        keras=AS_BENEATH,
    ),
    "(x + norm) / 2": row(
        torch=judged(lambda x: (x + x.unsqueeze(-1).norm(dim=-1)) / 2),
        tensorflow=refused(lambda x: (x + tf.norm(x[..., None], axis=-1)) / 2.0),
        jax=guided(lambda x: (x + jnp.linalg.norm(x[..., None], axis=-1)) / 2),
        keras=AS_BENEATH,
    ),
    "(x + max(x, -x)) / 2": row(
        torch=judged(lambda x: (x + torch.maximum(x, -x)) / 2),
        tensorflow=refused(lambda x: (x + tf.maximum(x, -x)) / 2.0),
        jax=guided(lambda x: (x + jnp.maximum(x, -x)) / 2),
        keras=AS_BENEATH,
    ),
    "(x + relu(max(x, -x))) / 2": row(
        torch=refused(lambda x: (x + torch.relu(torch.maximum(x, -x))) / 2),
        tensorflow=refused(lambda x: (x + tf.nn.relu(tf.maximum(x, -x))) / 2.0),
        jax=refused(lambda x: (x + jax.nn.relu(jnp.maximum(x, -x))) / 2),
        keras=AS_BENEATH,
    ),
    # By straight pieces.
    "leaky ReLU less its leak": row(
        torch=judged(lambda x: (F.leaky_relu(x, 0.25) - 0.25 * x) / 0.75),
        tensorflow=refused(lambda x: (tf.nn.leaky_relu(x, 0.25) - 0.25 * x) / 0.75),
        jax=guided(lambda x: (jax.nn.leaky_relu(x, 0.25) - 0.25 * x) / 0.75),
        keras=AS_BENEATH,
    ),
    # By a product of a row.
    "prod(stack([x, x > 0]))": row(
        torch=judged(lambda x: torch.stack([x, (x > 0).double()]).prod(0)),
        tensorflow=refused(lambda x: tf.reduce_prod(tf.stack([x, tf.cast(x > 0, x.dtype)]), 0)),
        jax=guided(lambda x: jnp.stack([x, (x > 0).astype(x.dtype)]).prod(0)),
        keras=AS_BENEATH,
    ),
    # By a curve of two.
    "xlogy of a mask": row(
        torch=judged(lambda x: torch.xlogy((x > 0).double(), x.exp())),
        tensorflow=refused(lambda x: tf.math.xlogy(tf.cast(x > 0, x.dtype), tf.exp(x))),
        jax="its xlogy is written out",
        keras=NO_FUNCTION,
    ),
    "addcdiv of a mask": row(
        NO_FUNCTION, torch=judged(lambda x: torch.addcdiv(torch.zeros_like(x), x, torch.where(x > 0, 1.0, INF)))
    ),
    # By the part below 0.
    "x - minimum(x, 0)": row(
        torch=judged(lambda x: x - torch.minimum(x, zero(x))),
        tensorflow=refused(lambda x: x - tf.minimum(x, 0.0)),
        jax=guided(lambda x: x - jnp.minimum(x, 0)),
        keras=refused(lambda x: x - keras.ops.minimum(x, 0.0)),
    ),
    "-minimum(-x, 0)": row(
        torch=judged(lambda x: -torch.minimum(-x, zero(x))),
        tensorflow=refused(lambda x: -tf.minimum(-x, 0.0)),
        jax=guided(lambda x: -jnp.minimum(-x, 0)),
        keras=refused(lambda x: -keras.ops.minimum(-x, 0.0)),
    ),
    "x - clip(max=0)": row(
        ONE_BOUND, torch=judged(lambda x: x - x.clamp(max=0)), jax=guided(lambda x: x - jnp.clip(x, max=0))
    ),
    "x - clamp_max": row(NO_FUNCTION, torch=judged(lambda x: x - x.clamp_max(0))),
    "x - clip(-inf, 0)": row(
        torch=judged(lambda x: x - x.clamp(-INF, 0.0)),
        tensorflow=refused(lambda x: x - tf.clip_by_value(x, -INF, 0.0)),
        jax=guided(lambda x: x - lax.clamp(-jnp.inf, x, 0.0)),
        keras=AS_BENEATH,
    ),
    # By a choice among a stack.
    "stack and max": row(
        torch=judged(lambda x: torch.stack([x, torch.zeros_like(x)]).max(0).values),
        tensorflow=refused(lambda x: tf.reduce_max(tf.stack([x, tf.zeros_like(x)]), 0)),
        jax=guided(lambda x: jnp.stack([x, jnp.zeros_like(x)]).max(0)),
        keras=refused(lambda x: keras.ops.max(keras.ops.stack([x, keras.ops.zeros_like(x)]), 0)),
    ),
    "stack and amax": row(NO_FUNCTION, torch=judged(lambda x: torch.stack([x, torch.zeros_like(x)], -1).amax(-1))),
    "stack, transpose, max": row(
        torch=judged(lambda x: torch.stack([x, torch.zeros_like(x)]).movedim(0, -1).max(-1).values),
        tensorflow=refused(
            lambda x: tf.reduce_max(tf.transpose(tf.stack([x, tf.zeros_like(x)]), [*range(1, len(x.shape) + 1), 0]), -1)
        ),
        jax=guided(lambda x: jnp.moveaxis(jnp.stack([x, jnp.zeros_like(x)]), 0, -1).max(-1)),
        keras=AS_BENEATH,
    ),
    "stack and sort": row(
        torch=judged(lambda x: torch.stack([x, torch.zeros_like(x)], -1).sort(-1).values[..., 1]),
        tensorflow=refused(lambda x: tf.sort(tf.stack([x, tf.zeros_like(x)], -1), -1)[..., 1]),
        jax=guided(lambda x: jnp.sort(jnp.stack([x, jnp.zeros_like(x)], -1), -1)[..., 1]),
        keras=AS_BENEATH,
    ),
    "pad and max": row(
        torch=judged(lambda x: F.pad(x[..., None], (0, 1)).amax(-1)),
        tensorflow=refused(lambda x: tf.reduce_max(tf.pad(x[..., None], [[0, 0]] * len(x.shape) + [[0, 1]]), -1)),
        jax=guided(lambda x: jnp.pad(x[..., None], [(0, 0)] * x.ndim + [(0, 1)]).max(-1)),
        keras=AS_BENEATH,
    ),
    # Hidden.
    "foreach": row(NO_FUNCTION, torch=refused(lambda x: torch._foreach_clamp_min([x], 0.0)[0])),
    "custom gradient": row(
        torch=refused(OwnRelu.apply), tensorflow=refused(own_relu_tf), jax=refused(own_relu), keras=AS_BENEATH
    ),
    "custom gradient around a ReLU": row(
        "its custom gradients are in the row above", jax=refused(lambda x: scaled_relu(x, jnp.ones((), x.dtype)))
    ),
    "call out to Python": row(
        torch="no gradient comes through NumPy",
        tensorflow=refused(called_back),
        jax=refused(called_back_jax),
        keras=AS_BENEATH,
    ),
    "exported function": row("what is exported is among the forms", jax=refused(exported)),
    # No ReLU by value.
    "where((x > 0) & pad, x, 0)": row(
        torch=judged(lambda x: torch.where((x > 0) & ~every_third_torch(x), x, 0.0)),
        tensorflow=refused(lambda x: tf.where((x > 0) & ~every_third(x), x, 0.0)),
        jax=IN_PROGRAMS,
        keras=AS_BENEATH,
    ),
    "x * ((x > 0) * pad)": row(
        torch=judged(lambda x: x * ((x > 0) * ~every_third_torch(x))),
        tensorflow=refused(lambda x: x * tf.cast((x > 0) & ~every_third(x), x.dtype)),
        jax=IN_PROGRAMS,
        keras=AS_BENEATH,
    ),
    "masked_fill((x < 0) | pad)": row(
        NO_FUNCTION, torch=judged(lambda x: x.masked_fill((x < 0) | every_third_torch(x), 0.0))
    ),
    "where(x > 0, scale * x, 0)": row(
        torch=refused(lambda x: torch.where(x > 0, x * scale_torch(x), 0.0)),
        tensorflow=refused(lambda x: tf.where(x > 0, x * scale(x), 0.0)),
        jax=refused(lambda x: jnp.where(x > 0, x * scale(x), 0.0)),
        keras=AS_BENEATH,
    ),
    "where(x > S, x - S, 0)": row(
        torch=judged(lambda x: torch.where(x > scale_torch(x), x - scale_torch(x), 0.0)),
        tensorflow=refused(lambda x: tf.where(x > scale(x), x - scale(x), 0.0)),
        jax=IN_PROGRAMS,
        keras=AS_BENEATH,
    ),
    "where(x > 0, x, -0.5)": row(
        torch=judged(lambda x: torch.where(x > 0, x, -0.5)),
        tensorflow=refused(lambda x: tf.where(x > 0, x, -0.5)),
        jax=IN_PROGRAMS,
        keras=AS_BENEATH,
    ),
    "maximum with a bound 0 in places": row(
        torch=refused(lambda x: torch.maximum(x, scale_torch(x).clamp(max=0) * 1e9)),
        tensorflow=refused(lambda x: tf.maximum(x, np.minimum(scale(x), 0) * 1e9)),
        jax=refused(lambda x: jnp.maximum(x, np.minimum(scale(x), 0) * 1e9)),
        keras=AS_BENEATH,
    ),
    "maximum of x and x where a mask is": row(
        torch=refused(lambda x: torch.maximum(x, x * every_third_torch(x))),
        tensorflow=refused(lambda x: tf.maximum(x, tf.where(every_third(x), x, 0.0))),
        jax=refused(lambda x: jnp.maximum(x, jnp.where(every_third(x), x, 0))),
        keras=AS_BENEATH,
    ),
    "maximum of x and masked_fill(x, pad, 0)": row(
        NO_FUNCTION, torch=refused(lambda x: torch.maximum(x, x.masked_fill(every_third_torch(x), 0)))
    ),
    "minimum of -x and what is padded with 0": row(
        torch=refused(lambda x: -torch.minimum(-x, F.pad(-x[..., :-1], (0, 1)))),
        tensorflow=refused(lambda x: -tf.minimum(-x, tf.concat([-x[..., :-1], tf.zeros_like(x[..., :1])], -1))),
        jax=refused(lambda x: -jnp.minimum(-x, jnp.pad(-x[..., :-1], [(0, 0)] * (x.ndim - 1) + [(0, 1)]))),
        keras=AS_BENEATH,
    ),
    "clip with a bound 0 in places": row(
        torch=refused(lambda x: x.clamp(min=scale_torch(x).clamp(max=0) * 1e9)),
        tensorflow=refused(lambda x: tf.clip_by_value(x, np.minimum(scale(x), 0) * 1e9, INF)),
        jax=refused(lambda x: jnp.clip(x, np.minimum(scale(x), 0) * 1e9)),
        keras=AS_BENEATH,
    ),
}
