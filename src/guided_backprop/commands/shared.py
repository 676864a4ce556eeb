"""What the commands share: options that are the same in each, how labels are read, and errors in one line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guided_backprop.errors import GuidedBackpropError, LabelError, OptionError
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Method, Saliency

METHODS: Mapping[str, type[Method]] = {
    "guided-backprop": GuidedBackprop,
    "deconvnet": DeconvNet,
    "saliency": Saliency,
}
MODEL_HELP = (
    "A function without arguments that returns a torch.nn.Module or (module, preprocess). [default: EfficientNet-Lite0]"
)
LABELS_HELP = "Class ids: one for all images, or one per image. [default: the class with the highest score]"
BATCH_HELP = "Images read and explained at once. Of the others only attributions are held in memory."


def parse_labels(_context: Any, _option: Any, text: str | None) -> list[int] | None:
    """Return class ids from an option's text."""
    import click  # noqa: PLC0415

    if text is None:
        return None
    try:
        return [int(label) for label in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"labels must be integers separated by commas; received {text!r}. Pass for example 281,282."
        ) from error


def check_counts(paths: Sequence[Path], labels: Sequence[int] | None) -> None:
    """Raise unless there are images, and one label for all of them or one for each."""
    if not paths:
        raise OptionError("IMAGES must contain an image; received folders without any. Pass a folder of image files.")
    if labels is not None and len(labels) not in (1, len(paths)):
        raise LabelError(
            f"labels must be one for all images, or one per image; received {len(labels)} labels for "
            f"{len(paths)} images. Give as many labels as images, or one."
        )


def labels_of(rows: Sequence[int], labels: Sequence[int] | None) -> list[int] | int | None:
    """Return the labels of the images at ``rows``: labels count unreadable images too."""
    if labels is None:
        return None
    return labels[0] if len(labels) == 1 else [labels[row] for row in rows]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Let click print what the library or the file system refuses: one line, no traceback."""
    import click  # noqa: PLC0415

    try:
        yield
    except (GuidedBackpropError, OSError) as error:
        failure = click.ClickException(str(error))
        if isinstance(error, OptionError | LabelError):
            failure.exit_code = 2  # type: ignore[misc]  # click's own way, declared on the class only
        raise failure from error
