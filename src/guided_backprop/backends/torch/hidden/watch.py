"""A watched forward pass: what may hide a ReLU there is nominated, and its values are judged.

The autograd graph does not show taint: ``x + (relu(x) - x).detach()`` looks like an addition. So the operations are
watched as they are dispatched, by a mode that sees those of this thread between enter and exit and changes nothing.
"""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import compress
from math import prod
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.notes import Candidate, Choice, Ranks
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import is_plain, unreadable
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.spelling import Verdict
from guided_backprop.backends.torch.dispatch import Clock, Dispatched
from guided_backprop.backends.torch.graph.nodes import opaque_name
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched, operation, row
from guided_backprop.backends.torch.graph.relus import is_called_as_relu
from guided_backprop.backends.torch.hidden.expressions import Expressions, is_none, made_by
from guided_backprop.backends.torch.hidden.known import Known, Place, Result, Taken, shared, sign_of
from guided_backprop.backends.torch.hidden.memory import shares_memory
from guided_backprop.backends.torch.hidden.notes import Made, Note, Notes, Operand, Value, is_inside_own
from guided_backprop.backends.torch.hidden.step import Step, is_guard
from guided_backprop.backends.torch.hidden.suspect import Suspect, judged, opens_at_zero

#: What of a forward pass is watched.
Watched = Literal["details", "everything"] | None

# They take a tensor for its shape alone.
_SHAPED: Final = OPERATIONS.called("create")
_EMPTY: Final = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
_HEADS: Final = OPERATIONS.of(Kind.HEAD)
_COUNTS: Final = frozenset({"count_nonzero", "sum"})
_SUMS: Final = OPERATIONS.called("add", "sub")


class Written(NamedTuple):
    """What was written into a value that has a gradient, behind its back: by what, where, and of which node it was."""

    name: str
    line: str
    tensor: torch.Tensor
    node: Node | None

    @property
    def is_inside(self) -> bool:
        """Whether a custom function wrote it, which has given it a gradient since and is judged as a whole."""
        now = self.tensor.grad_fn
        return now is not None and now is not self.node and row(now).kind is Kind.HIDDEN


