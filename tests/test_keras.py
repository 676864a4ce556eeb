"""What holds for Keras 3 on each of its backends: here on TensorFlow, and on the others by test_keras_backends.py."""

import os
import random
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
from keras import layers

import guided_backprop
import networks
import one_map
from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    LabelError,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    OptionError,
    Saliency,
    compare,
    layer_names,
    sanity_check,
)
from guided_backprop.backends.keras_copy import KerasCopy
from guided_backprop.methods.cam import resized
from networks import IMAGES, LABELS, NETWORKS, RULES, TOLERANCE
from networks_keras import to_keras
from spellings import Verdict, column
from spellings.arithmetic import ARITHMETIC
from spellings.relus import RELUS

CHANNELS_LAST = (8, 8, 3)
# Keras' variables have no copy keyword yet, which NumPy says at each conversion.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def images(dtype: str = "float64") -> np.ndarray:
    return np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).astype(dtype)


def test_the_backend_is_the_one_that_was_asked_for():
    assert keras.config.backend() == os.environ.get("KERAS_BACKEND", "tensorflow")


def test_the_example_of_one_map_runs(tmp_path):
    """What it stores of each backend is compared by test_keras_backends.py."""
    target = Path(os.environ.get("ONE_MAP", tmp_path / "map.npz"))
    one_map.explain_here(str(target))
    with np.load(target) as stored:
        assert stored["attribution"].shape == (64, 64, 1)


@pytest.fixture
def floatx(request):
    """Keras computes in one floating-point type at a time; JAX has to be asked for the wide one."""
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


# The layers are built by Keras alike for each backend, whose own operations test_contract.py compares for each network
# and rule, and in both types: so all networks on TensorFlow alone, and float32 once.
BUILT = NETWORKS if keras.config.backend() == "tensorflow" else ("convolutional", "residual, capped")


@pytest.mark.parametrize(
    ("network", "floatx"), [*((name, "float64") for name in BUILT), ("residual", "float32")], indirect=["floatx"]
)
def test_contract(network, floatx):
    model = to_keras(NETWORKS[network], CHANNELS_LAST, floatx)
    found = compare(images(floatx), LABELS, [getattr(guided_backprop, method)(model) for method in RULES])
    outputs, _ = NETWORKS[network].forward(IMAGES)
    for method, explanations in zip(RULES, found, strict=True):
        # Some of Keras' own layers pass float64 through float32, on torch most of them.
        is_exact = np.allclose(explanations.outputs, outputs, rtol=1e-12, atol=1e-12)
        assert is_exact or floatx == "float32" or keras.config.backend() != "tensorflow"
        expected = networks.channels_last(networks.expected(network, method))
        np.testing.assert_allclose(explanations, expected, **TOLERANCE["float64" if is_exact else "float32"])
        assert np.asarray(explanations).dtype == floatx


def small(*activations, head=None) -> keras.Model:
    """Return dense layers with these activations between them, and a ReLU in front of the last."""
    hidden = [part for activation in activations for part in (layers.Dense(16), activation)]
    last = [layers.Dense(5), layers.ReLU(), layers.Dense(3, activation=head)]
    model = keras.Sequential([keras.Input((4,)), *hidden, *last])
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            inputs, outputs = layer.kernel.shape
            layer.set_weights([rng.normal(size=(inputs, outputs)) / inputs**0.5, rng.normal(size=outputs) / 4])
    return model


ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def by_hand(model: keras.Model, rule: str = "guided") -> np.ndarray:
    """The formulas for dense layers with a ReLU between each two."""
    weights = [layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense)]
    x, gates = ROWS, []
    for weight, bias in weights[:-1]:
        x = x @ weight + bias
        gates.append(x > 0)
        x = np.maximum(x, 0)
    g = np.broadcast_to(weights[-1][0][:, 1], x.shape)
    for (weight, _), gate in zip(weights[-2::-1], gates[::-1], strict=True):
        g = ((np.maximum(g, 0) if rule == "guided" else g) * gate) @ weight.T
    return g


VERDICTS = {
    name: (write, verdict)
    for verdict in get_args(Verdict)
    for name, write in column(RELUS | ARITHMETIC, "keras", verdict, beneath=keras.config.backend()).items()
    # On TensorFlow test_tensorflow.py runs the whole column beside TensorFlow's own; here a layer, a function, a mask.
    if keras.config.backend() != "tensorflow" or name in ("layer", "relu", "where(x > 0, x, 0)")
}


