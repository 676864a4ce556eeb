"""One page about some images: their maps by several methods, how far to believe them, and how to make it again.

The page is a single file that asks nothing of a network: pictures, style and script are inside, and its own content
security policy forbids all else. What it says of file, class and model names is escaped. Of more than 200 images it is
an index, beside several such pages.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Images, Labels, Layer, Model, NumpyArray
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, MissingExtraError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.names import ClassNames, label_text
from guided_backprop.methods.cam import GradCAM, GuidedGradCAM
from guided_backprop.methods.compare import compare
from guided_backprop.methods.explainer import Explainer
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.smooth_grad import SmoothGrad
from guided_backprop.models import best_classes, probabilities
from guided_backprop.report.pages import Entry, Map, Pages, check_free
from guided_backprop.show.embed import EXACT, data_uri
from guided_backprop.show.folder import versions
from guided_backprop.show.panels import PANELS
from guided_backprop.show.place import Place, picture_at
from guided_backprop.show.remarks import WHY_FLAT, remarks
from guided_backprop.show.render import picture
from guided_backprop.trust.likeness import Likeness, Rival, Trust, cosine, edge_correlation, summaries
from guided_backprop.version import __version__

__all__ = ["Report", "Trust", "check_ready"]

# A photo is on the page in no more pixels than these, once as it is and once under each map.
_MOST_PIXELS = 120_000
# What can be drawn, by the names that commands have for it; what of it needs a layer; what must be asked for.
DRAWN = {
    "saliency": "Saliency",
    "deconvnet": "DeconvNet",
    "guided-backprop": "GuidedBackprop",
    "grad-cam": "GradCAM",
    "guided-gradcam": "GuidedGradCAM",
    "smoothgrad": "SmoothGrad",
}
_OF_LAYERS = ("grad-cam", "guided-gradcam")
_SLOW = "smoothgrad"
# What stands below a map that shows nothing of the photo.
_FLAT_BRIEFLY = "one flat colour: only ReLUs lead back, no max-pooling"
# Where these two are among the methods.
_PLAIN, _GUIDED = 0, 2


@dataclass(frozen=True)
class _Shown:
    """One image: its name, as the model saw it, its maps by method, and its place on a photo, if that is known.

    ``flat`` are the methods whose maps are one colour, whatever the image is.
    """

    name: str
    image: NumpyArray
    maps: Mapping[str, NumpyArray]
    place: Place | None
    flat: Sequence[str]

    @property
    def caption(self) -> str:
        """What is shown, and what of it the model saw."""
        size = f"{self.image.shape[1]} \N{MULTIPLICATION SIGN} {self.image.shape[0]} pixels"
        if self.place is None:
            return f"{self.name}, as the model saw it: {size}."
        if self.place.is_whole:
            return f"{self.name}. The model saw all of it, as {size}."
        return f"{self.name}. The model saw what the maps lie on, as {size}; the rest is dimmed beside them."


class Report:
    """A page that images are added to batch by batch, and that appears whole or not at all.

    Of more than 200 images it is an index of all, and the images are on pages beside it: ``report-1.html``,
    ``report-2.html`` and so on. Of each batch only what the page shows is kept. Each image is explained by Saliency,
    DeconvNet and GuidedBackprop from one forward pass; from a second one come the maps of other classes, for
    comparison: the two next best, and the one of the lowest score.

    Args:
        path: where the page will be.
        model: as for :class:`Method`, with pictures as its input.
        name: the model's name, for people; None for its class's.
        class_names: names of the classes, a list or a dictionary by class id.
        layer: a convolutional layer, its name or itself, for Grad-CAM and Guided Grad-CAM beside the others.
        methods: whose maps are drawn, among "saliency", "deconvnet", "guided-backprop", "grad-cam", "guided-gradcam"
            and "smoothgrad", which is SmoothGrad of Saliency; None for all of them that there can be, but for
            SmoothGrad, which takes as long as 50 others.
        percentile: the scale of the maps, as in :mod:`guided_backprop.render`.
        overwrite: replace a file that exists.

    Raises:
        OutputExistsError: there is something at path, and ``overwrite`` is false or it is a folder.
        MissingExtraError: Jinja2 or scikit-image is not installed.
        OptionError: a method is not among them, or has no layer.

    Example:
        >>> import tempfile, torch
        >>> from guided_backprop.report import Report
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = Report(f"{folder}/report.html", model)
        ...     found = report.add(torch.rand(2, 3, 8, 8), ["a.png", "b.png"])
        ...     print(report.finish().name, [each.method for each in found], len(report.files))
        report.html ['Saliency', 'DeconvNet', 'GuidedBackprop'] 1
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: Model,
        *,
        name: str | None = None,
        class_names: ClassNames = (),
        layer: Layer = None,
        methods: Sequence[str] | None = None,
        percentile: float = 99.0,
        overwrite: bool = False,
    ) -> None:
        check_ready(path, overwrite=overwrite)
        self._drawn = drawn(methods, has_layer=layer is not None)
        self._path, self._overwrite = Path(path), overwrite
        self._pages = Pages(self._path, overwrite=overwrite)
        self._name, self._class_names, self._percentile = name, class_names, percentile
        self._methods: list[Explainer] = [Saliency(model), DeconvNet(model), GuidedBackprop(model)]
        self._layer = layer
        if layer is not None:
            self._methods += [GradCAM(model, layer), GuidedGradCAM(model, layer)]
        if DRAWN[_SLOW] in self._drawn:
            self._methods.append(SmoothGrad(Saliency(model)))
        # In full, with what was chosen of each.
        self._made_by: list[str] = []
        self._likenesses: list[Likeness] = []
        self._coverages: list[Coverage] = []
        # What is no property of a photo, and the methods whose maps show it.
        self._remarks: dict[str, list[str]] = {}
        self._head: str | None = None

    @property
    def files(self) -> list[Path]:
        """Where :meth:`finish` writes: the page alone, or the pages of more than 200 images and at last their index."""
        return self._pages.files

    def add(
        self, images: Images, names: Sequence[str], labels: Labels = None, *, places: Sequence[Place | None] = ()
    ) -> list[Explanations]:
        """Explain one batch.

        Args:
            images: as for :meth:`Method.explain`: pictures of one size, of any number of channels.
            names: one per image, for people.
            labels: as for :meth:`Method.explain`, one per image; None for the top class.
            places: the photo that each image was cut from, by
                :meth:`VisionModel.place(photo) <guided_backprop.models.VisionModel.place>`, or None: its maps are
                shown at their place on it, in 120,000 pixels at most; empty to show the images as the model saw them.

        Returns:
            The explanations by each method.

        Raises:
            ImageError: the images are not pictures.
            OptionError: names, labels or places are not one per image.
            GuidedBackpropError: all that :meth:`Method.explain` raises.
        """
        explained = compare(images, labels, self._methods)
        pictures, maps = _pictures(explained, names)
        places = _checked(places, names)
        rivals = self._rivals(explained)
        self._coverages.append(explained[_GUIDED].coverage)
        shown_by = {one.short_method: one for one in explained if one.short_method in self._drawn}
        self._made_by = [one.method for one in shown_by.values()]
        said = {name: remarks(explanations) for name, explanations in shown_by.items()}
        for name, sentences in said.items():
            for remark in sentences:
                methods = self._remarks.setdefault(remark, [])
                methods += [name] if name not in methods else []
        flat = [name for name, sentences in said.items() if WHY_FLAT in sentences]
        self._head, self._name = explained[0].head, self._name or explained[0].model
        for row, name in enumerate(names):
            maps_of_image = {method: maps_of_batch[row] for method, maps_of_batch in maps.items()}
            shown = _Shown(str(name), pictures[row], maps_of_image, places[row], flat)
            entry = self._entry(shown, explained[0][row : row + 1], rivals[row])
            self._likenesses.append(entry.likeness)
            self._pages.add(entry, self._about())
        return explained

    def finish(self, *, trust: Sequence[Trust] = (), command: str | None = None) -> Path:
        """Write the page and return its path.

        Args:
            trust: further checks to show, such as a randomisation of the weights.
            command: what to run to make this page again; None leaves it out.

        Raises:
            OptionError: nothing was added.
            OutputExistsError: there is something at the path by now, or at that of one of several pages.
        """
        if not self._likenesses:
            raise OptionError("a report needs at least one image; received none. Call add() before finish().")
        check_ready(self._path, overwrite=self._overwrite)
        end = {
            "command": command,
            "coverage": Coverage.merge(self._coverages),
            "layer": self._layer,
            "made_by": self._made_by,
            "percentile": self._percentile,
            "remarks": [f"{', '.join(methods)}: {remark}." for remark, methods in self._remarks.items()],
            "trust": [*summaries(self._likenesses), *trust],
            "versions": {"guided-backprop": __version__, **versions()},
        }
        self._pages.finish(self._about(), end)
        return self._path

    def _about(self) -> Mapping[str, object]:
        """Return what every page says."""
        return {"head": self._head, "methods": self._drawn, "model": self._name}

    def _label(self, label: NumpyArray | np.generic | int) -> str:
        return label_text(label, self._class_names)

    def _entry(self, shown: "_Shown", explained: Explanations, rivals: Sequence[Rival]) -> Entry:
        label = self._label(explained.labels[0])
        methods = "GuidedBackprop", "Saliency"
        guided, plain = (edge_correlation(shown.image, shown.maps[method]) for method in methods)
        photo = picture(shown.image) if shown.place is None else shown.place.photo
        height, width = photo.shape[:2]
        return Entry(
            name=shown.name,
            label=label,
            score=float(explained.scores[0]),
            size=(width, height),
            is_exact=height * width <= EXACT,
            best=self._best(explained),
            photo=data_uri(photo),
            maps=self._maps(shown),
            likeness=Likeness(label, rivals, guided, plain),
            caption=shown.caption,
            warning="" if shown.place is None else shown.place.warning,
        )

    def _best(self, explained: Explanations) -> list[tuple[float, str]]:
        shares = probabilities(explained.outputs, explained.head)
        if shares is None:
            return []
        return [(float(shares[0, label]), self._label(label)) for label in best_classes(shares[0])]

    def _maps(self, shown: "_Shown") -> list[Map]:
        signed = [(method, PANELS["colour"]) for method in self._drawn if method != "GradCAM"]
        over = [(method, PANELS["overlay"]) for method in ("GuidedBackprop", "GradCAM") if method in self._drawn]
        first = "GuidedBackprop" if "GuidedBackprop" in self._drawn else self._drawn[0]
        maps: list[Map] = []
        for method, panel in [*signed, *over]:
            pixels = picture_at(shown.place, panel, shown.image, shown.maps[method], self._percentile)
            is_first = method == first and method not in [one.method for one in maps]
            kind = _FLAT_BRIEFLY if method in shown.flat else panel.photo_caption
            maps.append(Map(method, kind, data_uri(pixels), is_first))
        return maps

    def _rivals(self, explained: Sequence[Explanations]) -> list[list[Rival]]:
        """Return for each image how alike its maps are to those of other classes; nothing without classes."""
        first = explained[_PLAIN]
        if not _has_classes(first):
            return [[] for _ in range(len(first))]
        chosen = _other_classes(first.outputs, first.labels)
        others = compare(first.images, chosen, [self._methods[_PLAIN], self._methods[_GUIDED]])
        plain, guided = _cosines(first, others[0]), _cosines(explained[_GUIDED], others[1])
        # Of three classes or fewer the last is one of the next best.
        is_told = first.outputs.shape[1] > 3
        return [
            [
                Rival(
                    self._label(label),
                    guided=guided[row][place],
                    plain=plain[row][place],
                    is_lowest=is_told and bool(first.outputs[row, label] == first.outputs[row].min()),
                )
                for place, label in enumerate(labels)
            ]
            for row, labels in enumerate(chosen.tolist())
        ]


