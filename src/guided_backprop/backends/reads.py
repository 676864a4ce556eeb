"""What a trace of a model can read: as long as that is the same, the model traces alike.

A trace is what the model's code makes of what it reaches: the attributes of its objects, what functions close over, and
the global names in their code. All of that is walked through, in one order, and noted: numbers by value, containers and
objects by what is in them, arrays that nobody can change by identity. The code of the frameworks themselves is taken as
it is; what they hold of the user's is walked through too. Where something is met that may change unseen (an iterator, a
file, random numbers, a module of the user's, an object that is written in C), nothing is told.

Nothing is held by what was noted, so it can be kept for as long as the model lives without making it live longer.
"""

import builtins
import functools
import hashlib
import sys
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any, ClassVar, NamedTuple

import numpy as np

from guided_backprop.arrays import Model
from guided_backprop.backends.code import Uses, uses_of

# Whose code reads what it is given, and settings.
_FRAMEWORKS = frozenset(
    "tensorflow keras tf_keras jax jaxlib flax equinox haiku numpy ml_dtypes wrapt tree optree".split()
)
_STANDARD = frozenset(
    "abc builtins cmath collections contextlib copy dataclasses enum functools inspect itertools math numbers operator "
    "re string types typing typing_extensions warnings weakref _weakrefset threading".split()
)
_KNOWN = _FRAMEWORKS | _STANDARD
_ATOMS = (type(None), bool, int, str, bytes, type(...), type(NotImplemented), range)
_CONTAINERS = (list, tuple, dict, set, frozenset, MappingProxyType)
# What says nothing of a class: how its instances lie in memory.
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, WrapperDescriptorType)
# Code that is written in C, and reads what it is given.
_CODE_OF_C = (MethodDescriptorType, ClassMethodDescriptorType, np.ufunc)
# Attributes by which anything can be reached, or a variable's value during a trace.
_HIDDEN = frozenset(
    "__globals__ __builtins__ __subclasses__ f_back f_globals environ modules random init_scope numpy".split()
)
# By these an attribute is read that the code does not name.
_BY_ANY_NAME = frozenset("getattr vars __dict__ __getattribute__ attrgetter".split())
# What wraps containers to track what is put into them.
_PROXIES = ("tensorflow.python.trackable.data_structures",)
_UNSAFE = frozenset("open eval exec input globals locals compile breakpoint __import__ next iter".split())
# What a layer remembers of its calls, of training, and of the other models that it is in.
_NOTES = frozenset(
    """_tracker _called _auto_config _build_shapes_dict _inbound_nodes _outbound_nodes _inbound_nodes_value
    _outbound_nodes_value _losses _loss_ids _eager_losses optimizer loss history _loss_tracker _compile_loss
    _compile_metrics _compile_config compiled_metrics compiled_loss train_function test_function
    predict_function""".split()
)
_MOST = 2_000_000


#: What was noted, in order.
Reads = list[object]


def read_by(model: Model) -> Reads | None:
    """Return what is equal as long as a model traces alike; None if that can't be told."""
    walk = _Walk()
    try:
        walk.through(model)
    except Exception:
        # Whatever keeps it from being told.
        return None
    return walk.noted()


class _Unknown(Exception):  # noqa: N818 - no error: the model is traced anew
    """Something may change unseen."""


class _Same:
    """Is equal to another one of the same thing, for as long as that lives."""

    __slots__ = ("_held",)

    def __init__(self, thing: Any) -> None:
        self._held = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        thing = self._held()
        return isinstance(other, _Same) and thing is not None and thing is other._held()

    __hash__ = None  # type: ignore[assignment]


class _Number(NamedTuple):
    """An attribute that may be a counter: a number, of an object of the user's."""

    name: str
    value: int


class _Kind:
    """What is to be known of a class, to look into its instances."""

    def __init__(self, kind: type) -> None:
        self.same, self.is_of_c, self.slots, self.is_known = _Same(kind), _is_of_c(kind), _slots(kind), _is_known(kind)
        self.is_layer = any(root_of(one.__module__) in ("keras", "tf_keras") for one in kind.__mro__)


