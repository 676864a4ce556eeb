"""From a model and what explains it to one graph: forward, walk and rule of ``explain``, recorded as they run.

What has to be judged by values is judged in a run on real images. Its marks (which nodes are ReLUs or composite
activations, which one is the head) are carried over to the same nodes of the run that is recorded, where tensors have
no values.
"""

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from guided_backprop.arrays import Inputs
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.torch.backend import TorchBackend
from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.editor import Editor, Head
from guided_backprop.backends.torch.export.as_it_runs import AsItRuns
from guided_backprop.backends.torch.export.decompose import as_it_runs, decompositions
from guided_backprop.backends.torch.export.simplify import random_operations, simplify, written_constants
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.composites import Composite
from guided_backprop.backends.torch.graph.operations import row
from guided_backprop.backends.torch.graph.relus import Relu, saved
from guided_backprop.backends.torch.hidden.spelled import Spelled
from guided_backprop.backends.torch.leaving import Gradients, leaving
from guided_backprop.backends.torch.model.eager import differentiable
from guided_backprop.backends.torch.model.images import as_tensor, leaf_of
from guided_backprop.backends.torch.model.layers import Beginning
from guided_backprop.backends.torch.own import Arguments, Function, Named
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ModelError, OpaqueRegionError
from guided_backprop.rules import Deconv, Guided, Plain, ReluRule

# To trace patches what all threads share.
_LOCK: Final = threading.Lock()


class Passed(NamedTuple):
    """What one pass gave, as it is recorded.

    Attributes:
        output: the model's output.
        gradients: those of the score, for each leaf.
        activation: where the gradient is taken inside of the model, the value there.
        weights: how much each output weighs in the score.
        scores: ``(N,)``.
    """

    output: torch.Tensor
    gradients: Sequence[torch.Tensor]
    activation: torch.Tensor | None
    weights: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True)
class _Marks:
    """What a run on real images told of a model's graph."""

    path: nodes.Path
    relus: Mapping[Node, Relu]
    activations: Mapping[Node, Composite]
    spelled: Sequence[Spelled]
    head: Node | None


class Recorder(TorchBackend):
    """A model whose passes under one rule can be recorded.

    Attributes:
        coverage: what was done with each non-linearity in the pass that was recorded last.
    """

    coverage = Coverage()

    def mark(self, inputs: Inputs, rule: ReluRule) -> torch.Tensor:
        """Run on real images, as ``explain`` does; return the output."""
        with differentiable():
            given = inputs.map(as_tensor)
            self._check_runs(given)
            run, watch = self._run(given, [rule], undoes_head=self.setup.undo_head)
            last = nodes.head_behind(run.output.grad_fn) if self.setup.undo_head else None
            head = None if last is None else Head.of(last, watch)
            editor = Editor(
                run.path, rule, self.setup.vouch, head, {}, activations=run.activations, spelled=run.spelled
            )
            with editor:
                members = run.path.members
                relus = {node: relu for node in run.path.concerns if (relu := editor.as_relu(node, members))}
        self._rule, self._marks = rule, _Marks(run.path, relus, run.activations, run.spelled, last)
        return run.output.detach()

    def passed(self, inputs: Inputs, weigh: Callable[[torch.Tensor], torch.Tensor]) -> Passed:
        """Run forward and backward on tensors that are being traced."""
        if not self.begins_inside:
            inputs = inputs.map(lambda tensor: leaf_of(tensor) if self.is_floating(tensor) else tensor)
        given = inputs.map(torch.clone)
        leaves = [tensor for tensor in inputs.arrays if tensor.requires_grad]
        firsts = [tensor.grad_fn for tensor in given.arrays if tensor.requires_grad]
        start = Beginning(lambda value: None, ()) if self.begins_inside else None
        results = _Results()
        with results, AsItRuns():
            output = self._output_of(given, start)
        if start is not None:
            leaves, firsts = start.leaves, [torch.autograd.graph.get_gradient_edge(leaf).node for leaf in start.leaves]
        path = nodes.Path.between(output.grad_fn, firsts, with_firsts=start is None)
        editor = _TwinEditor(self._marks, path, results, self._rule, self.setup.vouch)
        with results, editor, editor.watch or nullcontext():
            weights = weigh(output.detach())
            gradients = torch.autograd.grad(output, leaves, weights, materialize_grads=True)
        self.coverage = editor.coverage()
        scored = output if editor.logits is None else editor.logits
        scores = (weights.flatten(1) * scored.detach().flatten(1)).sum(1) if output.ndim > 1 else weights * scored
        return Passed(output, gradients, leaves[0] if start is not None else None, weights, scores)

    def _output_of(self, given: Inputs, start: Any = None) -> torch.Tensor:
        if not isinstance(given.arrays[0], torch._subclasses.FakeTensor):
            return super()._output_of(given, start)  # type: ignore[no-any-return]
        with self.network.unremembered():
            outputs = self.network.call(given, start)
        return cast("torch.Tensor", chosen(outputs, self.setup.output, torch.is_tensor))


