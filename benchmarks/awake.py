"""How long an engine's threads keep a processor busy after a call, waiting for more to do.

    awake.py

It prints a table in Markdown: the processor time of one convolution on all threads, and of the pause after it, in
milliseconds; medians.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from torch import nn

from guided_backprop import Saliency
from guided_backprop.export.engine import ENGINES, installed

_ROUNDS, _PAUSE = 15, 0.2


def contestants(folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Return what computes a convolution: PyTorch, the engines as they are used here, and ONNX Runtime by itself."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images, threads = torch.randn(4, 16, 64, 64), torch.get_num_threads()
    path = Saliency(model).export(folder / "map.onnx", images).path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    given = {"images": images.numpy(), "labels": torch.zeros(4, dtype=torch.int64).numpy()}
    engines = [ENGINES[name](path, outputs, threads) for name in installed()]
    runs = {engine.name: lambda engine=engine: engine.run(given) for engine in engines}
    return {"torch": lambda: model(images), "onnxruntime by itself": lambda: session.run(None, given), **runs}


def burnt(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the processor time of a call, and of a pause after it."""
    begin = time.process_time()
    call()
    end = time.process_time()
    time.sleep(_PAUSE)
    return end - begin, time.process_time() - end


def main() -> None:
    print("| | a call | the pause after it |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, call in contestants(Path(folder)).items():
            # The first calls are for what is made once.
            rounds = [burnt(call) for _ in range(_ROUNDS)][3:]
            print(
                f"| {name} | {' | '.join(f'{1000 * median(each):.2f}' for each in zip(*rounds, strict=True))} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
