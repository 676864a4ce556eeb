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
from typing import Any, NamedTuple

import numpy as np

from guided_backprop.arrays import Model
from guided_backprop.backends.code import Uses, uses_of
from guided_backprop.backends.kinds import (
    CONTAINERS,
    FRAMEWORKS,
    KNOWN,
    arrays,
    is_asked,
    is_known,
    is_of_c,
    is_users,
    root_of,
    slots_of,
)

_ATOMS = (type(None), bool, int, str, bytes, type(...), type(NotImplemented), range)
# What says nothing of a class: how its instances lie in memory.
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, WrapperDescriptorType)
# Code that is written in C, and reads what it is given.
_CODE_OF_C = (MethodDescriptorType, ClassMethodDescriptorType)
# Attributes by which anything can be reached, or a variable's value during a trace.
_HIDDEN = frozenset(
    "__globals__ __builtins__ __subclasses__ f_back f_globals environ modules random init_scope numpy".split()
)
# By these an attribute is read that the code does not name.
_BY_ANY_NAME = frozenset("getattr vars __dict__ __getattribute__ attrgetter".split())
# What wraps containers to track what is put into them.
_PROXIES = ("tensorflow.python.trackable.data_structures",)
_UNSAFE = frozenset("open eval exec input globals locals compile breakpoint __import__ next iter".split())
# What a layer remembers of its making, its calls, of training, and of the other models that it is in.
_NOTES = frozenset(
    """build quantize _tracker _called _auto_config _build_shapes_dict _inbound_nodes _outbound_nodes
    _inbound_nodes_value
    _outbound_nodes_value _losses _loss_ids _eager_losses _losses_override optimizer loss history _loss_tracker
    _compile_loss _compile_metrics _compile_config compiled_metrics compiled_loss train_function test_function
    predict_function _call_signature call_signature_parameters _initializer kernel_initializer bias_initializer
    depthwise_initializer pointwise_initializer gamma_initializer beta_initializer moving_mean_initializer
    moving_variance_initializer _unconditional_checkpoint_dependencies _unconditional_dependency_names
    _self_unconditional_checkpoint_dependencies _self_unconditional_dependency_names
    _self_unconditional_deferred_dependencies _obj_reference_counts_dict""".split()
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


class _Walk:
    """One walk through all that a model can reach."""

    def __init__(self) -> None:
        self._notes: Reads = []
        # By identity, with the thing: as long as that is held, nothing else has its identity.
        self._met: dict[int, tuple[int, object]] = {}
        self._left: list[Any] = []
        self._kinds: dict[type, _Kind] = {}
        self._looked: set[tuple[int, frozenset[str]]] = set()
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
        known = self._met.get(id(value))
        if known is not None:
            return self._note("again", known[0])
        self._met[id(value)] = len(self._met), value
        if kind.__module__ in _PROXIES:
            value = getattr(value, "__wrapped__", value)
            kind = type(value)
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(kind)
        return self._kinds[kind].meet(self, value)

    def container(self, value: Any) -> None:
        """Note what a container holds, and what makes what it does not hold."""
        kind = type(value)
        held = [one for pair in value.items() for one in pair] if isinstance(value, (dict, MappingProxyType)) else value
        self._note(self._kinds[kind].same, len(value))
        self._left += held
        self._left.append(getattr(value, "default_factory", None))
        if not self._kinds[kind].is_known:
            self.instance(value)

    def number(self, value: Any) -> None:
        """Note a value by how it is written."""
        self._note(self._kinds[type(value)].same, repr(value))

    def array(self, value: Any) -> None:
        """Note an array of NumPy's by its values."""
        if type(value) is not np.ndarray or value.dtype.hasobject:
            raise _Unknown
        self._note(value.shape, value.dtype.str, hashlib.blake2b(value.tobytes()).digest())

    def same(self, value: Any) -> None:
        """Note that it is this one."""
        self._note(_Same(value))

    def function_of_framework(self, value: Any) -> None:
        """Note a function that remembers its traces: a new trace of ours would be made of them as well."""
        self._note(_Same(value))
        self._left.append(getattr(value, "python_function", None) or value.__wrapped__)

    def weak(self, value: Any) -> None:
        """Note what is referred to."""
        self._note("weak")
        self._left.append(value())

    def tree(self, value: Any) -> None:
        """Note a structure of JAX's."""
        self._note("tree", value.num_leaves)
        self._left += [value.node_data(), value.children()]

    def alias(self, value: Any) -> None:
        """Note a type of other types."""
        self._note("type")
        self._left.append(value.__args__)

    def constant(self, value: Any) -> None:
        """Note what is the same wherever it is: a lock, or code that is written in C."""
        self._note("constant", getattr(value, "__qualname__", getattr(value, "__name__", "")))

    def instance(self, value: Any) -> None:
        """Note what an object has as attributes."""
        kind = type(value)
        told = self._kinds[kind]
        if told.is_of_c:
            raise _Unknown
        self._notes.append(told.same)
        self._left.append(kind)
        slots = ((name, getattr(value, name)) for name in told.slots if hasattr(value, name))
        for name, held in [*getattr(value, "__dict__", {}).items(), *slots]:
            if told.is_layer and name in _NOTES:
                self._skipped.add(name)
            elif type(held) is int and not told.is_known and not is_asked(kind, name):
                self._notes.append(_Number(name, held))
            else:
                self._notes.append(name)
                self._left.append(held)

    def class_of_objects(self, kind: type) -> None:
        """Note a class: of a framework's, what somebody put into it; of one's own, what is in it."""
        self._note(_Same(kind))
        if is_known(kind):
            # What somebody put into a framework's class.
            self._left += [
                held for held in list(vars(kind).values()) if isinstance(held, FunctionType) and is_users(held)
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

    def function(self, function: FunctionType) -> None:
        """Note a function: what it holds, and if it is the user's, what its code reads."""
        uses = uses_of(function.__code__) if is_users(function) else None
        self._note(_Same(function.__code__))
        self._left += [function.__defaults__, function.__kwdefaults__, vars(function)]
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._named(name, _held(cell), uses)
        if uses is not None:
            self._globals(function, uses)

    def _globals(self, function: FunctionType, uses: Uses) -> None:
        self._written |= uses.written_attributes
        self._read |= uses.attributes | (uses.globals & _BY_ANY_NAME)
        if uses.attributes & _HIDDEN or any(root_of(name) not in KNOWN for name in uses.modules):
            raise _Unknown
        for name in sorted(uses.globals - set(function.__code__.co_freevars)):
            if name in function.__globals__:
                self._named(name, function.__globals__[name], uses)
                self._look(function.__globals__[name], uses.attributes)
            elif name in _UNSAFE:
                raise _Unknown
            else:
                self._named(name, vars(builtins).get(name), uses)

    def _look(self, module: object, names: frozenset[str]) -> None:
        """Note what code may read of a framework's module: somebody may have put something else there."""
        if isinstance(module, ModuleType) and (id(module), names) not in self._looked:
            self._looked.add((id(module), names))
            for name in sorted(names & vars(module).keys()):
                self._note(name)
                self._left.append(vars(module)[name])
                self._look(vars(module)[name], names)

    def _named(self, name: str, value: object, uses: Uses | None) -> None:
        self._note(name)
        if uses is None or name not in uses.written or type(value) not in (int, list, dict, set):
            self._left.append(value)

    def method(self, method: Any) -> None:
        """Note a method, and what it is bound to."""
        self._note("method", method.__name__)
        self._left.append(method.__self__)
        if isinstance(method, MethodType):
            self._left.append(method.__func__)

    def module(self, module: ModuleType) -> None:
        """Note a framework's module."""
        if root_of(module.__name__) not in KNOWN:
            raise _Unknown
        self._note(_Same(module))

    def partial(self, function: functools.partial[Any]) -> None:
        """Note a function with some of its arguments."""
        self._note("partial")
        self._left += [function.func, function.args, function.keywords]

    def wrapped(self, holder: Any) -> None:
        """Note the functions of a property, or what else makes one of functions."""
        self._note(type(holder).__name__)
        self._left += [getattr(holder, name, None) for name in ("__func__", "fget", "fset", "fdel")]


class _Kind:
    """What is to be known of a class, to look into its instances.

    Attributes:
        same: that it is this class.
        meet: how one of its instances is noted.
        slots: the attributes of an instance that are in no dictionary.
        is_known: whether it is a framework's.
        is_layer: whether it is one of Keras'.
        is_of_c: whether an instance holds what Python does not see.
    """

    def __init__(self, kind: type) -> None:
        self.same, self.is_of_c, self.slots, self.is_known = _Same(kind), is_of_c(kind), slots_of(kind), is_known(kind)
        self.is_layer = any(root_of(one.__module__) in ("keras", "tf_keras") for one in kind.__mro__)
        self.meet = _meeting_of(kind)


def _meeting_of(kind: type) -> Callable[[_Walk, Any], None]:
    """Return how what is of a class is noted."""
    root, name = root_of(kind.__module__), kind.__name__
    for kinds, meet in _BY_CLASS.items():
        if issubclass(kind, kinds):
            return meet
    if issubclass(kind, arrays()):
        return _Walk.same
    if root in FRAMEWORKS and (hasattr(kind, "python_function") or name == "PjitFunction"):
        return _Walk.function_of_framework
    if kind is object or (root == "_thread" and name in ("lock", "RLock")):
        return _Walk.constant
    return _BY_NAME.get(name, _Walk.instance) if root in FRAMEWORKS else _Walk.instance


_BY_CLASS: Mapping[Any, Callable[[_Walk, Any], None]] = {
    CONTAINERS: _Walk.container,
    type: _Walk.class_of_objects,
    FunctionType: _Walk.function,
    (MethodType, BuiltinFunctionType, MethodWrapperType): _Walk.method,
    ModuleType: _Walk.module,
    functools.partial: _Walk.partial,
    (property, staticmethod, classmethod): _Walk.wrapped,
    (Enum, np.dtype, np.generic): _Walk.number,
    np.ndarray: _Walk.array,
    np.ufunc: _Walk.same,
    weakref.ref: _Walk.weak,
    _CODE_OF_C: _Walk.constant,
    (GenericAlias, UnionType): _Walk.alias,
}
_BY_NAME: Mapping[str, Callable[[_Walk, Any], None]] = {
    "DType": _Walk.number,
    "PyTreeDef": _Walk.tree,
    "PythonAPIDispatcher": _Walk.constant,
}


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
