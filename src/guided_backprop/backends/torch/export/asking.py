"""What asks for one number of images while a model is recorded, and is refused by its name."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch.autograd.graph import Node

from guided_backprop.errors import ModelError

# By their names: SymPy, whose they are, has no types.
_EQUALITIES: Final = frozenset({"Equality", "Unequality"})
_BY_SHAPE: Final = "Take out what is done for one number alone; ask for x.shape[0] instead of len(x)."
# What else to write, where that is known.
_INSTEAD: Final = {"CrossMapLRN2d": "Take torch.nn.LocalResponseNorm, and compare what it gives."}
_BY_ITSELF: Final = "Write it with other operations, or export the part of the model without it."


class Asking:
    """What was asked of the number of images so far.

    Args:
        images: of any number, as they are recorded.
    """

    def __init__(self, images: torch.Tensor) -> None:
        size: Any = images.shape[0]
        self._env, self._symbol = size.node.shape_env, size.node.expr
        self._seen = len(self._env.guards)

    def refuse(self, name: str) -> None:
        """Raise ModelError if something, called so, asked since whether there is one number of images."""
        asked = [guard.expr for guard in self._env.guards[self._seen :]]
        self._seen = len(self._env.guards)
        for guard in asked:
            if guard.free_symbols == {self._symbol} and is_of_one_number(guard):
                name = _own_function() or name
                raise of_number(f"{name}, which asks whether {guard}", _INSTEAD.get(name, _BY_ITSELF))


def is_of_one_number(guard: Any) -> bool:
    """Tell whether what is asked holds for a single number, or for all but one."""
    return any(type(part).__name__ in _EQUALITIES for part in _parts(guard))


def _parts(guard: Any) -> Iterator[Any]:
    yield guard
    for part in guard.args:
        yield from _parts(part)


def of_number(received: str, advice: str = _BY_SHAPE) -> ModelError:
    """Return the error of a model that does something else for some number of images."""
    return ModelError(f"model must do the same for any number of images to be exported; received {received}. {advice}")


def own_functions(nodes: Iterable[Node]) -> str:
    """Return what a derivative is called, by the functions among its nodes that are written in Python."""
    kinds = [node.name().removesuffix("Backward") for node in nodes if isinstance(node, torch._C._FunctionBase)]
    return ", ".join(dict.fromkeys(kinds)) or "the way back"


def _own_function() -> str | None:
    """Return the function with a derivative of its own that is being run; None if there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("ctx",):
            return code.co_qualname.removesuffix(".forward")
        frame = frame.f_back
    return None
