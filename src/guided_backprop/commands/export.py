"""The command ``guided-backprop export``: a model and a method as one file that explains without them."""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.shared import PATH, layer_option, one_line_errors, printable
from guided_backprop.export.plan import LabelKind, Sizes
from guided_backprop.methods.export import Storage
from guided_backprop.methods.method import REDUCERS, Reducer
from guided_backprop.methods.named import METHODS, method_of
from guided_backprop.methods.smooth_grad import SmoothGrad
from guided_backprop.models.recipe import recipe_of
from guided_backprop.photos import read_image


@click.command("export")
@click.argument("path", type=PATH)
@model_options
@click.option("--method", type=click.Choice(METHODS), default="guided-backprop", show_default=True)
@layer_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many noisy copies smoothgrad takes of each image, all at once.",
)
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
@click.option("--photos", "takes_photos", is_flag=True, help="Take photos of the model's size, and scale them inside.")
@click.option(
    "--storage",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="How the weights of an ONNX file are stored.",
)
@click.option(
    "--sizes",
    type=click.Choice(["fixed", "dynamic"]),
    default="fixed",
    show_default=True,
    help="Whether the file takes images of the model's size, or of any.",
)
def export(
    *,
    path: Path,
    model: Chosen,
    method: str,
    layer: str | None,
    samples: int,
    photos: Sequence[Path],
    labels: LabelKind,
    reducer: Reducer | None,
    takes_photos: bool,
    storage: Storage,
    sizes: Sizes,
) -> None:
    """Write a model and a method to PATH: one graph that explains without them.

    Of PyTorch it ends in .onnx or .pt2, of JAX in .stablehlo; of TensorFlow it is a new folder, a SavedModel. Before
    it is there, it is run, and its maps are compared with the library's.
    """
    with one_line_errors():
        vision = model.load()
        shown = [read_image(photo) for photo in photos] or _noise()
        made = method_of(method, vision.network, layer, reducer=reducer)
        made = SmoothGrad(made.method, samples=samples) if isinstance(made, SmoothGrad) else made
        exported = made.export(
            path,
            vision.images(shown),
            labels=labels,
            classes=list(vision.class_names) or None,
            preprocessing=str(vision.preprocess),
            photos=recipe_of(vision.preprocess) if takes_photos else None,
            storage=storage,
            sizes=sizes,
        )
        compared = f"differs by {exported.difference:.1g} of a map's norm in {exported.engine}"
        if exported.correlation is not None:
            compared += f"; with weights in half precision maps correlate by {exported.correlation:.4f}"
        click.echo(f"{printable(path)}: {', '.join(exported.inputs)} -> {', '.join(exported.outputs)}; {compared}")
        click.echo(f"{vision.name}: {exported.coverage}")


def _noise() -> list[Image.Image]:
    """Return photos on which a network shows much: noise of large and of small spots."""
    generator = np.random.default_rng(0)
    spots = [generator.integers(0, 256, (side, side, 3), np.uint8) for side in (8, 32)]
    return [Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC) for pixels in spots]
