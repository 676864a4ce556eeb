"""Time in rounds: in each, every contestant once, in a new order, so that what slows the machine slows them all.

A ratio is later taken inside of a round only. The jobs, from top to bottom: one label of each image; several labels
of each image; a folder of images in batches; and many calls with one tiny image.
"""

import gc
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from contest import FORWARD, GRADIENT, OURS, PRODUCTS, Contestant, Explain, Framework, message
from rows import Row, row

Calls = dict[str, Callable[[], Any]]
# How a job calls one contestant.
Call = Callable[[Contestant, Explain, Any, Any], Any]

LABEL_SETS = 10
FOLDER_BATCH = 32
TINY = "tiny CNN"
_WARM_UP = 8
# Threads of OpenMP, as PyTorch has them, keep a processor busy for 8 to 17 ms after a call: nobody is timed meanwhile.
_PAUSE = 0.03
# Calls that are shorter, in seconds, are timed in a row of so long, and not as the first one after other libraries'.
_SHORT = 0.1


@dataclass(frozen=True)
class Limits:
    """When there were enough rounds.

    Attributes:
        least: so many there are, but for a row that is slow.
        seconds: so long a row takes at least, if there are not yet ``most`` rounds.
        slow: after so many seconds ``fewest`` rounds are enough.
    """

    least: int = 5
    seconds: float = 6.0
    most: int = 60
    fewest: int = 3
    slow: float = 30.0

    def is_enough(self, rounds: int, seconds: float) -> bool:
        if rounds >= self.most or (rounds >= self.least and seconds >= self.seconds):
            return True
        return rounds >= min(self.fewest, self.least) and seconds >= self.slow


@dataclass(frozen=True)
class Job:
    """What is timed: so many images of one model, explained by these contestants in this way."""

    name: str
    model: str
    batch: int
    contestants: Mapping[str, Contestant]
    call: Call
    label_sets: int = 1

    def measure(self, framework: Framework, limits: Limits) -> list[Row]:
        """Return a row for each contestant and round, or for its error."""
        calls, rows = self._calls(framework)
        started, rounds = time.perf_counter(), 0
        while not limits.is_enough(rounds, time.perf_counter() - started):
            gc.collect()
            for name in random.Random(rounds).sample(sorted(calls), len(calls)):
                try:
                    time.sleep(_PAUSE)
                    seconds, cpu_seconds = timed_in_a_row(calls[name])
                except Exception as error:
                    del calls[name]
                    rows.append(self._row(framework, name, error=message(error)))
                else:
                    rows.append(self._row(framework, name, round=rounds, seconds=seconds, cpu_seconds=cpu_seconds))
            rounds += 1
        took = time.perf_counter() - started
        print(
            f"{framework.name} {self.name}, {self.model}, {self.batch}: {rounds} rounds, {took:.0f} s", file=sys.stderr
        )
        return rows

    def _calls(self, framework: Framework) -> tuple[Calls, list[Row]]:
        """Prepare every contestant, and let each explain some images: what is done for the first time is not timed."""
        model = framework.networks[self.model].build("float32")
        images, labels = framework.inputs(self.model, self.batch, sets=self.label_sets)
        calls: Calls = {}
        errors: list[Row] = []
        for name, contestant in self.contestants.items():
            try:
                explain = contestant.prepare(framework.twin(model), images)
                self.call(contestant, explain, images[:_WARM_UP], labels[:_WARM_UP])
                calls[name] = bound(self.call, contestant, explain, images, labels)
            except Exception as error:
                errors.append(self._row(framework, name, error=message(error)))
        return calls, errors

    def _row(self, framework: Framework, name: str, **values: Any) -> Row:
        blank = {"round": "", "seconds": "", "cpu_seconds": "", "error": ""}
        place = {"job": self.name, "model": self.model, "batch": self.batch, "contestant": name}
        return row(framework, self.contestants[name], **(place | blank | values))


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return how long it takes: of the clock, and of all processors together."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def timed_in_a_row(call: Callable[[], Any]) -> tuple[float, float]:
    """Return how long a call takes among its like; one that is long is its own row."""
    seconds, cpu_seconds = timed(call)
    if seconds >= _SHORT:
        return seconds, cpu_seconds
    count = math.ceil(_SHORT / seconds)
    seconds, cpu_seconds = timed(lambda: [call() for _ in range(count)])
    return seconds / count, cpu_seconds / count


def bound(call: Call, contestant: Contestant, explain: Explain, images: Any, labels: Any) -> Callable[[], Any]:
    return lambda: call(contestant, explain, images, labels)


def once(contestant: Contestant, explain: Explain, images: Any, labels: Any) -> Any:
    return explain(images, labels)


def each_label(contestant: Contestant, explain: Explain, images: Any, labels: Any) -> Any:
    if contestant.takes_label_sets:
        return explain(images, labels)
    return [explain(images, labels[:, index]) for index in range(LABEL_SETS)]


def in_batches(contestant: Contestant, explain: Explain, images: Any, labels: Any) -> Any:
    if contestant.batches_itself:
        return explain(images, labels)
    slices = [slice(start, start + FOLDER_BATCH) for start in range(0, len(images), FOLDER_BATCH)]
    return np.concatenate([np.asarray(explain(images[rows], labels[rows])) for rows in slices])


def again_and_again(count: int) -> Call:
    def call(contestant: Contestant, explain: Explain, images: Any, labels: Any) -> None:
        for _ in range(count):
            explain(images, labels)

    return call


def main_jobs(framework: Framework, models: Iterable[str], batches: Iterable[int]) -> list[Job]:
    batches = list(batches)
    return [Job("images", model, batch, framework.contestants, once) for model in models for batch in batches]


def whole(framework: Framework) -> dict[str, Contestant]:
    """Return the contestants that run the whole model."""
    return {name: each for name, each in framework.contestants.items() if name != PRODUCTS}


def labels_job(framework: Framework) -> Job:
    name = f"{LABEL_SETS} labels"
    return Job(name, framework.job_model, 8, whole(framework), each_label, label_sets=LABEL_SETS)


def folder_job(framework: Framework, count: int) -> Job:
    """Return the job of a folder: without those that take one image at a time, which the main table has."""
    loops = {name: each for name, each in whole(framework).items() if name not in ("ours lean", "pytorch-grad-cam")}
    ways = {OURS: "default", "ours optimized": "optimized"}
    own = {name: framework.variants[f"{ways[name]}, batch_size={FOLDER_BATCH}"] for name in ways if name in loops}
    return Job(f"folder of {count}", framework.job_model, count, loops | own, in_batches)


def tiny_job(framework: Framework, count: int) -> Job:
    return Job(f"{count} calls", TINY, 1, whole(framework), again_and_again(count))


def growth_jobs(framework: Framework, batches: Iterable[int], models: Iterable[str]) -> list[Job]:
    """Return what shows how time grows: with the batch, and with the depth of the network."""
    few = {name: framework.contestants[name] for name in (FORWARD, GRADIENT, OURS, "ours optimized")}
    by_batch = [Job("growth with batch", "ResNet-18", batch, few, once) for batch in batches]
    return by_batch + [Job("growth with depth", model, 4, few, once) for model in models]


def curve_contestants(framework: Framework) -> dict[str, Contestant]:
    kept = {name: each for name, each in framework.variants.items() if not name.endswith(f"={FOLDER_BATCH}")}
    return {name: framework.contestants[name] for name in (FORWARD, GRADIENT)} | kept


def curve_job(framework: Framework, model: str, batch: int) -> Job:
    return Job("curve", model, batch, curve_contestants(framework), once)
