"""Explains images batch by batch, by methods that share their forward passes, and puts the batches together."""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Array, Images, Inputs, Labels, NumpyArray
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OptionError, OutOfMemoryError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.label import Label, Weigher
from guided_backprop.labels.parse import parse_label
from guided_backprop.methods.data import given
from guided_backprop.progress import Progress
from guided_backprop.subject import Subject

_LOG = logging.getLogger("guided_backprop")


#: Explains one batch by each of some methods.
ExplainBatch = Callable[[Backend, Inputs, Weigh, Score | None], list[Attributed]]


class Job(NamedTuple):
    """What is made of what one method finds.

    Attributes:
        name: the method's name.
        reducer: how channels are reduced, or None.
        is_inside: whether a layer's output is explained instead of the images.
    """

    name: str
    reducer: str | None
    is_inside: bool = False


def explain_together(
    backend: Backend,
    jobs: list[Job],
    explain_batch: ExplainBatch,
    inputs: Inputs,
    labels: Labels,
    *,
    mask: Array | None,
    batch_size: int | None,
    progress: bool | None = None,
    sees_values: bool = False,
) -> list[Explanations]:
    """Explain by several methods, batch by batch.

    Args:
        backend: runs the model on the images.
        jobs: one for each method.
        explain_batch: explains one batch by each of the methods.
        inputs: the images, as for :meth:`Method.explain`.
        labels: as for :meth:`Method.explain`.
        mask: as for :meth:`Method.explain`.
        batch_size: how many images are explained at once; None for all.
        progress: as for :meth:`Method.explain`.
        sees_values: whether what explains a batch tells itself that images are not finite.
    """
    backend.check_form(inputs)
    if not sees_values:
        backend.check_values(inputs)
    count = inputs.count
    target = parse_label(labels, count, mask)
    results = [_Result(job, backend, target, inputs) for job in jobs]
    start, size = 0, batch_size or max(count, 1)
    with Progress(count, shown=progress) as shown:
        while start < count:
            # The last batch takes images of the one before along, where one of another size would be compiled anew.
            first = max(0, min(start, count - size)) if backend.compiles_each_size else start
            rows = inputs if size >= count else inputs.rows(slice(first, first + size))
            problem = _attempt(results, explain_batch, rows, first, start - first)
            if problem is None:
                shown.advance(first + size - start)
                start = first + size
                continue
            size = min(size, count - start) // 2
            if not size:
                raise _too_large(results, start, problem)
            _LOG.warning("memory ran out; going on with %d images at once, with the same result", size)
    return [result.explanations(count, min(size, count)) for result in results]


def explain_given(
    subject: Subject,
    job: Job,
    explain_batch: Callable[[Backend, Inputs, Weigh, Score | None], Attributed],
    images: Images,
    labels: Labels,
    *,
    mask: Array | None,
    batch_size: int | None,
    progress: bool | None,
    sees_values: bool = False,
) -> Explanations:
    """Explain what a user gives by one method, as :func:`explain_together` does by several."""
    images, labels = given(subject, images, labels)
    inputs = Inputs.of(images)
    (explanations,) = explain_together(
        subject.backend(inputs),
        [job],
        lambda *batch: [explain_batch(*batch)],
        inputs,
        labels,
        mask=mask,
        batch_size=batch_size,
        progress=progress,
        sees_values=sees_values,
    )
    return explanations


def _too_large(results: list["_Result"], start: int, problem: str) -> OutOfMemoryError:
    """Return the error of an image that does not fit, with what was finished before it."""
    return OutOfMemoryError(
        f"one image must fit into memory; received {problem!r:.200} for images[{start}]. "
        'Pass memory="lean", or smaller images; what was finished is in the error\'s attribute.',
        tuple([result.explanations(start, 1) for result in results if start]),
    )


def _attempt(
    results: list["_Result"], explain_batch: ExplainBatch, inputs: Inputs, start: int, known: int
) -> str | None:
    """Explain one batch and add it to the results, but for the first ``known`` images.

    If memory ran out, return the error's words instead.
    """
    target, backend = results[0].target, results[0].backend
    weigh = Weigher(target, start, inputs.count, partial(_axis, backend))

    try:
        batches = explain_batch(backend, inputs, weigh, target.score)
        parts = [result.put_together(batch, inputs) for result, batch in zip(results, batches, strict=True)]
    except Exception as error:
        if backend.is_out_of_memory(error):
            # The words alone: the error holds on to what the batch had allocated.
            return str(error)
        raise
    for result, part in zip(results, parts, strict=True):
        result.parts.append(part.after(known) if known else part)
    return None


class Part(NamedTuple):
    """What was found for a batch, in the form of the result.

    Attributes:
        attribution: with channels reduced; ``(N, K, ...)`` for K labels of each image.
        scores: ``(N,)`` or ``(N, K)``.
        outputs: the model's own output.
        coverage: the non-linearities on the path from score to image.
        head: the final softmax or sigmoid that was undone, or None.
        activation: where the gradient is taken inside of the model, the value there.
        delta: of integrated gradients, what completeness misses; of the form of the scores.
        engine: what computed it, if it is not the framework; or why that did.
    """

    attribution: Inputs
    scores: NDArray[np.float64]
    outputs: NumpyArray
    coverage: Coverage
    head: str | None
    activation: Array | None
    delta: NDArray[np.float64] | None
    engine: str | None

    def after(self, known: int) -> "Part":
        """Return what was found for the images after the first ``known`` ones."""
        rows = slice(known, None)
        attribution, scores, outputs = self.attribution.rows(rows), self.scores[rows], self.outputs[rows]
        activation = None if self.activation is None else self.activation[rows]
        delta = None if self.delta is None else self.delta[rows]
        return self._replace(
            attribution=attribution, scores=scores, outputs=outputs, activation=activation, delta=delta
        )


