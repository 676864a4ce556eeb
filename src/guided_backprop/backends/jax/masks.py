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
from guided_backprop.backends.jax.program import REBUILT, Block, Step, Value
from guided_backprop.backends.jax.relus import Facts, custom_name
from guided_backprop.backends.operations import Kind

# These show what they compute; only what their derivative is, is their own.
_SHOWN = frozenset({"custom_function", "inv"})
_NOTHING: frozenset[Hashable] = frozenset()

_COMPARISONS = frozenset({"greater", "greater_equal", "less", "less_equal"})
_SAME = frozenset("cast copy mark reshape squeeze stop_gradient".split())
_MOVES = frozenset("broadcast flip slice transpose".split())
_SCALINGS = frozenset({"div", "mul", "neg"})
_LARGEST = frozenset({"max", "sort"})
_MASKED = frozenset({"where", "mul", "div"})


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
            if self._is_opaque(step):
                self.opaque.add(custom_name(step))
            if step.jitted is None:
                self._visit_blocks(step)
                self._follow(step)

    def _is_opaque(self, step: Step) -> bool:
        """Tell whether nothing is known of an operation, or of what it holds; custom functions show what they do."""
        if step.word == "reference":
            # What is written to an array is read by another operation, which no trace connects with this one.
            return any(value.carries for value in step.inputs)
        is_hidden = step.kind is Kind.UNKNOWN or (step.kind is Kind.HIDDEN and step.word not in _SHOWN)
        return is_hidden and step.is_on_path and step.relu is None

    def _visit_blocks(self, step: Step) -> None:
        if step.name in REBUILT:
            for block in step.blocks:
                self.visit(block)
            if step.word not in ("cond", "scan") and step.blocks:
                for value, inner in zip(step.outputs, step.blocks[0].outputs, strict=True):
                    self._copy(value, inner)
            return
        name = custom_name(step)
        if not step.is_on_path or step.is_known or name in self._vouch:
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
        if step.is_on_path and not step.is_known:
            name = self._spelled_by_constant(step) or self._spelled_by_mask(step)
            if name is not None and name not in self._vouch:
                self.spelled.add(name)
        self._follow_origin(step)
        self._follow_signs(step)
        self._follow_absolutes(step)

    def _spelled_by_constant(self, step: Step) -> str | None:
        """Find ``x - min(x, 0)``, a bound that is 0 in places, and the largest of a stack of x and zeros."""
        is_zero = self._facts.is_zero
        if step.word == "minimum" and self._facts.operand_against_zero(step) is not None:
            return "min with 0"
        if step.word == "clamp" and is_zero(step.inputs[2]):
            return "clamp to at most 0"
        if step.word in ("maximum", "clamp") and any(map(self._facts.is_partly_zero, step.inputs[:2])):
            return f"{step.name} with a bound that is 0 in places"
        if step.word in _LARGEST:
            stacked = step.inputs[0].step
            while stacked is not None and stacked.word in _SAME | _MOVES:
                stacked = stacked.inputs[0].step
            if stacked is not None and stacked.word in ("concatenate", "stack") and any(map(is_zero, stacked.inputs)):
                return f"{step.name} over a stack with 0"
        return None

    def _spelled_by_mask(self, step: Step) -> str | None:
        """Find a value that is gated by its own sign, or added to its own magnitude."""
        if step.word == "where":
            signs, cases = self.signs(step.inputs[0]), step.inputs[1:]
            others = [case for case in cases if not self._facts.is_uniform(case)]
            if len(others) < len(cases) and others and all(self._is_of(case, signs) for case in others):
                return "select_n"
        if step.word in ("mul", "div", "matmul") and len(step.inputs) == 2:
            for mask, gated in (step.inputs, step.inputs[::-1]):
                if self._is_of(gated, self.signs(mask)) and mask not in self._is_two_sided:
                    return step.name
        if step.word in ("add", "sub"):
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
        if step.word == "where":
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
        if step.word in _SAME or step.word == "where":
            self._origins[result] = origin
        elif step.word in _MOVES:
            self._origins[result] = _Origin(_moved(step, origin.linear), origin.scale, _moved(step, origin.affine))
        elif step.word == "neg":
            self._origins[result] = origin._replace(scale=_times(origin.scale, -1.0))
        elif step.word in ("add", "sub"):
            self._origins[result] = _Origin(result, 1.0, origin.affine)
        elif step.word == "mul" or (step.word == "div" and is_first):
            factor = _scalar(self._facts.known(others[0]))
            if factor is not None and step.word == "div":
                factor = 1 / factor if factor else None
            linear = origin.linear if factor is not None else result
            self._origins[result] = _Origin(linear, _times(origin.scale, factor), origin.affine)

    def _follow_signs(self, step: Step) -> None:
        result = step.outputs[0]
        depending = [value for value in step.inputs if value.depends]
        if step.word == "sign" or (step.word in _COMPARISONS and self._compares_with_constant(step)):
            self._signs[result] = frozenset({self.origin(depending[0]).affine})
            if step.word == "sign":
                self._is_two_sided.add(result)
            return
        if step.word == "where" and _is_nan_mask(step.inputs[0]) and not step.inputs[1].depends:
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
        is_scaled = step.word in _SAME | _MOVES | _SCALINGS
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
        """Follow |x|, which is also the root of a square, the larger of x and -x, and x times its sign."""
        value, result = step.inputs[0], step.outputs[0]
        if step.word == "abs":
            self._absolutes[result] = self.origin(value)
        elif step.word == "sqrt" and value in self._squares:
            self._absolutes[result] = self._squares[value]
        elif step.exponent == 2:
            self._squares[result] = self.origin(value)
        elif step.word in ("mul", "maximum") and all(each.depends for each in step.inputs):
            self._follow_pair(step)
        elif step.word in _SAME | _SCALINGS:
            depending = next(each for each in step.inputs if each.depends)
            if depending in self._absolutes:
                found = self._absolutes[depending]
                self._absolutes[result] = found._replace(scale=_times(found.scale, _scale_of(step, self._facts)))

    def _follow_pair(self, step: Step) -> None:
        (one, other), result = map(self.origin, step.inputs), step.outputs[0]
        if step.word == "maximum":
            if other.linear == one.linear and other.scale == _times(one.scale, -1.0):
                self._absolutes[result] = one
            return
        if other.linear == one.linear:
            self._squares[result] = one
        for sign, own in (step.inputs, step.inputs[::-1]):
            if sign in self._is_two_sided and self._is_of(own, self.signs(sign)):
                self._absolutes[result] = self.origin(own)

    def _follow_random(self, step: Step) -> None:
        """Follow random numbers to a mask, and the mask to a value that it drops."""
        if step.kind is Kind.RANDOM or any(value in self._random for value in step.inputs):
            self._random.update(step.outputs)
        is_mask = any(value in self._random_masks for value in step.inputs)
        if is_mask and step.is_on_path and step.word in _MASKED:
            self.has_random_mask = True
        is_new = step.word in _COMPARISONS and any(value in self._random for value in step.inputs)
        if is_new or (is_mask and (step.word in _MASKED or step.kind in (Kind.MOVES, Kind.COMPARES))):
            self._random_masks.update(step.outputs)


