"""What people read of a label: the name of its class, or in words what else was explained."""

from collections.abc import Mapping, Sequence

import numpy as np

from guided_backprop.arrays import NumpyArray

#: The names of classes, in class order or by class id.
ClassNames = Sequence[str] | Mapping[int, str]


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
