"""The three methods that differ in one thing: what a ReLU lets through on the way back."""

from guided_backprop.methods.method import Method
from guided_backprop.rules import DECONV, GUIDED, PLAIN


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
