"""The weights of one convolution in the form that is fastest: batch-norm folded in, and packed as oneDNN wants them.

On a processor oneDNN does the work of a convolution, and brings the weights into an order of its own first: in each
call, forward and once more on the way back. For a few images that takes longer than anything else but the
multiplications. Here it is done once. Large matrix products are left to oneDNN as well, with their weights as they lie.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast import stem
from guided_backprop.backends.torch.fast.calls import Convolution, Norm
from guided_backprop.backends.torch.fast.once import Context, are_constant, once
from guided_backprop.backends.torch.leaving import Gradients
from guided_backprop.backends.torch.own import Arguments, Function, Named, OwnFunction

_LAST = torch.channels_last
# No zeros around a kernel: left, right, above and below.
NO_TAPS = (0, 0, 0, 0)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_convolution_transpose_weight")
)
# Multiplications in a convolution; one of fewer takes no less time with packed weights, and up to twice as much.
_LEAST_WORK = 1_000_000
# Of a matrix product; one of fewer takes as long by PyTorch's usual library.
_LEAST_PRODUCT = 10_000_000


class Geometry(NamedTuple):
    """How a convolution goes over images of one shape."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


#: For what a weight is made: a geometry to pack it for, or how it is to lie in memory; and the zeros around it.
Form = tuple[Geometry | torch.memory_format, tuple[int, ...]]


class _Made(NamedTuple):
    """What a kernel keeps: of which weights it was made, for which form, and what it is."""

    fingerprint: torch.Tensor | None
    form: Form
    weight: "Packed | torch.Tensor"
    bias: torch.Tensor | None


class Kernel:
    """A convolution's weight and bias, and the batch-norm that is all that its result goes to, if there is one.

    What is made of them is kept, and used as long as a fingerprint of all that went into it is the same: a change of
    any weight, however it was made, counts at once. To look is several times cheaper than to fold or pack again.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm | None) -> None:
        self.weight, self.bias, self.norm = weight, bias, norm
        numbers = np.random.default_rng(0).uniform(0.5, 1.5, weight[0].numel())
        self._numbers = torch.as_tensor(numbers, dtype=weight.dtype, device=weight.device)
        self._kept: _Made | None = None

    def convolve(self, call: Convolution, taps: tuple[int, ...], *, packs: bool) -> torch.Tensor:
        """Return what the convolution, with zeros around its kernel, and its batch-norm return; packed if offered."""
        geometry = _geometry_of(call) if packs and self._is_packable(call) else None
        if geometry is None and self.norm is None:
            return convolved(call, taps)
        made = self._made((geometry or _layout(call.images), taps))
        bias = call.bias if self.norm is None else made.bias
        if not isinstance(made.weight, Packed):
            return convolved(call.weighing(made.weight, bias), NO_TAPS)
        result: torch.Tensor = PackedConvolution.apply(call.images, made.weight, bias)
        return result

    def _is_packable(self, call: Convolution) -> bool:
        """Tell whether oneDNN takes this, and packed weights pay."""
        return (
            call.function is torch.conv2d
            and _is_for_onednn(call.images, self.weight, self.bias)
            and call.images.is_contiguous(memory_format=_LAST)
            and not stem.pays(call)
            and _work(call) >= _LEAST_WORK
        )

    @torch.no_grad()
    def _made(self, form: Form) -> _Made:
        fingerprint, kept = self._fingerprint(), self._kept
        if kept is None or kept.form != form or not _are_equal(kept.fingerprint, fingerprint):
            weight, shift = (self.weight, None) if self.norm is None else self.norm.folded(self.weight, self.bias)
            how, taps = form
            weight = functional.pad(weight, taps) if any(taps) else weight
            made = Packed(weight, how) if isinstance(how, Geometry) else weight.contiguous(memory_format=how)
            self._kept = kept = _Made(fingerprint, form, made, shift)
        return kept

    def _fingerprint(self) -> torch.Tensor | None:
        """Return numbers that are others if any weight is; None if the dtype is too coarse for that.

        Taken where the weights are used: a model may change them on the way there.
        """
        if self.weight.dtype not in (torch.float32, torch.float64):
            return None
        # One for each channel of the result, for a large one would hide what changes in a small one.
        sums = torch.mv(self.weight.detach().reshape(len(self.weight), -1), self._numbers)
        if self.norm is None:
            return sums
        return torch.cat([sums, *(tensor for tensor in (self.bias, *self.norm.tensors) if tensor is not None)])


def _are_equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


class Packed:
    """Weights as oneDNN wants them, for both ways through a convolution of one geometry."""

    def __init__(self, weight: torch.Tensor, geometry: Geometry) -> None:
        self.geometry = geometry
        shape, stride, padding, dilation, groups = geometry
        sizes = zip(shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
        spans = [(size + 2 * pad - far * (taps - 1) - 1, step) for size, step, pad, far, taps in sizes]
        #: What the windows never reach at the far edge.
        self.missing = [span % step for span, step in spans]
        result = [shape[0], len(weight), *(span // step + 1 for span, step in spans)]
        weight = weight.detach()
        how = stride, dilation, groups
        forth, back = _reorders()
        self.forth = forth(weight.to_mkldnn(), padding, *how, shape)
        rest = zip(dilation, weight.shape[2:], padding, strict=True)
        #: The padding of the way back, if that is an ordinary convolution.
        self.around = [far * (taps - 1) - pad for far, taps, pad in rest]
        self.turns = stride == (1, 1) and min(self.around) >= 0
        if self.turns:
            self.back = forth(_turned(weight, groups).to_mkldnn(), self.around, *how, result)
        else:
            last = weight.contiguous(memory_format=_LAST)
            self.back = back(last, padding, self.missing, *how, result)


class _OfPacked(Context, Protocol):
    """What a packed convolution keeps."""

    packed: Packed


class PackedConvolution(OwnFunction):
    """A convolution of packed weights, that is differentiated by its images alone."""

    is_maker, stands_for = True, "ConvolutionBackward0"

    @staticmethod
    def forward(ctx: _OfPacked, images: torch.Tensor, packed: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve, and keep nothing but the weights."""
        ctx.packed = packed
        _, stride, padding, dilation, groups = packed.geometry
        run = torch.ops.mkldnn._convolution_pointwise
        result: torch.Tensor = run(images, packed.forth, bias, padding, stride, dilation, groups, "none", [], "")
        return result

    @staticmethod
    @once
    def backward(ctx: _OfPacked, g: torch.Tensor) -> Gradients:
        """Return the gradient towards the images."""
        packed = ctx.packed
        _, stride, padding, dilation, groups = packed.geometry
        how = stride, dilation, groups
        g = g.contiguous(memory_format=_LAST)
        if packed.turns:
            run = torch.ops.mkldnn._convolution_pointwise
            return run(g, packed.back, None, packed.around, *how, "none", [], ""), None, None
        run = torch.ops.mkldnn._convolution_transpose_pointwise
        return run(g, packed.back, None, padding, packed.missing, *how, "none", [], ""), None, None


