"""What was found of a program, kept: it holds for all programs that are alike, and none of them is judged again."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import jax

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.graph.program import Gate, Program, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.jax.hidden.gates import Judge


def numbered(program: Program) -> dict[Value, int]:
    """Return the results of all steps, numbered: two programs that are alike have the same."""
    numbers: dict[Value, int] = {}
    for value in _all_values(program):
        numbers.setdefault(value, len(numbers))
    return numbers


def _all_values(program: Program) -> Iterator[Value]:
    yield from program.block.inputs
    for step in program.steps():
        for block in step.blocks:
            yield from block.inputs
        yield from step.outputs


@dataclass(frozen=True)
class Record:
    """Findings that hold for all programs that are alike: values and steps by their numbers.

    Attributes:
        gates: for each gate the number of its value, what it is where it is closed and how far off, the number of x,
            the slope, and whether it opens at 0.
        spelled: the numbers of the first results of steps that are refused.
        is_by_numbers: whether it holds only where the small constants are the same as well.
    """

    gates: tuple[tuple[int, NumpyArray, float, int | None, float | None, bool], ...]
    spelled: tuple[int, ...]
    is_by_numbers: bool

    @classmethod
    def of(cls, program: Program, facts: Facts, vouch: Vouch, images: Sequence[jax.Array]) -> "Record":
        """Judge a program on these images."""
        numbers, findings = numbered(program), Judge(program, facts, vouch, images).findings()
        gates = (
            (
                numbers[y],
                gate.closed,
                gate.slack,
                None if gate.x is None else numbers[gate.x],
                gate.slope,
                gate.is_at_zero,
            )
            for y, gate in findings.gates.items()
        )
        spelled = tuple(numbers[step.outputs[0]] for step in findings.spelled)
        return cls(tuple(gates), spelled, findings.is_by_numbers)

    def mark(self, program: Program) -> list[Step]:
        """Note the gates on the values of a program; return the steps that are refused."""
        values = list(numbered(program))
        for y, closed, slack, x, slope, is_at_zero in self.gates:
            values[y].gate = Gate(closed, slack, None if x is None else values[x], slope, is_at_zero=is_at_zero)
        return [step for number in self.spelled if (step := values[number].step) is not None]

    def key(self) -> Hashable:
        """Return what two records that say the same have in common."""
        return tuple((y, closed.tobytes(), closed.shape, *rest) for y, closed, *rest in self.gates)
