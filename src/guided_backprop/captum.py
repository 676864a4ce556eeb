"""The methods under Captum's names and with Captum's calls, for PyTorch: to switch, change the import.

    from guided_backprop.captum import Deconvolution, GuidedBackprop, GuidedGradCam, Saliency

Differences to Captum are that every ReLU counts, however it is written, or an error says which one cannot;
that the model is not hooked; and that it has to be in eval mode. As in Captum, and unlike in the rest of this
package, the score is the model's own output: a final softmax stays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import numpy as np

from guided_backprop.arrays import Images, Inputs, Labels, Layer, Model, Tensor, as_numpy
from guided_backprop.errors import LabelError, OptionError
from guided_backprop.methods import cam, gradients
from guided_backprop.methods.method import Method

# What Captum calls a target: a class id, what one image's output is indexed by, or one of these for each image.
Target = int | tuple[int, ...] | Sequence[tuple[int, ...]] | Tensor | None


class Saliency:
    """``captum.attr.Saliency``: the gradient, or its magnitude."""

    def __init__(self, forward_func: Model) -> None:
        self._model = forward_func

    def attribute(
        self,
        inputs: Images,
        target: Target = None,
        abs: bool = True,  # noqa: A002
        additional_forward_args: object = None,
    ) -> Images:
        """Explain as :meth:`GuidedBackprop.attribute` does; ``abs`` returns magnitudes."""
        make = partial(gradients.Saliency, undo_head=False)
        signed = _attribution(make, self._model, inputs, target, additional_forward_args)
        return Inputs.of(signed).map(lambda array: array.abs()).images if abs else signed


class GuidedBackprop:
    """``captum.attr.GuidedBackprop``.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> GuidedBackprop(model).attribute(torch.ones(5, 4), target=1).shape
        torch.Size([5, 4])
    """

    _kind: type[Method] = gradients.GuidedBackprop

    def __init__(self, model: Model) -> None:
        self._model = model

    def attribute(self, inputs: Images, target: Target = None, additional_forward_args: object = None) -> Images:
        """Explain the model's output at ``target``.

        Args:
            inputs: a tensor ``(N, ...)``, or a tuple of them, the model's first arguments.
            target: a class id, ids ``(N,)`` as a tensor or a list, a tuple that indexes what one image's output
                has, or a list of N tuples; None for a model that returns one number for each image.
            additional_forward_args: the model's further arguments, of any kind; a tuple, or the one there is.

        Returns:
            The attribution, of the form, shape, dtype and device of ``inputs``.

        Raises:
            LabelError: the target does not index the output, or is missing.
            GuidedBackpropError: all that :meth:`guided_backprop.Method.explain` raises.
        """
        make = partial(self._kind, undo_head=False)
        return _attribution(make, self._model, inputs, target, additional_forward_args)


class Deconvolution(GuidedBackprop):
    """``captum.attr.Deconvolution``."""

    _kind = gradients.DeconvNet


class GuidedGradCam:
    """``captum.attr.GuidedGradCam``, at the output of a layer.

    Args:
        model: the model.
        layer: the layer itself.
    """

    def __init__(self, model: Model, layer: Layer) -> None:
        self._model, self._layer = model, layer

    def attribute(
        self,
        inputs: Images,
        target: Target = None,
        additional_forward_args: object = None,
        interpolate_mode: str = "nearest",
    ) -> Images:
        """Explain as :meth:`GuidedBackprop.attribute` does.

        Args:
            inputs: as there.
            target: as there.
            additional_forward_args: as there.
            interpolate_mode: "nearest", which is Captum's default; or "linear", "bilinear" or "trilinear", the
                paper's way, along all the axes that images have.
        """
        if interpolate_mode not in ("nearest", "linear", "bilinear", "trilinear"):
            raise OptionError(
                "interpolate_mode must be nearest, linear, bilinear or trilinear; received "
                f"interpolate_mode={interpolate_mode!r}. Pass one of these names."
            )
        interpolation: cam.Interpolation = "nearest" if interpolate_mode == "nearest" else "linear"
        make = partial(cam.GuidedGradCAM, layer=self._layer, interpolation=interpolation, undo_head=False)
        return _attribution(make, self._model, inputs, target, additional_forward_args)


def _attribution(
    make: Callable[[Model], Method], model: Model, inputs: Images, target: Target, further: object
) -> Images:
    if further is not None:
        layers = import_module("guided_backprop.backends.torch.model.layers")
        model = layers.with_arguments(model, further if isinstance(further, tuple) else (further,))
    explanations = make(model).explain(inputs, _labels(target, Inputs.of(inputs).count))
    shape = explanations.outputs.shape
    if target is None and np.prod(shape[1:]) != 1:
        raise LabelError(
            "target must be given where an image's output has several values; received target=None and an output of "
            f"shape {shape}. Pass a class id."
        )
    return explanations.attribution


def _labels(target: Target, count: int) -> Labels:
    """Return a target of Captum's as labels."""
    if isinstance(target, list) and all(isinstance(entry, tuple) for entry in target):
        return target
    if target is None or isinstance(target, (int, tuple)):
        return target
    ids = as_numpy(target)
    # One number is for all images, in whatever form it is given.
    return np.full(count, ids.reshape(-1)[0]) if ids.size == 1 else ids
