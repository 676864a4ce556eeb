"""The methods that differ in one thing: what a ReLU lets through on the way back."""

from typing import Any

from guided_backprop.arrays import Model
from guided_backprop.foreign import answering
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_number, require
from guided_backprop.rules import DECONV, GUIDED, PLAIN, Rectified


class Saliency(Method):
    """The gradient itself (Simonyan et al. 2013, arXiv:1312.6034): a ReLU passes what its input let pass.

    Works on anything differentiable.

    Example:
        >>> import torch
        >>> from guided_backprop import Saliency
        >>> images = torch.tensor([[5.0, -5.0, 10.0]])
        >>> Saliency(lambda x: torch.relu(x).sum(1)).explain(images).attribution.tolist()
        [[1.0, 0.0, 1.0]]
    """

    rule = PLAIN


class DeconvNet(Method):
    """DeconvNet (Zeiler and Fergus 2013, arXiv:1311.2901): a ReLU passes every positive gradient.

    Example:
        >>> import torch
        >>> from guided_backprop import DeconvNet
        >>> images, weights = torch.tensor([[5.0, -5.0, 10.0]]), torch.tensor([1.0, 3.0, -4.0])
        >>> DeconvNet(lambda x: torch.relu(x) @ weights).explain(images).attribution.tolist()
        [[1.0, 3.0, 0.0]]
    """

    rule = DECONV


class GuidedBackprop(Method):
    """Guided Backpropagation (Springenberg et al. 2014, arXiv:1412.6806).

    A ReLU passes positive gradients, and only where its input was positive. Every ReLU between score
    and image is treated so, however it is written, or an error says which one cannot be.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop
        >>> images, weights = torch.tensor([[5.0, -5.0, 10.0]]), torch.tensor([1.0, 3.0, -4.0])
        >>> explanations = GuidedBackprop(lambda x: torch.relu(x) @ weights).explain(images)
        >>> explanations.attribution.tolist(), str(explanations.coverage)
        ([[1.0, 0.0, 0.0]], 'relu x1 guided')
    """

    rule = GUIDED


class RectGrad(Method):
    """RectGrad (Kim et al. 2019, arXiv:1902.04893): a ReLU passes what matters most in its layer, of either sign.

    What matters is the ReLU's output times the gradient that arrives there; what passes is above that product's
    percentile over one image's values in that layer. ReLUs read their values, so more of them is kept for the backward
    pass. The paper multiplies the map by the image: ``InputXGradient(RectGrad(model))``.

    Args:
        model: as for :class:`Method`.
        percentile: from 0 to 100; the higher, the less passes.
        options: those of :class:`Method`.

    Raises:
        OptionError: an option has a value that is not offered.

    Example:
        >>> import torch
        >>> from guided_backprop import RectGrad
        >>> images, weights = torch.tensor([[5.0, -5.0, 10.0]]), torch.tensor([1.0, 3.0, -4.0])
        >>> explanations = RectGrad(lambda x: torch.relu(x) @ weights, percentile=50).explain(images)
        >>> explanations.attribution.tolist(), str(explanations.coverage)
        ([[1.0, 0.0, 0.0]], 'relu x1 rectified')
    """

    rule: Rectified = Rectified()

    @answering
    def __init__(self, model: Model, *, percentile: float = 98.0, **options: Any) -> None:
        is_share = is_number(percentile) and 0 <= percentile <= 100
        require(Requirement("percentile", percentile, is_share, "a number from 0 to 100", "Try 98."))
        super().__init__(model, **options)
        self.rule = Rectified(float(percentile))

    def __repr__(self) -> str:
        """Return the method with all that it holds, as :class:`Method` does."""
        return f"{super().__repr__()[:-1]}, percentile={self.rule.percentile:g})"

    @property
    def name(self) -> str:
        """The method's name, with its percentile."""
        return f"RectGrad(percentile={self.rule.percentile:g})"
