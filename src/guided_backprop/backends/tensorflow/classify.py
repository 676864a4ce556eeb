"""What each node of a traced function is, written on it: a ReLU, a part of one activation, hidden, or listed.

An activation that is made of several operations is one, so what is inside of it is no ReLU of the network: it is
looked for first. Apart from that no order matters: no node is two things.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from types import MappingProxyType

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.operations import LISTED, Kind
from guided_backprop.backends.patterns import Match
from guided_backprop.backends.tensorflow.graph.compiled import CONVOLUTIONS
from guided_backprop.backends.tensorflow.graph.composites import composites_of
from guided_backprop.backends.tensorflow.graph.custom import custom_name, is_recomputation, registered
from guided_backprop.backends.tensorflow.graph.nodes import (
    COMPLEX,
    FLOATS,
    OVERRIDE,
    Graph,
    attribute,
    constant_of,
    operand_refs,
    producer,
    word_of,
)
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS, REARRANGES
from guided_backprop.backends.tensorflow.graph.relus import Relu, relus_of
from guided_backprop.backends.tensorflow.graph.weights import Weights
from guided_backprop.backends.tensorflow.hidden.sums import GraphSums, Joined
from guided_backprop.backends.tensorflow.hidden.taint import Taint
from guided_backprop.backends.tensorflow.hidden.traces import Place
from guided_backprop.errors import ModelError

_HEADS = OPERATIONS.of(Kind.HEAD)
_HIDDEN = OPERATIONS.of(Kind.HIDDEN)
_RANDOM = OPERATIONS.of(Kind.RANDOM)
# These draw where they pool, unless they are told not to.
_FRACTIONAL = frozenset({"FractionalAvgPool", "FractionalMaxPool"})
_SEEDS = frozenset({"counter", "key", "seed"})
_BATCH_NORMS = OPERATIONS.called("batch_norm")
# What the one operation for recurrent networks computes.
_RECURRENT = {b"gru": "gru", b"lstm": "lstm", b"rnn_tanh": "rnn"}


def classify(
    definition: FunctionDef,
    nested: Mapping[str, FunctionDef],
    captured: Sequence[tf.Tensor],
    vouch: Vouch = MappingProxyType({}),
    begin: str = "",
) -> "Findings":
    """Write on each node of the traced function, and of what is nested in it, how its gradient is to be built.

    Where the gradient begins inside, ``begin`` is the node that makes the value which it begins at.
    """
    names = [arg.name for arg in definition.signature.input_arg]
    images = names[: len(names) - len(captured)]
    inside = dict(zip(names[len(images) :], captured, strict=True))
    graph = Graph(definition, dict.fromkeys(images) | {name: constant_of(tensor) for name, tensor in inside.items()})
    findings = Findings(graph, nested, vouch, Weights(inside))
    findings.read(images, begin)
    return findings


class Findings:
    """What was found in one traced function.

    Attributes:
        graph: the function.
        places: the operations that may be ReLUs for all that their names say.
        sums: those that add up a value and ReLUs of it.
        weights_read: the weights whose numbers say so, and what they are.
    """

    def __init__(self, graph: Graph, nested: Mapping[str, FunctionDef], vouch: Vouch, weights: Weights) -> None:
        self.graph, self._weights = graph, weights
        self._vouch = vouch
        self.places: list[Place] = []
        self.sums: list[Joined] = []
        self.weights_read = weights.read
        self._nested = nested
        self._composites: Mapping[str, Match[str]] = {}
        # Of each function, the outermost being without a name, its graph and its composite activations.
        self._graphs: dict[str, Graph] = {}
        self._activations: dict[str, Mapping[str, Match[str]]] = {}

    def undo_head(self) -> str | None:
        """Mark the softmax or sigmoid that the function ends in; return its name."""
        graph = self.graph
        node = graph.node(graph.definition.ret[graph.definition.signature.output_arg[0].name])
        while node is not None and node.op in REARRANGES and not graph.role(node):
            node = graph.node(operand_refs(node)[0])
        if node is None:
            return None
        if node.op in _HEADS:
            graph.mark(node, "head", word_of(node))
            return word_of(node)
        match = self._composites.get(node.name)
        # It is a chain of operations of one operand.
        if match is None or match.name != "log_sigmoid":
            return None
        for part in map(graph.node, map(str, match.parts)):
            if part is not None:
                is_first = graph.copied(operand_refs(part)[0]) == match.bound["x"]
                graph.mark(part, "head" if is_first else "pass", match.name if is_first else "")
        return match.name

    def read(self, images: list[str], begin: str) -> None:
        """Mark the nodes of the function, then those of the functions inside it, and follow what the images taint."""
        self._composites = self._read(self.graph)
        taint = Taint(self._nested, self._graph_of, self._activations, self._vouch, self._weights)
        self.places = taint.places(self.graph, images, begin)
        self.sums = list(GraphSums(taint, self._vouch).joined())

    def _graph_of(self, name: str) -> Graph:
        """Return the graph of a function that is held by another; a condition's has not been looked at."""
        if name not in self._graphs:
            body = self._nested[name]
            self._graphs[name] = Graph(body, {arg.name: None for arg in body.signature.input_arg})
        return self._graphs[name]

    def _read(self, graph: Graph, name: str = "") -> Mapping[str, Match[str]]:
        order = graph.ordered()
        _forget_recomputations(order)
        relus = relus_of(graph, order)
        composites = composites_of(graph, order, relus)
        self._graphs[name] = graph
        self._activations[name] = composites
        _mark_activations(graph, composites, relus)
        for node in order:
            _mark_custom(graph, node, composites)
        for node in order:
            if not graph.role(node):
                _mark_rest(graph, node)
            self._descend(graph, node)
        for node in graph.ancestors(list(graph.definition.ret.values())):
            _check_inference(graph, node, self._vouch)
        return composites

    def _descend(self, graph: Graph, node: NodeDef) -> None:
        if OPERATIONS[node.op].kind is not Kind.HOLDS:
            return
        constants = [graph.constant(ref) for ref in operand_refs(node)]
        word = word_of(node)
        if word == "loop" and "body" in node.attr:
            body = self._nested[attribute(node, "body").func.name]
            inner = Graph(body, {})
            for index, arg in enumerate(body.signature.input_arg):
                if inner.source(body.ret[body.signature.output_arg[index].name]) != arg.name:
                    # What a loop changes may depend on the images after the first turn.
                    constants[index] = None
            self._enter(body, constants)
        elif word == "cond" and "then_branch" in node.attr:
            for branch in ("then_branch", "else_branch"):
                self._enter(self._nested[attribute(node, branch).func.name], constants[1:])
        elif word == "switch":
            for function in attribute(node, "branches").list.func:
                self._enter(self._nested[function.name], constants[1:])

    def _enter(self, body: FunctionDef, constants: list[float | None]) -> None:
        arguments = {arg.name: value for arg, value in zip(body.signature.input_arg, constants, strict=True)}
        self._read(Graph(body, arguments), body.signature.name)


