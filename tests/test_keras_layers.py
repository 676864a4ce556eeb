"""Layers of Keras models of every kind, on each backend: the truth is the same weights in a flat model of its own.

Here on TensorFlow, and on the others by test_keras_backends.py.
"""

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import keras
import numpy as np
import pytest
from keras import layers

from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
    layer_names,
    sanity_check,
)
from guided_backprop.methods.cam import resized

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
SHAPE = (8, 8, 3)
# Keras' variables have no copy keyword yet, which NumPy says at each conversion.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGES = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")
LABELS = [1, 0, 2]
rng = np.random.default_rng(1)
WEIGHTS = {
    "first": [rng.normal(size=(3, 3, 3, 4)) / 4, rng.normal(size=4) / 4],
    "features": [rng.normal(size=(3, 3, 4, 5)) / 4, rng.normal(size=5) / 4],
    "head": [rng.normal(size=(5, 3)), rng.normal(size=3)],
}


def parts() -> tuple[list[layers.Layer], list[layers.Layer]]:
    """Return the layers of a network: convolutions, the last of them "features", and a head."""
    below = [layers.Conv2D(4, 3, activation="relu", name="first"), layers.Conv2D(5, 3, name="features")]
    return below, [layers.ReLU(name="relu"), layers.GlobalAveragePooling2D(name="pool"), layers.Dense(3, name="head")]


def whole() -> list[layers.Layer]:
    return [layer for part in parts() for layer in part]


def filled(model: keras.Model) -> keras.Model:
    """Give a model the weights; all that are trained of a name get the same."""
    for layer in model._flatten_layers():
        if layer.name in WEIGHTS:
            layer.set_weights(WEIGHTS[layer.name])
    return model


def sequential(each: list[layers.Layer], shape: tuple[int, ...] = SHAPE, **options: str) -> keras.Sequential:
    return keras.Sequential([keras.Input(shape), *each], **options)


def functional(each: list[layers.Layer], shape: tuple[int, ...] = SHAPE, **options: str) -> keras.Model:
    images = x = keras.Input(shape)
    for layer in each:
        x = layer(x)
    return keras.Model(images, x, **options)


def shared() -> keras.Model:
    """The second model that its layers are called in; the first one sees other images."""
    below, head = parts()
    images = keras.Input(SHAPE)
    x = layers.Rescaling(100.0)(images)
    other = images
    for layer in [*below, *head]:
        x, other = layer(x), layer(other)
    keras.Model(images, x)
    return keras.Model(images, other)


class Written(keras.Model):
    """A model that is a class, which holds its layers by attributes, in a list and in a dictionary."""

    def __init__(self, base=None, dense=None):
        super().__init__()
        below, (relu, pool, head) = parts()
        self.below = below if base is None else [base]
        self.head = {"relu": relu, "pool": (pool,)}
        self.dense = head if dense is None else dense
        self.unused = layers.Dropout(0.5, name="unused")
        self.end = lambda x: self.dense(x)

    def call(self, x):
        for layer in self.below:
            x = layer(x)
        return self.end(self.head["pool"][0](self.head["relu"](x)))


def written(*given: layers.Layer, **named: layers.Layer) -> keras.Model:
    model = Written(*given, **named)
    model(IMAGES)
    return model


def reloaded(model: keras.Model, path: str) -> keras.Model:
    filled(model).save(path)
    return keras.saving.load_model(path)


def nested(outer, inner) -> keras.Model:
    below, head = parts()
    return outer([inner(below, name="base"), *head])


def nested_twice() -> keras.Model:
    below, head = parts()
    trunk = functional([sequential(below, name="base")], name="trunk")
    return sequential([trunk, *head])


# Of each kind of model, how to make it in a folder, and the way to "features".
KINDS = {
    "sequential": (lambda path: sequential(whole()), "features"),
    "functional": (lambda path: functional(whole()), "features"),
    "shared": (lambda path: shared(), "features"),
    "written": (lambda path: written(), "features"),
    "sequential in sequential": (lambda path: nested(sequential, sequential), "base/features"),
    "functional in functional": (lambda path: nested(functional, functional), "base/features"),
    "nested twice": (lambda path: nested_twice(), "trunk/base/features"),
    "functional in written": (lambda path: written(functional(parts()[0], name="base")), "base/features"),
    ".keras": (lambda path: reloaded(nested(sequential, functional), f"{path}/model.keras"), "base/features"),
    ".h5": (lambda path: reloaded(sequential(whole()), f"{path}/model.h5"), "features"),
}


