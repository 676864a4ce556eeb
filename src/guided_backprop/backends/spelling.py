"""The judgement of values: whether what an operation gave is a ReLU of something, though no operation there is one.

For y to be a ReLU of x without an operation that is one, either an operation *chooses* among values by their size
(a maximum over a stack with zeros, a sort, a norm, \\|x\\|), or something that depends on the images without a gradient
(a comparison, an index, a sign, a detached value: *taint*) meets a value that carries one, or a ReLU that is explicit
is added to what it is one of, as in ``x + relu(-x)``. Where nothing of that happens there is no ReLU but the explicit
ones. Where it does, each framework hands the values to :func:`judge`, which is the same for all of them.

To be a gate is a statement about all values, so one counterexample refutes it for good; and values of one sign are no
evidence, for no value tells a ReLU from the identity there. Then the values of other images are looked at
(evidence.py), together with the first ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import combinations
from math import log
from typing import Any, Final

import numpy as np

from guided_backprop.arrays import NumpyArray, Tensor
from guided_backprop.backends.evidence import NEAR, is_multiple, surprise_of_signs
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.rows import Gate, by_rows, gates_alone, parts_of, sides_of
from guided_backprop.rules import ReluRule


class Shut(ReluRule):
    """Nothing passes a ReLU: what is left of a gradient went around all of them."""

    name = "shut"
    needs_every_relu = False

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: Any) -> Tensor:
        """Return nothing."""
        return xp.zeros_like(derived)


class Verdict(Enum):
    """What values say of y and x."""

    #: y is no gate of x: some value contradicts it.
    NONE = auto()
    #: Nothing was closed, or nothing open, or there were too few values: other images have to tell.
    UNSETTLED = auto()
    #: y is a ReLU of x, or of -x: it rises from a constant. What arrives at y is what the rule is about.
    CONVEX = auto()
    #: y is the negative of one: ``min(x, 0) = -relu(-x)``, or rises in some channels and falls in others.
    CONCAVE = auto()
    #: A gate for a part of the values alone, one that closes above in some channels, or a ReLU times something else.
    PARTIAL = auto()


@dataclass(frozen=True)
class Judgement:
    """What values say.

    Attributes:
        verdict: the finding.
        closed: where y has this value the gate is closed, or seems so of too few values; an array that broadcasts
            against y. NaN: it is nowhere. None: nothing is, or there is no such value.
        slope: the multiple of x that y is elsewhere, likewise.
        is_few: whether it would be a gate, were there more values.
    """

    verdict: Verdict
    closed: NumpyArray | None = None
    slope: NumpyArray | None = None
    is_few: bool = False

    @property
    def is_gate(self) -> bool:
        """Whether y opens and closes by the size of x."""
        return self.verdict in (Verdict.CONVEX, Verdict.CONCAVE, Verdict.PARTIAL)


# About so many values, spread along each axis, are looked at before all are.
_SAMPLE: Final = 32768
#: That so many values lie as a gate would have them, while they do not depend on x, has a chance of exp(-14): 1e-6.
EVIDENCE: Final = 14.0
# So much more evidence is asked for where values were compared with each other, and by channel: the mean of a row, and
# what is turned in sign with it, do not lie as by chance.
_OF_RANKS: Final = 3.0
_OF_RANKS_BY_ROW: Final = 10.0
# With a smaller chance a rank opens just what is above 0, so that it is refused; with a far smaller one it is no rank.
_BY_RANK: Final = 4.0
_BY_NONE: Final = 9.0
# Less is asked for where nothing below 0 is open: a gate from there on needs no threshold to fit.
_AT_ZERO: Final = 7.0
# By so many units in the last place of the largest number a sum may miss 0.
_LEFT: Final = 32
# So small a unit in the last place numbers may have had.
_AS_ZERO: Final = 1e-7
# So many values closed, all of one sign of x, while others of that sign are open: a chance of 2**-12.
_FEW: Final = 12
# So many values of a row are not each as likely as the others to be its end: of all closed ones, a chance of 16**-12.
_LEAST_ROW: Final = 16
# So many values of a maximum of two tell that the other value is 0.
_MANY_OF_TWO: Final = 32


def judge(
    y: NumpyArray,
    x: NumpyArray,
    rounding: float = 1e-3,
    *,
    ranks: Ranks = Ranks.NONE,
    is_of_one_sign: bool = False,
    is_of_two: bool = False,
    evidence: float = EVIDENCE,
) -> Judgement:
    """Tell what values say of whether ``y`` is a ReLU of x.

    It is one where it is one constant for x below a threshold and a multiple of x, or of x and a shift, above it, or
    the other way round. The constant, the threshold and the multiple may differ by channel (axis 1, or the last one),
    or by position; some values may be closed on the open side as well, as by a second mask.

    Args:
        y: what an operation gave, real, of any shape; axis 0 runs over images.
        x: what it may be a ReLU of, in the same order, with as many values; or y has several of each.
        rounding: how far a multiple may be off, as a share of the largest value.
        ranks: how what chose among the values compared them. With each other, as a top-k and a sort do, and never with
            a constant: then the largest are open and need not be positive.
        is_of_one_sign: whether x never changes its sign, however the images are. Then what is closed here and there is
            closed by something else.
        is_of_two: whether ``y`` is the larger or smaller of x and another value, wherever they are. Then it may be 0 in
            places by itself, and look like a ReLU by chance.
        evidence: minus the logarithm of the chance that values lie as a gate would have them, while they are none of x.
    """
    if y.size != x.size or y.size == 0 or y.ndim == 0:
        how = partial(judge, rounding=rounding, ranks=ranks, is_of_one_sign=is_of_one_sign)
        how = partial(how, is_of_two=is_of_two, evidence=evidence)
        return judge_parts(y, x, how, is_by_size=ranks is Ranks.NONE)
    eps = float(np.finfo(y.dtype).eps) if y.dtype.kind == "f" else 0.0
    with np.errstate(all="ignore"):
        y, x = y.astype(np.float64), x.astype(np.float64).reshape(y.shape)
        ranks, chance = _told_at_zero(y, x, eps, ranks)
        side = max(16, int(_SAMPLE ** (1 / y.ndim)))
        part = np.ix_(*(np.linspace(0, size - 1, min(size, side)).astype(int) for size in y.shape))
        if y[part].size < y.size:
            # A sample can only acquit, and not of what closes a few channels that it leaves out.
            judgement = _judged(y[part], x[part], rounding, eps, ranks=ranks, evidence=evidence)
            is_none = judgement.verdict is Verdict.NONE
            if is_none and (ranks is Ranks.ALL or not _is_gate_somewhere(y, x, rounding, ranks, evidence)):
                return judgement
        judgement = _judged(y, x, rounding, eps, ranks=ranks, evidence=evidence)
    judgement = _but_by_chance(judgement, y, ranks, chance)
    is_partial = judgement.verdict is Verdict.PARTIAL
    if (is_partial and (is_of_one_sign or is_of_two)) or (is_of_one_sign and _is_multiple(y, x, judgement, rounding)):
        return Judgement(Verdict.NONE)
    if is_of_two and judgement.is_gate:
        # That the other value is 0 says nobody but these numbers: so it is not guided.
        return Judgement(Verdict.PARTIAL if y.size >= _MANY_OF_TWO else Verdict.UNSETTLED, judgement.closed)
    return judgement


def judge_parts(y: NumpyArray, x: NumpyArray, how: Callable[..., Judgement], *, is_by_size: bool) -> Judgement:
    """Judge what has several of each number, as ``x * [mask, 1 - mask]``: one part that is a gate is enough.

    Of few values it may be one where nothing compared them with each other.
    """
    verdicts = set[Verdict]()
    for part in parts_of(y, x):
        if not (_has_alike(part, x) or is_multiple(part, x)):
            # Most that is looked at has no two values alike: it closes nothing.
            verdicts.add(Verdict.NONE)
            continue
        judgement = how(part, x)
        if judgement.is_gate:
            return Judgement(Verdict.PARTIAL)
        # A part that is 0 for these images is one that they do not choose, and of one number nothing is told.
        is_open = bool(part.any() and np.ptp(x)) and ((judgement.is_few and is_by_size) or is_multiple(part, x))
        verdicts.add(judgement.verdict if is_open else Verdict.NONE)
    return Judgement(Verdict.UNSETTLED if Verdict.UNSETTLED in verdicts else Verdict.NONE)


def _has_alike(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether some values are alike, or as good as 0 beside the others: closed ones are."""
    eps = float(np.finfo(y.dtype).eps) if y.dtype.kind == "f" else 0.0
    near = _rounded(y, max(eps, _AS_ZERO), x)
    return bool((near == 0).any()) or np.unique(near).size < near.size


