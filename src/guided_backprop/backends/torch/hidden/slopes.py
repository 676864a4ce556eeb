"""Slopes below 0 of a PReLU, in one operation or written out: where some of them are as 0 it is a ReLU."""

from collections.abc import Mapping

import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.curves import is_partly_relu
from guided_backprop.backends.nomination import PRELU
from guided_backprop.backends.refusals import is_plain, spelled
from guided_backprop.backends.torch.graph.composites import Composite, Operand
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.graph.relus import relu_of, saved


def check_slopes(path: Path, activations: Mapping[Node, Composite], vouch: Vouch) -> None:
    """Raise if some slopes of a PReLU are as 0, as they may be from one call to the next: there it is a ReLU."""
    if is_plain(PRELU, vouch, "torch.relu"):
        return
    wholes = [node for node in path.concerns if row(node).word == PRELU and relu_of(node, path.members) is None]
    slopes = [(saved(node, "weight"), 1.0) for node in wholes]
    for one in activations.values():
        if one.slopes is not None and isinstance(one.slopes.array, Operand):
            node, place = one.slopes.array
            slopes.append((saved(node, ("self", "other")[place]), one.slopes.factor))
    if any(isinstance(array, torch.Tensor) and is_partly_relu(as_numpy(array), factor) for array, factor in slopes):
        raise spelled({PRELU}, "torch.relu")
