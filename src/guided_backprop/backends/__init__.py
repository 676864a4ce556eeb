"""The frameworks, one row each, and which one a model is written in. No framework is imported to find out."""

import sys
from importlib import import_module
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from guided_backprop.arrays import Array, Images, Model
from guided_backprop.backends.base import Backend
from guided_backprop.backends.keras import framework_of_keras
from guided_backprop.errors import MissingExtraError, ModelError

__all__ = ["FRAMEWORKS", "backend_of", "framework_of", "framework_of_array"]


class Framework(NamedTuple):
    """Where a framework's backend is, and whose models are its own.

    Attributes:
        backend: the name of the backend's class, in the folder that is called as the framework.
        packages: a model or an array is the framework's if its type, or one that it is derived from, is defined in
            one of these.
    """

    backend: str
    packages: frozenset[str]


FRAMEWORKS = {
    "torch": Framework("TorchBackend", frozenset({"torch"})),
    "tensorflow": Framework("TensorFlowBackend", frozenset({"tensorflow"})),
    "jax": Framework("JaxBackend", frozenset({"jax", "jaxlib", "flax", "equinox", "haiku"})),
}

# By type, for each call asks for it: of a type that nobody holds nothing is kept.
_OWNERS: Final[WeakKeyDictionary[type, frozenset[str]]] = WeakKeyDictionary()


def framework_of(model: Model, *images: Images) -> str | None:
    """Return the name of the framework; None if neither model nor images tell.

    A module or layer says it itself. A plain function takes what its images are; NumPy images, the only
    framework that is imported.

    Raises:
        ModelError: the model is a Keras model on a framework that is not supported.
        MissingExtraError: no supported framework is imported, so the model cannot be of one.
    """
    imported = [framework for framework in FRAMEWORKS if framework in sys.modules]
    if not imported:
        raise MissingExtraError(
            "model must be written in a supported framework; received "
            f"model={type(model).__qualname__} and no framework is imported. "
            "Run: pip install 'guided-backprop[torch]', [tensorflow] or [jax]."
        )
    under_keras = framework_of_keras(model)
    if under_keras is not None:
        if under_keras not in FRAMEWORKS:
            raise ModelError(
                f"Keras must run on {', '.join(FRAMEWORKS)}; received a Keras model on {under_keras}. "
                "Set KERAS_BACKEND before Keras is imported."
            )
        return under_keras
    owners = _owners(type(model)) or frozenset().union(*(_owners(type(image)) for image in images))
    if len(owners) != 1 and len(imported) == 1:
        return imported[0]
    return next(iter(owners)) if len(owners) == 1 else None


def framework_of_array(array: Array) -> str | None:
    """Return the name of the framework that an array is of; None if it is NumPy's, or of another kind."""
    return next(iter(_owners(type(array))), None)


def backend_of(framework: str) -> type[Backend]:
    """Return the backend's class; the framework is imported."""
    kind: type[Backend] = getattr(import_module(f"{__name__}.{framework}"), FRAMEWORKS[framework].backend)
    return kind


def _owners(kind: type) -> frozenset[str]:
    """Return the frameworks that a type, or a type that it is derived from, was defined by."""
    known = _OWNERS.get(kind)
    if known is None:
        packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
        known = frozenset(name for name, framework in FRAMEWORKS.items() if framework.packages & packages)
        _OWNERS[kind] = known
    return known
