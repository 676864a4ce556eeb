"""The local page of ``guided-backprop app``: a photo, a class or a neuron, and the methods' maps side by side.

What the page computes stands first, in functions that know nothing of it; Gradio is imported when the page is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import as_pictures
from guided_backprop.backends import layer_names
from guided_backprop.errors import GuidedBackpropError, ImageError, MissingExtraError, ModelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.methods.cam import GuidedGradCAM
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Method, Saliency, compare
from guided_backprop.models import VisionModel, probabilities
from guided_backprop.show.plot import Panel
from guided_backprop.show.render import Picture, colour_picture, diverging, heatmap, overlay, picture
from guided_backprop.trust.likeness import SAME, cosine, number

if TYPE_CHECKING:
    import gradio as gr

_METHODS: Mapping[str, type[Method]] = {
    "Saliency": Saliency,
    "DeconvNet": DeconvNet,
    "GuidedBackprop": GuidedBackprop,
}
_NEEDS_LAYER = "GuidedGradCAM"
METHODS = (*_METHODS, _NEEDS_LAYER)
VIEWS: Sequence[Panel] = get_args(Panel)[1:]
_TOP = 5
_EXAMPLES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


@dataclass(frozen=True)
class Question:
    """What is to be explained of a photo, by which methods, and how it is drawn.

    Attributes:
        label: a class id; None for the class with the highest score.
        layer: explain a neuron of this layer instead of a class: ``channel`` where it is strongest; for Guided
            Grad-CAM of a class, the layer whose positions count.
        channel: the neuron's channel; None for a class.
        methods: among :data:`METHODS`, in the order in which they are shown.
        view: among :data:`VIEWS`.
    """

    label: int | None = None
    layer: str | None = None
    channel: int | None = None
    methods: Sequence[str] = ("Saliency", "GuidedBackprop")
    view: Panel = "colour"


@dataclass(frozen=True)
class Answer:
    """Pictures with captions, the first of them the photo network's input; and what there is to say."""

    pictures: Sequence[tuple[Picture, str]]
    text: str


@dataclass(frozen=True)
class Seen:
    """What a network says of a photo.

    Attributes:
        best: the first five classes and their probabilities, best first; empty if the network is no classifier.
        classes: the name and id of each class, best first among the first five, then in their own order.
    """

    best: Mapping[str, float]
    classes: Sequence[tuple[str, int]]


def look(vision: VisionModel, path: Path) -> Seen:
    """Return what the network says of a photo.

    Raises:
        ImageError: the photo cannot be read.
        GuidedBackpropError: all that :meth:`Method.explain` raises.
    """
    found = Saliency(vision.network).explain(_read(vision, path))
    shares = probabilities(found.outputs, found.head)
    if shares is None:
        return Seen({}, [])
    top = np.argsort(-shares[0], kind="stable")[:_TOP].tolist()
    order = [*top, *(label for label in range(shares.shape[1]) if label not in top)]
    best = {vision.class_name(label): float(shares[0, label]) for label in top}
    return Seen(best, [(vision.class_name(label), label) for label in order])


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
        ["network's input", 'Saliency', 'GuidedBackprop']
    """
    if not question.methods:
        raise OptionError("at least one method must be chosen; received none. Tick one.")
    if question.channel is not None and question.layer is None:
        raise OptionError("a neuron must be in a layer; received layer=None. Choose a layer.")
    images = _read(vision, path)
    labels = question.label if question.channel is None else (question.channel, "max")
    found = compare(images, labels, [_method(vision, name, question) for name in question.methods])
    pictures: list[tuple[Picture, str]] = []
    lines = [_subject(vision, found[0], question)]
    for each in found:
        pair = as_pictures(each.images, each.attribution, each.channel_axis, is_reduced=False)
        if pair is None:
            raise ImageError(
                f"the page shows pictures; received images of shape {tuple(np.shape(each.images))}. "
                "Use explain() for what is none."
            )
        if not pictures:
            pictures.append((picture(pair[0][0]), "network's input"))
        pictures.append((_drawn(question.view, pair[0][0], pair[1][0]), each.method))
        lines.append(f"{each.method}: {each.coverage}")
    if question.channel is None and "GuidedBackprop" in question.methods:
        lines += _next_class(vision, images, found[list(question.methods).index("GuidedBackprop")])
    return Answer(pictures, "\n".join(lines))


def examples() -> list[Path]:
    """Return scikit-image's photos, where it is installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    paths = [Path(spec.origin).parent / "data" / name for name in _EXAMPLES]
    return [path for path in paths if path.is_file()]


