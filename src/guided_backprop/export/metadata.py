"""What a file says of itself: which method, which model, what was done with its ReLUs, and how exact it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guided_backprop.coverage import Coverage
from guided_backprop.version import __version__


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself.

    Attributes:
        method: the method's name.
        rule: what a ReLU lets through, by name.
        model: the model's name.
        head: the final softmax or sigmoid that was undone, or None.
        labels: what the graph is told to explain: "ids" or "weights".
        reducer: how the channel axis is reduced, or None.
        coverage: what was done with each non-linearity.
        versions: of this library, of the framework, and of the engine that it was compared in.
        weights: a digest of the model's weights, or None where it has none that can be read.
        difference: by how much of its norm a map differed from the library's in the engine.
        precise_difference: the same of the graph in double precision; None where the model has none.
        classes: the names of the classes, in their order, or None.
        preprocessing: what is done with a photo first, in words, or None.
        layer: where a class activation map is taken, or None.
        photos: how the photos that it takes become images, in words; None where it takes images.
        least_sizes: of each input the least size along each axis of positions; None where they are fixed.
        storage: how weights are stored, if not in single precision.
        stored_difference: by how much of its norm a map differs then.
        correlation: how the values of an image's maps correlate at least, then.
    """

    method: str
    rule: str
    model: str
    head: str | None
    labels: str
    reducer: str | None
    coverage: Coverage
    versions: Mapping[str, str]
    weights: str | None
    difference: float | None = None
    precise_difference: float | None = None
    classes: Sequence[str] | None = None
    preprocessing: str | None = None
    layer: str | None = None
    photos: str | None = None
    least_sizes: Sequence[Sequence[int]] | None = None
    storage: str | None = None
    stored_difference: float | None = None
    correlation: float | None = None

    def texts(self) -> dict[str, str]:
        """Return all that is known, as texts: of what is no text, as JSON."""
        said: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        said["coverage"] = [tuple(one) for one in self.coverage]
        said["versions"] = {"guided-backprop": __version__, **self.versions}
        known = {name: value for name, value in said.items() if value is not None}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
