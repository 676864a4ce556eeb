"""The command ``guided-backprop explain``: photos into a folder of pictures, arrays and a manifest."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.labels import ChosenLabels, labels_option
from guided_backprop.commands.methods import method_of
from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.run import Run, Written, printable
from guided_backprop.commands.shared import (
    PATH,
    Photos,
    batch_size_option,
    images_argument,
    layer_option,
    method_option,
    one_line_errors,
)
from guided_backprop.methods.method import REDUCERS, Reducer
from guided_backprop.show.folder import ARRAYS, MANIFEST, ExplanationFolder


@click.command("explain")
@images_argument
@click.option("--output", required=True, type=PATH, help="New folder for pictures, arrays, manifest.")
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
    output: Path,
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
        photos = Photos.given(images, labels, is_single=False)
        with ExplanationFolder(output, overwrite=overwrite) as folder:
            vision = model.load()
            explainer = method_of(method, vision.network, layer, reducer=reducer)

            def write(pixels: Images, names: Sequence[str], chosen: Labels) -> Written:
                explanations = explainer.explain(pixels, chosen).one_label_a_row()
                repeated = [name for name in names for _ in range(len(explanations) // len(names))]
                return Written(explanations, folder.add(explanations, repeated))

            run = Run(vision, photos.labelled(labels, vision), output, write)
            run.explain(batch_size)
            folder.finish()
            run.finish(f"explained by {type(explainer).__name__} in {printable(output)} ({MANIFEST}, {ARRAYS})")
    if run.failed:
        sys.exit(1)
