"""Models in the forms of the table: scripted, saved, nested, checkpointed, in loops and branches."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from jax import lax
from keras import layers
from torch import nn
from torch.utils.checkpoint import checkpoint

import networks_jax
import networks_keras
import reference
from networks import IMAGES, channels_last, dense, mixed
from networks_jax import Model, to_jax
from networks_tensorflow import Net as NetOfTensorFlow
from networks_torch import Net, to_torch
from spellings.relus import looped, nested

# PyTorch.


def images() -> torch.Tensor:
    return torch.tensor(IMAGES)


def warmed(model: nn.Module, warm: int = 4) -> nn.Module:
    """Run a model a few times with gradients, as in use."""
    for _ in range(warm):
        model(images().requires_grad_()).sum().backward()
    return model


def scriptable() -> nn.Module:
    """Return the network as modules only, so that it can be scripted."""
    return to_torch(mixed(reference.ReLU()))


def scripted() -> nn.Module:
    """Return a scripted module that has run often enough to be optimised."""
    return warmed(torch.jit.script(scriptable()))


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Save and load a scripted module."""
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return warmed(torch.jit.load(buffer))


class Checkpointed(Net):
    """The network with its block, and its ReLUs, under a checkpoint."""

    use_reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (N, 5)."""
        x = checkpoint(lambda x: self.second(self.residual(x)), self.stem(x), use_reentrant=self.use_reentrant)
        return self.head(checkpoint(lambda x: self.third(self.middle(x)), x, use_reentrant=self.use_reentrant))


class Reentrant(Checkpointed):
    """The same under the reentrant checkpoint."""

    use_reentrant = True


def compiled(model: nn.Module) -> nn.Module:
    """Compile to a differentiated graph; ``aot_eager`` hides ReLUs as inductor does and needs no compiler."""
    return warmed(torch.compile(model, backend="aot_eager"))


def compiled_in_place(model: nn.Module) -> nn.Module:
    """``Module.compile``."""
    model.compile(backend="aot_eager")
    return warmed(model)


def with_compiled_parts() -> nn.Module:
    """Compile two submodules and one function."""
    model = Net(nn.ReLU(), nn.ReLU(), nn.ReLU())
    model.middle = torch.compile(model.middle, backend="aot_eager")
    model.third = torch.compile(model.third, backend="aot_eager")
    function = torch.compile(lambda x: torch.relu(x), backend="aot_eager")
    model.second.forward = lambda x: function(x)
    return warmed(model)


# TensorFlow and Keras. A function that was saved or traced does not keep its variables alive: its owner does.

ALIVE: list[Any] = []
SPEC = tf.TensorSpec((None, 8, 8, 3), tf.float64)


def kept(owner: Any) -> Any:
    ALIVE.append(owner)
    return owner


def net_tf() -> NetOfTensorFlow:
    return NetOfTensorFlow(tf.nn.relu)


class Subclassed(keras.Model):
    """A subclassed model around layers, one of which it uses twice."""

    def __init__(self) -> None:
        super().__init__(dtype="float64")
        self.inner = functional()

    def call(self, images: Any, training: bool = True) -> Any:
        """Fail where it is not told that this is inference."""
        if training:
            raise ValueError("must be called with training=False")
        return self.inner(images)


def functional() -> keras.Model:
    return networks_keras.net(layers.ReLU(dtype="float64"))


def subclassed(folder):
    model = Subclassed()
    model(tf.constant(channels_last(IMAGES)), training=False)
    return model


def untrained(folder):
    model = functional()
    model.trainable = False
    return model


def in_sequential() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3), dtype="float64"), functional()])


def in_model() -> keras.Model:
    images = keras.Input((8, 8, 3), dtype="float64")
    return keras.Model(images, in_sequential()(images))


def saved_keras(folder):
    in_model().save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def exported(folder):
    in_model().export(folder / "exported", verbose=False)
    return kept(tf.saved_model.load(str(folder / "exported")))


def saved_module(folder):
    module = NetOfTensorFlow(tf.nn.relu, nested, looped)
    traced = tf.function(module.__call__, input_signature=[SPEC])
    holder = tf.Module()
    holder.network, holder.weights = traced, module.weights
    tf.saved_model.save(holder, str(folder / "module"), signatures=traced.get_concrete_function())
    return kept(tf.saved_model.load(str(folder / "module")))


def layer_of_a_saved_model(folder):
    exported(folder)
    layer = layers.TFSMLayer(str(folder / "exported"), call_endpoint="serve", dtype="float64")
    return lambda x: layer(x)


# JAX: the dense network, and its parts.

LAYERS = dense(reference.ReLU()).layers
stem, branch = to_jax(reference.Sequential(LAYERS[:2])), to_jax(LAYERS[2].branch.layers[1])
middle, scores = to_jax(LAYERS[4]), to_jax(LAYERS[6])


def net(*activate: Any) -> Model:
    return networks_jax.net(*(activate or (jax.nn.relu,)))


def maximum(x):
    return jnp.maximum(x, 0)


def scanned(x):
    """Two of the ReLUs in turns of a loop: the weights and zeros are what it runs over."""
    x = stem(x)
    layer = LAYERS[2].branch.layers[1]
    weights, flags = jnp.stack([jnp.asarray(layer.weight, x.dtype)] * 2), jnp.array([1.0, 0.0], x.dtype)

    def turn(x: Any, slices: Any) -> tuple[Any, None]:
        weight, flag, zero = slices
        y = jnp.maximum(x, zero) @ weight.T + jnp.asarray(layer.bias, x.dtype)
        return flag * (x + y) + (1 - flag) * jnp.maximum(x, zero), None

    x, _ = lax.scan(turn, x, (weights, flags, jnp.zeros((2, 1))))
    return scores(jax.nn.relu(middle(x)))


def switched(x):
    """A branch that the image's own brightness chooses, one that is fixed, and one of three."""
    x = stem(x)
    x = lax.cond(x.sum() > -1e9, lambda x: x + branch(jax.nn.relu(x)), lambda x: x * 3, x)
    x = lax.cond(True, jax.nn.relu, lambda x: x, x)
    return scores(lax.switch(jnp.array(1), [jnp.tanh, maximum, lambda x: x], middle(x)))


def in_turns(x):
    """A loop of fixed length."""
    x = stem(x)
    x = lax.fori_loop(0, 1, lambda turn, x: x + branch(jax.nn.relu(x)), x)
    return scores(jax.nn.relu(middle(jax.nn.relu(x))))


def sharded(model: Model) -> Model:
    """The model, one part of the batch on each device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    return jax.shard_map(model, mesh=mesh, in_specs=spec, out_specs=spec)


def on_own_block(x):
    """Each block under a checkpoint, with policies."""
    x = jax.checkpoint(lambda x: jax.nn.relu(x + branch(maximum(x))), prevent_cse=False)(stem(x))
    keep = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda x: scores(jax.nn.relu(middle(x))), policy=keep)(x)


class Object:
    """An object that can be called."""

    def __call__(self, x: Any) -> Any:
        """Return the scores (N, 5)."""
        return net()(x)


def alone(model: Model) -> Model:
    """A model of one image."""
    return lambda image: model(image[None])[0]
