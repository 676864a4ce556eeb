"""Which nodes of a flat TensorFlow graph are ReLUs, in every spelling, and which only contain them.

The order matters: what is one activation made of several nodes (PReLU, hard-sigmoid, CELU) is found first,
so that the ReLUs inside it are parts of it and no ReLUs of the network.
"""

import re
from collections.abc import Mapping
from math import isnan

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.backends.smooth import activation_of
from guided_backprop.backends.tensorflow import nodes
from guided_backprop.backends.tensorflow.custom import custom_name, is_recomputation
from guided_backprop.backends.tensorflow.nodes import Graph, attribute, operand_refs, producer
from guided_backprop.backends.tensorflow.spelled import watched
from guided_backprop.errors import ModelError

_INFINITY = float("inf")
_ADDITIONS = {"Add", "AddV2", "Sub"}
_SCALINGS = {"Cast", "Identity", "Mul", "Neg", "RealDiv"}
_BATCH_NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
_HOLDERS = {"BatchFunction", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "EagerPyFunc", "RemoteCall", "SymbolicGradient"}
_HOLDERS |= {"TPUPartitionedCall", "XlaCallModule", "XlaLaunch"}


def classify(definition: FunctionDef, nested: Mapping[str, FunctionDef], captured: list[float | None]) -> "Findings":
    """Write on each node of the traced function, and of what is nested in it, how its gradient is to be built."""
    names = [arg.name for arg in definition.signature.input_arg]
    inputs = [None] * (len(names) - len(captured))
    graph = Graph(definition, dict(zip(names, [*inputs, *captured], strict=True)))
    findings = Findings(graph, nested)
    findings.read(graph, is_nested=False)
    return findings


class Findings:
    """What was found in one traced function.

    Attributes:
        graph: the function.
        watched: of each node whose values alone tell whether it spells a ReLU, the tensors it may be one of.
    """

    def __init__(self, graph: Graph, nested: Mapping[str, FunctionDef]) -> None:
        self.graph = graph
        self.watched: dict[str, list[str]] = {}
        self._nested = nested

    def undo_head(self) -> str | None:
        """Mark the softmax or sigmoid that the function ends in; return its name."""
        graph = self.graph
        node = graph.node(graph.definition.ret[graph.definition.signature.output_arg[0].name])
        while node is not None and node.op in nodes.MOVES and not graph.role(node):
            node = graph.node(operand_refs(node)[0])
        if node is None:
            return None
        if node.op in nodes.HEADS:
            _unmark(node)
            graph.mark(node, "head", nodes.HEADS[node.op])
            return nodes.HEADS[node.op]
        # log_sigmoid(x) is -softplus(-x).
        softplus = graph.node(operand_refs(node)[0]) if node.op == "Neg" else None
        inner = graph.node(operand_refs(softplus)[0]) if softplus is not None and softplus.op == "Softplus" else None
        if softplus is None or inner is None or inner.op != "Neg":
            return None
        _unmark(softplus)
        graph.mark(node, "pass")
        graph.mark(softplus, "pass")
        graph.mark(inner, "head", "log_sigmoid")
        return "log_sigmoid"

    def read(self, graph: Graph, *, is_nested: bool) -> None:
        """Mark the nodes of one function, then those of the functions inside it."""
        order = graph.ordered()
        for find in (_custom, _hard_sigmoid, _smooth, _celu, _leaky, _relu, _gate, _bound, _cap):
            for node in order:
                find(graph, node)
        for name, candidates in watched(graph, order).items():
            node = graph.nodes[name]
            if not graph.role(node):
                graph.mark(node, "spelled" if is_nested else "watch", snake(node.op))
                self.watched.update({} if is_nested else {name: candidates})
        returned = list(graph.definition.ret.values())
        for node in graph.ancestors(returned):
            _check_inference(node)
        for node in order:
            if node.op in nodes.NONLINEARITIES:
                graph.mark(node, "plain", nodes.NONLINEARITIES[node.op])
            self._descend(graph, node)

    def _descend(self, graph: Graph, node: NodeDef) -> None:
        values = [graph.constant(ref) for ref in operand_refs(node)]
        if node.op in ("While", "StatelessWhile"):
            body = self._nested[attribute(node, "body").func.name]
            inner = Graph(body, {})
            for index, arg in enumerate(body.signature.input_arg):
                if inner.source(body.ret[body.signature.output_arg[index].name]) != arg.name:
                    # What a loop changes may depend on the images after the first turn.
                    values[index] = None
            self._enter(body, values)
        elif node.op in ("If", "StatelessIf"):
            for branch in ("then_branch", "else_branch"):
                self._enter(self._nested[attribute(node, branch).func.name], values[1:])
        elif node.op in ("Case", "StatelessCase"):
            for function in attribute(node, "branches").list.func:
                self._enter(self._nested[function.name], values[1:])

    def _enter(self, body: FunctionDef, values: list[float | None]) -> None:
        arguments = {arg.name: value for arg, value in zip(body.signature.input_arg, values, strict=True)}
        self.read(Graph(body, arguments), is_nested=True)


