"""What the functions of an optimised model have in common: a way back that is taken once, to the images."""

from collections.abc import Callable
from functools import wraps
from typing import Protocol, TypeVar

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.torch.leaving import Gradients


class Context(Protocol):
    """What a function keeps for its way back: torch's, with names of the function's own beside."""

    next_functions: tuple[tuple[Node | None, int], ...]
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...

    def mark_dirty(self, *tensors: torch.Tensor) -> None: ...


Kept = TypeVar("Kept", bound=Context)


class Unlike(BaseException):
    """The run differs from the one that was watched. Not an Exception, so that no handler of the model's takes it."""


def are_constant(*weights: torch.Tensor | None) -> bool:
    """Tell whether these weights do not depend on the images: what is given here is the gradient to those alone."""
    return all(weight is None or weight.grad_fn is None for weight in weights)


def once(backward: Callable[[Kept, torch.Tensor], Gradients]) -> Callable[[Kept, torch.Tensor], Gradients]:
    """Let the run be done again, as it is, if more is asked for: a model may differentiate itself, or learn, within.

    That is a second derivative, which PyTorch's ``once_differentiable`` would let be 0 where nothing else asks for it,
    or a gradient to anything but the function's first argument.
    """

    @wraps(backward)
    def guarded(ctx: Kept, g: torch.Tensor) -> Gradients:
        others = [node for node, _ in ctx.next_functions[1:] if node is not None]
        if torch.is_grad_enabled() or any(map(torch._C._will_engine_execute_node, others)):
            raise Unlike
        return backward(ctx, g)

    return guarded