class _Result:
    """What one method found so far."""

    def __init__(self, job: Job, backend: Backend, target: Label, inputs: Inputs) -> None:
        self.job, self.backend, self.target, self._inputs = job, backend, target, inputs
        self.parts: list[Part] = []
        self._axes = inputs.map(backend.channel_axis)
        # Of a layer's output they are known when it is there.
        if not job.is_inside:
            _check_reducer(job, inputs, self._axes)

    def put_together(self, batch: Attributed, inputs: Inputs) -> Part:
        """Bring one batch into the form of the result."""
        if batch.activation is not None:
            explained = Inputs.of(batch.activation)
            self._axes = explained.map(partial(_axis_inside, self.backend, inputs))
            _check_reducer(self.job, explained, self._axes)
        is_many = self.target.is_many(batch.outputs)
        return put_together(self.backend, batch, self.job.reducer, self._axes, is_many=is_many)

    def explanations(self, count: int, size: int) -> Explanations:
        """Return the explanations of the first ``count`` images; ``size`` were explained at once."""
        backend, target, inputs = self.backend, self.target, self._inputs
        parts = self.parts
        if not parts:
            nothing = _nothing(backend, inputs, is_inside=self.job.is_inside)
            reducer = None if self.job.is_inside else self.job.reducer
            parts = [put_together(backend, nothing, reducer, self._axes, is_many=False)]
        images = inputs if count == inputs.count else inputs.rows(slice(count))
        inside = [part.activation for part in parts if part.activation is not None]
        deltas = [part.delta for part in parts if part.delta is not None]
        if inside:
            images = Inputs.of(backend.concatenate(inside))
        first, *others = [part.attribution for part in parts]
        outputs = np.concatenate([part.outputs for part in parts])
        scores = target.scores(outputs)
        labels = target.explained(outputs, _axis(backend, outputs))[:count] if count else np.zeros(0, np.int64)
        return Explanations(
            attribution=first.map(lambda *batches: backend.concatenate(batches), *others).images,
            images=images.images,
            labels=labels,
            scores=np.concatenate([part.scores for part in parts]) if scores is None else scores,
            outputs=outputs,
            coverage=Coverage.merge([part.coverage for part in parts]),
            method=self.job.name,
            model=backend.name,
            head=parts[0].head,
            engine=parts[0].engine,
            reducer=self.job.reducer,
            channel_axis=self._axes.images,
            batch_size=size,
            convergence_delta=np.concatenate(deltas) if deltas else None,
        )


def put_together(backend: Backend, batch: Attributed, reducer: str | None, axes: Inputs, *, is_many: bool) -> Part:
    """Reduce channels, and put what belongs to the labels of each image beside each other."""
    first, *others = [
        label.map(lambda one, axis: backend.reduce(one, reducer, axis), axes) for label in batch.attribution
    ]
    attribution = first.map(lambda *labels: backend.stack(labels), *others) if is_many else first
    delta = None if batch.convergence_delta is None else _by_image(batch.convergence_delta, is_many)
    scores = _by_image(batch.scores, is_many)
    return Part(attribution, scores, batch.outputs, batch.coverage, batch.head, batch.activation, delta, batch.engine)


def _by_image(by_label: NDArray[np.float64], is_many: bool) -> NDArray[np.float64]:
    """Return numbers ``(K, N)`` of labels as numbers of images: ``(N, K)``, or ``(N,)`` of the only label."""
    return by_label.T if is_many else by_label[0]


def _check_reducer(job: Job, inputs: Inputs, axes: Inputs) -> None:
    if job.reducer is not None and not any(axis is not None for axis in axes.arrays):
        shapes = ", ".join(str(tuple(array.shape)) for array in inputs.arrays)
        raise OptionError(f"reducer needs images with channels; received images of shape {shapes}. Leave it out.")


def _nothing(backend: Backend, inputs: Inputs, *, is_inside: bool) -> Attributed:
    """Explain a batch of no images: the model is not run, so nothing is known of its outputs, or of a layer's."""
    inside = np.zeros(0, np.float32) if is_inside else None
    explained = inputs.map(lambda array: backend.empty_like(array) if backend.is_floating(array) else None)
    attribution = explained if inside is None else Inputs.of(inside)
    return Attributed([attribution], np.zeros((1, 0)), np.zeros(0), Coverage(), None, inside)


def _axis_inside(backend: Backend, inputs: Inputs, activation: Array) -> int | None:
    """Return the axis of the channels of a layer's output; of what is made of each token, it is the last one."""
    shape = tuple(activation.shape)
    tokens = [tuple(array.shape) for array in inputs.arrays if not backend.is_floating(array)]
    return len(shape) - 1 if len(shape) > 2 and shape[:-1] in tokens else backend.channel_axis(activation)


def _axis(backend: Backend, outputs: NumpyArray) -> int:
    """Return the axis of an output's channels."""
    return backend.channel_axis(outputs) or 1
