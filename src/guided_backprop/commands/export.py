"""The command ``guided-backprop export``: a model and a method as one file that explains without them."""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.shared import PATH, one_line_errors, printable
from guided_backprop.export.plan import LabelKind
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.method import REDUCERS, Reducer
from guided_backprop.photos import read_image

_METHODS = {"guided-backprop": GuidedBackprop, "deconvnet": DeconvNet, "saliency": Saliency}


@click.command("export")
@click.argument("path", type=PATH)
@model_options
@click.option("--method", type=click.Choice(_METHODS), default="guided-backprop", show_default=True)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=PATH,
    help="A photo to compare maps on; may be given again. [default: noise]",
)
@click.option(
    "--labels",
    type=click.Choice(["ids", "weights"]),
    default="ids",
    show_default=True,
    help="What the file is told to explain.",
)
@click.option("--reducer", type=click.Choice(REDUCERS), help="Reduce the channels to one.")
def export(
    *,
    path: Path,
    model: Chosen,
    method: str,
    photos: Sequence[Path],
    labels: LabelKind,
    reducer: Reducer | None,
) -> None:
    """Write a model and a method to PATH: one graph that explains without them.

    Of PyTorch it ends in .onnx, of JAX in .stablehlo; of TensorFlow it is a new folder, a SavedModel. Before it is
    there, it is run, and its maps are compared with the library's.
    """
    with one_line_errors():
        vision = model.load()
        shown = [read_image(photo) for photo in photos] or _noise()
        exported = _METHODS[method](vision.network, reducer=reducer).export(
            path,
            vision.images(shown),
            labels=labels,
            classes=list(vision.class_names) or None,
            preprocessing=str(vision.preprocess),
        )
        compared = f"differs by {exported.difference:.1g} of a map's norm in {exported.engine}"
        click.echo(f"{printable(path)}: {', '.join(exported.inputs)} -> {', '.join(exported.outputs)}; {compared}")
        click.echo(f"{vision.name}: {exported.coverage}")


def _noise() -> list[Image.Image]:
    """Return photos on which a network shows much: noise of large and of small spots."""
    generator = np.random.default_rng(0)
    spots = [generator.integers(0, 256, (side, side, 3), np.uint8) for side in (8, 32)]
    return [Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC) for pixels in spots]
