"""The total derivative of a model: what its derivative is if nothing in it is detached.

``x @ w + ((relu(x) - x) @ w).detach()`` is ``relu(x) @ w``, and its gradient says that it is ``x @ w``: no derivative
of the model and no value of x's size shows a ReLU there. So where something that lost its gradient meets a value that
has one, the model is run once more, and each value that lost its gradient gets a twin that has it. The model sees its
own values alone. Where a result is closed on one side of x by its total derivative, and open there by the model's
own, it is a ReLU of x that the model's gradient passes by.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.choices import judge_stopped
from guided_backprop.backends.notes import MOST_WEIGHTS, Ranks
from guided_backprop.backends.operations import Kind
from guided_backprop.backends.refusals import is_plain, spelled
from guided_backprop.backends.spelling import Verdict
from guided_backprop.backends.torch.graph.nodes import Path
from guided_backprop.backends.torch.graph.operations import operation, row
from guided_backprop.backends.torch.hidden.derivatives import closed, reached, seeds, shut
from guided_backprop.backends.torch.hidden.memory import version_of
from guided_backprop.backends.torch.hidden.watch import line_of_model

_DATA: Final = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_DETACHES: Final = frozenset({"detach", "detach_copy", "detach_"})
# They ask for a gradient inside of the model, of the model's own tensors.
_OWN: Final = frozenset({"__set__", "backward", "grad", "register_hook", "requires_grad_", "retain_grad"})
_IN_PLACE: Final = frozenset("__iadd__ __idiv__ __imul__ __ipow__ __isub__ __itruediv__ __setitem__".split())
# What is put together by these may be added up behind them.
_LINEAR: Final = frozenset({Kind.LINEAR, Kind.MASKS, Kind.MOVES})


class Place(NamedTuple):
    """A value of the run that has a gradient.

    Attributes:
        tensor: the value.
        edge: where a gradient with respect to it ends.
        version: how often it had been changed in place.
        line: the line of the model's code that asked for it.
        depth: how many linear operations lie between it and where what lost its gradient met one.
    """

    tensor: torch.Tensor
    edge: GradientEdge
    version: int
    line: str = ""
    depth: int = 0

    @property
    def name(self) -> str:
        """How it is spoken of: the operation, and the line."""
        return f"{operation(self.edge.node)} at {self.line}"

    @classmethod
    def of(cls, tensor: torch.Tensor, line: str = "", depth: int = 0) -> "Place":
        """Return the place of a tensor that has a node."""
        return cls(tensor, get_gradient_edge(tensor), version_of(tensor), line, depth)


#: A value on some images, and the derivatives of a result towards it: the model's own, and the total one.
Look = tuple[NumpyArray, NumpyArray, NumpyArray]
#: Runs the model on its images, then on others, each time watched by a new one, which it yields with the graph; None
#: where it fails.
Again = Callable[[], Iterator[tuple["TotalWatch", Path | None]]]


class TotalWatch(TorchFunctionMode):
    """Gives each value of a run that lost its gradient a twin that has it.

    Args:
        vouch: what the user says of operations.

    Attributes:
        meets: the results that have a gradient, and are made of what lost it besides; and what is linear in these.
        near: the nodes of all of these, also of those that are only put together.
        beside: the nodes of the twins, which the model's own gradient passes by.
        values: the values that have a gradient, by their node and which of its results they are.
        twins: the twins, likewise.
    """

    def __init__(self, vouch: Vouch) -> None:
        super().__init__()
        self._vouch = vouch
        self.meets: list[Place] = []
        self.near: set[Node] = set()
        self.beside: set[Node] = set()
        self.values: dict[tuple[Node, int], Place] = {}
        self.twins: dict[tuple[Node, int], Place] = {}
        # By the number of what the model sees, which is kept, so that no other gets its number.
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._met: dict[int, Place] = {}
        self._kept: list[torch.Tensor] = []

    def follow(self, images: torch.Tensor) -> None:
        """Say what the forward pass starts from."""
        self._note([images], [], is_meeting=False)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = "detach" if func == _DATA else getattr(func, "__name__", "")
        given = _tensors_in((args, named))
        stops = name in _DETACHES or not torch.is_grad_enabled()
        has_gradient = any(map(_is_active, given))
        is_meeting = False
        if name not in _OWN and ((stops and has_gradient) or any(id(tensor) in self._twins for tensor in given)):
            is_meeting = has_gradient and not stops
            how = self._in_place if _is_in_place(name, named) else self._met_by if is_meeting else self._beside
            result = how(func, name, args, named)
        else:
            result = func(*args, **named)
        if not stops:
            # What is written in place need not be what is returned.
            self._note([*_tensors_in(result), *given[:1]], given, is_meeting=is_meeting)
        return result

    def _met_by(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return what an operation makes of values with a gradient and of twins."""
        results = self._of_twins(func, name, args, named)
        return func(*args, **named) if results is None else results

    def _beside(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return what an operation makes of the model's own values, each with a twin that is made of the twins."""
        results, twins = func(*args, **named), self._of_twins(func, name, args, named)
        # What tells of a tensor, as whether it has a gradient, tells of the model's own.
        for result, twin in zip(_tensors_in(results), _tensors_in(twins), strict=False):
            self._put(result, twin)
        return results

    def _in_place(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Write into a tensor, and into a twin of it as well where the model's own has no gradient."""
        target = args[0] if named.get("out") is None else named["out"]
        if not isinstance(target, torch.Tensor) or (_is_active(target) and name != "detach_"):
            # What is written behind the back of what has a gradient is refused elsewhere.
            return self._met_by(func, name, args, named) if torch.is_grad_enabled() else func(*args, **named)
        twin = self._twin_written(func, name, args, named, target)
        result = func(*args, **named)
        if twin is not None:
            self._put(target, twin)
            if (base := target._base) is not None:
                with suppress(RuntimeError), _recorded():
                    whole = self._twin_of(base).clone()
                    whole.as_strided(target.size(), target.stride(), target.storage_offset()).copy_(twin)
                    self._put(base, whole)
        return result

    def _twin_written(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any], target: torch.Tensor
    ) -> torch.Tensor | None:
        """Return a twin of a tensor that was written into; None if that cannot be done."""
        with suppress(RuntimeError), _recorded():
            twin = self._twin_of(target).clone()
            if name != "detach_":
                args, named = tree_map_only(
                    torch.Tensor, lambda one: twin if one is target else self._twin_of(one), (args, named)
                )
                func(*args, **named)
            return twin
        return None

    def _of_twins(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return what an operation makes of the twins; None if it cannot be done with these."""
        args, named = tree_map_only(torch.Tensor, self._twin_of, (args, named))
        with suppress(RuntimeError), _recorded():
            return args[0].view_as(args[0]) if name in _DETACHES else func(*args, **named)
        return None

    def _twin_of(self, tensor: torch.Tensor) -> torch.Tensor:
        # What was given a gradient since, as what a custom function returns, is the model's own.
        return tensor if _is_active(tensor) else self._twins.get(id(tensor), (tensor, tensor))[1]

    def _put(self, tensor: torch.Tensor, twin: torch.Tensor) -> None:
        node = _bare(twin).grad_fn
        if node is not None and not _is_active(tensor):
            self._twins[id(tensor)] = tensor, twin
            self.beside.add(node)
            place = Place.of(_bare(twin))
            self.twins[node, place.edge.output_nr] = place

    def _note(self, results: Sequence[torch.Tensor], given: Sequence[torch.Tensor], *, is_meeting: bool) -> None:
        """Note values that have a gradient, by their place in the graph, and which of them are to be looked at."""
        behind = [0] if is_meeting else [self._met[id(tensor)].depth for tensor in given if id(tensor) in self._met]
        for result in results:
            tensor = _bare(result)
            if tensor.grad_fn is None or not tensor.requires_grad:
                continue
            place = Place.of(tensor)
            is_known = (place.edge.node, place.edge.output_nr) in self.values
            self.values[place.edge.node, place.edge.output_nr] = place
            kind = row(place.edge.node).kind
            if is_known or not behind or not (is_meeting or kind in _LINEAR):
                continue
            depth = min(behind) + (kind is Kind.LINEAR and not is_meeting)
            place = place._replace(line=line_of_model(), depth=depth)
            if any(is_plain(name, self._vouch, "torch.relu") for name in (operation(place.edge.node), place.name)):
                # Nor is what is made of it looked at.
                continue
            # The number of a tensor that is kept here is its own.
            self._met[id(result)] = place
            self._kept.append(result)
            self.near.add(place.edge.node)
            if depth <= MOST_WEIGHTS and kind is not Kind.MOVES:
                self.meets.append(place)


@contextmanager
def _recorded() -> Iterator[None]:
    """Record what is done for the backward pass, whatever the model says."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor that torch.vmap shows the rows of."""
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _is_active(tensor: torch.Tensor) -> bool:
    return _bare(tensor).requires_grad


def _is_in_place(name: str, named: Mapping[str, Any]) -> bool:
    is_marked = name.endswith("_") and not name.endswith("__")
    return is_marked or name in _IN_PLACE or named.get("out") is not None


def check_total(again: Again, ranks: Ranks) -> None:
    """Raise if a result is a ReLU of a value, by its total derivative, that the model's own gradient passes by.

    Args:
        again: runs the model again.
        ranks: how values were compared with each other by what lost its gradient.

    Raises:
        OpaqueRegionError: there is such a result.
    """
    looks: dict[tuple[int, int], list[Look]] = {}
    unsettled: set[tuple[int, int]] | None = None
    for watch, path in again():
        found = [] if path is None else list(_looks(watch, path, unsettled))
        still = set[tuple[int, int]]()
        for key, name, look in found:
            looks.setdefault(key, []).append(look)
            verdict = judge_stopped(looks[key], ranks)
            if verdict is Verdict.PARTIAL:
                raise spelled({name}, "torch.relu")
            still |= {key} if verdict is Verdict.UNSETTLED else set()
        unsettled = still
        if not unsettled:
            break


def _looks(
    watch: TotalWatch, path: Path, wanted: set[tuple[int, int]] | None
) -> Iterator[tuple[tuple[int, int], str, Look]]:
    """Yield the total and the own derivatives of what may be a ReLU, with its place, and how it is spoken of."""
    cases = []
    for number, meet in enumerate(watch.meets):
        if meet.edge.node not in path.members:
            continue
        values = {(number, order): x for order, x in enumerate(_values_beside(watch, meet))}
        values = {key: x for key, x in values.items() if wanted is None or key in wanted}
        cases.append((meet, values, _derivatives(meet, values.values())))
    with shut(path), closed(watch.beside):
        for meet, values, totals in cases:
            for (key, x), total, own in zip(values.items(), totals, _derivatives(meet, values.values()), strict=True):
                if total is not None and own is not None:
                    yield key, meet.name, (as_numpy(x[0].tensor), as_numpy(own), as_numpy(total))


def _values_beside(watch: TotalWatch, meet: Place) -> Iterator[list[Place]]:
    """Yield the values that a result is made of, and that what lost its gradient in front of it was made of.

    Behind one that the model works out once more comes what that gives: it is the same value.
    """
    own = reached(meet.edge.node, watch.beside)
    edges, beside = _ways_beside(watch, meet.edge.node, own)
    for edge in edges:
        x = watch.values.get(edge)
        if x is not None and _is_told(x):
            yield [x]
    yield from _repeated(watch, own, beside)


def _is_told(x: Place) -> bool:
    """Tell whether a value may have a ReLU: of several real numbers, that are as they were."""
    return x.tensor.is_floating_point() and x.tensor.numel() > 1 and version_of(x.tensor) == x.version


def _ways_beside(watch: TotalWatch, last: Node, own: Set[Node]) -> tuple[Iterable[tuple[Node, int]], Set[Node]]:
    """Return where the ways of twins to a node begin, among what the model's own gradient comes to, and their nodes."""
    edges, seen = dict[tuple[Node, int], None](), {last}
    for node in (stack := [last]):
        for parent, output in node.next_functions:
            if parent is None:
                continue
            if parent in own and (node not in own or node in watch.beside):
                edges[parent, output] = None
            elif parent not in seen and (parent not in own or parent in watch.near or (parent, 0) not in watch.values):
                seen.add(parent)
                stack.append(parent)
    return edges, seen - own


def _repeated(watch: TotalWatch, own: Set[Node], beside: Set[Node]) -> Iterator[list[Place]]:
    """Yield the values of the model's own that are worked out anew on the ways of twins, each with that."""
    anew = {key: place for key, place in (watch.values | watch.twins).items() if key[0] in beside and _is_told(place)}
    if not anew:
        return
    sizes, known = {place.tensor.shape for place in anew.values()}, dict[Hashable, list[Place]]()
    told = [x for (node, _), x in watch.values.items() if node in own and x.tensor.shape in sizes and _is_told(x)]
    for digest, x in zip(_digests(told), told, strict=True):
        known.setdefault(digest, []).append(x)
    for digest, twin in zip(_digests(anew.values()), anew.values(), strict=True):
        for x in known.get(digest, ()):
            nodes = x.edge.node, twin.edge.node
            # What is made of x itself, as what is detached, has its own way to it.
            if torch.equal(x.tensor, twin.tensor) and not any(
                one in reached(other) for one, other in (nodes, nodes[::-1])
            ):
                yield [x, twin]


def _digests(places: Collection[Place]) -> list[Hashable]:
    """Return what is alike of values that are; all sums are asked for at once, as a GPU is waited for each time."""
    sums = [place.tensor.detach().sum().float() for place in places]
    numbers = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
    return [(one.tensor.shape, one.tensor.dtype, number) for one, number in zip(places, numbers, strict=True)]


def _derivatives(meet: Place, values: Iterable[list[Place]]) -> list[torch.Tensor | None]:
    """Return the derivative of a result towards each value: of a sum, each number of it times one of its own."""
    seed = torch.as_tensor(seeds(tuple(meet.tensor.shape)), dtype=meet.tensor.dtype, device=meet.tensor.device)
    groups = list(values)
    edges = [x.edge for group in groups for x in group]
    try:
        every = torch.autograd.grad([meet.edge], edges, [seed], retain_graph=True, allow_unused=True) if edges else ()
    except RuntimeError:
        return [None for _ in groups]
    left = iter(every)
    towards = [[g for g in islice(left, len(group)) if g is not None] for group in groups]
    return [sum(group[1:], group[0]) if group else None for group in towards]
