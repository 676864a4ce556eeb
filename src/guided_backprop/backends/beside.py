"""What may be a ReLU together with one that is written: a sum as ``x + relu(-x)``."""

from functools import cached_property
from typing import ClassVar

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.notes import MOST_WEIGHTS, Candidate, Choice, Operand, Ref, first_of
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.step import BY_FACTORS, Given, notes_of


class Beside(Given[Ref]):
    """One operation, which may add up x and what the rule guides of x.

    Attributes:
        SEES_SUMS: whether derivatives tell what is added to a ReLU that is written: values alone do not.
    """

    SEES_SUMS: ClassVar[bool] = False

    @cached_property
    def _joined(self) -> list[Candidate[Ref]]:
        """What is added up here with a ReLU of it, or of its opposite, that the rule guides: x of ``x + relu(-x)``.

        What is put together before is added up as well.
        """
        if not self.SEES_SUMS or self.row.kind is not Kind.LINEAR or self.row.word in BY_FACTORS:
            return []
        found = []
        for one in self._read:
            joined = self._joined_with(one)
            curves = one.note.curves if one.note is not None and _are_bounds(joined) else ()
            found += [*joined, *(curve._replace(is_beside=True, is_bounded=True) for curve in curves)]
        return [self._further(one) for one in found]

    def _joined_with(self, one: Operand[Ref]) -> list[Candidate[Ref]]:
        """Return what of an operand the rule guides a ReLU of in the others.

        What makes the opposite of x may not tell that, as weights: where values show it, it is one of the operand.
        """
        if one.note is None or one.ref is None:
            return []
        own = [Candidate(one.ref, one.size), *one.note.lines]
        others = [other.note for other in self._read if other.note and (other is not one or self.adds_parts(one))]
        relus = {relu.key: relu for relu in first_of(relu for note in others for relu in note.relus)}
        joined = [_with_relu(line, relus[line.key]) for line in own if line.key in relus]
        if _are_bounds(joined) or not relus or self._is_of_relus(one):
            return joined
        added = [own[0], *(one.note.parts if self.adds_parts(one) else ())]
        told = [(x, closed) for x in added if (closed := self.constants_of(x)) is not None]
        shown = [x._replace(is_beside=True, is_bounded=bool(closed.any())) for x, closed in told]
        return shown if _are_bounds(shown) or not joined else joined

    def _is_of_relus(self, one: Operand[Ref]) -> bool:
        """Tell whether an operand is made of ReLUs of the same value as another one, as a hat is a sum of several."""
        others = notes_of(other for other in self._read if other is not one)
        new = {relu.key for note in others for relu in note.relus if not relu.weights}
        return any(relu.key in new for note in notes_of([one]) for relu in note.relus)

    def constants_of(self, x: Candidate[Ref]) -> NumpyArray | None:
        """Return what values show that a sum with a ReLU is where it does not change with what is added to that."""
        return None

    @property
    def _is_bounded_sum(self) -> bool:
        """Whether it may be a bound, as ``x + relu(1 - x)`` is: a shift behind it may make 0 of that."""
        return _are_bounds(self._joined)

    def adds_parts(self, operand: Operand[Ref]) -> bool:
        """Tell whether it adds up what a value was put together of, which what works value by value does not."""
        return self._is_mixing and operand.note is not None and operand.note.is_stacked

    def beside(self, size: int | None) -> list[Candidate[Ref]]:
        """Return what a sum may be a ReLU of, as of ``x + relu(-x)``, and behind weights.

        Args:
            size: how many numbers it has.
        """
        whole = [one for one in self._joined if None in (size, one.size) or one.size == size]
        behind = [one for one in self._joined if 0 < one.weights <= MOST_WEIGHTS]
        return [*whole, *(one._replace(choice=Choice.BEHIND) for one in behind)]

    def _beside_others(self, source: Candidate[Ref]) -> Candidate[Ref]:
        """Return a source, as far away as it is behind this: no value of a sum of several tells of one of these.

        As behind weights its derivatives do.
        """
        is_sum = self.row.kind is Kind.LINEAR and self.row.word not in BY_FACTORS and len(self.dependent) > 1
        further = self._further(source)
        return further._replace(weights=max(int(is_sum), further.weights))

    def _further(self, source: Candidate[Ref]) -> Candidate[Ref]:
        """Return a source, as far away as it is behind this."""
        is_further = (self._is_mixing or self.row.word.startswith("scatter")) and source.weights <= MOST_WEIGHTS
        # What is held may have weights.
        return source._replace(weights=source.weights + 1 if is_further else max(source.weights, int(bool(self.held))))


def _are_bounds(joined: list[Candidate[Ref]]) -> bool:
    return bool(joined) and all(one.is_bounded for one in joined)


def _with_relu(x: Candidate[Ref], relu: Candidate[Ref]) -> Candidate[Ref]:
    """Return what a ReLU of it is added to: with a number added to either the sum is closed elsewhere than at 0.

    But of a ReLU that is behind more layers of weights than x.
    """
    is_bounded = (x.is_off or relu.is_off) and relu.weights <= x.weights
    return x._replace(weights=max(x.weights, relu.weights), is_beside=True, is_bounded=is_bounded, is_off=False)
