"""A compiled method of JAX or TensorFlow explains as the method does, by one program; never by former weights."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import nnx
from numpy.testing import assert_allclose

import networks_jax
import networks_tensorflow
from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    ImageError,
    LabelError,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
)
from guided_backprop.backends.jax import fixed
from guided_backprop.backends.jax.backend import JaxBackend
from guided_backprop.backends.jax.fixed import JaxProgram
from guided_backprop.backends.tensorflow.backend import TensorFlowBackend
from guided_backprop.backends.tensorflow.fixed import TensorFlowProgram
from guided_backprop.methods import program
from guided_backprop.methods.timing import timed
from networks import IMAGES, LABELS, channels_last
from networks_flax import Nnx, linen

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
ROWS = channels_last(IMAGES).astype("f4")
RNG = np.random.default_rng(3)
KERNEL = RNG.normal(size=(3, 3, 3, 5)).astype("f4")
METHODS = {"saliency": Saliency, "deconvnet": DeconvNet, "guided": GuidedBackprop}


KINDS = {
    "jax": (lambda: networks_jax.net(jax.nn.relu), networks_jax.oracle, jnp.asarray),
    "tensorflow": (lambda: networks_tensorflow.small_net(tf.nn.relu), networks_tensorflow.small_oracle, tf.constant),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_is_fastest():
    """Let the program be the faster one, whatever else this machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "timed", lambda methods, images: dict.fromkeys(methods, 1.0) | {"compiled": 0.5})
        yield


@pytest.mark.parametrize("framework", KINDS)
def test_what_is_not_faster_runs_as_it_is_and_says_so(framework, monkeypatch):
    build, oracle, kind = KINDS[framework]
    runs = []

    def slow(self, inputs):
        runs.append(len(inputs["labels"]))
        time.sleep(0.2)
        return right[type(self)](self, inputs)

    right = {one: one.run for one in (JaxProgram, TensorFlowProgram)}
    for one in right:
        monkeypatch.setattr(one, "run", slow)
    monkeypatch.setattr(program, "timed", timed)
    compiled = GuidedBackprop(build(), reducer="mean").compile(kind(ROWS))
    assert compiled.compiled.times[framework] < compiled.compiled.times["compiled"]
    # It was compared, and timed, and is not run any more.
    assert runs
    runs.clear()
    explained = compiled.explain(kind(ROWS), LABELS)
    assert explained.engine == repr(compiled.compiled) == f"{framework}: faster as it is"
    assert_allclose(np.asarray(explained), oracle().mean(-1), **TOLERANCE)
    with pytest.raises(ImageError, match="finite"):
        compiled.explain(kind(ROWS * np.nan), LABELS)
    assert not runs
    # Where the program is the faster one, it is taken.
    monkeypatch.setattr(JaxBackend, "attribute", late(JaxBackend.attribute))
    monkeypatch.setattr(TensorFlowBackend, "attribute", late(TensorFlowBackend.attribute))
    for one, run in right.items():
        monkeypatch.setattr(one, "run", run)
    compiled = GuidedBackprop(build()).compile(kind(ROWS))
    assert compiled.explain(kind(ROWS), LABELS).engine.endswith(", compiled")


def late(function):
    def slow(*given, **named):
        time.sleep(0.2)
        return function(*given, **named)

    return slow


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("framework", KINDS)
def test_the_maps_are_those_of_the_oracle(framework, rule):
    build, oracle, kind = KINDS[framework]
    method = METHODS[rule](build())
    compiled = method.compile(kind(ROWS))
    explained = compiled.explain(kind(ROWS), LABELS)
    assert explained.engine == compiled.compiled.engine
    assert explained.engine.startswith(framework)
    assert explained.engine.endswith(", compiled")
    assert_allclose(np.asarray(explained), oracle(rule), **TOLERANCE)
    other = oracle("guided" if rule == "saliency" else "saliency")
    assert not np.allclose(np.asarray(explained), other, **TOLERANCE)
    assert explained.coverage == method.explain(kind(ROWS), LABELS).coverage
    # As what was given comes back, and another number of images is explained as well.
    assert isinstance(explained.attribution, type(kind(ROWS)))
    fewer = compiled.explain(kind(ROWS[1:]), LABELS[1:])
    assert fewer.engine == explained.engine
    assert_allclose(fewer.attribution, oracle(rule)[1:], **TOLERANCE)


