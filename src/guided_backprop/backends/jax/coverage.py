"""Counts the non-linearities between score and images, under the names that the other backends use."""

from collections import Counter

from guided_backprop.backends.jax.graph.program import Block, Step
from guided_backprop.backends.jax.graph.relus import custom_name
from guided_backprop.backends.operations import LISTED, Kind
from guided_backprop.rules import PLAIN, ReluRule

Counts = Counter[tuple[str, str]]


def count(block: Block, rule: ReluRule) -> Counts:
    """Return how often each non-linearity on the path is met in one forward pass, and what is done with it."""
    counts: Counts = Counter()
    for step in block.steps:
        if not step.is_on_path or step.is_inside or step.is_part:
            continue
        counts["relu", rule.name] += sum(value.gate is not None for value in step.outputs)
        if step.relu is not None:
            counts[step.relu.name, rule.name] += 1
        elif step.activation is not None:
            counts[step.activation.name, rule.treatment(step.activation.name)] += 1
        elif step.kind is Kind.HOLDS:
            counts.update(_inside(step, rule))
        elif (name := _listed_as(step)) is not None:
            counts[name, PLAIN.name] += 1
    return +counts


def _listed_as(step: Step) -> str | None:
    """Return the name of a non-linearity; None for an operation that is none."""
    if step.kind not in LISTED and step.word != "div":
        return None
    if step.word in ("custom_function", ""):
        return custom_name(step)
    # A quotient is linear in what is divided, a solution in its right side: not so in the divisor or the matrix.
    curved = {"div": step.inputs[1:], "inv": step.inputs[:1]}.get(step.word, step.inputs)
    if not any(value.depends for value in curved):
        return None
    # A number to the power of x.
    return "exp" if step.word == "pow" and not step.inputs[0].depends else step.word


def _inside(step: Step, rule: ReluRule) -> Counts:
    """Count in a loop as often as it turns; of the branches only one is taken."""
    counted = [count(block, rule) for block in step.blocks]
    largest: Counts = Counter()
    for counts in counted:
        largest |= counts
    turns = step.eqn.params["length"] if step.word == "scan" else 1
    return Counter({key: number * turns for key, number in largest.items()})
