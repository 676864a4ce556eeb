"""What each node of PyTorch's autograd graph is the derivative of.

A node is known by its name (``ReluBackward0``) and by what it saved (``_saved_min == 0``), never by how
the forward pass was written: that is why ``F.relu``, ``x.clamp(min=0)`` and ``torch.maximum(x, zeros)``
are all ReLUs here.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.smooth import activation_of
from guided_backprop.backends.torch.own import OwnRelu, own_function
from guided_backprop.errors import OpaqueRegionError

ENTRY = "torch::autograd::AccumulateGrad"
RELU = "ReluBackward0"

# Parts of torch that are Python or C++ functions of their own, and that are known.
_PLAIN_MODULES = {"torch.nn.modules._functions", "torch.nn.parallel._functions"}
_PLAIN_CPP = {ENTRY, "torch::autograd::CopyBackwards", "torch::autograd::CopySlices"}

# Non-linearities that keep their own derivative and are listed in the coverage.
NONLINEARITIES = set(
    """
    abs adaptive_max_pool amax amin celu clamp clamp_max clamp_min cos elu erf exp expm1
    fmax fmin gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log1p log_sigmoid log_softmax
    logsumexp max max_pool maximum min minimum mish pow prelu reciprocal rrelu rsqrt
    scaled_dot_product_attention sigmoid silu sin softmax softplus softshrink sqrt tanh
    """.split()
)

HEADS = ("softmax", "log_softmax", "sigmoid", "log_sigmoid")

# Operations that only move, copy or cast values: a head is looked for behind them.
MOVES = {"alias", "clone", "expand", "permute", "reshape_alias", "squeeze", "t", "to_copy", "transpose"}
MOVES |= {"unsafe_view", "unsqueeze", "view"}

# Operations out of which a ReLU can be spelled; whether one was, only the forward values can tell.
_SPELLING = {"abs", "addcmul", "hypot", "index_put", "lerp", "masked_fill", "masked_scatter", "sgn", "sign"}
_SPELLING |= {"linalg_vector_norm", "pow", "sqrt", "where"}
_MAXIMA = {"adaptive_max_pool", "amax", "aminmax", "cummax", "kthvalue", "max", "max_pool"}
_MAXIMA |= {"median", "sort", "topk"}
BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
# What may belong to training.
RANDOM = BATCH_NORMS | {"native_dropout", "rrelu"}
# Operations with one or two bounds.
_CLIPS = {"clamp", "clamp_max", "clamp_min", "fmax", "fmin", "hardtanh", "maximum", "minimum"}
# All that is ever asked for below: nodes of other operations are no concern, and most are of such.
_CONCERNS = NONLINEARITIES | _SPELLING | _MAXIMA | RANDOM | set(HEADS)
_CONCERNS |= {"cudnn_rnn", "div", "miopen_rnn", "mul", "relu", "threshold"}
_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class Path:
    """The nodes between score and images.

    Attributes:
        nodes: all of them, those of the images first.
        members: the same as a set.
        concerns: those that may be anything but plain arithmetic: most need no second look.
        doubts: those of them whose name alone does not say that they are ReLUs, or batch-norm.
        children: for each node, those that gradients come to it from, once for each time that they use its result.
    """

    nodes: list[Node]
    members: set[Node]
    concerns: list[Node]
    doubts: list[Node]
    children: dict[Node, list[Node]]

    @classmethod
    def between(cls, last: Node | None, firsts: Sequence[Node | None], *, with_firsts: bool = True) -> "Path":
        """Return the nodes between the node of the score and the nodes of the images.

        Nodes that lead to parameters only are left out: they may be the user's own, and no gradient that is
        asked for passes them. Empty if the score does not depend on the images.
        """
        children: dict[Node, list[Node]] = {} if last is None else {last: []}
        stack = list(children)
        while stack:
            node = stack.pop()
            # Written out, for this is met by every node of every graph.
            for parent, _ in node.next_functions:
                if parent in children:
                    children[parent].append(node)
                elif parent is not None:
                    children[parent] = [node]
                    stack.append(parent)
        found = {first: None for first in firsts if first is not None and first in children}
        stack = list(found)
        while stack:
            for child in children[stack.pop()]:
                if child not in found:
                    found[child] = None
                    stack.append(child)
        members = set(found) if with_firsts else set(found) - set(firsts)
        nodes = [node for node in found if node in members]
        concerns = [node for node in nodes if _is_concern(node.name())]
        return cls(nodes, members, concerns, [node for node in concerns if _is_doubtful(node.name())], children)


class Relu(NamedTuple):
    """A node that is the derivative of a ReLU, or of a ReLU with a cap.

    Attributes:
        node: the node.
        name: "relu", "relu6", "threshold(0.5)"...
        operand: which of the node's edges leads to the ReLU's input.
        x: the ReLU's input where the framework opens the gate at a tie (``x == 0``), else None.
        cap: the upper bound that belongs to ``x``; None if there is no bound.
    """

    node: Node
    name: str
    operand: int = 0
    x: torch.Tensor | None = None
    cap: Any = None

    def values(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the ReLU's input and output, as far as the graph keeps them.

        Of a ReLU that worked in place it keeps the output alone. A custom function hides both.
        """
        saved = _saved(self.node)
        before = saved("self") if self.x is None else self.x
        cap, threshold = (saved("max_val"), saved("threshold")) if self.x is None else (self.cap, None)
        after = saved("result") if before is None else before
        if after is None:
            return None, None
        after = after.clamp(min=0)
        if cap is not None:
            after = after.clamp(max=cap)
        # What a threshold gives where it is closed is not kept; a ReLU gives 0 there.
        return before, after if threshold is None else torch.where(after > threshold, after, 0)


