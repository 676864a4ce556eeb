"""What was found, as data: the attribution, what was explained, and what was met on the way; by row and by input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from guided_backprop.arrays import Array, Images, Inputs, NumpyArray, Tensor, as_numpy, as_pictures, channels_last
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OptionError
from guided_backprop.foreign import OF_RESULTS, Answering

#: Which rows of a record: a slice; or integers or a mask, as a list or an array of any framework.
Rows = slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_] | Array

# What NumPy holds, whatever the framework, with a row for each image.
_ROWS = ("labels", "scores", "outputs")
# A label of more numbers than these is told by its shape.
_MOST_NUMBERS = 8


class _Attributed(Answering):
    """Holds an attribution, of one image or of several."""

    __slots__ = ()
    attribution: Images
    answers = OF_RESULTS

    @property
    def shape(self) -> Any:
        """The attribution's shape; a tuple or a dictionary of shapes for several inputs."""
        return Inputs.of(self.attribution).map(lambda array: tuple(array.shape)).images


@dataclass(frozen=True, eq=False, slots=True)
class Explanation(_Attributed):
    """The explanation of one image: a row of :class:`Explanations`, without the batch axis.

    With K labels of each image the score is an array ``(K,)``, else a float.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> first = GuidedBackprop(model).explain(torch.ones(5, 4), labels=1)[0]
        >>> int(first.label), first.shape, str(first.coverage)
        (1, (4,), 'relu x1 guided')
    """

    attribution: Images
    image: Images
    label: Any
    score: Any
    output: NumpyArray
    coverage: Coverage

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NumpyArray:
        """Return the attribution as a NumPy array."""
        return _as_array(self.attribution, dtype, copy)

    def __repr__(self) -> str:
        about = f"label={_brief(self.label)}, score={_brief(self.score)}, shape={self.shape}"
        return f"Explanation({about}, {self.coverage})"


