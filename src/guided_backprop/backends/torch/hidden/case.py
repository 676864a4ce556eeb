"""One result that may be a ReLU: what its values and its derivatives say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends import evidence
from guided_backprop.backends.bounds import judge_bound_behind
from guided_backprop.backends.choices import LEAST_ROWS, MANY_ROWS, judge_behind, judge_weighed
from guided_backprop.backends.evidence import is_multiple, is_thin
from guided_backprop.backends.notes import Choice, Ranks
from guided_backprop.backends.rows import are_apart
from guided_backprop.backends.spelling import Judgement, Verdict, closes_elsewhere
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.hidden.derivatives import (
    Together,
    agrees,
    derivative,
    leads_around,
    opposite,
    seeds,
)
from guided_backprop.backends.torch.hidden.found import Spelled
from guided_backprop.backends.torch.hidden.known import Place, joined
from guided_backprop.backends.torch.hidden.notes import Value
from guided_backprop.backends.torch.hidden.suspect import ALIKE, Suspect, are_alike, judged

# By so many units in the last place the sum of two numbers may miss 0.
_LEFT: Final = 8

#: A result, and what it may be a ReLU of, by their place.
Values = Mapping[Place, tuple[NumpyArray, NumpyArray]]
#: What is "unsure" is no ReLU on images like these, nor likely to be one on others; what is "open" may be one there.
Answer = Literal["plain", "refuted", "unsure", "open", "unfinished", "refused"]


@dataclass(frozen=True)
class Case:
    """A suspect, and all that is known of it.

    Attributes:
        suspect: the result that may be a ReLU.
        node: its node; None if the graph does not show it.
        path: the graph.
        others: values on other images.
        is_settled: whether a later result is made of it, which is a ReLU.
        taken: the nodes of what is taken for a ReLU by its values, which nothing passes on the way to x where one of
            these is added to x.
        far: values on images that are far larger; None as long as they are not asked for.
        behind: x and the derivative towards it on other images, where weights lie between.
        own: the derivative towards x with no ReLU shut, where one of these is added to x; None elsewhere.
        turned: the same of each number of the result times another one, where that is bounded behind weights.
        together: what tells the derivatives towards all values that the result may be a ReLU of behind weights.
        apart: those towards x and what is taken away from it as if these alone made it; None where they do not.
    """

    suspect: Suspect
    node: Node | None
    path: Path
    others: Sequence[Values]
    is_settled: bool
    taken: Sequence[Node] = ()
    far: tuple[NumpyArray, NumpyArray] | None = None
    behind: Sequence[tuple[NumpyArray, NumpyArray]] = ()
    own: NumpyArray | None = None
    turned: NumpyArray | None = None
    together: Together | None = None
    apart: Sequence[NumpyArray | None] | None = None

    def asked(self) -> "Case":
        """Return the same with its own derivative, to be asked before ReLUs are shut."""
        x = self.suspect.x
        if self.node is not None and x.less is not None:
            return replace(self, apart=opposite(self.path, self.node, self.suspect))
        if self.node is None or not x.is_beside:
            return self
        is_bounded = x.is_bounded and self._is_behind
        turned = derivative(self.node, self.suspect, x, is_of_one=False, turn=1.0) if is_bounded else None
        return replace(self, own=derivative(self.node, self.suspect, x, is_of_one=not self._is_behind), turned=turned)

    @cached_property
    def looks(self) -> list[tuple[NumpyArray, NumpyArray]]:
        """The result and x, for each run of the model, but the one on images that are far larger."""
        first = self.suspect.values
        others = [look[self.suspect.place] for look in self.others if self.suspect.place in look]
        return [first, *(pair for pair in others if are_alike(pair, first))]

    @cached_property
    def values(self) -> tuple[NumpyArray, NumpyArray]:
        """The same, as one."""
        return joined(self.looks)

    @cached_property
    def judgement(self) -> Judgement:
        """What the values say."""
        near = self._judged(self.looks)
        if self.far is None or not are_alike(self.far, self.suspect.values):
            return near
        # What it is it has to be on all of them; and what is few on each of them may be enough on all.
        far, every = self._judged([self.far]), self._judged([*self.looks, self.far])
        return every if far.is_gate or every.is_gate or every.is_few or self.is_choice else far

    def _judged(self, looks: Sequence[tuple[NumpyArray, NumpyArray]]) -> Judgement:
        suspect = self.suspect
        return judged(suspect.x, looks, is_of_two=suspect.is_of_two)

    @property
    def is_choice(self) -> bool:
        """Whether it is some of the numbers of x."""
        return self.suspect.x.choice is not Choice.NONE

    @property
    def is_open(self) -> bool:
        """Whether no value tells what it is."""
        return self.judgement.verdict is Verdict.UNSETTLED

    @property
    def is_in_doubt(self) -> bool:
        """Whether other images may tell it."""
        is_told = not (self.is_open or self._is_away) or bool(self.suspect.x.sign)
        return not is_told and self.suspect.x.choice is not Choice.BEHIND

    @property
    def _is_away(self) -> bool:
        """Whether x of both signs are closed: larger ones may be open on that side too, as of a hard shrink."""
        if self.is_choice or self.judgement.verdict is not Verdict.CONVEX:
            return False
        closed = self.values[1].reshape(self.values[0].shape)[self.values[0] == 0]
        return bool((closed > 0).any() and (closed < 0).any())

    @cached_property
    def derivative(self) -> NumpyArray | None:
        """The derivative of the result towards x; None if the graph cannot tell it.

        What leaves a ReLU is 0 where it is closed. So there the ReLUs in it need not be shut, as that of
        ``x + relu(-x)``; where that sum is open none of them adds to the derivative: the rule on these changes nothing.
        """
        if self._shut is None or self.own is None or self.judgement.closed is None:
            return self._shut
        return np.where(self.suspect.values[0] == self.judgement.closed, self.own, self._shut)

    @property
    def is_gate(self) -> bool:
        """Whether values and derivative are those of a ReLU."""
        return (
            self.judgement.verdict is Verdict.CONVEX
            and self.derivative is not None
            and bool(self.derivative.any())
            and agrees(self.suspect, self.judgement, self.derivative)
        )

    @property
    def is_raised(self) -> bool:
        """Whether other images show that it is a ReLU, which the given ones left open."""
        return self.suspect.judgement.verdict is Verdict.UNSETTLED and self.is_gate

    @property
    def _is_closed(self) -> bool:
        """Whether the images themselves show nothing but what is closed: other ones may open it."""
        y, closed = self.suspect.values[0], self.judgement.closed
        return bool((y == (y.flat[0] if closed is None else closed)).all())

    @property
    def _is_direct(self) -> bool:
        """Whether it is no less likely to be a ReLU than what it is made of."""
        is_other_0 = self.suspect.is_of_two and self.judgement.closed is not None
        return self.suspect.is_direct or is_other_0 or self.judgement.is_few or self._adds_up()

    def _adds_up(self) -> bool:
        """Tell whether several values add up to what the open side of a ReLU is, as ``x + |x|`` does.

        No ReLU is below 0: what falls there as x does is closed nowhere. And what comes through a ReLU that is an
        operation of its own, as half of ``x + relu(x)``, is guided there.
        """
        pairs = [self.values] if self.far is None else [self.values, self.far]
        if not self.suspect.adds_up or not all((y >= 0).all() and is_multiple(y, x) for y, x in pairs):
            return False
        y, x = self.suspect.values
        return self.derivative is None or np.allclose(self.derivative * x.reshape(y.shape), y, rtol=1e-2)

    def answer(self) -> Spelled | Answer:
        """Say whether it is a ReLU, or what else is to be done about it."""
        if self.is_choice:
            return self._answer_of_choice()
        if self.is_open and self.suspect.is_made:
            return "refused"
        suspect, verdict = self.suspect, Verdict.NONE if self._is_of_others else self.judgement.verdict
        if self._is_of_others and self._closes_some:
            return self._refused()
        # What was taken for a ReLU ended what came before it, and what follows it was not looked at.
        none: Answer = "refuted" if suspect.judgement.verdict is Verdict.CONVEX else "plain"
        if verdict is Verdict.NONE:
            return none
        if self.derivative is not None and not self.derivative.any():
            # What passes a gradient on to x is a ReLU operation by itself, or nothing is; unless all is closed here.
            return "open" if self.is_open or self._is_closed else none
        if self.is_open:
            return "unsure" if self._is_told or not self._is_direct else "refused"
        if self.is_gate and not (self.is_settled or is_thin(self.values[1])) and self.node is not None:
            y = suspect.values[0]
            return Spelled(self.node, suspect.place[1], suspect.named, y, y != self.judgement.closed)
        return self._refused()

    @property
    def _is_told(self) -> bool:
        """Whether it is likely to be none, though no value tells."""
        x, y = self.suspect.x, self.values[0]
        # What compared values with each other alone closes none at a number: of one sign is what a quantile is. And a
        # ReLU that is written there is guided as it is, as long as no value shows that it makes another one.
        is_known = self.is_settled or bool(x.sign) or x.ranks is Ranks.ALL or x.is_beside
        return is_known or (x.is_bounded and closes_elsewhere(self.judgement.closed)) or bool((y == y.flat[0]).all())

    @cached_property
    def _shut(self) -> NumpyArray | None:
        """The derivative towards x as ReLUs are shut."""
        x = self.suspect.x
        past = self.taken if x.is_beside else ()
        is_of_one = not self._is_behind
        return None if self.node is None else derivative(self.node, self.suspect, x, is_of_one=is_of_one, past=past)

    @property
    def _is_behind(self) -> bool:
        return self.suspect.x.choice is Choice.BEHIND

    @cached_property
    def _is_cancelled(self) -> bool:
        """Whether what is closed of ``x + relu(-x)`` is so because both derivatives cancel there, or nothing is closed.

        Then x alone passes all that is open, times one number, and what is closed too, which lies on one side of all
        that is open. What is closed by a ReLU that is written there, or by other values besides, is none of x. Of a
        handful of values a ReLU that is written there may shut or open all as well: they tell nothing.
        """
        if self.own is None or self._shut is None:
            return False
        is_open = evidence.is_passing(self.own)
        is_alone = is_open.any() and is_multiple(self.own[is_open], self._shut[is_open])
        is_told, x = evidence.is_passing(self._shut), as_numpy(self.suspect.x.tensor).reshape(self.own.shape)
        is_closed = is_told & ~is_open
        is_apart = is_closed.any() and are_apart(x, is_closed, is_told & is_open, by_row=self.suspect.x.is_bounded)
        return not is_thin(x[is_told]) and bool(is_open.all() or (is_alone and is_apart))

    @property
    def _is_of_others(self) -> bool:
        """Whether a sum with a ReLU that is written there is closed by what else is added, or is more than a ReLU."""
        if not self.suspect.x.is_beside:
            return False
        # What is closed at another number than 0, where none was added, is so by other values.
        is_elsewhere = not self.suspect.x.is_bounded and closes_elsewhere(self.judgement.closed)
        is_closed = self.suspect.is_of_parts or self._is_closed_for_both
        return (self.judgement.is_gate and is_elsewhere) or not (self._is_cancelled and is_closed)

    @property
    def _closes_some(self) -> bool:
        """Whether a sum of x and of a ReLU that is written there is closed for some x of one sign, by values."""
        if self._shut is None or self.suspect.is_of_parts:
            return False
        y, x = (np.stack([one.reshape(self._shut.shape) for one in side]) for side in zip(*self.looks, strict=True))
        is_open, line = np.abs(y - self._shut * x) <= ALIKE * np.abs(y).max(), self._shut * x
        # The opposite by a quotient and a product, -(x / w) * w, may miss x by rounding.
        left = _LEFT * np.finfo(self._shut.dtype).eps * np.abs(line)
        arrays = x, evidence.is_passing(self._shut) & (np.abs(y) <= left), is_open
        return evidence.are_closed(*arrays) or (
            x.ndim > 2 and any(evidence.are_closed(*evidence.in_columns(arrays, axis)) for axis in (2, -1))
        )

    @property
    def _cancels_some(self) -> bool:
        """Whether the same is so behind weights, by derivatives, which cancel each other there: in whole channels."""
        if self.own is None or self._shut is None or self.own.ndim < 2:
            return False
        size, left = np.abs(self._shut), np.abs(self.own)
        is_closed = evidence.is_passing(self._shut) & (left <= _LEFT * np.finfo(self.own.dtype).eps * size)
        x = as_numpy(self.suspect.x.tensor).reshape(self.own.shape)
        arrays = x, is_closed, np.abs(self.own - self._shut) <= ALIKE * size
        return not is_thin(is_closed) and any(
            evidence.are_closed(*evidence.in_columns(arrays, axis)) for axis in (1, -1)
        )

    @property
    def _is_closed_for_both(self) -> bool:
        """Whether values and the own derivative are closed in the same places, if values are that of a gate."""
        closed = 0 if self.judgement.closed is None else self.judgement.closed
        is_closed = self.suspect.values[0] == closed
        return self.own is not None and not (self.judgement.is_gate and evidence.is_passing(self.own)[is_closed].any())

    @property
    def _is_shift(self) -> bool:
        """Whether it is what an exponential is shifted by, as of a sum of these whose largest is to be 1."""
        users = [] if self.node is None else self.path.children[self.node]
        return bool(users) and all(row(user).word == "exp" for user in users)

    def _answer_of_choice(self) -> Answer:
        if self.suspect.x.choice is Choice.BEHIND:
            return self._answer_of_derivatives()
        if self.is_open:
            # What is never negative 0 does not close.
            return "unsure" if self.suspect.x.sign else "open"
        if self.suspect.x.choice is Choice.APART and self._is_shift:
            return "plain"
        return self._refused() if self.judgement.is_gate else "plain"

    @cached_property
    def towards_x(self) -> NumpyArray | None:
        """The derivative of a sum of the results, each times a number of its own, towards x, behind weights."""
        if self.suspect.x.is_beside:
            return self.own if self._is_cancelled else None
        if self.node is None:
            return None
        if self.together is not None:
            return self.together.towards(self.node, self.suspect)
        return derivative(self.node, self.suspect, self.suspect.x, is_of_one=False)

    @cached_property
    def weighed(self) -> tuple[NumpyArray, NumpyArray] | None:
        """The value x and the derivative towards it, of all runs of the model; None if the graph cannot tell it."""
        return evidence.joined(self.runs[::-1]) if self.runs else None

    @cached_property
    def runs(self) -> Sequence[tuple[NumpyArray, NumpyArray]]:
        """The same for each of them, that on the given images first; none if the graph cannot tell it."""
        g = self.towards_x
        return () if g is None else [(as_numpy(self.suspect.x.tensor), g), *self.behind]

    def closes_what_is_open(self, other: "Case") -> bool:
        """Tell whether x is a multiple of what another case is of, and closed where that is open: then nothing is.

        A multiple that was made later tells nothing, for not all of x comes through that.
        """
        numbers = [end.node._sequence_nr() if (end := case.suspect.x.edge) else -1 for case in (other, self)]
        if self.suspect.place[:2] != other.suspect.place[:2] or numbers[0] > numbers[1]:
            return False
        for (x, g), (others, there) in zip(self.runs, other.runs, strict=False):
            # A ReLU of x is that times 1 wherever it is not 0.
            is_one = x.size == others.size and is_multiple(x, others) and is_multiple(others, x)
            if is_one and there.reshape(x.shape)[g.reshape(x.shape) == 0].any():
                return True
        return False

    def _answer_of_derivatives(self) -> Answer:
        """Say whether it is made of a ReLU behind weights: of one value, or of one that another is taken away from."""
        x, less = self.suspect.x, self.suspect.x.less
        if self.node is None or self._is_shift:
            return "plain"
        if x.is_beside and not self._is_cancelled:
            return "refused" if self._cancels_some else "plain"
        if less is not None:
            return self._answer_of_difference(self.node, x, less)
        if x.is_bounded:
            return self._answer_of_bound(self.node, x)
        # Where x is on one side of 0 alone its derivative tells nothing.
        if (not self.behind and x.is_of_one_side) or self.weighed is None:
            return "unsure" if self._leads_around(self.node, x) else "plain"
        least = MANY_ROWS if x.ranks is Ranks.ALL else LEAST_ROWS
        verdict = judge_weighed(*self.weighed, x.ranks, is_of_one_sign=bool(x.sign), least_rows=least)
        if self.behind and verdict is Verdict.PARTIAL and not evidence.is_apart(*self.weighed):
            # The larger of x and what is made of it is open for most of the positive ones: few may be all of these.
            return "unsure"
        return {Verdict.PARTIAL: "refused", Verdict.UNSETTLED: "unsure"}.get(verdict, "plain")  # type: ignore[return-value]

    def _leads_around(self, node: Node, *values: Value) -> bool:
        """Tell whether something comes to values but through ReLUs that are guided: else nothing does on any image."""
        return leads_around(self.path, node, {value.edge.node for value in values if value.edge is not None})

    def _answer_of_difference(self, node: Node, x: Value, less: Value) -> Answer:
        """Say whether it is made of a ReLU of x less another value, behind weights."""
        if self.apart is None and not self._leads_around(node, x, less):
            return "plain"
        towards = self.apart or [self.towards_x, derivative(node, self.suspect, less, is_of_one=False)]
        derivatives = [one for one in towards if one is not None]
        if len(derivatives) < len(towards):
            return "open"
        verdict = judge_behind([as_numpy(x.tensor), as_numpy(less.tensor)], derivatives)
        if verdict is Verdict.UNSETTLED and not any(one.any() for one in derivatives):
            return "unsure"
        return {Verdict.PARTIAL: "refused", Verdict.UNSETTLED: "open"}.get(verdict, "plain")  # type: ignore[return-value]

    def _answer_of_bound(self, node: Node, x: Value) -> Answer:
        """Say whether a bound that is not 0 is taken away again behind weights."""
        y, values = self.suspect.values[0], as_numpy(x.tensor)
        if y.ndim == 0 or values.ndim == 0 or len(y) != len(values):
            return "plain"
        # One row has one sum, and two of them tell more.
        turns, every = (0.0, 1.0), [self.own, self.turned]
        if not x.is_beside:
            every = [derivative(node, self.suspect, x, is_of_one=False, turn=turn) for turn in turns]
        towards = [one for one in every if one is not None]
        sums = np.concatenate([(y * seeds(y.shape, turn)).reshape(len(y), -1).sum(1) for turn in turns]).astype(y.dtype)
        if len(towards) < len(turns):
            return "plain"
        verdict = judge_bound_behind(np.concatenate([values, values]), np.concatenate(towards), sums)
        return "refused" if verdict is Verdict.PARTIAL else "plain"

    def _refused(self) -> Answer:
        return "unfinished" if self.is_settled else "refused"
