"""Faithfulness: does what a map marks matter to the model? Deletion and insertion curves, with intervals over images.

Places are ordered by the magnitude of a map, strongest first, and replaced step by step by a baseline (deletion), or
put into a picture of nothing but the baseline (insertion); the curve is the probability of the explained class. The
area under it is its mean over the steps. A map is compared with Saliency's, with the image's edges, which know nothing
of the model, and with random ones; image by image, so that intervals are of differences where these are spoken of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Images, Inputs, Labels, as_numpy
from guided_backprop.errors import ImageError, LabelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.foreign import answering
from guided_backprop.methods.around import Around
from guided_backprop.methods.data import given
from guided_backprop.methods.gradients import Saliency
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_integer, is_number, require
from guided_backprop.models.classes import probabilities
from guided_backprop.trust.intervals import Interval, interval, said
from guided_backprop.trust.similarity import Maps, edges, need_libraries

_Float64 = NDArray[np.float64]
Baseline = Literal["mean"] | float
#: What each curve is called, and whether its area is better if it is larger.
CURVES = {"deletion": False, "insertion": True}
EDGES, RANDOM = "edges", "random"
_SAID = {EDGES: "the images' edges", RANDOM: "a random order"}


class Area(NamedTuple):
    """One number: the area under a curve, over all images.

    Attributes:
        map: whose map: a method's name, "edges" or "random".
        curve: "deletion", where lower is better, or "insertion", where higher is.
        mean: over the images, in [0, 1].
        interval: of the mean, by bootstrap over the images, 95 %.
        better: of the checked method's area less this one, turned so that more is better for the method; its mean.
        better_interval: of that mean, by the same resampling; 0 inside of it means that nothing was found.
    """

    map: str
    curve: str
    mean: float
    interval: Interval
    better: float
    better_interval: Interval


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion by one method's maps, beside those by others.

    Attributes:
        method: the method's name.
        model: the model's name.
        images: how many images there were.
        baseline: "mean", each image's own, or a number.
        curves: by "deletion" or "insertion", and by map, ``(N, steps + 1)``: the class's probability after each step.
        areas: all areas under them.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop, faithfulness
        >>> layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)]
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> found = faithfulness(GuidedBackprop(model), torch.rand(4, 3, 8, 8), steps=4)
        >>> sorted(found.curves["deletion"]), found.curves["insertion"]["edges"].shape
        (['GuidedBackprop', 'Saliency', 'edges', 'random'], (4, 5))
        >>> area = found.area("edges", "deletion")
        >>> area.interval.low <= area.mean <= area.interval.high
        True
        >>> print(found.table().splitlines()[0])
        GuidedBackprop of Sequential: 4 images, baseline mean; area under the curve [95 % over images]
    """

    method: str
    model: str
    images: int
    baseline: Baseline
    curves: Mapping[str, Mapping[str, _Float64]] = field(repr=False)
    areas: tuple[Area, ...] = field(repr=False)

    def area(self, map: str, curve: str) -> Area:  # noqa: A002
        """Return one area."""
        return next(area for area in self.areas if (area.map, area.curve) == (map, curve))

    @property
    def sentence(self) -> str:
        """How the method's maps compare with the others on this model and these images, in one sentence.

        "Better" and "worse" are said where the interval of the difference leaves 0 out.
        """
        parts = []
        for curve in CURVES:
            own = self.area(self.method, curve)
            others = [area for area in self.areas if area.curve == curve and area.map != self.method]
            parts.append(f"by {curve} ({said(own.mean, own.interval)}) {_compared(others)}")
        many = f"{self.images} image{'' if self.images == 1 else 's'}"
        return f"On {many} of {self.model}, the places that {self.method} marks are {'; '.join(parts)}."

    def table(self) -> str:
        """Return all areas as text."""
        head = [
            f"{self.method} of {self.model}: {self.images} image{'' if self.images == 1 else 's'}, baseline "
            f"{self.baseline}; area under the curve [95 % over images]",
            "",
        ]
        rows = [["", "deletion, lower is better", "insertion, higher is better"]]
        for name in self.curves["deletion"]:
            areas = [self.area(name, curve) for curve in CURVES]
            rows.append([name, *(said(area.mean, area.interval) for area in areas)])
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(head + ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows])


