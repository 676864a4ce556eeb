"""What must not pass unseen: parts that hide what they do, and random masks."""

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.graph.program import REBUILT, Block, Step, Value
from guided_backprop.backends.jax.graph.relus import custom_name
from guided_backprop.backends.operations import Kind

# These show what they compute; only what their derivative is, is their own.
_SHOWN = frozenset({"custom_function", "inv"})

_COMPARISONS = frozenset({"greater", "greater_equal", "less", "less_equal"})
_MASKED = frozenset({"where", "mul", "div"})
# What noise is put on values with.
_NOISY = frozenset({"add", "div", "mul", "sub"})


class Audit:
    """Walks through a program once, and collects what is found.

    Attributes:
        opaque: names of operations and custom functions that hide what they compute.
        has_random_mask: whether values are dropped at random.
    """

    def __init__(self, vouch: Vouch) -> None:
        self.opaque: set[str] = set()
        self.has_random_mask = False
        self._vouch = vouch
        self._random: set[Value] = set()
        self._random_masks: set[Value] = set()

    def visit(self, block: Block) -> None:
        """Look at every step of a block, in the order in which they run."""
        for step in block.steps:
            self._follow_random(step)
            if not any(value.depends for value in step.inputs):
                continue
            if self._is_opaque(step):
                self.opaque.add(custom_name(step))
            if step.jitted is None:
                self._visit_blocks(step)

    def _is_opaque(self, step: Step) -> bool:
        """Tell whether nothing is known of an operation, or of what it holds; custom functions show what they do."""
        if step.word == "reference":
            # What is written to an array is read by another operation, which no trace connects with this one.
            return any(value.carries for value in step.inputs)
        is_hidden = step.kind is Kind.UNKNOWN or (step.kind is Kind.HIDDEN and step.word not in _SHOWN)
        return is_hidden and step.is_on_path and step.relu is None

    def _visit_blocks(self, step: Step) -> None:
        if step.name in REBUILT:
            for block in step.blocks:
                self.visit(block)
            return
        name = custom_name(step)
        if not step.is_on_path or step.is_known or name in self._vouch:
            return
        inside = Audit(self._vouch)
        for block in step.blocks:
            inside.visit(block)
            if has_relu(block):
                self.opaque.add(name)
        self.opaque |= inside.opaque

    def _follow_random(self, step: Step) -> None:
        """Follow random numbers to a mask, and to where they, or the mask, meet a value of the images.

        Weights that are drawn inside of the model meet it in a matrix product, or are repeated for each image.
        """
        if step.kind is Kind.RANDOM or (any(v in self._random for v in step.inputs) and not _repeats(step)):
            self._random.update(step.outputs)
        is_mask = any(value in self._random_masks for value in step.inputs)
        if is_mask and step.is_on_path and step.word in _MASKED:
            self.has_random_mask = True
        is_own = any(v in self._random and not v.depends and _is_alike(v, step.outputs[0]) for v in step.inputs)
        if is_own and step.is_on_path and step.word in _NOISY:
            self.has_random_mask = True
        is_new = step.word in _COMPARISONS and any(value in self._random for value in step.inputs)
        if is_new or (is_mask and (step.word in _MASKED or step.kind in (Kind.MOVES, Kind.COMPARES))):
            self._random_masks.update(step.outputs)


def _repeats(step: Step) -> bool:
    """Tell whether a step gives an array more axes, or repeats it: noise is drawn for each value."""
    return step.word in ("broadcast", "reshape") and not _is_alike(step.inputs[0], step.outputs[0])


def _is_alike(one: Value, other: Value) -> bool:
    return bool(one.aval.shape) and one.aval.shape == other.aval.shape


def has_relu(block: Block) -> bool:
    """Tell whether a ReLU is in a block or in a block inside of it."""
    return any(step.relu is not None or any(map(has_relu, step.blocks)) for step in block.steps)
