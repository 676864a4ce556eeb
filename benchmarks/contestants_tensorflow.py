"""The TensorFlow half: the networks, the reference map, and the libraries, each called as its documentation shows.

What a library does once for a model is done outside of the timing. Every map is turned into a NumPy array inside of
it, so that nobody is done before the numbers are there.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from contest import FORWARD, GRADIENT, OURS, OURS_LIBRARY, Array, Contestant, Explain, Framework, Network, Prepare
from keras import layers

from guided_backprop import GuidedBackprop

tf.get_logger().setLevel("ERROR")

# The networks, with random weights.


def calibrated(model: keras.Model) -> keras.Model:
    """Give each batch-norm factors of its own, and the statistics of what it then meets.

    The factors are wide enough that some units reach the cap of a ReLU6.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    rng = np.random.default_rng(0)
    momentum = 0.99
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.5, 3.0, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-0.5, 0.5, norm.beta.shape))
        norm.momentum = 0.0
    if norms:
        model(rng.normal(size=(4, *model.input_shape[1:])).astype(model.compute_dtype), training=True)
    for norm in norms:
        norm.momentum = momentum
    return model


def random_network(build: Callable[[], keras.Model], dtype: str) -> keras.Model:
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(0)
    try:
        return calibrated(build())
    finally:
        keras.config.set_dtype_policy("float32")


def small() -> keras.Model:
    """Return a CNN for images of 32 x 32."""
    convolution = partial(layers.Conv2D, kernel_size=3, padding="same", activation="relu")
    first = [convolution(32), convolution(32), layers.MaxPool2D()]
    second = [convolution(64), layers.MaxPool2D(), layers.Flatten()]
    third = [layers.Dense(128, activation="relu"), layers.Dense(10)]
    return functional_model((32, 32, 3), [*first, *second, *third])


def tiny() -> keras.Model:
    return functional_model((8, 8, 3), [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(10)])


def functional_model(shape: tuple[int, ...], parts: list[layers.Layer]) -> keras.Model:
    values = given = keras.Input(shape)
    for part in parts:
        values = part(values)
    return keras.Model(given, values)


def application(build: Callable[..., keras.Model], relus: int) -> Network:
    make = partial(build, weights=None, classifier_activation=None)
    return Network(partial(random_network, make), (224, 224, 3), 1000, relus)


NETWORKS = {
    "small CNN": Network(partial(random_network, small), (32, 32, 3), 10, relus=4),
    "ResNet50": application(keras.applications.ResNet50, 49),
    "VGG16": application(keras.applications.VGG16, 15),
    "MobileNetV2": application(keras.applications.MobileNetV2, 35),
    "tiny CNN": Network(partial(random_network, tiny), (8, 8, 3), 10, relus=1),
}
MODELS = list(NETWORKS)[:4]


def tensor(values: Array, dtype: str) -> tf.Tensor:
    return tf.constant(values, dtype)


def itself(model: keras.Model) -> keras.Model:
    """Return the model: the libraries here copy it themselves before they change it."""
    return model


# The reference.


