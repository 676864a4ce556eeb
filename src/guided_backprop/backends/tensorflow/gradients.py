"""The one gradient function that stands in for that of every marked node, and the record of what it did.

It is registered under a name of its own, which only the nodes of our copies carry: the gradients of the
user's graphs are looked up as ever. TensorFlow calls it for nodes on the path from score to images only.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.refusals import coverage_of, hidden, spelled
from guided_backprop.backends.tensorflow import nodes
from guided_backprop.backends.tensorflow.custom import SCOPE, original_gradient
from guided_backprop.coverage import Coverage
from guided_backprop.rules import ReluRule

_EDITOR: ContextVar["Editor"] = ContextVar("guided_backprop_editor")


class Editor:
    """What is done with the nodes of one graph while its gradient is being built.

    Attributes:
        heads: for each label, the logits in front of the final softmax or sigmoid, and the gradient that
            arrives there.
        watch: of each tensor whose values alone tell whether it is a ReLU, the operation's name, and the
            tensors that it may be a ReLU of; all by their names.
        bounds: of each bound of a maximum or minimum that must not be 0, the operation's name.
    """

    def __init__(self, rule: ReluRule, vouch: Vouch, watched: dict[str, list[str]]) -> None:
        self.rule = rule
        self.heads: list[tuple[tf.Tensor, tf.Tensor]] = []
        self.watch: dict[str, tuple[str, list[str]]] = {}
        self.bounds: dict[str, str] = {}
        self._seen: dict[str, tf.Tensor] = {}
        self._vouch = vouch
        self._watched = watched
        self._noted: set[tf.Operation] = set()
        self._counts: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Be the editor of the gradients that this thread builds meanwhile."""
        token = _EDITOR.set(self)
        try:
            yield
        finally:
            _EDITOR.reset(token)

    def coverage(self) -> Coverage:
        """Return what was done; raise if the rule found nothing to act on."""
        return coverage_of(self._counts, self.rule)

    def seen(self) -> dict[str, tf.Tensor]:
        """Return, by name, the tensors whose values are to be judged; the editor keeps them no longer."""
        seen, self._seen, self._noted, self.heads = self._seen, {}, set(), []
        return seen

    def differentiate(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...]) -> list[tf.Tensor | None]:
        """Return the gradients that leave a marked node."""
        role, name = op.get_attr(nodes.ROLE).decode(), op.get_attr(nodes.NAME).decode()
        match role:
            case "relu" | "cap":
                return self._relu(op, gradients[0], role, name)
            case "opaque":
                return self._opaque(op, gradients, name)
            case "head" | "pass":
                return self._head(op, gradients[0], role, name)
        if role == "plain":
            self._note(op, name, self.rule.treatment(name))
            if self.rule.guides(name):
                gradients = tuple(tf.nn.relu(g) for g in gradients)
        elif self.rule.backward_gate and name not in self._vouch:
            self._judge(op, role, name)
        if role == "bound":
            self._note(op, name, "plain")
        return original_gradient(op, gradients)

    def _note(self, op: tf.Operation, name: str, treatment: str) -> None:
        if op not in self._noted and name:
            self._noted.add(op)
            self._counts[name, treatment] += 1

    def _relu(self, op: tf.Operation, g: tf.Tensor, role: str, name: str) -> list[tf.Tensor | None]:
        operand = op.get_attr(nodes.OPERAND)
        if role == "relu":
            self._note(op, name, self.rule.name)
            g = tf.nn.relu(g) if self.rule.backward_gate else g
        leaving: list[tf.Tensor | None] = [None] * len(op.inputs)
        leaving[operand] = _gated(op, g, operand) if self.rule.forward_gate else _fitted(g, op.inputs[operand])
        return leaving

    def _opaque(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...], name: str) -> list[tf.Tensor | None]:
        vouched = self._vouch.get(name)
        if not self.rule.backward_gate:
            self._note(op, name, self.rule.name if vouched == "relu" else "plain")
            return original_gradient(op, gradients)
        if vouched is None:
            raise hidden(name)
        self._note(op, name, self.rule.name if vouched == "relu" else "plain")
        if vouched == "plain":
            return original_gradient(op, gradients)
        clamped = [tf.nn.relu(g) for g in gradients]
        if self.rule.forward_gate:
            return original_gradient(op, clamped)
        # IdentityN takes the results first and then the arguments.
        operand = 1 if op.type == "IdentityN" else 0
        return [clamped[0] if index == operand else None for index in range(len(op.inputs))]

    def _head(self, op: tf.Operation, g: tf.Tensor, role: str, name: str) -> list[tf.Tensor | None]:
        if role == "head":
            self.heads.append((op.inputs[0], g))
            self._counts[name, "undone"] = 1
        return [g]

    def _judge(self, op: tf.Operation, role: str, name: str) -> None:
        """Raise, or remember to look at the values, if a node may spell a ReLU."""
        is_top = op.name.startswith(f"{SCOPE}/")
        if role == "spelled" or (role == "bound" and not is_top):
            raise spelled({name}, "tf.nn.relu")
        if role == "bound":
            self.bounds[self._see(op.inputs[op.get_attr(nodes.OPERAND)])] = name
        if role == "watch":
            candidates = [op.graph.get_tensor_by_name(f"{SCOPE}/{ref}") for ref in self._watched[op.name]]
            self.watch[self._see(op.outputs[0])] = (name, [self._see(each) for each in candidates])

    def _see(self, tensor: tf.Tensor) -> str:
        self._seen[tensor.name] = tensor
        return str(tensor.name)


@tf.RegisterGradient(nodes.GRADIENT)  # type: ignore[untyped-decorator]
def _differentiate(op: tf.Operation, *gradients: tf.Tensor) -> list[tf.Tensor | None]:
    return _EDITOR.get().differentiate(op, gradients)


def _gated(op: tf.Operation, g: tf.Tensor, operand: int) -> tf.Tensor:
    """Let pass what the ReLU's own derivative lets pass; at a tie it is 0."""
    if op.type == "Relu":
        return tf.raw_ops.ReluGrad(gradients=g, features=op.outputs[0])
    if op.type == "Relu6":
        return tf.raw_ops.Relu6Grad(gradients=g, features=op.outputs[0])
    x, low, high = op.inputs[operand], float(op.get_attr(nodes.LOW)), float(op.get_attr(nodes.HIGH))
    is_open = x > tf.cast(low, x.dtype) if op.get_attr(nodes.ROLE) == b"relu" else tf.ones_like(x, tf.bool)
    if high != float("inf"):
        is_open &= x < tf.cast(high, x.dtype)
    return _fitted(tf.where(is_open, g, tf.zeros([], g.dtype)), x)


def _fitted(g: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Undo the broadcasting of x: sum what went to one value of it."""
    if x.shape.is_fully_defined() and g.shape.is_fully_defined() and x.shape == g.shape:
        return g
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=tf.shape(g))
    return tf.reshape(tf.reduce_sum(g, axes), tf.shape(x))
