"""What the autograd graph cannot tell, found by watching single operations of one forward or backward pass.

Both watchers are dispatch modes: they see the operations of this thread, between enter and exit, and
nothing of the user's is changed.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.spelling import is_relu_like
from guided_backprop.backends.torch.leaving import leaving
from guided_backprop.backends.torch.nodes import is_two_valued
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule

# Operations that say where a tensor is positive, in one way or another.
_SIGNS = {"abs", "abs_", "ge", "gt", "heaviside", "hypot", "le", "linalg_vector_norm", "lt", "pow", "sgn", "sign"}
_SIGNS |= {"signbit", "sqrt"}
_STACKS = {"cat", "constant_pad_nd", "stack"}
_MAXIMA = {"adaptive_max_pool2d", "amax", "aminmax", "cummax", "kthvalue", "max", "max_pool2d_with_indices"}
_MAXIMA |= {"max_pool3d_with_indices", "median", "sort", "topk"}
# They take a tensor for its shape alone.
_FACTORIES = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}
_DROPOUTS = {"_fused_dropout", "bernoulli", "bernoulli_", "native_dropout"}
_HEADS = {"_softmax", "_log_softmax", "sigmoid", "sigmoid_"}


#: What of a forward pass is watched.
Watched = Literal["heads", "everything"] | None


class ForwardWatch(TorchDispatchMode):
    """Finds ReLUs spelled as arithmetic, dropout, and the logits in front of the final softmax.

    A tensor that says where x is positive (``x > 0``, ``|x|``, a stack of x and zeros) is followed through
    the operations that keep its size. Where it meets a tensor, the result is compared with that tensor and
    with x: a result that is a ReLU of either, or that no value tells from one, is reported.

    Args:
        watched: "everything", or "heads" where the graph leaves nothing open but the logits, which is much faster.
    """

    def __init__(self, watched: Watched = "everything") -> None:
        super().__init__()
        self._watched = watched
        self.spelled: set[str] = set()
        self.has_dropout = False
        self._dependent = _Storages()
        self._signs = _Storages()
        # The final softmax is among the last ones; those of attention would fill the memory.
        self._heads: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=4)

    def follow(self, images: torch.Tensor) -> None:
        """Say what the forward pass starts from: only what depends on it can be a ReLU of it."""
        self._dependent.add(images, True)

    def logits_of(self, probabilities: torch.Tensor) -> torch.Tensor | None:
        """Return the input of the last softmax or sigmoid whose result is ``probabilities``."""
        found = (logits for logits, result in reversed(self._heads) if torch.equal(result, probabilities))
        return next(found, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if self._watched == "heads" and name not in _HEADS:
            self.has_dropout |= name in _DROPOUTS
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sources = [self._signs.get(tensor) for tensor in tensors]
        # The operand of an operation in place is gone afterwards.
        before = tensors
        is_followed = any(source is not None for source in sources)
        if func._schema.is_mutable and (is_followed or name in ("abs_", "sigmoid_")):
            before = [tensor.clone() for tensor in tensors]
        result = func(*args, **kwargs)
        self.has_dropout |= name in _DROPOUTS
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if results and tensors:
            if name in _HEADS:
                self._heads.append((before[0].detach(), results[0].detach()))
            is_image = [tensor.is_floating_point() and bool(self._dependent.get(tensor)) for tensor in tensors]
            operands = [_Operand(*row) for row in zip(before, sources, is_image, strict=True)]
            self._follow_signs(name, args, operands, results[0])
        if name not in _FACTORIES and any(self._dependent.get(tensor) for tensor in tensors):
            for leaf in results:
                self._dependent.add(leaf, True)
        return result

    def _follow_signs(self, name: str, args: tuple[Any, ...], operands: "list[_Operand]", result: torch.Tensor) -> None:
        found = [operand.source for operand in operands if operand.source is not None]
        dependent = [operand.values for operand in operands if operand.is_dependent]
        is_sign = name in _SIGNS and len(dependent) == 1
        if is_sign or (name in _STACKS and dependent and _adds_zeros(name, args, operands)):
            self._signs.add(result, dependent[0].detach().clone())
        elif name in _MAXIMA and found:
            if any(_has_the_values_of_relu(result, source) for source in found):
                self.spelled.add(f"{name} over a stack with zeros")
        elif found and not _asks_for_infinity(name, args):
            others = [operand.values for operand in operands if operand.is_dependent and operand.source is None]
            self._compare(name, others, found, result)

    def _compare(
        self, name: str, operands: list[torch.Tensor], found: list[torch.Tensor], result: torch.Tensor
    ) -> None:
        """Report a ReLU, or keep following a result that still only says where its source is positive."""
        sizes = {source.numel() for source in found}
        candidates = [x for x in (*operands, *found) if x.shape == result.shape and x.numel() in sizes]
        is_value = bool(operands) and result.is_floating_point()
        if is_value and any(_is_relu_like(result, x) for x in candidates):
            self.spelled.add(name.removesuffix("_"))
        elif result.numel() in sizes and not (is_value and not is_two_valued(result)):
            self._signs.add(result, found[0])


class _Operand(NamedTuple):
    """A tensor as it was before the operation, and what is known of it."""

    values: torch.Tensor
    source: torch.Tensor | None
    is_dependent: bool


class BackwardWatch(TorchDispatchMode):
    """Applies a rule inside operations in place on a view, whose derivative the graph does not show.

    Between ``enter`` and ``leave`` of such a node each operation is known to be no activation's, or is the
    derivative of an activation, or is refused.
    """

    def __init__(self, rule: ReluRule, note: Callable[[str, str], None]) -> None:
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
        if not self._inside or name in _PASSING:
            return func(*args, **kwargs)
        activation = name.removesuffix("_backward")
        if name == activation:
            if self._rule.needs_every_relu:
                raise _hidden(name)
            return func(*args, **kwargs)
        is_relu = (
            name == "threshold_backward"
            or (name == "hardtanh_backward" and args[2] == 0)
            or (name == "leaky_relu_backward" and args[2] == 0)
            or (name == "elu_backward" and args[1] == 0)
        )
        if not is_relu:
            self._note(activation, self._rule.treatment(activation))
            gradient = args[0].clamp(min=0) if self._rule.guides(activation) else args[0]
            return func(gradient, *args[1:], **kwargs)
        self._note("relu" if name != "hardtanh_backward" else f"relu{args[3]:g}".removesuffix("inf"), self._rule.name)
        g, before = args[0], args[1] if name != "elu_backward" else args[5]
        y = before.clamp(min=0) if self._rule.reads_values else None
        return leaving(self._rule, g, func(*args, **kwargs), None, y)


# Operations that a derivative can be made of without being that of an activation.
_PASSING = set(
    """
    _reshape_alias _to_copy _unsafe_view add add_ alias as_strided clone copy_ cos cumsum detach div empty empty_like
    empty_strided expand fill_ flip gather index index_put index_select masked_fill mm mul neg new_empty
    new_empty_strided new_zeros permute pow reshape scalar_tensor scatter select select_backward sin slice
    slice_backward squeeze sub sum t transpose unsqueeze view zero_ zeros zeros_like
    """.split()
)


class _Storages:
    """Notes on tensors, kept by storage: a view shares them. Weak, so that no memory is held for it."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[StorageWeakRef, Any]] = {}

    def add(self, tensor: torch.Tensor, note: Any) -> None:
        if tensor.layout is not torch.strided:
            return
        reference = StorageWeakRef(tensor.untyped_storage())
        # While the weak reference lives, its address is not used again.
        self._notes[reference.cdata] = (reference, note)

    def get(self, tensor: torch.Tensor) -> Any:
        if tensor.layout is not torch.strided:
            return None
        return self._notes.get(tensor.untyped_storage()._cdata, (None, None))[1]


