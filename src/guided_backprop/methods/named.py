"""The methods by name, as a command and :func:`guided_backprop.explain_photos` take them."""

from collections.abc import Mapping

from guided_backprop.arrays import Layer, Model
from guided_backprop.errors import GuidedBackpropError, OptionError
from guided_backprop.methods.cam import GradCAM, GuidedGradCAM
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.method import Method, Reducer
from guided_backprop.methods.smooth_grad import SmoothGrad
from guided_backprop.subject import layer_names

_PLAIN: Mapping[str, type[Method]] = {
    "guided-backprop": GuidedBackprop,
    "deconvnet": DeconvNet,
    "saliency": Saliency,
}
_OF_LAYERS = ("grad-cam", "guided-gradcam")
METHODS = (*_PLAIN, *_OF_LAYERS, "smoothgrad")
# How many layers an error names.
_SUGGESTED = 6

Made = Method | SmoothGrad


def method_of(
    name: str, network: Model, layer: Layer = None, *, reducer: Reducer | None = None, batch_size: int | None = None
) -> Made:
    """Return a method for a network.

    Args:
        name: one of :data:`METHODS`; "smoothgrad" is SmoothGrad of Saliency.
        network: the network.
        layer: for Grad-CAM and Guided Grad-CAM, the layer whose positions count.
        reducer: how channels are reduced.
        batch_size: how many images are explained at once.

    Raises:
        OptionError: a layer is missing, or given to a method that has none; or Grad-CAM, which has no channels, is to
            reduce them.
    """
    if name not in METHODS:
        raise OptionError(f"method must be one of {', '.join(METHODS)}; received {name!r}. Pass one of these.")
    if name not in _OF_LAYERS:
        if layer is not None:
            raise OptionError(
                f"layer is for {' and '.join(_OF_LAYERS)}; received it with method {name!r}. Leave it out."
            )
        plain = _PLAIN.get(name, Saliency)(network, reducer=reducer, batch_size=batch_size)
        return plain if name in _PLAIN else SmoothGrad(plain)
    if layer is None:
        raise OptionError(
            f"method {name!r} must have a layer, usually the last before positions are pooled; received none. Pass "
            f"layer (--layer), one of its names{_last(network)}."
        )
    if name == "guided-gradcam":
        return GuidedGradCAM(network, layer, reducer=reducer, batch_size=batch_size)
    if reducer is not None:
        raise OptionError("reducer reduces channels; received it with method 'grad-cam', which has none. Leave it out.")
    return GradCAM(network, layer, batch_size=batch_size)


def _last(network: Model) -> str:
    try:
        names = layer_names(network)
    except GuidedBackpropError:
        return ""
    return f", the last of which are {', '.join(names[-_SUGGESTED:])}"
