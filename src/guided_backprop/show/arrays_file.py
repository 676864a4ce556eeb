"""A safetensors file of arrays that come batch by batch: one batch is held in memory, however many there are."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np

from guided_backprop.arrays import NumpyArray

# As https://github.com/huggingface/safetensors has them.
_NAMES = {"b1": "BOOL", **{f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "fiu" for size in (1, 2, 4, 8)}}
_ALIGNED = 8


@final
class ArraysFile:
    """Joins the rows of arrays by their names, each in a file of its own until :meth:`finish`.

    Args:
        folder: where these files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kinds: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = {}
        self._rows = 0

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of a row of each array; none before the first batch."""
        return {name: shape for name, (_, shape) in self._kinds.items()}

    def add(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Append a batch of rows: of the same names and shapes as before.

        Raises:
            OSError: the disk is full, or the like.
        """
        for name, array in arrays.items():
            dtype, _ = self._kinds.setdefault(name, (array.dtype, array.shape[1:]))
            with self._part(name).open("ab") as file:
                file.write(np.ascontiguousarray(array, dtype).tobytes())
        self._rows += len(next(iter(arrays.values())))

    def finish(self, path: Path) -> None:
        """Write all into one file."""
        # The widest first, so that each number lies at a multiple of its size.
        names = sorted(self._kinds, key=lambda name: (-self._kinds[name][0].itemsize, name))
        about, end = {}, 0
        for name in names:
            dtype, shape = self._kinds[name]
            start, end = end, end + self._part(name).stat().st_size
            about[name] = {"dtype": _NAMES[dtype.str[1:]], "shape": [self._rows, *shape], "data_offsets": [start, end]}
        header = json.dumps(about, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNED)
        with path.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in names:
                with self._part(name).open("rb") as part:
                    shutil.copyfileobj(part, file)
                self._part(name).unlink()

    def _part(self, name: str) -> Path:
        return self._folder / f".{name}.rows"
