"""A program, shown to nomination.py step by step: which of its values may hide a ReLU, before anything is run.

Here is what JAX's programs have of their own: blocks that loops, branches and custom functions hold, activations of
several steps, and which candidates a gradient reaches. Where nothing is nominated nothing is run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_backprop.backends import nomination, rows
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.curves import Curves, is_partly_relu
from guided_backprop.backends.jax.graph.axes import emptied_by, interleaved
from guided_backprop.backends.jax.graph.calls import loop_sizes
from guided_backprop.backends.jax.graph.composites import Graph
from guided_backprop.backends.jax.graph.program import CUSTOM, REBUILT, Block, Gate, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts, custom_name, place_of
from guided_backprop.backends.jax.hidden.discarded import Discarded
from guided_backprop.backends.jax.hidden.signs import Signs, shift_of
from guided_backprop.backends.jax.hidden.unrounded import is_rounding
from guided_backprop.backends.notes import Candidate, Choice, Note, Operand, Ranks, common, first_of
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.patterns import MOVES
from guided_backprop.backends.refusals import is_plain

#: They say themselves that they are the negative of a ReLU, if they are.
EXPLICIT = frozenset({"clamp", "minimum"})
#: What has no value, or no derivative, for some numbers.
_UNDEFINED = frozenset({"log", "pow", "rsqrt", "sqrt"})


class Nominee(NamedTuple):
    """A value that may be a ReLU of another.

    Attributes:
        step: what makes it.
        block: where.
        candidates: what it may be the ReLU of, in the same block: as many numbers, or it has several of each.
        bounded: those of them that nothing but bounds which are not 0 lies behind: where these close is no ReLU.
        ranks: how values were compared by what chose between each of these and it.
        is_of_two: whether it is the larger or smaller of two values that depend on the images.
        choices: what it was chosen from, and how: numbers that may be constants, or two values by their difference.
        is_moved: whether it is nothing but values that were made before, put beside each other.
        is_partly: whether the numbers in it make a ReLU of it in some places, however few values tell of these.
        is_of_parts: whether it adds up what was put together before.
    """

    step: Step
    block: Block
    candidates: tuple[Value, ...]
    bounded: frozenset[Value]
    ranks: Mapping[Value, Ranks]
    is_of_two: bool
    choices: tuple[Candidate[Value], ...]
    is_moved: bool = False
    is_partly: bool = False
    is_of_parts: bool = False

    @property
    def compared(self) -> list[Value]:
        """All values that it is compared with."""
        return [*self.candidates, *(value for choice in self.choices for value in choice.values)]


class Taint:
    """What is tainted in a program.

    Args:
        facts: what is known of its values.
        vouch: the places that are excused.
        ended: values that are guided ReLUs, by the judgement: none passes their taint on that is one of all of x.

    Attributes:
        nominees: what has to be judged, in the order in which it is computed.
        is_by_numbers: whether something would have to be, were the numbers of constants others.
    """

    def __init__(self, facts: Facts, vouch: Vouch, ended: Mapping[Value, Gate] | None = None) -> None:
        self.nominees: dict[Value, Nominee] = {}
        self.is_by_numbers = False
        self._facts, self._vouch, self._ended = facts, vouch, ended or {}
        self._notes: dict[Value, Note[Value]] = {}
        self._order: dict[Value, int] = {}
        self._signs, self._discarded, self._graph = Signs(facts), Discarded(facts), Graph(facts)

    def visit(self, block: Block) -> None:
        """Follow the taint through a block, in the order in which its steps run."""
        self._enlist(block.inputs)
        for step in block.steps:
            self._enlist(step.outputs)
            # What gives nothing is called to say something.
            if step.outputs and any(value.depends for value in step.inputs):
                self._follow(step, block)

    def _enlist(self, values: Sequence[Value]) -> None:
        for value in values:
            self._order.setdefault(value, len(self._order))

    def note(self, value: Value) -> Note[Value] | None:
        """Return what is known of a value; None if it does not depend on the images."""
        return self._notes.get(value, Note()) if value.depends else None

    def is_vouched(self, step: Step) -> bool:
        """Tell whether somebody says of a step that it is none."""
        names = (custom_name(step), step.name, place_of(step)) if self._vouch else ()
        return any(is_plain(name, self._vouch, "jax.nn.relu") for name in names)

    def _follow(self, step: Step, block: Block) -> None:
        held = self._visit_inside(step)
        if step.relu is None and self.is_vouched(step):
            return
        kept = self._discarded.kept(step)
        shown, is_excused = self._shown(step, held, step.inputs if kept is None else [kept]), self._is_excused(step)
        for number, value in enumerate(step.outputs):
            gate = self._ended.get(value)
            if not value.depends or (gate is not None and gate.is_full):
                continue
            is_met = value.carries and kept is None and shown.nominates(_size(value)) is not None
            is_nominee = is_met and value.is_live and not is_excused and gate is None
            curves = self._nominate(value, shown, step, block) if is_nominee else None
            note = shown.note(_size(value), is_falling=is_met)
            note = note if curves is None else note.without(curves.is_told)
            if value in self.nominees and self._discarded.fills(step):
                note = note.given(Candidate(x, _size(x)) for x in self.nominees[value].candidates)
            note = replace(note, origins=self._origins(step, number)) if step.name in REBUILT else note
            self._notes[value] = _with_elsewhere(note, self._results(step, number))

    def _shown(self, step: Step, held: Sequence[Note[Value]], inputs: Sequence[Value]) -> nomination.Step[Value]:
        """Return a step as nomination.py asks, of what counts of its inputs; an activation is one of its input."""
        row, operands = Operation(step.kind, step.word), [self._operand(value) for value in inputs]
        if parts := self._interleaved(step):
            row, operands = Operation(Kind.MOVES, "concatenate"), [self._operand(value) for value in parts]
        elif step.is_switch or step.name == "custom_linear_solve":
            # The user's own solver may hold a mask.
            row = Operation(Kind.UNKNOWN, step.word)
        elif step.activation is not None:
            row, operands = nomination.activation(step.activation.name), [self._operand(step.activation.x)]
            if step.activation.slopes is not None:
                operands.append(Operand(has_zeros=partial(self.is_partly_relu, step)))
        passes = any(value.carries for value in step.outputs) and any(operand.is_active for operand in operands)
        return nomination.Step(
            row,
            operands,
            passes,
            is_relu=step.relu is not None,
            held=held,
            exponent=step.exponent,
            is_shifted=bool(shift_of(step)),
            place=id(step),
            has_pole=self._has_pole(step),
            empty=emptied_by(step),
            is_rounded=is_rounding(step),
        )

    def _interleaved(self, step: Step) -> list[Value]:
        """Return the values that a sum puts beside each other: each is padded with zeros where the other one is."""
        pads = interleaved(step)
        return [pad.inputs[0] for pad in pads] if all(self._facts.is_zero(pad.inputs[1]) for pad in pads) else []

    def _has_pole(self, step: Step) -> bool:
        divisor = step.inputs[-1] if step.word == "div" else None
        return divisor is not None and divisor.depends and not self._signs.of(divisor)

    def _operand(self, value: Value) -> Operand[Value]:
        is_number = _is_floating(value)
        return Operand(
            self.note(value),
            value if value.carries and is_number else None,
            value.carries,
            is_number,
            _size(value),
            is_one_number=partial(self._facts.is_zero, value),
            has_zeros=partial(self._has_zeros, value, is_unknown_one=True),
            is_sparse=partial(self._has_zeros, value, is_unknown_one=False),
            value=value if is_number else None,
        )

    def _has_zeros(self, value: Value, *, is_unknown_one: bool) -> bool:
        """Tell of a constant whether there are zeros in it; if nobody knows, it is as it is said."""
        known = self._facts.known(value)
        # As NumPy's: of JAX's own NumPy asks JAX, which compiles the question for each shape.
        return is_unknown_one if known is None else not bool(np.all(np.asarray(known)))

    def is_partly_relu(self, step: Step) -> bool:
        """Tell whether a step ends a PReLU some of whose slopes are as 0; of what a loop is given all are looked at."""
        slopes = None if step.activation is None else step.activation.slopes
        if slopes is None:
            return False
        array = slopes.array
        while array.step is not None and array.step.word in MOVES:
            array = array.step.inputs[0]
        known = self._facts.known(array.stack or array)
        return known is not None and is_partly_relu(np.asarray(known), slopes.factor)

    def _is_excused(self, step: Step) -> bool:
        """Tell whether it is known what a step is, whatever is made of its results."""
        return step.is_inside or step.is_part or _is_branch(step) or self._is_nan_guard(step)

    def _is_nan_guard(self, step: Step) -> bool:
        """Tell ``where(x > 0, x, 1)`` under a root or a logarithm: what is made of these is judged."""
        uses = step.outputs[0].uses
        is_guard = step.word == "where" and any(map(self._facts.is_uniform, step.inputs[1:]))
        return is_guard and bool(uses) and all(map(_is_undefined, uses))

    def _visit_inside(self, step: Step) -> list[Note[Value]]:
        """Follow the taint through what a step holds; return what is known of what comes out of that."""
        if step.name in CUSTOM and step.blocks and step.jitted is None:
            # What a custom function computes is seen, and not what its derivative is: it is judged as a whole.
            inside = Taint(self._facts, self._vouch)
            inside.visit(step.blocks[0])
            notes = [note for value in step.blocks[0].outputs if (note := inside.note(value)) is not None]
            self.is_by_numbers |= inside.is_by_numbers
            is_suspect = bool(inside.nominees) or any(note.is_tainted for note in notes)
            return [Note(is_tainted=True, is_by_rank=False)] if is_suspect else []
        if step.name not in REBUILT or not step.blocks:
            # What is not followed inside may be anything: no gradient comes back through a while loop.
            unseen = Note[Value](is_tainted=True, is_by_rank=False, ranked=frozenset({id(step)}))
            return [unseen] if step.kind is Kind.HOLDS else []
        for block in step.blocks:
            self._enter(step, block)
        return [note for number in range(len(step.outputs)) for note in self._results(step, number)]

    def _results(self, step: Step, number: int) -> list[Note[Value]]:
        """Return what is known of a result inside of the block or the branches that give it, where it is tainted."""
        results = [self.note(block.outputs[number]) for block in step.blocks] if step.name in REBUILT else []
        return [note for note in results if note is not None and note.is_tainted]

    def _origins(self, step: Step, number: int) -> tuple[Candidate[Value], ...]:
        """Return what all of a result is made of by numbers, of what is given to the blocks that give it."""
        families = []
        for block in step.blocks:
            result, given = block.outputs[number], dict(_given(step, block))
            inside = [result, *(one.ref for one in (self.note(result) or Note[Value]()).origins)]
            outside = [given[value] for value in inside if value in given]
            families.append([one for value in outside for one in self._family(value)])
        return common(families)

    def _family(self, value: Value) -> list[Candidate[Value]]:
        note = self.note(value)
        return [] if note is None else [Candidate(value, _size(value)), *note.origins]

    def _enter(self, step: Step, block: Block) -> None:
        """Let a block begin with what is tainted outside of it; a loop goes on until nothing changes."""
        for value, source in _given(step, block):
            self._join(value, source)
        self.visit(block)
        if step.word == "scan":
            start, carried = loop_sizes(step.eqn.params)
            pairs = list(zip(block.inputs[start : start + carried], block.outputs[:carried], strict=True))
            while sum(self._join(value, result, is_carried=True) for value, result in pairs):
                self.visit(block)

    def _join(self, value: Value, source: Value, *, is_carried: bool = False) -> bool:
        """Let a value be what another one is as well; tell whether that changed anything."""
        note, before = self.note(source), self._notes.get(value)
        if note is None:
            return False
        ref = value if value.carries and _is_floating(value) else None
        inside = note.inside(ref, _size(value))
        inside = inside if is_carried or not note.is_tainted else _with_elsewhere(inside, [note])
        self._notes[value] = inside if before is None else before.joined(inside)
        return self._notes[value] != before

    def _nominate(self, y: Value, shown: nomination.Step[Value], step: Step, block: Block) -> Curves[Value]:
        """Make a nominee of a value, if it may be a ReLU; return what it is of those that it may be one of."""
        masked = shown.masked
        ranks = {one: shown.ranks(one, _size(y)) for one in shown.candidates(_size(y)) if _fits(one, y, masked)}
        choices = [one for one in ranks if one.choice is not Choice.NONE]
        candidates = _bounded([one for one in ranks if one.choice is Choice.NONE])
        reached = self._reached(step, {*candidates, *(value for one in choices for value in one.values)})
        # The first that is computed comes first: it is what the others were made of.
        ordered, source = sorted(candidates.keys() & reached, key=self._order.__getitem__), self._graph.source
        curves = self._curves(y, ordered)
        # Of what a pool chose, and of sums with written ReLUs, few numbers make none.
        compared = {how for one, how in ranks.items() if one.ref in ordered or one in choices} - {Ranks.ALL}
        self.is_by_numbers |= bool(curves.known or (compared and not shown.is_sum_alone))
        ordered = [x for x in ordered if not curves.is_none(source(x))]
        choices = [one for one in choices if self._is_told(one, reached, curves)]
        if ordered or choices:
            self.nominees[y] = Nominee(
                step,
                block,
                tuple(ordered),
                frozenset([*filter(candidates.get, ordered), *_bounded_elsewhere(choices)]),
                {one.ref: how for one, how in ranks.items()},
                shown.is_of_two,
                tuple(choices),
                shown.row.kind is Kind.MOVES,
                curves.is_partly_relu(takes_concave=step.word not in EXPLICIT),
                any(map(shown.adds_parts, shown.dependent)),
            )
        return curves

    def _is_told(self, choice: Candidate[Value], reached: Collection[Value], curves: Curves[Value]) -> bool:
        """Tell whether something may tell of a choice: what a gradient comes to, or values in another block."""
        if choice.choice is Choice.ELSEWHERE:
            return True
        is_reached = all(value in reached or not value.carries for value in choice.values)
        return is_reached and not curves.tells_of(map(self._graph.source, choice.values))

    def _curves(self, y: Value, values: Iterable[Value]) -> Curves[Value]:
        source = self._graph.source
        return Curves(source(y), [source(x) for x in values if not self._signs.of(x)], self._graph)

    def _reached(self, step: Step, wanted: Iterable[Value]) -> set[Value]:
        """Return which of some values of a block a gradient comes to from a step, if none passes what is guided."""
        missing, seen = set(wanted), set[Value]()
        reached, stack = set[Value](), list(step.inputs)
        while stack and missing:
            value = stack.pop()
            if value in seen or not value.carries:
                continue
            seen.add(value)
            if value in missing:
                missing.remove(value)
                reached.add(value)
            is_guided = value in self._ended or (value.step is not None and value.step.relu is not None)
            if value.step is not None and not is_guided:
                stack += value.step.inputs
        return reached


def _given(step: Step, block: Block) -> Iterator[tuple[Value, Value]]:
    """Yield what a block begins with, each with what it is given, where that is known."""
    outer = step.inputs[1:] if step.word == "cond" else step.inputs
    if len(outer) == len(block.inputs):
        yield from zip(block.inputs, outer, strict=True)


def _bounded(candidates: Iterable[Candidate[Value]]) -> dict[Value, bool]:
    """Return values, each with whether it is bounded on all ways."""
    bounded: dict[Value, bool] = {}
    for one in candidates:
        bounded[one.ref] = one.is_bounded and bounded.get(one.ref, True)
    return bounded


def _with_elsewhere(note: Note[Value], others: Iterable[Note[Value]]) -> Note[Value]:
    """Return what is known of a value, with what it was made of in other blocks."""
    every = [one for other in others for one in (*other.sources, *other.parts) if one.less is None]
    return replace(note, sources=first_of([*note.sources, *(one._replace(choice=Choice.ELSEWHERE) for one in every)]))


def _bounded_elsewhere(choices: Iterable[Candidate[Value]]) -> list[Value]:
    return [one.ref for one in choices if one.choice is Choice.ELSEWHERE and one.is_bounded]


def _is_undefined(step: Step) -> bool:
    """Tell an operation that has no value, or no derivative, for some numbers; a whole power has."""
    is_whole = step.exponent is not None and step.exponent >= 0 and step.exponent == int(step.exponent)
    return step.word in _UNDEFINED and not is_whole


def _is_branch(step: Step) -> bool:
    """Tell a branch of several values: one number chooses for all of them. What it holds is looked at in there."""
    return step.word == "cond" and all(_size(value) > 1 for value in step.outputs)


def _fits(candidate: Candidate[Value], y: Value, masked: Collection[Value]) -> bool:
    """Tell whether a value may be a ReLU of a candidate, by its size: several times that of what a mask meets here."""
    x, less = candidate.ref, candidate.less
    if x is y or not _is_floating(y):
        return False
    if less is None:
        is_alike = _size(x) == _size(y) or (
            (x in masked or candidate.is_bounded) and rows.has_parts(_size(y), _size(x))
        )
        return x.carries and (candidate.choice is not Choice.NONE or is_alike)
    if _is_shift(y):
        return False
    return (x.carries and less.carries) if candidate.choice is Choice.BEHIND else _size_apart(x, less) == _size(y)


def _size_apart(x: Value, less: Value) -> int | None:
    """Return how many numbers the difference of two values has, one of which may be repeated."""
    if _size(x) == _size(less):
        return _size(x)
    try:
        return int(np.prod(np.broadcast_shapes(x.aval.shape, less.aval.shape)))
    except ValueError:
        return None


def _is_shift(y: Value) -> bool:
    """Tell what an exponential is shifted by, as of a sum of these whose largest is to be 1."""
    return bool(y.uses) and all(use.word == "exp" for use in y.uses)


def _size(value: Value) -> int:
    return int(np.prod(value.aval.shape))


def _is_floating(value: Value) -> bool:
    return bool(jnp.issubdtype(value.aval.dtype, jnp.floating))
