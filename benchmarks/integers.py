"""What int8 arithmetic does to a map, and to its time: ONNX Runtime's own static quantisation of convolutions.

    OMP_NUM_THREADS=1 integers.py [MODEL,MODEL...]       prints a table in Markdown, for two images of noise

Ranges are those of five batches of noise, the images themselves among them; weights have one for each channel. Cosine
and rank correlation are the lower ones of two maps, with the map in float64, and 0 for a map of zeros; times are of the
processor, medians.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from contestants_torch import FRAMEWORK, NETWORKS
from markdown import print_head, print_row
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from scipy.stats import spearmanr

from guided_backprop import GuidedBackprop
from guided_backprop.export.engine import ENGINES
from guided_backprop.export.plan import RESULTS

MODELS = ("small CNN", "ResNet-18", "EfficientNet-Lite0")
ROUNDS, IMAGES, BATCHES = 12, 2, 4


class Batches(CalibrationDataReader):  # type: ignore[misc]  # it says nothing of its types
    """What ranges are measured on."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        shape = given["images"].shape
        noise = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in range(BATCHES))
        self._left: Iterator[Mapping[str, Any]] = iter([given, *({**given, "images": one} for one in noise)])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)


def quantised(path: Path, given: Mapping[str, Any]) -> Path:
    ready, found = path.with_suffix(".ready.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    quantize_static(str(ready), str(found), Batches(given), op_types_to_quantize=["Conv"], per_channel=True, **kinds)
    return found


def cells(path: Path, given: Mapping[str, Any], exact: Any) -> list[str]:
    engine = ENGINES["onnxruntime"](path, RESULTS, torch.get_num_threads())
    took = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        found = engine.run(given)["attribution"]
        took.append(time.process_time() - begin)
    pairs = [(one.ravel().astype(np.float64), other.ravel()) for one, other in zip(found, exact, strict=True)]
    alike = [one @ other / (np.linalg.norm(one) * np.linalg.norm(other) or 1) for one, other in pairs]
    ranks = [spearmanr(one, other).statistic if one.any() else 0.0 for one, other in pairs]
    return [f"{1000 * median(took[2:]):.1f} ms", f"{min(alike):.4f}", f"{min(ranks):.4f}"]


def row(name: str) -> list[str]:
    images, labels = FRAMEWORK.inputs(name, IMAGES)
    given = {"images": images.numpy(), "labels": labels.numpy()}
    exact = GuidedBackprop(NETWORKS[name].build("float64")).explain(images.double(), labels).attribution.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = GuidedBackprop(NETWORKS[name].build("float32")).export(Path(folder) / "map.onnx", images).path
        return [name, *cells(path, given, exact), *cells(quantised(path, given), given, exact)]


def main() -> None:
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else MODELS
    header = ["model", *(f"{kind}, {what}" for kind in ("f32", "int8") for what in ("time", "cosine", "rank"))]
    print_head(header)
    for name in names:
        print_row(row(name))


if __name__ == "__main__":
    main()