class _Results(Dispatched):
    """Keeps what each operation was given first, and gave, by its node's place in time.

    An operation is dispatched right after its node was made; those that it is made of itself come later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_number: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        number = torch._C._autograd._get_sequence_nr() - 1
        with enable_python_dispatcher():
            result = func(*args, **(kwargs or {}))
        # What is asked of a tensor's form, as its device, is no operation.
        if isinstance(result, torch.Tensor | tuple | list):
            self._by_number.setdefault(number, (args[0] if args else None, result))
        return result

    def given(self, node: Node) -> torch.Tensor:
        """Return what the operation of a node was given first."""
        return cast("torch.Tensor", self._by_number[node._sequence_nr()][0])

    def result(self, node: Node, output: int) -> torch.Tensor:
        """Return one of the results of the operation of a node."""
        result = self._by_number[node._sequence_nr()][1]
        return cast("torch.Tensor", result[output] if isinstance(result, tuple | list) else result)


class _TwinEditor(Editor):
    """Puts a rule on the nodes of a graph that is recorded, by what their twins of a real run are known to be.

    Args:
        marks: what the real run told.
        path: the nodes of the run that is recorded.
        results: what its operations gave.
        rule: what a ReLU lets through.
        vouch: what is known of parts that hide what they compute.

    Attributes:
        logits: what goes into the head that is undone, or None.
    """

    def __init__(
        self, marks: _Marks, path: nodes.Path, results: _Results, rule: ReluRule, vouch: Mapping[str, Any]
    ) -> None:
        twins = _twins(marks.path, path)
        self._real = {there: here for here, there in twins.items()}
        self._relus = marks.relus
        self._results = results
        head = None if marks.head is None else twins[marks.head]
        self.logits = None if head is None else results.given(head)
        activations = {
            twins[last]: Composite(activation.name, frozenset(twins[part] for part in activation.parts))
            for last, activation in marks.activations.items()
        }
        spelled = [_moved(relu, twins) for relu in marks.spelled]
        shown = None if head is None or self.logits is None else Head(head, self.logits)
        super().__init__(path, rule, vouch, shown, {}, activations=activations, spelled=spelled)

    def _treat(self, node: Node, path: nodes.Path) -> None:
        # What a batch-norm's derivative reads where is no question of a graph without memory.
        if row(node).word != "batch_norm" or nodes.uses_batch(self._real[node]):
            super()._treat(node, path)

    def _refuse_cap(self, node: Node, path: nodes.Path) -> None:
        """Nothing: the real run was not refused."""

    def as_relu(self, node: Node, on_path: Container[Node]) -> Relu | None:
        relu = self._relus.get(self._real[node])
        if relu is None:
            return None
        x = None if relu.x is None else saved(node, ("self", "other")[relu.operand]).detach()
        cap = saved(node, "max") if isinstance(relu.cap, torch.Tensor) else relu.cap
        return Relu(node, relu.name, relu.operand, x, cap)

    def _edit(self, relu: Relu, *, is_hidden: bool) -> None:
        """Put the rule on one ReLU, out of place: on what its own derivative made of what arrived."""
        if is_hidden:
            super()._edit(relu, is_hidden=True)
        else:
            self._after(relu.node, partial(_leave, self._rule, relu))

    def _close(self, spelled: Sequence[Spelled]) -> None:
        for relu in spelled:
            self._note("relu", self._rule.name)
            self._before(relu.node, partial(_close, self._rule, relu, self._results.result(relu.node, relu.output)))

    def _skip_head(self, logits: torch.Tensor, inputs: Arguments, gradients: Arguments) -> Arguments:
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])


def _leave(rule: ReluRule, relu: Relu, inputs: Gradients, gradients: Gradients) -> Gradients:
    operand, (g,) = relu.operand, gradients
    derived = inputs[operand]
    if g is None or derived is None:
        return inputs
    form = derived
    if relu.x is not None:
        derived = torch.where(relu.is_open(relu.x), g, 0.0)
    x, y = relu.values() if rule.reads_values else (None, None)
    x, y = (None if tensor is None else tensor.expand_as(g) for tensor in (x, y))
    left = _left(rule, g, derived, x, y)
    left = left if left.shape == form.shape else left.sum_to_size(form.shape)
    return (*inputs[:operand], left.to(form.dtype), *inputs[operand + 1 :])


def _close(rule: ReluRule, relu: Spelled, y: torch.Tensor, gradients: Gradients) -> Gradients:
    g = gradients[relu.output]
    if g is None:
        return gradients
    closed = float(relu.y[~relu.is_open].flat[0])
    left = _left(rule, g, torch.where(y.detach() != closed, g, 0.0), None, y)
    return (*gradients[: relu.output], left, *gradients[relu.output + 1 :])


def _left(
    rule: ReluRule, g: torch.Tensor, derived: torch.Tensor, x: torch.Tensor | None, y: torch.Tensor | None
) -> torch.Tensor:
    """Return what leaves a ReLU; nothing is written over, for a graph has no memory."""
    match rule:
        case Plain():
            return derived
        case Guided():
            return derived.clamp(min=0)
        case Deconv():
            return g.clamp(min=0)
        case _:
            return leaving(rule, g, derived, x, y)


def _twins(path: nodes.Path, other: nodes.Path) -> dict[Node, Node]:
    """Return which node of another run of the model each node is.

    Raises:
        ModelError: they are not the same graph.
    """
    twins = dict(zip(path.nodes, other.nodes, strict=False))
    is_same = len(path.nodes) == len(other.nodes) and all(
        row(node) == row(twin)
        and [twins.get(child) for child in path.children[node] if child in path.members]
        == [child for child in other.children[twin] if child in other.members]
        for node, twin in twins.items()
    )
    if not is_same:
        raise ModelError(
            "model must take the same way whatever the images' values and number; received one that takes another way "
            "while it is traced. Export the part of it that does not choose."
        )
    return twins


def _moved(relu: Spelled, twins: Mapping[Node, Node]) -> Spelled:
    """Return a spelled ReLU of the other run."""
    closed = np.unique(relu.y[~relu.is_open])
    if len(closed) != 1:
        raise OpaqueRegionError(
            "a ReLU that is spelled as arithmetic must be closed at one value to be exported; received "
            f"{relu.name}, closed at {len(closed)}. Write it as torch.relu."
        )
    return Spelled(twins[relu.node], relu.output, relu.name, relu.y, relu.is_open)


class Trace(NamedTuple):
    """A recorded function.

    Attributes:
        module: the graph.
        guards: what was assumed of the batch's size while it was recorded, as expressions of one symbol.
        symbol: that symbol.
    """

    module: GraphModule
    guards: Sequence[Any]
    symbol: Any


def traced(function: Callable[..., object], arrays: Sequence[torch.Tensor]) -> Trace:
    """Record a function of tensors with one row per image, for batches of any size.

    Raises:
        ModelError: the function asks for values.
    """
    env = ShapeEnv()
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=env)
    fakes = [_of_any_number(mode, array) for array in arrays]
    count: Any = fakes[0].shape[0]
    symbol = count.node.expr
    with _LOCK, _eager():
        try:
            recorded = make_fx(
                function,
                decomposition_table=dict(as_it_runs()),
                tracing_mode="symbolic",
                _allow_non_fake_inputs=True,
            )(*fakes)
            _refuse_state(recorded)
            with torch.no_grad():
                # What works in place is said without that; and what an engine has no word for in other words.
                module = make_fx(
                    torch.func.functionalize(recorded, remove="mutations_and_views"),
                    decomposition_table=dict(decompositions()),
                    tracing_mode="symbolic",
                    _allow_non_fake_inputs=True,
                )(*fakes)
        except GuidedBackpropError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                "model must be one that can be traced: nothing that it does may depend on what its tensors hold; "
                f"received {type(error).__name__}: {reason:.300}. Export the part of it that can be."
            ) from error
    return Trace(simplify(module), [guard.expr for guard in env.guards], symbol)


def _refuse_state(module: GraphModule) -> None:
    """Raise if the model changes what it keeps, or draws: a graph would do as in the run that was recorded."""
    drawing = sorted(set(random_operations(module)))
    if drawing:
        raise ModelError(
            f"model must give one output for one image to be exported; received {drawing[0]}, which draws random "
            "numbers. Take the random part out."
        )
    written = sorted(set(written_constants(module)))
    if written:
        raise ModelError(
            "model must not change its buffers in the forward pass to be exported; received one that does "
            f"({len(written)} of them). Take out what counts or remembers."
        )


def _of_any_number(mode: FakeTensorMode, array: torch.Tensor) -> torch.Tensor:
    sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (array.ndim - 1)]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(array.detach(), symbolic_context=context)


@contextmanager
def _eager() -> Iterator[None]:
    """Enable gradients, for this thread alone."""
    with torch.inference_mode(False), torch.enable_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield
