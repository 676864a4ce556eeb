"""The one gradient function that stands in for that of every marked node, and the record of what it did.

It is registered under a name of its own, which only the nodes of our copies carry: the gradients of the
user's graphs are looked up as ever. TensorFlow calls it for nodes on the path from score to images only.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.refusals import coverage_of, hidden, spelled
from guided_backprop.backends.tensorflow.graph import nodes
from guided_backprop.backends.tensorflow.graph.custom import SCOPE, original_gradient
from guided_backprop.backends.tensorflow.graph.groups import convolution_gradient
from guided_backprop.backends.tensorflow.graph.operations import COPIES
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OpaqueRegionError
from guided_backprop.rules import Deconv, Guided, Open, Plain, ReluRule

_EDITOR: ContextVar["Editor"] = ContextVar("guided_backprop_editor")


class Editor:
    """What is done with the nodes of one graph while its gradient is being built.

    Attributes:
        heads: for each label, the logits in front of the final softmax or sigmoid, and the gradient that
            arrives there.
        bounds: of each bound of a maximum or minimum that must not be 0, the operation's name.
    """

    def __init__(self, rule: ReluRule, vouch: Vouch) -> None:
        self.rule = rule
        self.heads: list[tuple[tf.Tensor, tf.Tensor]] = []
        self.bounds: dict[str, str] = {}
        self._seen: dict[str, tf.Tensor] = {}
        self._vouch = vouch
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
            case "relu":
                self._note(op, name, self.rule.name)
                return _for_operand(op, self._relu(op, gradients[0]))
            case "joined":
                return _for_operand(op, gradients[0])
            case "opaque":
                return self._opaque(op, gradients, name)
            case "unknown":
                return self._unknown(op, gradients, name)
            case "head" | "pass":
                return self._head(op, gradients[0], role, name)
            case "plain":
                return self._listed(op, gradients, name)
            case "bound":
                self._bounded(op, name)
            case "conv":
                return convolution_gradient(op, gradients)
            case "complex":
                # As TensorFlow's own, which says in the log that it discards the imaginary part.
                return [tf.cast(tf.math.real(gradients[0]), op.inputs[0].dtype)]
        return original_gradient(op, gradients)

    def _note(self, op: tf.Operation, name: str, treatment: str) -> None:
        if op not in self._noted and name:
            self._noted.add(op)
            self._counts[name, treatment] += 1

    def _relu(self, op: tf.Operation, g: tf.Tensor) -> tf.Tensor:
        """Return what leaves the input of a ReLU, of the shape of its output."""
        fast = _FAST.get(type(self.rule))
        if fast is not None:
            return fast(g, lambda arriving: _gated(op, arriving))
        return self._leaving(g, _gated(op, g), _input_of(op), op.outputs[0])

    def _leaving(self, g: tf.Tensor, derived: tf.Tensor, x: tf.Tensor | None, y: tf.Tensor) -> tf.Tensor:
        """Ask the rule, with what it reads."""
        if not self.rule.reads_values:
            x = y = None
        elif x is not None:
            x = tf.broadcast_to(tf.cast(x, y.dtype), tf.shape(y))
        # NumPy's functions make float64 of a Python number.
        return tf.cast(self.rule.leaving(g, derived, x, y, tf.experimental.numpy), derived.dtype)

    def _listed(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...], name: str) -> list[tf.Tensor | None]:
        """Return what leaves an activation that is no ReLU, under a rule that may act on it."""
        self._note(op, name, self.rule.treatment(name))
        if not self.rule.guides(name):
            return original_gradient(op, gradients)
        if type(self.rule) is Guided:
            # A derivative is linear in g: to clamp that is the same as to close what the derivative made.
            return original_gradient(op, [tf.nn.relu(g) for g in gradients])
        leaving, operand = original_gradient(op, gradients), _operand_of(op)
        derived = leaving[operand]
        is_one = nodes.word_of(op.node_def) == name or (op.type == "IdentityN" and len(op.inputs) == operand + 1)
        if derived is None or not is_one:
            raise OpaqueRegionError(
                f"the {self.rule.name} rule acts on what an activation's derivative gives; received {name} written as "
                "arithmetic, which has several. Write it as one operation, such as tf.nn.elu."
            )
        leaving[operand] = self._leaving(gradients[0], derived, op.inputs[operand], op.outputs[0])
        return leaving

    def _opaque(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...], name: str) -> list[tf.Tensor | None]:
        vouched = self._vouch.get(name)
        if vouched is None and self.rule.needs_every_relu:
            raise hidden(name)
        self._note(op, name, self.rule.name if vouched == "relu" else "plain")
        if vouched != "relu":
            return original_gradient(op, gradients)
        return self._vouched(op, gradients, name)

    def _unknown(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...], name: str) -> list[tf.Tensor | None]:
        """List an operation that has no row, whose values are looked at unless it is known what it is."""
        if name in self._vouch:
            return self._opaque(op, gradients, name)
        self._note(op, name, "plain")
        return original_gradient(op, gradients)

    def _vouched(self, op: tf.Operation, gradients: tuple[tf.Tensor, ...], name: str) -> list[tf.Tensor | None]:
        """Treat a function as a ReLU."""
        operand = _operand_of(op)
        x, y = op.inputs[operand], op.outputs[0]
        is_one = len(op.inputs) == operand + 1 and x.shape.is_compatible_with(y.shape)
        if not is_one and self.rule.reads_values:
            raise OpaqueRegionError(
                f"a ReLU must have one input and return values of its shape under the {self.rule.name} rule; received "
                f"{name} of {len(op.inputs) - operand} inputs, from {x.shape} to {y.shape}. Write it as two functions, "
                "one of them the ReLU alone."
            )
        if not is_one:
            # Which argument is the ReLU's is not known: as with smooth activations, the rule is asked in front of it.
            return original_gradient(op, [self._leaving(g, g, None, y) for g in gradients])
        leaving = original_gradient(op, gradients)
        derived = leaving[operand]
        if derived is not None:
            leaving[operand] = self._leaving(gradients[0], derived, x, y)
        return leaving

    def _head(self, op: tf.Operation, g: tf.Tensor, role: str, name: str) -> list[tf.Tensor | None]:
        if role == "head":
            self.heads.append((op.inputs[0], g))
            self._counts[name, "undone"] = 1
        return [g]

    def _bounded(self, op: tf.Operation, name: str) -> None:
        """Remember to look at a bound that must not be 0; raise where no call can see it."""
        self._note(op, op.get_attr(nodes.LISTED).decode(), "plain")
        if not self.rule.needs_every_relu or name in self._vouch:
            return
        if not op.name.startswith(f"{SCOPE}/"):
            raise spelled({name}, "tf.nn.relu")
        self.bounds[self._see(op.inputs[op.get_attr(nodes.OPERAND)])] = name

    def _see(self, tensor: tf.Tensor) -> str:
        self._seen[tensor.name] = tensor
        return str(tensor.name)


#: Whether a ReLU's own derivative lets a gradient pass, with what is left of it.
_Gate = Callable[[tf.Tensor], tf.Tensor]
#: The named rules by TensorFlow's kernels. Those multiply, so an infinite gradient that meets a closed gate becomes
#: NaN: it is refused, where the formula would go on without it.
_FAST: dict[type[ReluRule], Callable[[tf.Tensor, _Gate], tf.Tensor]] = {
    Plain: lambda g, gate: gate(g),
    Deconv: lambda g, gate: tf.nn.relu(g),
    Guided: lambda g, gate: gate(tf.nn.relu(g)),
    Open: lambda g, gate: g,
}
_KERNELS = {("Relu", 0.0, float("inf")): tf.raw_ops.ReluGrad, ("Relu6", 0.0, 6.0): tf.raw_ops.Relu6Grad}


def _gated(op: tf.Operation, g: tf.Tensor) -> tf.Tensor:
    """Let pass what the ReLU's own derivative lets pass; at a tie it is 0."""
    low, high = float(op.get_attr(nodes.LOW)), float(op.get_attr(nodes.HIGH))
    kernel = _KERNELS.get((op.type, low, high))
    if kernel is not None:
        return kernel(gradients=g, features=op.outputs[0])
    x = _input_of(op)
    # Not tf.cast(low, ...), which makes float32 of a Python number first.
    is_open = x > tf.constant(low, x.dtype)
    if high != float("inf"):
        # The bounds joined here may be of several dtypes: a cap is a number of one of them.
        wider = max(x.dtype, op.outputs[0].dtype, key=lambda kind: kind.size)
        is_open &= tf.cast(x, wider) < tf.constant(high, wider)
    return tf.where(is_open, g, tf.zeros([], g.dtype))


