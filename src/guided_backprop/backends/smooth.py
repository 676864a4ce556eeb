"""Smooth activations that are written out, ``x * f(x)`` as SiLU and GELU are, in the graph of any framework.

A framework has one operation for some of them, or none; a model that was written by hand has products. What
is looked at here is the same for all: a product of x with a saturating function of x alone.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Ref = TypeVar("Ref", bound=Hashable)
#: From a value to the operation that makes it, and to those of its operands that depend on the images.
Look = Callable[[Ref], tuple[str, Sequence[Ref]] | None]

_MOVES = {"cast", "clone", "convert_element_type", "copy", "identity", "to_copy"}
_SCALINGS = _MOVES | {"div", "mul", "real_div"}
_POINTWISE = _SCALINGS | set("add exp expm1 integer_pow log log1p neg pow reciprocal softplus square sub".split())
_GATES = {"sigmoid": "silu", "logistic": "silu", "erf": "gelu", "erfc": "gelu", "hardsigmoid": "hardswish"}
_CUBES = {"integer_pow", "pow", "square"}
_MOST_PARTS = 40


def activation_of(operation: str, operands: Sequence[Ref], look: Look[Ref]) -> tuple[str, list[Ref]] | None:
    """Return the name of the activation that a product (or maximum) is, and what it is made of; else None.

    Args:
        operation: "mul" or "maximum".
        operands: its two operands, both of which depend on the images.
        look: says how a value is made.
    """
    for gate, other in (operands, operands[::-1]):
        for x in _unscaled(other, look):
            parts = _parts(gate, x, look)
            name = None if parts is None else _name(operation, {operation for _, operation in parts})
            if parts is not None and name is not None:
                return name, [ref for ref, _ in parts]
    return None


def _unscaled(ref: Ref, look: Look[Ref]) -> list[Ref]:
    """Return the value, and what it is a multiple of."""
    found = [ref]
    while (made := look(ref)) is not None and made[0] in _SCALINGS and len(made[1]) == 1:
        ref = made[1][0]
        found.append(ref)
    return found


def _parts(last: Ref, x: Ref, look: Look[Ref]) -> list[tuple[Ref, str]] | None:
    """Return what lies between x and a function of it; None if that depends on anything else."""
    found: dict[Ref, str] = {}
    stack, is_reached = [last], False
    while stack:
        ref = stack.pop()
        if ref == x:
            is_reached = True
        elif ref not in found:
            made = look(ref)
            if made is None or made[0] not in _POINTWISE | _GATES.keys() | {"tanh"} or len(found) == _MOST_PARTS:
                return None
            found[ref] = made[0]
            stack.extend(made[1])
    return list(found.items()) if is_reached else None


def _name(operation: str, parts: set[str]) -> str | None:
    if operation == "maximum":
        return "leaky_relu" if parts and parts <= _SCALINGS else None
    if "tanh" in parts:
        is_mish = "softplus" in parts or ("exp" in parts and parts & {"log", "log1p"})
        return "mish" if is_mish else "gelu" if parts & _CUBES else None
    return next((name for gate, name in _GATES.items() if gate in parts), None)
