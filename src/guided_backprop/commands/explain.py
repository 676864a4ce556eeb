"""The command ``guided-backprop explain``: photos into a folder of shards and pictures, by a job that can go on."""

import os
import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Literal, get_args

import click

from guided_backprop.commands.labels import ChosenLabels, labels_option
from guided_backprop.commands.log import Log
from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.shared import (
    AT_LEAST_ONE,
    batch_size_option,
    layer_option,
    method_option,
    one_line_errors,
    print_skipped,
)
from guided_backprop.commands.stopping import Stopping
from guided_backprop.errors import OptionError
from guided_backprop.jobs.job import Job
from guided_backprop.jobs.maps import MapType
from guided_backprop.jobs.part import Part
from guided_backprop.jobs.pictures import MOST_DRAWN
from guided_backprop.jobs.plan import PICTURES
from guided_backprop.jobs.status import status
from guided_backprop.methods.method import REDUCERS, Reducer

_PICTURES = f"Drawn beside the shards. [default: all, of up to {MOST_DRAWN} images; else none]"
_DTYPE = "How maps are stored: float16 halves, sqrt8 quarters."


@click.command("explain")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output",
    metavar="FOLDER",
    help="New folder, or an address such as s3://bucket/maps. [default: beside the first image, named after it]",
)
@click.option("--recursive", is_flag=True, help="Look into folders in folders, too.")
@model_options
@labels_option()
@method_option
@layer_option
@batch_size_option("Images read and explained at once: in memory are a few batches.")
@click.option("--reducer", type=click.Choice(REDUCERS), help="Reduce the channels to one.")
@click.option("--dtype", type=click.Choice(get_args(MapType)), default="float16", show_default=True, help=_DTYPE)
@click.option("--pictures", type=click.Choice(PICTURES), help=_PICTURES)
@click.option(
    "--shard-size", type=AT_LEAST_ONE, default=512, show_default=True, help="Images a file: what a kill may cost."
)
@click.option("--resume", is_flag=True, help="Go on with the job that is in the folder.")
@click.option("--add", is_flag=True, help="Go on, and take in images that are new.")
@click.option("--part", metavar="K/N", help="Of N processes at one job this is the K-th, from 1.")
@click.option("--no-optimize", is_flag=True, help="Don't use the faster method, even where it agrees.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def explain(
    *,
    images: Sequence[str],
    output: str | None,
    recursive: bool,
    model: Chosen,
    labels: ChosenLabels | None,
    method: str,
    layer: str | None,
    batch_size: int,
    reducer: Reducer | None,
    dtype: MapType,
    pictures: Literal["none", "overlay", "all"] | None,
    shard_size: int,
    resume: bool,
    add: bool,
    part: str | None,
    no_optimize: bool,
    quiet: bool,
) -> None:
    """Explain what a model sees in IMAGES: files, folders of them, or an address such as s3://bucket/photos.

    Maps are written in shards, each of which is there whole or not at all; guided_backprop.read(FOLDER) reads them.
    After an interruption the same command goes on with --resume. Images that cannot be read are reported, and known
    in the shards; as long as there are any, the exit status is 1. SIGTERM and SIGINT finish the batch, and end with 143
    or 130.
    """
    options = {name: said for name, said in {"layer": layer, "reducer": reducer}.items() if said is not None}
    with one_line_errors(), Stopping() as stopping:
        # A wrong part is known before the model is loaded.
        Part.of(part)
        spec, load = model.said()
        job = Job(
            _beside(images[0], goes_on=resume or add) if output is None else output,
            images,
            model=spec,
            method=method,
            options=options,
            load=load,
            dtype=dtype,
            optimize=not no_optimize,
            labels=None if labels is None else labels.asked,
            recursive=recursive,
            shard_size=shard_size,
            batch_size=batch_size,
            pictures=pictures,
            resume=resume,
            add=add,
        )
        if not quiet:
            print_skipped(job.skipped)
        with Log(job, part, is_quiet=quiet) as log, stopping.patient():
            ran = job.run(part=part, progress=log.batch, finished=log.shard, is_stopped=stopping.is_asked)
        known = status(job.folder, part=part, verify=False)
        log.sum_up(ran, known)
    if ran.stopped:
        sys.exit(stopping.status)
    if known.failures or known.broken:
        sys.exit(1)


def _beside(image: str, *, goes_on: bool) -> str:
    """Return a folder beside an image or a folder of images, named after it; one that is not there, but to go on."""
    if "://" in image:
        raise OptionError(f"--output must be given for photos at an address; received {image!r}. Pass a folder.")
    whole = Path(image).resolve()
    first = whole.with_name(f"{whole.stem}_maps")
    numbered = (whole.with_name(f"{first.name}-{number}") for number in count(2))
    free = (path for path in chain([first], numbered) if goes_on or not os.path.lexists(path))
    return str(next(free))
