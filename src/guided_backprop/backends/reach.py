"""What a model's code reaches that random numbers or the time may come from: told by reading it, and nothing is run.

Followed are the attributes of objects, containers, what functions close over and name, attributes of modules that are
named, and of classes what is called by a name that the code has. The code of the frameworks and of Python's own library
is taken as it is. Whether what is reached is used, and with a seed, is not told.
"""

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import BuiltinMethodType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, Final

from guided_backprop.backends.code import uses_of
from guided_backprop.backends.kinds import CONTAINERS, FRAMEWORKS, root_of, slots_of

# Generators are of these modules, and what else is another in each call. Keras' layers hold generators for training.
_GENERATORS: Final = frozenset({"_random", "random"})
_SOURCES: Final = _GENERATORS | {"datetime", "secrets", "time", "uuid"}
_DRAWING: Final = ("numpy.random", "keras.random", "keras.src.random", "keras.initializers", "keras.src.initializers")
_ENTROPY: Final = frozenset({"getrandom", "urandom"})
_NOT_READ: Final = FRAMEWORKS | sys.stdlib_module_names | {"torch"}
_IMPORTING: Final = frozenset({"__import__", "import_module"})
_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_HOLDING: Final = frozenset({OrderedDict, *CONTAINERS})
_VIEWS: Final = (MappingProxyType,)
_METHODS: Final = (MethodType, BuiltinMethodType)
# Where what wraps a function, or is bound to something, keeps that.
_WRAPPING: Final = tuple("func args keywords fget __func__ __self__ __wrapped__ python_function".split())
# What a framework calls of a model.
_CALLED: Final = ("__call__", "call", "forward")
# Operators, and what else is called without being named, are not of these.
_BUILDING: Final = frozenset({"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__reduce__"})
# A model that leads to a whole data set, or to a library for plots, is run again instead of walked through for ever.
_MOST: Final = 20_000


def sources_of(model: Callable[..., Any]) -> Iterator[object]:
    """Iterate over the generators that a model reaches, and over the modules, classes and functions that make some."""
    reach = _Reach()
    reach.add([model])
    return reach.walk()


def name_of_source(source: object) -> str:
    """Return what a source is called, for people."""
    return str(getattr(source, "__name__", type(source).__name__))


def _is_of(module: str | None, modules: frozenset[str]) -> bool:
    """Tell whether a module is one of some, or one that draws of NumPy's or, where that counts, of Keras'."""
    drawing = _DRAWING if modules is _SOURCES else _DRAWING[:1]
    return root_of(module) in modules or str(module).startswith(drawing)


def _is_generator(kind: type) -> bool:
    """Tell whether a class is a framework's own generator."""
    return kind.__name__ == "Generator" and root_of(kind.__module__) in ("tensorflow", "torch")


