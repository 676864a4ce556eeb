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
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReluRule:
    """What a ReLU lets through on the way back.

    Attributes:
        name: how ``coverage`` calls a ReLU that was treated this way.
        forward_gate: multiply by the ReLU's own derivative, so only positive inputs pass.
        backward_gate: let only positive gradients pass.
    """

    name: str
    forward_gate: bool
    backward_gate: bool


PLAIN = ReluRule("plain", forward_gate=True, backward_gate=False)
DECONV = ReluRule("deconv", forward_gate=False, backward_gate=True)
GUIDED = ReluRule("guided", forward_gate=True, backward_gate=True)