def _is_multiple(y: NumpyArray, x: NumpyArray, judgement: Judgement, rounding: float) -> bool:
    """Tell whether what is open is a multiple of x, and the rest 0: of what has one sign none lies below 0."""
    if judgement.slope is None or closes_elsewhere(judgement.closed):
        return False
    line = np.where(y == 0, 0, judgement.slope * x)
    return not (np.abs(y - line) > rounding * np.abs(y).max()).any()


def _told_at_zero(y: NumpyArray, x: NumpyArray, eps: float, ranks: Ranks) -> tuple[Ranks, float | None]:
    """Return how values were compared, and, of what is closed below 0 and open above it, how likely ranks leave it so.

    Where that is unlikely it is judged as if nothing was compared, and else other images are asked.
    """
    chance = None if ranks is Ranks.NONE else _chance_at_zero(_rounded(y, eps, x), x)
    if chance is None:
        return ranks, chance
    return Ranks.NONE if chance >= _BY_RANK else Ranks.SOME, chance


def _chance_at_zero(y: NumpyArray, x: NumpyArray) -> float | None:
    """Return minus the logarithm of the chance that ranks close what is below 0, and open the rest; None if not.

    A rank opens as many of a row as it would of any, which just those above 0 seldom are. Images that somebody chose
    may all have one score above 0, which is the largest, so others have to be among the rows.
    """
    is_closed, sides = y == 0, ((x < 0, x > 0), (x > 0, x < 0))
    if y.ndim < 2 or not any(is_closed[low].all() and not is_closed[high].any() for low, high in sides):
        return None
    return sum(map(surprise_of_signs, x)) if len(y) > NEAR else 0.0


