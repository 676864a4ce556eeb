"""Models of several inputs and several outputs, on each framework, against the oracle."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

import reference
from guided_backprop import GuidedBackprop, ImageError, ModelError, OptionError, layer_names
from guided_backprop.jax import tap
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
RNG = np.random.default_rng(4)
IMAGES, ROWS = RNG.normal(size=(4, 3, 8, 8)), RNG.normal(size=(4, 5))
IDS = [0, 2, 1, 2]
ONE_HOT = np.eye(3)[IDS]


def _towers() -> tuple[reference.Sequential, reference.Sequential, reference.Sequential]:
    rng, relu = np.random.default_rng(6), reference.ReLU()
    seeing = (reference.random_conv(rng, 3, 4, padding=(1, 1)), relu, reference.GlobalAveragePool())
    reading = (reference.random_linear(rng, 5, 6), relu, reference.random_linear(rng, 6, 4))
    return (
        reference.Sequential(seeing),
        reference.Sequential(reading),
        reference.Sequential((relu, reference.random_linear(rng, 4, 3))),
    )


SEEING, READING, JUDGING = _towers()


def expected(weights: np.ndarray = ONE_HOT) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps of images and rows: judging(seeing(images) + reading(rows))."""
    seen, through_seeing = SEEING.forward(IMAGES)
    read, through_reading = READING.forward(ROWS)
    _, through_judging = JUDGING.forward(seen + read)
    g = through_judging(weights, "guided")
    return through_seeing(g, "guided"), through_reading(g, "guided")


