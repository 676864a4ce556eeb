"""The gradient of a convolution that is compiled, or in groups: that is put together of those of its groups.

Keras compiles such a layer by XLA, which has a gradient of it on every processor. In a copy of the graph it runs like
any other operation, and of TensorFlow's own kernels only some have one: those of GPUs, and of oneDNN in some types.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.tensorflow.graph.compiled import ARGUMENTS, COMPILED, CONVOLUTIONS
from guided_backprop.backends.tensorflow.graph.custom import GradientFunction, original_gradient, registered

# What TensorFlow says where it has none: of other errors, as of full memory, nothing follows.
_NO_KERNEL: Final = tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnimplementedError
# A convolution of each channel on its own, whose gradient has a kernel everywhere.
_DEPTHWISE: Final = "DepthwiseConv2dNative"


class _Part:
    """A convolution of other operands, as TensorFlow's gradient functions ask it."""

    def __init__(self, op: tf.Operation, images: tf.Tensor, weights: tf.Tensor) -> None:
        self.inputs, self.get_attr = [images, weights], op.get_attr


def convolution_gradient(op: tf.Operation, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """Return what leaves a convolution, be it in groups, or a call of one that is compiled."""
    images, weights = op.inputs
    if op.type not in CONVOLUTIONS:
        return [_compiled(op, place, *gradients) for place in (0, 1)]
    axis, function, depthwise = _channels(op), registered(op.type), registered(_DEPTHWISE)
    count = _groups(images.shape, weights.shape, axis)
    if count == 1 or function is None or _has_kernel(images.dtype, images.shape.rank, op.device):
        return original_gradient(op, gradients)
    (g,) = gradients
    if depthwise is not None and _is_by_channels(op):
        return _by_channels(op, g, depthwise)
    operands = tf.split(images, count, axis), tf.split(weights, count, -1), tf.split(g, count, axis)
    leaving = [tf.nest.flatten(function(_Part(op, x, w), part)) for x, w, part in zip(*operands, strict=True)]
    towards_images, towards_weights = zip(*leaving, strict=True)
    return [tf.concat(towards_images, axis), tf.concat(towards_weights, -1)]


def _compiled(op: tf.Operation, place: int, g: tf.Tensor) -> tf.Tensor:
    """Return what leaves one operand of a convolution that is compiled; that is compiled as well."""
    graph_def = GraphDef(node=[NodeDef.FromString(op.get_attr(COMPILED))])

    def derive(*given: tf.Tensor) -> tf.Tensor:
        *operands, arriving = given
        here = {f"{name}:0": tensor for name, tensor in zip(ARGUMENTS, operands, strict=True)}
        (result,) = tf.graph_util.import_graph_def(graph_def, here, [f"{graph_def.node[0].name}:0"])
        return tf.gradients(result, operands[place], arriving)[0]

    return tf.function(derive, autograph=False, jit_compile=True)(*op.inputs, g)


def _by_channels(op: tf.Operation, g: tf.Tensor, function: GradientFunction) -> list[tf.Tensor | None]:
    """Return the same of groups of one channel each: of many there is one operation."""
    images, weights = op.inputs
    *sizes, _, results = weights.shape.as_list()
    channels = images.shape[-1]
    alike = tf.reshape(weights, [*sizes, channels, results // channels])
    towards_images, towards_weights = tf.nest.flatten(function(_Part(op, images, alike), g))
    return [towards_images, tf.reshape(towards_weights, weights.shape)]


def _channels(op: tf.Operation) -> int:
    """Return which axis is that of channels."""
    return 1 if op.get_attr("data_format").startswith(b"NC") else -1


def _groups(images: tf.TensorShape, weights: tf.TensorShape, axis: int) -> int:
    """Return how many groups there are; one where nobody knows."""
    given, taken = images[axis] if images.rank else None, weights[-2] if weights.rank else None
    return given // taken if given and taken else 1


def _is_by_channels(op: tf.Operation) -> bool:
    """Tell whether it is of each channel on its own, as that operation is: with steps of one length, and no gaps."""
    weights = op.inputs[1].shape
    if op.type != "Conv2D" or _channels(op) == 1 or weights[-2] != 1 or not weights.is_fully_defined():
        return False
    _, down, right, _ = op.get_attr("strides")
    return bool(down == right and max(op.get_attr("dilations")) == 1)


@cache
def _has_kernel(kind: tf.DType, rank: int, device: str) -> bool:
    """Tell whether a gradient in groups has a kernel here, which nothing tells but to run one."""
    sides = rank - 2

    def derive(images: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
        return tf.gradients(tf.nn.convolution(images, weights), images)  # type: ignore[no-any-return]

    with tf.init_scope(), tf.device(device or None):
        try:
            tf.function(derive, autograph=False)(
                tf.ones([1, *[3] * sides, 2], kind), tf.ones([*[2] * sides, 1, 2], kind)
            )
        except _NO_KERNEL:
            return False
    return True
