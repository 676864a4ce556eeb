"""What picks and orders values by an index, or makes one, in ONNX's words."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.fx import Node

from guided_backprop.backends.torch.export.writer import Writer, dtype_of


def gathered(to: Writer, node: Node, x: Any, axis: int, index: Any) -> str:
    return to.file.add("GatherElements", to.name(x), to.name(index, torch.int64), axis=axis)


def index_select(to: Writer, node: Node, x: Any, axis: int, index: Any) -> str:
    if index.target == torch.ops.aten.arange.start_step:
        begin, end, step = (to.size(size) for size in (*index.args, 1)[:3])
        return to.file.add("Slice", to.name(x), begin, end, to.file.integers(axis), step)
    return to.file.add("Gather", to.name(x), to.name(index, torch.int64), axis=axis)


def embedding(to: Writer, node: Node, weight: Any, index: Any, *ignored: Any) -> str:
    return to.file.add("Gather", to.name(weight), to.name(index, torch.int64), axis=0)


def in_order(to: Writer, node: Node, x: Any, *options: Any, **named: Any) -> list[str]:
    """``sort`` (dim, descending), with or without ``stable``: the first of what is equal comes first."""
    said = dict(zip(("dim", "descending"), options[-2:], strict=False)) | named
    axis = said.get("dim", -1)
    size = x.meta["val"].shape[axis]
    if not isinstance(size, int):
        raise TypeError("an axis whose size is free")
    return _best(to, x, to.size(size), axis, is_largest=bool(said.get("descending", False)))


def top(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, count: int, axis: int = -1, largest: bool = True, is_sorted: bool = True
) -> list[str]:
    return _best(to, x, to.size(count), axis, is_largest=largest)


def _best(to: Writer, x: Any, count: str, axis: int, *, is_largest: bool) -> list[str]:
    return to.file.add_several(2, "TopK", to.name(x), count, axis=axis, largest=int(is_largest))


def scattered(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, axis: int, index: Any, source: Any
) -> str:
    dtype, index = dtype_of(node), to.name(index, torch.int64)
    values = to.name(source, dtype)
    if not isinstance(source, Node):
        values = to.file.add("Expand", values, to.file.add("Shape", index))
    return to.file.add("ScatterElements", to.name(x, dtype), index, values, axis=axis)


def scatter_added(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, axis: int, index: Any, source: Any
) -> str:
    if [str(size) for size in index.meta["val"].shape] != [str(size) for size in source.meta["val"].shape]:
        raise TypeError("an index of another size than what is added")
    names = [to.name(x), to.name(index, torch.int64), to.name(source, dtype_of(node))]
    return to.file.add("ScatterElements", *names, axis=axis, reduction="add")


def indexed(to: Writer, node: Node, x: Any, index: Sequence[Any]) -> str:
    arrays = [(axis, one) for axis, one in enumerate(index) if one is not None]
    if len(arrays) == 1:
        axis, where = arrays[0]
        if axis == 0 and _dtype(where) == torch.bool:
            return to.file.add("GatherND", to.name(x), _places(to, where))
        if _dtype(where) == torch.bool:
            raise TypeError("a mask of another axis than the first")
        return to.file.add("Gather", to.name(x), to.name(where, torch.int64), axis=axis)
    picked = _Picked.of(to, x, arrays)
    taken = to.file.add("GatherND", to.file.add("Transpose", to.name(x), perm=picked.first), picked.places)
    return to.file.add("Transpose", taken, perm=picked.back)


def index_put(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, index: Sequence[Any], values: Any, accumulate: bool = False
) -> str:
    arrays = [(axis, one) for axis, one in enumerate(index) if one is not None]
    axis, where = arrays[0]
    name, added = to.name(values, dtype_of(node)), {"reduction": "add"} if accumulate else {}
    if len(arrays) > 1 or _dtype(where) != torch.bool:
        picked = _Picked.of(to, x, arrays)
        if values.meta["val"].ndim != len(picked.back):
            raise TypeError("values that are repeated")
        base = to.file.add("Transpose", to.name(x), perm=picked.first)
        given = to.file.add("Transpose", name, perm=_inverse(picked.back))
        written = to.file.add("ScatterND", base, picked.places, given, **added)
        return to.file.add("Transpose", written, perm=_inverse(picked.first))
    if axis:
        raise TypeError("a mask of another axis than the first")
    if values.meta["val"].ndim == 0 and not accumulate:
        mask, axes = to.name(where), range(_dims(where), _dims(x))
        mask = to.file.add("Unsqueeze", mask, to.file.integers(*axes)) if axes else mask
        return to.file.add("Where", mask, name, to.name(x))
    return to.file.add("ScatterND", to.name(x), _places(to, where), name, **added)


class _Picked(NamedTuple):
    """What is picked along some axes at once, by arrays of places that are broadcast.

    Attributes:
        first: the order of the axes in which these come first.
        places: what the places are called, ``(..., axes)``.
        back: from the axes of what is picked, places first, to their order in torch.
    """

    first: Sequence[int]
    places: str
    back: Sequence[int]

    @classmethod
    def of(cls, to: Writer, x: Any, arrays: Sequence[tuple[int, Any]]) -> Self:
        axes = [axis for axis, _ in arrays]
        if any(_dtype(where) == torch.bool for _, where in arrays):
            raise TypeError("a mask and other indices")
        if not all(isinstance(size, int) for _, where in arrays for size in where.meta["val"].shape):
            raise TypeError("indices whose number is free")
        shape = np.broadcast_shapes(*[where.meta["val"].shape for _, where in arrays])
        last = to.file.integers(len(shape))
        spread = [to.file.add("Expand", to.name(where, torch.int64), to.file.integers(*shape)) for _, where in arrays]
        places = to.file.add("Concat", *[to.file.add("Unsqueeze", one, last) for one in spread], axis=len(shape))
        others = [axis for axis in range(_dims(x)) if axis not in axes]
        # Beside each other they stay where they were, else they come first.
        before = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
        behind = [len(shape) + place for place in range(len(others))]
        return cls([*axes, *others], places, [*behind[:before], *range(len(shape)), *behind[before:]])


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(place) for place in range(len(order))]


def _dtype(value: Node) -> torch.dtype:
    dtype: torch.dtype = value.meta["val"].dtype
    return dtype


def _dims(value: Node) -> int:
    return int(value.meta["val"].ndim)


def _places(to: Writer, mask: Any) -> str:
    """Return what the places of a mask are called, ``(count, axes)``."""
    return to.file.add("Transpose", to.file.add("NonZero", to.name(mask)), perm=[1, 0])
