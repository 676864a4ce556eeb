"""How often a ReLU turns when a network is optimised, in float32: its input is at zero, but for rounding.

    flips.py            for each network, over 8 images

Prints a table in Markdown: the share of all ReLUs' values that are on in one run and off in the other, and how far
the maps are apart.
"""

from typing import Any

import numpy as np
import torch
from contestants_torch import MODELS, NETWORKS
from markdown import print_head, print_row
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guided_backprop import GuidedBackprop, Saliency

RELUS = (torch.relu, torch.relu_, functional.relu, functional.relu6, functional.hardtanh, functional.hardtanh_)


class Gates(TorchFunctionMode):
    """Keeps which values every ReLU lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in RELUS:
            self.found.append((result > 0).cpu())
        return result


def measured(name: str) -> list[str]:
    """Return a row of the table."""
    network = NETWORKS[name]
    model = network.build("float32")
    generator = np.random.default_rng(0)
    images = torch.tensor(generator.normal(size=(8, *network.shape)), dtype=torch.float32)
    labels = [row % network.classes for row in range(8)]
    plain = GuidedBackprop(model)
    fast = plain.optimize(images[:1])
    runs = []
    for method in (plain, fast):
        with Gates() as gates:
            runs.append((method.explain(images, labels), gates.found))
    (expected, before), (found, after) = runs
    pairs = [(first != second).double() for first, second in zip(before, after, strict=True)]
    share = sum(float(pair.sum()) for pair in pairs) / sum(pair.numel() for pair in pairs)
    # How much of that is rounding of sums, without any ReLU that turns: the same in float64.
    wide = GuidedBackprop(network.build("float64"))
    exact = wide.explain(images.double(), labels).attribution
    apart = [distance(each.attribution.double(), exact) for each in (expected, found)]
    between = distance(found.attribution.double(), expected.attribution.double())
    gradient = distance(
        Saliency(model).optimize(images[:1]).explain(images, labels).attribution.double(),
        Saliency(model).explain(images, labels).attribution.double(),
    )
    return [name, f"{share:.1e}", f"{between:.1e}", f"{gradient:.1e}", f"{apart[0]:.1e}", f"{apart[1]:.1e}"]


def distance(found: Tensor, right: Tensor) -> float:
    """Return how far maps are apart, as a share of their norm."""
    return float((found - right).norm() / right.norm())


def main() -> None:
    header = ["model", "ReLUs that turn", "maps apart", "plain gradients apart", "default from float64", "optimised"]
    print_head(header)
    for name in MODELS:
        print_row(measured(name))


if __name__ == "__main__":
    main()
