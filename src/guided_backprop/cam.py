"""Grad-CAM and Guided Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391).

With A the output of a convolutional layer, ``(C, ...)``, and g the gradient of the score there:

    cam = max(0, sum over channels of mean(g) * A), resized to the image
    Guided Grad-CAM = cam * guided backpropagation
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import inputs_of
from guided_backprop.backends import backend_for
from guided_backprop.backends.base import Attributed, Backend, Score, Vouch, Weigh
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.methods import Method, Reducer
from guided_backprop.rules import GUIDED, PLAIN


class GradCAM(Method):
    """Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391): where the layer's channels that raise the score are active.

    The attribution is ``(N, H, W)``, not negative, resized from the layer's positions to the image's by linear
    interpolation (bilinear for images; centres of pixels are matched, the border's values go on outside). It is in
    units of score, and works on any differentiable model.

    Args:
        model: as for :class:`Method`; a PyTorch module, a Keras model, or a JAX function that names the value with
            ``guided_backprop.jax.tap``.
        layer: a convolutional layer, or what follows one: the layer itself, its name, or its position in
            :func:`layer_names`; usually the last before positions are pooled.
        output: as for :class:`Method`.
        batch_size: as for :class:`Method`.
        undo_head: as for :class:`Method`.
        vouch: as for :class:`Method`.

    Raises:
        OptionError: the model has no such layer, or (by ``explain``) its output has no positions.

    Example:
        >>> import torch
        >>> from guided_backprop import GradCAM
        >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> head = [torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)]
        >>> model = torch.nn.Sequential(conv, *head).eval()
        >>> GradCAM(model, "1").explain(torch.ones(2, 3, 8, 8), 1).attribution.shape
        torch.Size([2, 8, 8])
    """

    rule = PLAIN

    def __init__(
        self,
        model: Any,
        layer: Any,
        *,
        output: str | int | None = None,
        batch_size: int | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        self._layer = layer
        super().__init__(model, output=output, batch_size=batch_size, reducer="sum", undo_head=undo_head, vouch=vouch)

    def _make_backend(self, framework: str) -> Backend:
        return backend_for(
            framework,
            self._model,
            begin=self._layer,
            output=self._output,
            undo_head=self._undo_head,
            vouch=self._vouch,
        )

    def _attribute(self, backend: Backend, images: Any, weigh: Weigh, score: Score | None) -> Attributed:
        return _cams(backend, images, backend.attribute(images, weigh, self.rule, score))


class GuidedGradCAM(Method):
    """Guided Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391): guided backpropagation times Grad-CAM.

    What the class needs where it is: the map's sharpness, and the CAM's choice of class. The attribution is of
    the images' shape, signed.

    Args:
        model: as for :class:`GradCAM`.
        layer: as for :class:`GradCAM`.
        output: as for :class:`Method`.
        batch_size: as for :class:`Method`.
        reducer: as for :class:`Method`.
        undo_head: as for :class:`Method`.
        vouch: as for :class:`Method`.

    Raises:
        OptionError: as :class:`GradCAM`.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedGradCAM
        >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> head = [torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)]
        >>> model = torch.nn.Sequential(conv, *head).eval()
        >>> GuidedGradCAM(model, "1").explain(torch.ones(2, 3, 8, 8), 1).attribution.shape
        torch.Size([2, 3, 8, 8])
    """

    rule = GUIDED

    def __init__(
        self,
        model: Any,
        layer: Any,
        *,
        output: str | int | None = None,
        batch_size: int | None = None,
        reducer: Reducer | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        self._cam = GradCAM(model, layer, output=output, undo_head=undo_head, vouch=vouch)
        super().__init__(model, output=output, batch_size=batch_size, reducer=reducer, undo_head=undo_head, vouch=vouch)

    def _attribute(self, backend: Backend, images: Any, weigh: Weigh, score: Score | None) -> Attributed:
        cams = self._cam._attribute(self._cam._backend(images), images, weigh, score)
        guided = super()._attribute(backend, images, weigh, score)
        maps = [each * cam for each, cam in zip(guided.attribution, cams.attribution, strict=True)]
        return replace(guided, attribution=maps)


def _cams(backend: Backend, images: Any, inside: Attributed) -> Attributed:
    """Return the maps for each label, of the images' kind and layout, with one channel."""
    if len(inputs_of(images)) > 1 or inputs_of(images)[0] is not images:
        raise ImageError(
            "Grad-CAM needs one input with positions; received several inputs. "
            "Pass a function of the image alone, with the others closed over."
        )
    assert inside.activation is not None
    axis = backend.channel_axis(images)
    layer_axis = backend.channel_axis(inside.activation)
    if axis is None or layer_axis is None or inside.activation.ndim != len(images.shape):
        raise OptionError(
            f"layer must have positions, as the images of shape {tuple(images.shape)} have; received an output "
            f"of shape {inside.activation.shape}. Name a convolutional layer."
        )
    activation = np.moveaxis(inside.activation, layer_axis, 1).astype(np.float64)
    sizes = [size for each, size in enumerate(images.shape) if each not in (0, axis)]
    maps = []
    for gradient in inside.attribution:
        g = np.moveaxis(gradient, layer_axis, 1).astype(np.float64)
        weights = g.mean(axis=tuple(range(2, g.ndim)), keepdims=True)
        cam = np.maximum((weights * activation).sum(axis=1), 0)
        maps.append(backend.from_numpy(np.expand_dims(resized(cam, sizes), axis), images))
    return Attributed(maps, inside.scores, inside.outputs, inside.coverage, inside.head)


def resized(maps: NDArray[np.float64], sizes: list[int]) -> NDArray[np.float64]:
    """Return maps ``(N, ...)`` with positions of other sizes, by linear interpolation along each axis."""
    for axis, size in enumerate(sizes, start=1):
        maps = np.moveaxis(np.tensordot(maps, _interpolation(maps.shape[axis], size), (axis, 1)), -1, axis)
    return maps


def _interpolation(before: int, after: int) -> NDArray[np.float64]:
    """Return the matrix ``(after, before)`` that interpolates; the centres of first and last pixel are half inside."""
    place = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    low = np.minimum(place.astype(int), max(before - 2, 0))
    share = place - low
    matrix = np.zeros((after, before))
    matrix[np.arange(after), low] += 1 - share
    matrix[np.arange(after), np.minimum(low + 1, before - 1)] += share
    return matrix
