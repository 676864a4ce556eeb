"""Judges by values what may hide a ReLU: which values are ReLUs that no single operation is, and which are none.

The program is run once on the first images, and on others where those are no evidence. What is found holds for the
program from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import jax
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.bounds import judge_bounded
from guided_backprop.backends.choices import difference, judge_choice
from guided_backprop.backends.evidence import is_evidence, is_thin
from guided_backprop.backends.jax.graph.program import CUSTOM, Gate, Program, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.jax.hidden.behind import Behind
from guided_backprop.backends.jax.hidden.looks import NEAR_LOOKS, Looks, asked_of
from guided_backprop.backends.jax.hidden.opening import ROUNDING, Seen, as_told, gate_of, snapped
from guided_backprop.backends.jax.hidden.signs import Signs
from guided_backprop.backends.jax.hidden.sums import BlockSums, blocks_of
from guided_backprop.backends.jax.hidden.taint import EXPLICIT, Nominee, Taint
from guided_backprop.backends.jax.hidden.watch import Asked, steps_between
from guided_backprop.backends.nomination import PRELU
from guided_backprop.backends.notes import Candidate, Choice, Ranks
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.rows import groupings, has_parts
from guided_backprop.backends.spelling import Judgement, Verdict, closes_elsewhere, judge
from guided_backprop.backends.step import PARTS, PRODUCTS

_ENDS = ((np.min, np.inf), (np.max, -np.inf))


class _Finding(Enum):
    PLAIN = auto()
    GUIDED = auto()
    CONCAVE = auto()
    REFUSED = auto()


@dataclass
class Findings:
    """What values say of a program.

    Attributes:
        gates: the values that are ReLUs, and how.
        spelled: steps that gate values, though not as a ReLU does, or not for sure.
        is_by_numbers: whether other numbers in the constants could make something else of it.
    """

    gates: dict[Value, Gate] = field(default_factory=dict)
    spelled: list[Step] = field(default_factory=list)
    is_by_numbers: bool = False


class Judge:
    """Judges one program.

    Args:
        program: the program.
        facts: what is known of its values.
        vouch: the places that are excused.
        images: the first images, one array for each input.
    """

    def __init__(self, program: Program, facts: Facts, vouch: Vouch, images: Sequence[jax.Array]) -> None:
        self._program, self._facts, self._vouch = program, facts, vouch
        self._looks = Looks(program, images)
        self._behind = Behind(self._looks)
        self._nominees: dict[Value, Nominee] = {}
        self._taint, self._signs = Taint(facts, vouch), Signs(facts)
        self._told_by_values: dict[tuple[Value, Value], tuple[Verdict, NumpyArray | None, int] | None] = {}

    def findings(self) -> Findings:
        """Judge what is nominated, in the order in which it is computed: behind a ReLU there is less to judge."""
        findings, concave = Findings(), dict[Value, Nominee]()
        self._nominees = nominees = self._nominated(findings)
        for y, nominee in self._nominees.items():
            if y not in nominees:
                continue
            finding, gate = self._judge(y, nominee)
            if gate is not None and finding is _Finding.GUIDED:
                findings.gates[y] = y.gate = gate
                nominees = self._nominated(findings)
            elif finding is _Finding.CONCAVE:
                concave[y] = nominee
            elif finding is _Finding.REFUSED or nominee.is_partly or self._taint.is_partly_relu(nominee.step):
                findings.spelled.append(nominee.step)
        # What is bounded on both sides, neither of them 0, is no ReLU, and what a ReLU makes of a bound above is a cap.
        at_zero = [gate for gate, how in findings.gates.items() if not closes_elsewhere(how.closed)]
        for y, nominee in concave.items():
            is_explicit = nominee.step.word in EXPLICIT
            if not is_explicit and not any(self._leads(y, gate) for gate in at_zero):
                findings.spelled.append(nominee.step)
        for block in blocks_of(self._program.block):
            sums = BlockSums(block, self._facts, self._taint.is_vouched)
            while gates := sums.gates():
                findings.gates |= gates
            findings.spelled += sums.refused()
            findings.is_by_numbers |= sums.is_by_numbers
        return findings

    def _nominated(self, findings: Findings) -> dict[Value, Nominee]:
        self._taint, self._signs = Taint(self._facts, self._vouch, findings.gates), Signs(self._facts)
        self._taint.visit(self._program.block)
        findings.is_by_numbers |= self._taint.is_by_numbers
        self._looks.begin(self._taint.nominees, findings.gates)
        self._told_by_values = {}
        return self._taint.nominees

    def _leads(self, value: Value, gate: Value) -> bool:
        block = self._nominees[gate].block
        return self._nominees[value].block is not block or bool(steps_between(value, gate, block))

    def _judge(self, y: Value, nominee: Nominee) -> tuple[_Finding, Gate | None]:
        """Judge a value as a ReLU of each candidate; best is one that all gradients come through."""
        worst, best = _Finding.PLAIN, None
        for x in nominee.candidates:
            finding, gate = self._judge_as(y, x, nominee)
            if gate is not None and finding is _Finding.GUIDED and gate.is_at_zero:
                return finding, gate
            best = gate if best is None or (best.x is None and gate is not None) else best
            worst = max(worst, finding, key=lambda one: one.value)
        for choice in nominee.choices:
            worst = max(worst, self._judge_choice(y, choice, nominee), key=lambda one: one.value)
        return (worst, None) if best is None else (_Finding.GUIDED, best)

    def _judge_choice(self, y: Value, candidate: Candidate[Value], nominee: Nominee) -> _Finding:
        x, choice, less = candidate.ref, candidate.choice, candidate.less
        if choice is Choice.ELSEWHERE:
            return self._judge_elsewhere(y, x, nominee)
        if choice is Choice.BEHIND:
            is_relu = self._behind.is_relu(y, candidate, nominee, self._signs)
            return _Finding.REFUSED if is_relu else _Finding.PLAIN
        if choice is Choice.AROUND and self._signs.of(x):
            # Nothing is closed by the 0 around what a ReLU gives, and nothing has to be run.
            return _Finding.PLAIN
        asked = (y, x) if less is None else (y, x, less)
        looks = [
            [self._looks.seen(value, number + 1, first=number) for value in asked] for number in range(NEAR_LOOKS + 1)
        ]
        ran = [[array for array in look if array is not None] for look in looks]
        pairs = [(ys, difference(*others)) for ys, *others in ran if len(others) == len(asked) - 1]
        seen = [(ys if less is None else snapped(ys, y), xs) for ys, xs in pairs if xs is not None]
        seen = [pair for pair in seen if all(map(is_evidence, pair, seen[0]))]
        if not seen:
            return _Finding.PLAIN if pairs else _Finding.REFUSED
        return _finding_of(judge_choice(seen, choice, is_of_one_sign=bool(self._signs.of(x))))

    def _judge_elsewhere(self, y: Value, x: Value, nominee: Nominee) -> _Finding:
        """Judge a value as a ReLU of one in another block: by values if all turns of a loop are its numbers."""
        seen = [self._looks.seen(value, 1) for value in (y, x)]
        sizes = [array.size for array in seen if array is not None]
        if len(sizes) < len(seen):
            return _Finding.PLAIN
        is_alike = sizes[0] == sizes[1] or has_parts(*sizes)
        told = self._by_values(y, x, nominee) if is_alike else None
        is_closed = told is not None and (told[0] is not Verdict.UNSETTLED or told[1] is not None)
        is_relu = is_closed or self._behind.is_relu_elsewhere(y, x, nominee, self._signs)
        return _Finding.REFUSED if is_relu else _Finding.PLAIN

    def _judge_as(self, y: Value, x: Value, nominee: Nominee) -> tuple[_Finding, Gate | None]:
        """Judge a value as a ReLU of one candidate."""
        plain, refused = (_Finding.PLAIN, None), (_Finding.REFUSED, None)
        by_values = self._by_values(y, x, nominee)
        if by_values is None:
            return plain
        verdict, closed, looks = by_values
        between = steps_between(x, y, nominee.block)
        ys, xs = self._looks.seen(y, looks), self._looks.seen(x, looks)
        slopes = self._looks.derivative(y, x, looks, self._left)
        if ys is None or xs is None or slopes is None:
            # No image took this branch; but curves, sums and multiples of one value gate nothing.
            return plain if all(map(_is_of_one, between)) else refused
        verdict = self._told(y, x, nominee, Judgement(verdict, closed), seen=(ys, xs, slopes), looks=looks)
        if verdict is Verdict.NONE:
            return plain
        is_gate = verdict in (Verdict.CONVEX, Verdict.CONCAVE) and not is_thin(xs)
        if not is_gate or closed is None or _is_never_guided(nominee.step):
            # A bound is a ReLU once it is shifted to 0, and there it was none yet.
            is_gate_before = _is_of_one(nominee.step) and not nominee.is_of_parts and x not in nominee.bounded
            return plain if is_gate_before else refused
        gate = gate_of(y, x, nominee.block, Seen(ys, xs.reshape(ys.shape), slopes.reshape(ys.shape), closed))
        if gate is None:
            return refused
        return (_Finding.GUIDED, gate) if verdict is Verdict.CONVEX else (_Finding.CONCAVE, None)

    def _left(self, y: Value, nominee: Nominee) -> list[Asked]:
        """Return the derivatives of a value that are to be known: towards what its values alone leave open."""
        return [asked_of(x, y) for x in nominee.candidates if self._by_values(y, x, nominee) is not None]

    def _by_values(self, y: Value, x: Value, nominee: Nominee) -> tuple[Verdict, NumpyArray | None, int] | None:
        """Return what values say of one candidate, as :meth:`_verdict` does; None if by these alone it is none."""
        if (y, x) not in self._told_by_values:
            is_magnitude = nominee.step.word == "abs" and x in nominee.step.inputs
            told = None if is_magnitude else self._verdict(y, x, nominee)
            is_bound = told is not None and x in nominee.bounded and _is_left_at_bound(*told[:2])
            self._told_by_values[y, x] = None if told is None or told[0] is Verdict.NONE or is_bound else told
        return self._told_by_values[y, x]

    def _told(
        self,
        y: Value,
        x: Value,
        nominee: Nominee,
        judgement: Judgement,
        *,
        seen: tuple[NumpyArray, NumpyArray, NumpyArray],
        looks: int,
    ) -> Verdict:
        """Return what values say where the derivative, and what rounding hides of them, is known as well."""
        ys, xs, slopes = seen
        if not slopes.any():
            return Verdict.NONE
        if judgement.verdict is Verdict.PARTIAL:
            return self._judged(y, x, nominee, ys, as_told(xs, ys, slopes, y)).verdict
        is_closed_nowhere = judgement.closed is None
        is_curve = is_closed_nowhere and not _may_be_one(ys, xs)
        # What was put beside each other was made before, and judged there.
        is_none = nominee.is_moved or (is_closed_nowhere and self._is_of_two_that_change(nominee, looks))
        is_none_yet = judgement.verdict is Verdict.UNSETTLED and (is_curve or is_none)
        return Verdict.NONE if is_none_yet else judgement.verdict

    def _is_of_two_that_change(self, nominee: Nominee, looks: int) -> bool:
        """Tell the larger or smaller of two values neither of which is one number, as the 0 of a ReLU is."""
        operands = nominee.step.inputs
        if not nominee.is_of_two or not all(one in nominee.candidates for one in operands):
            return False
        seen = [self._looks.seen(one, looks) for one in operands]
        return all(values is not None and bool(np.ptp(values)) for values in seen)

    def _verdict(self, y: Value, x: Value, nominee: Nominee) -> tuple[Verdict, NumpyArray | None, int]:
        """Return what values say, where the gate is closed, and of how many sets of images they are."""
        verdict, closed, used, before = Verdict.UNSETTLED, None, 1, None
        for looks in range(1, NEAR_LOOKS + 2):
            is_far = looks > NEAR_LOOKS
            # The largest of a few rows may lie as a gate would have them, by chance.
            is_chance = nominee.ranks[x] is not Ranks.NONE and looks < NEAR_LOOKS
            ys, xs = (self._looks.seen(value, looks, first=NEAR_LOOKS if is_far else 0) for value in (y, x))
            if ys is None or xs is None:
                continue
            if before is not None and not all(map(is_evidence, (ys, xs), before)):
                break
            before, used = (ys, xs), looks
            judgement = self._judged(y, x, nominee, ys, xs)
            if is_far and judgement.verdict is not Verdict.NONE:
                ys, xs = self._looks.seen(y, looks), self._looks.seen(x, looks)
                joined = judgement if ys is None or xs is None else self._judged(y, x, nominee, ys, xs)
                judgement = _of_all(judgement, joined)
            verdict, closed = judgement.verdict, judgement.closed
            if verdict is Verdict.UNSETTLED and self._signs.of(x):
                verdict = Verdict.NONE
            if verdict is Verdict.NONE or not (verdict is Verdict.UNSETTLED or is_thin(before[1]) or is_chance):
                break
        return verdict, closed, used

    def _judged(self, y: Value, x: Value, nominee: Nominee, ys: NumpyArray, xs: NumpyArray) -> Judgement:
        if _is_permuted(ys, xs):
            return Judgement(Verdict.NONE)
        is_of_one_sign = bool(self._signs.of(x))
        # Both of them: of what is rounding in one alone, the other would be closed there.
        ys, xs = snapped(ys, y), snapped(xs, x)
        how = judge_bounded if x in nominee.bounded else judge
        return how(
            ys,
            xs,
            ROUNDING,
            ranks=nominee.ranks[x],
            is_of_one_sign=is_of_one_sign,
            is_of_two=nominee.is_of_two,
        )


def _of_all(alone: Judgement, every: Judgement) -> Judgement:
    """Return what values on far larger images say: what it is it has to be on all of them.

    What is few on each of them may be enough on all, or seem so.
    """
    return every if alone.is_gate or every.is_gate or every.is_few else alone


def _finding_of(choice: Judgement) -> _Finding:
    """Return what is found of a choice; what only these images leave on one side of a constant others may close."""
    verdict = choice.verdict
    if verdict is Verdict.UNSETTLED and choice.closed is not None:
        return _Finding.REFUSED
    return {Verdict.CONCAVE: _Finding.CONCAVE, Verdict.PARTIAL: _Finding.REFUSED}.get(verdict, _Finding.PLAIN)


def _is_of_one(step: Step) -> bool:
    """Tell a curve, or sums and multiples, of one value: where that is no gate there is nothing to multiply with.

    But in that value itself, as of a product along an axis.
    """
    is_one = sum(value.depends for value in step.inputs) == 1 and step.word not in PARTS | PRODUCTS
    return is_one and step.kind in (Kind.SMOOTH, Kind.LINEAR)


def _is_never_guided(step: Step) -> bool:
    """Tell a custom function, and a PReLU: other slopes may be learned, and what is found holds for the program."""
    return step.name in CUSTOM or (step.activation is not None and step.activation.name == PRELU)


def _is_left_at_bound(verdict: Verdict, closed: NumpyArray | None) -> bool:
    """Tell whether no value told what a bound made, where it is no 0."""
    return verdict is Verdict.UNSETTLED and closes_elsewhere(closed)


def _is_permuted(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether values are the same in another order: to select closes nothing."""
    y, x = y.ravel(), x.ravel()
    return not np.array_equal(y, x) and np.array_equal(np.sort(y), np.sort(x))


def _may_be_one(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether y is one constant, or a multiple of x by channel or by position: the rest is no ReLU's open side.

    Of several results of each number :func:`judge` told it of each part.
    """
    if (y == y.flat[0]).all() or y.size != x.size:
        return True
    ratios = np.divide(y, x.reshape(y.shape), out=np.full(y.shape, np.nan), where=x.reshape(y.shape) != 0)
    for axes in groupings(y):
        with np.errstate(all="ignore"):
            low, high = (how(ratios, axis=axes, initial=far, where=~np.isnan(ratios)) for how, far in _ENDS)
            if not (high - low > ROUNDING * np.abs(high)).any():
                return True
    return False
