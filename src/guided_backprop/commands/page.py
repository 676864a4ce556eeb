"""The command ``guided-backprop page``: a page that explains photos by itself, in a browser."""

from collections.abc import Sequence
from pathlib import Path

import click

from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.shared import PATH, one_line_errors, printable
from guided_backprop.page.page import write_page
from guided_backprop.photos import read_image


@click.command("page")
@click.argument("examples", nargs=-1, type=PATH)
@click.option("--output", required=True, type=PATH, help="The page, such as page.html; or a folder for a web host.")
@model_options
@click.option("--engine", type=PATH, help="The folder of onnxruntime-web. [default: npm fetches it]")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def page(*, examples: Sequence[Path], output: Path, model: Chosen, engine: Path | None, overwrite: bool) -> None:
    """Write a page that explains photos by itself: in any browser, without a server, without this library.

    Whoever opens it chooses a photo, which never leaves the page. EXAMPLES are photos that it offers.
    """
    with one_line_errors():
        vision = model.load()
        photos = {path.name: read_image(path) for path in examples}
        files = write_page(output, vision, photos, engine=engine, overwrite=overwrite)
        size = sum(path.stat().st_size for path in files)
        beside = f" and {len(files) - 1} files beside it" if len(files) > 1 else ""
        click.echo(f"{printable(files[0])}{beside}: {size / 1e6:.1f} MB, {vision.name}")
