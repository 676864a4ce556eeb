"""Counts the non-linearities between score and images, under the names that the other backends use."""

from collections import Counter

from guided_backprop.backends.jax.heads import activation_of
from guided_backprop.backends.jax.program import CUSTOM, Block, Step, Value
from guided_backprop.backends.jax.relus import Facts, custom_name
from guided_backprop.rules import ReluRule

_NAMES = {name: name for name in "abs atan2 clamp cos erf erfc exp exp2 expm1 log log1p pow".split()}
_NAMES |= {name: name for name in "rsqrt sin sqrt tan tanh".split()}
_NAMES |= {"cummax": "max", "integer_pow": "pow", "logistic": "sigmoid", "max": "maximum", "min": "minimum"}
_NAMES |= {"reduce_max": "amax", "reduce_min": "amin", "reduce_window_max": "max_pool", "square": "pow"}
_NAMES |= {"sort": "max", "top_k": "max"}

Counts = Counter[tuple[str, str]]


def count(block: Block, facts: Facts, rule: ReluRule) -> Counts:
    """Return how often each non-linearity on the path is met in one forward pass, and what is done with it."""
    counts: Counts = Counter()
    parts: set[Step] = set()
    for step in reversed(block.steps):
        if not step.is_on_path or step.is_inside or step.is_part or step in parts:
            continue
        if step.relu is not None:
            if not step.relu.is_half:
                counts[step.relu.name, rule.name] += 1
            continue
        if step.activation is not None:
            counts[step.activation, rule.treatment(step.activation)] += 1
            continue
        if step.blocks and step.name not in CUSTOM:
            counts.update(_inside(step, facts, rule))
            continue
        found = activation_of(step.outputs[0], facts)
        if found is not None:
            counts[found[0], "plain"] += 1
            parts |= _between(step, found[1])
        elif step.composite is not None:
            counts[step.composite, "plain"] += 1
        elif step.name in CUSTOM:
            counts[custom_name(step), "plain"] += 1
        elif step.name in _NAMES:
            counts[_NAMES[step.name], "plain"] += 1
    return counts


def _inside(step: Step, facts: Facts, rule: ReluRule) -> Counts:
    """Count in a loop as often as it turns; of the branches only one is taken."""
    counted = [count(block, facts, rule) for block in step.blocks]
    largest: Counts = Counter()
    for counts in counted:
        largest |= counts
    turns = step.eqn.params["length"] if step.name == "scan" else 1
    return Counter({key: number * turns for key, number in largest.items()})


def _between(last: Step, first: Value) -> set[Step]:
    """Return the steps that lead from ``first`` to ``last``; none if something else leads there as well."""
    found: set[Step] = set()
    stack = [last]
    while stack:
        for value in stack.pop().inputs:
            if value is first or not value.depends:
                continue
            if value.step is None:
                return set()
            if value.step not in found:
                found.add(value.step)
                stack.append(value.step)
    return found
