"""Finds the softmax or sigmoid that a traced model ends in."""

from collections import Counter
from dataclasses import dataclass

from guided_backprop.backends.jax.graph.program import Step, Value

_HEADS = frozenset({"log_sigmoid", "log_softmax", "sigmoid", "softmax"})
_MOVES = frozenset("broadcast cast copy reshape squeeze transpose".split())


@dataclass(frozen=True)
class Head:
    """The final softmax or sigmoid.

    Attributes:
        name: "softmax", "log_softmax", "sigmoid" or "log_sigmoid".
        logits: what goes in.
        result: what comes out.
        moves: the steps behind it, which only move or cast values; the first comes first.
    """

    name: str
    logits: Value
    result: Value
    moves: tuple[Step, ...]


def head_of(output: Value) -> Head | None:
    """Return the head that makes ``output``, or None."""
    moves: list[Step] = []
    value = output
    while value.step is not None and value.step.word in _MOVES and _keeps_size(value.step):
        moves.append(value.step)
        value = value.step.inputs[0]
    activation = None if value.step is None else value.step.activation
    if activation is None or activation.name not in _HEADS or not activation.x.carries:
        return None
    return Head(activation.name, activation.x, value, tuple(reversed(moves)))


def _keeps_size(step: Step) -> bool:
    # Counted, and not sorted: of sizes that are free none is known to be the larger one.
    before, after = (Counter(size for size in one.aval.shape if size != 1) for one in (step.inputs[0], step.outputs[0]))
    return before == after or step.word == "reshape"
