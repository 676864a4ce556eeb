"""What people read of a label: the name of its class, or in words what else was explained."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.errors import LabelError

# How many names an error names.
_NEAREST = 5

#: The names of classes, in class order or by class id.
ClassNames = Sequence[str] | Mapping[int, str]
#: Class ids or names: one for all photos, or one for each; "top5", "all", or None for the class of the highest score.
PhotoLabels = int | str | Sequence[int | str] | None


def label_text(label: NumpyArray | np.generic | int, class_names: ClassNames = ()) -> str:
    """Return what people read of one label, a row of a record's: ``class 3``, or ``3 cat`` where the name is known.

    Example:
        >>> from guided_backprop.labels.names import label_text
        >>> label_text(3), label_text(0, ["cat", "dog"])
        ('class 3', '0 cat')
    """
    kind = np.asarray(label).dtype.kind
    if np.ndim(label):
        return f"output {tuple(map(int, np.asarray(label)))}" if kind == "i" else "weighted outputs"
    if kind == "U":
        return str(label)
    names = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    return f"{label} {names[int(label)]}" if int(label) in names else f"class {label}"


def class_id(name: str | int | np.integer[Any], class_names: Sequence[str]) -> int:
    """Return the id of a class by its id, by its name, or by one of its names, "tabby" of "tabby, tabby cat".

    Raises:
        LabelError: a name is of no class, or of several.

    Example:
        >>> from guided_backprop.labels.names import class_id
        >>> class_id("Tabby", ["dog", "tabby, tabby cat"]), class_id("0", ["dog"])
        (1, 0)
    """
    if not isinstance(name, str) or re.fullmatch(r"-?\d+", name):
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
            "Pass an id, or name the classes (classes=, --classes names.txt)."
        )
    raise LabelError(f"labels must be class ids or names; received {name!r}. {_nearest(name.casefold(), by_name)}")


def class_ids(labels: PhotoLabels, class_names: Sequence[str], count: int) -> list[int] | int | str | None:
    """Return class ids for the labels of so many photos, of which some may be names; None and "top5" as they are.

    Raises:
        LabelError: a name is of no class, or of several; or labels are neither one nor one for each photo.

    Example:
        >>> from guided_backprop.labels.names import class_ids
        >>> class_ids(["tabby", 3], ["dog", "tabby"], 2), class_ids("top5", [], 2)
        ([1, 3], 'top5')
    """
    if labels is None or (isinstance(labels, str) and re.fullmatch(r"top\d+|all", labels)):
        return labels
    if isinstance(labels, str | int | np.integer):
        return class_id(labels, class_names)
    if len(labels) != count:
        raise LabelError(
            f"labels must be one for all photos, or one for each; received {len(labels)} labels for {count} photos. "
            "Give as many labels as photos, or one."
        )
    return [class_id(label, class_names) for label in labels]


def _nearest(name: str, by_name: dict[str, list[int]]) -> str:
    within = sorted((known for known in by_name if name in known), key=len)
    alike = get_close_matches(name, by_name, n=_NEAREST, cutoff=0.6)
    near = list(dict.fromkeys([*within, *alike]))[:_NEAREST]
    return f"Names like it: {', '.join(near)}." if near else "No name is like it: pass an id."
