"""Explains images batch by batch, by methods that share their forward passes, and puts the batches together."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from guided_backprop.arrays import inputs_of, mapped
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OptionError, OutOfMemoryError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.label import Label
from guided_backprop.labels.parse import parse_label

_LOG = logging.getLogger("guided_backprop")


#: Explains one batch by each of some methods.
ExplainBatch = Callable[[Backend, Any, Weigh, Score | None], list[Attributed]]


class Job(NamedTuple):
    """What is made of what one method finds.

    Attributes:
        name: the method's name.
        reducer: how channels are reduced, or None.
    """

    name: str
    reducer: str | None


def explain_together(
    backend: Backend,
    jobs: list[Job],
    explain_batch: ExplainBatch,
    images: Any,
    labels: Any,
    *,
    mask: Any,
    batch_size: int | None,
) -> list[Explanations]:
    """Explain by several methods, batch by batch.

    Args:
        backend: runs the model on the images.
        jobs: one for each method.
        explain_batch: explains one batch by each of the methods.
        images: as for :meth:`Method.explain`.
        labels: as for :meth:`Method.explain`.
        mask: as for :meth:`Method.explain`.
        batch_size: how many images are explained at once; None for all.
    """
    backend.check_images(images)
    axes = mapped(backend.channel_axis, images)
    for job in jobs:
        _check_reducer(job, images, axes)
    count = len(inputs_of(images)[0])
    target = parse_label(labels, count, mask)
    results = [_Result(job, backend, target, axes) for job in jobs]
    start, size = 0, batch_size or max(count, 1)
    while start < count:
        # The last batch takes images of the one before along, where one of another size would be compiled anew.
        first = max(0, min(start, count - size)) if backend.compiles_each_size else start
        rows = images if size >= count else _rows(images, slice(first, first + size))
        problem = _attempt(results, explain_batch, rows, first, start - first)
        if problem is None:
            start = first + size
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


def _attempt(results: list["_Result"], explain_batch: ExplainBatch, images: Any, start: int, known: int) -> str | None:
    """Explain one batch and add it to the results, but for the first ``known`` images.

    If memory ran out, return the error's words instead.
    """
    target, backend = results[0].target, results[0].backend

    def weigh(outputs: Any) -> Any:
        return target.weigh(outputs, start, _axis(backend, outputs))

    try:
        batches = explain_batch(backend, images, weigh, target.score)
        found = [result.put_together(batch) for result, batch in zip(results, batches, strict=True)]
    except Exception as error:
        if backend.is_out_of_memory(error):
            # The words alone: the error holds on to what the batch had allocated.
            return str(error)
        raise
    for result, batch in zip(results, found, strict=True):
        result.batches.append(_after(batch, known) if known else batch)
    return None


class _Result:
    """What one method found so far."""

    def __init__(self, job: Job, backend: Backend, target: Label, axes: Any) -> None:
        self.job, self.backend, self.target = job, backend, target
        self.batches: list[Attributed] = []
        self._axes = axes

    def put_together(self, batch: Attributed) -> Attributed:
        """Bring one batch into the form of the result."""
        is_many = self.target.is_many(batch.outputs)
        return put_together(self.backend, batch, self.job.reducer, self._axes, is_many=is_many)

    def explanations(self, images: Any, size: int) -> Explanations:
        """Return the explanations of these images, the first ones; ``size`` were explained at once."""
        backend, target, count = self.backend, self.target, len(inputs_of(images)[0])
        batches = self.batches
        if not batches:
            batches = [put_together(backend, _nothing(backend, images), self.job.reducer, self._axes, is_many=False)]
        outputs = np.concatenate([batch.outputs for batch in batches])
        scores = target.scores(outputs)
        labels = target.explained(outputs, _axis(backend, outputs))[:count] if count else np.zeros(0, np.int64)
        return Explanations(
            attribution=mapped(lambda *parts: backend.concatenate(parts), *[batch.attribution for batch in batches]),
            images=images,
            labels=labels,
            scores=np.concatenate([batch.scores for batch in batches]) if scores is None else scores,
            outputs=outputs,
            coverage=Coverage.merge([batch.coverage for batch in batches]),
            method=self.job.name,
            model=backend.name,
            head=batches[0].head,
            reducer=self.job.reducer,
            channel_axis=self._axes,
            batch_size=size,
        )


def put_together(backend: Backend, batch: Attributed, reducer: str | None, axes: Any, *, is_many: bool) -> Attributed:
    """Reduce channels, and put what belongs to the labels of each image beside each other."""
    found = [mapped(partial(_reduced, backend, reducer), each, axes) for each in batch.attribution]
    if is_many:
        attribution = mapped(lambda *labels: backend.stack(labels), *found)
        return replace(batch, attribution=attribution, scores=batch.scores.T)
    return replace(batch, attribution=found[0], scores=batch.scores[0])


def _reduced(backend: Backend, reducer: str | None, attribution: Any, axis: int | None) -> Any:
    return attribution if reducer is None or axis is None else backend.reduce(attribution, reducer, axis)


def _check_reducer(job: Job, images: Any, axes: Any) -> None:
    if job.reducer is not None and not any(axis is not None for axis in inputs_of(axes)):
        shapes = ", ".join(str(tuple(values.shape)) for values in inputs_of(images))
        raise OptionError(f"reducer needs images with channels; received images of shape {shapes}. Pass None.")


def _nothing(backend: Backend, images: Any) -> Attributed:
    """Explain a batch of no images: the model is not run, so nothing is known of its outputs."""
    explained = mapped(lambda values: backend.empty_like(values) if backend.is_floating(values) else None, images)
    return Attributed([explained], np.zeros((1, 0)), np.zeros(0), Coverage(), None)


def _after(batch: Attributed, known: int) -> Attributed:
    """Return what was found for the images after the first ``known`` ones, of a batch that was put together."""
    attribution: Any = mapped(lambda values: values[known:], batch.attribution)
    return replace(batch, attribution=attribution, scores=batch.scores[known:], outputs=batch.outputs[known:])


def _rows(images: Any, rows: slice) -> Any:
    return mapped(lambda values: values[rows], images)


def _axis(backend: Backend, outputs: Any) -> int:
    """Return the axis of an output's channels."""
    return backend.channel_axis(outputs) or 1
