"""What a choice throws away again: ``where(x > 0, x, expm1(where(x > 0, 0, x)))`` is ``where(x > 0, x, expm1(x))``.

People put a number where a curve has none, or would overflow, and choose something else there afterwards. Value by
value, what was put there reaches nothing, and has no gradient: the first choice is no gate, and the last one is judged.
"""

from collections.abc import Hashable
from typing import Final

import numpy as np

from guided_backprop.backends.jax.graph.program import Step, Value
from guided_backprop.backends.jax.graph.relus import Facts

# What makes each number of one number of each value that it is given, by the primitive's name.
_POINTWISE: Final = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy copy_p cos cosh
    digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max
    min mul ne neg not or pow rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()
)
# How a comparison is said by "greater": whether its operands change places, and whether it says the opposite.
_COMPARISONS: Final = {"gt": (False, False), "lt": (True, False), "ge": (True, True), "le": (False, True)}


class Discarded:
    """Tells what a program throws away.

    Args:
        facts: what is known of its values.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def kept(self, step: Step) -> Value | None:
        """Return what a choice takes where it puts no number, if a later choice leaves out all that it puts."""
        if not _is_choice(step):
            return None
        mask, *cases = step.inputs
        put = [bool(number) for number, case in enumerate(cases) if not case.depends and self._facts.is_uniform(case)]
        if len(put) != 1:
            return None
        said, is_opposite = self._condition(mask)
        found, waiting = {step}, [step]
        while waiting:
            made = waiting.pop().outputs[0]
            if not made.uses or id(made) in self._facts.results:
                return None
            for use in made.uses:
                if use in found or self._leaves_out(made, use, said, is_put_if=put[0] != is_opposite):
                    continue
                if use.name not in _POINTWISE:
                    return None
                found.add(use)
                waiting.append(use)
        return cases[not put[0]]

    def fills(self, step: Step) -> bool:
        """Tell whether a choice puts a number that is not 0, as NaN, of which another one may make that."""
        puts = (self._facts.known(case) for case in step.inputs[1:] if not case.depends)
        return _is_choice(step) and any(known is not None and bool(np.any(known != 0)) for known in puts)

    def _leaves_out(self, value: Value, step: Step, said: Hashable, *, is_put_if: bool) -> bool:
        """Tell a choice by the same condition, which takes another value wherever that was put."""
        if not _is_choice(step):
            return False
        mask, *cases = step.inputs
        same, is_opposite = self._condition(mask)
        taken = cases[is_put_if != is_opposite]
        # A constant there is a gate, of what is chosen elsewhere, and what that is where nothing else is must be seen.
        return same == said and mask is not value and taken is not value and taken.depends

    def _condition(self, mask: Value) -> tuple[Hashable, bool]:
        """Return what a mask says in words of which two are equal if they say the same, and whether it is the opposite.

        The same is often asked twice, and once the other way round.
        """
        step = mask.step
        if step is None:
            return mask, False
        if step.name == "not":
            said, is_opposite = self._condition(step.inputs[0])
            return said, not is_opposite
        if step.name in _COMPARISONS:
            is_turned, is_opposite = _COMPARISONS[step.name]
            operands = [self._operand(value) for value in step.inputs]
            return ("gt", *(operands[::-1] if is_turned else operands)), is_opposite
        if step.name in ("eq", "ne"):
            return ("eq", frozenset(map(self._operand, step.inputs))), step.name == "ne"
        if step.name in ("and", "or"):
            return (step.name, frozenset(map(self._condition, step.inputs))), False
        return (("is_finite", step.inputs[0]) if step.name == "is_finite" else mask), False

    def _operand(self, value: Value) -> Hashable:
        """Return one number for a constant, and else the value itself, or what it is made of in one step."""
        known = self._facts.known(value) if self._facts.is_uniform(value) else None
        if known is not None and np.size(known) and np.isrealobj(known):
            return float(np.asarray(known, np.float64).flat[0])
        step = value.step
        if step is not None and step.name in ("abs", "convert_element_type"):
            return step.name, str(value.aval.dtype), step.inputs[0]
        return value


def _is_choice(step: Step) -> bool:
    """Tell a choice between two values, one place like the other."""
    mask = step.inputs[0] if step.inputs else None
    is_whole = mask is not None and bool(mask.aval.shape) and mask.aval.dtype == bool
    return step.name == "select_n" and len(step.inputs) == 3 and is_whole
