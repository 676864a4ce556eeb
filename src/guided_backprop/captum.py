"""The methods under Captum's names and with Captum's calls, for PyTorch: to switch, change the import.

    from guided_backprop.captum import Deconvolution, GuidedBackprop, GuidedGradCam, Saliency
    from guided_backprop.captum import NeuronDeconvolution, NeuronGuidedBackprop

Where Captum is installed they are subclasses of its own ``GradientAttribution``, so that what it builds on methods
takes them: ``captum.attr.NoiseTunnel``, ``captum.metrics``.

Differences to Captum are that every ReLU counts, however it is written, or an error says which one cannot;
that the model is not hooked; and that it has to be in eval mode. As in Captum, and unlike in the rest of this
package, the score is the model's own output: a final softmax stays.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import numpy as np

from guided_backprop.arrays import Images, Inputs, Labels, Layer, Model
from guided_backprop.errors import LabelError, NoReluError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.captum import NeuronSelector, Target, of_neurons, of_target
from guided_backprop.methods import cam, gradients
from guided_backprop.methods.method import Method

__all__ = [
    "Deconvolution",
    "GuidedBackprop",
    "GuidedGradCam",
    "NeuronDeconvolution",
    "NeuronGuidedBackprop",
    "Saliency",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class GradientAttribution:
    """What is used here of Captum's class of this name, which takes its place where Captum is installed."""

    def __init__(self, forward_func: Model) -> None:
        self.forward_func = forward_func


class NeuronAttribution:
    """What is used here of Captum's class of this name, which takes its place where Captum is installed."""

    def __init__(self, forward_func: Model, layer: Layer, device_ids: list[int] | None = None) -> None:
        self.forward_func, self.layer, self.device_ids = forward_func, layer, device_ids


# Captum has no types: to a type checker, the classes above are what there is.
if not TYPE_CHECKING:
    with suppress(ImportError):
        from captum.attr import GradientAttribution, NeuronAttribution


def _captums(attribute: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the same with a ``__wrapped__``, which is what Captum calls of a method that it is given."""

    @wraps(attribute)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return attribute(*args, **kwargs)

    return call


class _Method(GradientAttribution):
    """What the methods have in common."""

    def attribute_future(self) -> NoReturn:
        """Raise NotImplementedError, as in Captum."""
        raise NotImplementedError(
            f"a method must be asked by attribute; received attribute_future of {type(self).__name__}. Call attribute."
        )


class Saliency(_Method):
    """``captum.attr.Saliency``: the gradient, or its magnitude.

    Args:
        forward_func: the model, or a function of tensors.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import Saliency
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> Saliency(model).attribute(torch.ones(5, 4), target=1, abs=False).shape
        torch.Size([5, 4])
    """

    def __init__(self, forward_func: Model) -> None:
        super().__init__(forward_func)

    @_captums
    def attribute(
        self,
        inputs: Images,
        target: Target = None,
        abs: bool = True,  # noqa: A002
        additional_forward_args: object = None,
    ) -> Images:
        """Explain as :meth:`GuidedBackprop.attribute` does; ``abs`` returns magnitudes."""
        model = _with(self.forward_func, additional_forward_args)
        signed = _of_output(gradients.Saliency(model, undo_head=False), inputs, target)
        return signed.map(lambda array: array.abs()).images if abs else signed.images


class GuidedBackprop(_Method):
    """``captum.attr.GuidedBackprop``.

    Args:
        model: the model.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> GuidedBackprop(model).attribute(torch.ones(5, 4), target=1).shape
        torch.Size([5, 4])
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)

    @_captums
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
        model = _with(self.forward_func, additional_forward_args)
        return _of_output(gradients.GuidedBackprop(model, undo_head=False), inputs, target).images


