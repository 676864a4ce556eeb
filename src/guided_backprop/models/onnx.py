"""Loader: ``net.onnx``, turned into a PyTorch module by onnx2torch, and compared with what ONNX Runtime computes."""

from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from guided_backprop.arrays import as_numpy
from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.onnx_older import as_older
from guided_backprop.models.vision import VisionModel

# By how much of the largest output the two may differ: both compute in float32, in another order.
_CLOSE = 1e-3


def load(asked: Asked) -> VisionModel:
    """Load a network, if its PyTorch module computes what ONNX Runtime does.

    Raises:
        MissingExtraError: onnx, onnx2torch or onnxruntime isn't installed.
        ModelError: it can't be turned into a PyTorch module, or that computes something else; or it doesn't say what it
            is shown.
    """
    onnx, convert = asked.package("onnx", "onnx"), asked.package("onnx2torch", "onnx").convert
    runtime = asked.package("onnxruntime", "onnx")
    stored = _stored(asked, onnx)
    try:
        network = convert(as_older(stored, onnx)).eval()
    # Each operation has a converter, which says in its own way what it can't do.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ModelError(
            f"model must be of operations that onnx2torch knows; received model={asked.spec!r} "
            f"({type(error).__name__}: {reason:.300}). Explain the network that it was exported from."
        ) from error
    session = runtime.InferenceSession(asked.name, providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    shape = [size if isinstance(size, int) else None for size in given[0].shape] if len(given) == 1 else []
    vision = asked.vision_model(network, shape)
    difference = _difference(vision, session)
    if not difference <= _CLOSE:
        raise ModelError(
            f"model must compute in PyTorch what it does in ONNX Runtime; received model={asked.spec!r}, whose outputs "
            f"differ by {difference:.2g} of the largest. Explain the network that it was exported from."
        )
    return vision


def _stored(asked: Asked, onnx: ModuleType) -> Any:
    """Return what a file holds; raise ModelError where that is no network."""
    stored, reason = None, "it is empty"
    try:
        stored = onnx.load(asked.name)
    # Of kinds of the protocol's own.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
    if stored is None or not stored.graph.node:
        raise ModelError(
            f"model must be an ONNX file that is whole; received model={asked.spec!r} ({reason:.300}). Export it anew."
        )
    return stored


def _difference(vision: VisionModel, session: Any) -> float:
    """Return by how much of the largest output the two differ, for photos of noise and of a ramp."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    ramp = np.linspace(0, 255, noise.size).reshape(noise.shape).astype(np.uint8)
    batches = [[noise], [ramp]] if vision.at_once else [[noise, ramp]]
    return max(_of_batch(vision, session, [Image.fromarray(photo) for photo in photos]) for photos in batches)


def _of_batch(vision: VisionModel, session: Any, photos: list[Image.Image]) -> float:
    import torch  # noqa: PLC0415

    images = vision.images(photos)
    with torch.no_grad():
        computed = vision.network(images)
    ours = [as_numpy(output) for output in (computed if isinstance(computed, tuple | list) else [computed])]
    theirs = session.run(None, {session.get_inputs()[0].name: as_numpy(images)})
    if [output.shape for output in ours] != [output.shape for output in theirs]:
        return float("inf")
    largest = max(float(np.abs(output).max()) for output in theirs)
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(one - other).max()) for one, other in pairs) / max(largest, 1e-12)
