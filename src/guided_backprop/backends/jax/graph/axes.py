"""Where the axes of what a step of a program is given go, and where its windows see nothing."""

from collections.abc import Sequence
from math import prod
from typing import Final

from guided_backprop.backends.axes import Axes, pointwise, reduced, reshaped
from guided_backprop.backends.empty import NOTHING, Empty, Window, emptied
from guided_backprop.backends.jax.graph.program import Step

# Value by value, as far as second moments are made with them.
_POINTWISE: Final = frozenset("add cast copy div mark mul neg pow stop_gradient sub where".split())
_RESHAPES: Final = frozenset({"expand_dims", "reshape", "squeeze"})


def axes_of(step: Step) -> Axes | None:
    """Return where the axes of what a step is given go; None if nobody says so here."""
    shapes = [value.aval.shape for value in step.inputs]
    if any(not isinstance(size, int) for shape in (*shapes, step.outputs[0].aval.shape) for size in shape):
        return None
    axes = _axes_of(step, shapes)
    # Where there is one number along an axis it is nowhere else.
    return axes and axes.without_ones(shapes)


def _axes_of(step: Step, shapes: Sequence[Sequence[int]]) -> Axes | None:
    params, shape = step.eqn.params, step.outputs[0].aval.shape
    rank = len(shapes[0])
    match step.name:
        case "reduce_sum":
            return reduced(rank, params["axes"], shapes[0], is_kept=False)
        case "reduce_window_sum":
            windows = tuple(sorted((name, str(how)) for name, how in params.items()))
            return Axes([range(-rank, 0)], [prod(params["window_dimensions"])], windows)
        case "broadcast_in_dim":
            return Axes([[axis - len(shape) for axis in params["broadcast_dimensions"]], *([] for _ in shapes[1:])])
        case "transpose":
            return Axes([[params["permutation"].index(axis) - rank for axis in range(rank)]])
        case "dot_general":
            return _of_product(params["dimension_numbers"], shapes)
        case name if name in _RESHAPES:
            return reshaped(shapes[0], shape)
    return pointwise([len(each) for each in shapes]) if step.word in _POINTWISE else None


def _of_product(numbers: tuple[Sequence[Sequence[int]], ...], shapes: Sequence[Sequence[int]]) -> Axes:
    """Return where axes go in a product: the batch stands in front, then what is left of either operand."""
    contracted, batch = numbers
    left = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *front)]
        for shape, summed, front in zip(shapes, contracted, batch, strict=True)
    ]
    rank = len(batch[0]) + len(left[0]) + len(left[1])
    operands = []
    for side, shape in enumerate(shapes):
        begin = len(batch[0]) + (len(left[0]) if side else 0) - rank
        to = {axis: place - rank for place, axis in enumerate(batch[side])}
        to |= {axis: begin + place for place, axis in enumerate(left[side])}
        to |= {axis: number for number, axis in enumerate(contracted[side])}
        operands.append([to[axis] for axis in range(len(shape))])
    return Axes(operands, [shapes[0][axis] for axis in contracted[0]])


def emptied_by(step: Step) -> Empty:
    """Return where a step leaves zeros between or around values, as a transposed convolution does."""
    if step.name not in ("conv_general_dilated", "reduce_window_sum"):
        return NOTHING
    params, sizes, counts = step.eqn.params, step.inputs[0].aval.shape, step.outputs[0].aval.shape
    if step.name == "reduce_window_sum":
        lengths, between, spread = (params[name] for name in ("window_dimensions", "base_dilation", "window_dilation"))
    else:
        x, weights, y = (numbers[2:] for numbers in params["dimension_numbers"])
        between, spread = params["lhs_dilation"], params["rhs_dilation"]
        sizes, counts = [sizes[axis] for axis in x], [counts[axis] for axis in y]
        lengths = [step.inputs[1].aval.shape[axis] for axis in weights]
    lows = [low for low, _ in params["padding"]]
    told = zip(sizes, counts, lengths, params["window_strides"], lows, spread, between, strict=True)
    return emptied(Window(*one) for one in told if all(isinstance(number, int) for number in one))


def interleaved(step: Step) -> list[Step]:
    """Return the pads that a sum is one of which put values beside each other, if what they pad with is 0."""
    pads = [value.step for value in step.inputs if value.step is not None and value.step.word == "pad"]
    return pads if step.word == "add" and len(pads) > 1 and _fill(*map(_places, pads)) else []


def _places(pad: Step) -> list[set[int]]:
    """Return for each axis where what is padded lies afterwards."""
    sizes = zip(pad.inputs[0].aval.shape, pad.outputs[0].aval.shape, pad.eqn.params["padding_config"], strict=True)
    return [
        {low + place * (1 + between) for place in range(size)} & {*range(whole)}
        for size, whole, (low, _, between) in sizes
    ]


def _fill(one: list[set[int]], other: list[set[int]]) -> bool:
    """Tell whether two values fill all places of one axis, each its own, and all others alike."""
    axes = [axis for axis, (mine, others) in enumerate(zip(one, other, strict=True)) if mine != others]
    if len(axes) != 1 or any(mine != {*range(len(mine))} for axis, mine in enumerate(one) if axis not in axes):
        return False
    mine, others = one[axes[0]], other[axes[0]]
    return not mine & others and mine | others == {*range(len(mine) + len(others))}