class _Reach:
    """One walk through what a model reaches."""

    def __init__(self) -> None:
        self._left: list[Any] = []
        # They are kept, so that no other gets their number; of modules, what is asked for with them.
        self._seen: dict[object, object] = {}
        # The names that the code has, and what classes have by names that it has not, so far.
        self._names = set(_CALLED)
        self._waiting = defaultdict[str, list[object]](list)
        # Of which classes what is made is a source, and which attributes it has that are in no dictionary.
        self._kinds: dict[type, bool] = {}
        self._attributes: dict[type, list[str]] = {}

    def add(self, values: Iterable[Any]) -> None:
        """Note what is to be looked into; a string may be a name that an attribute is asked for by."""
        for value in values:
            kind = type(value)
            if kind is str:
                if value not in self._names:
                    self._release(frozenset({value}))
            elif kind not in _ATOMS and (kind not in _HOLDING or value):
                self._left.append(value)

    def walk(self) -> Iterator[object]:
        """Iterate over the sources; what is left of too much to be looked into may lead to one."""
        while self._left and len(self._seen) < _MOST:
            one, is_source = self._left.pop(), False
            if id(one) not in self._seen:
                self._seen[id(one)] = one
                # It may fail to say what it is or has, or be changed by another thread.
                with suppress(Exception):
                    is_source = self._is_source_itself(one)
            if is_source:
                yield one
        yield from self._left[-1:]

    def _is_source_itself(self, one: Any) -> bool:
        """Tell whether something is a source; if not, note what it has."""
        kind = type(one)
        # Most are of these. A list is made in one step, beside which no thread changes anything.
        if kind in _HOLDING or isinstance(one, CONTAINERS):
            self.add([] if kind in _HOLDING else [kind])
            # What a class of its own says of its values is not asked for.
            self.add(list(dict.values(one) if isinstance(one, dict) else one.values() if kind in _VIEWS else one))
        elif self._is_source(one):
            return True
        elif isinstance(one, FunctionType):
            self._function(one)
        elif isinstance(one, type):
            self._class(one)
        elif not isinstance(one, ModuleType):
            self._object(one)
        return False

    def _is_source(self, one: object) -> bool:
        kind = type(one)
        if kind not in self._kinds:
            is_pythons = any(_is_of(base.__module__, _GENERATORS) for base in kind.__mro__)
            self._kinds[kind] = is_pythons or (_is_generator(kind) and root_of(kind.__module__) == "torch")
        if self._kinds[kind]:
            return True
        if isinstance(one, ModuleType):
            return _is_of(one.__name__, _SOURCES)
        if isinstance(one, type):
            return _is_of(one.__module__, _SOURCES) or _is_generator(one)
        is_function = isinstance(one, (FunctionType, *_METHODS)) or kind.__name__ == "cython_function_or_method"
        return is_function and (_is_of(one.__module__, _SOURCES) or getattr(one, "__name__", "") in _ENTROPY)

    def _function(self, function: FunctionType) -> None:
        """Look into what a function holds, and if it is the user's, into what its code names."""
        self.add(filter(None, (function.__defaults__, function.__kwdefaults__, vars(function))))
        for cell in function.__closure__ or ():
            # One that is not bound yet holds nothing.
            with suppress(ValueError):
                self.add([cell.cell_contents])
        known = function.__globals__
        if root_of(known.get("__name__")) in _NOT_READ:
            return
        uses = uses_of(function.__code__)
        self._release(uses.attributes)
        for name in uses.globals - set(function.__code__.co_freevars):
            self._named(known.get(name), uses.attributes)
        for name in uses.modules | (uses.attributes if _IMPORTING & (uses.attributes | uses.globals) else set()):
            module = sys.modules.get(f"{known.get('__package__')}.{name}") or sys.modules.get(name)
            # One that was not imported yet counts by its name.
            self._named(module or ModuleType(name), uses.attributes)

    def _named(self, value: Any, names: frozenset[str]) -> None:
        """Look into what code names; of a module into what it names of that."""
        if self._is_source(value):
            self.add([value])
        elif isinstance(value, type):
            self.add([value, *(vars(base).get("__init__") for base in value.__mro__)])
        elif not isinstance(value, ModuleType):
            self.add([value])
        elif (id(value), names) not in self._seen:
            self._seen[id(value), names] = value
            is_read = root_of(value.__name__) not in _NOT_READ
            for name in names & vars(value).keys():
                held = vars(value)[name]
                if is_read or isinstance(held, ModuleType) or self._is_source(held):
                    self._named(held, names)

    def _release(self, names: frozenset[str]) -> None:
        """Look into what classes have by names that the code has."""
        for name in names - self._names:
            self._names.add(name)
            self.add(self._waiting.pop(name, ()))

    def _class(self, kind: type) -> None:
        """Look into what a class and those that it is made of have by names that the code has."""
        for base in kind.__mro__:
            if root_of(base.__module__) not in _NOT_READ and (base is kind or id(base) not in self._seen):
                self._seen[id(base)] = base
                for name, held in vars(base).items():
                    is_operator = name.startswith("__") and isinstance(held, FunctionType) and name not in _BUILDING
                    self.add([held] if is_operator or name in self._names else ())
                    self._waiting[name].append(held)

    def _object(self, one: Any) -> None:
        """Look into what an object has; what it says of itself by code of its own is not asked for."""
        kind = type(one)
        if kind not in self._attributes:
            # A framework's own is no source because something of it is held.
            self.add([] if root_of(kind.__module__) in _NOT_READ else [kind])
            self._attributes[kind] = [*slots_of(kind), *(name for name in _WRAPPING if hasattr(kind, name))]
        for name in self._attributes[kind]:
            # It may fail to say what it has.
            with suppress(Exception):
                self.add([object.__getattribute__(one, name)])
        with suppress(AttributeError):
            self.add(object.__getattribute__(one, "__dict__").values())
