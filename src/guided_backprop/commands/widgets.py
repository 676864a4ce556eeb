"""The widgets of the local page of ``guided-backprop app``; Gradio is imported when the page is built."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, get_args

from guided_backprop.commands.local_page import (
    GRADIENT_METHODS,
    LAYER_METHODS,
    METHODS,
    VIEWS,
    Field,
    Question,
    Seen,
    answer,
    examples,
    field_of,
    look,
    neurons,
)
from guided_backprop.errors import GuidedBackpropError, ImageError, MissingExtraError, ModelError
from guided_backprop.models import VisionModel, read_image
from guided_backprop.models.classes import BEST
from guided_backprop.show.panels import MAPS, PanelName
from guided_backprop.subject import layer_names

if TYPE_CHECKING:
    import gradio as gr

# What Gradio changes of a widget.
Update = dict[str, object]
FIELDS: tuple[Field, ...] = get_args(Field)


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
                photo = gr.File(label="File", file_types=["image"], height=140)
                refused_photo = _refusal()
                shown = gr.Image(label="Photo", height=220, format="png", interactive=False, visible=False, buttons=[])
                if paths := examples():
                    gr.Examples([[str(path)] for path in paths], [photo], api_visibility="private")
                best = gr.Label(label=f"{vision.name} says", num_top_classes=BEST, buttons=[])
            with gr.Column(min_width=260):
                choices, neurons_of, refused = _choices(layers)
                button = gr.Button("Explain", variant="primary")
        maps = _gallery(columns=4, name="maps")
        text = gr.Textbox(label="What was done, and how far to believe it", lines=5, interactive=False)
        _connect(
            vision, _Widgets(photo, shown, best, choices, neurons_of, button, maps, text, [refused_photo, *refused])
        )
    return blocks  # type: ignore[no-any-return]  # what it returns as a context is untyped


class _Choices(NamedTuple):
    """The widgets that ask what is explained of a photo, in the order in which the answer takes them."""

    kind: "gr.Radio"
    label: "gr.Dropdown"
    layer: "gr.Dropdown"
    channel: "gr.Number"
    methods: "gr.CheckboxGroup"
    view: "gr.Radio"


class _Widgets(NamedTuple):
    """All of the page that changes; what is refused in the order of :data:`FIELDS`."""

    photo: "gr.File"
    shown: "gr.Image"
    best: "gr.Label"
    choices: _Choices
    neurons: "gr.Gallery"
    button: "gr.Button"
    maps: "gr.Gallery"
    text: "gr.Textbox"
    refused: "list[gr.HTML]"


class _Run(TypedDict, total=False):
    """How Gradio runs a function."""

    api_visibility: Literal["private"]
    queue: bool
    concurrency_id: str
    concurrency_limit: int


def _connect(vision: VisionModel, parts: _Widgets) -> None:
    """Say what happens when something is chosen, uploaded or clicked."""
    choices, refused = parts.choices, parts.refused
    at_once: _Run = {"api_visibility": "private", "queue": False}
    # One at a time, all together: they run the same model.
    with_model: _Run = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
    seen = [parts.best, choices.label, choices.layer, choices.methods, parts.maps, parts.text, *refused]
    finding = _finding(vision), [parts.photo, choices.kind, choices.layer], [parts.neurons, *refused]
    answering = _answering(vision), [parts.photo, *choices], [parts.maps, parts.text, *refused]
    # The photo is there before the network has looked at it.
    parts.photo.change(_showing, [parts.photo], [parts.shown, refused[0]], **at_once).then(
        _looking(vision), [parts.photo, choices.layer, choices.methods], seen, **with_model
    ).then(*finding, **with_model)
    toggled = [choices.label, choices.channel, choices.methods, parts.neurons]
    choices.kind.change(_toggling, [choices.kind, choices.methods, choices.layer], toggled, **at_once).then(
        *finding, **with_model
    )
    choices.layer.input(*finding, **with_model)
    parts.neurons.select(_chosen(), None, [choices.channel], **at_once).then(*answering, **with_model)
    parts.button.click(*answering, **with_model)


def _choices(layers: Sequence[str]) -> "tuple[_Choices, gr.Gallery, list[gr.HTML]]":
    """Return what is asked, the gallery of neurons to choose from, and where refusals of all but the photo stand."""
    import gradio as gr  # noqa: PLC0415

    kinds = ["class", "neuron"] if layers else ["class"]
    names = METHODS if layers else GRADIENT_METHODS
    about_layer = f"Of the neuron, and for {' and '.join(LAYER_METHODS)}: the last one with places is suggested."
    strongest = "Explained where it is strongest. Choose one above, or type its number."
    refused = []
    kind = gr.Radio(kinds, value="class", label="Explain a")
    label = gr.Dropdown([], label="Class", info="The first five are the best; type to search.")
    refused.append(_refusal())
    layer = gr.Dropdown([*layers], value=None, label="Layer", info=about_layer, visible=bool(layers))
    refused.append(_refusal())
    neurons_of = _gallery(columns=4, name="neurons", label="Neurons that the photo excites most", visible=False)
    channel = gr.Number(0, label="Channel", info=strongest, precision=0, minimum=0, visible=False)
    refused.append(_refusal())
    ticked = [name for name in ("Saliency", "GuidedBackprop", "GradCAM") if name in names]
    methods = gr.CheckboxGroup([*names], value=ticked, label="Methods")
    refused.append(_refusal())
    view = gr.Radio([*VIEWS], value="colour", label="View", info=_view_help())
    return _Choices(kind, label, layer, channel, methods, view), neurons_of, refused


def _refusal() -> "gr.HTML":
    """Return where it is said, below a field, why it was refused."""
    import gradio as gr  # noqa: PLC0415

    return gr.HTML(visible=False, elem_classes="refused")


def _gallery(*, columns: int, name: str, label: str | None = None, visible: bool = True) -> "gr.Gallery":
    import gradio as gr  # noqa: PLC0415

    return gr.Gallery(
        label=label,
        show_label=label is not None,
        format="png",
        columns=columns,
        height="auto",
        object_fit="contain",
        interactive=False,
        allow_preview=name == "maps",
        buttons=["download", "fullscreen"] if name == "maps" else [],
        elem_classes=name,
        visible=visible,
    )


# The galleries are as high as their pictures; on a phone four beside each other would not be seen.
CSS = """
.maps, .maps .grid-wrap, .neurons, .neurons .grid-wrap { min-height: 0 !important; height: auto !important; }
.neurons .grid-wrap { padding-top: 2em; }
.refused p { margin: 0; padding: 6px 10px; border-left: 3px solid #b3261e; color: #b3261e; font-weight: 600; }
.dark .neurons .grid-wrap { padding-top: 2em; }
.refused p { border-color: #ffb4ab; color: #ffb4ab; }
@media (max-width: 600px) {
  .maps .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
}
"""


def _view_help() -> str:
    """Say how the panels are read; those that are read alike in one sentence."""
    names: dict[str, list[str]] = {}
    for panel in MAPS:
        names.setdefault(panel.reading, []).append(panel.name)
    readings = [f"{' and '.join(alike)}: {reading}." for reading, alike in names.items()]
    return " ".join([*readings, "Each map has its own scale; Grad-CAM is always an overlay."])


def _toggling(kind: str, methods: Sequence[str], layer: str | None) -> list[Update]:
    """Return what is seen of a class, and of a neuron, which has no Grad-CAM."""
    import gradio as gr  # noqa: PLC0415

    is_neuron = kind == "neuron"
    offered = [*GRADIENT_METHODS] if is_neuron else [*METHODS]
    ticked = [name for name in methods if name in offered]
    return [
        gr.update(visible=not is_neuron),
        gr.update(visible=is_neuron),
        gr.update(choices=offered, value=ticked if is_neuron or layer is None else [*ticked, "GradCAM"]),
        gr.update(visible=is_neuron),
    ]


def _showing(path: str | None) -> tuple[Update, Update]:
    """Return the photo as it was read, or why it cannot be."""
    import gradio as gr  # noqa: PLC0415

    if path is None:
        return gr.update(value=None, visible=False), _said("")
    try:
        photo = read_image(path)
    except ImageError as error:
        return gr.update(value=None, visible=False), _said(_sentence(error, path))
    photo.thumbnail((800, 800))
    return gr.update(value=photo, visible=True), _said("")


def _looking(vision: VisionModel) -> Callable[..., list[object]]:
    """Return what happens when another photo is there."""

    def run(path: str | None, layer: str | None, methods: Sequence[str]) -> list[object]:
        import gradio as gr  # noqa: PLC0415

        # What is there of another photo goes, whatever becomes of this one.
        seen, sentence = Seen({}, []), ""
        if path is not None:
            try:
                seen = look(vision, Path(path))
            except GuidedBackpropError as error:
                sentence = _sentence(error, path)
        first = seen.classes[0][1] if seen.classes else None
        suggested = layer or seen.layer
        ticked = [name for name in methods if suggested or name not in LAYER_METHODS]
        return [
            seen.best or None,
            gr.update(choices=[*seen.classes], value=first),
            gr.update(value=suggested),
            gr.update(value=ticked if seen.best or seen.layer else [*methods]),
            None,
            "",
            *_refusals("photo", sentence),
        ]

    return run


def _finding(vision: VisionModel) -> Callable[..., list[object]]:
    """Return what happens when a layer is chosen whose neurons are shown."""

    def run(path: str | None, kind: str, layer: str | None) -> list[object]:
        import gradio as gr  # noqa: PLC0415

        if kind != "neuron" or path is None or layer is None:
            return [gr.update(value=None), *(gr.skip() for _ in FIELDS)]
        try:
            strongest = neurons(vision, Path(path), layer)
        except GuidedBackpropError as error:
            field: Field = "photo" if isinstance(error, ImageError) else "layer"
            return [gr.update(value=None), *_refusals(field, _sentence(error, path))]
        shown = [(one.picture, f"{one.channel}: {one.strongest:.3g}") for one in strongest]
        return [gr.update(value=shown), *_refusals("layer", "")]

    return run


def _chosen() -> Callable[..., int]:
    """Return what happens when one of the neurons is clicked: its caption begins with its channel."""
    import gradio as gr  # noqa: PLC0415

    def run(event: gr.SelectData) -> int:
        return int(event.value["caption"].partition(":")[0])

    return run


def _answering(vision: VisionModel) -> Callable[..., list[object]]:
    """Return what happens when the button is clicked."""

    def run(  # noqa: PLR0917 (the order of the page's widgets)
        path: str | None,
        kind: str,
        label: int | None,
        layer: str | None,
        channel: float | None,
        methods: Sequence[str],
        view: PanelName,
    ) -> list[object]:
        if path is None:
            return [None, "", *_refusals("photo", "a photo must be there; received none. Upload one.")]
        if kind == "neuron" and channel is None:
            return [None, "", *_refusals("channel", "a neuron must have a channel; received none. Type its number.")]
        ordered = [name for name in METHODS if name in methods]
        question = Question(label, layer, None if kind != "neuron" else int(channel or 0), ordered, view)
        # It is in use, which keeps it.
        Path(path).touch()
        try:
            answered = answer(vision, Path(path), question)
        except GuidedBackpropError as error:
            return [None, "", *_refusals(field_of(error, question), _sentence(error, path))]
        return [[*answered.pictures], answered.text, *_refusals("photo", "")]

    return run


def _refusals(field: Field, sentence: str) -> list[Update]:
    """Return what is said below each field: the sentence below this one, nothing below the others."""
    return [_said(sentence if name == field else "") for name in FIELDS]


def _said(sentence: str) -> Update:
    import gradio as gr  # noqa: PLC0415

    return gr.update(value=f'<p role="alert">{escape(sentence)}</p>' if sentence else "", visible=bool(sentence))


def _sentence(error: GuidedBackpropError, path: str) -> str:
    """Return what the library refuses, with the photo's name and not where the upload lies."""
    return str(error).replace(path, Path(path).name)
