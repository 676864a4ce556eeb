"""Finds the smooth activations of a traced model: those of jax.nn, and those that are written out."""

from collections.abc import Sequence
from dataclasses import replace

from guided_backprop.backends.jax.program import Program, Value
from guided_backprop.backends.smooth import activation_of
from guided_backprop.rules import SMOOTH


def mark_smooth(program: Program) -> None:
    """Note the name of each smooth activation on the step that it ends with."""
    for step in program.steps():
        if not step.is_on_path:
            continue
        if step.composite in SMOOTH:
            step.activation = step.composite
        elif step.name in ("max", "mul") and all(value.carries for value in step.inputs):
            found = activation_of({"max": "maximum"}.get(step.name, step.name), step.inputs, _made)
            if found is not None:
                step.activation = found[0]
                for value in found[1]:
                    if value.step is not None:
                        value.step.is_part, value.step.activation = True, None


def _made(value: Value) -> tuple[str, Sequence[Value]] | None:
    if value.step is None:
        return None
    return value.step.composite or value.step.name, [each for each in value.step.inputs if each.depends]


def mark_prelus(program: Program) -> None:
    """Find each PReLU as Keras writes it, ``relu(x) + (-slope) * relu(-x)``: that is one activation."""
    for step in program.steps():
        if step.name != "add":
            continue
        first, scaled = (value.step for value in step.inputs)
        if first is None or scaled is None or scaled.name != "mul":
            continue
        halves = [value.step for value in scaled.inputs if value.depends]
        second = halves[0] if len(halves) == 1 else None
        if second is None or first.relu is None or second.relu is None:
            continue
        negation = second.inputs[second.relu.operand].step
        is_mirror = negation is not None and negation.name == "neg"
        if not is_mirror or negation.inputs[0] is not first.inputs[first.relu.operand]:
            continue
        if len(first.outputs[0].uses) == len(second.outputs[0].uses) == 1:
            first.relu, second.relu = replace(first.relu, is_half=True), replace(second.relu, is_half=True)
            step.activation = "prelu"
