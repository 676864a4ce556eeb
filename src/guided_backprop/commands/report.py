"""The command ``guided-backprop report``: one page about some photos."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.check import checked, faithful
from guided_backprop.commands.labels import ONE_LABEL, ChosenLabels, labels_option
from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.run import Run
from guided_backprop.commands.shared import (
    PATH,
    Photos,
    batch_size_option,
    images_argument,
    one_line_errors,
    printable,
)
from guided_backprop.errors import LabelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.jobs.folder import folder_at
from guided_backprop.jobs.plan import PLAN
from guided_backprop.jobs.reading import maps_in
from guided_backprop.jobs.summary import summary
from guided_backprop.methods.gradients import GuidedBackprop
from guided_backprop.models import VisionModel
from guided_backprop.report.checks import compared, randomised
from guided_backprop.report.page import DRAWN, Report, Trust, check_ready, drawn
from guided_backprop.report.summary import write_summary
from guided_backprop.show.canvas import figure_kind
from guided_backprop.show.place import Place

# As many images as the paper took for its checks.
_MOST_CHECKED = 50
# What a job calls the default model, whose classes have names.
_DEFAULTS = ("default", "guided_backprop.models:load_default")


@click.command("report")
@images_argument
@click.option("--output", required=True, type=PATH, help="The page, such as report.html.")
@model_options
@labels_option(ONE_LABEL)
@click.option("--layer", help="A convolutional layer, for Grad-CAM and Guided Grad-CAM beside the others.")
@click.option(
    "--method",
    metavar="METHOD[,METHOD...]",
    help=f"Which maps are drawn: {', '.join(DRAWN)}. [default: all but the last]",
)
@click.option(
    "--check", is_flag=True, help="Randomise the layers, and delete what maps mark, for up to 50 images: takes minutes."
)
@batch_size_option()
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def report(
    *,
    images: Sequence[Path],
    output: Path,
    model: Chosen,
    labels: ChosenLabels | None,
    layer: str | None,
    method: str | None,
    check: bool,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Write one page about IMAGES: their maps by several methods, and how far to believe them.

    Images are files, or folders of them. Those that cannot be read are reported and left out; the exit status is then
    1. The page is a single file, and needs no network; of more than 200 images it is an index, beside several such
    pages.

    If IMAGES is the folder of a job, the page is about its maps: class by class where they lie, how alike they are, and
    which are typical. --model or --classes name the classes.
    """
    typed = None if labels is None else labels.typed
    options = {"--output": str(output), **model.words(), "--labels": typed, "--layer": layer, "--method": method}
    again = _command(images, options | {"--check": check, "--overwrite": overwrite})
    if len(images) == 1 and (images[0] / PLAN).is_file():
        of_photos = {"--labels": typed, "--layer": layer, "--method": method, "--check": check}
        others = [name for name, said in of_photos.items() if said]
        with one_line_errors():
            _about_maps(images[0], output, model, others=others, again=again, overwrite=overwrite)
        return
    with one_line_errors():
        photos = Photos.given(images, labels)
        check_ready(output, overwrite=overwrite)
        methods = None if method is None else [name.strip() for name in method.split(",")]
        # Known before the model is loaded.
        drawn(methods, has_layer=layer is not None)
        if check:
            # Without matplotlib the check cannot be drawn, which is better known now.
            figure_kind()
        vision = model.load()
        photos = photos.labelled(labels, vision)
        page = Report(
            output,
            vision.network,
            name=vision.name,
            class_names=vision.class_names,
            layer=layer,
            methods=methods,
            overwrite=overwrite,
        )

        def write(pixels: Images, names: Sequence[str], chosen: Labels, places: Sequence[Place | None]) -> Explanations:
            # The last of the three methods: its coverage says what was guided.
            return page.add(pixels, names, chosen, places=places)[2]

        run = Run(vision, photos, write)
        run.explain(batch_size)
        trust = _trust(vision, photos, batch_size) if check else []
        page.finish(trust=trust, command=again)
        size = sum(path.stat().st_size for path in page.files)
        beside = f" and {len(page.files) - 1} pages beside it" if len(page.files) > 1 else ""
        run.finish(f"reported in {printable(output)}{beside} ({size / 1e6:.1f} MB)")
    if run.failed:
        sys.exit(1)


def _about_maps(
    folder: Path, output: Path, model: Chosen, *, others: Sequence[str], again: str, overwrite: bool
) -> None:
    """Write a page about the maps of a job."""
    if others:
        raise OptionError(f"{others[0]} goes with photos; received the folder of a job, {str(folder)!r}. Leave it out.")
    check_ready(output, overwrite=overwrite)
    maps = maps_in(folder_at(folder))
    is_named = any(model.words().values()) or maps.plan.settings.model in _DEFAULTS
    found = summary(maps, class_names=model.load().class_names if is_named else ())
    files = write_summary(output, maps, found, command=again, overwrite=overwrite)
    click.echo(found)
    beside = f" and {len(files) - 1} pages beside it" if len(files) > 1 else ""
    click.echo(f"reported in {printable(output)}{beside}")


def _command(images: Sequence[Path], options: Mapping[str, str | bool | None]) -> str:
    """Return the command that makes the page again, as a shell takes it."""
    words = ["guided-backprop", "report"]
    for name, given in options.items():
        if given is True:
            words.append(name)
        elif isinstance(given, str):
            words += [name, given]
    return shlex.join([*words, "--", *map(str, images)])


def _trust(vision: VisionModel, photos: Photos, batch_size: int) -> list[Trust]:
    """Randomise the layers, and take away what maps mark, for the first images that can be read."""
    batch = next(batch for batch in vision.batches(photos.paths, _MOST_CHECKED) if batch.rows)
    method, labels = GuidedBackprop(vision.network, batch_size=vision.at_once or batch_size), photos.labels_of(batch)
    parts = [randomised(checked(method, batch.images, labels))]
    try:
        return [*parts, compared(faithful(method, batch.images, labels))]
    except LabelError as error:
        # Of a model that tells no classes apart there are no such curves.
        return [*parts, Trust("Does what the maps mark matter to the model?", f"Not measured: {error}")]
