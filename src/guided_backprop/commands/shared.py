"""What the commands share: options, the photos and labels that are asked for, and errors in one line.

Needs click: :func:`guided_backprop.commands.main.command` asks for it before it imports any command.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
from click.decorators import FC

from guided_backprop.commands.labels import ChosenLabels
from guided_backprop.errors import GuidedBackpropError, LabelError, OptionError
from guided_backprop.methods.named import METHODS
from guided_backprop.models import Batch, VisionModel
from guided_backprop.photos import Skipped, photo_files

PATH = click.Path(path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1)
# How many files that were skipped are named for each reason.
_MOST_NAMES = 10


images_argument = click.argument("images", nargs=-1, required=True, type=PATH)
method_option = click.option("--method", type=click.Choice(METHODS), default="guided-backprop", show_default=True)
layer_option = click.option("--layer", help="A convolutional layer, for grad-cam and guided-gradcam.")


def batch_size_option(meaning: str = "Images read and explained at once.") -> Callable[[FC], FC]:
    """Return the option for the number of images that are explained at once."""
    return click.option("--batch-size", type=AT_LEAST_ONE, default=16, show_default=True, help=meaning)


@dataclass(frozen=True)
class Photos:
    """The image files that a command is given, and the labels to explain.

    Attributes:
        paths: the files.
        labels: class ids, one for all or one per file; or None for the best class.
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None = None

    @classmethod
    def given(cls, arguments: Sequence[Path], labels: ChosenLabels | None) -> Self:
        """Return the files, and those in folders, as yet without labels, which have to be named by the model.

        What else is in folders is told on standard error.

        Raises:
            OptionError: there are none.
            LabelError: labels are neither one nor as many as files, or several of each.
        """
        paths, skipped = photo_files(arguments)
        print_skipped(skipped)
        if not paths:
            raise OptionError(
                "IMAGES must contain an image; received folders without any. Pass a folder of image files."
            )
        if labels is not None:
            labels.check(len(paths))
        return cls(paths)

    def labelled(self, labels: ChosenLabels | None, vision: VisionModel) -> "Photos":
        """Return the same files with labels.

        Raises:
            LabelError: a name is of none of the model's classes.
        """
        return Photos(self.paths, None if labels is None else labels.resolve(vision.class_names))

    def labels_of(self, batch: Batch) -> list[int] | int | None:
        """Return the labels of the images of a batch that could be read: labels count the others too."""
        if self.labels is None:
            return None
        return self.labels[0] if len(self.labels) == 1 else [self.labels[row] for row in batch.rows]


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """Say what was found in folders and left there, and why: a line for each reason."""
    for reason in dict.fromkeys(one.reason for one in skipped):
        names = [one.path.name for one in skipped if one.reason == reason]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        click.echo(f"Skipped ({reason}): {', '.join(map(printable, names[:_MOST_NAMES]))}{more}", err=True)


def printable(path: Path | str) -> str:
    """Return the path without the bytes and control characters that a terminal would choke on or obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(path))


def size_text(size: int) -> str:
    """Return bytes for people: ``1.2 MB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


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
