"""Layers of PyTorch in ONNX's words: convolutions, pools, products of matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from guided_backprop.backends.torch.export.decompose import turned
from guided_backprop.backends.torch.export.writer import Writer, as_array


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
    operands = [to.name(x), _weight(to, weight, groups, is_transposed=transposed)]
    operands += [] if bias is None else [to.name(bias)]
    more: Mapping[str, Any] = {"output_padding": list(output_padding)} if transposed else {}
    return to.file.add(
        "ConvTranspose" if transposed else "Conv",
        *operands,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        kernel_shape=list(weight.meta["val"].shape[2:]),
        **more,
    )


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


def matmul(to: Writer, node: Node, x: Any, y: Any) -> str:
    return to.file.add("MatMul", to.name(x), to.name(y))


def addmm(to: Writer, node: Node, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> str:
    return to.file.add("Gemm", to.name(x), to.name(y), to.name(bias), alpha=float(alpha), beta=float(beta))
