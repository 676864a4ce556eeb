"""The methods: one model, one rule."""

import copy
from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from guided_backprop.arrays import inputs_of
from guided_backprop.backends import backend_for, framework_of, layer_name
from guided_backprop.backends.base import Attributed, Backend, Score, Vouch, Weigh
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.methods.batches import Job, explain_together
from guided_backprop.rules import DECONV, GUIDED, PLAIN, ReluRule

Reducer = Literal["mean", "sum", "max", "min", "absmax"]
REDUCERS: tuple[Reducer, ...] = ("mean", "sum", "max", "min", "absmax")


class Method(ABC):
    """A way to explain a model: how much, and in which direction, each input value moves the score.

    The model is run as it is and is never changed; several threads may use one method at once. A batch may
    be run forward twice, the second time watched, if the graph leaves open what only its values can tell.

    Args:
        model: a ``torch.nn.Module`` in eval mode, or any differentiable callable on tensors, which maps
            images ``(N, ...)`` to outputs ``(N, K)``, ``(N, K, ...)`` or ``(N,)``.
        output_layer: explain the output of this layer instead of the model's: the layer itself, its name, or
            its position in :func:`layer_names`; nothing after it is run. None for the model's own output.
            In a JAX function, a name given with ``guided_backprop.jax.tap``.
        output: which of several outputs is explained, by name or by position; None for the only one, or the
            one called "logits".
        batch_size: how many images are explained at once; None for all. The result is the same, the
            memory is bounded.
        reducer: how the channel axis is reduced: "mean", "sum", "max", "min", "absmax" (the largest
            magnitude, unsigned), or None to keep all channels.
        smooth: with "guide", guided backpropagation lets only positive gradients through smooth activations as
            well, those listed in ``guided_backprop.rules.SMOOTH`` (GELU, SiLU, LeakyReLU...), and their own
            derivative does the rest. That extends the method beyond what was published; the result's ``method``
            says so.
        memory: with "lean", a PyTorch model keeps for the backward pass only what that needs: no inputs of
            convolutions and pooling, and one bit for each value of a ReLU. The maps are the same.
        undo_head: where the model ends in a softmax, log-softmax or sigmoid, explain the logit in front
            of it. A probability's own map is scaled down by up to millions and mixes all classes.
        vouch: what is known of parts that hide what they compute, by the name an OpaqueRegionError gave
            them: "plain" for one that contains no ReLU, "relu" for a custom function that is one.

    Raises:
        OptionError: an option has a value that is not offered.
        ModelError: the model is not callable.
        MissingExtraError: the model's framework is not installed.
    """

    rule: ReluRule

    def __init__(
        self,
        model: Any,
        *,
        output_layer: Any = None,
        output: str | int | None = None,
        batch_size: int | None = None,
        reducer: Reducer | None = None,
        smooth: Literal["guide"] | None = None,
        memory: Literal["lean"] | None = None,
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
        if smooth not in (None, "guide"):
            raise OptionError(
                f'smooth must be "guide" or None; received smooth={smooth!r}. Pass None for the method as published.'
            )
        if smooth is not None:
            if self.rule != GUIDED:
                raise OptionError(
                    f'smooth="guide" extends guided backpropagation; received it for {type(self).__name__}. '
                    "Use GuidedBackprop."
                )
            self.rule = replace(GUIDED, guides_smooth=True)
        if memory not in (None, "lean"):
            raise OptionError(f'memory must be "lean" or None; received memory={memory!r}. Pass one of these.')
        for name, treatment in (vouch or {}).items():
            if treatment not in ("relu", "plain"):
                raise OptionError(
                    f'vouch must say "relu" or "plain"; received vouch[{name!r}]={treatment!r}. '
                    'Pass "plain" if it contains no ReLU.'
                )
        self._model, self._output_layer, self._output = model, output_layer, output
        self._undo_head, self._vouch, self._memory = undo_head, vouch or {}, memory
        self._is_optimized = False
        self._backends: dict[str, Backend] = {}
        framework = framework_of(model)
        if framework is not None:
            self._backend_of(framework)
        self._batch_size = batch_size
        self._reducer = reducer

    @property
    def name(self) -> str:
        """The method's name, with what it was extended by."""
        return f"{type(self).__name__}(smooth='guide')" if self.rule.guides_smooth else type(self).__name__

    def explain(self, images: Any, labels: Any = None, *, mask: Any = None) -> Explanations:
        """Explain the score of each image.

        Args:
            images: floating-point batch ``(N, ...)``, already preprocessed, in the model's own layout;
                a tensor of the model's framework, or a NumPy array. For a model of several inputs a tuple of
                such batches, or a dictionary by the names of the model's arguments; a Keras model is given it
                whole, as it takes it. Inputs of integers are not explained.
            labels: what of the output is explained. The output's channels (classes) are its axis 1; its last
                axis where the model is channels-last and the output has positions.

                * class ids, one per image or one for all: that channel, summed over positions;
                * ``(N, K)`` class ids, or ``"top5"``: K explanations of each image, from one forward pass;
                * None: the channel with the highest sum;
                * a tuple ``(channel, row, column)``, or a list of tuples, one per image: that entry;
                * ``(channel, "max")``: a channel where it is strongest, as for a neuron; ``"max"``: all of them;
                * weights of the output's shape: a one-hot row, a contrast of -1, 0 and 1;
                * a :class:`Box`: a box found by a detector;
                * a callable from the output, a tensor of the framework, to ``(N,)`` scores; its own derivative is
                  taken as it is, for the rule is the model's alone.
            mask: the positions of a class that count, as in a segmented region: ``(...)`` or ``(N, ...)``,
                booleans or weights, of the shape of the output's positions.

        Returns:
            The explanations, one per image. The attribution is the gradient of the score under the
            method's rule: signed, in units of score per unit of image.

        Raises:
            ImageError: images are not a batch of finite floating-point numbers.
            LabelError: labels do not index or weigh the model's output, or the mask has another shape.
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
        return explain_together(
            self._backend(images), [self._job], images, labels, mask=mask, batch_size=self._batch_size
        )[0]

    def optimize(self, images: Any) -> Self:
        """Return this method for the same model, faster; tried on these images.

        In PyTorch, batch-norm is folded into the convolution in front of it, and pictures lie in memory channels
        last. The model itself is untouched, and its weights are read in each call: changed ones count at once. A model
        that takes another way on other images is run as it is. Scores and maps differ by rounding: a ReLU or a
        maximum nearly at a tie may turn. In TensorFlow and JAX this returns an equal method: both compile already.

        Args:
            images: a batch such as will be explained; a small one is enough.

        Raises:
            ImageError: as :meth:`explain`.
            ModelError: as :meth:`explain`.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
            >>> model = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval()
            >>> method = GuidedBackprop(model).optimize(torch.rand(1, 3, 8, 8))
            >>> method.explain(torch.rand(5, 3, 8, 8), 1).attribution.shape
            torch.Size([5, 3, 8, 8])
        """
        backend = self._backend(images)
        other = copy.copy(self)
        other._is_optimized = True
        other._backends = self._backends | {backend.framework: backend.optimized(images)}
        return other

    @property
    def _job(self) -> Job:
        is_own = type(self)._attribute is not Method._attribute
        return Job(self.name, self.rule, self._reducer, self._attribute if is_own else None)

    def _attribute(self, backend: Backend, images: Any, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch."""
        return backend.attribute(images, weigh, [self.rule], score)[0]

    def _backend(self, images: Any) -> Backend:
        framework = framework_of(self._model, *inputs_of(images))
        if framework is None:
            raise ImageError(
                "images must be a tensor of the model's framework where the model is a plain function; "
                f"received images={type(images).__name__}. Convert the images first."
            )
        return self._backend_of(framework)

    def _backend_of(self, framework: str) -> Backend:
        if framework not in self._backends:
            self._backends[framework] = self._make_backend(framework)
        return self._backends[framework]

    def _make_backend(self, framework: str) -> Backend:
        return backend_for(
            framework,
            self._model,
            output_layer=self._output_layer,
            output=self._output,
            undo_head=self._undo_head,
            vouch=self._vouch,
            memory=self._memory,
        )

    def _of(self, model: Any) -> Self:
        """Return this method for a copy of its model, run as it is."""
        other = copy.copy(self)
        other._output_layer = layer_name(self._model, self._output_layer)
        other._model, other._backends, other._is_optimized = model, {}, False
        return other

    def _like(self, other: "Method") -> bool:
        """Tell whether another method differs from this one in nothing but the rule and the reducer."""
        names = "_model _output_layer _output _undo_head _vouch _memory _batch_size _is_optimized".split()
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        is_same = all(ours is theirs or ours == theirs for ours, theirs in pairs)
        return is_same and self._job.attribute is None and other._job.attribute is None


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


def compare(images: Any, labels: Any, methods: Sequence[Method], *, mask: Any = None) -> list[Explanations]:
    """Explain the same images by several methods; those that differ only in their rule share one forward pass.

    Args:
        images: as for :meth:`Method.explain`.
        labels: as for :meth:`Method.explain`.
        methods: the methods, of any models.
        mask: as for :meth:`Method.explain`.

    Returns:
        The explanations by each method, in their order; the same as from :meth:`Method.explain`.

    Raises:
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import torch
        >>> from guided_backprop import DeconvNet, GuidedBackprop, Saliency, compare
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> methods = [Saliency(model), DeconvNet(model), GuidedBackprop(model)]
        >>> [found.method for found in compare(torch.rand(5, 4), 1, methods)]
        ['Saliency', 'DeconvNet', 'GuidedBackprop']
    """
    found: dict[int, Explanations] = {}
    for position, method in enumerate(methods):
        if position in found:
            continue
        alike = [later for later in range(position, len(methods)) if later == position or method._like(methods[later])]
        jobs = [methods[each]._job for each in alike]
        together = explain_together(
            method._backend(images), jobs, images, labels, mask=mask, batch_size=method._batch_size
        )
        found |= zip(alike, together, strict=True)
    return [found[position] for position in range(len(methods))]