def snake(operation: str) -> str:
    """Return the name of an operation for people: ``SelectV2`` select."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r"V\d$", "", operation)).lower()


def _unmark(node: NodeDef) -> None:
    node.attr.pop(nodes.ROLE, None)


def _check_inference(node: NodeDef) -> None:
    """Raise if a node belongs to training: dropout and noise, or batch-norm that mixes the images."""
    if node.op in nodes.RANDOM or (node.op in _BATCH_NORMS and attribute(node, "is_training").b):
        raise ModelError(
            "model must be in inference mode, or its map is random; "
            f"received {snake(node.op)} in training mode. Call the model with training=False."
        )


def _custom(graph: Graph, node: NodeDef) -> None:
    """Mark what has a gradient of its own, and what hides the operations inside it."""
    override = attribute(node, "_gradient_op_type").s.decode()
    if override and is_recomputation(override):
        # Its operations are all here: their own gradients are those of the recomputation.
        del node.attr["_gradient_op_type"]
        return
    mode = attribute(node, "rnn_mode").s
    is_holder = node.op in _HOLDERS and (not mode or mode == b"rnn_relu")
    name = custom_name(override or node.op)
    if is_holder:
        graph.mark(node, "opaque", snake(node.op))
    elif name is not None and not _is_silu(graph, node):
        graph.mark(node, "opaque", name)
    elif override and name is None and not _is_silu(graph, node):
        # It is known to hold no ReLU, but has to be called for this copy of the graph.
        graph.mark(node, "part")


def _is_silu(graph: Graph, node: NodeDef) -> bool:
    if node.op != "IdentityN":
        return False
    product = graph.node(operand_refs(node)[0])
    return product is not None and product.op == "Mul" and _sigmoid_factor(graph, product) is not None


def _sigmoid_factor(graph: Graph, product: NodeDef) -> NodeDef | None:
    """Return the sigmoid of ``x * sigmoid(beta * x)``."""
    refs = operand_refs(product)
    for x, factor in (refs, refs[::-1]):
        sigmoid = graph.node(factor)
        if sigmoid is None or sigmoid.op != "Sigmoid":
            continue
        scaled = graph.node(operand_refs(sigmoid)[0])
        inside = [
            operand_refs(sigmoid)[0],
            *(operand_refs(scaled) if scaled is not None and scaled.op == "Mul" else []),
        ]
        if graph.source(x) in map(graph.source, inside):
            return sigmoid
    return None


def _smooth(graph: Graph, node: NodeDef) -> None:
    """Mark an activation that is written out: ``x * f(x)``, as SiLU, GELU and Mish are."""
    if node.op not in ("Maximum", "Mul") or not all(map(graph.depends, operand_refs(node))):
        return

    def look(ref: str) -> tuple[str, list[str]] | None:
        made = graph.node(ref)
        if made is None:
            return None
        is_named = graph.role(made) == "plain"
        name = attribute(made, nodes.NAME).s.decode() if is_named else snake(made.op)
        return name, [graph.source(each) for each in operand_refs(made) if graph.depends(each)]

    found = activation_of(snake(node.op), [graph.source(each) for each in operand_refs(node)], look)
    if found is None:
        return
    for outer in graph.consumers[node.name]:
        if outer.op == "IdentityN" and _is_silu(graph, outer):
            # TensorFlow's own gradient of it only saves memory; a SavedModel has lost it.
            outer.attr.pop("_gradient_op_type", None)
    for ref in found[1]:
        part = graph.nodes[nodes.producer(ref)]
        graph.mark(part, "part")
        # It may be an activation of its own that is counted with this one.
        graph.relabel(part, "")
    graph.mark(node, "plain", found[0])


def _hard_sigmoid(graph: Graph, node: NodeDef) -> None:
    """``relu6(x + 3) / 6``, as Keras writes it."""
    if node.op != "RealDiv" or graph.constant(operand_refs(node)[1]) != 6:
        return
    relu6 = graph.node(graph.source(operand_refs(node)[0]))
    shifted = graph.node(graph.source(operand_refs(relu6)[0])) if relu6 is not None and relu6.op == "Relu6" else None
    if relu6 is None or shifted is None or shifted.op not in ("Add", "AddV2"):
        return
    if 3.0 in {graph.constant(ref) for ref in operand_refs(shifted)}:
        graph.mark(relu6, "plain", "hardsigmoid")


def _celu(graph: Graph, node: NodeDef) -> None:
    """``max(x, 0) + alpha * expm1(min(x, 0) / alpha)``, as Keras writes it."""
    if node.op not in ("Add", "AddV2"):
        return
    refs = operand_refs(node)
    for left, right in (refs, refs[::-1]):
        upper, expm1 = graph.node(graph.source(left)), _behind(graph, right, _SCALINGS)
        if upper is None or upper.op != "Maximum" or expm1 is None or expm1.op != "Expm1":
            continue
        lower = _behind(graph, operand_refs(expm1)[0], _SCALINGS)
        if lower is None or lower.op != "Minimum":
            continue
        x, y = _with_zero(graph, upper), _with_zero(graph, lower)
        if x is not None and y is not None and graph.source(x[0]) == graph.source(y[0]):
            for part in (upper, lower, expm1):
                graph.mark(part, "part")
            graph.mark(node, "plain", "celu")


def _leaky(graph: Graph, node: NodeDef) -> None:
    """``relu(x) - slope * relu(-x)``: Keras' PReLU, and its ReLU with a slope and a cap or a threshold."""
    if node.op != "Relu":
        return
    x = _negated(graph, operand_refs(node)[0])
    if x is None:
        return
    last, name = node, ""
    while True:
        following = [user for user in graph.consumers[last.name] if user.op != "Shape"]
        if len(following) != 1 or following[0].op not in _SCALINGS | _ADDITIONS:
            return
        below, last = last, following[0]
        if last.op in _ADDITIONS:
            break
        if last.op == "Mul":
            factors = [graph.constant(ref) for ref in operand_refs(last)]
            name = "prelu" if any(factor is not None and isnan(factor) for factor in factors) else "leaky_relu"
    other = next((ref for ref in operand_refs(last) if nodes.producer(ref) != below.name), None)
    if other is None or not name:
        return
    parts = []
    upper = graph.node(other)
    while upper is not None and upper.op in {"Cast", "Identity", "Maximum", "Minimum"}:
        parts.append(upper)
        upper = graph.node(next(ref for ref in operand_refs(upper) if graph.depends(ref)))
    gated = None if upper is None else _gated(graph, upper)
    if upper is not None and gated is not None and graph.source(gated) == graph.source(x):
        graph.mark(last, "plain", name)
        for part in (node, upper, *parts):
            graph.mark(part, "part")


