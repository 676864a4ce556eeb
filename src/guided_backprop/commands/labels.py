"""The option ``--labels``: class ids, names of classes, or the best of each image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import click
from click.decorators import FC

from guided_backprop.errors import LabelError
from guided_backprop.labels.names import class_id

_MEANING = (
    "Class ids or names: one for all images, or one per image; or top5, the five best of each. "
    "[default: the class with the highest score]"
)
#: What is said of the option where each image has one label.
ONE_LABEL = "Class ids or names: one for all images, or one per image. [default: the class with the highest score]"


@dataclass(frozen=True)
class ChosenLabels:
    """What is to be explained, as it was typed.

    Attributes:
        typed: the text.
        names: ids and names, one for all images or one per image; none where the best are meant.
    """

    typed: str
    names: Sequence[str] = ()

    @classmethod
    def parse(cls, _context: click.Context, _option: click.Parameter, typed: str | None) -> Self | None:
        """Return what an option's text asks for."""
        if typed is None:
            return None
        is_best = re.fullmatch(r"top\d+", typed) is not None
        return cls(typed, () if is_best else [name.strip() for name in typed.split(",")])

    @property
    def asked(self) -> str | Sequence[str]:
        """What is asked for, as :class:`guided_backprop.Job` takes it."""
        return self.names if len(self.names) > 1 else self.typed.strip()

    def check(self, images: int) -> None:
        """Refuse labels that are neither one nor as many as images.

        Raises:
            LabelError: they are not, or are several of each image.
        """
        if not self.names:
            raise LabelError(
                f"labels must be one per image here; received {self.typed!r}. Pass an id or a name, or nothing."
            )
        if len(self.names) not in (1, images):
            raise LabelError(
                f"labels must be one for all images, or one per image; received {len(self.names)} labels for "
                f"{images} images. Give as many labels as images, or one."
            )

    def resolve(self, class_names: Sequence[str]) -> list[int]:
        """Return the class ids.

        Raises:
            LabelError: a name is of no class, or of several.
        """
        return [class_id(name, class_names) for name in self.names]


def labels_option(meaning: str = _MEANING) -> Callable[[FC], FC]:
    """Return the option for labels."""
    return click.option("--labels", metavar="LABEL[,LABEL...]", callback=ChosenLabels.parse, help=meaning)
