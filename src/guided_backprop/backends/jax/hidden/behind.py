"""What may be a ReLU behind weights: judged by derivatives, for the first images and for others."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.bounds import judge_bound_behind
from guided_backprop.backends.choices import MANY_ROWS, judge_behind, judge_stopped, judge_weighed, needs_more_images
from guided_backprop.backends.evidence import joined
from guided_backprop.backends.jax.graph.program import Step, Value
from guided_backprop.backends.jax.hidden.looks import ALL_LOOKS, FURTHER_LOOKS, NEAR_LOOKS, Asks, Looks
from guided_backprop.backends.jax.hidden.opening import snapped
from guided_backprop.backends.jax.hidden.signs import Signs
from guided_backprop.backends.jax.hidden.taint import Nominee
from guided_backprop.backends.jax.hidden.unrounded import has_rounding
from guided_backprop.backends.jax.hidden.watch import Asked, Seeded, Way, seeds, steps_between
from guided_backprop.backends.notes import Candidate, Choice, Ranks
from guided_backprop.backends.spelling import Verdict

# Of so many turns of a loop each is looked at alone.
_MOST_TURNS = 64
# By so many units in the last place of all that is added up a sum may be off.
_LEFT_OF_SUMS = 512
# So many closed values are looked into.
_LEAST_CLOSED = 12


class Behind:
    """What is made of ReLUs behind weights, in one program.

    Args:
        looks: what is seen of it.
    """

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        # What something is a ReLU of, behind weights.
        self._weighed: set[Value] = set()

    def is_relu(self, y: Value, candidate: Candidate[Value], nominee: Nominee, signs: Signs) -> bool:
        """Tell whether a value is a ReLU of a candidate, behind weights."""
        x = candidate.ref
        if candidate.less is not None:
            return self._is_of_two(y, candidate)
        if candidate.is_bounded:
            return self._is_of_bound(y, x, nominee)
        is_of_one_sign = bool(signs.of(x))
        if self._is_weighed(y, x, nominee, is_of_one_sign=is_of_one_sign):
            return True
        is_open = candidate.is_stopped and x not in self._weighed
        return is_open and self._is_stopped(y, x, nominee, is_of_one_sign=is_of_one_sign)

    def is_relu_elsewhere(self, y: Value, x: Value, nominee: Nominee, signs: Signs) -> bool:
        """Tell by derivatives whether a value is a ReLU of one in another block, in whatever order, or of one turn.

        What is closed nowhere is none, and nothing is run for it: each derivative is one through all blocks.
        """
        xs = [one.ref for one in nominee.choices if one.choice is Choice.ELSEWHERE]
        looks, is_of_one_sign = list[_Look](), bool(signs.of(x))
        for number in () if x in self._weighed else _numbers(x, nominee.ranks[x]):
            values, ys = (self._looks.seen(value, number + 1, first=number) for value in (x, y))
            if values is None or ys is None or not (looks or _is_closed(ys, y)):
                continue
            found = self._looks.across(y, number, xs)
            derivative, sums = found[x], found[y]
            if derivative is None or sums is None:
                continue
            looks.append(_Look(values, derivative, sums))
            how = partial(_judged, x=x, nominee=nominee, is_of_one_sign=is_of_one_sign)
            verdicts = set(map(how, _by_turns(looks, x)))
            if Verdict.PARTIAL in verdicts:
                self._weighed.add(x)
                return True
            if Verdict.UNSETTLED not in verdicts:
                break
        return False

    def _is_of_two(self, y: Value, candidate: Candidate[Value]) -> bool:
        """Tell by derivatives whether one of two values is taken away again."""
        asked = _towards(y, candidate)
        for number in range(NEAR_LOOKS):
            values = [self._looks.seen(value, number + 1, first=number) for value in candidate.values]
            found = self._looks.together(y, number, _weighed)
            derivatives = [found[one] for one in asked]
            known = [array for array in (*values, *derivatives) if array is not None]
            if len(known) < 2 * len(asked):
                continue
            verdict = judge_behind(known[: len(asked)], known[len(asked) :])
            if verdict is not Verdict.UNSETTLED:
                return verdict is Verdict.PARTIAL
        return False

    def _is_weighed(self, y: Value, x: Value, nominee: Nominee, *, is_of_one_sign: bool) -> bool:
        """Tell it by the derivative of one towards the other."""
        if x in self._weighed:
            # What is made of a ReLU is said of that one.
            return False
        looks, ranks = list[tuple[NumpyArray, NumpyArray]](), nominee.ranks[x]
        for number in _numbers(x, ranks):
            values = self._looks.seen(x, number + 1, first=number)
            derivative = self._looks.together(y, number, _weighed)[Seeded(x, y)]
            if values is None or derivative is None:
                continue
            looks.append((_by_rows(values, x), _by_rows(derivative, x)))
            verdict = judge_weighed(*joined(looks), ranks, is_of_one_sign=is_of_one_sign, least_rows=MANY_ROWS)
            if verdict is Verdict.PARTIAL and not self._is_placed(y, values, number):
                self._weighed.add(x)
                return True
            if verdict is not Verdict.UNSETTLED:
                break
        return False

    def _is_stopped(self, y: Value, x: Value, nominee: Nominee, *, is_of_one_sign: bool) -> bool:
        """Tell it by the values of both, where something stopped the gradient between them."""
        if _has_one_way(x, y, nominee):
            # As if nothing was stopped it has no derivative in JAX: nobody knows what is hidden there.
            self._weighed.add(x)
            return True
        ways = (Way.TOTAL, Way.UNROUNDED) if has_rounding(nominee.block) else (Way.TOTAL,)
        return any(self._is_by(way, y, x, nominee, is_of_one_sign=is_of_one_sign) for way in ways)

    def _is_by(self, way: Way, y: Value, x: Value, nominee: Nominee, *, is_of_one_sign: bool) -> bool:
        """Tell it by the derivative on some way, beside the model's own."""
        asked, asks = [Seeded(x, y, one) for one in (Way.OWN, way)], _STOPPED[way]
        looks: list[tuple[NumpyArray, NumpyArray, NumpyArray]] = []
        ranks = nominee.ranks[x]
        for number in _numbers(x, ranks):
            values, found = self._looks.seen(x, number + 1, first=number), self._looks.together(y, number, asks)
            known = [_by_rows(array, x) for array in (values, *map(found.get, asked)) if array is not None]
            if len(known) < 1 + len(asked):
                continue
            looks.append((known[0], known[1], known[2]))
            verdict = judge_stopped(looks, ranks, is_of_one_sign=is_of_one_sign, least_rows=MANY_ROWS)
            if verdict is Verdict.PARTIAL:
                self._weighed.add(x)
                return True
            if verdict is Verdict.NONE:
                break
        return False

    def _is_of_bound(self, y: Value, x: Value, nominee: Nominee) -> bool:
        """Tell whether a bound that is not 0 is taken away again."""
        rows: list[list[NumpyArray]] = []
        for number in range(NEAR_LOOKS):
            values, results = (self._looks.seen(value, number + 1, first=number) for value in (x, y))
            derivative = self._looks.together(y, number, _weighed)[Seeded(x, y)]
            is_one = results is not None and results.shape == y.aval.shape and results.ndim > 0
            if values is None or results is None or derivative is None or not is_one or len(values) != len(results):
                return False
            products = results * np.asarray(seeds(jnp.asarray(results)))
            rows.append([values, derivative, products.reshape(len(results), -1).sum(1).astype(y.aval.dtype)])
        return judge_bound_behind(*(np.concatenate(arrays) for arrays in zip(*rows, strict=True))) is Verdict.PARTIAL

    def _is_placed(self, y: Value, x: NumpyArray, number: int) -> bool:
        """Tell whether values were put somewhere, and nothing was added up so far."""
        placed = self._looks.seen(y, number + 1, first=number)
        return placed is not None and bool(np.isin(placed, [*x.ravel(), 0]).all())


