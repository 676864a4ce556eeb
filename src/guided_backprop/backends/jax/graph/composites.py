"""The composite activations of a traced model: those of jax.nn, and those that are written out."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.axes import Axes
from guided_backprop.backends.curves import curve_of, is_switch, parts_of
from guided_backprop.backends.guards import Guards
from guided_backprop.backends.jax.graph.axes import axes_of
from guided_backprop.backends.jax.graph.program import Activation, Program, Step, Value
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.patterns import MOVES, Match, Slopes, composites
from guided_backprop.rules import SMOOTH

# Copies and casts, which patterns do not see.
_UNSEEN = frozenset({"cast", "copy", "mark"})
# An average pooling is a sum over windows that is divided by their size.
_WINDOWS = "reduce_window_sum"


class Graph:
    """A traced model as patterns see it; a ReLU is one operation, however it is written.

    Args:
        facts: what is known of its values.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._made: dict[Value, tuple[str, Sequence[Value | float]] | None] = {}

    def made(self, value: Value) -> tuple[str, Sequence[Value | float]] | None:
        """Return the word of the operation that makes a value, and its operands."""
        value = self.source(value)
        if value not in self._made:
            self._made[value] = None if value.step is None else self._how(value.step)
        return self._made[value]

    def _how(self, step: Step) -> tuple[str, Sequence[Value | float]]:
        if step.relu is not None:
            return step.relu.name, [self.source((step.relu.inside or step).inputs[step.relu.operand])]
        operands: list[Value | float] = [self.source(step.inputs[place]) for place in _places(step)]
        if step.exponent is not None:
            operands.append(step.exponent)
        return "sum" if step.name == _WINDOWS else step.word, operands

    def constant(self, value: Value) -> float | None:
        """Return the number that a value is everywhere; an array of weights is no number, unless all are 0."""
        if value.depends:
            return None
        while value.step is not None and value.step.word in MOVES | _UNSEEN:
            value = value.step.inputs[0]
        if getattr(value.aval, "shape", ()):
            return float("nan")
        known = self._numbers(value)
        if known is not None and known.size and not known.any():
            return 0.0
        return float(known) if known is not None and known.ndim == 0 else float("nan")

    def number(self, value: Value) -> float | None:
        """Return the same, also of an array of one number."""
        constant = self.constant(value)
        if constant is None or not np.isnan(constant):
            return constant
        known = self._numbers(value)
        is_one = known is not None and known.size and (known == known.flat[0]).all()
        return float(known.flat[0]) if known is not None and is_one else constant

    def _numbers(self, value: Value) -> NumpyArray | None:
        """Return the real numbers that a value is known to be."""
        known = self._facts.known(value)
        is_number = known is not None and np.issubdtype(np.asarray(known).dtype, np.number) and np.isrealobj(known)
        return np.asarray(known) if is_number else None

    def array(self, value: Value) -> NumpyArray | None:
        """Return a constant of several numbers or truths, with all turns of a loop that it is given for in front."""
        value = self.source(value)
        step = value.step
        if step is not None and step.name == "broadcast_in_dim" and not value.depends:
            inner = self.array(step.inputs[0])
            if inner is None:
                return None
            sizes = dict(zip(step.eqn.params["broadcast_dimensions"], step.inputs[0].aval.shape, strict=True))
            # One number may have been repeated before.
            inner = np.broadcast_to(inner, tuple(sizes.values())) if inner.size == 1 else inner
            turns = inner.shape[: inner.ndim - len(sizes)]
            return inner.reshape([*turns, *(sizes.get(axis, 1) for axis in range(len(value.aval.shape)))])
        kind = value.aval.dtype
        is_real = any(jnp.issubdtype(kind, one) for one in (jnp.bool_, jnp.floating, jnp.integer))
        known = self._facts.known(value if value.stack is None else value.stack) if is_real else None
        return None if known is None else np.asarray(known)

    def axes(self, value: Value) -> Axes | None:
        """Return where the axes of what a value is made of go."""
        step = self.source(value).step
        return None if step is None else axes_of(step)

    def users(self, value: Value) -> Sequence[Value]:
        """Return the values that are made of a value directly, a ReLU as a whole; what a block gives out is one."""
        users = [Value(value.aval)] if id(value) in self._facts.results else []
        for step in value.uses:
            is_unseen = _is_unseen(step) or step.is_inside
            users += self.users(step.outputs[0]) if is_unseen else step.outputs
        return users

    def source(self, value: Value) -> Value:
        """Return what a value is a copy of, of whatever type."""
        while value.step is not None and _is_unseen(value.step) and value.step.relu is None:
            value = value.step.inputs[0]
        return value

    def unshifted(self, value: Value) -> Value:
        """Return x of ``x - max(x)``, or the value itself: that is how a softmax is kept from overflowing."""
        made = self.made(value)
        if made is None or made[0] != "sub":
            return value
        x, shift = made[1]
        while isinstance(x, Value) and isinstance(shift, Value) and (made := self.made(shift)) is not None:
            if made[0] == "max" and made[1][0] is x:
                return x
            # It may have been guarded against infinities on the way.
            if made[0] not in MOVES | {"maximum", "where"}:
                break
            shift = next(
                (operand for operand in reversed(made[1]) if isinstance(operand, Value) and operand.depends), 0.0
            )
        return value


