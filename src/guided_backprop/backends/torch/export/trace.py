"""From a model and what explains it to one graph: forward, walk and rule of ``explain``, recorded as they run."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate, chain
from typing import Any, Final, NamedTuple, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from guided_backprop.arrays import Inputs
from guided_backprop.backends.outputs import chosen
from guided_backprop.backends.refusals import unsettled
from guided_backprop.backends.torch.backend import TorchBackend
from guided_backprop.backends.torch.editor import Editor, Head
from guided_backprop.backends.torch.export.as_it_runs import AsItRuns
from guided_backprop.backends.torch.export.asking import Asking, own_functions
from guided_backprop.backends.torch.export.decompose import as_it_runs, decompositions, may_be_infinite
from guided_backprop.backends.torch.export.simplify import random_operations, simplify, written_constants
from guided_backprop.backends.torch.export.twins import Marks, Results, TwinEditor
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.model.eager import differentiable
from guided_backprop.backends.torch.model.images import as_tensor, leaf_of
from guided_backprop.backends.torch.model.layers import Beginning
from guided_backprop.coverage import Coverage
from guided_backprop.errors import GuidedBackpropError, ModelError
from guided_backprop.rules import ReluRule

#: To trace patches what all threads share.
TRACING: Final = threading.Lock()


class Passed(NamedTuple):
    """What one pass gave under one rule, as it is recorded.

    Attributes:
        coverage: what was done with each non-linearity.
        output: the model's output.
        gradients: those of the score, for each leaf.
        activation: where the gradient is taken inside of the model, the value there.
        weights: how much each output weighs in the score.
        scores: ``(N,)``.
    """

    coverage: Coverage
    output: torch.Tensor
    gradients: Sequence[torch.Tensor]
    activation: torch.Tensor | None
    weights: torch.Tensor
    scores: torch.Tensor


class Recorder(TorchBackend):
    """A model whose passes under some rules can be recorded."""

    def mark(self, inputs: Inputs, rules: Sequence[ReluRule]) -> torch.Tensor:
        """Run on real images, as ``explain`` does; return the output."""
        with differentiable():
            given = inputs.map(as_tensor)
            self._check_runs(given)
            run, watch = self._run(given, rules, undoes_head=self.setup.undo_head)
            if run.unsettled:
                raise unsettled(run.unsettled)
            last = nodes.head_behind(run.output.grad_fn) if self.setup.undo_head else None
            head = None if last is None else Head.of(last, watch)
            # What is a ReLU is one under each rule.
            editor = Editor(
                run.path, rules[0], self.setup.vouch, head, {}, activations=run.activations, spelled=run.spelled
            )
            with editor:
                members = run.path.members
                relus = {node: relu for node in run.path.concerns if (relu := editor.as_relu(node, members))}
        self._rules, self._marks = rules, Marks(run.path, relus, run.activations, run.spelled, last)
        #: How many axes the value has that the gradient is taken at.
        self.axes_inside = run.leaves[0].ndim
        return run.output.detach()

    def passed(self, inputs: Inputs, weigh: Callable[[torch.Tensor], torch.Tensor]) -> list[Passed]:
        """Run forward, and backward under each rule, on tensors that are being traced."""
        if not self.begins_inside:
            inputs = inputs.map(lambda tensor: leaf_of(tensor) if self.is_floating(tensor) else tensor)
        given = inputs.map(torch.clone)
        leaves = [tensor for tensor in inputs.arrays if tensor.requires_grad]
        firsts = [tensor.grad_fn for tensor in given.arrays if tensor.requires_grad]
        start = Beginning(lambda value: None, ()) if self.begins_inside else None
        results, asking = Results(), Asking(given.arrays[0])
        with results, AsItRuns(asking):
            output = self._output_of(given, start)
        if start is not None:
            leaves, firsts = start.leaves, [torch.autograd.graph.get_gradient_edge(leaf).node for leaf in start.leaves]
        path = nodes.Path.between(output.grad_fn, firsts, with_firsts=start is None)
        weights = weigh(output.detach())
        inside = leaves[0] if start is not None else None

        def back(rule: ReluRule) -> Passed:
            editor = TwinEditor(self._marks, path, results, rule, self.setup.vouch)
            with results, editor, editor.watch or nullcontext():
                gradients = torch.autograd.grad(output, leaves, weights, materialize_grads=True, retain_graph=True)
            asking.refuse(own_functions(path.nodes))
            scored = (output if editor.logits is None else editor.logits).detach()
            scores = (weights.flatten(1) * scored.flatten(1)).sum(1) if output.ndim > 1 else weights * scored
            return Passed(editor.coverage(), output, gradients, inside, weights, scores)

        return [back(rule) for rule in self._rules]

    def _output_of(self, given: Inputs, start: Any = None) -> torch.Tensor:
        if not isinstance(given.arrays[0], torch._subclasses.FakeTensor):
            return super()._output_of(given, start)  # type: ignore[no-any-return]
        with self.network.unremembered():
            outputs = self.network.call(given, start)
        return cast("torch.Tensor", chosen(outputs, self.setup.output, torch.is_tensor))


#: A size that is free: which argument has it, and at which axis.
Free = tuple[int, int]


class Trace(NamedTuple):
    """A recorded function.

    Attributes:
        module: the graph.
        parts: where the results of each method are among all of them.
        guards: what was assumed of sizes while it was recorded, as expressions of symbols.
        symbol: the one of the batch's size.
        free: those of the sizes that were free beside it, each by the name of an argument and its axis.
    """

    module: GraphModule
    parts: Sequence[slice]
    guards: Sequence[Any]
    symbol: Any
    free: Mapping[Free, Any]


def traced(
    function: Callable[..., Sequence[Sequence[torch.Tensor]]],
    arrays: Sequence[torch.Tensor],
    free: Sequence[Mapping[int, Free]] = (),
) -> Trace:
    """Record a function of tensors with one row per image, for batches of any size.

    Args:
        function: returns the results of each method; the last of each is whether the others are right.
        arrays: what it is called with.
        free: for each of these which of its axes are free, and which size that is: a place among the arrays, and an
            axis there.

    Raises:
        ModelError: the function asks for values.
    """
    counts: list[int] = []

    def results(*given: torch.Tensor) -> list[torch.Tensor]:
        found = function(*given)
        counts[:] = [len(each) for each in found]
        return list(chain.from_iterable(found))

    env = ShapeEnv()
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=env)
    fakes: list[torch.Tensor] = []
    for place, array in enumerate(arrays):
        fakes.append(_of_any_number(mode, array, free[place] if free else {}, fakes))
    count: Any = fakes[0].shape[0]
    symbol = count.node.expr
    named: dict[Free, Any] = {size: fakes[size[0]].shape[size[1]] for axes in free for size in axes.values()}
    # Asked for now: what turns out to be one number is called by that later.
    symbols = {size: one.node.expr for size, one in named.items()}
    with TRACING, _eager():
        try:
            recorded = make_fx(
                results,
                decomposition_table=dict(as_it_runs()),
                tracing_mode="symbolic",
                _allow_non_fake_inputs=True,
            )(*fakes)
            _refuse_state(recorded)
            with torch.no_grad():
                # What works in place is said without that; and what an engine has no word for in other words.
                module = make_fx(
                    torch.func.functionalize(recorded, remove="mutations_and_views"),
                    decomposition_table=dict(decompositions(selects=may_be_infinite(recorded))),
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
    ends = list(accumulate(counts))
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    simple = simplify(module, [end - 1 for end in ends])
    return Trace(simple, parts, [guard.expr for guard in env.guards], symbol, symbols)


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


def _of_any_number(
    mode: FakeTensorMode, array: torch.Tensor, free: Mapping[int, Free], before: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return an argument without values, of any number of rows, and free along some axes.

    A size that an argument before it has is the same one.
    """
    known = {axis: before[place].shape[there] for axis, (place, there) in free.items() if place < len(before)}
    sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (array.ndim - 1)]
    for axis in free:
        sizes[axis] = DimDynamic.DYNAMIC
    if known:
        with mode:
            return torch.empty(
                [before[0].shape[0] if axis == 0 else known.get(axis, size) for axis, size in enumerate(array.shape)],
                dtype=array.dtype,
            )
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(array.detach(), symbolic_context=context)


@contextmanager
def _eager() -> Iterator[None]:
    """Enable gradients, for this thread alone."""
    with torch.inference_mode(False), torch.enable_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield
