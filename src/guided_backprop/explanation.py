"""The result: attribution, what was explained, and what was done with every non-linearity on the path."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from guided_backprop.arrays import as_numpy, channels_last, inputs_of, like_inputs, mapped
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, MissingExtraError, OptionError
from guided_backprop.render import colour_picture, heatmap, overlay, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A figure of more rows is taller than a screen and slower than saving the pictures.
_MOST_ROWS = 16


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """The explanation of one image: a row of :class:`Explanations`, without the batch axis.

    With K labels of each image the score is an array ``(K,)``, else a float.
    """

    attribution: Any
    image: Any
    label: Any
    score: Any
    output: NDArray[Any]
    coverage: Coverage

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the attribution as a NumPy array."""
        return _as_array(self.attribution, dtype, copy)


@dataclass(frozen=True, eq=False)
class Explanations(Sequence[Explanation]):
    """The explanations of a batch of images.

    ``len``, iteration and indexing go over the images; ``np.asarray(explanations)`` is the attribution.

    Attributes:
        attribution: signed; same shape, dtype, device, layout and framework as ``images``. With a
            ``reducer`` the channel axis is gone; with K labels of each image it is ``(N, K, ...)``. For
            several inputs a tuple or a dictionary like ``images``, with None for inputs of integers.
        images: the batch that was explained, as it was given.
        labels: what was explained: integers are class ids ``(N,)`` or ``(N, K)``, or single entries ``(N, D)``
            with the channel first; floating-point numbers are weights of the model's output's shape; a
            callable is there by its name.
        scores: ``(N,)`` or ``(N, K)`` float64, the scalar that was differentiated.
        outputs: the model's own output, one row per image, as a NumPy array.
        coverage: every non-linearity on the path from score to image, and what was done with it.
        method: the method's name.
        model: the model's name.
        head: ``"softmax"``, ``"log_softmax"``, ``"sigmoid"`` or ``"log_sigmoid"`` if the model ends in
            one and the score is the logit in front of it; ``None`` if the score is the output itself.
        reducer: how channels were reduced, or ``None``.
        channel_axis: where channels are in ``images``; ``None`` if the images have no channels. One for each
            of several inputs.
        batch_size: how many images were explained at once at most; where memory ran out, how many fitted.
    """

    attribution: Any
    images: Any
    labels: NDArray[Any]
    scores: NDArray[np.float64]
    outputs: NDArray[Any] = field(repr=False)
    coverage: Coverage
    method: str
    model: str
    head: str | None = None
    reducer: str | None = None
    channel_axis: Any = None
    batch_size: int = 0

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> "Explanations": ...
    def __getitem__(self, index: int | slice) -> "Explanation | Explanations":
        attribution, image = (mapped(lambda rows: rows[index], rows) for rows in (self.attribution, self.images))
        label, score, output = self.labels[index], self.scores[index], self.outputs[index]
        if not isinstance(index, slice):
            value = score if np.ndim(score) else float(score)
            return Explanation(attribution, image, label, value, output, self.coverage)
        about = (self.coverage, self.method, self.model, self.head, self.reducer, self.channel_axis, self.batch_size)
        return Explanations(attribution, image, label, score, output, *about)

    def __iter__(self) -> Iterator[Explanation]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the attribution as a NumPy array."""
        return _as_array(self._of_one_input("np.asarray()").attribution, dtype, copy)

    def of_input(self, name: str | int) -> "Explanations":
        """Return the explanations of one of several inputs, by its name or position.

        Raises:
            OptionError: there is no such input, or it has no attribution.
        """
        names = list(self.images) if isinstance(self.images, Mapping) else list(range(len(inputs_of(self.images))))
        if name not in names or inputs_of(self.attribution)[names.index(name)] is None:
            raise OptionError(
                f"of_input() needs one of the inputs that are explained; received name={name!r} of "
                f"{', '.join(map(repr, names))}. Pass one of these."
            )
        position = names.index(name)
        one = (inputs_of(each)[position] for each in (self.attribution, self.images, self.channel_axis))
        attribution, images, axis = one
        return replace(self, attribution=attribution, images=images, channel_axis=axis)

    def plot(self, percentile: float = 99.0) -> "Figure":
        """Draw one row per image: the image, the colour picture, the heatmap and the overlay.

        What is not picture-like is drawn as one panel per image: a row of a table as bars, a series as one
        line per channel.

        Args:
            percentile: the scale of the pictures, as in :mod:`guided_backprop.render`; the figure states it.

        Returns:
            A figure that belongs to nobody; pyplot does not know of it, so nothing has to be closed.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: there are no images or more than 16, or percentile is outside (0, 100].
            ImageError: the attribution is neither pictures, nor series, nor rows of a table.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
            >>> figure = GuidedBackprop(model.eval()).explain(torch.rand(2, 3, 8, 8)).plot()
            >>> len(figure.axes)
            8
        """
        kind = figure_kind()
        rows = self._of_one_input("plot()")._one_label_a_row()
        if not 1 <= len(rows) <= _MOST_ROWS:
            raise OptionError(
                f"plot() draws 1 to {_MOST_ROWS} images; received {len(rows)} images. "
                f"Plot a slice, such as explanations[:{_MOST_ROWS}]."
            )
        return rows._figure(kind, percentile)

    def _figure(self, kind: "type[Figure]", percentile: float) -> "Figure":
        pixels = channels_last(self.images, self.attribution, self.channel_axis, is_reduced=self.reducer is not None)
        if pixels is not None:
            figure = kind(figsize=(10, 2.7 * len(self) + 0.6), layout="constrained")
            _draw_pictures(figure, *pixels, percentile)
            scale = f"; pictures scaled to percentile {percentile:g} of their magnitudes"
        else:
            figure = kind(figsize=(10, 2.2 * len(self) + 0.6), layout="constrained")
            _draw_values(figure, as_numpy(self.attribution))
            scale = ""
        for axes, label, score in zip(
            figure.axes[:: len(figure.axes) // len(self)], self.labels, self.scores, strict=True
        ):
            axes.set_title(f"{_label_text(label)}, score {score:.4g}", loc="left", fontsize="medium")
        figure.supxlabel(f"{self.method} of {self.model}{scale}", fontsize="small")
        return figure

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write pictures, arrays and a manifest into a new folder, which appears whole or not at all.

        For each image ``<name>_colour.png``, ``<name>_heatmap.png`` and ``<name>_overlay.png``, if the
        attribution is picture-like: one or three channels, or reduced. ``attribution.safetensors`` holds
        the tensors ``attribution``, ``scores`` and ``labels`` (bfloat16 as float32); ``manifest.json`` says
        what was explained, by what, and what the files are called.

        Args:
            folder: where to write.
            names: one per image, for the files: only the part after the last slash, without the ending of
                a picture file, made safe, and made unique by a number. None counts the images.
            overwrite: write into a folder that exists. Files of the same names are replaced, and pictures
                that its manifest lists are removed; nothing else is touched.

        Returns:
            The folder.

        Raises:
            OutputExistsError: folder exists and ``overwrite`` is false, or it is a file.
            OptionError: names are not one string per image.
            MissingExtraError: safetensors is not installed.

        Example:
            >>> import tempfile, torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
            >>> explanations = GuidedBackprop(model.eval()).explain(torch.rand(1, 3, 8, 8))
            >>> with tempfile.TemporaryDirectory() as parent:
            ...     folder = explanations.save(f"{parent}/maps", names=["photos/cat.jpg"])
            ...     print(*sorted(path.name for path in folder.iterdir()))
            attribution.safetensors cat_colour.png cat_heatmap.png cat_overlay.png manifest.json
        """
        from guided_backprop.saving import ExplanationFolder  # noqa: PLC0415

        rows = self._of_one_input("save()")._one_label_a_row()
        if names is not None and len(names) == len(self) and not isinstance(names, str):
            names = [name for name in names for _ in range(len(rows) // len(self))]
        with ExplanationFolder(folder, overwrite=overwrite) as output:
            output.add(rows, names)
            return output.finish()

    def _of_one_input(self, what: str) -> Self:
        if isinstance(self.images, (tuple, Mapping)):
            raise OptionError(
                f"{what} needs one input; received explanations of {len(self.images)} inputs. "
                "Choose one with of_input(name)."
            )
        return self

    def _one_label_a_row(self) -> "Explanations":
        """Return explanations of as many images as there are labels of them, or this if there is one for each."""
        if self.scores.ndim == 1:
            return self
        count = self.scores.shape[1]
        attribution, labels = as_numpy(self.attribution), self.labels
        return replace(
            self,
            attribution=attribution.reshape(-1, *attribution.shape[2:]),
            images=np.repeat(as_numpy(self.images), count, axis=0),
            labels=labels.reshape(-1),
            scores=self.scores.reshape(-1),
            outputs=np.repeat(self.outputs, count, axis=0),
        )

    def __repr__(self) -> str:
        shapes = [None if each is None else tuple(each.shape) for each in inputs_of(self.attribution)]
        shape = like_inputs(self.attribution, shapes)
        return f"Explanations(method={self.method!r}, model={self.model!r}, shape={shape}, coverage='{self.coverage}')"


def figure_kind() -> "type[Figure]":
    """Return matplotlib's figure, which pyplot does not know of; raise MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "plot() needs matplotlib; received an environment without it. Run: pip install 'guided-backprop[plot]'."
        ) from error
    return Figure


def _as_array(values: Any, dtype: DTypeLike | None, copy: bool | None) -> NDArray[Any]:
    array = as_numpy(values)
    converted = array if dtype is None else array.astype(dtype, copy=False)
    if copy is False and (converted is not array or "bfloat16" in str(values.dtype)):
        raise ValueError(f"an array of dtype {dtype} needs a copy; received copy=False. Pass copy=None.")
    return converted.copy() if copy and converted is array else converted


def _draw_pictures(figure: "Figure", images: NDArray[Any], attribution: NDArray[Any], percentile: float) -> None:
    titles = ("", "attribution, grey is 0", "heatmap", "overlay")
    grid = figure.subplots(len(images), 4, squeeze=False)
    for row, image, signed in zip(grid, images, attribution, strict=True):
        panels = (
            picture(image),
            colour_picture(signed, percentile),
            heatmap(signed, percentile),
            overlay(image, signed, percentile),
        )
        for axes, panel, title in zip(row, panels, titles, strict=True):
            axes.imshow(panel, cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize="medium")
            axes.set_axis_off()


def _draw_values(figure: "Figure", attribution: NDArray[Any]) -> None:
    """Draw rows ``(N, F)`` as bars and series ``(N, C, L)`` as one line per channel."""
    if attribution.ndim not in (2, 3):
        raise ImageError(
            "plot() draws pictures of 1 or 3 channels, series (N, C, L) and tables (N, F); "
            f"received attribution of shape {attribution.shape}. Pass reducer='absmax' to the method."
        )
    panels: NDArray[Any] = figure.subplots(len(attribution), 1, squeeze=False)[:, 0]
    axes: Axes
    for axes, values in zip(panels, attribution, strict=True):
        if values.ndim == 1:
            axes.bar(np.arange(len(values)), values)
        else:
            axes.plot(values.T)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("attribution")


def _label_text(label: Any) -> str:
    kind = np.asarray(label).dtype.kind
    if np.ndim(label) == 0:
        return str(label) if kind == "U" else f"class {label}"
    return f"output {tuple(map(int, label))}" if kind == "i" else "weighted outputs"