@answering
def faithfulness(
    method: Method | Around,
    images: Images,
    labels: Labels = None,
    *,
    baseline: Baseline = "mean",
    steps: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Measure whether what a method's maps mark matters to the model: deletion and insertion.

    Beside the method's maps stand Saliency's of the same model, the images' edges, and random ones.

    Args:
        method: any method, made for a model that tells classes apart. Its ``batch_size`` says how many images are run
            at once.
        images: as for :meth:`Method.explain`, of one input, or data that is put together.
        labels: class ids, one per image; None for the class with the highest score.
        baseline: what a place is replaced by, in all its channels: "mean", the mean of all of its image's values; or a
            number, in the units of preprocessed images.
        steps: in how many steps all places are replaced.
        seed: chooses the random maps, and the resampled images.
        progress: is called with how many of the curves' points are done, and how many there are.

    Raises:
        MissingExtraError: SciPy or scikit-image is not installed.
        OptionError: an option has a value that is not offered, or the method explains no image.
        LabelError: what is explained is not one of several classes.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop, faithfulness
        >>> layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)]
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> found = faithfulness(GuidedBackprop(model), torch.rand(4, 3, 8, 8), labels=1, baseline=0.0, steps=4)
        >>> print(found.sentence)  # doctest: +ELLIPSIS
        On 4 images of Sequential, the places that GuidedBackprop marks are by deletion (...
    """
    need_libraries()
    is_method = isinstance(method, (Method, Around))
    is_baseline = baseline == "mean" or (is_number(baseline) and np.isfinite(baseline))
    require(
        Requirement("method", method, is_method, "a method", "Pass GuidedBackprop(model)."),
        Requirement("baseline", baseline, is_baseline, '"mean" or a finite number', 'Pass "mean".'),
        Requirement("steps", steps, is_integer(steps, least=1), "a positive integer", "Pass 20."),
        Requirement("seed", seed, is_integer(seed, least=0), "an integer of 0 or more", "Pass 0."),
    )
    images, labels = given(method.subject, images, labels)
    clean = method.explain(images, labels) if hasattr(images, "shape") else None
    if clean is None or tuple(images.shape) != tuple(getattr(clean.images, "shape", ())):
        raise OptionError(
            "faithfulness() replaces places of images of one input; received several inputs, or an input_layer. "
            "Explain the images of a model of one input."
        )
    if not len(clean):
        raise ImageError("images must not be empty; received no image. Pass at least one, better 50.")
    if not clean.is_of_classes or probabilities(clean.outputs, clean.head) is None:
        raise LabelError(
            "labels must be class ids, one per image, of a model that gives (N, K); received "
            f"labels {clean.labels.shape} of outputs {clean.outputs.shape}. Pass one class per image."
        )
    check = _Check(method, images, clean, baseline, steps)
    return check.result(check.orders(seed), seed, progress or (lambda done, points: None))


class _Check:
    """The curves of some orders of places, on some images."""

    def __init__(
        self, method: Method | Around, images: Images, clean: Explanations, baseline: Baseline, steps: int
    ) -> None:
        self._method, self._clean, self._given, self._baseline, self._steps = method, clean, images, baseline, steps
        self._images = as_numpy(images)
        self._axis = clean.channel_axis
        self._backend = method.subject.backend(images)
        # One value for each image: what all its channels are replaced by.
        means = self._images.reshape(len(self._images), -1).mean(axis=1)
        self._fill = means if baseline == "mean" else np.full(len(means), baseline)

    def orders(self, seed: int) -> dict[str, NDArray[np.int64]]:
        """Return by map ``(N, places)``: how many places are stronger than each; of equal ones the first is first."""
        clean = self._clean
        plain = Saliency(self._method.subject.model, batch_size=clean.batch_size)
        # Grad-CAM's own begins at a layer.
        plain.subject = replace(self._method.subject, input_layer=None)
        kept = None if clean.reducer is not None else self._axis
        own = Maps(as_numpy(clean.attribution), kept)
        gradient = plain.explain(self._given, clean.labels)
        strengths = {
            clean.method: own.magnitude,
            plain.name: Maps(as_numpy(gradient.attribution), self._axis).magnitude,
        }
        if own.is_picture:
            strengths[EDGES] = edges(self._images if self._axis is None else self._images.mean(axis=self._axis))
        strengths[RANDOM] = np.random.default_rng([seed, 5]).random(own.magnitude.shape)
        rows = {name: strength.reshape(len(clean), -1) for name, strength in strengths.items()}
        return {name: np.argsort(np.argsort(-row, axis=1, kind="stable"), axis=1) for name, row in rows.items()}

    def result(
        self, orders: Mapping[str, NDArray[np.int64]], seed: int, progress: Callable[[int, int], None]
    ) -> Faithfulness:
        """Walk along each order, and put the areas together."""
        nothing = np.zeros_like(next(iter(orders.values())), bool)
        whole, blank = self._shares(nothing), self._shares(~nothing)
        curves: dict[str, dict[str, _Float64]] = {curve: {} for curve in CURVES}
        points, done = len(orders) * 2 * (self._steps - 1), 0
        for name, order in orders.items():
            for curve in CURVES:
                ends = (whole, blank) if curve == "deletion" else (blank, whole)
                inner = []
                for step in range(1, self._steps):
                    count = round(step * order.shape[1] / self._steps)
                    is_filled = order < count if curve == "deletion" else order >= count
                    inner.append(self._shares(is_filled))
                    done += 1
                    progress(done, points)
                curves[curve][name] = np.stack([ends[0], *inner, ends[1]], axis=1)
        clean = self._clean
        areas = tuple(_areas(curves, clean.method, seed))
        return Faithfulness(clean.method, clean.model, len(clean), self._baseline, curves, areas)

    def _shares(self, is_filled: NDArray[np.bool_]) -> _Float64:
        """Return the class's probability ``(N,)`` with some places filled."""
        clean, batches = self._clean, []
        for start in range(0, len(clean), clean.batch_size):
            rows = slice(start, start + clean.batch_size)
            images = self._images[rows]
            fill = self._fill[rows].reshape(-1, *[1] * (images.ndim - 1)).astype(images.dtype)
            filled = np.where(self._spread(is_filled[rows]), fill, images)
            outputs = self._backend.outputs(Inputs.of(self._backend.from_numpy(filled, self._given[:1])))
            shares = probabilities(outputs, clean.head)
            assert shares is not None
            batches.append(shares[np.arange(len(images)), clean.labels[rows]])
        return np.concatenate(batches)

    def _spread(self, is_filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return places as values of images: of a place all channels."""
        shape = list(self._images.shape[1:])
        if self._axis is not None:
            del shape[self._axis - 1]
        places = is_filled.reshape(-1, *shape)
        return places if self._axis is None else np.expand_dims(places, self._axis)


def _areas(curves: Mapping[str, Mapping[str, _Float64]], method: str, seed: int) -> list[Area]:
    areas = []
    for curve, is_more_better in CURVES.items():
        under = {name: np.trapezoid(shares, axis=1) / (shares.shape[1] - 1) for name, shares in curves[curve].items()}
        for name, each in under.items():
            better = (under[method] - each) * (1 if is_more_better else -1)
            of_mean, of_better = interval(each, seed), interval(better, seed)
            areas.append(Area(name, curve, float(each.mean()), of_mean, float(better.mean()), of_better))
    return areas


def _compared(areas: Sequence[Area]) -> str:
    """Say what the method is better than, worse than, and not told apart from."""
    groups: dict[str, list[str]] = {}
    for area in areas:
        is_sure = area.better_interval.leaves_zero_out
        verdict = ("better than" if area.better > 0 else "worse than") if is_sure else "not told apart from"
        groups.setdefault(verdict, []).append(_SAID.get(area.map, area.map))
    return ", ".join(f"{verdict} {_joined(names)}" for verdict, names in groups.items())


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
