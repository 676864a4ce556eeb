"""What bfloat16 arithmetic does to a map, and to its time: OpenVINO's, on processors that have it.

    precision.py [MODEL,MODEL...]       prints a table in Markdown, for two images of noise

Cosine and rank correlation are the lower ones of two maps, with the map in float64; times are of the processor, medians
over rounds in which both run.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from contestants_torch import FRAMEWORK, NETWORKS
from markdown import print_head, print_row
from scipy.stats import spearmanr

from guided_backprop import GuidedBackprop
from guided_backprop.export.engine import required

MODELS = ("small CNN", "ResNet-18", "MobileNetV2", "EfficientNet-Lite0")
PRECISIONS = ("f32", "bf16")
ROUNDS, IMAGES = 8, 2


def opened(path: Path, precision: str) -> Any:
    """Return what runs a file in OpenVINO, in so precise numbers, on as many threads as PyTorch has."""
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    core = required("openvino").Core()
    return core.compile_model(core.read_model(str(path)), "CPU", options).create_infer_request()


def timed(request: Any, given: Mapping[str, Any]) -> tuple[float, Any]:
    begin = time.process_time()
    results = request.infer(dict(given), share_outputs=False)
    return time.process_time() - begin, results.to_tuple()[1]


def row(name: str) -> list[str]:
    model = NETWORKS[name].build("float32")
    images, labels = FRAMEWORK.inputs(name, IMAGES)
    exact = GuidedBackprop(NETWORKS[name].build("float64")).explain(images.double(), labels).attribution.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = GuidedBackprop(model).export(Path(folder) / "map.onnx", images).path
        requests = [opened(path, precision) for precision in PRECISIONS]
    given = {"images": images.numpy(), "labels": labels.numpy()}
    rounds = [[timed(request, given) for request in requests] for _ in range(ROUNDS)]
    cells = [name]
    for column, found in enumerate(rounds[-1]):
        pairs = [(one.ravel(), other.ravel()) for one, other in zip(found[1], exact, strict=True)]
        cosine = min(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for one, other in pairs)
        rank = min(float(spearmanr(one, other).statistic) for one, other in pairs)
        # The first round is for what is made once.
        took = median(row[column][0] for row in rounds[1:])
        cells += [f"{1000 * took:.1f} ms", f"{cosine:.4f}", f"{rank:.4f}"]
    return cells


def main() -> None:
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else MODELS
    header = ["model", *(f"{precision}, {what}" for precision in PRECISIONS for what in ("time", "cosine", "rank"))]
    print_head(header)
    for name in names:
        print_row(row(name))


if __name__ == "__main__":
    main()
