"""The JAX backend: program traces, relus and masks read the trace, run evaluates it under a rule."""

from guided_backprop.backends.jax.backend import JaxBackend

__all__ = ["JaxBackend"]
