"""First mistakes: for each framework the error names what is wrong, and what it says to write works."""

import types
from pathlib import Path

import equinox
import flax.linen
import haiku
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import torch
from flax import nnx
from PIL import Image
from torch import nn

from guided_backprop import GuidedBackprop, GuidedBackpropError, ImageError, ModelError
from guided_backprop.backends.mistakes import wrong_shape
from guided_backprop.backends.refusals import reason_of

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("float32")
LAST = np.ascontiguousarray(np.moveaxis(IMAGES, 1, -1))
W = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
ROWS = np.ones((2, 4), "float32")


def in_torch(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def in_keras(channels: int = 3) -> keras.Model:
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((8, 8, channels)), *layers])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3, activation="relu")
        self.flat, self.last = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, images):
        return self.last(self.flat(self.conv(images)))


class Net(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.last = nnx.Linear(4, 3, rngs=nnx.Rngs(1))

    def __call__(self, images):
        return self.last(nnx.relu(self.conv(images)).mean((1, 2)))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, left, right):
        return torch.relu(self.last(left + right))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(LAST)
    return model


def two_in_keras() -> keras.Model:
    left, right = keras.Input((4,)), keras.Input((6,))
    hidden = keras.layers.Dense(5, "relu")(keras.layers.Concatenate()([left, right]))
    return keras.Model([left, right], keras.layers.Dense(2)(hidden))


