"""The idea: what a ReLU lets through on the way back.

Saliency, DeconvNet and Guided Backpropagation run the same network forward and differ in one thing
only. With x a ReLU's input and g the gradient that arrives at its output, what leaves towards x is:

    method            leaves towards x           the gate looks
    Saliency          g * 1[x > 0]               forward
    DeconvNet         g * 1[g > 0]               backward
    GuidedBackprop    g * 1[x > 0] * 1[g > 0]    both

With x = [5, 0, -5, 10] and g = [1, -2, 3, -4] that is [1, 0, 0, -4], [1, 0, 3, 0] and [1, 0, 0, 0].

For any clipping non-linearity (ReLU6, a threshold) the forward gate is the activation's own local
derivative: guided(g) = derivative(x) * max(g, 0). A derivative is linear in g, so that is the same as to
close what the derivative made of g where g is not positive. At x = 0, and at a cap, the forward gate is
closed, whatever the framework's own convention is. NaN is neither positive nor not: it goes on, and is seen.

A network without ReLUs has no guided map: the method is about which units are on, and a smooth activation is
never quite off. ``smooth="guide"`` applies the same identity to it all the same, derivative(x) * max(g, 0).
That is an extension of the method, and not the method.

Backends call :meth:`ReluRule.leaving` wherever a gradient meets a ReLU. Where they have a faster form of one of
the rules here, a test compares it with this one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import numpy as np

from guided_backprop.arrays import Tensor

#: The activations that ``smooth="guide"`` acts on, by the names that ``coverage`` gives them: those that stand where
#: a ReLU could. SELU is an ELU in PyTorch. Gates and heads (sigmoid, tanh, softmax) keep their derivative.
SMOOTH = frozenset("celu elu gelu hardswish leaky_relu mish prelu rrelu selu silu softplus".split())


class ArrayFunctions(Protocol):
    """What a rule is written with, the same in all frameworks; as NumPy has them, axes by ``axis=``.

    It is ``numpy``, ``jax.numpy``, ``tensorflow.experimental.numpy``, or what stands for these in PyTorch. A framework
    has more, of its own.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import ArrayFunctions
        >>> def strongest(g, xp: ArrayFunctions):
        ...     return xp.max(xp.abs(g), axis=1)
        >>> strongest(np.array([[1.0, -3.0]]), np).tolist()
        [3.0]
    """

    abs: Callable[..., Tensor]
    max: Callable[..., Tensor]
    maximum: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    min: Callable[..., Tensor]
    minimum: Callable[..., Tensor]
    reshape: Callable[..., Tensor]
    sign: Callable[..., Tensor]
    sort: Callable[..., Tensor]
    sqrt: Callable[..., Tensor]
    sum: Callable[..., Tensor]
    where: Callable[..., Tensor]
    zeros_like: Callable[..., Tensor]


class ReluRule(ABC):
    """What a ReLU lets through on the way back.

    A rule with parameters is a frozen dataclass: backends keep what they built for equal rules.

    Attributes:
        name: how ``coverage`` calls a ReLU that was treated this way.
        needs_every_relu: whether a ReLU that is missed makes the map wrong. Then there must be one, and what may hide
            one is refused.
        reads_values: whether it looks at x or y. Then they are kept for the backward pass, which takes memory.
        guides_smooth: whether it acts on smooth activations as well.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import GUIDED
        >>> x, g = np.array([5.0, 0.0, -5.0, 10.0]), np.array([1.0, -2.0, 3.0, -4.0])
        >>> GUIDED.leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [1.0, 0.0, 0.0, 0.0]
        >>> GUIDED.is_shut_by_gate, GUIDED.guides("gelu"), GUIDED.treatment("gelu")
        (True, False, 'plain')
    """

    name: ClassVar[str]
    needs_every_relu: ClassVar[bool] = True
    reads_values: ClassVar[bool] = False
    guides_smooth: bool = False

    @abstractmethod
    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return what leaves towards x: an array like ``derived``.

        Args:
            g: the gradient that arrives at the output; ``(N, ...)``, of any sign, NaN and infinities included.
            derived: what the activation's own derivative makes of g, of the shape of g: 0 where the gate is closed.
            x: the activation's input, of that shape; None where it is not known. See ``reads_values``.
            y: its output, likewise.
            xp: the functions on arrays of that framework, by NumPy's names.
        """

    @property
    def is_shut_by_gate(self) -> bool:
        """Whether nothing leaves where the gate is closed.

        Then the rule can act on what arrives at a ReLU that is spelled as arithmetic, and the own derivative of that
        does the rest.
        """
        g, shut = np.array([1.0, -1.0]), np.zeros(2)
        return not self.leaving(g, shut, g - 2, shut, cast("ArrayFunctions", np)).any()

    def guides(self, activation: str) -> bool:
        """Tell whether the rule acts on an activation that is no ReLU."""
        return self.guides_smooth and activation in SMOOTH

    def treatment(self, activation: str) -> str:
        """Return what ``coverage`` says of an activation that is no ReLU."""
        return self.name if self.guides(activation) else PLAIN.name


