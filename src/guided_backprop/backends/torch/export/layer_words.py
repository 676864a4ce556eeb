"""Layers of PyTorch in ONNX's words: convolutions, pools, products of matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from guided_backprop.backends.torch.export.decompose import turned
from guided_backprop.backends.torch.export.writer import Writer, as_array, dtype_of

_CONVOLUTION = torch.ops.aten.convolution.default
_PAD = torch.ops.aten.constant_pad_nd.default


def convolution(  # noqa: PLR0917 - as torch has them
    to: Writer,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> str:
    front, behind = _zeros_in_front(x, node), _crop_of(node)
    operands = [to.name(x if front is None else x.args[0]), _weight(to, weight, groups, is_transposed=transposed)]
    operands += [] if bias is None else [to.name(bias)]
    more: Mapping[str, Any] = {"output_padding": list(output_padding)} if transposed else {}
    pads = np.array([*padding, *padding])
    # What is cut off of a transposed one is padding of it; of another one it is padding that is not needed.
    pads += (0 if front is None else np.array(front)) - (-1 if transposed else 1) * _cut_of(behind, len(pads))
    return to.file.add(
        "ConvTranspose" if transposed else "Conv",
        *operands,
        strides=list(stride),
        pads=pads.tolist(),
        dilations=list(dilation),
        group=groups,
        kernel_shape=list(weight.meta["val"].shape[2:]),
        **more,
    )


def pad(to: Writer, node: Node, x: Any, pads: Sequence[int], value: float = 0) -> str:
    """Return what is padded, or cut off; nothing where convolutions do it themselves."""
    if isinstance(x, Node) and _crop_of(x) is node:
        return to.name(x)
    if all(_zeros_in_front(node, user) is not None for user in node.users):
        return ""
    pairs = [(pads[place], pads[place + 1]) for place in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (node.meta["val"].ndim - len(pairs)) + pairs
    flat = to.sizes([before for before, _ in pairs] + [after for _, after in pairs])
    dtype = dtype_of(node)
    if dtype == torch.bool:
        return to.cast(to.file.add("Pad", to.cast(to.name(x), torch.float32), flat), torch.bool)
    return to.file.add("Pad", to.name(x), flat, to.name(value, dtype))


def _around(node: Node) -> list[int] | None:
    """Return by how many zeros a node pads positions, as ONNX has it: in front along each axis, then behind."""
    if node.target != _PAD or len(node.args) < 2 or any(node.args[2:]) or any(node.kwargs.values()):
        return None
    pads: Any = node.args[1]
    axes = node.meta["val"].ndim - 2
    if len(pads) > 2 * axes or not all(isinstance(one, int) for one in pads):
        return None
    pads = [*pads, *[0] * (2 * axes - len(pads))]
    return [*pads[-2::-2], *pads[-1::-2]]


def _zeros_in_front(x: Any, conv: Node) -> list[int] | None:
    """Return by how many zeros what goes into a convolution is padded, where it can do so itself."""
    is_plain = conv.target == _CONVOLUTION and conv.args[0] is x and not conv.args[6]
    around = _around(x) if is_plain and isinstance(x, Node) else None
    # Elsewhere, as among its weights, it would be missing.
    is_all = around is not None and not any(argument is x for argument in conv.args[1:])
    return around if is_all and min(around or [0]) >= 0 else None


def _crop_of(conv: Node) -> Node | None:
    """Return what alone reads a convolution's values, and cuts off what need not be computed."""
    if conv.target != _CONVOLUTION or len(conv.users) != 1:
        return None
    (user,) = conv.users
    around = _around(user)
    if around is None or max(around) > 0:
        return None
    arguments: Any = conv.args
    stride, padding, transposed = list(arguments[3]), list(arguments[4]), arguments[6]
    front = _zeros_in_front(conv.args[0], conv) or [0] * len(around)
    has_room = all(pad + more + cut >= 0 for pad, more, cut in zip(padding * 2, front, around, strict=True))
    return user if transposed or (has_room and set(stride) == {1}) else None


def _cut_of(crop: Node | None, count: int) -> NDArray[np.int64]:
    """Return by how much a node cuts off along each axis, in front and behind."""
    return np.zeros(count, np.int64) if crop is None else -np.array(_around(crop), np.int64)


def _weight(to: Writer, weight: Any, groups: int, *, is_transposed: bool) -> str:
    """Return what a convolution's weights are called.

    Those of a transposed one are its own if they are square: OpenVINO (2026.4) computes garbage where such are shared
    with a plain one. And what is another's turned round is derived in the graph, which engines work out when they load
    it: so each weight is in the file once.
    """
    array = to.array(weight)
    if array is None:
        return to.name(weight)
    if is_transposed and array.shape[1] in (array.shape[0], array.shape[0] // groups):
        return to.file.constant(array, is_shared=False)
    if to.file.has(array):
        return to.file.constant(array)
    other = as_array(turned(torch.from_numpy(array), groups))
    if not to.file.has(other):
        return to.file.constant(array)
    out, into, *window = other.shape
    axes = list(range(len(window)))
    grouped = to.file.add("Reshape", to.file.constant(other), to.file.integers(groups, out // groups, into, *window))
    swapped = to.file.add("Transpose", grouped, perm=[0, 2, 1, *[axis + 3 for axis in axes]])
    count, least = len(window), np.iinfo(np.int64).min
    bounds = [to.file.integers(*[number] * count) for number in (-1, least)]
    steps = [to.file.integers(*[axis + 3 for axis in axes]), to.file.integers(*[-1] * count)]
    flipped = to.file.add("Slice", swapped, *bounds, *steps)
    return to.file.add("Reshape", flipped, to.file.integers(*array.shape))


def _full(axes: int, sizes: Sequence[int]) -> list[int]:
    """Return one size for each axis."""
    return list(sizes) * axes if len(sizes) == 1 else list(sizes)


def max_pool(  # noqa: PLR0917 - as torch has them
    axes: int,
    to: Writer,
    node: Node,
    x: Any,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> list[str]:
    if any(user.args[1] == 1 and user.users for user in node.users):
        raise TypeError("the places of its largest values")
    name = to.file.add(
        "MaxPool",
        to.name(x),
        kernel_shape=_full(axes, window),
        strides=_full(axes, stride or window),
        pads=_full(axes, padding) * 2,
        dilations=_full(axes, dilation),
        ceil_mode=int(ceil_mode),
    )
    return [name]


def avg_pool(  # noqa: PLR0917 - as torch has them
    axes: int,
    to: Writer,
    node: Node,
    x: Any,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    """Return one without what engines differ in, which is said otherwise."""
    return to.file.add(
        "AveragePool",
        to.name(x),
        kernel_shape=_full(axes, window),
        strides=_full(axes, stride or window),
        pads=_full(axes, padding) * 2,
        count_include_pad=int(count_include_pad),
    )


def spread(  # noqa: PLR0917 - as torch has them
    to: Writer, node: Node, x: Any, output_size: Any, scales_h: float, scales_w: float
) -> str:
    """Return pictures whose values are taken a whole number of times each: else it is said otherwise."""
    factors = to.file.constant(np.array([1, 1, scales_h, scales_w], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return to.file.add("Resize", to.name(x), "", factors, **how)


def matmul(to: Writer, node: Node, x: Any, y: Any) -> str:
    return to.file.add("MatMul", to.name(x), to.name(y))


def addmm(to: Writer, node: Node, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> str:
    return to.file.add("Gemm", to.name(x), to.name(y), to.name(bias), alpha=float(alpha), beta=float(beta))