class MatrixProduct(OwnFunction):
    """A linear layer that oneDNN computes, differentiated by its input alone."""

    is_maker, stands_for = True, "AddmmBackward0"

    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply, and keep nothing but the weights, which are the model's own."""
        ctx.save_for_backward(weight)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result

    @staticmethod
    @once
    def backward(ctx: Context, g: torch.Tensor) -> Gradients:
        """Return the gradient towards the input."""
        (weight,) = ctx.saved_tensors
        g = g if g.layout is torch.strided else g.to_dense()
        return torch.ops.mkldnn._linear_pointwise(g, weight.t(), None, "none", [], ""), None, None


def multiplied(func: Function, args: Arguments, kwargs: Named) -> torch.Tensor:
    """Return what a linear layer returns."""
    options = {"bias": None} | dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    x, weight, bias = options["input"], options["weight"], options["bias"]
    is_large = x.ndim > 1 and weight.ndim == 2 and x.numel() * len(weight) >= _LEAST_PRODUCT
    is_fit = is_large and _is_for_onednn(x, weight, bias)
    return MatrixProduct.apply(x, weight, bias) if is_fit else func(*args, **kwargs)  # type: ignore[no-any-return]


def convolved(call: Convolution, taps: tuple[int, ...]) -> torch.Tensor:
    """Return what a convolution with zeros around its kernel returns, if it is a large first one in its own way."""
    if any(taps):
        call = call.weighing(functional.pad(call.weight, taps), call.bias)
    if not stem.pays(call):
        return call.run()
    geometry = call.stride, call.padding
    result: torch.Tensor = stem.StridedConvolution.apply(call.images, call.weight, call.bias, geometry)
    return result


def _turned(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the weights of the convolution that is the way back through one of stride 1."""
    outputs, inputs, *taps = weight.shape
    split = weight.reshape(groups, outputs // groups, inputs, *taps).transpose(1, 2)
    return split.flip(3, 4).reshape(groups * inputs, outputs // groups, *taps)


def _reorders() -> tuple[Any, Any]:
    return torch._C._nn.mkldnn_reorder_conv2d_weight, torch.ops.mkldnn._reorder_convolution_transpose_weight


def _layout(images: torch.Tensor) -> torch.memory_format:
    is_last = images.ndim == 4 and images.is_contiguous(memory_format=_LAST)
    return _LAST if is_last else torch.contiguous_format


def _geometry_of(call: Convolution) -> Geometry:
    return Geometry(call.images.shape, call.stride, call.padding, call.dilation, call.groups)


def _work(call: Convolution) -> int:
    images, (down, across) = call.images, call.stride
    positions = images.numel() // max(1, images.shape[1]) // (down * across)
    return positions * call.weight.numel()


def _is_for_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Tell whether oneDNN can multiply these, with weights that do not depend on the images.

    It reads a bias as it lies in memory, whatever its shape and strides are.
    """
    given = (weight,) if bias is None else (weight, bias)
    return (
        _HAS_ONEDNN
        and all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in (x, *given))
        and are_constant(*given)
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in (x, *given))
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and x.numel() > 0
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