class ForwardWatch(Dispatched):
    """Watches a forward pass: what may spell a ReLU, and the logits in front of the final softmax.

    Args:
        watched: "everything", or "details" where the graph leaves nothing open but the logits, and numbers that were
            added, which is much faster.
        vouch: what the user says of operations.
        wanted: of which places the values are kept whatever they say.
        known: what earlier looks showed.

    Attributes:
        suspects: what may spell a ReLU.
        settled: those of them, by their order, that a later one is made of, which is a ReLU.
        taken: the results, by operation and number, that are taken for ReLUs.
        shifts: the numbers that were added or subtracted, by their node's place in time.
        relus: what was taken for a ReLU by what it was called with, and where, by their node's place in time.
        behind: what wrote into a value that has a gradient behind its back, and where.
        unseen: the nodes of values that were made out of sight, as in another thread.
        lost: how values were compared by what lost its gradient, where that meets one; None where it does not.
        partly: what the numbers in it make a ReLU in some places, and where, by their node's place in time.
        expressions: how values are made of each other.
    """

    def __init__(
        self,
        watched: Watched = "everything",
        vouch: Vouch = MappingProxyType({}),
        *,
        wanted: Set[Place] = frozenset(),
        known: Known | None = None,
    ) -> None:
        super().__init__()
        self._vouch = vouch
        self._watched, self._wanted, self.known = watched, wanted, known or Known()
        self.taken: dict[Result, Taken] = {}
        self.suspects: list[Suspect] = []
        self.settled: set[int] = set()
        self.shifts: dict[int, float] = {}
        self.relus: dict[int, tuple[str, str]] = {}
        self.behind: list[Written] = []
        self.unseen = set[Node]()
        self.lost: Ranks | None = None
        self.partly: dict[int, tuple[str, str]] = {}
        self.expressions = Expressions()
        self._count = 0
        self._clock = Clock()
        # A number of the images that the model may know in Python, where a row is to end.
        self._read: Operand | None = None
        self._notes = Notes()
        # The final softmax is among the last ones; those of attention would fill the memory.
        self._heads: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=4)

    def follow(self, images: torch.Tensor) -> None:
        """Say what the forward pass starts from: only what depends on it can be a ReLU of it."""
        self._notes.put(images, Note(made=Made(tuple(images.shape))))
        node = images.grad_fn
        self._notes.put_active(images, None if node is None else node._sequence_nr())

    @property
    def values(self) -> dict[Place, tuple[NumpyArray, NumpyArray]]:
        """The results that were kept, each with what it may be a ReLU of."""
        return {suspect.place: suspect.values for suspect in self.suspects}

    def logits_of(self, probabilities: torch.Tensor) -> torch.Tensor | None:
        """Return the input of the last softmax or sigmoid whose result is ``probabilities``."""
        matches = (logits for logits, result in reversed(self._heads) if torch.equal(result, probabilities))
        return next(matches, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._clock.begin(func)
        try:
            return self._seen(func, args, kwargs or {})
        finally:
            self._clock.end()

    def _seen(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, and look at it."""
        name = dispatched(func.overloadpacket.__name__)
        if name in _SUMS:
            self._note_shift(args)
        if self._watched == "details" and name not in _HEADS:
            return func(*args, **kwargs)
        self._count += 1
        tensors = [*_tensors_in(args), *_tensors_in(kwargs)]
        self._note_vouched(tensors)
        notes = [self._notes.signed(tensor, self.shifts) for tensor in tensors]
        self._note_unseen(tensors)
        is_constant = name in _SHAPED or _leaves_bias(name, args)
        is_dependent = self._watched == "everything" and not is_constant and any(note is not None for note in notes)
        is_kept = func._schema.is_mutable and (is_dependent or name in _HEADS)
        operands = [
            self._notes.operand(tensor, note, is_kept=is_kept) for tensor, note in zip(tensors, notes, strict=True)
        ]
        behind = self._written_behind(name, args, tensors) if is_kept and is_dependent else []
        result = func(*args, **kwargs)
        changed = _tensors_in(args[:1]) if func._schema.is_mutable else []
        # What works in place on a list gives nothing.
        results = _tensors_in(result) or changed
        self._note_behind(name, operands, tensors, behind)
        self._note_memory(name, changed, results)
        if name in _HEADS and operands:
            self._heads.append((operands[0].tensor.detach(), results[0].detach()))
        if is_dependent:
            try:
                self._look(func, name, args, kwargs, tensors=tensors, operands=operands, results=results)
            except Exception as error:
                raise unreadable(name, error) from error
        return result

    def _note_vouched(self, tensors: Sequence[torch.Tensor]) -> None:
        """Note what comes of custom functions that are vouched for: nothing of what is inside of them counts."""
        for tensor in tensors if self._vouch else ():
            node = tensor.grad_fn
            if isinstance(node, torch.autograd.function.BackwardCFunction) and opaque_name(node) in self._vouch:
                self._notes.put(tensor, Note())

    def _note_unseen(self, tensors: Sequence[torch.Tensor]) -> None:
        self.unseen |= {node for one in tensors if (node := one.grad_fn) is not None and self._notes.is_unseen(one)}

    def _written_behind(self, name: str, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[bool]:
        """Tell where a write would change a value that has a gradient, while its edge stays as it was."""
        if is_guard(name, args, self._notes.of(tensors[0])):
            return []
        # What is optimised runs in functions of this library's, which give their results a gradient.
        is_off = not (torch.is_grad_enabled() or is_inside_own())
        return [
            (is_off or (tensor.grad_fn is None and not tensor.requires_grad)) and self._notes.is_active(tensor)
            for tensor in tensors
        ]

    def _note_behind(
        self, name: str, operands: Sequence[Operand], tensors: Sequence[torch.Tensor], behind: Sequence[bool]
    ) -> None:
        if any(behind) and _writes(OPERATIONS[name].kind, operands, tensors, behind):
            self.behind += [Written(name, line_of_model(), one, one.grad_fn) for one in compress(tensors, behind)]

    def _note_active(self, tensors: Sequence[torch.Tensor]) -> None:
        """Note the memory of what has a gradient; what an operation of PyTorch gave lay there from the beginning."""
        for tensor in tensors:
            node = tensor.grad_fn
            if node is not None and operation(node) != node.name() and self._notes.is_elsewhere(tensor, node):
                self.behind.append(Written(operation(node), line_of_model(), tensor, node))
            self._notes.put_active(tensor)

    def _note_memory(self, name: str, changed: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        """Note what was written in place, and what was given memory that nothing was written to."""
        for tensor in changed:
            self._notes.put_written(tensor)
        for tensor in results if name in _EMPTY else ():
            self._notes.put_unwritten(tensor)
        for tensor in results:
            self._notes.put_seen(tensor)

    def _look(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        *,
        tensors: list[torch.Tensor],
        operands: list[Operand],
        results: list[torch.Tensor],
    ) -> None:
        """Judge what an operation gave, if it is nominated, and note what is known of it."""
        step = Step(
            name,
            args,
            named,
            operands,
            place=self._count,
            is_relu=is_called_as_relu(name, args, self._depends),
            read=self._read,
        )
        self._note_read(name, operands, results)
        self.lost = step.lost(self.lost)
        if step.is_relu:
            self.relus[self._clock.number] = name, line_of_model()
        is_view = func._schema.is_mutable and tensors[0]._is_view()
        self._note_active([tensor for tensor, one in zip(tensors, operands, strict=True) if one.is_active])
        # Operators of others run in functions of their own, without a gradient, and are given one afterwards.
        has_gradient = torch.is_grad_enabled() or func.namespace != "aten"
        has_node = step.passes or (has_gradient and any(tensor.requires_grad for tensor in tensors))
        for tensor in results if has_node else ():
            self._notes.put_active(tensor, self._clock.made)
        for output, result in enumerate(results):
            is_shared = not func._schema.is_mutable and any(shares_memory(result, tensor) for tensor in tensors)
            is_piece = is_shared and self._notes.is_unwritten(result)
            step.result = result
            step.made = made_by(name, args, named, operands, result) if len(results) == 1 else Made(tuple(result.shape))
            falling = step.falling if is_piece else self._judged(step, result, output, is_on_view=is_view)
            # A view is what it is a view of, unless it alone is a gate, or an image tells where it ends.
            if not is_shared or isinstance(falling, Note) or falling - step.falling or step.is_ended:
                note = self.expressions.noted(step.noted(result, falling), step.made)
                self._notes.put(result, note, is_alone=is_shared)

    def _note_read(self, name: str, operands: Sequence[Operand], results: Sequence[torch.Tensor]) -> None:
        """Note a number that the model may read: by ``item``, or without a word where it counts values."""
        is_count = name in _COUNTS and any(one.numel() == 1 and one.dtype == torch.int64 for one in results)
        if self._read is None and (is_count or name == "local_scalar_dense"):
            self._read = next((one for one in operands if one.note is not None), None)

    def _depends(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and self._notes.of(tensor) is not None

    def _note_shift(self, args: tuple[Any, ...]) -> None:
        """Note a number that is added: an operation is dispatched right after its node was made.

        A tensor of no axes is one as well. It could depend on the images, as no row of a batch does.
        """
        numbers = [number for number in args if not isinstance(number, torch.Tensor) or number.ndim == 0]
        if len(numbers) == 1 and not _is_complex(numbers[0]):
            # To make a float of what requires a gradient is warned of.
            number = numbers[0].item() if isinstance(numbers[0], torch.Tensor) else numbers[0]
            self.shifts.setdefault(self._clock.number, float(number))

    def _judged(self, step: Step, result: torch.Tensor, output: int, *, is_on_view: bool) -> frozenset[int] | Note:
        """Judge a result that is nominated; return the gates that it falls by, or a note on it if it is a ReLU."""
        falling = step.falling
        is_direct = step.nominates(result.numel())
        if is_direct is None or not _is_real(result):
            return falling
        values = list(step.values(result, is_direct=is_direct))
        suspects = list(self._suspects(step, values, result, output, is_direct=is_direct, is_on_view=is_on_view))
        # What is none of one value by other images may be one of another value.
        convex = (suspect for suspect in suspects if suspect.judgement.verdict is Verdict.CONVEX)
        rising = [suspect for suspect in convex if suspect.place not in self.known.refuted]
        kept = [one for one in suspects if one.place in self._wanted or one in (rising or suspects)]
        if kept and self._is_vouched(step, kept[0]):
            # It ends what came of the values in front of it, as a ReLU does that the rule acts on: on other images too.
            self.taken[self._count, output] = Taken(Sign.UNKNOWN)
            return Note()
        self.suspects += kept
        signs = {suspect.place: sign_of(suspect.judgement, suspect.values[0]) for suspect in rising}
        taken = self.known.told((self._count, output), signs)
        if taken is None:
            return falling | self._fallen(kept)
        self.taken[self._count, output] = taken
        risen = [values[order] for order in taken.of if order < len(values)]
        # It stands for the gates that it falls by, but for those in front of what it is one of.
        self.settled |= falling - shared(x.falling for x in risen or [suspect.x for suspect in suspects])
        return Note(sign=taken.sign, relus=self._opened(step, result, risen))

    def _opened(self, step: Step, result: torch.Tensor, risen: Sequence[Value]) -> tuple[Candidate[Value], ...]:
        """Return what a result is a ReLU of that is one by its values: of these, and of what they are multiples of."""
        opened = [Candidate(x, x.tensor.numel(), is_off=not opens_at_zero(result, x.tensor)) for x in risen]
        return step.opened((x, self._notes.of(x.ref.tensor)) for x in opened)

    def _fallen(self, kept: Sequence[Suspect]) -> frozenset[int]:
        """Return those of the last suspects, by their order, of which a ReLU may be made, whatever they look like."""
        if not any(suspect.is_falling for suspect in kept):
            return frozenset()
        may = [suspect.x.choice is not Choice.BEHIND and suspect.place not in self.known.refuted for suspect in kept]
        return frozenset(compress(range(len(self.suspects) - len(kept), len(self.suspects)), may))

    def _is_vouched(self, step: Step, suspect: Suspect) -> bool:
        if step.row.kind is Kind.UNKNOWN and step.name in self._vouch:
            return True
        return any(is_plain(name, self._vouch, "torch.relu") for name in (suspect.name, suspect.named))

    def _suspects(
        self, step: Step, values: list[Value], result: torch.Tensor, output: int, *, is_direct: bool, is_on_view: bool
    ) -> Iterator[Suspect]:
        """Yield what the result may be a ReLU of, where neither its values nor the numbers in it contradict that."""
        curves = self.expressions.curves(step.made, self._clock.number, values)
        if curves.is_partly_relu(takes_concave=step.row.kind is not Kind.CLIP):
            self.partly[self._clock.number] = step.name, line_of_model()
        for candidate, x in enumerate(values):
            if is_none(curves, x):
                continue
            place = self._count, output, candidate
            pair = as_numpy(result), as_numpy(x.tensor)
            judgement = judged(x, [pair], is_of_two=step.is_of_two)
            is_constant = bool((pair[0] == pair[0].flat[0]).all())
            is_told = (
                judgement.verdict is Verdict.UNSETTLED
                and bool(x.sign)
                and not (is_constant or x.choice is not Choice.NONE)
            )
            is_sum = x.is_beside and x.choice is Choice.NONE and not x.sign
            if is_sum or place in self._wanted or not (judgement.verdict is Verdict.NONE or is_told):
                is_made = judgement.verdict is Verdict.UNSETTLED and self.expressions.is_made(step.made, x)
                flags = is_direct, step.adds_up, step.is_of_two, is_on_view, is_made
                yield Suspect(place, step.name, line_of_model(), self._clock.number, x, pair, judgement, *flags)


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    """Return the tensors that an operation was given or gave, which stand in tuples, lists and dictionaries alone."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors_in(part)]


def _writes(kind: Kind, operands: Sequence[Operand], tensors: Sequence[torch.Tensor], which: Sequence[bool]) -> bool:
    """Tell whether an operation changed some tensors by what depends on the images, other than by a multiple."""
    dependent = sum(operand.note is not None for operand in operands)
    if dependent == 1 and kind in (Kind.LINEAR, Kind.MOVES, Kind.MASKS):
        return False
    return any(
        not (operand.tensor.shape == tensor.shape and torch.equal(operand.tensor, tensor))
        for operand, tensor in compress(zip(operands, tensors, strict=True), which)
    )


def _leaves_bias(name: str, args: Sequence[Any]) -> bool:
    """Tell whether a norm takes each value away from itself, as of a row of one: only its bias is left."""
    if name == "native_group_norm":
        *_, channels, positions, groups, _ = args
        return bool(channels * positions == groups)
    return name == "native_layer_norm" and prod(args[1]) == 1


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_floating_point() and tensor.numel() > 0


def _is_complex(number: torch.Tensor | complex) -> bool:
    return number.is_complex() if isinstance(number, torch.Tensor) else isinstance(number, complex)


def line_of_model() -> str:
    """Return which line of the model asked for this, the last one that is neither of PyTorch nor of this library."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in ("torch", "guided_backprop"):
            return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
