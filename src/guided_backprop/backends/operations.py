"""What an operation is: one vocabulary for the tables of all frameworks.

Each framework has one table, from its own names of operations to rows. Whatever else has to know operations by name
reads it, so a new operation is one row. An operation without a row is unknown: it may hide a ReLU, and is looked at
like one.
"""

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What an operation does with values, as far as a ReLU can hide in it."""

    #: Moves, copies, repeats or casts values, or leaves some out; which ones, no value says.
    MOVES = auto()
    #: Is linear in each of its operands: sums, products, convolutions, means.
    LINEAR = auto()
    #: Is a ReLU, or is one with the right bounds.
    RELU = auto()
    #: Bounds values, and may be a ReLU or a part of one: maximum, minimum, clamp.
    CLIP = auto()
    #: A curve of each value: exp, tanh, GELU.
    SMOOTH = auto()
    #: What a classifier may end in: softmax, sigmoid and their logarithms.
    HEAD = auto()
    #: Chooses among values by their size: pooling, sorting, the largest of many.
    CHOOSES = auto()
    #: Puts values where a mask or an index says, which may come from other values: where, masked_fill, scatter.
    MASKS = auto()
    #: Tells something of values and passes no gradient: comparisons, signs, rounding, positions of a maximum.
    COMPARES = auto()
    #: Normalises by statistics of its own operand.
    NORM = auto()
    #: Draws random numbers, or drops values at random.
    RANDOM = auto()
    #: Holds other operations, which are looked at one by one: loops, branches, calls.
    HOLDS = auto()
    #: Holds other operations that cannot be looked at.
    HIDDEN = auto()
    #: Has no row.
    UNKNOWN = auto()


#: What the coverage lists when it lies between score and image. Operations that draw or compare pass no gradient, or
#: are refused; those that mask are listed where they turn out to be ReLUs.
LISTED = frozenset({Kind.RELU, Kind.CLIP, Kind.SMOOTH, Kind.HEAD, Kind.CHOOSES, Kind.NORM, Kind.HIDDEN, Kind.UNKNOWN})

#: The names of non-linearities in the coverage, the same in every framework. NumPy's, else the field's.
NONLINEARITIES = frozenset(
    """
    abs acos acosh asin asinh atan atan2 atanh bessel betainc cbrt celu cholesky clamp cos cosh cumprod dawson det
    digamma dilation div eig elu entr erf erfc erfinv exp expint expm1 fake_quant fresnel gamma gelu glu group_norm
    gru hardshrink hardsigmoid hardswish huber_loss hypot igamma instance_norm inv isotonic layer_norm leaky_relu
    lgamma local_response_norm log log1p log_sigmoid log_softmax logaddexp logsumexp lstm lu max max_pool maximum
    min minimum mish modulo nan_to_num ndtri norm polygamma pow prelu prod qr relu relu6 renorm rms_norm rnn rrelu
    rsqrt scaled_dot_product_attention selu sigmoid silu sin sinc sinh softmax softplus softshrink softsign sort
    sparse_plus sparse_sigmoid sparsemax spence sqrt squareplus svd tan tanh weight_norm xlogy zeta
    """.split()
)

#: They give whole numbers next to those that they are given.
ROUNDS = frozenset({"ceil", "floor", "rint", "round"})
#: They are the same operation of integers and of other numbers; what they choose by stays as it is.
ALIKE = frozenset(
    """
    abs add broadcast clamp concatenate copy cumsum flip identity matmul max maximum mean min minimum mul neg pad pow
    relu reshape slice split squeeze stack sub sum transpose where
    """.split()
)


class Operation(NamedTuple):
    """A row of a table.

    Attributes:
        kind: what the operation does.
        word: its name in the vocabulary of all frameworks: "add", "exp", "maximum". What the coverage lists goes by it
            there.
    """

    kind: Kind
    word: str


class Table(Mapping[str, Operation]):
    """The operations of one framework, by its own names for them.

    Args:
        rows: for each kind the operations of it, as ``"name"`` where the vocabulary says the same, or ``"name=word"``.
    """

    def __init__(self, rows: Mapping[Kind, str]) -> None:
        self._rows: dict[str, Operation] = {}
        for kind, operations in rows.items():
            for operation in operations.split():
                name, _, word = operation.partition("=")
                if name in self._rows:
                    raise ValueError(f"an operation has one row; received {name!r} twice. Leave one out.")
                self._rows[name] = Operation(kind, word or name)

    def __getitem__(self, name: str) -> Operation:
        """Return the row of an operation; one that has none is unknown, and goes by its own name."""
        return self._rows.get(name) or Operation(Kind.UNKNOWN, name)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, *kinds: Kind) -> frozenset[str]:
        """Return the framework's names of all operations of these kinds."""
        return frozenset(name for name, row in self._rows.items() if row.kind in kinds)

    def called(self, *words: str) -> frozenset[str]:
        """Return the framework's names of all operations that go by these words."""
        return frozenset(name for name, row in self._rows.items() if row.word in words)
