"""What a compiled graph depends on: a model's weights, and what it is made of, looked at in each call.

Weights can be changed in ways that nothing counts, so all of their memory is read. That is as fast as memory is.
"""

import operator
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain, islice
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from guided_backprop.arrays import Model
from guided_backprop.errors import ModelError
from guided_backprop.export.extra import package

# What nothing holds.
_END: Final = object()
_LITERALS: Final = frozenset({bool, int, float, str, bytes, type(None)})
# What each module begins with; and what of it has nothing to say of the module.
_FIRST: Final = frozenset(vars(nn.Module()))
_INTERNAL: Final = _FIRST - {"training"}
# What of a namespace counts beside its own end: and where weights, layers and hooks are.
_ROOMS: Final = operator.itemgetter(
    "training", "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"
)


class _State(NamedTuple):
    """What a model is at one moment.

    Attributes:
        made_of: its modules, and their options.
        tensors: all that it holds: parameters, buffers, also what is kept as a plain attribute, or in lists there.
        modules: itself, and all in it.
        is_told_by_memory: whether all its numbers are in tensors.
    """

    made_of: list[object]
    tensors: list[torch.Tensor]
    modules: list[nn.Module]
    is_told_by_memory: bool

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Look at all of a model."""
        made_of: list[object] = []
        tensors: list[torch.Tensor] = []
        modules, known, in_arrays = [model], {id(model)}, False
        # Those that are found on the way are looked at as well.
        for module in modules:
            held = module.__dict__
            made_of += (id(module), type(module), *map(id, chain(*_hooks_of(module))))
            own = {name: value for name, value in held.items() if name not in _INTERNAL}
            made_of += (*held["_parameters"], *held["_buffers"], *held["_modules"], *own)
            for value in _flat([*held["_parameters"].values(), *held["_buffers"].values(), *own.values()]):
                if isinstance(value, torch.Tensor):
                    tensors.append(value)
                elif isinstance(value, np.ndarray):
                    in_arrays = True
                    made_of.append(value.tobytes())
                else:
                    # Of what is neither a number nor a word, which one it is.
                    made_of.append(value if type(value) in _LITERALS else id(value))
            for part in held["_modules"].values():
                if part is not None and id(part) not in known:
                    known.add(id(part))
                    modules.append(part)
        made_of += _code_of(_methods_of(modules))
        return cls(made_of, tensors, modules, not in_arrays)


def _hooks_of(module: nn.Module) -> Iterator[Iterable[object]]:
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        yield module.__dict__[name].values()


class _Makeup:
    """Whether a model holds the very objects that it held, told faster than by a look at all of them.

    Most of what a module's namespace holds says nothing of its output; what does is a few rooms, and what was put
    behind all that a module begins with. So the ends of namespaces are read, where nothing else stands there.

    Args:
        state: of the model.
    """

    def __init__(self, state: _State) -> None:
        self._parts, self._types = state.modules, list(map(type, state.modules))
        self._spaces = list(map(vars, state.modules))
        self._sizes, self._ends = list(map(len, self._spaces)), list(map(_end_of, self._spaces))
        self._values = [space.values() for space in self._spaces]
        sources = list(chain.from_iterable(map(_sources_of, state.modules)))
        # What holds nothing is asked that alone, and a dictionary not for its values as well.
        self._empty = [source for source in sources if not source and isinstance(source, dict | list)]
        self._sources = [source for source in sources if source]
        self._held = list(self._now())
        # As a notebook that loads edited files anew puts it into classes.
        self._methods = _methods_of(state.modules)
        self._code = self._code_now()

    def _code_now(self) -> list[object]:
        return [*map(len, map(operator.itemgetter(0), self._methods)), *_code_of(self._methods)]

    def _now(self) -> Iterator[object]:
        """Return what can tell that something is another one."""
        names = map(islice, map(reversed, self._spaces), self._ends)
        values = map(islice, map(reversed, self._values), self._ends)
        # What is longer or shorter by now meets the end of the other.
        parts = (map(_ROOMS, self._spaces), names, values, self._sources, ((_END,),))
        return chain.from_iterable(chain.from_iterable(parts))

    def is_same(self) -> bool:
        """Tell whether each name, and each place in a list, holds what it held."""
        return (
            all(map(operator.is_, map(vars, self._parts), self._spaces))
            and list(map(len, self._spaces)) == self._sizes
            and not any(self._empty)
            and all(map(operator.is_, map(type, self._parts), self._types))
            and all(map(operator.is_, self._now(), self._held))
            and self._code_now() == self._code
        )


def _end_of(space: dict[str, object]) -> int:
    """Return how many names at the end of a namespace are the module's own; all where others are among these."""
    count = sum(name not in _FIRST for name in space)
    return count if _FIRST.isdisjoint(islice(reversed(space), count)) else len(space)


def _methods_of(modules: Iterable[nn.Module]) -> list[tuple[Mapping[str, object], str]]:
    """Return where the classes of modules that are not PyTorch's own hold functions, and by which names."""
    kinds = chain.from_iterable(type(module).__mro__ for module in modules)
    spaces = [vars(kind) for kind in dict.fromkeys(kinds) if not kind.__module__.startswith("torch.")]
    return [(space, name) for space in spaces for name, held in space.items() if isinstance(held, types.FunctionType)]


