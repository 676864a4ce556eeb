"""What explains the photos of a job: built once in a worker, then from batches of columns to batches of columns.

It is what Ray's ``map_batches`` and the ``map`` of Hugging Face's data sets take; :class:`guided_backprop.Job` runs the
same.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from guided_backprop.arrays import NumpyArray, Tensor, as_numpy
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ImageError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.jobs.maps import MapType, check, stored
from guided_backprop.jobs.rows import Row, as_columns, storable
from guided_backprop.labels.parse import parse_label
from guided_backprop.methods.method import Method
from guided_backprop.methods.named import Made, method_of
from guided_backprop.models import VisionModel, best_classes, load_model, probabilities
from guided_backprop.models.default import DEFAULT
from guided_backprop.photos import read_image
from guided_backprop.show.place import Place


class Prepared(NamedTuple):
    """A photo as the network takes it.

    Attributes:
        pixels: without batch axis.
        photo: the photo's width and height.
        box: what of it the network sees, in pixels; None where that isn't known.
        place: what puts a map back onto it, for pictures; None where none are drawn, or that isn't known.
    """

    pixels: Tensor
    photo: tuple[int, int]
    box: tuple[float, float, float, float] | None
    place: Place | None = None


#: What is done beside with a photo, by its position in its batch, and with its explanations: one for each label.
Draw = Callable[[int, Explanations], None]

# By how much of its length a map may differ by rounding, where a ReLU nearly at a tie may turn.
_ROUNDING = 1e-3
# Small enough to have contrast in whatever size it is shown.
_NOISE = (64, 64)


class Kind(NamedTuple):
    """What the maps of a job have in common.

    Attributes:
        shape: of each.
        dtype: as they are stored.
        about: method, model, reducer and channel_axis of the explanations.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    about: dict[str, Any]


class _Tried(NamedTuple):
    """What a picture of noise told, the same in each process.

    Attributes:
        method: the one to explain with.
        shape: of the image that the network took, without batch axis.
        explanations: of the noise, by the method as it was asked for.
    """

    method: Made
    shape: tuple[int, ...]
    explanations: Explanations


