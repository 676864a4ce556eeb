"""A watched forward pass: what may hide a ReLU there is nominated, and its values are judged.

The autograd graph does not show taint: ``x + (relu(x) - x).detach()`` looks like an addition. So the operations are
watched as they are dispatched, by a mode that sees those of this thread between enter and exit and changes nothing.
"""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import unreadable
from guided_backprop.backends.spelling import Judgement, Verdict, is_multiple, judge
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched
from guided_backprop.backends.torch.graph.relus import is_called_as_relu
from guided_backprop.backends.torch.notes import Note, Notes, Operand, Value, merged, sign_of

#: What of a forward pass is watched.
Watched = Literal["details", "everything"] | None
#: Which value of which operation, and which of those that it may be a ReLU of.
Place = tuple[int, int, int]

# They take a tensor for its shape alone.
_SHAPED: Final = OPERATIONS.called("create")
_HEADS: Final = OPERATIONS.of(Kind.HEAD)
_SUMS: Final = OPERATIONS.called("add", "sub")
# The magnitude of a value, or its root: of x and this a ReLU can be made.
_MAGNITUDES: Final = OPERATIONS.called("abs", "hypot", "norm", "pow", "sqrt", "rsqrt", "atan2")
# They are what their row says, whatever they are given.
_KNOWN: Final = OPERATIONS.of(Kind.SMOOTH, Kind.HEAD, Kind.NORM, Kind.RELU, Kind.RANDOM, Kind.HIDDEN)
# Curves of one value, of which it is known that they are no gates.
_CURVES: Final = OPERATIONS.called("abs", "hardshrink", "huber_loss", "modulo", "norm", "renorm", "softshrink")
_CHOICES: Final = frozenset({"max", "max_pool", "min", "sort"})
_DETACHES: Final = OPERATIONS.called("stop_gradient")
# They choose among values that come to one place.
_REDUCES: Final = frozenset({"index_reduce", "scatter_reduce"})
_GATHERS: Final = OPERATIONS.called("gather")
# Value by value: with a constant they bend nothing.
_POINTWISE: Final = OPERATIONS.called("add", "sub", "rsub", "mul", "div", "neg", "lerp", "addcmul")
# They compare values with each other, and not with a constant.
_RANKS: Final = OPERATIONS.called("argmax", "argmin", "argsort", "unique", "sort", "max", "min", "max_pool")


@dataclass(frozen=True)
class Suspect:
    """A result that may be a ReLU of something.

    Attributes:
        place: where it is met, in the order of the operations.
        name: the operation.
        line: the line of the model's code that asked for it.
        number: the place in time of its node in the autograd graph.
        x: what it may be a ReLU of.
        values: the result, and x.
        judgement: what they say.
        is_direct: whether something without a gradient, or a choice, is met by this very operation; or several values
            add up to a multiple of x.
        is_by_rank: whether all that chose compared values with each other.
        is_of_two: whether it is the larger or smaller of two values that depend on the images.
        is_on_view: whether it was written into a part of something, so that the graph does not show it.
    """

    place: Place
    name: str
    line: str
    number: int
    x: Value
    values: tuple[NumpyArray, NumpyArray]
    judgement: Judgement
    is_direct: bool
    is_by_rank: bool
    is_of_two: bool
    is_on_view: bool


