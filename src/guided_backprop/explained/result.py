"""The result: explained photos, each with its map at its place, which can be drawn, shown and saved."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, final, overload

import numpy as np
from PIL import Image, ImageShow

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.errors import GuidedBackpropError, ImageError, OptionError
from guided_backprop.explained.sources import Source
from guided_backprop.explanations import Explanations
from guided_backprop.labels.names import label_text
from guided_backprop.models import VisionModel, best_classes, probabilities
from guided_backprop.models.preprocessing import View
from guided_backprop.photos import Skipped
from guided_backprop.progress import is_notebook
from guided_backprop.show.canvas import Canvas
from guided_backprop.show.colours import Picture
from guided_backprop.show.folder import ExplanationFolder
from guided_backprop.show.layouts import Look
from guided_backprop.show.notebook import html
from guided_backprop.show.panels import PANELS, PanelName
from guided_backprop.show.place import Place, picture_at
from guided_backprop.show.plot import colours_along, draw, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Of more, a notebook's table, and what is said below it, would be longer than a screen.
_MOST_ROWS, _MOST_NOTES = 6, 16


class Failure(NamedTuple):
    """A photo that could not be read, and why."""

    name: str
    error: ImageError


class _Drawable:
    """What is drawn, shown and saved: the same for one photo and for several."""

    def _all(self) -> "ExplainedPhotos":
        raise NotImplementedError

    def plot(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        percentile: float = 99.0,
        smooth: float = 0.0,
        panels: Sequence[PanelName] | None = None,
        cmap: "str | Colormap | None" = None,
        figsize: tuple[float, float] | None = None,
        ax: "Axes | Sequence[Axes] | NDArray[np.object_] | None" = None,
    ) -> "Figure":
        """Draw the whole photos with their maps at their place; what the network did not see of one is dimmed.

        Args:
            file: as for :meth:`guided_backprop.Explanations.plot`, and so are all others.
            percentile: the scale of the maps.
            smooth: a Gaussian over what is shown, in pixels of the network's input.
            panels: what is drawn.
            cmap: other colours.
            figsize: width and height in inches.
            ax: axes of your own.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: there are more than 16, or an option has a value that is not offered.
            ImageError: a photo's file is not there any more.
        """
        photos = self._all()
        colours = None if cmap is None else colours_along(cmap)
        look = Look(
            percentile, smooth, colours, panels, photos.model.class_names, places=photos.places, notes=photos.warnings
        )
        figure = draw([photos.explanations.one_label_a_row()], look, Canvas(figsize, ax))
        if file is not None:
            save(figure, file)
        return figure

    def show(self) -> None:
        """Show the figure: in the notebook, or in the system's viewer of pictures.

        Raises:
            OptionError: there is neither.
        """
        figure = self.plot()
        if is_notebook():
            from IPython.display import display  # noqa: PLC0415

            display(figure)  # type: ignore[no-untyped-call]
            return
        with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
            save(figure, file.name)
        with Image.open(file.name) as picture:
            if not ImageShow.show(picture, "maps"):
                raise OptionError(
                    "show() needs a notebook or a viewer of pictures; received neither. Write plot('maps.png')."
                )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write pictures on the whole photos, arrays and a manifest; :func:`guided_backprop.read` reads them back.

        Args:
            folder: where to write; it appears whole or not at all.
            overwrite: write into a folder that exists, as :meth:`guided_backprop.Explanations.save` does.

        Returns:
            The folder.

        Raises:
            OutputExistsError: folder exists and ``overwrite`` is false, or it is a file.
            MissingExtraError: safetensors is not installed.
        """
        photos = self._all()
        with ExplanationFolder(folder, overwrite=overwrite) as output:
            for photo in photos:
                rows = photo.explanations.one_label_a_row()
                output.add(rows, [photo.name] * len(rows), [photo.place] * len(rows))
            return output.finish()


