"""What was found to be a ReLU, spelled as arithmetic, and the hooks by which a rule acts on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray


@dataclass(frozen=True)
class Spelled:
    """A result that is a ReLU of something: the rule acts on what arrives there.

    Attributes:
        node: the node of the operation that gave it.
        output: which of its results it is.
        name: the operation, and the line of the model.
        y: the result.
        is_open: where it is not closed.
    """

    node: Node
    output: int
    name: str
    y: NumpyArray
    is_open: NumpyArray


def closing(
    relus: Sequence[Spelled], leave: Callable[[Any, Any, Any], Any]
) -> Iterator[tuple[Node, Callable[..., Any]]]:
    """Yield for each spelled ReLU its node, and a hook that applies a rule to what arrives there.

    Args:
        relus: the spelled ReLUs.
        leave: from what arrives at a ReLU's result, what its gate makes of that, and the result, to what leaves.
    """
    for relu in relus:

        def hook(gradients: tuple[torch.Tensor | None, ...], relu: Spelled = relu) -> tuple[torch.Tensor | None, ...]:
            g = gradients[relu.output]
            if g is None:
                return gradients
            is_open = torch.as_tensor(relu.is_open, device=g.device)
            y = torch.as_tensor(relu.y, device=g.device, dtype=g.dtype)
            left = leave(g, torch.where(is_open, g, 0), y)
            return (*gradients[: relu.output], left, *gradients[relu.output + 1 :])

        yield relu.node, hook