def _adds_zeros(name: str, args: tuple[Any, ...], operands: list[_Operand]) -> bool:
    if name == "constant_pad_nd":
        return len(args) < 3 or args[2] == 0
    return any(not operand.is_dependent and not operand.values.count_nonzero() for operand in operands)


def _asks_for_infinity(name: str, args: tuple[Any, ...]) -> bool:
    """``isfinite`` and ``isinf`` are made of ``abs``, and say nothing of the sign."""
    return name in ("eq", "ne") and isinstance(args[1], float) and abs(args[1]) == float("inf")


def _is_relu_like(y: torch.Tensor, x: torch.Tensor) -> bool:
    return is_relu_like(as_numpy(y), as_numpy(x), max(1e-3, 4 * torch.finfo(y.dtype).eps))


def _has_the_values_of_relu(y: torch.Tensor, x: torch.Tensor) -> bool:
    """Tell whether ``y`` is the ReLU of x in any order: a stack may have been moved before the maximum."""
    return y.numel() == x.numel() and torch.equal(y.flatten().sort().values, x.clamp(min=0).flatten().sort().values)


def _hidden(name: str) -> ModelError:
    return OpaqueRegionError(
        "an operation in place on a view must be linear or a known activation; "
        f"received {name}. Apply it out of place, or not to a view."
    )
