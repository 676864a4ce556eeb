"""What the autograd graph cannot tell, found by watching single operations of one forward or backward pass.

Both watchers are dispatch modes: they see the operations of this thread, between enter and exit, and
nothing of the user's is changed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_backprop.backends.torch_nodes import is_two_valued
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule

# Operations that say where a tensor is positive, in one way or another.
_SIGNS = {"abs", "abs_", "ge", "gt", "heaviside", "hypot", "le", "lt", "sgn", "sign", "signbit", "sqrt"}
_DROPOUTS = {"_fused_dropout", "bernoulli", "bernoulli_", "native_dropout"}
_HEADS = {"_softmax", "_log_softmax", "sigmoid", "sigmoid_"}


class ForwardWatch(TorchDispatchMode):
    """Finds ReLUs spelled as arithmetic, dropout, and the logits in front of the final softmax.

    A tensor that says where x is positive (``x > 0``, ``|x|``) is followed through the operations that keep
    its shape. Where it meets a tensor, the result is compared with the ReLU of that tensor and of x: a
    ReLU, or a result that no value tells from one, is reported. A mask that closes on positive values or
    passes negative ones is none.

    Args:
        head_shape: the shape of what the final softmax or sigmoid returns.
    """

    def __init__(self, head_shape: torch.Size) -> None:
        super().__init__()
        self.spelled: set[str] = set()
        self.has_dropout = False
        self._dependent = _Storages()
        self._signs = _Storages()
        self._head_shape = head_shape
        self._heads: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def follow(self, images: torch.Tensor) -> None:
        """Say what the forward pass starts from: only what depends on it can be a ReLU of it."""
        self._dependent.add(images, True)

    def logits_of(self, probabilities: torch.Tensor) -> torch.Tensor | None:
        """Return the input of the softmax or sigmoid whose result is ``probabilities``."""
        return self._heads.get(probabilities.data_ptr(), (None, None))[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sources = [self._signs.get(tensor) for tensor in tensors]
        # The operand of an operation in place is gone afterwards.
        before = tensors
        if func._schema.is_mutable and (name == "sigmoid_" or any(source is not None for source in sources)):
            before = [tensor.clone() for tensor in tensors]
        result = func(*args, **kwargs)
        self.has_dropout |= name in _DROPOUTS
        if not isinstance(result, torch.Tensor):
            return self._depend(result, tensors)
        if name in _HEADS and result.shape == self._head_shape:
            self._heads[result.data_ptr()] = (before[0], result)
        if name in _SIGNS and self._says_sign(tensors):
            self._signs.add(result, before[0].clone() if result is tensors[0] else tensors[0].detach().clone())
        elif any(source is not None for source in sources) and not _asks_for_infinity(name, args):
            self._compare(name, before, sources, result)
        return self._depend(result, tensors)

    def _depend(self, result: Any, tensors: list[torch.Tensor]) -> Any:
        if any(self._dependent.get(tensor) for tensor in tensors):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._dependent.add(leaf, True)
        return result

    def _says_sign(self, tensors: list[torch.Tensor]) -> bool:
        x, *others = tensors
        is_constant = all(other.numel() == 1 or bool((other == other.flatten()[0]).all()) for other in others)
        return x.is_floating_point() and x.numel() > 1 and bool(self._dependent.get(x)) and is_constant

    def _compare(
        self, name: str, tensors: list[torch.Tensor], sources: list[torch.Tensor | None], result: torch.Tensor
    ) -> None:
        found = [source for source in sources if source is not None]
        operands = [
            tensor
            for tensor, source in zip(tensors, sources, strict=True)
            if source is None and tensor.is_floating_point() and tensor.numel() > 1
        ]
        if result.is_floating_point():
            candidates = [x for x in (*operands, *found) if x.shape == result.shape]
            is_sign = not operands or is_two_valued(result)
            if not is_sign and any(is_relu_like(result, x) for x in candidates):
                self.spelled.add(name.removesuffix("_"))
                return
            if not is_sign:
                return
        if result.numel() == found[0].numel():
            self._signs.add(result, found[0])


class BackwardWatch(TorchDispatchMode):
    """Applies a rule inside operations in place on a view, whose derivative the graph does not show.

    Between ``enter`` and ``leave`` of such a node each operation is known to be linear, or is the derivative
    of an activation, or is refused.
    """

    def __init__(self, rule: ReluRule, note: Callable[[str, bool], None]) -> None:
        super().__init__()
        self._rule = rule
        self._note = note
        self._inside = False

    def enter(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Begin: a pre-hook of the node."""
        self._inside = True

    def leave(self, inputs: tuple[torch.Tensor, ...], gradients: tuple[torch.Tensor, ...]) -> None:
        """End: a hook of the node."""
        self._inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not self._inside or name in _LINEAR:
            return func(*args, **kwargs)
        activation = name.removesuffix("_backward")
        if name == activation:
            if self._rule.backward_gate:
                raise _hidden(name)
            return func(*args, **kwargs)
        is_relu = (
            name == "threshold_backward"
            or (name == "hardtanh_backward" and args[2] == 0)
            or (name == "leaky_relu_backward" and args[2] == 0)
            or (name == "elu_backward" and args[1] == 0)
        )
        if not is_relu:
            self._note(activation, False)
            return func(*args, **kwargs)
        self._note("relu" if name != "hardtanh_backward" else f"relu{args[3]:g}".removesuffix("inf"), True)
        gradient = args[0].clamp(min=0) if self._rule.backward_gate else args[0]
        return func(gradient, *args[1:], **kwargs) if self._rule.forward_gate else gradient


