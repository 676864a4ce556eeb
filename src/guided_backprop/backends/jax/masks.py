"""What must not pass unseen: ReLUs spelled as arithmetic, parts that hide what they do, random masks.

A ReLU can be spelled without one operation that is a ReLU: ``where(x > 0, x, 0)``, ``x * (x > 0)``,
``(x + |x|) / 2``. The jaxpr shows where every mask comes from, so they are found by following what says
where x is positive to where it meets x again.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.program import CUSTOM, REBUILT, Block, Step, Value
from guided_backprop.backends.jax.relus import Facts, custom_name

_NOTHING: frozenset[Hashable] = frozenset()

_OPAQUE = ("call_exported", "callback", "custom_call", "ffi_call", "mosaic", "pallas_call", "xla_call_module", "tpu_")
_COMPARISONS = {"ge", "gt", "le", "lt"}
_SAME = {"convert_element_type", "copy", "copy_p", "optimization_barrier", "pbroadcast", "pcast", "pvary"}
_SAME |= {"reduce_precision", "reshape", "sharding_constraint", "squeeze", "stop_gradient"}
_MOVES = {"broadcast_in_dim", "expand_dims", "rev", "slice", "transpose"}
_LARGEST = {"approx_top_k", "cummax", "reduce_max", "sort", "top_k"}
_RANDOM = {"random_bits", "rng_bit_generator", "rng_uniform", "threefry2x32"}
_OF_A_MASK = _SAME | _MOVES | {"and", "div", "eq", "ge", "gt", "le", "lt", "mul", "ne", "not", "or", "select_n", "xor"}


class _Origin(NamedTuple):
    """What a value is a multiple of, and what it is an affine function of, value by value."""

    linear: Hashable
    scale: float | None
    affine: Hashable


class Audit:
    """Walks through a program once, and collects what is found.

    Attributes:
        opaque: names of operations and custom functions that hide what they compute.
        spelled: names of operations that a ReLU is spelled with.
        has_random_mask: whether values are dropped at random.
    """

    def __init__(self, facts: Facts, vouch: Vouch) -> None:
        self.opaque: set[str] = set()
        self.spelled: set[str] = set()
        self.has_random_mask = False
        self._facts = facts
        self._vouch = vouch
        self._origins: dict[Value, _Origin] = {}
        self._signs: dict[Value, frozenset[Hashable]] = {}
        self._is_two_sided: set[Value] = set()
        self._absolutes: dict[Value, _Origin] = {}
        self._squares: dict[Value, _Origin] = {}
        self._random: set[Value] = set()
        self._random_masks: set[Value] = set()

    def visit(self, block: Block) -> None:
        """Look at every step of a block, in the order in which they run."""
        for step in block.steps:
            self._follow_random(step)
            if not any(value.depends for value in step.inputs):
                continue
            if step.is_on_path and any(part in step.name for part in _OPAQUE):
                self.opaque.add(step.name)
            if step.composite is None:
                self._visit_blocks(step)
                self._follow(step)

    def _visit_blocks(self, step: Step) -> None:
        if step.name in REBUILT:
            for block in step.blocks:
                self.visit(block)
            if step.name not in ("cond", "scan") and step.blocks:
                for value, inner in zip(step.outputs, step.blocks[0].outputs, strict=True):
                    self._copy(value, inner)
            return
        name = custom_name(step) if step.name in CUSTOM else step.name
        if not step.is_on_path or step.relu is not None or name in self._vouch:
            return
        inside = Audit(self._facts, self._vouch)
        inside._origins, inside._signs = self._origins, self._signs
        for block in step.blocks:
            inside.visit(block)
            if inside.spelled or has_relu(block):
                self.opaque.add(name)
        self.opaque |= inside.opaque

    def _copy(self, value: Value, source: Value) -> None:
        self._origins[value] = self.origin(source)
        if source in self._signs:
            self._signs[value] = self._signs[source]

    def origin(self, value: Value) -> _Origin:
        """Return what ``value`` is computed from; at first, itself."""
        if value not in self._origins:
            self._origins[value] = self.origin(value.outer) if value.outer else _Origin(value, 1.0, value)
        return self._origins[value]

    def signs(self, value: Value) -> frozenset[Hashable]:
        """Return the values whose sign ``value`` is made of."""
        if value not in self._signs and value.outer is not None:
            return self.signs(value.outer)
        return self._signs.get(value, _NOTHING)

    def _follow(self, step: Step) -> None:
        if step.is_on_path and step.relu is None and not step.is_inside:
            name = self._spelled_by_constant(step) or self._spelled_by_mask(step)
            if name is not None and name not in self._vouch:
                self.spelled.add(name)
        self._follow_origin(step)
        self._follow_signs(step)
        self._follow_absolutes(step)

    def _spelled_by_constant(self, step: Step) -> str | None:
        """Find ``x - min(x, 0)``, a bound that is 0 in places, and the largest of a stack of x and zeros."""
        is_zero = self._facts.is_zero
        if step.name == "min" and self._facts.operand_against_zero(step) is not None:
            return "min with 0"
        if step.name == "clamp" and is_zero(step.inputs[2]):
            return "clamp to at most 0"
        if step.name in ("max", "clamp") and any(map(self._facts.is_partly_zero, step.inputs[:2])):
            return f"{step.name} with a bound that is 0 in places"
        if step.name in _LARGEST:
            stacked = step.inputs[0].step
            while stacked is not None and stacked.name in _SAME | _MOVES:
                stacked = stacked.inputs[0].step
            if stacked is not None and stacked.name in ("concatenate", "stack") and any(map(is_zero, stacked.inputs)):
                return f"{step.name} over a stack with 0"
        return None

    def _spelled_by_mask(self, step: Step) -> str | None:
        """Find a value that is gated by its own sign, or added to its own magnitude."""
        if step.name == "select_n":
            signs, cases = self.signs(step.inputs[0]), step.inputs[1:]
            others = [case for case in cases if not self._facts.is_uniform(case)]
            if len(others) < len(cases) and others and all(self._is_of(case, signs) for case in others):
                return "select_n"
        if step.name in ("mul", "div", "dot_general") and len(step.inputs) == 2:
            for mask, gated in (step.inputs, step.inputs[::-1]):
                if self._is_of(gated, self.signs(mask)) and mask not in self._is_two_sided:
                    return step.name
        if step.name in ("add", "add_any", "sub"):
            for magnitude, value in (step.inputs, step.inputs[::-1]):
                found, own = self._absolutes.get(magnitude), self.origin(value)
                if found is not None and value.depends and found.linear == own.linear and _is_as_large(found, own):
                    return step.name
        return None

    def _is_of(self, value: Value, signs: frozenset[Hashable]) -> bool:
        is_float = bool(jnp.issubdtype(value.aval.dtype, jnp.inexact))
        return is_float and value.depends and not self.signs(value) and self.origin(value).affine in signs

    def _follow_origin(self, step: Step) -> None:
        operands = step.inputs
        if step.name == "select_n":
            # A mask that is not made of signs leaves what it lets pass what it was; so does one of two equals.
            operands = step.inputs[1:]
            is_same = len({self.origin(value) for value in operands}) == 1
            operands = operands[:1] if is_same else [] if self.signs(step.inputs[0]) else operands
        depending = [value for value in operands if value.depends]
        if len(depending) != 1:
            return
        value, result = depending[0], step.outputs[0]
        origin = self.origin(value)
        others = [each for each in step.inputs if not each.depends]
        is_first = step.inputs[0] is value
        if step.name in _SAME or step.name == "select_n":
            self._origins[result] = origin
        elif step.name in _MOVES:
            self._origins[result] = _Origin(_moved(step, origin.linear), origin.scale, _moved(step, origin.affine))
        elif step.name == "neg":
            self._origins[result] = origin._replace(scale=_times(origin.scale, -1.0))
        elif step.name in ("add", "add_any", "sub"):
            self._origins[result] = _Origin(result, 1.0, origin.affine)
        elif step.name == "mul" or (step.name == "div" and is_first):
            factor = _scalar(self._facts.known(others[0]))
            if factor is not None and step.name == "div":
                factor = 1 / factor if factor else None
            linear = origin.linear if factor is not None else result
            self._origins[result] = _Origin(linear, _times(origin.scale, factor), origin.affine)

    def _follow_signs(self, step: Step) -> None:
        result = step.outputs[0]
        depending = [value for value in step.inputs if value.depends]
        if step.name == "sign" or (step.name in _COMPARISONS and self._compares_with_constant(step)):
            self._signs[result] = frozenset({self.origin(depending[0]).affine})
            if step.name == "sign":
                self._is_two_sided.add(result)
            return
        if step.name == "select_n" and _is_nan_mask(step.inputs[0]) and not step.inputs[1].depends:
            # Without NaN this is a constant, and says no more of the value than its sign does.
            self._signs[result] = frozenset({self.origin(depending[0]).affine})
            return
        found = [self.signs(value) for value in depending]
        # A mask is made of the signs of every mask in it; a number that something else goes into is no mask.
        is_mask = not jnp.issubdtype(result.aval.dtype, jnp.inexact)
        if not any(found) or not (is_mask or all(found)):
            return
        signs = frozenset(_moved(step, root) for root in frozenset[Hashable]().union(*found))
        for value in step.outputs:
            self._signs[value] = signs
        is_scaled = step.name in _SAME | _MOVES | {"neg", "mul", "div"}
        if is_scaled and any(value in self._is_two_sided for value in depending):
            self._is_two_sided.add(result)

    def _compares_with_constant(self, step: Step) -> bool:
        left, right = step.inputs
        if not jnp.issubdtype(left.aval.dtype, jnp.floating):
            return False
        if left.depends and right.depends:
            return self.origin(left).affine == self.origin(right).affine
        known = self._facts.known(right if left.depends else left)
        # A comparison with infinity asks for overflow, not for the sign.
        return known is None or bool(np.isfinite(np.asarray(known, np.float64)).any())

    def _follow_absolutes(self, step: Step) -> None:
        value, result = step.inputs[0], step.outputs[0]
        origin = self.origin(value)
        name, params = step.name, step.eqn.params
        if name == "abs" or (name == "sqrt" and value in self._squares):
            self._absolutes[result] = origin if name == "abs" else self._squares[value]
        elif name == "square" or (name == "integer_pow" and params["y"] == 2):
            self._squares[result] = origin
        elif name in ("mul", "max") and all(each.depends for each in step.inputs):
            other = self.origin(step.inputs[1])
            if name == "mul" and other.linear == origin.linear:
                self._squares[result] = origin
            elif name == "max" and other.linear == origin.linear and other.scale == _times(origin.scale, -1.0):
                self._absolutes[result] = origin
            for sign, own in (step.inputs, step.inputs[::-1]):
                if name == "mul" and sign in self._is_two_sided and self._is_of(own, self.signs(sign)):
                    self._absolutes[result] = self.origin(own)
        elif name in _SAME | {"neg", "mul", "div"}:
            depending = next(each for each in step.inputs if each.depends)
            if depending in self._absolutes:
                factor = _scale_of(step, self._facts)
                found = self._absolutes[depending]
                self._absolutes[result] = found._replace(scale=_times(found.scale, factor))

    def _follow_random(self, step: Step) -> None:
        """Follow random numbers to a mask, and the mask to a value that it drops."""
        if step.name in _RANDOM or any(value in self._random for value in step.inputs):
            self._random.update(step.outputs)
        is_mask = any(value in self._random_masks for value in step.inputs)
        if is_mask and step.is_on_path and step.name in ("select_n", "mul", "div"):
            self.has_random_mask = True
        is_new = step.name in _COMPARISONS and any(value in self._random for value in step.inputs)
        if is_new or (is_mask and step.name in _OF_A_MASK):
            self._random_masks.update(step.outputs)


def _moved(step: Step, root: Hashable) -> Hashable:
    """Return what stands for ``root`` once its values have been moved elsewhere, or repeated."""
    value, result = step.inputs[0], step.outputs[0]
    if step.name not in _MOVES or (step.name in ("broadcast_in_dim", "expand_dims") and _is_as_many(value, result)):
        return root
    if step.name == "transpose":
        order = tuple(step.eqn.params["permutation"])
        if isinstance(root, tuple) and root[0] == "transpose":
            order, root = tuple(root[1][axis] for axis in order), root[2]
        return root if order == tuple(range(len(order))) else ("transpose", order, root)
    return (step.name, str(step.eqn.params), root)


def _is_as_many(one: Value, other: Value) -> bool:
    return bool(np.prod(one.aval.shape) == np.prod(other.aval.shape))


def _is_nan_mask(value: Value) -> bool:
    step = value.step
    return step is not None and step.name == "ne" and step.inputs[0] is step.inputs[1]


def has_relu(block: Block) -> bool:
    """Tell whether a ReLU is in a block or in a block inside of it."""
    return any(step.relu is not None or any(map(has_relu, step.blocks)) for step in block.steps)


def _is_as_large(one: _Origin, other: _Origin) -> bool:
    if one.scale is None or other.scale is None:
        return True
    return bool(np.isclose(abs(one.scale), abs(other.scale), rtol=1e-3))


def _scale_of(step: Step, facts: Facts) -> float | None:
    if step.name in _SAME:
        return 1.0
    if step.name == "neg":
        return -1.0
    constant = next((each for each in step.inputs if not each.depends), None)
    factor = None if constant is None else _scalar(facts.known(constant))
    return factor if factor is None or step.name == "mul" else 1 / factor if factor else None


def _scalar(known: Any) -> float | None:
    """Return the one number that an array is filled with, or None."""
    if known is None or isinstance(known, core.Literal):
        return None
    array = np.asarray(known, np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def _times(scale: float | None, factor: float | None) -> float | None:
    return None if scale is None or factor is None else scale * factor