def _has_classes(explanations: Explanations) -> bool:
    """Tell whether class ids were explained, and there are others."""
    outputs = explanations.outputs
    return explanations.is_of_classes and outputs.ndim == 2 and outputs.shape[1] > 1


def _other_classes(outputs: NumpyArray, labels: NumpyArray) -> NDArray[np.intp]:
    """Return for each image the two next best classes, and the last; of few classes there are not so many."""
    order = np.argsort(-outputs, axis=1, kind="stable")
    ranks = np.array([ranked[ranked != label] for ranked, label in zip(order, labels, strict=True)])
    last = ranks.shape[1] - 1
    return np.asarray(ranks[:, sorted({0, min(1, last), last})])


def _cosines(explanations: Explanations, others: Explanations) -> list[list[float | None]]:
    """Return for each image how alike its map is to those of other labels."""
    pairs = zip(np.asarray(explanations), np.asarray(others), strict=True)
    return [[cosine(attribution, other) for other in of_others] for attribution, of_others in pairs]


def drawn(methods: Sequence[str] | None, *, has_layer: bool) -> list[str]:
    """Return the names, in their order, of the methods whose maps are drawn.

    Raises:
        OptionError: there is none, a name is of none of them, or it is of one that needs a layer.
    """
    offered = [name for name in DRAWN if name != _SLOW and (has_layer or name not in _OF_LAYERS)]
    chosen = offered if methods is None else [methods] if isinstance(methods, str) else [*methods]
    for name in chosen:
        if name in _OF_LAYERS and not has_layer:
            raise OptionError(f"method {name!r} must have a layer; received none. Pass layer (--layer).")
        if name not in DRAWN:
            raise OptionError(f"methods must be among {', '.join(DRAWN)}; received {name!r}. Pass some of these.")
    if not chosen:
        raise OptionError("methods must be one at least; received none. Leave them out to draw all.")
    return [title for name, title in DRAWN.items() if name in chosen]


