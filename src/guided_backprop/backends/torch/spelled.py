"""ReLUs that are spelled as arithmetic: what is nominated by a watched forward pass is settled here.

A result that values show to be a ReLU is guided where the graph agrees with them, which is where what arrives at it
passes on to x as a ReLU would let it; else it is refused. What no value tells is tried on other images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch.autograd.graph import GradientEdge, Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.refusals import spelled
from guided_backprop.backends.spelling import Judgement, Verdict, judge
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.relus import relu_of
from guided_backprop.backends.torch.watch import ForwardWatch, Place, Suspect

#: A result, and what it may be a ReLU of, by their place.
Values = Mapping[Place, tuple[NumpyArray, NumpyArray]]
#: Runs the model, watched for some places, on other images, and returns the values there; none where it fails.
Elsewhere = Callable[[frozenset[Place]], Sequence[Values]]


@dataclass(frozen=True)
class Spelled:
    """A result that is a ReLU of something: the rule acts on what arrives there.

    Attributes:
        node: the node of the operation that gave it.
        output: which of its results it is.
        name: the operation, and the line of the model.
        y: the result.
        is_open: where it is not closed.
    """

    node: Node
    output: int
    name: str
    y: NumpyArray
    is_open: NumpyArray


@dataclass(frozen=True)
class Settled:
    """What became of the suspects of one forward pass.

    Attributes:
        relus: those that are ReLUs.
        refuted: the operations that looked like ReLUs and are none: the pass has to be watched again, for what follows.
        raised: those that did not look like ReLUs and are, likewise.
        is_sure: whether no other images could show anything else, so that they need not be watched.
    """

    relus: list[Spelled]
    refuted: frozenset[int]
    raised: frozenset[int]
    is_sure: bool


def settle(watch: ForwardWatch, path: Path, inside: frozenset[Node], vouch: Vouch, elsewhere: Elsewhere) -> Settled:
    """Say of each suspect whether it is a ReLU.

    Args:
        watch: the watched forward pass.
        path: its graph, between score and images.
        inside: the nodes that belong to composite activations.
        vouch: what the user says of operations.
        elsewhere: how the model is run on other images.

    Raises:
        OpaqueRegionError: a ReLU is spelled so that it cannot be guided, or nothing tells whether it is one.
    """
    numbers = {node._sequence_nr(): node for node in path.nodes} if watch.suspects else {}
    suspects = {
        order: suspect
        for order, suspect in enumerate(watch.suspects)
        if suspect.name not in vouch
        and _named(suspect) not in vouch
        and (suspect.is_on_view or (suspect.number in numbers and numbers[suspect.number] not in inside))
    }
    if not suspects:
        return Settled([], frozenset(), frozenset(), is_sure=True)
    others = elsewhere(frozenset(suspect.place for suspect in suspects.values()))
    raised = {suspect.place[0] for suspect in suspects.values() if _is_raised(suspect, numbers, path, others)}
    if not raised <= watch.raised:
        return Settled([], frozenset(), frozenset(raised), is_sure=False)
    relus, refuted, is_sure = [], set(), True
    unfinished: list[tuple[Suspect, Node]] = []
    for place, group in groupby(suspects.items(), lambda item: item[1].place[:2]):
        answers: set[str] = set()
        for order, suspect in group:
            node = numbers.get(suspect.number)
            answer = _answer(suspect, node, path, others, is_settled=order in watch.settled)
            if answer == "unfinished" and node is not None:
                unfinished.append((suspect, node))
            if isinstance(answer, Spelled):
                relus.append(answer)
                break
            answers.add(answer)
        else:
            if "refused" in answers:
                raise spelled({_named(suspect)}, "torch.relu")
            is_sure &= "unsure" not in answers
            refuted |= {place[0]} if "refuted" in answers else set()
    _refuse_unfinished(unfinished, {relu.node for relu in relus}, path)
    return Settled(relus, frozenset(refuted), frozenset(raised), is_sure=is_sure and not relus)


def _is_raised(suspect: Suspect, numbers: Mapping[int, Node], path: Path, others: Sequence[Values]) -> bool:
    """Tell whether other images show that something is a ReLU of which the given ones left it open."""
    if suspect.judgement.verdict is not Verdict.UNSETTLED or suspect.number not in numbers:
        return False
    found = judge(*_together(suspect, others), _rounding(suspect), is_by_rank=suspect.is_by_rank)
    if found.verdict is not Verdict.CONVEX:
        return False
    derivative = _derivative(numbers[suspect.number], suspect, path)
    return derivative is not None and bool(derivative.any()) and _agrees(suspect, found, derivative)


def _refuse_unfinished(unfinished: Sequence[tuple[Suspect, Node]], relus: Set[Node], path: Path) -> None:
    """Raise if what a ReLU is made of, such as ``min(x, 0)``, is used for something else besides."""
    finished = relus | {node for _, node in unfinished}
    for suspect, node in unfinished:
        if not finished >= set(path.children[node]):
            raise spelled({_named(suspect)}, "torch.relu")


def _answer(
    suspect: Suspect, node: Node | None, path: Path, others: Sequence[Values], *, is_settled: bool
) -> Spelled | Literal["plain", "refuted", "unsure", "unfinished", "refused"]:
    """Say of one suspect whether it is a ReLU, or what else is to be done about it."""
    y, x = _together(suspect, others)
    found = judge(y, x, _rounding(suspect), is_by_rank=suspect.is_by_rank)
    if found.verdict is Verdict.NONE:
        return "refuted" if suspect.judgement.verdict is Verdict.CONVEX else "plain"
    if found.verdict is Verdict.PARTIAL and suspect.is_of_two:
        return "plain"
    derivative = None if node is None else _derivative(node, suspect, path)
    if derivative is not None and not derivative.any():
        # What passes a gradient on to x is a ReLU operation by itself, or nothing is.
        return "unsure" if found.verdict is Verdict.UNSETTLED else "plain"
    if found.verdict is Verdict.UNSETTLED:
        is_told = is_settled or suspect.x.sign or bool((y == y.flat[0]).all())
        return "unsure" if is_told or not suspect.is_direct else "refused"
    if found.verdict is Verdict.CONVEX and not is_settled and node is not None and derivative is not None:
        assert found.closed is not None
        is_open = suspect.values[0] != found.closed
        if _agrees(suspect, found, derivative):
            return Spelled(node, suspect.place[1], _named(suspect), suspect.values[0], is_open)
    return "unfinished" if is_settled else "refused"


def _named(suspect: Suspect) -> str:
    return f"{suspect.name} at {suspect.line}"


def _together(suspect: Suspect, others: Sequence[Values]) -> tuple[NumpyArray, NumpyArray]:
    """Return the result and x, on all images that the model was run on."""
    y, x = suspect.values
    pairs = [(y, x)]
    for values in others:
        other = values.get(suspect.place)
        if other is not None and other[0].shape == y.shape and other[1].shape == x.shape:
            pairs.append(other)
    if y.ndim == 0 or len(pairs) == 1:
        return y, x
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1].reshape(y.shape) for pair in pairs])


def _rounding(suspect: Suspect) -> float:
    return max(1e-3, 4 * float(torch.finfo(suspect.x.tensor.dtype).eps))


def _derivative(node: Node, suspect: Suspect, path: Path) -> NumpyArray | None:
    """Return the derivative of a result, added up, towards x: past all ReLUs that are operations of their own.

    None if the graph cannot tell it.
    """
    handles = [each.register_prehook(_nothing) for each in path.concerns if relu_of(each, path.members) is not None]
    y, edge = suspect.values[0], suspect.x.edge
    assert edge is not None
    try:
        seed = torch.ones(y.shape, dtype=suspect.x.tensor.dtype, device=suspect.x.tensor.device)
        (found,) = torch.autograd.grad(
            [GradientEdge(node, suspect.place[1])], [edge], [seed], retain_graph=True, allow_unused=True
        )
    except RuntimeError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return np.zeros(y.shape) if found is None else as_numpy(found).reshape(y.shape)


def _nothing(gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if each is None else torch.zeros_like(each) for each in gradients)


def _agrees(suspect: Suspect, found: Judgement, derivative: NumpyArray) -> bool:
    """Tell whether the derivative is the gate that the values show; at the threshold itself it may be anything."""
    y, x = (each.astype(np.float64) for each in suspect.values)
    is_open, x = y != found.closed, x.reshape(y.shape)
    slope = np.broadcast_to(np.asarray(found.slope), y.shape)
    expected = np.where(is_open & np.isfinite(slope), slope, 0)
    is_far = np.abs(derivative - expected) > 0.05 * np.abs(slope)
    is_edge = ~is_open & np.isin(x, [x[~is_open].max(initial=-np.inf), x[~is_open].min(initial=np.inf), 0.0])
    return not bool((is_far & ~is_edge).any())


def closing(
    relus: Sequence[Spelled], leave: Callable[[Any, Any, Any], Any]
) -> Iterator[tuple[Node, Callable[..., Any]]]:
    """Yield for each spelled ReLU its node, and a hook that applies a rule to what arrives there.

    Args:
        relus: the spelled ReLUs.
        leave: from what arrives at a ReLU's result, what its gate makes of that, and the result, to what leaves.
    """
    for relu in relus:

        def hook(gradients: tuple[torch.Tensor | None, ...], relu: Spelled = relu) -> tuple[torch.Tensor | None, ...]:
            g = gradients[relu.output]
            if g is None:
                return gradients
            is_open = torch.as_tensor(relu.is_open, device=g.device)
            y = torch.as_tensor(relu.y, device=g.device, dtype=g.dtype)
            left = leave(g, torch.where(is_open, g, 0), y)
            return (*gradients[: relu.output], left, *gradients[relu.output + 1 :])

        yield relu.node, hook
