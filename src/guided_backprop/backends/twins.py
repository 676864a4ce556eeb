"""A private twin of a model: all that leads to its layers copied shallowly, so that a layer can be watched in it.

Weights and all else are the model's own. Layers are met as people hold them: as attributes, in lists, tuples, sets and
dictionaries, as what a method is of, and in what a function closes over or knows as a global name. Another object that
holds a layer is not looked into, nor is the code of a class: the layer that is called through them is the user's own,
and what watches its twin does not see that call.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from guided_backprop.arrays import Layer, Outputs, Tensor

_HOLDERS = (dict, list, tuple, set, frozenset, partial, FunctionType, MethodType)
# Where a twin has the layer in front of it.
_ENTRY = "guided_backprop: what is in front"
_KINDS_OF_DICTIONARY = (dict, OrderedDict, defaultdict)


class Twins:
    """Twins of the parts of one model, which hold one another as the parts do.

    Args:
        is_part: tells what is copied: a layer, or what holds one besides containers.
        apart: attributes that lead to other models; a twin has a list of its own there, of the same things.
    """

    def __init__(self, is_part: Callable[[object], bool], apart: Collection[str] = ()) -> None:
        self._is_part, self._apart = is_part, frozenset(apart)
        # By identity, with the original: as long as that is held, nothing else has its identity.
        self._known: dict[int, tuple[object, Any]] = {}

    def of(self, original: object) -> Any:
        """Return the twin of a part, or what holds twins where the original holds parts; else the original."""
        known = self._known.get(id(original))
        if known is not None:
            return known[1]
        if self._is_part(original):
            return self._twin(original)
        # Most of what a module has are empty dictionaries.
        if not isinstance(original, _HOLDERS) or not original:
            return original
        # Until it is known better, also for what holds itself.
        self._known[id(original)] = original, original
        copied = self._copied(original)
        self._known[id(original)] = original, copied
        return copied

    def _twin(self, part: object) -> object:
        twin = object.__new__(type(part))
        self._known[id(part)] = part, twin
        # All at once: another thread may run the part.
        for name, attribute in list(vars(part).items()):
            vars(twin)[name] = list(attribute) if name in self._apart else self.of(attribute)
        return twin

    def _copied(self, original: Any) -> object:
        """Return what holds twins, or the original if it holds no part."""
        # No match statement: AutoGraph, which may read this on the way to a model, knows none.
        if isinstance(original, MethodType):
            return self._method(original)
        if isinstance(original, FunctionType):
            return self._function(original)
        if isinstance(original, partial):
            return self._partial(original)
        is_dictionary = isinstance(original, dict)
        held = [one for pair in list(original.items()) for one in pair] if is_dictionary else list(original)
        twins = [self.of(one) for one in held]
        if _are_same(held, twins):
            return original
        return _dictionary(original, twins) if is_dictionary else _collection(original, twins)

    def _method(self, method: MethodType) -> MethodType:
        owner = self.of(method.__self__)
        return method if owner is method.__self__ else MethodType(method.__func__, owner)

    def _partial(self, function: partial[Any]) -> partial[Any]:
        held = [function.func, *function.args, *function.keywords.values()]
        func, *rest = twins = [self.of(one) for one in held]
        if _are_same(held, twins):
            return function
        count = len(function.args)
        return partial(func, *rest[:count], **dict(zip(function.keywords, rest[count:], strict=True)))

    def _cell(self, cell: CellType) -> CellType:
        try:
            held = cell.cell_contents
        except ValueError:
            return cell
        twin = self.of(held)
        return cell if twin is held else CellType(twin)

    def _function(self, function: FunctionType) -> FunctionType:
        closure, known = function.__closure__ or (), function.__globals__
        cells = tuple(map(self._cell, closure))
        parts = {name: self.of(known[name]) for name in _names(function.__code__) if self._is_part(known.get(name))}
        if _are_same(closure, cells) and not parts:
            return function
        again = FunctionType(
            function.__code__, {**known, **parts}, function.__name__, function.__defaults__, cells or None
        )
        again.__kwdefaults__ = function.__kwdefaults__
        vars(again).update(vars(function))
        return again


def watch(twin: Layer, passed: Callable[[Outputs], Outputs]) -> None:
    """Let ``passed`` say what a twin returns from now on, of what it has returned."""
    _call(twin, lambda own, inputs, options: passed(own(*inputs, **options)))


def entered(twin: Layer, entry: Layer) -> None:
    """Let a twin be given what another layer, ``entry``, returns of what it would be given; a tuple if it is several.

    The twin holds that as an attribute, and not as a child: a container would run it among its own.
    """
    object.__setattr__(twin, _ENTRY, entry)

    def through(own: Callable[..., Outputs], inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> Outputs:
        given = vars(own.__self__)[_ENTRY](*inputs)  # type: ignore[attr-defined]
        return own(*((given,) if len(inputs) == 1 else given), **options)

    _call(twin, through)


def _call(twin: Layer, called: Callable[..., Outputs]) -> None:
    """Let ``called`` say what a call of a twin returns: it is given the twin's own way to be called, and the arguments.

    The twin gets a class of its own for that, which differs in nothing else: a layer is also asked what it is.
    """
    kind: Any = type(twin)

    def __call__(self: Layer, *inputs: Tensor, **options: Tensor) -> Outputs:  # noqa: N807 - it is that of a class
        return called(MethodType(kind.__call__, self), inputs, options)

    own = {"__call__": __call__, "__module__": kind.__module__, "__doc__": kind.__doc__}
    twin.__class__ = type(kind)(kind.__name__, (kind,), own)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function uses and does not make, those of the functions in it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _are_same(held: Collection[object], twins: Collection[object]) -> bool:
    return all(one is other for one, other in zip(held, twins, strict=True))


def _dictionary(original: dict[Any, Any], twins: list[Any]) -> dict[Any, Any]:
    pairs = zip(twins[::2], twins[1::2], strict=True)
    if type(original) not in _KINDS_OF_DICTIONARY:
        return dict(pairs)
    again = original.copy()
    again.clear()
    again.update(pairs)
    return again


def _collection(original: Collection[object], twins: list[object]) -> Collection[object]:
    # What tracks its layers gives way to a plain one, where nothing is tracked.
    if isinstance(original, tuple):
        make: Callable[[list[object]], Collection[object]] = getattr(original, "_make", tuple)
        return make(twins)
    if isinstance(original, list):
        return twins
    return frozenset(twins) if isinstance(original, frozenset) else set(twins)
