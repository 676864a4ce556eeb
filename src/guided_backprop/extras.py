"""Packages that not everybody has, imported when something needs them."""

from importlib import import_module
from types import ModuleType

from guided_backprop.errors import MissingExtraError


def imported(name: str, *, who: str, install: str) -> ModuleType:
    """Return a package, or a module of one.

    Args:
        name: what is imported.
        who: what asks for it, as a sentence begins: ``"jobs need"``.
        install: what pip is told.

    Raises:
        MissingExtraError: it isn't installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{who} {name.partition('.')[0]}; received an environment without it. Run: pip install {install}."
        ) from error
