"""What the graph leaves open of a forward pass: the logits, and numbers that were added."""

from typing import Final

from torch.autograd.graph import Node

from guided_backprop.backends.torch.graph.composites import Graph
from guided_backprop.backends.torch.graph.nodes import head_behind
from guided_backprop.backends.torch.graph.operations import OPERATIONS, operation, row
from guided_backprop.backends.torch.hidden.watch import Watched

# Where none of these is to be found: most of what is looked at is of these.
_MADE_OF_TWO: Final = OPERATIONS.called("mul", "div", "pow")


def what_is_open(last: Node | None, graph: Graph, *, undoes_head: bool) -> Watched:
    """Return what of the forward pass the graph leaves open, beside what may hide a ReLU."""
    is_headed = undoes_head and head_behind(last) is not None
    return "details" if is_headed or needs_shifts(graph) else None


def needs_shifts(graph: Graph) -> bool:
    """Tell whether a number that was added decides what the graph is, as of a hard-sigmoid, a softsign and an ELU."""
    is_bounded = any(row(node).word in ("clamp", "minimum") for node in graph.path.doubts)
    for node in graph.path.doubts:
        match graph.made(node) if operation(node) not in _MADE_OF_TWO else None:
            case ("relu1" | "relu6", [x]) if graph.is_shifted(x):
                return True
            case ("exp", _) if is_bounded and any(map(graph.is_shifted, graph.users(node))):
                return True
            case ("abs", [x]):
                totals = [total for total in graph.users(node) if graph.is_shifted(total)]
                if any(graph.made(use) == ("div", [x, total]) for total in totals for use in graph.users(total)):
                    return True
    return False
