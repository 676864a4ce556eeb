"""Derivatives between values of a model's graph: around all ReLUs that are guided, or through all."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import cached_property
from typing import Any, Final

import tensorflow as tf

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.spelling import Shut
from guided_backprop.backends.tensorflow.gradients import Editor
from guided_backprop.backends.tensorflow.graph.functions import let_gradients_pass
from guided_backprop.backends.tensorflow.hidden.original import Import, Original
from guided_backprop.backends.tensorflow.hidden.unrounded import has_rounding, let_pass_unrounded
from guided_backprop.rules import Plain

#: Some values, and the derivatives of another one towards them.
Towards = tuple[list[NumpyArray], list[NumpyArray]]


class Way(Enum):
    """Where gradients pass."""

    #: Around all ReLUs that are guided.
    AROUND = auto()
    #: As the model's own do.
    OWN = auto()
    #: As if nothing stopped them.
    TOTAL = auto()
    #: The same, and as if nothing rounded.
    UNROUNDED = auto()


class Derivatives:
    """Derivatives in one graph."""

    def __init__(self, original: Original) -> None:
        self._original = original

    @cached_property
    def has_rounding(self) -> bool:
        """Whether there may be something in the graph that rounds."""
        return has_rounding(self._original.graph_def)

    def led(self, wanted: Mapping[str, Sequence[str]], arrays: Sequence[tf.Tensor]) -> NumpyArray:
        """Tell for each value to which of some others, in their order, a gradient with respect to it comes."""

        def derive(tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
            return tf.concat([_are_led(tensors[y], [tensors[x] for x in refs]) for y, refs in wanted.items()], 0)

        names = dict.fromkeys(ref for y, refs in wanted.items() for ref in (y, *refs))
        return self._built(derive, list(names), arrays)(*arrays).numpy()  # type: ignore[no-any-return]

    def towards(
        self,
        pairs: Sequence[Sequence[str]],
        like: Sequence[tf.Tensor],
        way: Way = Way.AROUND,
        leaves: Sequence[Sequence[str]] = (),
    ) -> Callable[[Sequence[tf.Tensor]], list[Towards]]:
        """Return what gives, for images like some, values and derivatives of each pair: a value, and one or two others.

        These others' values, and the derivatives towards them of sums of the first one. Of each pair there may be
        others that are taken as if nothing was made of them: what comes to one through another does not count.
        """
        # All derivatives of one value are taken at once, but for those of values one of which is made of another.
        ends = [self._nested(one) for one in leaves] or [()] * len(pairs)
        by_y: dict[tuple[str, tuple[str, ...]], dict[str, None]] = defaultdict(dict)
        for (y, *others), end in zip(pairs, ends, strict=True):
            by_y[y, end] |= dict.fromkeys(others)

        def derive(tensors: Mapping[str, tf.Tensor]) -> list[list[tf.Tensor]]:
            return [
                _towards(tensors[y], [tensors[x] for x in others], [tensors[x] for x in end])
                for (y, end), others in by_y.items()
            ]

        names = dict.fromkeys(name for (y, _), others in by_y.items() for name in (y, *others))
        run = self._built(derive, list(names), like, way)

        def seen(arrays: Sequence[tf.Tensor]) -> list[Towards]:
            found: dict[tuple[str, tuple[str, ...], str], tuple[NumpyArray, NumpyArray]] = {}
            for ((y, end), towards), tensors in zip(by_y.items(), run(*arrays), strict=True):
                values = [tensor.numpy() for tensor in tensors]
                known = zip(values[: len(towards)], values[len(towards) :], strict=True)
                found |= {(y, end, x): pair for x, pair in zip(towards, known, strict=True)}
            every = [[found[y, end, x] for x in others] for (y, *others), end in zip(pairs, ends, strict=True)]
            return [([value for value, _ in pair], [derived for _, derived in pair]) for pair in every]

        return seen

    def _nested(self, refs: Sequence[str]) -> tuple[str, ...]:
        """Return these values if one of them is made of another; else none of them, for it makes no difference."""
        names = {ref.partition(":")[0] for ref in refs}
        seen, stack = set[str](), [part for name in names for part in self._inputs[name]]
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack += self._inputs[name]
        return tuple(refs) if seen & names else ()

    @cached_property
    def _inputs(self) -> Mapping[str, Sequence[str]]:
        """The nodes of the graph, and which others each of them reads."""
        nodes = self._original.graph_def.node
        return {node.name: [ref.partition(":")[0] for ref in node.input if ref[0] != "^"] for node in nodes}

    def _built(
        self, derive: Callable[..., object], names: list[str], like: Sequence[tf.Tensor], way: Way = Way.AROUND
    ) -> Callable[..., Any]:
        editor = Editor(Shut() if way is Way.AROUND else Plain(), {})

        def run(bring: Import, *inputs: tf.Tensor) -> object:
            tensors = dict(zip(names, bring(inputs, names), strict=True))
            with editor.at_work():
                return derive(tensors)

        return self._original.sized(like).built(run, _CHANGES.get(way, lambda copy: None))


# What is done with a copy so that gradients pass.
_CHANGES: Final = {Way.TOTAL: let_gradients_pass, Way.UNROUNDED: let_pass_unrounded}


def _are_led(y: tf.Tensor, candidates: Sequence[tf.Tensor]) -> tf.Tensor:
    """Tell to which of some values a gradient with respect to y comes."""
    gradients = tf.gradients(y, candidates, _seeds(y))
    none = tf.constant(False)
    return tf.stack(
        [none if gradient is None else tf.reduce_any(tf.convert_to_tensor(gradient) != 0) for gradient in gradients]
    )


def _towards(y: tf.Tensor, others: list[tf.Tensor], ends: list[tf.Tensor]) -> list[tf.Tensor]:
    zero = tf.UnconnectedGradients.ZERO
    gradients = tf.gradients(y, others, _seeds(y), unconnected_gradients=zero, stop_gradients=ends or None)
    return [*others, *map(tf.convert_to_tensor, gradients)]


def _seeds(y: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.random.stateless_uniform(tf.shape(y), [1, 2], 1.0, 2.0), y.dtype)
