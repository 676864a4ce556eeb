"""The command ``guided-backprop app``: a page on this computer to upload a photo to."""

import click

from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.serving import serve
from guided_backprop.commands.shared import one_line_errors
from guided_backprop.commands.widgets import check_ready


@click.command("app")
@model_options
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
def app(*, model: Chosen, port: int) -> None:
    """Serve a page for this computer alone: upload a photo, choose a class or a neuron, and see the methods' maps."""
    with one_line_errors():
        # Known before the model is loaded.
        check_ready()
        vision = model.load()
        serve(vision, port, lambda address: click.echo(f"{vision.name} at {address} (Ctrl+C ends it)"))