_LINEAR = set(
    """
    _reshape_alias _to_copy _unsafe_view add add_ alias as_strided clone copy_ detach div empty empty_like
    empty_strided expand fill_ index index_put masked_fill mul neg new_empty new_empty_strided new_zeros permute
    reshape scalar_tensor select select_backward slice slice_backward squeeze sub sum t transpose unsqueeze view
    zero_ zeros zeros_like
    """.split()
)


class _Storages:
    """Notes on tensors, kept by storage: a view shares them. Weak, so that no memory is held for it."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[StorageWeakRef, Any]] = {}

    def add(self, tensor: torch.Tensor, note: Any) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        # While the weak reference lives, its address is not used again.
        self._notes[reference.cdata] = (reference, note)

    def get(self, tensor: torch.Tensor) -> Any:
        return self._notes.get(tensor.untyped_storage()._cdata, (None, None))[1]


def _asks_for_infinity(name: str, args: tuple[Any, ...]) -> bool:
    """``isfinite`` and ``isinf`` are made of ``abs``, and say nothing of the sign."""
    return name in ("eq", "ne") and isinstance(args[1], float) and abs(args[1]) == float("inf")


def is_relu_like(y: torch.Tensor, x: torch.Tensor) -> bool:
    """Tell whether ``y`` is a multiple of x above a threshold (or below one) and 0 beyond it.

    Where nothing was closed, y is such a multiple as well if x has one sign only: no value tells it from a
    ReLU, so it counts as one. Where nothing was open no gradient passes, and it does not count.
    """
    rounding = max(1e-3, 4 * torch.finfo(y.dtype).eps)
    y, x = y.detach().double(), x.detach().double()
    is_open, is_closed = y != 0, (y == 0) & (x != 0)
    if not is_open.any() or ((x == 0) & is_open).any():
        return False
    ratio = y[is_open] / x[is_open]
    if not torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=rounding, atol=0):
        return False
    opened, closed = x[is_open], x[is_closed]
    if closed.numel() == 0:
        return bool((opened > 0).all() or (opened < 0).all())
    return bool(opened.min() >= closed.max() or opened.max() <= closed.min())


def _hidden(name: str) -> ModelError:
    return OpaqueRegionError(
        "an operation in place on a view must be linear or a known activation; "
        f"received {name}. Apply it out of place, or not to a view."
    )
