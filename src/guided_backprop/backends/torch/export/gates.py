"""Gates of the way back so that engines fuse what is around them, exactly as they were.

A gate that reads what went into a clamp keeps that value alive, so that the clamp is no part of the convolution in
front of it; what comes out of the clamp tells the same. And what clamps a gradient behind a gate of 0 and 1 can do so
in front of it, where it is part of the convolution that the gradient comes from.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_CAST: Final = frozenset({aten._to_copy.default, aten.to.dtype})


def open_by_results(module: GraphModule) -> None:
    """Let comparisons with the bound of a clamp read its result: x > low where y > low, and x < high where y < high."""
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    for node, place in places.items():
        low, high = _bounds_of(node)
        if (low is None and high is None) or (low is not None and high is not None and not low < high):
            continue
        x: Any = node.args[0]
        for other in list(_readers_of(x)):
            asks = (other.target, *other.args[1:])
            if asks in ((aten.gt.Scalar, low), (aten.lt.Scalar, high)) and places[other] > place:
                other.args = (node, *other.args[1:])


def _readers_of(x: Node) -> Iterator[Node]:
    """Yield what reads a value or a copy of it, as an activation in place keeps one for its gate."""
    for other in x.users:
        yield other
        if other.target == aten.clone.default:
            yield from _readers_of(other)


def _bounds_of(node: Node) -> tuple[Any, Any]:
    """Return the bounds of a clamp that are numbers; None for one that there is not, or that is none."""
    if node.target == aten.relu.default:
        return 0, None
    if node.target == aten.hardtanh.default:
        return (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])  # type: ignore[return-value]
    if node.target not in (aten.clamp.default, aten.clamp_min.default):
        return None, None
    low, high = [*node.args[1:], None, None][:2]
    low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
    return (None, None) if isinstance(low, Node) or isinstance(high, Node) else (low, high)


def clamp_first(module: GraphModule) -> None:
    """Clamp what arrives at a gate of 0 and 1, instead of what leaves it."""
    for clamp in list(module.graph.nodes):
        product: Any = clamp.args[0] if _bounds_of(clamp) == (0, None) else None
        if not isinstance(product, Node) or product.target != aten.mul.Tensor or len(product.users) > 1:
            continue
        for g, mask in _pairs(product):
            if _is_mask(mask) and isinstance(g, Node) and _takes_clamp(g):
                with module.graph.inserting_before(product):
                    first = module.graph.call_function(clamp.target, (g, *clamp.args[1:]), clamp.kwargs)
                first.meta["val"] = g.meta["val"]
                product.replace_input_with(g, first)
                clamp.replace_all_uses_with(product)
                module.graph.erase_node(clamp)
                break


def _takes_clamp(node: Node) -> bool:
    """Tell whether engines clamp a value where it is made: a convolution's, and what is added to one's."""
    if len(node.users) > 1:
        return False
    if node.target == aten.add.Tensor:
        return any(isinstance(one, Node) and _is_convolution(one) for one in node.args)
    return _is_convolution(node)


def _is_convolution(node: Node) -> bool:
    return node.target == aten.convolution.default and not node.args[6]


def _pairs(product: Node) -> Iterator[tuple[Any, Any]]:
    one, other = product.args
    yield one, other
    yield other, one


def _is_mask(node: object) -> bool:
    """Tell whether a value is a boolean, cast."""
    if not isinstance(node, Node) or node.target not in _CAST:
        return False
    (source,) = node.all_input_nodes
    return bool(source.meta["val"].dtype == torch.bool)
