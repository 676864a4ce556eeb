"""What a compiled graph depends on: a model's weights, and what it is made of, looked at in each call.

Weights can be changed in ways that nothing counts, so their values are looked at.
"""

import types
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from guided_backprop.arrays import Model
from guided_backprop.errors import ModelError

# A tensor of no more numbers is compared whole.
_SMALL = 4096
_LITERALS: Final = frozenset({bool, int, float, str, bytes, type(None)})


class _State(NamedTuple):
    """What a model is at one moment.

    Attributes:
        made_of: its modules, and their options.
        tensors: all that it holds: parameters, buffers, also what is kept as a plain attribute, or in lists there.
    """

    made_of: list[object]
    tensors: list[torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Look at a model, as fast as can be: this is done in each call."""
        made_of: list[object] = []
        tensors: list[torch.Tensor] = []
        waiting, known = [model], {id(model)}
        while waiting:
            module = waiting.pop()
            held = module.__dict__
            made_of += (id(module), type(module), len(held["_forward_hooks"]), len(held["_forward_pre_hooks"]))
            own = [value for name, value in held.items() if name not in _INTERNAL]
            for value in _flat([*held["_parameters"].values(), *held["_buffers"].values(), *own]):
                if isinstance(value, torch.Tensor):
                    tensors.append(value)
                elif isinstance(value, np.ndarray):
                    made_of.append(value.tobytes())
                else:
                    # Of what is neither a number nor a word, which one it is.
                    made_of.append(value if type(value) in _LITERALS else id(value))
            for part in held["_modules"].values():
                if part is not None and id(part) not in known:
                    known.add(id(part))
                    waiting.append(part)
        return cls(made_of, tensors)

    def fingerprint(self) -> list[torch.Tensor]:
        """Return numbers that are others if any weight is: of a large one, sums along all axes but the first."""
        whole: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        with torch.no_grad():
            for tensor in self.tensors:
                if not tensor.is_floating_point():
                    sums.append(tensor.clone())
                elif tensor.ndim < 2 or tensor.numel() <= _SMALL:
                    whole.append(tensor.reshape(-1))
                else:
                    rows = tensor.reshape(len(tensor), -1)
                    sums.append(torch.mv(rows, _numbers(rows.shape[1])))
            return [torch.cat(whole), *sums] if whole else sums


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
        self._made_of, self._values = state.made_of, state.fingerprint()

    def are_the_same(self) -> bool:
        """Tell whether nothing changed since."""
        state = _State.of(self._model)
        if state.made_of != self._made_of:
            return False
        now = state.fingerprint()
        return len(now) == len(self._values) and all(map(torch.equal, now, self._values))


def threads() -> int:
    """Return how many threads a call may use."""
    return torch.get_num_threads()


_NUMBERS: dict[int, torch.Tensor] = {}


def _numbers(count: int) -> torch.Tensor:
    """Return so many numbers, the same each time, by which a sum tells in which order its terms are."""
    if count not in _NUMBERS:
        _NUMBERS[count] = torch.from_numpy(np.random.default_rng(0).uniform(0.5, 1.5, count).astype(np.float32))
    return _NUMBERS[count]


# What each module has to say of itself, but for whether it is in training.
_INTERNAL: Final = frozenset(vars(nn.Module())) - {"training"}


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
