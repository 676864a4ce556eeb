"""What the autograd graph cannot tell, found by watching single operations of one forward or backward pass.

Both watchers are dispatch modes: they see the operations of this thread, between enter and exit, and
nothing of the user's is changed.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import unreadable
from guided_backprop.backends.spelling import is_relu_like
from guided_backprop.backends.torch.graph.nodes import is_two_valued
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched
from guided_backprop.backends.torch.graph.relus import ClampDerivative, name_of, relu_of_derivative
from guided_backprop.backends.torch.layouts import lies_channels_last, unambiguous
from guided_backprop.backends.torch.leaving import leaving
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import ReluRule

# Operations that say where a tensor is positive, in one way or another.
_SIGNS: Final = OPERATIONS.called("abs", "ge", "gt", "hypot", "le", "lt", "norm", "pow", "sign", "sqrt")
_STACKS: Final = OPERATIONS.called("concatenate", "pad", "stack")
_LARGEST: Final = OPERATIONS.of(Kind.CHOOSES) - OPERATIONS.called("abs", "norm")
# They take a tensor for its shape alone.
_SHAPED: Final = OPERATIONS.called("create")
_HEADS: Final = OPERATIONS.of(Kind.HEAD)
_SUMS: Final = OPERATIONS.called("add", "sub")


#: What of a forward pass is watched.
Watched = Literal["details", "everything"] | None


class ForwardWatch(TorchDispatchMode):
    """Finds ReLUs spelled as arithmetic, and the logits in front of the final softmax.

    A tensor that says where x is positive (``x > 0``, ``|x|``, a stack of x and zeros) is followed through
    the operations that keep its size. Where it meets a tensor, the result is compared with that tensor and
    with x: a result that is a ReLU of either, or that no value tells from one, is reported.

    Args:
        watched: "everything", or "details" where the graph leaves nothing open but the logits, and numbers that were
            added, which is much faster.

    Attributes:
        spelled: what spells a ReLU, or may do so.
        shifts: the numbers that were added or subtracted, by their node's place in time.
    """

    def __init__(self, watched: Watched = "everything") -> None:
        super().__init__()
        self._watched = watched
        self.spelled: set[str] = set()
        self.shifts: dict[int, float] = {}
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
        name = dispatched(func.overloadpacket.__name__)
        if name in _SUMS:
            self._note_shift(args)
        if self._watched == "details" and name not in _HEADS:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sources = [self._signs.get(tensor) for tensor in tensors]
        before = _kept(func, name, tensors, is_followed=any(source is not None for source in sources))
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if results and tensors:
            if name in _HEADS:
                self._heads.append((before[0].detach(), results[0].detach()))
            is_image = [_is_value(tensor) and bool(self._dependent.get(tensor)) for tensor in tensors]
            operands = [_Operand(*row) for row in zip(before, sources, is_image, strict=True)]
            try:
                self._follow_signs(name, args, operands, results[0])
            except Exception as error:
                raise unreadable(name, error) from error
        if name not in _SHAPED and any(self._dependent.get(tensor) for tensor in tensors):
            for leaf in results:
                self._dependent.add(leaf, True)
        return result

    def _note_shift(self, args: tuple[Any, ...]) -> None:
        """Note a number that is added: an operation is dispatched right after its node was made.

        A tensor of no axes is one as well. It could depend on the images, as no row of a batch does.
        """
        numbers = [number for number in args if not isinstance(number, torch.Tensor) or number.ndim == 0]
        if len(numbers) == 1 and not _is_complex(numbers[0]):
            self.shifts.setdefault(torch._C._autograd._get_sequence_nr() - 1, float(numbers[0]))

    def _follow_signs(self, name: str, args: tuple[Any, ...], operands: "list[_Operand]", result: torch.Tensor) -> None:
        found = [operand.source for operand in operands if operand.source is not None]
        dependent = [operand.values for operand in operands if operand.is_dependent]
        is_sign = name in _SIGNS and len(dependent) == 1
        if is_sign or (name in _STACKS and dependent and _adds_zeros(name, args, operands)):
            self._signs.add(result, dependent[0].detach().clone())
        elif name not in OPERATIONS and dependent and _is_value(result):
            # Nothing is known of it: is it a ReLU of what it is given?
            if any(_is_relu_like(result, x) for x in dependent):
                self.spelled.add(name)
        elif name in _LARGEST and found:
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
        is_value = bool(operands) and _is_value(result)
        if is_value and any(_is_relu_like(result, x) for x in candidates):
            self.spelled.add(name)
        elif result.numel() in sizes and not (is_value and not is_two_valued(result)):
            self._signs.add(result, found[0])


def _kept(func: Any, name: str, tensors: list[torch.Tensor], *, is_followed: bool) -> list[torch.Tensor]:
    """Return the operands as they were before: that of an operation in place is gone afterwards."""
    is_needed = is_followed or name in _HEADS or name == "abs" or name not in OPERATIONS
    return [tensor.clone() for tensor in tensors] if is_needed and func._schema.is_mutable else tensors


class _Operand(NamedTuple):
    """A tensor as it was before the operation, and what is known of it."""

    values: torch.Tensor
    source: torch.Tensor | None
    is_dependent: bool


class BackwardWatch(TorchDispatchMode):
    """Applies a rule inside operations in place on a view, whose derivative the graph does not show.

    So does a function of the user's own hide what runs in its backward pass; there a batch-norm is made to read right.
    Between ``enter`` and ``leave`` of such a node each operation is known to be no activation's, or is the
    derivative of an activation, or is refused.
    """

    def __init__(self, rule: ReluRule, note: Callable[[str, str], None]) -> None:
        super().__init__()
        self._rule = rule
        self._note = note
        self._inside = False
        self._clamp = ClampDerivative()

    def enter(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Begin: a pre-hook of the node."""
        self._inside, self._clamp = True, ClampDerivative()

    def leave(self, inputs: tuple[torch.Tensor, ...], gradients: tuple[torch.Tensor, ...]) -> None:
        """End: a hook of the node."""
        self._inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "native_batch_norm_backward":
            args = (unambiguous(args[0], is_last=lies_channels_last(args[1])), *args[1:])
        activation = dispatched(name.removesuffix("_backward"))
        kind, word = OPERATIONS[activation]
        # What is differentiated inside is a checkpoint's forward pass, run once more for what it saved.
        is_passing = kind in _PASSING or activation in _PLACED or torch.is_grad_enabled()
        if not self._inside or is_passing or self._clamp.takes(name, args):
            return func(*args, **kwargs)
        if name == "where" and self._clamp.x is not None and not self._clamp.may_spell_relu:
            return self._leave_clamp(self._clamp.x, args[1], func(*args, **kwargs))
        relu = relu_of_derivative(name, args)
        if relu is not None:
            self._note(relu, self._rule.name)
            return self._leave(name, args, func(*args, **kwargs))
        if name.endswith("_backward"):
            self._note(word, self._rule.treatment(word))
            gradient = args[0].clamp(min=0) if self._rule.guides(word) else args[0]
            return func(gradient, *args[1:], **kwargs)
        if self._rule.needs_every_relu and kind is not Kind.SMOOTH:
            raise _hidden(name)
        return func(*args, **kwargs)

    def _leave_clamp(self, x: torch.Tensor, g: torch.Tensor, derived: torch.Tensor) -> torch.Tensor:
        """Return what leaves a clamp, which is a ReLU if it is one from 0."""
        clamp, self._clamp = self._clamp, ClampDerivative()
        if not clamp.is_relu:
            self._note(clamp.word, self._rule.treatment(clamp.word))
            return derived
        self._note(name_of(clamp.cap), self._rule.name)
        # At a tie the framework lets the gradient pass.
        is_open = x > 0 if clamp.cap is None else (x > 0) & (x < clamp.cap)
        y = x.clamp(min=0) if clamp.cap is None else torch.minimum(x.clamp(min=0), torch.as_tensor(clamp.cap).to(x))
        values = (x, y) if self._rule.reads_values else (None, None)
        return leaving(self._rule, g, torch.where(is_open, g, 0), *values)

    def _leave(self, name: str, args: tuple[Any, ...], derived: torch.Tensor) -> torch.Tensor:
        """Return what leaves a ReLU, of which the derivative was given the input, or the output."""
        g, before = args[0], args[1] if name != "elu_backward" else args[5]
        return leaving(self._rule, g, derived, None, before.clamp(min=0) if self._rule.reads_values else None)


