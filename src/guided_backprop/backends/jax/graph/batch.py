"""Whether a program may take a batch for one image: its convolutions tell."""

from collections.abc import Sequence

from guided_backprop.backends.again import looks_unbatched
from guided_backprop.backends.jax.graph.program import Program, Step


def may_take_for_one_image(program: Program, shape: Sequence[int]) -> bool:
    """Tell whether images of a shape may be one image to a convolution."""
    return any(step.word == "conv" and looks_unbatched(shape, _taken(step)) for step in program.steps())


def _taken(step: Step) -> list[int]:
    """Return the shape of what a convolution takes, its batch in front."""
    x = step.inputs[0]
    order = step.eqn.params["dimension_numbers"].lhs_spec
    return [x.aval.shape[axis] for axis in order] if x.carries else []
