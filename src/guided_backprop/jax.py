"""For JAX models: names for the values inside of a function, which ``output_layer`` takes."""

from guided_backprop.backends.jax.tap import tap

__all__ = ["tap"]