def _moved(step: Step, root: Hashable) -> Hashable:
    """Return what stands for ``root`` once its values have been moved elsewhere, or repeated."""
    value, result = step.inputs[0], step.outputs[0]
    if step.word not in _MOVES or (step.word == "broadcast" and _is_as_many(value, result)):
        return root
    if step.word == "transpose":
        order = tuple(step.eqn.params["permutation"])
        if isinstance(root, tuple) and root[0] == "transpose":
            order, root = tuple(root[1][axis] for axis in order), root[2]
        return root if order == tuple(range(len(order))) else ("transpose", order, root)
    return (step.name, str(step.eqn.params), root)


def _is_as_many(one: Value, other: Value) -> bool:
    return bool(np.prod(one.aval.shape) == np.prod(other.aval.shape))


def _is_nan_mask(value: Value) -> bool:
    step = value.step
    return step is not None and step.word == "not_equal" and step.inputs[0] is step.inputs[1]


def has_relu(block: Block) -> bool:
    """Tell whether a ReLU is in a block or in a block inside of it."""
    return any(step.relu is not None or any(map(has_relu, step.blocks)) for step in block.steps)


def _is_as_large(one: _Origin, other: _Origin) -> bool:
    if one.scale is None or other.scale is None:
        return True
    return bool(np.isclose(abs(one.scale), abs(other.scale), rtol=1e-3))


def _scale_of(step: Step, facts: Facts) -> float | None:
    if step.word in _SAME:
        return 1.0
    if step.word == "neg":
        return -1.0
    constant = next((each for each in step.inputs if not each.depends), None)
    factor = None if constant is None else _scalar(facts.known(constant))
    return factor if factor is None or step.word == "mul" else 1 / factor if factor else None


def _scalar(known: Any) -> float | None:
    """Return the one number that an array is filled with, or None."""
    if known is None or isinstance(known, core.Literal):
        return None
    array = np.asarray(known, np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def _times(scale: float | None, factor: float | None) -> float | None:
    return None if scale is None or factor is None else scale * factor
