"""Slopes below 0 of a PReLU, in one operation or written out: where some of them are as 0 it is a ReLU."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.curves import is_partly_relu
from guided_backprop.backends.nomination import PRELU
from guided_backprop.backends.refusals import is_plain, spelled
from guided_backprop.backends.torch.graph.composites import Composite, Operand
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.operations import OPERATIONS, operation, row
from guided_backprop.backends.torch.graph.relus import relu_of, saved

_COPIES: Final = OPERATIONS.called("cast", "copy")
_PRODUCTS: Final = frozenset({"div", "mul", "neg"})
# So many values a mask chooses from.
_TWO: Final = 2

Edge = tuple[Node | None, int]


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
    if any(ratios.size > 1 and is_partly_relu(ratios) and not _is_whole(ratios) for ratios in _chosen(path)):
        raise spelled({PRELU}, "torch.relu")


def whole_relus(path: Path) -> tuple[bool, ...]:
    """Tell of each choice between multiples of a value whether one of them is 0 everywhere: it may be a whole ReLU."""
    return tuple(_is_whole(ratios) for ratios in _chosen(path))


def _is_whole(ratios: NumpyArray) -> bool:
    return bool((ratios == 0).all() or np.isinf(ratios).all())


def _chosen(path: Path) -> Iterator[NumpyArray]:
    """Yield the slopes of what is x times one of two numbers in each place, as of ``where(x > 0, x, slopes * x)``.

    Whatever chooses, as long as it does so value by value: a ReLU of x is there at most where one of the two is as 0
    beside the other. Where it is one everywhere its values show it.
    """
    for node in path.choices:
        if len(node.next_functions) != _TWO:
            continue
        (x, one), (y, other) = (_products(edge, path) for edge in node.next_functions)
        # What was saved is looked at for these alone: a checkpoint runs once more for it.
        if x != y or not (one or other) or not isinstance(condition := saved(node, "condition"), torch.Tensor):
            continue
        with np.errstate(all="ignore"):
            ratios = np.asarray(_product(other) / _product(one))
        if condition.numel() >= ratios.size:
            yield np.where(np.isnan(ratios), 1.0, ratios)


def _products(edge: Edge, path: Path) -> tuple[Edge, list[tuple[Node, int]]]:
    """Return what a value is a multiple of by constants, and the products, with the place of what each multiplies."""
    products = list[tuple[Node, int]]()
    while (node := edge[0]) is not None and (operation(node) in _COPIES or row(node).word in _PRODUCTS):
        moving = [place for place, (source, _) in enumerate(node.next_functions) if source in path.members]
        if len(moving) != 1 or (row(node).word == "div" and moving[0]):
            break
        products += [(node, moving[0])] if row(node).word in ("div", "mul") else []
        edge = node.next_functions[moving[0]]
    return edge, products


def _product(products: list[tuple[Node, int]]) -> NumpyArray:
    """Return the number, for each number of a value, that some products multiply it by; their signs say nothing."""
    factor: NumpyArray = np.ones(())
    for node, place in products:
        array = saved(node, ("other", "self")[place])
        numbers = as_numpy(array).astype(np.float64) if isinstance(array, torch.Tensor) else np.ones(())
        factor = np.asarray(factor * numbers if row(node).word == "mul" else factor / numbers)
    return factor
