"""What weights of a traced function are, where it tells: constants in the graph, and what the function captured."""

from collections.abc import Mapping, Sequence
from functools import cache
from math import inf, isnan, prod
from typing import Final

import numpy as np
import tensorflow as tf

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.curves import is_partly_relu
from guided_backprop.backends.patterns import Slopes
from guided_backprop.backends.tensorflow.graph.nodes import FLOATS, Graph, attribute, operand_refs, producer, word_of

# There are zeros in what these make where there were some before, and only there.
_KEEPS_ZEROS: Final = frozenset(
    """
    broadcast cast concatenate div flip identity identity_n mul neg reshape slice split stack stop_gradient transpose
    """.split()
)
# None is made by this of any finite number, as in what a batch-norm multiplies by.
_NEVER_ZERO: Final = "rsqrt"


#: Between which magnitudes numbers lie.
Sizes = tuple[float, float]


class Weights:
    """Tells of constants whether there are zeros in them.

    Args:
        captured: what the outermost function captured, by the names of its arguments.
    """

    def __init__(self, captured: Mapping[str, tf.Tensor]) -> None:
        self._captured = captured
        self.may_have_zeros = cache(self._may_have_zeros)

    def _may_have_zeros(self, graph: Graph, ref: str, *, is_outermost: bool) -> bool:
        """Tell whether some of a constant's numbers may be 0: weights tell, and what a loop is given has none."""
        stack, seen = [ref], set[str]()
        while stack:
            ref = stack.pop()
            name, constant = producer(ref), graph.constant(ref)
            node = graph.nodes.get(name)
            if name in seen:
                continue
            seen.add(name)
            if constant is not None and not isnan(constant):
                has_zeros = constant == 0
            elif node is None or node.op == "ReadVariableOp":
                has_zeros = is_outermost and self._has_zeros(name if node is None else producer(operand_refs(node)[0]))
            elif word_of(node) == _NEVER_ZERO:
                has_zeros = False
            elif node.op == "Const":
                has_zeros = not np.all(tf.make_ndarray(attribute(node, "value").tensor))
            else:
                has_zeros = word_of(node) not in _KEEPS_ZEROS
                stack += [operand for operand in operand_refs(node) if graph.kind_of(operand) in FLOATS]
            if has_zeros:
                return True
        return False

    def is_partly_relu(self, graph: Graph, slopes: Slopes[str], *, is_outermost: bool) -> bool | None:
        """Tell whether some slopes of a PReLU are as 0, also by a product of small ones; None if nobody knows."""
        found = self._sizes(graph, slopes.array, is_outermost=is_outermost)
        return None if found is None else is_partly_relu(np.asarray(found), slopes.factor)

    def _sizes(self, graph: Graph, ref: str, *, is_outermost: bool) -> Sizes | None:
        """Return between which magnitudes a constant lies; what a loop is given is of size 1."""
        name, constant = producer(ref), graph.constant(ref)
        node = graph.nodes.get(name)
        if constant is not None and not isnan(constant):
            return abs(constant), abs(constant)
        if node is None or node.op == "ReadVariableOp":
            array = (
                self._array(name if node is None else producer(operand_refs(node)[0])) if is_outermost else np.ones(1)
            )
            return None if array is None else _sizes_of(array)
        if node.op == "Const":
            return _sizes_of(tf.make_ndarray(attribute(node, "value").tensor))
        if word_of(node) not in _KEEPS_ZEROS:
            return None
        floats = [operand for operand in operand_refs(node) if graph.kind_of(operand) in FLOATS]
        return _made_of(word_of(node), [self._sizes(graph, operand, is_outermost=is_outermost) for operand in floats])

    def array(self, graph: Graph, ref: str, *, is_outermost: bool) -> NumpyArray | None:
        """Return a constant that is held as it is, of several numbers or truths; None if nobody knows it."""
        name = producer(ref)
        node = graph.nodes.get(name)
        if node is None or node.op == "ReadVariableOp":
            array = self._held(name if node is None else producer(operand_refs(node)[0])) if is_outermost else None
        else:
            array = tf.make_ndarray(attribute(node, "value").tensor) if node.op == "Const" else None
        return array if array is not None and array.size > 1 and array.dtype.kind in "fiub" else None

    def _has_zeros(self, name: str) -> bool:
        array = self._array(name)
        return array is not None and not np.all(array)

    def _array(self, name: str) -> NumpyArray | None:
        array = self._held(name)
        # bfloat16 is no number to NumPy.
        return array if array is not None and array.dtype.kind not in "biu" else None

    def _held(self, name: str) -> NumpyArray | None:
        tensor = self._captured.get(name)
        if tensor is None or not hasattr(tensor, "numpy"):
            return None
        if tensor.dtype == tf.resource:
            # The handle knows what lies behind it.
            kinds = [] if tensor._handle_data is None else tensor._handle_data.shape_and_type
            tensor = tf.raw_ops.ReadVariableOp(resource=tensor, dtype=kinds[0].dtype) if len(kinds) == 1 else None
        is_number = tensor is not None and (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool)
        return np.asarray(tensor.numpy()) if tensor is not None and is_number else None


def _sizes_of(array: NumpyArray) -> Sizes | None:
    sizes = np.abs(array.astype(np.float64))
    return (float(sizes.min()), float(sizes.max())) if sizes.size else None


def _made_of(word: str, operands: Sequence[Sizes | None]) -> Sizes | None:
    """Return between which magnitudes lies what is made of operands, none of which is known of what is no float."""
    known = [operand for operand in operands if operand is not None]
    if not known or len(known) < len(operands):
        return None
    if word == "div":
        low, high = known[-1]
        known[-1] = (1 / high if high else inf, 1 / low if low else inf)
    lows, highs = zip(*known, strict=True)
    return (prod(lows), prod(highs)) if word in ("div", "mul") else (min(lows), max(highs))