class TwoInputs(torch.nn.Module):
    """Takes an image and a row, and integers that it may be given as well."""

    def __init__(self) -> None:
        super().__init__()
        self.seeing, self.reading, self.judging = (to_torch(each) for each in (SEEING, READING, JUDGING))

    def forward(self, images: torch.Tensor, rows: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.judging(self.seeing(images) + self.reading(rows))
        if shift is not None:
            logits = logits + shift[:, None]
        return logits


def in_tensorflow(images: Any, rows: Any, shift: Any = None) -> Any:
    seeing, reading, judging = (to_tensorflow(each) for each in (SEEING, READING, JUDGING))
    logits = judging(seeing(images) + reading(rows))
    return logits if shift is None else logits + tf.cast(shift, logits.dtype)[:, None]


def in_jax(images: Any, rows: Any, shift: Any = None) -> Any:
    seeing, reading, judging = (to_jax(each) for each in (SEEING, READING, JUDGING))
    logits = judging(tap("seen", seeing(images)) + reading(rows))
    return logits if shift is None else logits + shift[:, None]


# Framework: the model, arrays in its kind and layout, and a map in the layout of the oracle.
FRAMEWORKS = {
    "torch": (TwoInputs().eval(), torch.tensor, np.asarray),
    "tensorflow": (
        in_tensorflow,
        lambda values: tf.constant(np.moveaxis(values, 1, -1) if values.ndim > 2 else values),
        lambda values: np.moveaxis(values, -1, 1),
    ),
    "jax": (
        in_jax,
        lambda values: jnp.asarray(np.moveaxis(values, 1, -1) if values.ndim > 2 else values),
        lambda values: np.moveaxis(values, -1, 1),
    ),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def check(framework: str, images: Any, rows: Any) -> None:
    back = FRAMEWORKS[framework][2]
    for found, right in zip((back(np.asarray(images)), np.asarray(rows)), expected(), strict=True):
        np.testing.assert_allclose(found, right, **TOLERANCE)
    planted = expected(np.eye(3)[[2, 1, 0, 0]])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.asarray(rows), planted[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_tuple_of_inputs(framework, batch_size):
    model, convert, _ = FRAMEWORKS[framework]
    given = convert(IMAGES), convert(ROWS)
    explanations = GuidedBackprop(model, batch_size=batch_size).explain(given, IDS)
    assert isinstance(explanations.attribution, tuple)
    assert all(type(each) is type(given[0]) for each in explanations.attribution)
    check(framework, *explanations.attribution)
    assert str(explanations.coverage) == "relu x3 guided"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_inputs_by_name_in_any_order(framework):
    model, convert, _ = FRAMEWORKS[framework]
    given = {"rows": convert(ROWS), "images": convert(IMAGES)}
    explanations = GuidedBackprop(model).explain(given, IDS)
    assert list(explanations.attribution) == ["rows", "images"]
    check(framework, explanations.attribution["images"], explanations.attribution["rows"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_integers_are_given_and_not_explained(framework):
    model, convert, _ = FRAMEWORKS[framework]
    shift = np.array([3, -1, 0, 5])
    explanations = GuidedBackprop(model).explain((convert(IMAGES), convert(ROWS), convert(shift)), IDS)
    check(framework, *explanations.attribution[:2])
    assert explanations.attribution[2] is None
    plain = GuidedBackprop(model).explain((convert(IMAGES), convert(ROWS)), IDS)
    np.testing.assert_allclose(explanations.scores - plain.scores, shift, **TOLERANCE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_many_labels_of_several_inputs(framework):
    model, convert, _ = FRAMEWORKS[framework]
    explanations = GuidedBackprop(model).explain((convert(IMAGES), convert(ROWS)), [[each, 0] for each in IDS])
    images, rows = explanations.attribution
    assert rows.shape == (4, 2, 5)
    check(framework, images[:, 0], rows[:, 0])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_input_that_does_not_matter_has_a_map_of_zeros(framework):
    model, convert, _ = FRAMEWORKS[framework]

    class Deaf(torch.nn.Module):
        def forward(self, images, rows):
            return model(images, rows * 0 + 1) if framework != "torch" else model(images, torch.ones_like(rows))

    deaf = Deaf().eval() if framework == "torch" else Deaf().forward
    explanations = GuidedBackprop(deaf).explain((convert(IMAGES), convert(ROWS)), IDS)
    assert not np.asarray(explanations.attribution[1]).any()
    assert np.asarray(explanations.attribution[0]).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bad_inputs(framework):
    model, convert, _ = FRAMEWORKS[framework]
    method = GuidedBackprop(model)
    for images, message in (
        ((convert(IMAGES), convert(ROWS[:3])), "received inputs of 4, 3 rows"),
        ((convert(IMAGES), convert(ROWS * np.nan)), "finite"),
        ((convert(IMAGES.astype(int)), convert(ROWS.astype(int))), "real floating-point numbers"),
        ((convert(IMAGES), 1.0), "received images=float"),
    ):
        with pytest.raises(ImageError, match=message):
            method.explain(images)
    for wrong in ((convert(IMAGES),), {"images": convert(IMAGES), "row": convert(ROWS)}):
        with pytest.raises(ModelError):
            method.explain(wrong)


def test_no_input_at_all():
    with pytest.raises(ImageError, match="received no input"):
        GuidedBackprop(TwoInputs().eval()).explain(())


def test_the_state_of_a_model_of_several_inputs():
    model = TwoInputs().eval()
    images, rows = torch.tensor(IMAGES, requires_grad=True), torch.tensor(ROWS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    GuidedBackprop(model).explain((images, rows), "top2")
    assert images.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_explanations_of_several_inputs():
    explanations = GuidedBackprop(TwoInputs().eval()).explain((torch.tensor(IMAGES), torch.tensor(ROWS)), IDS)
    assert explanations[1].attribution[1].shape == (5,)
    assert explanations[1:3].attribution[0].shape == (2, 3, 8, 8)
    assert "((4, 3, 8, 8), (4, 5))" in repr(explanations)
    one = explanations.of_input(0)
    np.testing.assert_array_equal(one, explanations.attribution[0])
    assert len(one.plot().axes) == 16 + 1
    assert len(explanations.of_input(1).plot().axes) == 4
    for use in (explanations.plot, lambda: np.asarray(explanations), lambda: explanations.save("nowhere")):
        with pytest.raises(OptionError, match=r"needs one input; received explanations of 2 inputs. .*of_input"):
            use()
    with pytest.raises(OptionError, match="received name=2 of 0, 1"):
        explanations.of_input(2)


def test_reduced_channels_of_those_inputs_that_have_some():
    given = torch.tensor(IMAGES), torch.tensor(ROWS)
    explanations = GuidedBackprop(TwoInputs().eval(), reducer="sum").explain(given, IDS)
    assert [each.shape for each in explanations.attribution] == [(4, 8, 8), (4, 5)]
    assert explanations.channel_axis == (1, None)


def test_no_images_of_several_inputs():
    given = torch.tensor(IMAGES[:0]), torch.tensor(ROWS[:0])
    explanations = GuidedBackprop(TwoInputs().eval()).explain(given)
    assert [each.shape for each in explanations.attribution] == [(0, 3, 8, 8), (0, 5)]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model():
    model = torch.jit.script(TwoInputs().eval())
    for given in (
        (torch.tensor(IMAGES), torch.tensor(ROWS)),
        {"rows": torch.tensor(ROWS), "images": torch.tensor(IMAGES)},
    ):
        found = GuidedBackprop(model).explain(given, IDS).attribution
        check("torch", *([found["images"], found["rows"]] if isinstance(found, dict) else found))
    with pytest.raises(ModelError, match="forward"):
        GuidedBackprop(model).explain({"images": torch.tensor(IMAGES), "lines": torch.tensor(ROWS)})


def test_a_saved_signature(tmp_path):
    module = tf.Module()
    specs = [tf.TensorSpec((None, 8, 8, 3), tf.float64, "images"), tf.TensorSpec((None, 5), tf.float64, "rows")]
    function = tf.function(lambda images, rows: {"logits": in_tensorflow(images, rows)}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path), signatures=function)
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    _, convert, _ = FRAMEWORKS["tensorflow"]
    found = GuidedBackprop(signature).explain({"images": convert(IMAGES), "rows": convert(ROWS)}, IDS).attribution
    check("tensorflow", found["images"], found["rows"])


# Keras takes several inputs as one argument.


@pytest.fixture(scope="module")
def keras_layers():
    image, row = keras.Input((8, 8, 3), dtype="float64", name="image"), keras.Input((5,), dtype="float64", name="row")
    conv = layers.Conv2D(4, 3, padding="same", activation="relu", dtype="float64", name="conv")
    first, second = layers.Dense(6, "relu", dtype="float64"), layers.Dense(4, dtype="float64")
    last = layers.Dense(3, "softmax", dtype="float64")
    seen = layers.GlobalAveragePooling2D(dtype="float64")(conv(image))
    logits = last(layers.ReLU(dtype="float64")(layers.Add(dtype="float64")([seen, second(first(row))])))
    kernel, bias = SEEING.layers[0].weight, SEEING.layers[0].bias
    conv.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    for dense, linear in ((first, READING.layers[0]), (second, READING.layers[2]), (last, JUDGING.layers[1])):
        dense.set_weights([linear.weight.T, linear.bias])
    return image, row, seen, logits


def test_keras_with_a_list_of_inputs(keras_layers):
    image, row, _, logits = keras_layers
    _, convert, _ = FRAMEWORKS["tensorflow"]
    explanations = GuidedBackprop(keras.Model([image, row], logits)).explain((convert(IMAGES), convert(ROWS)), IDS)
    check("tensorflow", *explanations.attribution)
    assert explanations.head == "softmax"


def test_keras_with_inputs_and_outputs_by_name(keras_layers):
    image, row, seen, logits = keras_layers
    _, convert, _ = FRAMEWORKS["tensorflow"]
    model = keras.Model({"image": image, "row": row}, {"class": logits, "seen": seen})
    given = {"row": convert(ROWS), "image": convert(IMAGES)}
    found = GuidedBackprop(model, output="class").explain(given, IDS).attribution
    check("tensorflow", found["image"], found["row"])
    assert not np.asarray(GuidedBackprop(model, output="seen").explain(given, IDS).attribution["row"]).any()
    for layer in ("conv", model.get_layer("conv")):
        explanations = GuidedBackprop(model, output_layer=layer).explain(given, (1, "max"))
        assert explanations.outputs.shape == (4, 8, 8, 4)
    with pytest.raises(OptionError, match="one of the model's 2 outputs, 'class', 'seen'; received output=None"):
        GuidedBackprop(model).explain(given, IDS)


# Several outputs.


class ModelOutput(OrderedDict):
    """What a library of pretrained models returns: a dictionary with attributes, without what is None."""

    def __init__(self, **outputs):
        super().__init__(outputs)
        for name, value in outputs.items():
            setattr(self, name, value)


@dataclass
class Outputs:
    loss: Any
    logits: Any
    hidden: Any


Pair = namedtuple("Pair", "logits hidden")
SHAPES = {
    "a model output": (lambda logits, hidden: ModelOutput(logits=logits, hidden=hidden), None),
    "a dataclass": (lambda logits, hidden: Outputs(None, logits, hidden), None),
    "a dataclass, by name": (lambda logits, hidden: Outputs(None, logits, hidden), "logits"),
    "a named tuple": (Pair, None),
    "a named tuple, by position": (Pair, 0),
    "a dictionary": (lambda logits, hidden: {"hidden": hidden, "logits": logits}, None),
    "a dictionary, by position": (lambda logits, hidden: {"hidden": hidden, "logits": logits}, -1),
    "a dictionary of one": (lambda logits, hidden: {"scores": logits}, None),
    "a tuple": (lambda logits, hidden: (logits, hidden), 0),
    "a list": (lambda logits, hidden: [hidden, logits], 1),
    "a tuple of one": (lambda logits, hidden: (logits,), None),
    "a tensor": (lambda logits, hidden: logits, None),
    "a tensor, by position": (lambda logits, hidden: logits, 0),
}


def returning(framework: str, form: Any) -> Any:
    model = FRAMEWORKS[framework][0]

    class Wrapped(torch.nn.Module):
        def forward(self, images, rows):
            logits = model(images, rows)
            return form(logits, logits * 2 + 1)

    return Wrapped().eval() if framework == "torch" else Wrapped().forward


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_several_outputs(framework, shape):
    form, output = SHAPES[shape]
    _, convert, _ = FRAMEWORKS[framework]
    method = GuidedBackprop(returning(framework, form), output=output)
    explanations = method.explain((convert(IMAGES), convert(ROWS)), IDS)
    check(framework, *explanations.attribution)


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        (lambda logits, hidden: (logits, hidden), None, "one of the model's 2 outputs, 0, 1; received output=None"),
        (lambda logits, hidden: (logits, hidden), 2, "received output=2"),
        (lambda logits, hidden: (logits, hidden), "logits", "received output='logits'"),
        (lambda logits, hidden: {"a": logits, "b": hidden}, None, "outputs, 'a', 'b'; received output=None"),
        (lambda logits, hidden: {"a": logits, "b": hidden}, "c", "received output='c'"),
        (lambda logits, hidden: logits, "logits", "received output='logits' and a model that returns one"),
        (lambda logits, hidden: logits, 1, "received output=1 and a model that returns one"),
        (lambda logits, hidden: Outputs(None, logits, hidden), "loss", "received output='loss'"),
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bad_outputs(framework, form, output, message):
    _, convert, _ = FRAMEWORKS[framework]
    with pytest.raises(OptionError, match=message):
        GuidedBackprop(returning(framework, form), output=output).explain((convert(IMAGES), convert(ROWS)), IDS)


# Names inside of a JAX function.


def test_a_tapped_value():
    _, convert, _ = FRAMEWORKS["jax"]
    given = convert(IMAGES), convert(ROWS)
    assert layer_names(in_jax, given) == ["seen"]
    for layer in ("seen", 0, -1):
        explanations = GuidedBackprop(in_jax, output_layer=layer).explain(given, [3, 1, 0, 2])
        weights = np.eye(4)[[3, 1, 0, 2]]
        right = reference.attribution(SEEING, IMAGES, weights, "guided")
        np.testing.assert_allclose(np.moveaxis(explanations.attribution[0], -1, 1), right, **TOLERANCE)
        assert not np.asarray(explanations.attribution[1]).any()
    scored = GuidedBackprop(in_jax, output_layer="seen").explain(given, lambda seen: (seen**2).sum(1))
    seen = SEEING.forward(IMAGES)[0]
    right = reference.attribution(SEEING, IMAGES, 2 * seen, "guided")
    np.testing.assert_allclose(np.moveaxis(scored.attribution[0], -1, 1), right, **TOLERANCE)
    with pytest.raises(OptionError, match="received layer='see'. Did you mean 'seen'"):
        GuidedBackprop(in_jax, output_layer="see").explain(given)
    with pytest.raises(OptionError, match=r"Name values with guided_backprop.jax.tap"):
        GuidedBackprop(lambda x: jax.nn.relu(x), output_layer="see").explain(convert(ROWS))


def test_the_names_of_a_torch_function():
    with pytest.raises(ModelError, match="no layers by name"):
        layer_names(torch.relu)
