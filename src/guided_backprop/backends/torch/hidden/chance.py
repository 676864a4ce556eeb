"""Whether a model draws random numbers: told by the generators' states, which are read and never set."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from guided_backprop.backends.again import ANY_DRAW
from guided_backprop.backends.base import Vouch
from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched
from guided_backprop.backends.torch.own import Arguments, Function, Named
from guided_backprop.errors import ModelError


class Generators:
    """The generators of torch that a model may draw from: those that all share, and its own.

    Args:
        sources: what its code reaches.
    """

    def __init__(self, sources: Sequence[object]) -> None:
        self._own = [torch.default_generator, *(value for value in sources if isinstance(value, torch.Generator))]

    def states(self) -> list[torch.Tensor]:
        """Return their states, to be compared by :func:`have_drawn`."""
        return [generator.get_state() for generator in (*self._own, *_of_accelerators())]


def have_drawn(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
    """Tell whether any state is another one; a device that was not in use before has drawn nothing yet that counts."""
    return len(before) == len(after) and not all(map(torch.equal, before, after))


def _of_accelerators() -> Iterator[torch.Generator]:
    """Iterate over the generators of the devices that are in use."""
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            yield from device.default_generators


class Draws(Dispatched):
    """Watches one forward pass for operations that draw.

    Args:
        generators: what they draw from.

    Attributes:
        names: which did.
    """

    def __init__(self, generators: Generators) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._generators = generators

    def __torch_dispatch__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Run the operation, and look at the generators if it may draw: attention does only with dropout."""
        operation: torch._ops.OpOverload = func  # type: ignore[assignment]
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return func(*args, **(kwargs or {}))
        before = self._generators.states()
        result = func(*args, **(kwargs or {}))
        if have_drawn(before, self._generators.states()):
            self.names.add(dispatched(operation.overloadpacket.__name__))
        return result


def refuse_draws(generators: Generators, output: torch.Tensor, again: Callable[[], torch.Tensor], vouch: Vouch) -> None:
    """Raise if a model draws random numbers, told by another run; no more than that is known of a generator.

    What draws nothing in this run drew to be built in the first one, or begins with the same seed in each. And it
    may be another thread that draws, where no operation here did and the output is the same.

    Args:
        generators: what it drew from.
        output: what it gave.
        again: runs it again.
        vouch: what the user says of operations.

    Raises:
        ModelError: it draws, and nobody vouches for that.
    """
    if ANY_DRAW in vouch:
        return
    before, draws = generators.states(), Draws(generators)
    with draws:
        other = again()
    has_drawn = have_drawn(before, generators.states())
    is_drawing = has_drawn and (draws.names or not torch.equal(other, output))
    if is_drawing and not is_vouched(draws.names, vouch):
        raise _random_error(draws.names)


def is_vouched(names: Collection[str], vouch: Vouch) -> bool:
    """Tell whether the user says of all that draws that it may, by its name or by ``random``."""
    return ANY_DRAW in vouch or (bool(names) and all(name in vouch or _word_of(name) in vouch for name in names))


def _word_of(name: str) -> str:
    return OPERATIONS[name].word


def _random_error(names: Collection[str]) -> ModelError:
    """Return the error for a model that draws; no name where no operation of torch did."""
    name = min(names, default=ANY_DRAW)
    vouched = f'or pass vouch={{"{name}": "plain"}} to explain one draw.'
    if _word_of(name) == "dropout":
        return ModelError(
            f"model must be in eval mode, or its map is random; received {name}, as by dropout in training mode. "
            f"Call model.eval(), {vouched}"
        )
    received = f"random numbers, by {', '.join(sorted(names))}" if names else "other outputs in another run"
    return ModelError(
        f"model must give one output for one image, or its map is random; received {received}. "
        f"Take the random part out, {vouched}"
    )