# Operations that a derivative can be made of without being that of an activation; and those that put values in place.
_PASSING: Final = frozenset({Kind.MOVES, Kind.LINEAR})
_PLACED: Final = OPERATIONS.of(Kind.MASKS) - {"where"}


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
    if OPERATIONS[name].word == "pad":
        return len(args) < 3 or args[2] == 0
    return any(not operand.is_dependent and not operand.values.count_nonzero() for operand in operands)


def _asks_for_infinity(name: str, args: tuple[Any, ...]) -> bool:
    """``isfinite`` and ``isinf`` are made of ``abs``, and say nothing of the sign."""
    return name in ("eq", "ne") and isinstance(args[1], float) and abs(args[1]) == float("inf")


def _is_value(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_complex(number: torch.Tensor | complex) -> bool:
    return number.is_complex() if isinstance(number, torch.Tensor) else isinstance(number, complex)


def _real(values: torch.Tensor) -> torch.Tensor:
    """Return the part that a ReLU of real values would be in."""
    return values.real if values.is_complex() else values


def _is_relu_like(y: torch.Tensor, x: torch.Tensor) -> bool:
    y, x = _real(y), _real(x)
    return is_relu_like(as_numpy(y), as_numpy(x), max(1e-3, 4 * torch.finfo(y.dtype).eps))


def _has_the_values_of_relu(y: torch.Tensor, x: torch.Tensor) -> bool:
    """Tell whether ``y`` is the ReLU of x in any order: a stack may have been moved before the maximum."""
    y, x = _real(y), _real(x)
    return y.numel() == x.numel() and torch.equal(y.flatten().sort().values, x.clamp(min=0).flatten().sort().values)


def _hidden(name: str) -> ModelError:
    return OpaqueRegionError(
        "an operation in place on a view must be linear or a known activation; "
        f"received {name}. Apply it out of place, or not to a view."
    )