@final
@dataclass(frozen=True, eq=False, repr=False)
class ExplainedPhoto(_Drawable):
    """A photo, what the model says of it, and its map.

    Attributes:
        name: its path as it was given or found, or what stands for it.
        explanations: of this photo alone: one row, or with "top5" five labels of one row.
        model: the model.
        size: the photo's width and height.
        source: what it is read from.

    Example:
        >>> import numpy as np, torch
        >>> import guided_backprop as gb
        >>> from guided_backprop.models import ResizeCrop, VisionModel
        >>> conv = torch.nn.Conv2d(3, 2, 3)
        >>> network = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> vision = VisionModel("small", network.eval(), ResizeCrop((8, 8)), ["cat", "dog"])
        >>> pixels = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
        >>> one = gb.explain_photos(pixels, model=vision, labels="dog")[0]
        >>> one.label, isinstance(one.score, float), one.attribution.shape, sorted(one.classes)
        (1, True, (3, 8, 8), ['0 cat', '1 dog'])
        >>> one.photo.size, one.path, one.view.box, one.place.box
        ((60, 20), None, (20.0, 0.0, 40.0, 20.0), (20, 0, 40, 20))
        >>> one.warning
        'the network saw 33% of the photo: the rest of it is not explained'
        >>> one.picture("magnitude").shape
        (20, 60, 3)
    """

    name: str
    explanations: Explanations
    model: VisionModel
    size: tuple[int, int]
    source: Source

    @property
    def path(self) -> Path | None:
        """The photo's file; None for what was given as pixels."""
        return self.source.path

    @property
    def photo(self) -> Image.Image:
        """The photo as it was, RGB and upright; read anew from its file.

        Raises:
            ImageError: the file is not there any more.
        """
        return self.source.read()

    @property
    def attribution(self) -> NumpyArray:
        """The map in the network's own shape, signed, without a batch axis; with K labels ``(K, ...)``."""
        array: NumpyArray = as_numpy(self.explanations.attribution)[0]
        return array

    @property
    def label(self) -> NumpyArray | int:
        """The class that was explained, by its id; with K labels all of them."""
        label = self.explanations.labels[0]
        return label if np.ndim(label) else int(label)

    @property
    def score(self) -> NumpyArray | float:
        """The score that was differentiated; with K labels all of them."""
        score = self.explanations.scores[0]
        return score if np.ndim(score) else float(score)

    @property
    def classes(self) -> dict[str, float]:
        """The five classes of the highest probability, best first, by id and name; empty for what is no classifier."""
        shares = probabilities(self.explanations.outputs, self.explanations.head)
        return {} if shares is None else {self.model.class_name(id_): shares[0, id_] for id_ in best_classes(shares[0])}

    @property
    def view(self) -> View | None:
        """Where on the photo the network looked; None if that is not one upright box."""
        return self.model.view(*self.size)

    @property
    def place(self) -> Place | None:
        """What puts the map onto the whole photo; None if where the network looks is not one upright box."""
        return self.model.place(self.photo)

    @property
    def warning(self) -> str:
        """A sentence where more than half of the photo was not seen by the network; else nothing."""
        return "" if self.view is None else self.view.warning

    def picture(self, panel: PanelName = "overlay", percentile: float = 99.0, *, smooth: float = 0.0) -> Picture:
        """Return a panel on the whole photo, of the first label: ``(H, W, 3)`` uint8.

        Raises:
            OptionError: there is no such panel.
            ImageError: the photo's file is not there any more, or the model takes no pictures.
        """
        if panel not in PANELS:
            raise OptionError(f"panel must be one of {', '.join(PANELS)}; received {panel!r}. Pass one of these names.")
        pictures = self.explanations.one_label_a_row().pictures()
        if pictures is None:
            raise ImageError(
                f"a picture needs a map of a picture; received shape {self.attribution.shape}. Use the attribution."
            )
        (image, *_), (attribution, *_) = pictures
        return picture_at(self.place, PANELS[panel], image, attribution, percentile, smooth=smooth)

    def _all(self) -> "ExplainedPhotos":
        return ExplainedPhotos((self,), self.model)

    def __repr__(self) -> str:
        label = label_text(np.ravel(self.explanations.labels[0])[0], self.model.class_names)
        return f"ExplainedPhoto({self.name}: {label}, score {np.ravel(self.score)[0]:.4g})"

    def _repr_html_(self) -> str:
        return self._all()._repr_html_()


