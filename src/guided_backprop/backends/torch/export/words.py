"""PyTorch's operations in ONNX's words: one row for each."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch.fx import Node

from guided_backprop.backends.torch.export.index_words import (
    embedding,
    gathered,
    in_order,
    index_put,
    index_select,
    indexed,
    scatter_added,
    scattered,
    top,
)
from guided_backprop.backends.torch.export.layer_words import (
    addmm,
    avg_pool,
    convolution,
    matmul,
    max_pool,
    pad,
    spread,
)
from guided_backprop.backends.torch.export.writer import Word, Writer, dtype_of

# Value by value.


def _one(operation: str) -> Word:
    return lambda to, node, x: to.file.add(operation, to.name(x, dtype_of(node)))


# What is done with booleans has other words.
_OF_BOOLEANS: Final = {"Mul": "And", "Min": "And", "Add": "Or", "Max": "Or"}


def _two(operation: str, reverse: bool = False) -> Word:
    def say(to: Writer, node: Node, x: Any, y: Any, *, alpha: float = 1) -> str:
        dtype = dtype_of(node)
        if dtype == torch.bool:
            return to.file.add(_OF_BOOLEANS[operation], to.name(x, dtype), to.name(y, dtype))
        pair = [to.name(x, dtype), to.name(y, dtype)]
        if alpha != 1:
            pair[1] = to.file.add("Mul", pair[1], to.name(alpha, dtype))
        return to.file.add(operation, *(reversed(pair) if reverse else pair))

    return say


def _compared(operation: str, *, negates: bool = False) -> Word:
    def say(to: Writer, node: Node, x: Any, y: Any) -> str:
        dtype = _common(x, y)
        answer = to.file.add(operation, to.name(x, dtype), to.name(y, dtype))
        return to.file.add("Not", answer) if negates else answer

    return say


def _common(*values: Any) -> torch.dtype:
    """Return what values are compared as."""
    examples = [value.meta["val"] if isinstance(value, Node) else value for value in values]
    return torch.result_type(
        *[torch.empty(0, dtype=one.dtype) if isinstance(one, torch.Tensor) else one for one in examples]
    )


def _logical(operation: str) -> Word:
    return lambda to, node, *operands: to.file.add(operation, *[to.name(one, torch.bool) for one in operands])


def _divided(to: Writer, node: Node, x: Any, y: Any, *, rounding_mode: str | None = None) -> str:
    if rounding_mode is not None and not dtype_of(node).is_floating_point:
        raise TypeError("whole numbers")
    quotient: str = _two("Div")(to, node, x, y)
    return quotient if rounding_mode is None else to.file.add("Floor", quotient)


def _rsqrt(to: Writer, node: Node, x: Any) -> str:
    return to.file.add("Reciprocal", to.file.add("Sqrt", to.name(x, dtype_of(node))))


def _shifted_first(operation: str) -> Word:
    """``log1p``: one is added in front."""
    return lambda to, node, x: to.file.add(
        operation, to.file.add("Add", to.name(x, dtype_of(node)), to.name(1, dtype_of(node)))
    )


def _expm1(to: Writer, node: Node, x: Any) -> str:
    return to.file.add("Sub", to.file.add("Exp", to.name(x, dtype_of(node))), to.name(1, dtype_of(node)))


def _log_of(base: float) -> Word:
    return lambda to, node, x: to.file.add(
        "Mul", to.file.add("Log", to.name(x, dtype_of(node))), to.name(1 / math.log(base), dtype_of(node))
    )


def _where(to: Writer, node: Node, condition: Any, x: Any, y: Any) -> str:
    dtype = dtype_of(node)
    return to.file.add("Where", to.name(condition, torch.bool), to.name(x, dtype), to.name(y, dtype))


def _clamp(to: Writer, node: Node, x: Any, low: Any = None, high: Any = None, **named: Any) -> str:
    dtype, low, high = dtype_of(node), named.get("min", low), named.get("max", high)
    name = to.name(x, dtype)
    if low == 0 and high is None:
        return to.file.add("Relu", name)
    is_number = not isinstance(low, Node) and not isinstance(high, Node)
    bounds = ["" if bound is None else to.name(bound, dtype) for bound in (low, high)]
    if is_number:
        return to.file.add("Clip", name, *(bounds if bounds[1] else bounds[:1]))
    name = name if not bounds[0] else to.file.add("Max", name, bounds[0])
    return name if not bounds[1] else to.file.add("Min", name, bounds[1])


def _hardtanh(to: Writer, node: Node, x: Any, low: float = -1, high: float = 1) -> str:
    return _clamp(to, node, x, low, high)


def _same(to: Writer, node: Node, x: Any, *ignored: Any, **named: Any) -> str:
    return to.name(x, dtype_of(node))


# Shapes.


def _view(to: Writer, node: Node, x: Any, sizes: Sequence[Any]) -> str:
    # A size that is left to be worked out is worked out by the trace, so that one alone is left to the engine.
    known = node.meta["val"].shape
    sizes = [own if size == -1 and isinstance(own, int) else size for size, own in zip(sizes, known, strict=True)]
    free = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
    if len(free) == 1 and -1 not in sizes:
        # A constant, from which engines can tell the other sizes.
        fixed = [size if isinstance(size, int) else -1 for size in sizes]
        return to.file.add("Reshape", to.name(x), to.file.integers(*fixed))
    return to.file.add("Reshape", to.name(x), to.sizes(sizes))


def _expand(to: Writer, node: Node, x: Any, sizes: Sequence[Any], **named: Any) -> str:
    before = list(x.meta["val"].shape)
    before = [1] * (len(sizes) - len(before)) + before
    after = list(node.meta["val"].shape)
    wanted = [
        1 if _is_same(old, new) or (isinstance(size, int) and size == -1) else size
        for old, new, size in zip(before, after, sizes, strict=True)
    ]
    return to.file.add("Expand", to.name(x), to.sizes(wanted))


def _is_same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


def _permute(to: Writer, node: Node, x: Any, order: Sequence[int]) -> str:
    axes = x.meta["val"].ndim
    return to.file.add("Transpose", to.name(x), perm=[axis % axes for axis in order])


def _transpose(to: Writer, node: Node, x: Any, one: int = 0, other: int = 1) -> str:
    order = list(range(x.meta["val"].ndim))
    if len(order) > 1:
        order[one], order[other] = order[other], order[one]
    return to.file.add("Transpose", to.name(x), perm=order)


def _unsqueeze(to: Writer, node: Node, x: Any, axis: int) -> str:
    return to.file.add("Unsqueeze", to.name(x), to.file.integers(axis % (x.meta["val"].ndim + 1)))


def _squeeze(to: Writer, node: Node, x: Any, axes: Any = None) -> str:
    shape = x.meta["val"].shape
    wanted = range(len(shape)) if axes is None else [axes] if isinstance(axes, int) else axes
    ones = [axis % len(shape) for axis in wanted if _is_same(shape[axis], 1)]
    return to.file.add("Squeeze", to.name(x), to.file.integers(*ones)) if ones else to.name(x)


def _slice(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    bounds = [to.size(0 if start is None else start), to.size(np.iinfo(np.int64).max if end is None else end)]
    return to.file.add("Slice", to.name(x), *bounds, to.file.integers(axis), to.file.integers(step))


def _select(to: Writer, node: Node, x: Any, axis: int, index: int) -> str:
    return to.file.add("Gather", to.name(x), to.file.constant(np.int64(index)), axis=axis)


def _cat(to: Writer, node: Node, parts: Sequence[Any], axis: int = 0) -> str:
    some = [part for part in parts if part.meta["val"].ndim == node.meta["val"].ndim]
    return to.file.add("Concat", *[to.name(part, dtype_of(node)) for part in some], axis=axis)


def _flip(to: Writer, node: Node, x: Any, axes: Sequence[int]) -> str:
    count, least = len(axes), np.iinfo(np.int64).min
    return to.file.add(
        "Slice",
        to.name(x),
        to.file.integers(*[-1] * count),
        to.file.integers(*[least] * count),
        to.file.integers(*axes),
        to.file.integers(*[-1] * count),
    )


def _repeat(to: Writer, node: Node, x: Any, counts: Sequence[Any]) -> str:
    name, missing = to.name(x), len(counts) - x.meta["val"].ndim
    if missing:
        name = to.file.add("Unsqueeze", name, to.file.integers(*range(missing)))
    return to.file.add("Tile", name, to.sizes(counts))


def _split(to: Writer, node: Node, x: Any, sizes: Any, axis: int = 0) -> list[str]:
    total = _known(x, axis)
    if isinstance(sizes, int):
        sizes = [min(sizes, total - begin) for begin in range(0, total, sizes)]
    bounds = np.cumsum([0, *sizes]).tolist()
    return [_slice(to, node, x, axis, begin, end) for begin, end in itertools.pairwise(bounds)]


def _unbind(to: Writer, node: Node, x: Any, axis: int = 0) -> list[str]:
    return [_select(to, node, x, axis, place) for place in range(_known(x, axis))]


def _known(x: Node, axis: int) -> int:
    """Return a size that must not be free."""
    size: Any = x.meta["val"].shape[axis]
    if not isinstance(size, int):
        raise TypeError("parts along an axis whose size is free")
    return size


def _part(to: Writer, node: Node, whole: Node, place: int) -> Any:
    parts = to.parts(whole)
    return parts[place] if isinstance(parts, list) else parts


def _full(to: Writer, node: Node, sizes: Sequence[Any], value: float, **named: Any) -> str:
    return to.file.add("Expand", to.name(value, dtype_of(node)), to.sizes(sizes))


def _full_like(to: Writer, node: Node, x: Any, value: float, **named: Any) -> str:
    return to.file.add("Expand", to.name(value, dtype_of(node)), to.file.add("Shape", to.name(x)))


def _empty(to: Writer, node: Node, x: Any, sizes: Sequence[Any], *ignored: Any, **named: Any) -> str:
    """Say memory of which no value counts, since all of it is written to."""
    return _full(to, node, sizes, 0)


def _unfilled(to: Writer, node: Node, sizes: Sequence[Any], *ignored: Any, **named: Any) -> str:
    return _full(to, node, sizes, 0)


def _copied(to: Writer, node: Node, x: Any, values: Any, *ignored: Any) -> str:
    """Say what is written over a whole tensor."""
    shape = node.meta["val"].shape
    if [str(size) for size in shape] == [str(size) for size in values.meta["val"].shape]:
        return to.name(values, dtype_of(node))
    return to.file.add("Expand", to.name(values, dtype_of(node)), to.file.add("Shape", to.name(x)))


# Over axes.


def _reduced(operation: str) -> Word:
    def say(to: Writer, node: Node, x: Any, axes: Any = None, keepdim: bool = False, **named: Any) -> str:
        wanted = [axes] if isinstance(axes, int) else list(axes or range(x.meta["val"].ndim))
        return to.file.add(operation, to.name(x, dtype_of(node)), to.file.integers(*wanted), keepdims=int(keepdim))

    return say


def _best_of(operation: str) -> Word:
    def say(to: Writer, node: Node, x: Any, axis: int | None = None, keepdim: bool = False) -> str:
        name = to.name(x)
        if axis is None:
            name, axis = to.file.add("Reshape", name, to.file.integers(-1)), 0
        return to.file.add(operation, name, axis=axis, keepdims=int(keepdim))

    return say


def _best_along(operation: str, which: str) -> Word:
    def say(to: Writer, node: Node, x: Any, axis: int | None = None, keepdim: bool = False) -> str | list[str]:
        if axis is None:
            return to.file.add(operation, to.name(x), keepdims=0)
        best = to.file.add(operation, to.name(x), to.file.integers(axis), keepdims=int(keepdim))
        return [best, to.file.add(which, to.name(x), axis=axis, keepdims=int(keepdim))]

    return say


def _cumsum(to: Writer, node: Node, x: Any, axis: int, **named: Any) -> str:
    return to.file.add("CumSum", to.name(x, dtype_of(node)), to.file.constant(np.int64(axis)))


# Numbers of images.


def _size(to: Writer, node: Node, x: Any, axis: int) -> str:
    return to.file.add("Slice", to.file.add("Shape", to.name(x)), to.file.integers(axis), to.file.integers(axis + 1))


def _numel(to: Writer, node: Node, x: Any) -> str:
    return to.file.add("Reshape", to.file.add("Size", to.name(x)), to.file.integers(1))


def _arange(to: Writer, node: Node, start: Any, end: Any = None, step: Any = 1, **named: Any) -> str:
    first, last = (0, start) if end is None else (start, end)
    bounds = [to.file.add("Squeeze", to.size(size)) for size in (first, last, step)]
    return to.cast(to.file.add("Range", *bounds), dtype_of(node))


def _ratio(to: Writer, node: Node, one: Any, other: Any) -> str:
    """Return the quotient of two sizes, which is no whole number."""
    return to.file.add("Div", *[_as_float(to, node, size) for size in (one, other)])


def _as_float(to: Writer, node: Node, size: Any) -> str:
    return to.cast(to.size(size), torch.float32) if isinstance(size, int | Node) else to.name([size], torch.float32)


def _counted(operation: str) -> Word:
    def say(to: Writer, node: Node, *operands: Any) -> str:
        is_whole = isinstance(node.meta["val"], int | torch.SymInt)
        return to.file.add(operation, *[to.size(one) if is_whole else _as_float(to, node, one) for one in operands])

    return say


#: For each operation, by its name, what says it.
WORDS: Final[dict[str, Word]] = {
    **{name: _one(word) for name, word in {
        "relu": "Relu", "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin",
        "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
        "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf",
        "reciprocal": "Reciprocal", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "sgn": "Sign",
    }.items()},
    "rsqrt": _rsqrt, "log1p": _shifted_first("Log"), "expm1": _expm1, "log2": _log_of(2), "log10": _log_of(10),
    "add": _two("Add"), "sub": _two("Sub"), "rsub": _two("Sub", reverse=True), "mul": _two("Mul"), "div": _divided,
    "pow": _two("Pow"), "maximum": _two("Max"), "minimum": _two("Min"),
    "eq": _compared("Equal"), "ne": _compared("Equal", negates=True), "gt": _compared("Greater"),
    "lt": _compared("Less"), "ge": _compared("GreaterOrEqual"), "le": _compared("LessOrEqual"),
    "isnan": lambda to, node, x: to.file.add("IsNaN", to.name(x)),
    "logical_not": _logical("Not"), "bitwise_not": _logical("Not"), "logical_and": _logical("And"),
    "bitwise_and": _logical("And"), "logical_or": _logical("Or"), "bitwise_or": _logical("Or"),
    "logical_xor": _logical("Xor"), "bitwise_xor": _logical("Xor"),
    "where": _where, "clamp": _clamp, "clamp_min": _clamp, "hardtanh": _hardtanh,
    "clone": _same, "alias": _same, "detach": _same, "_to_copy": _same, "lift_fresh_copy": _same,
    "view": _view, "_unsafe_view": _view, "reshape": _view, "expand": _expand, "permute": _permute,
    "transpose": _transpose, "t": _transpose, "unsqueeze": _unsqueeze, "squeeze": _squeeze, "slice": _slice,
    "select": _select, "cat": _cat, "flip": _flip, "repeat": _repeat, "constant_pad_nd": pad,
    "split": _split, "split_with_sizes": _split, "unbind": _unbind, "number.getitem": _part,
    "gather": gathered, "index_select": index_select, "embedding": embedding, "full": _full,
    "full_like": _full_like,
    "copy": _copied,
    "new_empty_strided": _empty,
    "empty": _unfilled, "empty_permuted": _unfilled,
    "view_copy": _view, "expand_copy": _expand, "permute_copy": _permute, "transpose_copy": _transpose,
    "t_copy": _transpose, "unsqueeze_copy": _unsqueeze, "squeeze_copy": _squeeze, "slice_copy": _slice,
    "select_copy": _select, "split_copy": _split, "split_with_sizes_copy": _split, "unbind_copy": _unbind,
    "alias_copy": _same, "detach_copy": _same, "_reshape_copy": _view,
    "sum": _reduced("ReduceSum"), "mean": _reduced("ReduceMean"), "amax": _reduced("ReduceMax"),
    "amin": _reduced("ReduceMin"), "prod": _reduced("ReduceProd"), "argmax": _best_of("ArgMax"),
    "argmin": _best_of("ArgMin"), "cumsum": _cumsum, "max": _best_along("ReduceMax", "ArgMax"),
    "min": _best_along("ReduceMin", "ArgMin"), "sort": in_order, "topk": top, "scatter": scattered,
    "scatter_add": scatter_added, "index": indexed, "index_put": index_put,
    "convolution": convolution, "max_pool2d_with_indices": partial(max_pool, 2),
    "max_pool3d_with_indices": partial(max_pool, 3), "mm": matmul, "bmm": matmul, "addmm": addmm,
    "upsample_nearest2d": spread, "avg_pool2d": partial(avg_pool, 2), "avg_pool3d": partial(avg_pool, 3),
    "sym_size": _size, "sym_numel": _numel,
    "number.mul": _counted("Mul"), "number.add": _counted("Add"), "number.sub": _counted("Sub"),
    "number.floordiv": _counted("Div"), "number.mod": _counted("Mod"), "number.ge": _counted("GreaterOrEqual"),
    "number.truediv": _ratio, "number.sym_float": _as_float, "arange": _arange,
}  # fmt: skip
