"""Derivatives of a result towards what it may be a ReLU of, with all ReLUs shut that are operations of their own."""

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.spelling import Judgement, Shut
from guided_backprop.backends.torch.graph.nodes import Path, is_in_place_on_view
from guided_backprop.backends.torch.graph.relus import relu_of
from guided_backprop.backends.torch.hidden.audit import BackwardWatch
from guided_backprop.backends.torch.hidden.notes import Value
from guided_backprop.backends.torch.hidden.suspect import Suspect

# By so large a part of the larger one two derivatives are alike but for rounding.
_ROUNDING: Final = 1e-3


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
    node: Node, suspect: Suspect, x: Value, *, is_of_one: bool = True, turn: float = 0.0, past: Iterable[Node] = ()
) -> NumpyArray | None:
    """Return the derivative of a result, added up, towards x; None if the graph cannot tell it.

    What is not ``is_of_one`` is of each number of the result times another one, that of the ``turn``. None comes
    through the nodes that it goes ``past``.
    """
    with closed(one for one in past if one is not node):
        return _derivatives(node, suspect, [x], is_of_one=is_of_one, turn=turn)[0]


def _derivatives(
    node: Node, suspect: Suspect, values: Sequence[Value], *, is_of_one: bool, turn: float = 0.0
) -> list[NumpyArray | None]:
    if any(x.edge is None for x in values):
        return [None for _ in values]
    y, x = suspect.values[0], values[0]
    cuts = [_cuts(node, x) for x in values]
    seed = torch.ones(y.shape, dtype=x.tensor.dtype, device=x.tensor.device)
    if not is_of_one:
        seed = torch.as_tensor(seeds(y.shape, turn), dtype=seed.dtype, device=seed.device)
    gradients: Sequence[torch.Tensor | None]
    try:
        arrive = iter(_pulled(GradientEdge(node, suspect.place[1]), seed, [edge for edges in cuts for edge in edges]))
        gradients = [_added([next(arrive) for _ in edges]) for edges in cuts]
    except IndexError:
        # What the node does not know of, as the mean that a layer norm gives out besides, carries no gradient.
        gradients = [None for _ in values]
    except RuntimeError:
        return [None for _ in values]
    is_alike = is_of_one and all(x.less is None and x.tensor.numel() == y.size for x in values)
    shapes = [y.shape if is_alike else x.tensor.shape for x in values]
    return [
        np.zeros(shape) if g is None else as_numpy(g).reshape(shape) for g, shape in zip(gradients, shapes, strict=True)
    ]


