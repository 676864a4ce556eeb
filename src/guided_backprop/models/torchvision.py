"""Loader: torchvision's classifiers, ``torchvision:resnet50`` or ``torchvision:resnet50@IMAGENET1K_V1``."""

from pathlib import Path

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.measured import Measured
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel


def load(asked: Asked) -> VisionModel:
    """Load a classifier with its weights, and with their own transforms and class names.

    Raises:
        MissingExtraError: torchvision isn't installed.
        ModelError: it has no such classifier, or no such weights; or they can't be fetched.
    """
    asked.refuse_preprocessing()
    models = asked.with_torchvision("torchvision", "torchvision").models
    name, _, version = asked.name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise asked.unknown(known)
    versions = models.get_model_weights(name)
    if version and version not in versions.__members__:
        known = ", ".join(weights.name for weights in versions)
        raise ModelError(f"weights must be of {known}; received model={asked.spec!r}. Name one of these.")
    weights = versions[version] if version else versions.DEFAULT
    try:
        network = models.get_model(name, weights=weights)
    except OSError as error:
        from torch import hub  # noqa: PLC0415

        folder = Path(hub.get_dir()) / "checkpoints"
        raise asked.unreachable(error, f"Fetch {weights.url} elsewhere, and put the file into {folder}.") from error
    transforms = weights.transforms()
    preprocess = Measured(transforms, _said(transforms))
    return VisionModel(f"{name} ({weights.name})", network, preprocess, asked.class_names(weights.meta["categories"]))


def _said(transforms: object) -> str:
    """Return what torchvision's transforms of a classifier do, as their fields have it."""
    size, resized = transforms.crop_size[0], transforms.resize_size[0]  # type: ignore[attr-defined]
    mean, std = transforms.mean, transforms.std  # type: ignore[attr-defined]
    resampling = transforms.interpolation.value  # type: ignore[attr-defined]
    return str(ResizeCrop((size, size), size / resized, resampling, mean=mean, std=std))
