"""Puts a rule on the nodes of one autograd graph, and keeps the record of what was done."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from guided_backprop.arrays import as_numpy
from guided_backprop.backends.base import Score, Vouch, per_image
from guided_backprop.backends.mistakes import described
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import coverage_of, detached, no_score
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.graph.composites import Composite, inside_of
from guided_backprop.backends.torch.graph.operations import operation, row
from guided_backprop.backends.torch.graph.relus import Relu, relu_of, saved
from guided_backprop.backends.torch.hidden.audit import BackwardWatch
from guided_backprop.backends.torch.hidden.chance import is_vouched
from guided_backprop.backends.torch.hidden.found import Spelled, closing
from guided_backprop.backends.torch.hidden.watch import ForwardWatch
from guided_backprop.backends.torch.layouts import reader_of
from guided_backprop.backends.torch.lean import Gate
from guided_backprop.backends.torch.leaving import Gradients, Shortcut, clamped, leaving, shortcut_of
from guided_backprop.backends.torch.own import own_function, prepare
from guided_backprop.backends.torch.refusals import training_error
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError, OpaqueRegionError
from guided_backprop.rules import PLAIN, Guided, Plain, ReluRule

# What may belong to training, beside what is random: their names do not say it.
_TRAINABLE: Final = frozenset({"batch_norm", "rrelu"})


class Head(NamedTuple):
    """The final softmax or sigmoid, and what goes into it."""

    node: Node
    logits: torch.Tensor

    @classmethod
    def of(cls, node: Node, watch: ForwardWatch | None) -> "Head":
        """Return the head that a node is, with the logits that the watched forward pass showed."""
        name, result = row(node).word, saved(node, "result")
        if name == "log_sigmoid":
            return cls(node, saved(node, "self").detach())
        logits = None if watch is None or result is None else watch.logits_of(result)
        if logits is None:
            raise OpaqueRegionError(
                f"the logits in front of the final {name} must be visible; "
                "received a model that hides them. Pass undo_head=False, or the model without its last layer."
            )
        return cls(node, logits)


class Editor:
    """Puts a rule on the nodes of one graph, keeps the record of what was done, and takes the rule off again.

    Args:
        path: the nodes between score and images.
        rule: what a ReLU lets through.
        vouch: what is known of parts that hide what they compute.
        head: the final softmax or sigmoid that is undone, if any.
        gates: of the ReLUs that keep one bit a value, what lets the gradient through.
        activations: the composite activations, by the node that each ends in.
        spelled: the ReLUs that are spelled as arithmetic.

    Attributes:
        head: as given.
        scores: with a head, the score of its logits, for each backward pass so far.
        watch: to be entered during backward passes; None if the graph shows everything.
    """

    def __init__(
        self,
        path: nodes.Path,
        rule: ReluRule,
        vouch: Vouch,
        head: "Head | None",
        gates: Mapping[Node, Gate],
        *,
        activations: Mapping[Node, Composite],
        spelled: Sequence[Spelled] = (),
    ) -> None:
        self.scores: list[NDArray[np.float64]] = []
        self.watch: BackwardWatch | None = None
        self.head = head
        self._rule, self._vouch, self._gates = rule, vouch, gates
        self._counts: Counter[tuple[str, str]] = Counter()
        self._handles: list[RemovableHandle] = []
        parts = inside_of(activations)
        for node, activation in activations.items():
            self._activation(node, activation.name, is_written_out=True)
        if rule.needs_every_relu:
            self._close(spelled)
            parts |= {relu.node for relu in spelled}
        for node in path.concerns:
            if node not in parts:
                self._treat(node, path)
            elif node in self._gates:
                # It lets everything pass by itself.
                self._after(node, partial(self._gates[node].close, PLAIN))
            elif row(node).kind is Kind.HIDDEN:
                prepare(node, PLAIN, path.children[node])
        if self.watch is None:
            self.coverage()

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *error: object) -> None:
        """Take the rule off the graph."""
        for handle in self._handles:
            handle.remove()

    def _treat(self, node: Node, path: nodes.Path) -> None:
        """Put the rule on one node, or note that it keeps its derivative."""
        kind, word = row(node)
        if word == "batch_norm":
            reader = reader_of(node)
            if reader is not None:
                self._before(node, reader)
            if not nodes.uses_batch(node):
                return
        if kind is Kind.RANDOM or word in _TRAINABLE:
            _refuse_training(node, self._vouch)
        if kind is Kind.HIDDEN:
            self._prepare(node, path)
        relu = self.as_relu(node, path.members)
        if relu is not None:
            self._relu(relu)
        elif self.head is not None and node is self.head.node:
            self._note(word, "undone")
            self._after(node, partial(self._skip_head, self.head.logits))
        elif nodes.is_in_place_on_view(node):
            self.watch = self.watch or BackwardWatch(self._rule, self._note)
            self._before(node, self.watch.enter)
            self._after(node, self.watch.leave)
        else:
            name = nodes.word_of(node, path.members)
            if name is not None:
                self._refuse_cap(node, path)
                self._activation(node, name)

    def _refuse_cap(self, node: Node, path: nodes.Path) -> None:
        """Raise if a node and a ReLU beside it are one ReLU with a cap, and the rule makes another map of the two."""
        is_the_same = type(self._rule) in (Plain, Guided) or not self._rule.needs_every_relu
        if not (is_the_same or operation(node) in self._vouch) and nodes.is_cap_of_relu(node, path):
            raise OpaqueRegionError(
                f"the {self._rule.name} rule acts on a ReLU with a cap as one operation; received a ReLU and "
                f"{operation(node)}. Write it as torch.clamp(x, 0, cap); if these are two, pass "
                f"vouch={{{operation(node)!r}: 'plain'}}."
            )

    def _prepare(self, node: Node, path: nodes.Path) -> None:
        """See to what a function hides: one of ours is told the rule, another's graphs are watched."""
        prepare(node, self._rule, path.children[node])
        if nodes.runs_graphs(node):
            self.watch = self.watch or BackwardWatch(self._rule, self._note)

    def as_relu(self, node: Node, on_path: Container[Node]) -> Relu | None:
        """Return a node as a ReLU: by what it saved, or because the user says it of what hides what it computes."""
        relu = relu_of(node, on_path)
        if relu is None and self._vouch:
            name = operation(node) if row(node).kind is Kind.UNKNOWN else nodes.opaque_name(node)
            return Relu(node, name) if name is not None and self._vouch.get(name) == "relu" else None
        return relu

    def _relu(self, relu: Relu) -> None:
        """Put the rule on a ReLU; one of an optimised model has it already."""
        self._note(relu.name, self._rule.name)
        is_hidden = row(relu.node).kind in (Kind.HIDDEN, Kind.UNKNOWN)
        if relu.node in self._gates:
            self._after(relu.node, partial(self._gates[relu.node].close, self._rule))
        elif not (is_hidden and own_function(relu.node)):
            self._edit(relu, is_hidden=is_hidden)

    def _close(self, spelled: Sequence[Spelled]) -> None:
        """Put the rule on what arrives at ReLUs that are spelled as arithmetic."""
        if spelled and not self._rule.is_shut_by_gate:
            raise OpaqueRegionError(
                f"the {self._rule.name} rule passes gradients where a gate is shut, so a ReLU must be an operation "
                f"of its own; received one spelled as arithmetic, with {spelled[0].name}. Write it as torch.relu."
            )
        for node, hook in closing(spelled, lambda g, derived, y: leaving(self._rule, g, derived, None, y)):
            self._note("relu", self._rule.name)
            self._before(node, hook)

    def _before(self, node: Node, hook: Callable[..., Any]) -> None:
        self._handles.append(node.register_prehook(hook))

    def _after(self, node: Node, hook: Callable[..., Any]) -> None:
        """Put a hook right after a node's own derivative: before those that the model put there."""
        handle = node.register_hook(hook)
        hooks = handle.hooks_dict_ref()
        if hooks is not None and len(hooks) > 1:
            # They run in the order in which they were put in; to move one within an OrderedDict does not change that.
            others = {key: hooks.pop(key) for key in list(hooks) if key != handle.id}
            hooks.update(others)
        self._handles.append(handle)

    def _note(self, name: str, treatment: str) -> None:
        self._counts[name, treatment] += 1

    def _activation(self, node: Node, name: str, *, is_written_out: bool = False) -> None:
        """Note an activation that is no ReLU, and put the rule on it if the rule says so."""
        self._note(name, self._rule.treatment(name))
        if not self._rule.guides(name):
            return
        if type(self._rule) is Guided:
            # A derivative is linear in what arrives: to clamp that is the same as to close what the derivative made.
            self._before(node, clamped)
        elif is_written_out:
            raise OpaqueRegionError(
                f"the {self._rule.name} rule acts on what an activation's derivative gives; received {name} written as "
                "arithmetic, which has several. Write it as one function of torch.nn.functional."
            )
        else:
            self._after(node, partial(leave, self._rule, Relu(node, name)))

    def _edit(self, relu: Relu, *, is_hidden: bool) -> None:
        """Put the rule on one ReLU: on what its own derivative made of what arrived.

        Of a custom function it is not known what that derivative does: it may be one of several values at once. There
        the guided rule is put in front of it.
        """
        if is_hidden and self._rule.reads_values:
            raise OpaqueRegionError(
                f"the {self._rule.name} rule reads the values of every ReLU; received {relu.name}, a custom function "
                "that hides them. Write it as torch.relu."
            )
        if is_hidden and type(self._rule) is Guided:
            self._before(relu.node, clamped)
            return
        short = shortcut_of(self._rule)
        if is_hidden or short is None or relu.x is not None:
            self._after(relu.node, partial(leave, self._rule, relu))
        elif short.clamps or not short.is_derived:
            self._after(relu.node, partial(_leave_short, short))

    def _skip_head(self, logits: torch.Tensor, inputs: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let the gradient pass the final softmax or sigmoid unchanged, and note the score of its logits."""
        self.scores.append(per_image(as_numpy(gradients[0]), as_numpy(logits)))
        return (gradients[0].to(inputs[0].dtype), *inputs[1:])

    def coverage(self) -> Coverage:
        """Return what was done; raise if the rule found nothing to act on."""
        return coverage_of(self._counts, self._rule)


def _refuse_training(node: Node, vouch: Vouch) -> None:
    if nodes.is_random(node) and (row(node).word == "batch_norm" or not is_vouched({operation(node)}, vouch)):
        raise training_error(operation(node))
    if nodes.mixes_images(node):
        raise ModelError(
            "model must treat every image alone; received batch-norm without running statistics, which mixes "
            "the images of a batch. Pass batch_size=1."
        )


def _leave_short(short: Shortcut, inputs: Gradients, gradients: Gradients) -> Gradients | None:
    """Do as :func:`leave` for a named rule, where the node's own derivative is the whole of it: this is met most."""
    derived, (g,) = inputs[0], gradients
    if derived is None or g is None:
        return None
    if short.is_derived:
        short.of(derived, is_own=True)
        return None
    return (short.of(g, is_own=False), *inputs[1:])


def leave(rule: ReluRule, relu: Relu, inputs: Gradients, gradients: Gradients, left: Any = leaving) -> Gradients:
    """Let go on what leaves a ReLU under a rule, which ``left`` computes."""
    operand, (g,), derived = relu.operand, gradients, inputs[relu.operand]
    if g is None or derived is None:
        return inputs
    form = derived
    if relu.x is not None:
        # At a tie the framework lets the gradient pass, or half of it.
        derived = torch.where(relu.is_open(relu.x), g, 0.0)
    x, y = relu.values() if rule.reads_values else (None, None)
    x, y = (None if tensor is None else tensor.expand_as(g) for tensor in (x, y))
    gone = left(rule, g, derived, x, y)
    gone = gone if gone.shape == form.shape else gone.sum_to_size(form.shape)
    return (*inputs[:operand], gone.to(form.dtype), *inputs[operand + 1 :])


def slopes(score: Score, output: torch.Tensor) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return a score's plain derivative at the model's output, and its values ``(1, N)``."""
    given = output.detach().requires_grad_()
    try:
        scores = score(given.clone())
    except Exception as error:
        raise no_score(f"{type(error).__name__}: {error}") from error
    if not isinstance(scores, torch.Tensor) or scores.shape != given.shape[:1] or not scores.is_floating_point():
        raise no_score(described(scores))
    if not scores.requires_grad:
        raise detached("detach(), no_grad(), numpy() or argmax()")
    (slope,) = torch.autograd.grad(scores.sum(), given, materialize_grads=True)
    return [as_numpy(slope).astype(np.float64)], as_numpy(scores).astype(np.float64)[None]
