"""What a recorded model asked of sizes: for how many images, and from which sizes on, it does the same."""

import itertools
import operator
from collections.abc import Mapping
from typing import Any, Final

import sympy
import torch
from torch.fx import Graph, Node

from guided_backprop.backends.torch.export.asking import is_of_one_number, of_number
from guided_backprop.backends.torch.export.trace import Free, Trace
from guided_backprop.errors import ModelError

# Up to how many images it is tried whether a model does something else from some number on.
_MOST_IMAGES: Final = 64
# For which sizes along one axis it is tried: for each up to a number, and for some beyond.
_DENSE: Final = 320
_TRIED: Final = (*range(2, _DENSE + 1), *range(_DENSE + 1, 1100, 37), 1 << 14, (1 << 14) + 1)
# Of sizes that are asked about together, and for how many images: whether it is one is asked of the memory's order, and
# what is done then is tried.
_SOME, _COUNTS = (0, 1, 2, 3, 5, 8, 13, 31, 32, 33, 100, 256, 991), (2, 17)


def turns_of(trace: Trace) -> list[int]:
    """Return the numbers of images from which on a condition of the model's is another one.

    Raises:
        ModelError: it is one that holds for a single number, or turns where it can't be tried.
    """
    turns = set[int]()
    for guard in trace.guards:
        if guard.free_symbols != {trace.symbol}:
            continue
        if is_of_one_number(guard):
            raise of_number(f"one that asks whether {guard}")
        answers = [bool(guard.subs(trace.symbol, count)) for count in range(1, _MOST_IMAGES + 2)]
        pairs = enumerate(itertools.pairwise(answers), start=2)
        turns |= {count for count, (before, after) in pairs if before != after}
        far = bool(guard.subs(trace.symbol, 1 << 20))
        if far != answers[-1]:
            raise of_number(
                f"one that asks whether {guard}",
                f"Take out what depends on there being more than {_MOST_IMAGES} images.",
            )
    return sorted(turns)


def least_of(trace: Trace, least: Mapping[Free, int]) -> Mapping[Free, int]:
    """Return from which number on each free size leaves all as it was recorded.

    Args:
        trace: what was recorded.
        least: from which number on that is of use.

    Raises:
        ModelError: the model asks for something that some larger sizes are not.
    """
    least = {size: max(number, 2) for size, number in least.items()}
    names = {symbol: size for size, symbol in trace.free.items()}
    several = []
    for guard in trace.guards:
        asked = [symbol for symbol in names if symbol in guard.free_symbols]
        if not asked:
            continue
        if len(guard.free_symbols) > 1:
            several.append(guard)
            continue
        broken = [size for size in _TRIED if not _holds(guard, {asked[0]: size})]
        if broken and broken[-1] > _DENSE:
            raise _of_sizes(guard)
        size = names[asked[0]]
        least[size] = max([least[size], *(number + 1 for number in broken[-1:])])
    for guard in several:
        _try_together(guard, trace, names, least)
    return least


def bounded(trace: Trace, least: Mapping[Free, int]) -> None:
    """Let a graph say of smaller images that its results are not right, as it does where one is no number."""
    graph = trace.module.graph
    arguments, (output,) = list(graph.find_nodes(op="placeholder")), graph.find_nodes(op="output")
    results = list(output.args[0])
    with graph.inserting_before(output):
        for (place, axis), size in least.items():
            length = graph.call_function(torch.ops.aten.sym_size.int, (arguments[place], axis))
            length.meta["val"] = arguments[place].meta["val"].shape[axis]
            is_large = graph.call_function(operator.ge, (length, size))
            is_large.meta["val"] = True
            for part in trace.parts:
                results[part.stop - 1] = _both(graph, results[part.stop - 1], is_large)
    output.args = (results,)
    trace.module.recompile()


def _both(graph: Graph, answer: Node, is_large: Node) -> Node:
    filled = graph.call_function(torch.ops.aten.full_like.default, (answer, is_large))
    both = graph.call_function(torch.ops.aten.logical_and.default, (answer, filled))
    filled.meta["val"] = both.meta["val"] = answer.meta["val"]
    return both


def _try_together(guard: Any, trace: Trace, names: Mapping[Any, Free], least: Mapping[Free, int]) -> None:
    """Raise unless what is asked of several sizes at once holds for all that are tried."""
    symbols = sorted(guard.free_symbols, key=str)
    tried = [
        _COUNTS if symbol == trace.symbol else [least[names[symbol]] + more for more in _SOME] for symbol in symbols
    ]
    if not all(_holds(guard, dict(zip(symbols, sizes, strict=True))) for sizes in itertools.product(*tried)):
        raise _of_sizes(guard)


def _holds(guard: Any, sizes: Mapping[Any, int]) -> bool:
    """Tell whether something holds for sizes, in whole numbers."""
    try:
        return bool(guard.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()}))
    except (ZeroDivisionError, AssertionError, TypeError):
        return False


def _of_sizes(guard: Any) -> ModelError:
    return ModelError(
        'model must do the same for images of any size for sizes="dynamic"; received one that asks whether '
        f'{guard}. Leave it out, for sizes="fixed"; or give larger images, if that is of a size of 1.'
    )