def _read(vision: VisionModel, path: Path) -> Any:
    (batch,) = vision.batches([path], 1)
    if batch.failures:
        raise batch.failures[0]
    return batch.images


def _method(vision: VisionModel, name: str, question: Question) -> Method:
    is_neuron = question.channel is not None
    if name != _NEEDS_LAYER:
        return _METHODS[name](vision.network, output_layer=question.layer if is_neuron else None)
    if is_neuron or question.layer is None:
        what = "a neuron" if is_neuron else "a class and no layer"
        advice = "Take it away" if is_neuron else "Choose the last layer before positions are pooled"
        raise OptionError(f"{_NEEDS_LAYER} must have a class and a layer; received {what}. {advice}.")
    return GuidedGradCAM(vision.network, question.layer)


def _subject(vision: VisionModel, found: Explanations, question: Question) -> str:
    score = f"{found.scores[0]:.4g}".replace("-", "\N{MINUS SIGN}")
    if question.channel is not None:
        return f"Channel {question.channel} of {question.layer}, where it is strongest: {score}"
    head = f" (the logit in front of the {found.head})" if found.head else ""
    return f"Class {vision.class_name(int(found.labels[0]))}: score {score}{head}"


def _next_class(vision: VisionModel, images: Any, guided: Explanations) -> list[str]:
    """Say how alike the guided maps of this class and of the best other one are."""
    if guided.outputs.ndim != 2 or guided.outputs.shape[1] < 2:
        return []
    label = int(guided.labels[0])
    ranked = np.argsort(-guided.outputs[0], kind="stable").tolist()
    rival = next(each for each in ranked if each != label)
    other = GuidedBackprop(vision.network).explain(images, rival)
    value = cosine(np.asarray(guided)[0], np.asarray(other)[0])
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


def _drawn(view: Panel, image: NDArray[Any], attribution: NDArray[Any]) -> Picture:
    if view == "overlay":
        return overlay(image, attribution)
    if view == "heatmap":
        grey = np.floor(heatmap(attribution) * 255 + 0.5).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    return (colour_picture if view == "colour" else diverging)(attribution)


# The page


