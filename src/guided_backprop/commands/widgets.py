"""The widgets of the local page of ``guided-backprop app``; Gradio is imported when the page is built."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from guided_backprop.commands.local_page import (
    CLASS_METHODS,
    METHODS,
    NEEDS_LAYER,
    VIEWS,
    Question,
    Seen,
    answer,
    examples,
    look,
)
from guided_backprop.errors import GuidedBackpropError, ImageError, MissingExtraError, ModelError, OptionError
from guided_backprop.models import VisionModel
from guided_backprop.models.classes import BEST
from guided_backprop.show.colours import Picture
from guided_backprop.show.panels import MAPS, PanelName
from guided_backprop.subject import layer_names

if TYPE_CHECKING:
    import gradio as gr

# What Gradio changes of a widget.
Update = dict[str, object]


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
                best = gr.Label(label=f"{vision.name} says", num_top_classes=BEST, buttons=[])
            with gr.Column(min_width=260):
                choices = _choices(layers)
                button = gr.Button("Explain", variant="primary")
        maps = _gallery()
        text = gr.Textbox(label="What was done, and how far to believe it", lines=5, interactive=False)
        choices.kind.change(
            _toggling, [choices.kind], [choices.label, choices.channel], api_visibility="private", queue=False
        )
        # One at a time, both together: they run the same model.
        photo.change(
            _looking(vision),
            [photo],
            [best, choices.label, maps, text],
            api_visibility="private",
            concurrency_id="model",
            concurrency_limit=1,
        )
        button.click(
            _answering(vision),
            [photo, *choices],
            [maps, text],
            api_visibility="private",
            concurrency_id="model",
            concurrency_limit=1,
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


def _choices(layers: Sequence[str]) -> _Choices:
    import gradio as gr  # noqa: PLC0415

    kinds = ["class", "neuron"] if layers else ["class"]
    names = METHODS if layers else tuple(CLASS_METHODS)
    about_layer = f"Of the neuron, and for {NEEDS_LAYER}."
    strongest = "Explained where it is strongest."
    return _Choices(
        kind=gr.Radio(kinds, value="class", label="Explain a"),
        label=gr.Dropdown([], label="Class", info="The first five are the best; type to search."),
        layer=gr.Dropdown([*layers], value=None, label="Layer", info=about_layer, visible=bool(layers)),
        channel=gr.Number(0, label="Channel", info=strongest, precision=0, minimum=0, visible=False),
        methods=gr.CheckboxGroup([*names], value=[*CLASS_METHODS], label="Methods"),
        view=gr.Radio([*VIEWS], value="colour", label="View", info=_view_help()),
    )


def _gallery() -> "gr.Gallery":
    import gradio as gr  # noqa: PLC0415

    return gr.Gallery(
        show_label=False,
        format="png",
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="maps",
    )


# The gallery is as high as its pictures; on a phone four beside each other would not be seen.
_CSS = """
.maps, .maps .grid-wrap { min-height: 0 !important; height: auto !important; }
@media (max-width: 600px) { .maps .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
"""


def _view_help() -> str:
    """Say how the panels are read; those that are read alike in one sentence."""
    names: dict[str, list[str]] = {}
    for panel in MAPS:
        names.setdefault(panel.reading, []).append(panel.name)
    readings = [f"{' and '.join(alike)}: {reading}." for reading, alike in names.items()]
    return " ".join([*readings, "Each map has its own scale."])


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


def _toggling(kind: str) -> tuple[Update, Update]:
    import gradio as gr  # noqa: PLC0415

    return gr.update(visible=kind == "class"), gr.update(visible=kind == "neuron")


def _looking(vision: VisionModel) -> Callable[[str | None], tuple[Mapping[str, float] | None, Update, None, str]]:
    """Return what happens when another photo is there."""

    def run(path: str | None) -> tuple[Mapping[str, float] | None, Update, None, str]:
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


def _answering(vision: VisionModel) -> Callable[..., tuple[list[tuple[Picture, str]] | None, str]]:
    """Return what happens when the button is clicked."""

    def run(  # noqa: PLR0917 (the order of the page's widgets)
        path: str | None,
        kind: str,
        label: int | None,
        layer: str | None,
        channel: float | None,
        methods: Sequence[str],
        view: PanelName,
    ) -> tuple[list[tuple[Picture, str]] | None, str]:
        ordered = [name for name in METHODS if name in methods]
        try:
            question = Question(label, layer, _channel(kind, channel), ordered, view)
            answered = answer(vision, _uploaded(path), question)
        except GuidedBackpropError as error:
            return None, _sentence(error, path)
        return [*answered.pictures], answered.text

    return run


def _uploaded(path: str | None) -> Path:
    if path is None:
        raise ImageError("a photo must be there; received none. Upload one, or take an example.")
    return Path(path)


def _channel(kind: str, channel: float | None) -> int | None:
    """Return the neuron's channel, and None for a class."""
    if kind != "neuron":
        return None
    if channel is None:
        raise OptionError("a neuron must have a channel; received none. Type its number.")
    return int(channel)


def _sentence(error: GuidedBackpropError, path: str | None) -> str:
    """Return what the library refuses, with the photo's name and not where the upload lies."""
    return str(error).replace(path, Path(path).name) if path else str(error)
