"""Cosine similarity convergence (Sixt et al. 2020, arXiv:1912.09818): do all backward passes end in one direction?

Two vectors are drawn at random at the model's output and propagated back under the method's rule. Where what arrives
at a layer points into one direction for both, cosine 1, nothing of what came from above is left there but its size.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_numpy, mapped
from guided_backprop.backends import backend_for, layer_names
from guided_backprop.backends.base import Backend
from guided_backprop.errors import ModelError, NoReluError, OptionError
from guided_backprop.methods import Method
from guided_backprop.rules import PLAIN
from guided_backprop.similarity import cosines

#: What the last depth is called.
IMAGES = "images"


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


def depths(method: Method, images: Any, layers: list[str]) -> list[str]:
    """Return the names of the layers that can be looked into, from output to input, and "images".

    Args:
        method: the method.
        images: the images.
        layers: layers from output to input. Of a JAX function, that are the values it names itself.
    """
    if method._output_layer is not None:
        return [IMAGES]
    try:
        names = layer_names(method._model, images)
    except ModelError:
        return [IMAGES]
    inside = [layer for layer in layers if layer in names]
    is_tapped = not inside and method._backend(images).framework == "jax"
    return [*(reversed(names) if is_tapped else inside), IMAGES]


def converge(method: Method, images: Any, layer: str, seed: int) -> Depth:
    """Return how alike two random vectors are when they arrive at a layer."""
    backend = method._backend(images)
    if layer != IMAGES:
        try:
            options: dict[str, Any] = {"output": method._output, "undo_head": method._undo_head, "vouch": method._vouch}
            backend = backend_for(backend.framework, method._model, begin=layer, **options)
        except (ModelError, OptionError) as error:
            return Depth(layer, None, str(error))
    generator = np.random.default_rng(seed)
    size = method._batch_size or max(len(images), 1)
    found = []
    for start in range(0, len(images), size):
        rows = mapped(lambda values, start=start: values[start : start + size], images)
        try:
            found.append(_cosines(backend, method, rows, generator))
        except (ModelError, OptionError) as error:
            if layer == IMAGES:
                raise
            return Depth(layer, None, str(error))
    return Depth(layer, np.concatenate(found))


def _cosines(backend: Backend, method: Method, images: Any, generator: np.random.Generator) -> NDArray[np.float64]:
    drawn: list[NDArray[np.float64]] = []

    def weigh(outputs: NDArray[Any]) -> list[NDArray[np.float64]]:
        # A watched model is run twice; its vectors are the same.
        if not drawn:
            drawn.extend(generator.standard_normal((2, *outputs.shape)))
        return drawn

    try:
        (attributed,) = backend.attribute(images, weigh, [method.rule])
    except NoReluError:
        # Above the last ReLU there is nothing for a rule to act on.
        (attributed,) = backend.attribute(images, weigh, [PLAIN])
    one, other = map(as_numpy, attributed.attribution)
    return cosines(one, other)