@pytest.mark.parametrize("framework", KINDS)
def test_threads_share_it(framework):
    build, oracle, kind = KINDS[framework]
    compiled = GuidedBackprop(build()).compile(kind(ROWS))
    with ThreadPoolExecutor(4) as pool:
        rows = [slice(2), slice(4), slice(1, 3)] * 6
        maps = list(pool.map(lambda row: np.asarray(compiled.explain(kind(ROWS[row]), LABELS[row])), rows))
    for row, found in zip(rows, maps, strict=True):
        assert_allclose(found, oracle()[row], **TOLERANCE)


def positions(x):
    """Have scores at positions, and a softmax behind them."""
    y = jax.lax.conv_general_dilated(x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.softmax(jax.nn.relu6(y) @ jnp.asarray(KERNEL[0, 0].T @ KERNEL[1, 1]))


@pytest.fixture(scope="module")
def in_keras():
    keras.utils.set_random_seed(0)
    middle = [keras.layers.Conv2D(5, 3, 2), keras.layers.BatchNormalization(), keras.layers.ReLU(6.0)]
    return keras.Sequential([keras.layers.Input((8, 8, 3)), *middle, keras.layers.Dense(5, activation="softmax")])


ASKED = {
    "the top class": None,
    "one class": 2,
    "several": "top2",
    "pairs": [[0, 1]] * 4,
    "weights": None,
    "an entry": (1, 2, 1),
    "its maximum": (1, "max"),
    "a region": 1,
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, in_keras):
    kind = jnp.asarray if request.param == "jax" else np.asarray
    method = Saliency(positions if request.param == "jax" else in_keras, reducer="absmax")
    return kind, method, method.compile(kind(ROWS))


@pytest.mark.parametrize("asked", ASKED)
def test_all_labels(asked, both):
    kind, method, compiled = both
    images = kind(ROWS)
    shape = method.explain(images).outputs.shape
    labels = np.random.default_rng(0).normal(size=shape) if asked == "weights" else ASKED[asked]
    mask = np.arange(shape[1] * shape[2]).reshape(shape[1:3]) % 3 == 0 if asked == "a region" else None
    expected, explained = (one.explain(images, labels, mask=mask) for one in (method, compiled))
    assert explained.engine == compiled.compiled.engine
    for name in ("attribution", "scores", "outputs", "labels"):
        assert_allclose(np.asarray(getattr(explained, name)), np.asarray(getattr(expected, name)), **TOLERANCE)
    assert (explained.head, explained.coverage) == (expected.head, expected.coverage)


def test_what_no_program_is_runs_as_it_is_and_says_so(both):
    kind, method, compiled = both
    framework, score = ("jax", jnp.sum) if kind is jnp.asarray else ("tensorflow", tf.reduce_sum)
    larger = kind(np.concatenate([ROWS, ROWS], 1)) if framework == "jax" else ROWS.astype("f8")
    for given, labels, why in (
        (kind(ROWS), lambda output: score(output[:, :, :, 1], (1, 2)), "a function as label"),
        (larger, None, "images of another"),
    ):
        explained = compiled.explain(given, labels)
        assert explained.engine.startswith(f"{framework}: {why}")
        assert_allclose(np.asarray(explained), np.asarray(method.explain(given, labels)), rtol=1e-5, atol=1e-7)
    assert method.explain(kind(ROWS)).engine is None
    with pytest.raises(LabelError, match="in \\[0, 5\\)|in \\[0, 3\\)"):
        compiled.explain(kind(ROWS), 5)
    broken = ROWS.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="finite"):
        compiled.explain(kind(broken))


def test_ties():
    """A ReLU of 0 is closed, whatever computes it; of equal values a maximum takes the same."""
    weight = jnp.asarray([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])

    def in_jax(x):
        return jax.nn.relu(x @ weight) + jnp.maximum(x @ weight, 0.0)

    images = jnp.asarray([[1.0, -1.0], [0.0, 0.0], [2.0, 1.0]])
    for labels in (0, 1, [2, 1, 0]):
        explained = GuidedBackprop(in_jax).compile(images).explain(images, labels)
        opened = np.asarray(images @ weight) > 0
        ids = np.broadcast_to(labels, 3)
        wanted = 2 * np.asarray(weight).T[ids] * opened[np.arange(3), ids][:, None]
        np.testing.assert_array_equal(explained, wanted)


