"""The weights of one convolution in the form that is fastest: batch-norm folded in, and packed as oneDNN wants them.

On a processor oneDNN does the work of a convolution, and brings the weights into an order of its own first: in each
call, forward and once more on the way back. For a few images that takes longer than anything else but the
multiplications. Here it is done once. Large matrix products are left to oneDNN as well, with their weights as they lie.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast import stem
from guided_backprop.backends.torch.fast.once import are_constant, once
from guided_backprop.backends.torch.own import OwnFunction

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


@dataclass(frozen=True)
class Norm:
    """The arguments of one call of batch-norm, but for its input."""

    running_mean: Any
    running_var: Any
    weight: Any = None
    bias: Any = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def is_scaling(self) -> bool:
        """Whether it is one factor and one summand for each channel, whatever the batch is."""
        return not self.training and self.running_mean is not None and self.running_var is not None

    @property
    def is_constant(self) -> bool:
        """Whether these factors do not depend on the images."""
        return self.is_scaling and are_constant(self.running_mean, self.running_var, self.weight, self.bias)

    def is_same(self, other: "Norm") -> bool:
        """Tell whether another call has the same arguments, the same tensors being the same objects."""
        names = ("running_mean", "running_var", "weight", "bias")
        return self.eps == other.eps and all(getattr(self, name) is getattr(other, name) for name in names)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Return what batch-norm returns."""
        given = self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        return functional.batch_norm(x, *given)

    def scale(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the factor of each channel, in this dtype or a wider one."""
        scale = torch.rsqrt(self.running_var.to(torch.promote_types(dtype, torch.float32)) + self.eps)
        return scale if self.weight is None else scale * self.weight

    def folded(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of a convolution that does the same as one followed by this."""
        scale = self.scale(weight.dtype)
        shift = -self.running_mean * scale if bias is None else (bias - self.running_mean) * scale
        shift = shift if self.bias is None else shift + self.bias
        scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        return scaled.to(weight.dtype), shift.to(weight.dtype)


class Geometry(NamedTuple):
    """How a convolution goes over images of one shape."""

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class _Made(NamedTuple):
    """What a kernel keeps: of which weights it was made, for which form, and what it is."""

    fingerprint: Any
    form: Any
    weight: Any
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

    def convolve(self, func: Any, options: dict[str, Any], taps: tuple[int, ...], *, packs: bool) -> torch.Tensor:
        """Return what the convolution, with zeros around its kernel, and its batch-norm return; packed if offered."""
        images, geometry = options["input"], None
        is_fit = packs and func is torch.conv2d and _is_for_onednn(images, self.weight, self.bias)
        is_fit = is_fit and images.is_contiguous(memory_format=_LAST) and not stem.pays(options)
        if is_fit and _work(options) >= _LEAST_WORK:
            geometry = Geometry(images.shape, *(options[name] for name in Geometry._fields[1:]))
        if geometry is None and self.norm is None:
            return convolved(func, options, taps)
        made = self._made((geometry or _layout(images), taps))
        if geometry is None:
            return convolved(func, options | {"weight": made.weight, "bias": made.bias}, NO_TAPS)
        result: torch.Tensor = PackedConvolution.apply(
            images, made.weight, options["bias"] if self.norm is None else made.bias
        )
        return result

    @torch.no_grad()
    def _made(self, form: Any) -> _Made:
        fingerprint, kept = self._fingerprint(), self._kept
        is_known = kept is not None and fingerprint is not None and torch.equal(kept.fingerprint, fingerprint)
        if kept is None or not is_known or kept.form != form:
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
        rest = self.bias, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias
        return torch.cat([sums, *(each for each in rest if each is not None)])


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
        how: Any = stride, dilation, groups
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


class PackedConvolution(OwnFunction):
    """A convolution of packed weights, that is differentiated by its images alone."""

    is_maker = True

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, packed: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve, and keep nothing but the weights."""
        ctx.packed = packed
        _, stride, padding, dilation, groups = packed.geometry
        run = torch.ops.mkldnn._convolution_pointwise
        result: torch.Tensor = run(images, packed.forth, bias, padding, stride, dilation, groups, "none", [], "")
        return result

    @staticmethod
    @once
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient towards the images."""
        packed = ctx.packed
        _, stride, padding, dilation, groups = packed.geometry
        how: Any = stride, dilation, groups
        g = g.contiguous(memory_format=_LAST)
        if packed.turns:
            run = torch.ops.mkldnn._convolution_pointwise
            return run(g, packed.back, None, packed.around, *how, "none", [], ""), None, None
        run = torch.ops.mkldnn._convolution_transpose_pointwise
        return run(g, packed.back, None, padding, packed.missing, *how, "none", [], ""), None, None


class MatrixProduct(OwnFunction):
    """A linear layer that oneDNN computes, differentiated by its input alone."""

    is_maker = True

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply, and keep nothing but the weights, which are the model's own."""
        ctx.save_for_backward(weight)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result

    @staticmethod
    @once
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient towards the input."""
        (weight,) = ctx.saved_tensors
        g = g if g.layout is torch.strided else g.to_dense()
        return torch.ops.mkldnn._linear_pointwise(g, weight.t(), None, "none", [], ""), None, None


def multiplied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return what a linear layer returns."""
    options = {"bias": None} | dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    x, weight, bias = options["input"], options["weight"], options["bias"]
    is_large = x.ndim > 1 and weight.ndim == 2 and x.numel() * len(weight) >= _LEAST_PRODUCT
    is_fit = is_large and _is_for_onednn(x, weight, bias)
    return MatrixProduct.apply(x, weight, bias) if is_fit else func(*args, **kwargs)  # type: ignore[no-any-return]


def convolved(func: Any, options: dict[str, Any], taps: tuple[int, ...]) -> torch.Tensor:
    """Return what a convolution with zeros around its kernel returns, if it is a large first one in its own way."""
    if any(taps):
        options = options | {"weight": functional.pad(options["weight"], taps)}
    if func is torch.conv2d and stem.pays(options):
        geometry = options["stride"], options["padding"]
        result = stem.StridedConvolution.apply(options["input"], options["weight"], options["bias"], geometry)
    else:
        result = func(**options)
    return result  # type: ignore[no-any-return]


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


def _work(options: dict[str, Any]) -> int:
    images, (down, across) = options["input"], options["stride"]
    positions = images.numel() // max(1, images.shape[1]) // (down * across)
    return int(positions * options["weight"].numel())


def _is_for_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Tell whether oneDNN can multiply these, with weights that do not depend on the images.

    It reads a bias as it lies in memory, whatever its shape and strides are.
    """
    given = (weight,) if bias is None else (weight, bias)
    return (
        _HAS_ONEDNN
        and all(type(each) in (torch.Tensor, torch.nn.Parameter) for each in (x, *given))
        and are_constant(*given)
        and all(each.is_cpu and each.dtype == torch.float32 for each in (x, *given))
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and x.numel() > 0
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
