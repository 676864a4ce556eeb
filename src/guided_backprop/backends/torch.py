"""PyTorch: run the forward pass as it is, then hook the ReLUs of that one autograd graph.

The hooks live on the graph's nodes and die with it. Nothing is put on the model, no state that another
thread could see is changed, and how a ReLU was written does not matter.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.backends import torch_nodes as nodes
from guided_backprop.backends.base import Attributed, Backend, Vouch, Weigh
from guided_backprop.backends.torch_audit import BackwardWatch, ForwardWatch
from guided_backprop.backends.torch_eager import differentiable, training_module, unfused
from guided_backprop.errors import (
    GuidedBackpropError,
    ImageError,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    ScoreError,
)
from guided_backprop.explanation import Coverage, Nonlinearity, as_numpy
from guided_backprop.rules import ReluRule


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

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], *, undo_head: bool, vouch: Vouch) -> None:
        self.name = type(model).__name__ if isinstance(model, torch.nn.Module) else _name(model)
        self._model = model
        self._forward = unfused(model)
        self._undo_head = undo_head
        self._vouch = vouch
        # Set once a graph had something only its forward values can tell, so the next pass is watched at once.
        self._watch_shape: tuple[int, ...] | None = None

    def check_images(self, images: Any) -> None:
        if not isinstance(images, (torch.Tensor, np.ndarray)) or len(images.shape) == 0:
            raise ImageError(
                "images must be a torch.Tensor or a NumPy array of shape (N, ...); "
                f"received images={type(images).__name__}. Stack the images to one batch."
            )
        tensor = _as_tensor(images)
        if not tensor.is_floating_point():
            raise ImageError(
                f"images must be real floating-point numbers; received images of dtype {images.dtype}. "
                "Preprocess them as for the model, for example images.float() / 255."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ImageError("images must be finite; received images with NaN or infinity. Remove these values.")

    def channel_axis(self, images: Any) -> int | None:
        if len(images.shape) <= 2:
            return None
        keras: Any = sys.modules.get("keras")
        is_keras = keras is not None and isinstance(self._model, keras.Layer)
        return -1 if is_keras and keras.config.image_data_format() == "channels_last" else 1

    def attribute(self, images: Any, weigh: Weigh, rule: ReluRule) -> Attributed:
        self._check_model()
        with differentiable():
            run, watch = self._run(_as_tensor(images), rule)
            head = run.head() if self._undo_head else None
            editor = _Editor(run.path, rule, self._vouch, head)
            outputs = as_numpy(run.output)
            weights = weigh(outputs)
            scores: list[np.ndarray[Any, np.dtype[np.float64]]] = []
            if head is not None:
                _skip_head(head, _logits(head, watch), scores)
            gradient = self._backward(run, weights, editor)
            if head is None:
                scores.append(_per_image(weights, outputs))
            coverage = editor.coverage()
        if not (np.isfinite(scores[0]).all() and bool(torch.isfinite(gradient).all())):
            raise ScoreError(
                "score and gradient must be finite; received NaN or infinity from the model. "
                "Check the images' range, or use a wider dtype."
            )
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
        watch = None
        leaf = _leaf(images)
        if self._watch_shape is not None:
            watch = ForwardWatch(torch.Size((len(images), *self._watch_shape)))
        run = self._forward_pass(leaf, watch)
        is_ruled = rule.backward_gate
        if is_ruled:
            _refuse(run.path, self._vouch)
        needs_audit = is_ruled and any(nodes.may_spell_relu(node) for node in run.path)
        head = run.head() if self._undo_head else None
        if watch is None and (needs_audit or head is not None):
            shape = run.output.shape if head is None else nodes.output_shape(head)
            self._watch_shape = tuple(shape[1:])
            return self._run(images, rule)
        if watch is not None and needs_audit:
            _judge(watch, self._vouch)
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
        if not isinstance(output, torch.Tensor) or output.ndim == 0 or len(output) != len(leaf):
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(
                f"model must return one tensor with a row per image, ({len(leaf)}, ...); "
                f"received output={shape}. Wrap the model in a function that returns that tensor."
            )
        path = [] if output.grad_fn is None or first is None else nodes.path(output.grad_fn, first)
        if not path:
            raise ScoreError(
                "score must depend on the images; received an output that carries no gradient to them. "
                "Look for detach(), no_grad(), numpy() or argmax() in the model."
            )
        return _Run(leaf, output, path)

    def _backward(self, run: _Run, weights: np.ndarray[Any, Any], editor: "_Editor") -> torch.Tensor:
        seed = torch.as_tensor(weights, dtype=run.output.dtype, device=run.output.device)
        try:
            with editor.watch or nullcontext():
                (gradient,) = torch.autograd.grad(run.output, run.leaf, seed)
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise _model_error(error, run.leaf) from error
        return gradient


class _Editor:
    """Puts a rule on the nodes of one graph, and keeps the record of what was done."""

    def __init__(self, path: list[Node], rule: ReluRule, vouch: Vouch, head: Node | None) -> None:
        self._rule = rule
        self._counts: Counter[tuple[str, str]] = Counter()
        self.watch: BackwardWatch | None = None
        on_path = set(path)
        composites = [pair for node in path if (pair := nodes.relus_of_prelu(node, on_path)) is not None]
        parts = {part for pair in composites for part in pair}
        for _ in composites:
            self._note("prelu", False)
        for node in path:
            if node in parts:
                continue
            if nodes.is_random(node):
                raise _random(nodes.operation(node))
            relu = nodes.relu_of(node, on_path)
            if relu is None and vouch.get(nodes.opaque_name(node) or "") == "relu":
                relu = nodes.Relu(node, nodes.opaque_name(node) or "")
            if relu is not None:
                self._note(relu.name, True)
                _hook(relu, rule)
            elif node is head:
                self._counts[nodes.operation(node), "undone"] += 1
            elif nodes.operation(node) in nodes.NONLINEARITIES:
                self._note(nodes.operation(node), False)
            elif nodes.is_in_place_on_view(node):
                self.watch = self.watch or BackwardWatch(rule, self._note)
                node.register_prehook(self.watch.enter)
                node.register_hook(self.watch.leave)
        if self.watch is None:
            self.coverage()

    def _note(self, name: str, is_relu: bool) -> None:
        self._counts[name, self._rule.name if is_relu else "plain"] += 1

    def coverage(self) -> Coverage:
        """Return what was done; raise if the rule found nothing to act on."""
        rows = Coverage(Nonlinearity(name, count, how) for (name, how), count in sorted(self._counts.items()))
        if self._rule.backward_gate and not any(row.treatment == self._rule.name for row in rows):
            found = ", ".join(f"{name} x{count}" for name, count, _ in rows) or "no non-linearity"
            raise NoReluError(
                f"the {self._rule.name} rule needs at least one ReLU between score and image; found {found}. "
                "Use Saliency(model)."
            )
        return rows


def _hook(relu: nodes.Relu, rule: ReluRule) -> None:
    """Edit the backward pass at one ReLU: clamp what arrives, then let its own derivative do the rest."""
    operand, x, cap = relu.operand, relu.x, relu.cap

    def clamp(gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        # Out of place: branches of the network share this gradient.
        return tuple(None if g is None else g.clamp(min=0) for g in gradients)

    def bypass(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        if inputs[operand] is None or gradients[0] is None:
            return inputs
        passed = gradients[0].sum_to_size(inputs[operand].shape).to(inputs[operand].dtype)
        return (*inputs[:operand], passed, *inputs[operand + 1 :])

    def close_ties(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        g = inputs[operand]
        if g is None or x is None:
            return inputs
        is_open = x > 0 if cap is None else (x > 0) & (x < cap)
        return (*inputs[:operand], torch.where(is_open, g, 0), *inputs[operand + 1 :])

    if rule.backward_gate:
        relu.node.register_prehook(clamp)
    if not rule.forward_gate:
        relu.node.register_hook(bypass)
    elif x is not None:
        relu.node.register_hook(close_ties)


def _skip_head(head: Node, logits: torch.Tensor, scores: list[Any]) -> None:
    """Let the gradient pass the final softmax or sigmoid unchanged, and note the score of its logits."""

    def skip(inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        scores.append(_per_image(as_numpy(gradients[0]), as_numpy(logits)))
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])

    head.register_hook(skip)


def _logits(head: Node, watch: ForwardWatch | None) -> torch.Tensor:
    if nodes.operation(head) == "log_sigmoid":
        return head._saved_self.detach()  # type: ignore[attr-defined, no-any-return]
    logits = None if watch is None else watch.logits_of(head._saved_result)  # type: ignore[attr-defined]
    if logits is None:
        raise OpaqueRegionError(
            f"the logits in front of the final {nodes.operation(head)} must be visible; "
            "received a model that hides them. Pass undo_head=False, or the model without its last layer."
        )
    return logits


def _refuse(path: list[Node], vouch: Vouch) -> None:
    """Raise if a part of the graph hides what it computes, or spells a ReLU that no single node stands for."""
    on_path = set(path)
    for node in path:
        name = nodes.opaque_name(node)
        if name is not None and name not in vouch:
            raise OpaqueRegionError(_opaque_message(name))
        name = nodes.spelled_relu(node, on_path)
        if name is not None and name not in vouch:
            raise OpaqueRegionError(_spelled_message({name}))


def _judge(watch: ForwardWatch, vouch: Vouch) -> None:
    """Raise if the watched forward pass dropped values or spelled a ReLU as arithmetic."""
    if watch.has_dropout:
        raise _random("an operation that draws random numbers")
    spelled = {name for name in watch.spelled if name not in vouch}
    if spelled:
        raise OpaqueRegionError(_spelled_message(spelled))


def _opaque_message(name: str) -> str:
    if name == "CompiledFunction":
        return (
            "a torch.compile region hides its ReLUs; received CompiledFunctionBackward between score and image. "
            "Pass the model before compiling."
        )
    if name == "CheckpointFunction":
        return (
            "a reentrant checkpoint hides its ReLUs; received CheckpointFunctionBackward between score and image. "
            "Use checkpoint(..., use_reentrant=False)."
        )
    if name.startswith("torch::jit"):
        return (
            f"a fused TorchScript region hides its ReLUs; received {name} between score and image. "
            "Pass the scripted module itself as the model, or the module before scripting."
        )
    return (
        f"a custom function hides whether it is a ReLU; received {name} between score and image. "
        f'Pass vouch={{"{name}": "relu"}} if it is one, vouch={{"{name}": "plain"}} if it contains none.'
    )


def _spelled_message(names: set[str]) -> str:
    found = ", ".join(sorted(names))
    return (
        f"a ReLU must be an operation of its own; received one spelled as arithmetic, with {found}. "
        f'Write it as torch.relu, or pass vouch={{"{min(names)}": "plain"}} if it is no ReLU.'
    )


def _random(name: str) -> ModelError:
    return ModelError(
        f"model must be in eval mode, or its map is random; received {name} in training mode. Call model.eval()."
    )


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
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _like(gradient: torch.Tensor, images: Any) -> Any:
    """Return the gradient as the kind, and in the memory layout, of the images."""
    if isinstance(images, np.ndarray):
        return gradient.cpu().numpy()
    if gradient.stride() == images.stride():
        return gradient
    return torch.empty_like(images, requires_grad=False).copy_(gradient)


def _per_image(weights: Any, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weighted sum of each row; what has no weight does not count, not even if it is infinite."""
    weights, values = np.asarray(weights, np.float64), np.asarray(values, np.float64)
    product = np.multiply(weights, values, out=np.zeros(weights.shape), where=weights != 0)
    summed: np.ndarray[Any, np.dtype[np.float64]] = product.reshape(len(product), -1).sum(axis=1)
    return summed
