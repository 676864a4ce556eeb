"""What the commands share: options, the photos and labels that are asked for, and errors in one line.

Needs click: :func:`guided_backprop.commands.main.command` asks for it before it imports any command.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
from click.decorators import FC

from guided_backprop.errors import GuidedBackpropError, LabelError, OptionError
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.methods.method import Method
from guided_backprop.models import Batch, VisionModel, image_paths, load, load_default

METHODS: Mapping[str, type[Method]] = {
    "guided-backprop": GuidedBackprop,
    "deconvnet": DeconvNet,
    "saliency": Saliency,
}
PATH = click.Path(path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1)


def _parse_labels(_context: click.Context, _option: click.Parameter, text: str | None) -> list[int] | None:
    """Return class ids from an option's text."""
    if text is None:
        return None
    try:
        return [int(label) for label in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"labels must be integers separated by commas; received {text!r}. Pass for example 281,282."
        ) from error


images_argument = click.argument("images", nargs=-1, required=True, type=PATH)
model_option = click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="A function without arguments that returns a torch.nn.Module or (module, preprocess). "
    "[default: EfficientNet-Lite0]",
)
method_option = click.option("--method", type=click.Choice(list(METHODS)), default="guided-backprop", show_default=True)


_LABELS = "Class ids: one for all images, or one per image. [default: the class with the highest score]"
_BATCH_SIZE = "Images read and explained at once. Of the others only attributions are held in memory."


def labels_option(meaning: str = _LABELS) -> Callable[[FC], FC]:
    """Return the option for class ids."""
    return click.option("--labels", metavar="ID[,ID...]", callback=_parse_labels, help=meaning)


def batch_size_option(meaning: str = _BATCH_SIZE) -> Callable[[FC], FC]:
    """Return the option for the number of images that are explained at once."""
    return click.option("--batch-size", type=AT_LEAST_ONE, default=16, show_default=True, help=meaning)


@dataclass(frozen=True)
class Photos:
    """The image files that a command is given, and the class ids to explain: one for all, one per file, or None."""

    paths: Sequence[Path]
    labels: Sequence[int] | None

    @classmethod
    def given(cls, arguments: Sequence[Path], labels: Sequence[int] | None) -> Self:
        """Return the files, and those in folders.

        Raises:
            OptionError: there are none.
            LabelError: labels are neither one nor as many as files.
        """
        paths = image_paths(arguments)
        if not paths:
            raise OptionError(
                "IMAGES must contain an image; received folders without any. Pass a folder of image files."
            )
        if labels is not None and len(labels) not in (1, len(paths)):
            raise LabelError(
                f"labels must be one for all images, or one per image; received {len(labels)} labels for "
                f"{len(paths)} images. Give as many labels as images, or one."
            )
        return cls(paths, labels)

    def labels_of(self, batch: Batch) -> list[int] | int | None:
        """Return the labels of the images of a batch that could be read: labels count the others too."""
        if self.labels is None:
            return None
        return self.labels[0] if len(self.labels) == 1 else [self.labels[row] for row in batch.rows]


def load_model(specification: str | None) -> VisionModel:
    """Load the model that ``--model`` names, or the default one."""
    return load_default() if specification is None else load(specification)


def print_failures(batch: Batch) -> None:
    """Say which images could not be read, and why."""
    for failure in batch.failures:
        click.echo(f"Error: {failure}", err=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Let click print what the library or the file system refuses: one line, no traceback."""
    try:
        yield
    except (GuidedBackpropError, OSError) as error:
        failure = click.ClickException(str(error))
        if isinstance(error, OptionError | LabelError):
            failure.exit_code = 2  # type: ignore[misc]  # click's own way, declared on the class only
        raise failure from error
