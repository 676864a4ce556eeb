"""What the local page of ``guided-backprop app`` computes: a class or a neuron of a photo, by methods side by side.

The page's widgets call this; nothing here knows of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from guided_backprop.arrays import Images
from guided_backprop.commands.layers import Neuron, last_with_positions, strongest_neurons
from guided_backprop.errors import GuidedBackpropError, ImageError, LabelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.methods.cam import GradCAM, GuidedGradCAM
from guided_backprop.methods.compare import compare
from guided_backprop.methods.explainer import Explainer
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.method import Method
from guided_backprop.methods.smooth_grad import SmoothGrad
from guided_backprop.models import Batch, VisionModel, best_classes, probabilities
from guided_backprop.show.colours import Picture
from guided_backprop.show.panels import MAPS, PANELS, Panel, PanelName
from guided_backprop.show.place import Place, picture_at
from guided_backprop.trust.likeness import SAME, cosine, number

_PLAIN: Mapping[str, type[Method]] = {"Saliency": Saliency, "DeconvNet": DeconvNet, "GuidedBackprop": GuidedBackprop}
# Of a class, and of a neuron.
GRADIENT_METHODS = (*_PLAIN, "SmoothGrad")
LAYER_METHODS: Mapping[str, type[GradCAM | GuidedGradCAM]] = {"GradCAM": GradCAM, "GuidedGradCAM": GuidedGradCAM}
METHODS = (*GRADIENT_METHODS, *LAYER_METHODS)
VIEWS = tuple(panel.name for panel in MAPS)
_EXAMPLES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


@dataclass(frozen=True)
class Question:
    """What is to be explained of a photo, by which methods, and how it is drawn.

    Attributes:
        label: a class id; None for the class with the highest score.
        layer: explain a neuron of this layer instead of a class: ``channel`` where it is strongest; for Grad-CAM and
            Guided Grad-CAM of a class, the layer whose positions count.
        channel: the neuron's channel; None for a class.
        methods: among :data:`METHODS`, in the order in which they are shown.
        view: among :data:`VIEWS`.
    """

    label: int | None = None
    layer: str | None = None
    channel: int | None = None
    methods: Sequence[str] = ("Saliency", "GuidedBackprop")
    view: PanelName = "colour"


# What a question is asked by: the fields of the page.
Field = Literal["photo", "label", "layer", "channel", "methods"]


@dataclass(frozen=True)
class Answer:
    """Pictures with captions, the first of them the photo, or of no known place the input; and what there is to say."""

    pictures: Sequence[tuple[Picture, str]]
    text: str


@dataclass(frozen=True)
class Seen:
    """What a network says of a photo.

    Attributes:
        best: the first five classes and their probabilities, best first; empty if the network is no classifier.
        classes: the name and id of each class, best first among the first five, then in their own order.
        layer: the last layer whose values have places on the photo, for Grad-CAM; None if there is none.
    """

    best: Mapping[str, float]
    classes: Sequence[tuple[str, int]]
    layer: str | None = None


def look(vision: VisionModel, path: Path) -> Seen:
    """Return what the network says of a photo.

    Raises:
        ImageError: the photo cannot be read.
        GuidedBackpropError: all that :meth:`Method.explain` raises.
    """
    images = _read(vision, path).images
    explanations = Saliency(vision.network).explain(images)
    shares = probabilities(explanations.outputs, explanations.head)
    layer = last_with_positions(vision.network, images)
    if shares is None:
        return Seen({}, [], layer)
    top = best_classes(shares[0])
    order = [*top, *(label for label in range(shares.shape[1]) if label not in top)]
    best = {vision.class_name(label): float(shares[0, label]) for label in top}
    return Seen(best, [(vision.class_name(label), label) for label in order], layer)


def neurons(vision: VisionModel, path: Path, layer: str, count: int = 12) -> list[Neuron]:
    """Return the channels of a layer that a photo excites most, strongest first, and where.

    Raises:
        ImageError: the photo cannot be read, or the network takes no pictures.
        GuidedBackpropError: all that :meth:`Method.explain` raises.
    """
    photo = _read(vision, path)
    return strongest_neurons(vision.network, layer, photo.images, count, photo.places[0])


def field_of(error: GuidedBackpropError, question: Question) -> Field:
    """Return the field by which a question is asked that was refused."""
    wrong = _wrong(question)
    if wrong is not None:
        return wrong[0]
    if isinstance(error, ImageError):
        return "photo"
    if isinstance(error, LabelError):
        return "label" if question.channel is None else "channel"
    return "layer" if isinstance(error, OptionError) else "methods"


def answer(vision: VisionModel, path: Path, question: Question) -> Answer:
    """Explain a class or a neuron on a photo.

    Raises:
        ImageError: the photo cannot be read, or the network takes no pictures.
        OptionError: no method is chosen, or one that needs a layer has none.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import numpy as np, skimage, torch
        >>> from pathlib import Path
        >>> from guided_backprop.commands.local_page import Question, answer
        >>> from guided_backprop.models import VisionModel
        >>> conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
        >>> network = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> def preprocess(image):
        ...     return np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        >>> photo = Path(skimage.data_dir) / "chelsea.png"
        >>> found = answer(VisionModel("small", network, preprocess), photo, Question(label=1))
        >>> [caption.splitlines()[0] for _, caption in found.pictures]
        ['photo', 'Saliency', 'GuidedBackprop']
    """
    if wrong := _wrong(question):
        raise OptionError(wrong[1])
    photo = _read(vision, path)
    images, place = photo.images, photo.places[0]
    labels = question.label if question.channel is None else (question.channel, "max")
    explained = compare(images, labels, [_method(vision, name, question) for name in question.methods])
    lines = [_subject(vision, explained[0], question)]
    if place is not None and place.warning:
        lines.append(f"Warning: {place.warning}")
    lines += [f"{one.method}: {one.coverage}" for one in explained]
    if question.channel is None and "GuidedBackprop" in question.methods:
        lines += _next_class(vision, images, explained[list(question.methods).index("GuidedBackprop")])
    return Answer(_pictures(explained, PANELS[question.view], place), "\n".join(lines))


def examples() -> list[Path]:
    """Return scikit-image's photos, where it is installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    paths = [Path(spec.origin).parent / "data" / name for name in _EXAMPLES]
    return [path for path in paths if path.is_file()]


