"""Predictions by the engines that compiled methods use: the fastest prediction that there is of a model."""

import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import torch

from guided_backprop import Saliency
from guided_backprop.digest import digest
from guided_backprop.export.engine import ENGINES, Engine, installed

_FOLDER = tempfile.TemporaryDirectory(prefix="guided_backprop_bench_")
_RUNS = 5


def exported(model: torch.nn.Module, images: torch.Tensor) -> Path:
    """Return the file of what a model predicts, without a map; written once in this process for images of one size."""
    sizes = "x".join(map(str, images.shape[1:]))
    path = Path(_FOLDER.name) / f"{digest(model)}_{sizes}.onnx"
    if not path.exists():
        whole = path.with_suffix(".whole.onnx")
        Saliency(model).export(whole, images[:2])
        onnx.utils.extract_model(str(whole), str(path), ["images"], ["outputs"])
        whole.unlink()
    return path


def predicting(model: torch.nn.Module, images: torch.Tensor) -> Any:
    """Return a function from images to what the engine predicts that is the fastest for these."""
    path = exported(model, images)
    engines = [ENGINES[name](path, ["outputs"], torch.get_num_threads()) for name in installed()]
    wanted = model(images).detach()
    for engine in engines:
        if not torch.allclose(torch.as_tensor(_run(engine, images)), wanted, rtol=1e-3, atol=1e-3):
            raise ValueError(f"{engine.name} predicts something else")
    fastest = min(engines, key=lambda engine: min(_seconds(engine, images) for _ in range(_RUNS)))
    return lambda images, labels: _run(fastest, images)


def _run(engine: Engine, images: torch.Tensor) -> Any:
    return engine.run({"images": images.numpy()})["outputs"]


def _seconds(engine: Engine, images: torch.Tensor) -> float:
    begin = time.perf_counter()
    _run(engine, images)
    return time.perf_counter() - begin
