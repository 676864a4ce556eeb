"""What is a ReLU with a cap at 1: the rows and their cells."""

import jax
import jax.numpy as jnp
import keras
import tensorflow as tf
import torch
import torch.nn.functional as F
from jax import lax
from keras import layers
from torch import nn

from spellings import Row, guided, judged, row
from spellings.relus import (
    IN_PLACE,
    NO_LAYER,
    ONE_FUNCTION,
    ZERO_NUMPY,
    ZERO_TF,
    kind,
    zero,
)

CAPPED: dict[str, Row] = {
    "layer with a cap": row(
        NO_LAYER,
        torch=guided(nn.Hardtanh(0.0, 1.0)),
        keras=guided(lambda x: layers.ReLU(max_value=1.0, dtype=kind(x))(x)),
    ),
    "hard_tanh_(0, 1)": row(IN_PLACE, torch=guided(lambda x: F.hardtanh_(x, 0.0, 1.0))),
    "clip(0, 1)": row(
        torch=guided(lambda x: x.clamp(0, 1)),
        tensorflow=guided(lambda x: tf.clip_by_value(x, 0.0, 1.0)),
        jax=guided(lambda x: jnp.clip(x, 0, 1)),
        keras=guided(lambda x: keras.ops.clip(x, 0, 1)),
    ),
    "clip(0, 1) of the lower level": row(
        torch=guided(lambda x: torch.ops.aten.clamp(x, 0.0, 1.0)),
        tensorflow=guided(lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=ZERO_TF, clip_value_max=ZERO_TF + 1.0)),
        jax=guided(lambda x: lax.clamp(0.0, x, 1.0)),
        keras=ONE_FUNCTION,
    ),
    "clip by arrays": row(
        torch=guided(lambda x: x.clamp(zero(x), zero(x) + 1)),
        tensorflow=guided(lambda x: tf.clip_by_value(x, tf.zeros_like(x), tf.ones_like(x))),
        jax=guided(lambda x: lax.clamp(jnp.zeros(()), x, jnp.ones(()))),
        keras=guided(lambda x: keras.ops.clip(x, keras.ops.zeros_like(x), keras.ops.ones_like(x))),
    ),
    "minimum(relu(x), 1)": row(
        torch=judged(lambda x: torch.minimum(F.relu(x), zero(x) + 1)),
        tensorflow=guided(lambda x: tf.minimum(tf.nn.relu(x), 1.0)),
        jax=guided(lambda x: jnp.minimum(jax.nn.relu(x), 1)),
        keras=guided(lambda x: keras.ops.minimum(keras.ops.relu(x), 1)),
    ),
    "minimum(maximum(x, 0), 1)": row(
        torch=judged(lambda x: torch.minimum(torch.maximum(x, zero(x)), zero(x) + 1)),
        tensorflow=guided(lambda x: tf.minimum(tf.maximum(x, 0.0), 1.0)),
        jax=guided(lambda x: jnp.minimum(jnp.maximum(x, 0), 1)),
        keras=guided(lambda x: keras.ops.minimum(keras.ops.maximum(x, 0), 1)),
    ),
    "minimum(1, maximum(0, x))": row(
        torch=judged(lambda x: torch.minimum(zero(x) + 1, torch.maximum(zero(x), x))),
        tensorflow=guided(lambda x: tf.minimum(ZERO_TF + 1.0, tf.maximum(ZERO_TF, x))),
        jax=guided(lambda x: jnp.minimum(jnp.ones_like(x), jnp.maximum(ZERO_NUMPY, x))),
        keras=guided(lambda x: keras.ops.minimum(1.0, keras.ops.maximum(0.0, x))),
    ),
    "maximum(minimum(x, 1), 0)": row(
        torch=judged(lambda x: torch.maximum(torch.minimum(x, zero(x) + 1), zero(x))),
        tensorflow=guided(lambda x: tf.maximum(tf.minimum(x, 1.0), 0.0)),
        jax=guided(lambda x: jnp.maximum(jnp.minimum(x, 1.0), 0)),
        keras=guided(lambda x: keras.ops.maximum(keras.ops.minimum(x, 1.0), 0)),
    ),
    "relu6(6 x) / 6": row(
        torch=guided(lambda x: F.relu6(6 * x) / 6),
        tensorflow=guided(lambda x: tf.nn.relu6(6.0 * x) / 6.0),
        jax=guided(lambda x: jax.nn.relu6(x * 6) / 6),
        keras=guided(lambda x: keras.ops.relu6(6 * x) / 6),
    ),
}
