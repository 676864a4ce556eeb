"""The values of the places that may hide a ReLU: seen in a run of the model's graph, and judged.

The run is one of its own, forward only, over few images; what it shows is kept, so later calls look only at what was
not settled for good. Values inside of loops and branches are seen as well, by a call out to Python put beside them.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.bounds import judge_bounded
from guided_backprop.backends.choices import judge_choice
from guided_backprop.backends.evidence import NEAR, is_evidence
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict, judge
from guided_backprop.backends.tensorflow.graph.callout import CallOut
from guided_backprop.backends.tensorflow.graph.functions import let_run
from guided_backprop.backends.tensorflow.graph.nodes import Graph
from guided_backprop.backends.tensorflow.hidden.behind import Behind
from guided_backprop.backends.tensorflow.hidden.derivatives import Derivatives
from guided_backprop.backends.tensorflow.hidden.differences import Differences
from guided_backprop.backends.tensorflow.hidden.looks import is_straight, other_inputs, together, turned
from guided_backprop.backends.tensorflow.hidden.original import Import, Original
from guided_backprop.backends.tensorflow.hidden.sums import Joined, SumsWatch
from guided_backprop.backends.tensorflow.hidden.traces import Candidate, Place

#: How many images are looked at, and how many values of one place inside of a loop.
_IMAGES = 8
_VALUES = 1 << 20

Pair = tuple[int, int]
# What one look refutes is refuted, and what one shows is shown.
_BY_WEIGHT = (Verdict.NONE, Verdict.PARTIAL, Verdict.CONVEX, Verdict.CONCAVE, Verdict.UNSETTLED)


class Watch:
    """The places of one copy of a model's graph, until each is settled.

    Args:
        places: what may hide a ReLU.
        original: the graph; its last input is what the gradient begins at, if that is inside.
        flat_names: the names in it of what the nodes of the outermost function give.
        sums: what adds up a value and ReLUs of it.
        begins_inside: whether it is.
    """

    def __init__(
        self,
        places: Sequence[Place],
        original: Original,
        flat_names: Mapping[str, str],
        *,
        sums: Sequence[Joined],
        begins_inside: bool,
    ) -> None:
        self._begins_inside = begins_inside
        self._places, self._original, self._flat_names = places, original, flat_names
        # Whether it is enough to look at some of the images.
        self._is_free = all(spec.shape[0] is None for spec in original.specs)
        self._derivatives = Derivatives(original)
        self._behind = Behind(places, self._derivatives, self._flat, self._first, Differences(original))
        self._sums = SumsWatch(sums, original, self._flat)
        self._open: dict[Pair, None] = dict.fromkeys(
            (number, index) for number, place in enumerate(places) for index, _ in enumerate(place.candidates)
        )
        self._seen: dict[int, list[list[NumpyArray]]] = defaultdict(list)
        self._firsts: dict[int, list[NumpyArray]] = {}
        self._lock = threading.Lock()
        self._run: Callable[..., object] | None = None
        self._kept: list[CallOut] = []

    @property
    def is_open(self) -> bool:
        """Whether there is a place that values may still show to be a ReLU."""
        return bool(self._open) or self._behind.is_open or self._sums.is_open

    @property
    def unsettled(self) -> str:
        """What values may still show to be a ReLU, by name; empty where there is nothing."""
        # What never changes its sign 0 does not close.
        numbers = [pair[0] for pair in self._open if not self._candidate(pair).sign] + self._behind.led
        return self._places[numbers[0]].name if numbers else ""

    def found(self, arrays: Sequence[tf.Tensor]) -> list[Place]:
        """Return the places that are ReLUs, as these images show them, or that no image tells."""
        with self._lock:
            if not self.is_open:
                return []
            few = [array[:_IMAGES] if self._is_free else array for array in arrays]
            try:
                return self._found(few, arrays)
            except (tf.errors.OpError, ValueError):
                if len(few[0]) == len(arrays[0]):
                    raise
            # Something in it is of the shape of all of them, though it was traced for any number.
            self._is_free = False
            self._forget()
            return self._found(arrays, arrays)

    def _found(self, few: Sequence[tf.Tensor], arrays: Sequence[tf.Tensor]) -> list[Place]:
        """Return them by few of these images, and by all where these say too little."""
        sums = self._sums.found(few)
        verdicts = self._judged(few) if self._open else {}
        if self._idle and len(few[0]) < len(arrays[0]):
            # Another image may take the branch that these do not.
            verdicts = self._judged(arrays)
        idle = self._idle
        for turn, others in enumerate(other_inputs(few, first=self._first(len(few)))):
            if not any(self._is_doubtful(pair, verdict) for pair, verdict in verdicts.items()):
                break
            try:
                verdicts = self._judged(others) if turn < NEAR else self._judged_alone(others, verdicts)
            except tf.errors.OpError:
                # The model says of itself that it takes no such images.
                continue
        verdicts = self._tried(verdicts, few)
        # What is not run for these images passes no gradient of theirs; others may run it.
        refused, closed = self._refused({pair: verdicts[pair] for pair in verdicts if pair not in idle}, arrays)
        # Others may close what these images leave open of a choice.
        choices = {pair for pair in verdicts if self._candidate(pair).is_choice}
        self._open = dict.fromkeys(pair for pair in self._open if pair in refused | closed | idle | choices)
        self._forget()
        # Derivatives take longer: they are asked where nothing is refused by its values.
        numbers = {number for number, _ in refused} or self._behind.found(few)
        return [*sums, *(self._places[number] for number in sorted(numbers))]

    def _forget(self) -> None:
        self._seen.clear()
        self._firsts.clear()

    def _is_doubtful(self, pair: Pair, verdict: Verdict) -> bool:
        """Tell whether other images may say more: what compares values with each other may be a gate by chance."""
        candidate = self._candidate(pair)
        return (verdict is Verdict.UNSETTLED and not candidate.sign) or candidate.ranks is not Ranks.NONE

    @property
    def _idle(self) -> set[Pair]:
        """The pairs inside of branches that were not run yet."""
        return {pair for pair in self._open if self._places[pair[0]].function and pair[0] not in self._firsts}

    def _candidate(self, pair: Pair) -> Candidate:
        return self._places[pair[0]].candidates[pair[1]]

    def _judged(self, arrays: Sequence[tf.Tensor]) -> dict[Pair, Verdict]:
        """Run the graph, and return what is not refuted by all that was seen."""
        if self._run is None:
            self._run = self._build()
        self._run(*arrays)
        verdicts = {pair: self._verdict(pair, self._seen.get(pair[0])) for pair in self._open}
        return self._not_refuted(verdicts)

    def _judged_alone(self, arrays: Sequence[tf.Tensor], verdicts: Mapping[Pair, Verdict]) -> dict[Pair, Verdict]:
        """Judge what is in doubt by these images alone: beside values so large the others look like none."""
        near = {number: list(seen) for number, seen in self._seen.items()}
        self._seen.clear()
        if self._run is not None:
            self._run(*arrays)
        revised = dict(verdicts)
        for pair in [pair for pair, verdict in verdicts.items() if self._is_doubtful(pair, verdict)]:
            far = self._seen.get(pair[0])
            is_choice = self._candidate(pair).is_choice
            verdict = Verdict.CONVEX if is_choice else self._verdict(pair, far)
            if far and verdict not in (Verdict.NONE, Verdict.UNSETTLED):
                # What it is it has to be on all of them.
                verdict = self._verdict(pair, [*near.get(pair[0], ()), *far])
            revised[pair] = revised[pair] if verdict is Verdict.UNSETTLED else verdict
        return self._not_refuted(revised)

    def _not_refuted(self, verdicts: Mapping[Pair, Verdict]) -> dict[Pair, Verdict]:
        self._open = {pair: None for pair in self._open if verdicts[pair] is not Verdict.NONE}
        still = {number for number, _ in self._open}
        for number in [number for number in self._seen if number not in still]:
            del self._seen[number]
        return {pair: verdicts[pair] for pair in self._open}

    def _verdict(self, pair: Pair, seen: list[list[NumpyArray]] | None) -> Verdict:
        if not seen:
            return Verdict.UNSETTLED
        candidate, pairs = self._candidate(pair), [(look[0], look[pair[1] + 1]) for look in seen]
        if candidate.is_choice:
            return judge_choice(pairs, candidate.choice, is_of_one_sign=bool(candidate.sign)).verdict
        if any(y.size > x.size for y, x in pairs):
            # Where there are several of each value they may lie along the first axis.
            return min((self._judge(y, x, candidate) for y, x in pairs), key=_BY_WEIGHT.index)
        y, x = (together(list(looks)) for looks in zip(*pairs, strict=True))
        return self._judge(y, x, candidate)

    def _judge(self, y: NumpyArray, x: NumpyArray, candidate: Candidate) -> Verdict:
        if candidate.less:
            return judge_choice([(y, x)], candidate.choice).verdict
        rounding = 1e-3 if y.dtype.itemsize > 2 else 4e-2
        ranks, has_sign = candidate.ranks, bool(candidate.sign)
        how = judge_bounded if candidate.is_bounded else judge
        judged = how(y, x, rounding, ranks=ranks, is_of_one_sign=has_sign, is_of_two=candidate.is_of_two)
        if judged.verdict is Verdict.UNSETTLED and judged.closed is None and not is_straight(y, x, rounding):
            # Of a ReLU the open side is straight, though no value be closed.
            return Verdict.NONE
        return judged.verdict

    def _tried(self, verdicts: Mapping[Pair, Verdict], arrays: Sequence[tf.Tensor]) -> dict[Pair, Verdict]:
        """Try what no image tells on other values: what is made of nothing but one value can be run alone."""
        by_cut: dict[str, list[Pair]] = defaultdict(list)
        for pair, verdict in verdicts.items():
            is_open = verdict is Verdict.UNSETTLED and not self._is_told(pair, verdict)
            if is_open and not self._places[pair[0]].function and (cut := self._cut(pair)):
                by_cut[cut].append(pair)
        revised = dict(verdicts)
        for cut, pairs in by_cut.items():
            refs = [[self._places[pair[0]].ref, *self._candidate(pair).refs] for pair in pairs]
            try:
                then, now = self._alone(cut, [self._flat(ref) for each in refs for ref in each], arrays)
            except tf.errors.OpError:
                # There are no such values.
                continue
            left = iter(then), iter(now)
            for pair in pairs:
                ys = [next(values) for values in left]
                xs = [self._candidate(pair).fits(values, y) for values, y in zip(left, ys, strict=True)]
                fitting = [x for x in xs if x is not None]
                if is_evidence(ys[1], ys[0]) and len(fitting) == len(ys):
                    revised[pair] = self._judge(together(ys), together(fitting), self._candidate(pair))
        return self._not_refuted(revised)

    def _cut(self, pair: Pair) -> str:
        """Return the value through which y has all that it has of the images: x, or another one; empty if none is."""
        place = self._places[pair[0]]
        known = [self._candidate(pair), *(one for one in place.candidates if not one.less)]
        refs = dict.fromkeys(self._flat(one.ref) for one in known)
        return next((ref for ref in refs if self._comes_through(ref, self._flat(place.ref))), "")

    def _comes_through(self, x: str, y: str) -> bool:
        """Tell whether all that y has of the images, it has of x."""
        nodes = {node.name: node for node in self._original.graph_def.node}
        images = [node.name for node in nodes.values() if node.op == "Placeholder"][: len(self._original.specs)]
        seen, stack = {x}, [y]
        while stack:
            ref = stack.pop()
            name = ref.partition(":")[0]
            if ref not in seen and name in images:
                return False
            if ref not in seen:
                stack += [part if ":" in part else f"{part}:0" for part in nodes[name].input if part[0] != "^"]
            seen.add(ref)
        return True

    def _alone(self, x: str, names: list[str], arrays: Sequence[tf.Tensor]) -> list[list[NumpyArray]]:
        """Return values of these names: as they are, and where x has other signs and sizes."""
        turning = list[CallOut]()

        def both(bring: Import, *inputs: tf.Tensor) -> list[list[tf.Tensor]]:
            value, *first = bring(inputs, [x, *names])
            turning.append(CallOut(turned, value.dtype))
            other = tf.ensure_shape(turning[0]([value])[0], value.shape)
            second = iter(bring(inputs, [name for name in names if name != x], instead={x: other}))
            return [first, [other if name == x else next(second) for name in names]]

        return [[tensor.numpy() for tensor in tensors] for tensors in self._original.sized(arrays).built(both)(*arrays)]

    def _refused(self, verdicts: Mapping[Pair, Verdict], arrays: Sequence[tf.Tensor]) -> tuple[set[Pair], set[Pair]]:
        """Return the pairs that are ReLUs, or that no image tells; and those that these images close."""
        refused, asked = set[Pair](), list[Pair]()
        for pair, verdict in verdicts.items():
            place = self._places[pair[0]]
            if self._is_told(pair, verdict):
                continue
            if place.function:
                refused.add(pair)
            elif not (verdict is Verdict.CONCAVE and place.is_explicit):
                asked.append(pair)
        led = self._led(asked, arrays)
        return refused | led, {pair for pair in asked if pair not in led and self._is_closed(pair)}

    def _is_told(self, pair: Pair, verdict: Verdict) -> bool:
        """Tell whether what no image tells is no ReLU by how it is made."""
        candidate = self._candidate(pair)
        is_known = bool(candidate.sign) or candidate.ranks is Ranks.ALL or candidate.is_choice
        return verdict is Verdict.UNSETTLED and is_known

    def _is_closed(self, pair: Pair) -> bool:
        """Tell whether the images themselves show nothing but what is closed: others may open it."""
        y, x = (together([look[place] for look in self._seen[pair[0]]]) for place in (0, pair[1] + 1))
        first, closed = self._firsts[pair[0]][0], judge(y, x).closed
        return bool((first == (first.flat[0] if closed is None else closed)).all())

    def _led(self, pairs: Sequence[Pair], arrays: Sequence[tf.Tensor]) -> set[Pair]:
        """Return the pairs with a derivative of one towards the other, around all ReLUs that are guided."""
        if not pairs:
            return set()
        wanted: dict[str, list[str]] = defaultdict(list)
        pairs = sorted(pairs)
        for pair in pairs:
            wanted[self._flat(self._places[pair[0]].ref)].append(self._flat(self._candidate(pair).ref))
        are_led = self._derivatives.led(wanted, arrays)
        return {pair for pair, is_led in zip(pairs, are_led, strict=True) if is_led}

    def _first(self, count: int) -> int:
        """Return from which of so many inputs on others are made of the images."""
        return count - 1 if self._begins_inside else 0

    def _flat(self, ref: str) -> str:
        return self._flat_names[ref]

    def _build(self) -> Callable[..., object]:
        """Return what runs the graph and has its values seen."""
        outside = [(number, place) for number, place in enumerate(self._places) if not place.function]
        inside = [(number, place) for number, place in enumerate(self._places) if place.function]

        def show(graph_def: GraphDef) -> None:
            functions = {function.signature.name: function for function in graph_def.library.function}
            for number, place in inside:
                self._see_inside(functions[place.function], number, place)
            let_run(graph_def, {place.function for _, place in inside})

        def forward(bring: Import, *inputs: tf.Tensor) -> None:
            refs = [place.refs for _, place in outside]
            tensors = iter(bring(inputs, [self._flat(ref) for group in refs for ref in group]))
            for (number, _), group in zip(outside, refs, strict=True):
                self._call_out(number)([next(tensors) for _ in group])

        return self._original.built(forward, show)

    def _see(self, number: int, y: NumpyArray, *given: NumpyArray) -> None:
        """Keep the values of a place for as long as they may show something."""
        place = self._places[number]
        y, given = np.asarray(y), tuple(map(np.asarray, given))
        if place.function and sum(look[0].size for look in self._seen[number]) > _VALUES:
            return
        first = self._firsts.setdefault(number, [y, *given])
        if not all(map(is_evidence, (y, *given), first)):
            return
        left = iter(given)
        fitting = [candidate.fits(left, y) for candidate in place.candidates]
        is_first = not place.function and first[0] is y
        for index, (candidate, x) in enumerate(zip(place.candidates, fitting, strict=True)):
            # What one look refutes is kept no longer: that is nearly all.
            is_judged = is_first and (number, index) in self._open and bool(candidate.less or not candidate.is_choice)
            if x is None or (is_judged and self._judge(y, x, candidate) is Verdict.NONE):
                self._open.pop((number, index), None)
        if any((number, index) in self._open for index in range(len(fitting))):
            self._seen[number].append([np.array(y), *(np.zeros(0) if x is None else x for x in fitting)])

    def _call_out(self, number: int) -> CallOut:
        call_out = CallOut(partial(self._see, number))
        self._kept.append(call_out)
        return call_out

    def _see_inside(self, function: FunctionDef, number: int, place: Place) -> None:
        """Put a call out to Python beside a place in a function that is held by another."""
        kinds = [Graph(function, {}).kind_of(ref) for ref in place.refs]
        node = self._call_out(number).node(f"guided_backprop_see_{next(_NUMBERS)}", place.refs, kinds)
        function.node_def.append(node)
        function.control_ret[node.name] = node.name
        function.signature.control_output.append(node.name)
        function.signature.is_stateful = True


_NUMBERS = count()
