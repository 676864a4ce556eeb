"""An explanation as a graph, whatever framework recorded it: what can be asked of one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OptionError
from guided_backprop.export.engine import Engine


class Ports(Protocol):
    """What a graph takes and gives.

    Attributes:
        inputs: what its inputs are called, the labels last.
        outputs: what its results are called.
    """

    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...


class Graph(ABC):
    """A function (images, labels) -> (outputs, attribution, scores, is_finite), recorded.

    Attributes:
        inputs: what its inputs are called, the labels last.
        outputs: what its results are called.
        coverage: what was done with each non-linearity.
        engine: what runs its file.
        turns: the numbers of images at which the model may do something else from there on.
        least: of each input of images the least size along each of its axes of positions, where it takes any from there
            on; nothing where sizes are fixed.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    coverage: Coverage
    engine: type[Engine]
    turns: Sequence[int]
    least: Sequence[Sequence[int]] = ()

    def digest(self) -> str | None:
        """Return a digest of what the model held when it was recorded, where it is no module that says so itself."""
        return None

    @abstractmethod
    def run(self, inputs: Sequence[NumpyArray]) -> Mapping[str, NumpyArray]:
        """Run it in its own framework, on images and labels; return its results by name."""

    @abstractmethod
    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write it to a file, in the form that the path's ending says.

        Raises:
            ModelError: an operation has no word there.
        """

    def opens(self, path: Path) -> type[Engine]:
        """Return what opens a file of such an ending."""
        return self.engine

    def write_in_half(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write it with its weights stored in half precision.

        Raises:
            OptionError: its files have no such form.
        """
        raise OptionError(
            'storage must be "float32" but for a file of ONNX; received "float16". Leave it out, or write map.onnx.'
        )
