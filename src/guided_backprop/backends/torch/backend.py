"""PyTorch: run the forward pass as it is, then hook the ReLUs of that one autograd graph.

The hooks live on the graph's nodes and die with it. Nothing is put on the model, no state that another
thread could see is changed, and how a ReLU was written does not matter.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import Inputs, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Score, Setup, Weigh, per_image
from guided_backprop.backends.keras import KerasNetwork, is_keras
from guided_backprop.backends.mistakes import no_array, no_rows
from guided_backprop.backends.network import Network
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.refusals import detached, no_batch, not_finite
from guided_backprop.backends.spelling import other_images
from guided_backprop.backends.torch.editor import Editor, Head, slopes
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.composites import Composite, composites_of, inside_of, needs_shifts
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.hidden.chance import (
    ANY_DRAW,
    Draws,
    Generators,
    have_drawn,
    is_vouched,
    random_error,
)
from guided_backprop.backends.torch.hidden.spelled import Spelled, Values, settle
from guided_backprop.backends.torch.hidden.watch import ForwardWatch, Place, Watched
from guided_backprop.backends.torch.lean import Gate, Lean, forget_images
from guided_backprop.backends.torch.model.eager import differentiable
from guided_backprop.backends.torch.model.network import TorchNetwork
from guided_backprop.backends.torch.refusals import HINTS, refuse_opaque, refuse_traced
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ImageError
from guided_backprop.rules import PLAIN, ReluRule

#: Runs a model's forward function on images.
Runner = Callable[[Callable[[Any], Any], Any], Any]

_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_DTYPES_OF_ARRAYS = {"float64", "float32", "float16"}


@dataclass(frozen=True)
class _Run:
    """One forward pass: the leaves it started from, its output, and the nodes between them."""

    leaves: list[torch.Tensor]
    output: torch.Tensor
    path: nodes.Path
    gates: Mapping[Node, Gate]
    activations: Mapping[Node, Composite]
    spelled: Sequence[Spelled] = ()


class TorchBackend(Backend):
    """A ``torch.nn.Module`` or any differentiable callable on tensors."""

    framework = "torch"

    functions = torch

    memories = ("lean",)

    advice, hints = "Check the images' shape, dtype and device.", HINTS

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        # Then the network returns the outputs, and the value inside of the model that the gradient is taken at.
        self._begins_inside = setup.begin is not None
        self._run_forward: Runner = _directly
        self._generators = Generators(setup.model)
        # Whether it ran once and drew nothing.
        self._is_known = False
        # What of the next pass is watched: all, as long as nothing is known of the model.
        self._watched: Watched = "everything"
        # The graphs, by what their nodes are, of which it is known that nothing hides a ReLU there.
        self._clear: set[int] = set()

    @classmethod
    def network_of(cls, model: Any) -> Network:
        return KerasNetwork(model) if is_keras(model) else TorchNetwork(model)

    def check_kind(self, array: Any) -> None:
        refuse_traced()
        is_dense = isinstance(array, torch.Tensor) and array.layout is torch.strided and not array.is_meta
        if isinstance(array, torch.Tensor) and (array.is_nested or not is_dense):
            raise ImageError(
                f"images must be a dense tensor with values; received {array.layout}, nested={array.is_nested}, "
                f"on {array.device}. Pass images.to_dense()."
            )
        if not isinstance(array, (torch.Tensor, np.ndarray)) or len(array.shape) == 0:
            raise no_array(array, "a torch.Tensor or a NumPy array")

    def is_floating(self, array: Any) -> bool:
        return array.dtype in _DTYPES if isinstance(array, torch.Tensor) else array.dtype.name in _DTYPES_OF_ARRAYS

    def is_finite(self, array: Any) -> bool:
        return _is_finite(_as_tensor(array))

    def attribute(
        self, inputs: Inputs, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        self.network.check()
        with differentiable():
            undoes = self.setup.undo_head and score is None
            run, watch = self._run(inputs.map(_as_tensor), rules, undoes_head=undoes)
            last = nodes.head_behind(run.output.grad_fn) if undoes else None
            head = None if last is None else Head.of(last, watch)
            outputs = as_numpy(run.output)
            weights, scores = (weigh(outputs), None) if score is None else slopes(score, run.output)
            attributed = []
            for position, rule in enumerate(rules):
                editor = Editor(
                    run.path,
                    rule,
                    self.setup.vouch,
                    head,
                    run.gates,
                    activations=run.activations,
                    spelled=run.spelled,
                )
                with editor:
                    attributed.append(
                        self._under(editor, run, weights, outputs, inputs, is_last=position == len(rules) - 1)
                    )
        return attributed if scores is None else [replace(explained, scores=scores) for explained in attributed]

    def _under(
        self,
        editor: Editor,
        run: _Run,
        weights: Sequence[np.ndarray[Any, Any]],
        outputs: np.ndarray[Any, Any],
        inputs: Inputs,
        *,
        is_last: bool,
    ) -> Attributed:
        """Explain under one rule."""
        gradients, coverage = [], Coverage()
        for position, weight in enumerate(weights):
            gradients.append(self._backward(run, weight, editor, is_last=is_last and position == len(weights) - 1))
            # What the backward pass notes is noted again in each further one.
            coverage = coverage or editor.coverage()
        scores = np.stack(editor.scores or [per_image(weight, outputs) for weight in weights])
        is_finite = all(_is_finite(gradient) for leaves in gradients for gradient in leaves)
        if not (np.isfinite(scores).all() and is_finite):
            raise not_finite()
        name = None if editor.head is None else row(editor.head.node).word
        if self._begins_inside:
            maps = [Inputs.of(as_numpy(gradient)) for (gradient,) in gradients]
            return Attributed(maps, scores, outputs, coverage, name, as_numpy(run.leaves[0]))
        attribution = [self._in_form(leaves, inputs) for leaves in gradients]
        return Attributed(attribution, scores, outputs, coverage, name)

    def outputs(self, inputs: Inputs) -> np.ndarray[Any, Any]:
        self.network.check()
        given = inputs.map(lambda array: _as_tensor(array).clone())
        with differentiable(), torch.no_grad():
            return as_numpy(self._output_of(given)[0])

    def from_numpy(self, array: np.ndarray[Any, Any], like: Any) -> Any:
        if isinstance(like, np.ndarray):
            return array.astype(like.dtype)
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    def _in_form(self, gradients: tuple[torch.Tensor, ...], inputs: Inputs) -> Inputs:
        """Return the gradients in the form of the inputs."""
        left = iter(gradients)
        return inputs.map(lambda array: _like(next(left), array) if self.is_floating(array) else None)

    def _run(self, inputs: Inputs, rules: Sequence[ReluRule], *, undoes_head: bool) -> tuple[_Run, ForwardWatch | None]:
        """Run forward; once more, watched, if the graph leaves open what only the values can tell."""
        inputs = inputs.map(lambda tensor: _leaf(tensor) if self.is_floating(tensor) else tensor)
        is_gating = any(rule.needs_every_relu for rule in rules)
        watched = self._watched if is_gating or self._watched != "everything" else None
        watch = ForwardWatch(watched) if watched else None
        is_known, self._is_known = self._is_known, True
        before = self._generators.states(of_torch_alone=is_known)
        run = self._forward_pass(inputs, watch, rules)
        if have_drawn(before, self._generators.states(of_torch_alone=is_known)):
            self._is_known = False
            self._refuse_random(inputs, run.output, rules)
        if is_gating:
            refuse_opaque(run.path, self.setup.vouch)
        needed = _needed(run, undoes_head=undoes_head)
        is_open = is_gating and run.path.signature not in self._clear
        if (is_open and watched != "everything") or (needed and watched is None):
            watch = ForwardWatch("everything" if is_open else needed)
            run = self._forward_pass(inputs, watch, rules)
        activations = composites_of(run.path, {} if watch is None else watch.shifts)
        run = replace(run, activations=activations)
        if watch is not None and is_open:
            run, watch = self._settled(run, watch, inputs, rules)
        if watched != "everything" or is_gating:
            self._watched = "everything" if run.spelled else needed
        return run, watch

    def _settled(
        self, run: _Run, watch: ForwardWatch, inputs: Inputs, rules: Sequence[ReluRule]
    ) -> tuple[_Run, ForwardWatch]:
        """Settle what is nominated; what is a ReLU on these images alone is none, and what follows it counts."""
        refuted: frozenset[int] = frozenset()
        raised: frozenset[int] = frozenset()
        while True:
            elsewhere = partial(self._elsewhere, inputs, rules)
            settled = settle(watch, run.path, inside_of(run.activations), self.setup.vouch, elsewhere)
            if settled.refuted <= refuted and settled.raised <= raised:
                break
            refuted, raised = refuted | settled.refuted, raised | settled.raised
            watch = ForwardWatch("everything", refuted=refuted, raised=raised)
            run = self._forward_pass(inputs, watch, rules)
            run = replace(run, activations=composites_of(run.path, watch.shifts))
        if settled.is_sure and inputs.count:
            self._clear.add(run.path.signature)
        return replace(run, spelled=settled.relus), watch

    def _elsewhere(self, inputs: Inputs, rules: Sequence[ReluRule], places: frozenset[Place]) -> Iterator[Values]:
        """Yield the values at some places on other images, as far as the model takes them."""
        floating = [tensor for tensor in inputs.arrays if tensor.requires_grad]
        for others in zip(*(other_images(as_numpy(tensor)) for tensor in floating), strict=True):
            left = iter(others)
            given = inputs.map(
                lambda tensor, left=left: (
                    _leaf(torch.as_tensor(next(left)).to(tensor)) if tensor.requires_grad else tensor
                )
            )
            watch = ForwardWatch("everything", wanted=places)
            with suppress(GuidedBackpropError):
                self._forward_pass(given, watch, rules)
            yield watch.values

    def _refuse_random(self, inputs: Inputs, output: torch.Tensor, rules: Sequence[ReluRule]) -> None:
        """Raise if the model draws random numbers, told by another run; no more than that is known of a generator.

        What draws nothing in this run drew to be built in the first one, or begins with the same seed in each. And it
        may be another thread that draws, where no operation here did and the output is the same.
        """
        if ANY_DRAW in self.setup.vouch:
            return
        before, draws = self._generators.states(), Draws(self._generators)
        with draws:
            again = self._forward_pass(inputs, None, rules).output
        has_drawn = have_drawn(before, self._generators.states())
        is_drawing = has_drawn and (draws.names or not torch.equal(again, output))
        if is_drawing and not is_vouched(draws.names, self.setup.vouch):
            raise random_error(draws.names)

    def _forward_pass(self, inputs: Inputs, watch: ForwardWatch | None, rules: Sequence[ReluRule]) -> _Run:
        # Copies: a model may begin with an operation in place.
        given = inputs.map(torch.clone)
        leaves = [tensor for tensor in inputs.arrays if tensor.requires_grad]
        firsts = [tensor.grad_fn for tensor in given.arrays if tensor.requires_grad]
        if watch is not None:
            for tensor in given.arrays:
                if tensor.requires_grad:
                    watch.follow(tensor)
        keeps_relus = any(rule.reads_values for rule in rules)
        lean = Lean(firsts, keeps_relus=keeps_relus) if self.setup.memory == "lean" else None
        with watch or nullcontext(), lean or nullcontext():
            output, inside = self._output_of(given)
        if inside is not None:
            leaves, firsts = [inside], [torch.autograd.graph.get_gradient_edge(inside).node]
        # What made a value inside of the model is in front of where the gradient ends.
        path = nodes.Path.between(output.grad_fn, firsts, with_firsts=not self._begins_inside)
        if not path.nodes:
            raise detached("detach(), no_grad(), numpy() or argmax()")
        if not self._begins_inside and nodes.takes_for_one_image(path, firsts):
            raise no_batch(leaves[0].shape)
        forget_images(path, firsts)
        return _Run(leaves, output, path, {} if lean is None else lean.gates, {})

    def optimized(self, inputs: Inputs) -> "TorchBackend":
        # The one place that knows of fast/: all else is the same without it.
        from guided_backprop.backends.torch.fast.plan import Plan  # noqa: PLC0415

        self.check_images(inputs)
        if not inputs.count:
            raise ImageError("images to try must not be empty; received no image. Pass at least one.")
        self.network.check()
        other = copy.copy(self)
        given = inputs.map(_as_tensor)
        gates = self.setup.memory != "lean"
        try:
            with differentiable(), torch.no_grad(), self.network.unremembered():
                other._run_forward = Plan.of(self.network.call, given, partial(self._slope, given), gates=gates).run
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise self.failed(error, given.arrays, given) from error
        return other

    def _slope(self, given: Inputs, run_forward: Runner) -> list[torch.Tensor] | None:
        """Return one gradient of a model that is run so, of one image if it takes one; None if it cannot be explained.

        Of what outputs are added up does not matter, as long as no softmax makes a constant of it.
        """
        backend = copy.copy(self)
        backend._run_forward = run_forward

        def weigh(outputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
            return [np.random.default_rng(0).normal(size=outputs.shape)]

        for images in (given.rows(slice(1)), given):
            try:
                (attributed,) = backend.attribute(images, weigh, [PLAIN])
            except ImageError:
                raise
            except GuidedBackpropError:
                continue
            (gradients,) = attributed.attribution
            return [_as_tensor(gradient) for gradient in gradients.arrays if gradient is not None]
        return None

    def _output_of(self, given: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what is explained, and the value inside of the model that the gradient is taken at, if any."""
        inside = None
        try:
            with self.network.unremembered():
                outputs = self._run_forward(self.network.call, given)
            if self._begins_inside:
                outputs, inside = outputs
            output = chosen(outputs, self.setup.output, torch.is_tensor)
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise self.failed(error, given.arrays, given) from error
        is_real = isinstance(output, torch.Tensor) and output.is_floating_point()
        if not is_real or output.ndim == 0 or len(output) != given.count:
            raise no_rows(given.count, output, "tensor", self.why(given))
        return output, inside

    def _backward(
        self, run: _Run, weights: np.ndarray[Any, Any], editor: Editor, *, is_last: bool
    ) -> tuple[torch.Tensor, ...]:
        seed = torch.as_tensor(weights, dtype=run.output.dtype, device=run.output.device)
        try:
            with editor.watch or nullcontext():
                return torch.autograd.grad(
                    run.output, run.leaves, seed, retain_graph=not is_last, materialize_grads=True
                )
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise self.failed(error, run.leaves) from error


def _needed(run: _Run, *, undoes_head: bool) -> Watched:
    """Return what of the forward pass the graph leaves open, beside what may hide a ReLU."""
    is_headed = undoes_head and nodes.head_behind(run.output.grad_fn) is not None
    return "details" if is_headed or needs_shifts(run.path) else None


def _directly(forward: Callable[[Any], Any], images: Any) -> Any:
    return forward(images)


def _leaf(images: torch.Tensor) -> torch.Tensor:
    leaf = images.detach()
    return (leaf.clone() if leaf.is_inference() else leaf).requires_grad_()


def _is_finite(tensor: torch.Tensor) -> bool:
    # One sum says it of all values, unless they add up to infinity; to look at each takes thirty times as long.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


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