class ForwardWatch(TorchDispatchMode):
    """Watches a forward pass: what may spell a ReLU, and the logits in front of the final softmax.

    Args:
        watched: "everything", or "details" where the graph leaves nothing open but the logits, and numbers that were
            added, which is much faster.
        wanted: of which places the values are kept whatever they say.
        refuted: of which operations other images showed that they are no ReLUs.
        raised: of which operations they showed that they are.

    Attributes:
        suspects: what may spell a ReLU.
        settled: those of them, by their order, that a later one is made of, which is a ReLU.
        shifts: the numbers that were added or subtracted, by their node's place in time.
    """

    def __init__(
        self,
        watched: Watched = "everything",
        *,
        wanted: Set[Place] = frozenset(),
        refuted: Set[int] = frozenset(),
        raised: Set[int] = frozenset(),
    ) -> None:
        super().__init__()
        self._watched, self._wanted, self._refuted, self.raised = watched, wanted, refuted, raised
        self.suspects: list[Suspect] = []
        self.settled: set[int] = set()
        self.shifts: dict[int, float] = {}
        self._count = 0
        self._notes = Notes()
        # The final softmax is among the last ones; those of attention would fill the memory.
        self._heads: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=4)

    def follow(self, images: torch.Tensor) -> None:
        """Say what the forward pass starts from: only what depends on it can be a ReLU of it."""
        self._notes.put(images, Note())

    @property
    def values(self) -> dict[Place, tuple[NumpyArray, NumpyArray]]:
        """The results that were kept, each with what it may be a ReLU of."""
        return {suspect.place: suspect.values for suspect in self.suspects}

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
        self._count += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        notes = [self._notes.of(tensor) for tensor in tensors]
        is_dependent = self._watched == "everything" and name not in _SHAPED and any(note is not None for note in notes)
        is_kept = func._schema.is_mutable and (is_dependent or name in _HEADS)
        operands = [Operand(tensor, note, is_kept=is_kept) for tensor, note in zip(tensors, notes, strict=True)]
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if name in _HEADS and operands:
            self._heads.append((operands[0].tensor.detach(), results[0].detach()))
        if is_dependent:
            try:
                self._look(func, name, args, tensors=tensors, operands=operands, results=results)
            except Exception as error:
                raise unreadable(name, error) from error
        return result

    def _look(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        *,
        tensors: list[torch.Tensor],
        operands: list[Operand],
        results: list[torch.Tensor],
    ) -> None:
        """Judge what an operation gave, if it is nominated, and note what is known of it."""
        step = _Step(name, args, operands, is_called_as_relu(name, args, self._depends))
        is_view = func._schema.is_mutable and tensors[0]._is_view()
        for output, each in enumerate(results):
            is_shared = not func._schema.is_mutable and any(_is_shared(each, tensor) for tensor in tensors)
            falling = self._judged(step, each, output, is_on_view=is_view)
            # A view is what it is a view of, unless it alone is a gate.
            if not is_shared or falling is None or falling - step.falling:
                self._notes.put(each, step.note(falling), is_alone=is_shared)

    def _depends(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and self._notes.of(tensor) is not None

    def _note_shift(self, args: tuple[Any, ...]) -> None:
        """Note a number that is added: an operation is dispatched right after its node was made.

        A tensor of no axes is one as well. It could depend on the images, as no row of a batch does.
        """
        numbers = [number for number in args if not isinstance(number, torch.Tensor) or number.ndim == 0]
        if len(numbers) == 1 and not _is_complex(numbers[0]):
            self.shifts.setdefault(_last_number(), float(numbers[0]))

    def _judged(self, step: "_Step", result: torch.Tensor, output: int, *, is_on_view: bool) -> frozenset[int] | None:
        """Judge a result that is nominated; return the gates that it falls by, or None if it is a ReLU itself."""
        falling = step.falling
        is_direct = step.nominates(result)
        is_real = result.layout is torch.strided and result.is_floating_point() and result.numel() > 0
        if is_direct is None or not is_real or self._count in self._refuted:
            return falling
        found: list[Suspect] = []
        for candidate, x in enumerate(step.candidates(result)):
            place = self._count, output, candidate
            values = as_numpy(result), as_numpy(x.tensor)
            rounding = max(1e-3, 4 * torch.finfo(result.dtype).eps)
            judgement = judge(*values, rounding, is_by_rank=step.is_by_rank)
            is_constant = bool((values[0] == values[0].flat[0]).all())
            is_told = judgement.verdict is Verdict.UNSETTLED and x.sign != 0 and not is_constant
            # The larger of two that both depend on the images may be 0 in places, and is no ReLU for that.
            is_told |= step.is_of_two and judgement.verdict is Verdict.PARTIAL
            if place not in self._wanted and (judgement.verdict is Verdict.NONE or is_told):
                continue
            found.append(
                Suspect(
                    place,
                    step.name,
                    _line(),
                    _last_number(),
                    x,
                    values,
                    judgement,
                    is_direct=is_direct or (step.adds_up and is_multiple(*values)),
                    is_by_rank=step.is_by_rank,
                    is_of_two=step.is_of_two,
                    is_on_view=is_on_view,
                )
            )
        rising = [suspect for suspect in found if suspect.judgement.verdict is Verdict.CONVEX]
        kept = [each for each in found if each in rising or not rising or each.place in self._wanted]
        first = len(self.suspects)
        self.suspects += kept
        if rising or self._count in self.raised:
            self.settled |= falling
            return None
        # Whatever it looks like, of this a ReLU may be made, which then stands for both.
        return falling.union(range(first, len(self.suspects)))


class _Step:
    """One operation, with what it was given."""

    def __init__(self, name: str, args: tuple[Any, ...], operands: list[Operand], is_relu: bool) -> None:
        self.name, self._args, self._operands, self._is_relu = name, args, operands, is_relu
        self._kind, self._word = OPERATIONS[name]
        self.dependent = [operand for operand in operands if operand.note is not None]
        self._tainted = [operand for operand in self.dependent if operand.is_tainted]
        self._active = [operand for operand in self.dependent if operand.is_active]
        # What is written over is not read: it may be memory that nothing was written to before.
        self._read = operands[1:] if name == "copy" and len(operands) > 1 else operands
        is_passing = self._kind is not Kind.COMPARES and name not in _DETACHES
        passes = is_passing and bool(self._active) and torch.is_grad_enabled()
        self._is_choice = self._kind is Kind.CHOOSES or name in _REDUCES
        self._is_start = self._is_choice or self._kind is Kind.CLIP or name in _MAGNITUDES or not passes
        self._passes = passes
        self.is_by_rank = self._ranks()
        #: The gates that what was given falls by.
        self.falling = frozenset[int]().union(*(each.note.falling for each in self.dependent if each.note))

    @property
    def is_of_two(self) -> bool:
        """Whether it is the larger or smaller of two values that depend on the images."""
        return self._kind is Kind.CLIP and len(self._active) > 1

    @property
    def adds_up(self) -> bool:
        """Whether its result is made of several values that depend on the images, and none of them as it was."""
        return len(self.dependent) > 1 and self._kind is not Kind.MOVES

    def _ranks(self) -> bool:
        """Tell whether what chooses here compared values of the images with each other, and with no constant."""
        masks = [operand for operand in self.dependent if operand.is_mask]
        if self._is_start and self._active:
            # A stack with constants is compared with those.
            is_own = self.name in _RANKS or (self._kind is Kind.COMPARES and len(self.dependent) > 1)
            if not is_own or any(operand.note.parts for operand in self.dependent if operand.note):
                return False
        elif not masks:
            masks = self._tainted
        return all(operand.note.is_by_rank and operand.note.is_tainted for operand in masks if operand.note)

    def nominates(self, result: torch.Tensor) -> bool | None:
        """Return None if the result cannot be a ReLU, else whether a choice or taint is met right here."""
        if not self._passes or self._is_relu or self.name in _KNOWN - _MAGNITUDES:
            return None
        if self.name in ("copy", "clone"):
            # It is what it is a copy of.
            return None
        masks = any(operand.is_mask for operand in self.dependent)
        if self._word in _CHOICES and not any(operand.note.parts for operand in self.dependent if operand.note):
            # One of values that depend on the images, none of which was put there: that zeroes none of them.
            return False if self._tainted else None
        if self._is_choice or self._kind is Kind.UNKNOWN:
            return None if self.name in _CURVES and not self._tainted else True
        if self._kind is Kind.CLIP:
            return self._bounds()
        if len(self.dependent) > 1:
            return masks if self._tainted else None
        if not self._tainted or self.name in _MAGNITUDES:
            return None
        return self._follows(result)

    def _bounds(self) -> bool | None:
        """Say it of a bound: by numbers that are not 0 it is what it is; by 0 it falls where a ReLU rises."""
        if len(self.dependent) > 1:
            return any(operand.is_mask for operand in self.dependent)
        tensors = [operand.tensor for operand in self._operands if operand.note is None]
        has_zero = any(bool((tensor == 0).any()) for tensor in tensors)
        return True if has_zero or 0 in [arg for arg in self._args if isinstance(arg, (int, float))] else None

    def _follows(self, result: torch.Tensor) -> bool | None:
        """Say it of what is made of one tainted value and constants: sums, and what leaves values out."""
        (operand,) = self.dependent
        note = operand.note
        if note is None or (note.is_clipped and not note.falling):
            return None
        if note.falling:
            return False
        is_mixing = self._kind is Kind.LINEAR and self.name not in _POINTWISE
        return False if is_mixing or result.numel() != operand.tensor.numel() else None

    def candidates(self, result: torch.Tensor) -> Iterator[Value]:
        """Yield what the result may be a ReLU of: as many values, with a gradient, that are as they were."""
        seen = set()
        for value in self._all_candidates():
            key = (value.tensor.data_ptr(), value.version, value.tensor.shape)
            is_fit = value.tensor.numel() == result.numel() and value.tensor.is_floating_point()
            if is_fit and value.edge is not None and value.is_as_it_was and key not in seen:
                seen.add(key)
                yield value

    def _all_candidates(self) -> Iterator[Value]:
        for operand in (each for each in self._read if each.note is not None):
            # To leave values out of something, or to put them in order, zeroes none of them.
            if operand.value is not None and self.name not in _GATHERS and self._word != "sort":
                yield operand.value
            yield from () if operand.note is None else operand.note.parts
        for operand in self._tainted:
            yield from () if operand.note is None else operand.note.sources

    def note(self, falling: frozenset[int] | None) -> Note:
        """Return what is known of the result; ``falling`` is None if it is a ReLU."""
        sign = sign_of(self.name, self._args, self._operands)
        if falling is None or (self._is_relu and not self._tainted):
            # What the rule acts on ends the taint, but not what came before it.
            return Note(sign=1 if self._is_relu else 0)
        own = [operand.value for operand in self._read if operand.value is not None]
        parts = [part for operand in self._read if operand.note for part in operand.note.parts]
        is_moved = self._kind is Kind.MOVES or self.name in _GATHERS
        # The largest of values that depend on the images, none of which was put there, is one of them.
        is_bound = self._kind is Kind.CLIP or (self._word == "max_pool" and not parts)
        is_clipped = is_bound or not self._is_start
        return Note(
            is_tainted=self._is_start or bool(self._tainted),
            is_clipped=is_clipped
            and all(each.note.is_clipped and not each.is_mask for each in self._tainted if each.note),
            is_by_rank=self.is_by_rank,
            sign=sign,
            parts=tuple(own + parts) if is_moved else (),
            sources=merged(self.dependent, *(own + parts if self._is_start else ())),
            falling=falling,
        )


def _is_shared(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    is_strided = result.layout is torch.strided and tensor.layout is torch.strided
    return is_strided and result.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def _is_complex(number: torch.Tensor | complex) -> bool:
    return number.is_complex() if isinstance(number, torch.Tensor) else isinstance(number, complex)


def _last_number() -> int:
    """Return the place in time of the last node: an operation is dispatched right after its node was made."""
    return torch._C._autograd._get_sequence_nr() - 1


def _line() -> str:
    """Return which line of the model asked for this, the last one that is neither of PyTorch nor of this library."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in ("torch", "guided_backprop"):
            return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
