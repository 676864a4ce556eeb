"""Derivatives of a result towards what it may be a ReLU of, with all ReLUs shut that are operations of their own."""

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.autograd.graph import GradientEdge, Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.spelling import Judgement, Shut
from guided_backprop.backends.torch.graph.nodes import Path, is_in_place_on_view
from guided_backprop.backends.torch.graph.relus import relu_of
from guided_backprop.backends.torch.hidden.audit import BackwardWatch
from guided_backprop.backends.torch.hidden.notes import Value
from guided_backprop.backends.torch.hidden.suspect import Suspect


@contextmanager
def shut(path: Path, inside: Container[Node] = ()) -> Iterator[None]:
    """Let no gradient pass the ReLUs that are operations of their own: what is left of one went around them.

    Those ``inside`` of composite activations are none.
    """
    watch = BackwardWatch(Shut(), lambda name, treatment: None)
    relus = [node for node in path.concerns if node not in inside and relu_of(node, path.members) is not None]
    handles = [node.register_prehook(_nothing) for node in relus]
    hidden = [node for node in path.concerns if is_in_place_on_view(node)]
    handles += [node.register_prehook(watch.enter) for node in hidden]
    handles += [node.register_hook(watch.leave) for node in hidden]
    try:
        with watch if hidden else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def closed(nodes: Iterable[Node]) -> Iterator[None]:
    """Let no gradient pass some nodes."""
    handles = [node.register_prehook(_nothing) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seeds(shape: tuple[int, ...], turn: float = 0.0) -> NumpyArray:
    """Return a number of its own for each of a result, other ones for each turn."""
    return np.asarray(1.5 + np.sin(np.arange(np.prod(shape)) + turn)).reshape(shape)


def derivative(
    node: Node, suspect: Suspect, x: Value, *, is_of_one: bool = True, turn: float = 0.0
) -> NumpyArray | None:
    """Return the derivative of a result, added up, towards x; None if the graph cannot tell it.

    What is not ``is_of_one`` is of each number of the result times another one, that of the ``turn``.
    """
    if x.edge is None:
        return None
    y = suspect.values[0]
    seed = torch.ones(y.shape, dtype=x.tensor.dtype, device=x.tensor.device)
    if not is_of_one:
        seed = torch.as_tensor(seeds(y.shape, turn), dtype=seed.dtype, device=seed.device)
    try:
        (gradient,) = torch.autograd.grad(
            [GradientEdge(node, suspect.place[1])], [x.edge], [seed], retain_graph=True, allow_unused=True
        )
    except IndexError:
        # What the node does not know of, as the mean that a layer norm gives out besides, carries no gradient.
        gradient = None
    except RuntimeError:
        return None
    shape = x.tensor.shape if x.less is not None or not is_of_one else y.shape
    return np.zeros(shape) if gradient is None else as_numpy(gradient).reshape(shape)


def _nothing(gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)


def leads_around(path: Path, node: Node, ends: Container[Node]) -> bool:
    """Tell whether a gradient comes from a node to one of some ends around all ReLUs that are operations."""
    stack, seen = [node], {node}
    while stack:
        one = stack.pop()
        if one in ends:
            return True
        parents = () if relu_of(one, path.members) else one.next_functions
        new = {parent for parent, _ in parents if parent is not None and parent not in seen}
        stack += new
        seen |= new
    return False


def agrees(suspect: Suspect, judgement: Judgement, derivative: NumpyArray) -> bool:
    """Tell whether the derivative is the gate that the values show; at the threshold itself it may be anything."""
    y, x = (array.astype(np.float64) for array in suspect.values)
    is_open, x = y != judgement.closed, x.reshape(y.shape)
    slope = np.broadcast_to(np.asarray(judgement.slope), y.shape)
    expected = np.where(is_open & np.isfinite(slope), slope, 0)
    is_far = np.abs(derivative - expected) > 0.05 * np.abs(slope)
    is_edge = ~is_open & np.isin(x, [x[~is_open].max(initial=-np.inf), x[~is_open].min(initial=np.inf), 0.0])
    return not bool((is_far & ~is_edge).any())
