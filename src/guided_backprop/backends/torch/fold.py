"""Batch-norm that only scales what a convolution returned becomes part of the convolution's weights, for one run.

So does padding in front of a convolution.

What follows what is learned by watching one run; nothing is assumed of how the model is
written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import add
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guided_backprop.backends.torch import stem

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_OPTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# What asks for a tensor's form, and not for its values: properties that are no tensors, and these.
_FORMAL = set(
    "__get__ dim element_size get_device is_contiguous is_floating_point ndimension numel size stride".split()
)


@dataclass(frozen=True)
class _Norm:
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

    def is_same(self, other: "_Norm") -> bool:
        """Tell whether another call has the same arguments, the same tensors being the same objects."""
        names = ("running_mean", "running_var", "weight", "bias")
        return self.eps == other.eps and all(getattr(self, name) is getattr(other, name) for name in names)


class Pair:
    """A convolution's weight, and the batch-norm that is all that its result goes to.

    What was folded is kept, and used as long as a fingerprint of all that went into it is the same: a change of
    any weight, however it was made, counts at once. To look is five times cheaper than to fold.
    """

    def __init__(self, weight: torch.Tensor, norm: _Norm) -> None:
        self.weight, self.norm = weight, norm
        numbers = np.random.default_rng(0).uniform(0.5, 1.5, weight[0].numel())
        self._numbers = torch.as_tensor(numbers, dtype=weight.dtype, device=weight.device)
        self._kept: tuple[torch.memory_format, torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def folded(self, bias: torch.Tensor | None, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of both in one, in the memory layout of what they are applied to."""
        layout = torch.contiguous_format
        if images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
        fingerprint = self._fingerprint(bias)
        kept = self._kept
        if kept is None or fingerprint is None or kept[0] != layout or not torch.equal(kept[1], fingerprint):
            weight, shift = self._fold(bias)
            weight = weight.contiguous(memory_format=layout)
            if fingerprint is None:
                return weight, shift
            self._kept = kept = (layout, fingerprint, weight, shift)
        return kept[2:]

    def _fingerprint(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return numbers that are others if any weight is; None if the dtype is too coarse for that."""
        if self.weight.dtype not in (torch.float32, torch.float64):
            return None
        norm = self.norm
        vectors = [torch.mv(self.weight.reshape(len(self.weight), -1), self._numbers)]
        vectors += [norm.running_mean, norm.running_var]
        return torch.cat([*vectors, *(each for each in (norm.weight, norm.bias, bias) if each is not None)])

    def _fold(self, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        norm, wide = self.norm, torch.promote_types(self.weight.dtype, torch.float32)
        scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
        shift = shift if norm.bias is None else shift + norm.bias
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        return weight.to(self.weight.dtype), shift.to(self.weight.dtype)


class Unlike(BaseException):
    """The run differs from the one that was watched. Not an Exception, so that no handler of the model's takes it."""


class Recorder(TorchFunctionMode):
    """Watches one run for convolutions whose result goes to one batch-norm, or whose images are padded, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[int, tuple[ref[torch.Tensor], torch.Tensor]] = {}
        self._found: dict[int, Pair] = {}
        # By the weight: it is used twice, or its result is.
        self._barred: set[int] = set()
        self._used: dict[int, torch.Tensor] = {}
        self._pads: dict[int, ref[torch.Tensor]] = {}
        self._folds_pads = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and note who used what."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        options = _convolution_of(func, args, kwargs)
        self._note_pads(args, kwargs, options)
        if _is_formal(func, result):
            return result
        read, norm = _norm_of(func, args, kwargs)
        for values in tensors_of((args, kwargs)):
            weight = self._made_by(values)
            if weight is None:
                continue
            if values is read and norm is not None and norm.is_scaling and id(weight) not in self._found:
                self._found[id(weight)] = Pair(weight, norm)
            else:
                self._barred.add(id(weight))
        if options is not None:
            weight = options["weight"]
            if id(weight) in self._used or is_checkpointed():
                self._barred.add(id(weight))
            self._used[id(weight)] = weight
            self._results[id(result)] = (ref(result), weight)
        if _pad_of(func, args, kwargs) is not None:
            self._folds_pads &= not is_checkpointed()
            self._pads[id(result)] = ref(result)
        return result

    def folds(self, outputs: Any) -> "Folds":
        """Return what can be folded: not what the model returned itself."""
        for values in tensors_of(outputs):
            self._barred.add(id(self._made_by(values)))
            self._folds_pads &= not self._is_padded(values)
        pairs = {key: pair for key, pair in self._found.items() if key not in self._barred}
        return Folds(pairs, self._folds_pads)

    def _note_pads(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] | None) -> None:
        """Padding can be left to a convolution if nothing else looks at what is padded."""
        for values in tensors_of((args, kwargs)):
            if self._is_padded(values) and (options is None or values is not options["input"]):
                self._folds_pads = False

    def _is_padded(self, values: torch.Tensor) -> bool:
        made = self._pads.get(id(values))
        return made is not None and made() is values

    def _made_by(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of the convolution that returned this tensor, if one did."""
        made = self._results.get(id(values))
        return made[1] if made is not None and made[0]() is values else None


class Folds(NamedTuple):
    """What can be folded in one model.

    Attributes:
        pairs: the convolutions that their batch-norm is folded into, by the weight's id.
        pads: whether convolutions pad their images themselves.
    """

    pairs: dict[int, Pair]
    pads: bool


class Folded(TorchFunctionMode):
    """Runs convolutions with folded weights, and leaves their batch-norms, and padding in front of them, out."""

    def __init__(self, folds: Folds) -> None:
        super().__init__()
        self._folds = folds
        # Results that already are what their batch-norm would return, and images that are still to be padded.
        self._waiting: dict[int, tuple[torch.Tensor, Pair]] = {}
        self._unpadded: dict[int, tuple[torch.Tensor, torch.Tensor, tuple[int, int]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or its folded form."""
        kwargs = kwargs or {}
        if self._waiting and func.__name__ in _FORMAL and not self._asks_unpadded(args, kwargs):
            result = func(*args, **kwargs)
            if _is_formal(func, result):
                return result
        if self._waiting:
            read, norm = _norm_of(func, args, kwargs)
            result, pair = self._waiting.pop(id(read), (None, None))
            if pair is not None:
                if norm is None or norm.training or not norm.is_same(pair.norm):
                    raise Unlike
                return result
            if any(id(values) in self._waiting for values in tensors_of((args, kwargs))):
                raise Unlike
        options = _convolution_of(func, args, kwargs)
        if options is not None:
            return self._convolve(func, options)
        if self._asks_unpadded(args, kwargs):
            raise Unlike
        pad = _pad_of(func, args, kwargs) if self._folds.pads else None
        if pad is None:
            return func(*args, **kwargs)
        images, sides = pad
        alias = images.view_as(images)
        self._unpadded[id(alias)] = (alias, images, sides)
        return alias

    def finish(self) -> None:
        """Raise unless everything that was left out was asked for."""
        if self._waiting or self._unpadded:
            raise Unlike

    def _convolve(self, func: Any, options: dict[str, Any]) -> Any:
        _, images, sides = self._unpadded.pop(id(options["input"]), (None, None, None))
        pair = self._folds.pairs.get(id(options["weight"]))
        if (images is not None or pair is not None) and is_checkpointed():
            raise Unlike
        if images is not None and sides is not None:
            padding = tuple(map(add, options["padding"], sides))
            options |= {"input": images, "padding": padding}
        if pair is not None:
            options["weight"], options["bias"] = pair.folded(options["bias"], options["input"])
        if func is torch.conv2d and stem.pays(options):
            geometry = options["stride"], options["padding"]
            result = stem.StridedConvolution.apply(options["input"], options["weight"], options["bias"], geometry)
        else:
            result = func(**options)
        if pair is not None:
            self._waiting[id(result)] = (result, pair)
        return result

    def _asks_unpadded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not self._unpadded:
            return False
        return any(id(values) in self._unpadded for values in tensors_of((args, kwargs)))


def is_checkpointed() -> bool:
    """Tell whether what is saved for the backward pass goes elsewhere, as in a checkpoint.

    A checkpointed block runs once more in the backward pass, where nobody folds: it has to run as it is.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _is_formal(func: Any, result: Any) -> bool:
    return func.__name__ in _FORMAL and not isinstance(result, torch.Tensor)


def _convolution_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return all arguments that a convolution is called with, by name; None if it is none, or pads by a word."""
    if func not in _CONVOLUTIONS:
        return None
    axes = _CONVOLUTIONS.index(func) + 1
    options = dict(zip(_OPTIONS, args, strict=False)) | kwargs
    options = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    if isinstance(options["padding"], str):
        return None
    for name in ("stride", "padding", "dilation"):
        given = options[name]
        options[name] = (given,) * axes if isinstance(given, int) else tuple(given) * (axes if len(given) == 1 else 1)
    return options


def _pad_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple[int, int]] | None:
    """Return the pictures that are padded with zeros, alike on opposite sides, and the width along both axes."""
    if func is not functional.pad:
        return None
    options = {"mode": "constant", "value": None} | dict(zip(("input", "pad", "mode", "value"), args, strict=False))
    options |= kwargs
    images, pad = options["input"], tuple(options["pad"])
    is_zero = options["mode"] == "constant" and not options["value"]
    if not is_zero or images.ndim != 4 or len(pad) != 4 or min(pad) < 0 or pad[::2] != pad[1::2]:
        return None
    return images, (pad[2], pad[0])


def _norm_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, _Norm | None]:
    """Return what batch-norm is called with: its input, and the rest."""
    if func is not functional.batch_norm:
        return None, None
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    return args[0] if args else kwargs.get("input"), _Norm(*args[1:], **rest)


def tensors_of(values: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from tensors_of(each)
