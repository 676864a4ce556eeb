"""A traced JAX model as one flat program: calls inlined, and each call site with values of its own.

A jaxpr shares what it calls: two uses of one jitted function are one inner jaxpr. What is done with a ReLU
depends on where it is used, so everything is expanded first. Loops, branches and checkpoints stay, as steps
with blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax import Array
from jax.extend import core

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.jax.graph.calls import (
    Jaxpr,
    custom_name_of_jax,
    is_of_jax,
    jitted_name,
    line_of,
    loop_sizes,
)
from guided_backprop.backends.jax.graph.operations import OPERATIONS
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.patterns import Slopes
from guided_backprop.backends.refusals import no_layer
from guided_backprop.backends.runs import Run, check_count, wrong_order

#: What is known of an array before it has values; its class has no public name.
Shaped = Any

_CALLS = OPERATIONS.called("call")
REMATS = OPERATIONS.called("checkpoint")
REBUILT = OPERATIONS.called("checkpoint", "cond", "scan", "shard_map")
CUSTOM = OPERATIONS.called("custom_function")


@dataclass(eq=False, slots=True)
class Value:
    """One array of the program, at one call site.

    Attributes:
        aval: its shape and dtype.
        step: what makes it; None for inputs and constants.
        constant: which of the program's constants it is, or None.
        literal: its value, where that is written in the program.
        outer: for a block's input, the same array outside of the block; None if it is another one.
        stack: for a loop's input, the array outside of the loop that it is a slice of.
        uses: the steps that read it.
        depends: whether it is computed from the images.
        carries: whether a gradient flows through it to the images.
        is_live: whether a gradient flows to it from the output.
        gate: how it is a ReLU that no single operation is, or None.
    """

    aval: Shaped
    step: "Step | None" = None
    constant: int | None = None
    literal: Any = None
    outer: "Value | None" = None
    stack: "Value | None" = None
    uses: "list[Step]" = field(default_factory=list)
    depends: bool = False
    carries: bool = False
    is_live: bool = False
    gate: "Gate | None" = None


@dataclass(frozen=True, eq=False, slots=True)
class Gate:
    """How a value is a ReLU of another, or a multiple of one, though no single operation there is a ReLU.

    Attributes:
        closed: where it has this value the gate is closed; an array that broadcasts against it.
        slack: how far rounding may have put it from there.
        x: what it is the ReLU of, if all gradients to it come through that; else None.
        slope: the multiple of x that it is where the gate is open, if that is one number; else None.
        is_at_zero: whether the gate is closed up to x = 0 at least: then x tells it, which rounding leaves alone.
        is_full: whether it is that multiple of a ReLU of x and nothing else, as far as values tell: no second mask.
    """

    closed: NumpyArray
    slack: float
    x: Value | None = None
    slope: float | None = None
    is_at_zero: bool = False
    is_full: bool = False


@dataclass(eq=False, slots=True)
class Block:
    """What a loop repeats, what a branch or a custom function does."""

    inputs: list[Value]
    steps: "list[Step]"
    outputs: list[Value]


@dataclass(eq=False, slots=True)
class Step:
    """One operation.

    Attributes:
        eqn: the equation of the jaxpr.
        inputs, outputs: its operands and results.
        blocks: the jaxprs in its parameters, for loops, branches, checkpoints and custom functions.
        jitted: the row of the table that it is as a whole, where it is a function of jax.nn or jax.numpy; or None.
        relu: how it is a ReLU, or None.
        activation: the composite activation that ends here, or None.
        is_inside: whether it is a part of the ReLU that the next step stands for.
        is_part: whether it is a part of a composite activation that ends elsewhere.
        is_switch: whether it is an activation by its name alone: the numbers in what it is given may make a ReLU of it.
        called: the equation of the model's own code that it comes from, where JAX's own functions call it; else None.
    """

    eqn: core.JaxprEqn
    inputs: list[Value]
    outputs: list[Value]
    blocks: list[Block] = field(default_factory=list)
    jitted: str | None = None
    relu: "Relu | None" = None
    activation: "Activation | None" = None
    is_inside: bool = False
    is_part: bool = False
    is_switch: bool = False
    called: core.JaxprEqn | None = None

    @property
    def line(self) -> str:
        """The line of the model's code that asked for it; or ""."""
        return line_of(self.called or self.eqn)

    @property
    def name(self) -> str:
        """The primitive's name."""
        return str(self.eqn.primitive.name)

    @property
    def kind(self) -> Kind:
        """What the operation does."""
        return OPERATIONS[self.jitted or self.name].kind

    @property
    def word(self) -> str:
        """The operation's name in the vocabulary of all frameworks; empty if it has no row."""
        row = OPERATIONS[self.jitted or self.name]
        return "" if row.kind is Kind.UNKNOWN else row.word

    @property
    def exponent(self) -> float | None:
        """The number that it raises a value to, where that is a part of the operation."""
        if self.name == "square":
            return 2.0
        return float(self.eqn.params["y"]) if self.name == "integer_pow" else None

    @property
    def is_known(self) -> bool:
        """Whether it is a ReLU or a composite activation, or a part of one."""
        return self.relu is not None or self.activation is not None or self.is_inside or self.is_part

    @property
    def is_on_path(self) -> bool:
        """Whether a gradient flows through it from the output to the images."""
        return any(value.carries for value in self.inputs) and any(
            value.carries and value.is_live for value in self.outputs
        )

    def run(self, operands: Sequence[Array]) -> list[Array]:
        """Do the operation as the model does it."""
        eqn = self.eqn
        seen: dict[core.Var, Array] = {}
        for atom, operand in zip(eqn.invars, operands, strict=True):
            if not isinstance(atom, core.Literal):
                seen[atom] = operand
        kept = [var for var in eqn.outvars if not is_dropped(var)]
        results = iter(alone(eqn, list(seen), kept)(*seen.values()))
        # Nobody reads what is dropped.
        return [None if is_dropped(var) else next(results) for var in eqn.outvars]  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Relu:
    """How a step is a ReLU, or a ReLU with a cap.

    Attributes:
        name: "relu", "relu6"...
        operand: which of the step's operands is the ReLU's input; that of ``inside`` if there is one.
        cap: the upper bound; None if there is none.
        inside: the step in front, of the pair of maximum and minimum that the ReLU is made of.
        is_custom: whether it brings a derivative of its own, which is then its forward gate.
    """

    name: str
    operand: int = 0
    cap: Value | None = None
    inside: Step | None = None
    is_custom: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Activation:
    """A composite activation: several steps, one function of one value.

    Attributes:
        name: how the coverage lists it.
        x: its input.
        steps: what it is made of, in the order in which they run.
        slopes: those below 0 of a PReLU that is written out; None of all else.
    """

    name: str
    x: Value
    steps: tuple[Step, ...]
    slopes: Slopes[Value] | None = None