def _mark_rest(graph: Graph, node: NodeDef) -> None:
    """Mark a bound that only the run tells, what nobody has heard of, what is only listed, and what else is our own."""
    row, bound, listed = OPERATIONS[node.op], _unknown_bound(graph, node), _listed(graph, node) or ""
    if bound is not None:
        graph.mark(node, "bound", row.word, bound, listed=listed)
    elif row.kind is Kind.UNKNOWN and registered(node.op) is not None:
        graph.mark(node, "unknown", row.word)
    elif listed:
        graph.mark(node, "plain", listed)
    elif node.op in CONVOLUTIONS:
        graph.mark(node, "conv")
    elif node.op == "Cast" and attribute(node, "SrcT").type in FLOATS and attribute(node, "DstT").type in COMPLEX:
        graph.mark(node, "complex")


def _forget_recomputations(order: list[NodeDef]) -> None:
    """Take off the custom gradients that recompute: the operations are all here, with the same gradients."""
    for node in order:
        if is_recomputation(attribute(node, OVERRIDE).s.decode()):
            del node.attr[OVERRIDE]


def _mark_activations(graph: Graph, composites: Mapping[str, Match[str]], relus: dict[str, Relu]) -> None:
    """Mark the composite activations, and the ReLUs that are no part of one."""
    for name, match in composites.items():
        for part in {producer(str(ref)) for ref in match.parts}:
            relu = relus.pop(part, None)
            for node in (part, *(inside for inside, _ in (relu.inside if relu is not None else ()))):
                graph.mark(graph.nodes[node], "part")
        graph.mark(graph.nodes[name], "plain", match.name)
    for name, relu in relus.items():
        graph.mark(graph.nodes[name], "relu", relu.name, relu.operand, low=relu.low, high=relu.high)
        for inside, operand in relu.inside:
            graph.mark(graph.nodes[inside], "joined", "", operand)


