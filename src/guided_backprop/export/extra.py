"""The packages of the extra ``[export]``, which are imported when a graph is written or run."""

from importlib import import_module
from types import ModuleType

from guided_backprop.errors import MissingExtraError


def package(name: str) -> ModuleType:
    """Return a package of the extra.

    Raises:
        MissingExtraError: it isn't installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"an exported graph needs {name}; received an environment without it. "
            "Run: pip install 'guided-backprop[export]'."
        ) from error