class Explainer:
    """Explains batches of columns: ``ray.data.read_images(...).map_batches(Explainer, ...)``.

    The model is loaded in the process that explains, at its first batch. What can't be read is a row with its error.

    Args:
        model: a specification, as for :func:`guided_backprop.load_model`, None for the default model, or a
            :class:`guided_backprop.models.VisionModel`, which must be picklable where it goes to other processes.
        method: the method's name: "guided-backprop", "saliency", "deconvnet", "grad-cam", "guided-gradcam" or
            "smoothgrad".
        options: the method's options: ``{"layer": "layer4"}`` or ``{"reducer": "sum"}``.
        load: options of :func:`guided_backprop.load_model`.
        dtype: how maps are stored: "float32"; "float16", as shares of each map's largest value; or "sqrt8", the square
            roots of these in eight bits.
        optimize: make the method faster (``Method.optimize``), if it explains a picture of noise alike.

    Raises:
        OptionError: there is no such method or dtype.
        GuidedBackpropError: all that loading the model and explaining raise, at the first batch.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.jobs import Explainer
        >>> explain = Explainer(dtype="float32")
        >>> columns = explain({"image": np.zeros((2, 300, 200, 3), np.uint8)})
        >>> columns["map"].shape, columns["error"].tolist()
        ((2, 3, 224, 224), ['', ''])
    """

    def __init__(
        self,
        model: "str | VisionModel | None" = None,
        method: str = "guided-backprop",
        *,
        options: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
        dtype: MapType = "float16",
        optimize: bool = True,
    ) -> None:
        check(dtype)
        self.model, self.method, self.options, self.load = model, method, dict(options or {}), dict(load or {})
        self.dtype, self.optimize = dtype, optimize
        self._made: tuple[VisionModel, Made] | None = None
        self._tried: _Tried | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all but what was made: another process makes that itself."""
        return {**vars(self), "_made": None, "_tried": None}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, NumpyArray]:
        """Explain a batch.

        Args:
            columns: ``"image"``, arrays ``(H, W, 3)`` of uint8 or PIL images; or ``"bytes"``, files as they are; or
                ``"path"`` alone. With ``"path"`` beside, rows are called so; with ``"label"``, those are explained.

        Returns:
            The columns of a job's shard as arrays, of the same kind in each batch. ``error`` is empty where there is
            none, and where there is one the label is -1, the map 0 and all other numbers NaN. ``top`` is
            ``(N, 5, 2)``, the best classes and their probabilities.
        """
        source = next((name for name in ("image", "bytes", "path") if name in columns), None)
        if source is None:
            raise OptionError(
                f"columns must have image, bytes or path; received {', '.join(columns)}. Name one of them so."
            )
        paths = [str(path) for path in columns.get("path", range(len(columns[source])))]
        ready = [self._attempt(_given(value), path) for value, path in zip(columns[source], paths, strict=True)]
        labels = [None if label is None else int(label) for label in columns.get("label", [None] * len(ready))]
        rows = self.rows(paths, ready, labels)
        return as_columns(rows, self._blank(next((row.map for row in rows if row.map is not None), None)))

    def _blank(self, explained: NumpyArray | None) -> Row:
        """Return what stands for what a row lacks: engines want columns of one kind in all batches."""
        shape, dtype, _ = self.kind(_NOISE)
        explanations = self._trial().explanations
        shares = probabilities(explanations.outputs, explanations.head)
        count = 1 if shares is None else len(best_classes(shares[0]))
        return Row(
            path="",
            error="",
            label=-1,
            score=np.nan,
            top=[(-1, np.nan)] * count,
            coverage=Coverage(),
            head="",
            photo=(0, 0),
            box=(np.nan,) * 4,
            map=np.zeros(shape, dtype) if explained is None else np.zeros_like(explained),
            scale=np.nan,
        )

    @property
    def vision(self) -> VisionModel:
        """The model."""
        return self._loaded()[0]

    def prepared(self, source: "Path | IO[bytes] | Image.Image", *, is_drawn: bool = False) -> Prepared:
        """Read a photo, and make of it what the network takes; safe in several threads at once.

        Args:
            source: the photo, or where it is.
            is_drawn: whether its maps will be, so that its place is kept.

        Raises:
            ImageError: it can't be read.
        """
        photo = source if isinstance(source, Image.Image) else read_image(source)
        view = self.vision.view(*photo.size)
        place = self.vision.place(photo) if is_drawn else None
        return Prepared(self.vision.preprocess(photo), photo.size, None if view is None else view.box, place)

    @property
    def is_optimized(self) -> bool:
        """Whether the method was made faster, and agreed."""
        return self._trial().method is not self._loaded()[1]

    def rows(
        self,
        paths: Sequence[str],
        ready: Sequence[Prepared | ImageError],
        labels: Sequence[int | str | None],
        draw: Draw | None = None,
    ) -> list[Row]:
        """Explain a batch of photos.

        Args:
            paths: of the photos, by which their rows are called.
            ready: the photos, or why they couldn't be read.
            labels: class ids; or for all "top5", or None for the best class.
            draw: called for each photo; of what raises ImageError there the row has the error.

        Returns:
            A row for each photo, of those that couldn't be read with their errors; with "top5" several for each.
        """
        names = [storable(path) for path in paths]
        ready = [self._alike(name, one) for name, one in zip(names, ready, strict=True)]
        rows = [
            [Row(name, error=None if isinstance(one, Prepared) else storable(str(one)))]
            for name, one in zip(names, ready, strict=True)
        ]
        readable = [(number, one) for number, one in enumerate(ready) if isinstance(one, Prepared)]
        if not readable:
            return list(chain(*rows))
        images = self.vision.stacked([one.pixels for _, one in readable])
        chosen = _chosen([labels[number] for number, _ in readable])
        explanations = self._trial().method.explain(images, chosen).one_label_a_row()
        count = len(explanations) // len(readable)
        for place, (number, one) in enumerate(readable):
            own = explanations[place * count : (place + 1) * count]
            try:
                if draw is not None:
                    draw(number, own)
                rows[number] = self._rows_of(names[number], one, own)
            except ImageError as error:
                rows[number] = [Row(names[number], error=storable(str(error)))]
        return list(chain(*rows))

    def _alike(self, name: str, one: Prepared | ImageError) -> Prepared | ImageError:
        """Return a photo, or why its map can't stand beside the others'."""
        if isinstance(one, ImageError) or np.shape(one.pixels) == (shape := self._trial(one.photo).shape):
            return one
        return ImageError(
            f"images must be of one shape, {shape}; received path={name!r}, of shape {tuple(np.shape(one.pixels))}. "
            "Resize or crop to one size in the preprocessing."
        )

    def _rows_of(self, name: str, one: Prepared, explanations: Explanations) -> list[Row]:
        """Return a row for each label of one photo."""
        shares = probabilities(explanations.outputs, explanations.head)
        best = [] if shares is None else best_classes(shares[0])
        maps, scales = stored(as_numpy(explanations.attribution), self.dtype)
        return [
            Row(
                path=name,
                label=int(explanations.labels[row]),
                score=float(explanations.scores[row]),
                top=None if shares is None else [(label, float(shares[0, label])) for label in best],
                coverage=explanations.coverage,
                head=explanations.head,
                photo=one.photo,
                box=one.box,
                map=maps[row],
                scale=float(scales[row]),
            )
            for row in range(len(explanations))
        ]

    def kind(self, size: tuple[int, int]) -> Kind:
        """Return what all maps have in common, from a picture of noise: the same in each process.

        Args:
            size: width and height of a photo.

        Raises:
            GuidedBackpropError: the method explains nothing of the model, or its classes aren't as many as their names.
        """
        explanations = self._trial(size).explanations
        self.vision.require_names(explanations.outputs)
        maps, _ = stored(as_numpy(explanations.attribution), self.dtype)
        about = {
            "method": explanations.method,
            "model": self.vision.name,
            "reducer": explanations.reducer,
            "channel_axis": explanations.channel_axis,
        }
        return Kind(maps.shape[1:], maps.dtype, about)

    def check_labels(self, labels: list[int] | int | str | None) -> None:
        """Refuse labels that are none of the model's, before the photos are explained that they are of.

        Raises:
            LabelError: one is of no class.
        """
        count = len(labels) if isinstance(labels, list) else 1
        parse_label(labels, count).explained(self._trial().explanations.outputs)

    def _trial(self, size: tuple[int, int] = _NOISE) -> _Tried:
        if self._tried is None:
            vision, method = self._loaded()
            noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*_NOISE, 3), np.uint8))
            # A preprocessing may leave the photo's size as it is.
            pixels = self.prepared(noise.resize(size)).pixels
            images = vision.stacked([pixels])
            explanations = method.explain(images)
            if self.optimize and isinstance(method, Method):
                method = _faster(method, images, explanations)
            self._tried = _Tried(method, tuple(np.shape(pixels)), explanations)
        return self._tried

    def _loaded(self) -> tuple[VisionModel, Made]:
        if self._made is None:
            vision = self.model if isinstance(self.model, VisionModel) else _load(self.model, self.load)
            self._made = vision, method_of(self.method, vision.network, **self.options)
        return self._made

    def _attempt(self, source: "Path | IO[bytes] | Image.Image", path: str) -> Prepared | ImageError:
        try:
            return self.prepared(source)
        except ImageError as error:
            return error


def _load(spec: str | None, options: Mapping[str, Any]) -> VisionModel:
    return load_model(spec or DEFAULT, **options)


def _faster(method: Method, images: Tensor, truth: Explanations) -> Method:
    """Return the optimised method if it explains images alike; else the method as it is."""
    try:
        optimized = method.optimize(images)
        explanations = optimized.explain(images)
    except GuidedBackpropError:
        # As it is, the method did explain them.
        return method
    maps, same = as_numpy(explanations.attribution), np.array_equal(explanations.labels, truth.labels)
    difference = np.linalg.norm((maps - as_numpy(truth.attribution)).ravel())
    return optimized if same and difference <= _ROUNDING * np.linalg.norm(maps.ravel()) else method


def _given(value: Any) -> "Path | IO[bytes] | Image.Image":
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, bytes):
        return BytesIO(value)
    return value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value)).convert("RGB")


def _chosen(labels: Sequence[int | str | None]) -> list[int] | str | None:
    """Return class ids, "top5", or None if they are the top classes."""
    kinds = {label if isinstance(label, str) else type(label) for label in labels}
    if len(kinds) > 1:
        raise OptionError("labels must be given for all photos of a batch, or for none; received some. Give all.")
    first = labels[0]
    return [label for label in labels if isinstance(label, int)] if isinstance(first, int) else first
