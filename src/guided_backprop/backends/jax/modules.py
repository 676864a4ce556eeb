"""Whether a model is a module of one of the libraries that are built on JAX."""

import sys
from typing import Any


def is_of(model: Any, library: str) -> bool:
    """Tell whether the model is a module of this library, which is not imported to find out."""
    return library in sys.modules and isinstance(model, sys.modules[library].Module)
