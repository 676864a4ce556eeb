"""What an exported graph is to compute, as every framework understands it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Inputs, Layer, NumpyArray
from guided_backprop.export.photos import Photos
from guided_backprop.rules import ReluRule

#: What a graph is told to explain: class ids ``(N,)``, of which -1 is the top class, or weights of the output's shape;
#: or both, of which the weights count where the id is -2.
LabelKind = Literal["ids", "weights", "both"]
#: Whether a graph takes images of the sizes that it was recorded with, or of any.
Sizes = Literal["fixed", "dynamic"]
#: The ids that are no class's.
TOP, WEIGHTS = -1, -2

#: The results of a graph, in their order.
RESULTS = ("outputs", "attribution", "scores", "is_finite")


@dataclass(frozen=True)
class Cam:
    """A class activation map.

    Attributes:
        layer: where it is taken.
        matrix: from two sizes to the matrix ``(after, before)`` that resizes a map along one axis.
        is_factor: whether the gradient at the images is multiplied by it; else it is the map.
        is_linear: whether it is interpolated, as that matrix does; else the nearest value is taken.
    """

    layer: Layer
    matrix: Callable[[int, int], NDArray[np.float64]]
    is_factor: bool
    is_linear: bool


@dataclass(frozen=True)
class Noise:
    """Noisy copies of each image, whose maps are put together.

    Attributes:
        samples: how many there are of each.
        share: the standard deviation of the noise, as a share of the image's range.
        form: "mean", "absolute", "squared" or "variance".
        drawn: from images to the noise that the method puts on them, ``(N, samples, ...)`` for each array of
            floating-point numbers, of standard deviation 1.
    """

    samples: int
    share: float
    form: str
    drawn: Callable[[Inputs], Sequence[NumpyArray]]


@dataclass(frozen=True)
class Plan:
    """What a graph computes.

    Attributes:
        rule: what a ReLU lets through.
        reducer: how the channel axis is reduced, or None.
        labels: what it is told to explain.
        cam: the class activation map that is made, or None.
        noise: the noisy copies that are explained instead of the images, or None.
        times_images: whether maps are multiplied by the images.
        photos: how the photos that it takes become images, or None where it takes images.
        sizes: whether images are of the sizes that it was recorded with, or of any.
    """

    rule: ReluRule
    reducer: str | None = None
    labels: LabelKind = "ids"
    cam: Cam | None = None
    noise: Noise | None = None
    times_images: bool = False
    photos: Photos | None = None
    sizes: Sizes = "fixed"

    @property
    def is_gradient(self) -> bool:
        """Whether a map is what one backward pass gives, and nothing is made of that."""
        return self.cam is None and self.noise is None and not self.times_images


def port_names(given: Inputs, are_explained: Sequence[bool]) -> tuple[Sequence[str], Sequence[str]]:
    """Return what a graph calls its images, and what its results: of several inputs by their names.

    Args:
        given: a batch.
        are_explained: of which of its arrays there are maps.
    """
    images = ["images"] if given.form == "one" else [f"images_{name}" for name in given.names]
    return images, (RESULTS[0], *_beside(images, are_explained, "attribution"), *RESULTS[2:])


def noise_names(images: Sequence[str], are_noisy: Sequence[bool]) -> Sequence[str]:
    """Return what a graph calls the noise of its images.

    Args:
        images: what it calls these.
        are_noisy: which of them have noise.
    """
    return _beside(images, are_noisy, "noise")


def _beside(images: Sequence[str], are_meant: Sequence[bool], word: str) -> Sequence[str]:
    """Return what belongs to some images by their own names: an input may be called images itself."""
    return [word + name.removeprefix("images") for name, is_one in zip(images, are_meant, strict=True) if is_one]