class Deconvolution(_Method):
    """``captum.attr.Deconvolution``.

    Args:
        model: the model.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import Deconvolution
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> Deconvolution(model).attribute(torch.ones(5, 4), target=1).shape
        torch.Size([5, 4])
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)

    @_captums
    def attribute(self, inputs: Images, target: Target = None, additional_forward_args: object = None) -> Images:
        """Explain as :meth:`GuidedBackprop.attribute` does."""
        model = _with(self.forward_func, additional_forward_args)
        return _of_output(gradients.DeconvNet(model, undo_head=False), inputs, target).images


class GuidedGradCam(_Method):
    """``captum.attr.GuidedGradCam``, at a layer.

    Args:
        model: the model.
        layer: the layer itself.
        device_ids: of no use here: nothing is put together from several devices.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import GuidedGradCam
        >>> layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2)]
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> GuidedGradCam(model, model[0]).attribute(torch.ones(5, 3, 8, 8), target=1).shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(self, model: Model, layer: Layer, device_ids: list[int] | None = None) -> None:
        super().__init__(model)
        self.layer, self.device_ids = layer, device_ids

    @_captums
    def attribute(
        self,
        inputs: Images,
        target: Target = None,
        additional_forward_args: object = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Images:
        """Explain as :meth:`GuidedBackprop.attribute` does.

        Args:
            inputs: as there.
            target: as there.
            additional_forward_args: as there.
            interpolate_mode: "nearest", which is Captum's default; or "linear", "bilinear" or "trilinear", the
                paper's way, along all the axes that images have.
            attribute_to_layer_input: take the CAM of what the layer is given, instead of what it returns.

        Returns:
            The attribution; as in Captum an empty tensor for one of several inputs that has no positions.

        Raises:
            OptionError: there is no such interpolation, or neither layer nor inputs have positions.
            GuidedBackpropError: as there.
        """
        if interpolate_mode not in ("nearest", "linear", "bilinear", "trilinear"):
            raise OptionError(
                "interpolate_mode must be nearest, linear, bilinear or trilinear; received "
                f"interpolate_mode={interpolate_mode!r}. Pass one of these names."
            )
        interpolation: cam.Interpolation = "nearest" if interpolate_mode == "nearest" else "linear"
        model = _with(self.forward_func, additional_forward_args)
        model, layer = _at(model, self.layer, is_input=attribute_to_layer_input)
        method = cam.GuidedGradCAM(model, layer, interpolation=interpolation, undo_head=False)
        given, maps = Inputs.of(inputs), _of_output(method, inputs, target).arrays
        pairs = zip(given.arrays, maps, strict=True)
        return given.like([array.new_empty(0) if one is None else one for array, one in pairs]).images


class _Neuron(_Method, NeuronAttribution):
    """What the methods of a neuron have in common."""

    _kind: type[Method]

    def __init__(self, model: Model, layer: Layer, device_ids: list[int] | None = None) -> None:
        NeuronAttribution.__init__(self, model, layer, device_ids)
        GradientAttribution.__init__(self, model)

    def _attribution(self, inputs: Images, selector: NeuronSelector, further: object, *, is_input: bool) -> Images:
        model = _with(self.forward_func, further)
        model, layer = _at(model, self.layer, is_input=is_input)
        labels = of_neurons(selector, Inputs.of(inputs).count)
        try:
            return _explained(self._kind(model, output_layer=layer, undo_head=False), inputs, labels).attribution
        except NoReluError:
            # In front of the first layer there is nothing that a rule could act on: there it is the plain gradient.
            plain = _explained(gradients.Saliency(model, output_layer=layer, undo_head=False), inputs, labels)
            if plain.coverage:
                raise
            return plain.attribution


class NeuronGuidedBackprop(_Neuron):
    """``captum.attr.NeuronGuidedBackprop``, of neurons of a layer.

    Args:
        model: the model.
        layer: the layer itself.
        device_ids: of no use here: nothing is put together from several devices.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import NeuronGuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> NeuronGuidedBackprop(model, model[1]).attribute(torch.ones(5, 4), 2).shape
        torch.Size([5, 4])
    """

    _kind = gradients.GuidedBackprop

    @_captums
    def attribute(
        self,
        inputs: Images,
        neuron_selector: NeuronSelector,
        additional_forward_args: object = None,
        attribute_to_neuron_input: bool = False,
    ) -> Images:
        """Explain neurons of the layer.

        Args:
            inputs: as for :meth:`GuidedBackprop.attribute`.
            neuron_selector: what indexes the layer's output for one image: an integer, or a tuple of integers and
                slices, whose neurons are added up; or a function of the layer's output, to one number for each image
                or one for all.
            additional_forward_args: as there.
            attribute_to_neuron_input: explain what the layer is given, instead of what it returns.

        Returns:
            The attribution, of the form, shape, dtype and device of ``inputs``.

        Raises:
            LabelError: the selector does not index the layer's output, or returns something else.
            OptionError: the model has no such layer.
            GuidedBackpropError: all that :meth:`guided_backprop.Method.explain` raises.
        """
        return self._attribution(inputs, neuron_selector, additional_forward_args, is_input=attribute_to_neuron_input)


class NeuronDeconvolution(_Neuron):
    """``captum.attr.NeuronDeconvolution``, of neurons of a layer.

    Args:
        model: the model.
        layer: the layer itself.
        device_ids: of no use here: nothing is put together from several devices.

    Example:
        >>> import torch
        >>> from guided_backprop.captum import NeuronDeconvolution
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> NeuronDeconvolution(model, model[1]).attribute(torch.ones(5, 4), 2).shape
        torch.Size([5, 4])
    """

    _kind = gradients.DeconvNet

    @_captums
    def attribute(
        self,
        inputs: Images,
        neuron_selector: NeuronSelector,
        additional_forward_args: object = None,
        attribute_to_neuron_input: bool = False,
    ) -> Images:
        """Explain as :meth:`NeuronGuidedBackprop.attribute` does."""
        return self._attribution(inputs, neuron_selector, additional_forward_args, is_input=attribute_to_neuron_input)


def _with(model: Model, further: object) -> Model:
    """Return the model with further arguments, if there are any."""
    if further is None:
        return model
    layers = import_module("guided_backprop.backends.torch.model.layers")
    return layers.with_arguments(model, further if isinstance(further, tuple) else (further,))


def _at(model: Model, layer: Layer, *, is_input: bool) -> tuple[Model, Layer]:
    """Return a model and the layer of it that returns what is meant: the layer's output, or what it is given."""
    if not is_input:
        return model, layer
    entered, entry = import_module("guided_backprop.backends.torch.model.entry").in_front_of(model, layer)
    return entered, entry


def _of_output(method: Method, inputs: Images, target: Target) -> Inputs:
    """Return the attribution of the model's output at a target of Captum's."""
    explanations = _explained(method, inputs, of_target(target))
    shape = explanations.outputs.shape
    if target is None and np.prod(shape[1:]) != 1:
        raise LabelError(
            "target must be given where an image's output has several values; received target=None and an output of "
            f"shape {shape}. Pass a class id."
        )
    return Inputs.of(explanations.attribution)


def _explained(method: Method, inputs: Images, labels: Labels) -> Explanations:
    """Explain, with labels that may be a function with an error of its own."""
    try:
        return method.explain(inputs, labels)
    except LabelError as error:
        # It comes inside of what is said of any function that fails.
        if isinstance(error.__cause__, LabelError):
            raise error.__cause__ from None
        raise
