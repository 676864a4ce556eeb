"""Custom gradients: whose they are, and how one is used in a copy of the graph that it was written for.

TensorFlow writes a custom gradient as an override by name on an operation, here or in a library. Those of
TensorFlow and Keras themselves are known to hold no ReLU, but for one around a function of somebody's; of all others
nobody knows.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.framework.func_graph import FuncGraph

from guided_backprop.backends.tensorflow.graph.functions import PREFIX
from guided_backprop.backends.tensorflow.graph.nodes import ORIGINAL, attribute
from guided_backprop.backends.tensorflow.graph.tracing import (
    CUSTOM_GRADIENT,
    forget_gradients,
    own_gradients,
    registered_names,
)

#: From an operation and what arrives at it to what leaves it.
GradientFunction = Callable[..., Sequence[tf.Tensor | None] | tf.Tensor | None]

_TRUSTED = ("tensorflow.", "keras.", "tf_keras.")
_RECOMPUTATION = "recompute_grad."
# What is TensorFlow's own around a function of somebody's, and lets a gradient pass that as if it were none.
_AROUND = ("grad_pass_through.",)

# The scope into which a traced model is copied.
SCOPE = "model"


def registered(name: str) -> GradientFunction | None:
    """Return the gradient function of this name, or None."""
    try:
        function: GradientFunction | None = ops.gradient_registry.lookup(name)
    except LookupError:
        return None
    return function


def custom_name(name: str) -> str | None:
    """Return the name of a custom gradient for people, or None if it is TensorFlow's or Keras' own."""
    function = registered(name)
    is_saved = name.startswith(CUSTOM_GRADIENT) and (function is None or "tape_grad_fn" not in _held(function))
    if function is None or is_saved:
        # A SavedModel does not say whose gradient it was: TensorFlow's recomputation is no exception.
        return CUSTOM_GRADIENT if is_saved else None
    written = _written(function)
    if written.__module__.startswith(_TRUSTED) and not written.__qualname__.startswith(_AROUND):
        return None
    qualified = str(written.__qualname__).split(".<locals>")[0]
    return qualified if name.startswith(CUSTOM_GRADIENT) else name


def is_recomputation(name: str) -> bool:
    """Tell whether a custom gradient is that of ``tf.recompute_grad``, of which ``keras.remat`` is made."""
    function = registered(name)
    if function is None:
        return False
    written = _written(function)
    return bool(written.__module__.startswith(_TRUSTED) and written.__qualname__.startswith(_RECOMPUTATION))


def _written(function: object) -> Callable[..., object]:
    """Return the function that the user wrote inside the one that TensorFlow registered for it."""
    for name in ("tape_grad_fn", "grad_fn"):
        function = _held(function).get(name, function)
    return function if callable(function) and hasattr(function, "__qualname__") else type(function)


def _held(function: object) -> Mapping[str, object]:
    """Return the variables that a function holds of the one it was defined in."""
    return inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}


def original_gradient(op: tf.Operation, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """Return what an operation's own gradient function makes of the gradients that arrive at it."""
    name = op.get_attr(ORIGINAL).decode()
    function = registered(name)
    if function is None:
        raise LookupError(f"no gradient is registered under {name}")
    if op.type != "IdentityN":
        return list(tf.nest.flatten(function(op, *gradients)))
    return _transplanted(op, function, gradients)


def _transplanted(
    op: tf.Operation, function: GradientFunction, gradients: Sequence[tf.Tensor]
) -> list[tf.Tensor | None]:
    """Call a gradient function that holds tensors of the graph it was traced in, and move its result here."""
    graph, before = FuncGraph("custom_gradient"), registered_names()
    with graph.as_default():
        arriving = [tf.compat.v1.placeholder(gradient.dtype, gradient.shape) for gradient in gradients]
        leaving = tf.nest.flatten(function(op, *arriving))
    here = {}
    for placeholder, gradient in zip(arriving, gradients, strict=True):
        here[placeholder.name] = gradient
    for outside, inside in graph.captures:
        here[inside.name] = _here(op, outside)
    names = [None if tensor is None else tensor.name for tensor in leaving]
    wanted = [name for name in names if name is not None]
    graph_def = graph.as_graph_def()
    # It is differentiated no further.
    forget_gradients(own_gradients(graph_def, before))
    for node in graph_def.node:
        # It may ask to be placed beside a node that is not in this graph.
        node.attr.pop("_class", None)
    moved = iter(tf.graph_util.import_graph_def(graph_def, here, wanted, name="custom_gradient"))
    return [None if name is None else next(moved) for name in names]


def _here(op: tf.Operation, tensor: tf.Tensor) -> tf.Tensor:
    """Return the copy, next to ``op``, of a tensor of the graph that the gradient was traced in."""
    if hasattr(tensor, "graph") and tensor.graph is not op.graph:
        prefix = attribute(op.node_def, PREFIX).s.decode()
        scope = f"{SCOPE}/" if op.name.startswith(f"{SCOPE}/") else ""
        tensor = op.graph.get_tensor_by_name(f"{scope}{prefix}{tensor.name}")
    # The gradient of a loop is a function of its own.
    return tf.compat.v1.get_default_graph().capture(tensor)
