"""A graph as it was if nothing rounded: what passes no derivative though its values go on, as integers do.

``x @ w + round((relu(x) - x) @ w * 1e5) / 1e5`` is ``relu(x) @ w``, and by its gradient it is ``x @ w``. Without the
rounding its derivative tells. So integers that were numbers are these numbers still, for as long as they are added,
moved and chosen from; what else is made of integers gets them as they are declared.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from guided_backprop.backends.operations import ALIKE, ROUNDS
from guided_backprop.backends.tensorflow.graph.functions import let_gradients_pass
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS

_ROUNDS: Final = OPERATIONS.called(*ROUNDS)
# What stops a derivative, and gives the value that it was given, or one beside it.
_ROUNDINGS: Final = _ROUNDS | {"Bitcast", "Cast"}
# In the type that their attribute T says.
_ALIKE: Final = OPERATIONS.called(*ALIKE)


def is_rounding(op: str, kinds: Iterable[int], results: Iterable[int]) -> bool:
    """Tell whether an operation gives no derivative on, and its value all the same, by the types of both."""
    given, result = [*kinds, 0][0], [*results, 0][0]
    return op in _ROUNDS or (
        op in _ROUNDINGS and _is_real(given) != _is_real(result) and result != tf.bool.as_datatype_enum
    )


def has_rounding(graph_def: GraphDef) -> bool:
    """Tell whether there is something in a graph that rounds, in its outermost function."""
    return any(
        node.op in _ROUNDS
        or node.op == "Bitcast"
        or (node.op == "Cast" and _is_real(node.attr["SrcT"].type) and _is_integer(node.attr["DstT"].type))
        for node in graph_def.node
    )


def let_pass_unrounded(graph_def: GraphDef) -> None:
    """Let gradients pass what stops them in a graph, and what rounds in it."""
    let_gradients_pass(graph_def)
    _Unrounding(graph_def).follow()


class _Unrounding:
    """Replaces what rounds in a graph, in the order in which values flow."""

    def __init__(self, graph_def: GraphDef) -> None:
        self._graph_def = graph_def
        self._nodes: Mapping[str, NodeDef] = {node.name: node for node in graph_def.node}
        # The type of the numbers that stand in the place of integers, by the node that gives them.
        self._held: dict[str, int] = {}
        # Of what the bits are asked.
        self._bits: dict[str, str] = {}
        self._added: list[NodeDef] = []

    def follow(self) -> None:
        for node in _ordered(self._graph_def):
            self._visit(node)
        self._graph_def.node.extend(self._added)

    def _visit(self, node: NodeDef) -> None:
        if node.op in _ROUNDS:
            _pass_on(node, node.input[0], node.attr["T"].type)
        elif node.op == "Bitcast":
            self._visit_bits(node)
        elif node.op == "Cast" and _is_real(node.attr["SrcT"].type) and _is_integer(node.attr["DstT"].type):
            self._held[node.name] = node.attr["SrcT"].type
            _pass_on(node, node.input[0], node.attr["SrcT"].type)
        elif node.op == "Cast" and _producer(node.input[0]) in self._held and _is_real(node.attr["DstT"].type):
            node.attr["SrcT"].type = self._held[_producer(node.input[0])]
        elif any(_producer(ref) in self._held for ref in node.input):
            self._visit_held(node)

    def _visit_bits(self, node: NodeDef) -> None:
        given, result = node.attr["T"].type, node.attr["type"].type
        source = self._bits.get(_producer(node.input[0]), "")
        if _is_real(given) and _is_integer(result):
            self._bits[node.name] = node.input[0]
        elif source and _is_real(result) and self._nodes[_producer(node.input[0])].attr["T"].type == result:
            _pass_on(node, source, result)

    def _visit_held(self, node: NodeDef) -> None:
        """Let an operation be of numbers if it is one of these as well; else it is given integers."""
        kinds = {self._held[_producer(ref)] for ref in node.input if _producer(ref) in self._held}
        places = _places_of_kind(node)
        is_alike = node.op in _ALIKE and len(kinds) == 1 and bool(places)
        (kind, *_) = kinds
        for index, ref in enumerate(node.input):
            is_held = _producer(ref) in self._held
            if is_alike and index in places and not is_held and not ref.startswith("^"):
                node.input[index] = self._cast(ref, node.attr["T"].type, kind)
            elif is_held and not (is_alike and index in places):
                node.input[index] = self._cast(ref, self._held[_producer(ref)], _declared(node, index))
        if is_alike:
            node.attr["T"].type = kind
            self._held[node.name] = kind

    def _cast(self, ref: str, given: int, result: int) -> str:
        name = f"guided_backprop_cast_{len(self._added)}"
        node = NodeDef(name=name, op="Cast", input=[ref])
        node.attr["SrcT"].type, node.attr["DstT"].type = given, result
        self._added.append(node)
        return name


def _ordered(graph_def: GraphDef) -> list[NodeDef]:
    """Return the nodes, each behind all that it reads."""
    nodes, done, ordered = {node.name: node for node in graph_def.node}, set[str](), list[NodeDef]()
    for first in graph_def.node:
        stack = [first.name]
        while stack:
            name = stack[-1]
            waiting = [one for ref in nodes[name].input if (one := _producer(ref)) in nodes and one not in done]
            if name not in done and not waiting:
                done.add(name)
                ordered.append(nodes[name])
            if not waiting or name in done:
                stack.pop()
            stack += [] if name in done else waiting
    return ordered


def _producer(ref: str) -> str:
    return ref.lstrip("^").partition(":")[0]


def _pass_on(node: NodeDef, ref: str, kind: int) -> None:
    """Make a node give what it reads."""
    controls = [one for one in node.input if one.startswith("^")]
    del node.input[:]
    node.input.extend([ref, *controls])
    node.op = "Identity"
    node.attr.clear()
    node.attr["T"].type = kind


def _arguments(node: NodeDef) -> list[tuple[str, int]]:
    """Return for each operand the attribute that its type is, or none, and the type that is fixed."""
    every: list[tuple[str, int]] = []
    for argument in op_def_registry.get(node.op).input_arg:
        count = node.attr[argument.number_attr].i if argument.number_attr else 1
        every += [(argument.type_attr, argument.type)] * count
    return every


def _places_of_kind(node: NodeDef) -> set[int]:
    """Return which operands are of the type T."""
    return {index for index, (attribute, _) in enumerate(_arguments(node)) if attribute == "T"}


def _declared(node: NodeDef, index: int) -> int:
    """Return the type that an operand has by what the operation says; integers of the usual size if it does not."""
    arguments = _arguments(node) if op_def_registry.get(node.op) is not None else []
    attribute, fixed = arguments[index] if index < len(arguments) else ("", 0)
    return (node.attr[attribute].type if attribute else fixed) or tf.int32.as_datatype_enum


def _is_real(kind: int) -> bool:
    return bool(kind) and bool(tf.as_dtype(kind).is_floating)


def _is_integer(kind: int) -> bool:
    return bool(kind) and bool(tf.as_dtype(kind).is_integer)
