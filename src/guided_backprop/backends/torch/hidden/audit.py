"""What the autograd graph does not show of the backward pass: operations in place on a view, which are watched.

The watcher is a dispatch mode: it sees the operations of this thread, between enter and exit, and nothing of the
user's is changed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched
from guided_backprop.backends.torch.graph.relus import is_open, name_of
from guided_backprop.backends.torch.hidden.dispatched import ClampDerivative, relu_of_derivative
from guided_backprop.backends.torch.layouts import lies_channels_last, unambiguous
from guided_backprop.backends.torch.leaving import leaving
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule


class BackwardWatch(Dispatched):
    """Applies a rule inside operations in place on a view, whose derivative the graph does not show.

    So does a function of the user's own hide what runs in its backward pass; there a batch-norm is made to read right.
    Between ``enter`` and ``leave`` of such a node each operation is known to be no activation's, or is the
    derivative of an activation, or is refused.
    """

    def __init__(self, rule: ReluRule, note: Callable[[str, str], None]) -> None:
        super().__init__()
        self._rule = rule
        self._note = note
        self._inside = False
        self._clamp = ClampDerivative()

    def enter(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Begin: a pre-hook of the node."""
        self._inside, self._clamp = True, ClampDerivative()

    def leave(self, inputs: tuple[torch.Tensor, ...], gradients: tuple[torch.Tensor, ...]) -> None:
        """End: a hook of the node."""
        self._inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "native_batch_norm_backward":
            args = (unambiguous(args[0], is_last=lies_channels_last(args[1])), *args[1:])
        activation = dispatched(name.removesuffix("_backward"))
        kind, word = OPERATIONS[activation]
        # What is differentiated inside is a checkpoint's forward pass, run once more for what it saved.
        if not self._inside or torch.is_grad_enabled() or _asks(func) or self._clamp.takes(name, args):
            return func(*args, **kwargs)
        # What is multiplied after a comparison may be multiplied by it.
        if (kind in _PASSING or activation in _PLACED) and self._clamp.x is None:
            return func(*args, **kwargs)
        if name == "where" and self._clamp.x is not None and not self._clamp.may_spell_relu:
            return self._leave_clamp(self._clamp.x, args[1], func(*args, **kwargs))
        relu = relu_of_derivative(name, args)
        if relu is not None:
            self._note(relu, self._rule.name)
            return self._leave(name, args, func(*args, **kwargs))
        if name.endswith("_backward"):
            self._note(word, self._rule.treatment(word))
            gradient = args[0].clamp(min=0) if self._rule.guides(word) else args[0]
            return func(gradient, *args[1:], **kwargs)
        if self._rule.needs_every_relu and kind is not Kind.SMOOTH:
            raise _hidden(name)
        return func(*args, **kwargs)

    def _leave_clamp(self, x: torch.Tensor, g: torch.Tensor, derived: torch.Tensor) -> torch.Tensor:
        """Return what leaves a clamp, which is a ReLU if it is one from 0."""
        clamp, self._clamp = self._clamp, ClampDerivative()
        if not clamp.is_relu:
            self._note(clamp.word, self._rule.treatment(clamp.word))
            return derived
        self._note(name_of(clamp.cap), self._rule.name)
        y = x.clamp(min=0) if clamp.cap is None else torch.minimum(x.clamp(min=0), torch.as_tensor(clamp.cap).to(x))
        pair = (x, y) if self._rule.reads_values else (None, None)
        # The framework lets the gradient pass at a tie, so it is not what it derived.
        return leaving(self._rule, g, torch.where(is_open(x, clamp.cap), g, 0), *pair)

    def _leave(self, name: str, args: tuple[Any, ...], derived: torch.Tensor) -> torch.Tensor:
        """Return what leaves a ReLU, of which the derivative was given the input, or the output."""
        g, before = args[0], args[1] if name != "elu_backward" else args[5]
        return leaving(self._rule, g, derived, None, before.clamp(min=0) if self._rule.reads_values else None)


# Operations that a derivative can be made of without being that of an activation; and those that put values in place.
_PASSING: Final = frozenset({Kind.MOVES, Kind.LINEAR})
_PLACED: Final = OPERATIONS.of(Kind.MASKS) - {"where"}


def _asks(func: Any) -> bool:
    """Tell whether an operation tells of a tensor its size or device, and nothing of its values: as in a trace."""
    name: str = func.overloadpacket.__name__
    return name.startswith("sym_") or str(func.namespace) == "prim"


def _hidden(name: str) -> ModelError:
    return OpaqueRegionError(
        "an operation in place on a view must be linear or a known activation; "
        f"received {name}. Apply it out of place, or not to a view."
    )
