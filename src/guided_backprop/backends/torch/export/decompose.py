"""Derivatives as forward operations: what an engine has no word for, said by operations that it has.

Each is the derivative with regard to the input alone, for what is learned stands still. Where several values share a
maximum the first one wins, as PyTorch has it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

import torch
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._decomp import decompositions as reference
from torch.fx import GraphModule

from guided_backprop.backends.torch.export.any_size import cut, of_one_size, slice_back, spread, varies
from guided_backprop.backends.torch.export.attention import ATTENTION
from guided_backprop.backends.torch.export.borders import BORDERS
from guided_backprop.backends.torch.export.pools import POOLS, gated, interleaved, resized_to_nearest, resizing
from guided_backprop.backends.torch.export.values import VALUES
from guided_backprop.backends.torch.export.windows import WINDOWS

aten = torch.ops.aten
Sizes = Sequence[int]

# Of images of so many channels at most.
_FEW: Final = 4
_SIXTH: Final = float(torch.tensor(1 / 6, dtype=torch.float32))


@cache
def decompositions(*, selects: bool = False) -> Mapping[Any, Callable[..., Any]]:
    """Return what each operation is said by: in words of here, else in torch's own.

    Args:
        selects: whether the gate of a ReLU chooses, as PyTorch's does: where what arrives may be infinite, a product
            with 0 would be no number.
    """
    further = get_decompositions([getattr(aten, name) for name in _IN_TORCHS_WORDS.split()])
    return dict(core_aten_decompositions()) | further | _OWN | (_SELECTING if selects else {})


def _convolution_backward(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    mask: Sequence[bool],
) -> tuple[torch.Tensor, None, None]:
    """What a convolution spread out is what a transposed one gathers, and the other way round."""
    if transposed:
        derived = aten.convolution(g, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)
        return derived, None, None
    axes, sizes = range(len(stride)), x.shape[2:]
    reach = [(weight.shape[2 + axis] - 1) * dilation[axis] for axis in axes]
    if all(step == 1 for step in stride) and all(pad <= far for pad, far in zip(padding, reach, strict=True)):
        around = [far - pad for far, pad in zip(reach, padding, strict=True)]
        derived = aten.convolution(
            g, turned(weight, groups), None, stride, around, dilation, False, [0] * len(stride), groups
        )
        return derived, None, None
    if _is_of_few_channels(weight, stride, dilation, groups):
        found = _by_phases(g, weight, stride, padding, sizes)
        if found is not None:
            return found, None, None
    if varies(sizes):
        return spread(g, x, weight, stride, padding, dilation, groups), None, None
    # What of the border the strides passed over.
    rest = [(sizes[axis] + 2 * padding[axis] - reach[axis] - 1) % stride[axis] for axis in axes]
    return aten.convolution(g, weight, None, stride, padding, dilation, True, rest, groups), None, None


def _is_of_few_channels(weight: torch.Tensor, stride: Sizes, dilation: Sizes, groups: int) -> bool:
    """Tell whether the way back of a strided convolution is slow in engines, as a transposed one is then."""
    return groups == 1 and weight.shape[1] <= _FEW and min(stride) > 1 and set(dilation) == {1}


def _by_phases(
    g: torch.Tensor, weight: torch.Tensor, stride: Sizes, padding: Sizes, sizes: Sequence[Any]
) -> torch.Tensor | None:
    """Return the way back of a strided convolution as one of stride 1, for all phases of the stride, and a shuffle.

    None where a free size may be larger than what the window reaches.
    """
    out, into, *window = weight.shape
    axes, taps = len(window), [-(-size // step) for size, step in zip(window, stride, strict=True)]
    around = [many * step - size for many, step, size in zip(taps, stride, window, strict=True)]
    whole = aten.constant_pad_nd.default(weight, [one for size in reversed(around) for one in (0, size)])
    split = whole.reshape(out, into, *[one for pair in zip(taps, stride, strict=True) for one in pair])
    order = [1, *range(3, split.ndim, 2), 0, *range(2, split.ndim, 2)]
    phases = split.permute(order).reshape(into * math.prod(stride), out, *taps).flip(list(range(2, 2 + axes)))
    far = [many - 1 for many in taps]
    planes = aten.convolution(g, phases, None, [1] * axes, far, [1] * axes, False, [0] * axes, 1)
    found = interleaved(planes.reshape([g.shape[0], into, *stride, *planes.shape[2:]]), axes)
    for axis, (pad, size, step) in enumerate(zip(padding, sizes, stride, strict=True), start=2):
        if varies([size]) and pad < step - 1:
            return None
        missing = 0 if varies([size]) else max(0, pad + size - int(found.shape[axis]))
        if missing:
            found = aten.constant_pad_nd.default(found, [*[0, 0] * (found.ndim - 1 - axis), 0, missing])
        found = cut(found, axis, pad, size)
    return found


def turned(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the weights of the way back of a convolution of stride 1: turned round, channels exchanged."""
    out, into, *window = weight.shape
    grouped = weight.reshape(groups, out // groups, into, *window).transpose(1, 2)
    return grouped.flip(list(range(3, grouped.ndim))).reshape(groups * into, out // groups, *window)


def _batch_norm(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = _scale(weight, var, eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    empty = x.new_zeros(0)
    return x * _per_channel(scale, x) + _per_channel(shift, x), empty, empty


def _native_batch_norm(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if training or mean is None or var is None:
        return _norm_of_itself(x, weight, bias, training, momentum, eps)
    return _batch_norm(x, weight, bias, mean, var, momentum, eps)


def _norm_of_itself(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With the statistics of one image, as instance norm has it."""
    var, mean = _var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0, keepdim=True)
    scale = torch.rsqrt(var + eps)
    y = _affine((x - mean) * scale, weight, bias)
    return y, mean.flatten(), scale.flatten()


def _group_norm(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    count: Any,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grouped = x.reshape(count, groups, channels // groups * positions)
    var, mean = _var_mean(grouped, [2], correction=0, keepdim=True)
    scale = torch.rsqrt(var + eps)
    y = _affine(((grouped - mean) * scale).reshape(x.shape), weight, bias)
    return y, mean.squeeze(2), scale.squeeze(2)


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * _per_channel(weight, x)
    return x if bias is None else x + _per_channel(bias, x)


def _var_mean(
    x: torch.Tensor, axes: Sizes | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    axes = list(range(x.ndim) if axes is None else axes)
    mean = x.mean(axes, keepdim=True)
    var = ((x - mean) * (x - mean)).mean(axes, keepdim=keepdim)
    count = math.prod(x.shape[axis] for axis in axes)
    free = 1 if correction is None else correction
    return var * (count / (count - free)) if free else var, mean if keepdim else x.mean(axes)


def _var(x: torch.Tensor, axes: Sizes | None = None, *, correction: float | None = 1, keepdim: bool = False) -> Any:
    return _var_mean(x, axes, correction=correction, keepdim=keepdim)[0]


def _batch_norm_backward(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    saved_mean: torch.Tensor | None,
    saved_invstd: torch.Tensor | None,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> Any:
    if training or var is None:
        return reference.native_batch_norm_backward(
            g, x, weight, mean, var, saved_mean, saved_invstd, training, eps, list(mask)
        )
    return g * _per_channel(_scale(weight, var, eps), g), None, None


def _scale(weight: torch.Tensor | None, var: torch.Tensor, eps: float) -> torch.Tensor:
    scale = torch.rsqrt(var + eps)
    return scale if weight is None else scale * weight


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _threshold_backward(g: torch.Tensor, y: torch.Tensor, threshold: float) -> torch.Tensor:
    return gated(g, y > threshold)


def _threshold_selected(g: torch.Tensor, y: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.where(y > threshold, g, 0.0)


def _hardtanh_selected(g: torch.Tensor, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.where((x > low) & (x < high), g, 0.0)


def may_be_infinite(module: GraphModule) -> bool:
    """Tell whether a graph has an operation whose derivative is infinite at 0, as roots have."""
    for node in module.graph.nodes:
        name = getattr(node.target, "_schema", None) and node.target._schema.name
        exponent = node.args[1] if name == "aten::pow" else None
        if name in _STEEP or (name == "aten::pow" and not (isinstance(exponent, int | float) and exponent >= 1)):
            return True
    return False


_STEEP: Final = frozenset(
    f"aten::{name}" for name in "acos acosh asin atanh log log10 log1p log2 reciprocal rsqrt sqrt".split()
)


def _hardtanh_backward(g: torch.Tensor, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return gated(g, (x > low) & (x < high))


def _hardsigmoid_backward(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # PyTorch's own slope is a sixth in single precision, also of doubles.
    return gated(g * _SIXTH, (x > -3) & (x < 3))


def _fmax(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where((x >= y) | torch.isnan(y), x, y)


def _fmin(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where((x <= y) | torch.isnan(y), x, y)


def _rrelu(
    x: torch.Tensor, noise: torch.Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *rest: Any
) -> Any:
    """What draws in training alone."""
    return NotImplemented if training else aten.leaky_relu(x, (lower + upper) / 2)


def _shrunk(x: torch.Tensor, bound: float = 0.5, *, moves: bool) -> torch.Tensor:
    """Return 0 for what is small, and else the value, moved towards 0 by the bound if that is asked for."""
    return torch.where(x.abs() > bound, x - torch.sign(x) * bound if moves else x, 0.0)


def _shrunk_back(g: torch.Tensor, x: torch.Tensor, bound: float) -> torch.Tensor:
    return torch.where(x.abs() > bound, g, 0.0)


_SHRINKING: Final[dict[Any, Callable[..., Any]]] = {
    aten.hardshrink.default: partial(_shrunk, moves=False),
    aten.softshrink.default: partial(_shrunk, moves=True),
    aten.hardshrink_backward.default: _shrunk_back,
    aten.softshrink_backward.default: _shrunk_back,
}


def as_it_runs() -> Mapping[Any, Callable[..., Any]]:
    """Return the rows that count while a model is recorded: what torch can't tell the form of, or takes for random."""
    return {**resizing(), **ATTENTION, **_SHRINKING, aten.rrelu_with_noise.default: _rrelu}


def _masked_scatter(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """What is taken at the n-th place of the mask is the n-th value."""
    mask = mask.expand(x.shape)
    order = (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(min=0)
    taken = source.reshape(-1).index_select(0, order).reshape(x.shape)
    return torch.where(mask, taken, x)


def _slice_backward(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor, sizes: Sizes, axis: int, start: int, end: int, step: int
) -> Any:
    """What torch says of it asks for the size."""
    if varies([sizes[axis]]):
        return slice_back(g, sizes, axis, start, step)
    return reference.slice_backward(g, list(sizes), axis, start, end, step)


def _linspace(start: Any, end: Any, steps: Any, **named: Any) -> Any:
    """Nothing for a known number of steps: a constant, with torch's own rounding."""
    return NotImplemented if isinstance(steps, int) else torch._refs.linspace(start, end, steps, **named)


def _diagonal(x: torch.Tensor, offset: int = 0, one: int = 0, other: int = 1) -> torch.Tensor:
    last = x.movedim((one, other), (-2, -1))
    index: torch.Tensor = aten.index.Tensor(last, [*[None] * (x.ndim - 2), *_on_diagonal(last, offset)])
    return index


def _diagonal_scatter(
    x: torch.Tensor, values: torch.Tensor, offset: int = 0, one: int = 0, other: int = 1
) -> torch.Tensor:
    last = x.movedim((one, other), (-2, -1))
    written: torch.Tensor = aten.index_put.default(last, [*[None] * (x.ndim - 2), *_on_diagonal(last, offset)], values)
    return written.movedim((-2, -1), (one, other))


def _on_diagonal(x: torch.Tensor, offset: int) -> list[torch.Tensor]:
    """Return the rows and the columns of a diagonal."""
    if varies(x.shape[-2:]):
        raise of_one_size("a diagonal")
    rows, columns = max(-offset, 0), max(offset, 0)
    places = torch.arange(max(0, min(x.shape[-2] - rows, x.shape[-1] - columns)), device=x.device)
    return [places + rows, places + columns]


# What torch says in words that engines have, and has not among those that it always uses.
_IN_TORCHS_WORDS: Final = (
    "any elu gelu isinf leaky_relu linalg_vector_norm native_layer_norm "
    "rrelu_with_noise_backward slice_scatter _softmax _log_softmax stack"
)

# Where a product with a gate would make of what is infinite no number.
_SELECTING: Final[dict[Any, Callable[..., Any]]] = {
    aten.threshold_backward.default: _threshold_selected,
    aten.hardtanh_backward.default: _hardtanh_selected,
}

_OWN: Final[dict[Any, Callable[..., Any]]] = {
    aten.convolution_backward.default: _convolution_backward,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _norm_of_itself,
    aten._native_batch_norm_legit.default: _native_batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.var_mean.correction: _var_mean,
    aten.var.correction: _var,
    aten.native_batch_norm.default: _native_batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.threshold_backward.default: _threshold_backward,
    aten.hardtanh_backward.default: _hardtanh_backward,
    aten.fmax.default: _fmax,
    aten.fmin.default: _fmin,
    aten.masked_scatter.default: _masked_scatter,
    aten.slice_backward.default: _slice_backward,
    aten.hardsigmoid_backward.default: _hardsigmoid_backward,
    aten.linspace.default: _linspace,
    aten.diagonal.default: _diagonal,
    aten.diagonal_copy.default: _diagonal,
    aten.diagonal_scatter.default: _diagonal_scatter,
    **POOLS,
    **WINDOWS,
    **BORDERS,
    **VALUES,
    **resizing(),
    aten.upsample_nearest2d.default: resized_to_nearest,
}
