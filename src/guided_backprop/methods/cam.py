"""Grad-CAM and Guided Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391).

With A the output of a convolutional layer, ``(C, ...)``, and g the gradient of the score there:

    cam = max(0, sum over channels of mean(g) * A), resized to the image
    Guided Grad-CAM = cam * guided backpropagation
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Inputs, Layer, Model, NumpyArray, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Score, Vouch, Weigh
from guided_backprop.errors import OptionError
from guided_backprop.export.plan import Cam, Plan
from guided_backprop.foreign import answering
from guided_backprop.methods.method import Method, Reducer
from guided_backprop.methods.options import Requirement, require
from guided_backprop.rules import GUIDED, PLAIN

Interpolation = Literal["linear", "nearest"]


class GradCAM(Method):
    """Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391): where the layer's channels that raise the score are active.

    The attribution is ``(N, H, W)``, not negative, resized from the layer's positions to the image's. It is in units
    of score, and works on any differentiable model. Of several inputs, those that have no positions have no map.

    Args:
        model: as for :class:`Method`; a PyTorch module, a Keras model, or a JAX function that names the value with
            ``guided_backprop.jax.tap``.
        layer: a convolutional layer, or what follows one: the layer itself, its name, or its position in
            :func:`layer_names`, or a pair of that and which of its runs, as ``output_layer`` of :class:`Method`;
            usually the last before positions are pooled.
        interpolation: how maps are resized: "linear", as in the paper (bilinear for images; centres of pixels are
            matched, the border's values go on outside), or "nearest".
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

    @answering
    def __init__(
        self,
        model: Model,
        layer: Layer,
        *,
        interpolation: Interpolation = "linear",
        output: str | int | None = None,
        batch_size: int | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        _require_interpolation(interpolation)
        super().__init__(model, output=output, batch_size=batch_size, reducer="sum", undo_head=undo_head, vouch=vouch)
        self.interpolation = interpolation
        self.subject = self.subject.beginning_at(layer)
        self.subject.check()

    @property
    def plan(self) -> Plan:
        cam = Cam(self.subject.input_layer, self._matrix, is_factor=False, is_linear=self.interpolation == "linear")
        return Plan(self.rule, self.reducer, cam=cam)

    def _matrix(self, before: int, after: int) -> NDArray[np.float64]:
        return _interpolation(before, after, self.interpolation)

    def _as_it_is(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch by the maps of the layer."""
        return _cams(backend, inputs, backend.attribute(inputs, weigh, [self.rule], score)[0], self.interpolation)


class GuidedGradCAM(Method):
    """Guided Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391): guided backpropagation times Grad-CAM.

    What the class needs where it is: the map's sharpness, and the CAM's choice of class. The attribution is of
    the images' shape, signed; None for one of several inputs that has no positions.

    Args:
        model: as for :class:`GradCAM`.
        layer: as for :class:`GradCAM`.
        interpolation: as for :class:`GradCAM`.
        output: as for :class:`Method`.
        batch_size: as for :class:`Method`.
        reducer: as for :class:`Method`.
        smooth: as for :class:`Method`.
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

    @answering
    def __init__(
        self,
        model: Model,
        layer: Layer,
        *,
        interpolation: Interpolation = "linear",
        output: str | int | None = None,
        batch_size: int | None = None,
        reducer: Reducer | None = None,
        smooth: Literal["guide"] | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        _require_interpolation(interpolation)
        super().__init__(
            model,
            output=output,
            batch_size=batch_size,
            reducer=reducer,
            smooth=smooth,
            undo_head=undo_head,
            vouch=vouch,
        )
        self.interpolation = interpolation
        self.at_layer = self.subject.beginning_at(layer)
        self.at_layer.check()

    @property
    def plan(self) -> Plan:
        cam = Cam(self.at_layer.input_layer, self._matrix, is_factor=True, is_linear=self.interpolation == "linear")
        return Plan(self.rule, self.reducer, cam=cam)

    def _matrix(self, before: int, after: int) -> NDArray[np.float64]:
        return _interpolation(before, after, self.interpolation)

    def _as_it_is(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch by the product of both maps."""
        inside = self.at_layer.backend(inputs)
        cams = _cams(inside, inputs, inside.attribute(inputs, weigh, [PLAIN], score)[0], self.interpolation)
        guided = super()._as_it_is(backend, inputs, weigh, score)
        pairs = zip(guided.attribution, cams.attribution, strict=True)
        maps = [cam.map(lambda cam, gradient: gradient * cam, guided_map) for guided_map, cam in pairs]
        return replace(guided, attribution=maps)


def _require_interpolation(interpolation: str) -> None:
    names = get_args(Interpolation)
    require(
        Requirement(
            "interpolation",
            interpolation,
            interpolation in names,
            f"one of {', '.join(names)}",
            "Pass one of these names.",
        )
    )


def _cams(backend: Backend, inputs: Inputs, inside: Attributed, interpolation: Interpolation) -> Attributed:
    """Return the maps for each label, of the images' kind and layout, with one channel."""
    assert inside.activation is not None
    activation, axis = as_numpy(inside.activation), backend.channel_axis(inside.activation)
    maps = []
    for label in inside.attribution:
        if axis is None:
            raise _no_positions(activation.shape, inputs)
        (gradient,) = label.arrays
        g = np.moveaxis(as_numpy(gradient), axis, 1).astype(np.float64)
        weights = g.mean(axis=tuple(range(2, g.ndim)), keepdims=True)
        cam = np.maximum((weights * np.moveaxis(activation, axis, 1)).sum(axis=1), 0)
        maps.append(inputs.map(partial(_fitted, backend, cam, interpolation)))
        if all(fitted is None for fitted in maps[-1].arrays):
            raise _no_positions(cam.shape, inputs)
    return Attributed(maps, inside.scores, inside.outputs, inside.coverage, inside.head)


def _fitted(backend: Backend, cam: NDArray[np.float64], interpolation: Interpolation, array: Any) -> Any:
    """Return the map at the size of one of the model's inputs; None if it has no such positions, or is of integers."""
    axis = backend.channel_axis(array)
    if axis is None or not backend.has_positions(array, cam.ndim + 1):
        return None
    sizes = [size for position, size in enumerate(array.shape) if position not in (0, axis)]
    return backend.from_numpy(np.expand_dims(resized(cam, sizes, interpolation), axis), array)


def _no_positions(shape: tuple[int, ...], inputs: Inputs) -> OptionError:
    images = ", ".join(str(tuple(array.shape)) for array in inputs.arrays)
    return OptionError(
        f"layer and images must both have positions, along as many axes; received a layer of shape {shape} (without "
        f"channels, if it has some) and images of shape {images}. Name a convolutional layer."
    )


def resized(maps: NDArray[np.float64], sizes: list[int], interpolation: Interpolation = "linear") -> NumpyArray:
    """Return maps ``(N, ...)`` with positions of other sizes, interpolated along each axis."""
    for axis, size in enumerate(sizes, start=1):
        matrix = _interpolation(maps.shape[axis], size, interpolation)
        maps = np.moveaxis(np.tensordot(maps, matrix, (axis, 1)), -1, axis)
    return maps


def _interpolation(before: int, after: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """Return the matrix ``(after, before)`` that interpolates; the centres of first and last pixel are half inside."""
    matrix = np.zeros((after, before))
    if interpolation == "nearest":
        matrix[np.arange(after), np.arange(after) * before // after] = 1
        return matrix
    place = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    low = np.minimum(place.astype(int), max(before - 2, 0))
    share = place - low
    matrix[np.arange(after), low] += 1 - share
    matrix[np.arange(after), np.minimum(low + 1, before - 1)] += share
    return matrix