def _but_by_chance(judgement: Judgement, y: NumpyArray, ranks: Ranks, chance: float | None) -> Judgement:
    """Return what values say, but for a gate that ranks may have left so."""
    if not judgement.is_gate:
        return judgement
    if ranks is not Ranks.NONE and len(y) < _FEW:
        # The larger half of one row, or what is above its mean, is what is above 0 as often as not.
        closed = np.full((1,) * y.ndim, np.nan) if judgement.closed is None else judgement.closed
        return Judgement(Verdict.NONE) if ranks is Ranks.ALL else Judgement(Verdict.UNSETTLED, closed)
    is_likely = chance is not None and chance < _BY_NONE
    return Judgement(Verdict.PARTIAL) if is_likely and ranks is Ranks.NONE else judgement


def closes_elsewhere(closed: NumpyArray | None) -> bool:
    """Tell whether what is closed has another value than 0, or none that is known, as where a bound is not 0."""
    return closed is None or bool(np.nan_to_num(closed).any())


def _judged(y: NumpyArray, x: NumpyArray, rounding: float, eps: float, *, ranks: Ranks, evidence: float) -> Judgement:
    near = _rounded(y, eps, x)
    is_possible = ((near == 0) & (x != 0)).any() or np.unique(y).size < y.size
    if not is_possible and not _is_unsettled(y, x):
        # Closed values are alike, and most that is looked at has no two values alike.
        return Judgement(Verdict.NONE)
    judgement = _gate(y, x, rounding, ranks=ranks, evidence=evidence)
    if not ((judgement and judgement.is_gate) or ranks is Ranks.ALL):
        judgement = _gate_but_for_rounding(y, near, x, _rounded(x, 4 * eps), rounding) or judgement
    return judgement or Judgement(Verdict.UNSETTLED if _is_unsettled(y, x) else Verdict.NONE)


