"""TensorFlow: what the argument of backends/spelling.py finds, member by member, and what it leaves alone."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

from guided_backprop import GuidedBackprop, ModelError, OpaqueRegionError, Saliency
from guided_backprop.backends import nomination, step
from guided_backprop.backends.spelling import Judgement, Verdict
from guided_backprop.backends.tensorflow.hidden import behind, taint, values
from networks import mlp
from networks_tensorflow import to_tensorflow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RNG = np.random.default_rng(0)
SMALL = mlp(6, 8, 8, 4)
IMAGES = tf.constant(RNG.normal(size=(9, 6)))
WEIGHTS = RNG.normal(size=(9, 4))
TABLE = RNG.normal(size=(8, 8))
SCALE = np.linspace(0.5, 1.5, 8)
TWICE = RNG.normal(size=(16, 8))


def net(inside, relu=tf.nn.relu):
    """A ReLU with something behind it."""
    return to_tensorflow(SMALL, inside, relu)


@tf.custom_gradient
def by_hand(x):
    return tf.maximum(x, 0.0), lambda g: tf.maximum(g, 0.0) * tf.cast(x > 0, g.dtype)


def expected(inside):
    with tf.GradientTape() as tape:
        tape.watch(IMAGES)
        outputs = net(inside, by_hand)(IMAGES)
    return tape.gradient(outputs, IMAGES, tf.constant(WEIGHTS)).numpy()


def mask(x):
    return tf.cast(x > 0, x.dtype)


def stacked(x):
    return tf.stack([x, tf.zeros_like(x)], -1)


def flat(function):
    return lambda x: tf.reshape(function(tf.reshape(x, [-1])), tf.shape(x))


def places(v):
    return tf.where(v > 0)


def partitioned(v):
    which = tf.cast(v > 0, tf.int32)
    parts, indices = tf.dynamic_partition(v, which, 2), tf.dynamic_partition(tf.range(tf.size(v)), which, 2)
    return tf.dynamic_stitch(indices, [tf.zeros_like(parts[0]), parts[1]])


def segmented(v):
    kept = v > 0
    return tf.math.unsorted_segment_sum(tf.boolean_mask(v, kept), tf.where(kept)[:, 0], tf.size(v))


def called_out(x):
    kept = tf.numpy_function(lambda values: (values > 0).astype(values.dtype), [x], x.dtype)
    return x * tf.ensure_shape(kept, x.shape)


def looped(x):
    kept = mask(x)
    return tf.while_loop(lambda turn, y: turn < 1, lambda turn, y: (turn + 1, y * kept), (0, x))[1]


def cut(v):
    return tf.while_loop(lambda y: y < 0, lambda y: [y * 0.0], [v])[0]


def cropped(x):
    ramp, y = tf.reshape(tf.range(64.0), [1, 64, 1, 1]), tf.cast(tf.reshape(x, [-1]), tf.float32) / 63
    boxes = tf.stack([y, tf.zeros_like(y), y, tf.zeros_like(y)], 1)
    crops = tf.image.crop_and_resize(ramp, boxes, tf.zeros([tf.size(x)], tf.int32), [1, 1])
    return tf.cast(tf.reshape(crops, tf.shape(x)), x.dtype)


def quantised(x, low=0.0, high=6.0):
    return tf.cast(tf.quantization.fake_quant_with_min_max_args(tf.cast(x, tf.float32), low, high), x.dtype)


def signed(x):
    """A value of both signs that is made of one that is never negative."""
    signs = tf.one_hot(tf.cast(tf.reverse(x, [-1]) > 0, tf.int32), 2, 1.0, -1.0, dtype=x.dtype)[..., 1]
    return tf.exp(x) * signs


def next_number(x):
    """A mask that is made without a comparison: the number next to 1, towards one that is larger or smaller."""
    step = (tf.math.nextafter(tf.ones_like(x), 1.0 + x) - 1.0) / np.finfo(np.float64).eps
    return x * (step + 0.5) / 1.5


def response_norm_of_one(x):
    y = tf.cast(tf.reshape(x, [-1, 1, 1, 1]), tf.float32)
    sign = tf.reshape(tf.nn.local_response_normalization(y, 0, 0.0, 1.0, 0.5), tf.shape(x))
    return x * (1.0 + tf.cast(sign, x.dtype)) / 2.0


ONE = tf.ones([1, 1, 1, 1], tf.float64)


def spread(x):
    """Put zeros beside each number of x, by a convolution that is transposed; return the larger of each two."""
    y = tf.reshape(x, [1, 1, -1, 1])
    wide = tf.nn.conv2d_transpose(y, ONE, tf.shape(y) * [1, 1, 2, 1], [1, 1, 2, 1], "VALID")
    return tf.reshape(tf.nn.max_pool2d(wide, [1, 2], [1, 2], "VALID"), tf.shape(x))


def bordered(x, kernel=ONE):
    """Put zeros around each number of x, by the padding of a convolution."""
    return tf.nn.conv2d(tf.reshape(x, [-1, 1, 1, 1]), kernel, 1, [[0, 0], [1, 1], [1, 1], [0, 0]])


def chosen_twice(x):
    is_open = tf.math.ceil(tf.tanh(x)) > 0.5
    return tf.where(is_open, tf.where(is_open, x, 1.0), 0.0)


SPELLED = {
    "a transposed convolution": spread,
    "the border of a convolution": lambda x: tf.reshape(tf.reduce_max(bordered(x), [1, 2, 3]), tf.shape(x)),
    "a pool over such a border": lambda x: tf.reshape(tf.nn.max_pool2d(bordered(x), 3, 3, "VALID"), tf.shape(x)),
    "a choice of what was kept from where it is not defined": chosen_twice,
    "the largest of its multiples": lambda x: (x + tf.reduce_max(x[..., None] @ [[1.0, -1.0]], -1)) / 2.0,
    "a mask that is scaled": lambda x: x * (mask(x) * SCALE) / SCALE,
    "a mask that is padded": lambda x: (tf.pad(x, [[0, 0], [1, 1]]) * tf.pad(mask(x), [[0, 0], [1, 1]]))[:, 1:-1],
    "a mask that is tiled": lambda x: (tf.tile(x, [1, 2]) * tf.tile(mask(x), [1, 2]))[:, :8],
    "a mask that is concatenated": lambda x: (tf.concat([x, -x], 1) * tf.concat([mask(x), mask(-x)], 1))[:, :8],
    "a mask in a matrix product": lambda x: tf.linalg.matvec(tf.linalg.diag(mask(x)), x),
    "a mask in an einsum": lambda x: tf.einsum("nc,ncd->nd", x, tf.linalg.diag(mask(x))),
    "a mask and its opposite": lambda x: tf.concat([x, x], -1) * tf.concat([mask(x), 1.0 - mask(x)], -1) @ TWICE,
    "both of two": lambda x: tf.reshape(x[..., None] * tf.stack([mask(x), 1.0 - mask(x)], -1), [-1, 16]) @ TWICE,
    "a side of its own for each channel": lambda x: x * tf.cast((x > 0) == (np.arange(8) % 2 > 0), x.dtype),
    "of what a one-hot gives signs": lambda x: (signed(x) + tf.abs(signed(x))) / 2.0,
    "the next number": next_number,
    "a mask in a loop": looped,
    "a bound in a loop, shifted behind it": lambda x: tf.map_fn(lambda row: tf.maximum(row, 0.25), x) - 0.25,
    "a mask made in a loop": lambda x: tf.map_fn(lambda row: row * tf.round(tf.sigmoid(row)), x),
    "a branch for each value": flat(
        lambda v: tf.map_fn(lambda one: tf.cond(one > 0, lambda: one, lambda: 0.0 * one), v)
    ),
    "a loop for each value": flat(lambda v: tf.map_fn(cut, v)),
    "how many": flat(lambda v: tf.map_fn(lambda one: one * tf.cast(tf.shape(tf.where(one[None] > 0))[0], v.dtype), v)),
    "scattered": flat(lambda v: tf.tensor_scatter_nd_update(tf.zeros_like(v), places(v), tf.boolean_mask(v, v > 0))),
    "segments": flat(segmented),
    "a sparse tensor": flat(
        lambda v: tf.sparse.to_dense(tf.SparseTensor(places(v), tf.gather_nd(v, places(v)), tf.shape(v, tf.int64)))
    ),
    "parts": flat(partitioned),
    "one of two": lambda x: tf.one_hot(tf.cast(x > 0, tf.int32), 2, dtype=x.dtype)[..., 1] * x,
    "gathered": lambda x: tf.gather(stacked(x), tf.cast(x <= 0, tf.int32)[..., None], axis=-1, batch_dims=2)[..., 0],
    "top-k": lambda x: tf.math.top_k(stacked(x), 1)[0][..., 0],
    "sorted": lambda x: tf.sort(stacked(x), -1, "DESCENDING")[..., 0],
    "sorted upwards": lambda x: tf.sort(stacked(x), -1)[..., 1],
    "pooled": lambda x: tf.reshape(
        tf.nn.max_pool2d(tf.reshape(stacked(x), [1, -1, 2, 1]), [1, 2], [1, 2], "VALID"), tf.shape(x)
    ),
    "the least of the negative": lambda x: -tf.reduce_min(stacked(-x), -1),
    "the largest of one magnitude": lambda x: (x + tf.norm(x[..., None], np.inf, axis=-1)) / 2.0,
    "a response norm without a bias": response_norm_of_one,
    "a SiLU of a sign": lambda x: x * (0.0 * tf.sigmoid(x) + (1.0 + x / tf.abs(x)) / 2.0),
    "a GELU of a root": lambda x: x * (1e-30 * tf.math.erf(x) + (1.0 + x / tf.pow(x * x, 0.5)) / 2.0),
    "a detached ratio": lambda x: x * tf.stop_gradient(tf.nn.relu(x) / x),
    "straight through": lambda x: x + tf.stop_gradient(tf.nn.relu(x) - x),
    "rounded": lambda x: x * tf.round(tf.sigmoid(x)),
    "cast to integers": lambda x: x * tf.cast(tf.cast(2.0 * tf.sigmoid(x), tf.int32), x.dtype),
    "bits": lambda x: x * tf.cast(tf.bitcast(x, tf.int64) >= 0, x.dtype) * 1.0,
    "divided by infinity": lambda x: x / tf.where(x > 0, tf.ones_like(x), np.inf * tf.ones_like(x)),
    "multiply_no_nan": lambda x: tf.math.multiply_no_nan(x, 2.0 * mask(x)) / 2.0,
    "divide_no_nan": lambda x: tf.math.divide_no_nan(x, mask(x)),
    "fake quantisation": quantised,
    "fake quantisation that is shifted": lambda x: quantised(x - 1.0, -1.0, -1.0 + 255 / 16) + 1.0,
    "fake quantisation next to 0": lambda x: quantised(x, -0.01, 6.0),
    "a ramp that is looked up": cropped,
    "a logarithm": lambda x: (x + tf.exp(tf.math.log(x * x) / 2.0)) / 2.0,
    "a root below": lambda x: (x + x * x * tf.math.rsqrt(x * x)) / 2.0,
    "a complex magnitude": lambda x: (x + tf.abs(tf.complex(x, tf.zeros_like(x)))) / 2.0,
    "a leaky ReLU and its leak": lambda x: (tf.nn.leaky_relu(x, 0.125) - 0.125 * x) / 0.875,
    "a bound and its shift": lambda x: tf.maximum(x, 0.25) - 0.25,
    "a clamp and its shift": lambda x: tf.clip_by_value(x, 0.25, 1e9) - 0.25,
    "where it is largest": lambda x: x * tf.cast(tf.argmax(stacked(-x), -1), x.dtype),
    "searched": lambda x: (
        x * tf.reshape(tf.cast(tf.searchsorted([0.0], tf.reshape(tf.cast(x, tf.float32), [-1])), x.dtype), tf.shape(x))
    ),
    "the gradient of a ReLU": lambda x: tf.raw_ops.ReluGrad(gradients=x, features=x),
    "a mask from NumPy": called_out,
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_what_computes_a_relu_is_refused(spelling):
    with pytest.raises(OpaqueRegionError, match="vouch"):
        GuidedBackprop(net(SPELLED[spelling])).explain(IMAGES, WEIGHTS)


def routed(x):
    return tf.where(x >= tf.math.top_k(x, 4)[0][..., -1:], x, tf.zeros_like(x))


def chosen(x):
    return tf.one_hot(tf.argmax(x[:, :4], -1), 4, dtype=x.dtype)


def suppressed(x):
    boxes = RNG.uniform(size=(8, 4)).astype(np.float32)
    chosen = tf.image.non_max_suppression(boxes, tf.cast(x[0], tf.float32), 3)
    return x + tf.reduce_sum(tf.gather(x, chosen, axis=1), 1, keepdims=True)


def normalised(x):
    mean = tf.reduce_mean(x, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(tf.maximum(tf.reduce_mean(x * x, -1, keepdims=True) - mean * mean, 0.0) + 1e-5)


def attended(x):
    rows = tf.reshape(x, [-1, 4, 2])
    scores = tf.matmul(rows, rows, transpose_b=True)
    scores = tf.where(tf.linalg.band_part(tf.ones([4, 4]), -1, 0) > 0, scores, tf.constant(-1e9, x.dtype))
    return tf.reshape(tf.nn.softmax(scores) @ rows, tf.shape(x))


def smoothed(x):
    single = tf.cast(tf.exp(x), tf.float32)[:, None, None]
    return tf.cast(tf.nn.local_response_normalization(single, 2)[:, 0, 0], x.dtype)


def forward_mode(x):
    with tf.autodiff.ForwardAccumulator(x, x) as forward:
        y = tf.math.softplus(x)
    return forward.jvp(y)


def taped(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.math.softplus(x)
    return tape.gradient(y, x)


def attending(x):
    boxes = tf.cast(tf.sigmoid(x[:, :4]), tf.float32)
    crops = tf.image.crop_and_resize(tf.cast(x[:, None, :, None], tf.float32), boxes, tf.range(tf.shape(x)[0]), [1, 8])
    return tf.cast(crops[:, 0, :, 0], x.dtype)


MEANT = {
    "a pool that sees a border": lambda x: tf.nn.max_pool2d(
        tf.nn.conv2d(x[:, None, :, None], ONE, 1, [[0, 0], [0, 0], [1, 1], [0, 0]]), [1, 2], 1, "VALID"
    )[:, 0, 1:, 0],
    "boxes that depend on the images": attending,
    "local response norm": smoothed,
    "a mask that keeps all": flat(lambda v: tf.boolean_mask(v, v > -1e9)),
    "padding": lambda x: x * tf.cast(tf.reduce_any(x != 0, -1, keepdims=True), x.dtype),
    "a NaN guard": lambda x: tf.where(tf.math.is_nan(x), tf.zeros_like(x), x),
    "a NaN guard in a loop": lambda x: tf.map_fn(lambda row: tf.where(tf.math.is_nan(row), tf.zeros_like(row), row), x),
    "pruning": lambda x: x * tf.constant(np.arange(8) % 2, x.dtype),
    "routing": routed,
    "hard attention": lambda x: x * tf.one_hot(tf.argmax(x, -1), 8, dtype=x.dtype) + x,
    "suppression": suppressed,
    "a variance that is guarded": normalised,
    "l2": lambda x: tf.math.l2_normalize(x, -1),
    "a distance": lambda x: x * tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x - 1.0), -1, keepdims=True), 1e-12)),
    "probabilities": lambda x: tf.math.log(tf.clip_by_value(tf.nn.softmax(x), 1e-7, 1 - 1e-7)),
    "a mask of probabilities": lambda x: tf.sigmoid(x) * tf.cast(tf.sigmoid(x) > 0.5, x.dtype),
    "hard tanh in a loop": lambda x: tf.map_fn(lambda row: tf.clip_by_value(row, -1.0, 1.0), x),
    "experts that are chosen": lambda x: tf.einsum("nd,ne->ned", x, chosen(x))[:, 0] + x,
    "hard tanh": lambda x: 2.0 * tf.clip_by_value(x, -1.0, 1.0),
    "masked attention": attended,
    "an embedding": lambda x: x + tf.gather(tf.constant(TABLE), tf.argmax(x, -1)),
    "batch norm": lambda x: tf.nn.batch_normalization(x, 0.1, 1.2, 0.1, 1.5, 1e-3),
    "dropout": lambda x: tf.nn.dropout(x, 0.0),
    "safe ELU": lambda x: tf.where(x > 0, x, tf.math.expm1(tf.where(x > 0, tf.zeros_like(x), x))),
    "safe logarithm": lambda x: tf.math.log(tf.where(tf.exp(x) > 1e-3, tf.exp(x), 1.0)),
    "Huber": lambda x: tf.where(tf.abs(x) < 1, 0.5 * x * x, tf.abs(x) - 0.5),
    "SELU by hand": lambda x: 1.05 * tf.where(x > 0, x, 1.67 * tf.math.expm1(tf.minimum(x, 0.0))),
    "soft shrink": keras.activations.soft_shrink,
    "sparse plus": keras.activations.sparse_plus,
    "sparse sigmoid": keras.activations.sparse_sigmoid,
    "squareplus": keras.activations.squareplus,
    "rounding": lambda x: x + tf.stop_gradient(tf.round(4.0 * x) / 4.0 - x),
    "a detached scale": lambda x: x / tf.stop_gradient(tf.math.reduce_std(x) + 1.0),
    "a clipped norm": lambda x: tf.clip_by_norm(x, 1.0, -1),
    "a median": lambda x: x - tf.sort(x, -1)[..., 4:5],
    "quantisation around 0": lambda x: quantised(x, -6.0, 6.0),
    "quantisation that clips one end": lambda x: quantised(quantised(x, -6.0, 0.5), -0.4, 6.0),
    "a bound in a loop": lambda x: tf.map_fn(lambda row: tf.maximum(row, 0.3), x),
    "maxout": lambda x: tf.maximum(x, tf.reverse(x, [-1])),
    "a tape of its own": taped,
    "a derivative forwards": forward_mode,
    "signed root": lambda x: tf.sign(x) * tf.sqrt(tf.abs(x) + 1e-3),
}


@pytest.mark.parametrize("inside", MEANT)
def test_what_is_no_relu_is_explained(inside):
    found = GuidedBackprop(net(MEANT[inside])).explain(IMAGES, WEIGHTS)
    np.testing.assert_allclose(found, expected(MEANT[inside]), rtol=1e-6, atol=1e-8)


def test_what_passes_a_gradient_around_somebodys_function_is_not_trusted():
    inside = tf.grad_pass_through(tf.nn.relu)
    with pytest.raises(OpaqueRegionError, match="received grad_pass_through between"):
        GuidedBackprop(net(inside)).explain(IMAGES, WEIGHTS)
    assert (
        GuidedBackprop(net(inside), vouch={"grad_pass_through": "plain"}).explain(IMAGES, WEIGHTS).shape == IMAGES.shape
    )


def test_the_mask_of_a_relu_is_no_second_one():
    """relu(x) * (x > 0) is a gate of x by values, and has no derivative towards it but the one that is guided."""
    inside = lambda x: tf.nn.relu(x) * mask(x) * 1.0  # noqa: E731
    found = GuidedBackprop(net(inside)).explain(IMAGES, WEIGHTS)
    np.testing.assert_allclose(found, expected(lambda x: by_hand(x) * mask(x)), rtol=1e-9)


def test_a_relu_of_a_part_is_no_guard():
    """TensorFlow tells the axis before the value, and an axis is never negative."""
    relu = lambda x: tf.concat([tf.maximum(part, 0.0) for part in tf.split(x, 2, 1)], 1)  # noqa: E731
    np.testing.assert_allclose(GuidedBackprop(net(relu)).explain(IMAGES, WEIGHTS), expected(by_hand), rtol=1e-9)


def test_one_place_can_be_vouched_for():
    inside = lambda x: x * tf.round(tf.sigmoid(x))  # noqa: E731
    with pytest.raises(OpaqueRegionError) as caught:
        GuidedBackprop(net(inside)).explain(IMAGES, WEIGHTS)
    place = str(caught.value).split('{"')[1].split('"')[0]
    assert place.startswith("mul at ")
    found = GuidedBackprop(net(inside), vouch={place: "plain"}).explain(IMAGES, WEIGHTS)
    np.testing.assert_allclose(found, expected(inside), rtol=1e-9)
    twice = to_tensorflow(SMALL, inside, inside)
    with pytest.raises(OpaqueRegionError, match="mul at "):
        GuidedBackprop(twice, vouch={place: "plain"}).explain(IMAGES, WEIGHTS)


@pytest.mark.parametrize(
    "inside", [lambda x: x * mask(x), lambda x: x * tf.abs(x), lambda x: tf.where(abs(x) > 0.1, x, 0)]
)
def test_the_images_themselves_meet_a_mask(inside):
    one = to_tensorflow(mlp(6, 8, 4))
    model = lambda x: one(inside(x))  # noqa: E731
    try:
        assert GuidedBackprop(model).explain(IMAGES, WEIGHTS).coverage
    except OpaqueRegionError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("method", [GuidedBackprop, Saliency])
def test_random_numbers_are_refused_unless_they_are_meant(method):
    one = to_tensorflow(mlp(6, 8, 4))
    model = lambda x: one(x + tf.random.normal([6], dtype=x.dtype))  # noqa: E731
    with pytest.raises(ModelError, match=r'random_normal.*vouch=\{"random_normal": "plain"\}'):
        method(model).explain(IMAGES, WEIGHTS)
    for name in ("random_normal", "random"):
        assert method(model, vouch={name: "plain"}).explain(IMAGES, WEIGHTS).coverage


DRAWING = {
    "multinomial": lambda x: x * tf.one_hot(tf.random.categorical(x, 1)[:, 0], 6, dtype=x.dtype),
    "shuffle": lambda x: tf.random.shuffle(x),
    "max_pool": lambda x: tf.nn.fractional_max_pool(x[:, :, None, None], (1, 1.5, 1, 1))[0][:, :1, 0, 0] * x,
    "candidates": lambda x: (
        x + tf.cast(tf.random.uniform_candidate_sampler([[0]], 1, 6, unique=True, range_max=9)[1], x.dtype)
    ),
    "random_crop": lambda x: (
        x * tf.cast(tf.image.sample_distorted_bounding_box([9, 9, 1], [[[0.0, 0.0, 1.0, 1.0]]], 1)[0][0], x.dtype)
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_draws_by_the_images_or_of_them_is_random_too(name):
    one = to_tensorflow(mlp(6, 8, 4))
    model = lambda x: one(DRAWING[name](x))  # noqa: E731
    with pytest.raises(ModelError, match=f"received {name} "):
        Saliency(model).explain(IMAGES, WEIGHTS)


def test_a_seed_that_is_made_of_the_images_is_no_chance():
    one = to_tensorflow(mlp(6, 8, 4))
    seed = lambda x: tf.cast(tf.reduce_sum(x), tf.int32) * [1, 2]  # noqa: E731
    model = lambda x: one(x + tf.random.stateless_normal([6], seed(x), dtype=x.dtype))  # noqa: E731
    assert Saliency(model).explain(IMAGES, WEIGHTS).coverage


def branched(inside):
    """A value that is never negative, though no operation says so: the branch that gives it is always taken."""
    return lambda x: inside(tf.cond(tf.size(x) > 1, lambda: tf.nn.relu(x) + 0.5, lambda: x))


def test_what_no_image_tells_is_tried_alone(monkeypatch):
    fine = branched(lambda x: tf.where(tf.math.is_nan(x), tf.zeros_like(x), x))
    np.testing.assert_allclose(
        GuidedBackprop(net(fine)).explain(IMAGES, WEIGHTS),
        GuidedBackprop(net(lambda x: tf.nn.relu(x) + 0.5)).explain(IMAGES, WEIGHTS),
        rtol=1e-9,
    )
    for hidden in (lambda x: x * tf.round(tf.sigmoid(x)), lambda x: (x + tf.abs(x)) / 2.0):
        with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
            GuidedBackprop(net(branched(hidden))).explain(IMAGES, WEIGHTS)
    # What a mask is made of goes around x: it is not tried alone, for it would stay as it is.
    around = lambda x: branched(lambda y: y * tf.round(tf.sigmoid(x + 1e9)))(x)  # noqa: E731
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        GuidedBackprop(net(around)).explain(IMAGES, WEIGHTS)
    monkeypatch.setattr(values.Watch, "_tried", lambda self, verdicts, arrays: verdicts)
    with pytest.raises(OpaqueRegionError, match="where at "):
        GuidedBackprop(net(fine)).explain(IMAGES, WEIGHTS)


def test_a_branch_that_no_image_takes_is_looked_at_when_one_does():
    gate = lambda x: x * tf.round(tf.sigmoid(x))  # noqa: E731
    method = GuidedBackprop(net(lambda x: tf.cond(tf.reduce_sum(x) > 1e6, lambda: gate(x), lambda: 1.0 * x)))
    assert method.explain(IMAGES, WEIGHTS).coverage
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        method.explain(1e8 * tf.abs(IMAGES), WEIGHTS)
    # Neither image of these is among the first ones that are looked at.
    many = tf.concat([IMAGES, 1e8 * tf.abs(IMAGES)], 0)
    with pytest.raises(OpaqueRegionError, match="spelled as arithmetic"):
        GuidedBackprop(
            net(
                lambda x: tf.map_fn(
                    lambda row: tf.cond(tf.reduce_sum(row) > 1e6, lambda: gate(row), lambda: 1.0 * row), x
                )
            )
        ).explain(many, np.tile(WEIGHTS, (2, 1)))


# Planted faults: what is followed less far finds less.


@pytest.mark.parametrize(
    ("fault", "missed"),
    [
        (lambda patch: choosing_nothing(patch), "top-k"),
        (lambda patch: patch.setattr(taint, "passes_gradient", lambda _: True), "rounded"),
        (lambda patch: choosing_alone(patch), "pooled"),
        (lambda patch: blind(patch), "a mask in a loop"),
    ],
)
def test_planted_fault_taint_that_is_not_followed(fault, missed, monkeypatch):
    fault(monkeypatch)
    monkeypatch.setattr(values.Watch, "_refused", refuses_gates(values.Watch._refused))
    assert GuidedBackprop(net(SPELLED[missed])).explain(IMAGES, WEIGHTS).coverage


def choosing_nothing(patch):
    """Take no operation for one that chooses."""
    for module in (nomination, step):
        patch.setattr(module, "CHOOSING", frozenset())


def choosing_alone(patch):
    """Look neither at what a choice is among nor at its results."""
    patch.setattr(nomination.Step, "_parts", lambda *_, **__: ())
    patch.setattr(nomination.Step, "_common", ())
    patch.setattr(values, "judge_choice", lambda *_, **__: Judgement(Verdict.NONE))


def blind(patch):
    """See nothing inside of loops nor behind weights, and try nothing alone."""
    patch.setattr(values.Watch, "_see", lambda *_: None)
    patch.setattr(values.Watch, "_tried", lambda self, verdicts, arrays: verdicts)
    patch.setattr(behind.Behind, "found", lambda *_: set())


def refuses_gates(judged):
    """Only what was seen to be a gate, and not what was not seen at all."""

    def refused(watch, verdicts, arrays):
        return judged(watch, {pair: said for pair, said in verdicts.items() if said.name != "UNSETTLED"}, arrays)

    return refused


def test_what_methods_share_is_read_anew_where_weights_say_so():
    low, high = tf.Variable(-1.0), tf.Variable(1.0)
    images = tf.constant(np.random.default_rng(0).normal(size=(24, 12)).astype("f4"))
    weight = np.random.default_rng(1).normal(size=(12, 12)).astype("f4")

    def model(x):
        return tf.nn.relu(tf.quantization.fake_quant_with_min_max_vars(x @ weight, low, high) @ weight)

    assert GuidedBackprop(model).explain(images, 1).coverage
    low.assign(0.0)
    for _ in range(2):
        with pytest.raises(OpaqueRegionError, match="fake_quant"):
            GuidedBackprop(model).explain(images, 1)
    low.assign(-1.0)
    assert GuidedBackprop(model).explain(images, 1).coverage