def check_ready(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise now what would otherwise be found after all the work.

    Raises:
        OutputExistsError: there is something at path, and ``overwrite`` is false or it is a folder.
        MissingExtraError: Jinja2 or scikit-image is not installed.
    """
    for package, name in (("jinja2", "Jinja2"), ("skimage.filters", "scikit-image"), ("scipy.stats", "SciPy")):
        _check_installed(package, name)
    check_free(Path(path), overwrite=overwrite)


def _check_installed(package: str, name: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"a report needs {name}; received an environment without it. Run: pip install 'guided-backprop[report]'."
        ) from error


def _pictures(explained: Sequence[Explanations], names: Sequence[str]) -> tuple[NumpyArray, Mapping[str, NumpyArray]]:
    """Return the images and the maps of each method, channels last."""
    first = explained[0]
    if first.scores.ndim > 1 or isinstance(names, str) or len(names) != len(first):
        raise OptionError(
            f"a report needs one name and one label per image; received {len(names)} names and labels of shape "
            f"{first.scores.shape} for {len(first)} images. Pass one of each, or no labels."
        )
    pairs = {explanations.short_method: explanations.pictures() for explanations in explained}
    images = pairs[first.short_method]
    if images is None:
        raise ImageError(
            "a report needs pictures (N, C, H, W) or (N, H, W, C); received images of shape "
            f"{tuple(first.images.shape)}. Use plot() for what is none."
        )
    return images[0], {method: pair[1] for method, pair in pairs.items() if pair is not None}


def _checked(places: Sequence[Place | None], names: Sequence[str]) -> Sequence[Place | None]:
    """Return one place for each image, in the size in which the page shows photos, or None."""
    if places and len(places) != len(names):
        raise OptionError(
            f"places must be one per image; received {len(places)} for {len(names)} images. Pass None for an image "
            "whose photo is not known, or leave them out."
        )
    return [None if place is None else place.within(_MOST_PIXELS) for place in places or [None] * len(names)]