@dataclass(frozen=True, eq=False, repr=False)
class Record(_Attributed, Sequence[Explanation]):
    """What was found for a batch of images: the fields of :class:`Explanations`, which says what they are.

    ``len``, iteration and indexing go over the images; ``np.asarray(record)`` is the attribution. An integer gives an
    :class:`Explanation`; a slice, a list of integers or a mask gives a record of these images.
    """

    attribution: Images
    images: Images
    labels: NumpyArray
    scores: NDArray[np.float64]
    outputs: NumpyArray = field(repr=False)
    coverage: Coverage
    method: str
    model: str
    head: str | None = None
    reducer: str | None = None
    channel_axis: Any = None
    batch_size: int = 0
    convergence_delta: NDArray[np.float64] | None = None
    engine: str | None = None

    @classmethod
    def concatenate(cls, parts: "Sequence[Self]") -> Self:
        """Return several of one method and one model as one, in their order, with NumPy's arrays.

        Raises:
            OptionError: there are none, or they are of several methods, models, or shapes.
        """
        if not parts or isinstance(parts, Record):
            raise OptionError(f"concatenate() needs a list of explanations; received {parts!r:.80}. Pass one or more.")
        for name in ("method", "model", "head", "reducer", "channel_axis"):
            kinds = list(dict.fromkeys(repr(getattr(part, name)) for part in parts))
            if len(kinds) > 1:
                raise OptionError(
                    f"explanations that are put together must be alike; received {name}={' and '.join(kinds[:2])}. "
                    "Put those together that are."
                )
        try:
            joined = {name: _joined(parts, name) for name in ("attribution", "images")}
            joined |= {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
        except ValueError as error:
            shapes = " and ".join(dict.fromkeys(str(part.shape) for part in parts))
            raise OptionError(
                f"explanations that are put together must be of one shape; received {shapes:.200} ({error}). "
                "Put those together that are."
            ) from error
        coverage = Coverage.merge([part.coverage for part in parts])
        deltas = [part.convergence_delta for part in parts if part.convergence_delta is not None]
        # What was read back from a file has none.
        joined["convergence_delta"] = np.concatenate(deltas) if len(deltas) == len(parts) else None
        size = max(part.batch_size for part in parts)
        return replace(parts[0], **joined, coverage=coverage, batch_size=size)

    @property
    def short_method(self) -> str:
        """The method's name without what was chosen of it, as "SmoothGrad"."""
        return self.method.partition("(")[0]

    @property
    def is_of_classes(self) -> bool:
        """Whether a class of each image was explained, by its id."""
        return self.labels.dtype.kind == "i" and self.labels.ndim == 1 and self.outputs.ndim > 1

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: Rows) -> Self: ...
    def __getitem__(self, index: int | Rows) -> Explanation | Self:
        where = _where(index, len(self))
        attribution, images = (Inputs.of(batch).rows(where).images for batch in (self.attribution, self.images))
        labels, scores, outputs = self.labels[where], self.scores[where], self.outputs[where]
        if isinstance(where, int):
            score = scores if np.ndim(scores) else float(scores)
            return Explanation(attribution, images, labels, score, outputs, self.coverage)
        delta = None if self.convergence_delta is None else self.convergence_delta[where]
        rows = {"attribution": attribution, "images": images, "labels": labels, "scores": scores, "outputs": outputs}
        return replace(self, **rows, convergence_delta=delta)

    def __iter__(self) -> Iterator[Explanation]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NumpyArray:
        """Return the attribution as a NumPy array."""
        return _as_array(self.single_input("np.asarray()").attribution, dtype, copy)

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Give the attribution to another framework, as ``torch.as_tensor(record)`` asks for it."""
        options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        return self._exported().__dlpack__(**{name: said for name, said in options.items() if said is not None})

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device that :meth:`__dlpack__` gives the attribution on."""
        device: tuple[int, int] = self._exported().__dlpack_device__()
        return device

    def _exported(self) -> Tensor:
        """Return the attribution as what may be written to: PyTorch's where it is, all others as NumPy's."""
        attribution = self.single_input("a conversion").attribution
        if hasattr(attribution, "detach"):
            return attribution
        array = as_numpy(attribution)
        return array if array.flags.writeable else array.copy()

    def __repr__(self) -> str:
        about = f"method={self.method!r}, model={self.model!r}, shape={self.shape}"
        about += "" if self.engine is None else f", engine={self.engine!r}"
        return f"{type(self).__name__}({about}, coverage='{self.coverage}')"

    def by_input(self) -> dict[str | int, Self | None]:
        """Return what was found for each of several inputs, by its name or position; None for one of integers."""
        columns = (Inputs.of(batch).arrays for batch in (self.attribution, self.images, self.channel_axis))
        by_input: dict[str | int, Self | None] = {}
        for name, attribution, images, axis in zip(Inputs.of(self.images).names, *columns, strict=True):
            one = replace(self, attribution=attribution, images=images, channel_axis=axis)
            by_input[name] = None if attribution is None else one
        return by_input

    def of_input(self, name: str | int) -> Self:
        """Return the explanations of one of several inputs, by its name or position.

        Raises:
            OptionError: there is no such input, or it has no attribution.
        """
        by_input = self.by_input()
        one = by_input[name] if name in list(by_input) else None
        if one is None:
            raise OptionError(
                f"of_input() needs one of the inputs that are explained; received name={name!r} of "
                f"{', '.join(map(repr, by_input))}. Pass one of these."
            )
        return one

    def single_input(self, caller: str) -> Self:
        """Return this if it is of a single input, which the caller needs.

        Raises:
            OptionError: it is of several.
        """
        if isinstance(self.images, (tuple, Mapping)):
            raise OptionError(
                f"{caller} needs one input; received explanations of {len(self.images)} inputs. "
                "Choose one with of_input(name)."
            )
        return self

    def channels_last(self) -> tuple[NumpyArray, NumpyArray] | None:
        """Return images and attribution ``(N, ..., C)``, or None without channels; a reduced one has one channel."""
        return channels_last(self.images, self.attribution, self.channel_axis, is_reduced=self.reducer is not None)

    def pictures(self) -> tuple[NumpyArray, NumpyArray] | None:
        """Return images and attribution ``(N, H, W, C)``, or None if they are not pictures."""
        return as_pictures(self.images, self.attribution, self.channel_axis, is_reduced=self.reducer is not None)

    def one_label_a_row(self) -> Self:
        """Return a record of as many images as there are labels of them, or this if there is one label for each."""
        if self.scores.ndim == 1:
            return self
        count = self.scores.shape[1]
        attribution = as_numpy(self.attribution)
        return replace(
            self,
            attribution=attribution.reshape(-1, *attribution.shape[2:]),
            images=np.repeat(as_numpy(self.images), count, axis=0),
            labels=self.labels.reshape(-1),
            scores=self.scores.reshape(-1),
            outputs=np.repeat(self.outputs, count, axis=0),
            convergence_delta=None if self.convergence_delta is None else self.convergence_delta.reshape(-1),
        )