class _Look(NamedTuple):
    """Values, what is derived towards them of so much, as one run shows it."""

    x: NumpyArray
    derivative: NumpyArray
    sums: NumpyArray


def _by_turns(looks: Sequence[_Look], x: Value) -> Iterator[list[_Look]]:
    """Yield looks at all of a value, and at each turn of the loops around it alone."""
    yield [*looks]
    shape, sizes = x.aval.shape, {look.x.size for look in looks}
    count = max(sizes) // max(1, int(np.prod(shape)))
    if shape and len(sizes) == 1 and 1 < count <= _MOST_TURNS:
        turns = [[array.reshape(count, *shape) for array in look[:2]] for look in looks]
        for turn in range(count):
            yield [
                _Look(x[turn], derivative[turn], look.sums) for (x, derivative), look in zip(turns, looks, strict=True)
            ]


def _judged(looks: Sequence[_Look], x: Value, nominee: Nominee, *, is_of_one_sign: bool) -> Verdict:
    """Say of a value in another block whether it is what a ReLU, or a bound that is taken away again, is of."""
    is_alike = len({look.x.size for look in looks}) == 1
    if x in nominee.bounded and is_alike and len(looks) >= NEAR_LOOKS:
        verdict = judge_bound_behind(*(np.stack(arrays) for arrays in zip(*looks, strict=True)))
        if verdict is Verdict.PARTIAL:
            return verdict
    if not all(map(_is_multiple, looks)):
        # Nor is what a softmax leaves as good as closed.
        return Verdict.UNSETTLED if x in nominee.bounded and len(looks) < NEAR_LOOKS else Verdict.NONE
    seen = joined([(_by_rows(look.x, x), _by_rows(look.derivative, x)) for look in looks])
    return judge_weighed(*seen, nominee.ranks[x], is_of_one_sign=is_of_one_sign, least_rows=MANY_ROWS)


