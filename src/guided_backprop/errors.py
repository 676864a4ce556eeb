"""Every error the library raises on purpose.

    GuidedBackpropError
    ├── ImageError (ValueError)            the images cannot be explained
    ├── LabelError (ValueError)            the labels do not index the model's output
    ├── OptionError (ValueError)           an option has a value that is not offered
    ├── ModelError (ValueError)            the model cannot be explained as it is
    │   ├── NoReluError                    there is no ReLU for the rule to act on
    │   └── OpaqueRegionError              a part of the model hides what it computes
    ├── ScoreError (ValueError)            the score does not depend on the image, or is not finite
    ├── OutOfMemoryError (MemoryError)     one image alone does not fit
    ├── MissingExtraError (ImportError)    an optional part is not installed
    ├── JobError (ValueError)              a job's folder is not what it must be, or another process is at it
    ├── OutputExistsError (FileExistsError)
    └── OutputError (OSError)              what was made cannot be written where it should be

Every message reads "<what must hold>; received <name>=<value>. <the one thing to do>."
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class GuidedBackpropError(Exception):
    """The root: catch this to catch everything the library raises on purpose."""


class ImageError(GuidedBackpropError, ValueError):
    """The images have a shape, dtype or value that cannot be explained."""


class LabelError(GuidedBackpropError, ValueError):
    """The labels do not index or weigh the model's output."""


class OptionError(GuidedBackpropError, ValueError):
    """An option has a value that is not offered."""


class ModelError(GuidedBackpropError, ValueError):
    """The model cannot be explained as it is: its map would be wrong, random or not exist."""


class NoReluError(ModelError):
    """No ReLU lies between score and image, so the map would be the plain gradient."""


class OpaqueRegionError(ModelError):
    """A part of the model hides its ReLUs, so the map could be silently wrong."""


class ScoreError(GuidedBackpropError, ValueError):
    """The score does not depend on the image, or the score or its gradient is not finite."""


class OutOfMemoryError(GuidedBackpropError, MemoryError):
    """The memory does not suffice for a single image.

    Attributes:
        finished: what was explained before: for each method the explanations of the first images; empty if none.
    """

    def __init__(self, message: str, finished: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.finished = finished


class MissingExtraError(GuidedBackpropError, ImportError):
    """An optional part is not installed."""


class JobError(GuidedBackpropError, ValueError):
    """A job's folder cannot be written or read, is of another job, is damaged, or another process is at it."""


class OutputExistsError(GuidedBackpropError, FileExistsError):
    """The output folder exists and may not be overwritten."""


class OutputError(GuidedBackpropError, OSError):
    """The system refuses to write what was made: the folder's name, the permission, or the disk's room."""


@contextmanager
def refused_as(error_of: Callable[[str], GuidedBackpropError]) -> Iterator[None]:
    """Raise what the system refuses, but for our own errors, as the one that is made of its reason.

    Example:
        >>> from guided_backprop.errors import OutputError, refused_as
        >>> with refused_as(lambda reason: OutputError(f"folder must be writable; received {reason}. Choose another.")):
        ...     open("/no/such/folder/file", "w")
        Traceback (most recent call last):
        guided_backprop.errors.OutputError: folder must be writable; received No such file or directory. Choose another.
    """
    try:
        yield
    except GuidedBackpropError:
        raise
    except (OSError, ValueError) as error:
        raise error_of(getattr(error, "strerror", None) or str(error)) from error
