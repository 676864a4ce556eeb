"""Which values of a program are never negative, by what makes them."""

import jax.numpy as jnp
import numpy as np

from guided_backprop.backends.jax.program import Value
from guided_backprop.backends.jax.relus import Facts
from guided_backprop.backends.operations import Kind

# Never below 0, whatever they are made of; and not below 0 if what they are made of is not.
_POSITIVE = frozenset("abs cosh exp exp2 logsumexp norm relu relu6 sigmoid softmax softplus".split())
_KEEPING = frozenset(
    """
    add avg_pool broadcast cast concatenate conv copy cumsum div expm1 flip gather log1p mark matmul max max_pool min
    minimum mul pad pow prod reshape rsqrt scatter slice sort split sqrt squeeze stack sum transpose where
    """.split()
)
#: What no value comes below the bound of.
BOUNDS_FROM_BELOW = frozenset({"maximum", "clamp"})
_DEEPEST = 40


def is_never_negative(value: Value, facts: Facts, depth: int = _DEEPEST) -> bool:
    """Tell whether no number of a value is below 0, by what makes it."""
    while value.outer is not None or value.stack is not None:
        value = value.outer or value.stack or value
    if not value.depends:
        known = facts.known(value)
        return known is not None and not (np.asarray(known) < 0).any()
    step = value.step
    if step is None or depth == 0:
        return False
    if step.relu is not None or value.gate is not None or step.exponent in (2.0, 4.0):
        return True
    if step.activation is not None or step.word in _POSITIVE:
        word = step.word if step.activation is None else step.activation.name
        return word in _POSITIVE or (word == "maximum" and step.kind is not Kind.CLIP)
    if step.word == "mul" and step.inputs[0] is step.inputs[1]:
        return True
    if step.word in BOUNDS_FROM_BELOW:
        return any(is_never_negative(each, facts, depth - 1) for each in step.inputs[:2])
    operands = step.inputs[1:] if step.word == "where" else step.inputs[:1] if step.word == "gather" else step.inputs
    operands = [each for each in operands if jnp.issubdtype(each.aval.dtype, jnp.floating)]
    return step.word in _KEEPING and all(is_never_negative(each, facts, depth - 1) for each in operands)
