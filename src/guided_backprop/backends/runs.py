"""A model run from one of its layers on, or up to one: what passes them, and that each is run as often as was said."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from guided_backprop.arrays import Outputs, Tensor
from guided_backprop.errors import ModelError, OptionError

#: What is made of the value that a gradient begins at: the value that the model goes on with.
Start = Callable[[Tensor], Tensor]


class Run(NamedTuple):
    """One of the times that a model runs a layer, or makes a value.

    Attributes:
        layer: the layer's name; in a JAX function the value's name or position.
        call: which of the times, counted from 0; None where it is the only one.
    """

    layer: str | int
    call: int | None = None


def is_pair(layer: object) -> bool:
    """Tell whether a layer is given with the number of its run."""
    return isinstance(layer, tuple)


def checked_call(pair: tuple[object, ...]) -> int:
    """Return which run a pair of a layer and a number says.

    Raises:
        OptionError: it is no such pair.
    """
    is_call = len(pair) == 2 and isinstance(pair[1], int) and not isinstance(pair[1], bool) and pair[1] >= 0
    if not is_call:
        raise OptionError(
            "a layer and one of its runs must be a pair (layer, call), the call an integer counted from 0; received "
            f"{pair!r:.80}. Pass the pair, or the layer alone."
        )
    return int(pair[1])  # type: ignore[call-overload, no-any-return]


class Passage:
    """One run of a model, watched at the layer that it begins with, the one that it ends with, or both.

    Args:
        begin: where a gradient begins; None for the inputs.
        end: what the run ends with; None for the model's own output.
        start: is given the value that the gradient begins at, and returns what the model goes on with; None for that.
        stops: whether nothing is run after the end. Else the model is run on, so that the end's runs are counted.
    """

    def __init__(self, begin: Run | None, end: Run | None, start: Start | None = None, *, stops: bool = False) -> None:
        self._begin, self._end, self._start, self._stops = begin, end, start, stops
        self._counts: Counter[str | int] = Counter()
        self._has_begun = begin is None
        # What the end returned, if it was reached.
        self._last: list[Outputs] = []

    @property
    def layers(self) -> list[str | int]:
        """The layers that are watched."""
        return list(dict.fromkeys(run.layer for run in (self._begin, self._end) if run is not None))

    def at(self, layer: str | int) -> Callable[[Outputs], Outputs]:
        """Return what is to be called with each value that a layer returns, for what it returns then."""
        return partial(self._passed, layer)

    def run(self, model: Callable[[], Outputs]) -> Outputs:
        """Run the model and return what it ends with.

        Raises:
            ModelError: a layer is not run, or several times and none of them was chosen.
            OptionError: a run was chosen that there is not; or the end comes first.
        """
        output, error = None, None
        try:
            output = model()
        except _Left as left:
            if left.passage is not self:
                raise
            error = left.error
        except Exception:
            # What follows the end is not asked for.
            if not self._last:
                raise
        if error is not None:
            raise error
        for run in (self._begin, self._end):
            if run is not None:
                self._check(run)
        return output if self._end is None else self._last[0]

    def _passed(self, layer: str | int, output: Outputs) -> Outputs:
        call = self._counts[layer]
        self._counts[layer] += 1
        if self._begin is not None and (layer, call) == (self._begin.layer, self._begin.call or 0):
            output = self._started(output)
        if self._end is not None and (layer, call) == (self._end.layer, self._end.call or 0):
            self._reach(output)
        return output

    def _started(self, output: Outputs) -> Outputs:
        self._has_begun = True
        try:
            return output if self._start is None else self._start(output)
        except Exception as error:
            problem = error
        # Not from within: an error must not be the reason of its own reason.
        raise _Left(self, problem)

    def _reach(self, output: Outputs) -> None:
        if not self._has_begun:
            raise _Left(self, wrong_order(self._begin, self._end))
        self._last.append(output)
        if self._stops:
            raise _Left(self)

    def _check(self, run: Run) -> None:
        check_count(run, self._counts[run.layer])


class _Left(BaseException):
    """Leaves the forward pass: not an Exception, so that no handler of the model's own takes it for an error."""

    def __init__(self, passage: Passage, error: Exception | None = None) -> None:
        super().__init__()
        self.passage, self.error = passage, error


def check_count(run: Run, count: int, chosen: int | None = None) -> None:
    """Raise unless a layer that is run so often has this one run, or one run in all if none was chosen.

    Args:
        run: the run.
        count: how often the layer is run.
        chosen: how many of these can be chosen; None for all.
    """
    layer, call = run
    last = (count if chosen is None else chosen) - 1
    if not count:
        raise ModelError(
            f"a layer must be run by the model; received layer={layer!r}, which was run 0 times. "
            "Name a layer that is on the way to the model's output."
        )
    if call is None and count > 1:
        raise ModelError(
            "a layer must be run once, or one of its runs be chosen; received "
            f"layer={layer!r}, which was run {count} times. Pass ({layer!r}, 0) for the first, up to "
            f"({layer!r}, {last})."
        )
    if call is not None and call > last:
        raise OptionError(
            f"a layer's run must be one of those that there are, counted from 0; received ({layer!r}, {call}) and a "
            f"layer that was run {count} times. Pass at most {last}."
        )


def wrong_order(begin: Run | None, end: Run | None) -> OptionError:
    """Return the error for an end that comes before the beginning."""
    first, last = (None if run is None else run.layer if run.call is None else tuple(run) for run in (begin, end))
    return OptionError(
        "input_layer must be run before output_layer; received "
        f"input_layer={first!r} and output_layer={last!r}. Exchange them, or leave one out."
    )
