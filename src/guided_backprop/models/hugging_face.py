"""Loader: classifiers of transformers, ``hf:microsoft/resnet-50`` or ``hf:`` with a local folder."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guided_backprop.arrays import Tensor
from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.measured import Measured
from guided_backprop.models.preprocessing import in_words
from guided_backprop.models.vision import VisionModel


def load(asked: Asked) -> VisionModel:
    """Load a classifier, its image processor and its class names.

    Raises:
        MissingExtraError: transformers isn't installed.
        ModelError: there is no such model, it is no classifier, or it can't be fetched.
    """
    asked.refuse_preprocessing()
    transformers = asked.with_torchvision("transformers", "transformers")
    try:
        network, loaded = transformers.AutoModelForImageClassification.from_pretrained(
            asked.name, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(asked.name)
    # A folder of timm's is known to transformers, and refused with a TypeError if it was saved for timm alone.
    except (OSError, ValueError, TypeError) as error:
        raise _refused(asked, error) from error
    missing = sorted(loaded["missing_keys"])
    if missing and not asked.random_weights:
        raise ModelError(
            f"model must be a whole classifier; received model={asked.spec!r}, which has no weights for "
            f"{', '.join(missing[:3])}. Name one that was trained to classify, or pass random_weights=True "
            "(--random-weights)."
        )
    names = network.config.id2label
    preprocess = Measured(lambda photo: _pixels(processor, photo), _said(processor))
    name = Path(asked.name).resolve().name if Path(asked.name).is_dir() else asked.name
    return VisionModel(name, network, preprocess, asked.class_names([names[label] for label in sorted(names)]))


def _pixels(processor: Any, photo: Image.Image) -> Tensor:
    return processor(images=photo, return_tensors="pt")["pixel_values"][0]


def _refused(asked: Asked, error: Exception) -> ModelError:
    if Path(asked.name).is_dir():
        reason = " ".join(str(error).split()).rstrip(".")
        return ModelError(
            "model must be a folder with a classifier and its image processor, as save_pretrained writes both; "
            f"received model={asked.spec!r} ({reason:.300}). Save both into it."
        )
    return asked.unreachable(
        error, f"Elsewhere, run: hf download {asked.name} --local-dir folder; then pass hf:folder."
    )


def _said(processor: Any) -> str:
    """Return what an image processor does, as far as its fields are those that most have."""
    shown = np.shape(_pixels(processor, Image.new("RGB", (64, 64))))
    record = processor.to_dict()
    resampling = Image.Resampling(int(record["resample"])).name.lower() if record.get("do_resize") else ""
    scale = record["rescale_factor"] if record.get("do_rescale") else 1.0
    mean, std = (record["image_mean"], record["image_std"]) if record.get("do_normalize") else ((), ())
    # Each kind of processor crops by fields of its own; what it does is measured.
    cut = Measured(lambda photo: _pixels(processor, photo)).cut()
    parts = [resampling, cut, in_words(scale, mean, std), f"by {type(processor).__name__}"]
    return ", ".join([f"{shown[-1]} x {shown[-2]}", *filter(None, parts)])
