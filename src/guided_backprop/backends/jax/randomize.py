"""A private copy of a JAX model whose arrays can be re-initialised: of modules, and of functions with parameters."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from guided_backprop.arrays import Inputs, Model, NumpyArray, as_numpy
from guided_backprop.backends.jax.state import is_of
from guided_backprop.backends.randomize import PrivateCopy, Weight
from guided_backprop.errors import ModelError

# What parameters and statistics are put into, in Flax.
_COLLECTIONS = {"params", "batch_stats"}


class JaxCopy(PrivateCopy):
    """The same model with other arrays: an Equinox or nnx module, or ``functools.partial(function, parameters)``.

    Args:
        model: the user's model.
        images: the images.
        seed: chooses what layers are re-initialised to.

    Raises:
        ModelError: the model is a function that hides its parameters.
    """

    def __init__(self, model: Model, inputs: Inputs, seed: int) -> None:
        tree, self._build = _opened(model)
        keyed, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves = [leaf for _, leaf in keyed]
        arrays = [index for index, leaf in enumerate(self._leaves) if _is_weight(leaf)]
        last = _uses(self._with, [self._leaves[index] for index in arrays], arrays, self.given(inputs))
        self._positions = sorted(last, key=last.__getitem__)
        self.model = _Held(model)
        super().__init__([_weight(*keyed[index]) for index in self._positions], seed)

    def given(self, inputs: Inputs) -> Inputs:
        return inputs.map(jnp.asarray)

    def _assign(self, values: dict[int, NumpyArray]) -> None:
        positions = [self._positions[index] for index in values]
        dtypes = [self._leaves[position].dtype for position in positions]
        arrays = [jnp.asarray(value, dtype) for value, dtype in zip(values.values(), dtypes, strict=True)]
        self._leaves = self._replaced(positions, arrays)
        self.model.held = self._build(jax.tree_util.tree_unflatten(self._structure, self._leaves))

    def _with(self, positions: Sequence[int], arrays: Sequence[Any]) -> Any:
        """Return the model with other arrays at some positions."""
        return self._build(jax.tree_util.tree_unflatten(self._structure, self._replaced(positions, arrays)))

    def _replaced(self, positions: Sequence[int], arrays: Sequence[Any]) -> list[Any]:
        others = dict(zip(positions, arrays, strict=True))
        return [others.get(index, leaf) for index, leaf in enumerate(self._leaves)]


class _Held:
    """Calls the model that it holds: a method keeps what it compiled although the model is another one."""

    def __init__(self, model: Model) -> None:
        self.held = model

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.held(*inputs, **named)


def _opened(model: Model) -> tuple[Any, Callable[[Any], Any]]:
    """Return what the model is made of, and what makes a model of it."""
    if is_of(model, "flax.nnx"):
        nnx = sys.modules["flax.nnx"]
        structure, state = nnx.split(model)
        return state, lambda tree: nnx.merge(structure, tree)
    if isinstance(model, partial):
        function = model.func
        return (model.args, model.keywords), lambda tree: partial(function, *tree[0], **tree[1])
    if not jax.tree_util.all_leaves([model]):
        return model, lambda tree: tree
    name = getattr(model, "__qualname__", type(model).__name__)
    raise ModelError(
        "the weights of a model can be re-initialised if it is a module that JAX can look into, or "
        f"functools.partial(function, parameters); received model={name}, which hides them. "
        "Pass the parameters in a partial."
    )


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 0


def _weight(path: Sequence[Any], leaf: Any) -> Weight:
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    while len(keys) > 1 and (keys[0].isdecimal() or keys[0] in _COLLECTIONS):
        del keys[0]
    # What Flax's variables and Haiku's moving averages hold says nothing of what it is for.
    while len(keys) > 1 and keys[-1] in ("value", "average", "hidden"):
        del keys[-1]
    layer, _, name = "/".join(keys).rpartition("/")
    return Weight(layer.removesuffix("/~") or "model", name, as_numpy(leaf))


def _uses(build: Callable[..., Any], arrays: list[Any], positions: list[int], inputs: Inputs) -> dict[int, int]:
    """Return in which operation each array is used last; what is made of arrays alone stands for them."""
    # Not the images themselves: they are no constants.
    traced = jax.make_jaxpr(lambda arrays, images: inputs.like(images).call(build(positions, arrays)))(
        arrays, inputs.arrays
    )
    last: dict[int, int] = {}
    known = {var: frozenset([index]) for var, index in zip(traced.jaxpr.invars, positions, strict=False)}
    _visit(traced.jaxpr, known, last)
    return last


def _visit(jaxpr: Any, known: dict[Any, frozenset[int]], last: dict[int, int]) -> None:
    """Go through the operations in their order; ``known`` are the values that are made of arrays alone."""
    # What is constant is made of no array.
    known |= dict.fromkeys(jaxpr.constvars, frozenset())
    for eqn in jaxpr.eqns:
        sources = [frozenset() if isinstance(atom, core.Literal) else known.get(atom) for atom in eqn.invars]
        if None not in sources:
            made_of: frozenset[int] = frozenset().union(*filter(None, sources))
            known |= dict.fromkeys(eqn.outvars, made_of)
            continue
        bodies = [body for body in _bodies(eqn) if len(body.invars) == len(eqn.invars)]
        for body in bodies:
            inner = {var: source for var, source in zip(body.invars, sources, strict=True) if source is not None}
            _visit(body, inner, last)
        if not bodies:
            clock = max(last.values(), default=-1) + 1
            last |= dict.fromkeys(frozenset().union(*filter(None, sources)), clock)


def _bodies(eqn: Any) -> list[Any]:
    parameters = [
        parameter for value in eqn.params.values() for parameter in (value if isinstance(value, tuple) else (value,))
    ]
    return [
        parameter.jaxpr if isinstance(parameter, core.ClosedJaxpr) else parameter
        for parameter in parameters
        if _is_jaxpr(parameter)
    ]


def _is_jaxpr(parameter: Any) -> bool:
    return isinstance(parameter, (core.Jaxpr, core.ClosedJaxpr))