def _gated(graph: Graph, node: NodeDef) -> str | None:
    """Return the reference to what a ReLU, or a comparison with a threshold, gates."""
    if node.op in nodes.RELUS:
        return operand_refs(node)[0]
    gate = _gate_of(graph, node)
    return None if gate is None else operand_refs(node)[gate[0]]


def _negated(graph: Graph, ref: str) -> str | None:
    """Return x of ``-x`` or ``t - x``."""
    node = graph.node(graph.source(ref))
    if node is not None and node.op in _ADDITIONS:
        left, right = operand_refs(node)
        if node.op == "Sub" and graph.constant(left) is not None and graph.depends(right):
            return right
        if not graph.depends(right):
            node = graph.node(graph.source(left))
    return operand_refs(node)[0] if node is not None and node.op == "Neg" else None


def _behind(graph: Graph, ref: str, operations: set[str]) -> NodeDef | None:
    """Return the node behind such operations with one operand that depends on the images."""
    node = graph.node(ref)
    while node is not None and node.op in operations:
        dependent = [ref for ref in operand_refs(node) if graph.depends(ref)]
        if len(dependent) != 1:
            return None
        node = graph.node(dependent[0])
    return node


def _with_zero(graph: Graph, node: NodeDef) -> tuple[str, int] | None:
    """Return what a maximum or minimum compares with 0, and which operand that is."""
    refs = operand_refs(node)
    for operand in (0, 1):
        if graph.constant(refs[1 - operand]) == 0 and graph.depends(refs[operand]):
            return refs[operand], operand
    return None


