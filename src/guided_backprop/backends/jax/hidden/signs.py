"""Which sign the numbers of a program's values have, by the steps that make them."""

from typing import Final

import jax.numpy as jnp
import numpy as np

from guided_backprop.backends import guards
from guided_backprop.backends.jax.graph.program import Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.signs import Sign, sign_of, sign_of_array

# They go by the word of what they are like, and may give another sign.
_UNLIKE_THEIR_WORD: Final = frozenset({"scatter-sub", "scatter_sub", "scatter-mul", "scatter_mul"})
#: What no value comes below the bound of.
BOUNDS_FROM_BELOW: Final = frozenset({"maximum", "clamp"})


class Signs:
    """The signs of the values of one program.

    Args:
        facts: what is known of its values.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._signs: dict[Value, Sign] = {}

    def of(self, value: Value) -> Sign:
        """Return the sign that all numbers of a value have by what makes it."""
        waiting = [_outside(value)]
        while waiting:
            current = waiting[-1]
            unknown = [operand for operand in _made_of(current) if operand not in self._signs]
            if unknown and current not in self._signs:
                waiting += unknown
                continue
            waiting.pop()
            if current not in self._signs:
                self._signs[current] = self._sign_of(current)
        return self._signs[_outside(value)]

    def _sign_of(self, value: Value) -> Sign:
        """Return the sign of a value, where those of what it is made of are known."""
        if not (value.aval.dtype == bool or jnp.issubdtype(value.aval.dtype, jnp.number)):
            # The key of random numbers.
            return Sign.UNKNOWN
        if not value.depends:
            known = self._facts.known(value)
            return Sign.UNKNOWN if known is None else sign_of_array(np.asarray(known))
        step = value.step
        if value.aval.dtype == bool:
            return Sign.NOT_NEGATIVE
        if step is None or jnp.issubdtype(value.aval.dtype, jnp.complexfloating):
            return Sign.UNKNOWN
        if step.relu is not None or value.gate is not None:
            return Sign.NOT_NEGATIVE
        if step.activation is not None:
            # A guard is never negative, and neither are some activations, whatever they are made of.
            is_guard = step.activation.name == guards.NAME and step.kind is not Kind.CLIP
            return Sign.NOT_NEGATIVE if is_guard else sign_of(Operation(Kind.SMOOTH, step.activation.name), [])
        if step.name in _UNLIKE_THEIR_WORD:
            return Sign.UNKNOWN
        is_square = step.word == "mul" and step.inputs[0] is step.inputs[1]
        of = [self._signs[operand] for operand in _made_of(value)]
        return sign_of(Operation(step.kind, step.word), of, step.exponent, is_square=is_square)


def _outside(value: Value) -> Value:
    """Return the same value outside of all loops and branches, or what it is a slice of there."""
    while value.outer is not None or value.stack is not None:
        value = value.outer or value.stack or value
    return value


def _made_of(value: Value) -> list[Value]:
    """Return the numbers that the sign of a value is told from, in the order of the vocabulary.

    What is constant, a ReLU or an activation tells its sign by itself: nothing in front of it is asked.
    """
    step = value.step
    is_told = not value.depends or value.gate is not None
    if step is None or is_told or step.relu is not None or step.activation is not None:
        return []
    operands = step.inputs
    if step.word == "clamp" and len(operands) == 3:
        lower, x, upper = operands
        operands = [x, lower, upper]
    elif step.word == "gather":
        operands = operands[:1]
    elif step.kind is Kind.MASKS:
        operands = [operand for operand in operands if jnp.issubdtype(operand.aval.dtype, jnp.floating)]
    return [_outside(operand) for operand in operands]