def operation(node: Node) -> str:
    """Return the operation a node is the derivative of, in snake case: ``LogSoftmaxBackward0`` log_softmax.

    A custom function keeps its own name, for it may be called as an operation of torch is.
    """
    return _operation(node.name())


@cache
def _operation(name: str) -> str:
    if not _is_of_torch(name) and not name.startswith("Foreach"):
        return name
    name = re.sub(r"Backward\d*$", "", name)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"(?<=scaled_dot_product_)\w*attention\w*", "attention", name)
    name = re.sub(r"max_pool\dd", "max_pool", name)
    return re.sub(r"_?with_?indices$|_kernel$|_with_noise$|_$", "", name)


@cache
def _is_concern(name: str) -> bool:
    return not _is_of_torch(name) or _operation(name) in _CONCERNS


@cache
def _is_doubtful(name: str) -> bool:
    return name != RELU and _operation(name) not in BATCH_NORMS


@cache
def _is_of_torch(name: str) -> bool:
    """Tell a single operation of torch: it has a number at the end; custom functions and regions have none."""
    return bool(re.search(r"Backward\d+$", name)) and not name.startswith("Foreach") and "::" not in name


def parents(node: Node) -> Iterator[Node]:
    """Iterate over the nodes that a node passes gradients on to."""
    return (parent for parent, _ in node.next_functions if parent is not None)


def relu_of(node: Node, on_path: set[Node]) -> Relu | None:
    """Return how ``node`` is the derivative of a ReLU, or None if it is not."""
    name, saved, own = operation(node), _saved(node), own_function(node)
    if own is not None:
        return Relu(node, _capped(node.cap)) if issubclass(own, OwnRelu) else None  # type: ignore[attr-defined]
    match name:
        case "relu":
            return Relu(node, "relu")
        case "threshold":
            return Relu(node, "relu" if saved("threshold") == 0 else f"threshold({saved('threshold'):g})")
        case "hardtanh" if saved("min_val") == 0:
            return Relu(node, _capped(saved("max_val")))
        case "leaky_relu" if saved("negative_slope") == 0:
            return Relu(node, "relu")
        case "prelu" if _is_zero(saved("weight")):
            return Relu(node, "relu")
        case "elu" if saved("alpha") == 0:
            return Relu(node, "relu")
        case "rrelu" if saved("lower") == saved("upper") == 0:
            return Relu(node, "relu")
        case "clamp" | "clamp_min" if _is_zero(saved("min")):
            cap = saved("max") if name == "clamp" else None
            return Relu(node, _capped(cap), 0, saved("self").detach(), cap)
        case "maximum" | "fmax":
            for operand, (x, other) in enumerate((("self", "other"), ("other", "self"))):
                if _is_constant(node, 1 - operand, on_path) and _is_zero(saved(other)):
                    return Relu(node, "relu", operand, saved(x).detach())
    return None


