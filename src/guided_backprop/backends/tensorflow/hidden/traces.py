"""What is known of each value of a function, and the ways that gradients take between its operations."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import ops

from guided_backprop.backends.operations import Kind
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.tensorflow.graph.nodes import FLOATS, VALUES, Graph, operand_refs, producer, word_of
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS

# Nobody writes one through more operations that only move values.
_FAR = 64


class Origin(NamedTuple):
    """Where taint starts.

    Attributes:
        function: the function it is in; empty for the outermost.
        node: the operation.
        is_rank: whether it compares values with each other, and never with a constant.
        is_bound: whether it is a maximum or minimum with a constant that is not 0.
        is_curve: whether it is a known function of one value, and none that closes: |x|, a root, an ELU.
        is_detached: whether it does nothing but stop the gradient: what chose stands in front of it.
    """

    function: str
    node: str
    is_rank: bool = False
    is_bound: bool = False
    is_curve: bool = False
    is_detached: bool = False


@dataclass(frozen=True)
class Trace:
    """What is known of a value.

    Attributes:
        depends: whether it depends on the images.
        is_active: whether it carries a gradient to them.
        is_sized: whether how many values it has depends on the images.
        sign: the sign that all of it has, whatever the images are.
        origins: where its taint started.
    """

    depends: bool = False
    is_active: bool = False
    is_sized: bool = False
    sign: Sign = Sign.UNKNOWN
    origins: frozenset[Origin] = frozenset()

    def joined(self, other: "Trace") -> "Trace":
        """Return what is known of a value that is one or the other."""
        return Trace(
            self.depends or other.depends,
            self.is_active or other.is_active,
            self.is_sized or other.is_sized,
            self.sign & other.sign,
            self.origins | other.origins,
        )


@dataclass(frozen=True)
class Candidate:
    """What a place may be a ReLU of.

    Attributes:
        ref: the value.
        sign: the sign that all of it has, whatever the images are.
        is_by_rank: whether all that chose between it and the place compared values with each other.
        is_bounded: whether nothing that chose could close but bounds that are not 0.
    """

    ref: str
    sign: Sign
    is_by_rank: bool
    is_bounded: bool


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
    """

    name: str
    word: str
    function: str
    ref: str
    candidates: tuple[Candidate, ...]
    is_explicit: bool


@dataclass
class Body:
    """One function while it is looked at."""

    graph: Graph
    name: str
    path: str
    arguments: Mapping[str, Trace]
    traces: dict[str, Trace] = field(default_factory=dict)

    def trace_of(self, node: NodeDef) -> Trace:
        """Return what is known of what a node gives."""
        return self.traces.get(node.name) or self.trace(f"{node.name}:output:0")

    def trace(self, ref: str) -> Trace:
        """Return what is known of a value."""
        trace = self.traces.get(ref) or self.traces.get(producer(ref)) or self.arguments.get(producer(ref)) or Trace()
        return trace if self.graph.kind_of(ref) in VALUES else replace(trace, is_active=False)


def passes_gradient(node: NodeDef) -> bool:
    """Tell whether an operation passes a gradient to anything."""
    if OPERATIONS[node.op].kind is Kind.COMPARES or word_of(node) == "stop_gradient":
        return False
    try:
        return ops.gradient_registry.lookup(node.op) is not None
    except LookupError:
        # TensorFlow says so itself, where it matters.
        return True


def candidates_of(body: Body, node: NodeDef, trace: Trace, chooses: Callable[[NodeDef], bool]) -> Iterator[Candidate]:
    """Yield what the result of a node may be a ReLU of."""
    graph = body.graph
    starts = [*operand_refs(node)]
    for origin in sorted(origin for origin in trace.origins if origin.function == body.name):
        starts += operand_refs(graph.nodes[origin.node])
    refs = dict.fromkeys(graph.copied(behind) for ref in starts for behind in _made_of(body, ref))
    reached = _reached(body, node)
    for ref in refs:
        known = body.trace(ref)
        if not known.is_active or graph.kind_of(ref) not in FLOATS or producer(ref) not in reached:
            continue
        between = _between(body, ref, node, reached, chooses)
        # A known curve is no ReLU of what it is a curve of.
        is_curve = all(origin.is_curve and origin.node == node.name for origin in between)
        if between and not is_curve:
            yield _candidate(ref, known.sign, between)


def _candidate(ref: str, sign: Sign, between: frozenset[Origin]) -> Candidate:
    closing = [origin for origin in between if not origin.is_curve]
    closing = [origin for origin in closing if not origin.is_detached] or closing
    is_by_rank = bool(closing) and all(origin.is_rank for origin in closing)
    is_bounded = bool(closing) and all(origin.is_bound for origin in closing)
    return Candidate(ref, sign, is_by_rank, is_bounded)


def _between(
    body: Body, ref: str, node: NodeDef, reached: set[str], chooses: Callable[[NodeDef], bool]
) -> frozenset[Origin]:
    """Return what chose between a value and a node, or met the value on its way there: without it there is no gate."""
    way, stack = {producer(ref)}, [producer(ref)]
    while stack:
        for user in body.graph.consumers[stack.pop()]:
            if user.name in reached and user.name not in way:
                way.add(user.name)
                stack.append(user.name)
    upstream = body.trace(ref).origins
    between: frozenset[Origin] = frozenset()
    for name in way - {producer(ref)}:
        current = body.graph.nodes[name]
        if chooses(current):
            between |= {origin for origin in body.trace_of(current).origins if origin.node == name}
        for met in operand_refs(current):
            other = body.trace(met)
            if other.depends and (not other.is_active or producer(met) not in way):
                own = other.origins - upstream
                between |= own if own or other.is_active else other.origins
    return between


def _made_of(body: Body, ref: str) -> Iterator[str]:
    """Yield a value, and what it was made of: by moves, multiples and choices, as a square, or without a gradient."""
    graph = body.graph
    refs, stack = dict[str, None](), [ref]
    while stack and len(refs) < _FAR:
        current = stack.pop()
        if current in refs:
            continue
        refs[current] = None
        node = graph.node(current)
        if node is None:
            continue
        is_one = sum(body.trace(operand).is_active for operand in operand_refs(node)) == 1
        is_scaled = is_one and word_of(node) in ("add", "div", "neg", "sub", "where")
        if _is_moved(node) or is_scaled or word_of(node) == "pow" or node.op in ("Abs", "Mul", "StopGradient"):
            stack += operand_refs(node)
    yield from refs


def moved_from(graph: Graph, ref: str) -> list[str]:
    """Return a value, and what it was made of by operations that only move values."""
    refs: list[str] = []
    stack = [ref]
    while stack and len(refs) < _FAR:
        current = stack.pop()
        if current in refs:
            continue
        refs.append(current)
        node = graph.node(current)
        if node is not None and _is_moved(node):
            stack += operand_refs(node)
    return refs


def _reached(body: Body, node: NodeDef) -> set[str]:
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
            stack += [producer(ref) for ref in operand_refs(current) if body.trace(ref).is_active]
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
            stack += [producer(ref) for ref in operand_refs(node) if body.trace(ref).is_active]
    return leading


def _is_moved(node: NodeDef) -> bool:
    return OPERATIONS[node.op].kind is Kind.MOVES or word_of(node) in ("gather", "scatter")
