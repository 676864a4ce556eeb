"""The result: attribution, what was explained, and what was done with every non-linearity on the path."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from guided_backprop.arrays import as_numpy, inputs_of, like_inputs, mapped
from guided_backprop.coverage import Coverage
from guided_backprop.errors import OptionError
from guided_backprop.labels.target import ClassNames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from guided_backprop.show.plot import Panel


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

    def plot(
        self,
        percentile: float = 99.0,
        *,
        methods: "Sequence[Explanations]" = (),
        panels: "Sequence[Panel] | None" = None,
        class_names: ClassNames = (),
        feature_names: Sequence[str] | None = None,
    ) -> "Figure":
        """Draw one row per image: the image, the signed map, the heatmap and the overlay; or several methods.

        Series are drawn with their attribution below them, tables as bars, volumes as the slices where the
        attribution is strongest. Below the figure stands what its colours mean; each map has its own scale.

        Args:
            percentile: the scale of the maps, as in :mod:`guided_backprop.render`; the figure states it.
            methods: explanations of the same images and labels, as from :func:`compare`: the map of each beside
                the others, in their order; these come first unless they are among them.
            panels: what is drawn of pictures: among "image", "colour" (three channels, grey is 0), "diverging" (blue,
                white, red; white is 0), "heatmap" and "overlay" (magnitudes). None for what suits the maps.
            class_names: names of the classes, a list or a dictionary by class id.
            feature_names: names of the columns of a table, or of the channels of a series.

        Returns:
            A figure that belongs to nobody; pyplot does not know of it, so nothing has to be closed.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: there are no images or more than 16, percentile is outside (0, 100], methods explain
                something else, or an option has a value that is not offered.
            ImageError: the images are neither pictures, series, tables nor volumes, or values are not finite.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop, Saliency, compare
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
            >>> found = compare(torch.rand(2, 3, 8, 8), 0, [Saliency(model), GuidedBackprop(model)])
            >>> figure = found[0].plot(methods=found, class_names=["cat", "dog"])
            >>> len(figure.axes)  # for each image the image and two maps
            6
        """
        from guided_backprop.show.plot import Look, draw  # noqa: PLC0415

        if isinstance(methods, Explanations) or not all(isinstance(each, Explanations) for each in methods):
            raise OptionError(
                f"methods must be a list of explanations; received {methods!r:.200}. Pass what compare() returns."
            )
        among = any(each is self for each in methods)
        shown = [*methods] if among else [self, *methods]
        look = Look(percentile, panels, class_names, feature_names)
        return draw([each._of_one_input("plot()")._one_label_a_row() for each in shown], look)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a few images with their maps, and what they are."""
        from guided_backprop.show.notebook import html  # noqa: PLC0415

        return html(self)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write pictures, arrays and a manifest into a new folder, which appears whole or not at all.

        For each image ``<name>_colour.png``, ``<name>_heatmap.png`` and ``<name>_overlay.png``, if it is a picture,
        of any number of channels. ``attribution.safetensors`` holds
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
        from guided_backprop.show.folder import ExplanationFolder  # noqa: PLC0415

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


def _as_array(values: Any, dtype: DTypeLike | None, copy: bool | None) -> NDArray[Any]:
    array = as_numpy(values)
    converted = array if dtype is None else array.astype(dtype, copy=False)
    if copy is False and (converted is not array or "bfloat16" in str(values.dtype)):
        raise ValueError(f"an array of dtype {dtype} needs a copy; received copy=False. Pass copy=None.")
    return converted.copy() if copy and converted is array else converted
