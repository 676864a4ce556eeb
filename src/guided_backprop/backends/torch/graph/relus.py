"""Which nodes of PyTorch's autograd graph are ReLUs, told by what they saved.

A node is known by its operation and by what it saved (``_saved_min == 0``), never by how the forward pass was
written: that is why ``F.relu``, ``x.clamp(min=0)`` and ``torch.maximum(x, zeros)`` are all ReLUs here. For each
operation that is one with the right bounds there is a recogniser.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.torch.graph.operations import operation, operation_of, row_of
from guided_backprop.backends.torch.own import OwnRelu, own_function
from guided_backprop.errors import OpaqueRegionError

#: A number, or a tensor of bounds; None if there is no bound.
Bound = torch.Tensor | float | None


class Relu(NamedTuple):
    """A node that is the derivative of a ReLU, or of a ReLU with a cap.

    Attributes:
        node: the node.
        name: "relu", "relu6", "threshold(0.5)"...
        operand: which of the node's edges leads to the ReLU's input.
        x: the ReLU's input where the framework opens the gate at a tie (``x == 0``), else None.
        cap: the upper bound that belongs to ``x``; None if there is no bound.
    """

    node: Node
    name: str
    operand: int = 0
    x: torch.Tensor | None = None
    cap: Any = None

    def is_open(self, x: torch.Tensor) -> torch.Tensor:
        """Return where the gate is open, given the ReLU's input."""
        return is_open(x, self.cap)

    def values(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the ReLU's input and output, as far as the graph keeps them.

        Of a ReLU that worked in place it keeps the output alone. A custom function hides both.
        """
        before = saved(self.node, "self") if self.x is None else self.x
        after = saved(self.node, "result") if before is None else before
        if after is None:
            return None, None
        after = after.clamp(min=0)
        cap = saved(self.node, "max_val") if self.x is None else self.cap
        threshold = saved(self.node, "threshold") if self.x is None else None
        if cap is not None:
            after = after.clamp(max=cap)
        # What a threshold gives where it is closed is not kept; a ReLU gives 0 there.
        return before, after if threshold is None else torch.where(after > threshold, after, 0)


def relu_of(node: Node, on_path: Container[Node]) -> Relu | None:
    """Return how ``node`` is the derivative of a ReLU, or None if it is not."""
    name = node.name()
    recognise = _RECOGNISERS.get(operation_of(name))
    if recognise is not None:
        return recognise(node, on_path)
    own = own_function(node) if row_of(name).kind is Kind.HIDDEN else None
    return Relu(node, name_of(node.cap)) if own is not None and issubclass(own, OwnRelu) else None  # type: ignore[attr-defined]


def is_open(x: torch.Tensor, cap: Bound) -> torch.Tensor:
    """Return where the gate of a ReLU with this cap is open: at a tie it is not."""
    return x > 0 if cap is None else (x > 0) & (x < cap)


def name_of(cap: Bound) -> str:
    """Return how a ReLU with this cap is called."""
    if isinstance(cap, torch.Tensor):
        return "relu with a cap"
    return "relu" if cap is None or cap == float("inf") else f"relu{cap:g}"


def saved(node: Node, name: str) -> Any:
    """Return what a node saved by this name, or None."""
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError as error:
        raise OpaqueRegionError(
            f"what {operation(node)} saved must be readable; received {str(error).splitlines()[0]} "
            "Explain the model without its checkpoints."
        ) from error


def is_constant(node: Node, operand: int, on_path: Container[Node]) -> bool:
    """Tell whether an operand of a node does not depend on the images."""
    return node.next_functions[operand][0] not in on_path


# For each operation that may be a ReLU by what it saved: how.


def _always(node: Node, on_path: Container[Node]) -> Relu | None:
    return Relu(node, "relu")


def _threshold(node: Node, on_path: Container[Node]) -> Relu | None:
    threshold = saved(node, "threshold")
    return Relu(node, "relu" if threshold == 0 else f"threshold({threshold:g})")


def _hardtanh(node: Node, on_path: Container[Node]) -> Relu | None:
    return Relu(node, name_of(saved(node, "max_val"))) if saved(node, "min_val") == 0 else None


def _with_zeros(*slopes: str) -> Callable[[Node, Container[Node]], Relu | None]:
    """Return the recogniser of what has no slope left of 0 if all that it saved by these names is 0."""

    def recognise(node: Node, on_path: Container[Node]) -> Relu | None:
        return Relu(node, "relu") if all(is_zero(saved(node, slope)) for slope in slopes) else None

    return recognise


def _clamp(node: Node, on_path: Container[Node]) -> Relu | None:
    if not is_zero(saved(node, "min")):
        return None
    # clamp_min has no upper bound to save.
    cap = saved(node, "max")
    return Relu(node, name_of(cap), 0, saved(node, "self").detach(), cap)


def _maximum(node: Node, on_path: Container[Node]) -> Relu | None:
    for operand, (x, other) in enumerate((("self", "other"), ("other", "self"))):
        if is_constant(node, 1 - operand, on_path) and is_zero(saved(node, other)):
            return Relu(node, "relu", operand, saved(node, x).detach())
    return None


_RECOGNISERS: Final = {
    "relu": _always,
    "threshold": _threshold,
    "hardtanh": _hardtanh,
    "leaky_relu": _with_zeros("negative_slope"),
    "prelu": _with_zeros("weight"),
    "elu": _with_zeros("alpha"),
    "rrelu": _with_zeros("lower", "upper"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "maximum": _maximum,
    "fmax": _maximum,
}


def is_called_as_relu(name: str, args: Sequence[Any], depends: Callable[[Any], bool]) -> bool:
    """Tell whether an operation that is being dispatched is a ReLU: what its node will be known by.

    Args:
        name: the operation, as the table knows it.
        args: what it is called with.
        depends: whether an argument depends on the images.
    """
    if name in ("relu", "threshold"):
        return True
    if name in ("leaky_relu", "prelu", "elu"):
        return len(args) > 1 and not depends(args[1]) and is_zero(args[1])
    if name in ("clamp", "clamp_min", "hardtanh"):
        return len(args) > 1 and args[1] is not None and not depends(args[1]) and is_zero(args[1])
    if name in ("maximum", "fmax"):
        return any(not depends(arg) and is_zero(arg) for arg in args[:2])
    return False


def is_zero(bound: Bound) -> bool:
    """Tell whether a bound is there, and 0 throughout."""
    if isinstance(bound, torch.Tensor):
        return not bool(bound.count_nonzero())
    return bound is not None and bound == 0
