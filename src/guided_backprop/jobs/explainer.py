"""What explains the photos of a job: built once in a worker, then from batches of columns to batches of columns.

It is what Ray's ``map_batches`` and the ``map`` of Hugging Face's data sets take; :class:`guided_backprop.Job` runs the
same.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from guided_backprop.arrays import Images, NumpyArray, Tensor, as_numpy
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.jobs.maps import MapType, check, stored
from guided_backprop.jobs.rows import Row, as_columns
from guided_backprop.methods.method import Method
from guided_backprop.methods.named import Made, method_of
from guided_backprop.models import VisionModel, best_classes, load_model, probabilities
from guided_backprop.models.default import load_default
from guided_backprop.photos import read_image


class Prepared(NamedTuple):
    """A photo as the network takes it.

    Attributes:
        pixels: without batch axis.
        photo: the photo's width and height.
        box: what of it the network sees, in pixels; None where that isn't known.
    """

    pixels: Tensor
    photo: tuple[int, int]
    box: tuple[float, float, float, float] | None


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
        optimize: make the method faster, where the optimised one agrees; see ``Method.optimize``.

    Raises:
        OptionError: there is no such method or dtype.
        GuidedBackpropError: all that loading the model and explaining raise, at the first batch.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.jobs import Explainer
        >>> explain = Explainer(dtype="float32")
        >>> columns = explain({"image": np.zeros((2, 300, 200, 3), np.uint8)})
        >>> columns["map"].shape, columns["error"].tolist()
        ((2, 3, 224, 224), [None, None])
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
        self._is_optimized = False
        self._kind: Kind | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all but what was made: another process makes that itself."""
        return {**vars(self), "_made": None, "_is_optimized": False, "_kind": None}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, NumpyArray]:
        """Explain a batch.

        Args:
            columns: ``"image"``, arrays ``(H, W, 3)`` of uint8 or PIL images; or ``"bytes"``, files as they are; or
                ``"path"`` alone. With ``"path"`` beside, rows are called so; with ``"label"``, those are explained.

        Returns:
            The columns of a job's shard, as arrays. Without a map, where there is an error, a row has zeros and NaN.
        """
        source = next((name for name in ("image", "bytes", "path") if name in columns), None)
        if source is None:
            raise OptionError(
                f"columns must have image, bytes or path; received {', '.join(columns)}. Name one of them so."
            )
        paths = [str(path) for path in columns.get("path", range(len(columns[source])))]
        ready = [self._attempt(_given(value), path) for value, path in zip(columns[source], paths, strict=True)]
        labels = [None if label is None else int(label) for label in columns.get("label", [None] * len(ready))]
        return as_columns(self.rows(paths, ready, labels))

    @property
    def vision(self) -> VisionModel:
        """The model."""
        return self._loaded()[0]

    def prepared(self, source: "Path | IO[bytes] | Image.Image") -> Prepared:
        """Read a photo, and make of it what the network takes; safe in several threads at once.

        Raises:
            ImageError: it can't be read.
        """
        photo = source if isinstance(source, Image.Image) else read_image(source)
        view = self.vision.view(*photo.size)
        return Prepared(self.vision.preprocess(photo), photo.size, None if view is None else view.box)

    def rows(
        self, paths: Sequence[str], ready: Sequence[Prepared | ImageError], labels: Sequence[int | None]
    ) -> list[Row]:
        """Explain a batch of photos, and return a row for each, those that couldn't be read with their errors."""
        rows = [
            Row(path, error=None if isinstance(one, Prepared) else str(one))
            for path, one in zip(paths, ready, strict=True)
        ]
        readable = [(number, one) for number, one in enumerate(ready) if isinstance(one, Prepared)]
        if not readable:
            return rows
        vision, _ = self._loaded()
        images = vision.stacked([one.pixels for _, one in readable])
        chosen = _chosen([labels[number] for number, _ in readable])
        explanations = self._explaining(images).explain(images, chosen)
        shares = probabilities(explanations.outputs, explanations.head)
        maps, scales = stored(as_numpy(explanations.attribution), self.dtype)
        for place, (number, one) in enumerate(readable):
            best = [] if shares is None else best_classes(shares[place])
            rows[number] = Row(
                path=paths[number],
                label=int(explanations.labels[place]),
                score=float(explanations.scores[place]),
                top=None if shares is None else [(label, float(shares[place, label])) for label in best],
                coverage=explanations.coverage,
                head=explanations.head,
                photo=one.photo,
                box=one.box,
                map=maps[place],
                scale=float(scales[place]),
            )
        return rows

    def kind(self) -> Kind:
        """Return what all maps have in common, from that of a picture of noise: the same in each process."""
        if self._kind is None:
            self._kind = self._kind_of_noise()
        return self._kind

    def _kind_of_noise(self) -> Kind:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        pixels = self.prepared(Image.fromarray(noise)).pixels
        images = self.vision.stacked([pixels])
        explanations = self._explaining(images).explain(images)
        maps, _ = stored(as_numpy(explanations.attribution), self.dtype)
        about = {
            "method": explanations.method,
            "model": explanations.model,
            "reducer": explanations.reducer,
            "channel_axis": explanations.channel_axis,
        }
        return Kind(maps.shape[1:], maps.dtype, about)

    def _loaded(self) -> tuple[VisionModel, Made]:
        if self._made is None:
            vision = self.model if isinstance(self.model, VisionModel) else _load(self.model, self.load)
            self._made = vision, method_of(self.method, vision.network, **self.options)
        return self._made

    def _explaining(self, images: Images) -> Made:
        vision, method = self._loaded()
        if self.optimize and not self._is_optimized and isinstance(method, Method):
            method = method.optimize(images[:1])
            self._made = vision, method
        self._is_optimized = True
        return method

    def _attempt(self, source: "Path | IO[bytes] | Image.Image", path: str) -> Prepared | ImageError:
        try:
            return self.prepared(source)
        except ImageError as error:
            return error


def _load(spec: str | None, options: Mapping[str, Any]) -> VisionModel:
    return load_default() if spec is None else load_model(spec, **options)


def _given(value: Any) -> "Path | IO[bytes] | Image.Image":
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, bytes):
        return BytesIO(value)
    return value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value)).convert("RGB")


def _chosen(labels: Sequence[int | None]) -> list[int] | None:
    """Return the labels, or None if they are the top classes."""
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise OptionError("labels must be given for all photos of a batch, or for none; received some. Give all.")
    return known or None
