"""What is a ReLU: the rows and their cells."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
import torch.nn.functional as F
from jax import lax
from keras import layers
from torch import nn
from torch.utils.checkpoint import checkpoint

from spellings import Row, guided, judged, refused, row

IN_PLACE = "its arrays are not changed in place"
ONE_FUNCTION = "it has one function for that, and no second name or method"
NO_LAYER = "a layer is Keras', or calls the function"
ONE_BOUND = "its function takes both bounds"
NO_FUNCTION = "it has no such function"
LOOPS_IN_PYTHON = "its loops and branches are Python's own"
WHOLE_MODELS = "what compiles is tried on whole models, among the forms"
NO_ARRAY = "its functions take numbers there"

INF = float("inf")
ZERO_TORCH = torch.zeros(())
ZERO_TF = tf.constant(0.0, tf.float64)
ZERO_NUMPY = np.zeros(1)


def zero(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=x.dtype)


def kind(x: object) -> str:
    """Return the dtype by its name, as Keras' layers take it."""
    return keras.backend.standardize_dtype(x.dtype)


def on_whole_view(x: torch.Tensor) -> torch.Tensor:
    """In place on a view of everything."""
    y = x.clone()
    y.view(-1).relu_()
    return y


def on_view(clamp):
    """In place on one view, and on another in a checkpoint, where it runs once more on the way back."""

    def clamped(x: torch.Tensor) -> torch.Tensor:
        def block(y: torch.Tensor) -> torch.Tensor:
            y = y * 1.0
            clamp(y[:, 1:])
            return y

        y = x * 1.0
        clamp(y[:, :1])
        return checkpoint(block, y, use_reentrant=False)

    return clamped


def on_slices(x: torch.Tensor) -> torch.Tensor:
    """In place on a slice of one tensor, and on a slice of another."""
    y, z = x * 1.0, x * 1.0
    y[:, :2].relu_()
    F.hardtanh_(z[:, 2:], 0.0, INF)
    return torch.cat([y[:, :2], z[:, 2:]], 1)


@tf.function
def nested(x):
    return tf.nn.relu(x)


@tf.function(jit_compile=True)
def compiled(x):
    return tf.nn.relu(x)


@tf.function
def twice_nested(x):
    return nested(x + 1.0 - 1.0)


def looped(x):
    return tf.while_loop(lambda turn, y: turn < 2, lambda turn, y: (turn + 1, tf.nn.relu(y)), (0, x))[1]


def looped_maximum(x):
    floor = tf.zeros_like(x)
    return tf.while_loop(lambda turn, y: turn < 1, lambda turn, y: (turn + 1, tf.maximum(y, floor)), (0, x))[1]


@jax.custom_jvp
def with_own_jvp(x):
    return jnp.maximum(x, 0)


with_own_jvp.defjvp(lambda x, t: (jnp.maximum(x[0], 0), t[0] * (x[0] > 0)))


