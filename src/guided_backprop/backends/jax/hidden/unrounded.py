"""Steps as they were if nothing rounded: what passes no derivative though its values go on, as integers do.

``x @ w + round((relu(x) - x) @ w * 1e5) / 1e5`` is ``relu(x) @ w``, and by its gradient it is ``x @ w``. Without the
rounding its derivative tells. So integers that were numbers are these numbers still, for as long as they are added,
moved and chosen from; what else is made of integers gets them as they are declared.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from guided_backprop.backends.jax.graph.program import Block, Step, Value
from guided_backprop.backends.operations import ALIKE, ROUNDS

_CASTS: Final = frozenset({"bitcast_convert_type", "convert_element_type"})
#: What stops a derivative, and gives the value that it was given, or one beside it.
ROUNDINGS: Final = ROUNDS | _CASTS


class _Bits(NamedTuple):
    """Numbers of which the bits are asked."""

    numbers: jax.Array


def is_rounding(step: Step) -> bool:
    """Tell whether a step gives no derivative on, and its value all the same."""
    if step.name in ROUNDS:
        return True
    if step.name not in _CASTS:
        return False
    return _is_smooth(step.inputs[0]) != _is_smooth(step.outputs[0]) and step.outputs[0].aval.dtype != bool


def has_rounding(block: Block) -> bool:
    """Tell whether something in a block rounds; what loops and branches hold is run as it is."""
    return any(step.inputs[0].depends and is_rounding(step) for step in block.steps if step.inputs)


def unrounded(step: Step, operands: Sequence[Any]) -> list[Any] | None:
    """Return what a step gives where it does not round, or is given what did not; None where it does what it does."""
    if step.name in ROUNDS:
        return [operands[0]]
    if step.name in _CASTS and is_rounding(step):
        return _cast(step, operands[0], step.inputs[0])
    # To divide integers rounds as well.
    is_alike = step.jitted is None and (step.word in ALIKE or step.name == "div")
    if not is_alike or not any(map(_is_held, operands, step.inputs)):
        return None
    if any(isinstance(operand, _Bits) for operand in operands):
        return None
    return _of_numbers(step, operands)


def _cast(step: Step, given: Any, value: Value) -> list[Any] | None:
    """Return numbers where they are cast to integers, and the same where these are cast back."""
    is_of_bits, kind = step.name == "bitcast_convert_type", step.outputs[0].aval.dtype
    if _is_smooth(value):
        is_whole = kind.itemsize == value.aval.dtype.itemsize
        return [_Bits(given) if is_of_bits and is_whole else given] if is_whole or not is_of_bits else None
    if is_of_bits:
        is_same = isinstance(given, _Bits) and given.numbers.dtype == kind
        return [given.numbers] if is_same else None
    return [given.astype(kind)] if not isinstance(given, _Bits) and _is_held(given, value) else None


def _of_numbers(step: Step, operands: Sequence[Any]) -> list[Any]:
    """Return what an operation makes of numbers in the place of integers."""
    held = [operand for operand, value in zip(operands, step.inputs, strict=True) if _is_held(operand, value)]
    kind = jnp.result_type(*held)
    chosen_by = 1 if step.name == "select_n" else 0
    numbers = [operand if at < chosen_by else jnp.asarray(operand).astype(kind) for at, operand in enumerate(operands)]
    params = dict(step.eqn.params)
    if "preferred_element_type" in params:
        params["preferred_element_type"] = kind
    result = step.eqn.primitive.bind(*numbers, **params)  # type: ignore[no-untyped-call]
    return list(result) if step.eqn.primitive.multiple_results else [result]


def declared(operand: Any, value: Value) -> Any:
    """Return an operand as whoever asks for integers expects it."""
    if isinstance(operand, _Bits):
        return jax.lax.bitcast_convert_type(operand.numbers, value.aval.dtype)
    return operand.astype(value.aval.dtype) if _is_held(operand, value) else operand


def _is_held(operand: Any, value: Value) -> bool:
    """Tell numbers that stand in the place of integers."""
    is_integer = jnp.issubdtype(value.aval.dtype, jnp.integer)
    return isinstance(operand, _Bits) or (is_integer and jnp.issubdtype(operand.dtype, jnp.floating))


def _is_smooth(value: Value) -> bool:
    """Tell real or complex numbers, which have derivatives."""
    return bool(jnp.issubdtype(value.aval.dtype, jnp.inexact))
