"""What is made of passes and their gradients, recorded: class activation maps, maps of noisy copies."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from guided_backprop.arrays import Inputs
from guided_backprop.backends.torch.export.any_size import linear, nearest, varies
from guided_backprop.backends.torch.export.trace import Passed, Recorder
from guided_backprop.export.photos import Photos
from guided_backprop.export.plan import Cam, Noise


def cams(recorder: Recorder, passed: Passed, images: Inputs, cam: Cam) -> list[torch.Tensor | None]:
    """Return the class activation map at the size of each input, with one channel; None where that has no positions.

    Args:
        recorder: of the model whose gradient is taken at the layer.
        passed: its pass.
        images: what the model was given.
        cam: how it is made.
    """
    activation = passed.activation
    assert activation is not None
    axis = recorder.channel_axis(activation) or 1
    g, values = (tensor.detach().movedim(axis, 1) for tensor in (passed.gradients[0], activation))
    weights = g.mean(list(range(2, g.ndim)), keepdim=True)
    positive = (weights * values).sum(1).clamp(min=0)
    return [_fitted(recorder, positive, image, cam) for image in images.arrays]


def _fitted(recorder: Recorder, positive: torch.Tensor, image: torch.Tensor, cam: Cam) -> torch.Tensor | None:
    axis = recorder.channel_axis(image)
    if axis is None or not recorder.has_positions(image, positive.ndim + 1):
        return None
    sizes = [size for place, size in enumerate(image.shape) if place not in (0, axis)]
    fitted = positive
    for place, after in enumerate(sizes, start=1):
        fitted = (fitted.movedim(place, -1) @ _matrix(cam, fitted.shape[place], after, image)).movedim(-1, place)
    return fitted.unsqueeze(axis)


def _matrix(cam: Cam, before: Any, after: Any, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix ``(before, after)`` that resizes a map along one axis."""
    if varies([before, after]):
        return (linear if cam.is_linear else nearest)(before, after, like)
    with _disable_current_modes():
        return torch.as_tensor(cam.matrix(before, after).T, dtype=like.dtype).contiguous()


def copies(images: Inputs, noise: Noise, drawn: Sequence[torch.Tensor]) -> Inputs:
    """Return noisy copies, those of one image after the other.

    Args:
        images: the images.
        noise: how many, and how strong it is.
        drawn: ``(N, samples, ...)`` for each array of floating-point numbers.
    """
    left = iter(drawn)

    def copy(image: torch.Tensor) -> torch.Tensor:
        if not image.is_floating_point():
            return repeated(image, noise.samples)
        flat = image.flatten(1)
        spread = ((flat.amax(1) - flat.amin(1)) * noise.share).reshape(-1, *[1] * image.ndim)
        together: torch.Tensor = (image.unsqueeze(1) + next(left) * spread).flatten(0, 1)
        return together

    return images.map(copy)


def scaled(pixels: torch.Tensor, photos: Photos, dtype: torch.dtype) -> torch.Tensor:
    """Return photos ``(N, H, W, 3)`` as images."""
    images = (pixels.to(dtype) * photos.scale - _constant(photos.mean, dtype)) / _constant(photos.std, dtype)
    return images if photos.channels_last else images.movedim(-1, 1)


def of_pixels(attribution: torch.Tensor, photos: Photos) -> torch.Tensor:
    """Return the maps of images as those of the photos."""
    last = attribution if photos.channels_last else attribution.movedim(1, -1)
    return last * _constant(photos.slopes.tolist(), attribution.dtype)


def _constant(numbers: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    with _disable_current_modes():
        return torch.tensor(numbers, dtype=dtype)


def repeated(values: torch.Tensor, times: int) -> torch.Tensor:
    """Return each row so many times, one after the other."""
    return values.unsqueeze(1).expand(values.shape[0], times, *values.shape[1:]).flatten(0, 1)


def put_together(noise: Noise, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return one map for each image, of those of its copies."""
    return [_moment(noise.form, one.reshape(-1, noise.samples, *one.shape[1:])) for one in maps]


def _moment(form: str, maps: torch.Tensor) -> torch.Tensor:
    mean = partial(torch.mean, dim=1)
    match form:
        case "absolute":
            return mean(maps.abs())
        case "squared":
            return mean(maps * maps)
        case "variance":
            centred = maps - maps.mean(1, keepdim=True)
            return mean(centred * centred)
    return mean(maps)