# What is guided under every method stands in one network, a few at a time: each that is missed changes the map.
GUIDED = [name for name, (_, verdict) in VERDICTS.items() if verdict == "guided"]
TOGETHER = [GUIDED[start : start + 4] for start in range(0, len(GUIDED), 4)]


@pytest.mark.parametrize("names", TOGETHER + [[name] for name in VERDICTS if name not in GUIDED], ids=", ".join)
def test_every_spelling_of_a_relu(names):
    ways, (verdict, *_) = zip(*(VERDICTS[name] for name in names), strict=True)
    model = small(*(layers.Lambda(write, output_shape=lambda shape: shape) for write in ways))
    if verdict == "refused":
        with pytest.raises(OpaqueRegionError, match="vouch"):
            GuidedBackprop(model).explain(ROWS, 1)
        return
    expected = by_hand(model)
    # Where all ReLUs are closed nothing is told.
    assert expected.any(axis=1).sum() >= 4
    np.testing.assert_allclose(GuidedBackprop(model).explain(ROWS, 1), expected, rtol=1e-4, atol=1e-5)
    if verdict == "judged":
        with pytest.raises(OpaqueRegionError, match="deconv|vouch"):
            DeconvNet(model).explain(ROWS, 1)


def test_planted_fault_one_missed_spelling_of_several_is_caught():
    model = small(layers.ReLU(), layers.Lambda(lambda x: x * 1.0), layers.ReLU())
    found = np.asarray(GuidedBackprop(model).explain(ROWS, 1))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, by_hand(model), rtol=1e-4, atol=1e-5)


def test_activation_argument_and_one_hot_labels():
    model = small(layers.Dense(6, activation="relu"))
    explanations = GuidedBackprop(model, batch_size=2).explain(ROWS, np.eye(3)[[1] * 5])
    assert ("relu", 2, "guided") in explanations.coverage


def test_planted_fault_a_forgotten_gate_is_caught():
    model = small(layers.ReLU())
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(Saliency(model).explain(ROWS, 1), by_hand(model), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Saliency(model).explain(ROWS, 1), by_hand(model, "plain"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "log_softmax"])
def test_heads_are_undone(head):
    model, bare = small(layers.ReLU(), head=head), small(layers.ReLU())
    explanations, expected = (GuidedBackprop(each).explain(ROWS, 1) for each in (model, bare))
    assert explanations.head == head
    np.testing.assert_allclose(explanations, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(explanations.scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert not np.allclose(GuidedBackprop(model, undo_head=False).explain(ROWS, 1), expected)


COMPOSITES = {
    "prelu": lambda: layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25)),
    "hardswish": lambda: layers.Activation("hard_swish"),
    "hardsigmoid": lambda: layers.Activation("hard_sigmoid"),
    "celu": lambda: layers.Activation("celu"),
    "gelu": lambda: layers.Activation("gelu"),
    "silu": lambda: layers.Activation("silu"),
}


def test_a_composite_activation_is_one_activation():
    """All in one network: what is looked into, or missed, changes the coverage."""
    found = GuidedBackprop(small(*(build() for build in COMPOSITES.values()))).explain(ROWS, 1).coverage
    assert {*found} == {("relu", 1, "guided"), *((name, 1, "plain") for name in COMPOSITES)}
    without = keras.Sequential([keras.Input((4,)), layers.Dense(6), COMPOSITES["prelu"](), layers.Dense(3)])
    with pytest.raises(NoReluError, match="found prelu x1"):
        GuidedBackprop(without).explain(ROWS, 1)


def test_a_prelu_without_slopes_is_a_relu():
    """As Keras begins: guided in JAX and PyTorch; refused where nothing tells that all slopes of a network are 0."""
    model = small(layers.PReLU())
    if keras.config.backend() == "tensorflow":
        # By its own name, and not that of the weights behind it, where it shows as well.
        with pytest.raises(OpaqueRegionError, match="with add at .*p_re_lu"):
            GuidedBackprop(model).explain(ROWS, 1)
    else:
        np.testing.assert_allclose(GuidedBackprop(model).explain(ROWS, 1), by_hand(model), rtol=1e-4, atol=1e-5)


def test_an_explicit_relu6_is_a_relu():
    model = small(layers.Lambda(lambda x: keras.ops.relu6(x + 3) / 2))
    assert sum(row.count for row in GuidedBackprop(model).explain(ROWS, 1).coverage if row.treatment == "guided") == 2