class Closure:
    """A function, and what it reads."""

    def __init__(self):
        self.array, self.shared = RNG.normal(size=(4, 3)).astype("f4"), jnp.array(RNG.normal(size=(3, 3)), "f4")
        held = self
        self.function = lambda rows: jax.nn.relu(rows @ held.array) @ held.shared


FEW = jnp.asarray(RNG.normal(size=(3, 4)), "f4")


def _kernel(model):
    return model.args[0]["params"]["Dense_0"]


def _unseen(array):
    """Change an array where JAX does not see it: as a tensor in the same memory."""
    torch.from_dlpack(array).neg_()


CHANGES = {
    "values": (Nnx, lambda model: model.first.kernel.__setitem__(..., model.first.kernel[...] * -1.5)),
    "unseen": (Nnx, lambda model: _unseen(model.first.kernel[...])),
    "an attribute": (Nnx, lambda model: setattr(model, "factor", -3.0)),
    "a part": (Nnx, lambda model: setattr(model, "first", nnx.Linear(4, 6, rngs=nnx.Rngs(7)))),
    "a parameter": (partial(linen, FEW), lambda model: _kernel(model).update(kernel=_kernel(model)["kernel"] * 2)),
    "an array of NumPy's": (Closure, lambda model: model.array.__imul__(-1)),
    "what a function reads": (Closure, lambda model: setattr(model, "shared", model.shared + 1)),
    "what it reads, unseen": (Closure, lambda model: _unseen(model.shared)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changed_is_an_error_in_jax(change):
    build, apply = CHANGES[change]
    model = build()
    method = GuidedBackprop(getattr(model, "function", model))
    compiled = method.compile(FEW)
    before = np.asarray(compiled.explain(FEW, 1))
    assert_allclose(before, method.explain(FEW, 1), **TOLERANCE)
    apply(model)
    for rows, labels in ((FEW, 1), (FEW[:2], 1), (FEW, 99), (FEW, lambda output: output[:, 0])):
        with pytest.raises(ModelError, match="changed since"):
            compiled.explain(rows, labels)
    again = method.compile(FEW).explain(FEW, 1)
    assert_allclose(again, method.explain(FEW, 1), **TOLERANCE)
    assert not np.allclose(again, before, **TOLERANCE)


def test_what_is_equal_is_no_change_in_jax():
    model = Nnx()
    compiled = GuidedBackprop(model).compile(FEW)
    before = np.asarray(compiled.explain(FEW, 1))
    model.first.kernel[...] = jnp.array(model.first.kernel[...])
    np.testing.assert_array_equal(compiled.explain(FEW, 1), before)
    assert compiled.explain(FEW, 1).engine == compiled.compiled.engine
    model.first.kernel[...] = model.first.kernel[...] + 1e-6
    with pytest.raises(ModelError, match="changed since"):
        compiled.explain(FEW, 1)


def test_a_model_that_changed_is_an_error_in_tensorflow():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3)])
    method = GuidedBackprop(model)
    compiled = method.compile(np.asarray(FEW))
    before = np.asarray(compiled.explain(np.asarray(FEW), 1))
    kernel = model.layers[0].kernel
    kept = kernel.numpy()
    kernel.assign(-kept)
    for labels in (1, 99, lambda output: output[:, 0]):
        with pytest.raises(ModelError, match="changed since"):
            compiled.explain(np.asarray(FEW), labels)
    again = method.compile(np.asarray(FEW)).explain(np.asarray(FEW), 1)
    assert_allclose(again, method.explain(np.asarray(FEW), 1), **TOLERANCE)
    assert not np.allclose(again, before, **TOLERANCE)
    kernel.assign(kept)
    np.testing.assert_array_equal(compiled.explain(np.asarray(FEW), 1), before)


