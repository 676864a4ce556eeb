"""A TensorFlow model as the backend asks it: a function or a SavedModel's signature; and how any model is called."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from guided_backprop.arrays import Inputs, Model, Tensor
from guided_backprop.backends.base import Score
from guided_backprop.backends.mistakes import Shape, described, no_rows
from guided_backprop.backends.network import Network
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import detached, no_score, reason_of
from guided_backprop.backends.tensorflow.graph.custom import SCOPE
from guided_backprop.errors import ModelError

_TRACEABLE = "Write the model so that tf.function can trace it, without numpy()."
_OF_WEIGHTS = "Pass images of the weights' dtype, as tf.cast(images, tf.float32)."
#: What to do where an error of TensorFlow says this.
HINTS = {
    "numpy": _TRACEABLE,
    "symbolic": _TRACEABLE,
    "eager": _TRACEABLE,
    "does not match type": _OF_WEIGHTS,
    "expected to be a": _OF_WEIGHTS,
}
# What cuts a gradient off.
CULPRITS = "stop_gradient(), numpy() or argmax()"


class TensorFlowNetwork(Network):
    """A ``tf.function``, a SavedModel's signature, or any callable on tensors."""

    is_channels_last = True

    def input_counts(self) -> range:
        if not hasattr(self.model, "structured_input_signature"):
            return super().input_counts()
        count = sum(map(len, self.model.structured_input_signature))
        return range(count, count + 1)

    def input_names(self) -> Sequence[str]:
        is_signature = hasattr(self.model, "structured_input_signature")
        return list(self.model.structured_input_signature[1]) if is_signature else super().input_names()

    def input_shapes(self) -> Sequence[Shape] | None:
        by_position, by_name = getattr(self.model, "structured_input_signature", ((), {}))
        specs = [*by_position, *by_name.values()]
        is_known = all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in specs)
        return [spec.shape.as_list() for spec in specs] if specs and is_known else None

    def run(self, inputs: Inputs) -> Tensor:
        is_signature = hasattr(self.model, "structured_input_signature")
        return _signature(self.model, inputs) if is_signature else super().run(inputs)

    def private_copy(self, inputs: Inputs, run: Callable[[Model], object], seed: int) -> PrivateCopy:
        raise ModelError(
            "the weights of a TensorFlow model can be re-initialised if it is a Keras model; received "
            f"model={self.name}, which hides them. Pass the Keras model."
        )


def callable_of(
    network: Network, given: Inputs, output: str | int | None, check: Callable[[Tensor], None] | None = None
) -> Callable[..., Any]:
    """Return what maps inputs, in the form that ``given`` has, to what is explained, in inference mode.

    With ``check``, of the value that the gradient begins at, that value is returned as well.
    """

    def forward(*inputs: tf.Tensor) -> Any:
        inside: list[tf.Tensor] = []

        def start(value: Tensor) -> tf.Tensor:
            if check is not None:
                check(value)
            # A value of its own, though the layer gives back what it was given; nothing before it has a gradient.
            inside.append(tf.stop_gradient(value))
            return inside[-1]

        outputs = network.call(given.like(inputs), None if check is None else start)
        explained = chosen(outputs, output, tf.is_tensor)
        if not isinstance(explained, tf.Tensor) or explained.shape.rank == 0:
            raise no_rows("N", explained, "tensor")
        if explained.shape.rank is None:
            # Then it is traced for this number of images, and no other.
            raise ValueError("the output's number of axes is not known for any number of images")
        return (tf.identity(explained), *inside) if inside else tf.identity(explained)

    return forward


def inside_of(network: Network, given: Inputs, check: Callable[[Tensor], None] | None) -> list[tf.Tensor]:
    """Return what the gradient begins at, alone, of these inputs; nothing without ``check``."""
    inside: list[tf.Tensor] = []

    def start(value: Tensor) -> Tensor:
        inside.append(value)
        return value

    if check is not None:
        with network.unremembered():
            network.call(given, start)
    return inside


def slopes(score: Score, output: tf.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a score's plain derivative at the model's output, and its values ``(N,)``."""
    with tf.GradientTape() as tape:
        tape.watch(output)
        try:
            scores = score(output)
        except Exception as error:
            raise no_score(f"{type(error).__name__}: {error}") from error
    is_rows = isinstance(scores, tf.Tensor) and scores.shape == output.shape[:1]
    if not is_rows or not scores.dtype.is_floating:
        raise no_score(described(scores))
    slope = tape.gradient(scores, output)
    if slope is None:
        raise detached(CULPRITS)
    slope = tf.convert_to_tensor(slope)
    return tf.cast(slope, tf.float64).numpy(), tf.cast(scores, tf.float64).numpy()


def _signature(function: Any, inputs: Inputs) -> Any:
    """Call a concrete function; a SavedModel's signature takes inputs by name."""
    names = list(function.structured_input_signature[1])
    is_one = len(names) == 1 and inputs.form == "one"
    return function(**{names[0]: inputs.images}) if is_one else inputs.call(function)


def reason_of_graph(error: Exception) -> str:
    """Return the line of TensorFlow's long messages that says what is wrong."""
    if "Exception encountered when calling" in str(error):
        return reason_of(error)
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected at", "Graph execution"))]
    is_traceback = len(said) < len(lines) - 1 or (bool(said) and said[0].startswith("in user code"))
    return (said[-1] if is_traceback else said[0]).replace(f"{SCOPE}/", "") if said else type(error).__name__
