"""The command ``guided-backprop check``: how far the maps of a model's images may be believed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guided_backprop.commands.shared import METHODS, MODEL_HELP, check_counts, labels_of, one_line_errors, parse_labels
from guided_backprop.errors import ImageError, OutputExistsError
from guided_backprop.methods.gradients import Method
from guided_backprop.models import Batch, image_paths, load, load_default
from guided_backprop.show.plot import figure_kind
from guided_backprop.trust.sanity import sanity_check
from guided_backprop.trust.verdict import SanityCheck

if TYPE_CHECKING:
    import click


def check_command() -> "click.Command":
    """Return the command as a click command."""
    import click  # noqa: PLC0415

    option, path = click.Option, click.Path(path_type=Path)
    size = click.IntRange(min=1)
    return click.Command(
        "check",
        callback=_check,
        help=_check.__doc__,
        params=[
            click.Argument(["images"], nargs=-1, required=True, type=path),
            option(["--plot"], type=path, help="New picture of the curves: PNG, SVG or PDF."),
            option(["--model"], metavar="MODULE:FUNCTION", help=MODEL_HELP),
            option(
                ["--labels"], metavar="ID[,ID...]", callback=parse_labels, help="Class ids. [default: the top class]"
            ),
            option(["--method"], type=click.Choice(list(METHODS)), default="guided-backprop", show_default=True),
            option(["--batch-size"], type=size, default=16, show_default=True, help="Images explained at once."),
            option(
                ["--blocks"], type=size, default=12, show_default=True, help="Into how many the layers are bundled."
            ),
            option(["--seed"], type=click.IntRange(min=0), default=0, show_default=True, help="Chooses what is drawn."),
        ],
    )


def _check(  # noqa: PLR0917 (click passes them by name)
    images: Sequence[Path],
    plot: Path | None,
    model: str | None,
    labels: Sequence[int] | None,
    method: str,
    batch_size: int,
    blocks: int,
    seed: int,
) -> None:
    """Measure how far maps of IMAGES depend on what a model learned: files, or folders of them; better 50 than 5.

    The layers of a copy of the model are randomised block by block. Images that cannot be read are reported and left
    out; the exit status is then 1.
    """
    import click  # noqa: PLC0415

    with one_line_errors():
        paths = image_paths(images)
        check_counts(paths, labels)
        if plot is not None:
            # What can't be drawn in the end is refused before the minutes that it takes.
            figure_kind()
            _refuse_existing(plot)
        vision = load_default() if model is None else load(model)
        (batch,) = vision.batches(paths, len(paths))
        for failure in batch.failures:
            click.echo(f"Error: {failure}", err=True)
        if not batch.rows:
            raise ImageError(
                f"at least one image must be readable; received {len(batch.failures)} that are not. Pass other files."
            )
        made = METHODS[method](vision.network, batch_size=batch_size)
        check = checked(made, batch, labels, blocks=blocks, seed=seed)
        click.echo(check.table())
        click.echo(f"\n{check.sentence}")
        if plot is not None:
            check.plot().savefig(plot)
    if batch.failures:
        sys.exit(1)


def checked(
    method: Method, batch: Batch, labels: Sequence[int] | None, *, blocks: int = 12, seed: int = 0
) -> SanityCheck:
    """Run the check on the images that could be read, with a bar."""
    with _Bar() as bar:
        chosen = labels_of(batch.rows, labels)
        return sanity_check(method, batch.images, chosen, blocks=blocks, seed=seed, progress=bar)


class _Bar:
    """A bar in a terminal, and nothing in a pipe."""

    def __enter__(self) -> "_Bar":
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        console = Console()
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        self._task = self._progress.add_task("checking", total=None)
        return self

    def __call__(self, done: int, steps: int) -> None:
        self._progress.update(self._task, completed=done, total=steps)

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()


def _refuse_existing(plot: Path) -> None:
    if plot.exists() or not plot.parent.is_dir():
        reason = "which exists" if plot.exists() else "whose folder does not exist"
        raise OutputExistsError(
            f"--plot must name a new file in a folder; received {plot}, {reason}. Name another one."
        )
