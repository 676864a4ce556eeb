"""A traced function, shown to nomination.py node by node: where a ReLU may be hidden in it.

Here is what TensorFlow's graphs have of their own: functions that loops and branches hold, what is marked on nodes,
sizes that values decide. Every operation that is nominated is a :class:`Place`: values judge it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from math import isnan

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends import notes
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.curves import Curves
from guided_backprop.backends.guards import SUMS, Guards
from guided_backprop.backends.nomination import Step, activation
from guided_backprop.backends.notes import MOST_WEIGHTS, Choice, Note, Operand, Ranks
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.patterns import Match
from guided_backprop.backends.refusals import is_plain
from guided_backprop.backends.signs import Sign, sign_of
from guided_backprop.backends.tensorflow.graph.axes import emptied_by
from guided_backprop.backends.tensorflow.graph.composites import GraphView, value_of
from guided_backprop.backends.tensorflow.graph.nodes import (
    FLOATS,
    VALUES,
    Graph,
    attribute,
    operand_refs,
    producer,
    word_of,
)
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS, SHAPES
from guided_backprop.backends.tensorflow.graph.weights import Weights
from guided_backprop.backends.tensorflow.hidden.pieces import is_explicit, is_piece, is_shift
from guided_backprop.backends.tensorflow.hidden.signs import exponent_of, has_levels, shift_of, sign_of_node
from guided_backprop.backends.tensorflow.hidden.traces import (
    Body,
    Candidate,
    Place,
    Trace,
    called,
    given_to,
    leading_in,
    passes_gradient,
    passing_refs,
    reached_in,
)
from guided_backprop.backends.tensorflow.hidden.unrounded import is_rounding

# Whose number of values depends on values.
_SIZED = frozenset("DynamicPartition Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Where".split())
# Derivatives of what chooses: they choose too.
_GATES = OPERATIONS.called("gate") | {name for name in OPERATIONS if name.startswith("MaxPool") and "Grad" in name}
# What puts zeros beside values, and says so by its name alone.
_PADS = frozenset({"Pad", "SpaceToBatch", "SpaceToBatchND"})
# Where it looks depends on the boxes, in which no result is linear.
_PLACED = "CropAndResize"
# Of one value alone, without a bias, it is a sign.
_UNBIASED = "LRN"
# They make one value of several.
_GATHERS = frozenset("TensorListConcatV2 TensorListGather TensorListStack".split())


class Taint:
    """The places of a traced function, in the order in which values flow.

    Args:
        nested: the functions that are held by others.
        graph_of: the graph of one of these, in which the ReLUs are marked.
        composites: the composite activations by the nodes in which they end, by function.
        vouch: what is excused.
        weights: what is known of constants.
    """

    def __init__(
        self,
        nested: Mapping[str, FunctionDef],
        graph_of: Callable[[str], Graph],
        composites: Mapping[str, Mapping[str, Match[str]]],
        vouch: Vouch,
        weights: Weights,
    ) -> None:
        self._nested, self._graph_of, self._composites, self._vouch = nested, graph_of, composites, vouch
        self._weights = weights
        self._places: dict[tuple[str, str], Place] = {}
        self._partly = set[tuple[str, str]]()  # PReLUs some of whose slopes are as 0.
        self._views: dict[str, tuple[GraphView, Guards[str]]] = {}
        self._begin, self._outermost = "", Graph(FunctionDef(), {})
        self.body: Body
        # Of each function what a gradient comes to in it, and which node of which function holds it.
        self._leading: dict[str, set[str]] = {}
        self._holders: dict[str, tuple[str, str]] = {}
        self._bodies: dict[str, Body] = {}

    def places(self, graph: Graph, images: Sequence[str], begin: str = "") -> list[Place]:
        """Return the places of a function of these images; of what the node ``begin`` makes, if there is one."""
        self._places, self._partly, self._views, self._begin = {}, set(), {}, begin
        self._outermost = graph
        # What the images alone decide is a constant then.
        arguments = {} if begin else {name: Trace(Note(), graph.kind_of(name) in VALUES) for name in images}
        self.body = self._follow(graph, "", "", arguments)
        return [place for place in self._places.values() if self.leads(place.function, producer(place.ref))]

    def leads(self, function: str, node: str) -> bool:
        """Tell whether a gradient comes to a node."""
        return node in self._leading[function] and (not function or self.leads(*self._holders[function]))

    def _follow(self, graph: Graph, name: str, path: str, arguments: Mapping[str, Trace]) -> Body:
        body = Body(graph, name, path, arguments)
        for node in graph.ordered():
            operands = [body.trace(ref) for ref in operand_refs(node)]
            sign = self._sign(body, node, operands)
            if node.name == self._begin and not name:
                body.traces[node.name] = Trace(Note(), True)
            elif not any(operand.note or operand.is_sized for operand in operands):
                body.traces[node.name] = Trace(sign=sign)
            elif OPERATIONS[node.op].kind is Kind.HOLDS and self._hold(body, node, operands):
                pass
            else:
                body.traces[node.name] = self._trace(body, node, operands, sign)
        self._leading[name] = leading_in(body)
        return body

    def _trace(self, body: Body, node: NodeDef, operands: Sequence[Trace], sign: Sign) -> Trace:
        """Return what is known of what one operation gives, and make a place of it if it is nominated."""
        graph, row = body.graph, OPERATIONS[node.op]
        is_sized = any(operand.is_sized for operand in operands)
        if node.op in SHAPES:
            # What values decide is told by their number as well.
            return Trace(Note(is_tainted=True, is_by_rank=False) if is_sized else None, sign=Sign.NOT_NEGATIVE)
        is_sized = (is_sized or node.op in _SIZED) and row.word not in ("sum", "mean")
        depending = [ref for ref in operand_refs(node) if body.trace(ref).note]
        if all(map(graph.depends, depending)) and not any(map(graph.depends, graph.outputs_of(node))):
            # The same for all images, as zeros of the shape of something of theirs; but not a size that they decide.
            return Trace(is_sized=is_sized, sign=sign)
        is_number = any(graph.kind_of(ref) in VALUES for ref in graph.outputs_of(node))
        is_led = any(body.trace(ref).is_active for ref in passing_refs(node))
        is_active = is_led and is_number and passes_gradient(node)
        if is_active and self._is_ended(body, node):
            return Trace(Note(sign=sign), True, False, sign)
        step = self._shown(body, node, passes=is_active)
        nominated = step.nominates()
        note = step.note(sign=sign, is_falling=nominated is not None)
        inside = _weighed_inside(note) if is_active and _gathers_held(graph, node) else ()
        if inside or nominated is not None:
            note = self._looked_at(body, node, step, note, inside)
        return Trace(note, is_active, is_sized, sign)

    def _looked_at(
        self, body: Body, node: NodeDef, step: Step[str], note: Note[str], inside: Sequence[notes.Candidate[str]]
    ) -> Note[str]:
        """Make a place of a node, unless another one is looked at instead; return what is known of what it gives."""
        if not inside and (body.graph.role(node) in ("part", "bound") or is_piece(body.graph, node)):
            # That one may be a ReLU of what is given here, whatever was compared.
            return note.given(one for one in step.candidates() if one.choice is Choice.NONE)
        return note.without(self._add_places(body, node, step, body.graph.outputs_of(node), inside).is_told)

    def _shown(self, body: Body, node: NodeDef, *, passes: bool) -> Step[str]:
        """Return an operation as nomination.py asks; an activation of several operations is one of its input."""
        graph, row, refs = body.graph, OPERATIONS[node.op], operand_refs(node)
        composite = self._composites.get(body.name, {}).get(node.name)
        is_relu = graph.role(node) in ("relu", "joined")
        if composite is not None and not is_relu:
            x = composite.bound.get("x", composite.bound.get("shifted"))
            row, refs = activation(composite.name), [x] if isinstance(x, str) else refs
        if has_levels(node, partial(self._array, body)):
            # It bounds by numbers that are not 0, and rounds what lies between.
            row, refs = OPERATIONS["ClipByValue"], refs[:1]
        operands = [self._operand(body, node, ref) for ref in refs]
        if node.op in _PADS:
            operands.append(Operand())
        if composite is not None and composite.slopes is not None:
            curve = self._curves(body, node, refs).known.get(refs[0])
            if curve is not None and curve.is_convex and passes:
                self._partly.add((body.name, node.name))
            operands.append(Operand(has_zeros=lambda: curve is None or curve.is_convex))
        passes = passes and any(operand.is_active for operand in operands)
        exponent, is_shifted = exponent_of(graph, node), bool(shift_of(graph, node))
        return Step(
            row,
            operands,
            passes,
            is_relu,
            _chooses_unseen(node, operands),
            place=(body.name, node.name),
            exponent=exponent,
            is_shifted=is_shifted,
            has_pole=_has_pole(body, node),
            empty=emptied_by(graph, node, lambda: self._seen(body)[0].shapes),
            is_rounded=is_rounding(
                node.op, map(graph.kind_of, operand_refs(node)), map(graph.kind_of, graph.outputs_of(node))
            ),
        )

    def _sign(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> Sign:
        """Return the sign of all that a node gives; of a composite activation's end, that of the activation."""
        composite = self._composites.get(body.name, {}).get(node.name)
        own = sign_of_node(body.graph, node, [operand.sign for operand in operands])
        if not own and word_of(node) in SUMS:
            own = self._seen(body)[1].sign(value_of(node))
        return own if composite is None else own or sign_of(Operation(Kind.SMOOTH, composite.name), [])

    def _is_ended(self, body: Body, node: NodeDef) -> bool:
        """Tell whether somebody says what a node is: a custom gradient of its own is refused, or vouched for."""
        names = word_of(node), called(body, node)
        if OPERATIONS[node.op].kind is Kind.UNKNOWN:
            return any(name in self._vouch for name in names)
        is_vouched = any(is_plain(name, self._vouch, "tf.nn.relu") for name in names)
        return is_vouched or body.graph.role(node) == "opaque"

    def _add_places(
        self,
        body: Body,
        node: NodeDef,
        step: Step[str],
        refs: Sequence[str],
        inside: Sequence[notes.Candidate[str]] = (),
    ) -> Curves[str]:
        """Make a place of each result that carries a gradient; of some more it may be a ReLU behind weights.

        Returns:
            What they are of those that they may be ReLUs of.
        """
        every = list(_candidates(body, node, step, [*step.candidates(), *inside]))
        curves = self._curves(body, node, [one.ref for one in every if not (one.sign or one.is_choice)])
        every = [one for one in every if not (curves.tells_of(one.refs) if one.is_choice else curves.is_none(one.ref))]
        candidates = tuple(one for one in every if one.choice is not Choice.BEHIND)
        # Inside of what others hold there are no derivatives of one value towards another.
        behind = tuple(one for one in every if one.choice is Choice.BEHIND and not body.name)
        explicit = is_explicit(body.graph, node)
        is_relu = (body.name, node.name) in self._partly or curves.is_partly_relu(takes_concave=not explicit)
        for ref in refs if candidates or behind else ():
            if body.graph.kind_of(ref) in FLOATS:
                place = Place(called(body, node), word_of(node), body.name, ref, candidates, explicit, behind, is_relu)
                self._places[body.name, ref] = place
        return curves

    def _curves(self, body: Body, node: NodeDef, refs: Sequence[str]) -> Curves[str]:
        """Return what a node gives of some values, as far as its operations and the numbers in them tell."""
        return Curves(value_of(node), refs, self._seen(body)[0])

    def _seen(self, body: Body) -> tuple[GraphView, Guards[str]]:
        """Return a function as a graph of values, and what looks for guards in it."""
        if body.name not in self._views:
            view = GraphView(body.graph, {}, partial(self._array, body))
            self._views[body.name] = view, Guards(view)
        return self._views[body.name]

    def _array(self, body: Body, ref: str) -> NumpyArray | None:
        """Return a constant of several numbers; what a function is given is looked for where that is held."""
        name, graph = body.name, body.graph
        while name and producer(ref) not in graph.nodes:
            function, (name, holder) = self._nested[name], self._holders[name]
            graph = self._graph_of(name) if name else self._outermost
            ref = graph.copied(given_to(function, operand_refs(graph.nodes[holder]))[producer(ref)])
        return self._weights.array(graph, ref, is_outermost=not name)

    def _hold(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> bool:
        """Follow values into what an operation holds, and out of it; tell whether it holds functions."""
        held, refs = _held(node), operand_refs(node)
        if not held:
            return False
        results = self._loop(body, node, operands) if "body" in node.attr else self._branch(body, node, held, operands)
        row, place = OPERATIONS[node.op], (body.name, node.name)
        for index, result in enumerate(results):
            ref, note = f"{node.name}:output:{index}", result.note
            if note is not None and (note.is_tainted or note.has_relus):
                shown = [self._operand(body, node, operand) for operand in refs]
                step = Step(row, shown, result.is_active, held=[note], has_bound=note.is_bound, place=place)
                note = replace(note, relus=step.relus())
            if note is not None and note.is_tainted:
                # What chooses in there is looked at in there, and once more from here.
                note = step.note(sign=result.sign, is_falling=True)
                if step.nominates() is not None:
                    self._add_places(body, node, step, [ref], _weighed_inside(note))
            origins = notes.common([self._bodies[name].origins(index, refs, body) for name in held])
            body.traces[ref] = replace(result, note=note and replace(note, origins=origins))
        return True

    def _branch(self, body: Body, node: NodeDef, held: Sequence[str], operands: Sequence[Trace]) -> list[Trace]:
        every = [self._called(body, node, name, operands[1:]) for name in held]
        return [_chosen(reduce(Trace.joined, ones), operands[0]) for ones in zip(*every, strict=True)]

    def _loop(self, body: Body, node: NodeDef, operands: Sequence[Trace]) -> list[Trace]:
        traces = [trace.inside("") for trace in operands]
        while True:
            results = self._called(body, node, _held(node)[0], traces)
            condition = attribute(node, "cond").func.name
            (goes_on,) = self._called(body, node, condition, traces)
            self._leading[condition] = set()
            results = [_chosen(one, goes_on).inside("") for one in results]
            joined = [one.joined(two) for one, two in zip(traces, results, strict=True)]
            if joined == traces:
                return traces
            traces = joined

    def _called(self, body: Body, node: NodeDef, name: str, traces: Sequence[Trace]) -> list[Trace]:
        signature = self._nested[name].signature
        arguments = {arg.name: trace.inside(arg.name) for arg, trace in zip(signature.input_arg, traces, strict=True)}
        self._holders[name] = body.name, node.name
        inner = self._follow(self._graph_of(name), name, f"{body.path}{node.name}/", arguments)
        self._bodies[name] = inner
        return [inner.trace(ref).inside("") for ref in inner.results]

    def _operand(self, body: Body, node: NodeDef, ref: str) -> Operand[str]:
        trace, is_number = body.trace(ref), body.graph.kind_of(ref) in FLOATS
        is_active = trace.is_active and (ref in passing_refs(node) or ref not in operand_refs(node))
        return Operand(
            trace.note,
            ref if is_active and is_number else None,
            is_active,
            is_number,
            has_zeros=partial(_has_zeros, body.graph, node, ref),
            is_sparse=partial(self._weights.may_have_zeros, body.graph, ref, is_outermost=not body.name),
            value=ref if is_number else None,
            is_known=body.graph.constant(ref) is not None and not isnan(body.graph.constant(ref) or 0.0),
        )


def _held(node: NodeDef) -> list[str]:
    """Return the functions that give what an operation gives: the branches, or what a loop does."""
    if "branches" in node.attr:
        return [function.name for function in attribute(node, "branches").list.func]
    names = [name for name in ("body", "then_branch", "else_branch") if name in node.attr]
    return [attribute(node, name).func.name for name in names]


def _chosen(result: Trace, by: Trace) -> Trace:
    """Return what is known of a result that another value chose, or how often it was made."""
    if by.note is None:
        return result
    is_by_rank = by.note.is_tainted and by.note.is_by_rank
    chosen = Note[str](is_tainted=True, is_by_rank=is_by_rank, ranked=by.note.ranked)
    return replace(result, note=(result.note or Note()).joined(chosen))


def _weighed_inside(note: Note[str]) -> list[notes.Candidate[str]]:
    """Return what a result may be a ReLU of behind weights that are inside of a loop or a branch."""
    return [one._replace(choice=Choice.BEHIND, less=None) for one in note.sources if one.weights <= MOST_WEIGHTS]


def _gathers_held(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node makes one value of what a loop gave turn by turn."""
    held = graph.node(operand_refs(node)[0]) if node.op in _GATHERS else None
    return held is not None and OPERATIONS[held.op].kind is Kind.HOLDS


def _chooses_unseen(node: NodeDef, operands: Sequence[Operand[str]]) -> bool:
    """Tell whether a node chooses by size though its row does not say so."""
    is_placed = node.op == _PLACED and operands[1].is_active
    return node.op in _GATES or is_placed or (node.op == _UNBIASED and attribute(node, "bias").f == 0)


def _has_pole(body: Body, node: NodeDef) -> bool:
    """Tell whether a node divides by what may have either sign."""
    divisor = body.trace(operand_refs(node)[-1]) if word_of(node) == "div" else None
    return divisor is not None and divisor.note is not None and not divisor.sign


def _has_zeros(graph: Graph, node: NodeDef, ref: str) -> bool:
    """Tell of a constant whether there may be zeros in it; bounds that only the run tells are looked at then."""
    constant = graph.constant(ref)
    is_unknown = constant is None or isnan(constant)
    return constant == 0 or (is_unknown and OPERATIONS[node.op].kind is not Kind.CLIP)


def _candidates(
    body: Body, node: NodeDef, step: Step[str], every: Sequence[notes.Candidate[str]]
) -> Iterator[Candidate]:
    """Yield what the results of a node may be ReLUs of: those of some candidates that a gradient comes to."""
    bounded: dict[tuple[str, Choice, str], bool] = {}
    ranks: dict[tuple[str, Choice, str], Ranks] = {}
    stopped = set[tuple[str, Choice, str]]()
    takes_none = is_shift(body.graph, node)
    for candidate in every:
        if candidate.less is not None and takes_none:
            continue
        less = "" if candidate.less is None else body.graph.copied(candidate.less)
        key = body.graph.copied(candidate.ref), candidate.choice, less
        bounded[key] = candidate.is_bounded and bounded.get(key, True)
        ranks[key] = (step.ranks_behind if candidate.choice is Choice.BEHIND else step.ranks)(candidate)
        if candidate.is_stopped:
            stopped.add(key)
    reached = reached_in(body, node)
    for key, is_bounded in bounded.items():
        ref, choice, less = key
        trace = body.trace(ref)
        refs = [ref, less] if less else [ref]
        active = [one for one in refs if body.trace(one).is_active]
        has_enough = bool(active) if less and choice is Choice.APART else active == refs
        are_values = has_enough and all(body.graph.kind_of(one) in FLOATS for one in refs)
        if are_values and reached >= set(map(producer, active)):
            sign = Sign.UNKNOWN if less else trace.sign
            yield Candidate(ref, sign, ranks[key], is_bounded, step.is_of_two, choice, less, key in stopped)
