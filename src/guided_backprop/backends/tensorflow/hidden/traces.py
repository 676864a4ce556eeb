"""What is known of each value of a function, and the ways that gradients take between its operations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import ops

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends import notes
from guided_backprop.backends.choices import difference
from guided_backprop.backends.notes import Choice, Note, Ranks
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.rows import has_parts
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.tensorflow.graph.nodes import VALUES, Graph, operand_refs, producer, word_of
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS

# Derivatives of straight pieces and of pools are steps towards all but the gradient that they are given: where that is.
# So is the number next to one, towards another.
_STEPS: Final = {
    "NextAfter": 0,
    **dict.fromkeys(("LeakyReluGrad", "QuantizeAndDequantizeV4Grad", "Relu6Grad", "ReluGrad"), 0),
    **{name: 2 for name in OPERATIONS if name.startswith("MaxPool") and "Grad" in name},
}


@dataclass(frozen=True)
class Trace:
    """What is known of a value.

    Attributes:
        note: what nomination.py says of it; None if it does not depend on the images.
        is_active: whether it carries a gradient to them.
        is_sized: whether how many values it has depends on the images.
        sign: the sign that all of it has, whatever the images are.
    """

    note: Note[str] | None = None
    is_active: bool = False
    is_sized: bool = False
    sign: Sign = Sign.UNKNOWN

    def inside(self, ref: str) -> "Trace":
        """Return what is known of the same value where it comes into a function, as this argument."""
        known = self.note and self.note.inside(ref if self.is_active else None)
        return replace(self, note=known)

    def joined(self, other: "Trace") -> "Trace":
        """Return what is known of a value that is one or the other."""
        note = self.note.joined(other.note) if self.note and other.note else self.note or other.note
        return Trace(
            note,
            self.is_active or other.is_active,
            self.is_sized or other.is_sized,
            self.sign & other.sign,
        )


@dataclass(frozen=True)
class Candidate:
    """What a place may be a ReLU of.

    Attributes:
        ref: the value.
        sign: the sign that all of it has, whatever the images are.
        ranks: how what chose between it and the place compared values.
        is_bounded: whether nothing that chose could close but bounds that are not 0.
        is_of_two: whether the place gives the larger or smaller of two values that depend on the images.
        choice: how it gives some of the numbers of this value, if it does, and constants may be among these.
        less: another value that is to be taken away from it first; empty if there is none.
        is_stopped: whether a gradient was stopped between it and the place.
    """

    ref: str
    sign: Sign
    ranks: Ranks
    is_bounded: bool
    is_of_two: bool
    choice: Choice
    less: str = ""
    is_stopped: bool = False

    @property
    def refs(self) -> list[str]:
        """The values that it is."""
        return [self.ref, self.less] if self.less else [self.ref]

    @property
    def is_choice(self) -> bool:
        """Whether the place gives some of the numbers of this value, or of two by their difference."""
        return self.choice is not Choice.NONE

    def fits(self, values: Iterator[NumpyArray], y: NumpyArray) -> NumpyArray | None:
        """Return its values, the next ones, beside those of the place; None if the place can be nothing of it."""
        x, *less = (next(values) for _ in self.refs)
        if less:
            apart = difference(x, *less)
            return apart if apart is not None and apart.size == y.size else None
        if self.is_choice:
            return np.array(x)
        if has_parts(y.size, x.size):
            return np.array(x)
        return np.array(x.reshape(y.shape)) if x.size == y.size else None


@dataclass(frozen=True)
class Place:
    """An operation that may be a ReLU for all that its own name says.

    Attributes:
        name: for people: what it is, and where.
        word: what it is.
        function: the function it is in; empty for the outermost.
        ref: what it gives.
        candidates: what it may be a ReLU of.
        is_explicit: whether it is a minimum or clamp, or a multiple of one: it may be the negative of a ReLU.
        behind: what it may be a ReLU of behind weights: values, or pairs of which one may be taken away again.
        is_relu: whether some number of an array in it makes a ReLU of it, whatever the images are.
    """

    name: str
    word: str
    function: str
    ref: str
    candidates: tuple[Candidate, ...]
    is_explicit: bool
    behind: tuple[Candidate, ...] = ()
    is_relu: bool = False

    @property
    def refs(self) -> list[str]:
        """What it gives, and all that it may be a ReLU of."""
        return [self.ref, *(ref for candidate in self.candidates for ref in candidate.refs)]


@dataclass
class Body:
    """One function while it is looked at."""

    graph: Graph
    name: str
    path: str
    arguments: Mapping[str, Trace]
    traces: dict[str, Trace] = field(default_factory=dict)

    def trace(self, ref: str) -> Trace:
        """Return what is known of a value."""
        trace = self.traces.get(ref) or self.traces.get(producer(ref)) or self.arguments.get(producer(ref)) or Trace()
        return trace if self.graph.kind_of(ref) in VALUES else replace(trace, is_active=False)

    @property
    def results(self) -> list[str]:
        """What it gives, in order."""
        function = self.graph.definition
        return [function.ret[arg.name] for arg in function.signature.output_arg]

    def family(self, ref: str) -> list[notes.Candidate[str]]:
        """Return a value, and what all of it is made of by numbers; nothing of a constant."""
        note = self.trace(ref).note
        return [] if note is None else [notes.Candidate(ref), *note.origins]

    def origins(self, index: int, refs: Sequence[str], outer: "Body") -> list[notes.Candidate[str]]:
        """Return what all of a result is made of by numbers, of what another function hands over.

        Args:
            index: which result.
            refs: what is handed over there, after what chooses this function among others.
            outer: the other function.
        """
        given = given_to(self.graph.definition, refs)
        inside = [producer(one.ref) for one in self.family(self.results[index])]
        return [one for name in inside if name in given for one in outer.family(given[name])]


def given_to(function: FunctionDef, refs: Sequence[str]) -> dict[str, str]:
    """Return what a function is given, by argument: a branch is given what chooses it as well, which comes first."""
    names = [arg.name for arg in function.signature.input_arg]
    return dict(zip(names, refs[-len(names) :], strict=True)) if names else {}


def called(body: Body, node: NodeDef) -> str:
    """Return what people read of a node, and vouch for."""
    return f"{word_of(node)} at {body.path}{node.name}"


def passes_gradient(node: NodeDef) -> bool:
    """Tell whether an operation passes a gradient to anything."""
    if OPERATIONS[node.op].kind is Kind.COMPARES or word_of(node) == "stop_gradient":
        return False
    try:
        return ops.gradient_registry.lookup(node.op) is not None
    except LookupError:
        # TensorFlow says so itself, where it matters.
        return True


def passing_refs(node: NodeDef) -> list[str]:
    """Return the operands that an operation passes a gradient to, if it passes any."""
    place = _STEPS.get(node.op)
    refs = operand_refs(node)
    return refs if place is None else refs[place : place + 1]


def reached_in(body: Body, node: NodeDef) -> set[str]:
    """Return what a gradient comes to from a node, if none passes the ReLUs that the rule guides."""
    reached: set[str] = set()
    stack = [node.name]
    while stack:
        name = stack.pop()
        if name in reached:
            continue
        reached.add(name)
        current = body.graph.nodes.get(name)
        if current is not None and body.graph.role(current) not in ("relu", "joined") and passes_gradient(current):
            stack += [producer(ref) for ref in passing_refs(current) if body.trace(ref).is_active]
    return reached


def leading_in(body: Body) -> set[str]:
    """Return the nodes that a gradient comes to from what a function returns."""
    leading: set[str] = set()
    stack = [producer(ref) for ref in body.graph.definition.ret.values()]
    while stack:
        name = stack.pop()
        if name in leading or name not in body.graph.nodes:
            continue
        leading.add(name)
        node = body.graph.nodes[name]
        if passes_gradient(node):
            stack += [producer(ref) for ref in passing_refs(node) if body.trace(ref).is_active]
    return leading