def check_ready() -> None:
    """Raise before anything is loaded if the page cannot be served.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    try:
        import gradio  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"the page needs gradio; received an environment without {error.name}. "
            "Run: pip install 'guided-backprop[app]'."
        ) from error


def page(vision: VisionModel) -> "gr.Blocks":
    """Return the page for a model.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    check_ready()
    import gradio as gr  # noqa: PLC0415

    try:
        layers = layer_names(vision.network)
    except ModelError:
        layers = []
    # Uploads and pictures are removed after an hour, and when the page ends.
    with gr.Blocks(title="guided-backprop", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown("# Which pixels move a network's score?", sanitize_html=True)
        with gr.Row():
            with gr.Column(min_width=260):
                photo = gr.File(label="Photo", file_types=["image"], height=140)
                if paths := examples():
                    gr.Examples([[str(path)] for path in paths], [photo], api_visibility="private")
                best = gr.Label(label=f"{vision.name} says", num_top_classes=_TOP, buttons=[])
            with gr.Column(min_width=260):
                kinds = ["class", "neuron"] if layers else ["class"]
                kind = gr.Radio(kinds, value="class", label="Explain a")
                label = gr.Dropdown([], label="Class", info="The first five are the best; type to search.")
                layer = gr.Dropdown(
                    layers,
                    value=None,
                    label="Layer",
                    info=f"Of the neuron, and for {_NEEDS_LAYER}.",
                    visible=bool(layers),
                )
                channel = gr.Number(
                    0, label="Channel", info="Explained where it is strongest.", precision=0, minimum=0, visible=False
                )
                names = METHODS if layers else tuple(_METHODS)
                methods = gr.CheckboxGroup(list(names), value=list(_METHODS), label="Methods")
                view = gr.Radio(list(VIEWS), value="colour", label="View", info=_VIEW_HELP)
                button = gr.Button("Explain", variant="primary")
        maps = gr.Gallery(
            show_label=False,
            format="png",
            columns=4,
            height="auto",
            object_fit="contain",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes="maps",
        )
        text = gr.Textbox(label="What was done, and how far to believe it", lines=5, interactive=False)
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        photo.change(_looking(vision), [photo], [best, label, maps, text], **private)
        kind.change(_toggling, [kind], [label, channel], api_visibility="private", queue=False)
        asked = [photo, kind, label, layer, channel, methods, view]
        button.click(_answering(vision), asked, [maps, text], **private)
    return blocks  # type: ignore[no-any-return]  # what it returns as a context is untyped


# The gallery is as high as its pictures; on a phone four beside each other would not be seen.
_CSS = """
.maps, .maps .grid-wrap { min-height: 0 !important; height: auto !important; }
@media (max-width: 600px) { .maps .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
"""
_VIEW_HELP = (
    "colour: signed, grey is 0. diverging: red raises the score, blue lowers it. heatmap and overlay: magnitudes. "
    "Each map has its own scale."
)


def serve(vision: VisionModel, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page to this computer alone, until it is interrupted.

    Args:
        vision: the model.
        port: a free port.
        ready: is called with the page's address once it can be opened.

    Raises:
        MissingExtraError: Gradio is not installed.
        OptionError: the port is not free.
    """
    blocks = page(vision)
    import gradio as gr  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415

    blocks.queue(default_concurrency_limit=1, max_size=16, api_open=False)
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            # Another site cannot reach the page under a name of its own that leads to this computer.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])]},
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size="20mb",
            ssr_mode=False,
            footer_links=[],
            # The usual themes bring fonts.
            theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")).set(
                block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
            ),
            css=_CSS,
        )
    except OSError as error:
        raise OptionError(
            f"port must be free; received port={port}, which is not. Pass another one with --port."
        ) from error
    ready(address)
    blocks.block_thread()


def _toggling(kind: str) -> Any:
    import gradio as gr  # noqa: PLC0415

    return gr.update(visible=kind == "class"), gr.update(visible=kind == "neuron")


def _looking(vision: VisionModel) -> Callable[..., Any]:
    """Return what happens when another photo is there."""

    def run(path: str | None) -> Any:
        import gradio as gr  # noqa: PLC0415

        # What is there of another photo goes, whatever becomes of this one.
        seen, message = Seen({}, []), ""
        if path is not None:
            try:
                seen = look(vision, Path(path))
            except GuidedBackpropError as error:
                message = _sentence(error, path)
        first = seen.classes[0][1] if seen.classes else None
        return seen.best or None, gr.update(choices=[*seen.classes], value=first), None, message

    return run


def _answering(vision: VisionModel) -> Callable[..., Any]:
    """Return what happens when the button is clicked."""

    def run(  # noqa: PLR0917 (the order of the page's widgets)
        path: str | None,
        kind: str,
        label: int | None,
        layer: str | None,
        channel: float | None,
        methods: list[str],
        view: Panel,
    ) -> Any:
        try:
            if path is None:
                raise ImageError("a photo must be there; received none. Upload one, or take an example.")
            if kind == "neuron" and channel is None:
                raise OptionError("a neuron must have a channel; received none. Type its number.")
            number_of = int(channel or 0) if kind == "neuron" else None
            ordered = [name for name in METHODS if name in methods]
            found = answer(vision, Path(path), Question(label, layer, number_of, ordered, view))
        except GuidedBackpropError as error:
            return None, _sentence(error, path)
        return [*found.pictures], found.text

    return run


def _sentence(error: GuidedBackpropError, path: str | None) -> str:
    """Return what the library refuses, with the photo's name and not where the upload lies."""
    return str(error).replace(path, Path(path).name) if path else str(error)
