"""The least that a map can take in an engine: its convolutions and matrix products, forth and back, and nothing else.

    OMP_NUM_THREADS=1 engine_products.py [--models "small CNN,ResNet-18"] [--batches 1,8] [--rounds 15]

It prints a table in Markdown: Captum's time; for each engine the time of the exported graph, how much of it the engine
says that products take, with what it fused into them (ReLUs, gates, sums), and both as shares of Captum's time. Medians
over rounds in which all run, of the processor's time, which others disturb the least; what an engine says of its
operations is taken in rounds of their own, for it costs time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from contest import load
from markdown import print_head, print_row

from guided_backprop import GuidedBackprop
from guided_backprop.export.engine import ENGINES, Fixed, installed, required

# What ONNX Runtime calls convolutions and matrix products, and OpenVINO.
_PRODUCTS = frozenset("Conv FusedConv ConvTranspose MatMul FusedMatMul Gemm FusedGemm".split()) | frozenset(
    "Convolution GroupConvolution ConvolutionBackpropData GroupConvolutionBackpropData FullyConnected".split()
)
_ROUNDS_OF_PROFILES = 20


def operations_of_onnxruntime(path: Path, given: Mapping[str, Any], folder: Path) -> list[tuple[str, float]]:
    """Return for each operation its kind, and how long it takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(_ROUNDS_OF_PROFILES):
        session.run(None, dict(given))
    found: dict[str, tuple[str, list[float]]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["name"], (event["args"]["op_name"], []))[1].append(event["dur"] / 1e6)
    return [(kind, median(seconds)) for kind, seconds in found.values()]


def operations_of_openvino(path: Path, given: Mapping[str, Any], folder: Path) -> list[tuple[str, float]]:
    """Return the same of OpenVINO, opened as it is used here: for so many images."""
    core = required("openvino").Core()
    model = core.read_model(str(path))
    shapes = {port: port.partial_shape for port in model.inputs}
    for shape in shapes.values():
        shape[0] = len(given["images"])
    model.reshape(shapes)
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": "YES"}
    options["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    request = core.compile_model(model, "CPU", options).create_infer_request()
    found: dict[str, tuple[str, list[float]]] = {}
    for _ in range(_ROUNDS_OF_PROFILES):
        request.infer(dict(given))
        for node in request.profiling_info:
            found.setdefault(node.node_name, (node.node_type, []))[1].append(node.real_time.total_seconds())
    return [(kind, median(seconds)) for kind, seconds in found.values()]


OPERATIONS = {"onnxruntime": operations_of_onnxruntime, "openvino": operations_of_openvino}


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the processor time of calls; each is timed when it was called before, and after a pause."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.03)
            call()
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    return {name: median(each) for name, each in seconds.items()}


def rows(framework: Any, name: str, count: int, rounds: int) -> Iterator[list[str]]:
    model, (images, labels) = framework.networks[name].build("float32"), framework.inputs(name, count)
    captum = framework.contestants["Captum"].prepare(framework.twin(model), images)
    given = {"images": images.numpy(), "labels": labels.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        path = GuidedBackprop(model).export(Path(folder) / "map.onnx", images[:2]).path
        outputs = ["outputs", "attribution", "scores", "is_finite"]
        fixed = {kind: [Fixed(count, path, apart=True)] if ENGINES[kind].favours_count else [] for kind in installed()}
        engines = {kind: ENGINES[kind](path, outputs, torch.get_num_threads(), *fixed[kind]) for kind in fixed}
        calls: dict[str, Callable[[], Any]] = {"Captum": lambda: captum(images, labels)}
        calls |= {kind: lambda engine=engine: engine.run(given) for kind, engine in engines.items()}
        took = medians(calls, rounds)
        for kind, engine in engines.items():
            operations = OPERATIONS[kind](path, given, Path(folder))
            share = sum(each for word, each in operations if word in _PRODUCTS) / sum(each for _, each in operations)
            ratio = took[kind] / took["Captum"]
            times = [f"{1000 * took['Captum']:.1f} ms", engine.name, f"{1000 * took[kind]:.1f} ms"]
            yield [name, str(count), *times, f"{ratio:.2f}", f"{share:.0%}", f"{ratio * share:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="small CNN,ResNet-18,MobileNetV2,EfficientNet-Lite0")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    framework = load("torch")
    header = ["model", "images", "Captum", "engine", "the graph", "/ Captum", "of it products", "products / Captum"]
    print_head(header)
    for name in asked.models.split(","):
        for count in map(int, asked.batches.split(",")):
            for row in rows(framework, name, count, asked.rounds):
                print_row(row)


if __name__ == "__main__":
    main()
