"""Reading back what was saved: a folder's manifest at once, its arrays as they are asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guided_backprop.arrays import NumpyArray
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import OptionError
from guided_backprop.photos import read_image
from guided_backprop.show.folder import PICTURE_NAME
from guided_backprop.show.load import array_of, said_in


@final
@dataclass(frozen=True, eq=False)
class SavedMap:
    """One map of a saved folder.

    Attributes:
        name: what was explained, as it was called when it was saved.
        attribution: signed, without a batch axis; NumPy.
        label: the class id, or the weights of the outputs.
        score: the score that was differentiated.
        files: the pictures, by their kind: "colour", "magnitude", "overlay"; none where it is no picture.

    Example:
        >>> import tempfile, torch
        >>> import guided_backprop as gb
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> explanations = gb.GuidedBackprop(model.eval()).explain(torch.rand(2, 3, 8, 8), 1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     saved = gb.read(explanations.save(f"{parent}/maps"))
        ...     saved[0].name, saved[0].label, saved[0].picture("colour").size
        ('image-00000', 1, (8, 8))
    """

    name: str
    attribution: NumpyArray = field(repr=False)
    label: Any
    score: float
    files: Mapping[str, Path] = field(repr=False)

    def picture(self, kind: str = "overlay") -> Image.Image:
        """Return one of the saved pictures.

        Raises:
            OptionError: there is none of this kind.
            ImageError: it can't be read any more.
        """
        if kind not in self.files:
            raise OptionError(
                f"kind must be one of the saved pictures, {', '.join(self.files) or 'of which there are none'}; "
                f"received {kind!r}. Draw others of the attribution, by guided_backprop.render."
            )
        return read_image(self.files[kind])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NumpyArray:
        """Return the attribution."""
        return np.array(self.attribution, dtype=dtype, copy=copy)


@final
@dataclass(frozen=True, eq=False)
class Saved(Sequence[SavedMap]):
    """What a folder holds. An integer gives one map, of which alone the array is read then.

    Attributes:
        folder: the folder.
        method: the method's name.
        model: the model's name.
        head: what the model ends in, where the logit in front of it was explained; or None.
        reducer: how channels were reduced, or None.
        percentile: the scale of the pictures.
        names: what was explained, one for each map.
        coverage: every non-linearity on the path from score to image, and what was done with it.

    Example:
        >>> import tempfile, torch
        >>> import guided_backprop as gb
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> explanations = gb.GuidedBackprop(model.eval()).explain(torch.rand(2, 3, 8, 8), 1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     saved = gb.read(explanations.save(f"{parent}/maps"))
        ...     saved.method, len(saved), saved.attribution.shape, saved.labels, str(saved.coverage)
        ('GuidedBackprop', 2, (2, 3, 8, 8), array([1, 1]), 'relu x1 guided')
    """

    folder: Path
    method: str
    model: str
    head: str | None
    reducer: str | None
    percentile: float
    names: Sequence[str] = field(repr=False)
    coverage: Coverage
    _files: Sequence[Mapping[str, str]] = field(repr=False)
    _labels: Sequence[object] | None = field(repr=False)

    @cached_property
    def labels(self) -> NumpyArray:
        """What was explained in each map, class ids ``(N,)`` or weights of the outputs."""
        names = self._labels if self._labels and isinstance(self._labels[0], str) else None
        return self._array("labels") if names is None else np.array(names)

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The scores ``(N,)``."""
        return self._array("scores")

    @property
    def attribution(self) -> NumpyArray:
        """All maps ``(N, ...)``, read anew each time."""
        return self._array("attribution")

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> SavedMap: ...
    @overload
    def __getitem__(self, index: slice) -> list[SavedMap]: ...
    def __getitem__(self, index: int | slice) -> SavedMap | list[SavedMap]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        label = self.labels[row]
        return SavedMap(
            name=self.names[row],
            attribution=self._array("attribution", row),
            label=label if np.ndim(label) else int(label),
            score=float(self.scores[row]),
            files={kind: self.folder / file for kind, file in self._files[row].items()},
        )

    def __iter__(self) -> Iterator[SavedMap]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NumpyArray:
        """Return all maps."""
        return np.array(self.attribution, dtype=dtype, copy=copy)

    def _array(self, name: str, row: int | None = None) -> NumpyArray:
        """Read an array, or a row of it alone."""
        return array_of(self.folder, name, len(self.names), row)


def read(folder: str | os.PathLike[str]) -> Saved:
    """Read back what ``save`` or the command ``explain`` wrote into a folder.

    Args:
        folder: the folder.

    Returns:
        A sequence of maps, with what was explained by what. The manifest is read now; an array when it is asked for,
        and of one map that map alone.

    Raises:
        OptionError: there is no such folder, or it holds nothing that was saved, or what a later version saved.
        MissingExtraError: safetensors is not installed.
    """
    return said_in(Path(folder), "read()", _saved)


def _saved(folder: Path, said: Mapping[str, Any]) -> Saved:
    """Return what a manifest says."""
    images = said["images"]
    return Saved(
        folder=folder,
        method=said["method"],
        model=said["model"],
        head=said["head"],
        reducer=said["reducer"],
        percentile=said["percentile"],
        names=[str(image["name"]) for image in images],
        coverage=Coverage([Nonlinearity(**row) for row in said["coverage"]]),
        _files=[_pictures(image["files"]) for image in images],
        _labels=said["labels"],
    )


def _pictures(files: Mapping[str, str]) -> Mapping[str, str]:
    """Return the names of pictures as a manifest has them: it is data, and points nowhere else."""
    foreign = next((name for name in files.values() if not PICTURE_NAME.fullmatch(name)), None)
    if foreign is not None:
        raise ValueError(f"it names {foreign!r:.80}, which is no picture of this folder")
    return files