def _wrong(question: Question) -> tuple[Field, str] | None:
    """Return what is wrong with a question whatever the photo, and in which field; None if nothing is."""
    needing = [name for name in question.methods if name in LAYER_METHODS]
    if not question.methods:
        return "methods", "at least one method must be chosen; received none. Tick one."
    if question.channel is not None and question.layer is None:
        return "layer", "a neuron must be in a layer; received layer=None. Choose a layer."
    if needing and question.channel is not None:
        return "methods", f"{needing[0]} must have a class; received a neuron. Take its tick away."
    if needing and question.layer is None:
        advice = "Choose the last layer before positions are pooled."
        return "layer", f"{needing[0]} must have a class and a layer; received a class and no layer. {advice}"
    return None


def _read(vision: VisionModel, path: Path) -> Batch:
    """Return the photo as the network is shown it, and its place."""
    (batch,) = vision.batches([path], 1, places=True)
    if batch.failures:
        raise batch.failures[0]
    return batch


def _method(vision: VisionModel, name: str, question: Question) -> Explainer:
    if name in LAYER_METHODS:
        return LAYER_METHODS[name](vision.network, question.layer)
    is_neuron = question.channel is not None
    plain = _PLAIN.get(name, Saliency)(vision.network, output_layer=question.layer if is_neuron else None)
    return plain if name in _PLAIN else SmoothGrad(plain)


def _pictures(explained: Sequence[Explanations], view: Panel, place: Place | None) -> list[tuple[Picture, str]]:
    """Return the photo, or of no known place the network's input, and each method's map of it, with captions."""
    first = "network's input" if place is None else "photo"
    pictures: list[tuple[Picture, str]] = []
    for explanations in explained:
        pair = explanations.pictures()
        if pair is None:
            raise ImageError(
                f"the page shows pictures; received images of shape {tuple(np.shape(explanations.images))}. "
                "Use explain() for what is none."
            )
        (image,), (attribution,) = pair
        # A sum over channels has neither signs nor colours.
        panel = PANELS["overlay"] if explanations.method == "GradCAM" else view
        pictures += [] if pictures else [(picture_at(place, PANELS["image"], image, attribution), first)]
        pictures.append((picture_at(place, panel, image, attribution), explanations.short_method))
    return pictures


def _subject(vision: VisionModel, explanations: Explanations, question: Question) -> str:
    score = f"{explanations.scores[0]:.4g}".replace("-", "\N{MINUS SIGN}")
    if question.channel is not None:
        return f"Channel {question.channel} of {question.layer}, where it is strongest: {score}"
    head = f" (the logit in front of the {explanations.head})" if explanations.head else ""
    return f"Class {vision.class_name(int(explanations.labels[0]))}: score {score}{head}"


def _next_class(vision: VisionModel, images: Images, guided: Explanations) -> list[str]:
    """Say how alike the guided maps of this class and of the best other one are."""
    if guided.outputs.ndim != 2 or guided.outputs.shape[1] < 2:
        return []
    label = int(guided.labels[0])
    ranked = np.argsort(-guided.outputs[0], kind="stable").tolist()
    rival = next(other for other in ranked if other != label)
    rivals = GuidedBackprop(vision.network).explain(images, rival)
    value = cosine(np.asarray(guided)[0], np.asarray(rivals)[0])
    if value is None:
        return []
    verdict = (
        "nearly one picture. It shows what the network picks up in the image, not why it says one of them."
        if value >= SAME
        else "not one picture. That alone does not make either of them right."
    )
    return [
        f"The guided maps of {vision.class_name(label)} and of {vision.class_name(rival)}, the next class, have a "
        f"cosine similarity of {number(value, 4)}: {verdict}"
    ]
