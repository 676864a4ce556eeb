"""What is done with a whole model, stored, compiled or nested: the rows, each cell a function of an empty folder."""

from functools import partial

import jax
import keras
import tensorflow as tf
import torch
from jax import lax
from keras import layers
from torch import nn

import networks_keras
from networks_tensorflow import Net as NetOfTensorFlow
from networks_torch import Net, relu_net
from spellings import Row, guided, row
from spellings.models import (
    SPEC,
    Checkpointed,
    Object,
    alone,
    compiled,
    compiled_in_place,
    exported,
    functional,
    images,
    in_model,
    in_sequential,
    in_turns,
    kept,
    layer_of_a_saved_model,
    maximum,
    net,
    net_tf,
    on_own_block,
    reloaded,
    saved_keras,
    saved_module,
    scanned,
    scriptable,
    scripted,
    sharded,
    subclassed,
    switched,
    untrained,
    warmed,
    with_compiled_parts,
)
from spellings.relus import LOOPS_IN_PYTHON, nested

FUNCTIONS = "its models are functions"
NO_TRAINING = "what is trained is no matter of its arrays"
AS_BENEATH = "what Keras does is in the rows of layers and files"
TORCH_SCRIPT = "TorchScript is PyTorch's"

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
