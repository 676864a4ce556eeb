"""PyTorch: run the forward pass as it is, then hook the ReLUs of that one autograd graph.

The hooks live on the graph's nodes and die with it. Nothing is put on the model, no state that another
thread could see is changed, and how a ReLU was written does not matter.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, product
from typing import Any, Final

import numpy as np
import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import Inputs, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Score, Setup, Weigh, per_image
from guided_backprop.backends.evidence import other_images
from guided_backprop.backends.keras import KerasNetwork, is_keras
from guided_backprop.backends.mistakes import no_array, no_rows
from guided_backprop.backends.network import Network
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.refusals import detached, not_finite
from guided_backprop.backends.runs import Start
from guided_backprop.backends.torch.editor import Editor, Head, slopes
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.composites import Composite, Graph, composites_of
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.hidden.chance import Generators, have_drawn, refuse_draws
from guided_backprop.backends.torch.hidden.doubts import what_is_open
from guided_backprop.backends.torch.hidden.found import Spelled
from guided_backprop.backends.torch.hidden.slopes import check_slopes
from guided_backprop.backends.torch.hidden.spelled import Before, Seen, settle, way_of
from guided_backprop.backends.torch.hidden.watch import ForwardWatch, Watched
from guided_backprop.backends.torch.lean import Gate, Lean, forget_images
from guided_backprop.backends.torch.model.eager import differentiable
from guided_backprop.backends.torch.model.images import as_tensor, is_finite, leaf_of, like, placed
from guided_backprop.backends.torch.model.layers import Beginning
from guided_backprop.backends.torch.model.network import TorchNetwork
from guided_backprop.backends.torch.model.undrawn import Undrawn
from guided_backprop.backends.torch.refusals import HINTS, refuse_opaque, refuse_traced
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ImageError
from guided_backprop.rules import PLAIN, ReluRule

#: Runs a model's forward function on images.
Runner = Callable[[Callable[[Any], Any], Any], Any]

# Of so many images one is looked at before all are explained: what is watched is kept, twice what a gradient needs.
_MANY: Final = 8

_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_DTYPES_OF_ARRAYS = {"float64", "float32", "float16"}


@dataclass(frozen=True)
class _Run:
    """One forward pass: its leaves, its output, the nodes between them, and what these images leave unsettled."""

    leaves: list[torch.Tensor]
    output: torch.Tensor
    path: nodes.Path
    gates: Mapping[Node, Gate]
    activations: Mapping[Node, Composite]
    spelled: Sequence[Spelled] = ()
    unsettled: str = ""


class TorchBackend(Backend):
    """A ``torch.nn.Module`` or any differentiable callable on tensors."""

    framework = "torch"

    functions = torch

    memories = ("lean",)

    batched = "lambda images: torch.stack([model(image) for image in images])"

    advice, hints = "Check the images' shape, dtype and device.", HINTS

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._run_forward: Runner = lambda forward, images: forward(images)
        # Whether it ran once and drew nothing.
        self._is_known = False
        # What of the next pass is watched: all, as long as nothing is known of the model.
        self._watched: Watched = "everything"
        self._before = Before()
        # Of which shapes the images are known to be a batch.
        self._batches = set[Hashable]()

    @cached_property
    def _generators(self) -> Generators:
        return Generators(self.sources)

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
        return is_finite(as_tensor(array))

    def attribute(
        self, inputs: Inputs, weigh: Weigh, rules: Sequence[ReluRule], score: Score | None = None
    ) -> list[Attributed]:
        self.network.check()
        with differentiable():
            undoes = self.setup.undo_head and score is None
            given = inputs.map(partial(placed, self.network.model))
            self._check_runs(given)
            if not self._is_known:
                self._look_at_few(given, rules, undoes_head=undoes)
            run, watch = self._run(given, rules, undoes_head=undoes)
            last = nodes.head_behind(run.output.grad_fn) if undoes else None
            head = None if last is None else Head.of(last, watch)
            outputs = as_numpy(run.output)
            weights, scores = (weigh(outputs), None) if score is None else slopes(score, run.output)
            attributed = []
            for position, rule in enumerate(rules):
                editor = Editor(
                    run.path, rule, self.setup.vouch, head, run.gates, activations=run.activations, spelled=run.spelled
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
        are_finite = all(is_finite(gradient) for leaves in gradients for gradient in leaves)
        if not (np.isfinite(scores).all() and are_finite):
            raise not_finite()
        name = None if editor.head is None else row(editor.head.node).word
        activation = self.inside(run.leaves[0].detach(), inputs) if self.begins_inside else None
        inputs = inputs if activation is None else Inputs.of(activation)
        attribution = [self._in_form(leaves, inputs) for leaves in gradients]
        return Attributed(attribution, scores, outputs, coverage, name, activation)

    def outputs(self, inputs: Inputs) -> np.ndarray[Any, Any]:
        self.network.check()
        given = inputs.map(lambda array: placed(self.network.model, array).clone())
        with differentiable(), torch.no_grad():
            self._check_runs(given)
            return as_numpy(self._output_of(given))

    def from_numpy(self, array: np.ndarray[Any, Any], like: Any) -> Any:
        if isinstance(like, np.ndarray):
            return array.astype(like.dtype)
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    def _in_form(self, gradients: tuple[torch.Tensor, ...], inputs: Inputs) -> Inputs:
        """Return the gradients in the form of the inputs."""
        left = iter(gradients)
        return inputs.map(lambda array: like(next(left), array) if self.is_floating(array) else None)

    def _look_at_few(self, inputs: Inputs, rules: Sequence[ReluRule], *, undoes_head: bool) -> None:
        """Look at a part of many images: a way on which none of their values may be a ReLU's is not watched for all.

        What draws by somebody's leave draws for all of them at once, and what leaves anything open is watched whole.
        """
        if self.setup.vouch or inputs.count < _MANY or not any(rule.needs_every_relu for rule in rules):
            return
        with suppress(GuidedBackpropError):
            self._run(inputs.rows(slice(inputs.count // _MANY)), rules, undoes_head=undoes_head)
        self._is_known = False
        if not self._before.is_clear_for_all:
            self._watched, self._before = "everything", Before()

    def _run(self, inputs: Inputs, rules: Sequence[ReluRule], *, undoes_head: bool) -> tuple[_Run, ForwardWatch | None]:
        """Run forward; once more, watched, if the graph leaves open what only the values can tell."""
        if not self.begins_inside:
            inputs = inputs.map(lambda tensor: leaf_of(tensor) if self.is_floating(tensor) else tensor)
        is_gating = any(rule.needs_every_relu for rule in rules)
        self._before = self._before.now()
        watched = self._watched if is_gating or self._watched != "everything" else None
        watch = ForwardWatch(watched, self.setup.vouch) if watched else None
        run = self._first_pass(inputs, watch, rules)
        refuse_opaque(run.path, self.setup.vouch, is_gating=is_gating)
        graph = Graph(run.path)
        needed = what_is_open(run.output.grad_fn, graph, undoes_head=undoes_head)
        is_open = is_gating and not self._before.is_clear(way_of(run.path), inputs.count)
        if (is_open and watched != "everything") or (needed and watched is None):
            watch = ForwardWatch("everything" if is_open else needed, self.setup.vouch)
            del run, graph  # frees what they keep
            run = self._forward_pass(inputs, watch, rules)
            graph = Graph(run.path)
        run = replace(run, activations=composites_of(graph, {} if watch is None else watch.shifts))
        if is_gating:
            check_slopes(run.path, run.activations, self.setup.vouch)
        if watch is not None and is_open:
            run, watch = self._settled(run, watch, inputs, rules)
        if watched != "everything" or is_gating:
            self._watched = "everything" if run.spelled else needed
        return run, watch

    def _first_pass(self, inputs: Inputs, watch: ForwardWatch | None, rules: Sequence[ReluRule]) -> _Run:
        """Run forward; raise if the images are one image to the model, or if it draws."""
        is_known, self._is_known = self._is_known, True
        before = self._generators.states()
        run = self._forward_pass(inputs, watch, rules)
        if have_drawn(before, self._generators.states()):
            self._is_known = False
            refuse_draws(
                self._generators, run.output, lambda: self._forward_pass(inputs, None, rules).output, self.setup.vouch
            )
        elif not is_known:
            self.refuse_chance(inputs, as_numpy(run.output))
        shapes = tuple(tensor.shape for tensor in inputs.arrays)
        if shapes not in self._batches:
            if not self.begins_inside and nodes.may_take_for_one_image(run.path, shapes[0]):
                self.refuse_one_image(inputs)
            self._batches.add(shapes)
        return run

    def _settled(
        self, run: _Run, watch: ForwardWatch, inputs: Inputs, rules: Sequence[ReluRule]
    ) -> tuple[_Run, ForwardWatch]:
        """Settle what is nominated; what is a ReLU on these images alone is none, and what follows it counts."""
        self._before.look(inputs.count)
        self._before.remember(watch.expressions.read)
        while True:
            again = partial(self._again, inputs, run, rules)
            settled = settle(watch, run.path, run.activations, self.setup.vouch, again, before=self._before)
            known = watch.known.joined(settled.refuted, settled.raised)
            if known is None:
                break
            watch = ForwardWatch("everything", self.setup.vouch, known=known)
            run = self._forward_pass(inputs, watch, rules)
            run = replace(run, activations=composites_of(Graph(run.path), watch.shifts))
        if settled.is_sure and inputs.count:
            self._before.note(way_of(run.path), watch, inputs.count)
        return replace(run, spelled=settled.relus, unsettled=settled.unsettled), watch

    def _again(
        self, inputs: Inputs, run: _Run, rules: Sequence[ReluRule], make: Callable[[], Seen], *, is_elsewhere: bool
    ) -> Iterator[tuple[Seen, nodes.Path | None]]:
        """Run the model on other images, or on its own before; yield what watched, and the graph if it ran."""
        every = (chain([array][is_elsewhere:], other_images(array)) for array in map(as_numpy, run.leaves))
        for others in zip(*every, strict=True):
            pairs = zip(others, run.leaves, strict=True)
            left: Iterator[torch.Tensor] = iter([leaf_of(torch.as_tensor(other).to(leaf)) for other, leaf in pairs])
            begin = next(left) if self.begins_inside else None
            given = inputs.map(lambda tensor, left=left: next(left) if tensor.requires_grad else tensor)
            watch, path = make(), None
            with suppress(GuidedBackpropError):
                path = self._forward_pass(given, watch, rules, begin).path
            yield watch, path

    def _forward_pass(
        self, inputs: Inputs, watch: Seen | None, rules: Sequence[ReluRule], begin: torch.Tensor | None = None
    ) -> _Run:
        # Copies: a model may begin with an operation in place.
        given = inputs.map(torch.clone)
        leaves = [tensor for tensor in inputs.arrays if tensor.requires_grad]
        firsts = [tensor.grad_fn for tensor in given.arrays if tensor.requires_grad]
        followers = [] if watch is None else [watch.follow]
        for follow, tensor in product(followers, given.arrays):
            if tensor.requires_grad:
                follow(tensor)
        keeps_relus = any(rule.reads_values for rule in rules)
        lean = Lean(firsts, keeps_relus=keeps_relus) if self.setup.memory == "lean" else None
        followers += [] if lean is None else [lean.follow]
        start = Beginning(partial(self.check_beginning, count=inputs.count), followers, begin)
        with watch or nullcontext(), lean or nullcontext():
            output = self._output_of(given, start if self.begins_inside else None)
        if self.begins_inside:
            leaves, firsts = start.leaves, [torch.autograd.graph.get_gradient_edge(leaf).node for leaf in start.leaves]
        # What made a value inside of the model is in front of where the gradient ends.
        path = nodes.Path.between(output.grad_fn, firsts, with_firsts=not self.begins_inside)
        if not path.nodes:
            raise detached("detach(), no_grad(), numpy() or argmax()")
        forget_images(path, firsts)
        return _Run(leaves, output, path, {} if lean is None else lean.gates, {})

    def optimized(self, inputs: Inputs) -> "TorchBackend":
        # The one place that knows of fast/: all else is the same without it.
        from guided_backprop.backends.torch.fast.plan import Plan  # noqa: PLC0415

        if self.begins_inside:
            return self
        self.check_images(inputs)
        if not inputs.count:
            raise ImageError("images to try must not be empty; received no image. Pass at least one.")
        self.network.check()
        other = copy.copy(self)
        given = inputs.map(partial(placed, self.network.model))
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
            return [as_tensor(gradient) for gradient in gradients.arrays if gradient is not None]
        return None

    def _check_runs(self, given: Inputs) -> None:
        if self.network.end is None:
            return
        try:
            # Copies, as in the run that counts; what is behind the layer would draw what no map needs.
            with torch.no_grad(), self.network.unremembered(), Undrawn():
                self.network.check_runs(given.map(torch.clone))
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise self.failed(error, given.arrays, given) from error

    def _output_of(self, given: Inputs, start: Start | None = None) -> Any:
        """Return what is explained; ``start`` is given the value inside that the gradient begins at."""
        try:
            with self.network.unremembered():
                outputs = self._run_forward(partial(self.network.call, start=start), given)
            output = chosen(outputs, self.setup.output, torch.is_tensor)
        except (torch.OutOfMemoryError, GuidedBackpropError):
            raise
        except Exception as error:
            raise self.failed(error, given.arrays, given) from error
        is_real = isinstance(output, torch.Tensor) and output.is_floating_point()
        if not is_real or output.ndim == 0 or len(output) != given.count:
            raise no_rows(given.count, output, "tensor", self.why(given))
        return output

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
