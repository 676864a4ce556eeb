"""What places may be ReLUs of behind weights: judged by derivatives, for these images and for others."""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Final

import numpy as np
import tensorflow as tf

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.bounds import judge_bound_behind
from guided_backprop.backends.choices import MANY_ROWS, judge_behind, judge_stopped, judge_weighed, needs_more_images
from guided_backprop.backends.evidence import NEAR, joined
from guided_backprop.backends.spelling import Verdict
from guided_backprop.backends.tensorflow.hidden.derivatives import Derivatives, Towards, Way
from guided_backprop.backends.tensorflow.hidden.differences import Differences
from guided_backprop.backends.tensorflow.hidden.looks import further_inputs, other_inputs
from guided_backprop.backends.tensorflow.hidden.traces import Candidate, Place

# So small a part of the model's own derivative is what rounding left of opposite ones.
_LEFT: Final = 1e-5
#: What is seen of each candidate on some images.
_Look = Callable[[Sequence[tf.Tensor]], list[Towards]]


class Behind:
    """What places may be ReLUs of behind weights, until each is settled.

    Args:
        places: what may hide a ReLU.
        derivatives: those in the graph that the places are in.
        flat: says the name in that graph of what a node of the function gives.
        first: from which input on others are made of the images.
        differences: changes of values in that graph.

    Attributes:
        led: the places that no image has settled so far, by number.
    """

    def __init__(
        self,
        places: Sequence[Place],
        derivatives: Derivatives,
        flat: Callable[[str], str],
        first: Callable[[int], int],
        differences: Differences,
    ) -> None:
        self._places, self._derivatives, self._flat, self._first = places, derivatives, flat, first
        self._differences = differences
        self._open = [(number, one) for number, place in enumerate(places) for one in place.behind]
        self.led: list[int] = []

    @property
    def is_open(self) -> bool:
        """Whether there is something that derivatives may still show."""
        return bool(self._open)

    def found(self, arrays: Sequence[tf.Tensor]) -> set[int]:
        """Return the places that are made of ReLUs behind weights, by number."""
        if not self._open:
            return set()
        told = list(zip(self._open, self._told(arrays), strict=True))
        self.led = [number for (number, one), verdict in told if one.less and verdict is Verdict.UNSETTLED]
        # What the weights say they say for all images.
        self._open = [one for one, verdict in told if verdict is not Verdict.NONE]
        return {number for (number, _), verdict in told if verdict is Verdict.PARTIAL}

    def _told(self, arrays: Sequence[tf.Tensor]) -> list[Verdict]:
        """Return what derivatives say; those for other images as well, where the first ones tell nothing."""
        look = self._looking(arrays)
        looks = [[seen] for seen in look(arrays)]
        verdicts = [_verdict(one, seen) for (_, one), seen in zip(self._open, looks, strict=True)]
        first = self._first(len(arrays))
        near, further = islice(other_inputs(arrays, first), NEAR), further_inputs(arrays, first)
        for turn, others in enumerate(chain(near, further), 1):
            open_ones = [
                index
                for index, verdict in enumerate(verdicts)
                if verdict is Verdict.UNSETTLED and self._is_doubtful(index, looks[index], turn)
            ]
            if not open_ones:
                break
            try:
                seen_now = look(others)
            except tf.errors.OpError:
                # The model says of itself that it takes no such images.
                continue
            for index in open_ones:
                looks[index].append(seen_now[index])
                verdicts[index] = _verdict(self._open[index][1], looks[index])
        for index, (number, one) in enumerate(self._open):
            if one.is_stopped and verdicts[index] is not Verdict.PARTIAL and _is_lost(one, looks[index]):
                verdicts[index] = self._told_by_values(number, one, arrays)
        return verdicts

    def _told_by_values(self, number: int, candidate: Candidate, arrays: Sequence[tf.Tensor]) -> Verdict:
        """Return what changes of values say, where what was detached has values and no derivative."""
        y, x = self._asked(number, candidate)[:2]
        changes, own = self._differences.towards(y, x, arrays), self._derivatives.towards([(y, x)], arrays, Way.OWN)
        looks, verdict, first = (
            list[tuple[NumpyArray, NumpyArray, NumpyArray]](),
            Verdict.NONE,
            self._first(len(arrays)),
        )
        for others in chain([arrays], islice(other_inputs(arrays, first), NEAR), further_inputs(arrays, first)):
            try:
                places, slopes = changes(others)
                ((values, (derived,)),) = own(others)
            except tf.errors.OpError:
                continue
            looks.append((values[0].ravel()[places], derived.ravel()[places], slopes))
            verdict = judge_stopped(looks, candidate.ranks, is_of_one_sign=bool(candidate.sign), least_rows=MANY_ROWS)
            if verdict is not Verdict.UNSETTLED:
                break
        return verdict

    def _is_doubtful(self, index: int, seen: Sequence[Towards], turn: int) -> bool:
        """Tell whether other images may say more of a candidate, after so many looks."""
        values, derivatives = seen[0]
        # Where nothing comes from but through ReLUs that are guided there is nothing to find.
        is_led = any(derived.any() for derived in derivatives)
        return is_led and (turn <= NEAR or needs_more_images(turn, values[0].shape, self._open[index][1].ranks))

    def _looking(self, arrays: Sequence[tf.Tensor]) -> _Look:
        """Return what sees the values that are asked for, and all derivatives towards them."""
        pairs = [self._asked(number, one) for number, one in self._open]
        # As if a and b both came from outside: what is made of b is made of a as well where b is made of that.
        apart = [list(map(self._flat, one.refs)) if one.less else [] for _, one in self._open]
        around = self._derivatives.towards(pairs, arrays, leaves=apart)
        stopped = [index for index, (_, one) in enumerate(self._open) if one.is_stopped]
        if not stopped:
            return around
        asked = [pairs[index] for index in stopped]
        own = self._derivatives.towards(asked, arrays, Way.OWN)
        ways = [Way.TOTAL, *([Way.UNROUNDED] if self._derivatives.has_rounding else [])]
        further = [own, *(self._undone(asked, arrays, way, own) for way in ways)]

        def look(arrays: Sequence[tf.Tensor]) -> list[Towards]:
            seen = around(arrays)
            for towards in further:
                for index, (_, derived) in zip(stopped, towards(arrays), strict=True):
                    seen[index] = seen[index][0], [*seen[index][1], derived[0]]
            return seen

        return look

    def _undone(self, pairs: Sequence[Sequence[str]], like: Sequence[tf.Tensor], way: Way, own: _Look) -> _Look:
        """Return derivatives as if nothing stopped them; 0 where there are none, which then values tell."""

        def none(arrays: Sequence[tf.Tensor]) -> list[Towards]:
            return [(values, [np.zeros_like(one) for one in derived]) for values, derived in own(arrays)]

        try:
            towards = self._derivatives.towards(pairs, like, way)
        except (LookupError, NotImplementedError, TypeError, ValueError):
            # What the model stops a gradient in front of may have none.
            return none

        def look(arrays: Sequence[tf.Tensor]) -> list[Towards]:
            try:
                return towards(arrays)
            except tf.errors.InvalidArgumentError:
                return none(arrays)

        return look

    def _asked(self, number: int, candidate: Candidate) -> list[str]:
        """Return the place and what derivatives towards are asked for; of a bound the place itself is seen too."""
        place = self._flat(self._places[number].ref)
        return [place, *map(self._flat, candidate.refs), *([place] if candidate.is_bounded else [])]


