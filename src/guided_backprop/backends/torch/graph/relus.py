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
        return Relu(node, "relu") if all(_is_zero(saved(node, slope)) for slope in slopes) else None

    return recognise


def _clamp(node: Node, on_path: Container[Node]) -> Relu | None:
    if not _is_zero(saved(node, "min")):
        return None
    # clamp_min has no upper bound to save.
    cap = saved(node, "max")
    return Relu(node, name_of(cap), 0, saved(node, "self").detach(), cap)


def _maximum(node: Node, on_path: Container[Node]) -> Relu | None:
    for operand, (x, other) in enumerate((("self", "other"), ("other", "self"))):
        if is_constant(node, 1 - operand, on_path) and _is_zero(saved(node, other)):
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

# The same for derivatives as they are dispatched: the argument that says it, if it has to be 0; and that with the cap.
_DERIVATIVES: Final[dict[str, tuple[int | None, int | None]]] = {
    "threshold_backward": (None, None),
    "hardtanh_backward": (2, 3),
    "leaky_relu_backward": (2, None),
    "elu_backward": (1, None),
}


def relu_of_derivative(name: str, args: tuple[Any, ...]) -> str | None:
    """Return the name of the ReLU that a derivative, as it is dispatched, is of; None if it is of none."""
    if name == "rrelu_with_noise_backward":
        return name_of(None) if args[3] == args[4] == 0 else None
    if name not in _DERIVATIVES:
        return None
    slope, cap = _DERIVATIVES[name]
    return name_of(None if cap is None else args[cap]) if slope is None or args[slope] == 0 else None


_SIDES = {"ge": "low", "gt": "low", "le": "high", "lt": "high"}


class ClampDerivative:
    """Follows the one derivative that is dispatched as several operations: ``where(x >= low and x <= high, g, 0)``.

    Since PyTorch 2.15 it is shut at a bound that is a number, ``x > low and x < high``, and another for tensors.

    Attributes:
        x: the clamp's input; None if there was no comparison.
    """

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        self._bounds: dict[str, Bound] = {}

    def takes(self, name: str, args: tuple[Any, ...]) -> bool:
        """Note an operation; tell whether it is one in front of the choice itself."""
        side = _SIDES.get(name)
        if side is None or (name in ("gt", "lt") and isinstance(args[1], torch.Tensor)):
            return name in ("logical_and", "logical_and_")
        self.x, self._bounds[side] = args[0], args[1]
        return True

    @property
    def is_relu(self) -> bool:
        """Whether it is that of a ReLU, with a cap or without."""
        return _is_zero(self._bounds.get("low"))

    @property
    def may_spell_relu(self) -> bool:
        """Whether a ReLU can be spelled with it, as with ``min(x, 0)``."""
        low, high = self._bounds.get("low"), self._bounds.get("high")
        return _is_zero(high) or _is_partly_zero(low) or _is_partly_zero(high)

    @property
    def cap(self) -> Bound:
        """The upper bound, if there is one."""
        return self._bounds.get("high")

    @property
    def word(self) -> str:
        """How the coverage calls it."""
        return "clamp" if len(self._bounds) == 2 else {"low": "maximum", "high": "minimum"}[next(iter(self._bounds))]


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
        return len(args) > 1 and not depends(args[1]) and _is_zero(args[1])
    if name in ("clamp", "clamp_min", "hardtanh"):
        return len(args) > 1 and args[1] is not None and not depends(args[1]) and _is_zero(args[1])
    if name in ("maximum", "fmax"):
        return any(not depends(arg) and _is_zero(arg) for arg in args[:2])
    return False


def _is_zero(bound: Bound) -> bool:
    if isinstance(bound, torch.Tensor):
        return not bool(bound.count_nonzero())
    return bound is not None and bound == 0


def _is_partly_zero(bound: Bound) -> bool:
    if not isinstance(bound, torch.Tensor):
        return False
    return 0 < int(bound.count_nonzero()) < bound.numel()
