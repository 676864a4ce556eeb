"""Runs a program once to see values inside of it: those of loops for all their turns, and derivatives between two."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.jax.graph.calls import loop_sizes
from guided_backprop.backends.jax.graph.program import CUSTOM, REMATS, Block, Step, Value
from guided_backprop.backends.jax.hidden.unrounded import declared, unrounded


class Way(Enum):
    """Where gradients pass."""

    #: Around all ReLUs that are guided.
    AROUND = auto()
    #: As the model's own do.
    OWN = auto()
    #: As if nothing stopped them.
    TOTAL = auto()
    #: The same, and as if nothing rounded.
    UNROUNDED = auto()


@dataclass(frozen=True)
class Seeded:
    """The derivative of y towards x, of each number of y times another one.

    If ``beside`` is given, none comes through that value, nor to it through x: as if both were given, and not computed.
    """

    x: Value
    y: Value
    way: Way = Way.AROUND
    beside: Value | None = None


#: A value, or what the second is differentiated by.
Asked = Value | tuple[Value, Value] | Seeded
#: For each that was asked for: its values, and whether they were computed, each with an axis for each loop around it.
Found = dict[Asked, tuple[Array, Array]]


class Watch:
    """Runs blocks as they are, and keeps what is asked for.

    Args:
        constants: the arrays that the model closed over.
        asked: the values, and the pairs ``(x, y)`` of which the derivative of y by x is wanted.
        places: the block that each is in.
        way: where gradients pass.
        added: what is added to some of the values that are asked for, in all turns of the loops around them.
    """

    def __init__(
        self,
        constants: Sequence[Array],
        asked: Iterable[Asked],
        places: Mapping[Asked, Block],
        way: Way = Way.AROUND,
        added: Mapping[Asked, Array] | None = None,
    ) -> None:
        self._constants, self._way, self._added = constants, way, added or {}
        self._asked: dict[int, list[Asked]] = {}
        # What is asked for twice is answered once.
        for key in dict.fromkeys(asked):
            self._asked.setdefault(id(places[key]), []).append(key)

    def run(self, block: Block, inputs: Sequence[Array]) -> tuple[dict[Value, Array], Found]:
        """Run a block; return all its values, and what was asked for of it and of the blocks inside."""
        arrays = {value: self._raised(value, array) for value, array in zip(block.inputs, inputs, strict=True)}
        answers: Found = {}
        for step in block.steps:
            operands = [self._read(value, arrays) for value in step.inputs]
            results = self._step(step, operands, answers)
            cut = [self._cut(value, result) for value, result in zip(step.outputs, results, strict=True)]
            arrays.update((value, self._raised(value, result)) for value, result in zip(step.outputs, cut, strict=True))
        asked = self._asked.get(id(block), ())
        found = self._derivatives_of(asked, block, arrays)
        for key in asked:
            answers[key] = arrays[key] if isinstance(key, Value) else found[key], jnp.ones((), bool)
        return arrays, answers

    def _derivatives_of(
        self, asked: Sequence[Asked], block: Block, arrays: Mapping[Value, Array]
    ) -> dict[Asked, Array]:
        """Return the derivatives that are asked for; those of one value on one way are taken at once."""
        found: dict[Asked, Array] = {}
        groups: dict[tuple[Value, Way | None, frozenset[Value]], dict[Value, list[Asked]]] = {}
        for key in asked:
            if not isinstance(key, Value):
                x, y = (key.x, key.y) if isinstance(key, Seeded) else key
                way = key.way if isinstance(key, Seeded) else None
                groups.setdefault((y, way, _given(key, block)), {}).setdefault(x, []).append(key)
        for (y, way, given), keys in groups.items():
            # One of its own: what is asked for inside of loops is not asked for on the way.
            watch = Watch(self._constants, (), {}, self._way if way is None else way)
            seed = jnp.ones_like if way is None else seeds
            derived = watch._derivatives(list(keys), y, block, arrays, seed, given=given)
            for same, array in zip(keys.values(), derived, strict=True):
                found.update(dict.fromkeys(same, array))
        return found

    @property
    def _stops_nothing(self) -> bool:
        return self._way in (Way.TOTAL, Way.UNROUNDED)

    def _read(self, value: Value, arrays: Mapping[Value, Array]) -> Array:
        if value.literal is not None:
            return jnp.asarray(value.literal, value.aval.dtype)
        return self._constants[value.constant] if value.constant is not None else arrays[value]

    def _holds(self, step: Step) -> bool:
        """Tell whether inside of a step something is asked for, or a gradient passes otherwise than the model's own."""
        return any(
            id(block) in self._asked or any(self._holds(inner) or self._is_other(inner) for inner in block.steps)
            for block in step.blocks
        )

    def _is_other(self, step: Step) -> bool:
        """Tell whether a gradient passes a step otherwise than the model's own."""
        if self._stops_nothing:
            return step.word == "stop_gradient" or _is_shown(step)
        return self._way is Way.AROUND and any(map(_is_guided, step.outputs))

    def _cut(self, value: Value, result: Array) -> Array:
        """Let no gradient pass a ReLU that is guided, if all are to be gone around: what is left of one did."""
        return jax.lax.stop_gradient(result) if self._way is Way.AROUND and _is_guided(value) else result

    def _raised(self, value: Value, result: Array) -> Array:
        return result + self._added[value] if value in self._added else result

    def _step(self, step: Step, operands: list[Array], answers: Found) -> list[Array]:
        if self._way is Way.UNROUNDED:
            if (results := unrounded(step, operands)) is not None:
                return results
            operands = [declared(operand, value) for operand, value in zip(operands, step.inputs, strict=True)]
        if self._stops_nothing and step.word == "stop_gradient":
            return operands
        if self._stops_nothing and _is_shown(step):
            return self._block(step.blocks[0], operands)[0]
        if not self._holds(step):
            return step.run(operands)
        if step.word == "scan":
            return self._scan(step, operands, answers)
        if step.word == "cond":
            return self._cond(step, operands, answers)
        if step.name in REMATS:
            results, inner = self._block(step.blocks[0], operands)
            answers.update(inner)
            return list(results)
        return step.run(operands)

    def _block(self, block: Block, operands: Sequence[Array]) -> tuple[list[Array], Found]:
        arrays, answers = self.run(block, operands)
        return [declared(self._read(value, arrays), value) for value in block.outputs], answers

    def _scan(self, step: Step, operands: list[Array], answers: Found) -> list[Array]:
        params = step.eqn.params
        start, carried = loop_sizes(params)
        keys: list[Asked] = []
        inside = {key: self._added[key] for key in self._keys(step.blocks[0]) if key in self._added}
        watch = copy(self)

        def turn(carry: Any, given: Any) -> Any:
            slices, added = given
            watch._added = dict(zip(inside, added, strict=True))
            results, inner = watch._block(step.blocks[0], [*operands[:start], *carry, *slices])
            keys[:] = list(inner)
            return tuple(results[:carried]), (tuple(results[carried:]), tuple(inner.values()))

        first = tuple(operands[start : start + carried])
        slices = tuple(operands[start + carried :]), tuple(inside.values())
        last, (stacked, kept) = jax.lax.scan(turn, first, slices, length=params["length"], reverse=params["reverse"])
        answers.update(zip(keys, kept, strict=True))
        return [*last, *stacked]

    def _cond(self, step: Step, operands: list[Array], answers: Found) -> list[Array]:
        """Keep what the branch that is taken computes; zeros stand for the others."""
        shapes = [jax.eval_shape(partial(self._kept, block), *operands[1:]) for block in step.blocks]

        def branch(number: int) -> Callable[..., Any]:
            def taken(*given: Array) -> Any:
                results, inner = self._block(step.blocks[number], given)
                zeros = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape) for shape in shapes]
                zeros[number] = list(inner.values())
                return tuple(results), zeros

            return taken

        results, kept = jax.lax.switch(operands[0], [branch(n) for n in range(len(step.blocks))], *operands[1:])
        for block, pairs in zip(step.blocks, kept, strict=True):
            answers.update(zip(self._keys(block), pairs, strict=True))
        return list(results)

    def _kept(self, block: Block, *given: Array) -> list[tuple[Array, Array]]:
        return list(self._block(block, given)[1].values())

    def _keys(self, block: Block) -> list[Asked]:
        """Return what is asked for of a block, in the order in which running it finds that."""
        steps = [step for step in block.steps if self._holds(step) and _is_entered(step)]
        inside = [key for step in steps for inner in step.blocks for key in self._keys(inner)]
        return [*inside, *self._asked.get(id(block), ())]

    def _derivatives(
        self,
        xs: Sequence[Value],
        y: Value,
        block: Block,
        arrays: Mapping[Value, Array],
        seed: Callable[[Array], Array],
        *,
        given: frozenset[Value],
    ) -> list[Array]:
        """Return what the values of each x get of a gradient at y, also through the others, but for those given."""
        leading = {id(step) for x in xs for step in steps_between(x, y, block)}

        def of(changes: Sequence[Array]) -> Array:
            added = dict(zip(xs, changes, strict=True))
            inside = {**arrays, **{x: arrays[x] + zeros for x, zeros in added.items()}}
            for step in block.steps:
                if id(step) not in leading:
                    continue
                results = self._step(step, [self._read(value, inside) for value in step.inputs], {})
                for value, result in zip(step.outputs, results, strict=True):
                    if value in given:
                        inside[value] = arrays[value] + added.get(value, 0)
                        continue
                    passed = result if value is y else self._cut(value, result)
                    inside[value] = passed + added[value] if value in added else passed
            return inside[y]

        result, back = jax.vjp(of, [jnp.zeros_like(arrays[x]) for x in xs])
        (derived,) = back(seed(result))
        return derived  # type: ignore[no-any-return]


