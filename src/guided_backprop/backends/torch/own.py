"""The functions of an optimised model, by what the rest of the backend has to know of them.

They are ``torch.autograd.Function``s like a user's, but what they compute is known: none hides anything, and one of
them is a ReLU that applies a rule itself.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch.autograd.graph import Node

from guided_backprop.rules import ReluRule

#: A function of torch's as a mode meets it, and what it is called with by position and by name.
Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Named = dict[str, Any]

#: Whether one of them runs right now, in this thread: ``is_own``.
RUNNING = threading.local()
# What gives back a gradient that nothing else holds.
_MAKERS = {"ConvolutionBackward0", "MaxPool2DWithIndicesBackward0", "NativeBatchNormBackward0"}


class OwnFunction(torch.autograd.Function):
    """A function of this library's.

    Attributes:
        is_maker: whether what it gives back is new memory, or what it was given and was its own.
        is_in_place: whether it writes over what arrives where nothing else holds that.
    """

    is_maker: ClassVar[bool] = False
    is_in_place: ClassVar[bool] = False

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run it, as one that is known."""
        RUNNING.is_own = True
        try:
            return super().apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            RUNNING.is_own = False


class OwnRelu(OwnFunction):
    """One that is a ReLU: its node has a ``cap``, or None, and applies the ``rule`` that is put there."""


def own_function(node: Node) -> type[OwnFunction] | None:
    """Return which of them a node is the derivative of: by the class, for a name may be another's."""
    function = getattr(type(node), "_forward_cls", None)
    return function if isinstance(function, type) and issubclass(function, OwnFunction) else None


def prepare(node: Any, rule: ReluRule, children: Sequence[Node]) -> None:
    """Tell a node of ours what it has to know of the backward pass to come.

    Args:
        node: the node.
        rule: what a ReLU lets through.
        children: all nodes that gradients come to it from.
    """
    function = own_function(node)
    if function is not None and issubclass(function, OwnRelu):
        node.rule = rule
    if function is not None and function.is_in_place:
        node.is_own = _is_made_for_one(children)


def _is_made_for_one(children: Sequence[Node]) -> bool:
    """Tell whether what these nodes give is one gradient that nothing else holds.

    What comes from several is added up in memory that nothing else holds; it is added up if more than one of them gives
    anything, and those of ours always do.
    """
    if len(children) == 1 and children[0].name() in _MAKERS:
        return True
    return any(function.is_maker for function in map(own_function, children) if function is not None)