def test_dropout_and_norm_are_in_inference():
    model = small(keras.Sequential([layers.BatchNormalization(), layers.Dropout(0.5), layers.ReLU()]))
    method = GuidedBackprop(model)
    np.testing.assert_array_equal(method.explain(ROWS, 1), method.explain(ROWS, 1))


def test_new_weights_are_picked_up():
    model = small(layers.ReLU())
    method = GuidedBackprop(model)
    method.explain(ROWS, 1)
    for layer in model.layers:
        layer.set_weights([weight * -1 for weight in layer.get_weights()])
    np.testing.assert_allclose(method.explain(ROWS, 1), by_hand(model), rtol=1e-4, atol=1e-5)


def test_reloaded(tmp_path):
    model = small(layers.ReLU(), head="softmax")
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(GuidedBackprop(reloaded).explain(ROWS, 1), by_hand(model), rtol=1e-4, atol=1e-5)


def test_weights_are_untouched():
    model = small(layers.ReLU(), head="softmax")
    before, trainable = model.get_weights(), [layer.trainable for layer in model.layers]
    outputs = np.asarray(keras.ops.convert_to_numpy(model(ROWS)))
    GuidedBackprop(model).explain(ROWS)
    with pytest.raises(LabelError):
        GuidedBackprop(model).explain(ROWS, 7)
    np.testing.assert_equal(model.get_weights(), before)
    assert [layer.trainable for layer in model.layers] == trainable
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(ROWS)), outputs)


def test_what_layers_remember_of_their_last_call_is_given_back():
    """A trace, or an explained batch, leaves nothing in ``losses``; a further call of the user's own does."""
    dense = layers.Dense(5, activation="relu", activity_regularizer=keras.regularizers.L2(0.1))
    model = keras.Sequential([keras.Input((4,)), dense, layers.Dense(3)])
    rows = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    model(rows)
    (kept,) = model.losses
    for other in (rows, 2 * rows):
        GuidedBackprop(model).explain(other, 0)
        (loss,) = model.losses
        assert loss is kept
    model(2 * rows)
    (loss,) = model.losses
    assert loss is not kept


def test_a_model_that_was_never_built_is_not_built_by_explaining():
    model = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(3)])
    with pytest.raises(ModelError, match="never built"):
        GuidedBackprop(model).explain(np.ones((2, 4), "float32"), 0)
    assert not model.built


def test_a_part_of_a_model_goes_by_the_models_name():
    model = to_keras(NETWORKS["convolutional"], CHANNELS_LAST, "float32")
    assert Saliency(model, output_layer=2).explain(images("float32"), 0).model == type(model).__name__


def test_the_output_of_a_layer_by_name_and_by_index():
    model = small(layers.ReLU(), head="softmax")
    whole = GuidedBackprop(model).explain(ROWS, 1)
    assert layer_names(model) == [layer.name for layer in model.layers]
    by_name, by_index = (
        GuidedBackprop(model, output_layer=layer).explain(ROWS, 1) for layer in (model.layers[2].name, 2)
    )
    np.testing.assert_array_equal(by_name, by_index)
    assert by_name.outputs.shape == (5, 5)
    assert not np.allclose(by_name, whole)
    cut = keras.Model(model.inputs, model.layers[2].output)
    np.testing.assert_allclose(by_name, GuidedBackprop(cut).explain(ROWS, 1), rtol=1e-5, atol=1e-7)
    with pytest.raises(OptionError, match="received layer='dens'"):
        GuidedBackprop(model, output_layer="dens")


def test_several_inputs_and_outputs():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    shared = layers.Dense(5, activation="relu")
    hidden = layers.Add()([shared(first), layers.ReLU()(layers.Dense(5)(second))])
    logits = layers.Dense(3, activation="softmax")(layers.ReLU()(layers.Dense(4)(hidden)))
    rows = ROWS, ROWS[::-1].copy()
    joined = keras.Input((8,))
    both = keras.Model([first, second], [hidden, logits])
    one = keras.Model(joined, both([joined[:, :4], joined[:, 4:]])[1])
    expected = np.asarray(GuidedBackprop(one).explain(np.concatenate(rows, axis=1), 2))
    found = GuidedBackprop(both, output=1).explain(rows, 2)
    np.testing.assert_allclose(np.concatenate(found.attribution, axis=1), expected, rtol=1e-4, atol=1e-6)
    many = GuidedBackprop(both, output=1).explain(rows, "top3")
    assert [each.shape for each in many.attribution] == [(len(ROWS), 3, 4)] * 2
    with pytest.raises(OptionError, match="2 outputs"):
        GuidedBackprop(both).explain(rows)


