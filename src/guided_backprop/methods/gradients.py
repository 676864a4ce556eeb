"""The three methods that differ in one thing: what a ReLU lets through on the way back."""

from guided_backprop.methods.method import Method
from guided_backprop.rules import DECONV, GUIDED, PLAIN


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
