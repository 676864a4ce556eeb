"""The small residual network of the reference, written in every way people write one in TensorFlow and Keras."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import reference
from guided_backprop.backends.base import Attributed, Setup
from guided_backprop.backends.tensorflow import TensorFlowBackend
from guided_backprop.labels.parse import parse_label
from guided_backprop.rules import DECONV, GUIDED, PLAIN

CLASSES = 5
LABELS = [0, 3, 4, 1]
RULES = {"saliency": PLAIN, "deconvnet": DECONV, "guided": GUIDED}
# Channels first, as the reference has them, and channels last, as the networks here do.
REFERENCE_IMAGES = np.random.default_rng(1).normal(size=(4, 3, 8, 8))
IMAGES = np.ascontiguousarray(REFERENCE_IMAGES.transpose(0, 2, 3, 1))
Activation = Callable[[Any], Any]
ZERO = tf.constant(0.0, tf.float64)


def network(cap: float | None = None, seed: int = 0) -> reference.Sequential:
    """Return the reference network: conv, x + conv(relu(x)), relu, pool, strided grouped conv, norm, relu."""
    rng = np.random.default_rng(seed)
    relu = reference.ReLU(cap)
    branch = reference.Sequential((relu, reference.random_conv(rng, 4, 4, padding=(1, 1))))
    return reference.Sequential(
        (
            reference.random_conv(rng, 3, 4, padding=(1, 1)),
            reference.Residual(branch),
            relu,
            reference.MaxPool2d((2, 2), (2, 2)),
            reference.random_conv(rng, 4, 6, stride=(2, 2), padding=(1, 1), groups=2),
            reference.random_batch_norm(rng, 6),
            relu,
            reference.Flatten(),
            reference.random_linear(rng, 24, CLASSES),
        )
    )


def oracle(rule: str = "guided", cap: float | None = None, labels: list[int] = LABELS) -> np.ndarray:
    """Return the right map, channels last."""
    weights = np.eye(CLASSES)[labels]
    return reference.attribution(network(cap), REFERENCE_IMAGES, weights, rule).transpose(0, 2, 3, 1)


def explain(model: Any, images: Any = IMAGES, labels: Any = LABELS, rule: str = "guided", **options: Any) -> Attributed:
    """Explain one batch with a backend of its own."""
    return explain_with(backend(model, **options), images, labels, rule)


def backend(model: Any, undo_head: bool = True, vouch: Any = None) -> TensorFlowBackend:
    return TensorFlowBackend(Setup(model, undo_head=undo_head, vouch=vouch or {}))


def explain_with(
    one: TensorFlowBackend, images: Any = IMAGES, labels: Any = LABELS, rule: str = "guided"
) -> Attributed:
    """Explain one batch as a method does."""
    one.check_images(images)
    (found,) = one.attribute(images, parse_label(labels, len(images)).weigh, [RULES[rule]])
    return replace(found, attribution=found.attribution[0], scores=found.scores[0])


class Net(tf.Module):
    """The network in plain TensorFlow; ``activate`` says how its ReLUs are written."""

    def __init__(self, *activate: Activation, cap: float | None = None) -> None:
        super().__init__()
        parts = network(cap).layers
        self.stem, self.branch = _conv(parts[0]), _conv(parts[1].branch.layers[1])
        self.middle, self.norm = _conv(parts[4]), parts[5]
        # The reference flattens channels first.
        order = np.arange(24).reshape(6, 2, 2).transpose(1, 2, 0).ravel()
        self.weight = tf.Variable(parts[8].weight.T[order])
        self.bias = tf.Variable(parts[8].bias)
        self.first, self.second, self.third = activate if len(activate) == 3 else activate * 3

    def block(self, x: Any) -> Any:
        """The pre-activation block and the ReLU behind it."""
        return self.second(x + self.branch(self.first(x)))

    def tail(self, x: Any) -> Any:
        """From the block to the last ReLU."""
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        norm = self.norm
        scale = norm.weight / np.sqrt(norm.variance + norm.epsilon)
        return self.third((self.middle(x) - norm.mean) * scale + norm.bias)

    def __call__(self, x: Any) -> Any:
        """Return the scores (N, 5)."""
        return tf.reshape(self.tail(self.block(self.stem(x))), (-1, 24)) @ self.weight + self.bias


def _conv(layer: reference.Conv2d) -> Callable[[Any], Any]:
    kernel = tf.Variable(layer.weight.transpose(2, 3, 1, 0))

    def convolve(x: Any) -> Any:
        h, w = layer.padding
        x = tf.pad(x, [[0, 0], [h, h], [w, w], [0, 0]])
        # TensorFlow has no gradient of grouped convolutions on the CPU.
        pairs = zip(tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        return tf.concat([tf.nn.conv2d(part, own, layer.stride, "VALID") for part, own in pairs], -1) + layer.bias

    convolve.kernel = kernel
    return convolve


def keras_net(*relu: Activation, cap: float | None = None, head: str | None = None) -> keras.Model:
    """Return the network as a functional Keras model; ``relu`` makes a layer, or is a function."""
    first, second, third = relu if len(relu) == 3 else relu * 3
    parts = network(cap).layers
    images = keras.Input((8, 8, 3), dtype="float64")
    x = _keras_conv(parts[0])(images)
    x = second(layers.Add(dtype="float64")([x, _keras_conv(parts[1].branch.layers[1])(first(x))]))
    x = layers.MaxPooling2D(2, dtype="float64")(x)
    x = layers.Permute((3, 1, 2), dtype="float64")(third(_keras_norm(parts[5])(_keras_grouped(parts[4])(x))))
    linear = layers.Dense(CLASSES, activation=head, dtype="float64")
    linear.build((None, 24))
    linear.set_weights([parts[8].weight.T, parts[8].bias])
    return keras.Model(images, linear(layers.Flatten(dtype="float64")(x)))


def _keras_conv(layer: reference.Conv2d, **options: Any) -> Any:
    conv = layers.Conv2D(layer.weight.shape[0], 3, layer.stride, "same", dtype="float64", **options)
    conv.build((None, 8, 8, layer.weight.shape[1]))
    conv.set_weights([layer.weight.transpose(2, 3, 1, 0), layer.bias])
    return conv


def _keras_grouped(layer: reference.Conv2d) -> Callable[[Any], Any]:
    def convolve(x: Any) -> Any:
        x = layers.ZeroPadding2D(1, dtype="float64")(x)
        outputs = []
        for group in range(2):
            conv = layers.Conv2D(3, 3, 2, dtype="float64")
            conv.build((None, 6, 6, 2))
            rows = slice(3 * group, 3 * group + 3)
            conv.set_weights([layer.weight[rows].transpose(2, 3, 1, 0), layer.bias[rows]])
            outputs.append(conv(x[..., 2 * group : 2 * group + 2]))
        return layers.Concatenate(dtype="float64")(outputs)

    return convolve


def _keras_norm(layer: reference.BatchNorm2d) -> Any:
    norm = layers.BatchNormalization(epsilon=layer.epsilon, dtype="float64")
    norm.build((None, 2, 2, 6))
    norm.set_weights([layer.weight, layer.bias, layer.mean, layer.variance])
    return norm


@tf.function
def nested(x: Any) -> Any:
    return tf.nn.relu(x)


@tf.function(jit_compile=True)
def compiled(x: Any) -> Any:
    return tf.nn.relu(x)


@tf.function
def twice_nested(x: Any) -> Any:
    return nested(x + 1.0 - 1.0)


def looped(x: Any) -> Any:
    return tf.while_loop(lambda turn, y: turn < 2, lambda turn, y: (turn + 1, tf.nn.relu(y)), (0, x))[1]


def looped_maximum(x: Any) -> Any:
    floor = tf.zeros_like(x)
    return tf.while_loop(lambda turn, y: turn < 1, lambda turn, y: (turn + 1, tf.maximum(y, floor)), (0, x))[1]


ACTIVATIONS: dict[str, Activation] = {
    "tf.nn.relu": tf.nn.relu,
    "raw_ops.Relu": lambda x: tf.raw_ops.Relu(features=x),
    "keras.ops.relu": keras.ops.relu,
    "keras.activations.relu": keras.activations.relu,
    "layers.ReLU": lambda x: layers.ReLU(dtype="float64")(x),
    "leaky_relu(alpha=0)": lambda x: tf.nn.leaky_relu(x, 0.0),
    "maximum(x, 0)": lambda x: tf.maximum(x, 0.0),
    "maximum(0, x)": lambda x: tf.maximum(tf.zeros_like(x), x),
    "maximum(x, captured zeros)": lambda x: tf.maximum(x, ZERO),
    "maximum(x, many zeros)": lambda x: tf.maximum(x, tf.zeros([1, *x.shape[1:]], x.dtype)),
    "keras.ops.maximum": lambda x: keras.ops.maximum(x, 0),
    "clip_by_value(0, inf)": lambda x: tf.clip_by_value(x, 0.0, float("inf")),
    "where(x > 0, x, 0)": lambda x: tf.where(x > 0, x, 0.0),
    "where(0 < x, x, 0)": lambda x: tf.where(x > 0, x, tf.zeros_like(x)),
    "x * cast(x > 0)": lambda x: x * tf.cast(x > 0, x.dtype),
    "cast(x >= 0) * x": lambda x: tf.cast(x >= 0, x.dtype) * x,
    "tf.function": nested,
    "tf.function in a tf.function": twice_nested,
    "jit_compile": compiled,
    "cond": lambda x: tf.cond(tf.size(x) > 1, lambda: tf.nn.relu(x), lambda: x),
    "cond with maximum": lambda x: tf.cond(tf.size(x) > 1, lambda: tf.maximum(x, ZERO), lambda: x),
    "switch_case": lambda x: tf.switch_case(tf.rank(x) - 4, [lambda: nested(x), lambda: x]),
    "while": looped,
    "while with maximum": looped_maximum,
    "map_fn": lambda x: tf.map_fn(tf.nn.relu, x),
    "vectorized_map": lambda x: tf.vectorized_map(tf.nn.relu, x),
    "recompute_grad": tf.recompute_grad(tf.nn.relu),
    "recompute_grad of a tf.function": tf.recompute_grad(nested),
    "keras.remat": keras.remat(keras.ops.relu),
}

CAPPED: dict[str, Activation] = {
    "clip_by_value(0, 1)": lambda x: tf.clip_by_value(x, 0.0, 1.0),
    "keras.ops.clip": lambda x: keras.ops.clip(x, 0, 1),
    "minimum(relu(x), 1)": lambda x: tf.minimum(tf.nn.relu(x), 1.0),
    "minimum(1, maximum(0, x))": lambda x: tf.minimum(ZERO + 1.0, tf.maximum(ZERO, x)),
    "layers.ReLU(max_value=1)": lambda x: layers.ReLU(1.0, dtype="float64")(x),
    "raw_ops.ClipByValue": lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=ZERO, clip_value_max=ZERO + 1.0),
    "relu6(6 x) / 6": lambda x: tf.nn.relu6(6.0 * x) / 6.0,
}


class Subclassed(keras.Model):
    """A subclassed model around layers, one of which it uses twice."""

    def __init__(self) -> None:
        super().__init__(dtype="float64")
        self.inner = keras_net(layers.ReLU(dtype="float64"))

    def call(self, images: Any, training: bool = True) -> Any:
        """Fail where it is not told that this is inference."""
        if training:
            raise ValueError("must be called with training=False")
        return self.inner(images)


def shared(make: Callable[[], Activation]) -> keras.Model:
    return keras_net(make())


def subclassed() -> keras.Model:
    model = Subclassed()
    model(tf.constant(IMAGES), training=False)
    return model


def in_sequential() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3), dtype="float64"), shared(lambda: layers.ReLU(dtype="float64"))])


def in_model() -> keras.Model:
    images = keras.Input((8, 8, 3), dtype="float64")
    return keras.Model(images, in_sequential()(images))


def saved_keras(folder: Path) -> keras.Model:
    in_model().save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


# A function that was saved or traced does not keep its variables alive: its owner does.
ALIVE: list[Any] = []


def kept(owner: Any) -> Any:
    ALIVE.append(owner)
    return owner


def exported(folder: Path) -> Any:
    in_model().export(folder / "exported", verbose=False)
    return kept(tf.saved_model.load(str(folder / "exported")))


def saved_module(folder: Path) -> Any:
    module = Net(tf.nn.relu, nested, looped)
    traced = tf.function(module.__call__, input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float64)])
    holder = tf.Module()
    holder.network, holder.variables_of = traced, [module.variables, module.stem.kernel, module.branch.kernel]
    holder.kernel = module.middle.kernel
    tf.saved_model.save(holder, str(folder / "module"), signatures=traced.get_concrete_function())
    return kept(tf.saved_model.load(str(folder / "module")))


def tfsm(folder: Path) -> Any:
    exported(folder)
    layer = layers.TFSMLayer(str(folder / "exported"), call_endpoint="serve", dtype="float64")
    return lambda x: layer(x)


def concrete() -> Any:
    return tf.function(kept(Net(tf.nn.relu))).get_concrete_function(tf.TensorSpec((None, 8, 8, 3), tf.float64))


FORMS: dict[str, Callable[[Path], Any]] = {
    "module": lambda folder: Net(tf.nn.relu),
    "lambda": lambda folder: (lambda model: lambda x: model(x))(Net(tf.nn.relu)),
    "tf.function": lambda folder: tf.function(Net(tf.nn.relu)),
    "jit_compile": lambda folder: tf.function(Net(tf.nn.relu), jit_compile=True),
    "fixed batch": lambda folder: tf.function(
        Net(tf.nn.relu), input_signature=[tf.TensorSpec((4, 8, 8, 3), tf.float64)]
    ),
    "concrete function": lambda folder: concrete(),
    "functional": lambda folder: shared(lambda: layers.ReLU(dtype="float64")),
    "Activation layer": lambda folder: shared(lambda: layers.Activation("relu", dtype="float64")),
    "Lambda layer": lambda folder: shared(lambda: layers.Lambda(tf.nn.relu, dtype="float64")),
    "keras.ops": lambda folder: keras_net(keras.ops.relu),
    "operator maximum": lambda folder: keras_net(lambda x: keras.ops.maximum(x, 0.0)),
    "Sequential": lambda folder: in_sequential(),
    "nested models": lambda folder: in_model(),
    "subclassed": lambda folder: subclassed(),
    ".keras": saved_keras,
    "SavedModel": lambda folder: exported(folder).serve,
    "signature": lambda folder: exported(folder).signatures["serving_default"],
    "TFSMLayer": tfsm,
    "SavedModel of a module": lambda folder: saved_module(folder).network,
    "signature of a module": lambda folder: saved_module(folder).signatures["serving_default"],
}


@tf.custom_gradient
def own_relu(x):
    """A ReLU as a custom gradient."""

    def grad(g):
        return g * tf.cast(x > 0, g.dtype)

    return tf.maximum(x, 0.0), grad


def scattered(x: Any) -> Any:
    places = tf.where(x > 0)
    return tf.scatter_nd(places, tf.gather_nd(x, places), tf.shape(x, tf.int64))


def called_back(x: Any) -> Any:
    y = tf.py_function(tf.nn.relu, [x], x.dtype)
    y.set_shape(x.shape)
    return y


# Each is a ReLU, and none of them is one operation.
SPELLED: dict[str, Activation] = {
    "where(x <= 0, 0, x)": lambda x: tf.where(x <= 0, tf.zeros_like(x), x),
    "x * not(x < 0)": lambda x: x * tf.cast(tf.logical_not(x < 0), x.dtype),
    "2 mask x / 2": lambda x: 2.0 * tf.cast(x > 0, x.dtype) * x / 2.0,
    "reshaped mask": lambda x: tf.reshape(tf.reshape(x, [-1]) * tf.cast(tf.reshape(x, [-1]) > 0, x.dtype), tf.shape(x)),
    "(x + |x|) / 2": lambda x: (x + tf.abs(x)) / 2.0,
    "0.3 x + 0.3 |x|": lambda x: (0.3 * x + 0.3 * tf.abs(x)) / 0.6,
    "(x + sqrt(x * x)) / 2": lambda x: (x + tf.sqrt(x * x)) / 2.0,
    "x - minimum(x, 0)": lambda x: x - tf.minimum(x, 0.0),
    "-minimum(-x, 0)": lambda x: -tf.minimum(-x, 0.0),
    "x * max(sign(x), 0)": lambda x: x * tf.maximum(tf.sign(x), 0.0),
    "stack and max": lambda x: tf.reduce_max(tf.stack([x, tf.zeros_like(x)]), 0),
    "scatter_nd": scattered,
    "custom gradient": own_relu,
    "py_function": called_back,
    "where in a loop": lambda x: tf.map_fn(lambda y: tf.where(y <= 0, tf.zeros_like(y), y), x),
}
