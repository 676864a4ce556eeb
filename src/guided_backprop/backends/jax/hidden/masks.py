"""What must not pass unseen: parts that hide what they do, and random ones."""

import jax.numpy as jnp

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.jax.graph.program import REBUILT, Block, Step, Value
from guided_backprop.backends.jax.graph.relus import custom_name, place_of
from guided_backprop.backends.operations import Kind

# These show what they compute; only what their derivative is, is their own.
_SHOWN = frozenset({"custom_function", "inv"})

# What noise is put on values with.
_NOISY = frozenset({"add", "div", "maximum", "minimum", "mul", "pow", "sub", "where"})
# What draws by a key: the others make keys of keys.
_DRAWS = frozenset({"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"})


class Audit:
    """Walks through a program once, and collects what is found.

    Attributes:
        opaque: names of operations and custom functions that hide what they compute.
        random: where random numbers meet what the gradient comes through.
    """

    def __init__(self, vouch: Vouch) -> None:
        self.opaque: set[str] = set()
        self.random: set[str] = set()
        self._vouch = vouch
        self._drawn: set[Value] = set()
        # Those of them that are integers, a mask, or made of these.
        self._counted: set[Value] = set()

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
        """Follow random numbers to where they meet what the gradient comes through.

        Weights that are drawn inside of the model are no integers and no mask, meet it in a matrix product, or are
        repeated for each image. A key that is made of the images is no chance.
        """
        drawn = [value for value in step.inputs if value in self._drawn]
        is_draw = step.name in _DRAWS and not step.inputs[0].depends
        if is_draw or (drawn and step.kind is not Kind.RANDOM and not step.is_on_path):
            counted = step.name != "bitcast_convert_type" and any(value in self._counted for value in drawn)
            self._counted.update(value for value in step.outputs if counted or _is_discrete(value))
            self._drawn.update(value for value in step.outputs if value in self._counted or not _repeats(step))
        elif step.is_on_path and any(self._is_met(value, step) for value in drawn):
            self.random.add(place_of(step))

    def _is_met(self, value: Value, step: Step) -> bool:
        is_own = value in self._counted or _is_alike(value, step.outputs[0])
        return value.depends or _is_discrete(value) or (is_own and step.word in _NOISY)


def _is_discrete(value: Value) -> bool:
    return not jnp.issubdtype(value.aval.dtype, jnp.inexact)


def _repeats(step: Step) -> bool:
    """Tell whether a step gives an array more axes, or repeats it: noise is drawn for each value."""
    return step.word in ("broadcast", "reshape") and step.inputs[0].aval.shape != step.outputs[0].aval.shape


def _is_alike(one: Value, other: Value) -> bool:
    return bool(one.aval.shape) and one.aval.shape == other.aval.shape


def has_relu(block: Block) -> bool:
    """Tell whether a ReLU is in a block or in a block inside of it."""
    return any(step.relu is not None or any(map(has_relu, step.blocks)) for step in block.steps)
