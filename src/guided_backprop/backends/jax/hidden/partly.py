"""What is a ReLU in some places alone: there a factor, which the program holds, is as 0 on one side of a choice.

``where(h > 0, h, slopes * h)`` is a leaky ReLU, and a ReLU where a slope is 0. Of few such places, or few images, no
value tells. What is multiplied by the same zeros on both sides is 0 there, whatever is chosen.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.curves import NOTHING
from guided_backprop.backends.jax.graph.program import Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.patterns import MOVES

# What is 0 where a value that it is given is.
_ALIKE = frozenset({"broadcast", "cast", "copy", "mark", "reshape", "squeeze"})
_KEEPS_ZEROS = MOVES | {"cast", "copy", "div", "mark", "mul", "neg", "where"}


def is_partly_chosen(step: Step, facts: Facts) -> bool:
    """Tell a choice by the images that multiplies by 0 in some places on one side alone; or what such a mask closes."""
    seen, stack = {step}, [step]
    while stack:
        made = stack.pop()
        if made.word == "where":
            if made.inputs[0].depends and _is_of_one_side(made, facts):
                return True
        elif made.word in _KEEPS_ZEROS:
            masks = [value.step for value in made.inputs if value.depends and not value.carries]
            new = {mask for mask in masks if mask is not None} - seen
            seen |= new
            stack += new
    return False


def _is_of_one_side(step: Step, facts: Facts) -> bool:
    cases = step.inputs[1:]
    sides = [frozenset(_zeros(case, facts)) for case in cases]
    every = frozenset[bytes]().union(*sides)
    return any(every - side for side in sides) and not any(map(facts.is_zero, cases))


def _zeros(value: Value, facts: Facts) -> Iterator[bytes]:
    """Yield where each of the constants is as 0 that a value is multiplied by; those of a loop for all its turns."""
    seen, stack = {value}, [value]
    while stack:
        current = stack.pop()
        while current.step is not None and current.step.word in _ALIKE:
            current = current.step.inputs[0]
        known = facts.known(current if current.stack is None else current.stack)
        if known is not None:
            is_zero = _as_zero(known) if jnp.issubdtype(current.aval.dtype, jnp.floating) else np.asarray(known) == 0
            if is_zero.any() and not is_zero.all():
                yield is_zero.tobytes()
        elif current.step is not None and current.step.word in _KEEPS_ZEROS:
            inputs = current.step.inputs
            if current.step.word == "where":
                yield from _chosen_zeros(current.step, facts)
            new = {*{"where": inputs[1:], "div": inputs[:1]}.get(current.step.word, inputs)} - seen
            seen |= new
            stack += new


def _chosen_zeros(step: Step, facts: Facts) -> Iterator[bytes]:
    """Yield where a choice puts 0, if no image tells where."""
    known = facts.known(step.inputs[0])
    for number, case in enumerate(step.inputs[1:]):
        if known is not None and facts.is_zero(case):
            yield np.asarray(np.asarray(known) == number).tobytes()


def _as_zero(known: Any) -> NumpyArray:
    """Tell which numbers are as 0, beside 1 or the largest of them."""
    sizes = np.abs(np.asarray(known, np.float64))
    largest = sizes.max(initial=0.0, where=np.isfinite(sizes))
    return np.asarray(sizes <= NOTHING * (max(1.0, largest) if largest > NOTHING else largest))
