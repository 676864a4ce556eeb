"""Nominates what may hide a ReLU: by where values come from, before anything is run.

For a ReLU without an operation that is one, either values are chosen among by their size, or something of the images
that carries no gradient (a comparison, an index, a detached value) meets a value that carries one. Both are followed:
what was touched is *tainted*, through everything, until a ReLU that the rule guides. What is made of something tainted
is nominated, and judged by its values. Where nothing is nominated nothing is run.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.graph.program import CUSTOM, REBUILT, Block, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts, custom_name, place_of
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import is_plain
from guided_backprop.backends.spelling import BENT, MIXING, PUTS, RANKS

_CHOOSING = frozenset({Kind.CHOOSES, Kind.CLIP, Kind.UNKNOWN})
#: Composite activations that are choices themselves.
_OPEN_COMPOSITES = frozenset({"clamp", "norm"})
_GUARD = "maximum"
_COMPARISONS = frozenset("equal greater greater_equal less less_equal not_equal".split())
_MOVING = frozenset({"concatenate", "gather", "pad", "scatter", "where"})
_SPREADING = frozenset({"broadcast", "cast", "copy", "mark", "reshape"})
_SCALING = frozenset({"add", "div", "mul", "neg", "sub"})
#: What has no value, or no derivative, for some numbers.
_UNDEFINED = frozenset({"log", "pow", "rsqrt", "sqrt"})
_FARTHEST = 64


class Level(IntEnum):
    """How far a value is tainted."""

    CLEAN = 0
    #: Values were compared with each other, and with no constant.
    BY_RANK = 1
    TAINTED = 2


class Nominee(NamedTuple):
    """A value that may be a ReLU of another.

    Attributes:
        step: what makes it.
        block: where.
        candidates: what it may be the ReLU of: as many numbers, in the same block.
        is_by_rank: whether nothing was compared with a constant.
    """

    step: Step
    block: Block
    candidates: tuple[Value, ...]
    is_by_rank: bool


class Taint:
    """What is tainted in a program.

    Args:
        facts: what is known of its values.
        vouch: the places that are excused.
        ended: values that are guided ReLUs, by the judgement.

    Attributes:
        nominees: what has to be judged, in the order in which it is computed.
    """

    def __init__(self, facts: Facts, vouch: Vouch, ended: Iterable[Value] = ()) -> None:
        self.nominees: dict[Value, Nominee] = {}
        self._facts, self._vouch, self._ended = facts, vouch, frozenset(ended)
        self._levels: dict[Value, Level] = {}
        self._origins: dict[Value, frozenset[Value]] = {}
        self._blocks: dict[Value, Block] = {}
        self._order: dict[Value, int] = {}

    def visit(self, block: Block) -> None:
        """Follow the taint through a block, in the order in which its steps run."""
        self._enlist(block.inputs, block)
        for step in block.steps:
            self._enlist(step.outputs, block)
            if any(value.depends for value in step.inputs):
                self._follow(step, block)

    def _enlist(self, values: Sequence[Value], block: Block) -> None:
        for value in values:
            self._blocks[value] = block
            self._order.setdefault(value, len(self._order))

    def level(self, value: Value) -> Level:
        """Return how far a value is tainted."""
        return self._levels.get(value, Level.CLEAN)

    def _follow(self, step: Step, block: Block) -> None:
        inside = self._visit_inside(step)
        if _ends(step) or self._is_vouched(step):
            return
        # What comes out without a gradient is a mask: it is by rank if what it was compared with is.
        is_mask = not any(value.carries for value in step.outputs)
        level = max(map(self.level, _masks(step) if is_mask else step.inputs), default=Level.CLEAN)
        origins = frozenset[Value]().union(*(self._origins.get(value, ()) for value in step.inputs))
        starts = self._starts(step)
        if starts or inside:
            origins |= {value for value in step.inputs if value.carries}
        level = max(level, starts, inside)
        if level is Level.CLEAN:
            return
        for value in step.outputs:
            if not value.depends or value in self._ended:
                continue
            self._levels[value], self._origins[value] = level, origins
            if value.carries and value.is_live and not self._is_excused(step):
                self._nominate(value, step, block)

    def is_bounded(self, steps: Sequence[Step]) -> bool:
        """Tell whether all that chooses among these steps are bounds: what one closes at, other than 0, is no ReLU."""
        choosing = [step for step in steps if self._starts(step)]
        return bool(choosing) and all(map(self._is_clip, choosing))

    def _is_vouched(self, step: Step) -> bool:
        names = (custom_name(step), step.name, place_of(step)) if self._vouch else ()
        return any(is_plain(name, self._vouch, "jax.nn.relu") for name in names)

    def _is_excused(self, step: Step) -> bool:
        """Tell whether it is known what a step is, whatever is made of its results."""
        is_known = step.is_inside or step.is_part or _is_guard(step)
        return is_known or _is_branch(step) or self._is_clip(step) or self._is_nan_guard(step)

    def _is_clip(self, step: Step) -> bool:
        """Tell an explicit clamp by numbers: a ReLU has been found by them already."""
        is_clip = step.kind is Kind.CLIP or (step.activation is not None and step.activation.name == "clamp")
        bounds = [value for value in step.inputs if not value.depends]
        return is_clip and bool(bounds or step.jitted) and all(map(self._facts.is_uniform, bounds))

    def _is_nan_guard(self, step: Step) -> bool:
        """Tell ``where(x > 0, sqrt(x), 0)``, and the root of ``where(x > 0, x, 1)``; a logarithm likewise."""
        if step.word in _UNDEFINED and step.inputs[0].step is not None:
            return self._is_nan_guard(step.inputs[0].step)
        if step.word != "where" or not any(map(self._facts.is_uniform, step.inputs[1:])):
            return False
        uses = step.outputs[0].uses
        cases = [operand.step for operand in step.inputs[1:] if operand.carries and operand.step is not None]
        return (bool(uses) and all(use.word in _UNDEFINED for use in uses)) or any(
            case.word in _UNDEFINED for case in cases
        )

    def _starts(self, step: Step) -> Level:
        """Return how far a step taints what it makes of values that carry a gradient."""
        carrying = [value for value in step.inputs if value.carries]
        if not carrying or _is_guard(step):
            return Level.CLEAN
        is_cut = any(value.depends and not value.carries for value in step.outputs)
        if not is_cut and not self._chooses(step):
            return Level.CLEAN
        if step.word in _COMPARISONS:
            sizes = {int(np.prod(_spread_from(value).aval.shape)) for value in step.inputs}
            is_by_rank = all(v.depends and not self._facts.is_zero(v) for v in step.inputs) and len(sizes) > 1
        else:
            is_by_rank = step.word in RANKS and not any(map(self._is_put_together, carrying))
        return Level.BY_RANK if is_by_rank else Level.TAINTED

    def _chooses(self, step: Step) -> bool:
        if step.activation is not None:
            return step.activation.name in _OPEN_COMPOSITES
        is_whole_power = step.exponent is not None and step.exponent >= 0
        return step.kind in _CHOOSING or (step.word in BENT and not is_whole_power)

    def _is_put_together(self, value: Value) -> bool:
        """Tell whether there are constants, or several values of one place, among values, before they were mixed."""
        for _ in range(_FARTHEST):
            value = value.outer or value
            step = value.step
            if step is None or step.word in MIXING:
                return False
            depending = [operand for operand in step.inputs if operand.depends and _is_floating(operand)]
            constant = [operand for operand in step.inputs if not operand.depends and _is_floating(operand)]
            largest = max((int(np.prod(operand.aval.shape)) for operand in depending), default=0)
            if step.word in PUTS or int(np.prod(value.aval.shape)) > largest:
                return True
            if (step.word == "where" and constant) or (step.word == "mul" and any(map(self._has_zeros, constant))):
                return True
            if len(depending) != 1:
                return False
            (value,) = depending
        return True

    def _has_zeros(self, value: Value) -> bool:
        known = self._facts.known(value)
        return known is None or not bool(np.all(known))

    def _visit_inside(self, step: Step) -> Level:
        """Follow the taint through what a step holds; return how far that taints its results."""
        if step.name in CUSTOM and step.blocks and step.jitted is None:
            # What a custom function computes is seen, and not what its derivative is: it is judged as a whole.
            inside = Taint(self._facts, self._vouch)
            inside.visit(step.blocks[0])
            is_suspect = bool(inside.nominees) or any(map(inside.level, step.blocks[0].outputs))
            return Level.TAINTED if is_suspect else Level.CLEAN
        if step.name not in REBUILT or not step.blocks:
            return Level.CLEAN
        level = Level.CLEAN
        for block in step.blocks:
            self._enter(step, block)
            level = max([level, *map(self.level, block.outputs)])
        return level

    def _enter(self, step: Step, block: Block) -> None:
        """Let a block begin with what is tainted outside of it; a loop goes on until nothing changes."""
        outer = step.inputs[1:] if step.word == "cond" else step.inputs
        sources = outer if len(outer) == len(block.inputs) else [None] * len(block.inputs)
        for value, source in zip(block.inputs, sources, strict=True):
            if source is not None:
                self._raise(value, self.level(source))
        self.visit(block)
        if step.word == "scan":
            start, carried = step.eqn.params["num_consts"], step.eqn.params["num_carry"]
            pairs = list(zip(block.inputs[start : start + carried], block.outputs[:carried], strict=True))
            while sum(self._raise(value, self.level(result)) for value, result in pairs):
                self.visit(block)

    def _raise(self, value: Value, level: Level) -> bool:
        """Taint a value at least so far; tell whether that changed anything."""
        has_changed = level > self.level(value)
        if has_changed:
            self._levels[value] = level
            self._origins[value] = frozenset({value} if value.carries else ())
        return has_changed

    def _nominate(self, y: Value, step: Step, block: Block) -> None:
        starts = [*(value for value in step.inputs if value.carries), *self._origins[y]]
        size, same = int(np.prod(y.aval.shape)), _same_as(y)
        candidates = [
            value
            for value in self._moved_from([self._inside(value, block) for value in starts], block)
            if value not in same and value.carries and _is_floating(value) and int(np.prod(value.aval.shape)) == size
        ]
        if candidates and _is_floating(y):
            is_by_rank = all(self.level(value) is Level.BY_RANK for value in _masks(step) or [y])
            # The first that is computed comes first: it is what the others were made of.
            ordered = sorted(dict.fromkeys(candidates), key=self._order.__getitem__)
            self.nominees[y] = Nominee(step, block, tuple(ordered), is_by_rank)

    def _inside(self, value: Value, block: Block) -> Value:
        """Return what a value from outside of a block is inside of it, if it comes in."""
        return next((argument for argument in block.inputs if value in (argument.outer, argument.stack)), value)

    def _moved_from(self, starts: Sequence[Value], block: Block) -> list[Value]:
        """Return the values of a block, and what they are made of by steps that only move or scale values."""
        sources: dict[Value, None] = {}
        stack = list(starts)[::-1]
        while stack and len(sources) < _FARTHEST:
            value = stack.pop()
            if value in sources or self._blocks.get(value) is not block:
                continue
            sources[value] = None
            if value.step is not None and _passes(value.step):
                stack.extend(operand for operand in value.step.inputs if operand.carries)
        return list(sources)


def _passes(step: Step) -> bool:
    """Tell whether a step only moves values, or takes multiples and sums of one value with constants."""
    is_scaling = step.word in _SCALING and sum(value.depends for value in step.inputs) == 1
    return is_scaling or step.kind is Kind.MOVES or step.word in _MOVING


def _same_as(value: Value) -> set[Value]:
    """Return the values that one is a mere copy of, in whatever shape: none of them is gated."""
    same = {value}
    while value.step is not None and value.step.kind is Kind.MOVES:
        depending = [operand for operand in value.step.inputs if operand.depends]
        if len(depending) != 1:
            break
        (value,) = depending
        same.add(value)
    return same


def _is_branch(step: Step) -> bool:
    """Tell a branch of several values: one number chooses for all of them. What it holds is looked at in there."""
    return step.word == "cond" and all(int(np.prod(value.aval.shape)) > 1 for value in step.outputs)


def _ends(step: Step) -> bool:
    """Tell whether a step is an activation as a whole: what comes out is that activation's."""
    if step.relu is not None:
        return True
    return step.activation is not None and step.activation.name not in {*_OPEN_COMPOSITES, _GUARD}


def _spread_from(value: Value) -> Value:
    """Return what a value is that was spread over others, as the largest of each row."""
    while value.step is not None and value.step.word in _SPREADING:
        value = value.step.inputs[0]
    return value


def _masks(step: Step) -> list[Value]:
    """Return what a step is given of the images that carries no gradient."""
    return [value for value in step.inputs if value.depends and not value.carries]


def _is_guard(step: Step) -> bool:
    return step.activation is not None and step.activation.name == _GUARD


def _is_floating(value: Value) -> bool:
    return bool(jnp.issubdtype(value.aval.dtype, jnp.floating))
