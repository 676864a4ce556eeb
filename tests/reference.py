"""The oracle: a slow and obvious NumPy network with its own backward pass, written from the formulas alone.

No framework, no automatic differentiation, nothing from the library that it checks. Every layer has one
method, ``forward(x) -> (y, backward)``; ``backward(g, rule)`` takes the gradient at y to the gradient at x.
What a call has to remember lives in the ``backward`` that it returns, so one layer may be used many times.

Everything is float64. Images are (n, c, h, w); a pair is (along h, along w).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[int, int]
Rule = Literal["saliency", "deconvnet", "guided"]
Backward = Callable[[Array, Rule], Array]
Generator = np.random.Generator


class Layer(Protocol):
    """What every layer can do."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return y and the function that takes the gradient at y to the gradient at x."""
        ...


def attribution(network: Layer, images: Array, weights: Array, rule: Rule) -> Array:
    """Return the backward pass of ``weights`` (one row per image, one weight per output) under ``rule``."""
    _, backward = network.forward(images)
    return backward(weights, rule)


# The non-linearity: the only layer that looks at the rule.


@dataclass(frozen=True, eq=False)
class ReLU:
    """max(x, 0), and at most ``cap`` if there is one."""

    cap: float | None = None

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Clip x; going back, the rule decides which of the two gates are there."""
        top = np.inf if self.cap is None else self.cap

        def backward(g: Array, rule: Rule) -> Array:
            is_open = (x > 0) & (x < top)
            if rule == "saliency":
                return g * is_open
            if rule == "deconvnet":
                return np.maximum(g, 0)
            if rule == "guided":
                return np.maximum(g, 0) * is_open
            raise ValueError(f"rule must be saliency, deconvnet or guided; received rule={rule!r}")

        return np.clip(x, 0, top), backward


# The layers that slide a window.


@dataclass(frozen=True)
class Sliding:
    """Where a window of ``kernel`` positions lands on images of one size."""

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    @property
    def steps(self) -> Pair:
        """How often the window fits, along h and along w."""
        h, w = (
            (self.size[axis] + 2 * self.padding[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return h, w

    def positions(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Yield each kernel position, row by row, and the padded rows and columns that it meets."""
        steps = self.steps
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                rows = slice(top, top + steps[0] * self.stride[0], self.stride[0])
                columns = slice(left, left + steps[1] * self.stride[1], self.stride[1])
                yield row, column, rows, columns

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """Return x with a frame of ``value``."""
        return np.pad(x, [(side, side) for side in (0, 0, *self.padding)], constant_values=value)

    def unpad(self, padded: Array) -> Array:
        """Undo ``pad``."""
        (top, left), (h, w) = self.padding, self.size
        return padded[:, :, top : top + h, left : left + w]


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation; ``weight`` is (outputs, inputs per group, kernel height, kernel width)."""

    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Add up, kernel position by kernel position, what the window meets there."""
        n, c, h, w = x.shape
        outputs, inputs, *kernel = self.weight.shape
        sliding = Sliding((h, w), (kernel[0], kernel[1]), self.stride, self.padding, self.dilation)
        weight = self.weight.reshape(self.groups, outputs // self.groups, inputs, *kernel)

        def by_group(array: Array) -> Array:
            return array.reshape(n, self.groups, -1, *array.shape[2:])

        padded = sliding.pad(x)
        y = np.zeros((n, outputs, *sliding.steps))
        for row, column, rows, columns in sliding.positions():
            met = by_group(padded[:, :, rows, columns])
            y += np.einsum("ngihw,goi->ngohw", met, weight[..., row, column]).reshape(y.shape)

        def backward(g: Array, rule: Rule) -> Array:
            padded_g = np.zeros(padded.shape)
            for row, column, rows, columns in sliding.positions():
                sent = np.einsum("ngohw,goi->ngihw", by_group(g), weight[..., row, column])
                padded_g[:, :, rows, columns] += sent.reshape(n, c, *sliding.steps)
            return sliding.unpad(padded_g)

        return y + self.bias[:, None, None], backward


@dataclass(frozen=True, eq=False)
class MaxPool2d:
    """The largest value in each window; of equal ones the first, row by row."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Keep the winner of each window; going back, the winner takes all."""
        sliding = Sliding(x.shape[2:], self.kernel, self.stride, self.padding)
        padded = sliding.pad(x, -np.inf)
        candidates = np.stack([padded[:, :, rows, columns] for _, _, rows, columns in sliding.positions()])
        winner = candidates.argmax(axis=0)

        def backward(g: Array, rule: Rule) -> Array:
            padded_g = np.zeros(padded.shape)
            for index, (_, _, rows, columns) in enumerate(sliding.positions()):
                padded_g[:, :, rows, columns] += g * (winner == index)
            return sliding.unpad(padded_g)

        return candidates.max(axis=0), backward


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """The mean of each window, the zeros of the padding included."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Average each window; going back, each member gets an equal share."""
        sliding = Sliding(x.shape[2:], self.kernel, self.stride, self.padding)
        area = self.kernel[0] * self.kernel[1]
        padded = sliding.pad(x)
        members = np.stack([padded[:, :, rows, columns] for _, _, rows, columns in sliding.positions()])

        def backward(g: Array, rule: Rule) -> Array:
            padded_g = np.zeros(padded.shape)
            for _, _, rows, columns in sliding.positions():
                padded_g[:, :, rows, columns] += g / area
            return sliding.unpad(padded_g)

        return members.mean(axis=0), backward


# The layers that are one formula.


@dataclass(frozen=True, eq=False)
class Linear:
    """x @ weight.T + bias; ``weight`` is (outputs, inputs)."""

    weight: Array
    bias: Array

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Multiply; going back, multiply by the transpose."""
        return x @ self.weight.T + self.bias, lambda g, rule: g @ self.weight


@dataclass(frozen=True, eq=False)
class BatchNorm2d:
    """Batch normalisation of a trained network: a fixed scale and shift per channel."""

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float = 1e-5

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Scale and shift; going back, scale."""
        scale = (self.weight / np.sqrt(self.variance + self.epsilon))[:, None, None]
        y = (x - self.mean[:, None, None]) * scale + self.bias[:, None, None]
        return y, lambda g, rule: g * scale


@dataclass(frozen=True, eq=False)
class GlobalAveragePool:
    """The mean over h and w: (n, c, h, w) -> (n, c)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Average; going back, each pixel gets an equal share."""
        h, w = x.shape[2:]
        return x.mean(axis=(2, 3)), lambda g, rule: np.broadcast_to(g[:, :, None, None] / (h * w), x.shape)


@dataclass(frozen=True, eq=False)
class Flatten:
    """(n, c, h, w) -> (n, c * h * w)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Reshape; going back, reshape."""
        return x.reshape(len(x), -1), lambda g, rule: g.reshape(x.shape)


# The layers that hold layers.


@dataclass(frozen=True, eq=False)
class Sequential:
    """One layer after the other."""

    layers: tuple[Layer, ...]

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Go through the layers; going back, from the last to the first."""
        backwards: list[Backward] = []
        for layer in self.layers:
            x, step = layer.forward(x)
            backwards.append(step)

        def backward(g: Array, rule: Rule) -> Array:
            for step in reversed(backwards):
                g = step(g, rule)
            return g

        return x, backward


@dataclass(frozen=True, eq=False)
class Residual:
    """x + branch(x)."""

    branch: Layer

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Add the branch; going back, the skip path hands g on untouched, whatever the branch does."""
        y, through_branch = self.branch.forward(x)
        return x + y, lambda g, rule: g + through_branch(g, rule)


# Layers with weights drawn at random, of a size that keeps the values near 1.


def random_conv(
    rng: Generator,
    inputs: int,
    outputs: int,
    kernel: Pair = (3, 3),
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Conv2d:
    """Return a convolution from ``inputs`` to ``outputs`` channels."""
    fan_in = inputs // groups * kernel[0] * kernel[1]
    weight = rng.normal(size=(outputs, inputs // groups, *kernel)) * np.sqrt(2 / fan_in)
    return Conv2d(weight, rng.normal(size=outputs) / 4, stride, padding, dilation, groups)


def random_linear(rng: Generator, inputs: int, outputs: int) -> Linear:
    """Return a linear layer."""
    return Linear(rng.normal(size=(outputs, inputs)) * np.sqrt(2 / inputs), rng.normal(size=outputs) / 4)


def random_batch_norm(rng: Generator, channels: int) -> BatchNorm2d:
    """Return a batch normalisation; some of its scales are negative."""
    weight, bias, mean = rng.normal(size=(3, channels))
    return BatchNorm2d(weight, bias, mean, rng.uniform(0.5, 2, size=channels))
