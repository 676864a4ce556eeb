"""What is done with a whole model, stored, compiled or nested: the rows, each cell a function of an empty folder."""

import io
from functools import partial
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
from networks_torch import Net, relu_net, to_torch
from spellings import Row, guided, row
from spellings.relus import LOOPS_IN_PYTHON, looped, nested

FUNCTIONS = "its models are functions"
NO_TRAINING = "what is trained is no matter of its arrays"
AS_BENEATH = "what Keras does is in the rows of layers and files"
TORCH_SCRIPT = "TorchScript is PyTorch's"

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


FORMS: dict[str, Row] = {
    "module": row(
        torch=guided(lambda folder: relu_net()),
        tensorflow=guided(lambda folder: net_tf()),
        jax=guided(lambda folder: Object()),
        keras=guided(lambda folder: functional()),
    ),
    "function": row(
        torch=guided(lambda folder: (lambda model: lambda x: model(x))(relu_net())),
        tensorflow=guided(lambda folder: (lambda model: lambda x: model(x))(net_tf())),
        jax=guided(lambda folder: net()),
        keras=AS_BENEATH,
    ),
    "partial": row(
        torch=guided(lambda folder: partial(lambda model, x: model(x), relu_net())),
        tensorflow=guided(lambda folder: partial(lambda model, x: model(x), net_tf())),
        jax=guided(lambda folder: partial(lambda relu, x: net(relu)(x), jax.nn.relu)),
        keras=AS_BENEATH,
    ),
    "not trained": row(
        NO_TRAINING,
        torch=guided(lambda folder: relu_net().requires_grad_(False)),
        keras=guided(untrained),
    ),
    "modules only": row(FUNCTIONS, torch=guided(lambda folder: scriptable()), keras="its models are"),
    "Activation layer": row(
        FUNCTIONS,
        torch="its layers are not made by name",
        keras=guided(lambda folder: networks_keras.net(layers.Activation("relu", dtype="float64"))),
    ),
    "Lambda layer": row(
        FUNCTIONS,
        torch="it has none",
        keras=guided(lambda folder: networks_keras.net(layers.Lambda(keras.ops.relu, dtype="float64"))),
    ),
    "functions between layers": row(
        FUNCTIONS,
        torch=guided(lambda folder: Net(torch.relu)),
        keras=guided(lambda folder: networks_keras.net(keras.ops.relu)),
    ),
    "maximum between layers": row(
        FUNCTIONS,
        torch=guided(lambda folder: Net(lambda x: x.clamp(min=0))),
        keras=guided(lambda folder: networks_keras.net(lambda x: keras.ops.maximum(x, 0.0))),
    ),
    "Sequential": row(
        FUNCTIONS,
        torch=guided(lambda folder: nn.Sequential(relu_net()).eval()),
        keras=guided(lambda folder: in_sequential()),
    ),
    "nested models": row(
        FUNCTIONS,
        torch=guided(lambda folder: nn.Sequential(nn.Sequential(relu_net())).eval()),
        keras=guided(lambda folder: in_model()),
    ),
    "subclassed": row(FUNCTIONS, torch="all of its modules are", keras=guided(subclassed)),
    # Traced and compiled.
    "traced": row(
        torch=guided(lambda folder: torch.fx.symbolic_trace(relu_net())),
        tensorflow=guided(lambda folder: tf.function(net_tf())),
        jax="what it traces is compiled",
        keras=AS_BENEATH,
    ),
    "traced for one size": row(
        torch=guided(lambda folder: torch.export.export(relu_net(), (images(),)).module()),
        tensorflow=guided(
            lambda folder: tf.function(net_tf(), input_signature=[tf.TensorSpec((4, 8, 8, 3), tf.float64)])
        ),
        jax="what it traces is compiled",
        keras=AS_BENEATH,
    ),
    "concrete function": row(
        "it has none but what it traces",
        tensorflow=guided(lambda folder: tf.function(kept(net_tf())).get_concrete_function(SPEC)),
    ),
    "compiled": row(
        torch=guided(lambda folder: compiled(relu_net())),
        tensorflow=guided(lambda folder: tf.function(net_tf(), jit_compile=True)),
        jax=guided(lambda folder: jax.jit(net())),
        keras=AS_BENEATH,
    ),
    "function of a compiled model": row(
        torch=guided(lambda folder: (lambda model: lambda x: model(x))(compiled(relu_net()))),
        tensorflow=guided(lambda folder: (lambda f: lambda x: f(x))(tf.function(net_tf(), jit_compile=True))),
        jax=guided(lambda folder: jax.jit(lambda x: jax.jit(net(jax.jit(maximum)))(x))),
        keras=AS_BENEATH,
    ),
    "compiled in place": row(
        torch=guided(lambda folder: compiled_in_place(relu_net())),
        tensorflow=FUNCTIONS,
        jax=FUNCTIONS,
        keras="its compile() is about training",
    ),
    "compiled parts": row(
        torch=guided(lambda folder: with_compiled_parts()),
        tensorflow=guided(lambda folder: NetOfTensorFlow(tf.nn.relu, nested, nested)),
        jax=guided(lambda folder: net(jax.jit(jax.nn.relu), jax.nn.relu, jax.jit(maximum))),
        keras=AS_BENEATH,
    ),
    "jit.trace": row(TORCH_SCRIPT, torch=guided(lambda folder: warmed(torch.jit.trace(relu_net(), images())))),
    "jit.script": row(TORCH_SCRIPT, torch=guided(lambda folder: scripted())),
    "jit.script, first call": row(TORCH_SCRIPT, torch=guided(lambda folder: torch.jit.script(scriptable()))),
    "jit.script, reloaded": row(TORCH_SCRIPT, torch=guided(lambda folder: reloaded(scripted()))),
    "jit.freeze": row(
        TORCH_SCRIPT, torch=guided(lambda folder: warmed(torch.jit.freeze(torch.jit.script(scriptable()))))
    ),
    # Stored.
    ".keras": row("that is a file of Keras", keras=guided(saved_keras)),
    "SavedModel": row(
        "that is a file of TensorFlow",
        tensorflow=guided(lambda folder: saved_module(folder).network),
        keras=guided(lambda folder: exported(folder).serve),
    ),
    "signature of a SavedModel": row(
        "that is a file of TensorFlow",
        tensorflow=guided(lambda folder: saved_module(folder).signatures["serving_default"]),
        keras=guided(lambda folder: exported(folder).signatures["serving_default"]),
    ),
    "layer of a SavedModel": row("that is a layer of Keras", keras=guided(layer_of_a_saved_model)),
    # Checkpoints.
    "checkpoint": row(
        torch=guided(lambda folder: Checkpointed(nn.ReLU())),
        tensorflow=guided(lambda folder: NetOfTensorFlow(tf.recompute_grad(tf.nn.relu))),
        jax=guided(lambda folder: jax.checkpoint(net())),
        keras=AS_BENEATH,
    ),
    "checkpointed blocks": row("its checkpoints have no policies", jax=guided(lambda folder: on_own_block)),
    "checkpoint with maximum": row(
        torch=guided(lambda folder: Checkpointed(lambda x: torch.maximum(x, torch.zeros_like(x)))),
        tensorflow=guided(lambda folder: NetOfTensorFlow(tf.recompute_grad(lambda x: tf.maximum(x, tf.zeros_like(x))))),
        jax=guided(lambda folder: jax.checkpoint(net(maximum))),
        keras=AS_BENEATH,
    ),
    "checkpoint with clip": row(
        "its clip is a maximum", torch=guided(lambda folder: Checkpointed(lambda x: x.clamp(min=0)))
    ),
    "compiled checkpoint of a loop": row(
        LOOPS_IN_PYTHON,
        tensorflow="its loops are among the ReLUs",
        jax=guided(lambda folder: jax.jit(jax.checkpoint(scanned))),
    ),
    # Of one image, in loops and branches, on several devices.
    "vmap": row(
        torch=guided(lambda folder: (lambda model: torch.vmap(lambda image: model(image[None])[0]))(relu_net())),
        tensorflow="it has no gradient of a vectorized_map around convolutions of one image",
        jax=guided(lambda folder: jax.vmap(alone(net()))),
        keras=AS_BENEATH,
    ),
    "vmap of a compiled model": row(
        "what it compiles takes batches", jax=guided(lambda folder: jax.vmap(jax.jit(alone(net(maximum)))))
    ),
    "map": row(
        LOOPS_IN_PYTHON,
        tensorflow=guided(lambda folder: (lambda one: lambda x: tf.map_fn(alone(one), x))(net_tf())),
        jax=guided(lambda folder: lambda x: lax.map(alone(net()), x)),
    ),
    "scan": row(LOOPS_IN_PYTHON, tensorflow="its loops are among the ReLUs", jax=guided(lambda folder: scanned)),
    "loop": row(LOOPS_IN_PYTHON, tensorflow="its loops are among the ReLUs", jax=guided(lambda folder: in_turns)),
    "branches": row(
        LOOPS_IN_PYTHON, tensorflow="its branches are among the ReLUs", jax=guided(lambda folder: switched)
    ),
    "vmap of branches": row(
        LOOPS_IN_PYTHON,
        tensorflow="its branches are among the ReLUs",
        jax=guided(lambda folder: jax.vmap(alone(switched))),
    ),
    "on several devices": row(
        torch=guided(lambda folder: nn.DataParallel(relu_net()).eval()),
        tensorflow="its strategies are about training",
        jax=guided(lambda folder: sharded(net())),
        keras=AS_BENEATH,
    ),
    "compiled on several devices": row(
        "it compiles no such thing", jax=guided(lambda folder: jax.jit(sharded(net(maximum))))
    ),
    "scan on several devices": row(
        LOOPS_IN_PYTHON,
        tensorflow="its strategies are about training",
        jax=guided(lambda folder: sharded(net(lambda x: lax.map(jax.nn.relu, x)))),
    ),
    "named": row("its names are no operation", jax=guided(lambda folder: jax.named_call(net(), name="block"))),
}
