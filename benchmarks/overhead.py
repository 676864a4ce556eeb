"""What a call of a compiled method takes above the engine's own time, in PyTorch.

    overhead.py [--models "tiny CNN,small CNN"] [--batches 1] [--rounds 2000]

It prints a table in Markdown of microseconds: the engine's own time, from NumPy's arrays to NumPy's arrays; what a call
of explain() takes above that, with its look at the weights; and that look alone. Medians over rounds in which all run,
each time in a new order.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from contest import load
from markdown import print_head, print_row

from guided_backprop import GuidedBackprop
from guided_backprop.export.engine import installed


def medians(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return microseconds by round; what is done for the first time is left out."""
    times = {name: np.empty(rounds) for name in contestants}
    for turn in range(-10, rounds):
        for name in random.Random(turn).sample(list(contestants), len(contestants)):
            begin = time.perf_counter()
            contestants[name]()
            times[name][turn] = 1e6 * (time.perf_counter() - begin)
    return times


def measured(framework: Any, name: str, count: int, engine: Any, rounds: int) -> Sequence[str]:
    images, labels = framework.inputs(name, count)
    method = GuidedBackprop(framework.networks[name].build("float32")).compile(images, engine)
    compiled: Any = method.compiled
    given = compiled._told([images.numpy()], labels.numpy())
    times = medians(
        {
            "engine": lambda: compiled._engine.run(given),
            "call": lambda: method.explain(images, labels),
            "look": compiled._weights.are_the_same,
        },
        rounds,
    )
    found = [times["engine"], times["call"] - times["engine"], times["look"]]
    return [name, str(count), compiled.engine, *[f"{np.median(one):.0f}" for one in found]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny CNN,small CNN")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--rounds", type=int, default=2000)
    asked = parser.parse_args()
    framework = load("torch")
    header = ["model", "images", "engine", "its own time", "a call above that", "look at the weights alone"]
    print_head(header)
    for name in asked.models.split(","):
        for count in map(int, asked.batches.split(",")):
            for engine in installed():
                print_row(measured(framework, name, count, engine, asked.rounds))


if __name__ == "__main__":
    main()
