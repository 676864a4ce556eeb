"""Batch-norm that only scales what a convolution returned becomes part of the convolution's weights, for one run.

So does padding in front of a convolution.

What follows what is learned by watching one run; nothing is assumed of how the model is
written.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakValueDictionary, ref

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guided_backprop.backends.torch.fast.gated import RELUS, Call, ScalingNorm, Unchanged, is_plain
from guided_backprop.backends.torch.fast.kernels import NO_TAPS, Kernel, Norm, convolved, multiplied
from guided_backprop.backends.torch.fast.once import Unlike, are_constant

# The widths of padding at both sides of both axes.
Sides = tuple[tuple[int, int], tuple[int, int]]

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
# How a model gets at the nodes of its graph, where it may put hooks.
_NODE: Any = vars(torch._C.TensorBase)["grad_fn"].__get__
# All functions that have another form here.
_CONCERNS = {*_CONVOLUTIONS, *RELUS, functional.batch_norm, functional.linear, functional.pad, _NODE}
_OPTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# What asks for a tensor's form, and not for its values: properties that are no tensors, and these.
_FORMAL = set(
    "__get__ dim element_size get_device is_contiguous is_floating_point ndimension numel size stride".split()
)


class Recorder(TorchFunctionMode):
    """Watches one run for convolutions whose result goes to one batch-norm, or whose images are padded, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[int, tuple[ref[torch.Tensor], torch.Tensor]] = {}
        # By the weight's id: weight and bias, the batch-norm that follows; used twice, its result is used otherwise.
        self._weights: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._norms: dict[int, Norm] = {}
        self._barred: set[int] = set()
        self._unfoldable: set[int] = set()
        self._pads: dict[int, ref[torch.Tensor]] = {}
        self._folds_pads = True
        self._gated = Unchanged()
        self._sees_nodes = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and note who used what."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in RELUS:
            self._gated.add(result)
        self._sees_nodes |= func == _NODE
        options = _convolution_of(func, args, kwargs)
        self._note_pads(args, kwargs, options)
        if _is_formal(func, result):
            return result
        read, norm = _norm_of(func, args, kwargs)
        for values in tensors_of((args, kwargs)):
            weight = self._made_by(values)
            if weight is None:
                continue
            if values is read and norm is not None and norm.is_scaling and id(weight) not in self._norms:
                self._norms[id(weight)] = norm
            else:
                self._unfoldable.add(id(weight))
        if options is not None:
            weight = options["weight"]
            if id(weight) in self._weights or is_checkpointed():
                self._barred.add(id(weight))
            self._weights[id(weight)] = weight, options["bias"]
            self._results[id(result)] = (ref(result), weight)
        if _pad_of(func, args, kwargs) is not None:
            self._folds_pads &= not is_checkpointed()
            self._pads[id(result)] = ref(result)
        return result

    def folds(self, outputs: Any) -> "Folds":
        """Return what can be folded: not what the model returned itself."""
        for values in tensors_of(outputs):
            self._unfoldable.add(id(self._made_by(values)))
            self._folds_pads &= not self._is_padded(values)
        norms = {key: norm for key, norm in self._norms.items() if key not in self._unfoldable}
        kept = {key: pair for key, pair in self._weights.items() if key not in self._barred}
        kernels = {key: Kernel(*pair, norms.get(key)) for key, pair in kept.items()}
        return Folds(kernels, self._folds_pads, bool(self._gated) and not self._sees_nodes)

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
        kernels: the convolutions, with the batch-norm that is folded into them, by the weight's id.
        pads: whether convolutions pad their images themselves.
        gates: whether ReLUs and batch-norms are gated: nothing changes results later, or looks at nodes.
        packs: whether weights are packed.
    """

    kernels: dict[int, Kernel]
    pads: bool
    gates: bool
    packs: bool = True


class Folded(TorchFunctionMode):
    """Runs convolutions with folded weights, and leaves their batch-norms, and padding in front of them, out."""

    def __init__(self, folds: Folds) -> None:
        super().__init__()
        self._folds = folds
        # What stands in for the result of a convolution until its batch-norm is called, with what that returns; what
        # stands in for padded images until they are convolved; and those of both that somebody still holds after that.
        self._waiting: dict[int, tuple[torch.Tensor, torch.Tensor, Norm]] = {}
        self._unpadded: dict[int, tuple[torch.Tensor, torch.Tensor, Sides]] = {}
        self._spent: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
        self._gated = Unchanged()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or its folded form."""
        kwargs = kwargs or {}
        if func not in _CONCERNS and not self._waiting and not self._unpadded and not self._spent:
            return func(*args, **kwargs)
        if (self._waiting or self._spent) and func.__name__ in _FORMAL and not self._asks_unpadded(args, kwargs):
            result = func(*args, **kwargs)
            if _is_formal(func, result):
                return result
        if self._waiting or self._spent:
            read, norm = _norm_of(func, args, kwargs)
            stand_in, result, folded = self._waiting.pop(id(read), (None, None, None))
            if folded is not None and stand_in is not None:
                if norm is None or not norm.is_constant or not norm.is_same(folded):
                    raise Unlike
                self._spent[id(stand_in)] = stand_in
                return result
            self._check_folded((args, kwargs))
        options = _convolution_of(func, args, kwargs)
        if options is not None:
            return self._convolve(func, options)
        if self._asks_unpadded(args, kwargs):
            raise Unlike
        if func is functional.linear and self._folds.packs and not is_checkpointed():
            return multiplied(func, args, kwargs)
        gates = self._folds.gates and torch.is_grad_enabled() and not is_checkpointed()
        result = self._gate(func, args, kwargs) if gates else None
        if result is not None:
            return result
        pad = _pad_of(func, args, kwargs) if self._folds.pads else None
        if pad is None:
            return func(*args, **kwargs)
        images, sides = pad
        alias = images.view_as(images)
        self._unpadded[id(alias)] = (alias, images, sides)
        return alias

    def finish(self, outputs: Any) -> None:
        """Raise unless everything that was left out was asked for, and what is kept was left as it is."""
        self._check_folded(outputs)
        if self._waiting or self._unpadded or not self._gated:
            raise Unlike

    def _convolve(self, func: Any, options: dict[str, Any]) -> Any:
        stand_in, images, sides = self._unpadded.pop(id(options["input"]), (None, None, None))
        kernel, is_kept_elsewhere = self._folds.kernels.get(id(options["weight"])), is_checkpointed()
        if is_kept_elsewhere and (images is not None or kernel is not None):
            raise Unlike
        taps = NO_TAPS
        if stand_in is not None and images is not None and sides is not None:
            self._spent[id(stand_in)] = stand_in
            options, taps = _with_padding(options, images, sides)
        if kernel is not None and not (kernel.bias is options["bias"] and are_constant(kernel.weight, kernel.bias)):
            raise Unlike
        if kernel is None:
            return func(**options) if is_kept_elsewhere else convolved(func, options, taps)
        result = kernel.convolve(func, options, taps, packs=self._folds.packs)
        if kernel.norm is None:
            return result
        stand_in = result.view_as(result)
        self._waiting[id(stand_in)] = (stand_in, result, kernel.norm)
        return stand_in

    def _gate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a ReLU or a batch-norm as one of ours; None if it is neither, or cannot be."""
        if func == _NODE:
            raise Unlike
        relu, (read, norm) = Call.of(func, args, kwargs), _norm_of(func, args, kwargs)
        result = None
        if relu is not None:
            result = relu.run()
            self._gated.add(result)
        elif norm is not None and norm.is_constant and is_plain(read):
            result = ScalingNorm.apply(read, norm)
            self._gated.add(result, may_change=True)
        return result

    def _check_folded(self, values: Any) -> None:
        """Raise if any of these stands in for a value that is nowhere."""
        if any(id(each) in self._waiting or id(each) in self._spent for each in tensors_of(values)):
            raise Unlike

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


def _with_padding(
    options: dict[str, Any], images: torch.Tensor, sides: Sides
) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Return a convolution's arguments with padding that it does itself, and the zeros around its kernel.

    A convolution pads opposite sides alike. Where one is to be wider, both are, and a kernel that is wider by as many
    zeros leaves out what is too much.
    """
    widths = [(pad + low, pad + high) for pad, (low, high) in zip(options["padding"], sides, strict=True)]
    (top, bottom), (left, right) = widths
    taps = max(0, right - left), max(0, left - right), max(0, bottom - top), max(0, top - bottom)
    if any(taps) and options["dilation"] != (1, 1):
        (top, bottom), (left, right) = sides
        return options | {"input": functional.pad(images, (left, right, top, bottom))}, NO_TAPS
    return options | {"input": images, "padding": tuple(map(max, widths))}, taps


def _pad_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Sides] | None:
    """Return the pictures that are padded with zeros, and the widths at both sides of both axes."""
    if func is not functional.pad:
        return None
    options = {"mode": "constant", "value": None} | dict(zip(("input", "pad", "mode", "value"), args, strict=False))
    options |= kwargs
    images, pad = options["input"], tuple(options["pad"])
    is_zero = options["mode"] == "constant" and not options["value"]
    if not is_zero or images.ndim != 4 or len(pad) != 4 or min(pad) < 0:
        return None
    return images, ((pad[2], pad[3]), (pad[0], pad[1]))


def _norm_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Norm | None]:
    """Return what batch-norm is called with: its input, and the rest."""
    if func is not functional.batch_norm:
        return None, None
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    return args[0] if args else kwargs.get("input"), Norm(*args[1:], **rest)


def tensors_of(values: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from tensors_of(each)
