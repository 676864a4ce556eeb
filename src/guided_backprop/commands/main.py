"""The command line: parse, call, print.

click and rich are imported when it runs, so that without them it can still say how to install them.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guided_backprop.commands.app import app_command
from guided_backprop.commands.check import check_command, checked
from guided_backprop.commands.shared import (
    BATCH_HELP,
    LABELS_HELP,
    METHODS,
    MODEL_HELP,
    check_counts,
    labels_of,
    one_line_errors,
    parse_labels,
)
from guided_backprop.coverage import Coverage
from guided_backprop.errors import (
    ImageError,
    MissingExtraError,
)
from guided_backprop.explanations import Explanations
from guided_backprop.labels.target import Target
from guided_backprop.methods.gradients import REDUCERS, GuidedBackprop, Reducer
from guided_backprop.models import VisionModel, image_paths, load, load_default, probabilities
from guided_backprop.report.page import Report, check_ready, randomised
from guided_backprop.show.folder import ARRAYS, MANIFEST, ExplanationFolder
from guided_backprop.show.plot import figure_kind
from guided_backprop.version import __version__

if TYPE_CHECKING:
    import click
    from rich.console import Console

_TOP = 5
# As many images as the paper took for its checks.
_MOST_CHECKED = 50

# A batch's explanations, and for each image the names of its files by kind.
_Written = tuple[Explanations, Sequence[Mapping[str, str]]]


def main() -> None:
    """Run the command line; the console script and ``python -m guided_backprop`` call this."""
    try:
        group = command()
    except MissingExtraError as error:
        sys.exit(f"Error: {error}")
    group()


def command() -> "click.Group":
    """Return the command line as a click command.

    Raises:
        MissingExtraError: click or rich is not installed.
    """
    try:
        import click  # noqa: PLC0415
        import rich  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"the command line needs click and rich; received an environment without {error.name}. "
            "Run: pip install 'guided-backprop[cli]'."
        ) from error
    option, path = click.Option, click.Path(path_type=Path)
    size = click.IntRange(min=1)
    explain = click.Command(
        "explain",
        callback=_explain,
        help=_explain.__doc__,
        params=[
            click.Argument(["images"], nargs=-1, required=True, type=path),
            option(["--output"], required=True, type=path, help="New folder for pictures, arrays, manifest."),
            option(["--model"], metavar="MODULE:FUNCTION", help=MODEL_HELP),
            option(["--labels"], metavar="ID[,ID...]", callback=parse_labels, help=LABELS_HELP),
            option(["--method"], type=click.Choice(list(METHODS)), default="guided-backprop", show_default=True),
            option(["--batch-size"], type=size, default=16, show_default=True, help=BATCH_HELP),
            option(["--reducer"], type=click.Choice(REDUCERS), help="Reduce the channels to one."),
            option(["--overwrite"], is_flag=True, help="Write into an existing folder."),
        ],
    )
    report = click.Command(
        "report",
        callback=_report,
        help=_report.__doc__,
        params=[
            click.Argument(["images"], nargs=-1, required=True, type=path),
            option(["--output"], required=True, type=path, help="The page, such as report.html."),
            option(["--model"], metavar="MODULE:FUNCTION", help=MODEL_HELP),
            option(["--labels"], metavar="ID[,ID...]", callback=parse_labels, help=LABELS_HELP),
            option(["--layer"], help="A convolutional layer, for Grad-CAM and Guided Grad-CAM beside the others."),
            option(["--check"], is_flag=True, help="Randomise the layers too, for up to 50 images: takes minutes."),
            option(["--batch-size"], type=size, default=16, show_default=True, help=BATCH_HELP),
            option(["--overwrite"], is_flag=True, help="Replace an existing file."),
        ],
    )
    version = click.version_option(__version__, prog_name="guided-backprop")
    commands = [explain, report, check_command(), app_command()]
    group = click.Group("guided-backprop", help="Which pixels move a network's score?", commands=commands)
    return version(group)


def _explain(  # noqa: PLR0917 (click passes them by name)
    images: Sequence[Path],
    output: Path,
    model: str | None,
    labels: Sequence[int] | None,
    method: str,
    batch_size: int,
    reducer: Reducer | None,
    overwrite: bool,
) -> None:
    """Explain what a model sees in IMAGES, which are files, or folders of them.

    Images that cannot be read are reported and left out; the exit status is then 1.
    """
    with one_line_errors():
        paths = image_paths(images)
        check_counts(paths, labels)
        with ExplanationFolder(output, overwrite=overwrite) as folder:
            vision = load_default() if model is None else load(model)
            explainer = METHODS[method](vision.network, reducer=reducer)

            def write(pixels: Any, names: Sequence[str], chosen: Any) -> _Written:
                explanations = explainer.explain(pixels, chosen)
                return explanations, folder.add(explanations, names)

            run = _Run(vision, output, write)
            run.explain(paths, labels, batch_size)
            folder.finish()
            run.finish(f"explained by {type(explainer).__name__} in {_printable(output)} ({MANIFEST}, {ARRAYS})")
    if run.failed:
        sys.exit(1)


def _report(  # noqa: PLR0917 (click passes them by name)
    images: Sequence[Path],
    output: Path,
    model: str | None,
    labels: Sequence[int] | None,
    layer: str | None,
    check: bool,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Write one page about IMAGES: their maps by several methods, and how far to believe them.

    Images are files, or folders of them. Those that cannot be read are reported and left out; the exit status is then
    1. The page is a single file, and needs no network.
    """
    ids = None if labels is None else ",".join(map(str, labels))
    given = {"--output": str(output), "--model": model, "--labels": ids, "--layer": layer}
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    options += [flag for flag, is_set in (("--check", check), ("--overwrite", overwrite)) if is_set]
    command = ["guided-backprop", "report", *options, "--", *map(str, images)]
    with one_line_errors():
        paths = image_paths(images)
        check_counts(paths, labels)
        check_ready(output, overwrite=overwrite)
        if check:
            # Without matplotlib the check cannot be drawn, which is better known now.
            figure_kind()
        vision = load_default() if model is None else load(model)
        page = Report(
            output, vision.network, name=vision.name, class_names=vision.class_names, layer=layer, overwrite=overwrite
        )

        def write(pixels: Any, names: Sequence[str], chosen: Any) -> _Written:
            # The last of the three methods: its coverage says what was guided.
            return page.add(pixels, names, chosen)[2], [{} for _ in names]

        run = _Run(vision, output, write)
        run.explain(paths, labels, batch_size)
        trust = []
        if check:
            batch = next(batch for batch in vision.batches(paths, _MOST_CHECKED) if batch.rows)
            trust = [randomised(checked(GuidedBackprop(vision.network, batch_size=batch_size), batch, labels))]
        page.finish(trust=trust, command=shlex.join(command))
        run.finish(f"reported in {_printable(output)} ({output.stat().st_size / 1e6:.1f} MB)")
    if run.failed:
        sys.exit(1)


