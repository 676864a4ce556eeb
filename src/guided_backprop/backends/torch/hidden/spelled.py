"""ReLUs that are spelled as arithmetic: what is nominated by a watched forward pass is settled here.

A result that values show to be a ReLU is guided where the graph agrees with them, which is where what arrives at it
passes on to x as a ReLU would let it; else it is refused. What no value tells is tried on other images.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from math import inf
from typing import Final, Protocol, TypeVar

import torch
from torch.autograd.graph import Node

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.curves import MOST_PARTS
from guided_backprop.backends.evidence import NEAR
from guided_backprop.backends.notes import Choice
from guided_backprop.backends.refusals import behind, is_plain, out_of_sight, spelled
from guided_backprop.backends.signs import Sign
from guided_backprop.backends.spelling import Verdict
from guided_backprop.backends.torch.graph.composites import Composite, inside_of
from guided_backprop.backends.torch.graph.nodes import SAME, Path
from guided_backprop.backends.torch.graph.operations import operation_of
from guided_backprop.backends.torch.graph.relus import relu_of
from guided_backprop.backends.torch.hidden.case import Answer, Case
from guided_backprop.backends.torch.hidden.derivatives import Together, closed, derivative, shut
from guided_backprop.backends.torch.hidden.found import Spelled
from guided_backprop.backends.torch.hidden.known import Known, Place, sign_of
from guided_backprop.backends.torch.hidden.notes import Made, Value
from guided_backprop.backends.torch.hidden.suspect import Suspect, nodes_taken
from guided_backprop.backends.torch.hidden.total import TotalWatch, check_total
from guided_backprop.backends.torch.hidden.watch import ForwardWatch
from guided_backprop.backends.torch.own import own_function

# More images than that tell no more of what might have been a ReLU.
_ENOUGH: Final = 16

#: Runs the model on one set of other images after the other, watched for some places; the nodes inside of composite
#: activations are told as well.
Elsewhere = Callable[[frozenset[Place]], Iterator[tuple[ForwardWatch, Path | None, Set[Node]]]]
#: What watches a run.
Seen = TypeVar("Seen", ForwardWatch, TotalWatch)


class Again(Protocol):
    """Runs the model again."""

    def __call__(self, make: Callable[[], Seen], *, is_elsewhere: bool) -> Iterator[tuple[Seen, Path | None]]:
        """Run it on sets of other images, one after the other, or on its own before; yield what saw it, and the graph.

        Args:
            make: makes what watches a run.
            is_elsewhere: whether its own images are left out. The graph is None where the model does not take others.
        """


@dataclass(frozen=True)
class Settled:
    """What became of the suspects of one forward pass.

    Attributes:
        relus: those that are ReLUs.
        refuted: the places that looked like ReLUs and are none: the pass has to be watched again, for what follows.
        raised: those that did not look like ReLUs and are, likewise, and their signs.
        is_sure: whether no other images could show anything else, so that they need not be watched.
        unsettled: what other images may show to be a ReLU, by name; empty where there is nothing.
    """

    relus: list[Spelled]
    refuted: frozenset[Place]
    raised: Mapping[Place, Sign]
    is_sure: bool
    unsettled: str = ""


@dataclass
class Before:
    """What earlier calls showed, so that later ones need not ask again; each call adds to it.

    Attributes:
        count: of how many images the most.
        clear: the ways through the model on which nothing hides a ReLU, and of how many images that is known.
        tried: those, by name, of which other images were asked, which does not help again.
        plain: those that are no ReLU, by the way through the model and their place on it.
        read: the constants whose numbers say what may be one, and what they were.
    """

    count: int = 0
    clear: dict[int, float] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    plain: set[Hashable] = field(default_factory=set)
    read: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def now(self) -> "Before":
        """Return what still holds: nothing if constants that were read are others now, as slopes that are learned."""
        is_as_it_was = all(torch.equal(constant, before) for constant, before in self.read)
        return self if is_as_it_was else Before()

    def remember(self, read: Iterable[torch.Tensor]) -> None:
        """Note constants that were read."""
        known = {id(constant) for constant, _ in self.read}
        new = {id(constant): constant for constant in read if id(constant) not in known}
        self.read += [(constant, constant.detach().clone()) for constant in new.values()]

    @property
    def is_clear_for_all(self) -> bool:
        """Whether there is a way on which no value looked as if it might be a ReLU's."""
        return inf in self.clear.values()

    def look(self, count: int) -> None:
        """Forget what fewer images showed of what more may show to be another."""
        if self.count < min(count, _ENOUGH):
            self.count = count
            self.tried.clear()
            self.plain.clear()

    def is_clear(self, way: int, count: int) -> bool:
        """Tell whether so many images need not be watched on a way."""
        return self.clear.get(way, 0) >= max(1, min(count, _ENOUGH))

    def note(self, way: int, watch: ForwardWatch, count: int) -> None:
        """Note that nothing hides a ReLU on a way: what values contradict is none on any; of the rest more may tell."""
        self.clear[way] = count if watch.suspects or watch.lost is not None else inf