def written_out(path: Path) -> dict[Node, tuple[str, list[Node]]]:
    """Return the last node of each activation that is written out, such as ``x * sigmoid(x)``: its name and parts."""

    def look(edge: tuple[Node, int]) -> tuple[str, list[tuple[Node, int]]]:
        return operation(edge[0]), [each for each in edge[0].next_functions if each[0] in path.members]  # type: ignore[misc]

    found = {}
    for node in path.doubts:
        name = operation(node)
        operands = look((node, 0))[1] if name in ("mul", "maximum") else []
        activation = activation_of(name, operands, look) if len(operands) == 2 else None
        if activation is not None:
            found[node] = (activation[0], [part for part, _ in activation[1]])
    return found


def prelus(path: Path) -> dict[Node, tuple[str, list[Node]]]:
    """Return the sums that are a PReLU as Keras writes it, ``relu(x) + (-slope) * relu(-x)``: name and ReLUs.

    A composite activation is one activation, whether a framework has one operation for it or not. A ReLU
    that is used anywhere else is one of its own.
    """
    uses = Counter(parent for node in path.nodes for parent in parents(node))
    found = {}
    for node in path.nodes:
        if operation(node) != "add" or len(node.next_functions) != 2:
            continue
        relu, scaled = (parent for parent, _ in node.next_functions)
        if relu is None or scaled is None or (operation(relu), operation(scaled)) != ("relu", "mul"):
            continue
        slope, mirrored = (parent for parent, _ in scaled.next_functions)
        if mirrored is None or operation(mirrored) != "relu" or (slope is not None and operation(slope) != "neg"):
            continue
        ((negation, _),) = mirrored.next_functions
        if negation is None or operation(negation) != "neg" or negation.next_functions != relu.next_functions:
            continue
        if uses[relu] == uses[mirrored] == 1:
            found[node] = ("prelu", [relu, mirrored])
    return found


def spelled_relu(node: Node, on_path: set[Node]) -> str | None:
    """Return the name of an operation whose graph alone says that a ReLU can be spelled with it, or None.

    Out of x and ``min(x, 0)`` one is ``x - min(x, 0)``; ``max(x, 0 * x)`` is another, and so is a maximum
    with a bound that is 0 in places.
    """
    name, saved = operation(node), _saved(node)
    if name not in _CLIPS:
        return None
    if (name in ("clamp", "clamp_max") and _is_zero(saved("max"))) or (name == "hardtanh" and saved("max_val") == 0):
        return f"{name}(max=0)"
    if name in ("clamp", "clamp_min") and _is_partly_zero(saved("min")):
        return f"{name} with a bound that is 0 in places"
    if name not in ("minimum", "fmin", "maximum", "fmax"):
        return None
    for operand, side in enumerate(("self", "other")):
        if not _is_constant(node, operand, on_path):
            behind = node.next_functions[operand][0]
            if behind is not None and operation(behind) in ("mul", "sub") and _is_zero(saved(side)):
                return f"{name} with a product or difference that is 0"
        elif name in ("minimum", "fmin") and _is_zero(saved(side)):
            return f"{name} with 0"
        elif name in ("maximum", "fmax") and _is_partly_zero(saved(side)):
            return f"{name} with a bound that is 0 in places"
    return None


def may_spell_relu(node: Node, on_path: set[Node]) -> bool:
    """Tell whether a ReLU can be spelled with ``node`` and only the forward values tell whether one was."""
    name = operation(node)
    if name in ("mul", "div"):
        return _is_gate(node, "self") or _is_gate(node, "other")
    if name in _MAXIMA:
        return any(_is_padded_stack(parent, on_path) for parent in parents(node))
    return name in _SPELLING or is_in_place_on_view(node)


