"""Quantus calls this to explain: ``metric(model, x_batch, y_batch, explain_func=guided_backprop.quantus.explain)``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import guided_backprop
from guided_backprop.errors import OptionError

_METHODS = ("GuidedBackprop", "DeconvNet", "Saliency", "GradCAM", "GuidedGradCAM")


def explain(
    model: Any, inputs: Any, targets: Any, *, method: str = "GuidedBackprop", **options: Any
) -> NDArray[np.floating[Any]]:
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
    explained = getattr(guided_backprop, method)(model, **options).explain(inputs, targets)
    return np.asarray(explained)
