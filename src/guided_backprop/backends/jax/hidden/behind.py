"""What may be a ReLU behind weights: judged by derivatives, for the first images and for others."""

from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.bounds import judge_bound_behind
from guided_backprop.backends.choices import MANY_ROWS, judge_behind, judge_stopped, judge_weighed, needs_more_images
from guided_backprop.backends.evidence import joined
from guided_backprop.backends.jax.graph.program import Step, Value
from guided_backprop.backends.jax.hidden.looks import ALL_LOOKS, FURTHER_LOOKS, NEAR_LOOKS, Asks, Looks
from guided_backprop.backends.jax.hidden.signs import Signs
from guided_backprop.backends.jax.hidden.taint import Nominee
from guided_backprop.backends.jax.hidden.unrounded import has_rounding
from guided_backprop.backends.jax.hidden.watch import Asked, Seeded, Way, seeds, steps_between
from guided_backprop.backends.notes import Candidate, Choice, Ranks
from guided_backprop.backends.spelling import Verdict


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