class _Run:
    """One run of a command: batch after batch is read, explained, written, printed and dropped."""

    def __init__(self, vision: VisionModel, output: Path, write: Callable[[Any, Sequence[str], Any], _Written]) -> None:
        from rich.console import Console  # noqa: PLC0415

        # A pipe has no width: nothing is folded there.
        width = None if sys.stdout.isatty() else 10_000
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._vision, self._output, self._write = vision, output, write
        self._coverages: list[Coverage] = []
        self._head: str | None = None
        self._explained = 0
        self.failed = 0

    def explain(self, paths: Sequence[Path], labels: Sequence[int] | None, batch_size: int) -> None:
        import click  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        with Progress(console=self._console, transient=True, disable=not self._console.is_terminal) as progress:
            task = progress.add_task("explaining", total=len(paths))
            for batch in self._vision.batches(paths, batch_size):
                for failure in batch.failures:
                    click.echo(f"Error: {failure}", err=True)
                self.failed += len(batch.failures)
                if batch.rows:
                    chosen = labels_of(batch.rows, labels)
                    here = [paths[row] for row in batch.rows]
                    explanations, files = self._write(batch.images, [str(path) for path in here], chosen)
                    if labels is not None and not self._explained:
                        # A wrong label of the last image is found now, and not when all the others are done.
                        Target(labels, len(labels)).labels(explanations.outputs)
                    self._add(explanations, here, files)
                progress.advance(task, len(batch.rows) + len(batch.failures))
        if not self._explained:
            raise ImageError(
                f"at least one image must be readable; received {self.failed} that are not. "
                "Nothing was written: pass other files."
            )

    def finish(self, what: str) -> None:
        if self._head:
            self._console.print(f"scores: the logits in front of the model's {self._head}")
        self._console.print(f"coverage: {Coverage.merge(self._coverages)}")
        self._console.print(f"{self._explained} of {self._explained + self.failed} images {what}")

    def _add(self, explanations: Explanations, paths: Sequence[Path], files: Sequence[Mapping[str, str]]) -> None:
        self._coverages.append(explanations.coverage)
        self._head = explanations.head
        self._explained += len(paths)
        shares = probabilities(explanations.outputs, explanations.head)
        for row, (path, kinds) in enumerate(zip(paths, files, strict=True)):
            label, score = int(explanations.labels[row]), float(explanations.scores[row])
            facts = [("explained", f"{self._vision.class_name(label)}, score {score:.4g}")]
            if shares is not None:
                top = np.argsort(-shares[row], kind="stable")[:_TOP]
                facts += [(f"{shares[row, id_]:.1%}", self._vision.class_name(int(id_))) for id_ in top]
            facts += [(kind, _printable(self._output / name)) for kind, name in kinds.items()]
            _print_facts(self._console, path, facts)


def _print_facts(console: "Console", path: Path, facts: Sequence[tuple[str, str]]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=11, no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, fact)
    console.print(_printable(path), style="bold", soft_wrap=True)
    console.print(table)


def _printable(path: Path) -> str:
    """Return the path without the bytes and control characters that a terminal would choke on or obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(path))
