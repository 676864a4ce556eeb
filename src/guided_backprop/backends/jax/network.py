"""A function of JAX arrays, or a module of Flax, Equinox or Haiku, as the backend asks it."""

import sys
from collections.abc import Callable, Iterator

import jax

from guided_backprop.arrays import Images, Inputs, Layer, Model
from guided_backprop.backends.jax.randomize import JaxCopy
from guided_backprop.backends.jax.state import is_of
from guided_backprop.backends.jax.tap import names_of
from guided_backprop.backends.mistakes import Shape, first_layer
from guided_backprop.backends.network import Network
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.errors import ModelError, OptionError

# What a part says of its mode; False in training.
_MODES = ("deterministic", "use_running_average", "inference")
# How much it drops: what drops nothing does so in both.
_RATES = ("rate", "p", "dropout_rate")


class JaxNetwork(Network):
    """A callable on JAX arrays. Its layers are the values that it names; it is traced to know them."""

    is_channels_last = True
    is_named_by_trace = True

    def check(self) -> None:
        """Raise if a part of a Flax NNX or Equinox module is in training mode."""
        for part in _parts_with_a_mode(self.model):
            wrong = [name for name in _MODES if getattr(part, name, None) is False]
            rates = [rate for name in _RATES if isinstance(rate := getattr(part, name, None), (int, float))]
            if wrong and (not rates or any(rates)):
                advice = "eqx.nn.inference_mode(model)" if is_of(self.model, "equinox") else "model.eval()"
                raise ModelError(
                    "model must be in eval mode, or its map is random; "
                    f"received {wrong[0]}=False on {type(part).__name__}. Call {advice}."
                )

    def first_layer(self) -> tuple[str, Shape, int] | None:
        return first_layer(dict(_parts(self.model)), is_channels_last=True) if is_of(self.model, "flax.nnx") else None

    def why(self, inputs: Inputs) -> str | None:
        if is_of(self.model, "equinox"):
            return "An Equinox module takes one image, unless it was written for a batch: pass jax.vmap(model)."
        return super().why(inputs)

    def layer_names(self, images: Images = None) -> list[str]:
        return super().layer_names() if images is None else names_of(self.model, images)

    def layer_name(self, layer: Layer) -> str | int:
        # Whether there is such a value is seen when the model is traced.
        if not isinstance(layer, (int, str)):
            raise OptionError(
                "a layer of a JAX function must be a name given with guided_backprop.jax.tap; received "
                f"layer={type(layer).__name__}. Pass its name."
            )
        return layer

    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        if self.begin or self.end:
            raise OptionError(
                "sanity_check() of a JAX function explains its output, and from its inputs on; received "
                f"input_layer={self.begin and self.begin.layer!r} and output_layer={self.end and self.end.layer!r}. "
                "Pass a function of that value, or one that returns it."
            )
        return JaxCopy(self.model, inputs, seed)


def _parts(model: Model) -> Iterator[tuple[str, object]]:
    """Yield the parts of a module, in the order in which they were made, with their names."""
    for name, part in vars(model).items() if hasattr(model, "__dict__") else enumerate(model):
        yield str(name), part
        if is_of(part, "flax.nnx") or isinstance(part, (list, tuple)):
            yield from _parts(part)


def _parts_with_a_mode(model: Model) -> list[object]:
    """Return the parts of a module that may be in training mode: those that drop values or normalise batches."""
    if is_of(model, "flax.nnx"):
        return [part for _, part in sys.modules["flax.nnx"].iter_graph(model)]
    if is_of(model, "equinox"):
        return jax.tree_util.tree_leaves(model, is_leaf=lambda part: getattr(part, "inference", None) is False)
    return []