def _verdict(candidate: Candidate, looks: Sequence[Towards]) -> Verdict:
    """Judge by derivatives what a place gives behind weights; by those of the last look, or of all together."""
    if candidate.less:
        return judge_behind(*looks[-1])
    x, derivative = joined([(values[0], derivatives[0]) for values, derivatives in looks])
    ranks, has_sign = candidate.ranks, bool(candidate.sign)
    is_bound = candidate.is_bounded
    verdict = (
        _of_bound(looks)
        if is_bound
        else judge_weighed(x, derivative, ranks, is_of_one_sign=has_sign, least_rows=MANY_ROWS)
    )
    if not candidate.is_stopped or verdict is Verdict.PARTIAL:
        return verdict
    # Behind those that were asked for come the model's own, and then as if nothing stopped or rounded.
    asked = len(candidate.refs) + candidate.is_bounded
    for way in range(asked + 1, len(looks[0][1])):
        stopped = [(values[0], derivatives[asked], derivatives[way]) for values, derivatives in looks]
        hidden = judge_stopped(stopped, ranks, is_of_one_sign=has_sign, least_rows=MANY_ROWS)
        if hidden is Verdict.PARTIAL:
            return hidden
        verdict = verdict if hidden is Verdict.NONE else hidden
    return verdict


def _is_lost(candidate: Candidate, looks: Sequence[Towards]) -> bool:
    """Tell whether a gradient of the model's own comes to a value, and none as if nothing was stopped."""
    asked = len(candidate.refs) + candidate.is_bounded
    own, *totals = looks[0][1][asked:]
    left = _LEFT * np.abs(own).max(initial=0.0)
    return bool(left > 0 and any((np.abs(total) <= left).all() for total in totals))


def _of_bound(looks: Sequence[Towards]) -> Verdict:
    """Judge whether a bound that is not 0 is taken away again; by all looks that there are."""
    rows = []
    for (x, y), (derivative, seeds) in ((values[:2], derivatives[:2]) for values, derivatives in looks):
        if not (x.ndim and y.ndim) or len(x) != len(y):
            return Verdict.NONE
        rows.append((x, derivative, (y * seeds).reshape(len(y), -1).sum(1)))
    if len({x.shape[1:] for x, _, _ in rows}) > 1:
        return Verdict.NONE
    verdict = judge_bound_behind(*(np.concatenate(arrays) for arrays in zip(*rows, strict=True)))
    return Verdict.UNSETTLED if verdict is Verdict.NONE and len(looks) <= NEAR else verdict
