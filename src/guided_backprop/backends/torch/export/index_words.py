"""What picks and orders values by an index, or makes one, in ONNX's words."""

from collections.abc import Sequence
from typing import Any

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


def indexed(to: Writer, node: Node, x: Any, index: Sequence[Any]) -> str:
    axis, where = _only(index)
    if axis == 0 and _dtype(where) == torch.bool:
        return to.file.add("GatherND", to.name(x), _places(to, where))
    return to.file.add("Gather", to.name(x), to.name(where, torch.int64), axis=axis)


def index_put(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, index: Sequence[Any], values: Any, accumulate: bool = False
) -> str:
    axis, where = _only(index)
    if axis or _dtype(where) != torch.bool:
        raise TypeError("other indices than one mask")
    name = to.name(values, dtype_of(node))
    if values.meta["val"].ndim == 0 and not accumulate:
        mask, axes = to.name(where), range(_dims(where), _dims(x))
        mask = to.file.add("Unsqueeze", mask, to.file.integers(*axes)) if axes else mask
        return to.file.add("Where", mask, name, to.name(x))
    added = {"reduction": "add"} if accumulate else {}
    return to.file.add("ScatterND", to.name(x), _places(to, where), name, **added)


def _only(index: Sequence[Any]) -> tuple[int, Any]:
    """Return the axis and the index, of an indexing by one array alone."""
    arrays = [(axis, one) for axis, one in enumerate(index) if one is not None]
    if len(arrays) != 1:
        raise TypeError(f"{len(arrays)} indices")
    return arrays[0]


def _dtype(value: Node) -> torch.dtype:
    dtype: torch.dtype = value.meta["val"].dtype
    return dtype


def _dims(value: Node) -> int:
    return int(value.meta["val"].ndim)


def _places(to: Writer, mask: Any) -> str:
    """Return what the places of a mask are called, ``(count, axes)``."""
    return to.file.add("Transpose", to.file.add("NonZero", to.name(mask)), perm=[1, 0])
