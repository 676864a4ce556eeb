"""The command ``guided-backprop app``: a page on this computer to upload a photo to."""

from typing import TYPE_CHECKING

from guided_backprop.commands.shared import MODEL_HELP, one_line_errors
from guided_backprop.models import load, load_default

if TYPE_CHECKING:
    import click


def app_command() -> "click.Command":
    """Return the command as a click command."""
    import click  # noqa: PLC0415

    return click.Command(
        "app",
        callback=_app,
        help=_app.__doc__,
        params=[
            click.Option(["--model"], metavar="MODULE:FUNCTION", help=MODEL_HELP),
            click.Option(["--port"], type=click.IntRange(1, 65535), default=7860, show_default=True),
        ],
    )


def _app(model: str | None, port: int) -> None:
    """Serve a page for this computer alone: upload a photo, choose a class or a neuron, and see the methods' maps."""
    import click  # noqa: PLC0415

    from guided_backprop.commands.local_page import check_ready, serve  # noqa: PLC0415

    with one_line_errors():
        # Known before the model is loaded.
        check_ready()
        vision = load_default() if model is None else load(model)
        serve(vision, port, lambda address: click.echo(f"{vision.name} at {address} (Ctrl+C ends it)"))
