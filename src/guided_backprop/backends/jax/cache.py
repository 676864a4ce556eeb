"""Compiled functions, kept by what the model does: a model may be traced anew, and is rarely compiled.

Two traces with the same key run the same operations; the arrays that the model closed over are arguments.
What cannot be compared by its value, such as a function, is compared by identity and kept alive by the key.

Where nothing in a program is the user's, neither an array nor a function, all methods and models share what was
compiled of it. That is never stale, for it is found by what a new trace does, and it keeps nothing of the user's alive.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from guided_backprop.backends.jax.graph.calls import is_of_jax
from guided_backprop.backends.jax.graph.program import CUSTOM, Block, Program, Shaped, Step, Value, alone
from guided_backprop.backends.kept import Kept
from guided_backprop.rules import ReluRule


class Identity:
    """Compares by identity what may change, or has no equality to rely on; holds it, so its id stays its own."""

    __slots__ = ("_held",)

    def __init__(self, held: object) -> None:
        self._held = held

    @property
    def is_of_jax(self) -> bool:
        """Whether it is no more than the devices that something is spread over."""
        return isinstance(self._held, jax.sharding.Mesh)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._held is other._held

    def __hash__(self) -> int:
        return id(self._held)


# So many numbers are looked at in each trace: there are no more slopes, as a rule.
_MOST_SLOPES = 1 << 12
#: What all methods of the process share.
SHARED = Kept()


def is_shared(program: Program, key: Hashable, rules: Sequence[ReluRule]) -> bool:
    """Tell whether nothing in what is compiled of a program is the user's, which that would keep alive."""
    custom = [step.eqn for step in program.all_steps() if step.name in CUSTOM]
    return (
        all(is_of_jax(next(filter(_is_jaxpr, eqn.params.values()))) for eqn in custom)
        and all(type(rule).__module__ == ReluRule.__module__ for rule in rules)
        and _is_known(key)
    )


def _is_known(key: Hashable) -> bool:
    if isinstance(key, tuple):
        return all(map(_is_known, key))
    return not isinstance(key, Identity) or key.is_of_jax


def key_of(program: Program) -> Hashable:
    """Return what two programs that run the same operations, with the same ReLUs, have in common."""
    numbers: dict[Value, int] = {}
    constants = tuple((np.shape(array), str(jnp.asarray(array).dtype)) for array in program.constants)
    first = None if program.first is None else _block_key(program.first, numbers)
    return constants, first, _block_key(program.block, numbers)


def ends_of(program: Program) -> Hashable:
    """Return where small constants are 0, or 1: as slopes these may make a ReLU of what was none with others."""
    small = [array for array in map(jnp.asarray, program.constants) if array.size <= _MOST_SLOPES]
    arrays = [np.asarray(array) for array in small if jnp.issubdtype(array.dtype, jnp.floating)]
    return tuple(((array == 0) | (np.abs(array) == 1)).tobytes() for array in arrays)


def numbers_of(program: Program) -> Hashable:
    """Return the constants of one number: what was found of a program by its values may be otherwise with others.

    As slopes and bounds these are turned between calls; those of several are weights as a rule, which training changes.
    """
    small = [array for array in program.constants if np.size(array) == 1]
    # A key for random numbers is no number.
    return tuple(np.asarray(array).tobytes() for array in small if not jnp.issubdtype(array.dtype, jax.dtypes.extended))


def _block_key(block: Block, numbers: dict[Value, int]) -> Hashable:
    inputs = tuple(_value_key(value, numbers) for value in block.inputs)
    steps = tuple(_step_key(step, numbers) for step in block.steps)
    return inputs, steps, tuple(_value_key(value, numbers) for value in block.outputs)


def _step_key(step: Step, numbers: dict[Value, int]) -> Hashable:
    relu = None
    if step.relu is not None:
        cap = None if step.relu.cap is None else _value_key(step.relu.cap, numbers)
        relu = (
            step.relu.name,
            step.relu.operand,
            cap,
            step.relu.is_custom,
            step.relu.inside is not None,
        )
    activation = step.activation and (step.activation.name, _value_key(step.activation.x, numbers))
    inputs = tuple(_value_key(value, numbers) for value in step.inputs)
    blocks = () if step.name in CUSTOM else tuple(_block_key(block, numbers) for block in step.blocks)
    params = _equation_key(step.eqn, bool(blocks))
    outputs = tuple(_value_key(value, numbers) for value in step.outputs)
    return step.name, relu, activation, step.is_inside, step.is_on_path, inputs, blocks, params, outputs