@cache
def truth() -> dict[str, np.ndarray]:
    """The maps by flat models, of which no layer is named, and Grad-CAM's by its formula."""
    below, head = parts()
    up_to = filled(functional(below))
    activation = np.asarray(keras.ops.convert_to_numpy(up_to(IMAGES)))
    # The average is pooled behind one ReLU, so the gradient at the features is known.
    gradient = (activation > 0) * WEIGHTS["head"][0].T[LABELS, None, None] / activation[0, :, :, 0].size
    cam = np.maximum((gradient.mean((1, 2), keepdims=True) * activation).sum(-1), 0)
    rest = filled(functional(head, activation.shape[1:]))
    return {
        "activation": activation,
        "up to": np.asarray(GuidedBackprop(up_to).explain(IMAGES, (2, "max"))),
        "from": np.asarray(GuidedBackprop(rest).explain(activation, LABELS)),
        "cam": resized(cam.astype(np.float64), [8, 8]),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_a_model_of_every_kind(kind, tmp_path):
    make, way = KINDS[kind]
    model = filled(make(tmp_path))
    assert way in layer_names(model)
    layer = next(each for each in model._flatten_layers() if each.name == "features")
    before = {id(each): (type(each), dict(vars(each))) for each in model._flatten_layers()}
    calls = [len(each._inbound_nodes) for each in model._flatten_layers()]
    up_to = GuidedBackprop(model, output_layer=way).explain(IMAGES, (2, "max"))
    np.testing.assert_allclose(up_to, truth()["up to"], **TOLERANCE)
    np.testing.assert_allclose(up_to.outputs, truth()["activation"], **TOLERANCE)
    np.testing.assert_allclose(GradCAM(model, "features").explain(IMAGES, LABELS), truth()["cam"], **TOLERANCE)
    inside = GuidedBackprop(model, input_layer=layer).explain(IMAGES, LABELS)
    np.testing.assert_allclose(inside, truth()["from"], **TOLERANCE)
    np.testing.assert_allclose(inside.images, truth()["activation"], **TOLERANCE)
    assert {id(each): (type(each), dict(vars(each))) for each in model._flatten_layers()} == before
    assert [len(each._inbound_nodes) for each in model._flatten_layers()] == calls


def test_planted_faults_are_caught():
    """The layer as another model runs it, which sees other images."""
    below, head = parts()
    scaled = filled(functional([layers.Rescaling(100.0), *below, *head]))
    found = {
        "up to": GuidedBackprop(scaled, output_layer="features").explain(IMAGES, (2, "max")),
        "cam": GradCAM(scaled, "features").explain(IMAGES, LABELS),
        "from": GuidedBackprop(scaled, input_layer="features").explain(IMAGES, LABELS),
    }
    for name, explanations in found.items():
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            np.testing.assert_allclose(explanations, truth()[name], **TOLERANCE)


def twice() -> tuple[keras.Model, list[keras.Model]]:
    """Return a model that runs a layer twice, and the same weights in flat models that end with each of its runs."""
    images = keras.Input(SHAPE)
    conv = layers.Conv2D(3, 3, padding="same", activation="relu", name="shared")
    head = layers.Dense(3, name="head", use_bias=False)
    model = keras.Model(images, head(layers.GlobalAveragePooling2D()(conv(conv(images)))))
    copies = [layers.Conv2D(3, 3, padding="same", activation="relu") for _ in range(2)]
    flat = [functional(copies[:1]), functional(copies)]
    for copy in copies:
        copy.set_weights(conv.get_weights())
    return model, flat


def test_a_layer_that_is_run_twice():
    model, flat = twice()
    for make in (lambda layer: GradCAM(model, layer), lambda layer: GuidedBackprop(model, output_layer=layer)):
        for layer in ("shared", model.get_layer("shared")):
            with pytest.raises(ModelError, match=r"was run 2 times\. Pass \('shared', 0\) .* \('shared', 1\)"):
                make(layer).explain(IMAGES, 1)
        with pytest.raises(OptionError, match=r"\('shared', 2\) and a layer that was run 2 times"):
            make(("shared", 2)).explain(IMAGES, 1)
        with pytest.raises(OptionError, match="counted from 0"):
            make(("shared", -1))
    for call, cut in enumerate(flat):
        found = GuidedBackprop(model, output_layer=("shared", call)).explain(IMAGES, (2, "max"))
        np.testing.assert_allclose(found, GuidedBackprop(cut).explain(IMAGES, (2, "max")), **TOLERANCE)
    # Between the runs there is the second one alone.
    between = GuidedBackprop(model, input_layer=("shared", 0), output_layer=("shared", 1)).explain(IMAGES, (2, "max"))
    values = keras.ops.convert_to_numpy(flat[0](IMAGES))
    alone = functional([copy := layers.Conv2D(3, 3, padding="same", activation="relu")])
    copy.set_weights(model.get_layer("shared").get_weights())
    np.testing.assert_allclose(between, GuidedBackprop(alone).explain(values, (2, "max")), **TOLERANCE)
    with pytest.raises(OptionError, match="input_layer must be run before output_layer"):
        Saliency(model, input_layer=("shared", 1), output_layer=("shared", 0)).explain(IMAGES, 1)


def test_layers_of_one_name():
    two = [functional(parts()[0], name=name) for name in ("one", "other")]
    images = keras.Input(SHAPE)
    x = layers.Concatenate()([base(images) for base in two])
    model = keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(OptionError, match="'features', the name of 2: 'one/features', 'other/features'"):
        GradCAM(model, "features")
    found = GuidedBackprop(model, output_layer="other/features").explain(IMAGES, (1, "max"))
    assert not np.allclose(found, GuidedBackprop(model, output_layer="one/features").explain(IMAGES, (1, "max")))
    np.testing.assert_allclose(found, GuidedBackprop(two[1]).explain(IMAGES, (1, "max")), rtol=1e-5, atol=1e-7)
    with pytest.raises(OptionError, match="Did you mean 'one/features'"):
        GradCAM(model, "one/feature")
    # Nothing but their number tells two layers of a class from each other that have one name.
    model = written(dense=layers.Dense(3, name="features"))
    assert [name for name in layer_names(model) if "features" in name] == ["features[0]", "features[1]"]
    with pytest.raises(OptionError, match=r"the name of 2: 'features\[0\]', 'features\[1\]'"):
        GradCAM(model, "features")
    assert GradCAM(model, "features[0]").explain(IMAGES, 1).attribution.shape == (3, 8, 8)


def test_what_is_not_run_is_no_layer():
    model = written()
    for method in (GradCAM(model, "unused"), Saliency(model, output_layer="unused")):
        with pytest.raises(ModelError, match="received layer='unused', which was run 0 times"):
            method.explain(IMAGES, 1)
    with pytest.raises(OptionError, match="which is not in it"):
        GradCAM(model, layers.Dense(2))


def test_what_a_layer_gives_back_unchanged_begins_there_alone():
    """What goes past a layer that does nothing is no part of what is explained from there on."""
    images = keras.Input((4,))
    hidden = layers.Dense(5, activation="relu", name="hidden")(images)
    dropped = layers.Dropout(0.5, name="nothing")(hidden)
    last = layers.Dense(3, name="last", use_bias=False)
    model = keras.Model(images, layers.Add()([last(dropped), layers.Dense(3, use_bias=False)(hidden)]))
    rows = IMAGES[:, 0, 0, [0, 1, 2, 0]]
    found = Saliency(model, input_layer="nothing").explain(rows, 1)
    np.testing.assert_allclose(found, [last.get_weights()[0][:, 1]] * 3, rtol=1e-6)
    both = Saliency(model, input_layer="hidden").explain(rows, 1)
    assert not np.allclose(found, both)


TOKENS = np.array([[1, 4, 2, 0], [3, 3, 1, 0], [5, 2, 0, 0]])


def text() -> keras.Model:
    keras.utils.set_random_seed(0)
    words = keras.Input((4,), dtype="int32")
    x = layers.Embedding(6, 5, mask_zero=True, name="words")(words)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name="attention")(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.GlobalAveragePooling1D()(layers.Dense(7, activation="relu")(x))
    return keras.Model(words, layers.Dense(3, activation="softmax")(x))


def test_text_is_explained_by_its_embeddings():
    model = text()
    table = model.get_layer("words").get_weights()[0]
    # The truth is by hand, and in front of the ReLU a model of the embeddings; which words count is told beside them.
    values, (*before, dense, _, last) = keras.Input((4, 5)), model.layers[2:]
    x = layers.Masking()(values)
    for layer in before:
        if isinstance(layer, layers.Add):
            x = layer([x, model.get_layer("attention")(x, x)])
        elif layer.name != "attention":
            x = layer(x)
    linear = layers.Dense(7)
    to_relu = keras.Model(values, linear(x))
    linear.set_weights(dense.get_weights())
    # What is masked is what is 0 there.
    table = table * (np.arange(6) > 0)[:, None]
    model.get_layer("words").set_weights([table])
    embedded = table[TOKENS]
    method = GuidedBackprop(model, input_layer="words")
    found = method.explain(TOKENS, LABELS)
    np.testing.assert_allclose(found.images, embedded, rtol=1e-6)
    is_word, y = (TOKENS > 0)[..., None], keras.ops.convert_to_numpy(to_relu(embedded))
    g = np.maximum(last.get_weights()[0].T[LABELS][:, None], 0) * is_word / is_word.sum(1, keepdims=True)
    np.testing.assert_allclose(found, Saliency(to_relu).explain(embedded, g * (y > 0)), **TOLERANCE)
    assert not np.allclose(found, Saliency(to_relu).explain(embedded, g))
    assert found.images.dtype == np.float32
    assert (found.head, found.channel_axis) == ("softmax", 2)
    tensors = method.explain(keras.ops.convert_to_tensor(TOKENS), LABELS)
    assert type(tensors.attribution) is type(tensors.images) is not np.ndarray
    np.testing.assert_array_equal(tensors, found)
    with pytest.raises(ImageError, match=r"of tokens explain the embeddings: pass input_layer="):
        GuidedBackprop(model).explain(TOKENS, LABELS)


def test_what_goes_along_with_an_input_layer():
    model = filled(nested(sequential, functional))
    method = GuidedBackprop(model, input_layer="base", batch_size=2, reducer="absmax")
    assert repr(method) == "GuidedBackprop(Sequential, input_layer='base', reducer='absmax', batch_size=2)"
    (one, other) = compare(
        IMAGES, LABELS, [Saliency(model, input_layer="base"), GuidedBackprop(model, input_layer="base")]
    )
    np.testing.assert_allclose(other, truth()["from"], **TOLERANCE)
    assert not np.allclose(one, other)
    np.testing.assert_allclose(method.explain(IMAGES, LABELS), np.abs(truth()["from"]).max(-1), **TOLERANCE)
    with pytest.raises(OptionError, match="SmoothGrad puts noise on images"):
        SmoothGrad(method)
    check = sanity_check(GuidedBackprop(model, input_layer="base/first"), IMAGES, LABELS, modes=["cascading"])
    assert check.blocks[0] == ("head",)
    assert method.explain(IMAGES[:0]).images.shape == (0,)


def test_threads_may_use_one_method():
    model = filled(nested(functional, functional))
    explainer = GuidedGradCAM(model, "features")
    expected = np.asarray(explainer.explain(IMAGES, LABELS))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: explainer.explain(IMAGES, LABELS), range(8)):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    again = pickle.loads(pickle.dumps(GuidedBackprop(model, input_layer=("features", 0))))
    np.testing.assert_allclose(again.explain(IMAGES, LABELS), truth()["from"], **TOLERANCE)