class _Walk:
    """One walk through all that a model can reach."""

    def __init__(self) -> None:
        self._notes: Reads = []
        # By identity, with the thing: as long as that is held, nothing else has its identity.
        self._met: dict[int, tuple[int, object]] = {}
        self._left: list[Any] = []
        self._kinds: dict[type, _Kind] = {}
        # Which attributes the user's code writes and does not read, and which it reads.
        self._written, self._read, self._skipped = set[str](), set[str](), set[str]()

    def through(self, model: Model) -> None:
        """Walk."""
        self._notes.append(_settings())
        self._left.append(model)
        while self._left:
            self._meet(self._left.pop())
            if len(self._notes) > _MOST:
                raise _Unknown
        if self._skipped & self._read:
            raise _Unknown

    def noted(self) -> Reads:
        """Return what was noted, without the counters that are written and not read."""
        written = set() if self._read & _BY_ANY_NAME else self._written - self._read
        return [note for note in self._notes if not (type(note) is _Number and note.name in written)]

    def _note(self, *notes: object) -> None:
        self._notes += notes

    def _meet(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS:
            return self._note(kind, value)
        if kind is float or kind is complex:
            # Not by ==, for which -0.0 is 0.0 and NaN not NaN.
            return self._note(kind, repr(value))
        if id(value) in self._met:
            return self._note("again", self._met[id(value)][0])
        self._met[id(value)] = len(self._met), value
        if type(value).__module__ in _PROXIES:
            value = getattr(value, "__wrapped__", value)
        if isinstance(value, _CONTAINERS):
            return self._container(value)
        for kinds, meet in self._MEETINGS.items():
            if isinstance(value, kinds):
                return meet(self, value)
        if not self._leaf(value):
            self._object(value)
        return None

    def _container(self, value: Any) -> None:
        held = [one for pair in value.items() for one in pair] if isinstance(value, (dict, MappingProxyType)) else value
        self._note(_Same(type(value)), len(value))
        self._left += held
        if hasattr(value, "__dict__") or not _is_known(type(value)):
            self._object(value)

    def _leaf(self, value: Any) -> bool:
        """Note what is no more than itself."""
        if isinstance(value, (Enum, np.dtype, np.generic)) or type(value).__name__ == "DType":
            self._note(_Same(type(value)), repr(value))
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self._note(value.shape, value.dtype.str, hashlib.blake2b(value.tobytes()).digest())
        elif _is_array(value):
            self._note(_Same(value))
        elif isinstance(value, weakref.ref):
            self._note("weak")
            self._left.append(value())
        elif isinstance(value, _CODE_OF_C):
            self._note(repr(value))
        elif hasattr(value, "python_function") or type(value).__name__ == "PjitFunction":
            # What these remember of former traces, a new trace would be made of as well.
            self._note(_Same(value))
            self._left.append(getattr(value, "python_function", None) or value.__wrapped__)
        elif type(value).__name__ == "PyTreeDef":
            self._note("tree", value.num_leaves)
            self._left += [value.node_data(), value.children()]
        elif isinstance(value, (GenericAlias, UnionType)):
            self._note("type")
            self._left.append(value.__args__)
        elif (
            type(value) is object
            or type(value).__name__ == "PythonAPIDispatcher"
            or type(value).__qualname__ in ("lock", "RLock")
        ):
            self._note("object")
        else:
            return False
        return True

    def _object(self, value: Any) -> None:
        kind = type(value)
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(kind)
        told = self._kinds[kind]
        if told.is_of_c:
            raise _Unknown
        self._notes.append(told.same)
        self._left.append(kind)
        slots = ((name, getattr(value, name)) for name in told.slots if hasattr(value, name))
        for name, held in [*getattr(value, "__dict__", {}).items(), *slots]:
            if told.is_layer and name in _NOTES:
                self._skipped.add(name)
            elif type(held) is int and not told.is_known and not _is_asked(kind, name):
                self._notes.append(_Number(name, held))
            else:
                self._notes.append(name)
                self._left.append(held)

    def _class(self, kind: type) -> None:
        self._note(_Same(kind))
        if _is_known(kind):
            # What somebody put into a framework's class.
            self._left += [
                held for held in list(vars(kind).values()) if isinstance(held, FunctionType) and _is_users(held)
            ]
            return
        for name, held in list(vars(kind).items()):
            is_code = isinstance(held, (FunctionType, property, staticmethod, classmethod))
            if isinstance(held, _DESCRIPTORS) or (name.startswith("__") and not is_code) or name == "_abc_impl":
                continue
            self._note(name)
            self._left.append(held)
        self._note(kind.__name__, kind.__doc__)
        self._left += [kind.__bases__, type(kind)]

    def _function(self, function: FunctionType) -> None:
        uses = uses_of(function.__code__) if _is_users(function) else None
        self._note(_Same(function.__code__))
        self._left += [function.__defaults__, function.__kwdefaults__, vars(function)]
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._named(name, _held(cell), uses)
        if uses is not None:
            self._globals(function, uses)

    def _globals(self, function: FunctionType, uses: Uses) -> None:
        self._written |= uses.written_attributes
        self._read |= uses.attributes | (uses.globals & _BY_ANY_NAME)
        if uses.attributes & _HIDDEN or any(root_of(name) not in _KNOWN for name in uses.modules):
            raise _Unknown
        for name in sorted(uses.globals - set(function.__code__.co_freevars)):
            if name in function.__globals__:
                self._named(name, function.__globals__[name], uses)
            elif name in _UNSAFE:
                raise _Unknown
            else:
                self._named(name, vars(builtins).get(name), uses)

    def _named(self, name: str, value: object, uses: Uses | None) -> None:
        self._note(name)
        if uses is None or name not in uses.written or type(value) not in (int, list, dict, set):
            self._left.append(value)

    def _method(self, method: Any) -> None:
        self._note("method", method.__name__)
        self._left.append(method.__self__)
        if isinstance(method, MethodType):
            self._left.append(method.__func__)

    def _module(self, module: ModuleType) -> None:
        if root_of(module.__name__) not in _KNOWN:
            raise _Unknown
        self._note(_Same(module))

    def _partial(self, function: functools.partial[Any]) -> None:
        self._note("partial")
        self._left += [function.func, function.args, function.keywords]

    def _wrapped(self, holder: Any) -> None:
        self._note(type(holder).__name__)
        self._left += [getattr(holder, name, None) for name in ("__func__", "fget", "fset", "fdel")]

    _MEETINGS: ClassVar[Mapping[Any, Callable[["_Walk", Any], None]]] = {
        type: _class,
        FunctionType: _function,
        (MethodType, BuiltinFunctionType, MethodWrapperType): _method,
        ModuleType: _module,
        functools.partial: _partial,
        (property, staticmethod, classmethod): _wrapped,
    }


def root_of(module: str | None) -> str:
    """Return the package of a module."""
    return (module or "").partition(".")[0]


def _is_known(kind: type) -> bool:
    return root_of(kind.__module__) in _KNOWN


def _is_users(function: FunctionType) -> bool:
    # Not by its own __module__, which a wrapper takes from what it wraps.
    return root_of(function.__globals__.get("__name__")) not in _KNOWN


def _is_of_c(kind: type) -> bool:
    """Tell whether instances of a class hold what Python does not see."""
    made = (vars(one).get("__new__") for one in kind.__mro__ if one is not object and one not in _CONTAINERS)
    return any(new is not None and not isinstance(new, (staticmethod, FunctionType)) for new in made)


def _slots(kind: type) -> list[str]:
    """Return the attributes of a class's instances that are in no dictionary."""
    names = []
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_own = name.startswith("__") and not name.endswith("__")
            names.append(f"_{one.__name__.lstrip('_')}{name}" if is_own else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _is_asked(kind: type, name: str) -> bool:
    """Tell whether a framework's part of a class has code that may read this attribute."""
    parts = (part for one in kind.__mro__ if _is_known(one) for part in vars(one).values())
    return any(name in part.__code__.co_names for part in parts if isinstance(part, FunctionType))


def _is_array(value: object) -> bool:
    """Tell whether something is an array that nobody can change, or a variable, which is read when a trace is run."""
    kinds = (("jax", ("Array",)), ("tensorflow", ("Tensor", "Variable")))
    held = (getattr(sys.modules[name], kind) for name, all_of in kinds if name in sys.modules for kind in all_of)
    return isinstance(value, tuple(held))


def _held(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing"


def _settings() -> list[object]:
    """Return what the frameworks' own code reads besides what it is given."""
    said: list[object] = []
    for name in ("keras", "tf_keras"):
        backend = getattr(sys.modules.get(name), "backend", None)
        if backend is not None:
            said += [backend.floatx(), backend.epsilon(), backend.image_data_format()]
    if "jax" in sys.modules:
        config = sys.modules["jax"].config
        said += [config.jax_enable_x64, config.jax_default_matmul_precision, config.jax_numpy_dtype_promotion]
    return said