def _joined(parts: "Sequence[Record]", name: str) -> Images:
    """Return what belongs to the images of several records, in the form of one."""
    first, *others = [Inputs.of(getattr(part, name)) for part in parts]
    return first.map(lambda *arrays: np.concatenate([as_numpy(array) for array in arrays]), *others).images


def _where(index: object, count: int) -> int | slice | NDArray[np.intp]:
    """Return which of ``count`` rows an index means: one, a range of them, or their positions.

    As for NumPy along one axis. JAX takes what is out of range for the last row, so that is found here.
    """
    if isinstance(index, slice):
        is_backwards = index.step is not None and index.step < 0
        # PyTorch knows steps backwards neither in a slice nor in an array that is a view.
        return np.arange(count)[index].copy() if is_backwards else index
    if isinstance(index, tuple) or index is None:
        raise _no_index(index)
    try:
        positions = as_numpy(index)
    except (TypeError, ValueError) as error:
        raise _no_index(index) from error
    if positions.ndim == 1 and not positions.size:
        return np.zeros(0, np.intp)
    if positions.ndim == 1 and positions.dtype.kind == "b":
        if len(positions) != count:
            raise IndexError(
                f"a mask must be one boolean per image; received {len(positions)} for {count} images. "
                "Compare labels, scores or outputs of these explanations."
            )
        return np.flatnonzero(positions)
    if positions.ndim > 1 or positions.dtype.kind not in "iu":
        raise _no_index(index)
    is_outside = (positions < -count) | (positions >= count)
    if is_outside.any():
        raise IndexError(
            f"index must be in [{-count}, {count}); received index={positions[is_outside].flat[0]}. "
            "Count images from 0."
        )
    return int(positions) if positions.ndim == 0 else np.asarray(positions % count, np.intp)


def _no_index(index: object) -> OptionError:
    return OptionError(
        "index must be an integer, a slice, a list of integers, or a mask of booleans; "
        f"received index={index!r:.80}. Images are the only axis: index the attribution for others."
    )


def _brief(value: Any) -> str:
    """Return a label or a score in a few letters."""
    array = np.asarray(value)
    if array.size > _MOST_NUMBERS:
        return f"weights of shape {array.shape}"
    if array.dtype.kind != "f":
        return str(array.tolist())
    numbers = [f"{number:.4g}" for number in array.flat]
    return f"[{', '.join(numbers)}]" if array.ndim else numbers[0]


def _as_array(attribution: Any, dtype: DTypeLike | None, copy: bool | None) -> NumpyArray:
    array = as_numpy(attribution)
    converted = array if dtype is None else array.astype(dtype, copy=False)
    if copy is False and (converted is not array or "bfloat16" in str(attribution.dtype)):
        raise ValueError(f"an array of dtype {dtype} needs a copy; received copy=False. Pass copy=None.")
    return converted.copy() if copy and converted is array else converted
