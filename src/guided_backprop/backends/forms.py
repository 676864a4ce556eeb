"""What patterns of composite activations are written with besides operations: variables, constants, multiples."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A constant that is known to be this number."""

    value: float


@dataclass(frozen=True)
class Constant:
    """Any constant: a number, or a weight of the model's.

    Args:
        is_known: whether the graph has to tell which number it is (then not 0), or must not.
        name: what a match calls what stands for it; nothing if nobody asks.
    """

    is_known: bool | None = None
    name: str = ""


@dataclass(frozen=True)
class Times:
    """What ``inner`` stands for, times a constant: this number, or any if it is None, also none at all.

    Args:
        inner: what is multiplied.
        value: by what.
        is_told: whether a match tells the constant; then it has to be a number that the graph tells.
    """

    inner: "Form"
    value: float | None = None
    is_told: bool = False


@dataclass(frozen=True)
class Moved:
    """What ``inner`` stands for, with its values repeated or put into another shape."""

    inner: "Form"


@dataclass(frozen=True)
class Clipped:
    """A ReLU of what ``inner`` stands for, or a ReLU of that, with whatever cap and threshold."""

    inner: "Form"


@dataclass(frozen=True)
class Curve:
    """Any function of one variable alone, value by value, that is made with all of some operations.

    Args:
        variable: what it is a function of.
        holding: the operations, as words; of alternatives ``"a|b"`` one is enough.
    """

    variable: "Variable"
    holding: frozenset[str]


@dataclass(frozen=True)
class Variable:
    """Any value that depends on the images; the same one wherever it stands in a pattern."""

    name: str


#: What a value may be; an operation is a tuple of its word and of the forms of its operands.
Form = Variable | Number | Constant | Times | Moved | Clipped | Curve | tuple[object, ...]
