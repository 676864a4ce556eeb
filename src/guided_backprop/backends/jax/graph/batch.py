"""Whether a program takes a batch for one image: its first convolution tells."""

from guided_backprop.backends.jax.graph.program import Block, Step, Value
from guided_backprop.backends.operations import Kind


def takes_for_one_image(block: Block) -> bool:
    """Tell whether a convolution takes the images, each at its place along one axis, for parts of one image.

    It puts an axis in front of them then, as Flax's layers do. Beyond the first convolution nothing is looked for; one
    that has as many groups as channels, or is as wide as one image, does to each alike, and mixes no images.
    """
    axes = {value: (0, value.aval.shape[0]) for value in block.inputs if value.carries}
    for step in block.steps:
        followed = [value for value in step.inputs if value in axes]
        if not (followed and step.outputs):
            continue
        x, y, (axis, count) = followed[0], step.outputs[0], axes[followed[0]]
        if step.word == "conv":
            if x is step.inputs[0] and _mixes(step, axis, count):
                return True
            continue
        moved = _moved(step, x, axis)
        if y.carries and moved is not None and y.aval.shape[moved : moved + 1] == (count,):
            axes[y] = moved, count
    return False


def _mixes(step: Step, axis: int, count: int) -> bool:
    x, kernel = (value.aval.shape for value in step.inputs)
    sides, params = step.eqn.params["dimension_numbers"], step.eqn.params
    batch, feature = sides.lhs_spec[:2]
    if axis == batch or x[batch] != 1:
        return False
    if axis == feature:
        return count == 1 or bool(params["feature_group_count"] != count)
    return bool(kernel[sides.rhs_spec[sides.lhs_spec.index(axis)]] > 1)


def _moved(step: Step, x: Value, axis: int) -> int | None:
    """Return where a step puts an axis; None if that is not known."""
    before, after = x.aval.shape, step.outputs[0].aval.shape
    if step.name == "transpose":
        return int(step.eqn.params["permutation"].index(axis))
    if step.name == "broadcast_in_dim":
        return int(step.eqn.params["broadcast_dimensions"][axis])
    if after == (1, *before):
        # Of one image nothing tells which axis is new: the one behind it, as of a channel.
        return axis + int(before[axis] > 1)
    if before == (1, *after):
        return max(axis - 1, 0)
    return axis if len(before) == len(after) and (step.kind is not Kind.LINEAR or before == after) else None
