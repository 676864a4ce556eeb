"""A model that is run again: random parts that its code reads, and one image without an axis of images."""

import datetime
import functools
import importlib
import itertools
import os
import random
import secrets
import threading
import time
import uuid
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from flax import nnx
from jax import lax
from numpy.random import RandomState, default_rng
from torch import nn

from guided_backprop import GuidedBackprop, ImageError, ModelError, Saliency
from guided_backprop.backends import again, base, reach
from guided_backprop.backends.reach import name_of_source, sources_of

ROWS = np.random.default_rng(0).random((2, 6)).astype("f4")
WEIGHT = np.random.default_rng(1).normal(size=(6, 3)).astype("f4")
HELD = [default_rng(0)]


def network(framework, draw):
    """Return a network that something is drawn for, and its images."""
    if framework == "torch":
        weight = torch.from_numpy(WEIGHT)
        return lambda x: torch.relu(x @ weight) * draw(), torch.from_numpy(ROWS)
    if framework == "jax":
        return lambda x: jax.nn.relu(x @ WEIGHT) * draw(), jnp.asarray(ROWS)
    return lambda x: tf.nn.relu(x @ WEIGHT) * draw(), tf.constant(ROWS)


def entropy():
    generator = torch.Generator()
    generator.seed()
    return float(torch.rand((), generator=generator))


DRAWS = {
    "numpy.random": lambda: float(np.random.default_rng().random()),
    "default_rng": lambda: float(default_rng().random()),
    "RandomState": lambda: float(RandomState().rand()),
    "random": lambda: random.Random().random(),
    "secrets": lambda: 1.0 + secrets.randbelow(1 << 40),
    "urandom": lambda: 1.0 + int.from_bytes(os.urandom(4), "big"),
    "uuid": lambda: float(uuid.uuid4().int >> 80),
    "time": lambda: time.perf_counter() % 1e-3,
    "datetime": lambda: 1.0 + datetime.datetime.now().microsecond,
    "Generator": entropy,
}
IN_TORCH_ALONE = set(DRAWS) - {"numpy.random", "random", "urandom"}
CASES = [(framework, name) for framework in ("torch", "jax", "tensorflow") for name in DRAWS]


@pytest.mark.parametrize(
    ("framework", "name"), [case for case in CASES if case[0] == "torch" or case[1] not in IN_TORCH_ALONE]
)
def test_what_is_made_anew_and_draws_is_refused_by_name(framework, name):
    model, images = network(framework, DRAWS[name])
    with pytest.raises(ModelError, match=rf"map is random; received other outputs.* reads .*\b{name}\b.*vouch="):
        Saliency(model).explain(images, 1)
    assert Saliency(model, vouch={"random": "plain"}).explain(images, 1).coverage


def tossed():
    return 1.0 if random.Random(0).random() > 2 else 2.0


