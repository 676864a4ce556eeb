"""One resolver: from a model's name, file or function to a network with its preprocessing and class names.

A loader lives in a file of its own, which is imported where it is needed, and only then what it needs.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from guided_backprop.errors import ModelError, OptionError
from guided_backprop.models import functions
from guided_backprop.models.asked import Asked
from guided_backprop.models.options import Classes, Crop, Options
from guided_backprop.models.vision import VisionModel, is_torch_module
from guided_backprop.models.weights import require_learned

# The file of each loader: by what stands before the colon, and by how a file is called.
_PREFIXES = {"torchvision": "torchvision", "timm": "timm", "hf": "hugging_face", "keras": "keras"}
# Whose models are folders too.
_OF_FOLDERS = ("timm", "hf")
_ENDINGS = {
    ".keras": "keras_file",
    ".h5": "keras_file",
    ".hdf5": "keras_file",
    ".pt2": "torch_file",
    ".pt": "torch_file",
    ".pth": "torch_file",
    ".ckpt": "torch_file",
    ".safetensors": "torch_file",
    ".onnx": "onnx",
}
_SAVED_MODEL = "saved_model.pb"
_FORMS = (
    "torchvision:, timm:, hf: or keras: and a name, the path of a .keras, .h5, .pt2, .pt or .onnx file or of a "
    "SavedModel's folder, package.module:function or file.py:function"
)


def load_model(
    spec: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    crop: Crop | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | str | None = None,
    channels_last: bool | None = None,
    classes: Classes | None = None,
    trust_pickle: bool = False,
    random_weights: bool = False,
    device: str | None = None,
) -> VisionModel:
    """Load a model by its name, its file, or a function that returns it, with its preprocessing and class names.

    Args:
        spec: one of

            - ``"torchvision:resnet50"``, ``"torchvision:resnet50@IMAGENET1K_V1"``: a classifier with its weights;
            - ``"timm:resnet50d"``, ``"timm:owner/name"`` on the Hugging Face hub, ``"timm:folder"``;
            - ``"hf:microsoft/resnet-50"``, ``"hf:folder"``: an image classifier of transformers;
            - ``"keras:ResNet50"``: an application of Keras, with its ImageNet weights;
            - the path of a ``.keras``, ``.h5``, ``.pt2``, ``.pt`` (TorchScript) or ``.onnx`` file, or of a SavedModel;
              what such a file doesn't say stands in the options, or in a TOML file beside it, ``net.toml`` for
              ``net.onnx``, under the same names;
            - ``"package.module:function"``, found from the current folder or among what is installed, or
              ``"file.py:function"``: a function without arguments.

            A function returns a ``torch.nn.Module``, which then gets torchvision's ImageNet preprocessing, if the
            options say no other (short side to 256 bilinear, centre crop 224, ``x / 255``, minus mean (0.485, 0.456,
            0.406), divided by standard deviation (0.229, 0.224, 0.225), channels first); a Keras model, a SavedModel or
            an exported program; ``(model, preprocess)``, preprocess being a function from one RGB ``PIL.Image`` to one
            array or tensor without batch axis; or a :class:`guided_backprop.models.VisionModel`. A network in training
            mode is put in eval mode.
        size: height and width of the network's input, or one number for both, if the model doesn't record it.
        crop: the share of the resized photo that is kept; "squash" stretches the whole photo. 1.0 if nothing is said.
        mean: subtracted from ``pixels * scale``: one number, or one for each of red, green and blue.
        std: by what that is divided, in the same way.
        scale: what pixels from 0 to 255 are multiplied by, also as text: "1/255", which it is if only mean or std is
            given.
        channels_last: whether the network takes ``(N, H, W, 3)``, if the model doesn't record it.
        classes: the names of the classes, or a text file with one in each line.
        trust_pickle: unpickle a file where it can only be read so. That runs whatever the file says.
        random_weights: explain a network that has learned nothing.
        device: where a PyTorch network is to run, such as "cuda".

    Returns:
        The model; ``str`` of it says all that was found, in one line.

    Raises:
        ModelError: there is no such model, it can't be loaded, doesn't say what it needs to be shown, or has learned
            nothing. What the user's own code raises is passed on as it is.
        OptionError: an option has a value that can't be, or is for other models.
        MissingExtraError: what the model is of isn't installed.

    Example:
        >>> import guided_backprop
        >>> print(guided_backprop.load_model("guided_backprop.models:load_default"))
        EfficientNet-Lite0: 224 x 224, bicubic, crop .875, mean 127, std 128, 1000 classes
    """
    options = Options.given(
        size=size, crop=crop, mean=mean, std=std, scale=scale, channels_last=channels_last, classes=classes
    )
    if not isinstance(spec, str | os.PathLike):
        raise OptionError(
            f"model must be a name or a path; received {type(spec).__name__}. For a network that is there, write "
            "guided_backprop.models.VisionModel(name, network, preprocess)."
        )
    spec = os.fspath(spec)
    vision = _load(Asked(spec, spec, options, trust_pickle, random_weights))
    if is_torch_module(vision.network) and vision.network.training:
        # An exported program cannot be switched; it is refused later if it does train.
        with suppress(NotImplementedError):
            vision.network.eval()
    if not random_weights:
        require_learned(vision.network, spec)
    return vision if device is None else _moved(vision, device)


def _load(asked: Asked) -> VisionModel:
    prefix, _, name = asked.spec.partition(":")
    if name.strip() and prefix in _PREFIXES:
        return _loader(_PREFIXES[prefix])(replace(asked, name=name))
    if functions.is_function(asked.spec):
        return functions.load(asked)
    ending = Path(asked.spec).suffix.lower()
    if ending in _ENDINGS:
        return _loader(_ENDINGS[ending])(asked.file())
    if (Path(asked.spec) / _SAVED_MODEL).is_file():
        return _loader("saved_model")(asked.file())
    # A folder, or a library's name of it.
    is_folder = asked.spec and Path(asked.spec).is_dir()
    libraries = _OF_FOLDERS if is_folder else _PREFIXES if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", asked.spec) else ()
    whose = ", ".join(f"{library}:{asked.spec}" for library in libraries)
    advice = f"Say whose it is: {whose}." if whose else "Pass one of these."
    raise ModelError(f"model must read {_FORMS}; received model={asked.spec!r}. {advice}")


def _loader(name: str) -> Callable[[Asked], VisionModel]:
    load: Callable[[Asked], VisionModel] = import_module(f"{__package__}.{name}").load
    return load


def _moved(vision: VisionModel, device: str) -> VisionModel:
    if not is_torch_module(vision.network):
        raise OptionError(
            f"device is for PyTorch's networks; received device={device!r} for {vision.name}, which runs where "
            "its framework finds a device. Leave it out, and set CUDA_VISIBLE_DEVICES to choose one."
        )
    try:
        network = vision.network.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OptionError(
            f'device must be there; received device={device!r} ({reason}). Pass "cpu", or another one.'
        ) from error
    return replace(vision, network=network)
