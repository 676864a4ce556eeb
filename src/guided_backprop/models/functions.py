"""Models that a function of the user's returns: ``package.module:function``, or ``file.py:function``."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha1
from importlib import import_module, invalidate_caches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from guided_backprop.backends.keras import is_keras
from guided_backprop.errors import ModelError
from guided_backprop.models import keras_file, saved_model, torch_file
from guided_backprop.models.asked import Asked
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel, is_torch_module
from guided_backprop.models.weights import require_learned

# What functions that build a known architecture call what they load into it.
_WEIGHTS = ("weights", "pretrained")
# What a torch module gets that comes alone: as torchvision's ImageNet networks are evaluated.
_IMAGENET = ResizeCrop(
    (224, 224),
    crop=0.875,
    resampling="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    said="as ImageNet networks have it, for the model says nothing",
)


def load(asked: Asked) -> VisionModel:
    """Call the function, and return its model.

    Raises:
        ModelError: its module isn't there or has no such function, it returns no model, or one of random weights.
    """
    source, _, name = asked.spec.rpartition(":")
    with _importable(Path(source).parent if source.endswith(".py") else Path.cwd()):
        module = _from_file(source, asked.spec) if source.endswith(".py") else _import(source, asked.spec)
        function = getattr(module, name, None)
        if not callable(function):
            raise ModelError(
                f"model must name a function; received model={asked.spec!r}, and {source} has no "
                f"function {name!r}. Correct the part after the colon."
            )
        if not asked.random_weights:
            _require_weights(function, asked.spec)
        return _vision_model(function(), asked)


def is_function(spec: str) -> bool:
    """Tell whether a specification reads ``package.module:function`` or ``file.py:function``."""
    source, _, name = spec.rpartition(":")
    is_module = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", source) is not None
    return name.isidentifier() and (is_module or source.endswith(".py"))


def _require_weights(function: Callable[..., object], spec: str) -> None:
    """Refuse a builder of networks that loads weights only where it is asked to."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    for name in _WEIGHTS:
        if name in parameters and parameters[name].default in (None, False):
            require_learned(None, spec, f"without arguments it has {name}={parameters[name].default}")


def _import(module_name: str, spec: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            advice = "Run the command in the folder that contains it, or install it."
        else:
            advice = f"Install what {module_name} imports."
        raise ModelError(
            f"model must name a module that can be imported; received model={spec!r}, and there is "
            f"no module {error.name!r}. {advice}"
        ) from error


def _from_file(path: str, spec: str) -> ModuleType:
    if not Path(path).is_file():
        raise ModelError(f"model must name a file; received model={spec!r}, and no such file. Pass another path.")
    # A name that no other module has: a file may be called as one.
    name = f"{Path(path).stem}_{sha1(str(Path(path).resolve()).encode()).hexdigest()[:8]}"
    described = spec_from_file_location(name, path)
    if described is None:
        raise ModelError(f"model must name a Python file; received model={spec!r}. Pass another path.")
    module = module_from_spec(described)
    sys.modules[name] = module
    try:
        # From the text: what Python keeps compiled is also taken for that of a file that was changed within a second.
        exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _vision_model(loaded: object, asked: Asked) -> VisionModel:
    if isinstance(loaded, VisionModel):
        asked.refuse_preprocessing()
        return replace(loaded, class_names=asked.class_names(loaded.class_names))
    if isinstance(loaded, tuple) and len(loaded) == 2 and all(map(callable, loaded)):
        asked.refuse_preprocessing()
        return VisionModel(asked.spec, *loaded, asked.class_names())
    if is_torch_module(loaded):
        is_said = bool(set(asked.options.said()) - {"classes"})
        return (
            asked.vision_model(loaded) if is_said else VisionModel(asked.spec, loaded, _IMAGENET, asked.class_names())
        )
    for is_kind, loader in _STORED:
        if is_kind(loaded):
            return loader(loaded, asked)
    raise ModelError(
        "model must come as a network of PyTorch or Keras, a tuple (model, preprocess) or a VisionModel; received "
        f"{type(loaded).__qualname__} from {asked.spec!r}. Return one of these from the function."
    )


# What a function may return that a loader of files knows.
_STORED: tuple[tuple[Callable[[Any], bool], Callable[[Any, Asked], VisionModel]], ...] = (
    (is_keras, keras_file.of_network),
    (lambda loaded: type(loaded).__name__ == "ExportedProgram", torch_file.of_program),
    (lambda loaded: hasattr(loaded, "signatures"), saved_model.of_loaded),
)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, as ``python -m`` does of the current one."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    invalidate_caches()
    try:
        yield
    finally:
        # Only this entry: what the user's module put on the path may still be needed.
        with suppress(ValueError):
            sys.path.remove(entry)