def _input_of(op: tf.Operation) -> tf.Tensor:
    """Return what a ReLU is a ReLU of: behind the bounds that are joined with it."""
    behind = x = op.inputs[op.get_attr(nodes.OPERAND)]
    while True:
        role = behind.op.node_def.attr.get(nodes.ROLE)
        if role is not None and role.s == b"joined":
            behind = x = behind.op.inputs[behind.op.get_attr(nodes.OPERAND)]
        elif behind.op.type in COPIES:
            behind = behind.op.inputs[0]
        else:
            return x


def _operand_of(op: tf.Operation) -> int:
    """Return which operand a function's argument is: what carries custom gradients takes the results in front of it."""
    return 1 if op.type == "IdentityN" else 0


def _for_operand(op: tf.Operation, g: tf.Tensor) -> list[tf.Tensor | None]:
    """Return the gradients of a node that only one of its operands leads to."""
    operand = op.get_attr(nodes.OPERAND)
    leaving: list[tf.Tensor | None] = [None] * len(op.inputs)
    leaving[operand] = _fitted(g, op.inputs[operand])
    return leaving


def _fitted(g: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Undo the broadcasting of x: sum what went to one value of it."""
    if x.shape.is_fully_defined() and g.shape.is_fully_defined() and x.shape == g.shape:
        return g
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=tf.shape(g))
    return tf.reshape(tf.reduce_sum(g, axes), tf.shape(x))


@tf.RegisterGradient(nodes.GRADIENT)  # type: ignore[untyped-decorator]
def _differentiate(op: tf.Operation, *gradients: tf.Tensor) -> list[tf.Tensor | None]:
    return _EDITOR.get().differentiate(op, gradients)