# What a model is given, and what the error says of it.
SHAPES = {
    "PyTorch, no batch": (in_torch, lambda: torch.tensor(IMAGES[0]), r"takes \(N, 3, any, any\).*pass images\[None\]"),
    "PyTorch, channels last": (in_torch, lambda: torch.tensor(LAST), r"pass images.permute\(0, 3, 1, 2\)"),
    "PyTorch, NumPy, channels last": (in_torch, lambda: LAST, r"images.transpose\(0, 3, 1, 2\)"),
    "PyTorch, one image, channels last": (in_torch, lambda: LAST[0], r"images\[None\].transpose\(0, 3, 1, 2\)"),
    "PyTorch, grey": (in_torch, lambda: IMAGES[:, :1], "Convert the images, whose channels are 1"),
    "PyTorch, no channel": (lambda: in_torch(1), lambda: IMAGES[:, 0].repeat(2, 0), r"pass images\[:, None\]"),
    "PyTorch, size": (in_torch, lambda: IMAGES[..., :7, :7], "Give the images the size"),
    "PyTorch, dtype": (in_torch, lambda: IMAGES.astype(float), r"images.to\(next\(model.parameters\(\)\)\)"),
    "PyTorch, images to a perceptron": (
        lambda: nn.Sequential(nn.Linear(192, 3), nn.ReLU()).eval(),
        lambda: IMAGES,
        r"Pass images.reshape\(len\(images\), -1\)",
    ),
    "PyTorch, one row": (lambda: nn.Linear(4, 3).eval(), lambda: ROWS[0], r"takes \(N, 4\). One image is a batch"),
    "PyTorch, one of two": (lambda: Two().eval(), lambda: ROWS, r"takes 2 inputs \(left, right\). Pass a tuple"),
    "PyTorch, two for one": (
        in_torch,
        lambda: (IMAGES, IMAGES),
        r"takes 1 input \(input\). Pass one array; labels are another",
    ),
    "PyTorch, another name": (lambda: Two().eval(), lambda: {"left": ROWS, "rigth": ROWS}, "and none 'rigth'"),
    "PyTorch, scripted": (lambda: torch.jit.script(in_torch()), lambda: LAST, r"images.permute\(0, 3, 1, 2\)"),
    "Keras, no batch": (in_keras, lambda: LAST[0], r"Pass images\[None\]"),
    "Keras, size": (in_keras, lambda: LAST[:, :7], r"takes \(N, 8, 8, 3\). Resize"),
    "Keras, channels first": (in_keras, lambda: IMAGES, r"tf.transpose\(images, \[0, 2, 3, 1\]\)"),
    "Keras, grey": (in_keras, lambda: LAST[..., :1], "Convert the images, whose channels are 1"),
    "Keras, subclassed, no batch": (subclassed, lambda: LAST[0], r"first layer, conv.*images\[None\]"),
    "Keras, subclassed, channels first": (subclassed, lambda: IMAGES, r"tf.transpose\(images, \[0, 2, 3, 1\]\)"),
    "Keras, subclassed, size": (subclassed, lambda: LAST[:, :7], "expected axis -1 of input shape to have value 144"),
    "Keras, one of two": (two_in_keras, lambda: ROWS, "The model takes 2 inputs. Pass a tuple of them"),
    "Keras, swapped": (
        two_in_keras,
        lambda: (np.ones((2, 6), "float32"), ROWS),
        "input 0 takes .N, 4.. Pass rows of 4",
    ),
    "TensorFlow, dtype": (
        lambda: lambda x: tf.nn.relu(x @ tf.constant(W)),
        lambda: tf.constant(ROWS.astype(float)),
        "tf.cast",
    ),
    "Flax, channels first": (Net, lambda: IMAGES, r"first layer, conv.*images.transpose\(0, 2, 3, 1\)"),
    "Flax, no batch": (Net, lambda: LAST[0], r"images\[None\]"),
    "Equinox": (
        lambda: equinox.nn.MLP(4, 3, 6, 1, key=jax.random.key(0)),
        lambda: jnp.ones((2, 4)),
        r"jax.vmap\(model",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_images_that_a_model_does_not_take(name):
    build, images, message = SHAPES[name]
    with pytest.raises(GuidedBackpropError, match=message) as caught:
        GuidedBackprop(build()).explain(images(), 1)
    # Keras' reason stands between what says where and what it was given.
    assert "kwargs=" not in str(caught.value)
    assert "Exception encountered" not in str(caught.value)
    assert "report it" not in str(caught.value)


def test_what_is_said_of_a_shape_works():
    """Whatever is wrong, what the error says to write gives what is wanted; and of right images nothing is said."""
    wrongs = {
        (3, 8, 8): ((None, 3, 8, 8), 1, "images[None]"),
        (2, 8, 9, 3): ((None, 3, 8, 9), 1, "images.transpose(0, 3, 1, 2)"),
        (2, 3, 8, 9): ((None, 8, 9, 3), 3, "images.transpose(0, 2, 3, 1)"),
        (8, 9, 3): ((None, 3, None, None), 1, "images[None].transpose(0, 3, 1, 2)"),
        (2, 8, 9): ((None, 1, 8, 9), 1, "images[:, None]"),
        (5, 8, 9): ((None, 8, 9, 1), 3, "images[..., None]"),
        (2, 9, 3): ((None, 3, 9), 1, "images.transpose(0, 2, 1)"),
        (2, 4, 5, 6, 3): ((None, 3, 4, 5, 6), 1, "images.transpose(0, 4, 1, 2, 3)"),
        (2, 3, 4): ((None, 12), 1, "images.reshape(len(images), -1)"),
    }
    for shape, (wanted, axis, code) in wrongs.items():
        images = np.zeros(shape)
        said = wrong_shape(images, wanted, axis)
        assert said is not None
        assert f" {code}." in said
        repaired = eval(code, {"images": images})
        assert wrong_shape(repaired, wanted, axis) is None
        assert all(want in (None, size) for size, want in zip(repaired.shape, wanted, strict=True))
    for shape, wanted in (((2, 3, 8, 8), (None, 3, None, None)), ((2, 5, 4), (None, 4))):
        assert wrong_shape(np.zeros(shape), wanted, 1) is None


class Wrapped(nn.Module):
    """A model whose output is changed."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = in_torch(), change

    def forward(self, images):
        return self.change(self.inner(images))


def loss(output):
    return nn.functional.cross_entropy(output, torch.tensor([0, 1]))


OUTPUTS = {
    "a loss": (loss, 2, "one number for all images, as a loss is. Pass the model without its loss"),
    "a squeezed batch": (torch.squeeze, 1, r"without an axis of images. .*squeeze\(-1\), not squeeze\(\)"),
    "class ids": (lambda output: output.argmax(1), 2, r"integers.*without argmax\(\)"),
    "a dictionary in a dictionary": (lambda output: {"out": {"a": output, "b": output}}, 2, "dict of 'a', 'b'"),
    "detections": (lambda output: [{"boxes": row, "scores": row} for row in output], 2, "stack_detections"),
    "one detection": (lambda output: [{"boxes": row, "scores": row} for row in output], 1, "stack_detections"),
    "NumPy's": (lambda output: output.detach().numpy(), 2, "has no gradient"),
    "a list in a dictionary": (lambda output: {"out": [output, output]}, 2, "several outputs in one"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_rows(name):
    change, count, message = OUTPUTS[name]
    with pytest.raises(ModelError, match=message):
        GuidedBackprop(Wrapped(change).eval()).explain(torch.tensor(IMAGES[:count]), 1)


def test_outputs_that_are_no_rows_in_other_frameworks():
    for sums, squeezed, rows in (
        (lambda x: tf.reduce_sum(tf.nn.relu(x @ W)), lambda x: tf.squeeze(tf.nn.relu(x @ W)), tf.constant(ROWS)),
        (lambda x: jax.nn.relu(x @ W).sum(), lambda x: jax.nn.relu(x @ W).squeeze(), jnp.asarray(ROWS)),
    ):
        with pytest.raises(ModelError, match="one number for all images"):
            GuidedBackprop(sums).explain(rows)
        with pytest.raises(ModelError, match="without an axis of images"):
            GuidedBackprop(squeezed).explain(rows[:1])
        # Of more than one image nothing is squeezed away.
        assert GuidedBackprop(squeezed).explain(rows).shape == (2, 4)


# As its class is called in transformers, which is not needed to tell it.
Pipeline = type("ImageClassificationPipeline", (), {"__call__": lambda self, images: images})
Pipeline.__module__ = "transformers.pipelines.image_classification"
Onnx = type("ModelProto", (), {"__module__": "onnx.onnx_ml_pb2"})

NO_MODELS = {
    "a class": (lambda: nn.Linear, "a class, Linear. Pass an instance"),
    "an ONNX file": (lambda: "model.onnx", "an ONNX file.*onnx2torch"),
    "an ONNX model": (Onnx, "an ONNX model"),
    "a path": (lambda: Path("model.keras"), "a path.*Load the model: load_model"),
    "weights": (lambda: in_torch().state_dict(), "Load its weights into a model"),
    "a pipeline": (Pipeline, "Pass pipeline.model"),
    "what holds a model": (lambda: types.SimpleNamespace(model=in_torch()), "Pass its model: thing.model"),
    "what has no gradients": (lambda: types.SimpleNamespace(predict=len), "a model without gradients"),
    "a linen module": (lambda: flax.linen.Dense(3), "without its parameters.*functools.partial"),
    "Haiku's functions": (lambda: haiku.transform(lambda x: haiku.Linear(3)(x)), "transformed function without"),
    "a number": (lambda: 3, "received model=3. Pass the model itself"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model(name):
    build, message = NO_MODELS[name]
    with pytest.raises(ModelError, match=message):
        GuidedBackprop(build())


def test_what_is_no_model_says_what_is_one(tmp_path):
    class Exported(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def serve(self, rows):
            return {"logits": tf.nn.relu(rows @ W)}

    exported = Exported()
    tf.saved_model.save(exported, str(tmp_path), {"serving_default": exported.serve})
    loaded = tf.saved_model.load(str(tmp_path))
    with pytest.raises(ModelError, match=r'a SavedModel, .*loaded.signatures\["serving_default"\]'):
        GuidedBackprop(loaded)
    assert GuidedBackprop(loaded.signatures["serving_default"]).explain(ROWS).shape == (2, 4)

    program = torch.export.export(in_torch(), (torch.tensor(IMAGES),))
    with pytest.raises(ModelError, match=r"Pass exported.module\(\)"):
        GuidedBackprop(program)
    assert GuidedBackprop(program.module()).explain(torch.tensor(IMAGES)).shape == IMAGES.shape

    module = flax.linen.Sequential([flax.linen.Dense(3), flax.linen.relu])
    bound = module.bind(module.init(jax.random.key(0), ROWS))
    assert GuidedBackprop(bound).explain(jnp.asarray(ROWS)).shape == (2, 4)


NO_IMAGES = {
    "a picture": (lambda: Image.new("RGB", (8, 8)), r"preprocess\(image\)\[None\]"),
    "pictures": (lambda: [Image.new("RGB", (8, 8))], "Make an array of each"),
    "a file": (lambda: "cat.jpg", "Open it and preprocess it"),
    "a table": (lambda: pd.DataFrame(ROWS), r'images.to_numpy\("float32"\)'),
    "another framework's": (lambda: jnp.asarray(IMAGES), r"Pass np.asarray\(images\)"),
    "numbers": (lambda: [[1.0, 2.0]], r'np.array\(images, "float32"\)'),
    "a number": (lambda: torch.tensor(1.0), "Stack the images"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image(name):
    images, message = NO_IMAGES[name]
    with pytest.raises(ImageError, match=message):
        GuidedBackprop(in_torch()).explain(images())


def test_a_mistake_costs_a_right_call_nothing():
    """What is only looked at once something went wrong refuses nothing: neither odd attributes nor odd orders."""

    class Proxy:
        def __getattr__(self, name):
            return name

        def __call__(self, images):
            return torch.relu(images.flatten(1)) @ torch.ones(192, 3)

    assert GuidedBackprop(Proxy()).explain(torch.tensor(IMAGES)).shape == IMAGES.shape

    class Reversed(nn.Module):
        """Its first layer was made last."""

        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(6, 3), nn.Linear(4, 6)

        def forward(self, rows):
            return self.last(torch.relu(self.first(rows)))

    assert GuidedBackprop(Reversed().eval()).explain(ROWS).shape == ROWS.shape


def test_the_reason_of_an_error():
    where, what = "Exception encountered when calling A.call().", "Arguments received by A.call():\n  • x=1"
    keras_error = f"{where}\n\n\x1b[1mIt is so.\x1b[0m\n\n{what}"
    for said, reason in (
        (keras_error, "It is so."),
        (f"in user code:\n\n    {keras_error}", "It is so."),
        ("The first line.\nThe second.", "The first line."),
        ("", "ValueError"),
        ("The following operation failed in it.\nTraceback\nRuntimeError: why", "RuntimeError: why"),
        ("The following operation failed in it.\nTraceback\nRuntimeError: ", "The following operation failed in it."),
        (f"{where}\n\nInput [[0. 1.]\n [2. 3.]] is odd.", "... [2. 3.]] is odd."),
    ):
        assert reason_of(ValueError(said)) == reason
