"""Small networks of Flax, for rows of four numbers."""

from functools import partial

import flax.linen
import jax
from flax import nnx


class Nnx(nnx.Module):
    def __init__(self):
        self.first, self.last = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 3, rngs=nnx.Rngs(1))
        self.factor = 2.0

    def __call__(self, rows):
        return self.last(nnx.relu(self.first(rows) * self.factor))


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, rows):
        return flax.linen.Dense(3)(flax.linen.relu(flax.linen.Dense(6)(rows)))


def linen(rows):
    """Return a module with its parameters, as a function of rows."""
    module = Linen()
    return partial(module.apply, module.init(jax.random.key(0), rows))
