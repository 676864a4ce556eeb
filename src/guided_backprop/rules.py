"""The idea: what a ReLU lets through on the way back.

Saliency, DeconvNet and Guided Backpropagation run the same network forward and differ in one thing
only. With x a ReLU's input and g the gradient that arrives at its output, what leaves towards x is:

    method            leaves towards x           the gate looks
    Saliency          g * 1[x > 0]               forward
    DeconvNet         g * 1[g > 0]               backward
    GuidedBackprop    g * 1[x > 0] * 1[g > 0]    both

With x = [5, 0, -5, 10] and g = [1, -2, 3, -4] that is [1, 0, 0, -4], [1, 0, 3, 0] and [1, 0, 0, 0].

For any clipping non-linearity (ReLU6, a threshold) the forward gate is the activation's own local
derivative, applied to what the backward gate let through: guided(g) = derivative(x) * max(g, 0).
At x = 0, and at a cap, the forward gate is closed, whatever the framework's own convention is.

A network without ReLUs has no guided map: the method is about which units are on, and a smooth activation is
never quite off. ``smooth="guide"`` applies the same identity to it all the same, derivative(x) * max(g, 0).
That is an extension of the method, and not the method.
"""

from dataclasses import dataclass

#: The activations that ``smooth="guide"`` acts on, by the names that ``coverage`` gives them: those that stand where
#: a ReLU could. SELU is an ELU in PyTorch. Gates and heads (sigmoid, tanh, softmax) keep their derivative.
SMOOTH = frozenset("celu elu gelu hardswish leaky_relu mish prelu rrelu selu silu softplus".split())


@dataclass(frozen=True, slots=True)
class ReluRule:
    """What a ReLU lets through on the way back.

    Attributes:
        name: how ``coverage`` calls a ReLU that was treated this way.
        forward_gate: multiply by the ReLU's own derivative, so only positive inputs pass.
        backward_gate: let only positive gradients pass.
        guides_smooth: let only positive gradients pass at smooth activations as well.
    """

    name: str
    forward_gate: bool
    backward_gate: bool
    guides_smooth: bool = False

    def guides(self, activation: str) -> bool:
        """Tell whether the rule acts on an activation that is no ReLU."""
        return self.guides_smooth and activation in SMOOTH

    def treatment(self, activation: str) -> str:
        """Return what ``coverage`` says of an activation that is no ReLU."""
        return self.name if self.guides(activation) else PLAIN.name


PLAIN = ReluRule("plain", forward_gate=True, backward_gate=False)
DECONV = ReluRule("deconv", forward_gate=False, backward_gate=True)
GUIDED = ReluRule("guided", forward_gate=True, backward_gate=True)
