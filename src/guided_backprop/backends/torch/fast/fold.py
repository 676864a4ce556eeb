"""Batch-norm that only scales what a convolution returned becomes part of the convolution's weights, for one run.

So does padding in front of a convolution.

What follows what is learned by watching one run; nothing is assumed of how the model is
written.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple
from weakref import ref

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guided_backprop.backends.torch.fast.calls import (
    CONVOLUTIONS,
    RELUS,
    Convolution,
    Norm,
    Normalisation,
    Padding,
    Rectification,
    is_plain,
    tensors_of,
)
from guided_backprop.backends.torch.fast.gated import GatedRelu, ScalingNorm, Unchanged
from guided_backprop.backends.torch.fast.kernels import NO_TAPS, Kernel, convolved, multiplied
from guided_backprop.backends.torch.fast.once import Unlike, are_constant
from guided_backprop.backends.torch.fast.stand_ins import Normalised, StandIns
from guided_backprop.backends.torch.own import Arguments, Function, Named

# How a model gets at the nodes of its graph, where it may put hooks.
_NODE: Function = vars(torch._C.TensorBase)["grad_fn"].__get__
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
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Run the function, and note who used what."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in RELUS:
            self._gated.add(result)
        self._sees_nodes |= func == _NODE
        convolution = Convolution.of(func, args, kwargs)
        self._note_pads(args, kwargs, convolution)
        if func.__name__ in _FORMAL and not isinstance(result, torch.Tensor):
            return result
        self._note_norms(args, kwargs, Normalisation.of(func, args, kwargs))
        if convolution is not None:
            self._note_convolution(convolution, result)
        if Padding.of(func, args, kwargs) is not None:
            self._folds_pads &= not is_checkpointed()
            self._pads[id(result)] = ref(result)
        return result

    def folds(self, outputs: object) -> "Folds":
        """Return what can be folded: not what the model returned itself."""
        for tensor in tensors_of(outputs):
            self._unfoldable.add(id(self._made_by(tensor)))
            self._folds_pads &= not self._is_padded(tensor)
        norms = {key: norm for key, norm in self._norms.items() if key not in self._unfoldable}
        kept = {key: pair for key, pair in self._weights.items() if key not in self._barred}
        kernels = {key: Kernel(*pair, norms.get(key)) for key, pair in kept.items()}
        return Folds(kernels, self._folds_pads, bool(self._gated) and not self._sees_nodes)

    def _note_pads(self, args: Arguments, kwargs: Named, convolution: Convolution | None) -> None:
        """Padding can be left to a convolution if nothing else looks at what is padded."""
        for tensor in tensors_of((args, kwargs)):
            if self._is_padded(tensor) and (convolution is None or tensor is not convolution.images):
                self._folds_pads = False

    def _note_norms(self, args: Arguments, kwargs: Named, call: Normalisation | None) -> None:
        """A batch-norm can be folded into a convolution if nothing else looks at what that returned."""
        for tensor in tensors_of((args, kwargs)):
            weight = self._made_by(tensor)
            if weight is None:
                continue
            is_read = call is not None and tensor is call.x and call.norm.is_scaling
            if call is not None and is_read and id(weight) not in self._norms:
                self._norms[id(weight)] = call.norm
            else:
                self._unfoldable.add(id(weight))

    def _note_convolution(self, call: Convolution, result: torch.Tensor) -> None:
        weight = call.weight
        if id(weight) in self._weights or is_checkpointed():
            self._barred.add(id(weight))
        self._weights[id(weight)] = weight, call.bias
        self._results[id(result)] = ref(result), weight

    def _is_padded(self, tensor: torch.Tensor) -> bool:
        made = self._pads.get(id(tensor))
        return made is not None and made() is tensor

    def _made_by(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of the convolution that returned this tensor, if one did."""
        made = self._results.get(id(tensor))
        return made[1] if made is not None and made[0]() is tensor else None


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
        self._stand_ins = StandIns()
        self._gated = Unchanged()

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Run the function, or its folded form."""
        kwargs = kwargs or {}
        # Everything that a model computes passes here: what concerns nobody has to pass fast.
        if func in self._forms:
            return self._forms[func](self, func, args, kwargs)
        if not self._stand_ins.waiting and not self._stand_ins.spent:
            return func(*args, **kwargs)
        if func.__name__ in _FORMAL:
            return self._form_of(func, args, kwargs)
        self._stand_ins.bar((args, kwargs))
        return func(*args, **kwargs)

    def finish(self, outputs: object) -> None:
        """Raise unless everything that was left out was asked for, and what is kept was left as it is."""
        self._stand_ins.bar(outputs)
        if self._stand_ins.waiting or not self._gated:
            raise Unlike

    def _form_of(self, func: Function, args: Arguments, kwargs: Named) -> object:
        """Return the form of a tensor, which may be a stand-in if its form is right."""
        self._stand_ins.bar_misshapen((args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self._stand_ins.bar((args, kwargs))
        return result

    def _node_of(self, func: Function, args: Arguments, kwargs: Named) -> object:
        """Return a node of the graph, if none is ours."""
        if self._gates():
            raise Unlike
        return self._form_of(func, args, kwargs)

    def _convolve(self, func: Function, args: Arguments, kwargs: Named) -> object:
        call, taps = Convolution.of(func, args, kwargs), NO_TAPS
        if call is None:
            return self._as_it_is(func, args, kwargs)
        padding = self._stand_ins.take(call.images, Padding)
        if padding is not None:
            call, taps = call.padding_by(*padding)
        self._stand_ins.bar((call.images, call.weight, call.bias))
        kernel = self._folds.kernels.get(id(call.weight))
        if is_checkpointed():
            if padding is not None or kernel is not None:
                raise Unlike
            return call.run()
        if kernel is None:
            return convolved(call, taps)
        if kernel.bias is not call.bias or not are_constant(kernel.weight, kernel.bias):
            raise Unlike
        result = kernel.convolve(call, taps, packs=self._folds.packs)
        return result if kernel.norm is None else self._stand_ins.put(result, Normalised(result, kernel.norm))

    def _normalise(self, func: Function, args: Arguments, kwargs: Named) -> object:
        call = Normalisation.of(func, args, kwargs)
        assert call is not None
        normalised = self._stand_ins.take(call.x, Normalised)
        if normalised is not None:
            if not call.norm.is_constant or not call.norm.is_same(normalised.norm):
                raise Unlike
            return normalised.result
        self._stand_ins.bar((args, kwargs))
        if not self._gates() or not call.norm.is_constant or not is_plain(call.x):
            return func(*args, **kwargs)
        result: torch.Tensor = ScalingNorm.apply(*call)
        self._gated.add(result, may_change=True)
        return result

    def _rectify(self, func: Function, args: Arguments, kwargs: Named) -> object:
        self._stand_ins.bar((args, kwargs))
        call = Rectification.of(func, args, kwargs) if self._gates() else None
        if call is None:
            return func(*args, **kwargs)
        result: torch.Tensor = GatedRelu.apply(*call)
        self._gated.add(result)
        return result

    def _multiply(self, func: Function, args: Arguments, kwargs: Named) -> object:
        self._stand_ins.bar((args, kwargs))
        if not self._folds.packs or is_checkpointed():
            return func(*args, **kwargs)
        return multiplied(func, args, kwargs)

    def _pad(self, func: Function, args: Arguments, kwargs: Named) -> object:
        self._stand_ins.bar((args, kwargs))
        call = Padding.of(func, args, kwargs) if self._folds.pads else None
        return func(*args, **kwargs) if call is None else self._stand_ins.put(call.images, call)

    def _as_it_is(self, func: Function, args: Arguments, kwargs: Named) -> object:
        self._stand_ins.bar((args, kwargs))
        return func(*args, **kwargs)

    def _gates(self) -> bool:
        """Tell whether ReLUs and batch-norms are gated here."""
        return self._folds.gates and torch.is_grad_enabled() and not is_checkpointed()

    # The functions that have another form here.
    _forms: ClassVar[dict[Function, Callable[["Folded", Function, Arguments, Named], object]]] = {
        **dict.fromkeys(CONVOLUTIONS, _convolve),
        **dict.fromkeys(RELUS, _rectify),
        functional.batch_norm: _normalise,
        functional.linear: _multiply,
        functional.pad: _pad,
        _NODE: _node_of,
    }


def is_checkpointed() -> bool:
    """Tell whether what is saved for the backward pass goes elsewhere, as in a checkpoint.

    A checkpointed block runs once more in the backward pass, where nobody folds: it has to run as it is.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
