"""The command ``guided-backprop explain``: photos into a folder of pictures, arrays and a manifest."""

import os
import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import click

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.labels import ChosenLabels, labels_option
from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.run import Run, Written
from guided_backprop.commands.shared import (
    PATH,
    Photos,
    batch_size_option,
    images_argument,
    layer_option,
    method_option,
    one_line_errors,
    printable,
)
from guided_backprop.methods.method import REDUCERS, Reducer
from guided_backprop.methods.named import method_of
from guided_backprop.photos import read_image
from guided_backprop.show.folder import ARRAYS, MANIFEST, ExplanationFolder


@click.command("explain")
@images_argument
@click.option(
    "--output",
    type=PATH,
    help="New folder for pictures, arrays, manifest. [default: one beside the first image, named after it]",
)
@click.option("--recursive", is_flag=True, help="Look into folders in folders, too.")
@model_options
@labels_option()
@method_option
@layer_option
@batch_size_option()
@click.option("--reducer", type=click.Choice(REDUCERS), help="Reduce the channels to one.")
@click.option("--overwrite", is_flag=True, help="Write into an existing folder.")
def explain(
    *,
    images: Sequence[Path],
    output: Path | None,
    recursive: bool,
    model: Chosen,
    labels: ChosenLabels | None,
    method: str,
    layer: str | None,
    batch_size: int,
    reducer: Reducer | None,
    overwrite: bool,
) -> None:
    """Explain what a model sees in IMAGES, which are files, or folders of them.

    Images that cannot be read are reported and left out; the exit status is then 1.
    """
    with one_line_errors():
        photos = Photos.given(images, labels, is_single=False, recursive=recursive)
        output = _beside(images[0], overwrite=overwrite) if output is None else output
        with ExplanationFolder(output, overwrite=overwrite) as folder:
            vision = model.load()
            explainer = method_of(method, vision.network, layer, reducer=reducer)

            def write(pixels: Images, names: Sequence[str], chosen: Labels) -> Written:
                explanations = explainer.explain(pixels, chosen).one_label_a_row()
                repeated = [name for name in names for _ in range(len(explanations) // len(names))]
                places = [vision.place(read_image(name)) for name in repeated]
                return Written(explanations, folder.add(explanations, repeated, places))

            run = Run(vision, photos.labelled(labels, vision), output, write)
            run.explain(batch_size)
            folder.finish()
            run.finish(f"explained by {type(explainer).__name__} in {printable(output)} ({MANIFEST}, {ARRAYS})")
    if run.failed:
        sys.exit(1)


def _beside(image: Path, *, overwrite: bool) -> Path:
    """Return a folder beside an image or a folder of images, named after it: one that is not there, unless told so."""
    whole = image.resolve()
    first = whole.with_name(f"{whole.stem}_maps")
    numbered = (whole.with_name(f"{first.name}-{number}") for number in count(2))
    return first if overwrite else next(path for path in chain([first], numbered) if not os.path.lexists(path))