SETTLED = {
    "a seed": lambda: float(default_rng(0).random()),
    "of Python's": lambda: random.Random(0).random(),
    "of PyTorch's": lambda: float(torch.rand((), generator=torch.Generator().manual_seed(2))),
    "what is not used": lambda: (time.time(), 2.0)[1],
    "what makes no difference": tossed,
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_is_seeded_or_not_used_is_explained(name):
    for framework in ("torch",) if name == "of PyTorch's" else ("torch", "jax", "tensorflow"):
        model, images = network(framework, SETTLED[name])
        assert GuidedBackprop(model).explain(images, 1).coverage


def test_later_calls_run_the_model_once():
    runs = []
    model, images = network("torch", lambda: runs.append(default_rng(0).random()) or 2.0)
    method = Saliency(model)
    method.explain(images, 1)
    first = len(runs)
    method.explain(images, 1)
    assert (first, len(runs) - first) == (4, 1)


def test_a_call_out_to_python_and_a_trace_of_another_shape_are_run_as_well():
    # Two of them are hardly ever as near each other as what is compiled in another way.
    drawn = lambda: np.float32(2 ** default_rng().uniform(-50, 50))  # noqa: E731
    called = {
        "jax": lambda: jax.pure_callback(drawn, jax.ShapeDtypeStruct((), "f4")),
        "tensorflow": lambda: tf.ensure_shape(tf.py_function(drawn, [], tf.float32), ()),
    }
    for framework, draw in called.items():
        model, images = network(framework, draw)
        with pytest.raises(ModelError, match="map is random"):
            Saliency(model).explain(images, 1)
    # A graph has what it drew for as long as it lives; one of another shape has drawn anew.
    model, images = network("tensorflow", drawn)
    fixed = tf.function(model)
    fixed(images)
    with pytest.raises(ModelError, match="map is random"):
        Saliency(fixed).explain(images, 1)
    assert Saliency(jax.jit(network("jax", drawn)[0])).explain(jnp.asarray(ROWS), 1).coverage


class Operator:
    def __float__(self):
        return random.Random().random()


UNREAD = {
    "made up": lambda: eval("np.random.rand()"),
    "in C": partial(next, map(random.uniform, itertools.repeat(0), itertools.repeat(1))),
}


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_what_all_share_is_told_where_code_is_not_read(framework, name):
    model, images = network(framework, UNREAD[name])
    with pytest.raises(ModelError, match=r"map is random; .* reads (numpy\.random or random|uniform)"):
        Saliency(model).explain(images, 1)


factor = default_rng


def closing(factor):
    return lambda x: x * factor


def test_a_name_that_is_closed_over_is_no_global():
    assert list(sources_of(closing(2.0))) == []
    assert list(sources_of(closing(factor))) == [default_rng]


class Lost(dict):
    def values(self):
        raise OSError


def test_what_cannot_be_looked_into_is_no_error():
    held = [weakref.proxy(Lost(key=1)), Lost(key=Helper()), Operator()]
    assert set(map(name_of_source, sources_of(lambda x: (x, held)))) == {"random"}


def test_what_another_thread_fills_meanwhile_is_read():
    held, is_done = {}, threading.Event()

    def fill():
        while not is_done.is_set():
            held[len(held) % 5000] = [held.pop(next(iter(held)))] if len(held) > 4000 else []

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert not any(list(sources_of(lambda x, held=held: x)) for _ in range(30))
    finally:
        is_done.set()
        thread.join()


def test_what_is_too_much_to_be_read_is_run_again(monkeypatch):
    monkeypatch.setattr(reach, "_MOST", 10)
    assert list(sources_of(lambda x, held=[[one] for one in range(20)]: x))


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_planted_fault_code_that_is_not_read(framework, monkeypatch):
    monkeypatch.setattr(base, "sources_of", lambda model: ())
    model, images = network(framework, DRAWS["random"])
    assert Saliency(model).explain(images, 1).coverage


def test_planted_fault_a_model_that_is_not_run_again(monkeypatch):
    monkeypatch.setattr(again, "is_same", lambda *_: True)
    model, images = network("torch", DRAWS["random"])
    assert Saliency(model).explain(images, 1).coverage


def wrapped(function):
    @functools.wraps(function)
    def wrapper():
        return function()

    return wrapper


@wrapped
def decorated():
    return RandomState().rand()


class Helper:
    __slots__ = ("held",)

    def draw(self):
        return self.inside

    @property
    def inside(self):
        return default_rng().random()

    def unused(self):
        return uuid.uuid4()


class Asked(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.helper = way, Helper()
        self.table = {"one": [RandomState]} if way == "kept" else {}

    def forward(self, x):
        return getattr(self, self.way)(x)

    def by_name(self, x):
        return x * secrets.randbelow(3)

    def by_helper(self, x):
        return x * self.helper.draw()

    def kept(self, x):
        return x * self.table["one"][0]().rand()


class Built(nn.Module):
    def __init__(self):
        super().__init__()
        self.number = random.SystemRandom().random()


def imported(x):
    import random as drawing

    return x * drawing.random()


WAYS = {
    "an attribute's name": (lambda: Asked("by_name"), {"secrets"}),
    "a helper's property": (lambda: Asked("by_helper"), {"default_rng"}),
    "what an object keeps": (lambda: Asked("kept"), {"RandomState"}),
    "a decorator": (lambda: lambda x: x * decorated(), {"RandomState"}),
    "a partial": (lambda: partial(lambda draw, x: x * draw(), default_rng), {"default_rng"}),
    "a default": (lambda: lambda x, draw=default_rng: x * draw(), {"default_rng"}),
    "a list of the file": (lambda: lambda x: x * HELD[0].random(), {"Generator"}),
    "an import": (lambda: imported, {"random"}),
    "an import by name": (lambda: lambda x: x * importlib.import_module("random").random(), {"random"}),
    "what is built for a call": (lambda: lambda x: x * Built().number, {"random"}),
    "what was built before": (lambda: Built(), set()),
    "a compiled function": (lambda: jax.jit(lambda x: x * time.time()), {"time"}),
    "a function of TensorFlow": (lambda: tf.function(lambda x: x * os.urandom(1)[0]), {"urandom"}),
    "keys of JAX": (lambda: lambda x: x + jax.random.normal(jax.random.key(0), x.shape), set()),
    "a layer of PyTorch": (lambda: nn.Dropout(0.5), set()),
    "a layer of Keras": (lambda: keras.layers.Dropout(0.5), set()),
    "a generator of Keras": (lambda: lambda x: x * keras.random.normal((1,)), {"keras.random"}),
    "a layer of Flax": (lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), set()),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_code_reaches_is_found(way):
    build, names = WAYS[way]
    assert set(map(name_of_source, sources_of(build()))) == names


# One image without an axis of images.

KERNEL = np.random.default_rng(2).normal(size=(3, 3, 3, 3)).astype("f4")
TURNED = np.random.default_rng(3).normal(size=(3, 3)).astype("f4")
LAST = np.random.default_rng(4).random((8, 8, 3)).astype("f4")


def in_jax(front, kernel=KERNEL):
    dims = ("NHWC", "HWIO", "NHWC")
    return lambda x: jax.nn.relu(
        lax.conv_general_dilated(front(x)[None], kernel, (1, 1), "SAME", dimension_numbers=dims)[0]
    )


def in_tensorflow(front, kernel=KERNEL):
    return lambda x: tf.nn.relu(tf.nn.conv2d(front(x)[None], kernel, 1, "SAME")[0])


def normed(x):
    """Normalise each channel of one image by hand."""
    return (x - x.mean((0, 1))) / (x.var((0, 1)) + 1e-5) ** 0.5


class OfBoth(nnx.Module):
    """A convolution that takes an image with and without a batch."""

    def __init__(self):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.relu(self.conv((x - x.mean((-3, -2), keepdims=True)) @ TURNED))


ALONE = {
    "jax, norm": (in_jax(normed), ", and explain jax.vmap(model)"),
    "jax, einsum": (in_jax(lambda x: jnp.einsum("hwc,cd->hwd", x, TURNED)), ", and explain jax.vmap(model)"),
    "jax, both": (OfBoth(), ""),
    "tensorflow, einsum": (
        in_tensorflow(lambda x: tf.einsum("hwc,cd->hwd", x, TURNED)),
        ", and explain lambda images: tf.map_fn(model, images)",
    ),
    "tensorflow, within a function": (tf.function(in_tensorflow(lambda x: x)), ""),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_image_is_told_behind_other_layers(name):
    model, instead = ALONE[name]
    image = tf.constant(LAST) if name.startswith("tensorflow") else jnp.asarray(LAST)
    with pytest.raises(ImageError) as caught:
        GuidedBackprop(model).explain(image, lambda y: y[:, 0, 0])
    assert str(caught.value).endswith(f"takes for one image. Pass images[None]{instead}.")
    # What the error says to do is done.
    of_batches = {"": model, ", and explain jax.vmap(model)": jax.vmap(model)}.get(instead, partial(tf.map_fn, model))
    assert len(GuidedBackprop(of_batches).explain(image[None], lambda y: y[:, 0, 0, 0])) == 1


GRAY = KERNEL[:, :, :1]
BATCHES = {
    "jax, mapped": (jax.vmap(in_jax(lambda x: x)), (1, 8, 8, 3)),
    "jax, a channel put in": (jax.vmap(in_jax(lambda x: x[..., None], GRAY)), (1, 8, 8)),
    "jax, rows smoothed": (
        lambda x: jax.nn.relu(jnp.apply_along_axis(lambda row: jnp.convolve(row, jnp.ones(3), mode="same"), -1, x)),
        (1, 8),
    ),
    "tensorflow, mapped": (lambda x: tf.map_fn(in_tensorflow(lambda x: x), x), (1, 8, 8, 3)),
    "tensorflow, rows": (lambda x: tf.nn.relu(tf.nn.conv1d(x, KERNEL[0], 1, "SAME")), (1, 8, 3)),
    "tensorflow, a channel put in": (lambda x: tf.nn.relu(tf.nn.conv2d(x[..., None], GRAY, 1, "SAME")), (1, 8, 8)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_no_image(name):
    model, shape = BATCHES[name]
    array = np.random.default_rng(5).random(shape).astype("f4")
    images = tf.constant(array) if name.startswith("tensorflow") else jnp.asarray(array)
    score = lambda y: y[(slice(None), *[0] * (len(y.shape) - 1))]  # noqa: E731
    assert len(GuidedBackprop(model).explain(images, score)) == 1


def test_frames_along_time_are_told_what_can_be_explained():
    kernel = torch.ones(3, 3, 3, 1, 1)
    video = torch.rand(5, 3, 4, 4)
    model = lambda x: torch.relu(F.conv3d(x.transpose(0, 1)[None], kernel, padding=(1, 0, 0))[0].transpose(0, 1))  # noqa: E731
    with pytest.raises(ImageError, match=r"explain lambda images: torch\.stack\(\[model\(image\) for image in"):
        GuidedBackprop(model).explain(video, lambda y: y[:, 0, 0, 0])
    stacked = lambda images: torch.stack([model(image) for image in images])  # noqa: E731
    assert GuidedBackprop(stacked).explain(video[None], lambda y: y[:, 0, 0, 0, 0]).coverage


def test_planted_fault_images_that_are_not_compared(monkeypatch):
    monkeypatch.setattr(again, "is_same", lambda *_: True)
    assert Saliency(in_jax(normed)).explain(jnp.asarray(LAST), lambda y: y[:, 0, 0]).coverage
