"""Peak memory: a process of its own for each measurement, and how far it rises above a model that has predicted once.

The processes are forked from one that has imported everything and computed nothing. Linux only: the kernel itself
keeps the highest value that a process reached, so that none is missed.
"""

import ctypes
import gc
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path

from contest import FORWARD, Framework, load, message
from rounds import TINY
from rows import Row, row

# Freed memory is given back at once, for all alike; by default glibc keeps what it expects to be asked for again.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
_MEGABYTE = 1e6


def kernel_value(name: str) -> int:
    """Return what the kernel knows of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell {name}")


def peak(framework_name: str, model_name: str, batch: int, name: str) -> float:
    """Return by how many megabytes this process rises; what explaining needs once for a model is part of it."""
    framework = load(framework_name)
    contestant = framework.contestant(name)
    # Code that is loaded late, and threads that start late, are not what is asked for.
    warm_up(framework, TINY, name)
    model = framework.networks[model_name].build("float32")
    images, labels = framework.inputs(model_name, batch)
    framework.contestants[FORWARD].prepare(model, images)(images[:1], labels[:1])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = kernel_value("VmRSS")
    explain = contestant.prepare(model, images)
    # Kept until the peak is read: the map is part of it.
    attribution = explain(images, labels)
    rise = kernel_value("VmHWM") - before
    del attribution
    return rise / _MEGABYTE


def warm_up(framework: Framework, model_name: str, name: str) -> None:
    images, labels = framework.inputs(model_name, 2)
    framework.contestant(name).prepare(framework.networks[model_name].build("float32"), images)(images, labels)


def server(framework: Framework) -> BaseContext:
    """Return where processes come from: one server, started with this environment."""
    os.environ.update(_MALLOC, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"contestants_{framework.name}"])
    return context


def measure(framework: Framework, cases: list[tuple[str, int, str]], repeats: int) -> list[Row]:
    """Return a row for each model, batch and contestant, and each repeat."""
    context = server(framework)
    rows = []
    for model, batch, name in cases:
        for repeat in range(repeats):
            value: dict[str, object] = {"megabytes": "", "error": ""}
            try:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    value["megabytes"] = pool.submit(peak, framework.name, model, batch, name).result()
            except Exception as error:
                value["error"] = message(error)
            place = {"model": model, "batch": batch, "contestant": name, "repeat": repeat}
            rows.append(row(framework, framework.contestant(name), **place, **value))
        print(f"{framework.name} memory, {model}, {batch}, {name}: {rows[-1]['megabytes']} MB", file=sys.stderr)
    return rows
