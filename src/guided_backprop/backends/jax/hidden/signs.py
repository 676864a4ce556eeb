"""Which sign the numbers of a program's values have, by the steps that make them."""

from collections.abc import Hashable, Sequence
from typing import Final, TypeVar

import jax.numpy as jnp
import numpy as np

from guided_backprop.backends import guards
from guided_backprop.backends.jax.graph.composites import Graph
from guided_backprop.backends.jax.graph.program import Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.signs import Sign, sign_of, sign_of_array, sign_of_difference, sign_of_range

# They go by the word of what they are like, and may give another sign.
_UNLIKE_THEIR_WORD: Final = frozenset({"scatter-sub", "scatter_sub", "scatter-mul", "scatter_mul"})
# What a softmax is lessened by, and what is done with that before: no value is left out but infinities.
_EXTREMES: Final = frozenset({"reduce_max", "reduce_min"})
_KEEPS_EXTREME: Final = frozenset({"copy", "mark", "maximum", "minimum", "stop_gradient"})
Place = TypeVar("Place", int, int | None)


class Signs:
    """The signs of the values of one program.

    Args:
        facts: what is known of its values.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._guards = guards.Guards(Graph(facts))
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
        if own := _own_sign(value):
            return own
        if step.name in _UNLIKE_THEIR_WORD:
            return Sign.UNKNOWN
        is_square = step.word == "mul" and step.inputs[0] is step.inputs[1]
        of = [self._signs[operand] for operand in _made_of(value)]
        sign = sign_of(Operation(step.kind, step.word), of, step.exponent, is_square=is_square)
        is_range = step.word == "sub"
        sign |= shift_of(step) | (sign_of_range(*map(_chosen, step.inputs)) if is_range else Sign.UNKNOWN)
        return sign or (self._guards.sign(value) if step.word in guards.SUMS else sign)


def shift_of(step: Step) -> Sign:
    """Return the sign of a value less one of its own numbers, in its place; unknown if it is anything else."""
    if step.word != "sub":
        return Sign.UNKNOWN
    first, second = step.inputs
    return sign_of_difference((first, second), lambda other: _extreme_of(other, first if other is second else second))


def _chosen(value: Value) -> tuple[str, Hashable] | None:
    """Return whether a value is the largest or smallest of another one, and of which, how chosen and how repeated."""
    how: list[Hashable] = []
    while value.step is not None and value.step.name == "broadcast_in_dim":
        how.append(str(value.step.eqn.params))
        value = value.step.inputs[0]
    step = value.step
    if step is None or step.name not in _EXTREMES:
        return None
    return step.word, (step.inputs[0], str(step.eqn.params["axes"]), *how)


def _outside(value: Value) -> Value:
    """Return the same value outside of all loops and branches, or what it is a slice of there."""
    while value.outer is not None or value.stack is not None:
        value = value.outer or value.stack or value
    return value


def _own_sign(value: Value) -> Sign:
    """Return the sign that a value has whatever it is made of: a ReLU, a guard, some activations."""
    step = value.step
    if value.gate is not None or (step is not None and step.relu is not None):
        return Sign.NOT_NEGATIVE
    if step is None or step.activation is None:
        return Sign.UNKNOWN
    is_guard = step.activation.name == guards.NAME and step.kind is not Kind.CLIP
    return Sign.NOT_NEGATIVE if is_guard else sign_of(Operation(Kind.SMOOTH, step.activation.name), [])


def _extreme_of(value: Value, of: Value) -> tuple[str, Value] | None:
    """Return whether a value is the largest or smallest of another one, along some axes, repeated for each place.

    Both may have been turned since: what is mapped over an axis of its own is.
    """
    places, bounds, step = list(range(len(value.aval.shape))), set[str](), value.step
    while step is not None and step.name not in _EXTREMES:
        if step.name == "broadcast_in_dim":
            places = [places[axis] for axis in step.eqn.params["broadcast_dimensions"]]
        elif step.name == "transpose":
            places = _turned_back(places, step)
        bounds.add(step.word)
        step = _bounded_by(step)
    # To be bounded from the other side moves it beyond the numbers that it was chosen from.
    if step is None or bounds & {"maximum", "minimum"} - {f"{step.word}imum"}:
        return None
    left = iter(places)
    chosen = [None if axis in step.eqn.params["axes"] else next(left) for axis in range(len(step.inputs[0].aval.shape))]
    (source, theirs), (base, own) = _unturned(step.inputs[0], chosen), _unturned(of, range(len(of.aval.shape)))
    is_in_place = source is base and all(one in (None, other) for one, other in zip(theirs, own, strict=True))
    return (step.word, of) if is_in_place else None


def _unturned(value: Value, places: Sequence[int | None]) -> tuple[Value, list[int | None]]:
    """Return what a value is turned from, and the places of that one's axes, of those of the value's own."""
    places = list(places)
    while value.step is not None and value.step.name == "transpose":
        places, value = _turned_back(places, value.step), value.step.inputs[0]
    return value, places


def _turned_back(places: Sequence[Place], step: Step) -> list[Place]:
    """Return where the axes of what is turned go, from where those of the result go."""
    permutation = list(step.eqn.params["permutation"])
    return [places[permutation.index(axis)] for axis in range(len(permutation))]


def _bounded_by(step: Step) -> Step | None:
    """Return what makes the value that a step repeats, bounds, or replaces where it is infinite."""
    kept = [operand for operand in step.inputs if operand.depends]
    if step.word == "where" and len(step.inputs) == 3:
        mask, _, kept_if = step.inputs
        is_finite = mask.step is not None and mask.step.word == "isfinite" and mask.step.inputs[0] is kept_if
        return kept_if.step if is_finite else None
    is_kept = step.name in ("broadcast_in_dim", "transpose") or step.word in _KEEPS_EXTREME
    return kept[0].step if is_kept and len(kept) == 1 else None


def _made_of(value: Value) -> list[Value]:
    """Return the numbers that the sign of a value is told from, in the order of the vocabulary.

    Of what is constant, or tells its sign by itself, nothing in front is asked.
    """
    step = value.step
    if step is None or not value.depends or _own_sign(value):
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
