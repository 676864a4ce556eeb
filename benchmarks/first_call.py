"""On PyTorch: what the first call for a model costs, which is watched, in forward passes of the model.

    first_call.py        prints one line for ResNet-50 and one image

Times are of this process on its processors, medians over rounds in which all three run.
"""

import os
import time
from collections.abc import Callable
from statistics import median

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch

from guided_backprop import GuidedBackprop

ROUNDS = 7


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    network = keras.applications.ResNet50(weights=None, classifier_activation=None)
    image = torch.randn(1, 224, 224, 3)
    forward, first, later = [], [], []
    with torch.no_grad():
        network(image)
        for _ in range(ROUNDS):
            method = GuidedBackprop(network)
            forward.append(seconds(lambda: network(image)))
            first.append(seconds(lambda: method.explain(image, 1)))  # noqa: B023 - run at once
            later.append(seconds(lambda: method.explain(image, 1)))  # noqa: B023
    passes = [median(each) / median(forward) for each in (first, later)]
    print(f"ResNet-50, one image: first call {passes[0]:.1f} forward passes, later calls {passes[1]:.1f}")


if __name__ == "__main__":
    main()
