"""The arrays of any framework: as NumPy's, and as the several inputs of one model."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

#: A NumPy array of any numbers.
NumpyArray = NDArray[Any]


class Array(Protocol):
    """An array of any framework: of NumPy, PyTorch, TensorFlow or JAX."""

    @property
    def shape(self) -> Any:
        """The size along each axis."""

    @property
    def dtype(self) -> Any:
        """The kind of its numbers, in the framework's words."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


#: An array of a framework, where more is done with it than ``Array`` promises: the framework's own functions.
Tensor = Any
#: What a model is given, and what belongs to that: one array ``(N, ...)``, or a tuple or a dictionary of them.
Images = Any
#: What a model returns: one array ``(N, ...)``, or several in whatever holds them.
Outputs = Any
#: A network of any framework: a module, a Keras or saved model, or a function.
Model = Any
#: A layer of a model: itself, its name or its position.
Layer = Any
#: What is explained, as the user says it: all that :meth:`Method.explain` takes as ``labels``.
Labels = Any


def as_numpy(tensor: Any) -> NumpyArray:
    """Return ``tensor`` (array or tensor, on any device) as a NumPy array; bfloat16 becomes float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if "bfloat16" in str(tensor.dtype):
            tensor = tensor.float()
    array = np.asarray(tensor)
    # To ask for the name takes longer than all else here.
    is_foreign = array.dtype.kind == "V"
    return array.astype(np.float32) if is_foreign and array.dtype.name == "bfloat16" else array


def dtype_name(array: Array) -> str:
    """Return what NumPy calls the kind of an array's numbers, whatever its framework calls it."""
    return str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")


def rows_of(array: Array, index: "int | slice | NDArray[np.intp]") -> Tensor:
    """Return rows of an array of any framework: one, a range, or those at positions, in their order."""
    tensorflow = sys.modules.get("tensorflow")
    # TensorFlow's tensors are the only ones that take no positions.
    if isinstance(index, np.ndarray) and tensorflow is not None and tensorflow.is_tensor(array):
        return tensorflow.gather(array, index)
    return array[index]


@final
@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """What a model is given, or what belongs to that: which form it has is asked once, when this is made.

    Attributes:
        arrays: one for each input; None where there is none, as for the attribution of integers.
        form: how they are given: one alone, several in a tuple, or by these names; equal for equal forms.
    """

    arrays: Sequence[Any]
    form: Literal["one", "tuple"] | tuple[str, ...]

    @classmethod
    def of(cls, images: Images) -> Self:
        """Return images as the user gives them: an array, a tuple, or a dictionary; or inputs as they are."""
        if isinstance(images, cls):
            return images
        if isinstance(images, tuple):
            return cls(images, "tuple")
        if isinstance(images, Mapping):
            return cls(tuple(images.values()), tuple(images))
        return cls((images,), "one")

    @property
    def images(self) -> Images:
        """The arrays as the user gives them."""
        if self.form == "one":
            return self.arrays[0]
        return tuple(self.arrays) if self.form == "tuple" else dict(zip(self.form, self.arrays, strict=True))

    @property
    def names(self) -> Sequence[str | int]:
        """What the inputs are called: their names, or positions."""
        return range(len(self.arrays)) if self.form in ("one", "tuple") else self.form

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.arrays[0])

    def like(self, arrays: Sequence[Any]) -> "Inputs":
        """Return other values in this form, one for each input."""
        return Inputs(arrays, self.form)

    def map(self, function: Callable[..., Any], *others: "Inputs") -> "Inputs":
        """Apply a function to each input, and to what the others have beside it; None where there is none."""
        rows = zip(self.arrays, *[other.arrays for other in others], strict=True)
        return self.like([None if row[0] is None else function(*row) for row in rows])

    def call(self, model: Callable[..., Any]) -> Any:
        """Give a model its inputs: a tuple as arguments, a dictionary as arguments by name."""
        if self.form in ("one", "tuple"):
            return model(*self.arrays)
        return model(**self.images)

    def rows(self, index: int | slice | NDArray[np.intp]) -> "Inputs":
        """Return some images: one, a range, or those at positions."""
        return self.map(lambda array: rows_of(array, index))


def channels_last(
    images: Any, attribution: Any, channel_axis: int | None, *, is_reduced: bool
) -> tuple[NumpyArray, NumpyArray] | None:
    """Return images and attribution ``(N, ..., C)``, or None without channels; a reduced one has one channel."""
    images, attribution = as_numpy(images), as_numpy(attribution)
    if channel_axis is None or images.ndim < 3:
        return None
    images = np.moveaxis(images, channel_axis, -1)
    return images, attribution[..., np.newaxis] if is_reduced else np.moveaxis(attribution, channel_axis, -1)


def as_pictures(
    images: Any, attribution: Any, channel_axis: int | None, *, is_reduced: bool
) -> tuple[NumpyArray, NumpyArray] | None:
    """Return images and attribution ``(N, H, W, C)``, or None if they are not pictures."""
    pictures = channels_last(images, attribution, channel_axis, is_reduced=is_reduced)
    return pictures if pictures is not None and pictures[0].ndim == 4 else None
