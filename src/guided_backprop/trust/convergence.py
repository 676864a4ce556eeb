"""Cosine similarity convergence (Sixt et al. 2020, arXiv:1912.09818): do all backward passes end in one direction?

Two vectors are drawn at random at the model's output and propagated back under the method's rule. Where what arrives
at a layer points into one direction for both, cosine 1, nothing of what came from above is left there but its size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Images, Inputs, as_numpy
from guided_backprop.backends.base import Backend
from guided_backprop.errors import ModelError, NoReluError, OptionError, ScoreError
from guided_backprop.methods.method import Method
from guided_backprop.rules import PLAIN, ReluRule
from guided_backprop.subject import Subject
from guided_backprop.trust.similarity import cosines

#: What the first depth and the last one are called.
OUTPUT, IMAGES = "output", "images"


class Depth(NamedTuple):
    """How far the backward pass is.

    Attributes:
        layer: the layer that it arrived at: at its output; "images" for the end.
        cosines: between the two vectors there, one per image; None if the layer can't be looked into.
        reason: why it can't.
    """

    layer: str
    cosines: NDArray[np.float64] | None
    reason: str = ""


def depths(subject: Subject, images: Images, layers: list[str]) -> list[str]:
    """Return where can be looked, from "output" to "images".

    Args:
        subject: the model.
        images: the images.
        layers: layers with weights, from output to input. Where none of them can be named, as in a JAX function, whose
            names are those of values, all that can be is looked at.
    """
    inside: list[str] = []
    # From a layer on, or up to one, it is not known which others lie between.
    if subject.output_layer is None and subject.input_layer is None:
        try:
            names = subject.layer_names(images)
        except ModelError:
            names = []
        inside = [layer for layer in layers if layer in names] or names[::-1]
    return [OUTPUT, *inside, IMAGES]


def vectors(shape: tuple[int, ...], seeds: Sequence[int]) -> NDArray[np.float64]:
    """Return two random vectors for each image, ``(2, N, ...)``, of the shape of the model's output."""
    return np.random.default_rng([*seeds, 3]).standard_normal((2, *shape))


def converge(method: Method, images: Images, layer: str, drawn: NDArray[np.float64], size: int) -> Depth:
    """Return how alike two vectors at the output are when they arrive at a layer; ``size`` images at once."""
    if layer == OUTPUT:
        return Depth(layer, cosines(*drawn))
    batches = []
    try:
        subject = method.subject if layer == IMAGES else method.subject.beginning_at(layer)
        backend = subject.backend(images)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            batches.append(_arrived(backend, method.rule, Inputs.of(images[rows]), drawn[:, rows]))
    except (ModelError, OptionError, ScoreError) as error:
        # What runs twice, or returns several values, is no place to look at; the images always are.
        if layer == IMAGES:
            raise
        return Depth(layer, None, str(error))
    return Depth(layer, np.concatenate(batches))


def _arrived(backend: Backend, rule: ReluRule, inputs: Inputs, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        (attributed,) = backend.attribute(inputs, lambda outputs: list(drawn), [rule])
    except NoReluError:
        # Above the last ReLU there is nothing for a rule to act on.
        (attributed,) = backend.attribute(inputs, lambda outputs: list(drawn), [PLAIN])
    one, other = (as_numpy(label.arrays[0]) for label in attributed.attribution)
    return cosines(one, other)