class Program:
    """A model as traced: one block, and the arrays that it closed over."""

    def __init__(self, traced: core.ClosedJaxpr) -> None:
        self.constants: list[Array] = []
        self._known: dict[int, Value] = {}
        images = [Value(var.aval) for var in traced.jaxpr.invars]
        steps: list[Step] = []
        outputs = self._inline(traced, images, steps, None)
        self.block = Block(images, steps, outputs)
        # What is run before the block, if that begins inside of the model.
        self.first: Block | None = None

    def steps(self) -> Iterator[Step]:
        """Iterate over all steps, those of inner blocks before the step that they belong to."""
        return _all_steps(self.block)

    def all_steps(self) -> Iterator[Step]:
        """Iterate over those as well that make the value which the gradient is taken at."""
        if self.first is not None:
            yield from _all_steps(self.first)
        yield from self.steps()

    def named(self) -> "dict[str, list[Step]]":
        """Return the steps that name their value, by the name, those in loops and branches left out."""
        named: dict[str, list[Step]] = {}
        for step in self.block.steps:
            if step.name == "name":
                named.setdefault(step.eqn.params["name"], []).append(step)
        return named

    def between(self, begin: Run | None, end: Run | None) -> Shaped:
        """Let gradients end at one named value, and the program end with another; return its output's shape.

        Args:
            begin: the value as it was named with ``tap``, or its position among the names; None for the inputs.
            end: likewise; None for the program's own output.

        Raises:
            OptionError: there is no such name, or only inside of a loop, a branch or a checkpoint; or the end is first.
            ModelError: several values have the name, and none of them was chosen.
        """
        first, last = (None if run is None else self._step_named(run) for run in (begin, end))
        if last is not None:
            del self.block.steps[self.block.steps.index(last) + 1 :]
            self.block.outputs = last.outputs
        if first is not None:
            if first not in self.block.steps:
                raise wrong_order(begin, end)
            return self.begin_at(first.outputs[0])
        return self.block.outputs[0].aval

    def begin_at(self, value: Value) -> Shaped:
        """Let gradients end at a value of the program; return the shape of the program's output."""
        (output,), step, steps = self.block.outputs, value.step, self.block.steps
        assert step is not None
        position = steps.index(step)
        self.first = Block(self.block.inputs, steps[: position + 1], [value])
        # The value is an input now: the step that makes it makes another in its place.
        outputs = [Value(result.aval) if result is value else result for result in step.outputs]
        steps = [*steps[:position], replace(step, outputs=outputs), *steps[position + 1 :]]
        value.step = None
        self.block = Block([*self.block.inputs, value], steps, [output])
        return output.aval

    def _step_named(self, run: Run) -> "Step":
        named, name = self.named(), run.layer
        names = list(named)
        chosen = names[name] if isinstance(name, int) and -len(names) <= name < len(names) else name
        if chosen not in named:
            raise no_layer(name, names)
        # What is inside of a loop counts, though it can't be chosen.
        every = [step for step in self.steps() if step.name == "name" and step.eqn.params["name"] == chosen]
        check_count(run, len(every), len(named[str(chosen)]))
        return named[str(chosen)][run.call or 0]

    def _inline(
        self, closed: Jaxpr, inputs: Sequence[Value], steps: list[Step], called: core.JaxprEqn | None
    ) -> list[Value]:
        jaxpr, constants = (closed.jaxpr, closed.consts) if isinstance(closed, core.ClosedJaxpr) else (closed, [])
        value_of: dict[core.Var, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, constant in zip(jaxpr.constvars, constants, strict=True):
            value_of[var] = self._constant(var.aval, constant)

        def read(atom: core.Var | core.Literal) -> Value:
            if not isinstance(atom, core.Literal):
                return value_of[atom]
            return self._constant(atom.aval, atom.val) if np.ndim(atom.val) else Value(atom.aval, literal=atom.val)

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            results = self._expand(eqn, operands, steps, called)
            value_of.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _expand(
        self, eqn: core.JaxprEqn, operands: list[Value], steps: list[Step], called: core.JaxprEqn | None
    ) -> list[Value]:
        jitted = custom_name_of_jax(eqn)
        if eqn.primitive.name in _CALLS:
            jitted = jitted_name(eqn)
            if jitted is None:
                inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
                # JAX traces a function of its own once for all places that call it.
                return self._inline(inner, operands, steps, called or (eqn if is_of_jax(inner) else None))
        step = Step(eqn, operands, [Value(var.aval) for var in eqn.outvars], jitted=jitted, called=called)
        if step.word == "scan":
            step.blocks = [self._loop(eqn, operands, called)]
        elif step.kind in (Kind.HOLDS, Kind.HIDDEN, Kind.UNKNOWN):
            step.blocks = [self._block(inner, outer, called) for inner, outer in _inner(eqn, operands)]
        for value in operands:
            value.uses.append(step)
        for value in step.outputs:
            value.step = step
        steps.append(step)
        return step.outputs

    def _block(self, closed: Jaxpr, outer: Sequence[Value | None], called: core.JaxprEqn | None) -> Block:
        jaxpr = closed.jaxpr if isinstance(closed, core.ClosedJaxpr) else closed
        inputs = [Value(var.aval, outer=value) for var, value in zip(jaxpr.invars, outer, strict=True)]
        steps: list[Step] = []
        return Block(inputs, steps, self._inline(closed, inputs, steps, called))

    def _loop(self, eqn: core.JaxprEqn, operands: list[Value], called: core.JaxprEqn | None) -> Block:
        constants, carried = loop_sizes(eqn.params)
        outer = [*operands[:constants], *[None] * (len(operands) - constants)]
        block = self._block(eqn.params["jaxpr"], outer, called)
        for value, stack in zip(block.inputs[constants + carried :], operands[constants + carried :], strict=True):
            value.stack = stack
        return block

    def _constant(self, aval: Shaped, array: Array) -> Value:
        if id(array) not in self._known:
            self._known[id(array)] = Value(aval, constant=len(self.constants))
            self.constants.append(array)
        return self._known[id(array)]


def is_dropped(var: core.Var) -> bool:
    """Tell whether an equation's result is not used; the class has no public name in every version of JAX."""
    return type(var).__name__ == "DropVar"


def alone(eqn: core.JaxprEqn, inputs: list[core.Var], outputs: list[core.Var]) -> Callable[..., list[Array]]:
    """Return a function that does what one equation does."""
    about: dict[str, Any] = {}
    if hasattr(core, "DebugInfo"):
        names, paths = tuple("" for _ in inputs), tuple("" for _ in outputs)
        about["debug_info"] = core.DebugInfo("jit", str(eqn.primitive.name), names, paths)
    jaxpr = core.Jaxpr([], inputs, outputs, [eqn], eqn.effects, **about)
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))  # type: ignore[no-any-return]


def _all_steps(block: Block) -> Iterator[Step]:
    for step in block.steps:
        for inner in step.blocks:
            yield from _all_steps(inner)
        yield step


def _inner(eqn: core.JaxprEqn, operands: list[Value]) -> Iterator[tuple[Jaxpr, list[Value | None]]]:
    """Yield each jaxpr in an equation's parameters, with the operand that each of its inputs is, or None."""
    params = eqn.params
    if eqn.primitive.name in OPERATIONS.called("cond"):
        for branch in params["branches"]:
            yield branch, [*operands[1:]]
    else:
        for parameter in params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                    inputs = (inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner).invars
                    is_same = len(inputs) == len(operands)
                    yield inner, list(operands) if is_same else [None] * len(inputs)
