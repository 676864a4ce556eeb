"""PyTorch: run the forward pass as it is, then hook the ReLUs of that one autograd graph.

The hooks live on the graph's nodes and die with it. Nothing is put on the model, no state that another
thread could see is changed, and how a ReLU was written does not matter.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.base import Attributed, Backend, Vouch, Weigh, per_image
from guided_backprop.backends.keras import has_prelu, is_channels_last
from guided_backprop.backends.report import not_finite
from guided_backprop.backends.torch import nodes
from guided_backprop.backends.torch.audit import ForwardWatch
from guided_backprop.backends.torch.eager import differentiable, training_module, unfused
from guided_backprop.backends.torch.editor import Editor, logits_of, skip_head
from guided_backprop.backends.torch.refusals import refuse_opaque, refuse_spelled
from guided_backprop.errors import (
    GuidedBackpropError,
    ImageError,
    ModelError,
    ScoreError,
)
from guided_backprop.rules import ReluRule

_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Run:
    """One forward pass: the leaf it started from, its output, and the nodes between them."""

    leaf: torch.Tensor
    output: torch.Tensor
    path: list[Node]

    def head(self) -> Node | None:
        """Return the node of the final softmax or sigmoid, looked for behind operations that only move values."""
        node = self.output.grad_fn
        while node is not None and nodes.operation(node) in nodes.MOVES:
            node = next(nodes.parents(node), None)
        return node if node is not None and nodes.operation(node) in nodes.HEADS else None


class TorchBackend(Backend):
    """A ``torch.nn.Module`` or any differentiable callable on tensors."""

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        *,
        undo_head: bool,
        vouch: Vouch,
        forward: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.name = type(model).__name__ if isinstance(model, torch.nn.Module) else _name(model)
        self._model = model
        self._forward = unfused(model) if forward is None else forward
        self._undo_head = undo_head
        self._vouch = vouch
        # Set once a graph had something only its forward values can tell, so the next pass is watched at once.
        self._is_watched = False

    def check_images(self, images: Any) -> None:
        is_dense = isinstance(images, torch.Tensor) and images.layout is torch.strided and not images.is_meta
        if isinstance(images, torch.Tensor) and (images.is_nested or not is_dense):
            raise ImageError(
                f"images must be a dense tensor with values; received {images.layout}, nested={images.is_nested}, "
                f"on {images.device}. Pass images.to_dense()."
            )
        if not isinstance(images, (torch.Tensor, np.ndarray)) or len(images.shape) == 0:
            raise ImageError(
                "images must be a torch.Tensor or a NumPy array of shape (N, ...); "
                f"received images={type(images).__name__}. Stack the images to one batch."
            )
        if str(getattr(images.dtype, "name", images.dtype)).removeprefix("torch.") not in _DTYPES:
            raise ImageError(
                f"images must be real floating-point numbers, {', '.join(_DTYPES)}; "
                f"received images of dtype {images.dtype}. Preprocess them, for example images.float() / 255."
            )
        if not bool(torch.isfinite(_as_tensor(images)).all()):
            raise ImageError("images must be finite; received images with NaN or infinity. Remove these values.")

    def channel_axis(self, images: Any) -> int | None:
        if len(images.shape) <= 2:
            return None
        return len(images.shape) - 1 if is_channels_last(self._model, default=False) else 1

    def attribute(self, images: Any, weigh: Weigh, rule: ReluRule) -> Attributed:
        self._check_model()
        with differentiable():
            run, watch = self._run(_as_tensor(images), rule)
            head = run.head() if self._undo_head else None
            editor = Editor(run.path, rule, self._vouch, head, has_prelu(self._model))
            outputs = as_numpy(run.output)
            weights = weigh(outputs)
            scores: list[np.ndarray[Any, np.dtype[np.float64]]] = []
            if head is not None:
                skip_head(head, logits_of(head, watch), scores)
            gradient = self._backward(run, weights, editor)
            if head is None:
                scores.append(per_image(weights, outputs))
            coverage = editor.coverage()
        if not (np.isfinite(scores[0]).all() and bool(torch.isfinite(gradient).all())):
            raise not_finite()
        attribution = _like(gradient, images)
        return Attributed(attribution, scores[0], outputs, coverage, None if head is None else nodes.operation(head))

    def reduce(self, attribution: Any, reducer: str, axis: int) -> Any:
        values = _as_tensor(attribution)
        reduced: torch.Tensor = {
            "mean": lambda: values.mean(axis),
            "sum": lambda: values.sum(axis),
            "max": lambda: values.amax(axis),
            "min": lambda: values.amin(axis),
            "absmax": lambda: values.abs().amax(axis),
        }[reducer]()
        return reduced.numpy() if isinstance(attribution, np.ndarray) else reduced

    def concatenate(self, batches: Sequence[Any]) -> Any:
        if len(batches) == 1:
            return batches[0]
        return np.concatenate(batches) if isinstance(batches[0], np.ndarray) else torch.cat(list(batches))

    def empty_like(self, images: Any) -> Any:
        return np.empty_like(images) if isinstance(images, np.ndarray) else torch.empty_like(images)

    def _check_model(self) -> None:
        if torch.compiler.is_compiling():
            raise ModelError(
                "explain must not be compiled itself; received a call from inside torch.compile. "
                "Call it from eager code."
            )
        training = training_module(self._model) if isinstance(self._model, torch.nn.Module) else None
        if training is not None:
            raise ModelError(
                "model must be in eval mode, or its map is random; "
                f"received training=True on {training}. Call model.eval()."
            )

    def _run(self, images: torch.Tensor, rule: ReluRule) -> tuple[_Run, ForwardWatch | None]:
        """Run forward; once more, watched, if the graph leaves open what only the values can tell."""
        leaf = _leaf(images)
        watch = ForwardWatch() if self._is_watched else None
        run = self._forward_pass(leaf, watch)
        if rule.backward_gate:
            refuse_opaque(run.path, self._vouch)
        on_path = set(run.path)
        needs_audit = self._is_watched or any(nodes.may_spell_relu(node, on_path) for node in run.path)
        if watch is None and (needs_audit or (self._undo_head and run.head() is not None)):
            self._is_watched = True
            watch = ForwardWatch()
            run = self._forward_pass(leaf, watch)
        if watch is not None:
            refuse_spelled(watch, rule, self._vouch)
        return run, watch

    def _forward_pass(self, leaf: torch.Tensor, watch: ForwardWatch | None) -> _Run:
        images = leaf.clone()
        first = images.grad_fn
        if watch is not None:
            watch.follow(images)
        try:
            with watch or nullcontext():
                output = self._forward(images)
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise _model_error(error, leaf) from error
        is_real = isinstance(output, torch.Tensor) and output.is_floating_point()
        if not is_real or output.ndim == 0 or len(output) != len(leaf):
            shape = (
                f"{tuple(output.shape)} {output.dtype}" if isinstance(output, torch.Tensor) else type(output).__name__
            )
            raise ModelError(
                f"model must return one real tensor with a row per image, ({len(leaf)}, ...); "
                f"received output={shape}. Wrap the model in a function that returns that tensor."
            )
        path = [] if output.grad_fn is None or first is None else nodes.path(output.grad_fn, first)
        if not path:
            raise ScoreError(
                "score must depend on the images; received an output that carries no gradient to them. "
                "Look for detach(), no_grad(), numpy() or argmax() in the model."
            )
        return _Run(leaf, output, path)

    def _backward(self, run: _Run, weights: np.ndarray[Any, Any], editor: Editor) -> torch.Tensor:
        seed = torch.as_tensor(weights, dtype=run.output.dtype, device=run.output.device)
        try:
            with editor.watch or nullcontext():
                (gradient,) = torch.autograd.grad(run.output, run.leaf, seed)
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise _model_error(error, run.leaf) from error
        return gradient


def _model_error(error: Exception, images: torch.Tensor) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = "Check the images' shape, dtype and device."
    if "Inference tensors" in reason:
        advice = "Build or load the model outside torch.inference_mode()."
    return ModelError(
        f"model must accept and differentiate the images; received images of shape {tuple(images.shape)}, "
        f"{images.dtype}, {images.device} and {type(error).__name__}: {reason} {advice}"
    )


def _name(model: Any) -> str:
    return str(getattr(model, "__qualname__", type(model).__name__))


def _leaf(images: torch.Tensor) -> torch.Tensor:
    leaf = images.detach()
    return (leaf.clone() if leaf.is_inference() else leaf).requires_grad_()


def _as_tensor(images: Any) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        return images
    # torch shares the memory of an array only if it is writeable, in native byte order and not reversed.
    native = np.ascontiguousarray(images, images.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _like(gradient: torch.Tensor, images: Any) -> Any:
    """Return the gradient as the kind, and in the memory layout, of the images."""
    if isinstance(images, np.ndarray):
        return gradient.cpu().numpy().astype(images.dtype, copy=False)
    if gradient.stride() == images.stride():
        return gradient
    return torch.empty_like(images, requires_grad=False).copy_(gradient)
