"""``explain_photos``: from photos and a model's name to explained photos."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from guided_backprop.arrays import Layer, Model
from guided_backprop.errors import ImageError, OptionError
from guided_backprop.explained.result import ExplainedPhoto, ExplainedPhotos, Failure
from guided_backprop.explained.sources import Photo, Source, sources_of
from guided_backprop.labels.names import PhotoLabels, class_ids
from guided_backprop.labels.parse import parse_label
from guided_backprop.methods.explainer import Explainer
from guided_backprop.methods.named import method_of
from guided_backprop.models import Batch, VisionModel, load_default, load_model
from guided_backprop.progress import Progress


def explain_photos(
    photos: Photo | Iterable[Photo],
    *,
    model: str | os.PathLike[str] | VisionModel | None = None,
    method: str | Callable[[Model], Explainer] = "guided-backprop",
    layer: Layer = None,
    labels: PhotoLabels = None,
    recursive: bool = False,
    batch_size: int = 16,
    progress: bool | None = None,
) -> ExplainedPhotos:
    """Explain photos: read them, show them to a model as it wants them, and put the maps back onto the whole photos.

    Photos are read as people see them (EXIF orientation; HEIC with the extra ``[heic]``). What cannot be read is left
    out, and named in the result; so is what a folder holds besides.

    Args:
        photos: a path, a folder, a PIL image or an array of bytes ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``; or
            several of these, ``(N, H, W, 3)`` too.
        model: what :func:`load_model` loads, ``"timm:resnet50d"``; or a :class:`guided_backprop.models.VisionModel`;
            None for EfficientNet-Lite0.
        method: "guided-backprop", "deconvnet", "saliency", "grad-cam", "guided-gradcam" or "smoothgrad"; or what makes
            a method of a network: a class, or ``lambda network: SmoothGrad(GuidedBackprop(network))``.
        layer: for Grad-CAM and Guided Grad-CAM: the convolutional layer.
        labels: class ids or names, one for all photos or one for each, counting those that cannot be read; "top5" for
            the five best of each; None for the best.
        recursive: look into folders in folders, too.
        batch_size: how many photos are explained at once.
        progress: True shows how far it is, False does not; None does on a terminal or in a notebook, after two
            seconds.

    Returns:
        The explained photos, in their order.

    Raises:
        OptionError: there are no photos, or an option has a value that is not offered.
        ImageError: none of the photos can be read.
        LabelError: a label is of no class, or labels are not one for each photo.
        ModelError: there is no such model, or it cannot be shown a photo.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import numpy as np
        >>> import guided_backprop as gb
        >>> photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
        >>> explained = gb.explain_photos([photo], labels="tiger cat")
        >>> explained[0].label, explained[0].attribution.shape, explained[0].picture().shape
        (282, (3, 224, 224), (300, 400, 3))
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"batch_size must be a positive integer; received batch_size={batch_size!r}. Pass 16.")
    sources = sources_of(photos, recursive=recursive)
    count = len(sources.photos)
    vision = _vision(model)
    ids = class_ids(labels, vision.class_names, count)
    run = _Run(sources.photos, vision, _explainer(method, vision, layer), ids)
    with Progress(count, "photos", shown=progress) as shown:
        for batch in vision.batches(sources.photos, vision.at_once or batch_size):
            run.add(batch)
            shown.advance(len(batch.rows) + len(batch.failures))
    if not run.explained:
        reasons = "; ".join(str(failure.error) for failure in run.failures[:3])
        raise ImageError(f"at least one photo must be readable; received {len(run.failures)} that are not: {reasons}")
    return ExplainedPhotos(tuple(run.explained), vision, tuple(run.failures), tuple(sources.skipped))


class _Run:
    """What has become of the photos so far."""

    def __init__(
        self, photos: Sequence[Source], vision: VisionModel, explainer: Explainer, labels: list[int] | int | str | None
    ) -> None:
        self._photos, self._vision, self._explainer, self._labels = photos, vision, explainer, labels
        self.explained: list[ExplainedPhoto] = []
        self.failures: list[Failure] = []

    def add(self, batch: Batch) -> None:
        """Explain the photos of a batch that could be read, and note the others."""
        start = len(self.explained) + len(self.failures)
        rows = range(start, start + len(batch.rows) + len(batch.failures))
        unread = [self._photos[row].name for row in rows if row not in batch.rows]
        is_first = not self.explained
        self.failures += [Failure(*failed) for failed in zip(unread, batch.failures, strict=True)]
        if not batch.rows:
            return
        labels = self._labels
        chosen = [labels[row] for row in batch.rows] if isinstance(labels, list) else labels
        # By the name that was asked for: a network's class may be ResNet, or Functional.
        found = replace(self._explainer.explain(batch.images, chosen), model=self._vision.name)
        self._vision.require_names(found.outputs)
        if isinstance(labels, list) and is_first:
            # A wrong label of the last photo is found now, and not when all the others are done.
            parse_label(labels, len(labels)).explained(found.outputs)
        for place, (row, size) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
            source = self._photos[row]
            self.explained.append(ExplainedPhoto(source.name, found[place : place + 1], self._vision, size, source))


def _vision(model: str | os.PathLike[str] | VisionModel | None) -> VisionModel:
    if isinstance(model, VisionModel):
        return model
    if model is None:
        return load_default()
    if isinstance(model, str | os.PathLike):
        return load_model(model)
    raise OptionError(
        "model must be what load_model() loads, or a VisionModel, which knows how photos are preprocessed; received "
        f"{type(model).__name__}. Pass guided_backprop.models.VisionModel(name, network, preprocess)."
    )


def _explainer(method: str | Callable[[Model], Explainer], vision: VisionModel, layer: Layer) -> Explainer:
    if isinstance(method, str):
        return method_of(method, vision.network, layer)
    if isinstance(method, Explainer):
        raise OptionError(
            f"method must make a method of the model's network; received {method!r:.80}, which has its own model. "
            "Pass its class, or a name."
        )
    if not callable(method):
        raise OptionError(f"method must be a name or a class; received {method!r:.80}. Pass 'guided-backprop'.")
    if layer is not None:
        raise OptionError(
            f"layer goes with a method's name; received layer={layer!r:.80} and what makes a method. "
            "Pass lambda network: GradCAM(network, layer)."
        )
    explainer = method(vision.network)
    if not isinstance(explainer, Explainer):
        raise OptionError(
            f"method must make a method of a network; received what makes {type(explainer).__name__}. "
            "Pass a class, such as GuidedBackprop."
        )
    return explainer