def _given(key: Asked, block: Block) -> frozenset[Value]:
    """Return the values that are as if they were given, where it matters: where one of them is made of the other."""
    if not isinstance(key, Seeded) or key.beside is None:
        return frozenset()
    pair = (key.x, key.beside)
    is_nested = any(steps_between(first, last, block) for first, last in (pair, pair[::-1]))
    return frozenset(pair if is_nested else ())


def seeds(y: Array) -> Array:
    """Return a number of its own for each of a value."""
    return (1.5 + jnp.sin(jnp.arange(y.size, dtype=float))).reshape(y.shape).astype(y.dtype)


def _is_guided(value: Value) -> bool:
    """Tell a ReLU's result, whether it is an operation of its own or was found by its values."""
    return value.gate is not None or (value.step is not None and value.step.relu is not None)


def _is_shown(step: Step) -> bool:
    """Tell a custom function that shows what it computes, and hides only the derivative of that."""
    return step.name in CUSTOM and bool(step.blocks) and len(step.blocks[0].inputs) == len(step.inputs)


def _is_entered(step: Step) -> bool:
    """Tell whether the values inside of a step can be seen."""
    return step.word in ("scan", "cond") or step.name in REMATS


def steps_between(x: Value, y: Value, block: Block) -> list[Step]:
    """Return the steps of a block that lead from x to y, in the order in which they run."""
    reached, leading = {x}, []
    for step in block.steps:
        if any(value in reached for value in step.inputs) and x not in step.outputs:
            reached.update(step.outputs)
            leading.append(step)
    needed, kept = {y}, []
    for step in reversed(leading):
        if any(value in needed for value in step.outputs):
            needed.update(step.inputs)
            kept.append(step)
    return kept[::-1]


