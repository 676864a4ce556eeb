"""Finds the softmax or sigmoid that a traced model ends in, and the softmaxes inside of it.

JAX has no operation of that name: a softmax is exp, a sum and a division. Only the exact pattern counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from guided_backprop.backends.jax.program import Step, Value
from guided_backprop.backends.jax.relus import Facts

_MOVES = {"broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze", "transpose"}


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


def head_of(output: Value, facts: Facts) -> Head | None:
    """Return the head that makes ``output``, or None."""
    moves: list[Step] = []
    value = output
    while value.step is not None and value.step.name in _MOVES and _keeps_size(value.step):
        moves.append(value.step)
        value = value.step.inputs[0]
    found = activation_of(value, facts)
    if found is None or not found[1].carries:
        return None
    return Head(found[0], found[1], value, tuple(reversed(moves)))


def activation_of(value: Value, facts: Facts) -> tuple[str, Value] | None:
    """Return the name and the input of the softmax or sigmoid that makes ``value``, or None."""
    step = value.step
    if step is None:
        return None
    if step.name == "logistic":
        return "sigmoid", step.inputs[0]
    if step.composite == "log_sigmoid":
        return "log_sigmoid", step.inputs[0]
    if step.name == "custom_jvp_call" and step.blocks and len(step.inputs) == 1:
        block = step.blocks[0]
        inner = activation_of(block.outputs[0], facts)
        return (inner[0], step.inputs[0]) if inner is not None and inner[1] is block.inputs[0] else None
    if step.name == "div":
        return _softmax(*step.inputs)
    if step.name == "sub":
        return _log_softmax(*step.inputs)
    return None


def _softmax(numerator: Value, denominator: Value) -> tuple[str, Value] | None:
    powers, summed = _made_by(numerator, "exp"), _made_by(_unmoved(denominator), "reduce_sum")
    summands = None if summed is None else _made_by(summed.inputs[0], "exp")
    if powers is None or summands is None or summands.inputs[0] is not powers.inputs[0]:
        return None
    return "softmax", _unshifted(powers.inputs[0])


def _log_softmax(shifted: Value, normaliser: Value) -> tuple[str, Value] | None:
    for logarithm in _terms(_unmoved(normaliser)):
        step = _made_by(_unmoved(logarithm), "log")
        summed = None if step is None else _made_by(_unmoved(step.inputs[0], ("abs",)), "reduce_sum")
        powers = None if summed is None else _made_by(summed.inputs[0], "exp")
        if powers is None:
            continue
        inside, logits = powers.inputs[0], _unshifted(shifted)
        is_whole = inside is shifted and _unmoved(normaliser) is _unmoved(logarithm)
        # logits - (log(sum(exp(logits - largest))) + largest)
        is_split = _unshifted(inside) is shifted and _unmoved(normaliser) is not _unmoved(logarithm)
        if is_whole or is_split:
            return "log_softmax", logits if is_whole else shifted
    return None


def _terms(value: Value) -> Iterator[Value]:
    yield value
    if value.step is not None and value.step.name == "add":
        yield from value.step.inputs


def _unshifted(value: Value) -> Value:
    """Return x of ``x - max(x)``, or ``value`` itself."""
    step = _made_by(value, "sub")
    if step is None:
        return value
    largest = _unmoved(step.inputs[1], ("stop_gradient", "max", "select_n"))
    source = _made_by(largest, "reduce_max")
    return step.inputs[0] if source is not None and source.inputs[0] is step.inputs[0] else value


def _made_by(value: Value, name: str) -> Step | None:
    return value.step if value.step is not None and value.step.name == name else None


def _unmoved(value: Value, also: tuple[str, ...] = ()) -> Value:
    while value.step is not None and value.step.name in {*_MOVES, *also}:
        operands = [each for each in value.step.inputs if each.depends]
        if not operands:
            break
        value = operands[-1]
    return value


def _keeps_size(step: Step) -> bool:
    before, after = step.inputs[0].aval.shape, step.outputs[0].aval.shape
    return sorted(each for each in before if each != 1) == sorted(each for each in after if each != 1) or (
        step.name == "reshape"
    )
