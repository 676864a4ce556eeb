"""Rules of a user's own, each one class for all frameworks."""

import math
from dataclasses import dataclass

from guided_backprop.rules import ReluRule


@dataclass(frozen=True)
class Rect(ReluRule):
    """As RectGrad (Kim et al. 2019, arXiv:1902.04893): closed where y * g is among the lowest of its image."""

    share: float

    name = "rect"
    reads_values = True

    def leaving(self, g, derived, x, y, xp):
        importance = y * g
        count, axes = math.prod(g.shape[1:]), len(g.shape) - 1
        ranked = xp.sort(xp.reshape(importance, (-1, count)), axis=-1)
        threshold = xp.reshape(ranked[:, int(self.share * count)], (-1, *[1] * axes))
        return xp.where(importance > threshold, derived, xp.zeros_like(g))


class Halved(ReluRule):
    """Half of every negative gradient passes, wherever the input was; reads neither x nor y, and has no equality."""

    name = "halved"

    def leaving(self, g, derived, x, y, xp):
        assert x is None
        assert y is None
        return xp.where(g < 0, g / 2, g)


class Functions(ReluRule):
    """Uses all functions that a rule can rely on."""

    name = "functions"
    reads_values = True

    def leaving(self, g, derived, x, y, xp):
        rows = xp.reshape(g, (-1, math.prod(g.shape[1:])))
        low, high = (xp.reshape(how(rows, axis=1), (-1, *[1] * (len(g.shape) - 1))) for how in (xp.min, xp.max))
        bounded = xp.minimum(xp.maximum(g, low / 2), high / 2) + xp.maximum(xp.minimum(g, 1.0), -1.0)
        share = xp.sqrt(xp.abs(y)) / (1 + xp.sum(xp.abs(y), axis=-1, keepdims=True) + xp.mean(y * y))
        largest = xp.max(xp.abs(derived))
        return xp.where(xp.sign(y) > 0, bounded * share + xp.sort(g, axis=-1) / (1 + largest), xp.zeros_like(g))
