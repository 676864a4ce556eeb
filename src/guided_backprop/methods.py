"""The methods: one model, one rule."""

from abc import ABC
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from guided_backprop.backends import backend_for, framework_of
from guided_backprop.backends.base import Attributed, Backend, Vouch
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.explanation import Explanations
from guided_backprop.rules import DECONV, GUIDED, PLAIN, ReluRule
from guided_backprop.targets import Target

Reducer = Literal["mean", "sum", "max", "min", "absmax"]
REDUCERS: tuple[Reducer, ...] = ("mean", "sum", "max", "min", "absmax")


class Method(ABC):
    """A way to explain a model: how much, and in which direction, each input value moves the score.

    The model is run as it is and is never changed; several threads may use one method at once. A batch may
    be run forward twice, the second time watched, if the graph leaves open what only its values can tell.

    Args:
        model: a ``torch.nn.Module`` in eval mode, or any differentiable callable on tensors, which maps
            images ``(N, ...)`` to outputs ``(N, K)``, ``(N, K, ...)`` or ``(N,)``.
        output_layer: explain the output of this layer instead of the model's, by name or by position in
            :func:`layer_names`; nothing after it is run. None for the model's own output. For PyTorch
            modules and Keras models.
        batch_size: how many images are explained at once; None for all. The result is the same, the
            memory is bounded.
        reducer: how the channel axis is reduced: "mean", "sum", "max", "min", "absmax" (the largest
            magnitude, unsigned), or None to keep all channels.
        undo_head: where the model ends in a softmax, log-softmax or sigmoid, explain the logit in front
            of it. A probability's own map is scaled down by up to millions and mixes all classes.
        vouch: what is known of parts that hide what they compute, by the name an OpaqueRegionError gave
            them: "plain" for one that contains no ReLU, "relu" for a custom function that is one.

    Raises:
        OptionError: an option has a value that is not offered.
        ModelError: the model is not callable.
        MissingExtraError: the model's framework is not installed.
    """

    rule: ClassVar[ReluRule]

    def __init__(
        self,
        model: Any,
        *,
        output_layer: str | int | None = None,
        batch_size: int | None = None,
        reducer: Reducer | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        is_size = batch_size is None or (
            isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
        )
        if not is_size:
            raise OptionError(
                f"batch_size must be a positive integer or None; received batch_size={batch_size!r}. "
                "Pass how many images to explain at once."
            )
        if reducer is not None and reducer not in REDUCERS:
            raise OptionError(
                f"reducer must be one of {', '.join(REDUCERS)} or None; received reducer={reducer!r}. "
                "Pass one of these names."
            )
        for name, treatment in (vouch or {}).items():
            if treatment not in ("relu", "plain"):
                raise OptionError(
                    f'vouch must say "relu" or "plain"; received vouch[{name!r}]={treatment!r}. '
                    'Pass "plain" if it contains no ReLU.'
                )
        self._model, self._output_layer = model, output_layer
        self._undo_head, self._vouch = undo_head, vouch or {}
        self._backends: dict[str, Backend] = {}
        framework = framework_of(model)
        if framework is not None:
            self._backend_of(framework)
        self._batch_size = batch_size
        self._reducer = reducer

    def explain(self, images: Any, labels: Any = None) -> Explanations:
        """Explain the score of each image.

        Args:
            images: floating-point batch ``(N, ...)``, already preprocessed, in the model's own layout;
                a tensor of the model's framework, or a NumPy array.
            labels: class ids, one per image or one for all; or weights of the output's shape (a one-hot
                row is one case); or None, the class with the highest score.

        Returns:
            The explanations, one per image. The attribution is the gradient of the score under the
            method's rule: signed, in units of score per unit of image.

        Raises:
            ImageError: images are not a batch of finite floating-point numbers.
            LabelError: labels do not index or weigh the model's output.
            NoReluError: no ReLU lies between score and image, and the method acts on ReLUs.
            OpaqueRegionError: a part of the model hides what it computes.
            ModelError: the model is in training mode, fails on the images, or is not differentiable.
            ScoreError: a score does not depend on its image, or is not finite.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> explanations = GuidedBackprop(model.eval()).explain(torch.ones(5, 4), labels=1)
            >>> explanations.attribution.shape, str(explanations.coverage)
            (torch.Size([5, 4]), 'relu x1 guided')
        """
        backend = self._backend(images)
        backend.check_images(images)
        axis = backend.channel_axis(images)
        if self._reducer is not None and axis is None:
            raise OptionError(
                f"reducer needs images with channels; received images of shape {tuple(images.shape)}. "
                "Pass reducer=None."
            )
        target = Target(labels, len(images))
        batches = []
        for start in range(0, len(images), self._batch_size or max(len(images), 1)):
            rows = images[start : start + self._batch_size] if self._batch_size else images
            batch = backend.attribute(rows, partial(target.weigh, start=start), self.rule)
            if self._reducer is not None and axis is not None:
                reduced = backend.reduce(batch.attribution, self._reducer, axis)
                batch = Attributed(reduced, batch.scores, batch.outputs, batch.coverage, batch.head)
            batches.append(batch)
        if not batches:
            batches = [self._nothing(backend, images, axis)]
        outputs = np.concatenate([batch.outputs for batch in batches])
        return Explanations(
            attribution=backend.concatenate([batch.attribution for batch in batches]),
            images=images,
            labels=target.labels(outputs) if len(images) else np.zeros(0, np.int64),
            scores=np.concatenate([batch.scores for batch in batches]),
            outputs=outputs,
            coverage=Coverage.merge(batch.coverage for batch in batches),
            method=type(self).__name__,
            model=backend.name,
            head=batches[0].head,
            reducer=self._reducer,
            channel_axis=axis,
        )

    def _backend(self, images: Any) -> Backend:
        framework = framework_of(self._model, images)
        if framework is None:
            raise ImageError(
                "images must be a tensor of the model's framework where the model is a plain function; "
                f"received images={type(images).__name__}. Convert the images first."
            )
        return self._backend_of(framework)

    def _backend_of(self, framework: str) -> Backend:
        if framework not in self._backends:
            self._backends[framework] = backend_for(
                framework,
                self._model,
                output_layer=self._output_layer,
                undo_head=self._undo_head,
                vouch=self._vouch,
            )
        return self._backends[framework]

    def _nothing(self, backend: Backend, images: Any, axis: int | None) -> Attributed:
        """Explain a batch of no images: the model is not run, so nothing is known of its outputs."""
        attribution = backend.empty_like(images)
        if self._reducer is not None and axis is not None:
            attribution = backend.reduce(attribution, "sum", axis)
        return Attributed(attribution, np.zeros(0), np.zeros(0), Coverage(), None)


class Saliency(Method):
    """The gradient itself (Simonyan et al. 2013, arXiv:1312.6034): a ReLU passes what its input let pass.

    Works on anything differentiable.
    """

    rule = PLAIN


class DeconvNet(Method):
    """DeconvNet (Zeiler and Fergus 2013, arXiv:1311.2901): a ReLU passes every positive gradient."""

    rule = DECONV


class GuidedBackprop(Method):
    """Guided Backpropagation (Springenberg et al. 2014, arXiv:1412.6806).

    A ReLU passes positive gradients, and only where its input was positive. Every ReLU between score
    and image is treated so, however it is written, or an error says which one cannot be.
    """

    rule = GUIDED
