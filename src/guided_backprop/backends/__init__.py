"""Which framework a model is written in. Looks only at what is already imported; imports no framework."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from guided_backprop.arrays import inputs_of
from guided_backprop.backends import keras
from guided_backprop.backends.base import Backend, Vouch
from guided_backprop.backends.keras_copy import KerasCopy
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import no_layer
from guided_backprop.errors import MissingExtraError, ModelError, OptionError

__all__ = ["backend_for", "copy_of", "framework_of", "layer_name", "layer_names"]

_BACKENDS = {"torch": "TorchBackend", "tensorflow": "TensorFlowBackend", "jax": "JaxBackend"}


def framework_of(model: Any, *images: Any) -> str | None:
    """Return "torch", "tensorflow" or "jax"; None if neither model nor images tell.

    A module or layer says it itself. A plain function takes what its images are; NumPy images, the only
    framework that is imported.

    Raises:
        ModelError: the model is not callable.
        MissingExtraError: no supported framework is imported, so the model cannot be of one.
    """
    if not callable(model):
        raise ModelError(
            "model must be a module, a layer or a function of tensors; "
            f"received model={model!r:.80}. Pass the model itself."
        )
    imported = [framework for framework in _BACKENDS if framework in sys.modules]
    if not imported:
        raise MissingExtraError(
            "model must be written in a supported framework; received "
            f"model={type(model).__qualname__} and no framework is imported. "
            "Run: pip install 'guided-backprop[torch]', [tensorflow] or [jax]."
        )
    if keras.is_keras(model):
        return str(sys.modules["keras"].config.backend())
    found = _origins(type(model)) or sorted({origin for values in images for origin in _origins(type(values))})
    if len(found) != 1 and len(imported) == 1:
        found = imported
    return found[0] if len(found) == 1 else None


def backend_for(
    framework: str,
    model: Any,
    *,
    output_layer: Any = None,
    begin: Any = None,
    output: str | int | None,
    undo_head: bool,
    vouch: Vouch,
    memory: str | None = None,
) -> Backend:
    """Return the backend of ``framework`` for ``model``.

    Args:
        framework: "torch", "tensorflow" or "jax".
        model: the model.
        output_layer: the layer that the model ends with; None for the whole model.
        begin: the layer whose output the gradient is taken at; None for the images.
        output: which of several outputs is explained.
        undo_head: whether a final softmax or sigmoid is undone.
        vouch: what is known of parts that hide what they compute.
        memory: "lean" to keep less for the backward pass.

    Raises:
        OptionError: the model has no such layer.
        ModelError: the model has no layers, or how they are connected is not known.
    """
    kind = getattr(import_module(f"{__name__}.{framework}"), _BACKENDS[framework])
    options: dict[str, Any] = {"output": output, "undo_head": undo_head, "vouch": vouch}
    if memory is not None:
        if framework != "torch":
            raise OptionError(
                f'memory="lean" is for PyTorch; received memory={memory!r} for {framework}, which plans its memory '
                "itself. Pass None, and batch_size."
            )
        options["is_lean"] = True
    layer = output_layer if begin is None else begin
    if layer is None:
        return kind(model, **options)  # type: ignore[no-any-return]
    if framework == "jax" and not keras.is_keras(model):
        return kind(model, **{"tap" if begin is None else "begin": layer}, **options)  # type: ignore[no-any-return]
    layers = _layers(model)
    name = _name(layer, layers.layers_of(model))
    part = layers.run_until(model, name) if begin is None else layers.run_with(model, name)
    if begin is not None:
        options["begins_inside"] = True
    if keras.is_keras(part):
        return kind(part, **options)  # type: ignore[no-any-return]
    return kind(model, forward=part, **options)  # type: ignore[no-any-return]


def copy_of(framework: str, model: Any, images: Any, run: Callable[[Any], Any], seed: int) -> PrivateCopy:
    """Return a private copy of a model, whose layers can be re-initialised.

    Args:
        framework: "torch", "tensorflow" or "jax".
        model: the user's model.
        images: some images.
        run: runs a model on them as a method does, forward only, so that the order of the layers is known.
        seed: chooses what layers are re-initialised to.

    Raises:
        ModelError: the model hides its weights, or can't be copied.
    """
    if keras.is_keras(model):
        return KerasCopy(model, run, seed)
    if framework == "tensorflow":
        raise ModelError(
            "the weights of a TensorFlow model can be re-initialised if it is a Keras model; received "
            f"model={getattr(model, '__qualname__', type(model).__name__)}, which hides them. Pass the Keras model."
        )
    module = import_module(f"{__name__}.{framework}.randomize")
    if framework == "jax":
        return module.JaxCopy(model, images, seed)  # type: ignore[no-any-return]
    return module.TorchCopy(model, run, seed)  # type: ignore[no-any-return]


def layer_names(model: Any, images: Any = None) -> list[str]:
    """Return the names that ``output_layer`` may have, in the model's own order.

    Args:
        model: a ``torch.nn.Module``, whose modules are named as in ``named_modules()``; a Keras model; or a
            JAX function that names its values with ``guided_backprop.jax.tap``.
        images: a batch of the images, for a JAX function: its names are known when it is traced.

    Raises:
        ModelError: the model has no layers: it is a plain function, a scripted module or of another kind.

    Example:
        >>> import torch
        >>> from guided_backprop import layer_names
        >>> layer_names(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
        ['0', '1']
    """
    if images is not None and not keras.is_keras(model) and framework_of(model, *inputs_of(images)) == "jax":
        return list(import_module(f"{__name__}.jax.tap").names_of(model, images))
    return list(_layers(model).layers_of(model))


def _layers(model: Any) -> ModuleType:
    torch: Any = sys.modules.get("torch")
    if keras.is_keras(model):
        return keras
    if torch is not None and isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        return import_module(f"{__name__}.torch.layers")
    raise ModelError(
        f"a layer by name needs a torch.nn.Module or a Keras model; received model={type(model).__name__}, which has "
        "no layers by name. Pass a function that returns the output of the layer."
    )


def layer_name(model: Any, layer: Any) -> Any:
    """Return the name of a layer that may be given by itself; a name or position as it is.

    Raises:
        OptionError: the layer is not in the model.
    """
    if layer is None or isinstance(layer, (int, str)):
        return layer
    return _name(layer, _layers(model).layers_of(model))


def _name(layer: Any, layers: Mapping[str, Any]) -> str:
    """Return the name of a layer that is given by itself, by its position or by its name."""
    names = list(layers)
    if isinstance(layer, int) and -len(names) <= layer < len(names):
        return names[layer]
    if isinstance(layer, str) and layer in names:
        return layer
    if not isinstance(layer, (int, str)):
        names = [name for name, each in layers.items() if each is layer]
        if names:
            return names[0]
        raise OptionError(
            f"layer must be a part of the model; received layer={type(layer).__name__}, which is not in "
            "it. Pass a layer of this model, or its name."
        )
    raise no_layer(layer, names)


def _origins(kind: type) -> list[str]:
    """Return the frameworks that a type, or a type that it is derived from, was defined by."""
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    owners = {"jaxlib": "jax", "flax": "jax", "equinox": "jax", "haiku": "jax"}
    return sorted({owners.get(package, package) for package in packages} & _BACKENDS.keys())
