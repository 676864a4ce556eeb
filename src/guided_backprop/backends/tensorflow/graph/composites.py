"""The composite activations in a flat TensorFlow graph, seen as the patterns see graphs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.axes import Axes
from guided_backprop.backends.guards import Guards
from guided_backprop.backends.patterns import Match, composites
from guided_backprop.backends.tensorflow.graph.axes import Shapes, axes_of, shapes_of
from guided_backprop.backends.tensorflow.graph.nodes import (
    ORIGINAL,
    OVERRIDE,
    Graph,
    attribute,
    is_copy,
    operand_refs,
    producer,
    word_of,
)
from guided_backprop.backends.tensorflow.graph.operations import SHAPES
from guided_backprop.backends.tensorflow.graph.relus import Relu

# What patterns have for operands: what is summed, and not along which axes.
_FIRST_ALONE = frozenset({"max", "sum"})
# What TensorFlow tells the axis, or the shape, before the value.
_VALUE_LAST = frozenset({"Fill", "Split"})
# What stands for the caller of a function among the users of a value.
_CALLER = "^"


class GraphView:
    """A flat graph as patterns see it: a ReLU is one operation, however it is written, and copies are not seen.

    Args:
        graph: the graph.
        relus: its ReLUs by the node that each ends with.
        array_of: returns a constant of several numbers, if somebody asks for one; None if nobody knows it.
    """

    def __init__(
        self, graph: Graph, relus: Mapping[str, Relu], array_of: Callable[[str], NumpyArray | None] | None = None
    ) -> None:
        self._graph, self._array_of = graph, array_of
        self._relus = relus
        self._readers: dict[str, list[NodeDef]] = defaultdict(list)
        for node in graph.definition.node_def:
            for ref in operand_refs(node):
                self._readers[ref].append(node)
        self._returned = frozenset(graph.definition.ret.values())

    def made(self, value: str) -> tuple[str, Sequence[str | float]] | None:
        """Return the word of the operation that makes a value, and its operands."""
        node = self._graph.node(value)
        # What has a gradient of its own is not what its operation says, unless it is ours.
        if node is None or (attribute(node, ORIGINAL).s or attribute(node, OVERRIDE).s) not in (b"", node.op.encode()):
            return None
        relu = self._relus.get(node.name)
        if relu is not None:
            return relu.name, [self._input(node, relu)]
        word = word_of(node)
        operands: list[str | float] = [self._graph.copied(ref) for ref in operand_refs(node)]
        if node.op in _VALUE_LAST:
            operands.reverse()
        if node.op == "Square":
            operands.append(2.0)
        elif word == "div" and len(operands) == 1:
            operands.insert(0, 1.0)
        elif node.op == "LeakyRelu":
            operands.append(attribute(node, "alpha").f)
        word = "squared_difference" if node.op == "SquaredDifference" else word
        return word, operands[:1] if word in _FIRST_ALONE else operands

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of all values, as far as they can be inferred."""
        return shapes_of(self._graph)

    def axes(self, value: str) -> Axes | None:
        """Return where the axes of what a value is made of go."""
        node = self._graph.node(value)
        return None if node is None else axes_of(self._graph, node, self.shapes)

    def constant(self, value: str) -> float | None:
        """Return the number that a value is everywhere."""
        return self._graph.constant(value)

    def number(self, value: str) -> float | None:
        """Return the same: the graph tells it of arrays too."""
        return self._graph.constant(value)

    def array(self, value: str) -> NumpyArray | None:
        """Return a constant of several numbers; None if nobody knows it."""
        return None if self._array_of is None else self._array_of(value)

    def users(self, value: str) -> Sequence[str]:
        """Return the values that are made of a value directly; what a function returns goes to its caller."""
        users = [_CALLER] if value in self._returned else []
        for node in self._readers[value]:
            if is_copy(node):
                users += self.users(value_of(node))
            elif node.op not in SHAPES:
                users.append(value_of(node))
        return users

    def _input(self, node: NodeDef, relu: Relu) -> str:
        name, operand = relu.inside[-1] if relu.inside else (node.name, relu.operand)
        return self._graph.copied(operand_refs(self._graph.nodes[name])[operand])


def value_of(node: NodeDef) -> str:
    """Return the reference to what a node makes, the first of several."""
    return f"{node.name}:{_first_output(node.op)}:0"


@cache
def _first_output(operation: str) -> str:
    outputs = op_def_registry.get(operation).output_arg
    return str(outputs[0].name) if outputs else ""


def composites_of(graph: Graph, order: list[NodeDef], relus: Mapping[str, Relu]) -> dict[str, Match[str]]:
    """Return the composite activations of a graph by the node that each ends with."""
    values = [value for node in order if graph.depends(value := value_of(node))]
    view = GraphView(graph, relus)
    matches = composites(view, values) | Guards(view).among([value for value in values if producer(value) in relus])
    return {producer(last): match for last, match in matches.items()}