def _is_multiple(look: _Look) -> bool:
    """Tell whether results are, number by number, what their derivatives make of x, and nothing else: a ReLU is."""
    with np.errstate(all="ignore"):
        parts = look.x.ravel() * look.derivative.ravel()
    eps = float(np.finfo(look.sums.dtype).eps)
    return bool(np.abs(parts.sum() - look.sums) <= _LEFT_OF_SUMS * eps * (np.abs(parts).sum() + np.abs(look.sums)))


def _is_closed(ys: NumpyArray, y: Value) -> bool:
    """Tell whether many values are the smallest or the largest of all, but for rounding, as what a ReLU closes is.

    What padding leaves at 0 lies between the others.
    """
    near = snapped(ys, y)
    most = max((near == end).sum() for end in (near.min(), near.max()))
    return bool(most >= min(_LEAST_CLOSED, max(2, ys.size // 4)))


def _is_one_way(step: Step) -> bool:
    """Tell whether no gradient comes back through a step, as through a loop that ends when a value says so."""
    return step.name == "while" or any(_is_one_way(inner) for block in step.blocks for inner in block.steps)


def _weighed(y: Value, nominee: Nominee) -> list[Asked]:
    """Return all derivatives of one value behind weights: they are taken at once."""
    return [asked for one in nominee.choices if one.choice is Choice.BEHIND for asked in _towards(y, one)]


def _towards(y: Value, candidate: Candidate[Value]) -> list[Asked]:
    """Return the derivatives of a value that tell of a candidate: towards each of two, and not through the other.

    What is chosen between ``h`` and ``h @ w`` is taken away as it is between any two, whatever comes to h through w.
    """
    x, less = candidate.ref, candidate.less
    return [Seeded(x, y)] if less is None else [Seeded(x, y, beside=less), Seeded(less, y, beside=x)]


def _stopped(way: Way, y: Value, nominee: Nominee) -> list[Asked]:
    """Return the model's own derivatives of a value by what was stopped on the way to it, and those on another way."""
    behind = [one for one in nominee.choices if one.choice is Choice.BEHIND and one.less is None and one.is_stopped]
    refs = [one.ref for one in behind if not one.is_bounded and not _has_one_way(one.ref, y, nominee)]
    return [Seeded(x, y, one) for x in refs for one in (Way.OWN, way)]


_STOPPED: dict[Way, Asks] = {way: partial(_stopped, way) for way in (Way.TOTAL, Way.UNROUNDED)}


def _has_one_way(x: Value, y: Value, nominee: Nominee) -> bool:
    """Tell whether no gradient comes back through a step between two values."""
    return any(map(_is_one_way, steps_between(x, y, nominee.block)))


def _numbers(x: Value, ranks: Ranks) -> Iterator[int]:
    """Yield the numbers of the looks at which a value is judged: more, where few rows or values tell nothing."""
    yield from range(NEAR_LOOKS)
    for count, number in enumerate(range(FURTHER_LOOKS, ALL_LOOKS), NEAR_LOOKS):
        if not needs_more_images(count, x.aval.shape, ranks):
            return
        yield number


def _by_rows(array: NumpyArray, x: Value) -> NumpyArray:
    """Return the values of one row as rows, one for each turn of a loop around it."""
    return array.reshape(-1, *x.aval.shape) if len(x.aval.shape) == 1 else array