class Own(layers.Layer):
    """A function as a layer of one's own."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x):
        """Apply the function."""
        return self.function(x)


def model_of_one_layer(x):
    images = keras.Input(x.shape[1:], dtype=kind(x))
    return keras.Model(images, layers.ReLU(dtype=kind(x))(images))(x)


RELUS: dict[str, Row] = {
    "relu": row(
        torch=guided(F.relu),
        tensorflow=guided(tf.nn.relu),
        jax=guided(jax.nn.relu),
        keras=guided(keras.ops.relu),
    ),
    "relu by its other name": row(
        torch=guided(torch.relu),
        tensorflow=guided(lambda x: tf.raw_ops.Relu(features=x)),
        jax=ONE_FUNCTION,
        keras=guided(keras.activations.relu),
    ),
    "x.relu()": row(ONE_FUNCTION, torch=guided(lambda x: x.relu())),
    "layer": row(NO_LAYER, torch=guided(nn.ReLU()), keras=guided(lambda x: layers.ReLU(dtype=kind(x))(x))),
    "layer of a threshold 0": row(
        NO_LAYER,
        torch=guided(nn.Threshold(0.0, 0.0)),
        keras=guided(lambda x: layers.ReLU(threshold=0.0, dtype=kind(x))(x)),
    ),
    "layer by name": row(
        "its layers are not made by name", keras=guided(lambda x: layers.Activation("relu", dtype=kind(x))(x))
    ),
    "layer of a function": row(
        "it has no layer that takes a function",
        keras=guided(lambda x: layers.Activation(keras.activations.relu, dtype=kind(x))(x)),
    ),
    "layer around a function": row(
        "it has no layer that takes a function",
        keras=guided(lambda x: layers.Lambda(keras.ops.relu, dtype=kind(x))(x)),
    ),
    "layer of one's own": row(NO_LAYER, keras=guided(lambda x: Own(keras.ops.relu, dtype=kind(x))(x))),
    "model of one layer": row(
        NO_LAYER,
        torch=guided(nn.Sequential(nn.ReLU())),
        keras=guided(model_of_one_layer),
    ),
    "layer in place": row(IN_PLACE, torch=guided(nn.ReLU(inplace=True))),
    "relu_": row(IN_PLACE, torch=guided(F.relu_)),
    "relu(inplace=True)": row(IN_PLACE, torch=guided(lambda x: F.relu(x, inplace=True))),
    "relu_ by its other name": row(IN_PLACE, torch=guided(torch.relu_)),
    "x.relu_()": row(IN_PLACE, torch=guided(lambda x: x.relu_())),
    "in place on a view": row(IN_PLACE, torch=guided(on_whole_view)),
    "clamp_ on a view": row(IN_PLACE, torch=guided(on_view(lambda x: x.clamp_(min=0)))),
    "clip_ by a tensor on a view": row(IN_PLACE, torch=guided(on_view(lambda x: x.clip_(zero(x))))),
    "leaky_relu_ on a view": row(IN_PLACE, torch=guided(on_view(lambda x: F.leaky_relu_(x, 0.0)))),
    "in place on slices": row(IN_PLACE, torch=guided(on_slices)),
    "clip(min=0)": row(ONE_BOUND, torch=guided(lambda x: x.clamp(min=0)), jax=guided(lambda x: jnp.clip(x, 0))),
    "clip(min=0) in place": row(IN_PLACE, torch=guided(lambda x: x.clamp_(min=0))),
    "clip by its other name": row(ONE_FUNCTION, torch=guided(lambda x: torch.clip(x, 0))),
    "x.clip(0)": row(ONE_FUNCTION, torch=guided(lambda x: x.clip(0)), jax=guided(lambda x: x.clip(0))),
    "clip(min=array)": row(
        ONE_BOUND,
        torch=guided(lambda x: x.clamp(min=zero(x))),
        jax=guided(lambda x: jnp.clip(x, jnp.zeros_like(x))),
    ),
    "clamp_min": row(NO_FUNCTION, torch=guided(lambda x: x.clamp_min(0))),
    "clamp_min(array)": row(NO_FUNCTION, torch=guided(lambda x: torch.clamp_min(x, zero(x)))),
    "clip(0, inf)": row(
        torch=guided(lambda x: x.clamp(0, INF)),
        tensorflow=guided(lambda x: tf.clip_by_value(x, 0.0, INF)),
        jax=guided(lambda x: jnp.clip(x, 0, jnp.inf)),
        keras=guided(lambda x: keras.ops.clip(x, 0.0, INF)),
    ),
    "clip(0, inf) of the lower level": row(
        torch=guided(lambda x: torch.ops.aten.clamp(x, 0.0, INF)),
        tensorflow=guided(
            lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=ZERO_TF, clip_value_max=tf.constant(INF, x.dtype))
        ),
        jax=guided(lambda x: lax.clamp(0.0, x, jnp.inf)),
        keras=ONE_FUNCTION,
    ),
    "clip by arrays": row(
        torch=guided(lambda x: x.clamp(torch.zeros_like(x))),
        tensorflow=guided(
            lambda x: tf.clip_by_value(x, tf.zeros_like(x), tf.fill(tf.shape(x), tf.constant(INF, x.dtype)))
        ),
        jax=guided(lambda x: lax.clamp(jnp.zeros_like(x), x, jnp.full_like(x, jnp.inf))),
        keras=guided(lambda x: keras.ops.clip(x, keras.ops.zeros_like(x), keras.ops.full_like(x, INF))),
    ),
    "maximum(x, 0)": row(
        torch=guided(lambda x: torch.maximum(x, zero(x))),
        tensorflow=guided(lambda x: tf.maximum(x, 0.0)),
        jax=guided(lambda x: jnp.maximum(x, 0)),
        keras=guided(lambda x: keras.ops.maximum(x, 0)),
    ),
    "maximum(0, x)": row(
        torch=guided(lambda x: torch.maximum(zero(x), x)),
        tensorflow=guided(lambda x: tf.maximum(tf.constant(0.0, x.dtype), x)),
        jax=guided(lambda x: jnp.maximum(0.0, x)),
        keras=guided(lambda x: keras.ops.maximum(0.0, x)),
    ),
    "maximum(x, zeros)": row(
        torch=guided(lambda x: torch.maximum(x, torch.zeros_like(x))),
        tensorflow=guided(lambda x: tf.maximum(x, tf.zeros_like(x))),
        jax=guided(lambda x: jnp.maximum(x, jnp.zeros_like(x))),
        keras=guided(lambda x: keras.ops.maximum(x, keras.ops.zeros_like(x))),
    ),
    "maximum(zeros, x)": row(
        torch=guided(lambda x: torch.maximum(torch.zeros_like(x), x)),
        tensorflow=guided(lambda x: tf.maximum(tf.zeros_like(x), x)),
        jax=guided(lambda x: jnp.maximum(jnp.zeros_like(x), x)),
        keras=guided(lambda x: keras.ops.maximum(keras.ops.zeros_like(x), x)),
    ),
    "maximum(x, zeros from outside)": row(
        torch=guided(lambda x: torch.maximum(x, ZERO_TORCH.to(x.dtype))),
        tensorflow=guided(lambda x: tf.maximum(x, ZERO_TF)),
        jax=guided(lambda x: jnp.maximum(x, ZERO_NUMPY)),
        keras=guided(lambda x: keras.ops.maximum(x, keras.ops.convert_to_tensor(ZERO_NUMPY, dtype=kind(x)))),
    ),
    "maximum(x, zeros times 3)": row(
        torch=guided(lambda x: torch.maximum(zero(x) * 3, x)),
        tensorflow=guided(lambda x: tf.maximum(ZERO_TF * 3.0, x)),
        jax=guided(lambda x: jnp.maximum(jnp.asarray(ZERO_NUMPY) * 3, x)),
        keras=guided(lambda x: keras.ops.maximum(keras.ops.zeros((1,), dtype=kind(x)) * 3, x)),
    ),
    "maximum(x, zeros of one image)": row(
        torch=guided(lambda x: torch.maximum(x, x.new_zeros(1, *x.shape[1:]))),
        tensorflow=guided(lambda x: tf.maximum(x, tf.zeros([1, *x.shape[1:]], x.dtype))),
        jax=guided(lambda x: jnp.maximum(x, jnp.zeros((1, *x.shape[1:]), x.dtype))),
        keras=guided(lambda x: keras.ops.maximum(x, keras.ops.zeros((1, *x.shape[1:]), dtype=kind(x)))),
    ),
    "maximum(x, x - x)": row(
        torch=refused(lambda x: torch.maximum(x, x - x)),
        tensorflow=refused(lambda x: tf.maximum(x, x - x)),
        jax=guided(lambda x: jnp.maximum(x, x - x)),
        keras=guided(lambda x: keras.ops.maximum(x, x - x)),
    ),
    "maximum(x, 0 * x)": row(
        torch=judged(lambda x: torch.maximum(x, 0 * x)),
        tensorflow=guided(lambda x: tf.maximum(x, 0.0 * x)),
        jax=guided(lambda x: jnp.maximum(x, 0 * x)),
        keras=guided(lambda x: keras.ops.maximum(x, 0 * x)),
    ),
    "maximum of twice the negative": row(
        torch=guided(lambda x: torch.maximum(-1 * -x, zero(x))),
        tensorflow=guided(lambda x: tf.maximum(-1.0 * -x, 0.0)),
        jax=guided(lambda x: jnp.maximum(-1 * -x, 0)),
        keras=guided(lambda x: keras.ops.maximum(-1 * -x, 0)),
    ),
    "maximum of the lower level": row(
        torch=guided(lambda x: torch.ops.aten.maximum(x, zero(x))),
        tensorflow=guided(lambda x: tf.raw_ops.Maximum(x=x, y=ZERO_TF)),
        jax=guided(lambda x: lax.max(x, lax.full_like(x, 0))),
        keras=ONE_FUNCTION,
    ),
    "max(x, 0)": row(ONE_FUNCTION, torch=guided(lambda x: torch.max(x, torch.zeros_like(x)))),
    "max(0, x)": row(ONE_FUNCTION, torch=guided(lambda x: torch.max(zero(x).expand_as(x), x))),
    "fmax(x, 0)": row(
        NO_FUNCTION, torch=guided(lambda x: torch.fmax(x, zero(x))), jax=guided(lambda x: jnp.fmax(x, 0))
    ),
    "fmax(0, x)": row(
        NO_FUNCTION, torch=guided(lambda x: torch.fmax(zero(x), x)), jax=guided(lambda x: jnp.fmax(0.0, x))
    ),
    "fmax(x - x, x)": row(
        NO_FUNCTION, torch=refused(lambda x: torch.fmax(x - x, x)), jax=guided(lambda x: jnp.fmax(x - x, x))
    ),
    "threshold(0, 0)": row(
        NO_FUNCTION,
        torch=guided(lambda x: F.threshold(x, 0.0, 0.0)),
        keras="its threshold is where(x > 0, x, 0)",
    ),
    "hard_tanh(0, inf)": row("its hard_tanh is from -1 to 1", torch=guided(lambda x: F.hardtanh(x, 0.0, INF))),
    "leaky_relu(slope=0)": row(
        torch=guided(lambda x: F.leaky_relu(x, 0.0)),
        tensorflow=guided(lambda x: tf.nn.leaky_relu(x, 0.0)),
        jax=guided(lambda x: jax.nn.leaky_relu(x, 0.0)),
        keras=guided(lambda x: keras.ops.leaky_relu(x, 0.0)),
    ),
    "leaky_relu_(slope=0)": row(IN_PLACE, torch=guided(lambda x: F.leaky_relu_(x, 0.0))),
    "rrelu(0, 0)": row(NO_FUNCTION, torch=guided(lambda x: F.rrelu(x, 0.0, 0.0))),
    "prelu(slope=0)": row(
        NO_FUNCTION,
        torch=guided(lambda x: F.prelu(x, zero(x)[None])),
        keras="its layer has weights, and is among the activations of its tests",
    ),
    "elu(alpha=0)": row(
        torch=guided(lambda x: F.elu(x, 0.0)),
        tensorflow="its function takes no alpha",
        jax=guided(lambda x: jax.nn.elu(x, 0.0)),
        keras=refused(lambda x: keras.ops.elu(x, 0.0)),
    ),
    "where(x > 0, x, 0)": row(
        torch=judged(lambda x: torch.where(x > 0, x, 0.0)),
        tensorflow=guided(lambda x: tf.where(x > 0, x, 0.0)),
        jax=guided(lambda x: jnp.where(x > 0, x, 0)),
        keras=guided(lambda x: keras.ops.where(x > 0, x, 0.0)),
    ),
    "where(x > 0, x, zeros)": row(
        torch=judged(lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
        tensorflow=guided(lambda x: tf.where(x > 0, x, tf.zeros_like(x))),
        jax=guided(lambda x: jnp.where(x > 0, x, jnp.zeros_like(x))),
        keras=guided(lambda x: keras.ops.where(x > 0, x, keras.ops.zeros_like(x))),
    ),
    "x * (x > 0)": row(
        torch=judged(lambda x: x * (x > 0)),
        tensorflow=guided(lambda x: x * tf.cast(x > 0, x.dtype)),
        jax=guided(lambda x: x * (x > 0)),
        keras=guided(lambda x: x * keras.ops.cast(x > 0, kind(x))),
    ),
    "(x >= 0) * x": row(
        torch=judged(lambda x: (x >= 0).double() * x),
        tensorflow=guided(lambda x: tf.cast(x >= 0, x.dtype) * x),
        jax=guided(lambda x: (x >= 0).astype(x.dtype) * x),
        keras=guided(lambda x: keras.ops.cast(x >= 0, kind(x)) * x),
    ),
    "in a compiled function": row(
        WHOLE_MODELS,
        tensorflow=guided(nested),
        jax=guided(jax.jit(jax.nn.relu)),
        keras="that is the framework's beneath it",
    ),
    "in a function of a compiled function": row(
        WHOLE_MODELS,
        tensorflow=guided(twice_nested),
        jax=guided(jax.jit(lambda x: jax.jit(lambda x: jnp.maximum(x, 0))(x + 1.0 - 1.0))),
    ),
    "in a function compiled by XLA": row(
        WHOLE_MODELS, tensorflow=guided(compiled), jax="that is how it compiles anything"
    ),
    "branch": row(
        torch=LOOPS_IN_PYTHON,
        tensorflow=guided(lambda x: tf.cond(tf.size(x) > 1, lambda: tf.nn.relu(x), lambda: x)),
        jax=guided(lambda x: lax.cond(x.sum() > -1e9, jax.nn.relu, lambda x: x, x)),
        keras=guided(lambda x: keras.ops.cond(keras.ops.sum(x) > -1e9, lambda: keras.ops.relu(x), lambda: x)),
    ),
    "branch with maximum": row(
        torch=LOOPS_IN_PYTHON,
        tensorflow=guided(lambda x: tf.cond(tf.size(x) > 1, lambda: tf.maximum(x, ZERO_TF), lambda: x)),
        jax=guided(lambda x: lax.cond(x.sum() > -1e9, lambda x: jnp.maximum(x, 0), lambda x: x, x)),
        keras=LOOPS_IN_PYTHON,
    ),
    "branch of several": row(
        torch=LOOPS_IN_PYTHON,
        tensorflow=guided(lambda x: tf.switch_case(tf.rank(x) - len(x.shape), [lambda: nested(x), lambda: x])),
        jax=guided(lambda x: lax.switch(jnp.array(1), [jnp.negative, jax.nn.relu, lambda x: x], x)),
        keras=LOOPS_IN_PYTHON,
    ),
    "loop": row(
        LOOPS_IN_PYTHON,
        tensorflow=guided(looped),
        jax=guided(lambda x: lax.fori_loop(0, 2, lambda turn, x: jax.nn.relu(x), x)),
    ),
    "loop with maximum": row(
        LOOPS_IN_PYTHON,
        tensorflow=guided(looped_maximum),
        jax=guided(lambda x: lax.fori_loop(0, 1, lambda turn, x: jnp.maximum(x, 0), x)),
    ),
    "map": row(
        LOOPS_IN_PYTHON,
        tensorflow=guided(lambda x: tf.map_fn(tf.nn.relu, x)),
        jax=guided(lambda x: lax.map(jax.nn.relu, x)),
    ),
    "vmap": row(
        torch=guided(torch.vmap(F.relu)),
        tensorflow=guided(lambda x: tf.vectorized_map(tf.nn.relu, x)),
        jax=guided(jax.vmap(lambda row: jax.nn.relu(row))),
        keras=guided(lambda x: keras.ops.vectorized_map(keras.ops.relu, x)),
    ),
    "vmap of maximum": row(
        torch=guided(torch.vmap(torch.vmap(lambda row: torch.maximum(row, zero(row))))),
        tensorflow=guided(lambda x: tf.vectorized_map(lambda row: tf.maximum(row, ZERO_TF), x)),
        jax=guided(jax.vmap(jax.vmap(lambda row: jnp.maximum(row, 0)))),
        keras=LOOPS_IN_PYTHON,
    ),
    "vmap of an array of zeros": row(
        torch=guided(lambda x: torch.vmap(torch.maximum)(x, torch.zeros_like(x))),
        tensorflow=refused(lambda x: tf.vectorized_map(lambda rows: tf.maximum(*rows), (x, tf.zeros_like(x)))),
        jax=guided(lambda x: jax.vmap(jnp.maximum)(x, jnp.zeros_like(x))),
        keras=LOOPS_IN_PYTHON,
    ),
    "checkpoint": row(
        torch=guided(lambda x: checkpoint(F.relu, x, use_reentrant=False)),
        tensorflow=guided(tf.recompute_grad(tf.nn.relu)),
        jax=guided(jax.checkpoint(jax.nn.relu)),
        keras=guided(lambda x: keras.remat(keras.ops.relu)(x)),
    ),
    "checkpoint of a compiled function": row(
        WHOLE_MODELS,
        tensorflow=guided(tf.recompute_grad(nested)),
        jax=guided(jax.checkpoint(jax.jit(jax.nn.relu))),
    ),
    "function with a forward derivative of its own": row(
        "its functions with a gradient of their own are among the arithmetic", jax=guided(with_own_jvp)
    ),
}
