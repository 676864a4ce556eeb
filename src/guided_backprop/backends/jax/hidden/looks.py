"""What is seen of a program on the first images, and on others where those are no evidence."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import dropwhile

import jax
import jax.numpy as jnp
import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.evidence import FURTHER, NEAR, further_images, other_images
from guided_backprop.backends.jax.graph.program import Block, Program, Value
from guided_backprop.backends.jax.hidden.sums import blocks_of
from guided_backprop.backends.jax.hidden.taint import Nominee
from guided_backprop.backends.jax.hidden.watch import Asked, Seeded, Values, Way, across, steps_between, watched

#: The images themselves, and those that are made of them; what is far larger is looked at alone, and last.
NEAR_LOOKS = 1 + NEAR
#: Behind that one the further ones begin, and end before this one.
FURTHER_LOOKS = NEAR_LOOKS + 1
ALL_LOOKS = FURTHER_LOOKS + FURTHER
#: Of how many nominees derivatives are taken at once, and of how many numbers: to compile them takes longer than to run
#: them, but they are all kept.
MOST_AT_ONCE, MOST_NUMBERS = 32, 1 << 24

#: What is asked of a nominee at once.
Asks = Callable[[Value, Nominee], Sequence[Asked]]


@dataclass
class _Together:
    """What is asked at once of several nominees, which of it still holds, and the answers for each set of images."""

    asked: dict[Asked, None] = field(default_factory=dict)
    valid: set[Asked] = field(default_factory=set)
    looks: dict[int, dict[Asked, NumpyArray | None]] = field(default_factory=dict)


class Looks:
    """Runs one program on one set of images after the other, and keeps what was asked for.

    Args:
        program: the program.
        images: the first images, one array for each input.

    Attributes:
        nominees: what is to be judged, of which values may be asked for.
        pending: those of them that are to be judged still.
    """

    def __init__(self, program: Program, images: Sequence[jax.Array]) -> None:
        self.nominees: Mapping[Value, Nominee] = {}
        self.pending: Mapping[Value, Nominee] = {}
        self._together: dict[Asks, _Together] = {}
        self._gates: set[Value] = set()
        self._program, self._images = program, images
        self._seen: list[dict[Asked, NumpyArray | None]] = []
        self._runs: dict[Hashable, Values] = {}
        self._blocks: dict[Asked, Block] = {
            value: block for block in blocks_of(program.block) for value in _values_of(block)
        }
        # The inputs of each look: the images, and what is computed in front of where the gradient begins.
        self._given: dict[int, list[jax.Array]] = {}

    def seen(self, value: Value, looks: int, first: int = 0) -> NumpyArray | None:
        """Return what a value was on so many sets of images, one set behind the other; None if it was not computed.

        What came before the ``first`` set is left out.
        """
        while len(self._seen) < looks:
            self._seen.append(self.look(len(self._seen), self._wanted()))
        return _joined([look[value] for look in self._seen[first:looks]])

    def derivative(self, y: Value, x: Value, looks: int, asks: Asks) -> NumpyArray | None:
        """Return the derivative of y towards x on so many sets of images; None if it was not computed."""
        return _joined([self.together(y, number, asks)[asked_of(x, y)] for number in range(looks)])

    def begin(self, nominees: Mapping[Value, Nominee], gates: Iterable[Value]) -> None:
        """Say what is to be judged, and which values are ReLUs so far, which no gradient passes."""
        self.nominees, self.pending = self.nominees or nominees, nominees
        new, self._gates = set(gates) - self._gates, set(gates)
        for once in self._together.values() if new else ():
            once.valid = {key for key in once.valid if not self._passes(key, new)}

    def _passes(self, key: Asked, gates: set[Value]) -> bool:
        """Tell whether a derivative is another one now, as some values on its way are ReLUs."""
        if isinstance(key, Value) or (isinstance(key, Seeded) and key.way is not Way.AROUND):
            return False
        x, y = (key.x, key.y) if isinstance(key, Seeded) else key
        passed = (value for step in steps_between(x, y, self.nominees[y].block) for value in step.outputs)
        return any(value in gates and value is not y for value in passed)

    def together(self, y: Value, number: int, asks: Asks) -> dict[Asked, NumpyArray | None]:
        """Return what is asked of a nominee; of those behind it the same is found at once."""
        once = self._together.get(asks)
        if once is None or not once.valid.issuperset(asks(y, self.nominees[y])):
            once = self._together[asks] = self._gathered(y, asks)
        if number not in once.looks:
            once.looks[number] = self.look(number, list(once.asked))
        return once.looks[number]

    def _gathered(self, y: Value, asks: Asks) -> _Together:
        once, count, size = _Together(), 0, 0
        for value, nominee in dropwhile(lambda item: item[0] is not y, self.nominees.items()):
            asked = asks(value, nominee) if value is y or value in self.pending else ()
            count, size = count + bool(asked), size + sum(map(_size, asked))
            if once.asked and (count > MOST_AT_ONCE or size > MOST_NUMBERS):
                break
            once.asked |= dict.fromkeys(asked)
        once.valid = {*once.asked}
        return once

    def look(self, number: int, asked: Sequence[Asked]) -> dict[Asked, NumpyArray | None]:
        """Run the program on the images, the first time; on others that are made of them after that."""
        return self._run(tuple(asked), partial(watched, self._program.block, asked), number)

    def across(self, y: Value, number: int, xs: Sequence[Value]) -> dict[Asked, NumpyArray | None]:
        """Return the derivatives of a value towards values in other blocks, by these."""
        return self._run((across, y, *xs), partial(across, self._program.block, y, xs), number)

    def _run(self, key: Hashable, made: Callable[..., Values], number: int) -> dict[Asked, NumpyArray | None]:
        if key not in self._runs:
            self._runs[key] = made(self._places())
        if number not in self._given:
            self._given[number] = self._inputs(number)
        return self._runs[key](self._program.constants, self._given[number])

    def _wanted(self) -> list[Asked]:
        wanted = [value for y, nominee in self.nominees.items() for value in (y, *nominee.compared)]
        return list(dict.fromkeys(wanted))

    def _places(self) -> dict[Asked, Block]:
        places = dict(self._blocks)
        for y, nominee in self.nominees.items():
            for x in nominee.compared:
                places |= dict.fromkeys(((x, y), *(Seeded(x, y, way) for way in Way)), nominee.block)
            for one in nominee.choices:
                if (less := one.less) is not None:
                    pair = (Seeded(one.ref, y, beside=less), Seeded(less, y, beside=one.ref))
                    places |= dict.fromkeys(pair, nominee.block)
        return places

    def _inputs(self, number: int) -> list[jax.Array]:
        first, given = self._program.first, self._images
        if first is None:
            return [_others(images, number) for images in given]
        # Other values there, where the gradient begins: tokens have no others.
        inside = watched(first, [first.outputs[0]], {first.outputs[0]: first})(self._program.constants, list(given))
        (value,) = inside.values()
        begin = jnp.asarray(value, first.outputs[0].aval.dtype).reshape(first.outputs[0].aval.shape)
        return [*given, _others(begin, number)]


def asked_of(x: Value, y: Value) -> Asked:
    """Return what is asked for to know whether y is a gate of x: of several results of each number each counts."""
    return (x, y) if _size(x) == _size(y) else Seeded(x, y)


def _values_of(block: Block) -> list[Value]:
    return [*block.inputs, *(value for step in block.steps for value in step.outputs)]


def _size(asked: Asked) -> int:
    x = asked.x if isinstance(asked, Seeded) else asked[0] if isinstance(asked, tuple) else asked
    return int(np.prod(x.aval.shape))


def _joined(looks: Sequence[NumpyArray | None]) -> NumpyArray | None:
    computed = [look for look in looks if look is not None]
    return np.concatenate([np.atleast_1d(look) for look in computed]) if computed else None


def _others(images: jax.Array, number: int) -> jax.Array:
    """Return the images, or others of the same kind; integers stay what they are."""
    if number == 0 or not jnp.issubdtype(images.dtype, jnp.floating):
        return images
    array = np.asarray(images, np.float64)
    if number >= FURTHER_LOOKS:
        return jnp.asarray([*further_images(array)][number - FURTHER_LOOKS], images.dtype)
    others: Iterator[NumpyArray] = other_images(array)
    # Of several sizes as well: of two values alone nothing can be told.
    sizes = 1 + 0.5 * np.sin(np.arange(images.size, dtype=np.float64)).reshape(images.shape)
    return jnp.asarray([*others][number - 1] * sizes, images.dtype)
