"""What of a graph depends on the precision that it was recorded in: named where a file's maps are not the model's.

A graph is recorded in double precision and computes in single precision. Where both recordings differ in a number, as
in what is added so that nothing is divided by 0, the file has that of the other precision; of coarser kinds none.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from guided_backprop.backends.torch.export.simplify import constant_of

_COARSE: Final = frozenset({torch.float16, torch.bfloat16})


class Step(NamedTuple):
    """One operation of a graph.

    Attributes:
        name: what it is called.
        numbers: those that it is given, and the only one of each constant that is one number.
        dtype: the kind of numbers of its result, if it is one array.
    """

    name: str
    numbers: tuple[float, ...]
    dtype: torch.dtype | None


def steps_of(module: GraphModule) -> list[Step]:
    """Return the operations of a graph, in their order."""
    return [_step(module, node) for node in module.graph.nodes if node.op == "call_function"]


def _step(module: GraphModule, node: Node) -> Step:
    numbers = []
    for value in tree_leaves((node.args, node.kwargs)):
        constant = constant_of(module, value)
        if constant is not None and constant.numel() == 1:
            numbers.append(float(constant))
        elif isinstance(value, float):
            numbers.append(value)
    result = node.meta.get("val")
    dtype = result.dtype if isinstance(result, torch.Tensor) else None
    return Step(str(getattr(node.target, "overloadpacket", node.target)), tuple(numbers), dtype)


def of_precision(recorded: Sequence[Step], single: Sequence[Step]) -> str | None:
    """Return what depends on the precision, in words; None if nothing does.

    Args:
        recorded: the graph that was written.
        single: the same, recorded in the model's own precision.
    """
    for one, other in zip(recorded, single, strict=False):
        if other.dtype in _COARSE:
            return f"{other.name}, whose result is of {other.dtype}, which a file computes in single precision"
        if one.name != other.name:
            return f"{other.name}, which is {one.name} in double precision"
        pairs = zip(one.numbers, other.numbers, strict=False)
        different = next(((before, after) for before, after in pairs if before != after), None)
        if different is not None:
            return f"{other.name}, which is given {different[1]:.3g}, and {different[0]:.3g} in double precision"
    return None
