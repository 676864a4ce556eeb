"""Explains images batch by batch, by methods that share their forward passes, and puts the batches together."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from guided_backprop.arrays import inputs_of, mapped
from guided_backprop.backends.base import Attributed, Backend, Weigh
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OutOfMemoryError
from guided_backprop.explanation import Explanations
from guided_backprop.targets import Target

if TYPE_CHECKING:
    from guided_backprop.methods import Method

_LOG = logging.getLogger("guided_backprop")


def explain_together(methods: "list[Method]", images: Any, labels: Any, mask: Any) -> list[Explanations]:
    """Explain by methods that differ in nothing but rule and reducer."""
    first = methods[0]
    backend = first._backend(images)
    backend.check_images(images)
    axes = mapped(backend.channel_axis, images)
    for method in methods:
        method._check_reducer(images, axes)
    count = len(inputs_of(images)[0])
    target = Target(labels, count, mask)
    results = [_Result(method, backend, target, axes) for method in methods]
    start, size = 0, first._batch_size or max(count, 1)
    while start < count:
        rows = images if size >= count else _rows(images, slice(start, start + size))
        problem = _attempt(results, backend, rows, start)
        if problem is None:
            start += size
            continue
        size = min(size, count - start) // 2
        if not size:
            finished = tuple([result.explanations(_rows(images, slice(start)), 1) for result in results if start])
            raise OutOfMemoryError(
                f"one image must fit into memory; received {problem!r:.200} for images[{start}]. "
                'Pass memory="lean", or smaller images; what was finished is in the error\'s attribute.',
                finished,
            )
        _LOG.warning("memory ran out; going on with %d images at once, with the same result", size)
    return [result.explanations(images, min(size, count)) for result in results]


def _attempt(results: list["_Result"], backend: Backend, images: Any, start: int) -> str | None:
    """Explain one batch and add it to the results; if memory ran out, return the error's words instead."""
    target, methods = results[0].target, [result.method for result in results]
    weigh = _weigh(backend, target, start)
    try:
        if len(methods) == 1:
            batches = [methods[0]._attribute(backend, images, weigh, target.score)]
        else:
            batches = backend.attribute(images, weigh, [method.rule for method in methods], target.score)
        found = [result.put_together(batch) for result, batch in zip(results, batches, strict=True)]
    except Exception as error:
        if backend.is_out_of_memory(error):
            # The words alone: the error holds on to what the batch had allocated.
            return str(error)
        raise
    for result, batch in zip(results, found, strict=True):
        result.batches.append(batch)
    return None


class _Result:
    """What one method found so far."""

    def __init__(self, method: "Method", backend: Backend, target: Target, axes: Any) -> None:
        self.method, self.target = method, target
        self.batches: list[Attributed] = []
        self._backend, self._axes = backend, axes

    def put_together(self, batch: Attributed) -> Attributed:
        """Reduce channels, and put what belongs to the labels of each image beside each other."""
        return self.method._put_together(self._backend, batch, self._axes, is_many=self.target.is_many(batch.outputs))

    def explanations(self, images: Any, size: int) -> Explanations:
        """Return the explanations of these images, the first ones; ``size`` were explained at once."""
        backend, target, count = self._backend, self.target, len(inputs_of(images)[0])
        batches = self.batches or [self.method._nothing(backend, images, self._axes)]
        outputs = np.concatenate([batch.outputs for batch in batches])
        scores = target.scores(outputs)
        labels = target.labels(outputs, _axis(backend, outputs))[:count] if count else np.zeros(0, np.int64)
        return Explanations(
            attribution=mapped(lambda *parts: backend.concatenate(parts), *[batch.attribution for batch in batches]),
            images=images,
            labels=labels,
            scores=np.concatenate([batch.scores for batch in batches]) if scores is None else scores,
            outputs=outputs,
            coverage=Coverage.merge([batch.coverage for batch in batches]),
            method=self.method.name,
            model=backend.name,
            head=batches[0].head,
            reducer=self.method._reducer,
            channel_axis=self._axes,
            batch_size=size,
        )


def _rows(images: Any, rows: slice) -> Any:
    return mapped(lambda values: values[rows], images)


def _weigh(backend: Backend, target: Target, start: int) -> Weigh:
    return lambda outputs: target.weigh(outputs, start, _axis(backend, outputs))


def _axis(backend: Backend, outputs: Any) -> int:
    """Return the axis of an output's channels."""
    return backend.channel_axis(outputs) or 1
