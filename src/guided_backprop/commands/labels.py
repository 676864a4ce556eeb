"""The option ``--labels``: class ids, names of classes, or the best of each image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

import click
from click.decorators import FC

from guided_backprop.errors import LabelError

_NEAREST = 5
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

    def check(self, images: int, *, is_single: bool) -> None:
        """Refuse labels that are neither one nor as many as images.

        Raises:
            LabelError: they are not, or several of each image where that can't be.
        """
        if not self.names and is_single:
            raise LabelError(
                f"labels must be one per image here; received {self.typed!r}. Pass an id or a name, or nothing."
            )
        if self.names and len(self.names) not in (1, images):
            raise LabelError(
                f"labels must be one for all images, or one per image; received {len(self.names)} labels for "
                f"{images} images. Give as many labels as images, or one."
            )

    def resolve(self, class_names: Sequence[str]) -> list[int] | str:
        """Return the class ids, or "top5" as it is.

        Raises:
            LabelError: a name is of no class, or of several.
        """
        return [_id(name, class_names) for name in self.names] if self.names else self.typed


def labels_option(meaning: str = _MEANING) -> Callable[[FC], FC]:
    """Return the option for labels."""
    return click.option("--labels", metavar="LABEL[,LABEL...]", callback=ChosenLabels.parse, help=meaning)


def _id(name: str, class_names: Sequence[str]) -> int:
    """Return the id of a class by its id, by its name, or by one of its names, "tabby" of "tabby, tabby cat"."""
    if re.fullmatch(r"-?\d+", name):
        return int(name)
    by_name: dict[str, list[int]] = {}
    for label, described in enumerate(class_names):
        for one in {described.casefold(), *(part.strip() for part in described.casefold().split(","))}:
            by_name.setdefault(one, []).append(label)
    labels = by_name.get(name.casefold(), [])
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise LabelError(
            f"labels must be of one class each; received {name!r}, of which there are several. "
            f"Pass an id: {', '.join(f'{label} {class_names[label]}' for label in labels)}."
        )
    if not class_names:
        raise LabelError(
            f"labels must be class ids, for the model's classes have no names; received {name!r}. "
            "Pass an id, or name the classes: --classes names.txt."
        )
    raise LabelError(f"labels must be class ids or names; received {name!r}. {_nearest(name.casefold(), by_name)}")


def _nearest(name: str, by_name: dict[str, list[int]]) -> str:
    within = sorted((known for known in by_name if name in known), key=len)
    alike = get_close_matches(name, by_name, n=_NEAREST, cutoff=0.6)
    near = list(dict.fromkeys([*within, *alike]))[:_NEAREST]
    return f"Names like it: {', '.join(near)}." if near else "No name is like it: pass an id."