def way_of(path: Path) -> int:
    """Return a graph's signature, with what runs faster for so many images as what it stands for.

    It computes what that computes, so that the values of either tell of both.
    """
    return hash(tuple((_name_of(node), len(path.children[node])) for node in path.nodes))


def _name_of(node: Node) -> str:
    name = node.name()
    # The names of functions in C++ end in a number.
    function = own_function(node) if name.endswith("Backward") else None
    # The name of what is there where one of ours does not pay, as for fewer images.
    return getattr(function, "stands_for", None) or SAME.get(name, name)


def settle(
    watch: ForwardWatch,
    path: Path,
    activations: Mapping[Node, Composite],
    vouch: Vouch,
    again: Again,
    *,
    before: Before,
) -> Settled:
    """Say of each suspect whether it is a ReLU.

    Args:
        watch: the watched forward pass.
        path: its graph, between score and images.
        activations: its composite activations.
        vouch: what the user says of operations.
        again: how the model is run again.
        before: what earlier calls showed.

    Raises:
        OpaqueRegionError: a ReLU is spelled so that it cannot be guided, or nothing tells whether it is one.
    """
    numbers, inside = {node._sequence_nr(): node for node in path.nodes}, inside_of(activations)
    _check_relus(watch, numbers, path, inside, vouch)
    if watch.lost is not None:
        check_total(partial(again, partial(TotalWatch, vouch), is_elsewhere=False), watch.lost)
    suspects = _counted(watch, path, numbers, activations)
    taken = nodes_taken(suspects.values(), watch.taken, numbers)
    if any(suspect.is_sum for suspect in suspects.values()):
        with shut(path, inside):
            suspects = {order: one for order, one in suspects.items() if _may_close(one, numbers, taken)}
    if not suspects:
        return Settled([], frozenset(), {}, is_sure=True)
    places = frozenset(suspect.place for suspect in suspects.values() if suspect.x.choice is not Choice.BEHIND)
    look = partial(ForwardWatch, "everything", vouch, known=Known(taken=watch.taken))
    elsewhere = partial(_elsewhere, again, look, path, inside)
    looks = (run.values for run, *_ in elsewhere(places))
    others = list(islice(looks, NEAR)) if places else []
    cases = [
        Case(suspect, numbers.get(suspect.number), path, others, order in watch.settled, taken).asked()
        for order, suspect in suspects.items()
    ]
    if any(case.is_in_doubt for case in cases):
        far = next(looks)
        cases = [replace(case, far=far.get(case.suspect.place)) if case.is_in_doubt else case for case in cases]
    with shut(path, inside):
        raised = {case.suspect.place: sign_of(case.judgement, case.values[0]) for case in cases if case.is_raised}
        if not raised.keys() <= watch.known.raised.keys():
            return Settled([], frozenset(), raised, is_sure=False)
        return _settled(cases, path, raised, elsewhere, before, plain=watch.expressions.plain)


def _counted(
    watch: ForwardWatch, path: Path, numbers: Mapping[int, Node], activations: Mapping[Node, Composite]
) -> dict[int, Suspect]:
    """Return the suspects, by their order, that are no part of a composite activation, nor ReLUs of one.

    Nothing of a part comes out but through the activation, which is one of what goes in.
    """
    inside = inside_of(activations)
    inner = {node for node in inside.difference(activations) if inside.issuperset(path.children[node])}
    return {
        order: suspect
        for order, suspect in enumerate(watch.suspects)
        if (suspect.is_on_view or (suspect.number in numbers and numbers[suspect.number] not in inside))
        and (suspect.x.edge is None or suspect.x.edge.node not in inner)
    }


