"""Sums of a value and of ReLUs of it that are written, in the outermost function of a graph: ``x + relu(-x)``."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import is_plain
from guided_backprop.backends.sums import FAR, Join, Sums, is_alike, is_linear, judge_sum, toward
from guided_backprop.backends.tensorflow.graph.nodes import (
    FLOATS,
    HIGH,
    LOW,
    OPERAND,
    attribute,
    operand_refs,
    producer,
    word_of,
)
from guided_backprop.backends.tensorflow.graph.operations import OPERATIONS
from guided_backprop.backends.tensorflow.hidden.original import Import, Original
from guided_backprop.backends.tensorflow.hidden.taint import Taint
from guided_backprop.backends.tensorflow.hidden.traces import Body, Place, called


@dataclass(frozen=True)
class Joined:
    """Sums of a value and of ReLUs of it, and what else is added up in them.

    Attributes:
        join: the sums.
        others: what else depends on the images.
        places: those of the sums that something else is made of: where one is a ReLU, it is refused by these names.
    """

    join: Join[str]
    others: Sequence[str]
    places: Mapping[str, Place]


class GraphSums(Sums[str]):
    """What is linear in a function whose ReLUs are marked.

    Args:
        taint: what is known of its values.
        vouch: what is excused.
    """

    def __init__(self, taint: Taint, vouch: Vouch) -> None:
        super().__init__()
        self._taint, self._body, self._vouch = taint, taint.body, vouch
        self._graph = self._body.graph
        self.found: Collection[str] = ()
        self.relus = dict(_relus(self._body))

    def terms_of(self, value: str) -> Sequence[str]:
        node = self._graph.node(value)
        if node is None or self._graph.role(node) or self._is_vouched(node):
            return ()
        if OPERATIONS[node.op].kind is Kind.MASKS and "Grad" in node.op:
            # By the word of what it is like, and a derivative by another value.
            return ()
        refs = operand_refs(node)
        places = [place for place, ref in enumerate(refs) if self._body.trace(ref).note is not None]
        depending = [refs[place] for place in places]
        is_sum = is_linear(OPERATIONS[node.op], places)
        return depending if is_sum and all(map(self._is_active, [value, *depending])) else ()

    def is_alike(self, value: str) -> bool:
        node = self._graph.node(value)
        return node is not None and is_alike(OPERATIONS[node.op])

    def users(self, value: str) -> Sequence[str]:
        users = self._graph.consumers.get(producer(value), [])
        return [ref for user in users if value in operand_refs(user) for ref in self._graph.outputs_of(user)]

    def is_result(self, value: str) -> bool:
        return value in self._graph.definition.ret.values()

    def joined(self) -> Iterator[Joined]:
        """Yield the sums that a gradient comes to."""
        for join in self.joins():
            places = {ref: place for ref in join.ends if (place := self._place(ref)) is not None}
            inside = [value for value in join.region if value not in join.roots and value not in join.relus]
            others = {term: None for value in inside for term in self.terms(value) if term not in join.region}
            if places:
                yield Joined(join, list(others), places)

    def _place(self, ref: str) -> Place | None:
        node = self._graph.node(ref)
        if node is None or not self._taint.leads("", node.name):
            return None
        return Place(called(self._body, node), word_of(node), "", ref, (), is_explicit=False)

    def _is_vouched(self, node: NodeDef) -> bool:
        names = (word_of(node), called(self._body, node)) if self._vouch else ()
        return any(is_plain(name, self._vouch, "tf.nn.relu") for name in names)

    def _is_active(self, ref: str) -> bool:
        return self._body.trace(ref).is_active and self._graph.kind_of(ref) in FLOATS


class SumsWatch:
    """Looks at such sums, until each is settled.

    Args:
        joined: the sums.
        original: the graph.
        flat: says the name in that graph of what a node of the function gives.
    """

    def __init__(self, joined: Sequence[Joined], original: Original, flat: Callable[[str], str]) -> None:
        self._open, self._original, self._flat = joined, original, flat

    @property
    def is_open(self) -> bool:
        """Whether there is something that was not looked at, or is a ReLU."""
        return bool(self._open)

    def found(self, arrays: Sequence[tf.Tensor]) -> list[Place]:
        """Return the places that are ReLUs; what is none for some weights is taken for none."""
        told = [(one, self._told(one, arrays)) for one in self._open]
        self._open = [one for one, places in told if places]
        return [place for _, places in told for place in places]

    def _told(self, joined: Joined, arrays: Sequence[tf.Tensor]) -> list[Place]:
        run = self._original.sized(arrays).built(partial(self._run, joined), beside=[tf.TensorSpec([], tf.float64)])
        once = tf.constant(1.0, tf.float64)
        at_zero, raised, values, lines = run(once, *arrays)
        far = toward(at_zero.numpy(), raised.numpy())
        if far is None:
            return []
        if far > 1:
            _, _, values, lines = run(far * once, *arrays)
        xs, is_shifted = _stacked([value[0] for value in values]), bool(at_zero.numpy().any())
        found = []
        for number, (ref, place) in enumerate(joined.places.items(), 1):
            ys, line = (_stacked([one[number] for one in every]) for every in (values, lines))
            eps = float(np.finfo(ys.dtype).eps) if ys.dtype.kind == "f" else 2.0**-8
            is_alone = joined.join.sums[ref]
            if judge_sum(ys, line, xs, eps, is_alone=is_alone, is_shifted=is_shifted).is_gate:
                found.append(place)
        return found

    def _run(self, joined: Joined, bring: Import, far: tf.Tensor, *inputs: tf.Tensor) -> object:
        """Return x where all that it is made of is 0 and where that raises it; it and the sums so far from there."""
        join, flat = joined.join, self._flat
        roots, relus, others = (list(map(flat, refs)) for refs in (join.roots, join.relus, joined.others))
        tensors = bring(inputs, [*roots, *relus, *others])
        nothing = dict(zip([*roots, *relus, *others], map(tf.zeros_like, tensors), strict=True))
        beside = {name: nothing[name] for name in others}

        def run(
            values: Sequence[tf.Tensor], *, without: Sequence[str] = (), asked: Sequence[str] = ()
        ) -> list[tf.Tensor]:
            instead = beside | dict(zip(roots, values, strict=True)) | {name: nothing[name] for name in without}
            return bring(inputs, [flat(join.x), *map(flat, asked)], instead=instead)

        zeros = [nothing[name] for name in roots]
        (at_zero,) = run(zeros)
        slopes = tf.gradients(at_zero, zeros, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        raising = [
            tf.sign(slope) * tf.cast(tf.random.stateless_uniform(tf.shape(slope), [1, 2], 1.0, 2.0), slope.dtype)
            for slope in slopes
        ]
        (raised,) = run(raising)
        asked = list(joined.places)
        every = [[tf.cast(place, far.dtype) * far * tf.cast(root, far.dtype) for root in raising] for place in FAR]
        values = [run(cast_as(one, raising), asked=asked) for one in every]
        lines = [run(cast_as(one, raising), without=relus, asked=asked) for one in every[2:]]
        return at_zero, raised, values, lines


def cast_as(values: Sequence[tf.Tensor], others: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return values in the dtypes of others."""
    return [tf.cast(value, other.dtype) for value, other in zip(values, others, strict=True)]


def _relus(body: Body) -> Iterator[tuple[str, str]]:
    """Yield what is a ReLU without a cap, and of what."""
    for node in body.graph.ordered():
        is_whole = attribute(node, LOW).s == b"0.0" and attribute(node, HIGH).s == b"inf"
        if body.graph.role(node) == "relu" and is_whole:
            x = operand_refs(node)[attribute(node, OPERAND).i]
            if not _is_joined(body, x):
                yield body.graph.outputs_of(node)[0], x


def _is_joined(body: Body, ref: str) -> bool:
    """Tell whether a value is bounded by what is part of the same ReLU."""
    node: NodeDef | None = body.graph.node(body.graph.copied(ref))
    return body.graph.role(node) == "joined"


def _stacked(tensors: Sequence[tf.Tensor]) -> NumpyArray:
    arrays = [tensor.numpy() for tensor in tensors]
    # bfloat16 is no number to NumPy.
    return np.stack([array.astype(np.float32) if array.dtype.kind == "V" else array for array in arrays])
