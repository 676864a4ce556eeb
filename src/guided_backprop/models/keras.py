"""Loader: Keras' applications, ``keras:ResNet50``, with their ImageNet weights."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel


def load(asked: Asked) -> VisionModel:
    """Load an application, with what its ``preprocess_input`` does to pixels, and the names that it decodes to.

    Raises:
        MissingExtraError: Keras, or what it runs on, isn't installed.
        ModelError: it has no such application, or the weights or names can't be fetched.
    """
    asked.refuse_preprocessing()
    applications = asked.package("keras", "tensorflow").applications
    build = getattr(applications, asked.name, None)
    if not asked.name[:1].isupper() or not callable(build):
        raise asked.unknown([name for name in dir(applications) if name[0].isupper()])
    module = sys.modules[build.__module__]
    try:
        network = build(weights="imagenet")
        names = asked.options.classes or _class_names(module)
    # Keras raises a plain Exception where it can't fetch a file.
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        raise _unreachable(asked, error) from error
    shape = network.input_shape
    is_last = shape[-1] == 3
    preprocess = ResizeCrop(
        tuple(shape[1:3] if is_last else shape[2:4]),
        resampling="bilinear",
        scale=1.0,
        channels_last=is_last,
        further=partial(_preprocess, module.preprocess_input),
        said=f"by {module.__name__.rpartition('.')[2]}.preprocess_input",
    )
    return VisionModel(asked.name, network, preprocess, names)


def _preprocess(
    preprocess_input: Callable[..., NDArray[np.float32]], pixels: NDArray[np.float32]
) -> NDArray[np.float32]:
    return preprocess_input(pixels.copy(), data_format="channels_last")


def _class_names(module: ModuleType) -> Sequence[str]:
    decoded = module.decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    return [rows[0][1].replace("_", " ") for rows in decoded]


def _unreachable(asked: Asked, error: Exception) -> ModelError:
    # "URL fetch failure on https://...: reason"
    url = str(error).partition(" on ")[2].partition(" ")[0].rstrip(":")
    return asked.unreachable(error, f"Fetch {url} elsewhere, and put the file into ~/.keras/models.")
