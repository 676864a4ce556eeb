"""Which layer of a network the local page suggests, and which of a layer's channels a photo excites."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from guided_backprop.arrays import Images, Inputs, Model, NumpyArray, as_numpy, as_pictures
from guided_backprop.errors import GuidedBackpropError, ImageError
from guided_backprop.show.colours import Picture
from guided_backprop.show.panels import PANELS
from guided_backprop.show.place import Place, picture_at
from guided_backprop.subject import Subject, layer_names


class Neuron(NamedTuple):
    """A channel, its strongest value on a photo, and where on the photo it is active."""

    channel: int
    strongest: float
    picture: Picture


def last_with_positions(network: Model, images: Images) -> str | None:
    """Return the last layer whose values still have places on the image, where Grad-CAM looks; None if there is none.

    The last that has no layers in it, or the largest that it is the end of: of "layer4.2.bn3" what is added to it
    counts as well, so "layer4".

    Args:
        network: any model.
        images: a batch of pictures.
    """
    names = layer_names(network)
    last = next((name for name in reversed(names) if _has_positions(network, name, images)), None)
    if last is None:
        return None
    around = [name for name in names if last.startswith(f"{name}.")]
    return next((name for name in around if _has_positions(network, name, images)), last)


def strongest_neurons(
    network: Model, layer: str, images: Images, count: int, place: Place | None = None
) -> list[Neuron]:
    """Return the channels of a layer that an image excites most, strongest first; drawn at its place on the photo.

    Raises:
        ImageError: the images are no pictures.
        GuidedBackpropError: all that :meth:`Method.explain` raises.
    """
    inputs = Inputs.of(images)
    pixels = as_numpy(images)
    pair = as_pictures(pixels, pixels, Subject(network).backend(inputs).channel_axis(pixels), is_reduced=False)
    if pair is None:
        raise ImageError(
            f"neurons are shown on pictures; received images of shape {pixels.shape}. Use explain() for what is none."
        )
    outputs = _channels_first(network, layer, images)[0]
    peaks = outputs.reshape(len(outputs), -1).max(axis=1)
    channels = np.argsort(-peaks, kind="stable")[:count].tolist()
    image = pair[0][0]
    return [Neuron(channel, float(peaks[channel]), _where(image, outputs[channel], place)) for channel in channels]


def _where(image: NumpyArray, activation: NumpyArray, place: Place | None) -> Picture:
    """Return the image with what is active on it; the whole of it for a value without a place."""
    places = activation if activation.ndim == 2 else np.ones((1, 1))
    active = Image.fromarray(np.maximum(places, 0).astype(np.float32))
    resized = np.asarray(active.resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR))
    return picture_at(place, PANELS["overlay"], image, resized[..., np.newaxis])


def _has_positions(network: Model, layer: str, images: Images) -> bool:
    try:
        sizes: Sequence[int] = _channels_first(network, layer, images).shape[2:]
    except GuidedBackpropError:
        # It is not run, or more than once, or gives no array.
        return False
    return len(sizes) == np.ndim(images) - 2 and max(sizes) > 1


def _channels_first(network: Model, layer: str, images: Images) -> NumpyArray:
    """Return a layer's values ``(N, C, ...)``."""
    inputs = Inputs.of(images)
    backend = Subject(network).up_to(layer).backend(inputs)
    outputs = backend.outputs(inputs)
    return np.moveaxis(outputs, backend.channel_axis(outputs) or 1, 1) if outputs.ndim > 1 else outputs
