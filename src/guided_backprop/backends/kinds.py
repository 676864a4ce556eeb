"""What is to be known of a class or a function before it is looked into: whose it is, where its instances keep what."""

import sys
from types import FunctionType, MappingProxyType

# Whose code reads what it is given, and settings.
FRAMEWORKS = frozenset(
    "tensorflow keras tf_keras jax jaxlib flax equinox haiku numpy ml_dtypes wrapt tree optree".split()
)
_STANDARD = frozenset(
    "abc builtins cmath collections contextlib copy dataclasses enum functools inspect itertools math numbers operator "
    "re reprlib string types typing typing_extensions warnings weakref _weakrefset threading _thread".split()
)
KNOWN = FRAMEWORKS | _STANDARD
CONTAINERS = (list, tuple, dict, set, frozenset, MappingProxyType)


def root_of(module: str | None) -> str:
    """Return the package of a module."""
    return (module or "").partition(".")[0]


def is_known(kind: type) -> bool:
    """Tell whether a class is a framework's, or Python's own."""
    return root_of(kind.__module__) in KNOWN


def is_users(function: FunctionType) -> bool:
    """Tell whether a function's code is not a framework's."""
    # Not by its own __module__, which a wrapper takes from what it wraps.
    return root_of(function.__globals__.get("__name__")) not in KNOWN


def is_of_c(kind: type) -> bool:
    """Tell whether instances of a class hold what Python does not see."""
    made = (vars(one).get("__new__") for one in kind.__mro__ if one is not object and one not in CONTAINERS)
    return any(new is not None and not isinstance(new, (staticmethod, FunctionType)) for new in made)


def slots_of(kind: type) -> list[str]:
    """Return the attributes of a class's instances that are in no dictionary."""
    names = []
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_own = name.startswith("__") and not name.endswith("__")
            names.append(f"_{one.__name__.lstrip('_')}{name}" if is_own else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def is_asked(kind: type, name: str) -> bool:
    """Tell whether a framework's part of a class has code that may read this attribute."""
    parts = (part for one in kind.__mro__ if is_known(one) for part in vars(one).values())
    return any(name in part.__code__.co_names for part in parts if isinstance(part, FunctionType))


def arrays() -> tuple[type, ...]:
    """Return the arrays that nobody can change, and the variables, which are read when a trace is run."""
    kinds = (("jax", ("Array",)), ("tensorflow", ("Tensor", "Variable")))
    return tuple(getattr(sys.modules[name], one) for name, all_of in kinds if name in sys.modules for one in all_of)
