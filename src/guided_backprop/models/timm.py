"""Loader: timm's models by their names, ``timm:resnet50d``; from the hub, ``timm:owner/name``; from a local folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.measured import Measured
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel


def load(asked: Asked) -> VisionModel:
    """Load a model with its weights, and with the transforms and class names of its record.

    Raises:
        MissingExtraError: timm isn't installed.
        ModelError: it has no such model, or no weights of it; or they can't be fetched.
    """
    asked.refuse_preprocessing()
    timm = asked.with_torchvision("timm", "timm")
    is_folder = Path(asked.name).is_dir()
    if not is_folder and "/" not in asked.name and not timm.is_model(asked.name.partition(".")[0]):
        raise asked.unknown(timm.list_models())
    source = "local-dir:" if is_folder else "hf-hub:" if "/" in asked.name else ""
    # Of a folder that another library wrote timm finds out by what it misses in its record.
    wrong = (OSError, ValueError, LookupError, TypeError) if is_folder else (OSError, ValueError)
    try:
        network = timm.create_model(f"{source}{asked.name}", pretrained=True)
    except wrong as error:
        raise _unreachable(asked, error, is_folder) from error
    except RuntimeError as error:
        if "pretrained" not in str(error):
            raise
        known = timm.list_pretrained(f"{asked.name.partition('.')[0]}.*")[:4]
        advice = f"Name one of its weights: {', '.join(known)}" if known else "Name another model"
        raise ModelError(
            f"model must have weights; received model={asked.spec!r}, of which timm has none. {advice}."
        ) from error
    config = timm.data.resolve_model_data_config(network)
    preprocess = Measured(timm.data.create_transform(**config, is_training=False), _said(config))
    name = Path(asked.name).resolve().name if is_folder else asked.name
    return VisionModel(name, network, preprocess, asked.class_names(_class_names(timm, network.pretrained_cfg)))


def _unreachable(asked: Asked, error: Exception, is_folder: bool) -> ModelError:
    if is_folder:
        return ModelError(
            f"model must be a folder as timm saves it, with config.json and weights; received model={asked.spec!r} "
            f"({type(error).__name__}: {error}). Save it with timm.models.save_for_hf(network, folder)."
        )
    name = asked.name if "/" in asked.name else f"timm/{asked.name}"
    return asked.unreachable(error, f"Elsewhere, run: hf download {name} --local-dir folder; then pass timm:folder.")


def _said(config: Mapping[str, Any]) -> str:
    size: tuple[int, int] = config["input_size"][1:]
    # "squash" is timm's word too.
    crop = None if config["crop_mode"] == "squash" else config["crop_pct"]
    said = ResizeCrop(size, crop, config["interpolation"], mean=config["mean"], std=config["std"])
    return f"{said}, padded" if config["crop_mode"] == "border" else str(said)


def _class_names(timm: ModuleType, record: Mapping[str, Any]) -> Sequence[str]:
    names, described = record.get("label_names"), record.get("label_descriptions")
    if names:
        return [described.get(name, name) if isinstance(described, Mapping) else name for name in names]
    subset = timm.data.infer_imagenet_subset(dict(record))
    return timm.data.ImageNetInfo(subset).label_descriptions() if subset else ()
