"""What each node of a flat TensorFlow graph is: a ReLU, a part of one, another non-linearity, or hidden.

A node is known by its operation and by what it is connected to, never by the layer it came from: that is
why ``layers.ReLU``, ``tf.nn.relu``, ``tf.maximum(x, 0)`` and a reloaded SavedModel are all the same here.
What was found is written on the (copied) node itself, where its gradient reads it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

GRADIENT = "GuidedBackprop"
ROLE = "_guided_backprop_role"
NAME = "_guided_backprop_name"
OPERAND = "_guided_backprop_operand"
LOW = "_guided_backprop_low"
HIGH = "_guided_backprop_high"
ORIGINAL = "_guided_backprop_original"

# A constant whose value is not known before the run, such as a variable.
UNKNOWN = float("nan")

HEADS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}

# Non-linearities that keep their own derivative and are listed in the coverage.
NONLINEARITIES = {
    "Abs": "abs", "Acos": "acos", "Asin": "asin", "Atan": "atan", "Cos": "cos", "Cosh": "cosh", "Elu": "elu",
    "Erf": "erf", "Erfc": "erfc", "Exp": "exp", "Expm1": "expm1", "LeakyRelu": "leaky_relu", "Log": "log",
    "Log1p": "log1p",
    "LogSoftmax": "log_softmax", "Max": "max", "MaxPool": "max_pool", "MaxPool3D": "max_pool",
    "MaxPoolV2": "max_pool", "MaxPoolWithArgmax": "max_pool", "Maximum": "maximum", "Min": "min",
    "Minimum": "minimum", "Pow": "pow", "Reciprocal": "reciprocal", "Rsqrt": "rsqrt", "Selu": "selu",
    "Sigmoid": "sigmoid", "Sin": "sin", "Sinh": "sinh", "Softmax": "softmax", "Softplus": "softplus",
    "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "ClipByValue": "clip",
    "SegmentMax": "max", "SegmentMin": "min", "TopKV2": "top_k", "FakeQuantWithMinMaxArgs": "fake_quant",
    "FakeQuantWithMinMaxVars": "fake_quant", "Prod": "prod",
}  # fmt: skip

# Operations that only move, copy or cast values.
MOVES = set("Cast ExpandDims Identity IdentityN PreventGradient Reshape Snapshot Squeeze Transpose".split())
_SAME = MOVES | set("BroadcastTo CheckNumerics DeepCopy EnsureShape Fill StopGradient Tile".split())
COPIES = ("Identity", "Cast", "Snapshot", "StopGradient", "PreventGradient")
RELUS = {"Relu", "Relu6"}
RANDOM = set(
    """
    Multinomial ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomPoissonV2 RandomStandardNormal
    RandomUniform RandomUniformInt StatefulRandomBinomial StatefulStandardNormalV2 StatefulTruncatedNormal
    StatefulUniform StatefulUniformFullInt StatefulUniformInt StatelessMultinomial StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformV2 StatelessTruncatedNormal
    StatelessTruncatedNormalV2 TruncatedNormal
    """.split()
)


def attribute(node: NodeDef, name: str) -> AttrValue:
    """Return an attribute of a node, empty if it has none; asking the node itself would add it."""
    return node.attr[name] if name in node.attr else AttrValue()


def operand_refs(node: NodeDef) -> list[str]:
    """Return what a node reads: ``"argument"`` or ``"node:output:0"``."""
    return [ref for ref in node.input if not ref.startswith("^")]


def producer(ref: str) -> str:
    """Return the node or argument that a reference names."""
    return ref.partition(":")[0]


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

    @cached_property
    def consumers(self) -> Mapping[str, list[NodeDef]]:
        """Return the nodes that read something of the node of this name."""
        found: dict[str, list[NodeDef]] = defaultdict(list)
        for node in self.definition.node_def:
            for name in dict.fromkeys(map(producer, operand_refs(node))):
                found[name].append(node)
        return found

    def node(self, ref: str) -> NodeDef | None:
        """Return the node that a reference names, or None if it names an argument."""
        return self.nodes.get(producer(ref))

    def source(self, ref: str) -> str:
        """Return the reference behind operations that only copy or cast."""
        node = self.node(ref)
        while node is not None and node.op in COPIES:
            ref = operand_refs(node)[0]
            node = self.node(ref)
        return ref

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
        values = [self._constants[producer(ref)] for ref in operand_refs(node)]
        if node.op == "Const":
            return _uniform(tf.make_ndarray(attribute(node, "value").tensor))
        if node.op in ("ZerosLike", "OnesLike"):
            return float(node.op == "OnesLike")
        if node.op == "Fill":
            return values[1]
        if node.op in ("Shape", "ShapeN", "Size", "Rank"):
            # The shape of something that depends on the images is no value of theirs.
            return UNKNOWN
        if node.op in _SAME and values and (node.op != "IdentityN" or len(values) == 1):
            return values[0]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return 0.0 if node.op in ("Mul", "MulNoNan") and 0.0 in known else None
        if node.op in _ARITHMETIC and len(values) == len(operand_refs(node)):
            return UNKNOWN if any(map(isnan, known)) else float(_ARITHMETIC[node.op](*known))
        if node.op in ("Pack", "ConcatV2") and values:
            parts = set(values if node.op == "Pack" else values[:-1])
            return parts.pop() if len(parts) == 1 else UNKNOWN
        return UNKNOWN

    def depends(self, ref: str) -> bool:
        """Tell whether a tensor depends on the values of the images."""
        return self.constant(ref) is None

    def mark(self, node: NodeDef, role: str, name: str = "", operand: int = 0, **bounds: float) -> None:
        """Write on a node how its gradient is to be built."""
        if self.role(node):
            return
        original = attribute(node, "_gradient_op_type").s or node.op.encode()
        node.attr[ORIGINAL].s = original
        node.attr["_gradient_op_type"].s = GRADIENT.encode()
        node.attr[ROLE].s, node.attr[NAME].s, node.attr[OPERAND].i = role.encode(), name.encode(), operand
        # As text: an attribute of a node that is a number has 32 bits.
        node.attr[LOW].s = repr(bounds.get("low", 0.0)).encode()
        node.attr[HIGH].s = repr(bounds.get("high", float("inf"))).encode()

    def relabel(self, node: NodeDef, name: str) -> None:
        """Change the name under which a marked node is listed."""
        node.attr[NAME].s = name.encode()

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


_ARITHMETIC: dict[str, Any] = {
    "Neg": lambda x: -x,
    "Add": lambda x, y: x + y,
    "AddV2": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "RealDiv": lambda x, y: x / y if y else UNKNOWN,
    "Maximum": max,
    "Minimum": min,
}


def _uniform(values: Any) -> float:
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


def constant_of(tensor: Any) -> float | None:
    """Return the value of what a function captured: eager tensors never change, variables may."""
    if getattr(tensor, "dtype", None) in (tf.resource, tf.variant, tf.string) or not hasattr(tensor, "numpy"):
        return UNKNOWN
    return _uniform(tensor.numpy())