def is_in_place_on_view(node: Node) -> bool:
    """Tell whether ``node`` hides the derivative of an operation that changed a view in place."""
    return node.name() == "torch::autograd::CopySlices"


def is_random(node: Node) -> bool:
    """Tell whether ``node`` belongs to training: dropout, a random slope, batch-norm that learns."""
    name, saved = operation(node), _saved(node)
    if name == "rrelu":
        return bool(saved("training"))
    return name == "native_dropout" or (uses_batch(node) and saved("running_mean") is not None)


def uses_batch(node: Node) -> bool:
    """Tell whether ``node`` is batch-norm with the statistics of this batch."""
    return operation(node) in BATCH_NORMS and bool(_saved(node)("training"))


def mixes_images(node: Node) -> bool:
    """Tell whether ``node`` mixes the images of a batch.

    Instance norm is batch-norm of one long image with the statistics of that image: nothing is mixed.
    """
    return uses_batch(node) and _saved(node)("input").shape[0] > 1


def opaque_name(node: Node) -> str | None:
    """Return the name of a custom function or region that hides what it computes, or None."""
    name = node.name()
    if _is_of_torch(name) and _operation(name) not in ("cudnn_rnn", "miopen_rnn"):
        return None
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        function = getattr(type(node), "_forward_cls", None)
        if own_function(node) is not None or (function is not None and function.__module__ in _PLAIN_MODULES):
            return None
        return name.removesuffix("Backward")
    if "::" in name and name not in _PLAIN_CPP:
        return name
    if operation(node).startswith("foreach_"):
        return operation(node)
    # The ReLUs of such a network are inside one kernel. Mode 0 is the ReLU network, 1 tanh, 2 LSTM, 3 GRU.
    if operation(node) in ("cudnn_rnn", "miopen_rnn") and _saved(node)("mode") == 0:
        return operation(node)
    return None


def _saved(node: Node) -> Any:
    def attribute(name: str) -> Any:
        try:
            return getattr(node, f"_saved_{name}", None)
        except RuntimeError as error:
            raise OpaqueRegionError(
                f"what {operation(node)} saved must be readable; received {str(error).splitlines()[0]} "
                "Explain the model without its checkpoints."
            ) from error

    return attribute


def _is_constant(node: Node, operand: int, on_path: set[Node]) -> bool:
    return node.next_functions[operand][0] not in on_path


def _is_padded_stack(node: Node, on_path: set[Node]) -> bool:
    while operation(node) in MOVES and node in on_path:
        node = next(parents(node))
    if operation(node) in ("stack", "cat"):
        return any(edge not in on_path for edge, _ in node.next_functions)
    return operation(node) == "constant_pad_nd"


def _is_zero(bound: Any) -> bool:
    if isinstance(bound, torch.Tensor):
        return not bool(bound.count_nonzero())
    return bound is not None and bound == 0


def _capped(cap: Any) -> str:
    if isinstance(cap, torch.Tensor):
        return "relu with a cap"
    return "relu" if cap is None or cap == float("inf") else f"relu{cap:g}"


def _is_partly_zero(bound: Any) -> bool:
    if not isinstance(bound, torch.Tensor):
        return False
    return 0 < int(bound.count_nonzero()) < bound.numel()


def _is_gate(node: Node, factor: str) -> bool:
    """Tell whether a saved factor is a mask at sampled positions."""
    raw = getattr(node, f"_raw_saved_{factor}", None)
    if getattr(raw, "unpack_hook", None) is not None:
        # To look at it a checkpointed block would run once more: watch the forward pass instead.
        return True
    values = _saved(node)(factor)
    if not isinstance(values, torch.Tensor) or values.ndim == 0:
        return False
    return values.dtype == torch.bool or is_two_valued(values.detach().flatten()[:: max(1, values.numel() // _SAMPLE)])


def is_two_valued(values: torch.Tensor) -> bool:
    """Tell whether ``values`` is a mask: 0 and one other value, or one value only."""
    low, high = values.aminmax()
    is_two = ((values == low) | (values == high)).all()
    return bool(is_two & ((low == high) | (low == 0) | (high == 0)))