@final
@dataclass(frozen=True, eq=False, repr=False)
class ExplainedPhotos(_Drawable, Sequence[ExplainedPhoto]):
    """Explained photos, in their order. An integer gives one of them; a slice gives these photos.

    Attributes:
        photos: the photos.
        model: the model.
        failures: the photos that could not be read, and why; they are left out.
        skipped: what else was in folders, and why it was not read.

    Example:
        >>> import numpy as np, torch
        >>> import guided_backprop as gb
        >>> from guided_backprop.models import ResizeCrop, VisionModel
        >>> conv = torch.nn.Conv2d(3, 2, 3)
        >>> network = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> vision = VisionModel("small", network.eval(), ResizeCrop((8, 8)), ["cat", "dog"])
        >>> pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 60, 3), np.uint8)
        >>> explained = gb.explain_photos(pixels, model=vision, labels=[0, 1])
        >>> len(explained), explained[0].label, explained.explanations.attribution.shape, len(explained.places)
        (2, 0, (2, 3, 8, 8), 2)
        >>> explained.warnings[1]
        'photo-00001: the network saw 33% of the photo: the rest of it is not explained'
        >>> figure = explained.plot(panels=["overlay"], smooth=1)
    """

    photos: Sequence[ExplainedPhoto]
    model: VisionModel
    failures: Sequence[Failure] = ()
    skipped: Sequence[Skipped] = ()

    def __len__(self) -> int:
        return len(self.photos)

    @overload
    def __getitem__(self, index: int) -> ExplainedPhoto: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> ExplainedPhoto | Self:
        return replace(self, photos=self.photos[index]) if isinstance(index, slice) else self.photos[index]

    def __iter__(self) -> Iterator[ExplainedPhoto]:
        return iter(self.photos)

    @property
    def explanations(self) -> Explanations:
        """The explanations of all photos as one, with NumPy arrays.

        Raises:
            OptionError: there are none, or the network was shown photos in several sizes.
        """
        parts = [photo.explanations for photo in self.photos]
        shapes = {tuple(as_numpy(part.attribution).shape[1:]) for part in parts}
        if len(shapes) != 1:
            raise OptionError(
                f"explanations need photos of one shape; received {', '.join(map(str, sorted(shapes))) or 'none'}. "
                "Take those of each photo: explained[0].explanations."
            )
        return Explanations.concatenate(parts)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each photo of which more than half was not seen by the network."""
        return [f"{photo.name}: {photo.warning}" for photo in self.photos if photo.warning]

    def _all(self) -> "ExplainedPhotos":
        return self

    def __repr__(self) -> str:
        lines = [
            f"{len(self)} of {len(self) + len(self.failures)} photos, explained by {self._method()} of {self.model}"
        ]
        lines += [f"  {photo!r}" for photo in self.photos[:_MOST_NOTES]]
        lines += [f"  and {len(self) - _MOST_NOTES} more"] if len(self) > _MOST_NOTES else []
        return "\n".join([*lines, *(f"  {note}" for note in self._notes())])

    @property
    def places(self) -> list[Place | None]:
        """What puts each map onto its photo, for each label of each photo."""
        return [place for photo in self.photos for place in [photo.place] * photo.explanations.scores.size]

    def _notes(self) -> list[str]:
        """Return what is to be known besides the maps: a line each, of the first of a kind."""
        kinds = [
            [f"warning: {warning}" for warning in self.warnings],
            [f"left out: {failure.error}" for failure in self.failures],
            [f"skipped: {one.path} ({one.reason})" for one in self.skipped],
        ]
        more = [f"and {len(lines) - _MOST_NOTES} more" for lines in kinds]
        return [
            line
            for lines, rest in zip(kinds, more, strict=True)
            for line in (lines[:_MOST_NOTES] + [rest] * (len(lines) > _MOST_NOTES))
        ]

    def _method(self) -> str:
        return self.photos[0].explanations.method if self.photos else "no method"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the first photos with their maps, and what is to be known of all."""
        shown = self[:_MOST_ROWS]
        try:
            record, places = shown.explanations.one_label_a_row(), shown.places
        except GuidedBackpropError:
            # Photos in several sizes have no table; a file may be gone by now.
            return f"<pre>{escape(repr(self))}</pre>"
        rest = [f"{len(shown)} of {len(self)} photos are shown."] if len(shown) < len(self) else []
        return html(record, places, [*rest, *self._notes()])