def _is_unseen(step: Step) -> bool:
    """Tell a copy, or a cast that rounds nothing to a whole number."""
    is_whole = step.word == "cast" and jnp.issubdtype(step.outputs[0].aval.dtype, jnp.integer)
    return step.word in _UNSEEN and not (is_whole and jnp.issubdtype(step.inputs[0].aval.dtype, jnp.floating))


def _places(step: Step) -> Sequence[int]:
    """Return the order of the operands as others tell them: first a value, or what is chosen where a mask is."""
    orders = {"clamp": (1, 0, 2), "select_n": (0, 2, 1)}
    return orders.get(step.name, ()) if len(step.inputs) == 3 and step.name in orders else range(len(step.inputs))


def mark_activations(program: Program, facts: Facts) -> None:
    """Note each composite activation on the step that it ends with; the ReLUs in it are none of their own."""
    graph = Graph(facts)
    steps = [step for step in program.steps() if step.is_on_path and not step.is_inside]
    makers = {step.outputs[0]: step for step in steps if len(step.outputs) == 1 and step.word not in _UNSEEN}
    relus = [value for value, step in makers.items() if step.relu is not None]
    for match in [*composites(graph, list(makers)).values(), *Guards(graph).among(relus).values()]:
        x = match.bound.get("x", match.bound.get("shifted"))
        if isinstance(x, Value):
            _mark(makers[match.last], match, graph.unshifted(x))
    for step in steps:
        if step.relu is None and step.activation is None:
            _mark_whole(step, graph)


def _mark_whole(step: Step, graph: Graph) -> None:
    """Note an activation that is one operation, or that a custom function computes and nothing else."""
    if step.kind is Kind.SMOOTH and _is_switch(step, graph):
        step.is_switch = True
    elif step.kind is Kind.HEAD or step.word in SMOOTH:
        step.activation = Activation(step.word, step.inputs[0], (step,))
    elif step.name == "custom_jvp_call" and step.blocks and not step.is_part:
        block = step.blocks[0]
        last = block.outputs[0].step
        activation = None if last is None else last.activation
        if activation is not None and activation.x in block.inputs:
            given = dict(zip(block.inputs, step.inputs, strict=True))
            slopes = activation.slopes
            if slopes is not None:
                slopes = Slopes(given.get(slopes.array, slopes.array), slopes.factor)
            step.activation = Activation(activation.name, given[activation.x], (step,), slopes)


def _is_switch(step: Step, graph: Graph) -> bool:
    """Tell an activation that the numbers in what it is given make a ReLU of, be it in some places."""
    y, x = step.outputs[0], graph.source(step.inputs[0])
    curve = curve_of(y, parts_of(y, x, graph, graph.array)) if len(step.inputs) > 1 else None
    return is_switch(y, x, graph) or (curve is not None and curve.is_convex)


def _mark(last: Step, match: Match[Value], x: Value) -> None:
    last.activation = Activation(match.name, x, _between(x, last), match.slopes)
    for step in last.activation.steps:
        step.relu, step.is_inside = None, False
        if step is not last:
            step.is_part, step.activation = True, None


def _between(x: Value, last: Step) -> tuple[Step, ...]:
    """Return the steps that lead from x to the last one, in the order in which they run."""
    ordered: dict[Step, None] = {}

    def add(step: Step) -> None:
        for value in step.inputs:
            if value is not x and value.depends and value.step is not None and value.step not in ordered:
                add(value.step)
        ordered[step] = None

    add(last)
    return tuple(ordered)