def test_channels_are_last():
    model = to_keras(NETWORKS["convolutional"], CHANNELS_LAST, "float32")
    explanations = GuidedBackprop(model, reducer="sum").explain(images("float32"), LABELS)
    assert explanations.attribution.shape == (4, 8, 8)
    assert explanations.channel_axis in (-1, 3)


def test_grad_cam():
    inner = [layers.Conv2D(4, 3, activation="relu"), layers.Conv2D(5, 2, name="features"), layers.ReLU()]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input(CHANNELS_LAST), *inner, *head])
    x = images("float32")
    features = keras.Model(model.inputs[0], model.get_layer("features").output)
    values = keras.ops.convert_to_numpy(features(x))
    # With the average pooled behind one ReLU, the gradient at the features is known.
    gradient = (values > 0) * head[1].get_weights()[0][:, 1] / values[0, :, :, 0].size
    small = np.maximum((gradient.mean((1, 2), keepdims=True) * values).sum(-1), 0)
    expected = resized(small.astype(np.float64), [8, 8])
    explanations = GradCAM(model, "features").explain(x, 1)
    assert (explanations.head, explanations.attribution.shape) == ("softmax", (4, 8, 8))
    np.testing.assert_allclose(explanations, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(explanations, resized(small[:, ::-1].astype(np.float64), [8, 8]), rtol=1e-4)
    guided = np.asarray(GuidedBackprop(model).explain(x, 1)) * expected[..., None]
    np.testing.assert_allclose(GuidedGradCAM(model, "features").explain(x, 1), guided, rtol=1e-4, atol=1e-6)


SMOOTH = {
    "leaky_relu": lambda: layers.LeakyReLU(0.2),
    "prelu": lambda: layers.PReLU(keras.initializers.Constant(0.2)),
    "elu": lambda: layers.ELU(),
    "celu": lambda: layers.Activation("celu"),
    "gelu": lambda: layers.Activation("gelu"),
    "silu": lambda: layers.Activation("silu"),
    "mish": lambda: layers.Activation("mish"),
    "hardswish": lambda: layers.Activation("hard_silu"),
    "softplus": lambda: layers.Activation("softplus"),
}


def test_smooth_activations():
    """Each with rows of its own, so that each has a map of its own, of one network."""
    keras.utils.set_random_seed(0)
    rows = np.stack([ROWS] * len(SMOOTH), axis=1)
    images, last = keras.Input(rows.shape[1:]), layers.Dense(3)
    branches = [build()(layers.Dense(6)(images[:, place])) for place, build in enumerate(SMOOTH.values())]
    model = keras.Model(images, last(layers.Concatenate()(branches)))
    weights, bias = last.get_weights()
    weights = np.abs(weights) * np.tile([[1], [-1]], (len(weights) // 2, 1))
    last.set_weights([weights, bias])
    guided, plain = compare(rows, 1, [GuidedBackprop(model, smooth="guide"), Saliency(model)])
    assert {*guided.coverage} == {(name, 1, "guided") for name in SMOOTH}
    # The gradient that arrives is the last layer's weights: without the negative ones it is the guided one.
    last.set_weights([np.maximum(weights, 0), bias])
    expected = np.asarray(Saliency(model).explain(rows, 1))
    for place, name in enumerate(SMOOTH):
        np.testing.assert_allclose(guided.attribution[:, place], expected[:, place], 1e-5, 1e-6, err_msg=name)
        assert not np.allclose(guided.attribution[:, place], plain.attribution[:, place]), name


def test_layers_are_re_initialised_from_output_to_input():
    model, given = to_keras(NETWORKS["convolutional"], CHANNELS_LAST, "float32"), images("float32")

    def state():
        called = [len(layer._inbound_nodes) for layer in model.layers]
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            [each.tolist() for each in model.get_weights()],
            called,
        )

    next_name = keras.layers.Dense(1).name
    before = state()
    check = sanity_check(GuidedBackprop(model), given)
    assert state() == before
    # No number for a name was taken.
    assert int(keras.layers.Dense(1).name.rpartition("_")[2]) == int(next_name.rpartition("_")[2] or 0) + 1
    head, norm = model.layers[-1].name, next(each.name for each in model.layers if "norm" in each.name)
    second, first = (each.name for each in model.layers[::-1] if "conv" in each.name)
    assert check.blocks == ((head,), (second, norm), (first,))
    # What depends on no fresh layer is the same in every framework; these are torch's numbers, of float64.
    for mode, block, metric, mean in SHARED:
        assert check.row(mode, block, metric).mean == pytest.approx(mean, rel=1e-4)
    assert check.row("cascading", head).mean > check.row("cascading", first).mean


SHARED = [
    ("labels", "runners-up", "cosine", 0.7833458),
    ("convergence", "images", "cosine", 0.6950731),
    ("edges", "", "ssim", 0.0293087),
]


class Written(keras.Model):
    """Is written as a class, with an argument, and creates its layers in another order than it calls them in."""

    def __init__(self, width):
        super().__init__()
        self.head, self.flat = layers.Dense(3), layers.Flatten()
        self.convs = {"only": layers.Conv2D(width, 3, activation="relu")}
        self.inner = keras.Sequential([layers.DepthwiseConv2D(3), layers.BatchNormalization(), layers.ReLU()])
        self.twice = layers.Lambda(lambda x: x * 2)

    def call(self, x):
        return self.head(self.flat(self.twice(self.inner(self.convs["only"](x)))))


def is_changed(before, model):
    return [bool((each != own).any()) for own, each in zip(before, model.get_weights(), strict=True)]


def test_models_of_every_kind_are_copied():
    model = Written(5)
    model(images("float32"))
    model.compile("adam", "mse")
    conv, (depthwise, norm, _) = model.convs["only"], model.inner.layers
    norm.set_weights(np.random.default_rng(0).uniform(0.5, 2, (4, 5)))
    check = sanity_check(Saliency(model), images("float32"), modes=["cascading"])
    assert check.blocks == ((model.head.name,), (depthwise.name, norm.name), (conv.name,))
    assert check.row("cascading", conv.name).mean < 0.99
    # Exactly the layers that are asked for are fresh, and only in the copy.
    own, copied = model.get_weights(), KerasCopy(model, lambda each: each(images("float32")), seed=0)
    assert is_changed(own, copied.model) == [False] * len(own)
    copied.randomise({depthwise.name, norm.name})
    assert [
        variable.path for variable, each in zip(model.weights, is_changed(own, copied.model), strict=True) if each
    ] == [variable.path for layer in (depthwise, norm) for variable in layer.weights]
    copied.randomise({model.head.name})
    assert sum(is_changed(own, copied.model)) == 2
    assert not any(is_changed(own, model))
    neuron = GuidedBackprop(to_keras(NETWORKS["residual"], CHANNELS_LAST, "float32"), output_layer=(3, 0))
    assert len(sanity_check(neuron, images("float32"), (1, "max"), modes=["cascading"]).blocks) < 4


def test_a_model_with_parts_of_training_is_copied():
    parts = [layers.Dense(5, activation="relu"), layers.Dropout(0.5), layers.GaussianNoise(0.5)]
    model = keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3)])
    rows = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    check = sanity_check(GuidedBackprop(model), rows, modes=["cascading"])
    assert check.blocks == ((model.layers[-1].name,), (model.layers[0].name,))


@pytest.mark.parametrize(("channels", "shape"), [(3, (8, 8, 3)), (1, (8, 8, 1))])
def test_one_image_without_a_batch_axis_is_refused(channels, shape):
    model = keras.Sequential(
        [
            keras.Input((None, None, channels)),
            keras.layers.Conv2D(4, 3, activation="relu", padding="same", data_format="channels_last"),
            keras.layers.Conv2D(channels, 1, data_format="channels_last"),
        ]
    )
    image = np.random.default_rng(0).random(shape).astype("float32")
    with pytest.raises(ImageError, match=r"takes for one image\. Pass images\[None\]"):
        GuidedBackprop(model).explain(image, 0)
    assert len(GuidedBackprop(model).explain(image[None], 0)) == 1
    if channels == 1:
        # Keras puts the axis of channels there itself.
        assert len(GuidedBackprop(model).explain(np.zeros((2, 8, 8), "float32") + image[None, ..., 0], 0)) == 2