def _code_of(methods: Iterable[tuple[Mapping[str, object], str]]) -> list[object]:
    return [getattr(space.get(name), "__code__", None) for space, name in methods]


def _sources_of(module: nn.Module) -> Iterator[Collection[object]]:
    """Yield what can be gone through again and again, to find all that a module holds by then in something else."""
    held = module.__dict__
    waiting = [*_ROOMS(held)[1:], *[value for name, value in held.items() if name not in _INTERNAL]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from (value, value.values())
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
            if isinstance(value, list):
                yield value


class _Memory:
    """What lies in the memory of some tensors.

    Args:
        tensors: in the memory of the processor.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._digest: Any = package("xxhash").xxh3_64_intdigest
        self._tensors, self._forms = tensors, _forms(tensors)
        # In the order in which they lie, so that they can be read without a copy.
        self._orders = [sorted(range(one.ndim), key=one.stride, reverse=True) for one in tensors]
        # Held, so that nothing else comes to lie at these places.
        self._places, self._views = _places(tensors), list(map(_memory, tensors, self._orders))
        self._is_all_read = all(view is not None for view in self._views)

    def digests(self, tensors: Sequence[torch.Tensor] | None = None) -> list[int]:
        """Return a number for each tensor, or for what took its place: another one if any of its bits is."""
        tensors, views = tensors or self._tensors, self._views
        if not self._is_all_read or _places(tensors) != self._places:
            if _forms(tensors) != self._forms:
                return []
            # What lies elsewhere by now, or in another order, is read there.
            views = [_memory(*one) or _copied(*one) for one in zip(tensors, self._orders, strict=True)]
        return list(map(self._digest, views))


def _places(tensors: Sequence[torch.Tensor]) -> list[object]:
    return [(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


def _forms(tensors: Sequence[torch.Tensor]) -> list[object]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _memory(tensor: torch.Tensor, order: Sequence[int]) -> memoryview | None:
    """Return a tensor's memory; None if it lies in another order, or means something else than what is there."""
    lying = tensor.detach().permute(tuple(order))
    if not lying.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return _bytes_of(lying)


def _copied(tensor: torch.Tensor, order: Sequence[int]) -> memoryview:
    return _bytes_of(tensor.detach().resolve_conj().resolve_neg().permute(tuple(order)).contiguous())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    numbers: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


class Weights:
    """What a model was when it was compiled.

    Args:
        model: a module that holds all its weights.

    Raises:
        ModelError: it is none, or its weights are on another device than the processor, or not in single precision.
    """

    def __init__(self, model: Model) -> None:
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                "model must be a torch.nn.Module to be compiled, for its weights have to be seen when they change; "
                f"received {type(model).__name__}. Compile a module, or take optimize(images)."
            )
        self._model = model
        state = _State.of(model)
        kinds = {(tensor.device.type, tensor.dtype) for tensor in state.tensors if tensor.is_floating_point()}
        if kinds - {("cpu", torch.float32)}:
            raise ModelError(
                "model must be in single precision, on the processor, to be compiled; received "
                f"{', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}. Take optimize(images)."
            )
        self._made_of = state.made_of
        self._makeup, self._memory = _Makeup(state), _Memory(state.tensors)
        self._digests = self._memory.digests()
        self._is_told_by_memory = state.is_told_by_memory

    def are_the_same(self) -> bool:
        """Tell whether nothing changed since."""
        tensors = None
        if not (self._is_told_by_memory and self._makeup.is_same()):
            state = _State.of(self._model)
            if state.made_of != self._made_of or len(state.tensors) != len(self._digests):
                return False
            # What was put in place of something may be equal to it.
            tensors = state.tensors
        return self._memory.digests(tensors) == self._digests


def threads() -> int:
    """Return how many threads a call may use."""
    return torch.get_num_threads()


def _flat(values: Iterable[object]) -> Iterator[object]:
    """Yield values, and what lists, tuples and dictionaries among them hold."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat([*value.keys(), *value.values()])
        else:
            yield value


def _is_option(value: object) -> bool:
    return type(value) in _LITERALS or (type(value) is tuple and all(type(part) in _LITERALS for part in value))


def key_of(model: nn.Module) -> str:
    """Return a digest of weights, options and code of a model: what it has in common with itself in another process.

    Of what its code calls nothing is told; so what is found by this is compared with the model.
    """
    known = sha256()
    for name, module in model.named_modules():
        known.update(f"{name} {type(module).__module__} {type(module).__qualname__} {_options(module)!r}".encode())
        classes = [one for one in type(module).__mro__ if not one.__module__.startswith("torch.")]
        for held in (module, *classes):
            for function in vars(held).values():
                if isinstance(function, types.FunctionType):
                    known.update(repr(_code(function.__code__)).encode())
    for tensor in _State.of(model).tensors:
        array = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        known.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        known.update(array.numpy().data)
    return known.hexdigest()


def _options(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if _is_option(value)}


def _code(code: types.CodeType) -> tuple[object, ...]:
    constants = [_code(one) if isinstance(one, types.CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, constants