def _may_close(suspect: Suspect, numbers: Mapping[int, Node], taken: Sequence[Node]) -> bool:
    """Tell whether other images are needed to say of a sum whether it is closed in places."""
    node = numbers.get(suspect.number)
    if not suspect.is_sum or node is None:
        return True
    return suspect.may_close(derivative(node, suspect, suspect.x, past=taken))


def _elsewhere(
    again: Again, look: Callable[..., ForwardWatch], path: Path, inside: Set[Node], places: frozenset[Place]
) -> Iterator[tuple[ForwardWatch, Path | None, Set[Node]]]:
    """Run the model on other images, watched for some places."""
    for watch, other in again(partial(look, wanted=places), is_elsewhere=True):
        is_alike = other is not None and inside and other.signature == path.signature
        pairs = zip(path.nodes, other.nodes, strict=True) if other is not None and is_alike else ()
        yield watch, other, {there for here, there in pairs if here in inside}


def _check_relus(
    watch: ForwardWatch, numbers: Mapping[int, Node], path: Path, inside: frozenset[Node], vouch: Vouch
) -> None:
    """Raise if the graph does not know as a ReLU what was called as one, or does not see what was written.

    Or if nobody saw how a part of it was made.
    """
    if not path.members.isdisjoint(watch.unseen):
        raise out_of_sight()
    for written in watch.behind:
        names = (written.name, f"{written.name} at {written.line}")
        if not written.is_inside and not any(is_plain(one, vouch, "torch.relu") for one in names):
            raise behind(names[1])
    for number, (name, line) in watch.partly.items():
        node = numbers.get(number)
        is_vouched = any(is_plain(one, vouch, "torch.relu") for one in (name, f"{name} at {line}"))
        if node is not None and node not in inside and not is_vouched:
            raise spelled({f"{name} at {line}"}, "torch.relu")
    for number, (name, line) in watch.relus.items():
        node = numbers.get(number)
        is_this = node is not None and node not in inside and operation_of(node.name()) == name
        is_vouched = name in vouch or f"{name} at {line}" in vouch
        if node is not None and is_this and not is_vouched and relu_of(node, path.members) is None:
            raise spelled({f"{name} at {line}"}, "torch.relu")


def _settled(
    cases: Sequence[Case],
    path: Path,
    raised: Mapping[Place, Sign],
    elsewhere: Elsewhere,
    before: Before,
    *,
    plain: Mapping[int, Sequence[Made]],
) -> Settled:
    relus, refuted, is_sure, unsettled = dict[Place, Spelled](), set[Place](), True, ""
    unfinished: list[tuple[Suspect, Node]] = []
    weighed: list[Case] = []
    for _, group in groupby(cases, lambda case: case.suspect.place[:2]):
        answers, none = set[str](), set[Place]()
        for case in group:
            if case.suspect.is_weighed:
                weighed.append(case)
                continue
            answer = case.answer()
            answer = "plain" if answer == "refused" and _is_part(case, plain) else answer
            if answer == "unfinished" and case.node is not None:
                unfinished.append((case.suspect, case.node))
            if isinstance(answer, Spelled):
                relus[case.suspect.place] = answer
                break
            answers.add(answer)
            none |= {case.suspect.place} if answer == "refuted" else set()
        else:
            if "refused" in answers:
                raise spelled({case.suspect.named}, "torch.relu")
            is_sure &= not {"unsure", "open"} & answers
            unsettled = case.suspect.named if "open" in answers else unsettled
            refuted |= none
    _refuse_unfinished(unfinished, {relu.node for relu in relus.values()}, path)
    is_sure &= not _refuse_weighed(weighed, relus, elsewhere, before, path.signature)
    return Settled(list(relus.values()), frozenset(refuted), raised, is_sure=is_sure and not relus, unsettled=unsettled)


