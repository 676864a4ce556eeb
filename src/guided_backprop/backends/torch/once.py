"""What the functions of an optimised model have in common: a way back that is taken once, to the images."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


class Unlike(BaseException):
    """The run differs from the one that was watched. Not an Exception, so that no handler of the model's takes it."""


def once(backward: Callable[[Any, torch.Tensor], Any]) -> Callable[[Any, torch.Tensor], Any]:
    """Let the run be done again, as it is, if the way back is to be differentiated: a model may do so within itself.

    PyTorch's ``once_differentiable`` would let the second derivative be 0 where nothing else asks for it.
    """

    @wraps(backward)
    def guarded(ctx: Any, g: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise Unlike
        return backward(ctx, g)

    return guarded