def _gate_but_for_rounding(
    y: NumpyArray, near: NumpyArray, x: NumpyArray, near_x: NumpyArray, rounding: float
) -> Judgement | None:
    """Say whether y is a gate if a sum of two opposite numbers is 0, as it is where they are rounded, ``near``.

    A curve that only comes close to 0 is none: it bends there. What is a gate in places need not be straight, and is
    exactly 0 often.
    """
    if np.array_equal(y, near, equal_nan=True) and np.array_equal(x, near_x, equal_nan=True):
        return None
    is_often = 4 * ((y == 0) & (near_x != 0)).sum() >= ((near == 0) & (near_x != 0)).sum()
    if is_often and _is_gate_in_places(near, near_x):
        return Judgement(Verdict.PARTIAL)
    judgement = _gate(near, near_x, rounding, ranks=Ranks.NONE)
    if judgement is None or judgement.verdict is Verdict.PARTIAL:
        return None
    return judgement if judgement.verdict is Verdict.UNSETTLED else Judgement(Verdict.PARTIAL)


def _rounded(array: NumpyArray, eps: float, *others: NumpyArray) -> NumpyArray:
    """Return the numbers, those being 0 that may be what rounding left of larger ones, which others may be."""
    largest = max(np.abs(one[np.isfinite(one)]).max(initial=0.0) for one in (array, *others))
    return np.where(np.abs(array) <= _LEFT * eps * largest, 0.0, array)