def _refuse_weighed(
    cases: Sequence[Case], relus: Mapping[Place, Spelled], elsewhere: Elsewhere, before: Before, way: int
) -> bool:
    """Raise if a ReLU lies behind weights; return whether that is not sure of some cases.

    Nothing passes those that are guided, which are spelled in front of them.
    """
    known = {case.suspect.place: case for case in _together(cases)}
    keys = {place: _key(way, case.suspect) for place, case in known.items()}
    with closed([relu.node for relu in relus.values()]):
        answers: dict[Place, Spelled | Answer] = {
            place: "plain" if keys[place] in before.plain else case.answer() for place, case in known.items()
        }
        # Some were asked before.
        unsure = [place for place in known if answers[place] == "unsure"]
        unsure = [place for place in unsure if known[place].suspect.named not in before.tried]
        places = {place for place in unsure if known[place].runs}
        _ask_others(known, answers, places, frozenset(relus), elsewhere)
    plain = [place for place, answer in answers.items() if answer == "plain"]
    before.plain.update(keys[place] for place in plain)
    for place, answer in answers.items():
        # Of x and 0.2 * x the larger one is a ReLU of neither: towards x nothing is closed.
        if answer == "refused" and not any(known[place].closes_what_is_open(known[other]) for other in plain):
            raise spelled({known[place].suspect.named}, "torch.relu")
    # What was refused is asked again, and refused again.
    before.tried.update(known[place].suspect.named for place in places)
    return "unsure" in answers.values()


def _together(cases: Sequence[Case]) -> list[Case]:
    """Return cases behind weights of which one backward pass tells all derivatives of a result."""
    groups = dict[tuple[int, int], list[Value]]()
    for case in cases:
        groups.setdefault(case.suspect.place[:2], []).append(case.suspect.x)
    shared = {result: Together(values) for result, values in groups.items()}
    return [replace(case, together=shared[case.suspect.place[:2]]) for case in cases]


def _key(way: int, suspect: Suspect) -> Hashable:
    """Return what tells a place behind weights from all others, in whichever call."""
    return way, suspect.place, suspect.named, suspect.x.tensor.shape[1:], suspect.values[0].shape[1:]


def _ask_others(
    known: dict[Place, Case],
    answers: dict[Place, Spelled | Answer],
    places: Set[Place],
    relus: frozenset[Place],
    elsewhere: Elsewhere,
) -> None:
    """Look at some cases on other images, which may tell what few images do not, and at what stands beside them."""
    wanted = {place for place in known if any(place[:2] == one[:2] for one in places)}
    for watch, path, inside in elsewhere(relus.union(wanted)) if places else ():
        for place, look in _behind(watch, path, inside, wanted, relus).items():
            known[place] = replace(known[place], behind=[*known[place].behind, look])
            answers[place] = known[place].answer() if place in places else answers[place]
        if not any(answers[place] == "unsure" for place in places):
            return


def _behind(
    watch: ForwardWatch, path: Path | None, inside: Set[Node], wanted: Set[Place], relus: Set[Place]
) -> dict[Place, tuple[NumpyArray, NumpyArray]]:
    """Return what may be a ReLU behind weights and its derivative, by their place, in a run on other images."""
    if path is None:
        return {}
    numbers = {node._sequence_nr(): node for node in path.nodes}
    taken = [node for node in nodes_taken(watch.suspects, watch.taken, numbers) if node not in inside]
    cases = [
        Case(suspect, numbers.get(suspect.number), path, [], is_settled=False, taken=taken).asked()
        for suspect in watch.suspects
        if suspect.place in wanted
    ]
    nodes = [numbers.get(suspect.number) for suspect in watch.suspects if suspect.place in relus]
    with shut(path, inside), closed([node for node in nodes if node is not None]):
        pairs = [(case.suspect.place, as_numpy(case.suspect.x.tensor), case.towards_x) for case in _together(cases)]
    return {place: (x, towards) for place, x, towards in pairs if towards is not None}


def _refuse_unfinished(unfinished: Sequence[tuple[Suspect, Node]], relus: Set[Node], path: Path) -> None:
    """Raise if what a ReLU is made of, such as ``min(x, 0)``, is used for something else besides."""
    finished = relus | {node for _, node in unfinished}
    for suspect, node in unfinished:
        if not finished >= set(path.children[node]):
            raise spelled({suspect.named}, "torch.relu")


def _is_part(case: Case, plain: Mapping[int, Sequence[Made]]) -> bool:
    """Tell whether all of what is no ReLU itself goes to one curve of x of which nothing is closed, as to an ELU."""
    users, seen = [] if case.node is None else list(case.path.children[case.node]), set[Node]()
    if not users or case.judgement.verdict is Verdict.CONVEX:
        return False
    while users and len(seen) < MOST_PARTS:
        user = users.pop()
        if user not in seen and case.suspect.x.made not in plain.get(user._sequence_nr(), ()):
            if not case.path.children[user]:
                return False
            users += case.path.children[user]
        seen.add(user)
    return not users
