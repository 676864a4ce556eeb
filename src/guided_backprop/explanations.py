"""The result: a record of what was found that can be drawn, saved and shown in a notebook."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from guided_backprop.errors import OptionError
from guided_backprop.foreign import answering
from guided_backprop.labels.names import ClassNames
from guided_backprop.record import Explanation, Record
from guided_backprop.show.canvas import Canvas
from guided_backprop.show.folder import ExplanationFolder
from guided_backprop.show.layouts import Look
from guided_backprop.show.load import load
from guided_backprop.show.notebook import html
from guided_backprop.show.panels import PanelName
from guided_backprop.show.plot import colours_along, draw, save

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Explanation", "Explanations"]


@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Record):
    """The explanations of a batch of images.

    ``len``, iteration and indexing go over the images; ``np.asarray(explanations)`` is the attribution. An integer
    gives an :class:`Explanation`; a slice, a list of integers or a mask, as in ``explanations[scores > 0]``, gives the
    explanations of these images.

    Attributes:
        attribution: signed; same shape, dtype, device, layout and framework as ``images``. With a
            ``reducer`` the channel axis is gone; with K labels of each image it is ``(N, K, ...)``. For
            several inputs a tuple or a dictionary like ``images``, with None for inputs of integers, and in Grad-CAM
            for those without positions.
        images: the batch that was explained, as it was given; with an ``input_layer`` that layer's output.
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
            of several inputs. Of what an input layer makes of tokens it is the last axis.
        batch_size: how many images were explained at once at most; where memory ran out, how many fitted.
        convergence_delta: of :class:`IntegratedGradients`, ``(N,)`` or ``(N, K)`` float64, in units of score: the sum
            of the map, before channels are reduced, less what the image's score is above the baseline's; 0 where the
            map is complete. None for other methods.
        engine: of a compiled method, the engine that computed this, as "openvino 2026.4.1"; or, where the method
            was run as it is, the framework and why, as "torch: a function as label". None for a method that is not
            compiled.

    Example:
        >>> import numpy as np, torch
        >>> from guided_backprop import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> explanations = GuidedBackprop(model).explain(torch.ones(5, 4), labels=1)
        >>> np.asarray(explanations).shape, len(explanations[1:3]), explanations.labels.tolist()
        ((5, 4), 2, [1, 1, 1, 1, 1])
    """

    @answering
    def plot(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        percentile: float = 99.0,
        smooth: float = 0.0,
        methods: "Sequence[Explanations]" = (),
        panels: Sequence[PanelName] | None = None,
        class_names: ClassNames = (),
        feature_names: Sequence[str] | None = None,
        cmap: "str | Colormap | None" = None,
        figsize: tuple[float, float] | None = None,
        ax: "Axes | Sequence[Axes] | NDArray[np.object_] | None" = None,
    ) -> "Figure":
        """Draw one row per image: the image, the signed map, the magnitudes and the overlay; or several methods.

        Series are drawn with their attribution below them, tables as bars, volumes as the slices where the
        attribution is strongest. Below the figure stands what its colours mean, and what in a map is not the photo's
        but the network's; each map has its own scale.

        Args:
            file: where the figure is saved too, in the format of its ending: ``"maps.png"``, ``"maps.pdf"``.
            percentile: the scale of the maps, as in :mod:`guided_backprop.render`; the figure states it.
            smooth: of pictures and volumes: the standard deviation, in pixels, of a Gaussian over what is shown, for
                looking alone; the figure states it.
            methods: explanations of the same images and labels, as from :func:`compare`: the map of each beside
                the others, in their order; these come first unless they are among them.
            panels: what is drawn of pictures: among "image", "colour" (three channels, grey is 0), "diverging" (blue,
                white, red; white is 0), "magnitude" and "overlay" (magnitudes, over the image). None for what suits
                the maps.
            class_names: names of the classes, a list or a dictionary by class id.
            feature_names: names of the columns of a table, or of the channels of a series.
            cmap: the colours of the magnitudes, or of the signed maps where no magnitudes are drawn: matplotlib's, or
                a name that it knows.
            figsize: width and height in inches; None for what suits the rows.
            ax: axes of your own to draw on, one for each panel, in rows, without bars beside them. On a single one
                the overlay is drawn, unless ``panels`` says else.

        Returns:
            A figure that belongs to nobody; pyplot does not know of it, so nothing has to be closed. With ``ax`` the
            figure of these axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: there are no images or more than 16, percentile or smooth are outside their range, methods
                explain something else, or an option has a value that is not offered.
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
        if isinstance(methods, Record) or not all(isinstance(explanations, Record) for explanations in methods):
            raise OptionError(
                f"methods must be a list of explanations; received {methods!r:.200}. Pass what compare() returns."
            )
        among = any(explanations is self for explanations in methods)
        shown = [*methods] if among else [self, *methods]
        look = Look(
            percentile, smooth, None if cmap is None else colours_along(cmap), panels, class_names, feature_names
        )
        records = [explanations.single_input("plot()").one_label_a_row() for explanations in shown]
        figure = draw(records, look, Canvas(figsize, ax))
        if file is not None:
            save(figure, file)
        return figure

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a few images with their maps, and what they are."""
        return html(self)

    @answering
    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        images: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Write pictures, arrays and a manifest into a new folder, which appears whole or not at all.

        For each image ``<name>_colour.png``, ``<name>_magnitude.png`` and ``<name>_overlay.png``, if it is a picture,
        of any number of channels. ``attribution.safetensors`` holds
        the tensors ``attribution``, ``scores`` and ``labels`` (bfloat16 as float32); ``manifest.json`` says
        what was explained, by what, and what the files are called. :meth:`load` reads them back.

        Args:
            folder: where to write.
            names: one per image, for the files: only the part after the last slash, without the ending of
                a picture file, made safe, and made unique by a number. None counts the images.
            images: store images and outputs too, so that :meth:`load` gives all back.
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
            attribution.safetensors cat_colour.png cat_magnitude.png cat_overlay.png manifest.json
        """
        rows = self.single_input("save()").one_label_a_row()
        if names is not None and len(names) == len(self) and not isinstance(names, str):
            names = [name for name in names for _ in range(len(rows) // len(self))]
        with ExplanationFolder(folder, overwrite=overwrite, images=images) as output:
            output.add(rows, names)
            return output.finish()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Return what :meth:`save` wrote, with NumPy's arrays; several labels of an image are several rows.

        Args:
            folder: where it is. ``images`` and ``outputs`` have no columns where ``save(images=True)`` was not said.

        Raises:
            OptionError: the folder holds nothing that was saved, or what a later version saved.
            ImageError: its arrays are damaged.
            MissingExtraError: safetensors is not installed.

        Example:
            >>> import tempfile, torch
            >>> import guided_backprop as gb
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
            >>> explanations = gb.GuidedBackprop(model.eval()).explain(torch.rand(2, 3, 8, 8))
            >>> with tempfile.TemporaryDirectory() as parent:
            ...     saved = gb.Explanations.load(explanations.save(f"{parent}/maps", images=True))
            >>> saved.shape, saved.images.shape, len(gb.Explanations.concatenate([saved, saved]))
            ((2, 3, 8, 8), (2, 3, 8, 8), 4)
        """
        return load(folder, cls)
