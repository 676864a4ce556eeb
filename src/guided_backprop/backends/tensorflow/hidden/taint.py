"""Where a ReLU may be hidden: what was chosen by size, or depends on the images without a gradient, is followed.

The argument is that of backends/spelling.py. *Taint* starts at every choice and at every operation that passes no
gradient of what depends on the images; it spreads through everything, into loops and branches and out of them, and ends
at what the rule guides. Every operation that carries a gradient and meets taint is a :class:`Place`: values judge it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isnan

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.refusals import is_plain
from guided_backprop.backends.signs import Sign, sign_of
from guided_backprop.backends.spelling import BENT, MIXING, PUTS, RANKS
from guided_backprop.backends.tensorflow.graph.nodes import (
    FLOATS,
    VALUES,
    Graph,
    attribute,
    operand_refs,
    producer,
    word_of,
)
from guided_backprop.backends.tensorflow.graph.operations import COMPARISONS, OPERATIONS, REARRANGES, SHAPES
from guided_backprop.backends.tensorflow.hidden.signs import sign_of_node
from guided_backprop.backends.tensorflow.hidden.traces import (
    Body,
    Origin,
    Place,
    Trace,
    candidates_of,
    leading_in,
    passes_gradient,
)

# Curves that tell a sign: roots and logarithms of squares, and what is made of straight pieces.
_TELLS_SIGN = BENT | frozenset(
    "celu clamp det elu hardsigmoid hardswish leaky_relu log1p norm prelu selu softshrink xlogy".split()
)
# Sizes are not known here, so whatever spreads values counts.
_PUTS = PUTS | {"broadcast"}
# What compares with nothing itself.
_AS_BEFORE = frozenset("isfinite isinf isnan stop_gradient".split())
# Whose number of values depends on values.
_SIZED = frozenset("DynamicPartition Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Where".split())
# Derivatives of what chooses: they choose too.
_GATES = OPERATIONS.called("gate") | {name for name in OPERATIONS if name.startswith("MaxPool") and "Grad" in name}
_KEEPS_ZERO = frozenset("cast div identity mul neg".split())


class Taint:
    """The places of a traced function, in the order in which values flow.

    Args:
        nested: the functions that are held by others.
        graph_of: the graph of one of these, in which the ReLUs are marked.
        composites: the nodes in which composite activations end, with their names, by function.
        vouch: what is excused.
    """

    def __init__(
        self,
        nested: Mapping[str, FunctionDef],
        graph_of: Callable[[str], Graph],
        composites: Mapping[str, Mapping[str, str]],
        vouch: Vouch,
    ) -> None:
        self._nested, self._graph_of, self._composites, self._vouch = nested, graph_of, composites, vouch
        self._places: dict[tuple[str, str], Place] = {}
        self._begin = ""
        # Of each function what a gradient comes to in it, and which node of which function holds it.
        self._leading: dict[str, set[str]] = {}
        self._holders: dict[str, tuple[str, str]] = {}

    def places(self, graph: Graph, images: Sequence[str], begin: str = "") -> list[Place]:
        """Return the places of a function of these images; of what the node ``begin`` makes, if there is one."""
        self._places, self._begin = {}, begin
        # What the images alone decide is a constant then.
        arguments = (
            {} if begin else {name: Trace(depends=True, is_active=graph.kind_of(name) in VALUES) for name in images}
        )
        self._follow(graph, "", "", arguments)
        return [place for place in self._places.values() if self._leads(place.function, producer(place.ref))]

    def _leads(self, function: str, node: str) -> bool:
        """Tell whether a gradient comes to a node."""
        return node in self._leading[function] and (not function or self._leads(*self._holders[function]))

    def _follow(self, graph: Graph, name: str, path: str, arguments: Mapping[str, Trace]) -> Body:
        body = Body(graph, name, path, arguments)
        for node in graph.ordered():
            operands = [body.trace(ref) for ref in operand_refs(node)]
            if node.name == self._begin and not name:
                body.traces[node.name] = Trace(depends=True, is_active=True)
            elif not any(operand.depends for operand in operands):
                body.traces[node.name] = Trace(sign=self._sign(body, node, operands))
            elif OPERATIONS[node.op].kind is Kind.HOLDS and self._hold(body, node, operands):
                pass
            else:
                body.traces[node.name] = self._step(body, node, operands)
                self._nominate(body, node, operands, _value_refs(graph, node))
        self._leading[name] = leading_in(body)
        return body

    def _step(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> Trace:
        """Return what is known of what one operation gives."""
        graph, row = body.graph, OPERATIONS[node.op]
        if node.op in SHAPES:
            is_sized = any(operand.is_sized for operand in operands)
            origins = frozenset({Origin(body.name, node.name)}) if is_sized else frozenset()
            return Trace(is_sized, sign=Sign.NOT_NEGATIVE, origins=origins)
        is_active = any(operand.is_active for operand in operands)
        is_number = any(graph.kind_of(ref) in VALUES for ref in graph.outputs_of(node))
        passes = is_active and is_number and passes_gradient(node)
        sign = self._sign(body, node, operands)
        is_sized = node.op in _SIZED or any(operand.is_sized for operand in operands)
        is_sized = is_sized and row.word not in ("sum", "mean")
        depending = [ref for ref in operand_refs(node) if body.trace(ref).depends]
        if all(map(graph.depends, depending)) and not any(map(graph.depends, graph.outputs_of(node))):
            # The same for all images, as zeros of the shape of something of theirs; but not a size that they decide.
            return Trace(is_sized=is_sized, sign=sign)
        if is_active and self._ends_taint(body, node):
            return Trace(True, passes, False, sign)
        origins = frozenset().union(*(operand.origins for operand in operands))
        if is_active and (not passes or self._chooses(body, node)):
            origins |= {self._origin(body, node, passes=passes)}
        return Trace(True, passes, is_sized, sign, origins)

    def _origin(self, body: Body, node: NodeDef, *, passes: bool) -> Origin:
        kind, word = OPERATIONS[node.op]
        is_curve = passes and kind is not Kind.UNKNOWN and (word in _TELLS_SIGN or word == "abs")
        is_detached = word == "stop_gradient"
        return Origin(body.name, node.name, _is_rank(body, node), _is_bound(body.graph, node), is_curve, is_detached)

    def _sign(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> Sign:
        """Return the sign of all that a node gives; of a composite activation's end, that of the activation."""
        composite = self._composites.get(body.name, {}).get(node.name)
        own = sign_of_node(body.graph, node, [operand.sign for operand in operands])
        return own if composite is None else own or sign_of(Operation(Kind.SMOOTH, composite), [])

    def _ends_taint(self, body: Body, node: NodeDef) -> bool:
        role = body.graph.role(node)
        composite = self._composites.get(body.name, {}).get(node.name)
        is_smooth = composite is not None and composite not in _TELLS_SIGN
        return role in ("relu", "joined", "opaque") or is_smooth or self._is_vouched(body, node)

    def _is_vouched(self, body: Body, node: NodeDef) -> bool:
        names = word_of(node), _called(body, node)
        if OPERATIONS[node.op].kind is Kind.UNKNOWN:
            return any(name in self._vouch for name in names)
        return any(is_plain(name, self._vouch, "tf.nn.relu") for name in names)

    def _chooses(self, body: Body, node: NodeDef) -> bool:
        row = OPERATIONS[node.op]
        if row.kind is Kind.HOLDS or node.op in _GATES:
            return True
        if row.word == "pow" and node.op != "Pow":
            return False
        if node.op == "Pow":
            exponent = body.graph.constant(operand_refs(node)[1])
            return exponent is None or isnan(exponent) or exponent < 1 or exponent != int(exponent)
        composite = self._composites.get(body.name, {}).get(node.name)
        return row.kind in (Kind.CHOOSES, Kind.CLIP, Kind.UNKNOWN) or (composite or row.word) in _TELLS_SIGN

    def _nominate(self, body: Body, node: NodeDef, operands: Sequence[Trace], refs: Sequence[str]) -> None:
        """Make a place of what carries a gradient and meets taint, or chooses itself."""
        if self._is_excused(body, node):
            return
        if not (any(operand.origins for operand in operands) or self._chooses(body, node)):
            return
        for ref in refs:
            trace = body.trace(ref)
            if trace.is_active and trace.origins and body.graph.kind_of(ref) in FLOATS:
                candidates = tuple(candidates_of(body, node, trace, partial(self._chooses, body)))
                place = Place(
                    _called(body, node), word_of(node), body.name, ref, candidates, _is_explicit(body.graph, node)
                )
                self._places[body.name, ref] = place

    def _is_excused(self, body: Body, node: NodeDef) -> bool:
        """Tell whether it is known what a node is, or another place is looked at instead of it."""
        graph = body.graph
        is_known = graph.role(node) in ("relu", "joined", "part", "opaque", "bound") or self._ends_taint(body, node)
        is_moved = node.op in REARRANGES and len(operand_refs(node)) - (node.op in ("Reshape", "Transpose")) == 1
        is_composite = node.name in self._composites.get(body.name, {})
        return is_known or is_moved or is_composite or _is_bound(graph, node) or _is_piece(graph, node)

    def _hold(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> bool:
        """Follow values into what an operation holds, and out of it; tell whether it holds functions."""
        if "body" in node.attr:
            results = self._loop(body, node, operands)
        elif "then_branch" in node.attr or "branches" in node.attr:
            results = self._branch(body, node, operands)
        else:
            return False
        refs = [f"{node.name}:output:{index}" for index in range(len(results))]
        own = Origin(body.name, node.name)
        for ref, result in zip(refs, results, strict=True):
            # What chooses in there is looked at in there, and once more from here.
            body.traces[ref] = replace(result, origins=result.origins | {own}) if result.origins else result
        self._nominate(body, node, operands, refs)
        return True

    def _branch(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> list[Trace]:
        names = ("then_branch", "else_branch") if "then_branch" in node.attr else ()
        held = [attribute(node, name).func.name for name in names] or [
            function.name for function in attribute(node, "branches").list.func
        ]
        every = [self._called(body, node, name, operands[1:]) for name in held]
        results = every[0]
        for other in every[1:]:
            results = [one.joined(two) for one, two in zip(results, other, strict=True)]
        if operands[0].depends:
            origins = operands[0].origins | {Origin(body.name, node.name)}
            results = [replace(one, depends=True, origins=one.origins | origins) for one in results]
        return results

    def _loop(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> list[Trace]:
        traces = list(operands)
        while True:
            results = self._called(body, node, attribute(node, "body").func.name, traces)
            condition = attribute(node, "cond").func.name
            (goes_on,) = self._called(body, node, condition, traces)
            self._leading[condition] = set()
            if goes_on.depends:
                origins = goes_on.origins | {Origin(body.name, node.name)}
                results = [replace(one, depends=True, origins=one.origins | origins) for one in results]
            joined = [one.joined(two) for one, two in zip(traces, results, strict=True)]
            if joined == traces:
                return traces
            traces = joined

    def _called(self, body: Body, node: NodeDef, name: str, traces: Sequence[Trace]) -> list[Trace]:
        signature = self._nested[name].signature
        arguments = {arg.name: trace for arg, trace in zip(signature.input_arg, traces, strict=True)}
        self._holders[name] = body.name, node.name
        inner = self._follow(self._graph_of(name), name, f"{body.path}{node.name}/", arguments)
        return [inner.trace(self._nested[name].ret[arg.name]) for arg in signature.output_arg]


def _called(body: Body, node: NodeDef) -> str:
    """Return what people read of a node, and vouch for."""
    return f"{word_of(node)} at {body.path}{node.name}"


def _value_refs(graph: Graph, node: NodeDef) -> list[str]:
    return [ref for ref in graph.outputs_of(node) if graph.kind_of(ref) in FLOATS]


def _is_rank(body: Body, node: NodeDef) -> bool:
    """Tell whether a choice compares values of the images with each other, and with no constant."""
    refs = operand_refs(node)
    if node.op in COMPARISONS or word_of(node) in ("equal", "not_equal"):
        return all(body.trace(ref).depends for ref in refs) and any(_is_of_many(body.graph, ref) for ref in refs)
    if word_of(node) in _AS_BEFORE - {"stop_gradient"} and _is_of_many(body.graph, refs[0]):
        return True
    if word_of(node) in _AS_BEFORE:
        before = frozenset().union(*(body.trace(ref).origins for ref in refs))
        return bool(before) and all(origin.is_rank for origin in before)
    if word_of(node) not in RANKS:
        return False
    return not _is_put_together(body, refs[0])


def _is_put_together(body: Body, ref: str) -> bool:
    """Tell whether there are constants, or several values of one place, among values, before they were mixed."""
    graph = body.graph
    while True:
        node = graph.node(ref)
        if node is None or word_of(node) in MIXING:
            return False
        word, refs = word_of(node), [operand for operand in operand_refs(node) if graph.kind_of(operand) in FLOATS]
        depending = [operand for operand in refs if body.trace(operand).depends]
        constant = [operand for operand in refs if operand not in depending]
        if word in _PUTS or (word == "where" and constant):
            return True
        if word == "mul" and any(not _is_number(graph.constant(operand)) for operand in constant):
            return True
        if len(depending) != 1:
            return False
        (ref,) = depending


def _is_number(constant: float | None) -> bool:
    """Tell whether a factor is one number, and not 0: another may leave values out."""
    return constant is not None and not isnan(constant) and constant != 0


def _is_of_many(graph: Graph, ref: str) -> bool:
    """Tell whether a value is told by several others, as the largest of a row."""
    node = graph.node(ref)
    while node is not None and OPERATIONS[node.op].kind is Kind.MOVES and word_of(node) not in _PUTS:
        node = graph.node(next(filter(graph.depends, operand_refs(node)), ""))
    return node is not None and (word_of(node) in RANKS or word_of(node) in ("mean", "norm", "sum"))


def _is_bound(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a maximum, minimum or clamp with constants none of which is 0."""
    if node.op not in ("ClipByValue", "Maximum", "Minimum"):
        return False
    if graph.role(node) == "bound":
        return True
    bounds = [bound for bound in map(graph.constant, operand_refs(node)) if bound is not None]
    return bool(bounds) and len(bounds) == len(node.input) - 1 and 0 not in bounds


def _is_explicit(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a minimum with 0, or a multiple of one."""
    while True:
        if node.op in ("ClipByValue", "Minimum"):
            return True
        moving = [ref for ref in operand_refs(node) if graph.depends(ref)]
        inner = graph.node(moving[0]) if len(moving) == 1 else None
        if inner is None or (word_of(node) not in _KEEPS_ZERO and OPERATIONS[node.op].kind is not Kind.MOVES):
            return False
        node = inner


def _is_piece(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a choice is a piece of a function of the same values that ends in a choice: that is looked at."""
    if word_of(node) != "where":
        inner = graph.node(next(filter(graph.depends, operand_refs(node)), ""))
        return inner is not None and _is_curve(graph, node) and _is_piece(graph, inner)
    user = graph.only_user(node)
    while user is not None and word_of(user) != "where" and _is_curve(graph, user):
        user = graph.only_user(user)
    if user is None or word_of(user) != "where":
        return False
    compared = [set(_compared(graph, operand_refs(choice)[0])) for choice in (node, user)]
    return bool(compared[0] & compared[1])


def _is_curve(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node is a function of one value that depends on the images, value by value."""
    is_one = sum(map(graph.depends, operand_refs(node))) == 1
    return is_one and (OPERATIONS[node.op].kind is Kind.SMOOTH or word_of(node) in ("add", "div", "mul", "neg", "sub"))


def _compared(graph: Graph, mask: str) -> Iterator[str]:
    """Yield what a mask compares."""
    comparison = graph.node(graph.source(mask))
    if comparison is not None and comparison.op in COMPARISONS:
        yield from (graph.source(ref) for ref in operand_refs(comparison) if graph.depends(ref))
