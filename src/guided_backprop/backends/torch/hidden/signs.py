"""Which sign the numbers of a result have, by the operation of a watched forward pass that gave it."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any, Final

import torch
from torch.autograd.graph import Node

from guided_backprop.backends.guards import SUMS, Guards
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.signs import MAGNITUDES, Sign, sign_of, sign_of_numbers
from guided_backprop.backends.torch.graph.composites import Graph, Shifts
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.operations import OPERATIONS, row

# They go by the word of what they are like, and may give another sign.
_UNLIKE_THEIR_WORD: Final = frozenset(
    """
    addcdiv binary_cross_entropy_with_logits copysign grid_sampler2d grid_sampler2dcpu_fallback
    cudnn_grid_sampler grid_sampler3d index_reduce ldexp linalg_cross linalg_matrix_exp log_softmax_backward_data
    nll_loss nll_loss2d scatter_reduce segment_reduce softmax_backward_data std_mean unsafe_masked_index
    upsample_bicubic2d upsample_bicubic2daa upsample_lanczos2daa var_mean
    """.split()
)
_SQUARES: Final = frozenset({"mse_loss", "var"})
# Numbers among what they are given are values, and no sizes or places.
_OF_NUMBERS: Final = frozenset("add clamp div maximum minimum modulo mul pow rsub sub where".split())
# Up to here a number is next to 0.
_FLOOR: Final = 1e-4
# So many numbers are looked at first.
_SAMPLE: Final = 64
# The last thing that they are given may be such a number.
_LAST_IS_NUMBER: Final = frozenset({"constant_pad_nd", "fill", *OPERATIONS.called("scatter")})


def sign_of_result(
    name: str, args: Sequence[Any], named: Mapping[str, Any], tensors: Sequence[torch.Tensor], signs: Sequence[Sign]
) -> Sign:
    """Return the sign that all numbers of a result have by how it was made.

    Args:
        name: the operation.
        args: what it was called with.
        named: the same, by name.
        tensors: the tensors among ``args`` and ``named``, in their order.
        signs: their signs.
    """
    row = OPERATIONS[name]
    # What is turned is such as what is added times -1; a bound is one in its place alone.
    is_turned = any(_is_number(arg) and (arg < 0 or row.kind is Kind.CLIP) for arg in named.values())
    is_turned |= row.word in ("add", "sub", "rsub") and any(_is_number(arg) and arg < 0 for arg in args[2:])
    is_unlike = name in _UNLIKE_THEIR_WORD or row.word == "create"
    is_complex = row.word not in MAGNITUDES and any(tensor.is_complex() for tensor in tensors)
    if is_unlike or is_turned or is_complex:
        return Sign.UNKNOWN
    if name == "threshold":
        return Sign.NOT_NEGATIVE if min(_numbers(args)) >= 0 else Sign.UNKNOWN
    of = list(_made_of(name, args, tensors, signs))
    if name == "fill" or (name == "copy" and len(tensors) > 1):
        # Nothing is left of what is written over.
        of = of[1:]
    if row.word == "gather":
        of = of[:1]
    return sign_of(row, of, exponent_of(name, args), is_square=name == "mul" and _is_square(tensors))


def is_floor(name: str, args: Sequence[Any]) -> bool:
    """Tell whether an operation keeps numbers from being 0, as a cosine similarity does with its norms.

    What it leaves out of what is never negative lies between 0 and a number next to it: nothing is closed there.
    """
    if name != "clamp_min":
        return False
    floor = args[1]
    # PyTorch itself passes a tensor of one number.
    is_number = floor.ndim == 0 if isinstance(floor, torch.Tensor) else _is_number(floor)
    return is_number and bool(0 < floor <= _FLOOR)


def sign_of_tensor(tensor: torch.Tensor) -> Sign:
    """Return the sign of a tensor that does not depend on the images."""
    if tensor.numel() == 0:
        return Sign.ZERO
    if tensor.dtype == torch.bool:
        return Sign.NOT_NEGATIVE
    if tensor.is_complex() or tensor.layout is not torch.strided:
        return Sign.UNKNOWN
    known = tensor.detach()
    if _sample_has_both(known):
        # As of nearly all weights, most of which need not be looked at.
        return Sign.UNKNOWN
    low, high = known.aminmax()
    if bool(low.isnan()):
        # It stands for no number at all, and has any sign.
        low, high = known.nan_to_num(0.0).aminmax()
    return sign_of_numbers(float(low), float(high))


def _sample_has_both(tensor: torch.Tensor) -> bool:
    """Tell whether the first few of many numbers have both signs."""
    if tensor.numel() < _SAMPLE * _SAMPLE or not tensor.is_contiguous():
        return False
    sample = tensor.view(-1)[:_SAMPLE]
    return bool((sample < 0).any() and (sample > 0).any())


def _sign_of_number(number: float) -> Sign:
    return Sign.ZERO if isnan(number) else sign_of_numbers(number, number)


def _made_of(name: str, args: Sequence[Any], tensors: Sequence[torch.Tensor], signs: Sequence[Sign]) -> Iterator[Sign]:
    """Yield the signs of the numbers that a result is made of, in the order of the operation."""
    row = OPERATIONS[name]
    has_places = row.kind is Kind.MASKS or row.word == "max_pool"
    of_tensors = iter(zip(tensors, signs, strict=True))
    for number, leaf in enumerate(_flat(args)):
        if isinstance(leaf, torch.Tensor):
            tensor, sign = next(of_tensors)
            if not has_places or tensor.is_floating_point():
                yield sign
        elif row.word in _OF_NUMBERS and _is_number(leaf) and not (row.word == "rsub" and number > 1):
            yield _sign_of_number(leaf)
        elif row.word == "clamp" and leaf is None:
            # No lower bound is one below everything, no upper one above everything.
            yield Sign.NOT_POSITIVE if number == 1 else Sign.NOT_NEGATIVE
    if name in _LAST_IS_NUMBER and args and _is_number(args[-1]):
        yield _sign_of_number(args[-1])
    yield from (sign for _, sign in of_tensors)


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, (tuple, list)):
            yield from _flat(arg)
        else:
            yield arg


def exponent_of(name: str, args: Sequence[Any]) -> float | None:
    """Return the number that an operation raises a value to, where that is known."""
    if name in _SQUARES:
        return 2.0
    is_power = name == "pow" and len(args) > 1 and _is_number(args[1])
    return float(args[1]) if is_power else None


def _is_square(tensors: Sequence[torch.Tensor]) -> bool:
    return len(tensors) == 2 and tensors[0] is tensors[1]


def _numbers(args: Sequence[Any]) -> list[float]:
    return [float(arg) for arg in args if _is_number(arg)]


def _is_number(arg: Any) -> bool:
    return isinstance(arg, (int, float)) and not isinstance(arg, bool)


class _Every(set[Node]):
    """All nodes in front of a value while the model runs, but for weights."""

    def __contains__(self, node: object) -> bool:
        return isinstance(node, Node) and node.name() != "torch::autograd::AccumulateGrad"


def sign_of_squares(node: Node, shifts: Shifts) -> Sign:
    """Return the sign that the result of a node has as a variance or a distance, given the numbers that were added."""
    if row(node).word not in SUMS:
        return Sign.UNKNOWN
    graph = Graph(Path([], _Every(), [], [], [], {}))
    graph.shifts = shifts
    return Guards(graph).sign(node)
