"""Where the axes of what a node's operation was given go, by what the node keeps of their sizes."""

from collections.abc import Sequence
from math import nan
from typing import Final

from torch.autograd.graph import Node

from guided_backprop.backends.axes import Axes, multiplied, pointwise, reduced, reshaped
from guided_backprop.backends.torch.graph.operations import operation, row
from guided_backprop.backends.torch.graph.relus import saved

# Value by value, as far as second moments are made with them; what is smaller is repeated.
_POINTWISE: Final = frozenset("add cast copy div mul neg pow stop_gradient sub".split())
_WINDOWS: Final = "kernel_size stride padding ceil_mode count_include_pad".split()
_PRODUCTS: Final = frozenset({"bmm", "mm"})


def axes_of(node: Node) -> Axes | None:
    """Return where the axes of what depends on the images go; None if nobody says so here."""
    made = _shape_of(node, 0) or ()
    # Of an array of the model's no more is known than that matrices are multiplied by matrices.
    unknown = (nan,) * len(made) if operation(node) in _PRODUCTS else ()
    given = [_shape_of(source, place) for source, place in node.next_functions]
    known = [unknown if shape is None else shape for shape in given]
    axes = _axes_of(node, known, made) if any(given) and len(node._input_metadata) == 1 else None
    return axes and axes.without_ones(known)


def _shape_of(node: Node | None, place: int) -> Sequence[float] | None:
    """Return the shape of one of a node's results; None if it has no node, as a number and an array of the model's."""
    metadata = () if node is None else node._input_metadata
    return tuple(metadata[place].shape) if place < len(metadata) else None


def _axes_of(node: Node, given: Sequence[Sequence[float]], made: Sequence[float]) -> Axes | None:
    name, word, rank = operation(node), row(node).word, len(given[0])
    if name in ("mean", "sum"):
        axes = _counted(saved(node, "dim") or range(rank), rank)
        return reduced(rank, axes, given[0], is_kept=bool(saved(node, "keepdim")))
    if name in ("permute", "t", "transpose"):
        order = _order_of(node, name, rank)
        return Axes([[order.index(axis) - rank for axis in range(rank)]])
    if name in _PRODUCTS:
        return multiplied(given)
    if word == "avg_pool":
        windows = (name, *given[0], *made, *(str(saved(node, how)) for how in _WINDOWS))
        return None if saved(node, "divisor_override") else Axes([range(-rank, 0)], [nan], windows)
    if word == "reshape":
        return reshaped(given[0], made)
    return pointwise([len(shape) for shape in given]) if word in _POINTWISE or name == "expand" else None


def _order_of(node: Node, name: str, rank: int) -> list[int]:
    """Return in which order a node puts the axes."""
    if name == "permute":
        return _counted(saved(node, "dims"), rank)
    order = list(range(rank))
    first, second = (0, -1) if name == "t" else _counted([saved(node, "dim0"), saved(node, "dim1")], rank)
    if order:
        order[first], order[second] = order[second], order[first]
    return order


def _counted(axes: Sequence[int], rank: int) -> list[int]:
    """Return axes counted from the first one on: those that count from the end are kept as numbers without a sign."""
    return [(axis if axis < 2**63 else axis - 2**64) % rank for axis in axes]
