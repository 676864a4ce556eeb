"""The image times its gradient, and the gradients along the way from a baseline to the image."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Array, Images, Inputs, Labels, Tensor, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export.plan import Plan
from guided_backprop.foreign import answering
from guided_backprop.methods.around import Around
from guided_backprop.methods.batches import Job, explain_given
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_integer, is_number, require
from guided_backprop.subject import brief

Quadrature = Literal["gauss-legendre", "trapezoid", "midpoint"]
_Float64 = NDArray[np.float64]


class _OfGradients(Around):
    """What is made of a method's map and the images, value by value; batch by batch, as a method explains."""

    @answering
    def __init__(self, method: Method) -> None:
        super().__init__(method)
        if not method.is_one_pass:
            kind = type(self).__name__
            raise OptionError(
                f"{kind} multiplies images by gradients; received {method.name}, whose maps are none. "
                f"Pass {kind}(Saliency(model)), for example."
            )

    @answering
    def explain(
        self, images: Images, labels: Labels = None, *, mask: Any = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image, as :meth:`Method.explain` does."""
        method = self.method
        return explain_given(
            method.subject,
            Job(self.name, method.reducer, method.explains_inside),
            self.explain_batch,
            images,
            labels,
            mask=mask,
            batch_size=method.batch_size,
            progress=progress,
        )

    @abstractmethod
    def explain_batch(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch, as :meth:`Method.explain_batch` does."""


class InputXGradient(_OfGradients):
    """The image times its map (Shrikumar et al. 2016, arXiv:1605.01713), in units of score.

    With :class:`Saliency` it is the gradient times the input, and its sum is the score's part that is linear in the
    image. With :class:`RectGrad` it is that paper's map. Around other rules it extends what was published. With an
    ``input_layer`` it is that layer's output times its gradient.

    Args:
        method: a method whose map is a gradient: :class:`Saliency`, :class:`GuidedBackprop`, one of a rule of your own.

    Raises:
        OptionError: what is given is no method, or its map is no gradient.

    Example:
        >>> import torch
        >>> from guided_backprop import InputXGradient, Saliency
        >>> images, weights = torch.tensor([[5.0, -5.0, 10.0]]), torch.tensor([1.0, 3.0, -4.0])
        >>> InputXGradient(Saliency(lambda x: torch.relu(x) @ weights)).explain(images).attribution.tolist()
        [[5.0, -0.0, -40.0]]
    """

    @property
    def plan(self) -> Plan:
        return replace(self.method.plan, times_images=True)

    def explain_batch(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        batch = self.method.explain_batch(backend, inputs, weigh, score)
        values = inputs if batch.activation is None else Inputs.of(batch.activation)
        maps = [
            label.map(lambda of, value: backend.from_numpy(_precise(of) * _precise(value), value), values)
            for label in batch.attribution
        ]
        return replace(batch, attribution=maps)


class _Point(NamedTuple):
    """A place on the way: how far it is from the baseline, and how much its gradient weighs."""

    share: float
    weight: float


class IntegratedGradients(_OfGradients):
    """The mean gradient on the straight way from a baseline to the image, times what lies between the two.

    Sundararajan et al. 2017, arXiv:1703.01365. With :class:`Saliency` the map is complete: its sum is the image's score
    less the baseline's, up to what the quadrature leaves, which ``explanations.convergence_delta`` tells. Around
    methods with another rule it extends what was published, and is not complete.

    Places are explained as many at once as the method's ``batch_size`` takes, or as there are images if it is None;
    what the labels mean for the image itself stays what is explained. Inputs of integers stay what they are.

    Args:
        method: a method whose map is a gradient.
        baseline: a number; or an image without its batch axis, preprocessed as images are, and of several inputs a
            tuple or a dictionary of them.
        steps: at how many places the gradient is taken.
        quadrature: "gauss-legendre", "trapezoid" (ends included) or "midpoint".

    Raises:
        OptionError: an option has a value that is not offered; the method's map is no gradient, or it has an
            ``input_layer``.

    Example:
        >>> import torch
        >>> from guided_backprop import IntegratedGradients, Saliency
        >>> images = torch.tensor([[3.0, 1.0]])
        >>> found = IntegratedGradients(Saliency(lambda x: x[:, 0] ** 2 * x[:, 1])).explain(images)
        >>> found.attribution.round(decimals=4).tolist(), abs(found.convergence_delta.item()) < 1e-4
        ([[6.0, 3.0]], True)
    """

    @answering
    def __init__(
        self,
        method: Method,
        *,
        baseline: Images | float = 0.0,
        steps: int = 50,
        quadrature: Quadrature = "gauss-legendre",
    ) -> None:
        super().__init__(method)
        is_finite = not is_number(baseline) or np.isfinite(baseline)
        names = get_args(Quadrature)
        least = 2 if quadrature == "trapezoid" else 1
        require(
            Requirement("baseline", baseline, is_finite, "finite", "Pass 0.0, or an image."),
            Requirement("steps", steps, is_integer(steps, least=least), f"an integer of {least} or more", "Try 50."),
            Requirement(
                "quadrature", quadrature, quadrature in names, f"one of {', '.join(names)}", "Pass one of these names."
            ),
        )
        if method.explains_inside:
            raise OptionError(
                "IntegratedGradients goes from a baseline to the images; received a method with "
                f"input_layer={brief(method.subject.input_layer)}, which explains none. Leave it out."
            )
        self.baseline, self.steps, self.quadrature = baseline, steps, quadrature

    def _described(self, method: str) -> str:
        said = f"{self.baseline:g}" if is_number(self.baseline) else "given"
        how = f"baseline={said}, steps={self.steps}, quadrature={self.quadrature!r}"
        return f"IntegratedGradients({method}, {how})"

    def explain_batch(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        images = inputs.map(lambda of: _precise(of) if backend.is_floating(of) else as_numpy(of))
        starts = _starts(self.baseline, backend, inputs, images)
        clean = self.method.explain_batch(backend, inputs, weigh, score)
        weights = weigh(clean.outputs)

        def explained(points: list[_Point]) -> Attributed:
            """Explain all images at some places on the way, place by place."""
            rows = np.tile(np.arange(inputs.count), len(points))

            def between(given: Array, image: _Float64, start: _Float64) -> Tensor:
                values = image[rows]
                if backend.is_floating(given):
                    shares = np.repeat([point.share for point in points], inputs.count)
                    values = start + shares.reshape(-1, *[1] * (image.ndim - 1)) * (values - start)
                return backend.from_numpy(values, given)

            batch = inputs.map(between, images, starts)
            return self.method.explain_batch(backend, batch, lambda _: [label[rows] for label in weights], score)

        sums = [label.map(lambda of: np.zeros(of.shape)) for label in clean.attribution]
        together = max(1, (self.method.batch_size or 1) // max(inputs.count, 1))
        points = _points(self.steps, self.quadrature)
        for first in range(0, len(points), together):
            _add(sums, explained(points[first : first + together]), points[first : first + together])
        products = [label.map(lambda mean, image, start: mean * (image - start), images, starts) for label in sums]
        gained = clean.scores - explained([_Point(0.0, 0.0)]).scores
        found = np.stack([_sum(label) for label in products])
        maps = [label.map(backend.from_numpy, inputs) for label in products]
        return replace(clean, attribution=maps, convergence_delta=found - gained)


def _points(steps: int, quadrature: Quadrature) -> list[_Point]:
    """Return places from 0, the baseline, to 1, the image; their weights add up to 1."""
    if quadrature == "gauss-legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        places, weights = (places + 1) / 2, weights / 2
    elif quadrature == "midpoint":
        places, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    else:
        places, weights = np.linspace(0, 1, steps), np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
    return [_Point(*point) for point in zip(places.tolist(), weights.tolist(), strict=True)]


def _add(sums: list[Inputs], batch: Attributed, points: list[_Point]) -> None:
    """Add the maps of each place to their weighted sums."""
    weights = np.array([point.weight for point in points])

    def add(total: _Float64, of: Array) -> None:
        total += np.tensordot(weights, _precise(of).reshape(len(points), *total.shape), axes=1)

    for into, label in zip(sums, batch.attribution, strict=True):
        into.map(add, label)


def _sum(label: Inputs) -> _Float64:
    """Return the sum of each image's map, over all inputs."""
    sums = [of.reshape(len(of), -1).sum(axis=1) for of in label.arrays if of is not None]
    return np.asarray(np.sum(sums, axis=0))


def _starts(baseline: Images | float, backend: Backend, inputs: Inputs, images: Inputs) -> Inputs:
    """Return the baseline of each input, with a batch axis of 1."""
    if is_number(baseline):
        return images.map(lambda image: np.full((1, *image.shape[1:]), float(baseline)))
    given = Inputs.of(baseline)
    if given.form != inputs.form or len(given.arrays) != len(inputs.arrays):
        raise OptionError(
            f"baseline must be a number, or given as the images are; received {type(baseline).__name__}. Pass one for "
            "each input."
        )

    def start(of: Array, image: _Float64, array: Array) -> _Float64:
        value = _precise(of)[np.newaxis] if backend.is_floating(array) else image[:1]
        if value.shape[1:] != image.shape[1:] or not np.isfinite(value).all():
            raise ImageError(
                f"baseline must be one image of finite numbers, without a batch axis; received shape {value.shape[1:]} "
                f"for images of {image.shape[1:]}. Pass one image, or a number."
            )
        return value

    return given.map(start, images, inputs)


def _precise(array: Array) -> _Float64:
    return as_numpy(array).astype(np.float64)