def closed(is_closed: Tensor, gradient: Tensor, xp: ArrayFunctions) -> Tensor:
    """Return a gradient with nothing where the gate is closed.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import closed
        >>> closed(np.array([True, False]), np.array([2.0, 3.0]), np).tolist()
        [0.0, 3.0]
    """
    return xp.where(is_closed, xp.zeros_like(gradient), gradient)


@dataclass(frozen=True)
class Plain(ReluRule):
    """The derivative itself: a ReLU passes what its input let pass.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import Plain
        >>> x, g = np.array([5.0, 0.0, -5.0, 10.0]), np.array([1.0, -2.0, 3.0, -4.0])
        >>> Plain().leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [1.0, -0.0, 0.0, -4.0]
    """

    name = "plain"
    needs_every_relu = False

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return g * 1[x > 0]."""
        return derived


@dataclass(frozen=True)
class Deconv(ReluRule):
    """DeconvNet: a ReLU passes every positive gradient.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import Deconv
        >>> x, g = np.array([5.0, 0.0, -5.0, 10.0]), np.array([1.0, -2.0, 3.0, -4.0])
        >>> Deconv().leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [1.0, 0.0, 3.0, 0.0]
    """

    name = "deconv"

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return g * 1[g > 0]."""
        return closed(g <= 0, g, xp)


@dataclass(frozen=True)
class Guided(ReluRule):
    """Guided Backpropagation: a ReLU passes positive gradients, and only where its input was positive.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import Guided
        >>> x, g = np.array([5.0, 0.0, -5.0, 10.0]), np.array([1.0, -2.0, 3.0, -4.0])
        >>> Guided().leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [1.0, 0.0, 0.0, 0.0]
    """

    guides_smooth: bool = False

    name = "guided"

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return g * 1[x > 0] * 1[g > 0]."""
        return closed(g <= 0, derived, xp)


@dataclass(frozen=True)
class Rectified(ReluRule):
    """RectGrad (Kim et al. 2019, arXiv:1902.04893): a ReLU passes what matters most in its layer, of either sign.

    What matters is the ReLU's output times the gradient that arrives; it passes above that product's percentile over
    one image's values in that layer. With a threshold of 0 in its place this is Guided Backpropagation. Where the
    percentile is negative, the paper's formula lets gradients through ReLUs that are off; here they stay shut.

    Attributes:
        percentile: from 0 to 100, between values linearly.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import Rectified
        >>> x, g = np.array([[5.0, 0.0, -5.0, 10.0]]), np.array([[1.0, -2.0, 3.0, -4.0]])
        >>> Rectified(50).leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [[1.0, 0.0, 0.0, 0.0]]
    """

    percentile: float = 98.0

    name = "rectified"
    reads_values = True

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return g * 1[x > 0] * 1[y g > its percentile]."""
        importance = y * g
        count = math.prod(g.shape[1:])
        ranked = xp.sort(xp.reshape(importance, (-1, count)), axis=-1)
        place = (count - 1) * self.percentile / 100
        low, high = ranked[:, math.floor(place)], ranked[:, math.ceil(place)]
        threshold = low + (high - low) * (place - math.floor(place))
        return closed(importance <= xp.reshape(threshold, (-1, *[1] * (len(g.shape) - 1))), derived, xp)


@dataclass(frozen=True)
class Open(ReluRule):
    """Everything passes, as if there were no ReLU: for what a value depends on, and not for maps.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.rules import Open
        >>> x, g = np.array([5.0, 0.0, -5.0, 10.0]), np.array([1.0, -2.0, 3.0, -4.0])
        >>> Open().leaving(g, g * (x > 0), x, np.maximum(x, 0), np).tolist()
        [1.0, -2.0, 3.0, -4.0]
    """

    name = "open"
    needs_every_relu = False

    def leaving(self, g: Tensor, derived: Tensor, x: Tensor | None, y: Tensor | None, xp: ArrayFunctions) -> Tensor:
        """Return g."""
        return g


PLAIN = Plain()
DECONV = Deconv()
GUIDED = Guided()
OPEN = Open()
