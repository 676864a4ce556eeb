"""Sums of a value and of ReLUs of it that are written, in one block of a program: ``x + relu(-x)``."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.jax.graph.program import REBUILT, Block, Gate, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.operations import Operation
from guided_backprop.backends.spelling import Judgement, Verdict
from guided_backprop.backends.sums import FAR, Join, Sums, are_multiples, is_alike, is_linear, judge_sum, toward

# They go by the word of what they are like.
_MULTIPLIES = frozenset({"scatter-mul", "scatter_mul"})

# What works across devices takes these, and runs on all of them alone.
_ACROSS = frozenset({"axis_index_groups", "axis_name"})


class BlockSums(Sums[Value]):
    """What is linear in one block.

    Args:
        block: the block.
        facts: what is known of its values.
        is_vouched: tells the steps that are excused.
    """

    def __init__(self, block: Block, facts: Facts, is_vouched: Callable[[Step], bool]) -> None:
        super().__init__()
        self._block, self._facts, self._is_vouched = block, facts, is_vouched
        self._results = {id(value) for value in block.outputs}
        self._known: dict[Hashable, Judgement] = {}
        self.found: set[Value] = set()
        self.relus = dict(self._relus())

    def terms_of(self, value: Value) -> Sequence[Value]:
        step = value.step
        if step is None or value in self.relus or value.gate is not None or step.is_known or step.jitted:
            return ()
        if self._is_vouched(step) or step.word == "mark" or _ACROSS & step.eqn.params.keys():
            return ()
        places = [place for place, operand in enumerate(step.inputs) if operand.depends]
        depending = [step.inputs[place] for place in places]
        is_sum = step.name not in _MULTIPLIES and is_linear(Operation(step.kind, step.word), places)
        return depending if is_sum and all(map(_is_active, [value, *depending])) else ()

    def is_alike(self, value: Value) -> bool:
        step = value.step
        return step is not None and is_alike(Operation(step.kind, step.word))

    def users(self, value: Value) -> Sequence[Value]:
        return [result for step in value.uses for result in step.outputs]

    def is_result(self, value: Value) -> bool:
        return id(value) in self._results

    def gates(self) -> dict[Value, Gate]:
        """Put gates on the sums that are ReLUs, and return them: what is made of one of these is none of the others."""
        gates, behind = dict[Value, Gate](), set[Value]()
        for one in self._in_order():
            if one.gate is not None and one.y not in behind:
                gates[one.y] = one.gate
                behind |= self._made([one.y])
        for y, gate in gates.items():
            y.gate = gate
        self.found |= gates.keys()
        self._terms.clear()
        self.relus = dict(self._relus())
        return gates

    @property
    def is_by_numbers(self) -> bool:
        """Whether there were sums to be run, with the numbers of the constants in them."""
        return bool(self._known)

    def refused(self) -> list[Step]:
        """Return the steps that make ReLUs which no rule can act on."""
        ends = [one.y.step for one in self._in_order() if one.is_end]
        return [step for step in dict.fromkeys(ends) if step is not None]

    def _in_order(self) -> list["Judged"]:
        """Return the sums that are gates, and that a gradient comes to, in the order in which they are computed."""
        every = [one for join in self.joins() for one in self._judged(join) if one.judgement.is_gate]
        results = (value for step in self._block.steps for value in step.outputs)
        order = {value: number for number, value in enumerate(results)}
        return sorted(every, key=lambda one: order[one.y])

    def _relus(self) -> Iterator[tuple[Value, Value]]:
        for step in self._block.steps:
            yield from _relus(step)

    def _judged(self, join: Join[Value]) -> Iterator["Judged"]:
        keys = {y: (y, join.x, *join.relus) for y in join.sums if y.is_live}
        new = [y for y, key in keys.items() if key not in self._known]
        self._known.update((keys[y], judgement) for y, judgement in zip(new, self._run(join, new), strict=True))
        for y, key in keys.items():
            is_full = all(relu.gate is None or relu.gate.is_full for relu in join.relus)
            yield Judged(y, join.x, self._known[key], is_end=y in join.ends, is_full=is_full)

    def _made_of(self, x: Value) -> Value:
        """Return what a value is moved, a multiple or a shift of."""
        while len(terms := self.terms(x)) == 1 and self.is_alike(x):
            (x,) = terms
        return x

    def _run(self, join: Join[Value], asked: Sequence[Value]) -> list[Judgement]:
        """Judge what sums are far from 0."""
        runs = _Runs(self._block, self._facts, join, asked)
        far = runs.far() if asked else None
        if asked and far is None and not join.layers:
            # Nothing lifts all of a value less the same in another order: it is given, whatever else is in the sums.
            join = replace(join, roots=[self._made_of(join.x)], sums=dict.fromkeys(join.sums, False))
            runs = _Runs(self._block, self._facts, join, asked)
            far = runs.far()
        if far is None:
            return [Judgement(Verdict.NONE) for _ in asked]
        values = [runs.run(place * far) for place in FAR]
        lines = [runs.run(place * far, has_relus=False) for place in FAR[2:]]
        x = np.stack([_numbers(run[join.x]) for run in values])
        judged = []
        for y in asked:
            ys, line = (np.stack([_numbers(run[y]) for run in every]) for every in (values, lines))
            eps = float(jnp.finfo(y.aval.dtype).eps)  # type: ignore[no-untyped-call]
            judged.append(judge_sum(ys, line, x, eps, is_alone=join.sums[y], is_shifted=runs.is_shifted))
        return judged


@dataclass(frozen=True)
class Judged:
    """A sum of a value and of ReLUs of it.

    Attributes:
        y: the sum.
        x: what one of the ReLUs is of.
        judgement: whether it is a ReLU of that.
        is_end: whether something else is made of it than another such sum.
        is_full: whether its ReLUs are such of all of what they are of, without a mask besides.
    """

    y: Value
    x: Value
    judgement: Judgement
    is_end: bool
    is_full: bool

    @property
    def gate(self) -> Gate | None:
        """The gate of a ReLU of x, or of -x; None if it is one in part, or the negative of one."""
        judgement = self.judgement
        is_one = judgement.verdict is Verdict.CONVEX and self.is_full
        if not is_one or judgement.closed is None or judgement.slope is None:
            return None
        return Gate(judgement.closed, 0.0, self.x, float(judgement.slope), is_at_zero=True, is_full=True)


class _Runs:
    """What is linear in some roots, run for values of these; all else is 0.

    Args:
        block: the block that it is in.
        facts: what is known of its values.
        join: the roots, and the ReLUs.
        asked: what is to be run.
    """

    def __init__(self, block: Block, facts: Facts, join: Join[Value], asked: Sequence[Value]) -> None:
        self._facts, self._join = facts, join
        self._first, self._steps = (_leading(block, join, needed) for needed in ([join.x], [join.x, *asked]))
        self._raised: list[jax.Array] = []
        # Constants, and in the place of those that a loop changes others: a ReLU is one whatever they are.
        self._any: dict[Value, jax.Array] = {}
        self.is_shifted = False

    def far(self) -> float | None:
        """Return how many times what raises x raises it beyond all shifts; None if nothing is sure to."""
        zeros = [jnp.zeros(root.aval.shape, root.aval.dtype) for root in self._join.roots]
        if self._join.layers and not self._makes_multiples(zeros):
            return None
        at_zero, back = jax.vjp(lambda *roots: self._run(roots, self._first)[self._join.x], *zeros)
        drawn = np.random.default_rng(0)
        # Of numbers of all sizes, as each is what it is a multiple of times another one.
        self._raised = [
            jnp.sign(toward_x) * jnp.asarray(drawn.uniform(1, 2, toward_x.shape), toward_x.dtype)
            for toward_x in back(jnp.ones_like(at_zero))
        ]
        far = toward(_numbers(at_zero), _numbers(self._run(self._raised, self._first)[self._join.x]))
        self.is_shifted = bool(jnp.any(at_zero != 0))
        return None if far is None else float(far)

    def _makes_multiples(self, zeros: Sequence[jax.Array]) -> bool:
        """Tell whether weights make x of the roots number by number: of all others nothing is a ReLU."""
        drawn = np.random.default_rng(1)
        values = [jnp.asarray(drawn.uniform(1, 2, zero.shape), zero.dtype) for zero in zeros]
        every = [zeros, *([value**power for value in values] for power in (1, 0, 2))]
        at_zero, *runs = (_numbers(self._run(roots, self._first)[self._join.x]) for roots in every)
        return are_multiples(*(run - at_zero for run in runs))

    def run(self, times: float, *, has_relus: bool = True) -> dict[Value, jax.Array]:
        """Return all values, for so many times what raises x."""
        return self._run([times * root for root in self._raised], self._steps, has_relus=has_relus)

    def _run(
        self, roots: Sequence[jax.Array], steps: Sequence[Step], *, has_relus: bool = True
    ) -> dict[Value, jax.Array]:
        arrays = dict(zip(self._join.roots, roots, strict=True))
        for step in steps:
            for y, x in _relus(step):
                if y in self._join.relus:
                    arrays[y] = _relu(y.gate, self._read(x, arrays)).reshape(y.aval.shape) if has_relus else _nothing(y)
            left = [value for value in step.outputs if value not in arrays]
            if left:
                results = step.run([self._read(value, arrays) for value in step.inputs])
                arrays.update(pair for pair in zip(step.outputs, results, strict=True) if pair[0] in left)
        return arrays

    def _read(self, value: Value, arrays: Mapping[Value, jax.Array]) -> jax.Array:
        if value in arrays:
            return arrays[value]
        if value.depends:
            return _nothing(value)
        if value not in self._any:
            self._any[value] = jnp.asarray(self._constant(value), value.aval.dtype)
        return self._any[value]

    def _constant(self, value: Value) -> Any:
        known = self._facts.known(value)
        if known is None and value.step is not None:
            results = value.step.run([self._read(operand, {}) for operand in value.step.inputs])
            return results[value.step.outputs.index(value)]
        drawn = np.random.default_rng(len(self._any))
        return drawn.uniform(0.5, 1.5, value.aval.shape) if known is None else known


def blocks_of(block: Block) -> Iterator[Block]:
    """Yield a block, and those that run inside of it."""
    yield block
    for step in block.steps:
        if step.name in REBUILT:
            for inner in step.blocks:
                yield from blocks_of(inner)


def _relus(step: Step) -> Iterator[tuple[Value, Value]]:
    """Yield what a step gives that is a ReLU, and of what: as an operation, or by its values."""
    if step.relu is not None and step.relu.name == "relu":
        yield step.outputs[0], (step.relu.inside or step).inputs[step.relu.operand]
    for value in step.outputs:
        if value.gate is not None and value.gate.x is not None and value.gate.slope is not None:
            yield value, value.gate.x


def _relu(gate: Gate | None, x: jax.Array) -> jax.Array:
    if gate is None or gate.slope is None:
        return jnp.maximum(x, 0)
    return jnp.maximum(gate.slope * x, 0) + jnp.asarray(gate.closed, x.dtype)


def _leading(block: Block, join: Join[Value], asked: Sequence[Value]) -> list[Step]:
    """Return the steps that lead from the roots to what is asked for, and to what its ReLUs are of."""
    needed, kept = {*asked}, list[Step]()
    for step in reversed(block.steps):
        if not any(value in needed and value not in join.roots for value in step.outputs):
            continue
        kept.append(step)
        relus = [x for y, x in _relus(step) if y in join.relus]
        needed.update(relus or [value for value in step.inputs if value in join.region])
    return kept[::-1]


def _is_active(value: Value) -> bool:
    return value.carries and bool(jnp.issubdtype(value.aval.dtype, jnp.floating))


def _nothing(value: Value) -> jax.Array:
    return jnp.zeros(value.aval.shape, value.aval.dtype)


def _numbers(array: jax.Array) -> NumpyArray:
    return np.asarray(array, np.float64)
