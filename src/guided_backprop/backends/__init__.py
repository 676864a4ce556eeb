"""Which framework a model is written in. Looks only at what is already imported; imports no framework."""

import sys
from importlib import import_module
from typing import Any

from guided_backprop.backends.base import Backend, Vouch
from guided_backprop.errors import MissingExtraError, ModelError

__all__ = ["backend_for", "framework_of"]

_BACKENDS = {"torch": "TorchBackend", "tensorflow": "TensorFlowBackend", "jax": "JaxBackend"}


def framework_of(model: Any, images: Any = None) -> str | None:
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
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Layer):
        return str(keras.config.backend())
    found = _origins(type(model)) or _origins(type(images))
    if len(found) != 1 and len(imported) == 1:
        found = imported
    return found[0] if len(found) == 1 else None


def backend_for(framework: str, model: Any, *, undo_head: bool, vouch: Vouch) -> Backend:
    """Return the backend of ``framework`` for ``model``."""
    backend = getattr(import_module(f"{__name__}.{framework}"), _BACKENDS[framework])
    return backend(model, undo_head=undo_head, vouch=vouch)  # type: ignore[no-any-return]


def _origins(kind: type) -> list[str]:
    """Return the frameworks that a type, or a type that it is derived from, was defined by."""
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    owners = {"jaxlib": "jax", "flax": "jax", "equinox": "jax", "haiku": "jax"}
    return sorted({owners.get(package, package) for package in packages} & _BACKENDS.keys())
