"""What computes a ReLU in a function of its own: by a derivative of its own, by assignment, behind a wall."""

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import torch


class OwnRelu(torch.autograd.Function):
    """A ReLU as a custom function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0)


class HandGuided(OwnRelu):
    """The same with the guided rule written by hand: what a right map is compared with."""

    @staticmethod
    def backward(ctx, g):
        return OwnRelu.backward(ctx, g.clamp(min=0))


@tf.custom_gradient
def own_relu_tf(x):
    """A ReLU as a custom gradient."""

    def grad(g):
        return g * tf.cast(x > 0, g.dtype)

    return tf.maximum(x, 0.0), grad


@jax.custom_vjp
def own_relu(x):
    """A ReLU as a custom function."""
    return jnp.maximum(x, 0)


own_relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, g: (g * (x > 0),))


@jax.custom_jvp
def scaled_relu(x, factor):
    """A ReLU inside of a larger custom function."""
    return jnp.maximum(x, 0) * factor


scaled_relu.defjvp(lambda x, t: (scaled_relu(*x), t[0] * (x[0] > 0) * x[1]))


def assigned(x):
    y = x.clone()
    y[y < 0] = 0
    return y


def partly_assigned(x):
    """A ReLU of one part, which tells nothing of the sign of the rest."""
    y = x.clone()
    y[:, 0] = torch.relu(y[:, 0])
    return (y + y.abs()) / 2


def scattered(x):
    y = torch.zeros_like(x)
    y[x > 0] = x[x > 0]
    return y


def scattered_tf(x):
    places = tf.where(x > 0)
    return tf.scatter_nd(places, tf.gather_nd(x, places), tf.shape(x, tf.int64))


def called_back(x):
    y = tf.py_function(tf.nn.relu, [x], x.dtype)
    y.set_shape(x.shape)
    return y


def called_back_jax(x):
    @jax.custom_jvp
    def hidden(x):
        return jax.pure_callback(lambda x: np.maximum(x, 0), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    hidden.defjvp(lambda x, t: (hidden(*x), t[0] * (x[0] > 0)))
    return hidden(x)


def exported(x):
    from jax import export

    return export.export(jax.jit(jax.nn.relu))(x).call(x)


def masked_on_view(x):
    y = x.clone()
    y[:, :2].masked_fill_(y[:, :2] < 0, 0.0)
    return torch.cat([y[:, :2], x[:, 2:].relu()], 1)


def magnitude_on_view(x):
    y = x.clone()
    y[:, :2].abs_()
    return torch.cat([y[:, :2], x[:, 2:].relu()], 1)


def every_third(x):
    """A mask that does not depend on the images, of one image's shape."""
    return np.arange(np.prod(x.shape[1:])).reshape(x.shape[1:]) % 3 == 0


def every_third_torch(x):
    return torch.as_tensor(every_third(x))


def scale(x):
    """One number per channel, of both signs; the channels are the last axis."""
    return np.linspace(-0.5, 1.5, x.shape[-1])


def scale_torch(x):
    """The same, the channels being axis 1."""
    return torch.linspace(-0.5, 1.5, x.shape[1], dtype=x.dtype).view(1, -1, *[1] * (x.ndim - 2))


def turned(x):
    """The last axis to the front, and the images to the back."""
    return tf.transpose(x, [*range(len(x.shape))][::-1])


def second(axes, array):
    """Return a mask of two values, along an axis in front of others: the second one is left out."""
    return array(np.array([False, True]).reshape(2, *[1] * axes))
