"""Quantus calls this to explain: ``metric(model, x_batch, y_batch, explain_func=guided_backprop.quantus.explain)``."""

from collections.abc import Callable, Mapping

import numpy as np

from guided_backprop.arrays import Labels, Model, NumpyArray, Tensor
from guided_backprop.errors import OptionError
from guided_backprop.methods.cam import GradCAM, GuidedGradCAM
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.method import Method

_METHODS: Mapping[str, Callable[..., Method]] = {
    kind.__name__: kind for kind in (GuidedBackprop, DeconvNet, Saliency, GradCAM, GuidedGradCAM)
}


# Quantus passes what its own ``explain_func_kwargs`` holds, by name: the only function here that takes options so.
def explain(
    model: Model, inputs: Tensor, targets: Labels, *, method: str = "GuidedBackprop", **options: object
) -> NumpyArray:
    """Explain as Quantus' ``explain_func`` does.

    Args:
        model: a PyTorch module in eval mode, a Keras model, or a function.
        inputs: ``(N, ...)`` numbers in the model's layout; for a PyTorch module they are brought to the dtype and the
            device of its parameters.
        targets: class ids ``(N,)``, or another form of labels.
        method: "GuidedBackprop", "DeconvNet", "Saliency", "GradCAM" or "GuidedGradCAM"; given to Quantus as
            ``explain_func_kwargs={"method": ...}``, as are all options.
        options: the options of the method, such as ``output_layer``, or ``layer`` for Grad-CAM.

    Returns:
        The attribution as a NumPy array of the shape of ``inputs``; Grad-CAM's and reduced ones have no channel axis.

    Raises:
        OptionError: there is no such method or option.
        GuidedBackpropError: all that :meth:`guided_backprop.Method.explain` raises.

    Example:
        >>> import numpy as np, torch
        >>> from guided_backprop.quantus import explain
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> explain(model=model, inputs=np.ones((5, 4)), targets=np.ones(5, int)).shape
        (5, 4)
    """
    if method not in _METHODS:
        raise OptionError(f"method must be one of {', '.join(_METHODS)}; received method={method!r}. Pass a name.")
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    if parameter is not None:
        inputs = parameter.new_tensor(np.asarray(inputs))
    return np.asarray(_METHODS[method](model, **options).explain(inputs, targets))
