"""Which derivatives are a ReLU's as they are dispatched, where no node of the graph tells."""

from typing import Any, Final

import torch

from guided_backprop.backends.torch.graph.relus import Bound, is_zero, name_of

# Of each the argument that says it, if it has to be 0; and that with the cap.
_DERIVATIVES: Final[dict[str, tuple[int | None, int | None]]] = {
    "threshold_backward": (None, None),
    "hardtanh_backward": (2, 3),
    "leaky_relu_backward": (2, None),
    "elu_backward": (1, None),
}
# Which bound of a clamp its derivative compares with.
_SIDES: Final = {"ge": "low", "gt": "low", "le": "high", "lt": "high"}


def relu_of_derivative(name: str, args: tuple[Any, ...]) -> str | None:
    """Return the name of the ReLU that a derivative, as it is dispatched, is of; None if it is of none."""
    if name == "rrelu_with_noise_backward":
        return name_of(None) if args[3] == args[4] == 0 else None
    if name not in _DERIVATIVES:
        return None
    slope, cap = _DERIVATIVES[name]
    return name_of(None if cap is None else args[cap]) if slope is None or args[slope] == 0 else None


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
        return is_zero(self._bounds.get("low"))

    @property
    def may_spell_relu(self) -> bool:
        """Whether a ReLU can be spelled with it, as with ``min(x, 0)``."""
        low, high = self._bounds.get("low"), self._bounds.get("high")
        return is_zero(high) or _is_partly_zero(low) or _is_partly_zero(high)

    @property
    def cap(self) -> Bound:
        """The upper bound, if there is one."""
        return self._bounds.get("high")

    @property
    def word(self) -> str:
        """How the coverage calls it."""
        return "clamp" if len(self._bounds) == 2 else {"low": "maximum", "high": "minimum"}[next(iter(self._bounds))]


def _is_partly_zero(bound: Bound) -> bool:
    if not isinstance(bound, torch.Tensor):
        return False
    return 0 < int(bound.count_nonzero()) < bound.numel()
