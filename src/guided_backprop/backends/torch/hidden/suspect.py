"""A result of a watched forward pass that may be a ReLU of something, and what the values of some runs say of it."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.bounds import judge_at_zero, judge_bounded
from guided_backprop.backends.choices import judge_choice
from guided_backprop.backends.evidence import columns, is_evidence
from guided_backprop.backends.notes import Candidate, Choice
from guided_backprop.backends.rows import has_parts
from guided_backprop.backends.spelling import Judgement, Verdict, judge
from guided_backprop.backends.torch.hidden.known import Place, Result, joined
from guided_backprop.backends.torch.hidden.notes import Value

#: So large a part of a number may be rounding.
ALIKE: Final = 1e-3


@dataclass(frozen=True)
class Suspect:
    """A result that may be a ReLU of something.

    Attributes:
        place: where it is met, in the order of the operations.
        name: the operation.
        line: the line of the model's code that asked for it.
        number: the place in time of its node in the autograd graph.
        x: what it may be a ReLU of.
        values: the result, and x.
        judgement: what they say.
        is_direct: whether something without a gradient, or a choice, is met by this very operation.
        adds_up: whether it is made of several values that depend on the images, and is none of them.
        is_of_two: whether it is the larger or smaller of two values that depend on the images.
        is_on_view: whether it was written into a part of something, so that the graph does not show it.
        is_made: whether it is a ReLU of x by its operations, where no value tells: one of -x is added to x.
    """

    place: Place
    name: str
    line: str
    number: int
    x: Value
    values: tuple[NumpyArray, NumpyArray]
    judgement: Judgement
    is_direct: bool
    adds_up: bool
    is_of_two: bool
    is_on_view: bool
    is_made: bool = False

    @property
    def named(self) -> str:
        """How it is spoken of: the operation, and the line of the model."""
        return f"{self.name} at {self.line}"

    @property
    def is_falling(self) -> bool:
        """Whether a ReLU may be made of it: of a sum with a ReLU that is written there where it is one's negative."""
        is_one = self.judgement.verdict in (Verdict.CONCAVE, Verdict.CONVEX) or self.judgement.is_few
        return self.x.choice is not Choice.BEHIND and (is_one or not self.x.is_beside)

    @property
    def is_sum(self) -> bool:
        """Whether it is no ReLU of x by its values, but may be in places: a ReLU that is written is added to x."""
        return self.x.is_beside and self.x.choice is Choice.NONE and self.judgement.verdict is Verdict.NONE

    def may_close(self, factor: NumpyArray | None) -> bool:
        """Tell whether a sum may be closed in places: nothing is added to x, times a factor, on the other side of 0."""
        if factor is None or self.is_of_parts:
            return False
        y, x = (one.reshape(factor.shape) for one in self.values)
        is_alone = np.abs(y - factor * x) <= ALIKE * np.abs(y).max()
        sides = [is_alone | (np.sign(x) != side) for side in (1, -1)]
        # Some columns may be closed, and others be none.
        axes = (1, -1) if x.ndim > 1 else ()
        return any(side.all() or any(columns(side, axis).all(0).any() for axis in axes) for side in sides)

    @property
    def is_of_parts(self) -> bool:
        """Whether it has several of each number of x, or others besides."""
        return self.values[0].size != self.values[1].size

    @property
    def is_weighed(self) -> bool:
        """Whether it may be a ReLU of one value, behind weights."""
        return self.x.choice is Choice.BEHIND and self.x.less is None


def fits(candidate: Candidate[Value], result: torch.Tensor, *, is_direct: bool) -> bool:
    """Tell whether a result may be a ReLU of a candidate: its values are as they were, and as many.

    What is met right here, ``is_direct``, may have several of each.
    """
    if not all(one.tensor.is_floating_point() and one.is_as_it_was for one in candidate.values):
        return False
    if candidate.choice is Choice.BEHIND:
        return all(one.edge is not None for one in candidate.values)
    if candidate.less is not None:
        return candidate.ref.is_apart(candidate.less, result.numel())
    if candidate.size == result.numel() or candidate.choice is not Choice.NONE:
        return True
    may_be_part = candidate.is_bounded or (is_direct and not candidate.is_at_zero)
    return may_be_part and has_parts(result.numel(), candidate.ref.tensor.numel())


def nodes_taken(suspects: Iterable[Suspect], taken: Container[Result], numbers: Mapping[int, Node]) -> list[Node]:
    """Return the nodes of what is taken for ReLUs, of those that are known by their places in time."""
    every = {suspect.number for suspect in suspects if suspect.place[:2] in taken}
    return [numbers[number] for number in every if number in numbers]


def judged(x: Value, looks: Sequence[tuple[NumpyArray, NumpyArray]], *, is_of_two: bool) -> Judgement:
    """Judge by the values of some runs whether a result is a ReLU of ``x``, or chosen from it as one."""
    # How far multiples of one number may be apart in this dtype.
    rounding = max(1e-3, 4 * torch.finfo(x.tensor.dtype).eps)
    if x.choice is Choice.BEHIND:
        # Its derivatives tell.
        return Judgement(Verdict.UNSETTLED)
    if x.choice is not Choice.NONE:
        return judge_choice(looks, x.choice, is_of_one_sign=bool(x.sign), rounding=rounding)
    how = judge_bounded if x.is_bounded else judge_at_zero if x.is_at_zero else judge
    return how(*joined(looks), rounding, ranks=x.ranks, is_of_one_sign=bool(x.sign), is_of_two=is_of_two)


def are_alike(others: tuple[NumpyArray, NumpyArray], first: tuple[NumpyArray, NumpyArray]) -> bool:
    """Tell whether values on other images can be put beside the first ones."""
    return all(
        other.shape == array.shape and is_evidence(other, array) for other, array in zip(others, first, strict=True)
    )


def opens_at_zero(result: torch.Tensor, value: torch.Tensor) -> bool:
    """Tell whether a ReLU of a value opens where that is 0, as far as these values tell; of parts it is taken to."""
    if result.numel() != value.numel():
        return True
    x = as_numpy(value)
    is_closed = as_numpy(result).reshape(x.shape) == 0
    return any((side[is_closed] <= 0).all() and (side[~is_closed] >= 0).all() for side in (x, -x))