def test_a_program_for_other_images_is_not_made_of_what_changed_meanwhile(monkeypatch):
    """Weights that change after they were looked at, and back before the next look, are in no program that is kept."""
    model = Nnx()
    compiled = GuidedBackprop(model).compile(FEW)
    right = np.asarray(GuidedBackprop(model).explain(FEW[:2], 1))
    make = fixed.JaxProgram._make
    kept = model.first.kernel[...]

    def changing(self, *given):
        model.first.kernel[...] = -kept
        try:
            return make(self, *given)
        finally:
            model.first.kernel[...] = kept

    with monkeypatch.context() as changed:
        changed.setattr(fixed.JaxProgram, "_make", changing)
        with pytest.raises(ModelError, match="changed since"):
            compiled.explain(FEW[:2], 1)
    assert_allclose(compiled.explain(FEW[:2], 1), right, **TOLERANCE)


FAULTS = {
    "another class": ("of_classes", lambda output, ids, axis: jnp.ones_like(output)),
    "other outputs": ("_readable", lambda output: output * 1.01),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_that_explains_otherwise_is_refused(fault, monkeypatch):
    monkeypatch.setattr(fixed, *FAULTS[fault])
    with pytest.raises(ModelError, match="a graph must give the maps that explain"):
        GuidedBackprop(Nnx()).compile(FEW)


def test_a_program_with_another_rule_is_refused(monkeypatch):
    model, prepared = Nnx(), JaxBackend.prepared
    plain = Saliency(model).rule
    monkeypatch.setattr(
        fixed.JaxProgram,
        "_prepared",
        lambda self, given: prepared(self._backend, given, (plain,), undo_head=True),
    )
    with pytest.raises(ModelError, match="a graph must treat what explain"):
        GuidedBackprop(model).compile(FEW)


def test_what_does_something_else_with_another_number_of_images_runs_as_it_is():
    def by_number(rows):
        return (
            jax.nn.relu(rows @ jnp.ones((4, 3))) if len(rows) > 2 else jax.nn.relu(jax.nn.relu(rows) @ jnp.ones((4, 3)))
        )

    method = GuidedBackprop(by_number)
    compiled = method.compile(FEW)
    explained = compiled.explain(FEW[:2], 1)
    assert explained.engine == "jax: 2 images, of which the model makes something else"
    np.testing.assert_array_equal(explained, method.explain(FEW[:2], 1))


def test_a_model_that_is_another_one_in_each_trace_is_not_compiled():
    turns = iter(range(1, 1000))

    def turning(rows):
        return jax.nn.relu(rows * next(turns))

    with pytest.raises(ModelError, match="stay as it is|changed since"):
        GuidedBackprop(turning).compile(FEW)


def test_what_is_refused(in_keras):
    for method, images in ((GuidedBackprop(Nnx()), FEW), (GuidedBackprop(in_keras), ROWS)):
        with pytest.raises(OptionError, match="engine must be auto"):
            method.compile(images, engine="onnxruntime")
        with pytest.raises(ImageError, match="single precision"):
            method.compile(np.asarray(images, "f8"))
        with pytest.raises(ImageError, match="must not be empty"):
            method.compile(images[:0])
    with pytest.raises(OptionError, match="a method of one pass"):
        GradCAM(in_keras, layer=0).compile(ROWS)


def test_in_training_it_is_refused_as_ever():
    class Normed(Nnx):
        def __init__(self):
            super().__init__()
            self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, rows):
            return super().__call__(self.norm(rows))

    model = Normed()
    model.eval()
    compiled = GuidedBackprop(model).compile(FEW)
    model.train()
    with pytest.raises(ModelError, match="eval mode"):
        compiled.explain(FEW, 1)
    model.eval()
    assert compiled.explain(FEW, 1).engine == compiled.compiled.engine


def test_copies_and_what_is_built_around_it():
    compiled = GuidedBackprop(networks_jax.net(jax.nn.relu)).compile(jnp.asarray(ROWS))
    assert compiled.around(compiled.subject.model).compiled is None
    assert pickle.loads(pickle.dumps(compiled.compiled)) is None
    smooth = SmoothGrad(compiled, samples=2, seed=0).explain(jnp.asarray(ROWS), 1)
    plain = SmoothGrad(compiled.as_it_is(), samples=2, seed=0).explain(jnp.asarray(ROWS), 1)
    assert_allclose(smooth, plain, **TOLERANCE)