def guided_relu(x: tf.Tensor, cap: float) -> tf.Tensor:
    """Return a ReLU, capped or not, with what the paper says of its backward pass."""

    @tf.custom_gradient
    def function(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        gate = (x > 0) & (x < cap)
        return tf.clip_by_value(x, 0, cap), lambda gradient: tf.where(gate & (gradient > 0), gradient, 0)

    return function(x)


class GuidedReLU(layers.Layer):
    """A layer of the reference."""

    def __init__(self, cap: float = np.inf, **options: Any) -> None:
        super().__init__(**options)
        self.cap = cap

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return guided_relu(x, self.cap)


def replaced(layer: layers.Layer, met: list[str]) -> layers.Layer:
    """Return a copy of a layer with its ReLU, if it has one, guided; note it."""
    if isinstance(layer, layers.ReLU):
        met.append(layer.name)
        return GuidedReLU(float(layer.max_value or np.inf), name=layer.name, dtype=layer.dtype_policy)
    copied = type(layer).from_config(layer.get_config())
    if getattr(layer, "activation", None) is keras.activations.relu:
        met.append(layer.name)
        copied.activation = partial(guided_relu, cap=np.inf)
    return copied


def reference(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> tuple[Array, int]:
    """Return the guided map, and how many ReLUs it is made of."""
    met: list[str] = []
    guided = keras.models.clone_model(model, clone_function=lambda layer: replaced(layer, met))
    guided.set_weights(model.get_weights())
    np.testing.assert_allclose(guided(images), model(images), rtol=1e-4, atol=1e-4, err_msg="another forward pass")
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = chosen(guided(images, training=False), labels)
    return tape.gradient(score, images).numpy(), len(met)


# The contestants.


def chosen(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.gather(outputs, labels, batch_dims=1))


def signature(images: tf.Tensor) -> tf.TensorSpec:
    """Return a signature with any number of images."""
    return tf.TensorSpec((None, *images.shape[1:]), images.dtype)


def forward(model: keras.Model, images: tf.Tensor) -> Explain:
    """The unit: what the model's own prediction takes."""

    @tf.function(input_signature=[signature(images)])
    def predict(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    return lambda images, labels: predict(images).numpy()


def gradient(model: keras.Model, images: tf.Tensor) -> Explain:
    """The plain gradient, as TensorFlow gives it: the least that any explanation by a backward pass costs."""

    @tf.function(input_signature=[signature(images), tf.TensorSpec((None,), tf.int64)])
    def differentiate(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            score = chosen(model(images, training=False), labels)
        return tape.gradient(score, images)

    return lambda images, labels: differentiate(images, labels).numpy()


def ours(**options: Any) -> Prepare:
    def prepare(model: keras.Model, images: tf.Tensor) -> Explain:
        method = GuidedBackprop(model, **options)
        return lambda images, labels: method.explain(images, labels.numpy()).attribution.numpy()

    return prepare


def xplique(model: keras.Model, images: tf.Tensor) -> Explain:
    from xplique.attributions import GuidedBackprop as Guided  # noqa: PLC0415

    method = Guided(model, reducer=None)
    classes = model.output_shape[-1]
    return lambda images, labels: method(images, tf.one_hot(labels, classes)).numpy()


def keras_vis(model: keras.Model, images: tf.Tensor) -> Explain:
    """Explain with tf-keras-vis: the signed gradient of a model changed by its guided modifier."""
    from tf_keras_vis.saliency import Saliency  # noqa: PLC0415
    from tf_keras_vis.utils.model_modifiers import GuidedBackpropagation  # noqa: PLC0415
    from tf_keras_vis.utils.scores import CategoricalScore  # noqa: PLC0415

    method = Saliency(model, model_modifier=GuidedBackpropagation())
    options = {"keepdims": True, "gradient_modifier": None, "normalize_map": False}
    return lambda images, labels: np.asarray(method(CategoricalScore(labels.numpy().tolist()), images, **options))


CONTESTANTS = {
    FORWARD: Contestant(forward, "tensorflow-cpu", takes_label_sets=True, explains=False),
    GRADIENT: Contestant(gradient, "tensorflow-cpu"),
    OURS: Contestant(ours(), OURS_LIBRARY, takes_label_sets=True),
    "Xplique": Contestant(xplique, "xplique"),
    "tf-keras-vis": Contestant(keras_vis, "tf-keras-vis"),
}
# For the folder of images.
VARIANTS = {
    "default, batch_size=32": Contestant(ours(batch_size=32), OURS_LIBRARY, batches_itself=True),
}

FRAMEWORK = Framework(
    name="tensorflow",
    library="tensorflow-cpu",
    networks=NETWORKS,
    models=MODELS,
    job_model="MobileNetV2",
    contestants=CONTESTANTS,
    variants=VARIANTS,
    tensor=tensor,
    twin=itself,
    reference=reference,
    threads=lambda: tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0)),
)
