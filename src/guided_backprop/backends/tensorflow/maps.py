"""What is made of gradients in a graph: class activation maps, maps of noisy copies, of the pixels of photos."""

import tensorflow as tf

from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import Cam, Noise


def positive(g: tf.Tensor, inside: tf.Tensor, axis: int) -> tf.Tensor:
    """Return class activation maps at the size of their layer, ``(N, ...)``."""
    others = [other for other in range(1, inside.shape.rank) if other != axis]
    return tf.nn.relu(tf.reduce_sum(tf.reduce_mean(g, others, True) * inside, axis))


def fitted(small: tf.Tensor, images: tf.Tensor, cam: Cam, axis: int) -> tf.Tensor:
    """Return them at the size of images, with one channel."""
    last = small.shape.rank - 1
    for place, there in enumerate((other for other in range(1, last + 2) if other != axis), start=1):
        order = [other for other in range(last + 1) if other != place] + [place]
        along = tf.linalg.matmul(tf.transpose(small, order), matrix(small, place, images, there, cam))
        small = tf.transpose(along, [order.index(other) for other in range(last + 1)])
    return tf.expand_dims(small, axis)


def matrix(small: tf.Tensor, place: int, images: tf.Tensor, axis: int, cam: Cam) -> tf.Tensor:
    """Return the matrix ``(before, after)`` that resizes maps along one axis: worked out in the graph for any size."""
    dtype = small.dtype
    if small.shape[place] is not None and images.shape[axis] is not None:
        return tf.constant(cam.matrix(small.shape[place], images.shape[axis]).T, dtype)
    before, after = tf.shape(small)[place], tf.shape(images)[axis]
    rows, columns = tf.range(before)[:, None], tf.range(after)
    if not cam.is_linear:
        return tf.cast((rows * after <= columns * before) & (columns * before < (rows + 1) * after), dtype)
    ratio = tf.cast(before, dtype) / tf.cast(after, dtype)
    at = tf.clip_by_value((tf.cast(columns, dtype) + 0.5) * ratio - 0.5, 0, tf.cast(before - 1, dtype))
    return tf.nn.relu(1 - tf.abs(at - tf.cast(rows, dtype)))


def moment(noise: Noise, maps: tf.Tensor) -> tf.Tensor:
    """Return what the maps of the noisy copies of each image are together."""
    maps = tf.reshape(maps, tf.concat([[-1, noise.samples], tf.shape(maps)[1:]], 0))
    match noise.form:
        case "absolute":
            return tf.reduce_mean(tf.abs(maps), 1)
        case "squared":
            return tf.reduce_mean(maps * maps, 1)
        case "variance":
            return tf.math.reduce_variance(maps, 1)
    return tf.reduce_mean(maps, 1)


def scaled(pixels: tf.Tensor, photos: Photos, dtype: tf.DType) -> tf.Tensor:
    """Return photos ``(N, H, W, 3)`` as images."""
    images = (tf.cast(pixels, dtype) * photos.scale - tf.constant(photos.mean, dtype)) / tf.constant(photos.std, dtype)
    return images if photos.channels_last else tf.transpose(images, [0, 3, 1, 2])


def of_pixels(attribution: tf.Tensor, photos: Photos) -> tf.Tensor:
    """Return the maps of images as those of the photos."""
    last = attribution if photos.channels_last else tf.transpose(attribution, [0, 2, 3, 1])
    return last * tf.constant(photos.slopes, last.dtype)


def are_finite(tensor: tf.Tensor) -> tf.Tensor:
    """Tell of each row of a tensor whether all of it is finite."""
    return tf.reduce_all(tf.reshape(tf.math.is_finite(tensor), [tf.shape(tensor)[0], -1]), 1)
