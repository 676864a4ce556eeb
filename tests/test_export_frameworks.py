"""Explanations of JAX as StableHLO, of TensorFlow and Keras as a SavedModel: the maps that ``explain`` gives."""

import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx
from numpy.testing import assert_allclose

from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputXGradient,
    ModelError,
    OptionError,
    OutputExistsError,
    RectGrad,
    Saliency,
    SmoothGrad,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends.jax import any_size
from guided_backprop.backends.jax import export as jax_export
from guided_backprop.backends.tensorflow import export as tensorflow_export
from guided_backprop.backends.tensorflow import maps as tensorflow_maps
from guided_backprop.export.agreement import difference
from guided_backprop.jax import tap

RNG = np.random.default_rng(0)
KERNEL, DENSE = RNG.normal(size=(3, 3, 3, 8)).astype("f4"), RNG.normal(size=(8, 5)).astype("f4")
IMAGES = RNG.normal(size=(3, 11, 10, 3)).astype("f4")
IN_JAX = jnp.asarray(IMAGES)


def in_jax(x):
    """Have a ReLU spelled by ``where``, a norm and a softmax."""
    y = jax.lax.conv_general_dilated(x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jnp.where(y > 0, y, 0)
    y = tap("conv", jax.nn.relu(y - y.mean((1, 2), keepdims=True)))
    return jax.nn.softmax(y.mean((1, 2)) @ DENSE)


@pytest.fixture(scope="module")
def in_keras():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    middle = [
        layers.Conv2D(8, 3, 2, name="conv"),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.GlobalMaxPooling2D(),
    ]
    return keras.Sequential([layers.Input((11, 10, 3)), *middle, layers.Dense(5, activation="softmax")])


class InTensorFlow(tf.Module):
    """Have a ReLU in a loop, and an output for each position."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(KERNEL)

    @tf.function
    def __call__(self, x):
        y = tf.nn.relu(tf.nn.conv2d(x, self.kernel, 1, "SAME"))
        for _ in tf.range(2):
            y = tf.nn.relu(y - 0.1)
        return y


def positions(x):
    return jax.nn.relu(jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC")))


def test_other_forms_of_models_in_jax(tmp_path):
    def both(a, b):
        return jax.nn.relu(a @ DENSE) + jax.nn.relu(b @ DENSE)

    inputs = {"a": jnp.asarray(DENSE.T[:3]), "b": jnp.asarray(DENSE.T[2:])}
    exported = DeconvNet(both).export(tmp_path / "two.stablehlo", inputs)
    assert exported.inputs == ("images_a", "images_b", "labels")
    assert exported.outputs == ("outputs", "attribution_a", "attribution_b", "scores", "is_finite")
    GuidedBackprop(positions).export(tmp_path / "positions.stablehlo", IN_JAX)
    GuidedBackprop(positions, reducer="absmax").export(tmp_path / "w.stablehlo", IN_JAX, labels="weights")


def test_a_program_of_jax_says_which_weights_it_has(tmp_path):
    """Those of a module, and those that a function only refers to; the fault would be one digest for all, or none."""
    network = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    def said(name, model):
        GuidedBackprop(model).export(tmp_path / f"{name}.stablehlo", IN_JAX[0, 0])
        return json.loads((tmp_path / f"{name}.json").read_text())["weights"]

    first, again = (said(name, lambda x: jax.nn.relu(network(x))) for name in ("first", "again"))
    network.kernel[...] = network.kernel[...] * 1.001
    assert len(first) == 64
    assert first == again != said("changed", lambda x: jax.nn.relu(network(x)))


def test_other_forms_of_models_in_tensorflow(tmp_path):
    exported = GuidedBackprop(InTensorFlow(), reducer="absmax").export(tmp_path / "map", IMAGES, labels="weights")
    assert exported.difference < 1e-5
    with pytest.raises(OutputExistsError, match="path must not be a folder that exists"):
        GuidedBackprop(InTensorFlow()).export(tmp_path / "map", IMAGES)


def test_what_is_refused(in_keras, tmp_path):
    with pytest.raises(OptionError, match=r"a file that ends in \.stablehlo, for a model of jax"):
        GuidedBackprop(in_jax).export(tmp_path / "map.onnx", IN_JAX)
    with pytest.raises(OptionError, match="a folder, whose name has no ending, for a model of tensorflow.* ONNX has"):
        GuidedBackprop(in_keras).export(tmp_path / "map.tflite", IMAGES)

    def calling(x):
        told = jax.ShapeDtypeStruct((len(x), 5), x.dtype)
        return in_jax(x) + jax.pure_callback(np.sin, told, jax.lax.stop_gradient(x[:, 0, :5, 0]))

    with pytest.raises(ModelError):
        GuidedBackprop(calling).export(tmp_path / "map.stablehlo", IN_JAX)

    def of_the_batch(x):
        return in_jax(x) * (1 + jax.lax.stop_gradient(x).mean())

    with pytest.raises(ModelError, match="a graph must give the maps that explain"):
        GuidedBackprop(of_the_batch).export(tmp_path / "map.stablehlo", IN_JAX)

    one = tf.function(lambda x: tf.nn.relu(tf.reshape(x, [3, 330])), input_signature=[tf.TensorSpec(IMAGES.shape)])
    with pytest.raises(ModelError, match="for 1 images of 11x10x3 in tensorflow"):
        GuidedBackprop(one).export(tmp_path / "map", IMAGES)
    assert list(tmp_path.iterdir()) == []


ALONE = "the map itself"
METHODS = {
    ALONE: GuidedBackprop,
    "a layer": lambda model: GradCAM(model, "conv"),
    "a product": lambda model: GuidedGradCAM(model, "conv", interpolation="nearest"),
    "the variance of products": lambda model: SmoothGrad(
        GuidedGradCAM(model, "conv", reducer="absmax"), samples=3, form="variance"
    ),
    "copies": lambda model: SmoothGrad(GuidedBackprop(model), samples=3, form="absolute"),
    "times the image": lambda model: InputXGradient(Saliency(model, reducer="sum")),
}
# Whatever computes, none of it is this library: it runs each file for each number of images.
RELOADED = """
import json, sys
import numpy as np
given, found = np.load(sys.argv[3]), {}
for way, path in json.loads(sys.argv[2]).items():
    if sys.argv[1] == "jax":
        from jax import export
        program = export.deserialize(bytearray(open(path, "rb").read()))
    else:
        import tensorflow as tf
        program = tf.saved_model.load(path).signatures["serving_default"]
    for count in (1, 3, 17):
        more = [given[f"noise {count}"]] if "noise" in way else []
        images, labels = given[f"images {count}"], given[f"{'asked' if way == sys.argv[5] else 'labels'} {count}"]
        if sys.argv[1] == "jax":
            outputs, maps, scores, is_finite = program.call(images, labels.astype("i4"), *more)
        else:
            named = dict(zip(["images", "labels", "noise"], [images, labels, *more]))
            results = program(**{name: tf.constant(one) for name, one in named.items()})
            outputs, maps, scores, is_finite = (
                results[name] for name in ("outputs", "attribution", "scores", "is_finite"))
        assert np.asarray(is_finite).all()
        found |= {f"{way} {count}": np.asarray(maps), f"{way} {count} scores": np.asarray(scores)}
        if way == sys.argv[5]:
            found[f"outputs {count}"] = np.asarray(outputs)
assert not any(name.startswith("guided_backprop") for name in sys.modules)
np.savez(sys.argv[4], **found)
"""


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_maps_where_the_library_is_not(framework, in_keras, tmp_path):
    model, kind = (in_jax, jnp.asarray) if framework == "jax" else (in_keras, np.asarray)
    methods = {way: make(model) for way, make in METHODS.items()}
    files, given = {}, {}
    for way, method in methods.items():
        noise = method.plan.noise
        name = f"{way}, noise" if noise is not None else way
        files[name] = str(tmp_path / f"{len(files)}{'.stablehlo' if framework == 'jax' else ''}")
        exported = method.export(files[name], kind(IMAGES))
        assert exported.counts == ([1, 3, 17] if noise is None else [1, 3, 6])
        assert exported.difference < 1e-5
        assert exported.coverage == method.explain(kind(IMAGES)).coverage
        for count in (1, 3, 17):
            images = np.random.default_rng(count).normal(size=(count, 11, 10, 3)).astype("f4")
            given[f"images {count}"] = images
            if noise is not None:
                given[f"noise {count}"] = np.float32(noise.drawn(Inputs.of(images))[0])
    beside = "0/assets.extra/guided_backprop.json" if framework == "tensorflow" else "0.json"
    assert json.loads((tmp_path / beside).read_text())["head"] == "softmax"
    for count in (1, 3, 17):
        labels = np.arange(count) % 5
        # Of some the class with the highest score is asked for.
        top = methods[ALONE].explain(kind(given[f"images {count}"])).labels
        given[f"asked {count}"], given[f"labels {count}"] = (np.where(labels == 1, one, labels) for one in (-1, top))
    np.savez(tmp_path / "given.npz", **given)
    where = [framework, json.dumps(files), str(tmp_path / "given.npz"), str(tmp_path / "found.npz"), ALONE]
    done = subprocess.run([sys.executable, "-c", RELOADED, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, method in zip(files, methods.values(), strict=True):
        for count in (1, 3, 17):
            wanted = method.explain(kind(given[f"images {count}"]), given[f"labels {count}"])
            maps, scores = found[f"{name} {count}"], found[f"{name} {count} scores"]
            assert difference([maps, scores], [np.asarray(wanted.attribution), wanted.scores]) < 1e-5
            if name == ALONE:
                assert_allclose(found[f"outputs {count}"], wanted.outputs, rtol=1e-5)
            # Planted faults: of other classes, and by other methods.
            other = method.explain(kind(given[f"images {count}"]), (given[f"labels {count}"] + 1) % 5)
            assert difference([maps], [np.asarray(other.attribution)]) > 1e-2
        alike = [one for one in files if one != name and found[f"{one} 3"].shape == found[f"{name} 3"].shape]
        assert all(difference([found[f"{one} 3"]], [found[f"{name} 3"]]) > 1e-2 for one in alike)


@pytest.mark.parametrize("fault", ["_fitted", "_moment", "_positive"])
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_planted_faults_of_maps_are_seen(framework, fault, in_keras, tmp_path, monkeypatch):
    module = jax_export if framework == "jax" else tensorflow_export
    model, images = (in_jax, IN_JAX) if framework == "jax" else (in_keras, IMAGES)
    name = fault if framework == "jax" else fault.removeprefix("_")
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: right(*given) * 1.01)
    method = SmoothGrad(GradCAM(model, "conv"), samples=2)
    with pytest.raises(ModelError, match=f"difference of .* for 1 images of 11x10x3 in {framework}"):
        method.export(tmp_path / ("map.stablehlo" if framework == "jax" else "map"), images)
    assert not list(tmp_path.iterdir())


def test_one_of_several_inputs_has_positions(tmp_path):
    def both(images, rows):
        y = tap("positions", jax.nn.relu(positions(images)))
        return y.mean((1, 2)) @ DENSE + jax.nn.relu(rows @ DENSE)

    inputs = {"images": IN_JAX, "rows": jnp.asarray(DENSE.T[:3])}
    product = GuidedGradCAM(both, "positions").export(tmp_path / "product.stablehlo", inputs)
    assert product.outputs == ("outputs", "attribution_images", "scores", "is_finite")
    copies = SmoothGrad(Saliency(both), samples=2).export(tmp_path / "copies.stablehlo", inputs)
    assert copies.inputs == ("images_images", "images_rows", "labels", "noise_images", "noise_rows")


@pytest.fixture(scope="module")
def of_any_size():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    first = [layers.Conv2D(16, 3, 2, padding="same", activation="relu"), layers.MaxPooling2D(3, 2, padding="same")]
    middle = [layers.Conv2D(16, 3, 1, name="conv"), layers.BatchNormalization(), layers.ReLU(), layers.UpSampling2D(3)]
    return keras.Sequential([
        layers.Input((None, None, 3)), *first, *middle, layers.AveragePooling2D(2), layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax"),
    ])  # fmt: skip


LARGER = RNG.normal(size=(2, 26, 31, 3)).astype("f4")
AT_ANY_SIZE = {
    "the gradient": GuidedBackprop,
    "a map": lambda model: GradCAM(model, "conv"),
    "the nearest": lambda model: GuidedGradCAM(model, "conv", interpolation="nearest", reducer="sum"),
    "copies": lambda model: SmoothGrad(GuidedBackprop(model), samples=2, form="squared"),
}


@pytest.mark.parametrize("way", AT_ANY_SIZE)
def test_a_saved_model_of_any_size(way, of_any_size, tmp_path):
    method = AT_ANY_SIZE[way](of_any_size)
    exported = method.export(tmp_path / "map", LARGER, sizes="dynamic")
    assert exported.least_sizes == [[13, 15]]
    explain = tf.saved_model.load(str(tmp_path / "map")).signatures["serving_default"]
    noise = method.plan.noise
    for count, sizes in ((1, (13, 15)), (3, (29, 20)), (17, (40, 53)), (1, (27, 14))):
        images, labels = RNG.normal(size=(count, *sizes, 3)).astype("f4"), np.arange(count) % 5
        more = {} if noise is None else {"noise": tf.constant(noise.drawn(Inputs.of(images))[0], tf.float32)}
        results = explain(images=tf.constant(images), labels=tf.constant(labels), **more)
        wanted = method.explain(images, labels)
        found = [results[name].numpy() for name in exported.outputs[:-1]]
        assert difference(found, [wanted.outputs, wanted.attribution, wanted.scores]) < 1e-4
        assert results["is_finite"].numpy().all() == (sizes[1] >= 15)
        # A planted fault: of other classes.
        other = method.explain(images, (labels + 1) % 5).attribution
        assert count == 1 or difference(found[1:2], [other]) > 1e-2


def test_what_holds_for_one_size_is_refused(of_any_size, tmp_path, monkeypatch):
    path, layers = tmp_path / "map", keras.layers
    first = [layers.Input((26, 31, 3)), layers.Conv2D(2, 3), layers.ReLU(), layers.Flatten()]
    with pytest.raises(ModelError, match="for 2 images of 13x15x3"):
        GuidedBackprop(keras.Sequential([*first, layers.Dense(3)])).export(path, LARGER, sizes="dynamic")

    def of_one_size(x):
        return tf.reduce_mean(tf.nn.relu(x - 0.5) * (2 if x.shape[1] == 26 else 1), (1, 2))

    with pytest.raises(ModelError, match="for 1 images of 26x31x3"):
        GuidedBackprop(of_one_size).export(path, tf.constant(LARGER), sizes="dynamic")
    # A planted fault: what is right for the example's size alone.
    right = tensorflow_maps.matrix

    def wrong(positive, place, images, *more):
        return right(positive, place, images, *more) * (1 + 0.01 * tf.cast(tf.shape(images)[1] != 26, tf.float32))

    monkeypatch.setattr(tensorflow_maps, "matrix", wrong)
    with pytest.raises(ModelError, match="for 2 images of 13x15x3"):
        GradCAM(of_any_size, "conv").export(path, LARGER, sizes="dynamic")
    assert not list(tmp_path.iterdir())


def any_sized(x):
    """Have strides of all kinds, a pool, a ReLU spelled by ``where``, and a mean over all positions."""
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, KERNEL, (2, 2), "SAME", dimension_numbers=dims)
    y = jnp.where(y > 0, y, 0)
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 3, 2, 1), (1, 1, 2, 1), "VALID")
    y = y - y.mean((1, 2), keepdims=True)
    y = jax.lax.conv_general_dilated(y, WIDE, (3, 1), ((1, 1), (0, 1)), dimension_numbers=dims, feature_group_count=2)
    return jax.nn.softmax(jax.nn.relu6(y).mean((1, 2)) @ DENSE)


WIDE = RNG.normal(size=(3, 2, 4, 8)).astype("f4")
ROOMY = RNG.normal(size=(2, 20, 23, 3)).astype("f4")


def positioned(x):
    """Have an output for each position, which is moved behind it."""
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.nn.relu(jax.lax.conv_general_dilated(x, KERNEL, (2, 2), "SAME", dimension_numbers=dims))
    return jnp.transpose(jax.nn.relu6(y), (0, 3, 1, 2))


def nnx_network():
    rngs = nnx.Rngs(0)
    convolution = partial(nnx.Conv, strides=2, rngs=rngs)
    layers = [convolution(3, 6, (3, 3)), nnx.BatchNorm(6, use_running_average=True, rngs=rngs), nnx.relu]
    layers += [convolution(6, 8, (3, 3)), nnx.relu, lambda y: y.mean((1, 2)), nnx.Linear(8, 5, rngs=rngs)]
    return nnx.Sequential(*layers)


def copied(model):
    return SmoothGrad(DeconvNet(model), samples=2)


# Each rule, each network, and copies.
JAX_AT_ANY_SIZE = [(any_sized, GuidedBackprop), (any_sized, copied), (positioned, Saliency), (nnx_network, copied)]


@pytest.mark.parametrize(("network", "method"), JAX_AT_ANY_SIZE)
def test_programs_of_jax_for_images_of_any_size(network, method, tmp_path):
    method = method(network() if network is nnx_network else network)
    exported = method.export(tmp_path / "map.stablehlo", jnp.asarray(ROOMY), sizes="dynamic")
    assert exported.least_sizes == [[10, 11]]
    assert exported.coverage == method.explain(jnp.asarray(ROOMY)).coverage
    run = jax_export.StableHlo(exported.path, exported.outputs)
    for sizes in ((10, 11), (41, 38)):
        images = RNG.normal(size=(3, *sizes, 3)).astype("f4")
        noise = method.plan.noise
        more = [] if noise is None else noise.drawn(Inputs.of(images))
        results = run.run(dict(enumerate([images, np.arange(3), *more])))
        wanted = method.explain(jnp.asarray(images), np.arange(3))
        found = [results[name] for name in ("outputs", "attribution", "scores")]
        assert difference(found, [wanted.outputs, np.asarray(wanted), wanted.scores]) < 1e-4
        other = method.explain(jnp.asarray(images), np.arange(1, 4))
        assert difference([results["attribution"]], [np.asarray(other)]) > 1e-2
    with pytest.raises(ValueError, match="refining shapes|size_0_1"):
        run.run(dict(enumerate([images[:, :9], np.arange(3), *[one[:, :, :9] for one in more]])))


def flat(x):
    return jax.nn.relu(x.reshape(len(x), -1) @ FLAT)


FLAT = RNG.normal(size=(20 * 23 * 3, 4)).astype("f4")
OF_ONE_SIZE = {
    "weights for each position": (flat, "cannot be traced so"),
    "a size that is asked for": (
        lambda x: jax.nn.relu(x.mean((1, 2)) @ DENSE[:3] * (2 if x.shape[1] > 15 else 1)),
        "cannot",
    ),
    "another step for other sizes": (
        lambda x: (jnp.tanh if isinstance(x.shape[1], int) else jnp.sin)(jax.nn.relu(x.mean((1, 2)) @ DENSE[:3])),
        "something else for other sizes",
    ),
}


@pytest.mark.parametrize("why", OF_ONE_SIZE)
def test_what_holds_for_one_size_is_refused_in_jax(why, tmp_path):
    model, message = OF_ONE_SIZE[why]
    GuidedBackprop(model).export(tmp_path / "fixed.stablehlo", jnp.asarray(ROOMY))
    with pytest.raises(ModelError, match=message):
        GuidedBackprop(model).export(tmp_path / "map.stablehlo", jnp.asarray(ROOMY), sizes="dynamic")
    assert not (tmp_path / "map.stablehlo").exists()


OF_NO_SIZES = {
    "no positions": (GuidedBackprop, "ids", "is for images with positions"),
    "weights of positions": (GuidedBackprop, "weights", "for labels that have none"),
    "ranks": (RectGrad, "ids", "each value alone; received rectified, which ranks"),
}


@pytest.mark.parametrize("why", OF_NO_SIZES)
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_what_has_no_sizes_to_be_free_is_refused(framework, why, tmp_path):
    made, labels, message = OF_NO_SIZES[why]
    model, images = (positions, IN_JAX) if framework == "jax" else (InTensorFlow(), IMAGES)
    method = made(model)
    if why == "no positions":
        relu, given = (jax.nn.relu, jnp.asarray) if framework == "jax" else (tf.nn.relu, tf.constant)
        method, images = GuidedBackprop(lambda x: relu(x)), given(IMAGES[:, 0, 0])
    with pytest.raises(OptionError, match=message):
        method.export(tmp_path / f"map{'.stablehlo' * (framework == 'jax')}", images, sizes="dynamic", labels=labels)
    assert not list(tmp_path.iterdir())


def tapped(x):
    """Have strides in front of a layer, and behind it."""
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = tap("conv", jax.nn.relu(convolve(x, KERNEL, (2, 2), "SAME")))
    return jax.nn.relu(convolve(y, WIDE, (2, 1), "SAME", feature_group_count=2)).mean((1, 2)) @ DENSE


MAPS_AT_ANY_SIZE = {
    "linear": GradCAM(tapped, "conv"),
    "nearest": GuidedGradCAM(tapped, "conv", interpolation="nearest", reducer="sum"),
}


@pytest.mark.parametrize("way", MAPS_AT_ANY_SIZE)
def test_maps_at_layers_of_any_size_in_jax(way, tmp_path, monkeypatch):
    method = MAPS_AT_ANY_SIZE[way]
    exported = method.export(tmp_path / "map.stablehlo", jnp.asarray(ROOMY), sizes="dynamic")
    run = jax_export.StableHlo(exported.path, exported.outputs)
    images = RNG.normal(size=(3, 17, 38, 3)).astype("f4")
    results = run.run({"images": images, "labels": np.arange(3)})
    wanted = method.explain(jnp.asarray(images), np.arange(3))
    assert difference([results["attribution"]], [np.asarray(wanted)]) < 1e-4
    other = method.explain(jnp.asarray(images), np.arange(1, 4))
    assert difference([results["attribution"]], [np.asarray(other)]) > 1e-2
    # A planted fault: right for the example's size alone.
    right = any_size.between
    monkeypatch.setattr(jax_export, "between", lambda *sizes, **more: right(*sizes, **more) ** 2 * 1.01)
    with pytest.raises(ModelError, match="difference of"):
        method.export(tmp_path / "other.stablehlo", jnp.asarray(ROOMY), sizes="dynamic")


def test_weights_for_images_of_any_size_in_jax(tmp_path):
    method, images = GuidedBackprop(any_sized), RNG.normal(size=(2, 17, 31, 3)).astype("f4")
    exported = method.export(tmp_path / "map.stablehlo", jnp.asarray(ROOMY), sizes="dynamic", labels="weights")
    weights = RNG.normal(size=(2, 5)).astype("f4")
    run = jax_export.StableHlo(exported.path, exported.outputs)
    found = run.run({"images": images, "labels": weights})["attribution"]
    assert difference([found], [np.asarray(method.explain(jnp.asarray(images), weights))]) < 1e-4
    assert difference([found], [np.asarray(method.explain(jnp.asarray(images), -weights))]) > 1e-2


def shifted(*given):
    return jnp.roll(any_size_convolved(*given), 1, 2)


any_size_convolved = any_size._convolved
FAULTS_OF_SIZES = {
    "gates are left behind": (any_size, "_of_images", lambda program: []),
    "strides lie elsewhere": (any_size, "_convolved", shifted),
}


@pytest.mark.parametrize("fault", FAULTS_OF_SIZES)
def test_planted_faults_of_any_size_are_seen_in_jax(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(*FAULTS_OF_SIZES[fault])
    with pytest.raises(ModelError, match="difference|instead of"):
        GuidedBackprop(any_sized).export(tmp_path / "map.stablehlo", jnp.asarray(ROOMY), sizes="dynamic")
    assert not list(tmp_path.iterdir())
