"""A flat TensorFlow graph that can be asked who feeds whom, and what was written on its nodes.

A node is known by its operation and by what it is connected to, never by the layer it came from: that is
why ``layers.ReLU``, ``tf.nn.relu``, ``tf.maximum(x, 0)`` and a reloaded SavedModel are all the same here.
What it was found to be is written on the (copied) node itself, where its gradient reads it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import isnan

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from guided_backprop.backends.tensorflow.graph.operations import COPIES, OPERATIONS, SHAPES

GRADIENT = "GuidedBackprop"
OVERRIDE = "_gradient_op_type"
ROLE = "_guided_backprop_role"
NAME = "_guided_backprop_name"
LISTED = "_guided_backprop_listed"
OPERAND = "_guided_backprop_operand"
LOW = "_guided_backprop_low"
HIGH = "_guided_backprop_high"
ORIGINAL = "_guided_backprop_original"

# A constant whose value is not known before the run, such as a variable.
UNKNOWN = float("nan")

# What gives out the one value that fills its first operand.
_SAME = OPERATIONS.called("broadcast", "cast", "identity", "reshape", "stop_gradient", "transpose")


# Kinds of values: real numbers, and what else a gradient goes through.
FLOATS = frozenset(kind.as_datatype_enum for kind in (tf.float16, tf.bfloat16, tf.float32, tf.float64))
COMPLEX = frozenset(kind.as_datatype_enum for kind in (tf.complex64, tf.complex128))
VALUES = FLOATS | COMPLEX | {kind.as_datatype_enum for kind in (tf.variant, tf.resource)}


def attribute(node: NodeDef, name: str) -> AttrValue:
    """Return an attribute of a node, empty if it has none; asking the node itself would add it."""
    return node.attr[name] if name in node.attr else AttrValue()


def operand_refs(node: NodeDef) -> list[str]:
    """Return what a node reads: ``"argument"`` or ``"node:output:0"``."""
    return [ref for ref in node.input if not ref.startswith("^")]


def producer(ref: str) -> str:
    """Return the node or argument that a reference names."""
    return ref.partition(":")[0]


def word_of(node: NodeDef) -> str:
    """Return what a node does, in the vocabulary of all frameworks."""
    return OPERATIONS[node.op].word


def is_copy(node: NodeDef) -> bool:
    """Tell whether a node gives out the values that it is given; a cast of real numbers to others rounds them."""
    rounds = attribute(node, "SrcT").type in FLOATS and attribute(node, "DstT").type not in FLOATS
    return node.op in COPIES and not (node.op == "Cast" and rounds)


class Graph:
    """A flat function definition that can be asked who feeds whom.

    Args:
        definition: the function.
        arguments: of each argument, its value if it is constant and the same everywhere, ``UNKNOWN`` if it
            is constant and anything, and None if it depends on the images.
    """

    def __init__(self, definition: FunctionDef, arguments: Mapping[str, float | None]) -> None:
        self.definition = definition
        self.nodes: dict[str, NodeDef] = {node.name: node for node in definition.node_def}
        self._constants: dict[str, float | None] = dict(arguments)
        self._made: dict[str, dict[str, int]] = {}

    @cached_property
    def consumers(self) -> Mapping[str, list[NodeDef]]:
        """Return the nodes that read something of the node of this name."""
        consumers: dict[str, list[NodeDef]] = defaultdict(list)
        for node in self.definition.node_def:
            for name in dict.fromkeys(map(producer, operand_refs(node))):
                consumers[name].append(node)
        return consumers

    @cached_property
    def returned(self) -> frozenset[str]:
        """Return the nodes whose values the function returns."""
        return frozenset(map(producer, self.definition.ret.values()))

    def node(self, ref: str) -> NodeDef | None:
        """Return the node that a reference names, or None if it names an argument."""
        return self.nodes.get(producer(ref))

    @cached_property
    def _kinds(self) -> dict[str, int]:
        return {arg.name: arg.type for arg in self.definition.signature.input_arg}

    def outputs_of(self, node: NodeDef) -> list[str]:
        """Return the references to what a node gives."""
        return [f"{node.name}:{name}" for name in self._outputs(node)]

    def kind_of(self, ref: str) -> int:
        """Return what kind of values a reference stands for, as TensorFlow numbers them; 0 if nobody knows."""
        node = self.node(ref)
        if node is None:
            return self._kinds.get(producer(ref), 0)
        return self._outputs(node).get(ref.partition(":")[2], 0)

    def _outputs(self, node: NodeDef) -> dict[str, int]:
        if node.name not in self._made:
            self._made[node.name] = _outputs(node)
        return self._made[node.name]

    def copied(self, ref: str) -> str:
        """Return the reference behind operations that only copy or cast."""
        node = self.node(ref)
        while node is not None and is_copy(node):
            ref = operand_refs(node)[0]
            node = self.node(ref)
        return ref

    def source(self, ref: str) -> str:
        """Return the reference to the same values behind copies, be they without a gradient."""
        node = self.node(ref)
        while node is not None and (is_copy(node) or word_of(node) == "stop_gradient"):
            ref = operand_refs(node)[0]
            node = self.node(ref)
        return ref

    def only_user(self, node: NodeDef) -> NodeDef | None:
        """Return the one node that what a node makes goes to, behind copies; None if it goes to several places."""
        while node.name not in self.returned:
            users = [user for user in self.consumers[node.name] if user.op not in SHAPES]
            if len(users) != 1:
                return None
            node = users[0]
            if not is_copy(node):
                return node
        return None

    def constant(self, ref: str) -> float | None:
        """Return the value of a tensor that does not depend on the images and is the same everywhere.

        ``UNKNOWN`` if it does not depend on the images and may be anything; None if it depends on them.
        """
        name = producer(ref)
        stack = [name]
        while stack:
            current = stack[-1]
            node = self.nodes.get(current)
            waiting = [
                feeding
                for feeding in (map(producer, operand_refs(node)) if node is not None else ())
                if feeding not in self._constants
            ]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if current not in self._constants:
                self._constants[current] = UNKNOWN if node is None else self._evaluate(node)
        return self._constants[name]

    def _evaluate(self, node: NodeDef) -> float | None:
        constants = [self._constants[producer(ref)] for ref in operand_refs(node)]
        if node.op in SHAPES:
            # The shape of something that depends on the images is no value of theirs.
            return UNKNOWN
        if node.op in _VALUES:
            return _VALUES[node.op](node, constants)
        if node.op in _SAME:
            return constants[0]
        known = [value for value in constants if value is not None]
        if len(known) < len(constants):
            return 0.0 if word_of(node) == "mul" and 0.0 in known else None
        calculate = _ARITHMETIC.get((word_of(node), len(known)))
        return UNKNOWN if calculate is None or any(map(isnan, known)) else float(calculate(*known))

    def depends(self, ref: str) -> bool:
        """Tell whether a tensor depends on the values of the images."""
        return self.constant(ref) is None

    def mark(
        self, node: NodeDef, role: str, name: str = "", operand: int = 0, *, listed: str = "", **bounds: float
    ) -> None:
        """Write on a node how its gradient is to be built, and how the coverage lists what is only looked at."""
        if not self.role(node):
            node.attr[ORIGINAL].s = attribute(node, OVERRIDE).s or node.op.encode()
        node.attr[OVERRIDE].s = GRADIENT.encode()
        node.attr[ROLE].s, node.attr[NAME].s, node.attr[OPERAND].i = role.encode(), name.encode(), operand
        node.attr[LISTED].s = listed.encode()
        # As text: an attribute of a node that is a number has 32 bits.
        node.attr[LOW].s = repr(bounds.get("low", 0.0)).encode()
        node.attr[HIGH].s = repr(bounds.get("high", float("inf"))).encode()

    def role(self, node: NodeDef | None) -> str:
        """Return the role that was written on a node, or an empty string."""
        return "" if node is None else attribute(node, ROLE).s.decode()

    def ordered(self) -> list[NodeDef]:
        """Return all nodes, each after the nodes that it reads."""
        done: dict[str, None] = {}
        for start in self.nodes:
            stack = [start]
            while stack:
                waiting = [
                    name
                    for name in map(producer, operand_refs(self.nodes[stack[-1]]))
                    if name in self.nodes and name not in done
                ]
                if waiting:
                    stack.extend(waiting)
                else:
                    done[stack.pop()] = None
        return [self.nodes[name] for name in done]

    def ancestors(self, refs: list[str]) -> Iterator[NodeDef]:
        """Iterate over all nodes that ``refs`` are computed from."""
        seen, stack = set(), [producer(ref) for ref in refs]
        while stack:
            name = stack.pop()
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            yield self.nodes[name]
            stack.extend(map(producer, operand_refs(self.nodes[name])))


def _outputs(node: NodeDef) -> dict[str, int]:
    """Return the kinds of what a node gives, by what stands behind its name in references."""
    definition = op_def_registry.get(node.op)
    outputs: dict[str, int] = {}
    for arg in definition.output_arg if definition is not None else ():
        kinds = [arg.type or attribute(node, arg.type_attr).type]
        if arg.type_list_attr:
            kinds = list(attribute(node, arg.type_list_attr).list.type)
        elif arg.number_attr:
            kinds *= attribute(node, arg.number_attr).i
        outputs |= {f"{arg.name}:{index}": kind for index, kind in enumerate(kinds)}
    return outputs


def _joined(parts: list[float | None]) -> float | None:
    """Return the one value of several tensors that are put together."""
    if None in parts:
        return None
    return parts[0] if parts and len(set(parts)) == 1 else UNKNOWN


#: Operations whose value something else than arithmetic tells.
_VALUES: dict[str, Callable[[NodeDef, list[float | None]], float | None]] = {
    "ConcatV2": lambda node, constants: _joined(constants[:-1]),
    "Const": lambda node, constants: _uniform(tf.make_ndarray(attribute(node, "value").tensor)),
    "Fill": lambda node, constants: constants[1],
    "OnesLike": lambda node, constants: 1.0,
    "Pack": lambda node, constants: _joined(constants),
    "ZerosLike": lambda node, constants: 0.0,
}

#: Arithmetic of constants, by its word and how many there are.
_ARITHMETIC: dict[tuple[str, int], Callable[..., float]] = {
    ("neg", 1): lambda x: -x,
    ("add", 2): lambda x, y: x + y,
    ("sub", 2): lambda x, y: x - y,
    ("mul", 2): lambda x, y: x * y,
    ("div", 2): lambda x, y: x / y if y else UNKNOWN,
    ("maximum", 2): max,
    ("minimum", 2): min,
}


def _uniform(values: ArrayLike) -> float:
    """Return the one value of an array, or UNKNOWN."""
    array = np.asarray(values)
    if array.size == 0 or array.dtype.kind not in "iufbV":
        return UNKNOWN
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError):
        return UNKNOWN
    first = float(numbers.flat[0])
    return first if bool((numbers == first).all()) else UNKNOWN


def constant_of(tensor: tf.Tensor) -> float | None:
    """Return the value of what a function captured: eager tensors never change, variables may."""
    if getattr(tensor, "dtype", None) in (tf.resource, tf.variant, tf.string) or not hasattr(tensor, "numpy"):
        return UNKNOWN
    return _uniform(tensor.numpy())
