"""From what a user asks for to one of the forms of labels."""

from collections.abc import Callable

from guided_backprop.arrays import Array, Labels
from guided_backprop.errors import LabelError
from guided_backprop.labels.box import BoxLabel
from guided_backprop.labels.classes import AllClasses, TopClasses
from guided_backprop.labels.entries import Entries
from guided_backprop.labels.function import Function
from guided_backprop.labels.label import Label
from guided_backprop.labels.mask import Mask
from guided_backprop.labels.numbers import Numbers
from guided_backprop.labels.strongest import Strongest

# Each returns None for labels of another form; numbers come last, since they try to make an array of anything.
_FORMS: tuple[Callable[[Labels, int, Mask | None], Label | None], ...] = (
    BoxLabel.parse,
    TopClasses.parse,
    AllClasses.parse,
    Strongest.parse,
    Entries.parse,
    Function.parse,
    Numbers.parse,
)
_ADVICE = 'Pass class ids, None, "top5" or another number, "all", "max", or weights of the output\'s shape.'


def parse_label(labels: Labels, count: int, mask: Array | None = None) -> Label:
    """Return what is explained in a batch of ``count`` images.

    Args:
        labels: one of

            * class ids, ``(N,)`` integers or one integer for all images: that channel, summed over positions;
            * ``(N, K)`` integers: K of these for each image;
            * None: the channel with the highest sum; ``"top5"``: the five highest; ``"all"``: all, in their order;
            * a tuple ``(channel, row, column)``: that entry, for all images; a list of tuples: one per image;
            * ``(channel, "max")``: a channel at its strongest position; ``"max"``: every channel at its own;
            * weights of the output's shape, a one-hot row being one case;
            * a :class:`guided_backprop.Box`: a box that a detector finds;
            * a callable from the output, a tensor of the framework, to ``(N,)``.
        count: the number of images.
        mask: with class ids, None or "top5": the positions that count, ``(...)`` or ``(N, ...)``.

    Raises:
        LabelError: the labels are none of these, or are not one per image.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.labels.parse import parse_label
        >>> parse_label([1, 0], count=2).weigh(np.zeros((2, 3)))[0].tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    positions = None if mask is None else Mask.parse(mask, count)
    # An array is of numbers, and no other form; a string of NumPy's is one of words.
    is_array = hasattr(labels, "__array__") and not isinstance(labels, str)
    for form in _FORMS[-1:] if is_array else _FORMS:
        label = form(labels, count, positions)
        if label is not None:
            return label
    needed = '"all", "max" or "top5" if they are a word' if isinstance(labels, str) else "numbers"
    raise LabelError(f"labels must be {needed}; received labels={labels!r:.80}. {_ADVICE}")
