"""Where the axes of what an operation is given go: one form for the frameworks."""

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple


class Axes(NamedTuple):
    """Where the axes of what an operation is given go.

    Attributes:
        operands: of each operand, for each of its axes, which axis of the result it is, from the last one on (-1,
            -2...); from 0 on a sum along it, of both operands where they have the same; None if it is of one number.
        counts: of each of these sums, how many numbers it is of; NaN if the graph does not tell. Windows are one.
        windows: which windows are summed, if any: with their sizes, strides, and what is around.
    """

    operands: Sequence[Sequence[int | None]]
    counts: Sequence[float] = ()
    windows: Hashable = None

    def without_ones(self, shapes: Sequence[Sequence[float]]) -> "Axes":
        """Return the same, given how many numbers there are along each: of one there is nowhere to go."""
        pairs = (zip(places, shape, strict=True) for places, shape in zip(self.operands, shapes, strict=False))
        return self._replace(operands=[[None if size == 1 else place for place, size in pair] for pair in pairs])


def of_equation(equation: str, shapes: Sequence[Sequence[float]]) -> Axes | None:
    """Return where axes go as an equation for ``einsum`` says; None if one letter stands for two axes of a value."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    letters = given.split(",")
    is_plain = bool(arrow) and "." not in equation and all(len(set(one)) == len(one) for one in [*letters, result])
    if not is_plain or [len(one) for one in letters] != [len(shape) for shape in shapes]:
        return None
    summed = sorted({*given} - {*result, ","})
    sizes = dict(pair for one, shape in zip(letters, shapes, strict=True) for pair in zip(one, shape, strict=True))
    places = {letter: place - len(result) for place, letter in enumerate(result)}
    places |= {letter: number for number, letter in enumerate(summed)}
    return Axes([[places[letter] for letter in one] for one in letters], [sizes[letter] for letter in summed])


def multiplied(shapes: Sequence[Sequence[float]], are_turned: Sequence[bool] = (False, False)) -> Axes:
    """Return where axes go in a product of matrices, or of stacks of them."""
    first, second = (list(range(-len(shape), 0)) for shape in shapes)
    first[-1 - are_turned[0]], second[-2 + are_turned[1]] = 0, 0
    first[-2 + are_turned[0]], second[-1 - are_turned[1]] = -2, -1
    return Axes([first, second], [shapes[0][-1 - are_turned[0]]])


def pointwise(ranks: Sequence[int]) -> Axes:
    """Return where axes go value by value, of operands of so many axes."""
    return Axes([range(-rank, 0) for rank in ranks])


def reduced(rank: int, axes: Collection[int], sizes: Sequence[float], *, is_kept: bool) -> Axes:
    """Return where axes go of what is summed along some of them, which count from the first one on; each is a sum.

    Args:
        rank: how many axes there are.
        axes: those that are summed along.
        sizes: how many numbers there are along each of all axes.
        is_kept: whether they stay, each of one number.
    """
    summed = {axis % rank for axis in axes}
    left = [axis for axis in range(rank) if is_kept or axis not in summed]
    order = sorted(summed)
    places = [order.index(axis) if axis in summed else left.index(axis) - len(left) for axis in range(rank)]
    return Axes([places], [sizes[axis] for axis in order])


def reshaped(before: Sequence[float], after: Sequence[float]) -> Axes | None:
    """Return where axes go of what is put into another shape, or repeated; None if some are joined or cut."""
    ones = [axis for axis, size in enumerate(before) if size != 1]
    others = [axis for axis, size in enumerate(after) if size != 1]
    sizes = [str(before[axis]) for axis in ones]
    if sizes != [str(after[axis]) for axis in others] or sizes.count("nan") > 1:
        return None
    to = dict(zip(ones, others, strict=True))
    return Axes([[to[axis] - len(after) if axis in to else None for axis in range(len(before))]])
