"""Whether anything that a model runs depends on its being in training mode, told by the code that it would run."""

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from guided_backprop.backends.keras import is_keras


def training_module(model: nn.Module) -> str | None:
    """Return the name of a module in training mode on which something depends, or None.

    A module in training mode that never asks for it does as it does in evaluation mode: a convolution, a wrapper made
    after ``eval()``. What is made with no mode in mind, as dropout by a function, is found when it runs.

    An exported module says training=True for ever and refuses eval(), a frozen one says nothing: what was exported is
    in the graph, and dropout or batch-norm in training mode are found there. A Keras layer is told by an argument, and
    infers unless it is told to train.
    """
    if not _may_train(model):
        return None
    stack: list[tuple[str, nn.Module, bool]] = [("", model, False)]
    while stack:
        name, module, is_read = stack.pop()
        if "eval" in vars(module) or is_keras(module):
            continue
        reads = _reads_of(module)
        if getattr(module, "training", False) and (reads.own or is_read):
            return name or "the model"
        if isinstance(module, torch.jit.ScriptModule) and not reads.own:
            # All that it runs was asked already.
            continue
        children = reversed(list(module._modules.items()))
        prefix = f"{name}." if name else ""
        stack.extend((prefix + own, child, is_read or reads.others) for own, child in children if child is not None)
    return None


def _may_train(model: nn.Module) -> bool:
    """Tell whether any module says training=True; most models are told from those that need a closer look by this."""
    stack = [model]
    while stack:
        attributes = stack.pop().__dict__
        if attributes.get("training", True):
            return True
        stack.extend(child for child in attributes["_modules"].values() if child is not None)
    return False


class _Reads(NamedTuple):
    """Which modules' mode some code asks for: that of the one that it belongs to, or that of others below it."""

    own: bool = False
    others: bool = False

    def __or__(self, other: object) -> "_Reads":
        own, others = cast("_Reads", other)
        return _Reads(self.own or own, self.others or others)


# They are told by arguments, and what torch compiles with is no part of a model.
_NOT_LOOKED_INTO: Final = ("torch.nn.functional", "torch._")

# What torch's own modules ask their mode for: whether anything comes of it.
_SETTLED: Final[dict[type[nn.Module], Callable[[Any], bool]]] = {
    nn.modules.dropout._DropoutNd: lambda module: module.p > 0,
    nn.RNNBase: lambda module: module.dropout > 0 and module.num_layers > 1,
    nn.MultiheadAttention: lambda module: module.dropout > 0,
    nn.modules.instancenorm._InstanceNorm: lambda module: bool(module.track_running_stats),
    # They choose between two ways to the same result; what is inside of them says its own mode.
    nn.TransformerEncoder: lambda module: False,
    nn.TransformerEncoderLayer: lambda module: False,
}


def _reads_of(module: nn.Module) -> _Reads:
    """Return what the code asks for that runs where a module is called: its own, its hooks', what it holds."""
    if isinstance(module, torch.jit.ScriptModule):
        asks = '"training"' in str(getattr(module, "inlined_graph", ""))
        return _Reads(asks, asks)
    if type(module).__module__.startswith(_NOT_LOOKED_INTO):
        return _Reads()
    reads = _reads_of_class(type(module))
    for kind, matters in _SETTLED.items():
        if isinstance(module, kind) and type(module).__module__.startswith("torch."):
            reads = _Reads(own=matters(module))
    held = vars(module)
    hooks = [*held.get("_forward_hooks", {}).values(), *held.get("_forward_pre_hooks", {}).values()]
    for function in (*hooks, *filter(callable, held.values())):
        reads |= _reads_of_function(function)
    return reads


# Not @cache, which would keep every class of the user's for ever, with the weights that its functions close over.
_READS: Final = WeakKeyDictionary[type[Any], _Reads]()


def _reads_of_class(kind: type[Any]) -> _Reads:
    """Return what ``forward`` asks for, with all of the class that is called by name from there on."""
    known = _READS.get(kind)
    if known is not None:
        return known
    reads, seen, names = _Reads(), set[str](), ["forward", "__call__"]
    while names:
        name = names.pop()
        for function in _of_class(kind, name):
            reads |= _reads_of_function(function)
            called = {word for code in _codes(function) for word in code.co_names}
            names += called - seen
            seen |= called
    _READS[kind] = reads
    return reads


def _of_class(kind: type, name: str) -> Iterator[FunctionType]:
    """Iterate over what a class runs by a name: what it inherits as well if that is called by ``super()``."""
    for base in kind.__mro__:
        if base in (nn.Module, object):
            return
        function = _plain(vars(base).get(name))
        if function is not None:
            yield function
            if not any("super" in code.co_names for code in _codes(function)):
                return


def _reads_of_function(function: object, seen: frozenset[object] = frozenset()) -> _Reads:
    """Return what a function asks for, with the functions that it calls by a global name or closes over."""
    plain = _plain(function)
    if plain is None or plain in seen or (plain.__module__ or "").startswith(_NOT_LOOKED_INTO):
        return _Reads()
    reads, seen = _Reads(), seen | {plain}
    for code in _codes(plain):
        reads |= _reads_of_code(code)
    for called in (*_called_by(plain), *map(_content, plain.__closure__ or ())):
        reads |= _reads_of_function(called, seen)
    return reads


def _called_by(function: FunctionType) -> Iterator[object]:
    """Iterate over the functions that one names, of its own module or of one that it names; but for torch's."""
    for code in _codes(function):
        named = [function.__globals__.get(name) for name in code.co_names]
        modules = [module for module in named if isinstance(module, ModuleType)]
        for called in (*named, *(vars(module).get(name) for module in modules for name in code.co_names)):
            if isinstance(called, FunctionType) and not (called.__module__ or "").startswith("torch."):
                yield called


@cache
def _reads_of_code(code: CodeType) -> _Reads:
    reads, before = _Reads(own="training" in code.co_consts, others="training" in code.co_consts), None
    for step in dis.get_instructions(code):
        if step.argval == "training" and step.opname.startswith("LOAD_ATTR"):
            is_own = before is not None and before.argval == "self"
            reads |= _Reads(own=is_own, others=False) if is_own else _Reads(own=True, others=True)
        before = step
    return reads


def _codes(function: FunctionType) -> Iterator[CodeType]:
    """Iterate over a function's code, and that of the functions inside of it."""
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        yield code
        stack += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _plain(function: object) -> FunctionType | None:
    """Return the Python function behind a method, a property, a partial, a decorated function or an object's call."""
    for name in ("__func__", "fget", "func"):
        # What an object of the user's says of itself may be anything, and fail.
        with suppress(Exception):
            inner = getattr(function, name, None)
            function = function if inner is None else inner
    if isinstance(function, (type, nn.Module)):
        return None
    if not inspect.isroutine(function):
        function = vars(type(function)).get("__call__")
    unwrapped = inspect.unwrap(function) if callable(function) else None
    return unwrapped if isinstance(unwrapped, FunctionType) else None


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        # Not bound yet.
        return None