def _relu(graph: Graph, node: NodeDef) -> None:
    if node.op == "Relu6":
        graph.mark(node, "relu", "relu6", high=6.0)
    elif node.op == "Relu" or (node.op == "LeakyRelu" and attribute(node, "alpha").f == 0):
        graph.mark(node, "relu", "relu")
    elif node.op == "ClipByValue" and graph.constant(operand_refs(node)[1]) == 0:
        cap = graph.constant(operand_refs(node)[2])
        if cap is not None and cap > 0:
            graph.mark(node, "relu", _capped(cap), high=cap)
    elif node.op == "Maximum":
        found = _with_zero(graph, node)
        if found is not None:
            graph.mark(node, "relu", "relu", found[1])


def _gate_of(graph: Graph, node: NodeDef) -> tuple[int, float] | None:
    """Return which operand a node lets through above which threshold, of ``where(x > t, x, c)`` or ``x * (x > t)``."""
    refs = operand_refs(node)
    if node.op in ("Select", "SelectV2") and not graph.depends(refs[2]):
        pairs = [(refs[0], 1)]
    elif node.op in ("Mul", "MulNoNan"):
        pairs = [(refs[1], 0), (refs[0], 1)]
    else:
        return None
    for mask, operand in pairs:
        comparison = graph.node(graph.source(mask))
        if comparison is None or comparison.op not in ("Greater", "GreaterEqual", "Less", "LessEqual"):
            continue
        x, bound = operand_refs(comparison)
        if comparison.op.startswith("Less"):
            x, bound = bound, x
        threshold = graph.constant(bound)
        is_same = graph.source(x) == graph.source(refs[operand])
        if is_same and graph.depends(x) and threshold is not None and threshold >= 0:
            return operand, threshold
    return None


def _gate(graph: Graph, node: NodeDef) -> None:
    gate = _gate_of(graph, node)
    if gate is not None:
        operand, threshold = gate
        name = "relu" if threshold == 0 else f"threshold({threshold:g})"
        graph.mark(node, "relu", name, operand, low=threshold)


def _bound(graph: Graph, node: NodeDef) -> None:
    """Mark a maximum or minimum that is a ReLU, or spells one, should a variable be 0."""
    if node.op not in ("Maximum", "Minimum"):
        return
    if node.op == "Minimum" and _with_zero(graph, node) is not None:
        graph.mark(node, "spelled", "minimum with 0")
    for operand, ref in enumerate(operand_refs(node)):
        value = graph.constant(ref)
        if value is not None and isnan(value):
            graph.mark(node, "bound", snake(node.op), operand)


def _cap(graph: Graph, node: NodeDef) -> None:
    """Join a minimum with the ReLU in front of it, and behind it: they are one ReLU with a cap."""
    if node.op != "Minimum" or graph.role(node):
        return
    for operand, ref in enumerate(operand_refs(node)):
        bound = graph.constant(operand_refs(node)[1 - operand])
        if bound is None or not bound > 0 or not graph.depends(ref):
            continue
        before, after = graph.node(graph.source(ref)), _only_user(graph, node)
        # Used elsewhere as well, a ReLU is one of its own.
        is_before = before is not None and graph.role(before) == "relu" and _only_user(graph, before) == node
        is_after = after is not None and graph.role(after) == "relu"
        relus = [relu for relu, is_joined in ((before, is_before), (after, is_after)) if relu is not None and is_joined]
        if not relus:
            continue
        low = max(float(attribute(relu, nodes.LOW).s) for relu in relus)
        high = min(bound, *(float(attribute(relu, nodes.HIGH).s) for relu in relus))
        name = _capped(high) if low == 0 else f"threshold({low:g})"
        if after is None or not is_after:
            graph.mark(node, "relu", name, operand, low=low, high=high)
        else:
            graph.mark(node, "joined", "", operand)
            _unmark(after)
            graph.mark(after, "relu", name, attribute(after, nodes.OPERAND).i, low=low, high=high)
        if before is not None and is_before:
            at = attribute(before, nodes.OPERAND).i
            _unmark(before)
            graph.mark(before, "joined", "", at)


def _only_user(graph: Graph, node: NodeDef) -> NodeDef | None:
    """Return the one node that what a node makes goes to, behind copies; None if it goes to several places."""
    while True:
        if node.name in {producer(ref) for ref in graph.definition.ret.values()}:
            return None
        users = [user for user in graph.consumers[node.name] if user.op not in ("Shape", "ShapeN", "Size", "Rank")]
        if len(users) != 1:
            return None
        node = users[0]
        if node.op not in nodes.COPIES:
            return node


def _capped(cap: float) -> str:
    return "relu" if cap == _INFINITY else f"relu{cap:g}"