def _mark_custom(graph: Graph, node: NodeDef, composites: Mapping[str, Match[str]]) -> None:
    """Mark what has a gradient of its own, and what hides the operations inside it."""
    override = "" if graph.role(node) else attribute(node, OVERRIDE).s.decode()
    if node.op in _HIDDEN and attribute(node, "rnn_mode").s not in _RECURRENT:
        graph.mark(node, "opaque", word_of(node))
    elif override and _is_of_composite(graph, node, composites):
        # TensorFlow's own gradient of SiLU only saves memory; a SavedModel has lost it.
        del node.attr[OVERRIDE]
    elif override:
        # TensorFlow's and Keras' own hold no ReLU, but have to be called for this copy of the graph.
        name = custom_name(override)
        graph.mark(node, "part" if name is None else "opaque", name or "")


def _is_of_composite(graph: Graph, node: NodeDef, composites: Mapping[str, Match[str]]) -> bool:
    """Tell whether a custom gradient is that of one activation, all of whose operations are here."""
    result, *arguments = operand_refs(node)
    match = composites.get(producer(result))
    if node.op != "IdentityN" or match is None:
        return False
    return all(graph.copied(ref) == match.bound.get("x") for ref in arguments if graph.depends(ref))


def _unknown_bound(graph: Graph, node: NodeDef) -> int | None:
    """Return which operand is a bound that only the run tells: at 0 it makes a ReLU of a maximum or minimum."""
    if node.op not in ("ClipByValue", "Maximum", "Minimum"):
        return None
    constants = [graph.constant(ref) for ref in operand_refs(node)]
    return next((index for index, value in enumerate(constants) if value is not None and isnan(value)), None)


def _listed(graph: Graph, node: NodeDef) -> str | None:
    """Return the name under which the coverage lists a node, if it does."""
    row, refs = OPERATIONS[node.op], operand_refs(node)
    if row.kind is Kind.HIDDEN:
        return _RECURRENT[attribute(node, "rnn_mode").s]
    if row.word == "div" and refs:
        # To divide by a constant is linear.
        return "div" if graph.depends(refs[-1]) else None
    if node.op == "Pow" and not graph.depends(refs[0]):
        return "exp"
    return row.word if row.kind in LISTED and row.kind is not Kind.UNKNOWN else None


def _check_inference(graph: Graph, node: NodeDef, vouch: Vouch) -> None:
    """Raise if a node draws random numbers, or if batch-norm mixes the images."""
    word = word_of(node)
    if _draws(graph, node) and not {word, "random"} & set(vouch):
        raise ModelError(
            "model must give one output for one image, or its map is random; "
            f"received {word} between score and image. Call the model with training=False, "
            f'or pass vouch={{"{word}": "plain"}} for the map of one draw.'
        )
    if node.op in _BATCH_NORMS and attribute(node, "is_training").b:
        raise ModelError(
            "model must be in inference mode, or an image's map depends on the others; "
            f"received {word} in training mode. Call the model with training=False."
        )


def _draws(graph: Graph, node: NodeDef) -> bool:
    """Tell whether a node draws random numbers; by a seed that is made of the images they are no chance."""
    if node.op not in _RANDOM:
        return node.op in _FRACTIONAL and not attribute(node, "deterministic").b
    names = [arg.name for arg in op_def_registry.get(node.op).input_arg]
    return not any(name in _SEEDS and graph.depends(ref) for name, ref in zip(names, operand_refs(node), strict=False))