def _value_key(value: Value, numbers: dict[Value, int]) -> Hashable:
    aval = (value.aval.shape, str(value.aval.dtype)) if hasattr(value.aval, "shape") else str(value.aval)
    if value.literal is not None:
        return "literal", aval, np.asarray(value.literal).tobytes()
    if value.constant is not None:
        return "constant", value.constant
    return numbers.setdefault(value, len(numbers)), aval


def _equation_key(eqn: core.JaxprEqn, has_blocks: bool) -> Hashable:
    if eqn.primitive.name in CUSTOM:
        return _derivative_key(eqn)
    return tuple(
        (name, "block" if has_blocks and _is_jaxpr(parameter) else _key(parameter))
        for name, parameter in sorted(eqn.params.items())
    )


def _derivative_key(eqn: core.JaxprEqn) -> Hashable:
    """Compare custom functions by what they and their derivatives do: the functions are new in each trace."""
    primal = next(parameter for parameter in eqn.params.values() if _is_jaxpr(parameter))
    try:
        seen = _shapes(eqn.invars)
        floats = [index for index, shape in enumerate(seen) if jnp.issubdtype(shape.dtype, jnp.inexact)]
        shapes = [*seen, *_shapes(eqn.outvars)]
        derivative = jax.make_jaxpr(lambda *inputs: _pushed_back(eqn, inputs, floats))(*shapes)
    except Exception:
        # Not every function can be differentiated out of its context: then it is compared by identity.
        return _key(primal), tuple(Identity(parameter) for parameter in eqn.params.values())
    return _key(primal), _key(derivative)


def _pushed_back(eqn: core.JaxprEqn, inputs: tuple[jax.Array, ...], floats: list[int]) -> list[jax.Array]:
    atoms = jax.make_jaxpr(lambda *inputs: inputs)(*_shapes(eqn.invars)).jaxpr.invars
    run = alone(eqn.replace(invars=atoms), atoms, eqn.outvars)

    def of_floats(*arrays: jax.Array) -> list[jax.Array]:
        filled = list(inputs[: len(atoms)])
        for index, value in zip(floats, arrays, strict=True):
            filled[index] = value
        return run(*filled)

    _, back = jax.vjp(of_floats, *(inputs[index] for index in floats))
    return list(back(list(inputs[len(atoms) :])))


def _shapes(atoms: Sequence[core.Var | core.Literal]) -> list[jax.ShapeDtypeStruct]:
    shapes: list[Shaped] = [atom.aval for atom in atoms]
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in shapes]  # type: ignore[no-untyped-call]


def _is_jaxpr(parameter: object) -> bool:
    if isinstance(parameter, (tuple, list)):
        return any(map(_is_jaxpr, parameter))
    return isinstance(parameter, (core.Jaxpr, core.ClosedJaxpr))


def _key(value: object) -> Hashable:
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        # Since JAX 0.11 both classes are one, which is its own ``jaxpr``.
        inner: Any = value
        return _jaxpr_key(getattr(inner, "jaxpr", inner)), tuple(map(_key, getattr(inner, "consts", ())))
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, jax.Array) or callable(value):
        return Identity(value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return type(value), value


def _jaxpr_key(jaxpr: core.Jaxpr) -> Hashable:
    numbers: dict[core.Var, int] = {}

    def atom(var: core.Var | core.Literal) -> Hashable:
        if isinstance(var, core.Literal):
            return "literal", str(var.aval), _key(np.asarray(var.val))
        return numbers.setdefault(var, len(numbers)), str(var.aval)

    def equation(eqn: core.JaxprEqn) -> Hashable:
        if eqn.primitive.name in CUSTOM:
            # Only first derivatives are taken, so inside of a derivative this is run and not differentiated.
            params: Hashable = _key(next(parameter for parameter in eqn.params.values() if _is_jaxpr(parameter)))
        else:
            params = tuple((name, _key(parameter)) for name, parameter in sorted(eqn.params.items()))
        return eqn.primitive.name, tuple(map(atom, eqn.invars)), params, tuple(map(atom, eqn.outvars))

    inputs = tuple(map(atom, (*jaxpr.constvars, *jaxpr.invars)))
    return inputs, tuple(map(equation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars))
