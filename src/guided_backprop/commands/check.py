"""The command ``guided-backprop check``: how far the maps of a model's images may be believed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import Progress

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.labels import ONE_LABEL, ChosenLabels, labels_option
from guided_backprop.commands.model import Chosen, model_options
from guided_backprop.commands.shared import (
    AT_LEAST_ONE,
    PATH,
    Photos,
    batch_size_option,
    images_argument,
    layer_option,
    method_option,
    one_line_errors,
    print_failures,
)
from guided_backprop.errors import ImageError, OutputExistsError
from guided_backprop.methods.named import Made, method_of
from guided_backprop.progress import said_elsewhere
from guided_backprop.show.canvas import figure_kind
from guided_backprop.trust.faithfulness import Faithfulness, faithfulness
from guided_backprop.trust.sanity import sanity_check
from guided_backprop.trust.verdict import SanityCheck

# So many photos are in memory at once: as many as the paper took for its checks.
_AT_ONCE = 50


@click.command("check")
@images_argument
@click.option("--plot", type=PATH, help="New picture of the curves: PNG, SVG or PDF.")
@model_options
@labels_option(ONE_LABEL)
@method_option
@layer_option
@batch_size_option("Images explained at once.")
@click.option(
    "--blocks", type=AT_LEAST_ONE, default=12, show_default=True, help="Into how many the layers are bundled."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses what is drawn.")
def check(
    *,
    images: Sequence[Path],
    plot: Path | None,
    model: Chosen,
    labels: ChosenLabels | None,
    method: str,
    layer: str | None,
    batch_size: int,
    blocks: int,
    seed: int,
) -> None:
    """Measure how far maps of IMAGES depend on what a model learned: files, or folders of them; better 50 than 5.

    The layers of a copy of the model are randomised block by block. Images that cannot be read are reported and left
    out; the exit status is then 1.
    """
    with one_line_errors():
        photos = Photos.given(images, labels)
        if plot is not None:
            _check_drawable(plot)
        vision = model.load()
        photos = photos.labelled(labels, vision)
        explainer = method_of(method, vision.network, layer, batch_size=vision.at_once or batch_size)
        failures = 0

        def readable() -> Iterator[tuple[Images, Labels]]:
            """Read photos while others are forgotten, and say which cannot be read."""
            nonlocal failures
            for batch in vision.batches(photos.paths, _AT_ONCE):
                print_failures(batch)
                failures += len(batch.failures)
                if batch.rows:
                    chosen = photos.labels_of(batch)
                    yield batch.images, [chosen] * len(batch.rows) if isinstance(chosen, int) else chosen
            if failures == len(photos.paths):
                raise ImageError(
                    f"at least one image must be readable; received {failures} that are not. Pass other files."
                )

        verdict = checked(explainer, readable(), blocks=blocks, seed=seed)
        click.echo(verdict.table())
        click.echo(f"\n{verdict.sentence}")
        if plot is not None:
            verdict.plot().savefig(plot)
    if failures:
        sys.exit(1)


def checked(method: Made, images: Images, labels: Labels = None, *, blocks: int = 12, seed: int = 0) -> SanityCheck:
    """Run the check on images, or on batches of them, with a bar."""
    with said_elsewhere(), _Bar() as bar:
        return sanity_check(method, images, labels, blocks=blocks, seed=seed, progress=bar)


def faithful(method: Made, images: Images, labels: Labels) -> Faithfulness:
    """Measure deletion and insertion on images, with a bar."""
    with said_elsewhere(), _Bar() as bar:
        return faithfulness(method, images, labels, progress=bar)


class _Bar:
    """A bar in a terminal, and nothing in a pipe."""

    def __init__(self) -> None:
        console = Console()
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("checking", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __call__(self, done: int, steps: int) -> None:
        self._progress.update(self._task, completed=done, total=steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


def _check_drawable(plot: Path) -> None:
    """Refuse what can't be drawn in the end before the minutes that it takes."""
    figure_kind()
    if plot.exists() or not plot.parent.is_dir():
        reason = "which exists" if plot.exists() else "whose folder does not exist"
        raise OutputExistsError(
            f"--plot must name a new file in a folder; received {plot}, {reason}. Name another one."
        )
