"""On JAX and TensorFlow: the first call of a method, its later calls, and those of the same method compiled.

    compiled.py jax|tensorflow [--batches 1,8] [--models ResNet50,MobileNetV2]

It prints a table in Markdown. Times are medians over rounds in which both run; the first call and what compile takes
are shown too. What is compiled and not faster runs as it is, which the last column says. Weights are random. With
JAX_COMPILATION_CACHE_DIR set a second run shows what JAX' own cache saves.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from markdown import print_head, print_row

from guided_backprop import GuidedBackprop

ROUNDS = 9


def of_keras(name: str) -> Any:
    import keras  # noqa: PLC0415 - when its backend is chosen

    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None, classifier_activation=None)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measured(name: str, model: Any, images: Any) -> Sequence[str]:
    method = GuidedBackprop(model)
    first, _ = seconds(lambda: method.explain(images, 3))
    made, compiled = seconds(lambda: method.compile(images))
    contestants = [lambda: method.explain(images, 3), lambda: compiled.explain(images, 3)]
    maps = [np.asarray(function().attribution) for function in contestants]
    times = np.array([[seconds(function)[0] for function in contestants] for _ in range(ROUNDS)])
    low, middle, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    milliseconds = [f"{1000 * one:.1f} ms" for one in np.median(times, 0)]
    apart = np.linalg.norm(maps[0] - maps[1]) / np.linalg.norm(maps[0])
    ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    return [
        name, str(len(images)), f"{first:.1f} s", f"{made:.1f} s", *milliseconds, ratio, f"{apart:.0e}",
        compiled.compiled.engine,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=["jax", "tensorflow"])
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--models", default="")
    asked = parser.parse_args()
    os.environ["KERAS_BACKEND"] = asked.framework
    keras, own = import_module("keras"), {"small CNN": import_module("small_network").small}
    if asked.framework == "jax":
        networks = import_module("jax_networks")
        own |= {"linen ResNet-50": networks.linen_resnet, "nnx ResNet-50": networks.nnx_resnet}
    names = asked.models.split(",") if asked.models else [*own, "ResNet50", "MobileNetV2"]
    header = ["model", "images", "first call", "compile", "later calls", "compiled", "compiled / later", "apart by"]
    header.append("run by")
    print_head(header)
    rng = np.random.default_rng(0)
    for name in names:
        model = own[name]() if name in own else of_keras(name)
        side = 32 if name == "small CNN" else 224
        for count in map(int, asked.batches.split(",")):
            images = keras.ops.convert_to_tensor(rng.normal(size=(count, side, side, 3)), "float32")
            print_row(measured(name, model, images))


if __name__ == "__main__":
    main()