#: From constants and images to the values of what is asked for.
Values = Callable[[Sequence[Array], Sequence[Array]], dict[Asked, NumpyArray | None]]


def watched(block: Block, asked: Sequence[Asked], places: Mapping[Asked, Block]) -> Values:
    """Return a function of constants and images that gives the values of what is asked for, as NumPy.

    Those inside of a loop come turn by turn along axis 0; None is given for what was not computed.
    """
    order: list[Asked] = list(asked)

    @jax.jit
    def run(constants: Sequence[Array], inputs: Sequence[Array]) -> list[tuple[Array, Array] | None]:
        _, answers = Watch(constants, order, places).run(block, inputs)
        return [answers.get(key) for key in order]

    def values(constants: Sequence[Array], inputs: Sequence[Array]) -> dict[Asked, NumpyArray | None]:
        return {key: _flat(key, kept) for key, kept in zip(order, run(constants, inputs), strict=True)}

    return values


def across(block: Block, y: Value, xs: Sequence[Value], places: Mapping[Asked, Block]) -> Values:
    """Return the same of the derivatives of y, each number times another one, towards values in other blocks."""

    @jax.jit
    def run(constants: Sequence[Array], inputs: Sequence[Array]) -> tuple[list[tuple[Array, Array]], Array]:
        def of(added: Sequence[Array]) -> tuple[Array, list[tuple[Array, Array]]]:
            watch = Watch(constants, [y, *xs], places, added=dict(zip(xs, added, strict=False)))
            _, answers = watch.run(block, inputs)
            return answers[y][0], [answers[x] for x in xs]

        shapes = [shape for shape, _ in jax.eval_shape(of, [])[1]]
        result, back, found = jax.vjp(of, [jnp.zeros(one.shape, one.dtype) for one in shapes], has_aux=True)
        (derived,) = back(seeds(result))
        kept = [(array, is_computed) for array, (_, is_computed) in zip(derived, found, strict=True)]
        return kept, (result * seeds(result)).sum()

    def values(constants: Sequence[Array], inputs: Sequence[Array]) -> dict[Asked, NumpyArray | None]:
        every, sums = run(constants, inputs)
        return {y: np.asarray(sums), **{x: _flat(x, kept) for x, kept in zip(xs, every, strict=True)}}

    return values


def _flat(asked: Asked, kept: tuple[Array, Array] | None) -> NumpyArray | None:
    """Return values with the turns of all loops along axis 0, those alone that were computed."""
    if kept is None:
        return None
    array, is_computed = np.asarray(kept[0], np.float64), np.asarray(kept[1])
    x = asked.x if isinstance(asked, Seeded) else asked[0] if isinstance(asked, tuple) else asked
    shape = x.aval.shape
    # Some have no numbers at all, as half of one row has.
    array = array.reshape(is_computed.size, *shape)[is_computed.ravel()]
    if not len(array):
        return None
    joined: NumpyArray = array.reshape(len(array) * (shape[0] if shape else 1), *shape[1:])
    return joined