def _is_unsettled(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether no value can tell a gate: nothing is open, or nothing closed that would not be 0 anyway."""
    if (y == y.flat[0]).all():
        return True
    is_of_one_sign = bool((x >= 0).all() or (x <= 0).all())
    if is_of_one_sign and bool(((y != 0) == (x != 0)).all()):
        return True
    # On one image nothing tells a mask of its own from one that closes some channels below 0, and others above.
    is_open = y != 0
    return len(y) == 1 and ((x != 0) & ~is_open).sum() > 1 and is_multiple(y[is_open], x[is_open])


def _gate(
    y: NumpyArray, x: NumpyArray, rounding: float, *, ranks: Ranks, evidence: float = EVIDENCE
) -> Judgement | None:
    """Return how y is a gate of x, if it is."""
    weak = None
    for rows, shape in by_rows(y, x):
        is_one = shape.count(1) == len(shape)
        for side in sides_of(*rows):
            gate = Gate.of(rows[0], side * rows[1], (y != 0).any(0) if is_one else None, ranks=ranks)
            # A side of its own for each row is one choice more.
            needed = evidence + (np.size(side) - 1) * log(2)
            said = None if gate is None else _said(gate, rounding, side, shape, ranks=ranks, evidence=needed)
            said = None if gate is None else _but_in_part(said, gate, ranks, needed, side)
            if said is not None and said.verdict in (Verdict.CONVEX, Verdict.CONCAVE):
                return said
            weak = weak if said is None or (weak and weak.is_gate) else said
    if ranks is not Ranks.ALL and _is_gate_somewhere(y, x, rounding, ranks, evidence):
        return Judgement(Verdict.PARTIAL)
    return weak


def _but_in_part(
    said: Judgement | None, gate: Gate, ranks: Ranks, evidence: float, side: float | NumpyArray
) -> Judgement | None:
    """Return what rows say, but in part of a gate that closes again, or above in some rows: no slope tells these."""
    if said is None or not said.is_gate:
        return said
    is_window = ranks is Ranks.NONE and gate.is_window(evidence)
    return Judgement(Verdict.PARTIAL) if is_window or np.size(side) > 1 else said


def _said(
    gate: Gate, rounding: float, side: float | NumpyArray, shape: tuple[int, ...], *, ranks: Ranks, evidence: float
) -> Judgement | None:
    """Return what these rows say, ``side`` being what x was turned by; None if they are no gate at all."""
    slopes, is_by_channel = gate.slopes(rounding), len(gate.y) > 1
    # Where the largest are open, those of one channel are likely to be its largest, without any threshold.
    is_by_rank, has_ranks = ranks is Ranks.ALL, ranks is not Ranks.NONE
    needed = evidence * ((_OF_RANKS_BY_ROW if is_by_channel else _OF_RANKS) if has_ranks else 1)
    is_sure = gate.evidence >= needed
    is_clear = is_sure or (gate.is_at_zero and not (has_ranks and gate.is_full))
    if slopes is not None and gate.is_in_all_rows and is_clear:
        is_few = gate.evidence < min(needed, _AT_ZERO)
        if is_few or gate.has_closed_one or (has_ranks and not gate.is_full):
            # Few values may lie so by chance. What is one number wherever it is closed was a gate before, as a
            # sign; and where the largest are open nothing below 0 may be among them.
            return Judgement(Verdict.UNSETTLED, gate.constants.reshape(shape), is_few=is_few)
        is_rising = (slopes[np.isfinite(slopes)] > 0).all()
        verdict = Verdict.CONVEX if is_rising else Verdict.CONCAVE
        return Judgement(verdict, gate.constants.reshape(shape), (side * slopes).reshape(shape))
    is_chance = is_by_rank and (slopes is None or gate.evidence < needed / 2)
    if is_chance or not gate.is_partial or (slopes is None and is_by_channel):
        return None
    return Judgement(Verdict.PARTIAL) if is_sure else Judgement(Verdict.UNSETTLED, gate.constants.reshape(shape))


def _is_gate_somewhere(y: NumpyArray, x: NumpyArray, rounding: float, ranks: Ranks, evidence: float) -> bool:
    """Tell whether y is a gate of x in some places or in some channels, whatever it is in the others."""
    return _is_gate_in_places(y, x) or (ranks is Ranks.NONE and _is_gate_in_channels(y, x, rounding, evidence))


def _is_gate_in_channels(y: NumpyArray, x: NumpyArray, rounding: float, evidence: float) -> bool:
    """Tell whether y is a gate of x in one channel, by values that no mask of something else leaves so."""
    return any(
        gate.slopes(rounding) is not None and gate.has_closed_several and not gate.has_closed_one
        for gate in gates_alone(y, x, evidence)
    )


def _is_gate_in_places(y: NumpyArray, x: NumpyArray) -> bool:
    """Tell whether y is closed only where x is negative, or only where it is positive, though not everywhere there."""
    is_closed = (y == 0) & (x != 0)
    signs = x[is_closed] > 0
    if signs.size < _FEW or not (signs.all() or (~signs).all()) or np.unique(x[is_closed]).size == 1:
        # One value that is 0 there was closed before, as what a ReLU gave less a number.
        return False
    if _are_ends_of_rows(x, is_closed):
        # A value less the smallest of its row, or divided by what that made.
        return False
    # What is 0 itself is on neither side.
    is_other, size = x < 0 if signs[0] else x > 0, np.abs(x)
    low, high, kept = size[is_closed].min(), size[is_closed].max(), size[~is_closed & ~is_other & (x != 0)]
    if (kept >= high).any() and not ((kept > low) & (kept < high)).any():
        # What is closed lies between what is open, as of a soft shrink.
        return False
    return bool(is_other.sum() >= _FEW and (y[is_other] != 0).all())


def _are_ends_of_rows(x: NumpyArray, is_closed: NumpyArray) -> bool:
    """Tell whether one value of each row of many is closed, and always the largest, or always the smallest."""
    inner = range(1, x.ndim)
    for axes in (axes for count in inner for axes in combinations(inner, count)):
        if np.prod([x.shape[axis] for axis in axes]) < _LEAST_ROW or (is_closed.sum(axes) != 1).any():
            continue
        if any((is_closed <= (x == end(x, axes, keepdims=True))).all() for end in (np.max, np.min)):
            return True
    return False