def _added(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    told = [g for g in gradients if g is not None]
    return torch.stack(told).sum(0) if told else None


def _cuts(last: Node, x: Value) -> list[GradientEdge]:
    """Return where gradients towards a value end: of a part that is cut out more than once, at each of these views."""
    base = x.tensor._base
    if x.edge is None or base is None or base._version or not base.requires_grad:
        return [] if x.edge is None else [x.edge]
    root, ways, one = get_gradient_edge(base).node, [], x.edge.node
    while one is not root:
        parents = one.next_functions
        if len(parents) != 1 or parents[0][0] is None:
            return [x.edge]
        ways.append(_how(one))
        one = parents[0][0]
    children: dict[Node | None, list[Node]] = {}
    for child in reached(last) if ways else ():
        for parent, _ in child.next_functions:
            children.setdefault(parent, []).append(child)
    views = [root]
    for way in reversed(ways):
        views = [child for view in views for child in children.get(view, ()) if _how(child) == way]
    return [GradientEdge(view, x.edge.output_nr) for view in views] or [x.edge]


def _how(view: Node) -> Hashable:
    """Return which part of what a view gives: two of the same are one."""
    names = [name for name in dir(view) if name.startswith("_saved_")]
    return view.name(), view.next_functions[0][1], *(repr(getattr(view, name)) for name in names)


class Together:
    """The derivatives of a result towards several values, behind weights: one backward pass tells all of them.

    Args:
        values: the values.
    """

    def __init__(self, values: Sequence[Value]) -> None:
        self._values = values
        self._known: dict[int, NumpyArray | None] = {}

    def towards(self, node: Node, suspect: Suspect) -> NumpyArray | None:
        """Return the derivative towards one of the values, the one that ``suspect`` may be a ReLU of."""
        if not self._known:
            every = _derivatives(node, suspect, self._values, is_of_one=False)
            self._known = {id(x): g for x, g in zip(self._values, every, strict=True)}
        return self._known[id(suspect.x)]


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


def reached(last: Node, but: Container[Node] = ()) -> set[Node]:
    """Return the nodes that a gradient comes to from one node, but some and what lies behind these alone."""
    every = {last}
    for node in (stack := [last]):
        new = {parent for parent, _ in node.next_functions if parent is not None and parent not in but} - every
        every |= new
        stack += new
    return every


def opposite(path: Path, node: Node, suspect: Suspect) -> Sequence[NumpyArray | None] | None:
    """Return the derivatives of a sum towards a and b as if these alone made it, if they are opposite then.

    So they are of ``maximum(a, f(x)) @ w - f(x) @ w``, and of ``maximum(a, f(x)) @ w - x @ v`` where v is w behind f:
    what arrives at a, and with the other sign at b, makes all that arrives at what is in front. Of a maxout b's part
    is left over. Where one of a and b is made of the other, the rest arrives there as well: what chooses from both
    is asked alone. None of what a and b alone make: there they tell it themselves.
    """
    a, b = suspect.x, suspect.x.less
    if b is None or a.edge is None or b.edge is None or a.tensor.numel() != b.tensor.numel():
        return None
    nodes = a.edge.node, b.edge.node
    apart = [one for one, other in (nodes, nodes[::-1]) if one not in reached(other)]
    ends = _narrowest(node, path.members, nodes)
    if not ends or ends[0].node not in reached(node, apart):
        return None
    seed = torch.as_tensor(seeds(suspect.values[0].shape), dtype=a.tensor.dtype, device=a.tensor.device)
    last = GradientEdge(node, suspect.place[1])
    try:
        at_a, at_b, *total = _pulled(last, seed, [a.edge, b.edge, *ends])
        by_choice = _by_choice(path, last, seed, a.edge, b.edge) if len(apart) < len(nodes) else ()
        for arrives in chain((at_a, None if at_b is None else -at_b), by_choice):
            if arrives is not None:
                parts = [_pulled(one, arrives.reshape(of.tensor.shape), ends) for one, of in ((a.edge, a), (b.edge, b))]
                if _are_difference(total, *parts):
                    g = as_numpy(arrives)
                    return [g.reshape(a.tensor.shape), -g.reshape(b.tensor.shape)]
    except (IndexError, RuntimeError):
        pass
    return None


def _by_choice(
    path: Path, last: GradientEdge, seed: torch.Tensor, a: GradientEdge, b: GradientEdge
) -> Iterator[torch.Tensor | None]:
    """Yield what arrives at a by what chooses from a and b, and by nothing else, and what so arrives at b, turned."""
    both = {(edge.node, edge.output_nr) for edge in (a, b)}
    for node in path.children.get(a.node, ()):
        if not both <= {*node.next_functions}:
            continue
        (arrives,) = _pulled(last, seed, [GradientEdge(node, 0)])
        at_a, at_b = (None, None) if arrives is None else _pulled(GradientEdge(node, 0), arrives, [a, b])
        if at_a is not None and at_b is not None:
            # One of them is made of the other: what comes by that one is none of its own.
            by_b, by_a = _pulled(b, at_b, [a])[0], _pulled(a, at_a, [b])[0]
            yield at_a if by_b is None else at_a - by_b
            yield -at_b if by_a is None else by_a - at_b


def _narrowest(last: Node, members: Container[Node], behind: Iterable[Node]) -> list[GradientEdge]:
    """Return the nearest place that all comes by that goes from a node to the images, behind some others as well."""
    ways, left = dict[Node, set[int]]({last: set()}), {*behind}
    while ways:
        node = max(ways, key=lambda one: one._sequence_nr())
        outputs = ways.pop(node)
        if not (ways or left):
            return [GradientEdge(node, output) for output in outputs]
        left.discard(node)
        for parent, output in node.next_functions:
            if parent is not None and parent in members:
                ways.setdefault(parent, set()).add(output)
    return []


def _pulled(edge: GradientEdge, seed: torch.Tensor, ends: Sequence[GradientEdge]) -> tuple[torch.Tensor | None, ...]:
    return torch.autograd.grad([edge], ends, [seed], retain_graph=True, allow_unused=True)


def _are_difference(
    total: Sequence[torch.Tensor | None], ones: Sequence[torch.Tensor | None], others: Sequence[torch.Tensor | None]
) -> bool:
    """Tell whether derivatives are those of one value less those of another one, to which something comes."""
    sides = [[torch.zeros(()) if g is None else g for g in side] for side in (total, ones, others)]
    sizes = [max(float(g.abs().max()) for g in side) for side in sides]
    left = max(float((g - (one - other)).abs().max()) for g, one, other in zip(*sides, strict=True))
    return left <= _ROUNDING * max(sizes[1:]) and sizes[2] > _ROUNDING * sizes[1]


def agrees(suspect: Suspect, judgement: Judgement, derivative: NumpyArray) -> bool:
    """Tell whether the derivative is the gate that the values show; at the threshold itself it may be anything."""
    y, x = (array.astype(np.float64) for array in suspect.values)
    is_open, x = y != judgement.closed, x.reshape(y.shape)
    slope = np.broadcast_to(np.asarray(judgement.slope), y.shape)
    expected = np.where(is_open & np.isfinite(slope), slope, 0)
    is_far = np.abs(derivative - expected) > 0.05 * np.abs(slope)
    is_edge = ~is_open & np.isin(x, [x[~is_open].max(initial=-np.inf), x[~is_open].min(initial=np.inf), 0.0])
    return not bool((is_far & ~is_edge).any())
