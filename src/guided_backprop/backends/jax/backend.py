"""JAX: trace the model, put the rule on the ReLUs of the trace, and let JAX differentiate and compile that.

The model is traced anew on each call, so it is always explained with the parameters that it has now; what
is compiled is kept, with the parameters as arguments. Nothing global is changed.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guided_backprop.backends.base import Attributed, Backend, Vouch, Weigh, per_image
from guided_backprop.backends.jax.cache import Compiled, key_of
from guided_backprop.backends.jax.coverage import count
from guided_backprop.backends.jax.heads import Head, head_of
from guided_backprop.backends.jax.masks import Audit
from guided_backprop.backends.jax.program import Program
from guided_backprop.backends.jax.relus import Facts, mark_prelus
from guided_backprop.backends.jax.run import Runner
from guided_backprop.backends.keras import has_prelu, is_channels_last
from guided_backprop.backends.report import coverage_of, hidden, not_finite, spelled
from guided_backprop.coverage import Coverage
from guided_backprop.errors import (
    GuidedBackpropError,
    ImageError,
    ModelError,
    ScoreError,
)
from guided_backprop.rules import ReluRule


class JaxBackend(Backend):
    """A differentiable callable on JAX arrays: a function, or a module of Flax, Equinox or Haiku."""

    def __init__(self, model: Callable[[jax.Array], jax.Array], *, undo_head: bool, vouch: Vouch) -> None:
        self.name = str(getattr(model, "__qualname__", type(model).__name__))
        self._model = model
        self._undo_head = undo_head
        self._vouch = vouch
        self._compiled = Compiled()

    def check_images(self, images: Any) -> None:
        if isinstance(images, jax.core.Tracer):
            raise ImageError(
                "images must be arrays with values; received images that are being traced. "
                "Call explain outside of jax.jit, jax.grad and jax.vmap."
            )
        if not isinstance(images, (jax.Array, np.ndarray)) or images.ndim == 0:
            raise ImageError(
                "images must be a jax.Array or a NumPy array of shape (N, ...); "
                f"received images={type(images).__name__}. Stack the images to one batch."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ImageError(
                f"images must be real floating-point numbers; received images of dtype {images.dtype}. "
                "Preprocess them as for the model, for example images.astype('float32') / 255."
            )
        if not bool(jnp.isfinite(jnp.asarray(images)).all()):
            raise ImageError("images must be finite; received images with NaN or infinity. Remove these values.")

    def channel_axis(self, images: Any) -> int | None:
        if images.ndim <= 2:
            return None
        return images.ndim - 1 if is_channels_last(self._model, default=True) else 1

    def attribute(self, images: Any, weigh: Weigh, rule: ReluRule) -> Attributed:
        _check_mode(self._model)
        leaf = jnp.asarray(images)
        program = self._trace(leaf)
        head, coverage = self._analyse(program, rule)
        key = (rule, head is not None, key_of(program))
        forward, backward = self._compiled.get(key, lambda: _functions(program, head, rule))
        try:
            outputs, explained, pullback = forward(program.constants, leaf)
            seed = weigh(_as_numpy(outputs))
            gradient = backward(pullback, jnp.asarray(seed, explained.dtype))
            gradient.block_until_ready()
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise _model_error(error, leaf) from error
        scores = per_image(seed, _as_numpy(explained))
        if not (np.isfinite(scores).all() and bool(jnp.isfinite(gradient).all())):
            raise not_finite()
        name = None if head is None else head.name
        return Attributed(_like(gradient, images), scores, _as_numpy(outputs), coverage, name)

    def reduce(self, attribution: Any, reducer: str, axis: int) -> Any:
        values = jnp.asarray(attribution)
        reduced: jax.Array = {
            "mean": lambda: values.mean(axis),
            "sum": lambda: values.sum(axis),
            "max": lambda: values.max(axis),
            "min": lambda: values.min(axis),
            "absmax": lambda: jnp.abs(values).max(axis),
        }[reducer]()
        return _like(reduced, attribution)

    def concatenate(self, batches: Sequence[Any]) -> Any:
        if len(batches) == 1:
            return batches[0]
        return np.concatenate(batches) if isinstance(batches[0], np.ndarray) else jnp.concatenate(list(batches))

    def empty_like(self, images: Any) -> Any:
        return np.empty_like(images) if isinstance(images, np.ndarray) else jnp.empty_like(images)

    def _trace(self, leaf: jax.Array) -> Program:
        try:
            # A function of its own for each trace: what JAX remembers of the model may be older than it is.
            traced, shape = jax.make_jaxpr(lambda images: self._model(images), return_shape=True)(leaf)  # noqa: PLW0108
        except GuidedBackpropError:
            raise
        except Exception as error:
            raise _model_error(error, leaf) from error
        if not isinstance(shape, jax.ShapeDtypeStruct) or shape.ndim == 0 or shape.shape[0] != len(leaf):
            found = shape.shape if isinstance(shape, jax.ShapeDtypeStruct) else type(shape).__name__
            raise ModelError(
                f"model must return one array with a row per image, ({len(leaf)}, ...); "
                f"received output={found}. Wrap the model in a function that returns that array."
            )
        return Program(traced)

    def _analyse(self, program: Program, rule: ReluRule) -> tuple[Head | None, Coverage]:
        """Find the ReLUs and the head, and raise if there is something that must not pass unseen."""
        facts = Facts(program)
        output = program.block.outputs[0]
        if not output.carries:
            raise ScoreError(
                "score must depend on the images; received an output that carries no gradient to them. "
                "Look for stop_gradient(), argmax() or round() in the model."
            )
        facts.find_relus(program, self._vouch)
        audit = Audit(facts, self._vouch)
        audit.visit(program.block)
        if audit.has_random_mask:
            raise ModelError(
                "model must be in eval mode, or its map is random; received values that are dropped at random. "
                "Call model.eval(), or pass deterministic=True."
            )
        if rule.backward_gate:
            _refuse(audit, self._vouch)
        if has_prelu(self._model):
            mark_prelus(program)
        counts = count(program.block, facts, rule)
        head = head_of(output, facts) if self._undo_head else None
        if head is not None and counts[head.name, "plain"]:
            counts[head.name, "plain"] -= 1
            counts[head.name, "undone"] += 1
        return head, coverage_of(+counts, rule)


def _functions(program: Program, head: Head | None, rule: ReluRule) -> tuple[Any, Any]:
    """Compile the forward pass, which returns its own derivative, and the backward pass."""
    block = program.block

    def explained(images: jax.Array, constants: list[Any]) -> tuple[jax.Array, jax.Array]:
        runner = Runner(rule, constants)
        values = runner.run(block, [images])
        output = runner.read(block.outputs[0], values)
        if head is None:
            return output, output
        value = values[head.logits]
        for step in head.moves:
            (value,) = step.run([value])
        return value.astype(output.dtype), output

    @jax.jit
    def forward(constants: list[Any], images: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        value, pullback, output = jax.vjp(lambda images: explained(images, constants), images, has_aux=True)
        return output, value, pullback

    @jax.jit
    def backward(pullback: Any, seed: jax.Array) -> jax.Array:
        (gradient,) = pullback(seed)
        return gradient  # type: ignore[no-any-return]

    return forward, backward


def _refuse(audit: Audit, vouch: Vouch) -> None:
    for name in sorted(audit.opaque - set(vouch)):
        raise hidden(name)
    if audit.spelled:
        raise spelled(audit.spelled, "jax.nn.relu")


def _check_mode(model: Any) -> None:
    """Raise if a part of a Flax NNX or Equinox module is in training mode."""
    for library, parts in (("flax.nnx", "iter_graph"), ("equinox", "tree_flatten")):
        if library not in sys.modules or not isinstance(model, sys.modules[library].Module):
            continue
        if library == "equinox":
            found = jax.tree_util.tree_leaves(model, is_leaf=lambda part: getattr(part, "inference", None) is False)
        else:
            found = [part for _, part in getattr(sys.modules[library], parts)(model)]
        for part in found:
            settings = {"deterministic": False, "use_running_average": False, "inference": False}
            wrong = [name for name, value in settings.items() if getattr(part, name, None) is value]
            if wrong:
                advice = "eqx.nn.inference_mode(model)" if library == "equinox" else "model.eval()"
                raise ModelError(
                    "model must be in eval mode, or its map is random; "
                    f"received {wrong[0]}=False on {type(part).__name__}. Call {advice}."
                )


def _model_error(error: Exception, images: jax.Array) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"model must accept and differentiate the images; received images of shape {images.shape}, "
        f"{images.dtype} and {type(error).__name__}: {reason} Check the images' shape and dtype."
    )


def _as_numpy(values: jax.Array) -> np.ndarray[Any, Any]:
    array = np.asarray(values)
    return array.astype(np.float32) if values.dtype == jnp.bfloat16 else array


def _like(values: jax.Array, images: Any) -> Any:
    """Return the values as the kind of array, and in the dtype, of the images."""
    return np.asarray(values).astype(images.dtype, copy=False) if isinstance(images, np.ndarray) else values
