"""What a module is made of, so that its trace can be used again: as long as that is the same, it traces alike.

Modules say it themselves, in less time than backends/reads.py takes to look through all that a model can read: their
arrays, which JAX never changes in place, and their structure.
"""

import sys
from collections.abc import Hashable
from functools import partial
from types import MethodType
from typing import Any

import jax
import numpy as np

from guided_backprop.backends.jax.cache import Identity
from guided_backprop.backends.network import Network

# What is compared by its value.
_PLAIN = frozenset({bool, int, float, str})


def state_of(network: Network) -> Hashable | None:
    """Return what is equal as long as a network traces alike; None if that can't be told.

    Two of them may be compared only for one network: it is what holds them together.
    """
    try:
        parts = network.parts()
        state = _state(network.model) if parts is None else tuple(map(_attribute, parts))
        hash(state)
    except Exception:
        # A module may hold what can be neither hashed nor compared.
        return None
    return state


def _state(model: Any) -> Hashable | None:
    if isinstance(model, partial):
        # A linen module is a frozen dataclass; its parameters come as an argument.
        function: Any = model.func
        if not isinstance(function, MethodType) or not is_of(function.__self__, "flax.linen"):
            return None
        return function.__self__, function.__func__, _leaves((model.args, dict(model.keywords)))
    if is_of(model, "flax.nnx"):
        structure, state = sys.modules["flax.nnx"].split(model)
        return structure, _leaves(state)
    return _leaves(model) if is_of(model, "equinox") else None


def is_of(model: Any, library: str) -> bool:
    """Tell whether the model is a module of this library, which is not imported to find out."""
    return library in sys.modules and isinstance(model, sys.modules[library].Module)


def _attribute(value: Any) -> Hashable:
    """Return what tells a layer's attribute from another; what is put into a container in place is not seen."""
    kind = type(value)
    # Asked of thousands in each call, so the most frequent kinds come first.
    if kind in _PLAIN:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, np.ndarray):
        raise _Changeable
    return value if issubclass(kind, (bool, int, float, str)) else Identity(value)


def _leaves(tree: Any) -> Hashable:
    leaves, structure = jax.tree_util.tree_flatten(tree)
    return structure, tuple(map(_leaf, leaves))


def _leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, np.ndarray):
        raise _Changeable
    return Identity(leaf) if isinstance(leaf, jax.Array) or callable(leaf) else leaf


class _Changeable(Exception):  # noqa: N818 - no error: the model is traced anew
    """An array of NumPy's can change and stay the same object."""
