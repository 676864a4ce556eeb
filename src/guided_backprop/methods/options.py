"""What the options of methods must be: one row an option, one form of error."""

from typing import NamedTuple

import numpy as np

from guided_backprop.errors import OptionError
from guided_backprop.subject import brief


class Requirement(NamedTuple):
    """What one option must be.

    Attributes:
        name: the option's name.
        value: what was passed.
        is_met: whether it is what it must be.
        needed: what it must be, in words.
        advice: the one thing to do.
    """

    name: str
    value: object
    is_met: bool
    needed: str
    advice: str


def require(*requirements: Requirement) -> None:
    """Raise OptionError for the first option that is not what it must be."""
    for name, value, is_met, needed, advice in requirements:
        if not is_met:
            raise OptionError(f"{name} must be {needed}; received {name}={brief(value)}. {advice}")


def is_integer(value: object, least: int) -> bool:
    """Tell whether this is an integer, and no boolean, of at least ``least``."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: object) -> bool:
    """Tell whether this is a real number, and no boolean."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
