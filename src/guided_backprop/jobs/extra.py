"""The packages of the extra ``[jobs]``, which are imported when a job needs them."""

from importlib import import_module
from types import ModuleType

from guided_backprop.errors import MissingExtraError


def package(name: str) -> ModuleType:
    """Return a package of the extra, or a module of one.

    Raises:
        MissingExtraError: it isn't installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"jobs need {name.partition('.')[0]}; received an environment without it. "
            "Run: pip install 'guided-backprop[jobs]'."
        ) from error
